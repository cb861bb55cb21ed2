"""Transports with their settings; a plain name stands for the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Shm:
    """Shared memory: processes of one user on one host. As a name: `"shm"`."""

    cooperate: bool = True
    """Whether this agent's cores help peers with large batches of private memory, and ask for help."""
    if_possible: bool = False
    """Go without it where it is not possible, and say so, instead of failing."""
    kind: ClassVar[Literal["shm"]] = "shm"


@dataclass(frozen=True)
class Tcp:
    """TCP. As a name: `"tcp"` (loopback, any port) or `"tcp:HOST:PORT"`."""

    listen: str = "127.0.0.1:0"
    """Where peers connect to; one that is bound to loopback reaches this host only."""
    connections: int | None = None
    """Connections per peer, each a rail."""
    if_possible: bool = False
    """Go without it where it is not possible, and say so, instead of failing."""
    kind: ClassVar[Literal["tcp"]] = "tcp"


@dataclass(frozen=True)
class Ofi:
    """libfabric: one rail per NIC. As a name: `"ofi"` or `"ofi:PROVIDER"`, as in `"ofi:efa-direct"`."""

    provider: str | None = None
    """`efa-direct`, `efa`, `cxi`, `verbs`, `tcp`, `shm`; default: the best with an RDMA NIC."""
    devices: Sequence[str] | None = None
    """Names of NICs; default: all."""
    rails: int | None = None
    """How many, 1 to 64; default: one per NIC."""
    affinity: Literal["numa", "all"] | None = None
    """Rails that memory is registered on: those near it (default), or all."""
    libfabric: str | None = None
    """The library's file or directory; default: searched for."""
    stall_timeout: float | None = None
    """Seconds without any progress after which a route is given up."""
    if_possible: bool = False
    """Go without it where it is not possible, and say so, instead of failing."""
    kind: ClassVar[Literal["ofi"]] = "ofi"


for _class in (Shm, Tcp, Ofi):
    _class.__module__ = "kvrail"
