"""The two implementations, once for all tests of this directory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from oracle_process import Implementation, candidate, real_nixl


@pytest.fixture(scope="session")
def pair() -> Iterator[tuple[Implementation, Implementation]]:
    """The real one, and the one under test."""
    real = real_nixl()
    if real is None:
        why = os.environ.get("KVRAIL_REAL_NIXL_MISSING", "KVRAIL_REAL_NIXL_PYTHON names no Python")
        assert "CI" not in os.environ, f"the real NIXL, which CI must have: {why}"
        pytest.skip(f"the real NIXL: {why}")
    ours = candidate()
    yield real, ours
    real.stop()
    ours.stop()
