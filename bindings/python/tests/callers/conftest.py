"""The callers' scenes run against kvrail on each fabric of its own, and against the real nixl."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import implementations
from processes import Implementation


@pytest.fixture(scope="session", params=["kvrail-shm", "kvrail-tcp", "real"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    name: str = request.param
    if name == "real":
        return implementations.real()
    return implementations.kvrail(name.removeprefix("kvrail-"))
