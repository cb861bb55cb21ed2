"""A peer that is killed or stopped, and the one that survives it.

The survivor asks the test to kill (or stop) the victim at a step of its choice, goes on with what
it was doing until there is an error, and notes how long each call took. Then it must be able to go
on with another peer, and with a successor of the victim.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from memory import Memory, pattern
from role import Stage, finish, run, until

SIZE = 32 << 20
BLOCK = 64 << 10


def _offer(stage: Stage, name: str) -> tuple[Any, Memory, dict[str, Any]]:
    config = stage.api.nixl_agent_config(enable_listen_thread=True, listen_port=0)
    agent = stage.api.nixl_agent(name, config)
    memory = Memory(SIZE)
    agent.register_memory([(memory.address, SIZE, 0, "")], "DRAM")
    return agent, memory, {"agent": agent.get_agent_metadata(), "base": memory.address}


def victim(stage: Stage, writes: bool) -> None:
    """Lives until it is killed; one that writes does so without end."""
    agent, memory, offer = _offer(stage, "victim")
    memory.fill("victim")
    stage.links["survivor"].send(offer)
    theirs = stage.links["survivor"].receive(60)
    if not writes:
        if theirs is not None:
            agent.add_remote_agent(theirs["agent"])
        while True:
            agent.get_new_notifs()
            time.sleep(0.001)
    name = agent.add_remote_agent(theirs["agent"])
    near = [(memory.address + at, BLOCK, 0) for at in range(0, SIZE, BLOCK)]
    far = [(theirs["base"] + at, BLOCK, 0) for at in range(SIZE - BLOCK, -1, -BLOCK)]
    handle = agent.initialize_xfer(
        "WRITE", agent.get_xfer_descs(near, "DRAM"), agent.get_xfer_descs(far, "DRAM"), name, b"w"
    )
    while True:
        agent.transfer(handle)
        finish(agent, handle)


def bystander(stage: Stage, name: str) -> dict[str, Any]:
    """Another peer; one by the victim's name comes to life when the victim is dead."""
    stage.links["survivor"].receive(60)
    agent, memory, offer = _offer(stage, name)
    stage.links["survivor"].send(offer)
    agent.add_remote_agent(stage.links["survivor"].receive(60)["agent"])
    told = until(
        lambda: agent.check_remote_xfer_done("survivor", b"to " + name.encode()), "a notification"
    )
    memory.expect(0, pattern(SIZE, "survivor"))
    wrong = memory.wrong_bytes()
    stage.links["survivor"].send("seen")
    return {"told": told, "wrong_bytes": wrong}


class Survivor:
    def __init__(self, stage: Stage):
        self.stage = stage
        self.agent, self.memory, self.offer = _offer(stage, "survivor")
        self.memory.fill("survivor")
        self.slowest = ("", 0.0)
        self.errors: list[str] = []

    def timed(self, what: str, call: Callable[[], Any]) -> Any:
        """The call's value, or None with the error noted; how long it took is noted as well."""
        started = time.monotonic()
        try:
            return call()
        except TimeoutError:
            raise
        except Exception as error:
            self.errors.append(f"{what}: {type(error).__name__}: {error}")
            return None
        finally:
            took = time.monotonic() - started
            if took > self.slowest[1]:
                self.slowest = (what, took)

    def ask(self, what: str) -> None:
        self.stage.test.send(what)
        assert self.stage.test.receive() == "so it is"

    def request(self, name: Any, base: int, operation: str, notif: bytes) -> Any:
        near = [(self.memory.address + at, BLOCK, 0) for at in range(0, SIZE, BLOCK)]
        far = [(base + at, BLOCK, 0) for at in range(0, SIZE, BLOCK)]
        agent = self.agent
        return agent.initialize_xfer(
            operation,
            agent.get_xfer_descs(near, "DRAM"),
            agent.get_xfer_descs(far, "DRAM"),
            name,
            notif,
        )

    def attempt(self, name: Any, base: int, operation: str = "WRITE", notif: bytes = b"n") -> Any:
        """A transfer from end to end, each call timed: its state, or None when a call raised."""
        handle = self.timed("initialize_xfer", lambda: self.request(name, base, operation, notif))
        if handle is None:
            return None
        state = self.posted(handle)
        self.timed("release_xfer_handle", lambda: self.agent.release_xfer_handle(handle))
        return state

    def posted(self, handle: Any) -> Any:
        state = self.timed("transfer", lambda: self.agent.transfer(handle))
        if state == "PROC":
            state = self.timed("until the end", lambda: finish(self.agent, handle, 20))
        if state == "ERR":
            self.errors.append("ERR")
        return state

    def goes_on_with(self, peer: str, name: str) -> None:
        link = self.stage.links[peer]
        link.send("come to life")
        theirs = link.receive()
        link.send(self.offer)
        self.memory.fill("survivor")
        remote = self.agent.add_remote_agent(theirs["agent"])
        assert remote.decode() == name, remote
        handle = self.request(remote, theirs["base"], "WRITE", b"to " + name.encode())
        self.agent.transfer(handle)
        state = finish(self.agent, handle)
        assert state == "DONE", f"{peer}: {state}"
        self.agent.release_xfer_handle(handle)
        assert link.receive() == "seen"


def survivor(stage: Stage, step: str) -> dict[str, Any]:
    world = Survivor(stage)
    theirs = stage.links["victim"].receive()
    STEPS[step](world, theirs)
    failed = list(world.errors)
    world.timed("get_new_notifs", world.agent.get_new_notifs)
    world.timed("remove_remote_agent", lambda: world.agent.remove_remote_agent("victim"))
    world.goes_on_with("bystander", "bystander")
    world.goes_on_with("heir", "victim")
    return {"errors": failed, "slowest": world.slowest}


def before_it_is_known(world: Survivor, theirs: dict[str, Any]) -> None:
    world.ask("kill")
    name = world.timed("add_remote_agent", lambda: world.agent.add_remote_agent(theirs["agent"]))
    if name is not None:
        world.timed("make_connection", lambda: world.agent.make_connection(name))
        world.attempt(name, theirs["base"])


def before_the_post(world: Survivor, theirs: dict[str, Any]) -> None:
    world.stage.links["victim"].send(world.offer)
    name = world.agent.add_remote_agent(theirs["agent"])
    world.agent.make_connection(name)
    handle = world.request(name, theirs["base"], "WRITE", b"n")
    world.ask("kill")
    world.posted(handle)
    world.timed("release_xfer_handle", lambda: world.agent.release_xfer_handle(handle))


def _without_end(operation: str, world: Survivor, theirs: dict[str, Any]) -> None:
    world.stage.links["victim"].send(world.offer)
    name = world.agent.add_remote_agent(theirs["agent"])
    handle = world.request(name, theirs["base"], operation, b"n")
    assert world.posted(handle) == "DONE"
    world.stage.test.send("kill")
    deadline = time.monotonic() + 20
    while not world.errors:
        world.posted(handle)
        assert time.monotonic() < deadline, "a dead peer's transfers go on being done"
    assert world.stage.test.receive() == "so it is"
    world.timed("release_xfer_handle", lambda: world.agent.release_xfer_handle(handle))


def in_mid_write(world: Survivor, theirs: dict[str, Any]) -> None:
    _without_end("WRITE", world, theirs)


def in_mid_read(world: Survivor, theirs: dict[str, Any]) -> None:
    _without_end("READ", world, theirs)


def with_a_notification_outstanding(world: Survivor, theirs: dict[str, Any]) -> None:
    """Messages are on their way to one that does not read them any more when it dies."""
    world.stage.links["victim"].send(world.offer)
    name = world.agent.add_remote_agent(theirs["agent"])
    assert world.attempt(name, theirs["base"]) == "DONE"
    world.ask("stop")
    for _ in range(200):
        world.timed("send_notif", lambda: world.agent.send_notif(name, b"unread"))
        if world.errors:
            break  # held back, and told so in time
    handle = world.request(name, theirs["base"], "WRITE", b"unread")
    state = world.timed("transfer", lambda: world.agent.transfer(handle))
    world.ask("kill")
    world.errors.clear()
    if state == "PROC":
        state = world.timed("until the end", lambda: finish(world.agent, handle, 20))
    world.timed("release_xfer_handle", lambda: world.agent.release_xfer_handle(handle))
    world.timed("send_notif", lambda: world.agent.send_notif(name, b"to the dead"))
    world.attempt(name, theirs["base"])


def while_it_was_writing(world: Survivor, theirs: dict[str, Any]) -> None:
    name = world.agent.add_remote_agent(theirs["agent"])
    world.stage.links["victim"].send(world.offer)
    until(world.agent.get_new_notifs, "the first write")
    world.ask("kill")
    for _ in range(50):
        world.timed("get_new_notifs", world.agent.get_new_notifs)
    world.attempt(name, theirs["base"])


def before_its_metadata_are_fetched(world: Survivor, theirs: dict[str, Any]) -> None:
    world.ask("kill")
    agent = world.agent
    # A port that was the victim's or nobody's: nothing answers.
    world.timed("fetch", lambda: agent.fetch_remote_metadata("victim", "127.0.0.1", 9))
    world.timed("send", lambda: agent.send_local_metadata("127.0.0.1", 9))
    for _ in range(100):
        known = world.timed("check", lambda: agent.check_remote_metadata("victim"))
        assert known is False
        time.sleep(0.005)
    world.timed("prep", lambda: agent.prep_xfer_dlist("victim", [(theirs["base"], 8, 0)], "DRAM"))


def while_it_is_stopped(world: Survivor, theirs: dict[str, Any]) -> None:
    """Each transfer ends in time, done or not; once the peer goes on, so do transfers with it."""
    world.stage.links["victim"].send(world.offer)
    name = world.agent.add_remote_agent(theirs["agent"])
    assert world.attempt(name, theirs["base"]) == "DONE"
    world.ask("stop")
    for operation in ("WRITE", "READ"):
        world.attempt(name, theirs["base"], operation)
    world.timed("send_notif", lambda: world.agent.send_notif(name, b"while stopped"))
    stopped_errors, world.errors = world.errors, []
    world.ask("continue")

    def again() -> bool:
        world.errors.clear()
        if world.attempt(name, theirs["base"]) == "DONE":
            return True
        # It was given up meanwhile: it is met anew.
        world.agent.remove_remote_agent("victim")
        world.agent.add_remote_agent(theirs["agent"])
        return False

    until(again, "a transfer with a peer that goes on", pause_s=0.1)
    world.errors = stopped_errors
    world.ask("kill")


STEPS: dict[str, Callable[[Survivor, dict[str, Any]], None]] = {
    step.__name__: step
    for step in (
        before_it_is_known,
        before_the_post,
        in_mid_write,
        in_mid_read,
        with_a_notification_outstanding,
        while_it_was_writing,
        before_its_metadata_are_fetched,
        while_it_is_stopped,
    )
}


if __name__ == "__main__":
    run(survivor, victim, bystander)
