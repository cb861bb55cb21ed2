//! One transfer's state: which of its ops are where, and what it waits for.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::error::TransferError;
use crate::id::{RailSet, RemoteRail, TransferId};
use crate::plan::Plan;
use crate::time::Time;
use crate::transport::Direction;
use crate::wire::control::Slot;

/// What a transfer waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The peer's greeting, a slot, credit.
    Waiting,
    /// Posting, and completions.
    Moving,
    /// The fabric's linger after a failed op.
    Lingering,
    /// The target's word (counted evidence).
    Confirming,
    /// Room in the control channel for its notification.
    Announcing,
}

/// Where an op is. The route it was last posted on is kept beside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(super) enum OpPhase {
    Unposted = 0,
    InFlight = 1 << 13,
    Done = 2 << 13,
    /// Failed for good; its bytes may have landed.
    Failed = 3 << 13,
    /// The target has confirmed it in an earlier round.
    Confirmed = 4 << 13,
}

const PHASE_BITS: u16 = 7 << 13;

/// An op's phase and route in 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OpState(u16);

impl OpState {
    pub(super) const UNPOSTED: Self = Self(0);

    pub(super) const fn new(phase: OpPhase, route: u16) -> Self {
        Self(phase as u16 | route)
    }

    pub(super) const fn route(self) -> u16 {
        self.0 & !PHASE_BITS
    }

    pub(super) const fn is(self, phase: OpPhase) -> bool {
        self.0 & PHASE_BITS == phase as u16
    }
}

const _: () = assert!(crate::limits::ROUTES_MAX < 1 << 13, "a route fits beside the phase");

/// Ops to be posted on a route, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Work {
    pub(super) route: u16,
    pub(super) next: u32,
    pub(super) end: u32,
}

#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) id: TransferId,
    pub(super) plan: Arc<Plan>,
    pub(super) direction: Direction,
    pub(super) notification: Option<Vec<u8>>,
    /// The notification while it is at the target with a close: it comes back if that round proves nothing.
    pub(super) carried: Option<Vec<u8>>,
    pub(super) posted_at: Time,
    /// When the fabric took its first op; the posting until then.
    pub(super) first_op_at: Time,
    pub(super) deadline: Time,
    pub(super) phase: Phase,
    /// Set once when it is to end badly; from then on it only drains.
    pub(super) ending: Option<TransferError>,
    /// When its ops in flight are taken back, once it is to end badly: a route that serves others may still have
    /// lost one of its ops.
    pub(super) drain_by: Time,
    pub(super) ops: OpLog,
    pub(super) work: Vec<Work>,
    /// Bit `r`: queued on local rail `r`.
    pub(super) queued_on: u64,
    pub(super) in_flight: u32,
    /// Ops that have not succeeded.
    pub(super) unfinished: u32,
    pub(super) retried: u32,
    /// Bytes of failed ops may land until then.
    pub(super) linger_until: Time,
    /// Bytes of completed ops are visible by then, also where completion precedes visibility (counted evidence).
    pub(super) visible_by: Time,
    pub(super) round: Option<Round>,
}

/// A round of counted evidence: what was posted under which slot.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) slot: Slot,
    /// Writes posted per remote rail.
    pub(super) posted: Vec<u32>,
    /// When a write to each remote rail last completed.
    pub(super) done_at: Vec<Time>,
    /// Remote rails to which a write failed: their counts prove nothing.
    pub(super) doubtful: RailSet,
    /// Writes that failed: so many immediates may never come, and their credit not before the round is closed.
    pub(super) failed: u32,
}

impl Round {
    pub(super) fn new(slot: Slot, remote_rails: usize) -> Self {
        let done_at = alloc::vec![Time::ZERO; remote_rails];
        Self { slot, posted: alloc::vec![0; remote_rails], done_at, doubtful: RailSet::NONE, failed: 0 }
    }

    /// When a write to a doubtful rail last completed.
    pub(super) fn doubtful_done_at(&self) -> Time {
        let doubtful = self.doubtful.below(self.done_at.len()).map(|rail| self.done_at[rail]);
        doubtful.max().unwrap_or(Time::ZERO)
    }
}

/// The debts of a transfer (KR-6).
#[derive(Debug, Default)]
pub(super) struct OpLog(pub(super) Vec<OpState>);

impl OpLog {
    pub(super) fn reset(&mut self, ops: usize) {
        self.0.clear();
        self.0.resize(ops, OpState::UNPOSTED);
    }

    #[inline]
    pub(super) fn posted(&mut self, first: u32, count: usize, route: u16) {
        let first = first as usize;
        self.0[first..first + count].fill(OpState::new(OpPhase::InFlight, route));
    }

    /// Moves ops in flight to `to`; calls `each` with the route of each that was. Ops that were not in flight are
    /// left alone: their debt was paid before.
    #[inline]
    pub(super) fn resolve(&mut self, first: u32, count: u32, to: OpPhase, mut each: impl FnMut(u32, u16)) {
        let end = first.saturating_add(count).min(self.0.len() as u32);
        for index in first..end {
            let state = &mut self.0[index as usize];
            if state.is(OpPhase::InFlight) {
                let route = state.route();
                *state = OpState::new(to, route);
                each(index, route);
            }
        }
    }

    /// Ops in flight among `count` from `first` on, in runs with a route in common.
    pub(super) fn in_flight(&self, first: u32, count: u32) -> Vec<(u32, u32, u16)> {
        let end = first.saturating_add(count).min(self.0.len() as u32);
        let mut runs: Vec<(u32, u32, u16)> = Vec::new();
        for index in first..end {
            let state = self.0[index as usize];
            match runs.last_mut() {
                _ if !state.is(OpPhase::InFlight) => {}
                Some((_, end, route)) if *end == index && *route == state.route() => *end += 1,
                _ => runs.push((index, index + 1, state.route())),
            }
        }
        runs
    }

    /// Runs of ops for which `wanted` holds.
    pub(super) fn runs(&self, wanted: impl Fn(OpState) -> bool) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (index, state) in self.0.iter().enumerate() {
            let index = index as u32;
            match runs.last_mut() {
                _ if !wanted(*state) => {}
                Some((_, end)) if *end == index => *end += 1,
                _ => runs.push((index, index + 1)),
            }
        }
        runs
    }
}

impl Transfer {
    pub(super) fn ops(&self) -> u32 {
        self.plan.ops().len() as u32
    }

    /// Whether writes of its round may be unread at the peer.
    pub(super) fn holds_credit(&self) -> bool {
        self.round.as_ref().is_some_and(|round| round.posted.iter().any(|&posted| posted > 0))
    }

    /// Whether what goes to a remote rail now will prove anything.
    #[inline]
    pub(super) fn trusts(&self, rail: RemoteRail) -> bool {
        self.round.as_ref().is_none_or(|round| !round.doubtful.contains(rail.index()))
    }

    /// Ops among `count` from `first` on that completed on a doubtful rail are to be posted again. Whether there are
    /// any.
    pub(super) fn repeat_doubtful(
        &mut self,
        first: u32,
        count: u32,
        remote: impl Fn(u16) -> RemoteRail,
    ) -> bool {
        let Some(doubtful) = self.round.as_ref().map(|round| round.doubtful).filter(|d| !d.is_empty()) else {
            return false;
        };
        let end = first.saturating_add(count).min(self.ops());
        let mut any = false;
        for index in first..end {
            let state = self.ops.0[index as usize];
            if state.is(OpPhase::Done) && doubtful.contains(remote(state.route()).index()) {
                self.ops.0[index as usize] = OpState::new(OpPhase::Unposted, state.route());
                self.add_work(state.route(), index, index + 1);
                self.unfinished += 1;
                self.retried += 1;
                any = true;
            }
        }
        any
    }

    /// The round proves nothing: all that completed in it is to be posted again. What completed may become visible until
    /// [`Transfer::visible_by`], and the end waits for that.
    pub(super) fn repeat_done(&mut self) {
        for index in 0..self.ops() {
            let state = self.ops.0[index as usize];
            if state.is(OpPhase::Done) {
                self.ops.0[index as usize] = OpState::new(OpPhase::Unposted, state.route());
                self.add_work(state.route(), index, index + 1);
                self.unfinished += 1;
                self.retried += 1;
            }
        }
        self.linger_until = self.linger_until.max(self.visible_by);
    }

    /// Adds ops to be posted on a route, joined to the last work where they follow it.
    pub(super) fn add_work(&mut self, route: u16, first: u32, end: u32) {
        if let Some(last) = self.work.last_mut()
            && last.route == route
            && last.end == first
        {
            last.end = end;
            return;
        }
        self.work.push(Work { route, next: first, end });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_paid_once() {
        let mut log = OpLog::default();
        log.reset(5);
        log.posted(1, 3, 7);
        let mut paid = Vec::new();
        log.resolve(0, 3, OpPhase::Done, |op, route| paid.push((op, route)));
        log.resolve(0, 99, OpPhase::Failed, |op, route| paid.push((op, route)));
        assert_eq!(paid, [(1, 7), (2, 7), (3, 7)]);
        assert_eq!(log.runs(|s| s.is(OpPhase::Done)), [(1, 3)]);
        assert_eq!(log.runs(|s| s.is(OpPhase::Unposted)), [(0, 1), (4, 5)]);
    }
}
