"""Processes that run NIXL's own files: each has a deadline, a log of its own, and an end that is
judged.

The files are run from a checkout that `KVRAIL_NIXL_SOURCE` names, unmodified, by the Python that
runs these tests, so on whatever provides `nixl` here: kvrail's packages, or the real one when the
baseline is taken.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# What the slowest of them takes with the real NIXL on two busy cores is 15 s.
DEADLINE_S = 90.0


def is_the_real_nixl() -> bool:
    """Whether `nixl` here is NVIDIA's distribution. It crashes when the interpreter ends, which is
    then not held against a file.
    """
    return "nixl" in importlib.metadata.packages_distributions().get("nixl", [])


def environment(**more: str) -> dict[str, str]:
    """The environment of a file of NIXL's: nothing that is set for the real one's metadata or
    telemetry, and a `torch`.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("NIXL_")}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    if importlib.util.find_spec("torch") is None:
        stand_in = str(HERE / "torch_stand_in")
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [stand_in, env.get("PYTHONPATH")]))
    return env | more


def free_port() -> int:
    """A TCP port of this host that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """One file of NIXL's as a process, its output in a file; killed when the block that made it
    ends.
    """

    def __init__(self, directory: Path, name: str, *arguments: str | Path, **more_environment: str):
        self.name = name
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=directory,
                env=environment(**more_environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._deadline = time.monotonic() + DEADLINE_S

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exception: object) -> None:
        # The whole session: what the file itself started must not outlive the test either.
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._child.wait()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_it_says(self, text: str) -> None:
        """Returns when `text` is in the output; it is an error if the process ends or the deadline
        passes first.
        """
        while text not in self.output():
            if self._child.poll() is not None:
                raise AssertionError(f"{self.name} ended before it said {text!r}:\n{self.output()}")
            if time.monotonic() > self._deadline:
                raise AssertionError(
                    f"{self.name} did not say {text!r} in {DEADLINE_S:.0f} s:\n{self.output()}"
                )
            time.sleep(0.02)

    def wait_for_the_end(self) -> int:
        """Its exit status; it is an error if the deadline passes first."""
        try:
            return self._child.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} did not end in {DEADLINE_S:.0f} s:\n{self.output()}"
            ) from None

    def succeeds(self, *said: str) -> None:
        """Waits for the end, and wants status 0 and every text of `said` in the output."""
        status = self.wait_for_the_end()
        missing = [text for text in said if text not in self.output()]
        assert not missing, f"{self.name} did not say {missing}, status {status}:\n{self.output()}"
        crashed_after_its_work = is_the_real_nixl() and said and status == -signal.SIGSEGV
        assert status == 0 or crashed_after_its_work, (
            f"{self.name}: status {status}:\n{self.output()}"
        )
