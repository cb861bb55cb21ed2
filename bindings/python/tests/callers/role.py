"""The child's side of a scene: which role this is, its links, and how it ends.

kvrail's processes end as any Python program ends, with all agents and threads as the role left
them, so that each scene is also a test of the interpreter's exit. The real one's end by `os._exit`,
because it crashes there.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

#: Far beyond what a scene takes on an idle machine.
PATIENCE_S = 40.0


class Link:
    """A connection to another role or to the test; nothing on it waits for ever."""

    def __init__(self, peer: str, descriptor: int):
        self.peer = peer
        self._connection = Connection(descriptor)

    def send(self, message: object) -> None:
        self._connection.send(("message", message))

    def receive(self, timeout_s: float = PATIENCE_S) -> Any:
        if not self._connection.poll(timeout_s):
            raise TimeoutError(f"{self.peer} sent nothing for {timeout_s} s")
        return self._connection.recv()[1]

    def result(self, value: object) -> None:
        self._connection.send(("result", value))


class Stage:
    """What a role's function is given: its name, its links, and the `nixl` under test."""

    def __init__(self, spec: dict[str, Any]):
        self.name: str = spec["name"]
        self.implementation: str = spec["implementation"]
        self.links = {peer: Link(peer, number) for peer, number in spec["links"].items()}
        self.test = self.links["test"]
        self.api = self.module("nixl._api")
        self.bindings = self.module("nixl._bindings")

    def module(self, name: str) -> ModuleType:
        """A module as callers import it, and proof that it is the implementation's."""
        module = importlib.import_module(name)
        ours = "kvrail" in sys.modules
        if ours != (self.implementation == "kvrail"):
            raise ImportError(f"{name} is {module.__file__}, and {self.implementation} is tested")
        return module

    def peers(self, prefix: str) -> list[str]:
        return sorted(name for name in self.links if name.startswith(prefix))


def until(
    condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S, pause_s: float = 0.0005
) -> Any:
    """Polls until the condition gives something true, which is returned; an error says what did not
    come."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout_s} s")
        time.sleep(pause_s)


def finish(agent: Any, handle: Any, timeout_s: float = PATIENCE_S) -> str:
    """The state in which a posted transfer ends."""

    def state() -> str | None:
        now = agent.check_xfer_state(handle)
        return None if now == "PROC" else now

    return str(until(state, "the end of a transfer", timeout_s))


def specification() -> dict[str, Any]:
    """What the command line says; from here on the process has a deadline."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    # The test's own deadline comes first; this one ends what a test that died left behind.
    faulthandler.dump_traceback_later(spec["deadline_s"] + 30, exit=True)
    return spec


def run(*functions: Callable[..., Any]) -> None:
    """Runs the role that the command line names, and ends the process."""
    spec = specification()
    status = 1
    try:
        stage = Stage(spec)
        by_name = {function.__name__: function for function in functions}
        value = by_name[spec["function"]](stage, **spec["arguments"])
        stage.test.result(value)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if status or spec["implementation"] != "kvrail":
        os._exit(status)
