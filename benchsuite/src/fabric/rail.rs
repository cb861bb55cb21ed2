//! One rail: an endpoint on its own domain, the pool registered there, and a context for every operation in flight.

use std::ffi::{c_int, c_void};

use kvrail_sys::libfabric::abi::{
    FI_AV_TABLE, FI_EAGAIN, FI_EAVAIL, FI_HMEM_SYSTEM, FI_MORE, FI_MR_VIRT_ADDR,
    FI_OPT_SHARED_MEMORY_PERMITTED, FI_READ, FI_RECV, FI_REMOTE_CQ_DATA, FI_REMOTE_READ, FI_REMOTE_WRITE,
    FI_SEND, FI_TRANSMIT, FI_WRITE, fi_addr_t, fi_context2, fi_cq_data_entry, fi_msg, fi_msg_rma, fi_rma_iov,
};
use kvrail_sys::libfabric::{
    AddressVector, CompletionQueue, Endpoint, EventQueue, Fabric, FabricError, Info, Library, MemoryRegion,
    Registration, Wait, outcome,
};

use super::RailOffer;
use crate::error::LimitError;
use crate::memory::Pool;
use crate::workload::Op;

/// Receives posted at most: immediates and messages of one byte.
const RECEIVES_MAX: usize = 8192;
/// Bytes of a receive: an immediate takes none, a message is one byte.
const MESSAGE_BYTES: usize = 64;
/// Completions taken at once.
const ENTRIES: usize = 64;

/// What a look at the queue found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Own operations that completed.
    pub(super) operations: usize,
    /// Writes with an immediate that arrived.
    pub(super) immediates: usize,
    /// Messages that arrived.
    pub(super) messages: usize,
}

impl Found {
    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// The other end.
#[derive(Clone, Copy, Debug)]
struct Peer {
    address: fi_addr_t,
    key: u64,
    base: u64,
}

/// One block to be moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) local: *mut c_void,
    /// Bytes from the beginning of the peer's pool.
    pub(super) remote_offset: u64,
    pub(super) bytes: usize,
}

/// A rail. What is opened on it holds what it stands on, so the order of the fields does not matter but for memory: the
/// endpoint and the registrations go before the messages and contexts that a NIC may still write to.
#[derive(Debug)]
pub(super) struct Rail<'a> {
    index: usize,
    endpoint: Opened<Endpoint>,
    queue: Opened<CompletionQueue>,
    addresses: Opened<AddressVector>,
    _events: Option<Opened<EventQueue>>,
    pool_region: Opened<MemoryRegion>,
    message_region: Opened<MemoryRegion>,
    fabric: Opened<Fabric>,
    /// One slot a receive, the last one is sent from.
    messages: Pool,
    /// One a operation in flight, then one a receive, the last one is the message's that is sent.
    contexts: Pool,
    depth: usize,
    receives: usize,
    /// Contexts of operations that are not in flight.
    free: Vec<usize>,
    /// A message is being sent.
    sending: bool,
    peer: Option<Peer>,
    base: u64,
    pool: &'a Pool,
}

/// For objects that have nothing to print.
struct Opened<T>(T);

impl<T> std::fmt::Debug for Opened<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::any::type_name::<T>())
    }
}

impl<'a> Rail<'a> {
    /// Opens the rail of an offer, registers the pool and posts receives.
    pub(super) fn open(
        index: usize,
        info: &Info,
        depth: Option<usize>,
        fd: bool,
        pool: &'a Pool,
    ) -> Result<Self, LimitError> {
        let offer = info.first();
        let failed = |error: FabricError| failed(index, &error);
        let depth = depth.unwrap_or(usize::MAX).min(offer.tx_size().max(1));
        let receives = offer.rx_size().clamp(1, RECEIVES_MAX);
        let fabric = Fabric::open(info).map_err(failed)?;
        // SAFETY: one thread alone uses all of it, in this process that has no other.
        let domain = unsafe { fabric.domain(info) }.map_err(failed)?;
        let entries = depth + receives + 1;
        // A provider without descriptors is slept on by the clock.
        let queue = match fd.then(|| domain.completion_queue(entries, Wait::Fd)) {
            Some(Ok(queue)) => queue,
            _ => domain.completion_queue(entries, Wait::None).map_err(failed)?,
        };
        let addresses = domain.address_vector(FI_AV_TABLE, 1).map_err(failed)?;
        let endpoint = domain.endpoint(info).map_err(failed)?;
        endpoint.bind_queue(&queue, FI_TRANSMIT | FI_RECV).map_err(failed)?;
        endpoint.bind_addresses(&addresses).map_err(failed)?;
        let mut events = None;
        if offer.provider() == "efa" {
            // Without a queue of events efa ends the process on errors that belong to no operation.
            let queue = fabric.event_queue(0).map_err(failed)?;
            endpoint.bind_events(&queue).map_err(failed)?;
            events = Some(Opened(queue));
            // The NIC is measured, not shared memory beside it. Releases before 1.18 lack the option and the shortcut's need.
            let _ = endpoint.set_flag(FI_OPT_SHARED_MEMORY_PERMITTED, false);
        }
        endpoint.enable().map_err(failed)?;

        let messages = Pool::map(None, receives + 1, MESSAGE_BYTES)?;
        let contexts = Pool::map(None, depth + receives + 1, size_of::<fi_context2>())?;
        let register = |memory: &Pool, access, requested_key| {
            let what = Registration {
                address: memory.slot(0),
                len: memory.bytes(),
                access,
                requested_key,
                iface: FI_HMEM_SYSTEM,
                device: 0,
                dmabuf: None,
            };
            // SAFETY: the mapping outlives the registration: the pool is borrowed for as long as the rail lives, and the
            // rail's own memory is dropped after its registration. It is touched through raw pointers only.
            unsafe { domain.register(&what) }.map_err(failed)
        };
        let remote = FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
        // Keys are the caller's where the provider does not choose them; each rail has a domain, but not every provider keeps
        // the keys of domains apart.
        let key = 2 * index as u64 + 1;
        let pool_region = register(pool, remote, key)?;
        let message_region = register(&messages, FI_SEND | FI_RECV, key + 1)?;
        let base = if offer.mr_mode() & FI_MR_VIRT_ADDR == 0 { 0 } else { pool.address() as u64 };
        let mut rail = Self {
            index,
            endpoint: Opened(endpoint),
            queue: Opened(queue),
            addresses: Opened(addresses),
            _events: events,
            pool_region: Opened(pool_region),
            message_region: Opened(message_region),
            fabric: Opened(fabric),
            messages,
            contexts,
            depth,
            receives,
            free: (0..depth).collect(),
            sending: false,
            peer: None,
            base,
            pool,
        };
        for receive in 0..receives {
            rail.post_receive(receive, receive + 1 < receives)?;
        }
        Ok(rail)
    }

    pub(super) fn offer(&self) -> Result<RailOffer, LimitError> {
        let address = self.endpoint.0.name().map_err(|error| failed(self.index, &error))?;
        Ok(RailOffer { address, key: self.pool_region.0.key(), base: self.base })
    }

    pub(super) fn meet(&mut self, offer: &RailOffer) -> Result<(), LimitError> {
        let address = self.addresses.0.insert(&offer.address).map_err(|error| failed(self.index, &error))?;
        self.peer = Some(Peer { address, key: offer.key, base: offer.base });
        Ok(())
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Operations that may be posted now.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    pub(super) fn fabric(&self) -> &Fabric {
        &self.fabric.0
    }

    pub(super) fn queue(&self) -> &CompletionQueue {
        &self.queue.0
    }

    /// Posts one block's operation; false when the provider takes none now. `more`: another one follows at once.
    pub(super) fn post(&mut self, op: Op, block: Block, flags: u64, more: bool) -> Result<bool, LimitError> {
        let (Some(peer), Some(&context)) = (self.peer, self.free.last()) else { return Ok(false) };
        debug_assert!(block.remote_offset as usize + block.bytes <= self.pool.bytes());
        let local = libc::iovec { iov_base: block.local, iov_len: block.bytes };
        let remote = fi_rma_iov { addr: peer.base + block.remote_offset, len: block.bytes, key: peer.key };
        let mut desc = self.pool_region.0.desc();
        let message = fi_msg_rma {
            msg_iov: &raw const local,
            desc: &raw mut desc,
            iov_count: 1,
            addr: peer.address,
            rma_iov: &raw const remote,
            rma_iov_count: 1,
            context: self.contexts.slot(context),
            data: self.index as u64,
        };
        let flags = if more { flags | FI_MORE } else { flags };
        let posted = match op {
            // SAFETY: the block lies in the pool that the rail borrows, registered with this descriptor; the context is not in
            // use by another operation and lives as long as the endpoint.
            Op::Read => unsafe { self.endpoint.0.read_message(&raw const message, flags) },
            // SAFETY: as above.
            Op::Write => unsafe { self.endpoint.0.write_message(&raw const message, flags) },
        };
        match outcome(posted) {
            Ok(()) => {
                self.free.pop();
                Ok(true)
            }
            Err(code) => self.refused(code, "posting a block"),
        }
    }

    /// Sends a message of one byte; false when the provider takes none now.
    pub(super) fn send(&mut self) -> Result<bool, LimitError> {
        let (Some(peer), false) = (self.peer, self.sending) else { return Ok(false) };
        let (buffer, context) =
            (self.messages.slot(self.receives), self.contexts.slot(self.depth + self.receives));
        let desc = self.message_region.0.desc();
        // SAFETY: the slot is for sending only, one message at a time, and its registration lives as long as the endpoint.
        let posted = unsafe { self.endpoint.0.send(buffer, 1, desc, peer.address, context) };
        match outcome(posted) {
            Ok(()) => {
                self.sending = true;
                Ok(true)
            }
            Err(code) => self.refused(code, "sending a message"),
        }
    }

    /// Takes what has completed, and posts again the receives that were used.
    pub(super) fn poll(&mut self) -> Result<Found, LimitError> {
        let mut entries = [fi_cq_data_entry::default(); ENTRIES];
        let read = self.queue.0.read(&mut entries);
        let Ok(count) = usize::try_from(read) else {
            return match -read {
                code if code == FI_EAGAIN as isize => Ok(Found::default()),
                code if code == FI_EAVAIL as isize => Err(self.failure()),
                _ => Err(failed(self.index, &self.library().error("fi_cq_read", read))),
            };
        };
        let mut found = Found::default();
        let mut used = [0_usize; ENTRIES];
        let mut receives = 0;
        for entry in &entries[..count] {
            let immediate = entry.flags & FI_REMOTE_CQ_DATA != 0;
            let context = (entry.op_context as usize).checked_sub(self.contexts.address());
            let context = context.map(|bytes| bytes / size_of::<fi_context2>());
            match context.filter(|_| !entry.op_context.is_null()) {
                Some(context) if context < self.depth => {
                    self.free.push(context);
                    found.operations += 1;
                }
                Some(context) if context < self.depth + self.receives => {
                    used[receives] = context - self.depth;
                    receives += 1;
                    found.immediates += usize::from(immediate);
                    found.messages += usize::from(!immediate);
                }
                Some(context) if context == self.depth + self.receives => self.sending = false,
                // Where the provider takes no receive for an immediate, nothing of ours comes back with it.
                _ => found.immediates += usize::from(immediate),
            }
        }
        for (at, &receive) in used[..receives].iter().enumerate() {
            self.post_receive(receive, at + 1 < receives)?;
        }
        Ok(found)
    }

    fn post_receive(&mut self, receive: usize, more: bool) -> Result<(), LimitError> {
        let buffer = libc::iovec { iov_base: self.messages.slot(receive), iov_len: MESSAGE_BYTES };
        let mut desc = self.message_region.0.desc();
        let message = fi_msg {
            msg_iov: &raw const buffer,
            desc: &raw mut desc,
            iov_count: 1,
            addr: kvrail_sys::libfabric::abi::FI_ADDR_UNSPEC,
            context: self.contexts.slot(self.depth + receive),
            data: 0,
        };
        // SAFETY: the slot and the context are this receive's, which is not posted, and live as long as the endpoint.
        let posted =
            unsafe { self.endpoint.0.receive_message(&raw const message, if more { FI_MORE } else { 0 }) };
        outcome(posted).map_err(|code| self.code(code, "posting a receive"))
    }

    fn refused(&self, code: c_int, doing: &'static str) -> Result<bool, LimitError> {
        if code == FI_EAGAIN { Ok(false) } else { Err(self.code(code, doing)) }
    }

    fn code(&self, code: c_int, doing: &'static str) -> LimitError {
        LimitError::Fabric { doing, rail: self.index, code: code.into(), says: self.library().strerror(code) }
    }

    fn failure(&self) -> LimitError {
        match self.queue.0.read_failure() {
            Ok(Some(failure)) => LimitError::Completion {
                rail: self.index,
                error: failure.entry.err,
                provider_error: failure.entry.prov_errno,
                says: format!("{}; {}", failure.text, failure.provider_text),
            },
            Ok(None) => self.code(FI_EAVAIL, "reading a failure"),
            Err(error) => failed(self.index, &error),
        }
    }

    fn library(&self) -> &Library {
        self.endpoint.0.library()
    }
}

fn failed(rail: usize, error: &FabricError) -> LimitError {
    LimitError::Fabric { doing: error.call, rail, code: error.code.into(), says: error.text.clone() }
}
