"""Which implementations the callers' scenes run against.

kvrail is the one under test. The real nixl, where a virtual environment has it, proves that the scenes are right: what they do is
what callers do with it today. Its interpreter is named by `KVRAIL_REAL_NIXL_PYTHON`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from processes import Implementation  # noqa: E402


def _importable(python: str) -> bool:
    command = [python, "-c", "import importlib.util as u; exit(u.find_spec('nixl') is None)"]
    return subprocess.run(command, timeout=60, check=False).returncode == 0


def _real_nixl() -> Implementation | None:
    python = os.environ.get("KVRAIL_REAL_NIXL_PYTHON", "")
    if not python or not Path(python).exists():
        return None
    # Kept from the path of the package under test, whose `nixl` would be found first.
    return Implementation("real", python, {"PYTHONPATH": "", "NIXL_LOG_LEVEL": "ERROR"})


@pytest.fixture(scope="session", params=["kvrail", "real"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    if request.param == "real":
        real = _real_nixl()
        if real is None:
            pytest.skip(
                "the real nixl: KVRAIL_REAL_NIXL_PYTHON does not name an interpreter with it"
            )
        return real
    ours = Implementation(
        "kvrail", sys.executable, {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    )
    assert _importable(ours.python), "the package under test is not on PYTHONPATH: stage it first"
    return ours
