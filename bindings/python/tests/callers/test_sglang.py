"""SGLang: one-shot writes by several threads of a strict agent, and HiCache's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import Implementation, Role, Scene

# Runs of two tokens, every chunk with its own tokens on both sides.
CHUNKS = [
    [[4 * i + 32 * c for i in range(8)], [510 - 6 * i - 48 * c for i in range(8)]]
    for c in range(10)
]


def test_chunks_that_threads_write_are_all_in_their_place(implementation: Implementation) -> None:
    arguments = {"backend": "UCX", "params": {"num_threads": "2"}, "chunks": CHUNKS}
    roles = {"prefill": Role("prefill", arguments), "decode": Role("decode", arguments)}
    with Scene(implementation, "scenes/sglang.py", roles) as scene:
        results = scene.results()
    assert results["prefill"] == len(CHUNKS) * 4
    assert results["decode"] == {"wrong_bytes": 0, "notifs": 0}


@pytest.mark.parametrize("plant", [False, True], ids=["pages", "planted-order-is-seen"])
def test_hicache_pages_go_to_files_and_come_back(
    implementation: Implementation, tmp_path: Path, plant: bool
) -> None:
    roles = {"hicache": Role("hicache", {"directory": str(tmp_path), "plant": plant})}
    with Scene(implementation, "scenes/sglang.py", roles) as scene:
        result = scene.results()["hicache"]
    assert result["states"] == ["DONE", "DONE"]
    assert result["sizes"] == [12288] * 6
    assert result["wrong_files"] == 0
    assert (result["wrong_bytes"] > 0) == plant
