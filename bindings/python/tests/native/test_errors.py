"""Errors: their class, facts and hints; and wrong handles, which are errors too."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import pickle
import sys
import time
import traceback
import warnings
from typing import Any

import kvrail
import numpy as np
import pytest
from conftest import MakeAgent, Pair


def ready(pair: Pair, nbytes: int = 100) -> tuple[kvrail.Region, kvrail.RemoteRegion, kvrail.Peer]:
    local, remote = (
        pair.initiator.register(bytearray(nbytes)),
        pair.target.register(bytearray(nbytes)),
    )
    peer = pair.meet()
    return local, peer.region(remote.key), peer


def test_an_error_has_facts_by_name_hints_as_notes_and_survives_a_pickle(pair: Pair) -> None:
    local, remote, peer = ready(pair)
    plan = pair.initiator.prepare(peer, local, remote)
    pair.target.close()
    with pytest.raises(kvrail.Error) as caught:
        for _ in range(100):
            plan.write().wait(5)
            time.sleep(0.01)
    error = caught.value
    assert error.facts["peer_name"] == "target" and "target" in str(error)
    json.dumps(error.facts)
    if sys.version_info >= (3, 11):
        text = "".join(traceback.format_exception(error))
        assert all(f"hint: {hint}" in text for hint in error.hints)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert (again.hints, again.retryable, again.facts) == (
        error.hints,
        error.retryable,
        error.facts,
    )


def test_each_error_is_also_pythons_own_kind() -> None:
    for ours, pythons in (
        (kvrail.TransferTimeout, TimeoutError),
        (kvrail.WaitTimeout, TimeoutError),
        (kvrail.ConnectTimeout, TimeoutError),
        (kvrail.PeerLost, ConnectionError),
        (kvrail.TransferPeerLost, kvrail.PeerLost),
        (kvrail.TransferPeerLost, kvrail.TransferError),
        (kvrail.AccessError, IndexError),
        (kvrail.UnsuitableMemory, ValueError),
        (kvrail.Forked, RuntimeError),
    ):
        assert issubclass(ours, pythons) and issubclass(ours, kvrail.Error)
        assert ours.__module__ == "kvrail"


def test_a_transfer_that_does_not_end_says_what_it_waited_for(
    make_agent: MakeAgent, deaf: kvrail.Agent
) -> None:
    agent = make_agent("initiator")
    remote = deaf.register(bytearray(64))
    peer = agent.connect(deaf.metadata())
    plan = agent.prepare(peer, agent.register(bytearray(64)), peer.region(remote.key))
    transfer = plan.write(timeout=0.3)
    with pytest.raises(kvrail.WaitTimeout) as waited:
        transfer.wait(0.05)
    assert waited.value.retryable and not transfer.done
    progress = transfer.progress
    assert progress is not None and progress["ops_done"] == 0
    started = time.monotonic()
    with pytest.raises(kvrail.TransferTimeout, match="answer to the greeting") as caught:
        transfer.wait()
    assert time.monotonic() - started < 2 and caught.value.retryable
    facts = caught.value.facts
    assert (facts["ops"], facts["ops_done"]) == (1, 0) and facts["silence"]["transport"] == "shm"
    assert transfer.done and transfer.progress is None
    with pytest.raises(kvrail.WaitTimeout, match="deaf did not answer") as unready:
        peer.wait_ready(0.05)
    assert unready.value.facts["silence"]["rails"]


def test_dropping_a_transfer_in_flight_cancels_it_and_says_so(
    make_agent: MakeAgent, deaf: kvrail.Agent
) -> None:
    agent = make_agent("initiator")
    remote = deaf.register(bytearray(64))
    peer = agent.connect(deaf.metadata())
    plan = agent.prepare(peer, agent.register(bytearray(64)), peer.region(remote.key))
    with pytest.warns(ResourceWarning, match="with deaf was dropped in flight"):
        plan.write()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cancelled = plan.write()
        cancelled.cancel()
        with pytest.raises(kvrail.TransferCancelled):
            cancelled.wait(5)
        del cancelled
        gc.collect()
    assert agent.stats()["transports"][0]["transfers_in_flight"] == 0


def test_everything_says_that_the_agent_is_closed(pair: Pair) -> None:
    local, remote, peer = ready(pair)
    agent = pair.initiator
    plan = agent.prepare(peer, local, remote)
    agent.close()
    agent.close()
    uses: list[Any] = [
        plan.write,
        plan.read,
        lambda: agent.prepare(peer, local, remote),
        lambda: agent.register(bytearray(8)),
        agent.metadata,
        lambda: agent.send(peer, b"x"),
        lambda: agent.connect(pair.target.metadata()),
        lambda: agent.wait_notification(1),
        lambda: asyncio.run(anext_of(agent)),
    ]
    for use in uses:
        with pytest.raises(kvrail.Closed):
            use()
    assert agent.poll_notification() is None and list(agent.notifications()) == []
    local.deregister()


async def anext_of(agent: kvrail.Agent) -> None:
    from kvrail._aio import next_notification

    await next_notification(agent, 1)


def test_slices_that_do_not_fit_are_named(pair: Pair) -> None:
    local, remote, peer = ready(pair)
    prepare = pair.initiator.prepare
    with pytest.raises(kvrail.PrepareError, match="slice 1 has 10 bytes here and 11") as caught:
        prepare(peer, local.blocks(10, [0, 1]), remote[0:10] + remote[10:21])
    assert caught.value.facts == {"peer_name": "target", "index": 1, "local": 10, "remote": 11}
    with pytest.raises(kvrail.PrepareError):
        prepare(peer, local.blocks(10, [0, 1]), remote.blocks(10, [0]))
    with pytest.raises(kvrail.PrepareError, match=r"prepare\(peer, local, remote\)|regions"):
        prepare(peer, remote[:], local[:])  # type: ignore[arg-type]
    for thing in (None, b"bytes", np.zeros(4), 7):
        with pytest.raises(TypeError, match="slices of regions"):
            prepare(peer, thing, remote)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("take", "error"),
    [
        (lambda r: r[0:101], kvrail.AccessError),
        (lambda r: r[100:], ValueError),
        (lambda r: r[5:5], ValueError),
        (lambda r: r[-5:], ValueError),
        (lambda r: r[: 1 << 70], ValueError),
        (lambda r: r[0:10:2], ValueError),
        (lambda r: r[3], TypeError),
        (lambda r: r[0.5:1], TypeError),
        (lambda r: r.blocks(10, [9, 10]), kvrail.AccessError),
        (lambda r: r.blocks(10, [2**63]), kvrail.AccessError),
        (lambda r: r.blocks(10, [-1]), ValueError),
        (lambda r: r.blocks(10, np.array([1, -1], np.int8)), ValueError),
        (lambda r: r.blocks(10, np.array([1.0])), TypeError),
        (lambda r: r.blocks(10, np.array([[1]])), TypeError),
        (lambda r: r.blocks(10, np.array([1], ">i8")), TypeError),
        (lambda r: r.blocks(10, np.array([True])), TypeError),
        (lambda r: r.blocks(10, [1.0]), TypeError),
        (lambda r: r.blocks(10, "12"), TypeError),
        (lambda r: r.blocks(0), ValueError),
        (lambda r: r.blocks(10, stride=9), ValueError),
        (lambda r: r.blocks(101), kvrail.AccessError),
        (lambda r: r.blocks(10, start=91), kvrail.AccessError),
        (lambda r: r.blocks(10, start=2**64 - 5), kvrail.AccessError),
        (lambda r: r.blocks(-1), (OverflowError, ValueError)),
        (lambda r: r.slices([0, 1], [1]), ValueError),
        (lambda r: r.slices([0], 0), ValueError),
        (lambda r: r.slices([2**64 - 1], 2), kvrail.AccessError),
        (lambda r: r.slices(5, 2), TypeError),
        (lambda r: kvrail.concat([]), ValueError),
        (lambda r: kvrail.concat([r]), TypeError),
    ],
)
def test_slices_outside_or_of_nonsense_are_errors_on_either_side(
    pair: Pair, take: Any, error: Any
) -> None:
    local, remote, _ = ready(pair)
    for region in (local, remote):
        with pytest.raises(error):
            take(region)


def test_slices_of_another_agent_or_another_peer_are_refused(
    pair: Pair, make_agent: MakeAgent
) -> None:
    local, remote, peer = ready(pair)
    third = make_agent("third")
    elsewhere = third.register(bytearray(100))
    other_peer = pair.initiator.connect(third.metadata())
    with pytest.raises(kvrail.PrepareError, match="another agent's"):
        pair.initiator.prepare(peer, elsewhere, remote)
    with pytest.raises(kvrail.PrepareError, match="of target, not third"):
        pair.initiator.prepare(other_peer, local, remote)
    with pytest.raises(kvrail.PrepareError, match="peer of another agent"):
        third.prepare(peer, elsewhere, remote)
    with pytest.raises(kvrail.SendError, match="peer of another agent"):
        third.send(peer, b"x")
    for lists in ([local[:], remote[:]], [local[:], elsewhere[:]]):
        with pytest.raises(ValueError, match="of one"):
            kvrail.concat(lists)
    with pytest.raises(kvrail.MetadataError, match="another agent"):
        pair.initiator.metadata([elsewhere])


def test_slices_of_a_region_that_was_replaced_never_mean_the_new_one(pair: Pair) -> None:
    first, second = pair.initiator.register(bytearray(100)), pair.target.register(bytearray(100))
    peer = pair.meet()
    ours, theirs, key = first[:], peer.region(second.key)[:], second.key
    plan = pair.initiator.prepare(peer, ours, theirs)
    first.deregister()
    second.deregister()
    again, replaced = pair.initiator.register(bytearray(100)), pair.target.register(bytearray(100))
    assert (again.key[0], replaced.key[0]) == (first.key[0], key[0]), "the number is used again"
    peer = pair.meet()
    with pytest.raises(kvrail.AccessError, match="deregistered"):
        pair.initiator.prepare(peer, ours, peer.region(replaced.key))
    with pytest.raises(kvrail.PrepareError, match="target replaced region 0"):
        pair.initiator.prepare(peer, again, theirs)
    with pytest.raises(kvrail.AccessError, match="has replaced"):
        peer.region(key)
    with pytest.raises(kvrail.PostError):
        plan.write()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"transports": []}, "no transport"),
        ({"transports": ["rdma"]}, '"rdma" is unknown'),
        ({"transports": ["shm", "shm"]}, "given twice"),
        ({"transports": ["shm:x"]}, "unknown"),
        ({"transports": ["tcp:nowhere"]}, "not an address"),
        ({"transports": [kvrail.Ofi(affinity="both")]}, "affinity"),  # type: ignore[arg-type]
        ({"timeout": 0.0}, "transfer_timeout_ms is 0"),
        ({"timeout": 1e9}, "are possible"),
    ],
)
def test_an_agent_that_is_not_possible_says_why(
    make_agent: MakeAgent, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(kvrail.BuildError, match=why):
        make_agent("impossible", **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"transports": "shm"}, TypeError),
        ({"transports": [7]}, TypeError),
        ({"transports": 7}, TypeError),
        ({"progress": "fast"}, ValueError),
        ({"timeout": -1.0}, ValueError),
        ({"timeout": math.nan}, ValueError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_arguments_that_mean_nothing_are_pythons_errors(
    make_agent: MakeAgent, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make_agent("wrong", **options)


def test_an_empty_name_and_a_long_one_are_refused() -> None:
    for name in ("", "x" * 300):
        with pytest.raises(kvrail.BuildError, match="1 to 256 bytes"):
            kvrail.Agent(name)


def test_transports_are_named_or_set_in_detail(make_agent: MakeAgent) -> None:
    agent = make_agent(
        "detailed",
        transports=[kvrail.Shm(cooperate=False), kvrail.Tcp("127.0.0.1:0", connections=3)],
    )
    assert agent.transports == ["shm", "tcp"]
    assert len(agent.facts()["transports"][1]["rails"]) == 3


def test_damaged_metadata_is_an_error(pair: Pair) -> None:
    metadata = pair.target.metadata()
    for damaged in (b"", b"\0" * 64, metadata[:-1], metadata + b"x", metadata[::-1]):
        with pytest.raises(kvrail.ConnectError, match="metadata"):
            pair.initiator.connect(damaged)
    with pytest.raises(kvrail.ConnectError, match="own"):
        pair.initiator.connect(pair.initiator.metadata())
    with pytest.raises(TypeError):
        pair.initiator.connect(7)  # type: ignore[arg-type]


def test_a_notification_that_is_too_long_is_refused(pair: Pair) -> None:
    local, remote, peer = ready(pair)
    plan = pair.initiator.prepare(peer, local, remote)
    message = b"x" * (kvrail.NOTIFICATION_BYTES_MAX + 1)
    with pytest.raises(kvrail.PostError, match="the limit is"):
        plan.write(notify=message)
    with pytest.raises(kvrail.SendError, match="the limit is"):
        pair.initiator.send(peer, message)
    plan.write(notify=message[:-1]).wait(10)
    assert pair.target.wait_notification(10).message == message[:-1]
    with pytest.raises(TypeError, match="bytes or str"):
        plan.write(notify=7)  # type: ignore[arg-type]


def test_an_address_where_nobody_is_is_a_timeout_with_advice(pair: Pair) -> None:
    with pair.target.serve(0) as server:
        address = server.address
    with pytest.raises(kvrail.ConnectTimeout, match="nobody answered") as caught:
        pair.initiator.connect(address, timeout=0.2)
    assert caught.value.hints and caught.value.retryable
    with pytest.raises(kvrail.ConnectError):
        pair.initiator.connect("not an address", timeout=1)
    with pytest.raises(kvrail.Closed):
        server.accept()


def test_a_port_that_is_taken_and_a_peer_that_does_not_come_are_errors(pair: Pair) -> None:
    with pair.target.serve("127.0.0.1:0") as server:
        with pytest.raises(kvrail.ServeError, match="cannot listen"):
            pair.initiator.serve(server.port)
        with pytest.raises(kvrail.WaitTimeout, match="no peer came"):
            server.accept(timeout=0.05)
        peer = pair.initiator.connect(server.address, timeout=10)
        assert server.accept(timeout=10).name == "initiator" and peer.name == "target"
        assert peer == pair.initiator.peer("target") == pair.initiator.peers[0]
    with pytest.raises(KeyError):
        pair.initiator.peer("nobody")
