//! Meeting peers, hearing them, answering them, losing them.

use super::*;
use crate::limits::SLOTS_PER_PEER;
use crate::wire::control::{Greeting, Header, Outcome, Verdict, read_message};
use evidence::{Closing, Settled};
use owed::HELLO_REPEAT;

/// Unacknowledged messages after which an acknowledgement is not delayed any more.
const ACK_AFTER: u32 = 8;
/// How long an acknowledgement may wait for company.
const ACK_DELAY: Duration = Duration::from_millis(1);
/// Incarnations that are remembered as over.
const RETIRED_MAX: usize = 1024;
/// Most immediates that one peer may have unconsumed here.
const CREDIT_PER_PEER_MAX: u32 = 1024;

impl<H: Hazards> Engine<H> {
    /// The peer of that name and incarnation, made if it is not known; whether it was.
    pub(super) fn meet(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        name: &str,
        incarnation: Incarnation,
        address: &[u8],
    ) -> Result<(PeerId, bool), AddPeerError> {
        if let Some(&id) = self.names.get(name)
            && let Some(peer) = self.peers.get(id.slot, id.generation)
        {
            if peer.incarnation == incarnation {
                return Ok((id, false));
            }
            self.lose(now, transport, id, PeerLostCause::Restarted);
        }
        if self.peers.len() >= PEERS_MAX {
            return Err(AddPeerError::TooManyPeers);
        }
        let (slot, generation) = self.peers.next();
        let id = PeerId { slot, generation };
        let remote = transport.add_peer(now, id, address).map_err(AddPeerError::Transport)?;
        self.acquaintances = self.acquaintances.wrapping_add(1);
        let own_link = u64::from(self.acquaintances) << 32 | u64::from(slot);
        let routes = Routes::new(&self.rates, route::rates(&remote));
        let mut peer = Peer::new(Arc::from(name), incarnation, own_link, routes, now);
        if self.caps.evidence == Evidence::Counted {
            // Half of what is left, so that the last peer still gets something.
            peer.granted_credit = (self.credit_left / 2).clamp(1, CREDIT_PER_PEER_MAX).min(self.credit_left);
            self.credit_left -= peer.granted_credit;
        }
        self.names.insert(peer.name.clone(), id);
        self.peers.insert(peer);
        Ok((id, true))
    }

    /// A peer is gone: its transfers drain and fail, its slots are taken back.
    pub(super) fn lose(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        id: PeerId,
        cause: PeerLostCause,
    ) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation).filter(|p| !p.is_lost()) else { return };
        peer.state = PeerState::Lost(cause);
        peer.waiting.clear();
        peer.announcing.clear();
        self.credit_left += peer.granted_credit;
        if matches!(cause, PeerLostCause::Closed | PeerLostCause::Gone | PeerLostCause::Restarted) {
            self.retired.push_back(peer.incarnation);
            if self.retired.len() > RETIRED_MAX {
                self.retired.pop_front();
            }
        }
        let name = peer.name.clone();
        if self.names.get(&name) == Some(&id) {
            self.names.remove(&name);
        }
        self.evidence.revoke(id);
        self.inbox.push_back(EngineEvent::PeerLost { peer: id, name, cause });
        transport.remove_peer(now, id);
        self.each_transfer_of(id, |engine, token| {
            let phase = engine.transfers.get(token.slot, token.generation).map(|t| t.phase);
            match phase {
                Some(Phase::Confirming) => engine.unconfirmed(now, token, TransferError::PeerLost(cause)),
                Some(Phase::Announcing) => {
                    if let Some(transfer) = engine.transfers.get_mut(token.slot, token.generation) {
                        transfer.ending.get_or_insert(TransferError::PeerLost(cause));
                    }
                    engine.finish(now, token);
                }
                _ => engine.end(now, token, TransferError::PeerLost(cause)),
            }
        });
        self.forget_if_drained(id);
    }

    /// Frees the record of a lost peer once nothing of it is in flight.
    pub(super) fn forget_if_drained(&mut self, id: PeerId) {
        let drained = |peer: &Peer| peer.is_lost() && peer.transfers == 0;
        if self.peers.get(id.slot, id.generation).is_some_and(drained) {
            self.peers.remove(id.slot, id.generation);
        }
    }

    pub(super) fn mark_dirty(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(id.slot, id.generation)
            && !peer.dirty
            && !peer.is_lost()
        {
            peer.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Immediates of a peer were consumed (or written off): credit to be returned.
    pub(super) fn consumed(&mut self, id: PeerId, count: u64) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        peer.consumed += count;
        if (peer.consumed - peer.consumed_told) * 2 >= u64::from(peer.granted_credit) {
            peer.ack_due = Time::ZERO;
            self.mark_dirty(id);
        }
    }

    /// A peer's round is visible here: deliver, and grant the slot anew.
    pub(super) fn settled(&mut self, settled: Settled) {
        let Settled { owner, closing, slot, verdict, lost } = settled;
        self.consumed(owner, lost);
        let Some(peer) = self.peers.get_mut(owner.slot, owner.generation) else { return };
        peer.channel.push(Body::Closed { transfer: closing.transfer, slot, verdict }.encode());
        let name = peer.name.clone();
        self.mark_dirty(owner);
        if let Some(message) = closing.notification
            && closing.outcome != Outcome::Again
            // The initiator closes it again.
            && !(closing.outcome == Outcome::Done && verdict == Verdict::Lost)
        {
            let done = closing.outcome == Outcome::Done && verdict == Verdict::Visible;
            self.deliver(owner, name, closing.transfer, done, message);
        }
    }

    fn deliver(&mut self, peer: PeerId, name: Arc<str>, transfer: TransferId, done: bool, message: Vec<u8>) {
        self.messages.push_back(if done {
            EngineEvent::Notification { peer, name, transfer: Some(transfer), message }
        } else {
            EngineEvent::PeerTransferFailed { peer, name, transfer, message }
        });
    }

    /// Takes in a message: input from outside.
    pub(super) fn handle_message(&mut self, now: Time, transport: &mut dyn Transport, bytes: &[u8]) {
        let Ok((header, body)) = read_message(bytes) else {
            self.stats.messages_refused += 1;
            return;
        };
        let nobody = header.from == self.config.incarnation || header.sender_link == Header::NO_LINK;
        if nobody || self.retired.contains(&header.from) {
            self.stats.messages_refused += 1;
            return;
        }
        match body {
            Body::Hello(greeting) => self.handle_hello(now, transport, &header, greeting),
            Body::Welcome(greeting) => self.handle_welcome(now, transport, &header, greeting),
            body => self.handle_body(now, transport, &header, body),
        }
    }

    fn handle_hello(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        header: &Header,
        greeting: Greeting,
    ) {
        if let Some(id) = self.names.get(greeting.name.as_str()).copied()
            && self.peers.get(id.slot, id.generation).is_some_and(|peer| peer.incarnation == header.from)
            && self.follow(now, transport, id, header.sender_link) == Followed::Stale
        {
            return;
        }
        let met = self.meet(now, transport, &greeting.name, header.from, &greeting.address);
        let Ok((id, is_new)) = met else {
            self.stats.messages_refused += 1;
            return;
        };
        if !is_new {
            self.readdress(now, transport, id, &greeting.address);
        }
        if let Some(peer) = self.peers.get_mut(id.slot, id.generation) {
            peer.welcome = Some(greeting.nonce);
        }
        self.mark_dirty(id);
        // A hello for an earlier incarnation of this agent, or for an acquaintance that this agent has given up, is
        // answered, so that its sender learns of the new one; what it grants is not for that.
        self.greeted(now, id, header, greeting);
    }

    fn handle_welcome(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        header: &Header,
        greeting: Greeting,
    ) {
        let Some(id) = self.linked(header.link) else {
            self.stats.messages_refused += 1;
            return;
        };
        let known = self.peers.get(id.slot, id.generation).map(|p| p.incarnation);
        if known != Some(header.from) {
            return self.lose(now, transport, id, PeerLostCause::Restarted);
        }
        if header.to != self.config.incarnation {
            self.stats.messages_refused += 1;
            return;
        }
        match self.follow(now, transport, id, header.sender_link) {
            Followed::Current => {}
            Followed::Stale => return,
            Followed::Void => {
                // Greeted under what is void now: this side's own hello begins the next acquaintance.
                let met = self.meet(now, transport, &greeting.name, header.from, &greeting.address);
                if let Ok((id, _)) = met
                    && let Some(peer) = self.peers.get_mut(id.slot, id.generation)
                {
                    peer.hello.due = now;
                    self.mark_dirty(id);
                }
                return;
            }
        }
        self.readdress(now, transport, id, &greeting.address);
        let nonce = greeting.nonce;
        self.greeted(now, id, header, greeting);
        self.absorb(id, header);
        if let Some(peer) = self.peers.get_mut(id.slot, id.generation)
            && peer.moved.as_ref().is_some_and(|moved| nonce > moved.since)
        {
            peer.moved = None;
        }
        let probed = |p: &Peer| p.routes.iter().position(|r| !r.is_up() && r.probe == nonce && nonce != 0);
        if let Some(index) = self.peers.get(id.slot, id.generation).and_then(probed) {
            self.route_up(now, id, index);
        }
    }

    /// Takes in where a known peer is now. What did not work on the way to where it was may work again.
    pub(super) fn readdress(&mut self, now: Time, transport: &mut dyn Transport, id: PeerId, address: &[u8]) {
        match transport.readdress(now, id, address) {
            Ok(false) => {}
            Ok(true) => {
                let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
                for index in 0..peer.routes.first() {
                    peer.routes.probe_soon(index, now, self.config.route_retry);
                }
                self.mark_dirty(id);
            }
            Err(_) => self.stats.messages_refused += 1,
        }
    }

    /// This agent's own address changed: every peer is told, until it says that it knows.
    pub(super) fn moved(&mut self, now: Time, transport: &dyn Transport) {
        self.evidence.doubt(now + self.caps.linger);
        self.timer = self.timer.min(self.evidence.lost_at());
        let mut address = Vec::new();
        transport.address(&mut address);
        if address == self.address || address.len() > ADDRESS_BYTES_MAX {
            return;
        }
        self.address = address;
        for slot in 0..self.peers.slots() {
            let Some((generation, _)) = self.peers.at(slot) else { continue };
            let id = PeerId { slot, generation };
            if let Some(peer) = self.peers.get_mut(slot, generation).filter(|peer| !peer.is_lost()) {
                peer.moved = Some(Moved { since: self.next_probe, due: now, backoff: Duration::ZERO });
                self.mark_dirty(id);
            }
        }
    }

    fn linked(&self, link: u64) -> Option<PeerId> {
        let slot = link as u32;
        let (generation, peer) = self.peers.at(slot)?;
        (peer.own_link == link && !peer.is_lost()).then_some(PeerId { slot, generation })
    }

    /// Takes in what a header acknowledges and returns.
    fn absorb(&mut self, id: PeerId, header: &Header) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        let starved = peer.credit.left() == 0;
        peer.credit.consumed = peer.credit.consumed.max(header.consumed);
        let fed = starved && peer.credit.left() > 0;
        if fed {
            peer.starved_since = None;
        }
        let freed = peer.channel.handle_ack(header.acked, header.acked_bits);
        if fed && peer.welcomed {
            peer.hello.due = Time::NEVER;
            self.each_transfer_of(id, |engine, token| engine.redistribute(token));
        }
        if freed {
            self.channel_has_room(id);
        }
    }

    /// Compares a greeting's link with the one that is known. A larger one means that the peer has begun another
    /// acquaintance: followed in silence if nothing was said under the old one (this side then grants anew: what the
    /// old one was granted may still be in use on the fabric), else whatever was is void.
    fn follow(&mut self, now: Time, transport: &mut dyn Transport, id: PeerId, link: u64) -> Followed {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return Followed::Stale };
        if peer.link == Header::NO_LINK || peer.link == link {
            Followed::Current
        } else if link < peer.link {
            self.stats.messages_refused += 1;
            Followed::Stale
        } else if peer.is_pristine() {
            peer.link = Header::NO_LINK;
            peer.welcomed = false;
            peer.slots.clear();
            peer.credit = peer::Credit::default();
            peer.starved_since = None;
            peer.granted_slots.clear();
            self.evidence.revoke(id);
            Followed::Current
        } else {
            self.lose(now, transport, id, PeerLostCause::Reconnected);
            Followed::Void
        }
    }

    /// Takes in a greeting of the acquaintance that is known, or of the first one. Only one that names this side's
    /// link proves that the peer knows the pair: until then it is greeted again, and what it grants is not known.
    fn greeted(&mut self, now: Time, id: PeerId, header: &Header, greeting: Greeting) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        peer.heard_at = now;
        let first = peer.link == Header::NO_LINK;
        if first {
            peer.link = header.sender_link;
            if peer.granted_credit > 0 {
                peer.granted_slots = self.evidence.grant(id, SLOTS_PER_PEER);
            }
        }
        if peer.welcomed {
            return;
        }
        if header.to != self.config.incarnation || header.link != peer.own_link {
            // The welcome that is owed may be lost, or the answer to it.
            peer.hello.due = peer.hello.due.min(now + HELLO_REPEAT);
            self.timer = self.timer.min(peer.hello.due);
            return;
        }
        peer.welcomed = true;
        peer.slots = greeting.slots;
        peer.credit.granted = greeting.credit;
        peer.hello.due = Time::NEVER;
        if first {
            // The peer waits for as much.
            peer.welcome.get_or_insert(0);
        }
        self.mark_dirty(id);
        self.ready(id);
    }

    /// The peer knows this acquaintance: what waits for that can start, and what waits for grants if they are known.
    fn ready(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        if peer.state == PeerState::Connecting {
            peer.state = PeerState::Ready;
            self.inbox.push_back(EngineEvent::PeerReady { peer: id });
        }
        self.admit_all(id);
    }

    fn handle_body(&mut self, now: Time, transport: &mut dyn Transport, header: &Header, body: Body) {
        let id = self.linked(header.link);
        let known = id.and_then(|id| self.peers.get_mut(id.slot, id.generation).map(|p| (id, p)));
        let known = known.filter(|(_, p)| p.incarnation == header.from && p.link == header.sender_link);
        let Some((id, peer)) = known.filter(|_| header.to == self.config.incarnation) else {
            self.stats.messages_refused += 1;
            return;
        };
        peer.heard_at = now;
        if peer.state == PeerState::Connecting {
            // It overtook the welcome.
            self.ready(id);
        }
        self.absorb(id, header);
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        if header.sequence > 0 {
            let message = match &body {
                Body::Close { notification, .. } => notification.is_some(),
                Body::Notify { .. } | Body::Message(_) => true,
                _ => false,
            };
            if message && self.messages.len() >= self.config.inbox_messages_max {
                return; // not acknowledged: the peer repeats it when its owner has read the inbox
            }
            let new = peer.channel.accept(header.sequence);
            peer.ack_due = if peer.channel.unacknowledged() >= ACK_AFTER {
                now
            } else {
                peer.ack_due.min(now + ACK_DELAY)
            };
            let due = peer.ack_due;
            self.timer = self.timer.min(due);
            if due <= now {
                self.mark_dirty(id);
            }
            if !new {
                self.stats.messages_duplicate += 1;
                self.mark_dirty(id);
                if !self.hazards.skip_control_dedup() {
                    return;
                }
            }
        }
        self.handle_known(now, transport, id, body);
    }

    fn handle_known(&mut self, now: Time, transport: &mut dyn Transport, id: PeerId, body: Body) {
        let Some(peer) = self.peers.get(id.slot, id.generation) else { return };
        let name = peer.name.clone();
        match body {
            Body::Hello(_) | Body::Welcome(_) | Body::Ack => {}
            Body::Goodbye => self.lose(now, transport, id, PeerLostCause::Closed),
            Body::Close { transfer, slot, outcome, rails, notification } => {
                let quiet_at = now + self.caps.linger;
                let closing = Closing { transfer, outcome, rails, notification };
                match self.evidence.close(id, slot, closing, quiet_at) {
                    Ok(Some(settled)) => self.settled(settled),
                    Ok(None) => self.timer = self.timer.min(self.evidence.lost_at()),
                    Err(()) => self.stats.messages_refused += 1,
                }
            }
            Body::Closed { transfer, slot, verdict } => self.confirmed(id, transfer, slot, verdict),
            Body::Notify { transfer, done, message } => self.deliver(id, name, transfer, done, message),
            Body::Message(message) => {
                self.messages.push_back(EngineEvent::Notification {
                    peer: id,
                    name,
                    transfer: None,
                    message,
                });
            }
        }
    }

    fn channel_has_room(&mut self, id: PeerId) {
        loop {
            let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
            if !peer.channel.has_room() {
                return;
            }
            let Some(token) = peer.announcing.pop_front() else { return };
            self.announce(token);
        }
    }
}

/// What a greeting's link says of the acquaintance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Followed {
    Current,
    /// Left over from an earlier one.
    Stale,
    /// The peer has begun another; what is known of this one is void.
    Void,
}
