//! Messages of a rail: fragments and words, over its control endpoint.

use std::borrow::Cow;
use std::time::Duration;

use kvrail_core::id::{LocalRail, PeerId, RemoteRail, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError};
use kvrail_sys::libfabric::abi::{FI_EAGAIN, fi_cq_data_entry};
use kvrail_sys::libfabric::{CqFailure, outcome};

use super::control::{Carries, Owner, SendEntry};
use super::endpoint::{READ_AT_ONCE, Read};
use super::fragment::{FRAGMENT_BYTES, FRAGMENTS_MAX, Outgoing};
use super::intake::Intake;
use super::rail::{Rail, State};
use super::status::{self, Family, Scope};
use super::word::{Heard, Word};

/// Buffers that one destination may hold: a silent one keeps them until the device gives it up, or for as long as it lasts.
pub(super) const SENDS_OF_ONE_MAX: usize = 64;
const _: () = assert!(SENDS_OF_ONE_MAX >= FRAGMENTS_MAX, "the longest message can be sent");

/// What came of offering a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Offered {
    /// Taken: sent, or on its way to be.
    Taken,
    /// No room.
    Full,
    /// The rail is down.
    Down,
}

impl Rail {
    /// Takes in messages, and what became of those sent. Returns true when there was anything.
    pub(super) fn read_messages(&mut self, intake: &mut Intake<'_>, reads_max: usize) -> bool {
        let mut any = false;
        for _ in 0..reads_max {
            let State::Up(control) = &mut self.control.state else { return any };
            match control.bound.read(&mut self.entries) {
                Read::Entries(count) => {
                    (any, control.stirred) = (true, intake.now);
                    for at in 0..count {
                        let entry = self.entries[at];
                        self.take_in_message(&entry, intake);
                    }
                    if let State::Up(control) = &mut self.control.state {
                        control.post_receives();
                    }
                    if count < READ_AT_ONCE {
                        break;
                    }
                }
                Read::Failure(failure) => {
                    (any, control.stirred) = (true, intake.now);
                    self.take_in_message_failure(&failure, intake);
                }
                Read::Nothing => break,
                Read::Broken(why) => {
                    self.control.wound(&self.name, why);
                    break;
                }
            }
        }
        any
    }

    fn take_in_message(&mut self, entry: &fi_cq_data_entry, intake: &mut Intake<'_>) {
        let State::Up(control) = &mut self.control.state else { return };
        match control.owner(entry.op_context) {
            Owner::Send(index) => {
                let Some(send) = control.sends.release(index) else {
                    return self.stray("a send that had ended");
                };
                self.counters.completed += 1;
                if let Some(destination) = control.book.get_mut(send.to) {
                    destination.failures = 0;
                    destination.sends = destination.sends.saturating_sub(1);
                    if std::mem::take(&mut destination.gone) {
                        intake.gone.push((destination.peer, destination.remote, false));
                    }
                }
                control.book.ended(&control.bound.addresses, send.to);
            }
            Owner::Receive(index) => {
                self.counters.received += 1;
                let mut room = [0; FRAGMENT_BYTES];
                let bytes = control.message(index, entry.len, &mut room);
                hear(self.index, &self.name, bytes, intake);
                control.received(index);
            }
            Owner::Nobody => self.stray("a context that was not given out"),
        }
    }

    fn take_in_message_failure(&mut self, failure: &CqFailure, intake: &mut Intake<'_>) {
        let decoded = status::decode(self.family, failure.entry.err, failure.entry.prov_errno);
        let State::Up(control) = &mut self.control.state else { return };
        match control.owner(failure.entry.op_context) {
            Owner::Send(index) => {
                let Some(send) = control.sends.release(index) else {
                    return self.stray("a send that had ended");
                };
                self.counters.failed += 1;
                report_failed(&mut control.failed_message, self.index, &send, decoded.error, intake.events);
                self.hole |= self.shapes.control.numbered;
                if let Some(destination) = control.book.get_mut(send.to) {
                    destination.sends = destination.sends.saturating_sub(1);
                    destination.failures += 1;
                    let (peer, remote) = (destination.peer, destination.remote);
                    if destination.failures == 1 {
                        let route = Route { local: self.index, remote };
                        log::debug!(
                            "rail {} {peer} {route}: a message: {decoded}: {}",
                            self.name,
                            failure.provider_text
                        );
                    }
                    if decoded.scope == Scope::Peer {
                        destination.gone = true;
                        intake.gone.push((peer, remote, true));
                    }
                }
                control.book.ended(&control.bound.addresses, send.to);
            }
            Owner::Receive(index) => {
                // Too long for its buffer, or taken back: not one of kvrail's messages, or nobody's.
                log::debug!("rail {}: a receive failed: {decoded}", self.name);
                control.received(index);
                control.post_receives();
                return;
            }
            Owner::Nobody => {
                log::debug!("rail {}: {decoded}: {}", self.name, failure.provider_text);
                return self.stray("an error that names no message");
            }
        }
        if decoded.scope == Scope::Rail {
            self.control.wound(&self.name, decoded.to_string());
        }
    }

    /// Takes a message for a destination: all of its fragments, or nothing.
    pub(super) fn offer(
        &mut self,
        now: Time,
        to: u32,
        outgoing: &Outgoing<'_>,
        message: u64,
        route: (PeerId, RemoteRail),
    ) -> Offered {
        let State::Up(control) = &mut self.control.state else { return Offered::Down };
        let Some(destination) = control.book.get_mut(to) else { return Offered::Down };
        let count = outgoing.count();
        if control.sends.unused() < count || destination.sends as usize + count > SENDS_OF_ONE_MAX {
            return Offered::Full;
        }
        destination.sends += count as u32;
        let mut room = [0; FRAGMENT_BYTES];
        for at in 0..count {
            let len = outgoing.write(at, &mut room);
            self.send(now, to, &room[..len], Carries::Message(message), route);
        }
        Offered::Taken
    }

    /// Says a word. What there is no room for is said again later by whoever needs it said.
    pub(super) fn say(&mut self, now: Time, to: u32, word: &[u8], route: (PeerId, RemoteRail)) -> bool {
        let State::Up(control) = &mut self.control.state else { return false };
        let Some(destination) = control.book.get_mut(to) else { return false };
        let full = control.sends.unused() == 0 || destination.sends as usize >= SENDS_OF_ONE_MAX;
        if full || word.len() > FRAGMENT_BYTES {
            return false;
        }
        destination.sends += 1;
        self.send(now, to, word, Carries::Word, route);
        true
    }

    /// Puts one fragment into a buffer, which there is, and posts it or queues it.
    fn send(
        &mut self,
        now: Time,
        to: u32,
        bytes: &[u8],
        carries: Carries,
        (peer, remote): (PeerId, RemoteRail),
    ) {
        let State::Up(control) = &mut self.control.state else { return };
        let len = bytes.len() as u16;
        let Ok(index) = control.sends.take(SendEntry { peer, remote, to, carries, len, since: now }) else {
            return;
        };
        control.fill(index, bytes);
        control.outbox.push_back(index);
        let mut late = std::mem::take(&mut self.late);
        self.post_next(&mut late);
        self.late = late;
    }

    /// Posts the first send of the outbox; what the provider does not take goes to its end. Returns whether it took it.
    fn post_next(&mut self, events: &mut Vec<Event>) -> bool {
        let State::Up(control) = &mut self.control.state else { return false };
        let Some(index) = control.outbox.pop_front() else { return false };
        let Some(&send) = control.sends.get(index) else { return true };
        let Some(at) = control.book.get(send.to).map(|destination| destination.at) else { return true };
        let result = outcome(control.send(index, send.len.into(), at));
        let Some(destination) = control.book.get_mut(send.to) else { return true };
        match result {
            Ok(()) => {
                destination.in_flight += 1;
                self.counters.posted += 1;
                true
            }
            Err(FI_EAGAIN) => {
                control.outbox.push_back(index);
                false
            }
            Err(code) => {
                destination.sends = destination.sends.saturating_sub(1);
                control.sends.release(index);
                self.counters.failed += 1;
                let error = status::decode(Family::Errno, code, 0).error;
                report_failed(&mut control.failed_message, self.index, &send, error, events);
                true
            }
        }
    }

    /// Tries again what the provider did not take, and gives up what it has not taken for too long.
    pub(super) fn post_outbox(&mut self, now: Time, patience: Duration, events: &mut Vec<Event>) {
        let waiting = self.control.get().map_or(0, |control| control.outbox.len());
        for _ in 0..waiting {
            let State::Up(control) = &mut self.control.state else { return };
            let Some(&index) = control.outbox.front() else { return };
            let old = control.sends.get(index).copied().filter(|send| now.since(send.since) >= patience);
            let Some(send) = old else {
                self.post_next(events);
                continue;
            };
            control.outbox.pop_front();
            control.sends.release(index);
            self.counters.failed += 1;
            if let Some(destination) = control.book.get_mut(send.to) {
                destination.sends = destination.sends.saturating_sub(1);
            }
            report_failed(&mut control.failed_message, self.index, &send, OpError::Unresponsive, events);
            // Counts as one in flight that ended, so that a destination nobody uses is removed.
            control.book.ended_unposted(&control.bound.addresses, send.to);
        }
    }

    /// Whether sends wait for the provider.
    pub(super) fn has_outbox(&self) -> bool {
        self.control.get().is_some_and(|control| !control.outbox.is_empty())
    }
}

/// A fragment or a word: input from outside.
fn hear(rail: LocalRail, name: &str, bytes: &[u8], intake: &mut Intake<'_>) {
    if Word::is(bytes) {
        match Word::decode(bytes) {
            Ok((instance, word)) => intake.heard.push(Heard { rail, instance, word }),
            Err(error) => log::debug!("rail {name}: a word that cannot be read: {error}"),
        }
        return;
    }
    match intake.reassembly.accept(intake.now, bytes) {
        Ok(Some(message)) => {
            intake.flush();
            intake.events.push(Event::Message { rail, bytes: Cow::into_owned(message) });
        }
        Ok(None) => {}
        Err(error) => log::debug!("rail {name}: {error}"),
    }
}

/// A message of the engine's failed: said once, whatever the number of its fragments.
pub(super) fn report_failed(
    last: &mut u64,
    rail: LocalRail,
    send: &SendEntry,
    error: OpError,
    events: &mut Vec<Event>,
) {
    let Carries::Message(message) = send.carries else { return };
    if std::mem::replace(last, message) == message {
        return;
    }
    let route = Route { local: rail, remote: send.remote };
    events.push(Event::SendFailed { peer: send.peer, route, error });
}
