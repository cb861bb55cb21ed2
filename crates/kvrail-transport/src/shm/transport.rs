//! The transport's contract, method by method.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvrail_core::id::{LocalRail, PeerId, RegionId, Route};
use kvrail_core::limits::{PEERS_MAX, REGIONS_MAX};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Device, Event, PeerError, PostError, RailInfo, RegionInfo, RegisterError, Transport,
};

use super::execute::{self, Ends, Then};
use super::gate;
use super::host::Address;
use super::inbox::Pushed;
use super::neighbour::Peer;
use super::offer::offers_from;
use super::region::{Remote, decode_key};
use super::socket::{Letter, Say};
use super::{EVENTS_MAX, GRACE, LOOK_EVERY, LOOK_EVERY_POLLS, MESSAGES_PER_POLL, Shm, TICK, layout};

/// Kinds of records in the inbox.
const KIND_MESSAGE: u32 = 0;
pub(super) const KIND_JOBS: u32 = 1;

/// The only rail.
const RAIL: LocalRail = LocalRail(0);

impl Transport for Shm {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rails(&self) -> &[RailInfo] {
        &self.rails
    }

    fn address(&self, out: &mut Vec<u8>) {
        Address { host: self.host, pid: std::process::id(), nonce: self.nonce }.encode(out);
    }

    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        let start = self.locals.insert(region)?;
        self.control.publish(region.id.index(), region.generation.0, start, region.len);
        Ok(())
    }

    fn region_key(&self, region: RegionId, out: &mut Vec<u8>) {
        self.locals.key(region, out);
    }

    fn deregister(&mut self, region: RegionId) -> Result<(), String> {
        let Some(local) = self.locals.find(region).filter(|l| l.generation != 0).copied() else {
            return Err(format!("{region} is not registered with shm"));
        };
        if self.offers.slots.iter().flatten().any(|offer| offer.uses(region)) {
            return Err(format!("{region} is used by an op in flight"));
        }
        let permit = self.control.generation(region.index());
        gate::revoke(permit, 0);
        if let Err(pid) = self.wait_until_outside() {
            permit.store(local.generation, Ordering::Release);
            return Err(format!(
                "process {pid} did not finish its copy on {region} within {} ms",
                GRACE.as_millis()
            ));
        }
        self.locals.remove(region);
        Ok(())
    }

    fn add_peer(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        let address = Address::decode(address)?;
        self.host.meets(&address.host)?;
        if peer.index() >= PEERS_MAX {
            return Err(PeerError::Exhausted(format!("{peer} is beyond the limit of {PEERS_MAX} peers")));
        }
        if let Some(Some(tenant)) = self.peers.get(peer.index()) {
            return Err(PeerError::Exhausted(format!("{} still has the slot of {peer}", tenant.id)));
        }
        let Some(slot) = self.neighbours.find_or_insert(address.nonce) else {
            let text = format!("the limit of {} neighbours on this host is reached", layout::NEIGHBOURS_MAX);
            return Err(PeerError::Exhausted(text));
        };
        let gone = || {
            let text =
                format!("shm cannot reach the peer: process {} closed its end or is gone", address.pid);
            Err(PeerError::Unreachable(text))
        };
        if self.neighbours.at(slot).is_none_or(|n| n.gone) {
            return gone();
        }
        if self.neighbours.at(slot).is_some_and(|n| n.link.is_none()) && !self.knocking.contains(&slot) {
            self.knocking.push(slot);
            self.knock(now);
            if self.neighbours.at(slot).is_none_or(|n| n.gone) {
                return gone();
            }
        }
        if self.peers.len() <= peer.index() {
            self.peers.resize_with(peer.index() + 1, || None);
        }
        self.peers[peer.index()] = Some(Peer { id: peer, neighbour: slot, regions: Vec::new() });
        if let Some(neighbour) = self.neighbours.at_mut(slot) {
            neighbour.peers.push(peer);
        }
        self.look_at = now;
        Ok(self.rails.clone())
    }

    fn remove_peer(&mut self, _now: Time, peer: PeerId) {
        let Some(entry) = self.peers.get_mut(peer.index()) else { return };
        if let Some(old) = entry.take_if(|p| p.id == peer) {
            self.unbind(&old);
        }
    }

    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, key: &[u8]) -> Result<(), PeerError> {
        let index = region.id.index();
        if index >= REGIONS_MAX {
            let text = format!("{} of {peer} is beyond the limit of {REGIONS_MAX} regions", region.id);
            return Err(PeerError::Exhausted(text));
        }
        if region.device != Device::Host {
            let text = format!("shm cannot reach {} of {peer} in {} memory", region.id, region.device);
            return Err(PeerError::Unreachable(text));
        }
        if region.base.checked_add(region.len).is_none() || region.generation.0 == 0 {
            return Err(PeerError::Malformed(format!(
                "{} of {peer} overflows or has no generation",
                region.id
            )));
        }
        let place = decode_key(key)?;
        let Some(known) = self.peers.get_mut(peer.index()).and_then(Option::as_mut).filter(|p| p.id == peer)
        else {
            return Err(PeerError::Unreachable(format!("{peer} is not known to shm")));
        };
        let mut remote =
            Remote { generation: region.generation.0, memory: 0, start: region.base, len: region.len };
        if let Some((memory, offset)) = place {
            let neighbour = self.neighbours.at_mut(known.neighbour);
            let Some((neighbour, at)) = neighbour.and_then(|n| n.memory(memory).map(|at| (n, at))) else {
                return Err(PeerError::Exhausted(format!("{peer} has too many shared memories")));
            };
            remote.memory = at as u32 + 1;
            remote.start = offset;
            if neighbour.wanted > 0 && !self.wanting.contains(&known.neighbour) {
                self.wanting.push(known.neighbour);
                neighbour.knock_at = Time::ZERO;
                self.look_at = Time::ZERO;
            }
        }
        if known.regions.len() <= index {
            known.regions.resize(index + 1, Remote::default());
        }
        known.regions[index] = remote;
        Ok(())
    }

    fn post(&mut self, now: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        self.now = now;
        let peer = self.peers.get(batch.peer.index()).and_then(Option::as_ref).filter(|p| p.id == batch.peer);
        let Some(peer) = peer else { return Err(PostError::UnknownPeer) };
        let slot = peer.neighbour;
        let Some(neighbour) = self.neighbours.at_mut(slot).filter(|n| !n.gone) else {
            return Err(PostError::RouteDown);
        };
        if self.ledger.len() >= EVENTS_MAX {
            return Ok(0);
        }
        let from = offers_from(&self.config, neighbour);
        let mut ends = Ends { locals: &self.locals, peer, neighbour };
        let taken = execute::run(&mut ends, &mut self.tools, &mut self.ledger, batch, from);
        match taken.then {
            Then::Stop => Ok(taken.ops),
            Then::Gone => {
                self.gone(slot);
                if taken.ops > 0 { Ok(taken.ops) } else { Err(PostError::RouteDown) }
            }
            Then::Offer => {
                if self.offers.is_fed(&self.control, slot) {
                    return Ok(taken.ops);
                }
                let offered = self.offers.open(&self.control, &mut ends, batch, taken.ops);
                self.work();
                Ok(taken.ops + offered)
            }
        }
    }

    fn send(&mut self, now: Time, peer: PeerId, _route: Route, message: &[u8]) -> Result<bool, PostError> {
        self.now = now;
        if message.len() > self.caps.message_bytes_max {
            return Err(PostError::TooLong);
        }
        let Some(known) = self.peer(peer) else { return Err(PostError::UnknownPeer) };
        let slot = known.neighbour;
        let Some(neighbour) = self.neighbours.at(slot).filter(|n| !n.gone) else {
            return Err(PostError::RouteDown);
        };
        let Some(link) = &neighbour.link else {
            self.refused = true;
            return Ok(false);
        };
        if link.control.closed().load(Ordering::Acquire) != 0 {
            self.gone(slot);
            return Err(PostError::RouteDown);
        }
        let (words, ring) = link.control.inbox();
        match ring.push(&words, link.slot + 1, KIND_MESSAGE, message) {
            Pushed::In { wake } => {
                if wake {
                    self.socket.ring(neighbour.nonce);
                }
                Ok(true)
            }
            Pushed::Full => {
                self.refused = true;
                Ok(false)
            }
        }
    }

    fn poll(&mut self, now: Time, events: &mut Vec<Event>) {
        self.now = now;
        self.refused = false;
        self.polls = self.polls.wrapping_add(1);
        // A flag that is still up says that nobody rang: somebody polls on behalf of the sleeper, and often.
        let rung = std::mem::take(&mut self.armed) && self.control.asleep().swap(0, Ordering::Relaxed) == 0;
        if rung || now >= self.look_at || self.polls >= LOOK_EVERY_POLLS {
            self.polls = 0;
            self.look_at = now + LOOK_EVERY;
            self.look(now);
        }
        for _ in 0..MESSAGES_PER_POLL {
            let (words, ring) = self.control.inbox();
            match ring.pop(&words, self.caps.message_bytes_max) {
                Some(Some((KIND_MESSAGE, bytes))) => self.ledger.push(Event::Message { rail: RAIL, bytes }),
                Some(Some((KIND_JOBS, bytes))) => {
                    if let Ok(slot) = bytes.try_into() {
                        self.notice_jobs(u32::from_le_bytes(slot));
                    }
                }
                // A record of a kind that this version does not know, or a ring that made no sense.
                Some(Some(_)) | None => {}
                Some(None) => break,
            }
        }
        if self.offers.live > 0 || !self.helps.is_empty() {
            self.work();
        }
        self.ledger.drain_into(events);
    }

    fn reset(&mut self, _now: Time, peer: PeerId, _route: Route) {
        self.give_up(peer);
    }

    fn poll_timeout(&self) -> Option<Time> {
        let waits = !self.knocking.is_empty() || !self.wanting.is_empty() || !self.outbox.is_empty();
        let works = self.offers.live > 0 || !self.helps.is_empty();
        if self.refused {
            Some(self.now + Duration::from_micros(100))
        } else {
            (waits || works).then(|| self.now + TICK)
        }
    }
}

impl Shm {
    /// Waits until no neighbour is inside a visit that began before now. The pid of one that stayed.
    fn wait_until_outside(&self) -> Result<(), u32> {
        let deadline = Instant::now() + GRACE;
        for (slot, neighbour) in self.neighbours.iter() {
            let Some(link) = &neighbour.link else { continue };
            let busy = self.control.busy(slot);
            let Some(visit) = gate::inside(busy) else { continue };
            while gate::inside(busy) == Some(visit) && link.process.is_alive() {
                if Instant::now() >= deadline {
                    return Err(link.process.pid());
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn give_up(&mut self, peer: PeerId) {
        for job in 0..self.offers.slots.len() {
            if self.offers.slots[job].as_ref().is_some_and(|offer| offer.peer == peer) {
                self.offers.give_up(job);
            }
        }
    }

    /// The engine forgets a peer. The neighbour stays while it lives: it may be reaching into our memory, and its
    /// number here must not pass to another.
    fn unbind(&mut self, old: &Peer) {
        self.give_up(old.id);
        let Some(neighbour) = self.neighbours.at_mut(old.neighbour) else { return };
        neighbour.peers.retain(|p| *p != old.id);
        if neighbour.gone && neighbour.peers.is_empty() {
            self.neighbours.remove(old.neighbour);
        } else if neighbour.peers.is_empty() {
            neighbour.forget_memories();
            self.wanting.retain(|w| *w != old.neighbour);
        }
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        gate::revoke(self.control.closed(), 1);
        // A visit that has begun may go on for a moment; memory that is freed after this must not be under it.
        let _ = self.wait_until_outside();
        for (_, neighbour) in self.neighbours.iter() {
            if neighbour.link.is_some() {
                // Should its socket be full, it finds the segment closed at its next visit.
                let _ =
                    self.socket.send(&Letter { from: self.nonce, to: neighbour.nonce, say: Say::Bye }, None);
            }
        }
    }
}
