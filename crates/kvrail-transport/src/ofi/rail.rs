//! One rail: a NIC's domain, the endpoint that is open on it now, and what goes through it.
//!
//! KR-5: whoever owns the transport owns all its rails; one thread at a time posts and polls. KR-6: what is posted has a
//! context, and the context leaves the table with the one event that ends it. KR-8: there are as many contexts as the
//! provider's queues have room for, so that a full queue is found here and not by the provider; what it refuses
//! nevertheless (`FI_EAGAIN`: it connects, or waits for the peer) is left to the next turn.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use kvrail_core::id::{LocalRail, PeerId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError, RailCounters};
use kvrail_sys::libfabric::abi::{FI_EAGAIN, FI_EAVAIL, FI_EINTR, FI_REMOTE_CQ_DATA, fi_cq_data_entry};
use kvrail_sys::libfabric::{CqFailure, Domain, EventQueue, Fabric, Info, outcome};

use super::book::Book;
use super::counters::Counters;
use super::endpoint::{Carries, OpEntry, Owner, Port, PortError, SendEntry, Shape};
use super::fragment::{FRAGMENT_BYTES, Outgoing, Reassembly};
use super::region::Imports;
use super::status::{self, Family, Scope};
use super::word::{Heard, Word};

/// Completions that are read at once.
const READ_AT_ONCE: usize = 64;
/// Pauses between two replacements of an endpoint that has lost a message: the first and the longest.
const MEND_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Reads of a queue in one poll, so that no rail keeps the others waiting.
const READS_MAX: usize = 32;
/// Reads of a queue that is about to be closed.
const LAST_READS_MAX: usize = 4_096;

/// What polling gathers from all rails.
pub(super) struct Intake<'a> {
    pub(super) events: &'a mut Vec<Event>,
    pub(super) now: Time,
    pub(super) imports: &'a mut Imports,
    pub(super) reassembly: &'a mut Reassembly,
    pub(super) heard: &'a mut Vec<Heard>,
    /// Imports that were ended and have nothing in flight any more.
    pub(super) settled: &'a mut Vec<u32>,
    /// Rails of peers whose endpoint was found gone.
    pub(super) gone: &'a mut Vec<(PeerId, RemoteRail)>,
    /// Consecutive ops of one transfer that completed: one event for many.
    run: Option<(Token, u32, u32)>,
}

impl<'a> Intake<'a> {
    pub(super) fn new(
        now: Time,
        events: &'a mut Vec<Event>,
        imports: &'a mut Imports,
        reassembly: &'a mut Reassembly,
        heard: &'a mut Vec<Heard>,
        settled: &'a mut Vec<u32>,
        gone: &'a mut Vec<(PeerId, RemoteRail)>,
    ) -> Self {
        Self { events, now, imports, reassembly, heard, settled, gone, run: None }
    }

    #[inline]
    fn completed(&mut self, token: Token, index: u32) {
        match &mut self.run {
            Some((of, first, count)) if *of == token && index == *first + *count => *count += 1,
            _ => {
                self.flush();
                self.run = Some((token, index, 1));
            }
        }
    }

    fn failed(&mut self, token: Token, first: u32, error: OpError) {
        self.flush();
        self.events.push(Event::Failed { token, first, count: 1, error });
    }

    /// Reports the run that is open.
    #[inline]
    pub(super) fn flush(&mut self) {
        if let Some((token, first, count)) = self.run.take() {
            self.events.push(Event::Completed { token, first, count });
        }
    }

    fn settle(&mut self, import: u32) {
        if self.imports.settled(import) {
            self.settled.push(import);
        }
    }
}

/// Whether a rail can be used.
pub(super) enum State {
    /// Its endpoint is open.
    Up(Box<Port>),
    /// It is not; the text says why, and when the next attempt is due.
    Down { why: String, retry: Time, attempts: u32 },
}

/// A rail. Fields drop in this order: the endpoint, then what it was opened on.
pub(super) struct Rail {
    pub(super) state: State,
    pub(super) book: Book,
    events: Option<EventQueue>,
    pub(super) domain: Domain,
    pub(super) fabric: Fabric,
    pub(super) info: Info,
    pub(super) index: LocalRail,
    /// For people.
    pub(super) name: String,
    /// The provider numbers the messages of an endpoint to each peer, which takes them in that order (`efa`): one that was
    /// lost holds back all later ones, for good.
    numbers_messages: bool,
    /// One was lost.
    hole: bool,
    /// When the endpoint may be replaced for that, and the pause until it may be again.
    mend: (Time, Duration),
    /// Grows each time the endpoint is replaced.
    pub(super) epoch: u32,
    /// Its endpoint has failed, or swallowed a doorbell: replaced at the next turn.
    pub(super) wounded: Option<String>,
    pub(super) counters: RailCounters,
    pub(super) device: Option<Counters>,
    /// Sends that the provider has not taken yet.
    outbox: VecDeque<u32>,
    /// Events that were decided outside of polling.
    late: Vec<Event>,
    /// The last message that was reported as failed: its other fragments are not reported again.
    failed_message: u64,
    family: Family,
    /// Words of the provider that resolve nothing, for the log.
    strays: u64,
    entries: Box<[fi_cq_data_entry; READ_AT_ONCE]>,
}

// SAFETY: the entries are read and written within one call each; their pointers are compared only.
unsafe impl Send for Rail {}

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
    /// A rail whose endpoint is open.
    #[allow(clippy::too_many_arguments, reason = "each is a part of it")]
    pub(super) fn new(
        index: LocalRail,
        name: String,
        fabric: Fabric,
        domain: Domain,
        events: Option<EventQueue>,
        info: Info,
        family: Family,
        shape: Shape,
        keeps_addresses: bool,
        key: u64,
    ) -> Result<Self, PortError> {
        let port = Port::open(&domain, &info, events.as_ref(), shape, key)?;
        Ok(Self {
            state: State::Up(Box::new(port)),
            book: Book::new(keeps_addresses),
            numbers_messages: keeps_addresses,
            hole: false,
            mend: (Time::ZERO, MEND_AGAIN.0),
            events,
            domain,
            fabric,
            info,
            index,
            name,
            epoch: 0,
            wounded: None,
            counters: RailCounters::default(),
            device: None,
            outbox: VecDeque::new(),
            late: Vec::new(),
            failed_message: u64::MAX,
            family,
            strays: 0,
            entries: Box::new([fi_cq_data_entry::default(); READ_AT_ONCE]),
        })
    }

    pub(super) fn port(&self) -> Option<&Port> {
        match &self.state {
            State::Up(port) => Some(port),
            State::Down { .. } => None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    // --- polling ---

    /// Takes in what happened. Returns true when anything did.
    pub(super) fn poll(&mut self, intake: &mut Intake<'_>) -> bool {
        intake.events.append(&mut self.late);
        self.read(intake, READS_MAX)
    }

    fn read(&mut self, intake: &mut Intake<'_>, reads_max: usize) -> bool {
        let mut any = false;
        for _ in 0..reads_max {
            let State::Up(port) = &mut self.state else { return any };
            let count = port.queue.read(&mut self.entries[..]);
            if count > 0 {
                any = true;
                let count = (count as usize).min(READ_AT_ONCE);
                for at in 0..count {
                    let entry = self.entries[at];
                    self.take_in(&entry, intake);
                }
                if let State::Up(port) = &mut self.state {
                    port.post_receives();
                }
                if count < READ_AT_ONCE {
                    break;
                }
                continue;
            }
            let code = -count as i32;
            if code == FI_EAVAIL {
                match port.queue.read_failure() {
                    Ok(Some(failure)) => {
                        any = true;
                        self.take_in_failure(&failure, intake);
                        continue;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.wound(format!("its completion queue is gone: {error}"));
                        break;
                    }
                }
            }
            if count != 0 && code != FI_EAGAIN && code != FI_EINTR {
                let words = self.fabric.library().strerror(code);
                self.wound(format!("its completion queue is gone: {words}"));
            }
            break;
        }
        any
    }

    #[inline]
    fn take_in(&mut self, entry: &fi_cq_data_entry, intake: &mut Intake<'_>) {
        let State::Up(port) = &mut self.state else { return };
        match port.owner(entry.op_context) {
            Owner::Op(index) => {
                let Some(op) = port.ops.release(index) else { return self.stray("an op that had ended") };
                self.counters.completed += 1;
                if let Some(destination) = self.book.get_mut(op.to) {
                    destination.reached();
                }
                self.book.ended(&port.addresses, op.to);
                intake.settle(op.import);
                intake.completed(op.token, op.index);
            }
            Owner::Send(index) => {
                let Some(send) = port.sends.release(index) else {
                    return self.stray("a send that had ended");
                };
                self.counters.completed += 1;
                if let Some(destination) = self.book.get_mut(send.to) {
                    destination.reached();
                    destination.sends = destination.sends.saturating_sub(1);
                }
                self.book.ended(&port.addresses, send.to);
            }
            Owner::Receive(index) => {
                self.counters.received += 1;
                if entry.flags & FI_REMOTE_CQ_DATA != 0 {
                    intake.flush();
                    intake.events.push(Event::Immediate { rail: self.index, value: entry.data as u32 });
                } else {
                    let mut room = [0; FRAGMENT_BYTES];
                    let bytes = port.message(index, entry.len, &mut room);
                    Self::hear(self.index, &self.name, bytes, intake);
                }
                port.received(index);
            }
            Owner::Nobody if entry.flags & FI_REMOTE_CQ_DATA != 0 => {
                self.counters.received += 1;
                intake.flush();
                intake.events.push(Event::Immediate { rail: self.index, value: entry.data as u32 });
            }
            Owner::Nobody => self.stray("a context that was not given out"),
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

    fn take_in_failure(&mut self, failure: &CqFailure, intake: &mut Intake<'_>) {
        let decoded = status::decode(self.family, failure.entry.err, failure.entry.prov_errno);
        let State::Up(port) = &mut self.state else { return };
        let to = match port.owner(failure.entry.op_context) {
            Owner::Op(index) => {
                let Some(op) = port.ops.release(index) else { return self.stray("an op that had ended") };
                self.counters.failed += 1;
                intake.settle(op.import);
                intake.failed(op.token, op.index, decoded.error);
                op.to
            }
            Owner::Send(index) => {
                let Some(send) = port.sends.release(index) else {
                    return self.stray("a send that had ended");
                };
                self.counters.failed += 1;
                if let Some(destination) = self.book.get_mut(send.to) {
                    destination.sends = destination.sends.saturating_sub(1);
                }
                report_failed(&mut self.failed_message, self.index, &send, decoded.error, intake.events);
                self.hole |= self.numbers_messages;
                send.to
            }
            Owner::Receive(index) => {
                // Too long for its buffer, or taken back: not one of kvrail's messages, or nobody's.
                log::debug!("rail {}: a receive failed: {decoded}", self.name);
                port.received(index);
                port.post_receives();
                return;
            }
            Owner::Nobody => {
                log::debug!("rail {}: {decoded}: {}", self.name, failure.provider_text);
                return self.stray("an error that names no op");
            }
        };
        if let Some(destination) = self.book.get_mut(to) {
            destination.failures += 1;
            if destination.failures == 1 && decoded.error != OpError::BadKey {
                let route = Route { local: self.index, remote: destination.remote };
                log::debug!(
                    "rail {} {} {route}: {decoded}: {}",
                    self.name,
                    destination.peer,
                    failure.provider_text
                );
            }
            if decoded.scope == Scope::Peer {
                destination.gone_since.get_or_insert(intake.now);
                intake.gone.push((destination.peer, destination.remote));
            }
            // The peer's rail does not know this endpoint (it was replaced, or forgot us): say it again.
            if decoded.family == Family::Efa && decoded.code == UNKNOWN_PEER {
                destination.introduce(intake.now);
            }
        }
        if let State::Up(port) = &self.state {
            self.book.ended(&port.addresses, to);
        }
        if decoded.scope == Scope::Rail {
            self.wound(decoded.to_string());
        }
    }

    fn stray(&mut self, what: &str) {
        self.strays += 1;
        if self.strays == 1 {
            log::warn!("rail {}: the provider reports {what}; it is ignored, as will be others", self.name);
        }
    }

    /// Whether the endpoint must be replaced because a peer waits for a message that was lost. Less and less often while
    /// messages go on being lost: each time costs whoever else the rail serves a repetition.
    pub(super) fn must_mend(&mut self, now: Time) -> bool {
        let (due, pause) = self.mend;
        if !self.hole || now < due {
            return false;
        }
        self.hole = false;
        let again = if now.since(due) > MEND_AGAIN.1 { MEND_AGAIN.0 } else { (pause * 2).min(MEND_AGAIN.1) };
        self.mend = (now + again, again);
        true
    }

    /// Whether it will have to be.
    pub(super) fn has_hole(&self) -> bool {
        self.hole
    }

    /// The endpoint cannot go on.
    pub(super) fn wound(&mut self, why: String) {
        if self.wounded.is_none() {
            log::warn!("rail {}: {why}; its endpoint will be replaced", self.name);
            self.wounded = Some(why);
        }
    }

    /// Reads what happened to the rail's objects: the provider's own errors, which belong to no op.
    pub(super) fn read_events(&mut self) {
        let Some(events) = &self.events else { return };
        for _ in 0..READ_AT_ONCE {
            match events.read() {
                Ok(Some(Ok(event))) => log::debug!("rail {}: event {}", self.name, event.event),
                Ok(Some(Err(failure))) => {
                    let (code, words) = &failure.provider;
                    log::warn!("rail {}: {} (provider: {code}, {words})", self.name, failure.error);
                }
                Ok(None) => break,
                Err(error) => {
                    log::warn!("rail {}: its event queue is gone: {error}", self.name);
                    self.events = None;
                    break;
                }
            }
        }
    }

    // --- messages ---

    /// Takes a message for a destination: all of its fragments, or nothing.
    pub(super) fn offer(
        &mut self,
        now: Time,
        to: u32,
        outgoing: &Outgoing<'_>,
        message: u64,
        route: (PeerId, RemoteRail),
    ) -> Offered {
        let State::Up(port) = &mut self.state else { return Offered::Down };
        let Some(destination) = self.book.get_mut(to) else { return Offered::Down };
        // Half of the buffers for one destination, so that a silent one does not hold them all.
        let half = (port.sends.unused() + port.sends.in_use()) / 2;
        let count = outgoing.count();
        if port.sends.unused() < count || destination.sends as usize + count > half.max(count) {
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
        let State::Up(port) = &mut self.state else { return false };
        let Some(destination) = self.book.get_mut(to) else { return false };
        if port.sends.unused() == 0 || word.len() > FRAGMENT_BYTES {
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
        let State::Up(port) = &mut self.state else { return };
        let len = bytes.len() as u16;
        let Ok(index) = port.sends.take(SendEntry { peer, remote, to, carries, len, since: now }) else {
            return;
        };
        port.fill(index, bytes);
        self.outbox.push_back(index);
        let mut late = std::mem::take(&mut self.late);
        self.post_next(&mut late);
        self.late = late;
    }

    /// Posts the first send of the outbox; what the provider does not take goes to its end. Returns whether it took it.
    fn post_next(&mut self, events: &mut Vec<Event>) -> bool {
        let State::Up(port) = &mut self.state else { return false };
        let Some(index) = self.outbox.pop_front() else { return false };
        let Some(&send) = port.sends.get(index) else { return true };
        let Some(destination) = self.book.get_mut(send.to) else { return true };
        match outcome(port.send(index, send.len.into(), destination.at)) {
            Ok(()) => {
                destination.in_flight += 1;
                self.counters.posted += 1;
                true
            }
            Err(FI_EAGAIN) => {
                self.outbox.push_back(index);
                false
            }
            Err(code) => {
                destination.sends = destination.sends.saturating_sub(1);
                port.sends.release(index);
                self.counters.failed += 1;
                let error = status::decode(Family::Errno, code, 0).error;
                report_failed(&mut self.failed_message, self.index, &send, error, events);
                true
            }
        }
    }

    /// Tries again what the provider did not take, and gives up what it has not taken for too long.
    pub(super) fn post_outbox(&mut self, now: Time, patience: std::time::Duration, events: &mut Vec<Event>) {
        for _ in 0..self.outbox.len() {
            let State::Up(port) = &mut self.state else { return };
            let Some(&index) = self.outbox.front() else { return };
            let old = port.sends.get(index).copied().filter(|send| now.since(send.since) >= patience);
            let Some(send) = old else {
                self.post_next(events);
                continue;
            };
            self.outbox.pop_front();
            port.sends.release(index);
            self.counters.failed += 1;
            if let Some(destination) = self.book.get_mut(send.to) {
                destination.sends = destination.sends.saturating_sub(1);
            }
            report_failed(&mut self.failed_message, self.index, &send, OpError::Unresponsive, events);
            // Counts as one in flight that ended, so that a destination nobody uses is removed.
            if let State::Up(port) = &self.state {
                self.book.ended_unposted(&port.addresses, send.to);
            }
        }
    }

    /// Whether sends wait for the provider.
    pub(super) fn has_outbox(&self) -> bool {
        !self.outbox.is_empty()
    }

    // --- the endpoint's end ---

    /// Closes the endpoint: every op and message in flight on the rail ends, by its own completion if that is there
    /// already, else as flushed. Opens another one on the same domain.
    pub(super) fn replace(&mut self, intake: &mut Intake<'_>, shape: Shape, key: u64) {
        self.read(intake, LAST_READS_MAX);
        self.wounded = None;
        let down =
            State::Down { why: "its endpoint is being replaced".into(), retry: intake.now, attempts: 0 };
        if let State::Up(port) = std::mem::replace(&mut self.state, down) {
            self.end(*port, intake);
        }
        self.reopen(intake, shape, key);
    }

    /// Ends a port and pays what is owed for it.
    fn end(&mut self, mut port: Port, intake: &mut Intake<'_>) {
        let (ops, sends) = (port.ops.drain(), port.sends.drain());
        // When this returns, the provider has let go of every context and buffer.
        drop(port);
        self.outbox.clear();
        self.book.clear();
        self.hole = false;
        intake.flush();
        self.counters.failed += (ops.len() + sends.len()) as u64;
        flushed(ops, intake);
        for send in &sends {
            report_failed(&mut self.failed_message, self.index, send, OpError::Flushed, intake.events);
        }
    }

    /// Opens an endpoint where there is none.
    pub(super) fn reopen(&mut self, intake: &mut Intake<'_>, shape: Shape, key: u64) {
        let State::Down { attempts, .. } = self.state else { return };
        match Port::open(&self.domain, &self.info, self.events.as_ref(), shape, key) {
            Ok(port) => {
                self.state = State::Up(Box::new(port));
                self.epoch = self.epoch.wrapping_add(1);
                if attempts > 0 {
                    log::info!("rail {} is up again", self.name);
                    intake.events.push(Event::RailUp { rail: self.index });
                }
            }
            Err(error) => {
                let why = error.to_string();
                if attempts == 0 {
                    log::warn!("rail {} is down: its endpoint cannot be opened again: {why}", self.name);
                    intake.events.push(Event::RailDown { rail: self.index });
                }
                let pause = REOPEN_AFTER * 2u32.pow(attempts.min(5));
                self.state = State::Down { why, retry: intake.now + pause, attempts: attempts + 1 };
            }
        }
    }
}

/// First pause before an endpoint that could not be opened is tried again; doubled each time, up to 32 times as long.
const REOPEN_AFTER: std::time::Duration = std::time::Duration::from_millis(100);

/// EFA's status for an op from an endpoint that the target has not inserted.
const UNKNOWN_PEER: i32 = 14;

/// A message of the engine's failed: said once, whatever the number of its fragments.
fn report_failed(last: &mut u64, rail: LocalRail, send: &SendEntry, error: OpError, events: &mut Vec<Event>) {
    let Carries::Message(message) = send.carries else { return };
    if std::mem::replace(last, message) == message {
        return;
    }
    let route = Route { local: rail, remote: send.remote };
    events.push(Event::SendFailed { peer: send.peer, route, error });
}

/// Ops that were taken back, as few events as their order allows.
fn flushed(mut ops: Vec<OpEntry>, intake: &mut Intake<'_>) {
    ops.sort_unstable_by_key(|op| (op.token, op.index));
    let mut run: Option<(Token, u32, u32)> = None;
    for op in &ops {
        intake.settle(op.import);
        match &mut run {
            Some((token, first, count)) if *token == op.token && op.index == *first + *count => *count += 1,
            _ => {
                if let Some((token, first, count)) = run.replace((op.token, op.index, 1)) {
                    intake.events.push(Event::Failed { token, first, count, error: OpError::Flushed });
                }
            }
        }
    }
    if let Some((token, first, count)) = run {
        intake.events.push(Event::Failed { token, first, count, error: OpError::Flushed });
    }
}
