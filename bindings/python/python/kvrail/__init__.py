"""Moves LLM KV-cache blocks between processes and hosts over many rails.

    import kvrail

    with kvrail.Agent("decode-0") as agent, agent.serve(5555):       # one process
        agent.register(cache)                                        # array, tensor, buffer
        print(agent.wait_notification(timeout=30))                   # every byte is visible

    with kvrail.Agent("prefill-0") as agent:                         # another one
        source = agent.register(kv_cache)
        peer = agent.connect("127.0.0.1:5555", timeout=30)
        plan = agent.prepare(peer, source.blocks(32 << 10, [7, 3, 9]),
                             peer.region(0).blocks(32 << 10, range(3)))
        print(plan.write(notify="request 42").wait())                # or: await plan.write()

Neither NumPy nor torch is imported by this package; it takes their arrays where it is given them.
"""

from kvrail._errors import (
    AccessError,
    AllocateError,
    BuildError,
    Closed,
    CloseError,
    ConnectError,
    ConnectTimeout,
    Error,
    Forked,
    MetadataError,
    PeerLost,
    PostError,
    PrepareError,
    RegisterError,
    SendError,
    ServeError,
    TransferCancelled,
    TransferError,
    TransferPeerLost,
    TransferTimeout,
    UnsuitableMemory,
    WaitTimeout,
)
from kvrail._inbox import Notifications
from kvrail._kvrail.native import (
    NOTIFICATION_BYTES_MAX,
    Agent,
    Notification,
    Peer,
    Plan,
    Region,
    RemoteRegion,
    Report,
    Server,
    Slices,
    Transfer,
    __version__,
    concat,
)
from kvrail._memory import SharedMemory, shared
from kvrail._transports import Ofi, Shm, Tcp

__all__ = [
    "NOTIFICATION_BYTES_MAX",
    "AccessError",
    "Agent",
    "AllocateError",
    "BuildError",
    "CloseError",
    "Closed",
    "ConnectError",
    "ConnectTimeout",
    "Error",
    "Forked",
    "MetadataError",
    "Notification",
    "Notifications",
    "Ofi",
    "Peer",
    "PeerLost",
    "Plan",
    "PostError",
    "PrepareError",
    "Region",
    "RegisterError",
    "RemoteRegion",
    "Report",
    "SendError",
    "ServeError",
    "Server",
    "SharedMemory",
    "Shm",
    "Slices",
    "Tcp",
    "Transfer",
    "TransferCancelled",
    "TransferError",
    "TransferPeerLost",
    "TransferTimeout",
    "UnsuitableMemory",
    "WaitTimeout",
    "__version__",
    "concat",
    "shared",
]
