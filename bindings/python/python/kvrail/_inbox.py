"""Notifications as they come, for loops of either kind."""

from __future__ import annotations

import math

from kvrail._errors import Closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvrail import Agent, Notification


class Notifications:
    """Iterates over an agent's notifications, by `for` or `async for`, until the agent is closed.

    With a timeout, each step waits at most that long and raises `WaitTimeout`; iterating on is
    fine.
    """

    def __init__(self, agent: Agent, timeout: float | None) -> None:
        self._agent = agent
        self._timeout = timeout

    def __iter__(self) -> Notifications:
        return self

    def __next__(self) -> Notification:
        timeout = math.inf if self._timeout is None else self._timeout
        try:
            return self._agent.wait_notification(timeout)
        except Closed:
            raise StopIteration from None

    def __aiter__(self) -> Notifications:
        return self

    async def __anext__(self) -> Notification:
        from kvrail._aio import next_notification

        try:
            return await next_notification(self._agent, self._timeout)
        except Closed:
            raise StopAsyncIteration from None


Notifications.__module__ = "kvrail"
