"""What the agent hands out: prepared lists and transfers, each a native handle that is given back
exactly once.

A release that raises leaves the handle as it was: still usable, still to be released. A handle that
is collected instead of released is given back by its finalizer, which neither raises nor waits; a
transfer that still runs then goes to its agent's list of leaked handles, which the agent works off.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, SupportsIndex, SupportsInt

if TYPE_CHECKING:
    from . import _bindings as nixlBind

logger = logging.getLogger("nixl._api")


class _Handle:
    """A native handle that is given back exactly once."""

    __slots__ = ("__weakref__", "_agent", "_handle", "_released")

    def __init__(self, agent: nixlBind.nixlAgent, value: SupportsInt | SupportsIndex) -> None:
        self._released = True  # nothing to give back until there is a handle
        self._handle = int(value)
        self._agent = agent
        self._released = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._handle:#x}, released={self._released})"

    def release(self) -> None:
        """Give the handle back; a second call does nothing."""
        if self._released:
            return
        self._released = True
        try:
            self._give_back()
        except BaseException:
            self._released = False
            raise

    def __del__(self) -> None:
        if self._released or sys.is_finalizing():
            return
        try:
            self.release()
        except Exception as error:
            self._keep(error)

    def _give_back(self) -> None:
        raise NotImplementedError

    def _keep(self, error: Exception) -> None:
        """The handle was collected and could not be given back."""
        raise NotImplementedError


class nixl_prepped_dlist_handle(_Handle):
    """A prepared list of descriptors, from `nixl_agent.prep_xfer_dlist`."""

    __slots__ = ()

    def _give_back(self) -> None:
        self._agent.releasedDlistH(self._handle)

    def _keep(self, error: Exception) -> None:
        _complain("prepared list %#x was collected and could not be freed: %s", self._handle, error)


class nixl_xfer_handle(_Handle):
    """A transfer, from `nixl_agent.initialize_xfer` or `nixl_agent.make_prepped_xfer`.

    `release` cancels it if it runs, and raises when it cannot be ended now: the transfer goes on,
    its memory stays in use, and the handle is good for another call.
    """

    __slots__ = ("_leaked",)

    def __init__(
        self,
        agent: nixlBind.nixlAgent,
        value: SupportsInt | SupportsIndex,
        leaked: list[int] | None = None,
    ) -> None:
        self._leaked = leaked
        super().__init__(agent, value)

    def _give_back(self) -> None:
        self._agent.releaseXferReq(self._handle)

    def _keep(self, error: Exception) -> None:
        if self._leaked is not None:
            self._leaked.append(self._handle)
        _complain(
            "transfer %#x was collected while it runs; its agent will end it: %s",
            self._handle,
            error,
        )


def _complain(message: str, handle: int, error: Exception) -> None:
    """Log from a finalizer, where nothing may be raised: a handler of the application's can."""
    try:
        logger.error(message, handle, error)
    except Exception:
        pass
