"""What is moved: the right bytes, to the right place, and nothing beside them."""

from __future__ import annotations

import array
import gc

import kvrail
import numpy as np
import pytest
from conftest import Pair

BLOCK = 4096
BLOCKS = 64


def pattern(nbytes: int, seed: int) -> np.ndarray:
    """Bytes that differ by position: a block that lands elsewhere shows."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def test_a_write_moves_each_block_to_its_own_place_and_touches_no_other(each_pair: Pair) -> None:
    source, target = pattern(BLOCK * BLOCKS, 1), pattern(BLOCK * BLOCKS, 2)
    before = target.copy()
    local = each_pair.initiator.register(source)
    remote = each_pair.target.register(target)
    peer = each_pair.meet()
    rng = np.random.default_rng(3)
    ours, theirs = rng.permutation(BLOCKS)[:20], rng.permutation(BLOCKS)[:20]
    plan = each_pair.initiator.prepare(
        peer,
        local.blocks(BLOCK, ours),
        peer.region(remote.key).blocks(BLOCK, theirs),
    )
    report = plan.write(notify=b"request 42\0").wait(10)
    notification = each_pair.target.wait_notification(10)
    assert (notification.peer_name, notification.message) == ("initiator", b"request 42\0")
    assert report.nbytes == 20 * BLOCK == plan.nbytes
    expected = before.reshape(BLOCKS, BLOCK)
    expected[theirs] = source.reshape(BLOCKS, BLOCK)[ours]
    assert np.array_equal(target.reshape(BLOCKS, BLOCK), expected)


def test_a_read_fetches_slices_of_any_offset_and_length(each_pair: Pair) -> None:
    source, target = pattern(100_003, 4), np.zeros(100_003, np.uint8)
    theirs = each_pair.target.register(source)
    ours = each_pair.initiator.register(target)
    peer = each_pair.meet()
    offsets = np.array([99_000, 1, 50_000, 777], np.int32)
    lengths = np.array([1003, 1, 4097, 64], np.uint16)
    remote = peer.region(theirs.key).slices(offsets, lengths)
    local = ours.slices(offsets.tolist(), lengths.tolist())
    report = each_pair.initiator.prepare(peer, local, remote).read().wait(10)
    assert report.nbytes == int(lengths.sum())
    expected = np.zeros_like(target)
    for offset, length in zip(offsets, lengths, strict=True):
        expected[offset : offset + length] = source[offset : offset + length]
    assert np.array_equal(target, expected)


@pytest.mark.parametrize(
    "indices",
    [
        [5, 6, 7, 2],
        (5, 6, 7, 2),
        array.array("q", [5, 6, 7, 2]),
        np.array([5, 6, 7, 2], np.int64),
        np.array([5, 6, 7, 2], np.uint8),
        np.array([5, 0, 6, 0, 7, 0, 2, 0], np.int16)[::2],
        np.array([2, 7, 6, 5])[::-1],
    ],
    ids=["list", "tuple", "array", "int64", "uint8", "strided", "reversed"],
)
def test_indices_of_every_kind_name_the_same_blocks(pair: Pair, indices: object) -> None:
    source, target = pattern(16 * 100, 5), np.zeros(4 * 100, np.uint8)
    local, remote = pair.initiator.register(source), pair.target.register(target)
    peer = pair.meet()
    plan = pair.initiator.prepare(
        peer,
        local.blocks(100, indices),  # type: ignore[arg-type]
        peer.region(remote.key).blocks(100, range(4)),
    )
    plan.write().wait(10)
    assert np.array_equal(target.reshape(4, 100), source.reshape(16, 100)[[5, 6, 7, 2]])


def test_blocks_with_a_start_and_a_stride_are_one_layer_of_a_cache(pair: Pair) -> None:
    layers, tokens, row = 3, 8, 16
    source = pattern(tokens * layers * row, 6)
    target = np.zeros(tokens * row, np.uint8)
    local, remote = pair.initiator.register(source), pair.target.register(target)
    peer = pair.meet()
    layer = local.blocks(row, start=row, stride=layers * row)
    assert len(layer) == tokens
    pair.initiator.prepare(peer, layer, peer.region(remote.key).blocks(row)).write().wait(10)
    assert np.array_equal(target.reshape(tokens, row), source.reshape(tokens, layers, row)[:, 1])


def test_lists_of_several_regions_join_in_order(pair: Pair) -> None:
    sources = [pattern(1000, seed) for seed in (7, 8, 9)]
    target = np.zeros(3000, np.uint8)
    regions = pair.initiator.register_many(sources)
    remote = pair.target.register(target)
    peer = pair.meet()
    joined = kvrail.concat([region[:] for region in reversed(regions)])
    assert len(joined) == 3 and joined.nbytes == 3000
    plan = pair.initiator.prepare(peer, joined, peer.region(remote.key).blocks(1000))
    plan.write().wait(10)
    assert np.array_equal(target, np.concatenate(sources[::-1]))
    assert len(regions[0][:10] + regions[1][5:] + regions[0][10:]) == 3


def test_a_whole_region_stands_for_one_slice_of_all_its_bytes(pair: Pair) -> None:
    source, target = pattern(777, 10), bytearray(777)
    local, remote = pair.initiator.register(source), pair.target.register(target)
    peer = pair.meet()
    pair.initiator.prepare(peer, local, peer.region(remote.key)).write().wait(10)
    assert bytes(target) == source.tobytes()


def test_shared_memory_is_an_array_of_which_peers_see_each_change(pair: Pair) -> None:
    memory = kvrail.shared((32, 64), "float32")
    view = np.asarray(memory)
    assert view.shape == (32, 64) and view.dtype == np.float32 and not view.any()
    view[:] = np.arange(32 * 64).reshape(32, 64)
    local = pair.initiator.register(memory)
    target = kvrail.shared((32, 64), np.float32)
    remote = pair.target.register(target.numpy())
    peer = pair.meet()
    plan = pair.initiator.prepare(peer, local, peer.region(remote.key))
    plan.write().wait(10)
    assert np.array_equal(target.numpy(), view)
    target.view()[0:4] = b"\0\0\x80\x3f"
    assert target.numpy()[0, 0] == 1.0
    plan.read().wait(10)
    assert view[0, 0] == 1.0


def test_a_view_of_shared_memory_outlives_every_other_handle() -> None:
    view = kvrail.shared(1 << 20).numpy()
    raw = kvrail.shared(1 << 20).view()
    gc.collect()
    view[-1], raw[-1] = 7, 7
    assert (view[-1], raw[-1]) == (7, 7)


def test_a_region_reads_and_writes_bytes_within_its_bounds(pair: Pair) -> None:
    memory = bytearray(100)
    region = pair.initiator.register(memory)
    region.write(b"abc", 97)
    assert region.read(96) == b"\0abc" and memory[97:] == b"abc"
    for offset, length in ((98, 3), (101, 0), (0, 1 << 62), (1 << 63, 1)):
        with pytest.raises(kvrail.AccessError):
            region.read(offset, length)
    with pytest.raises(kvrail.AccessError):
        region.write(b"abc", 98)


def test_a_plan_is_posted_as_often_as_wanted_and_counted(pair: Pair) -> None:
    local, remote = pair.initiator.register(bytearray(64)), pair.target.register(bytearray(64))
    peer = pair.meet()
    plan = pair.initiator.prepare(peer, local, peer.region(remote.key))
    before = pair.initiator.stats()
    for _ in range(200):
        plan.write().wait(10)
    after = pair.initiator.stats()
    assert after["transfers"] - before["transfers"] == 200
    assert after["nbytes"] - before["nbytes"] == 200 * 64
    assert after["transports"][0]["wire"]["count"] >= 200


def test_a_message_arrives_by_itself_as_bytes_or_text(each_pair: Pair) -> None:
    peer = each_pair.meet()
    each_pair.initiator.send(peer, b"\xff\0raw")
    each_pair.initiator.send(peer, "täxt")
    messages = {each_pair.target.wait_notification(10).message for _ in range(2)}
    assert messages == {b"\xff\0raw", "täxt".encode()}
    assert each_pair.target.poll_notification() is None


def test_what_an_agent_runs_on_is_said(pair: Pair) -> None:
    peer = pair.meet()
    peer.wait_ready(10)
    assert (peer.transport, peer.state, peer.name) == ("shm", "ready", "target")
    facts = pair.initiator.facts()
    assert [transport["name"] for transport in facts["transports"]] == ["shm"]
    assert facts["chosen_by"] == "code"
    setting = pair.initiator.config()["transfer_timeout_ms"]
    assert (setting["value"], setting["unit"], setting["source"]) == (10_000, "ms", "code")
    assert {event["event"] for event in pair.initiator.events()} == {"ready"}
