"""Transports with their settings; a plain name stands for the defaults."""

from __future__ import annotations

# As `typing.TYPE_CHECKING`, without `typing`: half of the time that the package's import takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal


class _Transport:
    kind: str

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"kvrail.{type(self).__name__}({settings})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Shm(_Transport):
    """Shared memory: processes of one user on one host. As a name: `"shm"`.

    `cooperate`: whether cores help each other across processes with large batches of private
    memory. `if_possible`: go without it where it is not possible, and say so, instead of failing.
    """

    kind = "shm"

    def __init__(self, *, cooperate: bool = True, if_possible: bool = False) -> None:
        self.cooperate = cooperate
        self.if_possible = if_possible


class Tcp(_Transport):
    """TCP. As a name: `"tcp"` (loopback, any port) or `"tcp:HOST:PORT"`.

    `listen`: where peers connect to; what is bound to loopback reaches this host only.
    `connections`: how many for each peer, each a rail. `if_possible`: as of `Shm`.
    """

    kind = "tcp"

    def __init__(
        self,
        listen: str = "127.0.0.1:0",
        *,
        connections: int | None = None,
        if_possible: bool = False,
    ) -> None:
        self.listen = listen
        self.connections = connections
        self.if_possible = if_possible


class Ofi(_Transport):
    """libfabric: one rail per NIC. As a name: `"ofi"` or `"ofi:PROVIDER"` (`"ofi:efa-direct"`).

    `provider`: `efa-direct`, `efa`, `cxi`, `verbs`, `tcp`, `shm`; default: the best that drives an
    RDMA NIC. `devices`: names of NICs; default: all. `rails`: how many, 1 to 64; default: one per
    NIC. `affinity`: rails that memory is registered on: those near it (default), or all.
    `libfabric`: the library's file or directory; default: searched for. `stall_timeout`: seconds
    without any progress after which a route is given up. `if_possible`: as of `Shm`.
    """

    kind = "ofi"

    def __init__(
        self,
        provider: str | None = None,
        *,
        devices: Sequence[str] | None = None,
        rails: int | None = None,
        affinity: Literal["numa", "all"] | None = None,
        libfabric: str | None = None,
        stall_timeout: float | None = None,
        if_possible: bool = False,
    ) -> None:
        self.provider = provider
        self.devices = devices
        self.rails = rails
        self.affinity = affinity
        self.libfabric = libfabric
        self.stall_timeout = stall_timeout
        self.if_possible = if_possible


for _class in (Shm, Tcp, Ofi):
    _class.__module__ = "kvrail"
