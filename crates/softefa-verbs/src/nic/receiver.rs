//! Packets from the wire: checked, kept until they are due, and executed in any order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use softefa_fabric::model::PACKET_BYTES;
use softefa_fabric::nic::Owner;
use softefa_fabric::wire::{INLINE_BYTES, NO_SLOT, Packet, PacketKind, SLOTS};
use softefa_fabric::{Counter, NicIndex, ProcessIndex};

use super::copy::{Piece, Way};
use super::engine::Engine;
use super::types::ReceiveRequest;

/// Packets that one run takes out of rings.
const TAKEN_PER_RUN: usize = 64;
/// Packets that are executed together: their copies are one system call, and their order is any.
const BATCH: usize = 32;
/// Packets that were taken out one after the other and change places.
const WINDOW: u64 = 32;
/// Packets that are kept until they are due. When there are more, rings are not emptied before some of these are executed.
const HELD_MAX: usize = 1 << 18;

/// Where a packet's payload is.
pub(super) enum Body {
    /// In the packet.
    Inline,
    /// In the sender's slot, which it gets back when the payload has been copied.
    Slot(u32),
    /// Here: the sender has its slot back.
    Owned(Box<[u8]>),
}

/// How far a packet has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// It arrives.
    Arrives,
    /// It has arrived and was acknowledged; its bytes become visible now.
    Commits,
}

/// A packet that has been taken out of its ring.
pub(super) struct Arrival {
    pub(super) from: Owner,
    pub(super) kind: PacketKind,
    pub(super) packet: Packet,
    pub(super) body: Body,
    pub(super) stage: Stage,
    /// The receive that was taken for its message.
    pub(super) receive: Option<ReceiveRequest>,
}

/// What is to be done with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plan {
    /// Its bytes are copied, then it is finished.
    Execute,
    /// Nothing more.
    Drop,
    /// It comes again at this time, in stage [`Stage::Commits`].
    Commit(u64),
}

/// Packets that have been taken out and not executed.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Due time, order, place.
    order: BinaryHeap<Reverse<(u64, u64, u32)>>,
    held: Vec<Option<Arrival>>,
    free: Vec<u32>,
    taken: u64,
    /// Arrived at a NIC that is down.
    pub(super) parked: Vec<Arrival>,
    /// Rings that may not be empty: bit s for the one of the process in slot s.
    rings: u64,
    /// Slots or rings have got room since peers were last told.
    made_room: bool,
}

impl Arrivals {
    /// Keeps a packet until it is due. `random` decides among packets that are due at the same time and came one soon after the other.
    pub(super) fn hold(&mut self, due_ns: u64, random: u64, arrival: Arrival) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            self.held.len() as u32 - 1
        });
        self.held[place as usize] = Some(arrival);
        self.taken += 1;
        self.order.push(Reverse((due_ns, (self.taken / WINDOW) << 16 | random >> 48, place)));
    }

    pub(super) fn next_ns(&self) -> u64 {
        self.order.peek().map_or(u64::MAX, |Reverse((due, _, _))| *due)
    }

    fn take_due(&mut self, now_ns: u64) -> Option<Arrival> {
        while self.next_ns() <= now_ns {
            let Reverse((_, _, place)) = self.order.pop()?;
            self.free.push(place);
            if let Some(arrival) = self.held[place as usize].take() {
                return Some(arrival);
            }
        }
        None
    }

    /// Takes out all packets of which `wanted` is true.
    pub(super) fn take_where(&mut self, wanted: impl Fn(&Arrival) -> bool) -> Vec<Arrival> {
        let mut taken: Vec<Arrival> = self.parked.extract_if(.., |arrival| wanted(arrival)).collect();
        for held in &mut self.held {
            if held.as_ref().is_some_and(&wanted) {
                // Its place stays taken until its time has come.
                taken.extend(held.take());
            }
        }
        taken
    }

    fn is_full(&self) -> bool {
        self.order.len() + self.parked.len() >= HELD_MAX
    }
}

impl Engine {
    /// Takes packets out of the rings that peers say are not empty. True when there are more.
    pub(super) fn take_in(&mut self, now_ns: u64) -> bool {
        let core = self.core.clone();
        self.arrivals.rings |= core.process().take_senders();
        if self.arrivals.is_full() {
            return false;
        }
        let mut left = TAKEN_PER_RUN;
        let mut rings = self.arrivals.rings;
        while rings != 0 && left > 0 {
            // Not always from the first on: no peer is to wait for the others.
            let skip = self.random.below(64) as u32;
            let at = (rings.rotate_right(skip).trailing_zeros() + skip) % 64;
            rings &= !(1 << at);
            let Some(from) = ProcessIndex::new(at as usize) else { continue };
            let ring = core.fabric.ring(from, core.me.process);
            loop {
                if left == 0 {
                    break;
                }
                let Some(packet) = ring.pop() else {
                    self.arrivals.rings &= !(1 << at);
                    break;
                };
                left -= 1;
                self.arrivals.made_room = true;
                self.take(from, packet, now_ns);
            }
        }
        self.arrivals.rings != 0
    }

    fn take(&mut self, from: ProcessIndex, packet: Packet, now_ns: u64) {
        let Some(arrival) = self.check(from, packet) else {
            let at = packet.target();
            let at = if at.node == self.core.node { at } else { NicIndex { node: self.core.node, nic: 0 } };
            self.count(at, Counter::RxDrops, 1);
            return;
        };
        if arrival.kind == PacketKind::Cancel {
            self.cancelled(arrival.from, packet.message);
            return;
        }
        // A time far away, which only a broken peer sends, is no reason to keep a packet for ever.
        const FAR_NS: u64 = 3_600_000_000_000;
        let due_ns = packet.due_ns.min(now_ns + FAR_NS);
        self.arrivals.hold(due_ns, self.random.next(), arrival);
    }

    /// Checks every field that could lead somewhere it should not.
    fn check(&self, from: ProcessIndex, packet: Packet) -> Option<Arrival> {
        let kind = PacketKind::of(packet.kind)?;
        let owner = packet.sender()?;
        let fabric = &self.core.fabric;
        let sender = fabric.process(from);
        if owner.process != from || sender.generation() != owner.generation {
            return None;
        }
        let arrival =
            |body| Arrival { from: owner, kind, packet, body, stage: Stage::Arrives, receive: None };
        if kind == PacketKind::Cancel {
            return Some(arrival(Body::Inline));
        }
        let (source, target) = (packet.source(), packet.target());
        let here = target.node == self.core.node && fabric.nic(target).is_some();
        let there = source.node == sender.node() && fabric.nic(source).is_some();
        if !here || !there {
            return None;
        }
        let Packet { total, offset, length, .. } = packet;
        let inside = offset.checked_add(length).is_some_and(|end| end <= total);
        let sound = match kind {
            PacketKind::Send => offset == 0 && length == total,
            PacketKind::Write => inside && (length != 0 || total == 0),
            PacketKind::ReadResponse => inside && length != 0,
            PacketKind::ReadRequest | PacketKind::Acknowledge | PacketKind::Cancel => length == 0,
        };
        if !sound || length as usize > PACKET_BYTES || total > fabric.limits().rdma_bytes {
            return None;
        }
        // The rest of a message whose sender has died never comes.
        if kind == PacketKind::Write && length != total && !fabric.is_live(owner) {
            return None;
        }
        let body = match (length, packet.slot) {
            (0, _) => Body::Inline,
            (_, NO_SLOT) if length as usize <= INLINE_BYTES => Body::Inline,
            (_, slot) if (slot as usize) < SLOTS => Body::Slot(slot),
            _ => return None,
        };
        Some(arrival(body))
    }

    /// Executes packets whose time has come, a bounded number of them. True when there are more.
    pub(super) fn execute_due(&mut self, now_ns: u64) -> bool {
        for _ in 0..TAKEN_PER_RUN / BATCH {
            let mut batch = std::mem::take(&mut self.batch);
            while batch.len() < BATCH
                && let Some(arrival) = self.arrivals.take_due(now_ns)
            {
                if arrival.stage == Stage::Arrives && self.faults.is_down(arrival.packet.target(), now_ns) {
                    self.park(arrival);
                } else {
                    batch.push(arrival);
                }
            }
            self.random.shuffle(&mut batch);
            if !batch.is_empty() {
                self.execute(&mut batch, now_ns);
            }
            self.batch = batch;
            // Acknowledgements leave at once: whoever waits for them may be another core.
            self.ring_bells(now_ns);
        }
        if std::mem::take(&mut self.arrivals.made_room) {
            self.tell_of_room(now_ns);
        }
        self.arrivals.next_ns() <= now_ns
    }

    /// Tells processes that wait for room that there is some.
    fn tell_of_room(&mut self, now_ns: u64) {
        let mut waiting = self.core.process().take_waiting();
        while waiting != 0 {
            let at = waiting.trailing_zeros() as usize;
            waiting &= waiting - 1;
            if let Some(process) = ProcessIndex::new(at) {
                self.core.fabric.process(process).notify(self.core.me.process, now_ns);
            }
        }
    }

    /// Keeps a packet for a NIC that is down, until it is up again. Its slot is needed for others meanwhile.
    fn park(&mut self, mut arrival: Arrival) {
        if let Body::Slot(slot) = arrival.body {
            let length = arrival.packet.length as usize;
            let mut bytes = vec![0; length].into_boxed_slice();
            if let Some(from) = self.core.fabric.arena(arrival.from.process).bytes(slot) {
                // SAFETY: a slot is at least PACKET_BYTES long, and `check` has seen that `length` is not more. The sender may write
                // to it if it is broken: bytes are bytes.
                unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), length) };
            }
            self.release(&arrival);
            arrival.body = Body::Owned(bytes);
        }
        self.arrivals.parked.push(arrival);
    }

    /// Gives a packet's slot back to its sender.
    pub(super) fn release(&mut self, arrival: &Arrival) {
        if let Body::Slot(slot) = arrival.body
            && self.is_current(arrival.from)
        {
            self.core.fabric.arena(arrival.from.process).release(slot);
            self.arrivals.made_room = true;
        }
    }

    /// Whether a process's slots still hold what it has put there: it lives, or has died a moment ago.
    fn is_current(&self, owner: Owner) -> bool {
        self.core.fabric.process(owner.process).generation() == owner.generation
    }

    /// Executes packets: first all checks, then all copies, then all answers and completions. What a completion says is then true.
    fn execute(&mut self, batch: &mut Vec<Arrival>, now_ns: u64) {
        let mut plans = [Plan::Drop; BATCH];
        let mut failed = [false; BATCH];
        let mut of = [0_u8; 2 * BATCH];
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        for (i, arrival) in batch.iter_mut().enumerate() {
            let begin = pieces.len();
            plans[i] = self.plan(arrival, &mut pieces, now_ns);
            of[begin..pieces.len()].fill(i as u8);
        }
        // SAFETY: `plan` has made each piece from a packet of the batch, which stays where it is: its bytes lie in the packet, in its own
        // memory or in a slot of its sender, and are as many as `check` allows there.
        unsafe {
            self.copier.copy(Way::ToApplication, &pieces, |piece| failed[usize::from(of[piece])] = true)
        };
        self.pieces = pieces;
        for (i, mut arrival) in batch.drain(..).enumerate() {
            match plans[i] {
                Plan::Execute => {
                    self.release(&arrival);
                    self.finish_arrival(&arrival, failed[i], now_ns);
                }
                Plan::Drop => self.release(&arrival),
                Plan::Commit(at_ns) => {
                    arrival.stage = Stage::Commits;
                    self.arrivals.hold(at_ns, self.random.next(), arrival);
                }
            }
        }
    }

    fn plan(&mut self, arrival: &mut Arrival, pieces: &mut Vec<Piece>, now_ns: u64) -> Plan {
        if matches!(arrival.body, Body::Slot(_)) && !self.is_current(arrival.from) {
            return Plan::Drop;
        }
        let packet = &arrival.packet;
        if arrival.stage == Stage::Arrives {
            self.hear(packet.target(), packet.source(), packet.from_qpn, now_ns);
            if arrival.kind != PacketKind::Acknowledge {
                self.count(packet.target(), Counter::RxPackets, 1);
                self.count(packet.target(), Counter::RxBytes, packet.length.into());
            }
        }
        let mut places = [(0, 0); 2];
        let plan = match arrival.kind {
            PacketKind::Send => self.plan_send(arrival, &mut places[0], now_ns),
            PacketKind::Write => self.plan_write(arrival, &mut places[0], now_ns),
            PacketKind::ReadResponse => self.plan_response(arrival, &mut places),
            _ => Plan::Execute,
        };
        if plan == Plan::Execute {
            let mut own = self.payload(arrival);
            for (app, len) in places.into_iter().filter(|(_, len)| *len != 0) {
                pieces.push(Piece { own, app, len: len as usize });
                own = own.wrapping_add(len as usize);
            }
        }
        plan
    }

    fn payload(&self, arrival: &mut Arrival) -> *mut u8 {
        match &mut arrival.body {
            Body::Inline => arrival.packet.inline.as_mut_ptr(),
            Body::Owned(bytes) => bytes.as_mut_ptr(),
            Body::Slot(slot) => {
                let arena = self.core.fabric.arena(arrival.from.process);
                arena.bytes(*slot).unwrap_or(arrival.packet.inline.as_mut_ptr())
            }
        }
    }

    fn finish_arrival(&mut self, arrival: &Arrival, failed: bool, now_ns: u64) {
        match arrival.kind {
            PacketKind::Send => self.finish_send(arrival, failed, now_ns),
            PacketKind::Write => self.finish_write(arrival, failed, now_ns),
            PacketKind::ReadRequest => self.read_requested(arrival, now_ns),
            PacketKind::ReadResponse => self.finish_response(arrival, failed),
            PacketKind::Acknowledge => self.acknowledged(arrival, now_ns),
            PacketKind::Cancel => {}
        }
    }
}
