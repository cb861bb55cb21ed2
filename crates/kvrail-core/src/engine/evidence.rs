//! Counting a peer's immediates at the target: the evidence that a write is visible (KR-1, KR-2).
//!
//! A slot is granted to one peer, counts the immediates of one round of one of its transfers per local rail, and is
//! granted anew (with another generation) once the round is closed: exactly as many immediates as the initiator says
//! it posted on every rail where all succeeded. On a rail where one failed the count proves nothing; the initiator
//! repeats those ops, and closes the round only after the fabric's linger.
//!
//! When this agent replaces an endpoint, immediates that had arrived there may be gone, of writes that their initiator
//! saw complete. The rounds that were open then are in *doubt*: an exact count still proves what it proves, but one that is
//! short when nothing can come any more is answered as lost, and the initiator goes on in another round.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::id::{LocalRail, PeerId, TransferId};
use crate::limits::SLOTS_MAX;
use crate::time::Time;
use crate::wire::control::{Outcome, RailCount, Slot, Verdict};

/// Freed slots that wait before the oldest of them is granted again.
const SLOTS_RESTING: usize = 1024;

#[derive(Debug)]
pub(super) struct Evidence {
    slots: Vec<State>,
    /// Free slots, oldest first: a slot rests as long as possible before another peer gets it.
    free: VecDeque<u16>,
    rails: usize,
    /// Immediates that belong to no open round.
    pub(super) strays: u64,
    /// Closed rounds in doubt, and when nothing more can come for each; oldest first.
    doubted: VecDeque<(Time, Slot)>,
}

#[derive(Debug)]
struct State {
    generation: u16,
    owner: Option<PeerId>,
    /// Immediates per local rail in this generation; empty until the first.
    counts: Vec<u32>,
    closing: Option<Closing>,
    /// An endpoint was replaced in this generation: immediates may be missing.
    in_doubt: bool,
}

/// What the initiator said when it closed the round.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) transfer: TransferId,
    pub(super) outcome: Outcome,
    pub(super) rails: Vec<RailCount>,
    pub(super) notification: Option<Vec<u8>>,
}

/// A round whose announced bytes are all visible.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) owner: PeerId,
    pub(super) closing: Closing,
    /// The slot as it is granted anew.
    pub(super) slot: Slot,
    /// What the round proves.
    pub(super) verdict: Verdict,
    /// Immediates that were posted and lost: credit that comes back without having been consumed.
    pub(super) lost: u64,
}

impl Evidence {
    pub(super) fn new(rails: usize) -> Self {
        Self { slots: Vec::new(), free: VecDeque::new(), rails, strays: 0, doubted: VecDeque::new() }
    }

    /// Slots that there are, granted or not.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Grants up to `count` slots to a peer.
    pub(super) fn grant(&mut self, owner: PeerId, count: usize) -> Vec<Slot> {
        let mut granted = Vec::with_capacity(count);
        while granted.len() < count {
            let index = if self.free.len() < SLOTS_RESTING && self.slots.len() < SLOTS_MAX {
                self.slots.push(State {
                    generation: 1,
                    owner: None,
                    counts: Vec::new(),
                    closing: None,
                    in_doubt: false,
                });
                (self.slots.len() - 1) as u16
            } else {
                let Some(index) = self.free.pop_front() else { break };
                index
            };
            let state = &mut self.slots[usize::from(index)];
            state.owner = Some(owner);
            granted.push(Slot { index, generation: state.generation });
        }
        granted
    }

    /// Takes all slots of a peer back.
    pub(super) fn revoke(&mut self, owner: PeerId) {
        for (index, state) in self.slots.iter_mut().enumerate() {
            if state.owner == Some(owner) {
                state.owner = None;
                state.reset();
                self.free.push_back(index as u16);
            }
        }
    }

    /// Counts one immediate. Returns whose it was (it consumed a receive of that peer's credit), and the round if it
    /// settled now.
    pub(super) fn count(&mut self, rail: LocalRail, immediate: u32) -> (Option<PeerId>, Option<Settled>) {
        let slot = Slot::from_immediate(immediate);
        let rails = self.rails;
        let state = self.slots.get_mut(usize::from(slot.index)).filter(|s| s.generation == slot.generation);
        let Some(state) = state.filter(|s| s.owner.is_some()) else {
            self.strays += 1;
            return (None, None);
        };
        if state.counts.is_empty() {
            state.counts.resize(rails, 0);
        }
        let Some(count) = state.counts.get_mut(rail.index()) else { return (state.owner, None) };
        *count += 1;
        (state.owner, state.settle(slot.index, false))
    }

    /// An endpoint was replaced: counts may be short from now on. Nothing that was posted before comes after `quiet_at`.
    pub(super) fn doubt(&mut self, quiet_at: Time) {
        for (index, state) in self.slots.iter_mut().enumerate().filter(|(_, s)| s.owner.is_some()) {
            if state.closing.is_some() && !state.in_doubt {
                let slot = Slot { index: index as u16, generation: state.generation };
                self.doubted.push_back((quiet_at, slot));
            }
            state.in_doubt = true;
        }
    }

    /// When [`Evidence::lost`] has something to say.
    pub(super) fn lost_at(&self) -> Time {
        self.doubted.front().map_or(Time::NEVER, |(at, _)| *at)
    }

    /// The next round whose missing immediates will not come any more.
    pub(super) fn lost(&mut self, now: Time) -> Option<Settled> {
        while let Some((_, slot)) = self.doubted.front().copied().filter(|(at, _)| *at <= now) {
            self.doubted.pop_front();
            let state = self.slots.get_mut(usize::from(slot.index))?;
            if state.generation == slot.generation
                && let Some(settled) = state.settle(slot.index, true)
            {
                return Some(settled);
            }
        }
        None
    }

    /// The initiator closed a round, all of whose immediates come until `quiet_at`. `Err` when it does not own that slot in that generation.
    pub(super) fn close(
        &mut self,
        owner: PeerId,
        slot: Slot,
        closing: Closing,
        quiet_at: Time,
    ) -> Result<Option<Settled>, ()> {
        let state = self.slots.get_mut(usize::from(slot.index)).ok_or(())?;
        if state.owner != Some(owner) || state.generation != slot.generation || state.closing.is_some() {
            return Err(());
        }
        if closing.rails.iter().any(|c| c.rail.index() >= self.rails) {
            return Err(());
        }
        state.closing = Some(closing);
        let settled = state.settle(slot.index, false);
        if settled.is_none() && state.in_doubt {
            self.doubted.push_back((quiet_at, slot));
        }
        Ok(settled)
    }
}

impl State {
    fn reset(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.counts.clear();
        self.closing = None;
        self.in_doubt = false;
    }

    fn counted(&self, rail: usize) -> u32 {
        self.counts.get(rail).copied().unwrap_or(0)
    }

    /// The round, if its counts are complete, or if nothing can complete them any more.
    fn settle(&mut self, index: u16, is_quiet: bool) -> Option<Settled> {
        let owner = self.owner?;
        let closing = self.closing.as_ref()?;
        let (mut overshoot, mut short, mut lost) = (false, false, 0);
        for expected in &closing.rails {
            let counted = self.counted(expected.rail.index());
            short |= expected.exact && counted < expected.posted;
            if short && !is_quiet {
                return None;
            }
            overshoot |= counted > expected.posted;
            lost += u64::from(expected.posted.saturating_sub(counted));
        }
        // An immediate on a rail to which nothing was posted.
        let announced = |rail: usize| closing.rails.iter().any(|c| c.rail.index() == rail);
        overshoot |= self.counts.iter().enumerate().any(|(rail, &n)| n > 0 && !announced(rail));
        let closing = self.closing.take()?;
        self.reset();
        let verdict = match (overshoot, short) {
            (true, _) => Verdict::Overshoot,
            (false, true) => Verdict::Lost,
            (false, false) => Verdict::Visible,
        };
        Some(Settled { owner, closing, slot: Slot { index, generation: self.generation }, verdict, lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Generation, RemoteRail};

    const PEER: PeerId = PeerId { slot: 0, generation: Generation(1) };

    fn closing(rails: &[(u16, u32, bool)]) -> Closing {
        let rails = rails.iter().map(|&(r, posted, exact)| RailCount { rail: RemoteRail(r), posted, exact });
        Closing {
            transfer: TransferId(1),
            outcome: Outcome::Done,
            rails: rails.collect(),
            notification: None,
        }
    }

    #[test]
    fn a_round_settles_with_the_last_immediate_whichever_comes_last() {
        let mut evidence = Evidence::new(2);
        let slot = evidence.grant(PEER, 1)[0];
        assert!(evidence.count(LocalRail(0), slot.immediate()).1.is_none());
        assert!(
            evidence
                .close(PEER, slot, closing(&[(0, 1, true), (1, 1, true)]), Time::NEVER)
                .unwrap()
                .is_none()
        );
        let settled = evidence.count(LocalRail(1), slot.immediate()).1.unwrap();
        assert_eq!(settled.verdict, Verdict::Visible);
        assert_ne!(settled.slot.generation, slot.generation);
        // The old generation is over: its immediates are strays.
        assert_eq!(evidence.count(LocalRail(1), slot.immediate()).0, None);
        assert_eq!(evidence.strays, 1);
    }

    #[test]
    fn one_rail_does_not_vouch_for_another() {
        let mut evidence = Evidence::new(2);
        let slot = evidence.grant(PEER, 1)[0];
        evidence.count(LocalRail(0), slot.immediate());
        evidence.count(LocalRail(0), slot.immediate());
        assert!(
            evidence
                .close(PEER, slot, closing(&[(0, 1, true), (1, 1, true)]), Time::NEVER)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn lost_immediates_return_their_credit() {
        let mut evidence = Evidence::new(1);
        let slot = evidence.grant(PEER, 1)[0];
        evidence.count(LocalRail(0), slot.immediate());
        let settled = evidence.close(PEER, slot, closing(&[(0, 5, false)]), Time::NEVER).unwrap().unwrap();
        assert_eq!(settled.lost, 4);
    }

    #[test]
    fn too_many_immediates_are_an_overshoot() {
        let mut evidence = Evidence::new(2);
        let slot = evidence.grant(PEER, 1)[0];
        evidence.count(LocalRail(0), slot.immediate());
        evidence.count(LocalRail(1), slot.immediate());
        let settled = evidence.close(PEER, slot, closing(&[(0, 1, true)]), Time::NEVER).unwrap().unwrap();
        assert_eq!(settled.verdict, Verdict::Overshoot);
    }

    #[test]
    fn immediates_missed_with_an_endpoint_are_lost_only_once_nothing_can_come() {
        let mut evidence = Evidence::new(2);
        let slots = evidence.grant(PEER, 3);
        for slot in &slots {
            evidence.count(LocalRail(0), slot.immediate());
        }
        // One is closed before the endpoint is replaced, one after it, and one is complete although in doubt.
        assert!(evidence.close(PEER, slots[0], closing(&[(0, 2, true)]), Time(5)).unwrap().is_none());
        evidence.doubt(Time(10));
        assert!(evidence.close(PEER, slots[1], closing(&[(0, 3, true)]), Time(20)).unwrap().is_none());
        let settled = evidence.close(PEER, slots[2], closing(&[(0, 1, true)]), Time(20)).unwrap().unwrap();
        assert_eq!(settled.verdict, Verdict::Visible);
        assert_eq!(evidence.lost_at(), Time(10));
        assert!(evidence.lost(Time(9)).is_none());
        let settled = evidence.lost(Time(10)).unwrap();
        assert_eq!((settled.verdict, settled.lost), (Verdict::Lost, 1));
        evidence.count(LocalRail(0), slots[1].immediate());
        let late = evidence.count(LocalRail(0), slots[1].immediate()).1.unwrap();
        assert_eq!(late.verdict, Verdict::Visible);
        assert!(evidence.lost(Time(99)).is_none());
        // A slot of the next generation is above doubt.
        assert!(evidence.close(PEER, late.slot, closing(&[(0, 1, true)]), Time(30)).unwrap().is_none());
        assert_eq!(evidence.lost_at(), Time::NEVER);
    }

    #[test]
    fn a_stranger_cannot_close_a_round() {
        let mut evidence = Evidence::new(1);
        let slot = evidence.grant(PEER, 1)[0];
        let other = PeerId { slot: 1, generation: Generation(1) };
        assert!(evidence.close(other, slot, closing(&[]), Time::NEVER).is_err());
        let stale = Slot { generation: slot.generation.wrapping_sub(1), ..slot };
        assert!(evidence.close(PEER, stale, closing(&[]), Time::NEVER).is_err());
    }
}
