"""A driver as the test sees it: operations go in, outcomes come out, and its death or silence is an
outcome too.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# The real one needs seconds for its first agent on a busy machine.
ANSWER_S = 60.0


class Implementation:
    """One implementation: the Python that has it, the module that shows it, and whether it may
    crash.
    """

    def __init__(self, python: str, module: str, may_crash: bool):
        self.module = module
        self.may_crash = may_crash
        self._command = [python, str(HERE / "oracle_driver.py"), "--module", module]
        if may_crash:
            self._command.append("--may-crash")
        self._child: subprocess.Popen[bytes] | None = None
        self._read = b""

    def __repr__(self) -> str:
        return f"<{self.module} in {self._command[0]}>"

    def run(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The outcomes of a sequence, from an empty state; it ends with a crash or a hang if there
        is one.
        """
        if self._ask("reset") != "ready":
            self.stop()
            assert self._ask("reset") == "ready", f"{self} does not start: {self.log()}"
        outcomes = []
        for operation in operations:
            outcomes.append(self._ask(operation))
            if "died" in outcomes[-1]:
                break
        return outcomes

    def log(self) -> str:
        """The last lines that the driver and the implementation wrote."""
        path = self._log_path()
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _log_path(self) -> Path:
        return Path(os.environ.get("TMPDIR", "/tmp")) / f"oracle-{os.getpid()}-{id(self):x}.log"

    def _start(self) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("NIXL_")}
        if self._command[0] != sys.executable:
            # What is staged for this Python is not for the other one.
            env.pop("PYTHONPATH", None)
        env |= {"PYTHONDONTWRITEBYTECODE": "1", "UCX_LOG_LEVEL": "fatal"}
        self._read = b""
        with self._log_path().open("wb") as log:
            return subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env
            )

    def _ask(self, request: Any) -> Any:
        if self._child is None:
            self._child = self._start()
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            line = self._line(child.stdout.fileno())
        except (BrokenPipeError, EOFError):
            status = child.wait()
            why = {"died": f"crashed with status {status}"}
        except TimeoutError:
            why = {"died": f"hung for {ANSWER_S:.0f} s"}
        else:
            return json.loads(line)
        self.stop()
        return why

    def _line(self, descriptor: int) -> bytes:
        deadline = time.monotonic() + ANSWER_S
        while b"\n" not in self._read:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            some = os.read(descriptor, 1 << 16)
            if not some:
                raise EOFError
            self._read += some
        line, self._read = self._read.split(b"\n", 1)
        return line


def real_nixl() -> Implementation | None:
    """The real one, in the Python that the harness has for it."""
    python = os.environ.get("KVRAIL_REAL_NIXL_PYTHON", "")
    return Implementation(python, "nixl", may_crash=True) if Path(python).is_file() else None


def candidate() -> Implementation:
    """kvrail's; `KVRAIL_ORACLE_CANDIDATE=PYTHON:MODULE` puts another in its place, the real one for
    a check of the test.
    """
    named = os.environ.get("KVRAIL_ORACLE_CANDIDATE")
    if named:
        python, module = named.rsplit(":", 1)
        return Implementation(python, module, may_crash=module == "nixl")
    return Implementation(sys.executable, "kvrail.nixl", may_crash=False)
