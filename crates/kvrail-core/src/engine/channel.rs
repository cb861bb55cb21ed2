//! The control channel to one peer: every sequenced message is delivered exactly once, in any order, over rails
//! that may lose one when they die.
//!
//! The sender keeps a message until it is acknowledged and repeats it when its route fails or nobody answers; at
//! most [`crate::limits::UNACKNOWLEDGED_MAX`] are out (KR-8). The receiver remembers what it has seen by 64-bit sequence numbers
//! (KR-3), so that a repetition is acknowledged again and not delivered again.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::id::Route;
use crate::limits::{CONTROL_WINDOW, UNACKNOWLEDGED_MAX};
use crate::time::Time;

/// First wait for an acknowledgement; doubles with each repetition.
const REPEAT_AFTER: Duration = Duration::from_millis(100);
/// Longest wait for an acknowledgement: a peer whose inbox was full hears of the message again this soon.
const REPEAT_AFTER_MAX: Duration = Duration::from_millis(500);

/// A message that the peer has not acknowledged.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) sequence: u64,
    /// The encoded body; the header is written anew for each sending.
    pub(super) body: Vec<u8>,
    /// When and on which route it was last sent; `None`: to be sent.
    sent: Option<(Time, Route)>,
    sendings: u32,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    next_sequence: u64,
    pending: VecDeque<Pending>,
    /// Every message up to here was received.
    received: u64,
    /// Bit `i`: message `received + 1 + i` was received.
    received_bits: u64,
    /// Received messages that the peer does not know to be received.
    unacknowledged: u32,
}

impl Channel {
    /// Room for another message of the application's?
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < CONTROL_WINDOW
    }

    /// Accepts a message for sending. The caller has checked [`Channel::has_room`], or the message is one of the
    /// bounded kinds that do not wait for it ([`crate::limits::UNACKNOWLEDGED_MAX`]).
    pub(super) fn push(&mut self, body: Vec<u8>) {
        self.next_sequence += 1;
        self.pending.push_back(Pending { sequence: self.next_sequence, body, sent: None, sendings: 0 });
    }

    /// Nothing was sent or received yet.
    pub(super) fn is_pristine(&self) -> bool {
        self.next_sequence == 0 && self.received == 0 && self.received_bits == 0
    }

    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// The next message to be sent: none that is too far ahead of the oldest for the receiver to remember.
    pub(super) fn next_unsent(&self) -> Option<&Pending> {
        let oldest = self.pending.front()?.sequence;
        self.pending
            .iter()
            .find(|p| p.sent.is_none())
            .filter(|p| p.sequence - oldest < UNACKNOWLEDGED_MAX as u64)
    }

    /// Notes a sending; true when it is a repetition.
    pub(super) fn mark_sent(&mut self, sequence: u64, now: Time, route: Route) -> bool {
        let Some(pending) = self.pending.iter_mut().find(|p| p.sequence == sequence) else { return false };
        pending.sent = Some((now, route));
        pending.sendings += 1;
        pending.sendings > 1
    }

    /// Whatever was last sent on a route must be sent again.
    pub(super) fn route_failed(&mut self, route: Route) {
        for pending in &mut self.pending {
            if pending.sent.is_some_and(|(_, on)| on == route) {
                pending.sent = None;
            }
        }
    }

    /// Marks what waited too long for sending; when to call again.
    pub(super) fn handle_timeout(&mut self, now: Time) -> Time {
        let mut next = Time::NEVER;
        for pending in &mut self.pending {
            if let Some((at, _)) = pending.sent {
                let wait = REPEAT_AFTER * (1 << (pending.sendings - 1).min(6));
                let due = at + wait.min(REPEAT_AFTER_MAX);
                if due <= now {
                    pending.sent = None;
                } else {
                    next = next.min(due);
                }
            }
        }
        next
    }

    /// When a message sent now is repeated at the earliest.
    pub(super) fn first_repeat(now: Time) -> Time {
        now + REPEAT_AFTER
    }

    /// Takes an acknowledgement in; true when it freed room.
    pub(super) fn handle_ack(&mut self, acked: u64, bits: u64) -> bool {
        let before = self.pending.len();
        self.pending.retain(|p| {
            let known = p.sequence <= acked
                || p.sequence
                    .checked_sub(acked + 1)
                    .is_some_and(|ahead| ahead < 64 && bits >> ahead & 1 == 1);
            !known
        });
        self.pending.len() < before
    }

    /// Whether a received message is new; remembers it. Messages too far ahead to be remembered are not new: their
    /// sender broke the window, and will repeat them.
    pub(super) fn accept(&mut self, sequence: u64) -> bool {
        self.unacknowledged += 1;
        if sequence <= self.received {
            return false;
        }
        let ahead = sequence - self.received - 1;
        if ahead >= 64 || self.received_bits >> ahead & 1 == 1 {
            return false;
        }
        self.received_bits |= 1 << ahead;
        let run = self.received_bits.trailing_ones();
        self.received += u64::from(run);
        self.received_bits = self.received_bits.checked_shr(run).unwrap_or(0);
        true
    }

    /// What the header says of received messages.
    pub(super) fn acknowledgement(&self) -> (u64, u64) {
        (self.received, self.received_bits)
    }

    pub(super) fn acknowledged(&mut self) {
        self.unacknowledged = 0;
    }

    /// Received messages that the peer does not know to be received.
    pub(super) fn unacknowledged(&self) -> u32 {
        self.unacknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{LocalRail, RemoteRail};
    use proptest::prelude::*;

    const ROUTE: Route = Route { local: LocalRail(0), remote: RemoteRail(0) };

    #[test]
    fn a_message_is_repeated_until_it_is_acknowledged() {
        let mut channel = Channel::default();
        channel.push(alloc::vec![1]);
        assert_eq!(channel.next_unsent().unwrap().sequence, 1);
        assert!(!channel.mark_sent(1, Time(0), ROUTE));
        assert!(channel.next_unsent().is_none());
        let due = channel.handle_timeout(Time(1));
        assert_eq!(due, Time::ZERO + REPEAT_AFTER);
        channel.handle_timeout(due);
        assert!(channel.next_unsent().is_some());
        assert!(channel.mark_sent(1, due, ROUTE));
        channel.route_failed(ROUTE);
        assert!(channel.next_unsent().is_some());
        assert!(channel.handle_ack(1, 0));
        assert!(channel.is_settled());
    }

    proptest! {
        #[test]
        fn each_message_is_accepted_once_in_any_order_with_any_repetition(
            order in prop::collection::vec(1u64..=40, 1..400),
        ) {
            let mut channel = Channel::default();
            let mut seen = alloc::collections::BTreeSet::new();
            for sequence in order {
                prop_assert_eq!(channel.accept(sequence), seen.insert(sequence));
                let (acked, bits) = channel.acknowledgement();
                for s in 1..=40u64 {
                    let known = s <= acked || bits >> (s - acked - 1) & 1 == 1;
                    prop_assert_eq!(known, seen.contains(&s));
                }
            }
        }

        #[test]
        fn an_acknowledgement_frees_exactly_what_it_names(acked in 0u64..40, bits: u64) {
            let mut channel = Channel::default();
            for _ in 0..CONTROL_WINDOW { channel.push(Vec::new()); }
            channel.handle_ack(acked, bits);
            for p in &channel.pending {
                prop_assert!(p.sequence > acked && (p.sequence - acked > 64 || bits >> (p.sequence - acked - 1) & 1 == 0));
            }
        }
    }
}
