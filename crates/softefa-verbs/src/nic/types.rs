//! What is asked of the device, and what it answers.

use softefa_fabric::Gid;

/// How an operation ended: EFA's completion status, as the device writes it into a completion's `vendor_err`.
///
/// Source: the device interface in the kernel driver and in rdma-core (`efa_io_comp_status`); FI_EFA's `prov_errno` is the same number.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The queue pair was destroyed or moved to its error state first.
    Flushed = 1,
    /// The queue pair has failed.
    QpInternalError = 2,
    /// The device cannot do this.
    UnsupportedOp = 3,
    /// The address handle is not one.
    InvalidAh = 4,
    /// A local key is not one, or does not cover the address range.
    InvalidLkey = 5,
    /// The message is longer than can be.
    BadLength = 6,
    /// The remote key is not one, or does not allow this at this address range.
    RemoteBadAddress = 7,
    /// The peer gave up.
    RemoteAbort = 8,
    /// The peer has no such queue pair: it was restarted.
    RemoteBadDestQpn = 9,
    /// The peer had no receive posted, and the retries are used up.
    RemoteNotReady = 10,
    /// The peer's receive is shorter than the message.
    RemoteBadLength = 11,
    /// The peer answered with a status that is none.
    RemoteBadStatus = 12,
    /// The peer has answered before and does so no longer.
    UnresponsiveRemote = 13,
    /// The peer has no address handle for this NIC.
    RemoteUnknownPeer = 14,
    /// The peer has never answered.
    UnreachableRemote = 15,
}

impl Status {
    /// All of them; a status's place here is its number.
    pub const ALL: [Status; 16] = [
        Status::Ok,
        Status::Flushed,
        Status::QpInternalError,
        Status::UnsupportedOp,
        Status::InvalidAh,
        Status::InvalidLkey,
        Status::BadLength,
        Status::RemoteBadAddress,
        Status::RemoteAbort,
        Status::RemoteBadDestQpn,
        Status::RemoteNotReady,
        Status::RemoteBadLength,
        Status::RemoteBadStatus,
        Status::UnresponsiveRemote,
        Status::RemoteUnknownPeer,
        Status::UnreachableRemote,
    ];

    /// The status of this number; another number, which only a broken peer sends, is [`Status::RemoteBadStatus`].
    #[must_use]
    pub fn of(number: u8) -> Status {
        Status::ALL.get(usize::from(number)).copied().unwrap_or(Status::RemoteBadStatus)
    }
}

/// What a work request does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Opcode {
    /// A message into a posted receive.
    Send,
    /// RDMA write.
    Write,
    /// RDMA read.
    Read,
    /// A received message (completions only).
    Receive,
    /// A peer's RDMA write with immediate (completions only).
    ReceiveWrite,
}

/// A piece of local memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Segment {
    /// Address, as the region was registered (its IOVA).
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Local key.
    pub key: u32,
}

/// Longest inline payload that the type can hold; the device's limit may be less.
pub const INLINE_MAX: usize = 64;
/// Most segments of one request that the type can hold; the device's limit may be less.
pub const SEGMENTS_MAX: usize = 2;

/// Where a send's bytes are.
#[derive(Clone, Copy, Debug)]
pub enum Payload {
    /// In registered memory: the first `count` segments.
    Segments {
        /// How many of them there are.
        count: u8,
        /// The segments.
        list: [Segment; SEGMENTS_MAX],
    },
    /// In the request.
    Inline {
        /// How many of them there are.
        len: u8,
        /// The bytes.
        bytes: [u8; INLINE_MAX],
    },
}

impl Payload {
    /// No bytes at all.
    pub const EMPTY: Payload =
        Payload::Segments { count: 0, list: [Segment { addr: 0, len: 0, key: 0 }; SEGMENTS_MAX] };
}

/// A send work request: send, RDMA write or RDMA read.
#[derive(Clone, Copy, Debug)]
pub struct SendRequest {
    /// Comes back in the completion.
    pub id: u64,
    /// Send, Write or Read.
    pub opcode: Opcode,
    /// Immediate, in the byte order in which the caller gave it.
    pub immediate: Option<u32>,
    /// RDMA: the target's key.
    pub remote_key: u32,
    /// RDMA: the target's address.
    pub remote_addr: u64,
    /// The bytes; of a read, where they go.
    pub payload: Payload,
    /// The address handle's GID; `None` when no address was set.
    pub to: Option<Gid>,
    /// The peer's queue pair.
    pub qpn: u32,
    /// The peer's queue key.
    pub qkey: u32,
}

/// A posted receive. EFA's have one segment.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveRequest {
    /// Comes back in the completion.
    pub id: u64,
    /// Where the message goes.
    pub into: Segment,
}

/// An entry of a completion queue.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The request's id; 0 for an unsolicited receive.
    pub id: u64,
    /// How it ended.
    pub status: Status,
    /// What it was.
    pub opcode: Opcode,
    /// Bytes moved.
    pub bytes: u32,
    /// Immediate that the peer sent.
    pub immediate: Option<u32>,
    /// Own queue pair.
    pub qpn: u32,
    /// The peer's queue pair (receives only).
    pub from_qpn: u32,
    /// The address handle's number of the peer, if there is a handle (receives only).
    pub from_handle: Option<u16>,
    /// The peer's NIC (receives only).
    pub from: Option<Gid>,
    /// A write with immediate that used up no posted receive.
    pub unsolicited: bool,
}

impl Completion {
    /// Of a request of queue pair `qpn`, with nothing that came from a peer.
    #[must_use]
    pub fn of_request(id: u64, status: Status, opcode: Opcode, qpn: u32) -> Completion {
        Completion {
            id,
            status,
            opcode,
            bytes: 0,
            immediate: None,
            qpn,
            from_qpn: 0,
            from_handle: None,
            from: None,
            unsolicited: false,
        }
    }
}

/// What a memory region allows. Bits as in `ibv_access_flags`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access(pub u32);

impl Access {
    /// The device may write into it (receives, reads).
    pub const LOCAL_WRITE: Access = Access(1);
    /// Peers may write into it.
    pub const REMOTE_WRITE: Access = Access(1 << 1);
    /// Peers may read from it.
    pub const REMOTE_READ: Access = Access(1 << 2);

    /// Whether it allows all that `wanted` asks for.
    #[must_use]
    pub fn allows(self, wanted: Access) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// Special properties of a queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flags {
    /// A write with immediate uses up no posted receive.
    pub unsolicited_write_receive: bool,
}

/// What was asked for and exceeds the device's limits: the errno that the kernel's driver gives is `EINVAL` or `ENOMEM`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// A request that can never be fulfilled (`EINVAL`).
    Beyond,
    /// The device has no more of it now (`ENOMEM`).
    Exhausted,
    /// The address range is not mapped, or not memory that can be pinned (`EFAULT`).
    Unmapped,
    /// The object does not exist, or not any more (`EINVAL`).
    Gone,
}
