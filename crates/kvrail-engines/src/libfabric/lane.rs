//! The rails of one posting thread, the flights that are on them, and, at a target, the counts of what arrives.
//!
//! A write on a provider whose completion proves delivery asks for that, and has ended when its operations have. On others
//! each write carries the initiator's tag as immediate; the target counts them and says so when it is asked (`Close`), and
//! every so many, which is what lets the initiator post on: it never has more uncounted writes than the target's queues hold.
//!
//! Nothing is repeated and no rail replaces another. What fails ends the lane: its endpoints are closed, and when that has
//! returned nothing of it touches memory any more (KR-7).

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_sys::libfabric::abi::{FI_COMPLETION, FI_DELIVERY_COMPLETE, FI_REMOTE_CQ_DATA, fi_addr_t};

use super::offer::{Message, Offer, Word};
use super::rail::{Destination, Event, IMMEDIATES, Op, Rail};
use crate::error::{EngineError, Kind};

/// Operations posted on a rail before the next one has its turn: enough for one doorbell to pay, few enough for all rails to
/// start at once.
const BURST: usize = 16;
/// Writes of an initiator that its target has not counted, over all its lanes: half, because two may write at once.
const UNCOUNTED_MAX: usize = IMMEDIATES / 2;

/// What is posted: each rail's operations, laid out once.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) peer: u32,
    pub(super) read: bool,
    /// Of each rail.
    pub(super) ops: Vec<Vec<Op>>,
}

/// One posting.
struct Flight {
    plan: Arc<Plan>,
    /// Operations of each rail that were posted.
    posted: Vec<usize>,
    unposted: usize,
    in_flight: usize,
    /// How many writes of this lane the target will have counted when those of this flight are among them.
    counted_at: Option<u64>,
    /// Nobody waits for it any more.
    is_abandoned: bool,
}

/// A target, as a lane of an initiator sees it.
struct Target {
    /// Of each rail here.
    rails: Vec<Destination>,
    len: u64,
    written: u64,
    counted: u64,
    welcomes: usize,
}

/// A lane of an initiator, as its target sees it.
struct Source {
    tag: u32,
    /// The rail here and the address there of each of its rails.
    rails: Vec<(usize, fi_addr_t)>,
    peer: u32,
    count_every: u64,
    counted: u64,
    asked: u64,
    told: u64,
}

/// A lane. See the module.
pub(super) struct Lane {
    tag: u32,
    /// Whether completions of writes prove nothing and are counted.
    counts: bool,
    window: u64,
    rails: Vec<Rail>,
    flights: Vec<Option<Flight>>,
    /// Flights that have operations to post, first come first.
    waiting: VecDeque<u32>,
    targets: Vec<Target>,
    sources: Vec<Source>,
    /// The source of the last immediate: most often that of the next one, too.
    last: usize,
    events: Vec<Event>,
    broken: Option<EngineError>,
}

impl Lane {
    pub(super) fn new(tag: u32, counts: bool, lanes: usize, rails: Vec<Rail>) -> Self {
        Self {
            tag,
            counts,
            window: (UNCOUNTED_MAX / lanes.max(1)).max(16) as u64,
            rails,
            flights: Vec::new(),
            waiting: VecDeque::new(),
            targets: Vec::new(),
            sources: Vec::new(),
            last: 0,
            events: Vec::new(),
            broken: None,
        }
    }

    pub(super) fn rails(&self) -> &[Rail] {
        &self.rails
    }

    fn check(&self) -> Result<(), EngineError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Learns of an initiator, whose lanes this one serves as far as their numbers fall on it.
    pub(super) fn admit(&mut self, offer: &Offer, (own, lanes): (usize, usize)) -> Result<(), EngineError> {
        self.check()?;
        for (number, theirs) in offer.lanes.iter().enumerate().filter(|(number, _)| number % lanes == own) {
            let tag = offer.tag | number as u32;
            if self.sources.iter().any(|source| source.tag == tag) {
                let what = format!("two initiators have the tag {tag:#x}, or one was admitted twice");
                return Err(EngineError::new(Kind::Peer, what).hint("start the initiator again"));
            }
            let rails = theirs.iter().enumerate().map(|(i, rail)| {
                let here = i % self.rails.len();
                self.rails[here].meet(rail).map(|to| (here, to.address))
            });
            let rails = rails.collect::<Result<_, _>>()?;
            let (peer, count_every) = (0, u64::MAX);
            self.sources.push(Source { tag, rails, peer, count_every, counted: 0, asked: 0, told: 0 });
        }
        Ok(())
    }

    /// Learns of a target; the number that it has here.
    pub(super) fn meet(&mut self, offer: &Offer, own: usize) -> Result<u32, EngineError> {
        self.check()?;
        let theirs = &offer.lanes[own % offer.lanes.len()];
        let meet = |(i, rail): (usize, &Rail)| rail.meet(&theirs[i % theirs.len()]);
        let rails = self.rails.iter().enumerate().map(meet).collect::<Result<_, _>>()?;
        self.targets.push(Target { rails, len: offer.len, written: 0, counted: 0, welcomes: 0 });
        Ok(self.targets.len() as u32 - 1)
    }

    /// Bytes of a target's memory.
    pub(super) fn target_len(&self, peer: u32) -> Option<u64> {
        self.targets.get(peer as usize).map(|target| target.len)
    }

    /// Says to a target that this lane is there, over each rail.
    pub(super) fn greet(&mut self, peer: u32) -> Result<(), EngineError> {
        let Some(target) = self.targets.get(peer as usize) else { return Ok(()) };
        for (i, (rail, to)) in self.rails.iter_mut().zip(&target.rails).enumerate() {
            let value = self.window / 4;
            rail.send(to.address, Message { kind: Word::Hello, rail: i as u8, peer, tag: self.tag, value })?;
        }
        Ok(())
    }

    /// Rails over which a target has answered.
    pub(super) fn welcomed(&self, peer: u32) -> usize {
        self.targets.get(peer as usize).map_or(0, |target| target.welcomes)
    }

    /// Takes a posting up and posts what can be; its number.
    pub(super) fn post(&mut self, plan: &Arc<Plan>) -> Result<u32, EngineError> {
        self.check()?;
        let flight = Flight {
            posted: vec![0; self.rails.len()],
            unposted: plan.ops.iter().map(Vec::len).sum(),
            in_flight: 0,
            counted_at: None,
            is_abandoned: false,
            plan: Arc::clone(plan),
        };
        let free = self.flights.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.flights.len());
        if free.is_none() {
            self.flights.push(None);
        }
        self.flights[slot] = Some(flight);
        self.waiting.push_back(slot as u32);
        while self.turn()? && !self.waiting.is_empty() {}
        Ok(slot as u32)
    }

    /// Whether a flight has ended; it is forgotten then.
    #[inline]
    pub(super) fn end(&mut self, slot: u32) -> bool {
        let Some(flight) = self.flights.get_mut(slot as usize) else { return true };
        let ended = flight.as_ref().is_none_or(|flight| flight.has_ended(&self.targets));
        if ended {
            *flight = None;
        }
        ended
    }

    /// Nobody waits for a flight any more. What is in flight ends by itself; the memory stays.
    pub(super) fn abandon(&mut self, slot: u32) {
        if let Some(Some(flight)) = self.flights.get_mut(slot as usize) {
            flight.is_abandoned = true;
            flight.unposted = 0;
            self.waiting.retain(|&waiting| waiting != slot);
        }
        self.forget_abandoned();
    }

    fn forget_abandoned(&mut self) {
        for flight in &mut self.flights {
            if flight.as_ref().is_some_and(|f| f.is_abandoned && f.in_flight == 0) {
                *flight = None;
            }
        }
    }

    /// Ends the lane: closes its endpoints. Afterwards nothing of it is in flight.
    pub(super) fn close(&mut self, error: EngineError) -> EngineError {
        self.rails.clear();
        self.flights.clear();
        self.waiting.clear();
        self.broken.get_or_insert(error).clone()
    }

    /// Posts what can be, and takes what has come; whether there was any of it. A failure ends the lane.
    #[inline]
    pub(super) fn turn(&mut self) -> Result<bool, EngineError> {
        self.check()?;
        match self.turn_once() {
            Ok(moved) => Ok(moved),
            Err(error) => Err(self.close(error)),
        }
    }

    fn turn_once(&mut self) -> Result<bool, EngineError> {
        let mut moved = false;
        if let Some(&slot) = self.waiting.front() {
            moved |= self.post_some(slot)?;
        }
        let mut events = std::mem::take(&mut self.events);
        for rail in &mut self.rails {
            moved |= rail.poll(|event| events.push(event))?;
        }
        for event in events.drain(..) {
            self.take(event)?;
        }
        self.events = events;
        Ok(moved)
    }

    /// Posts a burst of a flight on each rail; whether any was taken.
    fn post_some(&mut self, slot: u32) -> Result<bool, EngineError> {
        let Self { rails, flights, waiting, targets, .. } = self;
        let Some(flight) = flights.get_mut(slot as usize).and_then(Option::as_mut) else {
            waiting.pop_front();
            return Ok(false);
        };
        let plan = Arc::clone(&flight.plan);
        let Some(target) = targets.get_mut(plan.peer as usize) else { return Ok(false) };
        let counts = self.counts && !plan.read;
        let flags = match (plan.read, counts) {
            (false, true) => FI_COMPLETION | FI_REMOTE_CQ_DATA,
            (false, false) => FI_COMPLETION | FI_DELIVERY_COMPLETE,
            (true, _) => FI_COMPLETION,
        };
        let before = flight.unposted;
        for (i, rail) in rails.iter_mut().enumerate() {
            let left = plan.ops[i].get(flight.posted[i]..).unwrap_or_default();
            let room =
                if counts { self.window.saturating_sub(target.written - target.counted) } else { u64::MAX };
            let burst = left.len().min(BURST).min(usize::try_from(room).unwrap_or(usize::MAX));
            if burst == 0 {
                continue;
            }
            let taken = rail.post(plan.read, &left[..burst], target.rails[i], slot, (flags, self.tag))?;
            flight.posted[i] += taken;
            flight.unposted -= taken;
            flight.in_flight += taken;
            target.written += if counts { taken as u64 } else { 0 };
        }
        if flight.unposted == 0 {
            waiting.pop_front();
            if counts {
                flight.counted_at = Some(target.written);
                let (tag, peer, value) = (self.tag, plan.peer, target.written);
                let close = Message { kind: Word::Close, rail: 0, peer, tag, value };
                rails[0].send(target.rails[0].address, close)?;
            }
        }
        Ok(flight.unposted < before)
    }

    #[inline]
    fn take(&mut self, event: Event) -> Result<(), EngineError> {
        match event {
            Event::Done(slot) => {
                let Some(flight) = self.flights.get_mut(slot as usize).and_then(Option::as_mut) else {
                    return Ok(());
                };
                flight.in_flight -= 1;
                if flight.is_abandoned {
                    self.forget_abandoned();
                }
                Ok(())
            }
            Event::Immediate(tag) => self.count(tag),
            Event::Message(message) => self.hear(message),
        }
    }

    /// A write of a source has arrived.
    #[inline]
    fn count(&mut self, tag: u32) -> Result<(), EngineError> {
        if self.sources.get(self.last).is_none_or(|source| source.tag != tag) {
            // One that was not admitted cannot be told.
            let Some(at) = self.sources.iter().position(|source| source.tag == tag) else { return Ok(()) };
            self.last = at;
        }
        let source = &mut self.sources[self.last];
        source.counted += 1;
        if source.counted - source.told >= source.count_every || source.counted == source.asked {
            return self.tell(self.last);
        }
        Ok(())
    }

    /// Tells a source how many writes of it have arrived.
    fn tell(&mut self, at: usize) -> Result<(), EngineError> {
        let source = &mut self.sources[at];
        source.told = source.counted;
        let counted = Message {
            kind: Word::Counted,
            rail: 0,
            peer: source.peer,
            tag: source.tag,
            value: source.counted,
        };
        let (here, to) = source.rails[0];
        self.rails[here].send(to, counted)
    }

    fn hear(&mut self, message: Message) -> Result<(), EngineError> {
        let Message { kind, rail, peer, tag, value } = message;
        match kind {
            Word::Welcome | Word::Counted => {
                let Some(target) = self.targets.get_mut(peer as usize).filter(|_| tag == self.tag) else {
                    return Ok(());
                };
                if kind == Word::Welcome {
                    target.welcomes += 1;
                } else if value > target.written {
                    let what = format!("the target has counted {value} writes of {}", target.written);
                    return Err(EngineError::new(Kind::Peer, what));
                } else {
                    target.counted = target.counted.max(value);
                }
            }
            Word::Hello | Word::Close => {
                let Some(at) = self.sources.iter().position(|source| source.tag == tag) else {
                    return Ok(());
                };
                let source = &mut self.sources[at];
                if kind == Word::Hello {
                    (source.peer, source.count_every) = (peer, value.max(1));
                    let Some(&(here, to)) = source.rails.get(usize::from(rail)) else { return Ok(()) };
                    return self.rails[here].send(to, Message { kind: Word::Welcome, ..message });
                }
                source.asked = source.asked.max(value);
                if source.counted >= source.asked {
                    return self.tell(at);
                }
            }
        }
        Ok(())
    }
}

impl Flight {
    #[inline]
    fn has_ended(&self, targets: &[Target]) -> bool {
        let counted = || {
            let target = targets.get(self.plan.peer as usize);
            self.counted_at.is_none_or(|at| target.is_some_and(|target| target.counted >= at))
        };
        self.unposted == 0 && self.in_flight == 0 && counted()
    }
}
