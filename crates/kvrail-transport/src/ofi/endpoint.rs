//! A rail's endpoint with everything that lives and dies with it: its queue, its addresses, the contexts of what is in
//! flight, and the memory of messages.
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
use kvrail_core::time::Time;
use kvrail_sys::libfabric::abi::{
    self, FI_AV_TABLE, FI_COMPLETION, FI_DELIVERY_COMPLETE, FI_MORE, FI_REMOTE_CQ_DATA, fi_addr_t, fi_msg,
    fi_msg_rma, fi_rma_iov,
};
use kvrail_sys::libfabric::{
    AddressVector, CompletionQueue, Domain, Endpoint, EventQueue, FabricError, Info, MemoryRegion,
    Registration, Wait, outcome,
};

use super::context::Contexts;
use super::fragment::FRAGMENT_BYTES;
use crate::memory::{AllocateError, HugePages, Options, PrivateMemory};

/// An op in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpEntry {
    pub(super) token: Token,
    /// Its index in the transfer.
    pub(super) index: u32,
    /// The destination in the rail's book.
    pub(super) to: u32,
    /// The remote region.
    pub(super) import: u32,
}

/// What a send carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carries {
    /// A fragment of the engine's message with that number.
    Message(u64),
    /// A word between transports, which is repeated until it is answered.
    Word,
}

/// A send in flight, or waiting to be posted.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendEntry {
    pub(super) peer: PeerId,
    pub(super) remote: RemoteRail,
    /// The destination in the rail's book.
    pub(super) to: u32,
    pub(super) carries: Carries,
    pub(super) len: u16,
    pub(super) since: Time,
}

/// How large a port is, and how it is opened: the same for all rails of a transport.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Ops in flight.
    pub(super) ops: usize,
    /// Fragments on their way out.
    pub(super) sends: usize,
    /// Receives posted.
    pub(super) receives: usize,
    /// Entries of the queue; 0 = the provider's choice.
    pub(super) queue: usize,
    /// Whether the queue has a descriptor.
    pub(super) wait: Wait,
    /// Immediates take no receive, and that must be asked for.
    pub(super) unsolicited: bool,
    /// libfabric's own way between processes of one host is turned off: kvrail has its own, and says which it uses.
    pub(super) no_shared_memory: bool,
    /// Writes ask for `FI_DELIVERY_COMPLETE`.
    pub(super) delivery: bool,
    /// All but the last op of a batch carry `FI_MORE`.
    pub(super) more: bool,
}

impl Shape {
    /// Bytes of memory that a port of this shape takes, beside what the provider itself allocates.
    pub(super) const fn bytes(&self) -> usize {
        (self.sends + self.receives) * FRAGMENT_BYTES
            + Contexts::<OpEntry>::bytes(self.ops)
            + Contexts::<SendEntry>::bytes(self.sends)
            + Contexts::<()>::bytes(self.receives)
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

/// An open endpoint. Fields drop in this order: the endpoint first, so that nothing below it is in use any more.
pub(super) struct Port {
    endpoint: Endpoint,
    pub(super) queue: CompletionQueue,
    pub(super) addresses: AddressVector,
    /// Ended when the endpoint is closed.
    _registration: MemoryRegion,
    pub(super) ops: Contexts<OpEntry>,
    pub(super) sends: Contexts<SendEntry>,
    receives: Contexts<()>,
    /// Receives, then sends, [`FRAGMENT_BYTES`] each.
    memory: PrivateMemory,
    desc: *mut c_void,
    /// Receives that are not posted.
    unposted: Vec<u32>,
    /// Its address, for peers.
    pub(super) name: Vec<u8>,
    shape: Shape,
}

// SAFETY: the descriptor is the registration's, which goes where the port goes; all else is Send. No thread-bound state.
unsafe impl Send for Port {}

/// Whose a completion is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Op(u32),
    Send(u32),
    Receive(u32),
    Nobody,
}

impl Port {
    /// Opens one, ready to post. `key` is what the registration of messages asks for where keys are chosen here.
    pub(super) fn open(
        domain: &Domain,
        info: &Info,
        events: Option<&EventQueue>,
        shape: Shape,
        key: u64,
    ) -> Result<Self, PortError> {
        let queue = domain.completion_queue(shape.queue, shape.wait)?;
        let addresses = domain.address_vector(FI_AV_TABLE, 0)?;
        let endpoint = domain.endpoint(info)?;
        endpoint.bind_queue(&queue, abi::FI_TRANSMIT | abi::FI_RECV)?;
        endpoint.bind_addresses(&addresses)?;
        if let Some(events) = events
            && let Err(error) = endpoint.bind_events(events)
        {
            log::debug!("{}: no event queue for this endpoint: {error}", info.first().domain_name());
        }
        if shape.no_shared_memory
            && let Err(error) = endpoint.set_flag(abi::FI_OPT_SHARED_MEMORY_PERMITTED, false)
        {
            log::debug!("{}: shared memory cannot be turned off: {error}", info.first().domain_name());
        }
        if shape.unsolicited {
            endpoint.set_flag(abi::FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV, true)?;
        }
        endpoint.enable()?;
        let name = endpoint.name()?;

        let bytes = (shape.receives + shape.sends) * FRAGMENT_BYTES;
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
        // SAFETY: the memory is this port's, dropped after the registration, and only read and written through copies.
        let registration = unsafe { domain.register(&what) }?;
        let desc = registration.desc();
        let mut port = Self {
            endpoint,
            queue,
            addresses,
            _registration: registration,
            ops: Contexts::new(shape.ops),
            sends: Contexts::new(shape.sends),
            receives: Contexts::new(shape.receives),
            memory,
            desc,
            unposted: Vec::with_capacity(shape.receives),
            name,
            shape,
        };
        while let Ok(index) = port.receives.take(()) {
            port.unposted.push(index);
        }
        port.post_receives();
        Ok(port)
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whose completion a context stands for.
    #[inline]
    pub(super) fn owner(&self, context: *mut c_void) -> Owner {
        if let Some(index) = self.ops.index_of(context) {
            return Owner::Op(index);
        }
        if let Some(index) = self.receives.index_of(context) {
            return Owner::Receive(index);
        }
        self.sends.index_of(context).map_or(Owner::Nobody, Owner::Send)
    }

    /// A receive has ended: it is posted again by [`Port::post_receives`].
    #[inline]
    pub(super) fn received(&mut self, index: u32) {
        // A completion that comes twice for one receive must not post it twice: both would fill one buffer.
        if self.receives.release(index).is_some()
            && let Ok(again) = self.receives.take(())
        {
            debug_assert_eq!(again, index, "contexts are handed out last in, first out");
            self.unposted.push(again);
        }
    }

    /// Posts the receives that are not posted. What the provider does not take stays for the next call.
    #[inline]
    pub(super) fn post_receives(&mut self) {
        while let Some(&index) = self.unposted.last() {
            let at = self.memory.as_ptr().wrapping_add(index as usize * FRAGMENT_BYTES);
            let iov = libc::iovec { iov_base: at.cast(), iov_len: FRAGMENT_BYTES };
            let mut desc = self.desc;
            let message = fi_msg {
                msg_iov: &iov,
                desc: &mut desc,
                iov_count: 1,
                addr: abi::FI_ADDR_UNSPEC,
                context: self.receives.context(index),
                data: 0,
            };
            let more = if self.shape.more && self.unposted.len() > 1 { FI_MORE } else { 0 };
            // SAFETY: buffer `index` and its context belong to this receive alone until its completion came back; both
            // outlive the endpoint, which this port drops first.
            let result = unsafe { self.endpoint.receive_message(&message, FI_COMPLETION | more) };
            if outcome(result).is_err() {
                // Taken up again at the next poll; a queue that stays full has receives posted.
                break;
            }
            self.unposted.pop();
        }
    }

    /// Copies what came into a receive's buffer out of it.
    pub(super) fn message<'a>(&self, index: u32, len: usize, room: &'a mut [u8; FRAGMENT_BYTES]) -> &'a [u8] {
        let bytes = &mut room[..len.min(FRAGMENT_BYTES)];
        self.memory.read(index as usize * FRAGMENT_BYTES, bytes);
        bytes
    }

    /// Puts a fragment or a word into the buffer of a send that was taken.
    pub(super) fn fill(&self, index: u32, bytes: &[u8]) {
        self.memory.write((self.shape.receives + index as usize) * FRAGMENT_BYTES, bytes);
    }

    /// Posts a send whose buffer was filled. Results as of [`outcome`].
    pub(super) fn send(&self, index: u32, len: usize, to: fi_addr_t) -> isize {
        let at = self.memory.as_ptr().wrapping_add((self.shape.receives + index as usize) * FRAGMENT_BYTES);
        let iov = libc::iovec { iov_base: at.cast(), iov_len: len.min(FRAGMENT_BYTES) };
        let mut desc = self.desc;
        let message = fi_msg {
            msg_iov: &iov,
            desc: &mut desc,
            iov_count: 1,
            addr: to,
            context: self.sends.context(index),
            data: 0,
        };
        // SAFETY: the send's buffer and context are its own until its completion came back, and outlive the endpoint.
        unsafe { self.endpoint.send_message(&message, FI_COMPLETION) }
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
            self.endpoint.write_message(message, flags)
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
        self.described(what, to, context, 0, |message| unsafe { self.endpoint.read_message(message, flags) })
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
