//! Operations: which are posted, and what their completions say.

use std::sync::atomic::Ordering;

use softefa_fabric::clock::now_ns;
use softefa_fabric::model::PACKET_BYTES;
use softefa_verbs::nic::Status;

use super::explain;
use super::settle::Settling;
use super::worker::{Slot, Worker};
use crate::board::{Board, MESSAGES_MAX, Stage};
use crate::memory::{GUARD_BYTES, SOURCE_BYTES, source_number};
use crate::pattern;
use crate::plant::Plant;
use crate::schedule::Rank;
use crate::verbs::{Entry, Kind, Request};

/// Longest payload that goes with the request, bytes.
const INLINE_BYTES: usize = 32;
/// Marks immediates of this program: whatever else arrives is seen.
const IMMEDIATE_MARK: u32 = 0x5a << 24;
/// A queue pair's number that is never given.
const STRANGER_QPN: u32 = 1;
/// Marks numbers of completions of receives.
pub(super) const RECEIVE: u64 = 1 << 62;

impl Kind {
    pub(super) fn takes_a_receive(self) -> bool {
        matches!(self, Self::Send | Self::WriteWithImmediate)
    }

    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::WriteWithImmediate)
    }
}

/// Why an operation must fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mischief {
    /// No region has its remote key.
    RemoteKey,
    /// It goes beyond the end of the peer's region.
    BeyondArea,
    /// No region has its local key.
    LocalKey,
    /// No queue pair has the number.
    Stranger,
}

/// An operation in flight.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    pub(super) rail: usize,
    pub(super) target: Rank,
    pub(super) target_rail: usize,
    /// The pattern of its bytes.
    pub(super) number: u64,
    pub(super) len: usize,
    /// Where in the target's slot, or among its source bytes.
    pub(super) at: usize,
    pub(super) slot: Option<usize>,
    /// Own memory, and where in it.
    pub(super) piece: usize,
    pub(super) piece_at: usize,
    pub(super) message: Option<usize>,
    pub(super) posted_ns: u64,
    pub(super) mischief: Option<Mischief>,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, rail, target, target_rail, len, at, .. } = self;
        write!(
            f,
            "{kind:?} of {len} bytes at {at} from NIC {rail} to node {} process {} life {} NIC {target_rail}",
            target.node(),
            target.process(),
            target.life()
        )?;
        match self.mischief {
            Some(mischief) => write!(f, " (meant to fail: {mischief:?})"),
            None => Ok(()),
        }
    }
}

/// The immediate of a message.
pub(super) fn immediate(sender: Rank, message: usize) -> u32 {
    IMMEDIATE_MARK | (sender.index() as u32) << 16 | message as u32
}

/// Whose message an immediate names.
pub(super) fn message_of(immediate: u32) -> Option<(Rank, usize)> {
    let message = (immediate & 0xffff) as usize;
    let sender = Rank::at((immediate >> 16 & 0xff) as usize)?;
    (immediate & 0xff00_0000 == IMMEDIATE_MARK && message < MESSAGES_MAX).then_some((sender, message))
}

const _: () = assert!(MESSAGES_MAX <= 1 << 16);

impl Worker {
    /// Begins an operation, if there is somebody to do it with.
    pub(super) fn begin(&mut self) {
        let Some((rail, target, target_rail)) = self.way() else { return };
        let kind = *self.random.pick(&[
            Kind::Write,
            Kind::Write,
            Kind::WriteWithImmediate,
            Kind::WriteWithImmediate,
            Kind::Read,
            Kind::Read,
            Kind::Send,
            Kind::Send,
        ]);
        let mischief = self.random.chance(self.schedule.traffic.mischief_percent).then(|| {
            let all = [Mischief::RemoteKey, Mischief::BeyondArea, Mischief::LocalKey, Mischief::Stranger];
            *self.random.pick(&all)
        });
        let is_rdma = kind != Kind::Send;
        let mischief = mischief.filter(|it| is_rdma || matches!(it, Mischief::LocalKey | Mischief::Stranger));
        let most = self.schedule.traffic.slot_bytes;
        let mut len = match self.random.below(10) {
            0..4 => self.random.below(64) as usize,
            4..8 => self.random.below(most as u64 / 4) as usize,
            _ => self.random.between(1, most as u64) as usize,
        };
        if kind == Kind::Send {
            len = len.min(PACKET_BYTES);
        }
        if kind == Kind::Read || mischief.is_some() {
            // A read of nothing tells nothing; and what is to fail needs bytes to fail with.
            len = len.clamp(2, SOURCE_BYTES);
        }
        let room = if kind == Kind::Read { SOURCE_BYTES } else { most };
        let at = self.random.below((room - len) as u64 + 1) as usize;
        let slot = if kind.is_write() {
            match self.free_slot(target) {
                Some(slot) => Some(slot),
                None => return,
            }
        } else {
            None
        };
        let message = if kind.takes_a_receive() {
            if self.messages == MESSAGES_MAX {
                return;
            }
            Some(self.messages)
        } else {
            None
        };
        let piece = match self.local.take() {
            None => return,
            Some(Ok(piece)) => piece,
            Some(Err(text)) => return self.violate(&format!("after its operation had ended, {text}")),
        };
        let piece_at = self.random.below((most - len.min(most)) as u64 + 1) as usize;
        self.next += 1;
        let operation = Operation {
            kind,
            rail,
            target,
            target_rail,
            number: (self.rank.index() as u64 + 1) << 40 | self.next,
            len,
            at,
            slot,
            piece,
            piece_at: if kind == Kind::Read {
                self.random.below((most - len.min(most)) as u64 + 1) as usize
            } else {
                piece_at
            },
            message,
            posted_ns: now_ns(),
            mischief,
        };
        self.post(self.next, operation);
    }

    /// A NIC of this process, a peer, and a NIC of it.
    fn way(&mut self) -> Option<(usize, Rank, usize)> {
        let peers: Vec<Rank> = self
            .board
            .present()
            .filter(|rank| *rank != self.rank && self.board.cell(*rank).stage() < Stage::Left)
            // A few operations to the dead are enough.
            .filter(|rank| !self.board.cell(*rank).was_killed() || self.next.is_multiple_of(16))
            .collect();
        if peers.is_empty() {
            return None;
        }
        let target = *self.random.pick(&peers);
        let nics = self.schedule.nics as u64;
        let (rail, target_rail) = (self.random.below(nics) as usize, self.random.below(nics) as usize);
        let to_itself = target.node() == self.rank.node() && rail == target_rail;
        let dead = self.retired[rail]
            || self.board.cell(target).rails[target_rail].overflowed.load(Ordering::Acquire);
        (!dead && (self.schedule.loopback || !to_itself)).then_some((rail, target, target_rail))
    }

    fn free_slot(&mut self, target: Rank) -> Option<usize> {
        self.slots[target.index()].iter().position(|slot| matches!(slot, Slot::Free))
    }

    fn post(&mut self, id: u64, operation: Operation) {
        let Operation { kind, rail, target, target_rail, number, len, at, piece, piece_at, .. } = operation;
        let cell = self.board.cell(target);
        let area = cell.memory.load(Ordering::Acquire);
        let place = match operation.slot {
            Some(slot) => self.memory.slot(self.rank, slot) + at,
            None => at,
        };
        let mut request = Request {
            id,
            kind,
            immediate: operation.message.map_or(0, |message| immediate(self.rank, message)),
            remote_key: cell.rails[target_rail].key.load(Ordering::Acquire),
            remote_address: area + place as u64,
            local_key: self.regions[rail].local.key(),
            local_address: self.local.address(piece) + piece_at as u64,
            len: len as u32,
            inline: kind == Kind::Send && len > 0 && len <= INLINE_BYTES && self.random.chance(50),
            split: None,
            to: self.handles[rail][target.node() * self.schedule.nics + target_rail],
            qpn: cell.rails[target_rail].qpn.load(Ordering::Acquire),
        };
        if kind == Kind::Send && !request.inline && len > 1 && self.random.chance(30) {
            request.split = Some(self.random.between(1, len as u64 - 1) as u32);
        }
        match operation.mischief {
            None => {}
            // The lowest byte of a key is its NIC's: no key of the peer's NIC has another one.
            Some(Mischief::RemoteKey) => request.remote_key ^= 0xff,
            Some(Mischief::BeyondArea) => {
                request.remote_address = area + self.memory.area_bytes() as u64 - 1;
            }
            Some(Mischief::LocalKey) => {
                request.local_key ^= 0xff;
                request.inline = false;
            }
            Some(Mischief::Stranger) => request.qpn = STRANGER_QPN,
        }
        if kind != Kind::Read {
            self.local.fill(piece, piece_at, len, number);
        }
        if let Some(index) = operation.message {
            self.messages += 1;
            let message = &self.board.cell(self.rank).messages[index];
            // One that must fail is for nobody.
            let to = if operation.mischief.is_some() { u32::MAX } else { target.index() as u32 };
            message.number.store(number, Ordering::Relaxed);
            message.qpn.store(self.rails[rail].qpn(), Ordering::Relaxed);
            message.len.store(len as u32, Ordering::Relaxed);
            message.place.store(place as u64, Ordering::Relaxed);
            message.is_write.store(kind.is_write(), Ordering::Relaxed);
            message.target.store(to, Ordering::Release);
        }
        if let Some(slot) = operation.slot {
            self.slots[target.index()][slot] = Slot::Busy { number, at, len };
        }
        self.board.cell(self.rank).posted.fetch_add(1, Ordering::Relaxed);
        match self.rails[rail].post(&[request]) {
            Ok(()) => drop(self.flights.insert(id, operation)),
            Err(error) => {
                self.local.give(piece, kind != Kind::Read);
                if let Some(slot) = operation.slot {
                    self.slots[target.index()][slot] = Slot::Free;
                }
                self.violate(&format!("{operation} was refused: {error}"));
            }
        }
    }

    /// A completion of an operation.
    pub(super) fn complete(&mut self, entry: &Entry) {
        let Some(operation) = self.flights.remove(&entry.id) else {
            if self.given_up.remove(&entry.id) {
                return;
            }
            return self.violate(&format!("a completion for operation {}, which is not in flight", entry.id));
        };
        let now = now_ns();
        let mut status = Status::of(u8::try_from(entry.status).unwrap_or(u8::MAX));
        if self.plants(Plant::WrongStatus) && status == Status::Ok {
            self.plant = None;
            status = Status::RemoteBadStatus;
        }
        let ended = &self.board.cell(self.rank).ended[usize::from(status != Status::Ok)];
        ended.fetch_add(1, Ordering::Relaxed);
        let here = self.here(operation.rail);
        let explained = explain::explains(&self.schedule, &self.board, here, &operation, status, now)
            || (self.flushing && status == Status::Flushed);
        if !explained {
            let ms = (now - operation.posted_ns) as f64 / 1e6;
            self.violate(&format!(
                "{operation} ended with {status:?} after {ms:.1} ms, which nothing explains"
            ));
        }
        if operation.kind == Kind::Read {
            self.check_read(&operation, status == Status::Ok);
        }
        self.local.give(operation.piece, operation.kind != Kind::Read);
        if status == Status::Ok {
            if self.plants(Plant::DoubleCompletion) {
                self.plant = None;
                self.complete(entry);
            }
            if operation.kind != Kind::Read {
                self.settle(Settling { operation, completed_ns: now });
            }
        } else if let Some(slot) = operation.slot {
            self.taint(&operation, slot);
        }
    }

    /// What a failed write leaves may be all, nothing or some of it, and may come late: the slot is used no more.
    pub(super) fn taint(&mut self, operation: &Operation, slot: usize) {
        let Operation { target, number, at, len, .. } = *operation;
        let (at, len) = if operation.mischief.is_some() { (0, 0) } else { (at, len) };
        self.slots[target.index()][slot] = Slot::Tainted { number, at, len };
    }

    fn check_read(&mut self, operation: &Operation, whole: bool) {
        let number = source_number(operation.target);
        let (at, len) = (operation.at, operation.len);
        let looked = self.local.look(operation.piece, operation.piece_at, len, |bytes| {
            if whole {
                pattern::wrong_from(bytes, number, at)
            } else {
                pattern::foreign_from(bytes, number, at)
            }
        });
        match looked {
            Ok(None) => {}
            Ok(Some(place)) => {
                self.violate(&format!("{operation}: byte {place} is not what the peer has there"))
            }
            Err(text) => self.violate(&format!("{operation}: {text}")),
        }
    }

    /// Whether the planted defect is this one, and is due.
    pub(super) fn plants(&self, plant: Plant) -> bool {
        self.plant == Some(plant) && self.next > 4
    }

    /// Gives up what a NIC had in flight: its completions are lost.
    pub(super) fn abandon(&mut self, rail: usize) {
        self.give_up(|_, operation| operation.rail == rail);
    }

    /// Gives up messages for peers whose completion queue has overflowed: they post no receives any more, and a sender may wait for ever.
    pub(super) fn forget_deaf(&mut self) {
        self.give_up(|board, operation| {
            let rail = &board.cell(operation.target).rails[operation.target_rail];
            operation.kind.takes_a_receive() && rail.overflowed.load(Ordering::Acquire)
        });
    }

    fn give_up(&mut self, which: impl Fn(&Board, &Operation) -> bool) {
        let lost: Vec<u64> =
            self.flights.iter().filter(|(_, it)| which(&self.board, it)).map(|(id, _)| *id).collect();
        self.given_up.extend(&lost);
        for id in lost {
            let Some(operation) = self.flights.remove(&id) else { continue };
            // Its memory stays the device's.
            if let Some(slot) = operation.slot {
                self.taint(&operation, slot);
            }
        }
    }
}

const _: () = assert!(GUARD_BYTES >= 8);
