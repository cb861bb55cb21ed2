"""Whose `nixl` the scenes run against.

kvrail is the one under test, on each fabric that any host has. The real nixl, where a virtual
environment has it, proves that the scenes are right: what they do is what callers do with it today.
Its interpreter is named by `KVRAIL_REAL_NIXL_PYTHON`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from processes import Implementation

#: Short enough that a test of what happens when nothing comes takes seconds.
IMPATIENT = {"KVRAIL_TRANSFER_TIMEOUT_MS": "4000", "KVRAIL_PEER_TIMEOUT_MS": "1500"}


def kvrail(transport: str, environment: Mapping[str, str] | None = None) -> Implementation:
    python_path = os.environ.get("PYTHONPATH", "")
    _demand_kvrail(sys.executable)
    return Implementation(
        f"kvrail-{transport}",
        "kvrail",
        sys.executable,
        {
            "PYTHONPATH": python_path,
            "KVRAIL_TRANSPORT": transport,
            "NIXL_LOG_LEVEL": "WARN",
            **(environment or {}),
        },
    )


def real() -> Implementation:
    python = os.environ.get("KVRAIL_REAL_NIXL_PYTHON", "")
    if not python or not Path(python).exists():
        pytest.skip("the real nixl: KVRAIL_REAL_NIXL_PYTHON does not name an interpreter with it")
    # Kept from the path of the package under test, whose `nixl` would be found first.
    return Implementation("real", "real", python, {"PYTHONPATH": "", "NIXL_LOG_LEVEL": "ERROR"})


@cache
def _demand_kvrail(python: str) -> None:
    program = "import nixl._api, sys; sys.exit('kvrail' not in sys.modules)"
    seen = subprocess.run([python, "-c", program], timeout=60, check=False, capture_output=True)
    if seen.returncode != 0:
        said = seen.stderr.decode(errors="replace")
        pytest.fail(f"PYTHONPATH does not lead to kvrail's `nixl`: stage it first\n{said}")
