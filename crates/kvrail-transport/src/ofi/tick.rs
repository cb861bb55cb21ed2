//! What happens beside the data path: words of other transports, endpoints that are replaced, peers that leave, and
//! everything that waits for the clock.

use std::time::Duration;

use kvrail_core::id::{Generation, PeerId, RegionId, RemoteRail};
use kvrail_core::time::Time;
use kvrail_core::transport::{Event, PostError};

use super::Ofi;
use super::control::WEDGED_AFTER;
use super::heap;
use super::intake::Unknown;
use super::peers::Peer;
use super::rail::{Rail, State, Which};
use super::region::Revocation;
use super::word::{Heard, Word};

/// How often what waits is looked at.
const TICK: Duration = Duration::from_millis(1);
/// How often the provider's own events are read, and old fragments forgotten.
const SLOW_TICK: Duration = Duration::from_millis(20);
/// How long ops to a peer that was removed may go on, so that its end does not cost others their endpoint.
const DEPART_WITHIN: Duration = Duration::from_millis(250);
/// Pause between two requests to give up a region.
const REVOKE_AGAIN: Duration = Duration::from_millis(20);
/// How long peers have to give up a region.
const REVOKE_WITHIN: Duration = Duration::from_millis(500);
/// Pause between two looks at whether a peer's other rails are there.
const PROBE_AGAIN: Duration = Duration::from_millis(100);

impl Ofi {
    // --- words ---

    /// Takes in what other transports said, and what polling left to be concluded.
    pub(super) fn listen(&mut self, now: Time) {
        for heard in std::mem::take(&mut self.heard) {
            self.hear(now, heard);
        }
        for import in std::mem::take(&mut self.settled) {
            self.drop_import(import);
        }
        for (peer, remote, is_gone) in std::mem::take(&mut self.gone) {
            let Some(peer) = self.peers.get_mut(peer) else { continue };
            if is_gone {
                peer.rail_gone(now, remote.index());
                self.hurry(now);
            } else {
                peer.rail_alive(remote.index());
            }
        }
        for Unknown { peer, local, remote, to } in std::mem::take(&mut self.unknown) {
            let (local, remote) = (local.index(), remote.index());
            let link = self.peers.get_mut(peer).and_then(|peer| peer.link_mut(local, remote));
            // Once for all ops of the batch, and not for those to an endpoint that has been replaced since.
            if link.is_some_and(|link| link.leads_to(to) && link.ask_due().is_none()) {
                self.ask(now, peer, local, remote);
            }
        }
    }

    fn hear(&mut self, now: Time, Heard { rail, instance, word }: Heard) {
        // From somebody who was not introduced by the engine (yet), or no longer: it says so again if it matters.
        let Some(id) = self.peers.of(instance) else { return };
        match word {
            Word::Introduce(said) => self.hear_introduction(now, id, rail.index(), said, true),
            Word::Introduced(said) => self.hear_introduction(now, id, rail.index(), said, false),
            Word::Revoke { region, generation } => self.hear_revoke(id, region, generation),
            Word::Revoked { region, generation } => {
                let known = self.regions.get_mut(region.index()).and_then(Option::as_mut);
                let Some(known) = known.filter(|known| known.info.generation == generation) else { return };
                if let Some(revocation) = &mut known.revocation {
                    revocation.waiting.retain(|peer| *peer != id);
                }
            }
        }
    }

    /// Says a word over a pair of rails. What is not taken is said again later by whoever needs it said.
    pub(super) fn say(
        &mut self,
        now: Time,
        peer: PeerId,
        (local, remote): (usize, usize),
        word: &Word,
    ) -> bool {
        let Ok(to) = self.reach(Which::Control, peer, local, remote) else { return false };
        let bytes = word.encode(self.address.instance);
        let Some(rail) = self.rails.get_mut(local) else { return false };
        let said = rail.say(now, to, &bytes, (peer, RemoteRail(remote as u16)));
        if rail.has_outbox() {
            self.hurry(now);
        }
        said
    }

    /// Says a word on any pair of rails that can be used.
    fn say_anyhow(&mut self, now: Time, peer: PeerId, word: &Word) -> Result<(), PostError> {
        let remotes = self.peers.get(peer).ok_or(PostError::UnknownPeer)?.address.rails.len();
        for local in 0..self.rails.len() {
            let remote = local % remotes.max(1);
            if self.say(now, peer, (local, remote), word) {
                return Ok(());
            }
        }
        Err(PostError::RouteDown)
    }

    // --- regions that end ---

    /// Withdraws a region from every peer. `Ok` when none of them can post to it any more.
    pub(super) fn revoke(&mut self, id: RegionId) -> Result<(), String> {
        let now = self.now;
        let everybody = || self.peers.iter().map(|peer| peer.id).collect();
        let Some(region) = self.regions.get_mut(id.index()).and_then(Option::as_mut) else { return Ok(()) };
        let generation = region.info.generation;
        let Some(revocation) = &mut region.revocation else {
            let waiting: Vec<PeerId> = everybody();
            if waiting.is_empty() {
                return Ok(());
            }
            let count = waiting.len();
            let due = now + REVOKE_AGAIN;
            region.revocation = Some(Revocation { since: now, due, waiting: waiting.clone() });
            for peer in waiting {
                // Said again when it is due.
                let _ = self.say_anyhow(now, peer, &Word::Revoke { region: id, generation });
            }
            self.hurry(due);
            return Err(format!("{id} is being withdrawn from {count} peers"));
        };
        if revocation.waiting.is_empty() {
            return Ok(());
        }
        let (since, count) = (revocation.since, revocation.waiting.len());
        if now.since(since) < REVOKE_WITHIN {
            return Err(format!("{id} is still being withdrawn from {count} peers"));
        }
        log::warn!(
            "{count} peers did not give up {id} within {REVOKE_WITHIN:?}: what is in flight from them is cut off"
        );
        if self.manners.replace {
            for rail in 0..self.rails.len() {
                self.replace(now, rail, Which::Data);
            }
        }
        Ok(())
    }

    fn hear_revoke(&mut self, id: PeerId, region: RegionId, generation: Generation) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.revoke(region, generation);
        if !peer.owed.contains(&(region, generation)) {
            peer.owed.push((region, generation));
        }
        let import = peer.imported.get(region);
        let covered = import.filter(|&import| {
            self.imports.get(import).is_some_and(|known| peer.has_revoked(region, known.generation))
        });
        if let Some(import) = covered {
            self.end_import(import);
        }
        self.answer_revocations(id);
    }

    /// Answers those withdrawals that nothing in flight is in the way of.
    pub(super) fn answer_revocations(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let owed = std::mem::take(&mut peer.owed);
        for (region, generation) in owed {
            let busy = self.imports.is_busy(id, region);
            let word = Word::Revoked { region, generation };
            if busy || self.say_anyhow(self.now, id, &word).is_err() {
                // What is not said is asked for again; what is busy is answered when it has ended.
                if busy && let Some(peer) = self.peers.get_mut(id) {
                    peer.owed.push((region, generation));
                }
            }
        }
    }

    // --- endpoints that are replaced ---

    /// Closes one of a rail's endpoints, which ends everything in flight on it, and opens another.
    pub(super) fn replace(&mut self, now: Time, rail: usize, which: Which) {
        if self.facts.provider == "efa" {
            heap::map_large_blocks();
        }
        let key = self.keys.next();
        let mut events = std::mem::take(&mut self.backlog);
        self.with_intake(now, &mut events, |rails, intake| {
            if let Some(rail) = rails.get_mut(rail) {
                rail.replace(which, intake, key);
            }
        });
        self.backlog = events;
        self.reopened(now, rail, which);
    }

    pub(super) fn replace_wounded(&mut self, now: Time) {
        for rail in 0..self.rails.len() {
            if self.rails[rail].control.wounded.is_some() {
                self.replace(now, rail, Which::Control);
            }
            if self.rails[rail].data.wounded.is_some() {
                self.replace(now, rail, Which::Data);
            }
        }
    }

    /// A rail has a new endpoint, or none.
    fn reopened(&mut self, now: Time, rail: usize, which: Which) {
        self.hurry(now);
        let known = &self.rails[rail];
        let retry = match which {
            Which::Data => known.data.retry(),
            Which::Control => known.control.retry(),
        };
        if retry.is_some() {
            return;
        }
        if let Err(error) = self.watch(rail) {
            log::warn!("rail {}: its queue cannot wake a sleeper: {error}", self.rails[rail].name);
        }
        match which {
            // The engine says it to all peers, over whatever rails.
            Which::Control => self.address.rails[rail] = self.rail_address(rail),
            Which::Data => self.tell(now, rail),
        }
        self.backlog.push(Event::AddressChanged);
    }

    // --- peers that leave ---

    /// Lets go of everything of a peer that was removed.
    pub(super) fn forget(&mut self, now: Time, peer: &Peer) {
        self.reassembly.forget(peer.address.instance);
        for rail in &mut self.rails {
            let index = rail.index.index();
            if let State::Up(port) = &rail.data.state {
                for to in peer.reaches_of(Which::Data, index, rail.data.epoch) {
                    rail.book.leave(&port.bound.addresses, to);
                }
            }
            if let State::Up(control) = &mut rail.control.state {
                for to in peer.reaches_of(Which::Control, index, rail.control.epoch) {
                    control.book.leave(&control.bound.addresses, to);
                }
            }
        }
        let imports: Vec<u32> = peer.imported.iter().collect();
        for import in imports {
            self.end_import(import);
        }
        for region in self.regions.iter_mut().flatten() {
            if let Some(revocation) = &mut region.revocation {
                revocation.waiting.retain(|waiting| *waiting != peer.id);
            }
        }
        if self.rails.iter().any(|rail| rail.carries_ops_of(peer.id, None)) {
            self.departing.push((peer.id, now + DEPART_WITHIN));
            self.hurry(now + DEPART_WITHIN);
        }
    }

    // --- the clock ---

    /// Looks at everything that waits.
    pub(super) fn tick(&mut self, now: Time) {
        self.pending = false;
        if now >= self.slow_due {
            self.slow_due = now + SLOW_TICK;
            self.reassembly.expire(now);
            self.rails.iter_mut().for_each(Rail::read_events);
            self.tick_wedged(now);
        }
        self.tick_rails(now);
        self.tick_introductions(now);
        self.tick_departing(now);
        self.tick_revocations(now);
        self.tick_gone(now);
    }

    fn tick_rails(&mut self, now: Time) {
        let patience = self.caps.stall_timeout;
        for rail in 0..self.rails.len() {
            let one = &mut self.rails[rail];
            if one.must_mend(now) {
                self.replace(now, rail, Which::Control);
            }
            let one = &mut self.rails[rail];
            one.post_outbox(now, patience, &mut self.backlog);
            if one.has_outbox() || one.hole {
                self.hurry(now + TICK);
            }
            for (which, retry) in [
                (Which::Control, self.rails[rail].control.retry()),
                (Which::Data, self.rails[rail].data.retry()),
            ] {
                let Some(retry) = retry else { continue };
                if now < retry {
                    self.hurry(retry);
                    continue;
                }
                let key = self.keys.next();
                let mut events = std::mem::take(&mut self.backlog);
                self.with_intake(now, &mut events, |rails, intake| rails[rail].reopen(which, intake, key));
                self.backlog = events;
                self.reopened(now, rail, which);
            }
        }
    }

    /// Queues of messages that give nothing though something must come, see [`super::control`].
    fn tick_wedged(&mut self, now: Time) {
        for rail in 0..self.rails.len() {
            let one = &mut self.rails[rail];
            if one.control.get_mut().is_some_and(|control| control.is_wedged(now)) {
                one.control.wound(&one.name, format!("no message has ended for {WEDGED_AFTER:?}"));
            }
        }
    }

    fn tick_departing(&mut self, now: Time) {
        let rails = &self.rails;
        let busy = |peer: PeerId| rails.iter().any(|rail| rail.carries_ops_of(peer, None));
        self.departing.retain(|(peer, _)| busy(*peer));
        let overdue: Vec<PeerId> =
            self.departing.iter().filter(|(_, until)| now >= *until).map(|(peer, _)| *peer).collect();
        if self.manners.replace {
            for peer in overdue {
                for rail in 0..self.rails.len() {
                    if self.rails[rail].carries_ops_of(peer, None) {
                        self.replace(now, rail, Which::Data);
                    }
                }
            }
        }
        if !self.departing.is_empty() {
            self.hurry(now + TICK * 10);
        }
    }

    fn tick_revocations(&mut self, now: Time) {
        let mut said: Vec<(PeerId, Word)> = Vec::new();
        let mut soonest: Option<Time> = None;
        for region in self.regions.iter_mut().flatten() {
            let (id, generation) = (region.info.id, region.info.generation);
            let Some(revocation) = &mut region.revocation else { continue };
            if revocation.waiting.is_empty() {
                continue;
            }
            if now >= revocation.due {
                revocation.due = now + REVOKE_AGAIN;
                let word = Word::Revoke { region: id, generation };
                said.extend(revocation.waiting.iter().map(|peer| (*peer, word.clone())));
            }
            soonest = Some(soonest.map_or(revocation.due, |soonest| soonest.min(revocation.due)));
        }
        for (peer, word) in said {
            // Said again when it is due.
            let _ = self.say_anyhow(now, peer, &word);
        }
        if let Some(at) = soonest {
            self.hurry(at);
        }
    }

    /// Peers some of whose rails are gone: when all of them are, and stay so, their process is.
    fn tick_gone(&mut self, now: Time) {
        let gone_after = self.manners.gone_after;
        let suspects: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|peer| peer.may_be_gone() && !peer.told_gone)
            .map(|peer| peer.id)
            .collect();
        for id in suspects {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            if peer.is_gone(now, gone_after) {
                peer.told_gone = true;
                self.backlog.push(Event::PeerGone { peer: id });
                continue;
            }
            let unknown = peer.perhaps_alive();
            let probe = peer.probe_due.is_none_or(|due| now >= due);
            if probe {
                peer.probe_due = Some(now + PROBE_AGAIN);
                // Something is said to each of its other rails, so that their devices answer.
                for remote in unknown {
                    self.introduce(now, id, remote % self.rails.len().max(1), remote);
                }
            }
            self.hurry(now + PROBE_AGAIN / 2);
        }
    }
}
