//! Sending what is owed to peers: greetings, probes, sequenced messages, acknowledgements; most urgent first.

use super::*;
use crate::transport::PostError;
use crate::wire::control::{Greeting, Header, write_message};

/// First repetition of a hello; doubles up to [`BACKOFF_MAX`].
pub(super) const HELLO_REPEAT: Duration = Duration::from_millis(20);
/// Longest wait between two hellos or two probes of a route.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How soon a message is tried again that the transport had no room for.
const SEND_AGAIN_AFTER: Duration = Duration::from_millis(1);

impl<H: Hazards> Engine<H> {
    /// Sends what is owed to the peers that are marked.
    pub(super) fn flush_control(&mut self, now: Time, transport: &mut dyn Transport) -> bool {
        let mut worked = false;
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else { break };
            if let Some(peer) = self.peers.get_mut(id.slot, id.generation).filter(|p| !p.is_lost()) {
                peer.dirty = false;
                match self.flush_peer(now, transport, id) {
                    Flushed::All => worked = true,
                    Flushed::Full => {
                        self.timer = self.timer.min(now + SEND_AGAIN_AFTER);
                        self.mark_dirty(id);
                    }
                    Flushed::Nothing => {}
                }
            }
        }
        worked
    }

    fn flush_peer(&mut self, now: Time, transport: &mut dyn Transport, id: PeerId) -> Flushed {
        let mut flushed = Flushed::Nothing;
        loop {
            let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return flushed };
            let is_ready = peer.state == PeerState::Ready;
            let probe = if is_ready { peer.routes.due_probe(now) } else { None };
            let moved = is_ready && peer.moved.as_ref().is_some_and(|moved| moved.due <= now);
            let (what, body, sequence) = if peer.hello.due <= now {
                (Owed::Hello, self.greeting(id, 0, true), 0)
            } else if let Some(nonce) = peer.welcome {
                (Owed::Welcome, self.greeting(id, nonce, false), 0)
            } else if moved {
                self.next_probe += 1;
                (Owed::Address, self.greeting(id, self.next_probe, true), 0)
            } else if let Some(index) = probe {
                self.next_probe += 1;
                peer.routes[index].probe = self.next_probe;
                (Owed::Probe(index), self.greeting(id, self.next_probe, true), 0)
            } else if !is_ready {
                return flushed;
            } else if let Some(pending) = peer.channel.next_unsent() {
                (Owed::Sequenced, pending.body.clone(), pending.sequence)
            } else if peer.goodbye && peer.channel.is_settled() && peer.transfers == 0 {
                (Owed::Goodbye, Body::Goodbye.encode(), 0)
            } else if peer.ack_due <= now {
                (Owed::Ack, Body::Ack.encode(), 0)
            } else {
                return flushed;
            };
            match self.send(now, transport, id, &what, &body, sequence) {
                Sent::Yes => flushed = Flushed::All,
                Sent::Full => return Flushed::Full,
                Sent::NoRoute => return flushed,
                Sent::Lost => return Flushed::Nothing,
            }
        }
    }

    fn greeting(&self, id: PeerId, nonce: u64, hello: bool) -> Vec<u8> {
        let peer = self.peers.get(id.slot, id.generation).filter(|p| p.link != Header::NO_LINK);
        let greeting = Greeting {
            name: self.config.name.clone(),
            address: self.address.clone(),
            credit: peer.map_or(0, |p| p.granted_credit),
            slots: peer.map(|p| p.granted_slots.clone()).unwrap_or_default(),
            nonce,
        };
        if hello { Body::Hello(greeting).encode() } else { Body::Welcome(greeting).encode() }
    }

    fn send(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        id: PeerId,
        what: &Owed,
        body: &[u8],
        sequence: u64,
    ) -> Sent {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return Sent::Lost };
        let index = match *what {
            Owed::Probe(index) => index,
            // With every route down, both sides would wait for the other's answer: greetings try any route.
            Owed::Hello | Owed::Welcome | Owed::Address => {
                match peer.routes.control_route().or_else(|| peer.routes.any_route()) {
                    Some(index) => index,
                    None => return Sent::NoRoute,
                }
            }
            _ => match peer.routes.control_route() {
                Some(index) => index,
                None => return Sent::NoRoute, // a probe will find one
            },
        };
        let route = peer.routes[index].route;
        let (acked, acked_bits) = peer.channel.acknowledgement();
        let header = Header {
            from: self.config.incarnation,
            to: peer.incarnation,
            link: peer.link,
            sender_link: peer.own_link,
            sequence,
            acked,
            acked_bits,
            consumed: peer.consumed,
        };
        write_message(&mut self.message, &header, body);
        let sent = transport.send(now, id, route, &self.message);
        let mut wake = Time::NEVER;
        match (sent, what) {
            (Err(PostError::RouteDown) | Ok(true), Owed::Probe(_)) => {
                wake = peer.routes.probed(index, now, BACKOFF_MAX);
            }
            (Ok(false), _) => return Sent::Full,
            (Err(PostError::RouteDown), _) if peer.state == PeerState::Connecting => {
                // Not connected yet: not a failure of the route.
                peer.hello.due = now + HELLO_REPEAT;
                self.timer = self.timer.min(peer.hello.due);
                return Sent::NoRoute;
            }
            (Err(PostError::RouteDown), Owed::Hello) if !peer.routes[index].is_up() => {
                // Every route is down: later, and meanwhile what is owed besides, such as probes.
                peer.hello.due = now + HELLO_REPEAT;
                self.timer = self.timer.min(peer.hello.due);
                return Sent::Yes;
            }
            (Err(PostError::RouteDown), Owed::Address) if !peer.routes[index].is_up() => {
                self.timer = self.timer.min(peer.told_of_move(now));
                return Sent::Yes;
            }
            (Err(PostError::RouteDown), Owed::Welcome) if !peer.routes[index].is_up() => {
                peer.welcome = None; // the peer asks again
                return Sent::Yes;
            }
            (Err(PostError::RouteDown), _) => {
                self.route_down(now, id, index, OpError::Unreachable);
                return Sent::Yes; // try again over another route
            }
            (Err(_), _) => {
                self.lose(now, transport, id, PeerLostCause::Gone);
                return Sent::Lost;
            }
            (Ok(true), _) => {}
        }
        match what {
            Owed::Hello => {
                peer.hello.backoff = (peer.hello.backoff * 2).clamp(HELLO_REPEAT, BACKOFF_MAX);
                peer.hello.due = now + peer.hello.backoff;
                wake = peer.hello.due;
            }
            Owed::Welcome => peer.welcome = None,
            Owed::Address => wake = peer.told_of_move(now),
            Owed::Goodbye => peer.goodbye = false,
            Owed::Sequenced => {
                let again = peer.channel.mark_sent(sequence, now, route);
                self.stats.messages_repeated += u64::from(again);
                self.stats.messages_sent += u64::from(!again);
                wake = channel::Channel::first_repeat(now);
            }
            Owed::Ack | Owed::Probe(_) => {}
        }
        // Every message carries the acknowledgement.
        peer.channel.acknowledged();
        peer.consumed_told = peer.consumed;
        peer.ack_due = Time::NEVER;
        self.timer = self.timer.min(wake);
        Sent::Yes
    }
}

/// What is owed to a peer, most urgent first.
enum Owed {
    Hello,
    Welcome,
    Address,
    Probe(usize),
    Sequenced,
    Goodbye,
    Ack,
}

enum Sent {
    Yes,
    Full,
    NoRoute,
    Lost,
}

enum Flushed {
    All,
    Full,
    Nothing,
}
