"""What no caller may bring about: kvrail alone, with deadlines short enough to be waited for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "callers"))

import implementations
from processes import Implementation

# Above the deadlines of a scene, which say more about what did not come.
SECONDS_MAX = 120


@pytest.fixture(scope="session")
def ours() -> Implementation:
    """On shared memory, where no host is in the way."""
    return implementations.kvrail("shm", implementations.IMPATIENT)


@pytest.fixture(scope="session", params=["shm", "tcp"])
def each_fabric(request: pytest.FixtureRequest) -> Implementation:
    return implementations.kvrail(request.param, implementations.IMPATIENT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS_MAX))
