//! An endpoint with its queue and its addresses ([`Bound`]), and the one of a rail that carries one-sided ops ([`Port`]),
//! with everything that lives and dies with it. The one that carries messages is in [`super::control`].
//!
//! libfabric cannot take a transfer back. What it can do is close the endpoint: when that call has returned, the
//! provider touches neither a context nor memory for any of its ops (KR-7). So a reset drops the whole [`Port`] and
//! opens another on the same domain, where registrations and their keys stand. Seen of `fi_close` with ops in flight:
//!
//! | provider | with a dead or silent peer it returns in | the queue then has |
//! |---|---|---|
//! | `efa-direct` 2.5.1, 2.7 | 0.1–0.3 ms (5 ms once) | nothing: the ops are forgotten |
//! | `efa` 2.5.1 | 2–3 ms | nothing |
//! | `tcp` 2.5.1, 2.7 | 0.1–1.4 ms | `FI_ECANCELED` for each |
//! | `tcp` 1.17 | 6–9 ms | reading it crashes |
//! | `shm` 2.5.1 | 0.5 ms | nothing, and the peer crashes when it polls; 2.7 does not |
//!
//! So it never waits for the peer, and is called by the thread that owns the domain, which is what `FI_THREAD_DOMAIN`
//! asks for; and the queue is read before the close, never after it.

use std::ffi::c_void;

use kvrail_core::id::{PeerId, RemoteRail, Token};
use kvrail_sys::libfabric::abi::{
    self, FI_AV_TABLE, FI_COMPLETION, FI_DELIVERY_COMPLETE, FI_EAGAIN, FI_EAVAIL, FI_EINTR, FI_MORE,
    FI_REMOTE_CQ_DATA, fi_addr_t, fi_cq_data_entry, fi_msg_rma, fi_rma_iov,
};
use kvrail_sys::libfabric::{
    AddressVector, CompletionQueue, CqFailure, Domain, Endpoint, EventQueue, Fabric, FabricError, Info,
    MemoryRegion, Registration, Wait,
};

use super::context::Contexts;
use super::receives::Receives;
use crate::memory::{AllocateError, HugePages, Options, PrivateMemory};

/// Completions that are read at once.
pub(super) const READ_AT_ONCE: usize = 64;

/// An op in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpEntry {
    pub(super) token: Token,
    /// Its index in the transfer.
    pub(super) index: u32,
    /// The destination in the rail's book, which may have another user by now.
    pub(super) to: u32,
    /// Whose it is: the peer that it was posted to, also when that is no longer known.
    pub(super) peer: PeerId,
    pub(super) remote: RemoteRail,
    /// The remote region.
    pub(super) import: u32,
}

/// What endpoints are opened on: a NIC's domain.
///
/// Fields drop in this order.
pub(super) struct Base {
    pub(super) events: Option<EventQueue>,
    pub(super) domain: Domain,
    pub(super) fabric: Fabric,
}

/// How an endpoint and its queue are opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    /// Entries of the queue; 0 = the provider's choice.
    pub(super) queue: usize,
    /// Whether the queue has a descriptor.
    pub(super) wait: Wait,
    /// Immediates take no receive, and that must be asked for.
    pub(super) unsolicited: bool,
    /// libfabric's own way between processes of one host is turned off: kvrail has its own, and says which it uses.
    pub(super) no_shared_memory: bool,
}

/// An endpoint with its queue and its addresses. Fields drop in this order: nothing below the endpoint is in use then.
pub(super) struct Bound {
    pub(super) endpoint: Endpoint,
    pub(super) queue: CompletionQueue,
    pub(super) addresses: AddressVector,
    /// Its address, for peers.
    pub(super) name: Vec<u8>,
}

/// What a queue gave.
pub(super) enum Read {
    /// As many entries.
    Entries(usize),
    /// One op's or message's bad end.
    Failure(CqFailure),
    /// Nothing is there.
    Nothing,
    /// It will never give anything again.
    Broken(String),
}

impl Bound {
    /// Opens one, ready to post.
    pub(super) fn open(base: &Base, info: &Info, opening: &Opening) -> Result<Self, FabricError> {
        let queue = base.domain.completion_queue(opening.queue, opening.wait)?;
        let addresses = base.domain.address_vector(FI_AV_TABLE, 0)?;
        let endpoint = base.domain.endpoint(info)?;
        endpoint.bind_queue(&queue, abi::FI_TRANSMIT | abi::FI_RECV)?;
        endpoint.bind_addresses(&addresses)?;
        if let Some(events) = &base.events
            && let Err(error) = endpoint.bind_events(events)
        {
            log::debug!("{}: no event queue for this endpoint: {error}", info.first().domain_name());
        }
        if opening.no_shared_memory
            && let Err(error) = endpoint.set_flag(abi::FI_OPT_SHARED_MEMORY_PERMITTED, false)
        {
            log::debug!("{}: shared memory cannot be turned off: {error}", info.first().domain_name());
        }
        if opening.unsolicited {
            endpoint.set_flag(abi::FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV, true)?;
        }
        endpoint.enable()?;
        let name = endpoint.name()?;
        Ok(Self { endpoint, queue, addresses, name })
    }

    /// Reads the queue once.
    #[inline]
    pub(super) fn read(&self, entries: &mut [fi_cq_data_entry; READ_AT_ONCE]) -> Read {
        let count = self.queue.read(&mut entries[..]);
        if count > 0 {
            return Read::Entries((count as usize).min(READ_AT_ONCE));
        }
        match -count as i32 {
            0 | FI_EAGAIN | FI_EINTR => Read::Nothing,
            FI_EAVAIL => match self.queue.read_failure() {
                Ok(Some(failure)) => Read::Failure(failure),
                Ok(None) => Read::Nothing,
                Err(error) => Read::Broken(format!("its completion queue is gone: {error}")),
            },
            code => Read::Broken(format!("its completion queue is gone: error {code}")),
        }
    }
}

/// Memory for what endpoints receive and send, registered on their domain.
pub(super) struct Buffers {
    /// Ended before the memory.
    _registration: MemoryRegion,
    pub(super) memory: PrivateMemory,
    pub(super) desc: *mut c_void,
}

// SAFETY: the descriptor is the registration's, which goes where the buffers go; all else is Send.
unsafe impl Send for Buffers {}

impl Buffers {
    /// `bytes` of them. `key` is what the registration asks for where keys are chosen here.
    pub(super) fn new(domain: &Domain, bytes: usize, key: u64) -> Result<Self, PortError> {
        let options = Options { huge_pages: HugePages::Never, prefault: true };
        let memory = PrivateMemory::allocate(bytes, options).map_err(PortError::Memory)?;
        let what = Registration {
            address: memory.as_ptr().cast(),
            len: bytes,
            access: abi::FI_SEND | abi::FI_RECV,
            requested_key: key,
            iface: abi::FI_HMEM_SYSTEM,
            device: 0,
            dmabuf: None,
        };
        // SAFETY: the memory lies beside the registration, is dropped after it, and only read and written through copies.
        let registration = unsafe { domain.register(&what) }?;
        let desc = registration.desc();
        Ok(Self { _registration: registration, memory, desc })
    }
}

/// How large a port is, and how it is opened: the same for all rails of a transport.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) opening: Opening,
    /// Ops in flight.
    pub(super) ops: usize,
    /// Receives posted for immediates; 0 where these take none.
    pub(super) receives: usize,
    /// Writes ask for `FI_DELIVERY_COMPLETE`.
    pub(super) delivery: bool,
    /// All but the last op of a batch carry `FI_MORE`.
    pub(super) more: bool,
}

/// Bytes that all receives of immediates share: nobody reads what comes into them.
const IMMEDIATES_BUFFER_BYTES: usize = 64;

impl Shape {
    /// Bytes of memory that a port of this shape takes, beside what the provider itself allocates.
    pub(super) const fn bytes(&self) -> usize {
        Contexts::<OpEntry>::bytes(self.ops) + Receives::bytes(self.receives)
    }
}

/// Why a port could not be opened.
#[derive(Debug)]
pub(super) enum PortError {
    /// libfabric's.
    Fabric(FabricError),
    /// No memory for messages.
    Memory(AllocateError),
}

impl From<FabricError> for PortError {
    fn from(error: FabricError) -> Self {
        Self::Fabric(error)
    }
}

impl std::fmt::Display for PortError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fabric(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

/// One op as it is posted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    /// Local address and descriptor.
    pub(super) local: *mut c_void,
    pub(super) desc: *mut c_void,
    pub(super) len: usize,
    /// Address and key at the peer.
    pub(super) remote: u64,
    pub(super) key: u64,
}

/// The endpoint of one-sided ops. Fields drop in this order: the endpoint first, so that nothing below it is in use any more.
pub(super) struct Port {
    pub(super) bound: Bound,
    /// What immediates' receives point to, where they take receives.
    buffer: Option<Buffers>,
    pub(super) ops: Contexts<OpEntry>,
    receives: Receives,
    shape: Shape,
}

/// Whose a completion is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Op(u32),
    Receive(u32),
    Nobody,
}

impl Port {
    /// Opens one, ready to post. `key` is what a registration asks for where keys are chosen here.
    pub(super) fn open(base: &Base, info: &Info, shape: Shape, key: u64) -> Result<Self, PortError> {
        let bound = Bound::open(base, info, &shape.opening)?;
        let buffer = match shape.receives {
            0 => None,
            _ => Some(Buffers::new(&base.domain, IMMEDIATES_BUFFER_BYTES, key)?),
        };
        let receives = Receives::new(shape.receives, shape.more);
        let ops = Contexts::new(shape.ops);
        let mut port = Self { bound, buffer, ops, receives, shape };
        port.post_receives();
        Ok(port)
    }

    /// Whose completion a context stands for.
    #[inline]
    pub(super) fn owner(&self, context: *mut c_void) -> Owner {
        if let Some(index) = self.ops.index_of(context) {
            return Owner::Op(index);
        }
        self.receives.index_of(context).map_or(Owner::Nobody, Owner::Receive)
    }

    /// A receive has ended: it is posted again by [`Port::post_receives`].
    #[inline]
    pub(super) fn received(&mut self, index: u32) {
        self.receives.ended(index);
    }

    /// Posts the receives that are not posted. What the provider does not take stays for the next call.
    #[inline]
    pub(super) fn post_receives(&mut self) {
        let Some(buffer) = &self.buffer else { return };
        let iov_base = buffer.memory.as_ptr().cast();
        let place = |_| libc::iovec { iov_base, iov_len: IMMEDIATES_BUFFER_BYTES };
        // SAFETY: the buffer is registered and outlives the endpoint; all receives share it, and nobody reads it.
        unsafe { self.receives.post(&self.bound.endpoint, buffer.desc, place) };
    }

    /// Posts a write, with an immediate if there is one. Results as of [`outcome`].
    ///
    /// # Safety
    /// The local memory is registered under that descriptor, and stays so until the op has ended.
    #[inline]
    pub(super) unsafe fn write(
        &self,
        what: &Transfer,
        to: fi_addr_t,
        context: u32,
        immediate: Option<u32>,
        more: bool,
    ) -> isize {
        let mut flags = FI_COMPLETION;
        flags |= if self.shape.delivery { FI_DELIVERY_COMPLETE } else { 0 };
        flags |= if immediate.is_some() { FI_REMOTE_CQ_DATA } else { 0 };
        flags |= if more && self.shape.more { FI_MORE } else { 0 };
        let data = u64::from(immediate.unwrap_or(0));
        // SAFETY: `described` keeps its parts alive for the call; the context outlives the endpoint; the rest is the
        // caller's promise.
        self.described(what, to, context, data, |message| unsafe {
            self.bound.endpoint.write_message(message, flags)
        })
    }

    /// Posts a read. Results as of [`outcome`].
    ///
    /// # Safety
    /// As for [`Port::write`].
    #[inline]
    pub(super) unsafe fn read(&self, what: &Transfer, to: fi_addr_t, context: u32, more: bool) -> isize {
        let flags = FI_COMPLETION | if more && self.shape.more { FI_MORE } else { 0 };
        // SAFETY: as in `write`.
        self.described(what, to, context, 0, |message| unsafe {
            self.bound.endpoint.read_message(message, flags)
        })
    }

    #[inline]
    fn described(
        &self,
        what: &Transfer,
        to: fi_addr_t,
        context: u32,
        data: u64,
        post: impl FnOnce(&fi_msg_rma) -> isize,
    ) -> isize {
        let iov = libc::iovec { iov_base: what.local, iov_len: what.len };
        let remote = fi_rma_iov { addr: what.remote, len: what.len, key: what.key };
        let mut desc = what.desc;
        let message = fi_msg_rma {
            msg_iov: &iov,
            desc: &mut desc,
            iov_count: 1,
            addr: to,
            rma_iov: &remote,
            rma_iov_count: 1,
            context: self.ops.context(context),
            data,
        };
        post(&message)
    }
}
