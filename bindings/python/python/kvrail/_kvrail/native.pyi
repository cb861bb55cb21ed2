"""The classes of `kvrail`, as the native module has them."""

from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, final

from kvrail._inbox import Notifications
from kvrail._transports import Ofi, Shm, Tcp
from typing_extensions import Buffer, Self

__version__: str
NOTIFICATION_BYTES_MAX: int
__all__: list[str]

class _HasArray(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

class _HasCudaArray(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

class _HasDlpack(Protocol):
    def __dlpack__(self) -> Any: ...

class _HasData(Protocol):
    def data_ptr(self) -> int: ...

_Memory: TypeAlias = Buffer | _HasArray | _HasCudaArray | _HasDlpack | _HasData
_Integers: TypeAlias = Iterable[int] | _HasArray | _HasData
_Transport: TypeAlias = str | Shm | Tcp | Ofi

class _Setting(TypedDict):
    value: int | str
    unit: str | None
    source: str
    variable: str

class _PassedOver(TypedDict):
    transport: str
    reason: str

class _RailFacts(TypedDict):
    name: str
    rate_bps: int

class _TransportFacts(TypedDict):
    name: str
    summary: str
    evidence: str
    rate_bps: int
    rails: list[_RailFacts]
    ofi: dict[str, Any] | None

class _Facts(TypedDict):
    transports: list[_TransportFacts]
    passed_over: list[_PassedOver]
    chosen_by: str

class _Latency(TypedDict):
    count: int
    mean: float
    p50: float
    p99: float
    max: float

class _RailStats(TypedDict):
    name: str
    rate_bps: int
    ops_posted: int
    nbytes_posted: int
    ops_done: int
    ops_failed: int
    messages: int

class _TransportStats(TypedDict):
    name: str
    nbytes: int
    transfers: int
    transfers_failed: int
    transfers_in_flight: int
    messages_sent: int
    messages_repeated: int
    messages_refused: int
    prepare: _Latency
    post: _Latency
    wire: _Latency
    rails: list[_RailStats]

class _Stats(TypedDict):
    nbytes: int
    transfers: int
    ops: int
    peers: int
    regions: int
    notifications_waiting: int
    events_missed: int
    transports: list[_TransportStats]

class _Progress(TypedDict):
    phase: Literal["waiting", "moving", "lingering", "confirming", "announcing"]
    ops: int
    ops_done: int
    ops_in_flight: int

class Agent:
    """One process's endpoint: owns rails, regions and the acquaintance with peers.

    A context manager; usable from any thread. Settings that are not given have the defaults that
    `config()` shows; the environment overrides them unless `ignore_environment` is set. Times are
    in seconds.
    """

    def __new__(
        cls,
        name: str,
        *,
        transports: Iterable[_Transport] | None = None,
        progress: Literal["thread", "inline"] | None = None,
        timeout: float | None = None,
        peer_timeout: float | None = None,
        close_timeout: float | None = None,
        spin: float | None = None,
        inline_bytes_max: int | None = None,
        stripe_bytes_min: int | None = None,
        inbox_messages_max: int | None = None,
        transfers_max: int | None = None,
        ignore_environment: bool = False,
    ) -> Self: ...
    @property
    def name(self) -> str:
        """Its name; agents that meet need different ones."""

    @property
    def incarnation(self) -> str:
        """Its life: random, so that a restarted process is a different agent."""

    @property
    def transports(self) -> list[str]:
        """Its transports, in order of preference."""

    def register(self, memory: _Memory) -> Region:
        """Registers memory with every transport.

        Takes NumPy arrays, torch tensors, whatever speaks DLPack, the CUDA array interface or the
        buffer protocol, and `kvrail.shared`. It stays registered, and is kept alive, until
        `Region.deregister` or the agent's end. It must be writable, and one block without gaps (in
        any order of dimensions).
        """

    def register_many(self, memory: Iterable[_Memory]) -> list[Region]:
        """Registers a list at once: much cheaper than one by one, and all or nothing."""

    def metadata(self, regions: Sequence[Region] | None = None) -> bytes:
        """What a peer imports with `connect`.

        This agent's addresses and its regions, or only some of them.
        """

    def serve(self, address: str | int) -> Server:
        """Listens for peers that `connect`: at "HOST:PORT", or at a port of loopback (0: any).

        Anyone who reaches the port may connect: choose the address accordingly.
        """

    def connect(self, target: bytes | str, *, timeout: float = 30.0) -> Peer:
        """Connects to a peer: by its metadata, or by the "HOST:PORT" where it serves.

        An address is tried until somebody answers, at most for `timeout`. Metadata of a known peer
        adds its regions to what is known; metadata of a restarted one makes a new peer.
        """

    @property
    def peers(self) -> list[Peer]:
        """All peers that were imported."""

    def peer(self, name: str) -> Peer:
        """The peer of that name that was imported last, or `KeyError`."""

    def prepare(
        self,
        peer: Peer,
        local: Slices | Region,
        remote: Slices | RemoteRegion,
    ) -> Plan:
        """Pairs local with remote slices, one by one, of equal lengths.

        They are checked, coalesced and divided among rails: everything that can be decided before
        the first byte moves is decided here, once.
        """

    def send(self, peer: Peer, message: bytes | str) -> None:
        """Sends a message.

        It arrives exactly once, as a notification, independently of transfers.
        """

    def poll_notification(self) -> Notification | None:
        """The next notification, if there is one."""

    def wait_notification(self, timeout: float = 30.0) -> Notification:
        """The next notification; `WaitTimeout` when none comes in time."""

    def notifications(self, *, timeout: float | None = None) -> Notifications:
        """Notifications as they come, for `for` and `async for`, until the agent is closed.

        With a timeout, a step that waits longer raises `WaitTimeout`.
        """

    def _next_notification(self, wakeups: Wakeups, number: int) -> Notification | None: ...
    def _unwatch(self, wakeups: Wakeups, number: int) -> None: ...
    def events(self) -> list[dict[str, Any]]:
        """News of peers since the last call.

        Ready, lost, routes down and up, transfers that failed there.
        """

    def progress(self) -> bool:
        """Makes progress once, for agents without a progress thread. True: call again."""

    def stats(self) -> _Stats:
        """What was counted: bytes, transfers, ops by rail, distributions of latencies."""

    def facts(self) -> _Facts:
        """What it runs on: transports, rails, who chose them, and what was passed over and why."""

    def config(self) -> dict[str, _Setting]:
        """Every setting with its value, its unit, and where the value came from."""

    def close(self) -> None:
        """Ends the agent.

        Cancels its transfers, tells its peers, waits for the drain. Twice is harmless.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

class Allocation:
    """An allocation; lives as long as this object, its views, and whatever is registered of it."""

    def __new__(
        cls,
        nbytes: int,
        *,
        shared: bool = True,
        huge_pages: Literal["never", "prefer", "require"] = "prefer",
        prefault: bool = False,
    ) -> Self: ...
    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def nbytes(self) -> int:
        """Bytes."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...

@final
class Notification:
    """A peer's message. When it came with a transfer, every byte of that is visible here."""

    __match_args__ = ("peer_name", "message")
    @property
    def peer_name(self) -> str:
        """Who sent it."""

    @property
    def message(self) -> bytes:
        """What it said: input from outside."""

@final
class Peer:
    """A remote agent in one of its lives: a restarted process is another peer."""

    @property
    def name(self) -> str:
        """The name that it gave itself."""

    @property
    def incarnation(self) -> str:
        """Its life."""

    @property
    def transport(self) -> str:
        """The transport that reaches it."""

    @property
    def transport_choice(self) -> str:
        """The same with what was preferred and passed over, and why."""

    @property
    def state(self) -> Literal["connecting", "ready", "lost"]:
        """How far the acquaintance goes."""

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Waits until both agents know each other.

        Nobody has to: what is posted earlier begins then.
        """

    @property
    def regions(self) -> list[RemoteRegion]:
        """Its regions that were imported, by number."""

    def region(self, key: int | Sequence[int]) -> RemoteRegion:
        """Its region of that number, or of that `key`, which tells tenants of one number apart."""

    def disconnect(self) -> None:
        """Forgets it: its transfers drain and fail, its plans become errors."""

    def __hash__(self) -> int: ...

@final
class Plan:
    """Local slices paired with a peer's: prepared once, posted as often as wanted."""

    def write(self, *, notify: bytes | str | None = None, timeout: float | None = None) -> Transfer:
        """Moves bytes from the local slices to the remote ones.

        `notify` is delivered at the peer once every byte is visible there. A transfer that has not
        ended within `timeout` fails; default: the agent's.
        """

    def read(self, *, notify: bytes | str | None = None, timeout: float | None = None) -> Transfer:
        """Moves bytes from the remote slices to the local ones.

        `notify` tells the peer that they have left.
        """

    @property
    def nbytes(self) -> int:
        """Bytes that one posting moves."""

    @property
    def ops(self) -> int:
        """Fabric ops of one posting, after coalescing and striping."""

    @property
    def peer(self) -> Peer:
        """Whom it concerns."""

    def __len__(self) -> int: ...

@final
class Region:
    """Registered memory.

    It stays registered, and kept alive, until `deregister` or the end of its agent. A context
    manager: leaving it deregisters.
    """

    @property
    def key(self) -> tuple[int, int]:
        """Number and generation.

        By it another process finds the region, with `peer.region(key)`.
        """

    @property
    def nbytes(self) -> int:
        """Bytes."""

    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def device(self) -> str:
        """Where the bytes are: "cpu", "cuda:0"."""

    @property
    def source(self) -> Any:
        """What was registered."""

    @property
    def registered(self) -> bool:
        """Whether it still is."""

    def __getitem__(self, key: slice, /) -> Slices: ...
    def blocks(
        self,
        block_bytes: int,
        indices: _Integers | int | None = None,
        *,
        start: int = 0,
        stride: int | None = None,
    ) -> Slices:
        """Blocks of one size by index.

        Block `i` begins at `start + i * stride`. Default: all that fit.
        `indices` may be a NumPy array; there is no Python loop over it.
        """

    def slices(self, offsets: _Integers, lengths: _Integers | int) -> Slices:
        """Slices at these offsets, of one length or of one each."""

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Copies bytes out."""

    def write(self, data: bytes, offset: int = 0) -> None:
        """Copies bytes in."""

    def deregister(self, timeout: float = 30.0) -> None:
        """Ends the registration, and waits until nothing touches the memory any more.

        After `WaitTimeout` it goes on by itself, and the memory is kept until then. Twice is
        harmless.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __len__(self) -> int: ...

@final
class RemoteRegion:
    """Memory of a peer, as its metadata names it."""

    @property
    def peer_name(self) -> str:
        """Whose."""

    @property
    def key(self) -> tuple[int, int]:
        """Number and generation, as the peer's own `Region.key`."""

    @property
    def nbytes(self) -> int:
        """Bytes."""

    @property
    def address(self) -> int:
        """Address in the peer's process: to find a region by, not to be used here."""

    @property
    def device(self) -> str:
        """Where the bytes are: "cpu", "cuda:0"."""

    def __getitem__(self, key: slice, /) -> Slices: ...
    def blocks(
        self,
        block_bytes: int,
        indices: _Integers | int | None = None,
        *,
        start: int = 0,
        stride: int | None = None,
    ) -> Slices:
        """Blocks of one size by index.

        Block `i` begins at `start + i * stride`. Default: all that fit.
        """

    def slices(self, offsets: _Integers, lengths: _Integers | int) -> Slices:
        """Slices at these offsets, of one length or of one each."""

    def __len__(self) -> int: ...
    def __hash__(self) -> int: ...

@final
class Report:
    """How a transfer ended well."""

    @property
    def nbytes(self) -> int:
        """Bytes moved."""

    @property
    def ops(self) -> int:
        """Fabric ops that moved them."""

    @property
    def retried_ops(self) -> int:
        """Ops that were posted again, on another route or after a failure."""

    @property
    def queued(self) -> float:
        """Seconds from the posting to its first op on the fabric."""

    @property
    def wire(self) -> float:
        """Seconds from its first op to the end, as this agent saw it."""

    @property
    def total(self) -> float:
        """Seconds from the posting to the end."""

@final
class Server:
    """Where peers meet an agent, until it is closed.

    Peers that came stay connected. A context manager.
    """

    @property
    def host(self) -> str:
        """Where it listens."""

    @property
    def port(self) -> int:
        """The port; the one that the system chose when 0 was asked for."""

    @property
    def address(self) -> str:
        """Both, as `Agent.connect` takes it."""

    def accept(self, timeout: float = 30.0) -> Peer:
        """The next peer that came; `WaitTimeout` when none comes in time."""

    def close(self) -> None:
        """Stops listening."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Slices:
    """An ordered list of slices of one side.

    Slice `i` of one side of a plan is paired with slice `i` of the other.
    Made by `region[start:stop]`, `region.blocks(…)` and `region.slices(…)`; joined by `+` and
    `concat`.
    """

    @property
    def nbytes(self) -> int:
        """Sum of the slices' lengths."""

    def __len__(self) -> int: ...
    def __add__(self, other: Slices, /) -> Slices: ...

@final
class Transfer:
    """One posting of a plan. `await` it or `wait` for it; dropping it in flight cancels it."""

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly."""

    def poll(self) -> Report | None:
        """The report, if it has ended; raises if it ended badly."""

    def wait(self, timeout: float | None = None) -> Report:
        """Waits for the end, at the latest soon after the transfer's own timeout.

        With a timeout, `WaitTimeout` means that it goes on; other errors mean that it ended badly.
        """

    def cancel(self) -> None:
        """Asks for an early end and returns at once.

        The transfer drains and then ends as cancelled.
        """

    @property
    def progress(self) -> _Progress | None:
        """How far it is; `None` when it has ended."""

    @property
    def plan(self) -> Plan:
        """What was posted."""

    def __await__(self) -> Generator[Any, None, Report]: ...
    def _watch(self, wakeups: Wakeups, number: int) -> bool: ...
    def _unwatch(self, wakeups: Wakeups, number: int) -> None: ...

@final
class Wakeups:
    """An event loop's wake-ups."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """Readable when something is due."""

    def drain(self) -> list[int]:
        """Takes the numbers of the waits that are over."""

def concat(lists: Iterable[Slices]) -> Slices:
    """Several lists as one, in order."""
