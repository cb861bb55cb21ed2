"""What no caller may bring about: kvrail alone, with deadlines short enough to be waited for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "callers"))

import implementations
from processes import Implementation


@pytest.fixture(scope="session")
def ours() -> Implementation:
    """On shared memory, where no host is in the way."""
    return implementations.kvrail("shm", implementations.IMPATIENT)


@pytest.fixture(scope="session", params=["shm", "tcp"])
def each_fabric(request: pytest.FixtureRequest) -> Implementation:
    return implementations.kvrail(request.param, implementations.IMPATIENT)
