"""Dynamo, Ray's direct transport, LMCache and TensorRT-LLM, each with its own shapes."""

from __future__ import annotations

import pytest
from processes import Implementation, Role, Scene


@pytest.mark.parametrize("by_tensor", [True, False], ids=["tensors", "addresses"])
def test_dynamo_reads_and_writes_what_a_peer_described_in_text(
    implementation: Implementation, by_tensor: bool
) -> None:
    arguments = {"by_tensor": by_tensor}
    roles = {"worker": Role("worker", arguments), "frontend": Role("frontend", arguments)}
    with Scene(implementation, "scenes/dynamo.py", roles) as scene:
        results = scene.results()
    assert results["worker"] == {"wrong_bytes": 0, "kept": True}
    assert results["frontend"] == {"wrong_bytes": 0, "states": ["DONE", "DONE"]}


def test_ray_reads_objects_by_serialised_descriptors_and_frees_them_by_collection(
    implementation: Implementation,
) -> None:
    objects = {f"object-{i}": [3 + i, 17, 1 + 40 * (i % 3)] for i in range(6)}
    roles = {side: Role(side, {"objects": objects}) for side in ("producer", "consumer")}
    with Scene(implementation, "scenes/ray_rdt.py", roles) as scene:
        results = scene.results()
    assert results == {"producer": 0, "consumer": {"wrong_bytes": 0, "leaked": 0}}


@pytest.mark.parametrize("plant", [False, True], ids=["chunks", "planted-slot-is-seen"])
def test_lmcache_posts_a_prepared_request_again_with_another_tag(
    implementation: Implementation, plant: bool
) -> None:
    roles = {side: Role(side, {"plant": plant}) for side in ("sender", "receiver")}
    with Scene(implementation, "scenes/lists.py", roles) as scene:
        results = scene.results()
    assert results["sender"] == 36
    assert results["receiver"]["left"] == 0
    assert (results["receiver"]["wrong_bytes"] > 0) == plant


def test_tensorrt_llm_finds_the_package_and_waits_by_tag(implementation: Implementation) -> None:
    roles = {side: Role(side) for side in ("requester", "responder")}
    with Scene(implementation, "scenes/lists.py", roles) as scene:
        results = scene.results()
    assert results["requester"]["transfers"] == 6
    assert results["responder"] == {"wrong_bytes": 0}
