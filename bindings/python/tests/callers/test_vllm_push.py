"""vLLM pushes: at the last writer's notification every byte is there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from kv import HEAD_BYTES, Request, Shape, shares
from processes import Implementation, Role, Scene

REQUESTS = [
    Request(f"push:{i}", [3 * i, 31 - i, 3 * i + 1], [2 * i, 47 - 2 * i, 2 * i + 1])
    for i in range(7)
]


def play(
    implementation: Implementation, prefill: Shape, decode: Shape, plant: str | None = None
) -> dict[str, Any]:
    requests = [asdict(request) for request in REQUESTS]
    writers = {
        rank: [s.source_rank for s in shares(prefill, decode, rank)] for rank in range(decode.tp)
    }
    roles = {}
    for rank in range(prefill.tp):
        readers = [reader for reader, sources in writers.items() if rank in sources]
        arguments = {
            "shape": asdict(prefill),
            "decode_shape": asdict(decode),
            "rank": rank,
            "requests": requests,
            "readers": readers,
            "plant": plant,
        }
        roles[f"prefill-{rank}"] = Role("prefill", arguments)
    for rank in range(decode.tp):
        arguments = {
            "shape": asdict(decode),
            "prefill_shape": asdict(prefill),
            "rank": rank,
            "requests": requests,
        }
        roles[f"decode-{rank}"] = Role("decode", arguments)
    with Scene(implementation, "scenes/vllm_push.py", roles) as scene:
        return scene.results()


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        pytest.param(Shape(1, 4, 32), Shape(1, 4, 48), id="equal"),
        pytest.param(Shape(2, 4, 32), Shape(1, 4, 48), id="two-write-into-one"),
        pytest.param(Shape(1, 4, 32), Shape(2, 4, 48), id="one-writes-into-two"),
    ],
)
def test_at_the_last_notification_every_byte_is_there(
    implementation: Implementation, prefill: Shape, decode: Shape
) -> None:
    results = play(implementation, prefill, decode)
    for rank in range(decode.tp):
        assert results[f"decode-{rank}"] == {"wrong_at_notification": 0, "wrong_bytes": 0}
    written = sum(results[f"prefill-{rank}"] for rank in range(prefill.tp))
    blocks = sum(len(request.target_blocks) for request in REQUESTS)
    assert written == blocks * decode.regions * 4 * HEAD_BYTES


def test_a_planted_defect_is_seen_by_the_checker(implementation: Implementation) -> None:
    result = play(implementation, Shape(1, 4, 32), Shape(1, 4, 48), "region-base")["decode-0"]
    assert result["wrong_at_notification"] > 0
    assert result["wrong_bytes"] > 0
