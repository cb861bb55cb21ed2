"""vLLM pulls: every byte, with equal and unequal tensor-parallel sizes, and checkers that see
planted defects."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from kv import HEAD_BYTES, Request, Shape, shares
from processes import Implementation, Role, Scene

# Scattered, with runs in them, and never the same on both sides.
REQUESTS = [
    Request("cmpl-7f", [5, 6, 7, 20, 3], [33, 34, 35, 9, 1]),
    Request("cmpl-a:1", [11, 23, 12], [2, 39, 20]),
    Request("cmpl-b", [15], [0]),
    Request("cmpl-prefix-hit", [], []),
]


def play(
    implementation: Implementation,
    prefill: Shape,
    decode: Shape,
    engines: dict[str, list[Request]] | None = None,
    plant: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs all ranks of both sides; the results of the prefill ranks and of the decode ranks."""
    engines = engines or {"a": REQUESTS}
    sources = {
        rank: [s.source_rank for s in shares(prefill, decode, rank)] for rank in range(decode.tp)
    }
    used = sorted({source for ranks in sources.values() for source in ranks})
    roles = {
        f"prefill-{engine}-{rank}": Role(
            "prefill",
            {
                "shape": asdict(prefill),
                "rank": rank,
                "requests": [asdict(request) for request in requests],
                "readers": sum(rank in ranks for ranks in sources.values()),
            },
        )
        for engine, requests in engines.items()
        for rank in used
    } | {
        f"decode-{rank}": Role(
            "decode",
            {
                "shape": asdict(decode),
                "prefill_shape": asdict(prefill),
                "rank": rank,
                "engines": {name: [asdict(r) for r in some] for name, some in engines.items()},
                "plant": plant,
            },
        )
        for rank in range(decode.tp)
    }
    with Scene(implementation, "scenes/vllm_pull.py", roles) as scene:
        results = scene.results()
    return (
        {name: value for name, value in results.items() if name.startswith("prefill")},
        {name: value for name, value in results.items() if name.startswith("decode")},
    )


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        pytest.param(Shape(1, 4, 24), Shape(1, 4, 40), id="equal"),
        pytest.param(Shape(1, 4, 24), Shape(2, 4, 40), id="decode-is-split-further"),
        pytest.param(Shape(2, 4, 24), Shape(1, 4, 40), id="prefill-is-split-further"),
        pytest.param(Shape(4, 2, 24), Shape(1, 2, 40), id="grouped-query-duplicates-are-read-once"),
        pytest.param(Shape(1, 2, 24), Shape(4, 2, 40), id="decode-ranks-share-heads"),
        pytest.param(
            Shape(2, 1, 24, replicated=True),
            Shape(1, 1, 40, replicated=True),
            id="latent-read-once",
        ),
    ],
)
def test_every_byte_of_every_head_is_read_into_its_place(
    implementation: Implementation, prefill: Shape, decode: Shape
) -> None:
    givers, takers = play(implementation, prefill, decode)
    for rank, taker in enumerate(takers.values()):
        assert taker["wrong_bytes"] == 0
        blocks = sum(len(request.target_blocks) for request in REQUESTS)
        moved = sum(entry[0] for entry in taker["telemetry"])
        assert moved == blocks * decode.regions * len(decode.heads_of(rank)) * HEAD_BYTES
        assert all(descs > 0 and xfer > 0 for _, descs, _, xfer in taker["telemetry"])
    for giver in givers.values():
        assert set(giver["counts"]) == {request.name for request in REQUESTS}
        assert giver["heartbeats"] > 0
        assert giver["late"] == 0, "more notifications than readers"


def test_handshakes_go_on_in_a_thread_while_others_engines_blocks_are_read(
    implementation: Implementation,
) -> None:
    engines = {
        "a": [Request(f"a-{i}", [i, 23 - i], [i, 39 - i]) for i in range(8)],
        "b": [Request(f"b-{i}", [i, 23 - i], [10 + i, 29 - i]) for i in range(8)],
    }
    _, takers = play(implementation, Shape(1, 4, 24), Shape(1, 4, 40), engines)
    assert takers["decode-0"]["wrong_bytes"] == 0
    assert takers["decode-0"]["polled"] > 0, "nothing was polled while a handshake was under way"


@pytest.mark.parametrize(
    "plant", ["region-base", "blocks-swapped", "stale-block", "head-offset-forgotten"]
)
def test_a_planted_defect_is_seen_by_the_checker(
    implementation: Implementation, plant: str
) -> None:
    _, takers = play(implementation, Shape(1, 4, 24), Shape(2, 4, 40), plant=plant)
    assert sum(taker["wrong_bytes"] for taker in takers.values()) > 0
