"""Wrong arguments are exceptions: no crash, no panic, no copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import Implementation, Role, Scene

SCRIPT = Path(__file__).parent / "scenes" / "misuse.py"


@pytest.mark.parametrize(
    ("family", "cases_min"),
    [
        ("handles", 100),
        ("after_release", 8),
        ("indices", 50),
        ("descriptors", 150),
        ("names_and_kinds", 60),
        ("memory_of_nobody", 10),
    ],
)
def test_a_wrong_argument_is_an_exception(
    ours: Implementation, family: str, cases_min: int
) -> None:
    with Scene(ours, SCRIPT, {"misuse": Role("misuse", {"family": family})}) as scene:
        result = scene.results()["misuse"]
        assert "panicked" not in scene["misuse"].output
    assert result["accepted"] == []
    assert result["changed"] == []
    assert result["strange"] == []
    assert result["works"]
    assert result["tried"] >= cases_min
