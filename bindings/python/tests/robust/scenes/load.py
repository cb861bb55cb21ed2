"""An agent under load: other Python threads run while it works, many threads share it, and nothing
is left behind."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import Memory, pattern
from role import PATIENCE_S, Stage, finish, run

BLOCK = 4096


class Pair:
    """The loaded agent and its partner in another process."""

    def __init__(self, stage: Stage, size: int, **config: Any):
        self.agent = stage.api.nixl_agent("loaded", stage.api.nixl_agent_config(**config))
        self.memory = Memory(size)
        self.memory.fill("loaded")
        self.agent.register_memory([(self.memory.address, size, 0, "")], "DRAM")
        theirs = stage.links["partner"].receive()
        stage.links["partner"].send(self.agent.get_agent_metadata())
        self.metadata = theirs["agent"]
        self.remote = self.agent.add_remote_agent(theirs["agent"])
        self.far = theirs["base"]

    def rows(self, base: int, blocks: list[int], length: int = BLOCK) -> Any:
        descs = [(base + block * length, length, 0) for block in blocks]
        return self.agent.get_xfer_descs(descs, "DRAM")


def partner(stage: Stage, size: int) -> int:
    """Memory to be written and read; the number of notifications that came, once the other has said
    how many it sent."""
    agent = stage.api.nixl_agent("partner")
    memory = Memory(size)
    memory.fill("partner")
    agent.register_memory([(memory.address, size, 0, "")], "DRAM")
    stage.links["loaded"].send({"agent": agent.get_agent_metadata(), "base": memory.address})
    agent.add_remote_agent(stage.links["loaded"].receive())
    sent: list[int] = []

    def wait() -> None:
        sent.append(stage.links["loaded"].receive(3600))

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    came, deadline = 0, float("inf")
    while not sent or (came < sent[0] and time.monotonic() < deadline):
        came += sum(map(len, agent.get_new_notifs().values()))
        time.sleep(0.0005)
        if sent and deadline == float("inf"):
            deadline = time.monotonic() + PATIENCE_S
    return came - sent[0]


def interpreter_lock(stage: Stage, size: int) -> dict[str, list[float]]:
    """What another thread counted during each call, and how long the call took.

    The interpreter takes the lock from nobody here (its switch interval is set to an hour), and the
    counting thread gives it up after each step: so that it counts during a call is possible only if
    the call itself lets go.
    """
    pair = Pair(stage, size)
    agent = pair.agent
    count, stop = 0, False

    def counting() -> None:
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0)

    blocks = list(range(size // BLOCK))
    shuffled = random.Random(7).sample(blocks, len(blocks))
    seen: dict[str, list[float]] = {}

    def during(what: str, call: Callable[[], Any]) -> Any:
        before, started = count, time.monotonic()
        value = call()
        took, after = time.monotonic() - started, count
        seen[what] = [took, after - before]
        return value

    sys.setswitchinterval(3600)
    thread = threading.Thread(target=counting)
    thread.start()
    time.sleep(0.01)
    near, there = pair.rows(pair.memory.address, blocks), pair.rows(pair.far, shuffled)
    itself = pair.rows(pair.memory.address, shuffled)
    handle = during(
        "initialize_xfer", lambda: agent.initialize_xfer("WRITE", near, there, pair.remote)
    )
    own = agent.initialize_xfer("READ", near, itself, "loaded")
    during("transfer", lambda: agent.transfer(handle))
    during("transfer to itself", lambda: agent.transfer(own))
    during("the release of one that runs", lambda: agent.release_xfer_handle(handle))
    finish(agent, own)
    during("release_xfer_handle", lambda: agent.release_xfer_handle(own))
    other = Memory(size)
    descs = agent.get_reg_descs([(other.address, size, 0, "")], "DRAM")
    during("register_memory", lambda: agent.register_memory(descs))
    during("deregister_memory", lambda: agent.deregister_memory(descs))
    during("get_new_notifs", agent.get_new_notifs)
    during("remove_remote_agent", lambda: agent.remove_remote_agent(pair.remote))
    during("add_remote_agent", lambda: agent.add_remote_agent(pair.metadata))
    during("make_connection", lambda: agent.make_connection(pair.remote))
    late = during("nixl_agent", lambda: [stage.api.nixl_agent("another")])
    during("the end of an agent", late.clear)
    stop = True
    thread.join()
    sys.setswitchinterval(0.005)
    stage.links["partner"].send(0)
    return seen


def threads(stage: Stage, size: int, strict: bool, rounds: int) -> dict[str, Any]:
    """Eight threads on one agent: reads and writes of each one's own blocks, registrations,
    notifications, lists, polls."""
    sync = stage.api.nixl_thread_sync_t
    mode = sync.NIXL_THREAD_SYNC_STRICT if strict else sync.NIXL_THREAD_SYNC_NONE
    pair = Pair(stage, size, sync_mode=mode, num_threads=4)
    agent = pair.agent
    workers, each = 8, 16
    truth = pattern(size, "loaded")
    problems: list[str] = []
    done: Counter[str] = Counter()
    sent = [0] * workers

    def mover(number: int) -> None:
        dice = random.Random(number)
        back = Memory(each * BLOCK)
        registered = agent.register_memory([(back.address, back.nbytes, 0, "")], "DRAM")
        mine = list(range(number * each, (number + 1) * each))
        far = agent.prep_xfer_dlist(pair.remote, pair.rows(pair.far, mine))
        near = agent.prep_xfer_dlist("", pair.rows(pair.memory.address, mine))
        into = agent.prep_xfer_dlist("", pair.rows(back.address, list(range(each))))
        for _ in range(rounds):
            order = dice.sample(range(each), each)
            for operation, side, target in (("WRITE", near, order), ("READ", into, range(each))):
                notif = f"{number}".encode() if operation == "WRITE" else b""
                handle = agent.make_prepped_xfer(operation, side, range(each), far, target, notif)
                sent[number] += operation == "WRITE"
                agent.transfer(handle)
                state = finish(agent, handle)
                agent.release_xfer_handle(handle)
                done[state] += 1
            own = truth[number * each * BLOCK : (number + 1) * each * BLOCK].reshape(each, BLOCK)
            found = back.bytes.reshape(each, BLOCK)[order]
            if not (found == own).all():
                problems.append(f"thread {number}: wrong bytes")
            back.bytes[:] = 0
        agent.release_dlist_handle(far)
        agent.release_dlist_handle(near)
        agent.release_dlist_handle(into)
        agent.deregister_memory(registered)

    stop = threading.Event()

    def registrar(number: int) -> None:
        while not stop.is_set():
            memory = Memory(1 << 16)
            registered = agent.register_memory([(memory.address, memory.nbytes, 0, "")], "DRAM")
            agent.get_agent_metadata()
            agent.deregister_memory(registered)
            done["registered"] += 1

    def talker(number: int) -> None:
        while not stop.is_set():
            agent.send_notif(pair.remote, b"talk")
            sent[number] += 1
            agent.get_new_notifs()
            agent.check_remote_metadata("partner")
            agent.add_remote_agent(pair.metadata)
            time.sleep(0.001)

    def guarded(body: Callable[[int], None], number: int) -> None:
        try:
            body(number)
        except BaseException as error:
            problems.append(f"{body.__name__} {number}: {type(error).__name__}: {error}")

    movers = [threading.Thread(target=guarded, args=(mover, i)) for i in range(6)]
    rest = [
        threading.Thread(target=guarded, args=(b, 6 + i)) for i, b in enumerate((registrar, talker))
    ]
    for thread in movers + rest:
        thread.start()
    for thread in movers:
        thread.join()
    stop.set()
    for thread in rest:
        thread.join()
    stage.links["partner"].send(sum(sent))
    return {
        "problems": problems,
        "states": sorted(set(done) - {"registered"}),
        "done": done["DONE"],
    }


def _resident_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS in /proc/self/status")


def _held() -> dict[str, int]:
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "objects": len(gc.get_objects()),
        "resident_kib": _resident_kib(),
    }


def leaks(stage: Stage, size: int, transfers: int) -> dict[str, Any]:
    """Transfers of every kind, each with handles of its own; what the process holds after a tenth
    and at the end."""
    pair = Pair(stage, size, capture_telemetry=True)
    agent = pair.agent
    blocks = list(range(size // BLOCK))
    near = agent.prep_xfer_dlist("", pair.rows(pair.memory.address, blocks))
    far = agent.prep_xfer_dlist(pair.remote, pair.rows(pair.far, blocks))
    to_itself = agent.prep_xfer_dlist("loaded", pair.rows(pair.memory.address, blocks))
    notifs = failures = 0

    def one(number: int) -> None:
        nonlocal notifs, failures
        kind = number % 8
        a, b = blocks[number % len(blocks)], blocks[(3 * number + 1) % len(blocks)]
        if kind == 0:
            row, there = pair.rows(pair.memory.address, [a]), pair.rows(pair.far, [b])
            handle = agent.initialize_xfer("WRITE", row, there, pair.remote)
        elif kind == 1:
            handle = agent.make_prepped_xfer("WRITE", near, [a], to_itself, [a])
        elif kind == 2:
            handle = agent.make_prepped_xfer("WRITE", near, [a], far, [b], b"leak")
            notifs += 1
        elif kind == 3:
            # Never posted, and released by nobody.
            agent.make_prepped_xfer("READ", near, [a], far, [b])
            agent.prep_xfer_dlist("", pair.rows(pair.memory.address, [a]))
            return
        elif kind == 4:
            try:
                agent.make_prepped_xfer("WRITE", near, [len(blocks)], far, [b])
            except Exception:
                return
            raise AssertionError("an index out of range")
        elif kind == 5:
            agent.send_notif("loaded", b"to itself")
            agent.get_new_notifs()
            return
        else:
            handle = agent.make_prepped_xfer("WRITE", near, [a, b], far, [b, a])
        agent.transfer(handle)
        if finish(agent, handle) != "DONE":
            failures += 1
        agent.get_xfer_telemetry(handle)
        if kind != 7:
            agent.release_xfer_handle(handle)

    def registrations(count: int) -> None:
        """Registrations, metadata, acquaintances: dearer than a transfer, so fewer of them."""
        for _ in range(count):
            memory = Memory(1 << 16)
            registered = agent.register_memory([(memory.address, memory.nbytes, 0, "")], "DRAM")
            agent.add_remote_agent(pair.metadata)
            agent.get_agent_metadata()
            agent.deregister_memory(registered)

    warm = transfers // 10
    for number in range(warm):
        one(number)
    registrations(200)
    first = _held()
    for number in range(warm, transfers):
        one(number)
    registrations(200)
    last = _held()
    stage.links["partner"].send(notifs)
    return {
        "failures": failures,
        "leaked": len(agent._leaked_xfer_handles),
        "grown": {name: last[name] - first[name] for name in first},
    }


def agents(stage: Stage, size: int, count: int) -> dict[str, Any]:
    """Agents that come and go, each acquainted with the partner."""
    pair = Pair(stage, size)

    def one() -> None:
        agent = stage.api.nixl_agent("passing")
        memory = Memory(BLOCK)
        agent.register_memory([(memory.address, BLOCK, 0, "")], "DRAM")
        name = agent.add_remote_agent(pair.metadata)
        far = agent.get_xfer_descs([(pair.far, BLOCK, 0)], "DRAM")
        handle = agent.initialize_xfer(
            "READ", agent.get_xfer_descs([(memory.address, BLOCK, 0)], "DRAM"), far, name
        )
        agent.transfer(handle)
        assert finish(agent, handle) == "DONE"

    for _ in range(3):
        one()
    first = _held()
    for _ in range(count):
        one()
    last = _held()
    stage.links["partner"].send(0)
    return {name: last[name] - first[name] for name in first}


def release_in_flight(stage: Stage, size: int, rounds: int) -> dict[str, int]:
    """Releases transfers that run. What was released is over: the source may be overwritten at
    once, and nothing of that arrives.

    A release may refuse instead, and then the handle is as good as before: its owner keeps it and
    the blocks.
    """
    pair = Pair(stage, size)
    agent = pair.agent
    blocks = list(range(size // BLOCK))
    near = agent.prep_xfer_dlist("", pair.rows(pair.memory.address, blocks))
    far = agent.prep_xfer_dlist(pair.remote, pair.rows(pair.far, blocks))
    back = Memory(size)
    agent.register_memory([(back.address, size, 0, "")], "DRAM")
    into = agent.prep_xfer_dlist("", pair.rows(back.address, blocks))
    truth = pattern(size, "loaded")
    outcome = Counter[str]()
    for number in range(rounds):
        pair.memory.bytes[:] = truth
        handle = agent.make_prepped_xfer("WRITE", near, blocks, far, blocks[::-1])
        agent.transfer(handle)
        if number % 3:
            time.sleep(0.0004 * (number % 5))
        try:
            agent.release_xfer_handle(handle)
            outcome["released"] += 1
        except Exception:
            outcome["refused"] += 1
            finish(agent, handle)
            agent.release_xfer_handle(handle)
        pair.memory.bytes[:] = 0xEE
        time.sleep(0.01)
        read = agent.make_prepped_xfer("READ", into, blocks, far, blocks[::-1])
        agent.transfer(read)
        assert finish(agent, read) == "DONE"
        agent.release_xfer_handle(read)
        found = back.bytes.reshape(-1, BLOCK)
        outcome["late"] += int((found == 0xEE).all(axis=1).sum())
    stage.links["partner"].send(0)
    return dict(outcome)


if __name__ == "__main__":
    run(partner, interpreter_lock, threads, leaks, agents, release_in_flight)
