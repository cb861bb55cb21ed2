//! Which statuses a completion may have: those that something that was active during the operation explains.

use softefa_fabric::{FaultKind, NicIndex};
use softefa_verbs::nic::Status;

use super::operation::{Mischief, Operation};
use crate::board::{Board, Phase};
use crate::schedule::Schedule;
use crate::verbs::Kind;

/// How long a fault may still be seen after its end: the time between a look at the clock and what follows from it.
const SLACK_NS: u64 = 10_000_000;
/// From which share of lost packets on a peer may look dead, millionths.
const DEADLY_PPM: u32 = 50_000;

/// Whether an operation that was to fail, or met a fault or a killed peer, may have ended like this.
pub(super) fn explains(
    schedule: &Schedule,
    board: &Board,
    here: NicIndex,
    operation: &Operation,
    status: Status,
    now_ns: u64,
) -> bool {
    let expected = match operation.mischief {
        None => Status::Ok,
        Some(Mischief::RemoteKey | Mischief::BeyondArea) => Status::RemoteBadAddress,
        Some(Mischief::LocalKey) => Status::InvalidLkey,
        Some(Mischief::Stranger) => Status::RemoteBadDestQpn,
    };
    if status == expected {
        return true;
    }
    let target = board.cell(operation.target);
    let killed = target.killed_ns.load(std::sync::atomic::Ordering::Acquire);
    if status == Status::RemoteBadDestQpn && killed != 0 && killed <= now_ns {
        return true;
    }
    // A peer that leaves gives back its memory (that of posted receives too), its handles and its queue pairs.
    let left = matches!(
        status,
        Status::RemoteBadAddress | Status::RemoteAbort | Status::RemoteUnknownPeer | Status::RemoteBadDestQpn
    );
    if board.phase() == Phase::Stop && left {
        return true;
    }
    if target.rails[operation.target_rail].overflowed.load(std::sync::atomic::Ordering::Acquire)
        && status != Status::Ok
    {
        return true;
    }
    // A peer whose receives are used up, and a sender that does not wait for ever.
    if status == Status::RemoteNotReady && operation.kind.takes_a_receive() && schedule.traffic.rnr_retry < 7
    {
        return true;
    }
    let there = NicIndex { node: operation.target.node() as u32, nic: operation.target_rail as u32 };
    schedule.faults.iter().enumerate().any(|(number, planned)| {
        let active = board.fault(number);
        let from = active.from_ns.load(std::sync::atomic::Ordering::Acquire);
        let until = active.until_ns.load(std::sync::atomic::Ordering::Acquire);
        let met = from != 0
            && from <= now_ns
            && (until == 0 || until.saturating_add(SLACK_NS) >= operation.posted_ns);
        met && causes(&planned.fault, here, there, operation.kind, status)
    })
}

/// Whether a fault makes operations from `here` to `there` end like this.
fn causes(
    fault: &softefa_fabric::Fault,
    here: NicIndex,
    there: NicIndex,
    kind: Kind,
    status: Status,
) -> bool {
    let dead = matches!(status, Status::UnresponsiveRemote | Status::UnreachableRemote);
    let on_the_way = fault.scope.concerns(here, there);
    let either_way = on_the_way || fault.scope.concerns(there, here);
    let is_rdma = kind != Kind::Send;
    match fault.kind {
        FaultKind::RailDown => dead && (fault.scope.sits_on(here) || fault.scope.sits_on(there)),
        FaultKind::BlackHole => dead && either_way && fault.amount == 0,
        FaultKind::Drop => dead && either_way && fault.probability_ppm >= DEADLY_PPM,
        FaultKind::BadKey => status == Status::RemoteBadAddress && on_the_way && is_rdma,
        FaultKind::MissingHandle => status == Status::RemoteUnknownPeer && on_the_way && is_rdma,
        FaultKind::NotReady => status == Status::RemoteNotReady && on_the_way && kind.takes_a_receive(),
        FaultKind::PeerRestarted => status == Status::RemoteBadDestQpn && on_the_way,
        FaultKind::Unreachable => status == Status::UnreachableRemote && on_the_way,
        FaultKind::Unresponsive => status == Status::UnresponsiveRemote && on_the_way,
        // Silence, slowness, and what does not touch an operation's end.
        FaultKind::NoEgress
        | FaultKind::SecondaryCidr
        | FaultKind::Delay
        | FaultKind::Rate
        | FaultKind::NoRegistration
        | FaultKind::CqOverflow => false,
    }
}

/// Whether a fault of this kind was active on a NIC lately.
pub(super) fn was_active(schedule: &Schedule, board: &Board, here: NicIndex, kind: FaultKind) -> bool {
    schedule.faults.iter().enumerate().any(|(number, planned)| {
        planned.fault.kind == kind
            && planned.fault.scope.sits_on(here)
            && board.fault(number).from_ns.load(std::sync::atomic::Ordering::Acquire) != 0
    })
}

#[cfg(test)]
mod tests {
    use softefa_fabric::{Fault, Scope};

    use super::*;

    #[test]
    fn a_fault_explains_its_own_status_its_own_way_and_nothing_else() {
        let (a, b) = (NicIndex { node: 0, nic: 1 }, NicIndex { node: 1, nic: 0 });
        let scope = Scope { node: Some(0), ..Scope::default() };
        let bad_key = Fault::new(FaultKind::BadKey, scope);
        assert!(causes(&bad_key, a, b, Kind::Write, Status::RemoteBadAddress));
        assert!(!causes(&bad_key, b, a, Kind::Write, Status::RemoteBadAddress));
        assert!(!causes(&bad_key, a, b, Kind::Send, Status::RemoteBadAddress));
        assert!(!causes(&bad_key, a, b, Kind::Write, Status::RemoteBadDestQpn));
        let down = Fault::new(FaultKind::RailDown, scope);
        assert!(causes(&down, b, a, Kind::Read, Status::UnresponsiveRemote));
        let silent = Fault { amount: 1, ..Fault::new(FaultKind::BlackHole, scope) };
        assert!(Status::ALL.iter().all(|status| !causes(&silent, a, b, Kind::Write, *status)));
    }
}
