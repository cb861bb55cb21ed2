"""One workload of nixl_paired.py on one implementation, in a process of its own.

    nixl_paired_worker.py WORKLOAD MODULE

Prints `RESULT {row: figure}`, in seconds or bytes per second, and leaves by `os._exit`: the real
nixl crashes when an interpreter ends in order.
"""

from __future__ import annotations

import base64
import importlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BLOCK = 32 * 1024
BLOCKS = 12_800
POOL = 16_000  # blocks in the memory of each side, of which a transfer moves a scattered choice
MARGIN = 4096 + 64  # where block 0 begins: neither side's addresses begin with their region's
ITERATIONS = 4
CALLS = 21
BATCHES = 101  # of calls that are too quick to be timed one by one
BATCH = 200
DEADLINE = 60.0

PREPPED_BLOCK = 4096
PREPPED_ROWS = 56  # layers, keys and values apart
PREPPED_COUNT = 2000  # blocks of each

POISON = 0xA5
MIX = 0x9E3779B97F4A7C15  # odd, so that all words of a pattern differ
CHUNK = 64  # blocks that are filled or compared at a time


class Memory:
    """Registered memory of one agent, and what should be in it."""

    def __init__(self, agent: Any, numpy: Any, size: int) -> None:
        self.numpy = numpy
        self.bytes = numpy.frombuffer(mmap.mmap(-1, size), dtype=numpy.uint8)
        self.base: int = self.bytes.ctypes.data
        self.registered = agent.register_memory([(self.base, size, 0, "")], "DRAM")

    def chunks(self, blocks: Any, salt: int) -> Any:
        """What the blocks hold in an iteration, some at a time: words of position in the order, and
        salt.
        """
        numpy = self.numpy
        words = BLOCK // 8
        mixed = numpy.arange(CHUNK * words, dtype=numpy.uint64) * numpy.uint64(MIX)
        mixed = mixed.reshape(CHUNK, words)
        for first in range(0, len(blocks), CHUNK):
            some = blocks[first : first + CHUNK]
            start = (first * words * MIX + salt) % 2**64
            yield some, mixed[: len(some)] + numpy.uint64(start)

    def view(self) -> Any:
        """The pool as rows of words."""
        end = MARGIN + POOL * BLOCK
        return self.bytes[MARGIN:end].view(self.numpy.uint64).reshape(POOL, BLOCK // 8)

    def fill(self, blocks: Any, salt: int) -> None:
        """Write the pattern, the first block of the order first."""
        view = self.view()
        for some, words in self.chunks(blocks, salt):
            view[some] = words

    def poison(self) -> None:
        """Overwrite everything."""
        self.bytes[:] = POISON

    def verify(self, blocks: Any, salt: int) -> None:
        """Raise unless every byte is right, the blocks that nobody wrote included."""
        numpy, view = self.numpy, self.view()
        for some, words in self.chunks(blocks, salt):
            if not numpy.array_equal(view[some], words):
                raise RuntimeError("wrong bytes in a block that was transferred")
        others = numpy.setdiff1d(numpy.arange(POOL), blocks)
        poison = numpy.uint64(int.from_bytes(bytes([POISON] * 8), "little"))
        for first in range(0, len(others), CHUNK):
            if not (view[others[first : first + CHUNK]] == poison).all():
                raise RuntimeError("a block was written that is not of the transfer")

    def descriptors(self, blocks: Any) -> Any:
        """N×3 rows of these blocks."""
        rows = self.numpy.empty((len(blocks), 3), dtype=self.numpy.uint64)
        rows[:, 0] = self.base + MARGIN + blocks.astype(self.numpy.uint64) * BLOCK
        rows[:, 1] = BLOCK
        rows[:, 2] = 0
        return rows


def load(module: str) -> tuple[Any, Any]:
    """The API under test, and numpy."""
    return importlib.import_module(f"{module}._api"), importlib.import_module("numpy")


def order(numpy: Any, seed: int) -> Any:
    """A scattered choice of the pool's blocks."""
    return numpy.random.default_rng(seed).permutation(POOL)[:BLOCKS].astype(numpy.int64)


def median_time(count: int, call: Callable[[], Any], after: Callable[[Any], Any]) -> float:
    """The median seconds of a call; what it returns is given to `after`, which is not timed."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
        after(result)
    return statistics.median(times)


def run_to_end(agent: Any, handle: Any) -> tuple[float, float]:
    """Seconds until the transfer is done, and of the posting call."""
    began = time.perf_counter()
    state = agent.transfer(handle)
    posted = time.perf_counter()
    while state == "PROC":
        state = agent.check_xfer_state(handle)
        if time.perf_counter() - began > DEADLINE:
            raise RuntimeError(f"a transfer is not done after {DEADLINE:.0f} s")
    ended = time.perf_counter()
    if state != "DONE":
        raise RuntimeError(f"a transfer ended with {state}")
    return ended - began, posted - began


def wait_for_metadata(agent: Any, name: str) -> None:
    """Wait until a peer's metadata is there and its connection made."""
    deadline = time.monotonic() + DEADLINE
    while not agent.check_remote_metadata(name):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no metadata of {name} after {DEADLINE:.0f} s")
        time.sleep(0.001)
    agent.make_connection(name)


def import_(module: str) -> dict[str, float]:
    """How long the import takes in this fresh interpreter."""
    began = time.perf_counter()
    importlib.import_module(module)
    importlib.import_module(f"{module}._api")
    return {"import": time.perf_counter() - began}


def calls(module: str) -> dict[str, float]:
    """What single calls cost."""
    api, numpy = load(module)
    began = time.perf_counter()
    here = api.nixl_agent("here", api.nixl_agent_config(backends=["UCX"]))
    figures = {"agent": time.perf_counter() - began}
    there = api.nixl_agent("there", api.nixl_agent_config(backends=["UCX"]))
    size = MARGIN + POOL * BLOCK
    sides = Memory(here, numpy, size), Memory(there, numpy, size)
    for memory in sides:
        memory.poison()
    here.add_remote_agent(there.get_agent_metadata())
    wait_for_metadata(here, "there")

    lists = [
        here.get_xfer_descs(memory.descriptors(order(numpy, seed)), "DRAM")
        for seed, memory in enumerate(sides)
    ]
    figures["initialize_xfer"] = median_time(
        CALLS,
        lambda: here.initialize_xfer("READ", *lists, "there", b"done"),
        here.release_xfer_handle,
    )

    strided = []
    for memory in sides:
        rows = numpy.empty((PREPPED_ROWS, 5), dtype=numpy.uint64)
        length = PREPPED_COUNT * PREPPED_BLOCK
        rows[:, 0] = memory.base + MARGIN + numpy.arange(PREPPED_ROWS, dtype=numpy.uint64) * length
        rows[:, 1:] = PREPPED_BLOCK, 0, PREPPED_BLOCK, PREPPED_COUNT
        strided.append(rows)
    figures["prep_strided"] = median_time(
        CALLS,
        lambda: here.prep_xfer_dlist("there", strided[1], "DRAM"),
        here.release_dlist_handle,
    )

    near = here.prep_xfer_dlist("", strided[0], "DRAM")
    far = here.prep_xfer_dlist("there", strided[1], "DRAM")
    expanded = PREPPED_ROWS * PREPPED_COUNT
    rng = numpy.random.default_rng(7)
    starts = rng.permutation(expanded // 16)[: BLOCKS // 16]
    runs = (starts[:, None] * 16 + numpy.arange(16)).ravel().astype(numpy.int64)
    for name, indices in (("prepped_runs", runs), ("prepped_shuffled", rng.permutation(runs))):
        other = numpy.roll(indices, 160)
        figures[name] = median_time(
            CALLS,
            lambda indices=indices, other=other: here.make_prepped_xfer(
                "READ", near, indices, far, other, b"done"
            ),
            here.release_xfer_handle,
        )

    handle = here.initialize_xfer("READ", *lists, "there")
    figures["transfer"] = statistics.median(run_to_end(here, handle)[1] for _ in range(7))
    one = here.make_prepped_xfer("READ", near, [5], far, [9])
    run_to_end(here, one)
    figures["transfer_one"] = statistics.median(run_to_end(here, one)[1] for _ in range(2001))

    for name, call in (
        ("check_xfer_state", lambda: here.check_xfer_state(one)),
        ("get_new_notifs", here.get_new_notifs),
    ):
        batches = []
        for _ in range(BATCHES):
            began = time.perf_counter()
            for _ in range(BATCH):
                call()
            batches.append((time.perf_counter() - began) / BATCH)
        figures[name] = statistics.median(batches)
    return figures


def bandwidth(
    agent: Any, remote: str, near: Memory, far_descs: Any, fill_far: Any, verify_far: Any
) -> dict[str, float]:
    """Verified bytes per second of READ and WRITE, from the posting call to the done state."""
    numpy = near.numpy
    mine, theirs = order(numpy, 1), order(numpy, 2)
    local = agent.prep_xfer_dlist("", near.descriptors(mine), "DRAM")
    other = agent.prep_xfer_dlist(remote, far_descs(theirs), "DRAM")
    indices = numpy.arange(BLOCKS, dtype=numpy.int64)
    found = {}
    for operation in ("READ", "WRITE"):
        handle = agent.make_prepped_xfer(operation, local, indices, other, indices)
        times = []
        for iteration in range(ITERATIONS):
            salt = iteration * 1_000_003 + len(operation)
            if operation == "READ":
                near.poison()
                fill_far(theirs, salt)
            else:
                fill_far(theirs, None)
                near.fill(mine, salt)
            times.append(run_to_end(agent, handle)[0])
            if operation == "READ":
                near.verify(mine, salt)
            else:
                verify_far(theirs, salt)
        agent.release_xfer_handle(handle)
        # The first run also connects and touches pages.
        found[operation.lower()] = BLOCKS * BLOCK / statistics.median(times[1:])
    return found


def local(module: str) -> dict[str, float]:
    """Two agents of one process."""
    api, numpy = load(module)
    here = api.nixl_agent("here", api.nixl_agent_config(backends=["UCX"]))
    there = api.nixl_agent("there", api.nixl_agent_config(backends=["UCX"]))
    size = MARGIN + POOL * BLOCK
    near, far = Memory(here, numpy, size), Memory(there, numpy, size)
    here.add_remote_agent(there.get_agent_metadata())
    wait_for_metadata(here, "there")

    def fill(blocks: Any, salt: int | None) -> None:
        far.poison()
        if salt is not None:
            far.fill(blocks, salt)

    found = bandwidth(here, "there", near, far.descriptors, fill, far.verify)
    return {f"local_{operation}": figure for operation, figure in found.items()}


def peers(module: str) -> dict[str, float]:
    """Two processes: this one starts the other."""
    api, numpy = load(module)
    here = api.nixl_agent("here", api.nixl_agent_config(backends=["UCX"]))
    near = Memory(here, numpy, MARGIN + POOL * BLOCK)
    process = subprocess.Popen(
        [sys.executable, __file__, "target", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def ask(*request: Any) -> Any:
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        for line in answers:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"the target ended at {request[0]}")

    try:
        metadata, base = ask("hello", base64.b64encode(here.get_agent_metadata()).decode())
        here.add_remote_agent(base64.b64decode(metadata))
        wait_for_metadata(here, "there")

        def far_descs(blocks: Any) -> Any:
            rows = near.descriptors(blocks)
            # In the target's address space.
            rows[:, 0] += numpy.array([base - near.base], dtype=numpy.int64).view(numpy.uint64)[0]
            return rows

        found = bandwidth(
            here,
            "there",
            near,
            far_descs,
            lambda blocks, salt: ask("fill", salt),
            lambda blocks, salt: ask("verify", salt),
        )
        ask("bye")
    finally:
        process.kill()
        process.wait()
    return {f"peers_{operation}": figure for operation, figure in found.items()}


def target(module: str) -> dict[str, float]:
    """The other process of `peers`: does what it is asked on stdin."""
    api, numpy = load(module)
    agent = api.nixl_agent("there", api.nixl_agent_config(backends=["UCX"]))
    memory = Memory(agent, numpy, MARGIN + POOL * BLOCK)
    blocks = order(numpy, 2)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        answer: Any = None
        if what == "hello":
            agent.add_remote_agent(base64.b64decode(arguments[0]))
            answer = [base64.b64encode(agent.get_agent_metadata()).decode(), memory.base]
        elif what == "fill":
            memory.poison()
            if arguments[0] is not None:
                memory.fill(blocks, arguments[0])
        elif what == "verify":
            memory.verify(blocks, arguments[0])
        print("@" + json.dumps(answer), flush=True)
        if what == "bye":
            break
    return {}


def main() -> None:
    """Run the workload that the command line names."""
    workload, module = sys.argv[1:]
    workloads = {
        "import": import_,
        "calls": calls,
        "local": local,
        "peers": peers,
        "target": target,
    }
    figures = workloads[workload](module)
    print("RESULT " + json.dumps(figures), flush=True)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
