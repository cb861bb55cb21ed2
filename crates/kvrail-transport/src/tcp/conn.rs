//! One connection: a socket, what arrives, what is to be sent, and the conversation between.

use std::io;
use std::os::fd::AsRawFd;

use kvrail_core::id::{LocalRail, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::Event;
use socket2::Socket;

use super::config::RailCounters;
use super::frame::{Asked, FRAME_BYTES_MAX, FRAME_OPS_MAX, Head, Refusal};
use super::inbox::{Broken, Effect, Inbox, Scratch, Surroundings};
use super::outbox::{Outbox, Sent};
use super::region::Regions;
use super::requests::{Requests, Serving};
use super::sys;

/// Bytes that are encoded ahead of what the kernel takes.
const FILL_BYTES: usize = 1 << 20;
/// Payload of one frame that this side makes, unless a single op is longer.
const PAYLOAD_BYTES: u32 = 1 << 20;
/// Segments that are encoded ahead.
const FILL_SEGMENTS: usize = 256;

const _: () = assert!(PAYLOAD_BYTES <= FRAME_BYTES_MAX);

/// A connection's place in the table, with its tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct ConnKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl ConnKey {
    /// As epoll carries it. The highest bit stays free for listeners.
    pub(crate) fn to_u64(self) -> u64 {
        u64::from(self.index) | u64::from(self.generation & 0x7fff_ffff) << 32
    }

    pub(crate) fn from_u64(raw: u64) -> Self {
        Self { index: raw as u32, generation: (raw >> 32) as u32 }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The kernel is connecting.
    Connecting,
    /// Waiting for the other side's greeting or answer.
    Greeting,
    /// Both sides may send frames.
    Open,
}

/// One connection.
pub(crate) struct Conn {
    pub(crate) socket: Socket,
    pub(crate) state: State,
    /// This side dialed it.
    pub(crate) dialed: bool,
    /// The dialer's number for it.
    pub(crate) number: u64,
    /// The instance at the other end, once known.
    pub(crate) instance: u128,
    /// The peer and route whose requests this side sends here.
    pub(crate) bound: Option<(usize, Route)>,
    /// The rail that it counts for, and that its messages arrive on.
    pub(crate) rail: LocalRail,
    pub(crate) remote_rail: u16,
    /// Connecting or greeting ends then.
    pub(crate) deadline: Time,
    /// What epoll was asked for.
    pub(crate) interest: u32,
    /// The kernel's buffer is full: wait for epoll.
    pub(crate) blocked: bool,
    /// In the transport's list of connections that have something to send.
    pub(crate) dirty: bool,
    /// In the transport's list of connections that are asked before epoll is, until then.
    pub(crate) hot: Option<Time>,
    pub(crate) requests: Requests,
    pub(crate) serving: Serving,
    pub(crate) outbox: Outbox,
    inbox: Inbox,
    reads_turn: bool,
}

impl Conn {
    pub(crate) fn new(socket: Socket, dialed: bool, deadline: Time) -> Self {
        Self {
            socket,
            state: if dialed { State::Connecting } else { State::Greeting },
            dialed,
            number: 0,
            instance: 0,
            bound: None,
            rail: LocalRail(0),
            remote_rail: 0,
            deadline,
            interest: 0,
            blocked: false,
            dirty: false,
            hot: None,
            requests: Requests::default(),
            serving: Serving::default(),
            outbox: Outbox::default(),
            inbox: if dialed { Inbox::dialed() } else { Inbox::accepted() },
            reads_turn: false,
        }
    }

    /// Receives what is there, and returns how many bytes that was.
    pub(crate) fn receive(
        &mut self,
        regions: &Regions,
        scratch: &mut Scratch,
        counters: &mut RailCounters,
        events: &mut Vec<Event>,
        effects: &mut Vec<Effect>,
    ) -> Result<usize, Broken> {
        let mut surroundings = Surroundings {
            regions,
            scratch,
            requests: &mut self.requests,
            serving: &mut self.serving,
            counters,
            events,
            effects,
            rail: self.rail,
        };
        self.inbox.receive(self.socket.as_raw_fd(), &mut surroundings)
    }

    /// Something waits to be sent.
    pub(crate) fn wants_to_send(&self) -> bool {
        let more = self.requests.wants_to_send() || self.serving.wants_to_send();
        !self.outbox.is_empty() || self.state == State::Open && more
    }

    /// Sends until nothing is left, or the kernel takes no more.
    pub(crate) fn transmit(
        &mut self,
        regions: &Regions,
        scratch: &mut Scratch,
        counters: &mut RailCounters,
    ) -> io::Result<()> {
        let fd = self.socket.as_raw_fd();
        loop {
            if self.state == State::Open {
                self.fill(regions, counters);
            }
            if self.outbox.is_empty() {
                self.blocked = false;
                self.serving.shrink();
                return Ok(());
            }
            let sent = self.outbox.send(fd, regions, &mut scratch.iovecs, &mut counters.tx_bytes)?;
            if sent == Sent::Blocked {
                self.blocked = true;
                return Ok(());
            }
        }
    }

    /// Encodes frames: answers first, because the peer waits for them; then messages; then reads, which cost little
    /// here; then data, in turns.
    fn fill(&mut self, regions: &Regions, counters: &mut RailCounters) {
        while let Some(head) = self.serving.control.pop_front() {
            self.outbox.push_encoded(&head.encode());
        }
        while self.outbox.bytes() < FILL_BYTES && self.outbox.segments() < FILL_SEGMENTS {
            if let Some(message) = self.requests.messages_queued.pop_front() {
                self.requests.messages_sent.push_back(message.len() as u32);
                self.outbox.push_encoded(&Head::Message { bytes: message.len() as u32 }.encode());
                self.outbox.push_owned(message);
                counters.messages_tx += 1;
            } else if !self.requests.reads_queued.is_empty() {
                self.fill_reads();
            } else if !self.requests.writes_queued.is_empty()
                && (!self.reads_turn || self.serving.reads.is_empty())
            {
                self.fill_writes();
                self.reads_turn = true;
            } else if !self.serving.reads.is_empty() {
                self.fill_read_data(regions, counters);
                self.reads_turn = false;
            } else {
                break;
            }
        }
    }

    fn fill_reads(&mut self) {
        let requests = &mut self.requests;
        let ops = requests.reads_queued.len().min(FRAME_OPS_MAX);
        let bytes = requests.reads_queued.iter().take(ops).map(|op| op.remote.len).sum();
        self.outbox.push_encoded(&Head::Read { ops: ops as u16, bytes }.encode());
        for op in requests.reads_queued.drain(..ops) {
            self.outbox.push_encoded(&op.remote.encode());
            requests.reads_sent.push_back(op);
        }
    }

    fn fill_writes(&mut self) {
        let requests = &mut self.requests;
        let (ops, bytes) = frame_of(requests.writes_queued.iter().map(|op| op.remote.len));
        self.outbox.push_encoded(&Head::Write { ops: ops as u16, bytes }.encode());
        for op in requests.writes_queued.iter().take(ops) {
            self.outbox.push_encoded(&op.remote.encode());
        }
        for op in requests.writes_queued.drain(..ops) {
            self.outbox.push_memory(op.local);
            requests.writes_sent.push_back(op);
        }
    }

    /// Answers the oldest reads: a run of good ones with their data, a run of bad ones with a refusal.
    fn fill_read_data(&mut self, regions: &Regions, counters: &mut RailCounters) {
        let reads = &mut self.serving.reads;
        let good = reads.iter().take_while(|slice| regions.resolve(slice).is_some());
        let (ops, bytes) = frame_of(good.map(|slice| slice.len));
        if ops > 0 {
            self.outbox.push_encoded(&Head::ReadData { ops: ops as u16, bytes }.encode());
            reads.drain(..ops).for_each(|slice| self.outbox.push_memory(slice));
            counters.ops_served += ops as u64;
            return;
        }
        let bad = reads.iter().take_while(|slice| regions.resolve(slice).is_none()).count();
        reads.drain(..bad);
        counters.ops_refused += bad as u64;
        let head = Head::Refused { asked: Asked::Reads, count: bad as u32, why: Refusal::BadKey };
        self.outbox.push_encoded(&head.encode());
    }

    /// What epoll should watch for.
    pub(crate) fn wanted_interest(&self) -> u32 {
        let read = if self.serving.is_swamped() { 0 } else { sys::READABLE };
        let write = if self.blocked || self.state == State::Connecting { sys::WRITABLE } else { 0 };
        read | write
    }
}

/// How many ops of these lengths make one frame, and their bytes.
fn frame_of(lengths: impl Iterator<Item = u32>) -> (usize, u32) {
    let (mut ops, mut bytes) = (0, 0);
    for len in lengths.take(FRAME_OPS_MAX) {
        if ops > 0 && bytes + len > PAYLOAD_BYTES {
            break;
        }
        ops += 1;
        bytes += len;
    }
    (ops, bytes)
}
