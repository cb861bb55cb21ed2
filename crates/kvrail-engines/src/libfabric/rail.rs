//! One rail: an endpoint on a domain of its own, the memory registered there, and a context for everything in flight.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};

use kvrail::Memory;
use kvrail_sys::libfabric::abi::{
    FI_ADDR_UNSPEC, FI_AV_TABLE, FI_COMPLETION, FI_EAGAIN, FI_EAVAIL, FI_HMEM_SYSTEM, FI_MORE,
    FI_MR_VIRT_ADDR, FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV, FI_OPT_MAX_RMA_SIZE,
    FI_OPT_SHARED_MEMORY_PERMITTED, FI_READ, FI_RECV, FI_REMOTE_CQ_DATA, FI_REMOTE_READ, FI_REMOTE_WRITE,
    FI_RX_CQ_DATA, FI_SEND, FI_TRANSMIT, FI_WRITE, fi_addr_t, fi_cq_data_entry, fi_msg, fi_msg_rma,
    fi_rma_iov,
};
use kvrail_sys::libfabric::{
    AddressVector, CompletionQueue, Domain, Endpoint, EventQueue, Fabric, FabricError, Info, MemoryRegion,
    Registration, Wait, outcome,
};
use kvrail_transport::ofi::OpenError;
use kvrail_transport::ofi::status::{Family, Scope, decode};

use super::offer::{MESSAGE_BYTES, Message, RailOffer};
use crate::error::{EngineError, Kind};

/// Receives posted at most: messages, and immediates where they take one.
const RECEIVES_MAX: usize = 8192;
/// Messages on their way out.
const SENDS_MAX: usize = 32;
/// Messages that wait for their way out.
const OUTBOX_MAX: usize = 4096;
/// Immediates that the queue has room for beside everything else, where they take no receive.
pub(super) const IMMEDIATES: usize = 8192;
/// Operations in flight at most: what kvrail's own transport has.
pub(super) const DEPTH_MAX: usize = 2048;
/// Completions taken at once.
const ENTRIES: usize = 128;

/// What `FI_CONTEXT2` asks for: eight words, on a cache line of their own. The provider's while an operation is in flight.
#[repr(C, align(64))]
struct Room(UnsafeCell<[usize; 8]>);

const ROOM_BYTES: usize = size_of::<Room>();
const _: () = assert!(ROOM_BYTES == 64, "a context is found by a shift");

/// One block's operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub(super) local: *mut c_void,
    /// From the beginning of the peer's memory.
    pub(super) remote: u64,
    pub(super) bytes: usize,
}

// SAFETY: an address, which is only given to the provider; who posts it answers for the memory.
unsafe impl Send for Op {}
// SAFETY: as above.
unsafe impl Sync for Op {}

/// Where operations go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination {
    pub(super) address: fi_addr_t,
    pub(super) key: u64,
    pub(super) base: u64,
}

/// What came back from a look at the queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// An operation of this flight has completed.
    Done(u32),
    /// A write with this immediate has arrived.
    Immediate(u32),
    Message(Message),
}

/// A rail. The endpoint goes before the registrations, and those before the memory of messages and the contexts that a
/// provider may write to; what is opened on something holds it.
pub(super) struct Rail {
    endpoint: Endpoint,
    queue: CompletionQueue,
    addresses: AddressVector,
    _events: Option<EventQueue>,
    region: MemoryRegion,
    message_region: MemoryRegion,
    name: String,
    family: Family,
    /// One slot for each receive, then one for each send.
    messages: Memory,
    /// One for each operation, each receive, each send.
    rooms: Box<[Room]>,
    depth: usize,
    receives: usize,
    /// Contexts of operations that are not in flight; the flights of those that are.
    free: Vec<u32>,
    flights: Box<[u32]>,
    free_sends: Vec<u32>,
    outbox: VecDeque<(fi_addr_t, Message)>,
    /// The last operation that was taken asked for no doorbell.
    is_open: bool,
    entries: Box<[fi_cq_data_entry]>,
    base: u64,
    pub(super) op_bytes_max: usize,
}

// SAFETY: the rooms and descriptors go where the rail goes; libfabric's objects are Send. No thread-bound state.
unsafe impl Send for Rail {}

/// What a rail is opened with.
pub(super) struct Setup<'a> {
    pub(super) name: &'a str,
    pub(super) provider: &'a str,
    pub(super) info: &'a Info,
    pub(super) memory: &'a Memory,
    pub(super) depth: usize,
    /// Two of these are taken, where keys are chosen here.
    pub(super) key: u64,
}

impl Rail {
    /// Opens it, registers the memory and posts receives.
    pub(super) fn open(setup: &Setup<'_>) -> Result<Self, EngineError> {
        let offer = setup.info.first();
        let failed = |error: FabricError| call_failed(setup.name, &error);
        let sends = SENDS_MAX.min(offer.tx_size() / 4).max(1);
        let depth = setup.depth.min(offer.tx_size().saturating_sub(sends)).max(1);
        let receives = offer.rx_size().clamp(1, RECEIVES_MAX);
        let fabric = Fabric::open(setup.info).map_err(failed)?;
        // SAFETY: all that stands on the domain belongs to this rail, which belongs to one lane behind a lock: one thread at a
        // time, which is what the strictest level asks for.
        let domain = unsafe { fabric.domain(setup.info) }.map_err(failed)?;
        let queue =
            domain.completion_queue(depth + sends + receives + IMMEDIATES, Wait::None).map_err(failed)?;
        let addresses = domain.address_vector(FI_AV_TABLE, 0).map_err(failed)?;
        let endpoint = domain.endpoint(setup.info).map_err(failed)?;
        endpoint.bind_queue(&queue, FI_TRANSMIT | FI_RECV).map_err(failed)?;
        endpoint.bind_addresses(&addresses).map_err(failed)?;
        // Without a queue of events `efa` ends the process on errors that belong to no operation. Others need none.
        let events = fabric.event_queue(0).ok().filter(|events| endpoint.bind_events(events).is_ok());
        if offer.provider() == "efa" {
            // The NIC is measured, not shared memory beside it. Releases before 1.18 have neither.
            let _ = endpoint.set_flag(FI_OPT_SHARED_MEMORY_PERMITTED, false);
        }
        if setup.provider == "efa-direct" && offer.mode() & FI_RX_CQ_DATA == 0 {
            endpoint.set_flag(FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV, true).map_err(failed)?;
        }
        endpoint.enable().map_err(failed)?;
        let longest = endpoint.size(FI_OPT_MAX_RMA_SIZE).ok().filter(|&bytes| bytes > 0);
        let op_bytes_max = longest.unwrap_or_else(|| offer.max_msg_bytes()).max(1);

        let messages = Memory::private((receives + sends) * MESSAGE_BYTES);
        let messages =
            messages.map_err(|e| EngineError::new(Kind::Environment, format!("{}: {e}", setup.name)))?;
        let remote = FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
        let region = register(&domain, setup.memory, remote, setup.key).map_err(failed)?;
        let message_region =
            register(&domain, &messages, FI_SEND | FI_RECV, setup.key + 1).map_err(failed)?;
        let base = if offer.mr_mode() & FI_MR_VIRT_ADDR == 0 { 0 } else { setup.memory.base() };
        let mut rail = Self {
            endpoint,
            queue,
            addresses,
            _events: events,
            region,
            message_region,
            name: setup.name.into(),
            family: Family::of(setup.provider),
            messages,
            rooms: (0..depth + receives + sends).map(|_| Room(UnsafeCell::new([0; 8]))).collect(),
            depth,
            receives,
            free: (0..depth as u32).rev().collect(),
            flights: vec![0; depth].into(),
            free_sends: (0..sends as u32).rev().collect(),
            outbox: VecDeque::new(),
            is_open: false,
            entries: vec![fi_cq_data_entry::default(); ENTRIES].into(),
            base,
            op_bytes_max,
        };
        for receive in 0..receives {
            rail.post_receive(receive, receive + 1 < receives)?;
        }
        Ok(rail)
    }

    /// What the other side must know of it.
    pub(super) fn offer(&self) -> Result<RailOffer, EngineError> {
        let address = self.endpoint.name().map_err(|error| call_failed(&self.name, &error))?;
        Ok(RailOffer { address, key: self.region.key(), base: self.base })
    }

    /// Learns a rail of the other side.
    pub(super) fn meet(&self, offer: &RailOffer) -> Result<Destination, EngineError> {
        let address =
            self.addresses.insert(&offer.address).map_err(|error| call_failed(&self.name, &error))?;
        Ok(Destination { address, key: offer.key, base: offer.base })
    }

    /// Whether the provider would emulate reads or writes by messages; none where it does not say.
    pub(super) fn flag(&self, option: c_int) -> Option<bool> {
        self.endpoint.flag(option).ok()
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Operations that are in flight, of whatever posting.
    pub(super) fn in_flight(&self) -> usize {
        self.depth - self.free.len()
    }

    /// Posts operations under one doorbell, from the first; how many were taken.
    #[inline]
    pub(super) fn post(
        &mut self,
        read: bool,
        ops: &[Op],
        to: Destination,
        flight: u32,
        (flags, immediate): (u64, u32),
    ) -> Result<usize, EngineError> {
        let count = ops.len().min(self.free.len());
        for (i, op) in ops[..count].iter().enumerate() {
            // What was refused after others that wait for a doorbell must ring it.
            let more = if i + 1 < count && !(i == 0 && self.is_open) { FI_MORE } else { 0 };
            let Some(&context) = self.free.last() else { return Ok(i) };
            let local = libc::iovec { iov_base: op.local, iov_len: op.bytes };
            let remote = fi_rma_iov { addr: to.base + op.remote, len: op.bytes, key: to.key };
            let mut desc = self.region.desc();
            let message = fi_msg_rma {
                msg_iov: &raw const local,
                desc: &raw mut desc,
                iov_count: 1,
                addr: to.address,
                rma_iov: &raw const remote,
                rma_iov_count: 1,
                context: self.context(context as usize),
                data: immediate.into(),
            };
            let posted = if read {
                // SAFETY: the operation was checked against the memory that is registered under this descriptor, which outlives
                // the endpoint; the context is in no other use until its completion.
                unsafe { self.endpoint.read_message(&raw const message, flags | more) }
            } else {
                // SAFETY: as above.
                unsafe { self.endpoint.write_message(&raw const message, flags | more) }
            };
            match outcome(posted) {
                Ok(()) => {
                    self.free.pop();
                    self.flights[context as usize] = flight;
                    self.is_open = more != 0;
                }
                Err(FI_EAGAIN) => return Ok(i),
                Err(code) => return Err(self.refused(code, if read { "fi_readmsg" } else { "fi_writemsg" })),
            }
        }
        Ok(count)
    }

    /// Sends a message, as soon as the provider takes it.
    pub(super) fn send(&mut self, to: fi_addr_t, message: Message) -> Result<(), EngineError> {
        if self.outbox.len() >= OUTBOX_MAX {
            let what = format!("rail {}: {OUTBOX_MAX} messages wait and the provider takes none", self.name);
            return Err(EngineError::new(Kind::Peer, what));
        }
        self.outbox.push_back((to, message));
        self.send_some()
    }

    fn send_some(&mut self) -> Result<(), EngineError> {
        while let (Some(&(to, message)), Some(&slot)) = (self.outbox.front(), self.free_sends.last()) {
            let at = self.receives + slot as usize;
            let written = self.messages.write(at * MESSAGE_BYTES, &message.encode());
            debug_assert!(written.is_ok(), "{written:?}");
            let (buffer, context) = (self.buffer(at), self.context(self.depth + at));
            let desc = self.message_region.desc();
            // SAFETY: the slot is this message's until its completion, and its registration lives as long as the endpoint.
            let posted = unsafe { self.endpoint.send(buffer, MESSAGE_BYTES, desc, to, context) };
            match outcome(posted) {
                Ok(()) => {
                    self.free_sends.pop();
                    self.outbox.pop_front();
                    // A send rings the doorbell for what was posted before it.
                    self.is_open = false;
                }
                Err(FI_EAGAIN) => return Ok(()),
                Err(code) => return Err(self.refused(code, "fi_send")),
            }
        }
        Ok(())
    }

    /// Takes what has come, posts again the receives that were used, and sends what waits; whether there was anything.
    #[inline]
    pub(super) fn poll(&mut self, mut take: impl FnMut(Event)) -> Result<bool, EngineError> {
        if !self.outbox.is_empty() {
            self.send_some()?;
        }
        // Kept, because clearing them costs more than a look at an empty queue.
        let mut entries = std::mem::take(&mut self.entries);
        let read = self.queue.read(&mut entries);
        let taken = self.take(read, &entries, &mut take);
        self.entries = entries;
        taken
    }

    #[inline]
    fn take(
        &mut self,
        read: isize,
        entries: &[fi_cq_data_entry],
        take: &mut impl FnMut(Event),
    ) -> Result<bool, EngineError> {
        let Ok(count) = usize::try_from(read) else {
            return match -read {
                code if code == FI_EAGAIN as isize => Ok(false),
                code if code == FI_EAVAIL as isize => self.failure(),
                _ => Err(call_failed(&self.name, &self.endpoint.library().error("fi_cq_read", read))),
            };
        };
        let mut used = [0_u16; ENTRIES];
        let mut receives = 0;
        for entry in &entries[..count] {
            let immediate = entry.flags & FI_REMOTE_CQ_DATA != 0;
            let index = self.index_of(entry.op_context);
            match index {
                Some(op) if op < self.depth => {
                    self.free.push(op as u32);
                    take(Event::Done(self.flights[op]));
                    continue;
                }
                Some(at) if at < self.depth + self.receives => {
                    let receive = at - self.depth;
                    used[receives] = receive as u16;
                    receives += 1;
                    if !immediate && let Some(message) = self.message(receive, entry.len) {
                        take(Event::Message(message));
                    }
                }
                Some(at) => self.free_sends.push((at - self.depth - self.receives) as u32),
                // Where the provider takes no receive for an immediate, nothing of ours comes back with it.
                None => {}
            }
            if immediate {
                take(Event::Immediate(entry.data as u32));
            }
        }
        for (i, &receive) in used[..receives].iter().enumerate() {
            self.post_receive(receive.into(), i + 1 < receives)?;
        }
        Ok(count > 0)
    }

    fn message(&self, receive: usize, len: usize) -> Option<Message> {
        let mut bytes = [0; MESSAGE_BYTES];
        self.messages.read(receive * MESSAGE_BYTES, &mut bytes).ok()?;
        Message::decode(bytes.get(..len)?)
    }

    fn post_receive(&mut self, receive: usize, more: bool) -> Result<(), EngineError> {
        let buffer = libc::iovec { iov_base: self.buffer(receive), iov_len: MESSAGE_BYTES };
        let mut desc = self.message_region.desc();
        let message = fi_msg {
            msg_iov: &raw const buffer,
            desc: &raw mut desc,
            iov_count: 1,
            addr: FI_ADDR_UNSPEC,
            context: self.context(self.depth + receive),
            data: 0,
        };
        let flags = FI_COMPLETION | if more { FI_MORE } else { 0 };
        // SAFETY: the slot and the context are this receive's, which is not posted, and live as long as the endpoint.
        let posted = unsafe { self.endpoint.receive_message(&raw const message, flags) };
        outcome(posted).map_err(|code| self.refused(code, "fi_recvmsg"))
    }

    /// Address of a slot of messages.
    fn buffer(&self, slot: usize) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut((self.messages.base() as usize) + slot * MESSAGE_BYTES)
    }

    #[inline]
    fn context(&self, index: usize) -> *mut c_void {
        self.rooms[index].0.get().cast()
    }

    /// Which of the rooms a context is; none when it is none of them.
    #[inline]
    fn index_of(&self, context: *mut c_void) -> Option<usize> {
        let offset = context.addr().wrapping_sub(self.rooms.as_ptr().addr());
        let index = offset / ROOM_BYTES;
        (index < self.rooms.len() && offset.is_multiple_of(ROOM_BYTES)).then_some(index)
    }

    /// Reads the failure that the queue announced. Of a message that could not be sent it is the peer's matter: who waits for
    /// it has a deadline.
    #[cold]
    fn failure(&mut self) -> Result<bool, EngineError> {
        let failure = self.queue.read_failure().map_err(|error| call_failed(&self.name, &error))?;
        let Some(failure) = failure else { return Ok(false) };
        let decoded = decode(self.family, failure.entry.err, failure.entry.prov_errno);
        let said = format!("{}; {}", failure.text, failure.provider_text);
        if let Some(at) = self.index_of(failure.entry.op_context)
            && at >= self.depth
        {
            log::warn!("rail {}: a message: {decoded} ({said})", self.name);
            match at - self.depth {
                receive if receive < self.receives => self.post_receive(receive, false)?,
                send => self.free_sends.push((send - self.receives) as u32),
            }
            return Ok(true);
        }
        let kind = if decoded.scope == Scope::Rail { Kind::Environment } else { Kind::Peer };
        Err(EngineError::new(kind, format!("rail {}: {decoded} ({said})", self.name)))
    }

    #[cold]
    fn refused(&self, code: c_int, call: &'static str) -> EngineError {
        call_failed(&self.name, &self.endpoint.library().error(call, -(code as isize)))
    }
}

fn register(
    domain: &Domain,
    memory: &Memory,
    access: u64,
    requested_key: u64,
) -> Result<MemoryRegion, FabricError> {
    let what = Registration {
        address: std::ptr::with_exposed_provenance_mut(memory.base() as usize),
        len: memory.len(),
        access,
        requested_key,
        iface: FI_HMEM_SYSTEM,
        device: 0,
        dmabuf: None,
    };
    // SAFETY: the rail, or who opens it, holds a share of the memory for longer than the registration; nobody forms references
    // into it.
    unsafe { domain.register(&what) }
}

/// A call that failed, with what usually helps.
pub(super) fn call_failed(rail: &str, error: &FabricError) -> EngineError {
    let open = OpenError::Call {
        what: format!("{} of rail {rail}", error.call),
        errno: error.code,
        words: error.text.clone(),
    };
    open_failed(&open)
}

pub(super) fn open_failed(error: &OpenError) -> EngineError {
    let kind = if matches!(error, OpenError::Knob { .. }) { Kind::Usage } else { Kind::Environment };
    error.hints().into_iter().fold(EngineError::new(kind, error.to_string()), EngineError::hint)
}
