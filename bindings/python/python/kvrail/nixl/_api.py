"""NIXL's Python API, on kvrail: `nixl_agent` and what it takes and returns.

Names, parameters, defaults, results and exception types are those of NIXL 1.5.1, so that its
callers run unchanged; docs/python-nixl.md lists where kvrail differs on purpose. The work is done
by `_bindings`, which releases the GIL.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from . import _bindings as nixlBind
from . import _inputs, _interchange
from ._config import backend_parameters, native_config, nixl_agent_config, nixl_thread_sync_t
from ._handles import nixl_prepped_dlist_handle, nixl_xfer_handle

if TYPE_CHECKING:
    from ._inputs import Array

__all__ = [
    "DEFAULT_COMM_PORT",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]

logger = logging.getLogger("nixl._api")

DEFAULT_COMM_PORT = nixlBind.DEFAULT_COMM_PORT

nixl_backend_handle = int

_Facts = TypeVar("_Facts", list[str], dict[str, str])

# Any other status of a transfer is "ERR".
_DONE = nixlBind.NIXL_SUCCESS
_RUNNING = nixlBind.NIXL_IN_PROG


class nixl_agent:
    """One process's endpoint: it registers memory, knows remote agents, and moves bytes to and from
    them.

    Args:
        agent_name: what peers call this agent; unique among them.
        nixl_conf: how to make it; None is `nixl_agent_config()`.
        instantiate_all: create every backend there is; ignored when a configuration is given.
    """

    def __init__(
        self,
        agent_name: str,
        nixl_conf: nixl_agent_config | None = None,
        instantiate_all: bool = False,
    ) -> None:
        self._leaked_xfer_handles: list[int] = []
        if nixl_conf and instantiate_all:
            logger.warning(
                "agent %s: instantiate_all is ignored, a configuration is given", agent_name
            )
            instantiate_all = False
        config = nixl_conf or nixl_agent_config()

        self.agent = nixlBind.nixlAgent(agent_name, native_config(config))
        self.name = agent_name
        self.notifs: dict[str, list[bytes]] = {}
        self.backends: dict[str, nixl_backend_handle] = {}
        self.backend_mems: dict[str, list[str]] = {}
        self.backend_options: dict[str, dict[str, str]] = {}
        self.plugin_list: list[str] = self.agent.getAvailPlugins()
        self.plugin_b_options: dict[str, dict[str, str]] = {}
        self.plugin_mem_types: dict[str, list[str]] = {}
        self.nixl_mems = dict(_inputs.MEM_TYPES)
        self.nixl_ops = {"WRITE": nixlBind.NIXL_WRITE, "READ": nixlBind.NIXL_READ}
        if not self.plugin_list:
            raise RuntimeError(
                f"agent {agent_name}: there is no backend that could transfer anything"
            )

        for backend in self.plugin_list if instantiate_all else config.backends:
            if backend in self.plugin_list:
                self.create_backend(backend, backend_parameters(backend, config))
            else:
                logger.warning(
                    "agent %s: skipped backend %s, which is none of %s",
                    agent_name,
                    backend,
                    ", ".join(self.plugin_list),
                )
        logger.info(
            "agent %s is ready with %s", agent_name, ", ".join(self.backends) or "no backend"
        )

    def __del__(self) -> None:
        try:
            self._end_leaked()
        except Exception:
            # Interpreter exit takes modules away; the native agent ends its transfers when it goes.
            pass

    # Backends

    def get_plugin_list(self) -> list[str]:
        """The names of the backends that can be created."""
        return self.plugin_list

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """The memory types that a backend can have; none for an unknown one."""
        self._load_plugin(backend)
        return _known("plugin", backend, self.plugin_mem_types, [])

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """The parameters that a backend can be created with, and their defaults; none for an
        unknown one.
        """
        self._load_plugin(backend)
        return _known("plugin", backend, self.plugin_b_options, {})

    def get_backend_mem_types(self, backend: str) -> list[str]:
        """The memory types of a backend that was created; none for another one."""
        return _known("backend", backend, self.backend_mems, [])

    def get_backend_params(self, backend: str) -> dict[str, str]:
        """The parameters that a backend was created with; none for another one."""
        return _known("backend", backend, self.backend_options, {})

    def create_backend(self, backend: str, initParams: dict[str, str] = {}) -> None:
        """Create a backend of the agent.

        Args:
            backend: one of `get_plugin_list`.
            initParams: values for some of `get_plugin_params`.
        """
        handle = self.agent.createBackend(backend, initParams)
        self.backends[backend] = handle
        self.backend_options[backend], self.backend_mems[backend] = self.agent.getBackendParams(
            handle
        )
        logger.info("agent %s has backend %s", self.name, backend)

    def _load_plugin(self, backend: str) -> None:
        if backend in self.plugin_mem_types or backend not in self.plugin_list:
            return
        try:
            parameters, mem_types = self.agent.getPluginParams(backend)
        except Exception as error:
            logger.warning("backend %s cannot be loaded: %s", backend, error)
        else:
            self.plugin_b_options[backend] = parameters
            self.plugin_mem_types[backend] = mem_types

    def _handles(self, backends: Sequence[str]) -> list[nixl_backend_handle]:
        return [self.backends[backend] for backend in backends]

    # Memory

    def register_memory(
        self, reg_list: Any, mem_type: str | None = None, backends: list[str] = []
    ) -> nixlBind.nixlRegDList:
        """Register memory, so that this agent and its peers can transfer from and to it.

        It has to stay allocated until `deregister_memory`.

        Args:
            reg_list: what `get_reg_descs` takes.
            mem_type: needed unless tensors or a list are given.
            backends: register with these only; by default with all that have the memory type.

        Returns:
            The list that was registered, for `deregister_memory`.
        """
        descs = _inputs.or_raise(_inputs.reg_list, reg_list, mem_type)
        self.agent.registerMem(descs, self._handles(backends))
        return descs

    def deregister_memory(
        self, dereg_list: nixlBind.nixlRegDList, backends: list[str] = []
    ) -> None:
        """End the registration of memory, with all backends or with some."""
        self.agent.deregisterMem(dereg_list, self._handles(backends))

    def query_memory(
        self, reg_list: Any, backend: str, mem_type: str | None = None
    ) -> list[dict[str, str] | None]:
        """What a backend knows of memory or files: a dictionary for each descriptor, None for what
        does not exist.
        """
        descs = _inputs.or_raise(_inputs.reg_list, reg_list, mem_type)
        if backend not in self.backends:
            raise ValueError(f"backend {backend!r} is none of {list(self.backends)}")
        return self.agent.queryMem(descs, self.backends[backend])

    # Descriptor lists

    def get_xfer_descs(
        self, descs: Any, mem_type: str | None = None
    ) -> nixlBind.nixlXferDList | None:
        """The list for a transfer.

        Args:
            descs: tuples (address, length, device), an N×3 array of 64-bit integers with these
                columns, a contiguous tensor, several such tensors of one device, or a list, which
                is returned as it is.
            mem_type: "DRAM", "VRAM", "FILE", "BLOCK" or "OBJ"; needed for tuples and arrays.

        Returns:
            The list, or None, with the reason in the log, for what cannot be one.
        """
        return _inputs.or_none(_inputs.xfer_list, descs, mem_type)

    def get_reg_descs(
        self, descs: Any, mem_type: str | None = None
    ) -> nixlBind.nixlRegDList | None:
        """The list for registration: as `get_xfer_descs`, with tuples (address, length, device,
        meta).

        The meta of arrays and tensors is empty.
        """
        return _inputs.or_none(_inputs.reg_list, descs, mem_type)

    def get_remote_descs(
        self, descs: Any, mem_type: str | None = None
    ) -> nixlBind.nixlRemoteDList | None:
        """The list of tuples (address, length, device, agent name), for `prep_mem_view`; None as
        `get_xfer_descs`.
        """
        return _inputs.or_none(_inputs.remote_list, descs, mem_type)

    def get_serialized_descs(
        self, descs: nixlBind.nixlXferDList | nixlBind.nixlRegDList | nixlBind.nixlRemoteDList
    ) -> bytes:
        """The bytes of a list, for `deserialize_descs` at a peer."""
        return _interchange.serialize(descs)

    def deserialize_descs(
        self, serialized_descs: bytes
    ) -> nixlBind.nixlXferDList | nixlBind.nixlRegDList | nixlBind.nixlRemoteDList:
        """The list of bytes from `get_serialized_descs` of kvrail or of NIXL; nothing in them is
        executed.
        """
        return _interchange.deserialize(serialized_descs)

    # Preparation

    def prep_xfer_dlist(
        self, agent_name: str, xfer_list: Any, mem_type: str | None = None, backends: list[str] = []
    ) -> nixl_prepped_dlist_handle:
        """Prepare a list once, so that transfers of some of its descriptors are made by index.

        Args:
            agent_name: whose memory it is: "" or "NIXL_INIT_AGENT" for the local side of transfers,
                the name of a remote agent, or the agent's own, for the other side.
            xfer_list: what `get_xfer_descs` takes, or an N×5 array (address, length, device,
                stride, count): each row is `count` blocks of `length` bytes, `stride` bytes apart,
                and an index selects one block.
            mem_type: needed unless tensors or a list are given.
            backends: prepare for these only.

        Returns:
            The handle for `make_prepped_xfer`; give it back by `release_dlist_handle`.
        """
        if agent_name == "NIXL_INIT_AGENT":
            agent_name = nixlBind.NIXL_INIT_AGENT
        # Without backends there is no argument for them: to convert an empty list takes time.
        handles = (self._handles(backends),) if backends else ()
        if _inputs.is_strided(xfer_list):
            if mem_type is None:
                raise ValueError("descriptors of an N×5 array need a mem_type")
            handle = self.agent.prepXferDlist(
                agent_name, self.nixl_mems[mem_type], xfer_list, *handles
            )
        else:
            descs = _inputs.or_raise(_inputs.xfer_list, xfer_list, mem_type)
            handle = self.agent.prepXferDlist(agent_name, descs, *handles)
        return nixl_prepped_dlist_handle(self.agent, handle)

    def make_connection(self, remote_agent: str, backends: list[str] = []) -> None:
        """Connect to a remote agent now, so that the first transfer need not wait. Optional."""
        self.agent.makeConnection(remote_agent, self._handles(backends))

    def prep_mem_view(
        self,
        dlist: nixlBind.nixlXferDList | nixlBind.nixlRemoteDList,
        *,
        backends: list[str] | None = None,
    ) -> int:
        """A view of local or remote device memory for kernels, until `release_mem_view`."""
        return self.agent.prepMemView(dlist, self._handles(backends or ()))

    def release_mem_view(self, mvh: int) -> None:
        """Give a view of `prep_mem_view` back."""
        self.agent.releaseMemView(mvh)

    # Transfers

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: Sequence[int] | Array,
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: Sequence[int] | Array,
        notif_msg: bytes | str = b"",
        backends: list[str] = [],
        skip_desc_merge: bool = False,
    ) -> nixl_xfer_handle:
        """A transfer between descriptors of two prepared lists, pairwise by index.

        Args:
            operation: "READ" or "WRITE".
            local_xfer_side: from `prep_xfer_dlist` with "".
            local_indices: which local descriptors: integers, or a one-dimensional array of them.
            remote_xfer_side: from `prep_xfer_dlist` with an agent's name.
            remote_indices: which remote descriptors, as many as local ones.
            notif_msg: sent to the remote agent when every byte is there; empty sends none.
            backends: choose among these only.
            skip_desc_merge: deprecated.
        """
        self._end_leaked()
        handle = self.agent.makeXferReq(
            self.nixl_ops[operation],
            local_xfer_side._handle,
            local_indices,
            remote_xfer_side._handle,
            remote_indices,
            notif_msg,
            self._handles(backends),
            skip_desc_merge,
        )
        return nixl_xfer_handle(self.agent, handle, self._leaked_xfer_handles)

    def initialize_xfer(
        self,
        operation: str,
        local_descs: nixlBind.nixlXferDList,
        remote_descs: nixlBind.nixlXferDList,
        remote_agent: str,
        notif_msg: bytes | str = b"",
        backends: list[str] = [],
    ) -> nixl_xfer_handle:
        """A transfer between two lists of `get_xfer_descs`, without preparing them first.

        Args:
            operation: "READ" or "WRITE".
            local_descs: the local side.
            remote_descs: the other side, as many descriptors of the same lengths.
            remote_agent: whose memory the other side is: a remote agent, or this one.
            notif_msg: sent to the remote agent when every byte is there; empty sends none.
            backends: choose among these only.
        """
        self._end_leaked()
        handle = self.agent.createXferReq(
            self.nixl_ops[operation],
            local_descs,
            remote_descs,
            remote_agent,
            notif_msg,
            self._handles(backends),
        )
        return nixl_xfer_handle(self.agent, handle, self._leaked_xfer_handles)

    def transfer(self, handle: nixl_xfer_handle, notif_msg: bytes | str = b"") -> str:
        """Start a transfer, for the first time or, when it has ended, again.

        Args:
            handle: from `make_prepped_xfer` or `initialize_xfer`.
            notif_msg: in place of the notification that the transfer was made with.

        Returns:
            "DONE", "PROC" while it runs, or "ERR".
        """
        return _state(self.agent.postXferReq(handle._handle, notif_msg))

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """How far a transfer is: "DONE", "PROC" while it runs, or "ERR"."""
        # Called in loops, by some callers thousands of times for each transfer.
        status = self.agent.getXferStatus(handle._handle)
        return "DONE" if status == _DONE else _state(status)

    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> nixlBind.nixlXferTelemetry:
        """Times in microseconds, bytes and descriptors of a transfer's latest run; the agent has to
        capture them.
        """
        return self.agent.getXferTelemetry(handle._handle)

    def estimate_xfer_cost(self, req_handle: nixl_xfer_handle) -> tuple[int, int, str]:
        """How long a transfer will take: microseconds, their margin of error, and how they were
        estimated.
        """
        duration, margin, method = self.agent.estimateXferCost(req_handle._handle)
        analytical = method == int(nixlBind.NIXL_COST_ANALYTICAL_BACKEND)
        return duration, margin, "ANALYTICAL_BACKEND" if analytical else "UNKNOWN"

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """The name of the backend that a transfer uses."""
        chosen = self.agent.queryXferBackend(handle._handle)
        return next(name for name, backend in self.backends.items() if backend == chosen)

    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """Cancel a transfer if it runs, and free it; raises, and leaves it as it is, when it cannot
        be ended now.
        """
        handle.release()

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """Free a list of `prep_xfer_dlist`."""
        handle.release()

    def _end_leaked(self) -> None:
        """Try again to end the transfers whose handles were collected while they ran; those that
        still run stay.
        """
        for _ in range(len(self._leaked_xfer_handles)):
            try:
                handle = self._leaked_xfer_handles.pop(0)
            except IndexError:
                return  # another thread took it
            try:
                self.agent.releaseXferReq(handle)
            except Exception as error:
                self._leaked_xfer_handles.append(handle)
                logger.debug(
                    "leaked transfer %#x of agent %s still runs: %s", handle, self.name, error
                )

    # Notifications

    def get_new_notifs(self, backends: list[str] = []) -> dict[str, list[bytes]]:
        """The notifications that came since the last call, by the agent that sent them."""
        if not backends:
            return self.agent.getNotifs({})
        return self.agent.getNotifs({}, self._handles(backends))

    def update_notifs(self, backends: list[str] = []) -> dict[str, list[bytes]]:
        """Add new notifications to `notifs`, and return all that were not taken out of it."""
        fresh = self.get_new_notifs(backends)
        if fresh:
            # A new dictionary, as other threads may iterate over the old one.
            notifs = dict(self.notifs)
            for sender, messages in fresh.items():
                notifs[sender] = [*notifs.get(sender, ()), *messages]
            self.notifs = notifs
        return self.notifs

    def check_remote_xfer_done(
        self,
        remote_agent_name: str,
        lookup_tag: bytes,
        backends: list[str] = [],
        tag_is_prefix: bool = True,
    ) -> bool:
        """Whether a notification with this tag has come from an agent; the first that matches is
        taken out.

        Args:
            remote_agent_name: who sent it.
            lookup_tag: what it begins with; b"" is any.
            backends: look at these only.
            tag_is_prefix: False finds the tag anywhere in the message.
        """
        messages = self.update_notifs(backends).get(remote_agent_name, ())
        for index, message in enumerate(messages):
            if message.startswith(lookup_tag) if tag_is_prefix else lookup_tag in message:
                self.notifs[remote_agent_name].pop(index)
                return True
        return False

    def send_notif(
        self, remote_agent_name: str, notif_msg: bytes | str, backend: str | None = None
    ) -> None:
        """Send a notification of its own to a remote agent, through any backend or this one."""
        handles = [] if backend is None else [self.backends[backend]]
        self.agent.genNotif(remote_agent_name, notif_msg, handles)

    # Metadata

    def get_agent_metadata(self) -> bytes:
        """What a peer needs for transfers with this agent: connections and registered memory."""
        return self.agent.getLocalMD()

    def get_partial_agent_metadata(
        self, descs: nixlBind.nixlRegDList, inc_conn_info: bool = False, backends: list[str] = []
    ) -> bytes:
        """Metadata of some registered memory only, with connections or without; the list may be
        empty.
        """
        return self.agent.getLocalPartialMD(descs, inc_conn_info, self._handles(backends))

    def add_remote_agent(self, metadata: bytes) -> bytes:
        """Learn a remote agent from its metadata; a second time adds what is new.

        Returns:
            The agent's name, as bytes.
        """
        return self.agent.loadRemoteMD(metadata)

    def remove_remote_agent(self, agent: str) -> None:
        """Forget a remote agent and disconnect from it; an unknown one is no error."""
        self.agent.invalidateRemoteMD(agent)

    def check_remote_metadata(
        self, agent: str, descs: nixlBind.nixlXferDList | None = None
    ) -> bool:
        """Whether a remote agent is known, and, if descriptors are given, all of their memory."""
        if descs is None:
            descs = nixlBind.nixlXferDList(nixlBind.DRAM_SEG)
        return self.agent.checkRemoteMD(agent, descs) == nixlBind.NIXL_SUCCESS

    def send_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Send metadata to the agent that listens at an address, or, without one, to the metadata
        server.
        """
        self.agent.sendLocalMD(ip_addr, port)

    def send_partial_agent_metadata(
        self,
        descs: nixlBind.nixlRegDList,
        inc_conn_info: bool = False,
        backends: list[str] = [],
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        label: str = "",
    ) -> None:
        """Send `get_partial_agent_metadata`, as `send_local_metadata` does.

        Args:
            descs: the registered memory; may be empty.
            inc_conn_info: send connections too.
            backends: of these backends only.
            ip_addr: an agent that listens; "" is the metadata server.
            port: of that agent.
            label: what the metadata server keeps it as.
        """
        self.agent.sendLocalPartialMD(
            descs, inc_conn_info, self._handles(backends), ip_addr, port, label
        )

    def fetch_remote_metadata(
        self, remote_agent: str, ip_addr: str = "", port: int = DEFAULT_COMM_PORT, label: str = ""
    ) -> None:
        """Ask an agent that listens, or the metadata server, for metadata; `check_remote_metadata`
        tells when it came.
        """
        self.agent.fetchRemoteMD(remote_agent, ip_addr, port, label)

    def invalidate_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Tell the agent that listens at an address, or the metadata server, that this agent's
        metadata is void.
        """
        self.agent.invalidateLocalMD(ip_addr, port)


def _state(status: nixlBind.nixl_status_t) -> str:
    if status == _DONE:
        return "DONE"
    if status == _RUNNING:
        return "PROC"
    return "ERR"


def _known(kind: str, backend: str, facts: dict[str, _Facts], none: _Facts) -> _Facts:
    """The facts of a backend, or none, with a line in the log."""
    if backend not in facts:
        logger.warning("%s %s is not available", kind, backend)
        return none
    return facts[backend]
