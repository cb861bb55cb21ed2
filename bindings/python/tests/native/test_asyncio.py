"""Awaiting.

Many transfers, no thread for any of them, and cancellation that is over when it is over.
"""

from __future__ import annotations

import asyncio
import os
import threading

import kvrail
import pytest
from conftest import MakeAgent, Pair


def plan_of(pair: Pair, nbytes: int = 64) -> kvrail.Plan:
    local = pair.initiator.register(bytearray(nbytes))
    remote = pair.target.register(bytearray(nbytes))
    peer = pair.meet()
    peer.wait_ready(10)
    return pair.initiator.prepare(peer, local, peer.region(remote.key))


def stuck_plan(agent: kvrail.Agent, deaf: kvrail.Agent) -> kvrail.Plan:
    remote = deaf.register(bytearray(64))
    peer = agent.connect(deaf.metadata())
    return agent.prepare(peer, agent.register(bytearray(64)), peer.region(remote.key))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_thousand_transfers_are_awaited_without_a_thread_for_any(each_pair: Pair) -> None:
    plan = plan_of(each_pair)

    async def main() -> int:
        await plan.write()
        before = threads()
        reports = await asyncio.gather(*(plan.write() for _ in range(1000)))
        assert threads() == before
        return sum(report.nbytes for report in reports)

    assert asyncio.run(main()) == 64_000


def test_a_transfer_may_be_awaited_often_and_after_its_end(pair: Pair) -> None:
    plan = plan_of(pair)

    async def main() -> None:
        transfer = plan.write()
        first, second = await asyncio.gather(wait(transfer), wait(transfer))
        assert first == second == await transfer == transfer.wait()

    async def wait(transfer: kvrail.Transfer) -> kvrail.Report:
        return await transfer

    asyncio.run(main())


def test_the_loop_runs_on_while_a_transfer_is_awaited(
    make_agent: MakeAgent, deaf: kvrail.Agent
) -> None:
    plan = stuck_plan(make_agent("initiator"), deaf)

    async def main() -> int:
        turns = 0
        transfer = plan.write(timeout=0.3)
        task = asyncio.ensure_future(transfer)
        while not task.done():
            turns += 1
            await asyncio.sleep(0.01)
        with pytest.raises(kvrail.TransferTimeout):
            await task
        return turns

    assert asyncio.run(main()) >= 10


def test_cancelling_the_task_cancels_the_transfer_and_waits_for_its_drain(
    make_agent: MakeAgent, deaf: kvrail.Agent
) -> None:
    plan = stuck_plan(make_agent("initiator"), deaf)

    async def main() -> None:
        transfer = plan.write()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(transfer, 0.1)
        assert transfer.done
        with pytest.raises(kvrail.TransferCancelled):
            await transfer

    asyncio.run(main())


def test_two_loops_in_two_threads_await_the_same_transfer(
    make_agent: MakeAgent, deaf: kvrail.Agent
) -> None:
    transfer = stuck_plan(make_agent("initiator"), deaf).write(timeout=0.3)
    failures: list[BaseException] = []

    async def wait() -> None:
        with pytest.raises(kvrail.TransferTimeout):
            await transfer

    def run() -> None:
        try:
            asyncio.run(wait())
        except BaseException as failure:
            failures.append(failure)

    loops = [threading.Thread(target=run) for _ in range(2)]
    [loop.start() for loop in loops]
    [loop.join(10) for loop in loops]
    assert not failures and not any(loop.is_alive() for loop in loops)


def test_a_loop_that_is_gone_leaves_no_descriptor_behind(pair: Pair) -> None:
    plan = plan_of(pair)

    async def main() -> None:
        await plan.write()

    asyncio.run(main())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_notifications_are_iterated_until_the_agent_is_closed(each_pair: Pair) -> None:
    plan = plan_of(each_pair)

    async def main() -> list[bytes]:
        seen = []

        async def listen() -> None:
            async for notification in each_pair.target.notifications():
                seen.append(notification.message)
                if len(seen) == 20:
                    each_pair.target.close()

        listener = asyncio.create_task(listen())
        for number in range(20):
            await asyncio.sleep(0)
            await plan.write(notify=str(number))
        await asyncio.wait_for(listener, 10)
        return seen

    assert sorted(map(int, asyncio.run(main()))) == list(range(20))


def test_a_cancelled_listener_takes_no_notification_with_it(pair: Pair) -> None:
    plan = plan_of(pair)

    async def main() -> list[bytes]:
        seen = []
        for number in range(30):
            listener = asyncio.create_task(anext(pair.target.notifications()))
            await asyncio.sleep(0)
            await plan.write(notify=str(number))
            if number % 3 == 0:
                await asyncio.sleep(0)
            if not listener.done():
                listener.cancel()
            try:
                seen.append((await listener).message)
            except asyncio.CancelledError:
                pass
        while len(seen) < 30:
            seen.append(pair.target.wait_notification(10).message)
        return seen

    assert sorted(map(int, asyncio.run(main()))) == list(range(30))


def test_a_notification_that_does_not_come_is_a_timeout(pair: Pair) -> None:
    async def main() -> None:
        notifications = pair.target.notifications(timeout=0.05)
        for _ in range(2):
            with pytest.raises(kvrail.WaitTimeout) as caught:
                await anext(notifications)
            assert caught.value.retryable

    asyncio.run(main())


def test_an_agent_without_a_thread_says_that_nobody_would_wake_the_loop(deaf: kvrail.Agent) -> None:
    async def main() -> None:
        with pytest.raises(kvrail.Error, match="inline"):
            await anext(deaf.notifications())

    asyncio.run(main())
