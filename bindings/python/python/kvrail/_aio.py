"""Awaiting in asyncio: one eventfd per event loop, no thread per transfer.

A wait is a future under a number. The rails' owner notes the number and makes the loop's eventfd
readable, without the GIL; the loop reads the numbers and resolves the futures.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from kvrail._errors import WaitTimeout
from kvrail._kvrail.native import Wakeups

if TYPE_CHECKING:
    from kvrail import Agent, Notification, Report, Transfer


class _Waits:
    """The waits of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.wakeups = Wakeups()
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        loop.add_reader(self.wakeups.fileno(), self._resolve)

    def _resolve(self) -> None:
        for number in self.wakeups.drain():
            future = self._futures.pop(number, None)
            if future is not None and not future.done():
                future.set_result(None)

    def begin(self, loop: asyncio.AbstractEventLoop) -> tuple[int, asyncio.Future[None]]:
        number = next(self._numbers)
        future = self._futures[number] = loop.create_future()
        return number, future

    def end(self, number: int) -> None:
        self._futures.pop(number, None)


_waits: WeakKeyDictionary[asyncio.AbstractEventLoop, _Waits] = WeakKeyDictionary()


def _waits_of(loop: asyncio.AbstractEventLoop) -> _Waits:
    waits = _waits.get(loop)
    if waits is None:
        waits = _waits[loop] = _Waits(loop)
    return waits


async def wait_for_transfer(transfer: Transfer) -> Report:
    """What `await transfer` does.

    Cancelling the task cancels the transfer and waits for its drain: when this has ended, in
    whichever way, no byte of the transfer moves any more; unless the task is cancelled once more
    meanwhile.
    """
    try:
        await _end(transfer)
    except asyncio.CancelledError:
        transfer.cancel()
        await _end(transfer)
        raise
    return transfer.wait()


async def _end(transfer: Transfer) -> None:
    loop = asyncio.get_running_loop()
    waits = _waits_of(loop)
    while not transfer.done:
        number, future = waits.begin(loop)
        try:
            if transfer._watch(waits.wakeups, number):
                await future
        finally:
            waits.end(number)
            transfer._unwatch(waits.wakeups, number)


async def next_notification(agent: Agent, timeout: float | None) -> Notification:
    """The next notification, or `WaitTimeout`. A task that is cancelled takes none with it:
    nothing is awaited between
    taking one and returning it."""
    loop = asyncio.get_running_loop()
    waits = _waits_of(loop)
    deadline = None if timeout is None else loop.time() + timeout
    while True:
        number, future = waits.begin(loop)
        try:
            notification = agent._next_notification(waits.wakeups, number)
            if notification is not None:
                return notification
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                break
            await asyncio.wait((future,), timeout=left)
        finally:
            waits.end(number)
            agent._unwatch(waits.wakeups, number)
    message = f"no notification came within {timeout} s"
    raise WaitTimeout(message, retryable=True, facts={"waited": timeout})
