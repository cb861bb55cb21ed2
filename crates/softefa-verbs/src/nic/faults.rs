//! The faults that are active, as this process has last seen them, and what they do to its packets.

use softefa_fabric::{Fabric, Fault, FaultKind, NicIndex};

use super::random::Random;
use super::types::Status;

/// What becomes of a packet that is about to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It arrives.
    Passes,
    /// It is lost, and has to be sent again.
    Lost,
    /// Nothing arrives there now.
    Blocked(Block),
}

/// A path on which nothing arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    /// Operations never end: nobody ever learns that packets do not arrive.
    pub(super) silent: bool,
    /// Packets do not even leave: the sender's own link is down.
    pub(super) unsent: bool,
}

/// An end that a fault has decided for an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Doom {
    pub(super) status: Status,
    /// After which time.
    pub(super) after_ns: u64,
    /// The fault that has decided it; 0 = the network itself.
    pub(super) fault: u32,
}

/// A fault, and when this process has first seen it.
struct Seen {
    fault: Fault,
    since_ns: u64,
}

impl Seen {
    /// Whether it bites always, while it is there.
    fn is_permanent(&self) -> bool {
        self.fault.probability_ppm >= 1_000_000 && self.fault.count == u64::MAX && self.fault.after == 0
    }

    fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.fault.until_ns
    }

    /// Whether it stops what goes from `from` to `to`, and how.
    fn blocks(&self, from: NicIndex, to: NicIndex) -> Option<Block> {
        let scope = &self.fault.scope;
        let (silent, unsent) = match self.fault.kind {
            FaultKind::RailDown if scope.sits_on(from) => (false, true),
            FaultKind::RailDown if scope.sits_on(to) => (false, false),
            FaultKind::BlackHole if scope.concerns(from, to) => (self.fault.amount == 1, false),
            FaultKind::NoEgress if scope.concerns(from, to) => (true, false),
            FaultKind::SecondaryCidr if scope.concerns(from, to) || scope.concerns(to, from) => (true, false),
            _ => return None,
        };
        Some(Block { silent, unsent })
    }
}

/// All active faults.
#[derive(Default)]
pub(super) struct Faults {
    list: Vec<Seen>,
}

impl Faults {
    /// Reads the table again.
    pub(super) fn refresh(&mut self, fabric: &Fabric, now_ns: u64) {
        let before = std::mem::take(&mut self.list);
        let since = |id| before.iter().find(|seen| seen.fault.id == id).map_or(now_ns, |seen| seen.since_ns);
        self.list =
            fabric.faults().into_iter().map(|fault| Seen { since_ns: since(fault.id), fault }).collect();
    }

    /// When the first of them ends by itself.
    pub(super) fn next_end_ns(&self) -> Option<u64> {
        self.list.iter().map(|seen| seen.fault.until_ns).filter(|&until| until != u64::MAX).min()
    }

    pub(super) fn is_active(&self, id: u32) -> bool {
        self.list.iter().any(|seen| seen.fault.id == id)
    }

    /// Whether the NIC's link is down, so that it neither sends nor receives.
    pub(super) fn is_down(&self, nic: NicIndex, now_ns: u64) -> bool {
        self.rail_down(nic, now_ns).is_some()
    }

    /// Whether programs are told that the NIC's link is down (`amount` 1).
    pub(super) fn is_told_down(&self, nic: NicIndex, now_ns: u64) -> bool {
        self.rail_down(nic, now_ns).is_some_and(|fault| fault.amount == 1)
    }

    fn rail_down(&self, nic: NicIndex, now_ns: u64) -> Option<&Fault> {
        self.list
            .iter()
            .filter(|seen| seen.fault.kind == FaultKind::RailDown && seen.is_permanent())
            .find(|seen| seen.fault.scope.sits_on(nic) && !seen.is_over(now_ns))
            .map(|seen| &seen.fault)
    }

    /// Whether nothing arrives from `from` at `to`, as long as nothing changes; and since when this is known. A loud fault hides
    /// behind a silent one.
    pub(super) fn blocked(
        &self,
        from: NicIndex,
        to: NicIndex,
        loopback: bool,
        now_ns: u64,
    ) -> Option<(Block, u64)> {
        if from == to && !loopback {
            return Some((Block { silent: true, unsent: false }, 0));
        }
        let mut found: Option<(Block, u64)> = None;
        for seen in self.list.iter().filter(|seen| seen.is_permanent() && !seen.is_over(now_ns)) {
            if let Some(block) = seen.blocks(from, to) {
                let (before, since) = found.unwrap_or((block, u64::MAX));
                let silent = before.silent || block.silent;
                let unsent = before.unsent || block.unsent;
                found = Some((Block { silent, unsent }, since.min(seen.since_ns)));
            }
        }
        found
    }

    /// Decides what becomes of one packet.
    pub(super) fn fate(
        &self,
        fabric: &Fabric,
        random: &mut Random,
        (from, to): (NicIndex, NicIndex),
        loopback: bool,
        now_ns: u64,
    ) -> Fate {
        if self.list.is_empty() && (from != to || loopback) {
            return Fate::Passes;
        }
        if let Some((block, _)) = self.blocked(from, to, loopback, now_ns) {
            self.count_block(fabric, from, to, now_ns);
            return Fate::Blocked(block);
        }
        for seen in &self.list {
            let fault = &seen.fault;
            let concerned = match fault.kind {
                FaultKind::Drop => fault.scope.concerns(from, to),
                _ => !seen.is_permanent() && seen.blocks(from, to).is_some(),
            };
            if concerned && bites(fabric, random, fault, now_ns) {
                return Fate::Lost;
            }
        }
        Fate::Passes
    }

    fn count_block(&self, fabric: &Fabric, from: NicIndex, to: NicIndex, now_ns: u64) {
        let blocking = self.list.iter().find(|seen| seen.is_permanent() && seen.blocks(from, to).is_some());
        if let Some(seen) = blocking {
            let _ = fabric.fault_bites(seen.fault.id, now_ns);
        }
    }

    /// How much longer a packet takes.
    pub(super) fn delay_ns(
        &self,
        fabric: &Fabric,
        random: &mut Random,
        (from, to): (NicIndex, NicIndex),
        now_ns: u64,
    ) -> u64 {
        let mut delay = 0;
        for fault in self.of(FaultKind::Delay).filter(|fault| fault.scope.concerns(from, to)) {
            if bites(fabric, random, fault, now_ns) {
                delay += fault.amount.saturating_add(random.exponential(fault.spread));
            }
        }
        delay
    }

    /// The least rate that a fault allows, bits per second.
    pub(super) fn rate_bps(&self, (from, to): (NicIndex, NicIndex), now_ns: u64) -> Option<u64> {
        let here = self.of(FaultKind::Rate).filter(|fault| fault.scope.concerns(from, to));
        here.filter(|fault| now_ns < fault.until_ns).map(|fault| fault.amount.max(1)).min()
    }

    /// An end that waits for an operation from `from` to `to`, if a fault has one for it.
    pub(super) fn doom(
        &self,
        fabric: &Fabric,
        random: &mut Random,
        (from, to): (NicIndex, NicIndex),
        usual_ns: u64,
        now_ns: u64,
    ) -> Option<Doom> {
        for seen in &self.list {
            let fault = &seen.fault;
            let status = match fault.kind {
                FaultKind::Unreachable => Status::UnreachableRemote,
                FaultKind::Unresponsive => Status::UnresponsiveRemote,
                _ => continue,
            };
            if fault.scope.concerns(from, to) && bites(fabric, random, fault, now_ns) {
                let after_ns = if fault.amount == 0 { usual_ns } else { fault.amount };
                return Some(Doom { status, after_ns, fault: fault.id });
            }
        }
        None
    }

    /// The status with which the target answers an operation, instead of executing it.
    pub(super) fn refusal(
        &self,
        fabric: &Fabric,
        random: &mut Random,
        (from, to): (NicIndex, NicIndex),
        rdma: bool,
        now_ns: u64,
    ) -> Status {
        for seen in &self.list {
            let fault = &seen.fault;
            let status = match fault.kind {
                FaultKind::BadKey if rdma => Status::RemoteBadAddress,
                FaultKind::MissingHandle if rdma => Status::RemoteUnknownPeer,
                FaultKind::NotReady if !rdma => Status::RemoteNotReady,
                FaultKind::PeerRestarted => Status::RemoteBadDestQpn,
                _ => continue,
            };
            if fault.scope.concerns(from, to) && bites(fabric, random, fault, now_ns) {
                return status;
            }
        }
        Status::Ok
    }

    /// Whether a registration on `nic` fails.
    pub(super) fn refuses_registration(
        &self,
        fabric: &Fabric,
        random: &mut Random,
        nic: NicIndex,
        now_ns: u64,
    ) -> bool {
        self.of(FaultKind::NoRegistration)
            .any(|fault| fault.scope.sits_on(nic) && bites(fabric, random, fault, now_ns))
    }

    /// How many entries a completion queue of `nic` may hold, if a fault limits them.
    pub(super) fn completions_max(&self, nic: NicIndex, now_ns: u64) -> Option<(u32, u64)> {
        self.of(FaultKind::CqOverflow)
            .filter(|fault| fault.scope.sits_on(nic) && now_ns < fault.until_ns)
            .map(|fault| (fault.id, fault.amount))
            .min_by_key(|(_, amount)| *amount)
    }

    fn of(&self, kind: FaultKind) -> impl Iterator<Item = &Fault> {
        self.list.iter().map(|seen| &seen.fault).filter(move |fault| fault.kind == kind)
    }
}

/// Whether a fault bites this time: its probability decides here, what is left of its count in the table that all share.
fn bites(fabric: &Fabric, random: &mut Random, fault: &Fault, now_ns: u64) -> bool {
    random.chance(fault.probability_ppm.into()) && fabric.fault_bites(fault.id, now_ns)
}
