"""The callers' scenes run against kvrail on each fabric of its own, and against the real nixl."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import implementations
from processes import Implementation

# Above the deadlines of a scene, which say more about what did not come.
SECONDS_MAX = 120


@pytest.fixture(scope="session", params=["kvrail-shm", "kvrail-tcp", "real"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    name: str = request.param
    if name == "real":
        return implementations.real()
    return implementations.kvrail(name.removeprefix("kvrail-"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS_MAX))
