//! Counting a peer's immediates at the target: the evidence that a write is visible (KR-1, KR-2).
//!
//! A slot is granted to one peer, counts the immediates of one round of one of its transfers per local rail, and is
//! granted anew (with another generation) once the round is closed: exactly as many immediates as the initiator says
//! it posted on every rail where all succeeded. On a rail where one failed the count proves nothing; the initiator
//! repeats those ops in another round, and closes this one only after the fabric's linger.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::id::{LocalRail, PeerId, TransferId};
use crate::limits::SLOTS_MAX;
use crate::wire::control::{Outcome, RailCount, Slot};

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
}

#[derive(Debug)]
struct State {
    generation: u16,
    owner: Option<PeerId>,
    /// Immediates per local rail in this generation; empty until the first.
    counts: Vec<u32>,
    closing: Option<Closing>,
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
    /// More immediates came than were posted.
    pub(super) overshoot: bool,
    /// Immediates that were posted and lost: credit that comes back without having been consumed.
    pub(super) lost: u64,
}

impl Evidence {
    pub(super) fn new(rails: usize) -> Self {
        Self { slots: Vec::new(), free: VecDeque::new(), rails, strays: 0 }
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
                self.slots.push(State { generation: 1, owner: None, counts: Vec::new(), closing: None });
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
        (state.owner, state.settle(slot.index))
    }

    /// The initiator closed a round. `Err` when it does not own that slot in that generation.
    pub(super) fn close(
        &mut self,
        owner: PeerId,
        slot: Slot,
        closing: Closing,
    ) -> Result<Option<Settled>, ()> {
        let state = self.slots.get_mut(usize::from(slot.index)).ok_or(())?;
        if state.owner != Some(owner) || state.generation != slot.generation || state.closing.is_some() {
            return Err(());
        }
        if closing.rails.iter().any(|c| c.rail.index() >= self.rails) {
            return Err(());
        }
        state.closing = Some(closing);
        Ok(state.settle(slot.index))
    }
}

impl State {
    fn reset(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.counts.clear();
        self.closing = None;
    }

    fn counted(&self, rail: usize) -> u32 {
        self.counts.get(rail).copied().unwrap_or(0)
    }

    /// The round, if its counts are complete.
    fn settle(&mut self, index: u16) -> Option<Settled> {
        let owner = self.owner?;
        let closing = self.closing.as_ref()?;
        let (mut overshoot, mut lost) = (false, 0);
        for expected in &closing.rails {
            let counted = self.counted(expected.rail.index());
            if expected.exact && counted < expected.posted {
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
        Some(Settled { owner, closing, slot: Slot { index, generation: self.generation }, overshoot, lost })
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
        assert!(evidence.close(PEER, slot, closing(&[(0, 1, true), (1, 1, true)])).unwrap().is_none());
        let settled = evidence.count(LocalRail(1), slot.immediate()).1.unwrap();
        assert!(!settled.overshoot);
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
        assert!(evidence.close(PEER, slot, closing(&[(0, 1, true), (1, 1, true)])).unwrap().is_none());
    }

    #[test]
    fn lost_immediates_return_their_credit() {
        let mut evidence = Evidence::new(1);
        let slot = evidence.grant(PEER, 1)[0];
        evidence.count(LocalRail(0), slot.immediate());
        let settled = evidence.close(PEER, slot, closing(&[(0, 5, false)])).unwrap().unwrap();
        assert_eq!(settled.lost, 4);
    }

    #[test]
    fn too_many_immediates_are_an_overshoot() {
        let mut evidence = Evidence::new(2);
        let slot = evidence.grant(PEER, 1)[0];
        evidence.count(LocalRail(0), slot.immediate());
        evidence.count(LocalRail(1), slot.immediate());
        assert!(evidence.close(PEER, slot, closing(&[(0, 1, true)])).unwrap().unwrap().overshoot);
    }

    #[test]
    fn a_stranger_cannot_close_a_round() {
        let mut evidence = Evidence::new(1);
        let slot = evidence.grant(PEER, 1)[0];
        let other = PeerId { slot: 1, generation: Generation(1) };
        assert!(evidence.close(other, slot, closing(&[])).is_err());
        let stale = Slot { generation: slot.generation.wrapping_sub(1), ..slot };
        assert!(evidence.close(PEER, stale, closing(&[])).is_err());
    }
}
