"""What is made and dropped again leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable

import kvrail
from conftest import Pair

PAGES_MAX = 1024  # 4 MiB


def resident_pages() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])


def grown_by(rounds: int, turn: Callable[[], None]) -> tuple[int, int]:
    """Growth of Python's objects and of the process over many rounds, after a few to warm up."""
    for _ in range(rounds // 10):
        turn()
    gc.collect()
    blocks, pages = sys.getallocatedblocks(), resident_pages()
    for _ in range(rounds):
        turn()
    gc.collect()
    return sys.getallocatedblocks() - blocks, resident_pages() - pages


def test_transfers_and_notifications_leave_nothing(pair: Pair) -> None:
    local, remote = pair.initiator.register(bytearray(64)), pair.target.register(bytearray(64))
    peer = pair.meet()
    plan = pair.initiator.prepare(peer, local, peer.region(remote.key))

    def turn() -> None:
        plan.write(notify=b"x" * 100).wait(10)
        pair.target.wait_notification(10)

    blocks, pages = grown_by(5_000, turn)
    assert blocks < 200 and pages < PAGES_MAX


def test_regions_slices_and_plans_leave_nothing(pair: Pair) -> None:
    remote = pair.target.register(bytearray(4096))
    peer = pair.meet()
    theirs = peer.region(remote.key).blocks(64)

    def turn() -> None:
        with pair.initiator.register(bytearray(4096)) as region:
            pair.initiator.prepare(peer, region.blocks(64), theirs).write().wait(10)

    blocks, pages = grown_by(1_000, turn)
    assert blocks < 200 and pages < PAGES_MAX
    assert pair.initiator.stats()["regions"] == 0


def test_errors_leave_nothing(pair: Pair) -> None:
    region = pair.initiator.register(bytearray(64))

    def turn() -> None:
        for wrong in (lambda: region[0:65], lambda: pair.initiator.register(b"read-only")):
            try:
                wrong()
            except kvrail.Error:
                pass

    blocks, pages = grown_by(2_000, turn)
    assert blocks < 200 and pages < PAGES_MAX


def test_awaited_transfers_leave_nothing(pair: Pair) -> None:
    local, remote = pair.initiator.register(bytearray(64)), pair.target.register(bytearray(64))
    peer = pair.meet()
    plan = pair.initiator.prepare(peer, local, peer.region(remote.key))

    async def main() -> tuple[int, int]:
        async def turn() -> None:
            await asyncio.gather(*(plan.write() for _ in range(10)))

        for _ in range(50):
            await turn()
        gc.collect()
        blocks, pages = sys.getallocatedblocks(), resident_pages()
        for _ in range(500):
            await turn()
        gc.collect()
        return sys.getallocatedblocks() - blocks, resident_pages() - pages

    blocks, pages = asyncio.run(main())
    assert blocks < 300 and pages < PAGES_MAX


def test_agents_leave_no_descriptor_and_no_thread() -> None:
    def turn() -> None:
        with kvrail.Agent("short", transports=["shm", "tcp"], ignore_environment=True) as agent:
            agent.register(bytearray(64))
            with agent.serve(0):
                pass

    turn()
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(20):
        turn()
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before
