"""Every kind of wrong argument, at every call that takes it: an exception each time, and no byte
out of place.

A case is one call that must raise. Its name is written before it is tried, so that after a crash
the last line says which one it was. Around the cases a canary looks at all memory: nothing may have
been copied by a call that was refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from memory import Memory, pattern
from role import Stage, finish, run

SIZE = 1 << 16
HUGE = [2**63, 2**64 - 1, 2**63 - 1]
BEYOND = [2**64, -1, -(2**63), 2**200, 1.5, float("nan"), "8", None, b"8"]


class World:
    """Two agents of one process, and lists, requests and memory of both."""

    def __init__(self, stage: Stage):
        api = stage.api
        self.bind = stage.bindings
        config = api.nixl_agent_config(capture_telemetry=True)
        self.agent = api.nixl_agent("misused", config)
        self.other = api.nixl_agent("other", config)
        self.memory, self.theirs = Memory(SIZE), Memory(SIZE)
        self.memory.fill("misuse")
        self.base, self.far = self.memory.address, self.theirs.address
        self.registered = self.agent.register_memory([(self.base, SIZE, 0, "")], "DRAM")
        self.other.register_memory([(self.far, SIZE, 0, "")], "DRAM")
        self.agent.add_remote_agent(self.other.get_agent_metadata())
        self.other.add_remote_agent(self.agent.get_agent_metadata())
        self.near_rows = [(self.base + i * 256, 256, 0) for i in range(16)]
        self.far_rows = [(self.far + i * 256, 256, 0) for i in range(16)]
        self.near = self.agent.get_xfer_descs(self.near_rows, "DRAM")
        self.there = self.agent.get_xfer_descs(self.far_rows, "DRAM")
        self.local_list = self.agent.prep_xfer_dlist("", self.near)
        self.remote_list = self.agent.prep_xfer_dlist("other", self.there)
        self.foreign_list = self.other.prep_xfer_dlist("", self.there)
        self.foreign_request = self.other.initialize_xfer("WRITE", self.there, self.near, "misused")
        self.request = self.make()
        self.released_request = self.make()
        self.released_request_number = self.released_request._handle
        self.agent.release_xfer_handle(self.released_request)
        self.released_list = self.agent.prep_xfer_dlist("", self.near)
        self.agent.release_dlist_handle(self.released_list)
        self.backend = next(iter(self.agent.backends.values()))
        self.foreign_backend = next(iter(self.other.backends.values()))

    def make(self) -> Any:
        return self.agent.make_prepped_xfer("WRITE", self.local_list, [3], self.remote_list, [5])

    def unchanged(self) -> bool:
        self.memory.expect(0, pattern(SIZE, "misuse"))
        return self.memory.wrong_bytes() == 0 and self.theirs.wrong_bytes() == 0


Case = tuple[str, Callable[[], Any]]


def handles(w: World) -> Iterator[Case]:
    """Released, foreign, made-up and mistaken handles, at the raw calls that take their numbers."""
    raw = w.agent.agent
    made_up = {
        "zero": 0,
        "a small one": 3**9,
        "an address": w.base,
        "the largest": 2**64 - 1,
        "another agent's request": w.foreign_request._handle,
        "another agent's list": w.foreign_list._handle,
        "a released list": w.released_list._handle,
        "a released request": w.released_request_number,
        "a backend": w.backend,
    }
    request = {**made_up, "a list": w.local_list._handle}
    prepared = {**made_up, "a request": w.request._handle}
    for name, number in request.items():
        for call in ("postXferReq", "getXferStatus", "getXferTelemetry", "estimateXferCost"):
            yield f"{call} of {name}", partial(getattr(raw, call), number)
        yield f"queryXferBackend of {name}", partial(raw.queryXferBackend, number)
        yield f"releaseXferReq of {name}", partial(raw.releaseXferReq, number)
    op, lists = w.bind.NIXL_WRITE, (w.local_list._handle, w.remote_list._handle)
    for name, number in prepared.items():
        yield (
            f"makeXferReq from {name}",
            partial(raw.makeXferReq, op, number, [0], lists[1], [0]),
        )
        yield f"makeXferReq to {name}", partial(raw.makeXferReq, op, lists[0], [0], number, [0])
        if number:
            yield f"releasedDlistH of {name}", partial(raw.releasedDlistH, number)
    backends = {**made_up, "another agent's backend": w.foreign_backend, "a list": lists[0]}
    del backends["a backend"]
    row = w.agent.get_reg_descs([(w.base, 4096, 0, "")], "DRAM")
    for name, number in backends.items():
        yield f"getBackendParams of {name}", partial(raw.getBackendParams, number)
        yield f"registerMem with {name}", partial(raw.registerMem, row, [number])
        yield f"prepXferDlist with {name}", partial(raw.prepXferDlist, "", w.near, [number])
        yield f"getNotifs from {name}", partial(raw.getNotifs, {}, [number])
        yield f"genNotif by {name}", partial(raw.genNotif, "other", b"x", [number])
    for wrong in BEYOND:
        for call in ("postXferReq", "getXferStatus", "releaseXferReq", "releasedDlistH"):
            yield f"{call} of {wrong!r}", partial(getattr(raw, call), wrong)
    swapped = w.agent.make_prepped_xfer
    yield "the sides swapped", lambda: swapped("WRITE", w.remote_list, [0], w.local_list, [0])
    yield "two local sides", lambda: swapped("WRITE", w.local_list, [0], w.local_list, [0])
    yield "two remote sides", lambda: swapped("WRITE", w.remote_list, [0], w.remote_list, [0])


def after_release(w: World) -> Iterator[Case]:
    agent, gone = w.agent, w.released_request
    yield "transfer after release", lambda: agent.transfer(gone)
    yield "check_xfer_state after release", lambda: agent.check_xfer_state(gone)
    yield "get_xfer_telemetry after release", lambda: agent.get_xfer_telemetry(gone)
    yield "query_xfer_backend after release", lambda: agent.query_xfer_backend(gone)
    make = agent.make_prepped_xfer
    yield "a released local list", lambda: make("READ", w.released_list, [0], w.remote_list, [0])
    foreign = w.foreign_request
    yield "transfer of another agent's", lambda: agent.transfer(foreign)
    yield "check_xfer_state of another agent's", lambda: agent.check_xfer_state(foreign)
    yield "release of nothing", lambda: agent.release_xfer_handle(None)
    yield "transfer of a number", lambda: agent.transfer(w.request._handle)


def indices(w: World) -> Iterator[Case]:
    def make(local: Any, remote: Any) -> Any:
        return w.agent.make_prepped_xfer("WRITE", w.local_list, local, w.remote_list, remote)

    good = np.array([1, 2])
    wrong: dict[str, Any] = {
        "nothing": [],
        "an empty array": np.array([], dtype=np.int64),
        "the count": [16, 1],
        "minus one": [-1, 1],
        "minus one of 32 bits": np.array([-1, 1], dtype=np.int32),
        "minus one of 64 bits": np.array([-1, 1], dtype=np.int64),
        "2**31": [2**31, 1],
        "2**32": [2**32, 1],
        "2**32 in an array": np.array([2**32, 1], dtype=np.int64),
        "2**32 + 1 in an array": np.array([2**32 + 1, 1], dtype=np.uint64),
        "2**63 in an array": np.array([2**63, 1], dtype=np.uint64),
        "one too few": np.array([1]),
        "one too many": [1, 2, 3],
        "two dimensions": np.array([[1, 2]]),
        "no dimension": np.array(1),
        "fractions": np.array([0.5, 1.0]),
        "not numbers": np.array([np.nan, 1.0]),
        "infinity": np.array([np.inf, 1.0]),
        "texts": np.array(["1", "2"]),
        "objects": np.array([object(), 1], dtype=object),
        "dates": np.array([1, 2], dtype="datetime64[s]"),
        "a structure": np.zeros(2, dtype=[("a", "i4")]),
        "complex numbers": np.array([1j, 2j]),
        "a text": "12",
        "bytes": b"12",
        "None": None,
        "an int": 1,
        "a list of texts": ["1", "2"],
        "a list of floats": [1.0, 2.0],
        "a list of lists": [[1], [2]],
        "a dict": {1: 1, 2: 2},
        "a memoryview": memoryview(b"\1\2"),
    }
    for name, value in wrong.items():
        if name not in ("a dict", "a memoryview"):
            yield f"local indices: {name}", partial(make, value, good)
            yield f"remote indices: {name}", partial(make, good, value)


def descriptors(w: World) -> Iterator[Case]:
    agent, base = w.agent, w.base
    for number in BEYOND:
        for column in range(3):
            row = [base, 64, 0]
            row[column] = number  # type: ignore[call-overload]
            rows = [tuple(row)]
            yield f"{number!r} in column {column}", partial(agent.get_xfer_descs, rows, "DRAM")
            full = [(*row, "")]
            yield (
                f"{number!r} registered in {column}",
                partial(agent.get_reg_descs, full, "DRAM"),
            )
    outside = {
        "one byte beyond the end": (base, SIZE + 1, 0),
        "the byte after the end": (base + SIZE, 1, 0),
        "one byte before": (base - 1, 2, 0),
        "another device": (base, 64, 1),
        "a huge device": (base, 64, 2**63),
        "nobody's memory": (64, 64, 0),
        "zero": (0, 64, 0),
        "the last byte": (2**64 - 1, 1, 0),
        "an end that wraps to zero": (2**64 - 64, 64, 0),
        "an end that wraps into the region": (base + 128, 2**64 - 64, 0),
        "a wrap that ends inside": (2**64 - 4096, base + 8192, 0),
    }
    for length in HUGE:
        outside[f"a length of {length:#x}"] = (base, length, 0)
        outside[f"a length of {length:#x} from the middle"] = (base + 4096, length, 0)
    for name, place in outside.items():
        for kind in ("tuples", "array"):
            some: Any = [place] if kind == "tuples" else np.array([place], dtype=np.uint64)

            def local(r: Any = some) -> Any:
                return agent.prep_xfer_dlist("", r, "DRAM")

            def remote(r: Any = some) -> Any:
                shifted = [(r[0][0] - base + w.far) % 2**64, r[0][1], r[0][2]]
                return agent.prep_xfer_dlist("other", [tuple(map(int, shifted))], "DRAM")

            def oneshot(r: Any = some) -> Any:
                descs = agent.get_xfer_descs(r, "DRAM")
                return agent.initialize_xfer("READ", descs, descs, "other")

            yield f"{name}, local, {kind}", local
            yield f"{name}, at once, {kind}", oneshot
            if kind == "tuples":
                yield f"{name}, remote", remote
    strided = {
        "a stride below the length": (base, 256, 0, 255, 2),
        "no stride": (base, 256, 0, 0, 2),
        "no count": (base, 256, 0, 256, 0),
        "one block too many": (base, 256, 0, 256, SIZE // 256 + 1),
        "the last block cut off": (base, 256, 0, 512, SIZE // 512 + 1),
        "a stride that overflows": (base, 256, 0, 2**63, 3),
        "a count that overflows": (base, 256, 0, 2**32, 2**32),
        "a count that wraps to nothing": (base, 256, 0, 2**32, 2**32 + 1),
        "a count of 2**64-1": (base, 256, 0, 256, 2**64 - 1),
        "a stride of 2**64-256, going back": (base + 4096, 256, 0, 2**64 - 256, 2),
        "a length of 2**64-1": (base, 2**64 - 1, 0, 2**64 - 1, 1),
    }
    for name, row5 in strided.items():
        single = np.array([row5], dtype=np.uint64)
        yield f"strided: {name}", partial(agent.prep_xfer_dlist, "", single, "DRAM")
        good = (base, 256, 0, 256, 4)
        pair = np.array([good, row5], dtype=np.uint64)
        yield f"strided, second: {name}", partial(agent.prep_xfer_dlist, "", pair, "DRAM")
    five = np.array([(base, 256, 0, 256, 4)], dtype=np.uint64)
    prep = agent.prep_xfer_dlist
    yield "strided without a memory type", lambda: prep("", five)
    yield "strided, every other row", lambda: prep("", np.repeat(five, 4, 0)[::2], "DRAM")
    yield (
        "strided, columns first",
        lambda: prep("", np.asfortranarray(np.repeat(five, 3, 0)), "DRAM"),
    )
    for dtype in ("f8", "u4", "i4", ">u8", "?", "O", "U5", "c16", "M8[s]", "V8"):
        if dtype not in ("M8[s]", "V8"):
            yield f"strided of {dtype}", partial(prep, "", five.astype(dtype), "DRAM")
        three = np.zeros((2, 3), dtype=dtype)
        yield f"Nx3 of {dtype}", partial(agent.get_xfer_descs, three, "DRAM")
    yield "a field of numbers that are none", lambda: prep("", np.full((2, 5), np.nan), "DRAM")
    yield "Nx3, reversed", lambda: agent.get_xfer_descs(np.zeros((3, 3), "u8")[::-1], "DRAM")
    yield "Nx3, columns first", lambda: agent.get_xfer_descs(np.zeros((3, 3), "u8").T, "DRAM")
    for shape in ((3,), (2, 4), (2, 6), (2, 2), (1, 2, 3), (0, 5), (2, 0)):
        yield f"an array of {shape}", partial(prep, "", np.zeros(shape, dtype="u8"), "DRAM")


def names_and_kinds(w: World) -> Iterator[Case]:
    agent = w.agent
    for name in ("nobody", "NIXL_INIT_AGENT", "", None, 5, b"\xff"):
        yield (
            f"initialize_xfer to {name!r}",
            partial(agent.initialize_xfer, "WRITE", w.near, w.there, name),
        )
        yield f"send_notif to {name!r}", partial(agent.send_notif, name, b"x")
    for kind in ("VRAM", "BLOCK", "OBJ", "cuda", "dram", "", None, 5):
        yield f"prep as {kind!r}", partial(agent.prep_xfer_dlist, "", w.near_rows, kind)
    for op in ("write", b"WRITE", "", None, 0, "RW"):
        yield (
            f"the operation {op!r}",
            partial(agent.initialize_xfer, op, w.near, w.there, "other"),
        )
    for message in (None, 5, 1.5, ["x"], object()):
        yield f"the message {message!r}", partial(agent.send_notif, "other", message)
        yield f"the notification {message!r}", partial(agent.transfer, w.request, message)
    wrong_lists: tuple[Any, ...] = (w.registered, w.near_rows, None, 5, "descs", w.local_list)
    for lists in wrong_lists:
        name = type(lists).__name__
        yield (
            f"initialize_xfer from a {name}",
            partial(agent.initialize_xfer, "WRITE", lists, w.there, "other"),
        )
    uneven = agent.get_xfer_descs([(w.far, 255, 0)], "DRAM")
    even = agent.get_xfer_descs([(w.base, 256, 0)], "DRAM")
    yield "unequal lengths", lambda: agent.initialize_xfer("WRITE", even, uneven, "other")
    yield "unequal counts", lambda: agent.initialize_xfer("WRITE", even, w.there, "other")
    empty = w.bind.nixlXferDList(w.bind.DRAM_SEG)
    yield "no descriptors", lambda: agent.initialize_xfer("WRITE", empty, empty, "other")
    for raw_kind in (9, -1, 2**40, "DRAM_SEG", None):
        yield f"a list of kind {raw_kind!r}", partial(w.bind.nixlXferDList, raw_kind)
    for size in (-1, 2**31 - 1, 2**63, 2**64, 1.5, "3"):
        yield f"a list of size {size!r}", partial(w.bind.nixlXferDList, w.bind.DRAM_SEG, size)
    for index in (16, 2**31, 2**63, 2**64, -1, "0", 0.0, None, slice(0, 1)):
        yield f"[{index!r}]", partial(operator.getitem, w.near, index)
        yield f"[{index!r}] =", partial(w.near.__setitem__, index, (1, 2, 3))
    for index in (16, -1, 2**40, None, "1"):
        yield f"remDesc({index!r})", partial(w.near.remDesc, index)
    for metadata in (b"", b"x", "text", None, 5, memoryview(b"x"), [1], b"\0" * 100_000):
        what = type(metadata).__name__
        yield f"the metadata of a {what}", partial(agent.add_remote_agent, metadata)
    yield "its own metadata", lambda: agent.add_remote_agent(agent.get_agent_metadata())


def memory_of_nobody(w: World) -> Iterator[Case]:
    agent = w.agent

    def register(*rows: Any) -> Callable[[], Any]:
        return lambda: agent.register_memory(list(rows), "DRAM")

    for length in (2**64 - 1, 2**63):
        yield f"register {length:#x} bytes", register((w.base, length, 0, ""))
    yield "register zero", register((0, 4096, 0, ""))
    yield "register what wraps", register((2**64 - 4096, 8192, 0, ""))
    yield "register the last page", register((2**64 - 4096, 4096, 0, ""))
    yield "register GPU memory", lambda: agent.register_memory([(w.base, 64, 0, "")], "VRAM")
    yield "register with meta of None", register((w.base, 64, 0, None))
    yield (
        "deregister what is not",
        lambda: agent.deregister_memory(agent.get_reg_descs([(w.base, 4096, 0, "")], "DRAM")),
    )
    twice = agent.get_reg_descs([(w.base, SIZE, 0, ""), (w.base, SIZE, 0, "")], "DRAM")
    yield "deregister one twice in a list", lambda: agent.deregister_memory(twice)
    yield "deregister a transfer's list", lambda: agent.deregister_memory(w.near)
    yield "deregister nothing", lambda: agent.deregister_memory(None)
    yield "register nothing", lambda: agent.register_memory(None)


FAMILIES: dict[str, Callable[[World], Iterator[Case]]] = {
    family.__name__: family
    for family in (handles, after_release, indices, descriptors, names_and_kinds, memory_of_nobody)
}


def misuse(stage: Stage, family: str) -> dict[str, Any]:
    world = World(stage)
    accepted, changed, strange, tried = [], [], [], 0
    for name, call in FAMILIES[family](world):
        print("trying", name, flush=True)
        tried += 1
        try:
            value = call()
            accepted.append(f"{name}: {value!r}")
        except Exception:
            pass
        except BaseException as error:
            strange.append(f"{name}: {type(error).__name__}: {error}")
        if not world.unchanged():
            changed.append(name)
            world.theirs.bytes[:] = 0xDB
    # And after all that the agent works.
    source, target = slice(3 * 256, 4 * 256), slice(5 * 256, 6 * 256)
    world.agent.transfer(world.request)
    state = finish(world.agent, world.request)
    world.theirs.expect(target.start, pattern(SIZE, "misuse")[source])
    return {
        "tried": tried,
        "accepted": accepted,
        "changed": changed,
        "strange": strange,
        "works": state == "DONE" and world.unchanged(),
    }


if __name__ == "__main__":
    run(misuse)
