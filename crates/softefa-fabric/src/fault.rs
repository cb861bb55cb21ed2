//! The faults that are active, as commands set them and devices see them.
//!
//! A fault sits on NICs of one side ([`Scope::node`], [`Scope::nic`]) and concerns their traffic with the other side. Devices read the
//! table again whenever [`crate::Fabric::generation`] has changed.

use core::fmt;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::str::FromStr;

use crate::FAULTS_MAX;
use crate::nic::NicIndex;

/// What goes wrong.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultKind {
    /// The NIC neither sends nor receives. Peers' and its own operations end with 13 or 15 after the model's time.
    /// `amount` 1: its own programs are told by an asynchronous event.
    RailDown = 1,
    /// Packets from here to there vanish. `amount` 1: silently, nothing ever ends with an error.
    BlackHole = 2,
    /// A security group without a rule for its own members' egress: packets out of the node count as sent and reach nobody, without
    /// any error.
    NoEgress = 3,
    /// An address in a secondary CIDR that the rules do not cover: as above, both ways.
    SecondaryCidr = 4,
    /// Packets are lost with the fault's probability and sent again.
    Drop = 5,
    /// Packets take `amount` ns longer, plus an exponential spread of mean `spread` ns.
    Delay = 6,
    /// The NIC sends at most `amount` bits per second.
    Rate = 7,
    /// RDMA operations from here find their remote key invalid: status 7.
    BadKey = 8,
    /// RDMA operations from here reach a peer that has no address handle for this NIC: status 14.
    MissingHandle = 9,
    /// Messages from here find no receive posted: status 10 once the queue pair's retries are used up.
    NotReady = 10,
    /// The queue pair at the other side is gone, as after a restart: status 9.
    PeerRestarted = 11,
    /// The peer was never reached: status 15 after `amount` ns, 0 = the model's time.
    Unreachable = 12,
    /// The peer has stopped answering: status 13 after `amount` ns, 0 = the model's time.
    Unresponsive = 13,
    /// Registrations of memory on the NIC fail with ENOMEM.
    NoRegistration = 14,
    /// Completion queues of the NIC hold `amount` entries at most and overflow beyond.
    CqOverflow = 15,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 15] = [
        FaultKind::RailDown,
        FaultKind::BlackHole,
        FaultKind::NoEgress,
        FaultKind::SecondaryCidr,
        FaultKind::Drop,
        FaultKind::Delay,
        FaultKind::Rate,
        FaultKind::BadKey,
        FaultKind::MissingHandle,
        FaultKind::NotReady,
        FaultKind::PeerRestarted,
        FaultKind::Unreachable,
        FaultKind::Unresponsive,
        FaultKind::NoRegistration,
        FaultKind::CqOverflow,
    ];

    /// As commands spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FaultKind::RailDown => "rail-down",
            FaultKind::BlackHole => "black-hole",
            FaultKind::NoEgress => "no-egress",
            FaultKind::SecondaryCidr => "secondary-cidr",
            FaultKind::Drop => "drop",
            FaultKind::Delay => "delay",
            FaultKind::Rate => "rate",
            FaultKind::BadKey => "bad-key",
            FaultKind::MissingHandle => "missing-handle",
            FaultKind::NotReady => "not-ready",
            FaultKind::PeerRestarted => "peer-restarted",
            FaultKind::Unreachable => "unreachable",
            FaultKind::Unresponsive => "unresponsive",
            FaultKind::NoRegistration => "no-registration",
            FaultKind::CqOverflow => "cq-overflow",
        }
    }

    fn of(number: u32) -> Option<FaultKind> {
        FaultKind::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FaultKind {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<FaultKind, UnknownFault> {
        FaultKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownFault(name.to_owned()))
    }
}

/// No fault has this name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFault(
    /// The name.
    pub String,
);

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no fault is called {:?}; there are ", self.0)?;
        for (i, kind) in FaultKind::ALL.iter().enumerate() {
            write!(f, "{}{kind}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownFault {}

/// Whom a fault concerns; `None` = any.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Scope {
    /// Node that it sits on.
    pub node: Option<u32>,
    /// NIC of that node.
    pub nic: Option<u32>,
    /// Node at the other side.
    pub peer_node: Option<u32>,
    /// NIC at the other side.
    pub peer_nic: Option<u32>,
}

impl Scope {
    /// Whether it sits on `here`, whoever the other side is.
    #[must_use]
    pub fn sits_on(&self, here: NicIndex) -> bool {
        matches(self.node, here.node) && matches(self.nic, here.nic)
    }

    /// Whether it concerns what goes from `here` to `there`.
    #[must_use]
    pub fn concerns(&self, here: NicIndex, there: NicIndex) -> bool {
        self.sits_on(here) && matches(self.peer_node, there.node) && matches(self.peer_nic, there.nic)
    }
}

fn matches(wanted: Option<u32>, is: u32) -> bool {
    wanted.is_none_or(|wanted| wanted == is)
}

/// One active fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Its number in this fabric, from 1; never used again.
    pub id: u32,
    /// What goes wrong.
    pub kind: FaultKind,
    /// For whom.
    pub scope: Scope,
    /// When it ends by itself, on [`crate::clock::now_ns`]'s clock; `u64::MAX` = never.
    pub until_ns: u64,
    /// How many operations (or packets, or registrations) are let through before it begins to bite.
    pub after: u64,
    /// How often it still bites; `u64::MAX` = always.
    pub count: u64,
    /// How often it bites, in millionths; 1,000,000 = always.
    pub probability_ppm: u32,
    /// What the kind says.
    pub amount: u64,
    /// What the kind says.
    pub spread: u64,
    /// How often it has bitten.
    pub hits: u64,
}

impl Fault {
    /// A fault of this kind that always bites, until it is cleared.
    #[must_use]
    pub fn new(kind: FaultKind, scope: Scope) -> Fault {
        Fault {
            id: 0,
            kind,
            scope,
            until_ns: u64::MAX,
            after: 0,
            count: u64::MAX,
            probability_ppm: 1_000_000,
            amount: 0,
            spread: 0,
            hits: 0,
        }
    }
}

const FREE: u32 = 0;
const BUSY: u32 = 1;
const ACTIVE: u32 = 2;

#[repr(C)]
pub(crate) struct FaultCell {
    state: AtomicU32,
    id: AtomicU32,
    kind: AtomicU32,
    probability_ppm: AtomicU32,
    place: [AtomicI32; 4],
    until_ns: AtomicU64,
    after: AtomicU64,
    count: AtomicU64,
    amount: AtomicU64,
    spread: AtomicU64,
    hits: AtomicU64,
}

fn pack(place: Option<u32>) -> i32 {
    place.map_or(-1, |place| place as i32)
}

fn unpack(place: i32) -> Option<u32> {
    u32::try_from(place).ok()
}

impl FaultCell {
    fn fill(&self, id: u32, fault: &Fault) {
        let scope = fault.scope;
        let places = [scope.node, scope.nic, scope.peer_node, scope.peer_nic];
        for (cell, place) in self.place.iter().zip(places) {
            cell.store(pack(place), Ordering::Relaxed);
        }
        self.id.store(id, Ordering::Relaxed);
        self.kind.store(fault.kind as u32, Ordering::Relaxed);
        self.probability_ppm.store(fault.probability_ppm, Ordering::Relaxed);
        self.until_ns.store(fault.until_ns, Ordering::Relaxed);
        self.after.store(fault.after, Ordering::Relaxed);
        self.count.store(fault.count, Ordering::Relaxed);
        self.amount.store(fault.amount, Ordering::Relaxed);
        self.spread.store(fault.spread, Ordering::Relaxed);
        self.hits.store(0, Ordering::Relaxed);
        self.state.store(ACTIVE, Ordering::Release);
    }

    fn read(&self) -> Option<Fault> {
        if self.state.load(Ordering::Acquire) != ACTIVE {
            return None;
        }
        let place = |i: usize| unpack(self.place[i].load(Ordering::Relaxed));
        let scope = Scope { node: place(0), nic: place(1), peer_node: place(2), peer_nic: place(3) };
        Some(Fault {
            id: self.id.load(Ordering::Relaxed),
            kind: FaultKind::of(self.kind.load(Ordering::Relaxed))?,
            scope,
            until_ns: self.until_ns.load(Ordering::Relaxed),
            after: self.after.load(Ordering::Relaxed),
            count: self.count.load(Ordering::Relaxed),
            probability_ppm: self.probability_ppm.load(Ordering::Relaxed),
            amount: self.amount.load(Ordering::Relaxed),
            spread: self.spread.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
        })
    }
}

/// The table of faults in shared memory.
#[repr(C)]
pub(crate) struct FaultTable {
    next_id: AtomicU32,
    reserved: u32,
    cells: [FaultCell; FAULTS_MAX],
}

impl FaultTable {
    /// Adds `fault` and returns its number; `None` when the table is full.
    pub(crate) fn add(&self, fault: &Fault) -> Option<u32> {
        let cell = self.cells.iter().find(|cell| {
            cell.state.compare_exchange(FREE, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        cell.fill(id, fault);
        Some(id)
    }

    /// Removes fault `id`; false when there is none.
    pub(crate) fn clear(&self, id: u32) -> bool {
        self.cells.iter().any(|cell| {
            cell.id.load(Ordering::Relaxed) == id
                && cell.state.compare_exchange(ACTIVE, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// All that are active now, oldest first.
    pub(crate) fn active(&self, now_ns: u64) -> Vec<Fault> {
        let mut faults: Vec<Fault> =
            self.cells.iter().filter_map(FaultCell::read).filter(|fault| now_ns < fault.until_ns).collect();
        faults.sort_unstable_by_key(|fault| fault.id);
        faults
    }

    /// Counts one chance for fault `id` to bite; true when it does. Bites are shared by all processes of the fabric.
    pub(crate) fn bites(&self, id: u32, now_ns: u64) -> bool {
        let Some(cell) = self.cells.iter().find(|cell| cell.id.load(Ordering::Relaxed) == id) else {
            return false;
        };
        if cell.state.load(Ordering::Acquire) != ACTIVE || now_ns >= cell.until_ns.load(Ordering::Relaxed) {
            return false;
        }
        if take(&cell.after) || !take(&cell.count) {
            return false;
        }
        cell.hits.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// Takes one of what is left; `u64::MAX` never becomes less.
fn take(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| match n {
        0 => None,
        u64::MAX => Some(u64::MAX),
        n => Some(n - 1),
    })
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_name_and_its_number() {
        for kind in FaultKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(FaultKind::of(kind as u32), Some(kind));
        }
        let unknown = "rail-dwon".parse::<FaultKind>().unwrap_err().to_string();
        assert!(unknown.contains("rail-dwon") && unknown.contains("rail-down"), "{unknown}");
    }

    #[test]
    fn a_scope_concerns_one_direction() {
        let (a, b) = (NicIndex { node: 0, nic: 3 }, NicIndex { node: 1, nic: 3 });
        let scope = Scope { node: Some(0), nic: Some(3), peer_node: Some(1), peer_nic: None };
        assert!(scope.concerns(a, b));
        assert!(!scope.concerns(b, a));
        assert!(Scope::default().concerns(b, a));
    }
}
