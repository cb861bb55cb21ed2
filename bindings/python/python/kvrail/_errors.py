"""The exceptions of kvrail: facts in the message and by name, advice as notes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


class Error(Exception):
    """Any failure that kvrail reports.

    The message says what failed, where, and what was seen. What to do about it is in `hints`, most
    promising first; since Python 3.11 they are also notes, and so part of the traceback.
    """

    hints: list[str]
    """What to do, most promising first; empty when nothing better than the facts is known."""
    retryable: bool
    """Whether the same call may succeed later."""
    facts: dict[str, Any]
    """The message's facts by name: plain values, ready for JSON."""

    def __init__(
        self,
        message: str = "",
        *,
        hints: Iterable[str] = (),
        retryable: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.hints = list(hints)
        self.retryable = retryable
        self.facts = dict(facts or {})
        if hasattr(self, "add_note"):
            for hint in self.hints:
                self.add_note(f"hint: {hint}")


class Closed(Error):
    """The agent or the server was closed."""


class Forked(Error, RuntimeError):
    """The handle was made in another process, of which this one is a fork."""


class WaitTimeout(Error, TimeoutError):
    """What was awaited has not come in time. It may still come: waiting again is harmless."""


class BuildError(Error):
    """The agent could not be built.

    A transport that was asked for, or a setting, is not possible.
    """


class CloseError(Error):
    """Transfers had not drained when the agent was closed. Their memory is leaked, not freed."""


class AllocateError(Error, MemoryError):
    """The system refused memory."""


class RegisterError(Error):
    """Memory could not be registered; of a list nothing was."""


class UnsuitableMemory(RegisterError, ValueError):
    """The object's memory cannot be a region.

    It has gaps, is read-only, or is on an unknown device.
    """


class AccessError(Error, IndexError):
    """Bytes outside a region, or a region that is registered no more."""


class MetadataError(Error):
    """Metadata could not be written."""


class ServeError(Error):
    """The address cannot be listened on, or the exchange with whoever came failed."""


class ConnectError(Error, ConnectionError):
    """The peer's metadata cannot be used, or no transport reaches the peer."""


class ConnectTimeout(ConnectError, TimeoutError):
    """Nobody answered at the address in time."""


class PeerLost(Error, ConnectionError):
    """The peer is gone, or is another process now."""


class PrepareError(Error, ValueError):
    """The slices do not fit each other, their regions, or the peer."""


class PostError(Error):
    """The transfer was not started; nothing moves."""


class SendError(Error):
    """The message was not accepted; nothing was sent."""


class TransferError(Error):
    """The transfer ended badly. No byte of it moves any more; those at the target are unknown."""


class TransferTimeout(TransferError, TimeoutError):
    """The transfer's own deadline passed; it says what was awaited, and how far it came."""


class TransferCancelled(TransferError):
    """The transfer was cancelled, and has drained."""


class TransferPeerLost(TransferError, PeerLost):
    """The peer was lost in mid-transfer."""


for _class in list(globals().values()):
    if isinstance(_class, type) and issubclass(_class, Error):
        _class.__module__ = "kvrail"
