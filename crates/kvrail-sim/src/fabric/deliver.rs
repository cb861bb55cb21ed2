//! Queues of a process: completions, immediates, messages, news. Their limits are the point of KR-8.

use kvrail_core::id::{LocalRail, PeerId, Route};
use kvrail_core::transport::{Event, OpError};

use super::node::{RailState, Slot};
use super::{Happening, World};
use crate::violation::Checker;

/// A small message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Mail {
    pub(crate) from: (usize, u64),
    pub(crate) to: (usize, u64),
    pub(crate) peer: PeerId,
    pub(crate) route: Route,
    /// The endpoints at both ends of the route, as the sender knew them.
    pub(crate) endpoints: (u64, u64),
    pub(crate) bytes: Vec<u8>,
    /// The fabric's own second copy: it costs its sender nothing and its receiver no receive.
    pub(crate) duplicate: bool,
    /// When: the fabric repeats it for a receiver that is not ready until [`crate::model::Model::retry_max`] later.
    pub(crate) sent: u64,
}

impl World {
    /// Puts an event into a rail's queue, and wakes its process.
    pub(crate) fn receive(&mut self, node: usize, rail: usize, slot: Slot, event: Event) {
        let counts = slot == Slot::Receive && matches!(event, Event::Immediate { .. });
        let max = self.model.receives_max;
        if counts && self.nodes[node].rails[rail].immediates >= max && self.model.overflow_is_violation {
            self.violate(
                Checker::Credits,
                format!("rail {rail} of node {node} has {max} immediates unread and another one came"),
            );
        }
        let owner = &mut self.nodes[node];
        owner.wake = true;
        let rail = &mut owner.rails[rail];
        if slot == Slot::Receive {
            rail.unread += 1;
            rail.immediates += u32::from(counts);
        }
        rail.queue.push_back((slot, event));
    }

    /// News for a process, delivered if it still lives.
    pub(crate) fn news(&mut self, node: usize, epoch: u64, event: Event) {
        let owner = &mut self.nodes[node];
        if owner.alive && owner.epoch == epoch {
            owner.news.push_back(event);
            owner.wake = true;
        }
    }

    /// A message leaves; chance may lose, repeat or delay it.
    pub(crate) fn dispatch(&mut self, mail: Mail) {
        let chaos = self.chaos;
        let now = self.time();
        let facts = [
            ("from", mail.from.0 as u64),
            ("to", mail.to.0 as u64),
            ("rail", u64::from(mail.route.local.0)),
            ("len", mail.bytes.len() as u64),
        ];
        self.trace.record(now, "send", &facts);
        let mut at = self.now + self.latency();
        if self.rng.chance(chaos.late_message_ppm) {
            at += self.rng.below(chaos.delay_max + 1);
        }
        if self.rng.chance(chaos.duplicate_ppm) {
            let later = at + self.rng.below(chaos.delay_max + 1);
            self.at(later, Happening::Mail(Box::new(Mail { duplicate: true, ..mail.clone() })));
        }
        self.at(at, Happening::Mail(Box::new(mail)));
    }

    fn is_full(&self, node: usize, rail: usize) -> bool {
        self.nodes[node].rails.get(rail).is_some_and(|rail| rail.unread >= self.model.receives_max)
    }

    /// Whether the fabric goes on trying: there is no receive for the message, and its time is not over.
    fn must_wait(&self, mail: &Mail, rail: usize) -> bool {
        !mail.duplicate
            && self.nodes[mail.to.0].alive
            && self.nodes[mail.to.0].epoch == mail.to.1
            && self.nodes[mail.to.0].rails.get(rail).is_some_and(|r| r.endpoint == mail.endpoints.1)
            && self.is_full(mail.to.0, rail)
            && self.now < mail.sent + self.model.retry_max
    }

    /// A message is at its target's NIC.
    pub(crate) fn mail(&mut self, mail: Mail) {
        let (local, remote) = (mail.route.local.index(), mail.route.remote.index());
        if self.must_wait(&mail, remote) {
            let at = self.now + self.rng.within(4 * self.model.latency, 8 * self.model.latency);
            self.at(at, Happening::Mail(Box::new(mail)));
            return;
        }
        let sender = &mut self.nodes[mail.from.0];
        let sender_lives = sender.alive && sender.epoch == mail.from.1;
        let replaced = sender.rails[local].endpoint != mail.endpoints.0;
        if sender_lives && !mail.duplicate && !replaced {
            sender.rails[local].sends_in_flight -= 1;
            // A full send queue has room again: its owner may want to know.
            sender.wake = true;
        }
        if replaced && self.rng.chance(500_000) {
            // Given up with its endpoint.
            return;
        }
        let local_state = self.nodes[mail.from.0].rails[local].state;
        let target = &self.nodes[mail.to.0];
        let remote_state = target.rails.get(remote).map_or(RailState::Down, |rail| rail.state);
        let moved = target.rails.get(remote).is_some_and(|rail| rail.endpoint != mail.endpoints.1);
        let cut = self.cut(mail.from.0, local, mail.to.0, remote) || mail.from.0 == mail.to.0;
        if local_state == RailState::Silent || remote_state == RailState::Silent || cut {
            return;
        }
        let moved = moved && target.alive && target.epoch == mail.to.1;
        if moved && self.rng.chance(500_000) {
            return;
        }
        let target = &self.nodes[mail.to.0];
        let failure = if local_state == RailState::Down {
            Some(OpError::RailDown)
        } else if target.epoch != mail.to.1 {
            Some(OpError::PeerRestarted)
        } else if !target.alive || remote_state == RailState::Down {
            Some(OpError::Unresponsive)
        } else if moved {
            Some(OpError::Unreachable)
        } else if self.rng.chance(self.chaos.not_ready_ppm) {
            Some(OpError::ReceiverNotReady)
        } else if self.rng.chance(self.chaos.send_error_ppm) {
            Some(OpError::Unreachable)
        } else if !mail.duplicate && self.is_full(mail.to.0, remote) {
            Some(OpError::ReceiverNotReady)
        } else {
            None
        };
        if let Some(error) = failure {
            if sender_lives && !mail.duplicate && !replaced {
                let wait =
                    if error == OpError::Unresponsive { self.model.unresponsive } else { self.model.latency };
                let event = Event::SendFailed { peer: mail.peer, route: mail.route, error };
                let (node, epoch) = mail.from;
                self.at(self.now + wait, Happening::News { node, epoch, event });
            }
            return;
        }
        if self.rng.chance(self.chaos.message_loss_ppm) {
            return;
        }
        let slot = if mail.duplicate { Slot::None } else { Slot::Receive };
        let event = Event::Message { rail: LocalRail(mail.route.remote.0), bytes: mail.bytes };
        self.receive(mail.to.0, remote, slot, event);
    }

    /// Hands a process what its queues hold, up to the budget per rail; neighbouring completions may come as one.
    pub(crate) fn drain(&mut self, node: usize, events: &mut Vec<Event>) {
        let count = self.nodes[node].rails.len();
        let first = self.rng.index(count);
        let merge = self.rng.chance(500_000);
        let start = events.len();
        events.extend(self.nodes[node].news.drain(..));
        for i in 0..count {
            let rail = &mut self.nodes[node].rails[(first + i) % count];
            for _ in 0..self.model.poll_budget {
                let Some((slot, event)) = rail.queue.pop_front() else { break };
                match slot {
                    Slot::Send => rail.ops_in_flight -= 1,
                    Slot::Receive => {
                        rail.unread -= 1;
                        rail.immediates -= u32::from(matches!(event, Event::Immediate { .. }));
                    }
                    Slot::None => {}
                }
                if merge && events.len() > start && merged(events, &event) {
                    continue;
                }
                events.push(event);
            }
            if !rail.queue.is_empty() {
                self.nodes[node].wake = true;
            }
        }
        let now = self.time();
        for event in &events[start..] {
            let (what, facts) = digest(event);
            let facts = [("node", node as u64), ("a", facts[0]), ("b", facts[1]), ("c", facts[2])];
            self.trace.record(now, what, &facts);
        }
    }
}

/// Joins a completion with the one before it, when it continues it.
fn merged(events: &mut [Event], event: &Event) -> bool {
    match (events.last_mut(), event) {
        (
            Some(Event::Completed { token, first, count }),
            Event::Completed { token: next, first: next_first, count: more },
        ) if token == next && *first + *count == *next_first => {
            *count += more;
            true
        }
        _ => false,
    }
}

/// An event as a name and three numbers.
fn digest(event: &Event) -> (&'static str, [u64; 3]) {
    match event {
        Event::Completed { token, first, count } => {
            ("completed", [u64::from(token.slot), u64::from(*first), u64::from(*count)])
        }
        Event::Failed { token, first, error, .. } => {
            ("failed", [u64::from(token.slot), u64::from(*first), error_code(*error)])
        }
        Event::Immediate { rail, value } => ("immediate", [u64::from(rail.0), u64::from(*value), 0]),
        Event::Message { rail, bytes } => {
            let sum = bytes.iter().fold(0_u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
            ("message", [u64::from(rail.0), bytes.len() as u64, sum])
        }
        Event::SendFailed { peer, route, error } => {
            ("send failed", [u64::from(peer.slot), u64::from(route.local.0), error_code(*error)])
        }
        Event::RailDown { rail } => ("rail down", [u64::from(rail.0), 0, 0]),
        Event::RailUp { rail } => ("rail up", [u64::from(rail.0), 0, 0]),
        Event::PeerGone { peer } => ("peer gone", [u64::from(peer.slot), u64::from(peer.generation.0), 0]),
        Event::AddressChanged => ("address changed", [0; 3]),
    }
}

fn error_code(error: OpError) -> u64 {
    match error {
        OpError::BadKey => 1,
        OpError::PeerRestarted => 2,
        OpError::ReceiverNotReady => 3,
        OpError::Unresponsive => 4,
        OpError::Unreachable => 5,
        OpError::RailDown => 6,
        OpError::Flushed => 7,
        _ => 8,
    }
}
