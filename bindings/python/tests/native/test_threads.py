"""Threads: who waits lets others run, and handles may be shared."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import kvrail
import numpy as np
import pytest
from conftest import MakeAgent, Pair


def test_others_run_while_a_thread_waits(make_agent: MakeAgent, deaf: kvrail.Agent) -> None:
    agent = make_agent("initiator")
    remote = deaf.register(bytearray(64))
    peer = agent.connect(deaf.metadata())
    plan = agent.prepare(peer, agent.register(bytearray(64)), peer.region(remote.key))
    transfer = plan.write(timeout=5)
    server = agent.serve(0)

    def swallow(wait: object, *errors: type[Exception]) -> None:
        with pytest.raises(errors):
            wait()  # type: ignore[operator]

    waits = [
        lambda: swallow(lambda: transfer.wait(0.5), kvrail.WaitTimeout),
        lambda: swallow(lambda: agent.wait_notification(0.5), kvrail.WaitTimeout),
        lambda: swallow(lambda: peer.wait_ready(0.5), kvrail.WaitTimeout),
        lambda: swallow(lambda: server.accept(0.5), kvrail.WaitTimeout),
        lambda: swallow(lambda: agent.connect("127.0.0.1:9", timeout=0.5), kvrail.ConnectTimeout),
    ]
    with ThreadPoolExecutor(len(waits)) as pool:
        started = time.monotonic()
        running = [pool.submit(wait) for wait in waits]
        turns = 0
        while not all(future.done() for future in running):
            turns += 1
            time.sleep(0.005)
        assert turns >= 20 and time.monotonic() - started < 4
        [future.result() for future in running]
    transfer.cancel()


def test_many_threads_post_the_same_plan_and_each_gets_its_own_bytes(each_pair: Pair) -> None:
    threads, rounds, block = 4, 50, 2048
    source = np.zeros((threads, block), np.uint8)
    target = np.zeros((threads, block), np.uint8)
    local, remote = each_pair.initiator.register(source), each_pair.target.register(target)
    peer = each_pair.meet()
    theirs = peer.region(remote.key)

    def run(index: int) -> None:
        plan = each_pair.initiator.prepare(
            peer, local.blocks(block, [index]), theirs.blocks(block, [index])
        )
        for turn in range(rounds):
            source[index] = turn
            plan.write(notify=bytes([index, turn])).wait(20)
            assert (target[index] == turn).all()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))
    seen = [each_pair.target.wait_notification(10).message for _ in range(threads * rounds)]
    assert len(set(seen)) == threads * rounds


def test_closing_in_one_thread_ends_the_waits_of_others(make_agent: MakeAgent) -> None:
    agent = make_agent("closing")
    ended: list[type[BaseException]] = []

    def wait() -> None:
        try:
            agent.wait_notification(30)
        except kvrail.Error as error:
            ended.append(type(error))

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    [thread.start() for thread in waiting]
    time.sleep(0.1)
    agent.close()
    [thread.join(5) for thread in waiting]
    assert ended == [kvrail.Closed] * 3


def test_deregistering_while_others_post_ends_in_errors_never_in_wrong_bytes(pair: Pair) -> None:
    target = np.zeros(4096, np.uint8)
    remote = pair.target.register(target)
    peer = pair.meet()
    theirs = peer.region(remote.key)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for turn in range(20):
            source = np.full(4096, turn, np.uint8)
            region = pair.initiator.register(source)

            def post(region: kvrail.Region = region) -> None:
                try:
                    while True:
                        pair.initiator.prepare(peer, region, theirs).write().wait(10)
                except (kvrail.AccessError, kvrail.PrepareError, kvrail.PostError):
                    pass

            posting = threading.Thread(target=post)
            posting.start()
            time.sleep(0.005)
            region.deregister(10)
            posting.join(10)
            assert not posting.is_alive() and target[0] in (turn, max(turn - 1, 0))
            assert (target == target[0]).all()
    finally:
        sys.setswitchinterval(switch)
