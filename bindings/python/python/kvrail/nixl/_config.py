"""How an agent is made: `nixl_agent_config`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from . import _bindings as nixlBind

# Compared by identity, so that no two configurations share one list.
_DEFAULT_BACKENDS: list[str] = ["UCX"]


class nixl_thread_sync_t(Enum):
    """How an agent lets several threads call it."""

    NIXL_THREAD_SYNC_NONE = nixlBind.NIXL_THREAD_SYNC_NONE
    NIXL_THREAD_SYNC_STRICT = nixlBind.NIXL_THREAD_SYNC_STRICT
    NIXL_THREAD_SYNC_RW = nixlBind.NIXL_THREAD_SYNC_RW
    NIXL_THREAD_SYNC_DEFAULT = nixlBind.NIXL_THREAD_SYNC_DEFAULT


class nixl_agent_config:
    """What `nixl_agent` is made with.

    Args:
        enable_prog_thread: let a thread of the agent make progress, so that transfers end without
            being polled.
        enable_listen_thread: listen for peers that send or ask for metadata.
        listen_port: the port to listen on; 0 takes a free one.
        capture_telemetry: keep times and sizes of each transfer for `get_xfer_telemetry`.
        num_threads: threads of each backend that can use several; 0 leaves it to the backend.
        backends: names of the backends to create with the agent; more can follow by
            `create_backend`.
        sync_mode: how threads may share the agent; None is STRICT for an agent that listens and
            NONE for others.
    """

    backends: list[str]
    enable_pthread: bool
    enable_listen: bool
    port: int
    capture_telemetry: bool
    num_threads: int
    sync_mode: nixl_thread_sync_t | None

    def __init__(
        self,
        enable_prog_thread: bool = True,
        enable_listen_thread: bool = False,
        listen_port: int = nixlBind.DEFAULT_COMM_PORT,
        capture_telemetry: bool = False,
        num_threads: int = 0,
        backends: list[str] = _DEFAULT_BACKENDS,
        sync_mode: nixl_thread_sync_t | None = None,
    ) -> None:
        if sync_mode is not None and not isinstance(sync_mode, nixl_thread_sync_t):
            raise TypeError(
                f"sync_mode must be a nixl_thread_sync_t (got {type(sync_mode).__name__!r})"
            )
        self.backends = list(_DEFAULT_BACKENDS) if backends is _DEFAULT_BACKENDS else backends
        self.enable_pthread = enable_prog_thread
        self.enable_listen = enable_listen_thread
        self.port = listen_port
        self.capture_telemetry = capture_telemetry
        self.num_threads = num_threads
        self.sync_mode = sync_mode


def native_config(config: nixl_agent_config) -> nixlBind.nixlAgentConfig:
    """The native configuration of an agent."""
    sync_mode = config.sync_mode or (
        nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        if config.enable_listen
        else nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
    )
    native: Any = nixlBind.nixlAgentConfig()
    native.useProgThread = config.enable_pthread
    native.useListenThread = config.enable_listen
    native.listenPort = config.port
    native.syncMode = sync_mode.value
    native.pthrDelay = 0
    native.lthrDelay = 100_000
    native.captureTelemetry = config.capture_telemetry
    return native  # type: ignore[no-any-return]


# The parameter by which each backend that can use several threads is told their number.
_THREADS_PARAMETER = {
    "UCX": "num_threads",
    "OBJ": "num_threads",
    "LIBFABRIC": "num_threads",
    "GDS_MT": "thread_count",
    "UCCL": "num_cpus",
}


def backend_parameters(backend: str, config: nixl_agent_config) -> dict[str, str]:
    """The parameters that follow from the configuration for one backend."""
    parameter = _THREADS_PARAMETER.get(backend)
    if parameter is None or config.num_threads <= 0:
        return {}
    return {parameter: str(config.num_threads)}
