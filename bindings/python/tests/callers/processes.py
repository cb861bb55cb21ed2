"""Scenes of several processes, started and watched from the test.

The test's own process never loads either implementation: a scene's roles run in children, each with
the interpreter and the path of the implementation under test, and speak with one another and with
the test over socket pairs. So a crash is a failed role and not the end of the test run, and a peer
can be killed or stopped like any process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Implementation:
    """Whose `nixl` a scene imports: the interpreter that has it, and what its environment needs."""

    name: str
    #: `kvrail` or `real`.
    package: str
    python: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Role:
    """A function of the scene's script, run in a process of its own."""

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Failed(AssertionError):
    """A role raised, crashed or did not come to an end in time."""


class Process:
    """One running role, seen from the test."""

    def __init__(self, name: str, child: subprocess.Popen[bytes], link: Connection, output: Path):
        self.name = name
        self.child = child
        self.link = link
        self._output = output
        self._backlog: list[Any] = []
        self._result: tuple[Any] | None = None

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def send(self, message: object) -> None:
        self.link.send(("message", message))

    def receive(self, timeout_s: float = 60.0) -> Any:
        """The next message that the role sent to the test."""
        if self._backlog:
            return self._backlog.pop(0)
        while True:
            kind, value = self._read(timeout_s)
            if kind == "message":
                return value
            self._result = (value,)
            raise Failed(f"{self.name} ended with {value!r}; a message was awaited")

    def result(self, timeout_s: float = 90.0) -> Any:
        """What the role's function returned, once its process has ended as it should."""
        while self._result is None:
            kind, value = self._read(timeout_s)
            if kind == "message":
                self._backlog.append(value)
            else:
                self._result = (value,)
        self.ended(timeout_s)
        return self._result[0]

    def ended(self, timeout_s: float = 60.0, expected: int = 0) -> None:
        """Waits for the process and demands that it ended with that status (negative: by that
        signal)."""
        try:
            status = self.child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise Failed(f"{self.name} did not exit within {timeout_s} s:\n{self.output}") from None
        if status != expected:
            raise Failed(f"{self.name} {_ending(status)}:\n{self.output}")

    def _read(self, timeout_s: float) -> tuple[str, Any]:
        try:
            if not self.link.poll(timeout_s):
                self.child.send_signal(signal.SIGABRT)  # faulthandler prints where it stands
                self.child.wait(10)
                raise Failed(f"{self.name} said nothing for {timeout_s} s:\n{self.output}")
            kind, value = self.link.recv()
            return kind, value
        except (EOFError, ConnectionError):
            self.ended(10)
            raise Failed(f"{self.name} ended without a word:\n{self.output}") from None


class Scene:
    """The roles of one script, all started at once, each linked with every other one."""

    def __init__(
        self,
        implementation: Implementation,
        script: str | Path,
        roles: Mapping[str, Role],
        deadline_s: float = 90.0,
        environment: Mapping[str, str] | None = None,
    ):
        self.processes: dict[str, Process] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="kvrail-scene-")
        names = list(roles)
        links: dict[str, dict[str, socket.socket]] = {name: {} for name in [*names, "test"]}
        for at, one in enumerate([*names, "test"]):
            for other in [*names, "test"][:at]:
                links[one][other], links[other][one] = socket.socketpair()
        path = os.pathsep.join(
            part for part in (str(HERE), implementation.environment.get("PYTHONPATH", "")) if part
        )
        try:
            for name, role in roles.items():
                output = Path(self._directory.name, name)
                spec = {
                    "name": name,
                    "function": role.function,
                    "arguments": dict(role.arguments),
                    "links": {peer: end.fileno() for peer, end in links[name].items()},
                    "implementation": implementation.package,
                    "deadline_s": deadline_s,
                }
                with output.open("wb") as sink:
                    child = subprocess.Popen(
                        [implementation.python, str(HERE / script), json.dumps(spec)],
                        stdin=subprocess.DEVNULL,
                        stdout=sink,
                        stderr=subprocess.STDOUT,
                        pass_fds=[end.fileno() for end in links[name].values()],
                        env={
                            **os.environ,
                            "PYTHONFAULTHANDLER": "1",
                            **implementation.environment,
                            **(environment or {}),
                            "PYTHONPATH": path,
                        },
                    )
                link = Connection(links["test"][name].detach())
                self.processes[name] = Process(name, child, link, output)
        except BaseException:
            self.close()
            raise
        finally:
            for ends in links.values():
                for end in ends.values():
                    end.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def results(self, timeout_s: float = 90.0) -> dict[str, Any]:
        """Every role's result; the first failure ends the others and shows what all of them
        printed."""
        results: dict[str, Any] = {}
        deadline = time.monotonic() + timeout_s
        try:
            for name, process in self.processes.items():
                results[name] = process.result(max(1.0, deadline - time.monotonic()))
        except Failed as failed:
            said = "".join(
                f"\n--- {name}\n{process.output}" for name, process in self.processes.items()
            )
            what = str(failed).splitlines()[0]
            raise Failed(f"{what}\n{said}") from None
        return results

    def close(self) -> None:
        for process in self.processes.values():
            if process.child.poll() is None:
                process.child.kill()
            process.child.wait()
            process.link.close()
        self._directory.cleanup()


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"exited with {status}"
