"""Hostile and broken bytes: errors, nothing executed, nothing forgotten."""

from __future__ import annotations

from pathlib import Path

from processes import Implementation, Role, Scene

SCRIPT = Path(__file__).parent / "scenes" / "hostile.py"


def test_broken_metadata_are_an_error_and_an_earlier_peer_stays(ours: Implementation) -> None:
    with Scene(ours, SCRIPT, {"one": Role("metadata")}) as scene:
        counts = scene.results()["one"]
        assert "panicked" not in scene["one"].output
    assert counts["refused"] > 1000


def test_nothing_in_serialised_descriptors_is_executed(
    ours: Implementation, tmp_path: Path
) -> None:
    with Scene(ours, SCRIPT, {"one": Role("pickles", {"directory": str(tmp_path)})}) as scene:
        result = scene.results()["one"]
        assert "panicked" not in scene["one"].output
    assert result["canary"], "the programs do nothing even when loaded without care"
    assert result["executed"] == []
    assert result["accepted"] == []
    assert result["refused"] > 1000
