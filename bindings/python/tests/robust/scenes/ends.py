"""Ways in which a program that uses an agent ends: each shape leaves something alive that the exit
must cope with.

The script does not end by the scenes' common way, because the way is what is tested: a shape
returns, raises or exits, and the interpreter does the rest.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from typing import Any

import role
from memory import Memory, pattern

SIZE = 48 << 20
BLOCK = 64 << 10
kept: list[Any] = []


class World:
    """An agent that knows its peer, with prepared lists on both sides."""

    def __init__(self, stage: role.Stage, **config: Any):
        self.stage = stage
        self.agent = stage.api.nixl_agent(
            f"ending-{os.getpid()}", stage.api.nixl_agent_config(**config)
        )
        self.memory = Memory(SIZE)
        self.memory.fill("ends")
        self.registered = self.agent.register_memory([(self.memory.address, SIZE, 0, "")], "DRAM")
        meta = stage.links["peer"].receive()
        stage.links["peer"].send(self.agent.get_agent_metadata())
        self.remote = self.agent.add_remote_agent(meta["agent"])
        rows = [
            (at, BLOCK, 0) for at in range(self.memory.address, self.memory.address + SIZE, BLOCK)
        ]
        theirs = [(at, BLOCK, 0) for at in range(meta["base"], meta["base"] + SIZE, BLOCK)]
        self.local_list = self.agent.prep_xfer_dlist("", rows, "DRAM")
        self.remote_list = self.agent.prep_xfer_dlist(self.remote, theirs, "DRAM")

    def request(self) -> Any:
        every = list(range(SIZE // BLOCK))
        # Reversed on one side, so that nothing can be merged and the transfer takes its time.
        return self.agent.make_prepped_xfer(
            "WRITE", self.local_list, every, self.remote_list, every[::-1], b"ends"
        )

    def posted(self) -> Any:
        handle = self.request()
        self.agent.transfer(handle)
        return handle


def module_globals(stage: role.Stage) -> None:
    world = World(stage)
    done = world.posted()
    role.finish(world.agent, done)
    kept.extend([world, done, world.request()])
    globals()["also_kept"] = world.agent


def in_mid_transfer(stage: role.Stage) -> None:
    world = World(stage)
    kept.extend([world, world.posted(), world.posted()])


def agent_before_its_handles(stage: role.Stage) -> None:
    world = World(stage)
    kept.extend(
        [world.posted(), world.request(), world.local_list, world.remote_list, world.registered]
    )
    del world.agent


def handles_before_their_agent(stage: role.Stage) -> None:
    world = World(stage)
    handle = world.posted()
    kept.append(world.agent)
    del handle, world


def a_cycle_with_a_finaliser(stage: role.Stage) -> None:
    class Owner:
        def __init__(self) -> None:
            self.world = World(stage)
            self.handle = self.world.posted()
            self.me = self

        def __del__(self) -> None:
            self.world.agent.get_new_notifs()
            self.world.agent.release_xfer_handle(self.handle)

    kept.append(Owner())


def a_daemon_thread_that_polls(stage: role.Stage) -> None:
    world = World(stage)

    def poll() -> None:
        while True:
            world.agent.get_new_notifs()
            world.agent.check_remote_xfer_done("peer", b"x")

    for _ in range(3):
        threading.Thread(target=poll, daemon=True).start()
    time.sleep(0.05)


def a_daemon_thread_that_transfers(stage: role.Stage) -> None:
    world = World(stage)

    def move() -> None:
        while True:
            handle = world.posted()
            role.finish(world.agent, handle)
            world.agent.release_xfer_handle(handle)

    threading.Thread(target=move, daemon=True).start()
    time.sleep(0.05)


def a_thread_that_outlives_the_main_one(stage: role.Stage) -> None:
    world = World(stage)

    def late() -> None:
        time.sleep(0.3)
        role.finish(world.agent, world.posted())

    threading.Thread(target=late).start()


def a_listening_agent(stage: role.Stage) -> None:
    kept.append(World(stage, enable_listen_thread=True, listen_port=0))


def a_strict_agent_in_threads(stage: role.Stage) -> None:
    strict = stage.api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    world = World(stage, sync_mode=strict)
    kept.append(world)
    for _ in range(3):
        threading.Thread(target=lambda: kept.append(world.posted()), daemon=True).start()


def many_agents_that_know_each_other(stage: role.Stage) -> None:
    kept.append(World(stage))
    agents = [stage.api.nixl_agent(f"one-of-many-{i}") for i in range(8)]
    for agent in agents:
        for other in agents:
            if other is not agent:
                agent.add_remote_agent(other.get_agent_metadata())
    agents[0].send_notif("one-of-many-1", b"unread")
    kept.extend(agents)


def an_agent_that_was_never_made(stage: role.Stage) -> None:
    kept.append(World(stage))
    bare = stage.api.nixl_agent.__new__(stage.api.nixl_agent)
    kept.append(bare)
    for wrong in ("", None):
        try:
            stage.api.nixl_agent(wrong)
        except Exception:
            continue
        raise AssertionError(f"an agent of the name {wrong!r} was made")


def used_at_exit(stage: role.Stage) -> None:
    world = World(stage)
    kept.append(world)

    def last() -> None:
        handle = world.posted()
        role.finish(world.agent, handle)
        world.agent.release_xfer_handle(handle)
        world.agent.deregister_memory(world.registered)

    atexit.register(last)


def sys_exit_in_mid_transfer(stage: role.Stage) -> None:
    world = World(stage)
    kept.append(world.posted())
    sys.exit(3)


def sys_exit_in_a_thread(stage: role.Stage) -> None:
    world = World(stage)

    def leave() -> None:
        kept.append(world.posted())
        sys.exit(3)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()


def an_exception_that_nobody_catches(stage: role.Stage) -> None:
    world = World(stage)
    handle = world.posted()
    raise RuntimeError(f"with {handle} alive in the traceback")


def an_interrupt(stage: role.Stage) -> None:
    world = World(stage)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    while True:
        role.finish(world.agent, world.posted())


def peer(stage: role.Stage) -> dict[str, Any]:
    """Outlives the other; whatever that one left half done, this one goes on, and ends."""
    agent = stage.api.nixl_agent("peer")
    memory = Memory(SIZE)
    agent.register_memory([(memory.address, SIZE, 0, "")], "DRAM")
    stage.links["ending"].send({"agent": agent.get_agent_metadata(), "base": memory.address})
    name = agent.add_remote_agent(stage.links["ending"].receive())
    stage.test.receive()
    agent.get_new_notifs()
    agent.remove_remote_agent(name)
    own = Memory(1 << 16)
    own.fill("peer")
    agent.register_memory([(own.address, own.nbytes, 0, "")], "DRAM")
    source = agent.get_xfer_descs([(own.address, own.nbytes, 0)], "DRAM")
    target = agent.get_xfer_descs([(memory.address, own.nbytes, 0)], "DRAM")
    handle = agent.initialize_xfer("WRITE", source, target, "peer")
    agent.transfer(handle)
    state = role.finish(agent, handle)
    return {
        "state": state,
        "right": bool((memory.bytes[: own.nbytes] == pattern(own.nbytes, "peer")).all()),
    }


if __name__ == "__main__":
    specified = role.specification()
    if specified["function"] == "peer":
        role.run(peer)
    else:
        globals()[specified["function"]](role.Stage(specified))
