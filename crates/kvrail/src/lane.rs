//! A lane: one transport with its engine, and the token by which exactly one thread at a time owns its rails.
//!
//! # KR-5: one thread owns a rail
//! The token is the lane's lock. It is taken once per call or per batch, never per op: whoever holds it posts, polls
//! and reads events; nobody else touches the fabric. With a progress thread the token mostly lies idle while the
//! thread sleeps, so that a caller takes it without contention, posts its small transfer itself and, when the fabric
//! is a mapping, finds it done before it gives the token back. What cannot be finished is handed over: a sleeper
//! that relied on being woken by the fabric is kicked if the fabric, its timers or the engine want attention that
//! it does not know of.

use std::sync::Arc;
use std::task::Waker;

use kvrail_core::engine::{Engine, EngineEvent};
use kvrail_core::error::{self, PeerLostCause};
use kvrail_core::id::{Generation, LocalRail, PeerId, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::RailCounters;
use kvrail_transport::Fabric;
use parking_lot::{Mutex, MutexGuard};

use crate::core::Core;
use crate::inbox::PeerEvent;
use crate::peer::PeerRecord;
use crate::silence::{self, Silence};
use crate::stats::Latency;
use crate::transfer::{Report, TransferError};
use crate::watch::Completion;

/// One transport of an agent.
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    state: Mutex<LaneState>,
}

/// What the token's holder may touch.
pub(crate) struct LaneState {
    pub(crate) engine: Engine,
    pub(crate) fabric: Box<dyn Fabric>,
    pub(crate) prepare: Latency,
    pub(crate) post: Latency,
    pub(crate) wire: Latency,
    /// The agent has said goodbye; nothing may be started.
    pub(crate) closed: bool,
    /// Peers that were imported, by slot.
    peers: Vec<Option<Arc<PeerRecord>>>,
    /// Handles of transfers in flight, by token.
    transfers: Vec<Option<(Generation, Arc<Completion>)>>,
    in_flight: usize,
    /// When set, somebody sleeps until then and relies on the fabric's wake-up, which any poll takes away.
    armed_until: Option<Time>,
    /// When a route went down while nothing has succeeded since, and what the rails had counted then.
    trouble: Option<(Time, Vec<RailCounters>)>,
    /// To be woken once the token is given back: nobody acts inside a foreign callback.
    wakers: Vec<Waker>,
}

impl Lane {
    pub(crate) fn new(name: &'static str, engine: Engine, fabric: Box<dyn Fabric>) -> Self {
        let state = LaneState {
            engine,
            fabric,
            prepare: Latency::new(),
            post: Latency::new(),
            wire: Latency::new(),
            closed: false,
            peers: Vec::new(),
            transfers: Vec::new(),
            in_flight: 0,
            armed_until: None,
            trouble: None,
            wakers: Vec::new(),
        };
        Self { name, state: Mutex::new(state) }
    }

    /// Takes the token, waiting for it.
    #[inline]
    pub(crate) fn turn<'a>(&'a self, core: &'a Core) -> Turn<'a> {
        Turn { core, state: Some(self.state.lock()), wants_driver: false, handover: true }
    }

    /// Takes the token if nobody has it: then somebody else makes progress.
    #[inline]
    pub(crate) fn try_turn<'a>(&'a self, core: &'a Core) -> Option<Turn<'a>> {
        self.state.try_lock().map(|state| Turn {
            core,
            state: Some(state),
            wants_driver: false,
            handover: true,
        })
    }
}

/// The token. Giving it back hands over what is unfinished and wakes those whose wait has ended.
pub(crate) struct Turn<'a> {
    core: &'a Core,
    state: Option<MutexGuard<'a, LaneState>>,
    wants_driver: bool,
    handover: bool,
}

impl std::ops::Deref for Turn<'_> {
    type Target = LaneState;
    #[inline]
    fn deref(&self) -> &LaneState {
        self.state.as_ref().expect("taken only by drop")
    }
}

impl std::ops::DerefMut for Turn<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut LaneState {
        self.state.as_mut().expect("taken only by drop")
    }
}

impl Turn<'_> {
    /// One round of progress. True: something happened, another round is worth it.
    #[inline]
    pub(crate) fn drive(&mut self, now: Time) -> bool {
        let moved = self.advance(now);
        self.settle(None);
        moved
    }

    /// A round of progress without looking at events; [`Turn::settle`] follows.
    #[inline]
    pub(crate) fn advance(&mut self, now: Time) -> bool {
        let state = &mut **self;
        state.engine.drive(now, &mut *state.fabric)
    }

    /// The beginning of a round: posts, and looks at nothing.
    #[inline]
    pub(crate) fn launch(&mut self, now: Time) {
        let state = &mut **self;
        state.engine.launch(now, &mut *state.fabric);
    }

    /// Hands the engine's events to those whom they concern. `now` spares a reading of the clock.
    #[inline]
    pub(crate) fn settle(&mut self, mut now: Option<Time>) {
        let core = self.core;
        let state = &mut **self;
        // Counters may be files: read once for all that ends now.
        let mut silence: Option<Arc<Silence>> = None;
        loop {
            let event = if core.inbox.has_room() || core.inbox.hold_back() {
                state.engine.poll_event()
            } else {
                state.engine.poll_news()
            };
            let Some(event) = event else { break };
            match event {
                EngineEvent::TransferEnded { token, peer, result, .. } => {
                    let ended = *now.get_or_insert_with(|| core.clock.now());
                    let result = match result {
                        Ok(report) => {
                            let report = Report::new(&report, ended);
                            state.wire.record(report.wire);
                            state.trouble = None;
                            Ok(report)
                        }
                        Err(error) => {
                            let peer_name = state.peer_name(peer);
                            let silence = is_silence(&error).then(|| {
                                silence.get_or_insert_with(|| Arc::new(state.silence(ended))).clone()
                            });
                            Err(TransferError::Failed { peer_name, error, silence })
                        }
                    };
                    state.end(token, result);
                }
                EngineEvent::Notification { name, message, .. } => {
                    core.inbox.push(name, message, &mut state.wakers);
                }
                EngineEvent::PeerTransferFailed { name: peer_name, message, .. } => {
                    core.inbox.announce(PeerEvent::TransferFailed { peer_name, message });
                }
                EngineEvent::PeerReady { peer } => {
                    if let Some(record) = state.record(peer).cloned() {
                        record.met.take(&mut state.wakers);
                    }
                    core.inbox.announce(PeerEvent::Ready { peer_name: state.peer_name(peer) });
                }
                EngineEvent::PeerLost { peer, name: peer_name, cause } => {
                    if let Some(record) = state.record(peer).cloned() {
                        // Set once: the first cause stands.
                        let _ = record.lost.set(cause);
                        record.met.take(&mut state.wakers);
                    }
                    if cause == PeerLostCause::Silent {
                        let ended = *now.get_or_insert_with(|| core.clock.now());
                        let silence = silence.get_or_insert_with(|| Arc::new(state.silence(ended)));
                        tracing::warn!(agent = %core.name, peer = %peer_name, %cause, %silence, "peer lost");
                    } else {
                        tracing::info!(agent = %core.name, peer = %peer_name, %cause, "peer lost");
                    }
                    core.inbox.announce(PeerEvent::Lost { peer_name, cause });
                }
                EngineEvent::RouteDown { peer, route, error } => {
                    let (peer_name, rail) = (state.peer_name(peer), state.rail_name(route.local));
                    if state.trouble.is_none() {
                        let since = *now.get_or_insert_with(|| core.clock.now());
                        state.trouble = Some((since, state.counters()));
                    }
                    // A route that fails when nothing is under way is often a peer that is about to be gone.
                    if state.engine.peer(peer).is_some_and(|known| known.transfers > 0) {
                        tracing::warn!(
                            agent = %core.name, peer = %peer_name, %rail, %route, %error, "route down"
                        );
                    } else {
                        tracing::info!(
                            agent = %core.name, peer = %peer_name, %rail, %route, %error, "route down"
                        );
                    }
                    core.inbox.announce(PeerEvent::RouteDown { peer_name, rail, route, error });
                }
                EngineEvent::RouteUp { peer, route } => {
                    let (peer_name, rail) = (state.peer_name(peer), state.rail_name(route.local));
                    tracing::info!(agent = %core.name, peer = %peer_name, %rail, %route, "route up");
                    core.inbox.announce(PeerEvent::RouteUp { peer_name, rail, route });
                }
            }
        }
    }

    /// Lets the sleeper know that there is work that this caller will not do.
    pub(crate) fn leave_to_driver(&mut self) {
        self.wants_driver = true;
    }

    /// Prepares for a sleep until `until` at the latest: asks the fabric for a wake-up. `None`: something is pending,
    /// do not sleep. Otherwise when this lane wants to be driven again at the latest.
    pub(crate) fn arm(&mut self, until: Time) -> Option<Time> {
        let state = &mut **self;
        if !state.fabric.arm() {
            state.armed_until = None;
            return None;
        }
        let until = state.next_timeout().min(until);
        state.armed_until = Some(until);
        Some(until)
    }

    /// This turn ends with the fabric armed for the sleeper that holds it: nothing is to be handed over.
    pub(crate) fn stay_armed(&mut self) {
        self.handover = false;
    }

    /// Wakes those whose wait has ended and lets others that wait for the token have it for a while.
    pub(crate) fn yield_token(&mut self) {
        let Some(guard) = &mut self.state else { return };
        if guard.wakers.is_empty() {
            MutexGuard::bump(guard);
        } else {
            let wakers = guard.take_wakers();
            MutexGuard::unlocked_fair(guard, || wakers.into_iter().for_each(Waker::wake));
        }
    }

    /// The sleep is over.
    pub(crate) fn disarm(&mut self) {
        self.armed_until = None;
    }
}

impl LaneState {
    /// Keeps the record of a peer that was imported here.
    pub(crate) fn remember(&mut self, record: Arc<PeerRecord>) {
        let slot = record.id.index();
        if slot >= self.peers.len() {
            self.peers.resize_with(slot + 1, || None);
        }
        self.peers[slot] = Some(record);
    }

    fn record(&self, peer: PeerId) -> Option<&Arc<PeerRecord>> {
        self.peers.get(peer.index())?.as_ref().filter(|record| record.id == peer)
    }

    /// A peer's name for errors and events; a peer that only greeted has no record.
    fn peer_name(&self, peer: PeerId) -> Arc<str> {
        match self.record(peer) {
            Some(record) => record.name.clone(),
            None => self.engine.peer(peer).map_or_else(|| peer.to_string().into(), |view| view.name),
        }
    }

    /// A local rail's name.
    fn rail_name(&self, rail: LocalRail) -> Arc<str> {
        self.fabric
            .rails()
            .get(rail.index())
            .map_or_else(|| rail.to_string().into(), |info| info.name.as_str().into())
    }

    /// What went over each rail since it was opened. May read files.
    fn counters(&mut self) -> Vec<RailCounters> {
        let counters = self.fabric.rail_counters();
        if counters.is_empty() { silence::of_engine(&self.engine.stats().rails) } else { counters }
    }

    /// What the rails did while a peer did not answer.
    pub(crate) fn silence(&mut self, now: Time) -> Silence {
        let counters = self.counters();
        let names = self.fabric.rails().iter().map(|rail| rail.name.clone());
        let trouble = self.trouble.as_ref().map(|(since, then)| (now.since(*since), then.as_slice()));
        Silence::new(self.fabric.caps().name, names, counters, trouble)
    }

    /// Who is to be told when the transfer has ended.
    #[inline]
    pub(crate) fn expect(&mut self, token: Token, completion: Arc<Completion>) {
        let slot = token.slot as usize;
        if slot >= self.transfers.len() {
            self.transfers.resize_with(slot + 1, || None);
        }
        self.transfers[slot] = Some((token.generation, completion));
        self.in_flight += 1;
    }

    #[inline]
    fn end(&mut self, token: Token, result: Result<Report, TransferError>) {
        let slot = self.transfers.get_mut(token.slot as usize);
        let Some((_, completion)) =
            slot.and_then(|s| s.take_if(|(generation, _)| *generation == token.generation))
        else {
            return;
        };
        self.in_flight -= 1;
        completion.end(result, &mut self.wakers);
    }

    /// Transfers whose end is awaited.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Tokens of the transfers in flight.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        let slots = self.transfers.iter().enumerate();
        slots
            .filter_map(|(slot, entry)| {
                entry.as_ref().map(|(generation, _)| Token { slot: slot as u32, generation: *generation })
            })
            .collect()
    }

    /// Ends every handle: the engine will not do it any more.
    pub(crate) fn abandon(&mut self, error: &TransferError) {
        for token in self.tokens() {
            self.end(token, Err(error.clone()));
        }
    }

    pub(crate) fn take_wakers(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers)
    }

    /// When the engine or the fabric wants to be driven again even if nothing arrives.
    pub(crate) fn next_timeout(&self) -> Time {
        let engine = self.engine.poll_timeout().unwrap_or(Time::NEVER);
        engine.min(self.fabric.poll_timeout().unwrap_or(Time::NEVER))
    }
}

/// Whether an error says that something did not come.
fn is_silence(error: &error::TransferError) -> bool {
    matches!(
        error,
        error::TransferError::DeadlineExceeded { .. } | error::TransferError::PeerLost(PeerLostCause::Silent)
    )
}

impl Drop for Turn<'_> {
    #[inline]
    fn drop(&mut self) {
        let Some(mut guard) = self.state.take() else { return };
        let state = &mut *guard;
        let mut kick = self.wants_driver;
        if self.handover
            && let Some(until) = state.armed_until
            && (!state.fabric.arm() || state.next_timeout() < until)
        {
            // The sleeper relied on a wake-up that this turn's polls took away, or on a timer that is now earlier.
            kick = true;
        }
        if kick {
            state.armed_until = None;
        }
        let wakers = if state.wakers.is_empty() { Vec::new() } else { state.take_wakers() };
        drop(guard);
        if kick {
            self.core.sleeper.kick();
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}
