"""A process that forks: the child may not use its parent's agent, may have one of its own, and
harms nobody when it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from memory import Memory, pattern
from role import Stage, finish, run, until

SIZE = 1 << 20
CHILD_S = 20


class Parent:
    """An agent with a peer, and one of each thing that an agent hands out."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.agent = stage.api.nixl_agent(
            "parent", stage.api.nixl_agent_config(enable_listen_thread=True, listen_port=0)
        )
        self.source, self.target = Memory(SIZE), Memory(SIZE)
        self.source.fill("forks")
        rows = [(m.address, SIZE, 0, "") for m in (self.source, self.target)]
        self.registered = self.agent.register_memory(rows, "DRAM")
        meta = stage.links["peer"].receive()
        stage.links["peer"].send(self.agent.get_agent_metadata())
        self.peer_metadata = meta["agent"]
        self.remote = self.agent.add_remote_agent(meta["agent"])
        self.far = self.agent.get_xfer_descs([(meta["base"], SIZE, 0)], "DRAM")
        self.near = self.agent.get_xfer_descs([(self.source.address, SIZE, 0)], "DRAM")
        self.back = self.agent.get_xfer_descs([(self.target.address, SIZE, 0)], "DRAM")
        self.local_list = self.agent.prep_xfer_dlist("", self.near)
        self.remote_list = self.agent.prep_xfer_dlist(self.remote, self.far)
        self.handle = self.agent.make_prepped_xfer(
            "WRITE", self.local_list, [0], self.remote_list, [0]
        )

    def works(self) -> None:
        """Writes to the peer and reads it back; every byte."""
        agent = self.agent
        agent.transfer(self.handle)
        assert finish(agent, self.handle) == "DONE"
        self.target.bytes[:] = 0
        read = agent.initialize_xfer("READ", self.back, self.far, self.remote)
        agent.transfer(read)
        assert finish(agent, read) == "DONE"
        agent.release_xfer_handle(read)
        self.target.expect(0, pattern(SIZE, "forks"))
        assert self.target.wrong_bytes() == 0

    def calls(self) -> dict[str, Callable[[], Any]]:
        agent = self.agent
        other = Memory(4096)
        return {
            "transfer": lambda: agent.transfer(self.handle),
            "check_xfer_state": lambda: agent.check_xfer_state(self.handle),
            "register_memory": lambda: agent.register_memory(
                [(other.address, 4096, 0, "")], "DRAM"
            ),
            "deregister_memory": lambda: agent.deregister_memory(self.registered),
            "get_new_notifs": agent.get_new_notifs,
            "update_notifs": agent.update_notifs,
            "send_notif": lambda: agent.send_notif(self.remote, b"from the child"),
            "get_agent_metadata": agent.get_agent_metadata,
            "add_remote_agent": lambda: agent.add_remote_agent(self.peer_metadata),
            "make_connection": lambda: agent.make_connection(self.remote),
            "prep_xfer_dlist": lambda: agent.prep_xfer_dlist("", self.near),
            "make_prepped_xfer": lambda: agent.make_prepped_xfer(
                "WRITE", self.local_list, [0], self.remote_list, [0]
            ),
            "initialize_xfer": lambda: agent.initialize_xfer(
                "WRITE", self.near, self.far, self.remote
            ),
            "release_xfer_handle": lambda: agent.release_xfer_handle(self.handle),
            "create_backend": lambda: agent.create_backend("POSIX", {}),
        }


def _in_child(body: Callable[[], int], leave: Callable[[int], Any]) -> int:
    """Forks; the child's status. A child that hangs is ended by its alarm, and so has another
    status."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_S)
        status = 70
        try:
            status = body()
        finally:
            leave(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def parent(stage: Stage, case: str) -> dict[str, Any]:
    world = Parent(stage)
    world.works()
    outcome: dict[str, Any] = {"status": CASES[case](world)}
    world.works()
    outcome["notifs"] = sum(map(len, world.agent.get_new_notifs().values()))
    stage.links["peer"].send("over")
    return outcome


def _misuse(world: Parent) -> int:
    """The number of calls that neither raised an error nor said why."""
    silent = 0
    for name, call in world.calls().items():
        try:
            call()
        except Exception as error:
            if "fork" in str(error):
                continue
            print(f"{name} in the child: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"{name} in the child: no error", flush=True)
        silent += 1
    return silent


def parents_agent_in_a_child_that_exits_at_once(world: Parent) -> int:
    return _in_child(lambda: _misuse(world), os._exit)


def parents_agent_in_a_child_that_ends_as_python_does(world: Parent) -> int:
    # sys.exit would be caught by the role; what the interpreter does at its end is done here by
    # hand as far as it concerns us: handles and agents are finalised in the child.
    def leave(status: int) -> None:
        world.__dict__.clear()
        os._exit(status)

    return _in_child(lambda: _misuse(world), leave)


def parents_agent_by_multiprocessing(world: Parent) -> int:
    process = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(_misuse(world)), daemon=False
    )
    process.start()
    process.join(CHILD_S)
    if process.exitcode is None:
        process.kill()
    return -1 if process.exitcode is None else process.exitcode


def fork_in_mid_transfer(world: Parent) -> int:
    """Other threads hold whatever locks they like at the moment of the fork."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            world.agent.get_new_notifs()
            world.agent.check_remote_metadata("peer")

    def move() -> None:
        while not stop.is_set():
            handle = world.agent.initialize_xfer("WRITE", world.near, world.far, world.remote)
            world.agent.transfer(handle)
            finish(world.agent, handle)
            world.agent.release_xfer_handle(handle)

    threads = [threading.Thread(target=body) for body in (poll, move)]
    for thread in threads:
        thread.start()
    statuses = [_in_child(lambda: _misuse(world), os._exit) for _ in range(8)]
    stop.set()
    for thread in threads:
        thread.join()
    return max(statuses, key=abs)


def an_agent_of_the_childs_own(world: Parent) -> int:
    """The child moves bytes with the peer and with its parent."""
    reading, writing = os.pipe()
    agent = world.agent
    inbox = Memory(SIZE)
    agent.register_memory([(inbox.address, SIZE, 0, "")], "DRAM")
    mine = agent.get_agent_metadata()

    def body() -> int:
        own = world.stage.api.nixl_agent("child")
        memory = Memory(SIZE)
        memory.fill("child")
        own.register_memory([(memory.address, SIZE, 0, "")], "DRAM")
        near = own.get_xfer_descs([(memory.address, SIZE, 0)], "DRAM")
        targets = {
            own.add_remote_agent(world.peer_metadata): world.far,
            own.add_remote_agent(mine): own.get_xfer_descs([(inbox.address, SIZE, 0)], "DRAM"),
        }
        os.write(writing, b"x")
        for name, far in targets.items():
            handle = own.initialize_xfer("WRITE", near, far, name, b"from the child")
            own.transfer(handle)
            if finish(own, handle) != "DONE":
                return 1
            own.release_xfer_handle(handle)
        return 0

    told: list[bool] = []

    def listen() -> None:
        told.append(
            until(lambda: agent.check_remote_xfer_done("child", b"from the child"), "the child")
        )

    # A transfer to an agent that nobody drives would wait for it.
    listener = threading.Thread(target=listen)
    listener.start()
    status = _in_child(body, os._exit)
    os.close(reading)
    os.close(writing)
    listener.join()
    inbox.expect(0, pattern(SIZE, "child"))
    assert told == [True]
    assert inbox.wrong_bytes() == 0
    return status


CASES: dict[str, Callable[[Parent], int]] = {
    case.__name__: case
    for case in (
        parents_agent_in_a_child_that_exits_at_once,
        parents_agent_in_a_child_that_ends_as_python_does,
        parents_agent_by_multiprocessing,
        fork_in_mid_transfer,
        an_agent_of_the_childs_own,
    )
}


def peer(stage: Stage) -> int:
    agent = stage.api.nixl_agent("peer")
    memory = Memory(SIZE)
    agent.register_memory([(memory.address, SIZE, 0, "")], "DRAM")
    stage.links["parent"].send({"agent": agent.get_agent_metadata(), "base": memory.address})
    agent.add_remote_agent(stage.links["parent"].receive())
    stage.links["parent"].receive(60)
    return sum(b"child" in notif for some in agent.get_new_notifs().values() for notif in some)


if __name__ == "__main__":
    run(parent, peer)
