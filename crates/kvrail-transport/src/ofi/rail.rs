//! One rail: a NIC, with an endpoint for one-sided ops, which a reset replaces, and one for messages, which stays.
//!
//! KR-5: whoever owns the transport owns all its rails; one thread at a time posts and polls. KR-6: what is posted has a
//! context, and the context leaves the table with the one event that ends it. KR-8: there are as many contexts as the
//! provider's queues have room for, so that a full queue is found here and not by the provider; what it refuses
//! nevertheless (`FI_EAGAIN`: it connects, or waits for the peer) is left to the next turn.

use std::time::Duration;

use kvrail_core::id::{LocalRail, PeerId, RemoteRail, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError, RailCounters};
use kvrail_sys::libfabric::abi::{FI_REMOTE_CQ_DATA, fi_cq_data_entry};
use kvrail_sys::libfabric::{CqFailure, Info};

use super::book::Book;
use super::control::{Control, ControlShape};
use super::counters::Counters;
use super::endpoint::{Base, OpEntry, Owner, Port, PortError, READ_AT_ONCE, Read, Shape};
use super::intake::{Intake, Unknown};
use super::messages::report_failed;
use super::status::{self, Family, Scope};

/// Pauses between two replacements of an endpoint that has lost a message: the first and the longest.
const MEND_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Reads of a queue in one poll, so that no rail keeps the others waiting.
const READS_MAX: usize = 32;
/// Reads of a queue that is about to be closed.
const LAST_READS_MAX: usize = 4_096;
/// First pause before an endpoint that could not be opened is tried again; doubled each time, up to 32 times as long.
const REOPEN_AFTER: Duration = Duration::from_millis(100);
/// EFA's status for an op from an endpoint that the target has not inserted.
const UNKNOWN_PEER: i32 = 14;

/// Whether an endpoint can be used.
pub(super) enum State<T> {
    /// It is open.
    Up(Box<T>),
    /// It is not; the text says why, and when the next attempt is due.
    Down { why: String, retry: Time, attempts: u32 },
}

/// One of a rail's endpoints, and those that will take its place.
pub(super) struct End<T> {
    pub(super) state: State<T>,
    /// Grows each time the endpoint is replaced.
    pub(super) epoch: u32,
    /// It has failed: replaced at the next turn.
    pub(super) wounded: Option<String>,
}

impl<T> End<T> {
    fn new(open: T) -> Self {
        Self { state: State::Up(Box::new(open)), epoch: 0, wounded: None }
    }

    pub(super) fn get(&self) -> Option<&T> {
        match &self.state {
            State::Up(open) => Some(open),
            State::Down { .. } => None,
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self) -> Option<&mut T> {
        match &mut self.state {
            State::Up(open) => Some(open),
            State::Down { .. } => None,
        }
    }

    /// It cannot go on.
    pub(super) fn wound(&mut self, name: &str, why: String) {
        if self.wounded.is_none() {
            log::warn!("rail {name}: {why}; its endpoint will be replaced");
            self.wounded = Some(why);
        }
    }

    /// Takes the open one away.
    fn take(&mut self, now: Time) -> Option<Box<T>> {
        self.wounded = None;
        let why = "its endpoint is being replaced".into();
        match std::mem::replace(&mut self.state, State::Down { why, retry: now, attempts: 0 }) {
            State::Up(open) => Some(open),
            State::Down { .. } => None,
        }
    }

    /// What came of opening another one. Returns whether it is open.
    fn opened(&mut self, now: Time, result: Result<T, PortError>) -> bool {
        let State::Down { attempts, .. } = self.state else { return true };
        match result {
            Ok(open) => {
                self.state = State::Up(Box::new(open));
                self.epoch = self.epoch.wrapping_add(1);
                true
            }
            Err(error) => {
                let retry = now + REOPEN_AFTER * 2u32.pow(attempts.min(5));
                self.state = State::Down { why: error.to_string(), retry, attempts: attempts + 1 };
                false
            }
        }
    }

    /// When it is to be opened again, if it is not open.
    pub(super) fn retry(&self) -> Option<Time> {
        match &self.state {
            State::Up(_) => None,
            State::Down { retry, .. } => Some(*retry),
        }
    }
}

/// Which of a rail's endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    /// The one of one-sided ops.
    Data,
    /// The one of messages.
    Control,
}

/// What a rail's endpoints are opened on. Fields drop in this order.
pub(super) struct Bases {
    pub(super) data: Base,
    pub(super) data_info: Info,
    /// Where messages go over a provider of their own.
    pub(super) control: Option<Base>,
    pub(super) control_info: Info,
}

impl Bases {
    fn of_control(&self) -> &Base {
        self.control.as_ref().unwrap_or(&self.data)
    }
}

/// The shapes of both endpoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shapes {
    pub(super) data: Shape,
    pub(super) control: ControlShape,
}

impl Shapes {
    /// Bytes of memory for each rail, beside what the provider itself allocates.
    pub(super) const fn bytes(&self) -> usize {
        self.data.bytes() + self.control.bytes()
    }
}

/// A rail. Fields drop in this order: the endpoints, then what they were opened on.
pub(super) struct Rail {
    pub(super) data: End<Port>,
    pub(super) control: End<Control>,
    /// Where ops go.
    pub(super) book: Book,
    pub(super) bases: Bases,
    pub(super) index: LocalRail,
    /// For people.
    pub(super) name: String,
    /// A message was lost, and the provider numbers them.
    pub(super) hole: bool,
    /// When the endpoint of messages may be replaced for that, and the pause until it may be again.
    mend: (Time, Duration),
    /// The engine was told that it is down.
    told_down: bool,
    pub(super) counters: RailCounters,
    pub(super) device: Option<Counters>,
    /// Events that were decided outside of polling.
    pub(super) late: Vec<Event>,
    pub(super) family: Family,
    pub(super) shapes: Shapes,
    /// Words of the provider that resolve nothing, for the log.
    strays: u64,
    pub(super) entries: Box<[fi_cq_data_entry; READ_AT_ONCE]>,
}

// SAFETY: the entries are read and written within one call each; their pointers are compared only.
unsafe impl Send for Rail {}

impl Rail {
    /// A rail whose endpoints are open. `keeps_addresses` as of [`Book::new`], for those of ops.
    pub(super) fn new(
        index: LocalRail,
        name: String,
        bases: Bases,
        family: Family,
        shapes: Shapes,
        keeps_addresses: bool,
        mut key: impl FnMut() -> u64,
    ) -> Result<Self, PortError> {
        let data = End::new(Port::open(&bases.data, &bases.data_info, shapes.data, key())?);
        let control =
            End::new(Control::open(bases.of_control(), &bases.control_info, shapes.control, key())?);
        Ok(Self {
            data,
            control,
            book: Book::new(keeps_addresses),
            bases,
            index,
            name,
            hole: false,
            mend: (Time::ZERO, MEND_AGAIN.0),
            told_down: false,
            counters: RailCounters::default(),
            device: None,
            late: Vec::new(),
            family,
            shapes,
            strays: 0,
            entries: Box::new([fi_cq_data_entry::default(); READ_AT_ONCE]),
        })
    }

    /// Why it cannot be used, if it cannot.
    pub(super) fn why_down(&self) -> Option<&str> {
        match (&self.data.state, &self.control.state) {
            (State::Down { why, .. }, _) | (_, State::Down { why, .. }) => Some(why),
            (State::Up(_), State::Up(_)) => None,
        }
    }

    /// Whether ops of a peer are in flight: to one of its rails, or to any.
    pub(super) fn carries_ops_of(&self, peer: PeerId, remote: Option<RemoteRail>) -> bool {
        let its = |op: &OpEntry| op.peer == peer && remote.is_none_or(|remote| op.remote == remote);
        self.data.get().is_some_and(|port| port.ops.iter().any(its))
    }

    // --- polling ---

    /// Takes in what happened. Returns true when anything did.
    pub(super) fn poll(&mut self, intake: &mut Intake<'_>) -> bool {
        intake.events.append(&mut self.late);
        self.read(intake, READS_MAX) | self.read_messages(intake, READS_MAX)
    }

    fn read(&mut self, intake: &mut Intake<'_>, reads_max: usize) -> bool {
        let mut any = false;
        for _ in 0..reads_max {
            let State::Up(port) = &mut self.data.state else { return any };
            match port.bound.read(&mut self.entries) {
                Read::Entries(count) => {
                    any = true;
                    for at in 0..count {
                        let entry = self.entries[at];
                        self.take_in(&entry, intake);
                    }
                    if let State::Up(port) = &mut self.data.state {
                        port.post_receives();
                    }
                    if count < READ_AT_ONCE {
                        break;
                    }
                }
                Read::Failure(failure) => {
                    any = true;
                    self.take_in_failure(&failure, intake);
                }
                Read::Nothing => break,
                Read::Broken(why) => {
                    self.data.wound(&self.name, why);
                    break;
                }
            }
        }
        any
    }

    #[inline]
    fn take_in(&mut self, entry: &fi_cq_data_entry, intake: &mut Intake<'_>) {
        let State::Up(port) = &mut self.data.state else { return };
        let has_immediate = entry.flags & FI_REMOTE_CQ_DATA != 0;
        match port.owner(entry.op_context) {
            Owner::Op(index) => {
                let Some(op) = port.ops.release(index) else { return self.stray("an op that had ended") };
                self.counters.completed += 1;
                if let Some(destination) = self.book.get_mut(op.to) {
                    destination.failures = 0;
                }
                self.book.ended(&port.bound.addresses, op.to);
                intake.settle(op.import);
                intake.completed(op.token, op.index);
                return;
            }
            Owner::Receive(index) => port.received(index),
            Owner::Nobody if has_immediate => {}
            Owner::Nobody => return self.stray("a context that was not given out"),
        }
        if !has_immediate {
            return self.stray("a message where none is expected");
        }
        self.counters.received += 1;
        intake.flush();
        intake.events.push(Event::Immediate { rail: self.index, value: entry.data as u32 });
    }

    fn take_in_failure(&mut self, failure: &CqFailure, intake: &mut Intake<'_>) {
        let decoded = status::decode(self.family, failure.entry.err, failure.entry.prov_errno);
        let State::Up(port) = &mut self.data.state else { return };
        let to = match port.owner(failure.entry.op_context) {
            Owner::Op(index) => {
                let Some(op) = port.ops.release(index) else { return self.stray("an op that had ended") };
                self.counters.failed += 1;
                intake.settle(op.import);
                intake.failed(op.token, op.index, decoded.error);
                op.to
            }
            Owner::Receive(index) => {
                // Too long for its buffer, or taken back: not one of kvrail's, or nobody's.
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
            // It was replaced, or this one was and the peer has not heard of it.
            if decoded.scope == Scope::Peer || (decoded.family == Family::Efa && decoded.code == UNKNOWN_PEER)
            {
                let (peer, remote) = (destination.peer, destination.remote);
                intake.unknown.push(Unknown { peer, local: self.index, remote, to });
            }
        }
        if let State::Up(port) = &self.data.state {
            self.book.ended(&port.bound.addresses, to);
        }
        if decoded.scope == Scope::Rail {
            self.data.wound(&self.name, decoded.to_string());
        }
    }

    pub(super) fn stray(&mut self, what: &str) {
        self.strays += 1;
        if self.strays == 1 {
            log::warn!("rail {}: the provider reports {what}; it is ignored, as will be others", self.name);
        }
    }

    /// Ops over a route were not taken for too long, and none is in flight there that could be waited for.
    pub(super) fn refuses(&mut self, peer: PeerId, route: Route) {
        self.data
            .wound(&self.name, format!("it takes no ops for {peer} {route}, and has none in flight there"));
    }

    /// Whether the endpoint of messages must be replaced because a peer waits for one that was lost. Less and less often
    /// while messages go on being lost.
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

    /// Reads what happened to the rail's objects: the provider's own errors, which belong to no op.
    pub(super) fn read_events(&mut self) {
        for base in [Some(&mut self.bases.data), self.bases.control.as_mut()].into_iter().flatten() {
            let Some(events) = &base.events else { continue };
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
                        base.events = None;
                        break;
                    }
                }
            }
        }
    }

    // --- an endpoint's end ---

    /// Closes an endpoint: every op, or every message, in flight on it ends, by its own completion if that is there
    /// already, else as flushed. Opens another one on the same domain.
    pub(super) fn replace(&mut self, which: Which, intake: &mut Intake<'_>, key: u64) {
        match which {
            Which::Data => {
                self.read(intake, LAST_READS_MAX);
                if let Some(mut port) = self.data.take(intake.now) {
                    let ops = port.ops.drain();
                    // When this returns, the provider has let go of every context and buffer.
                    drop(port);
                    self.book.clear();
                    self.counters.failed += ops.len() as u64;
                    intake.flushed(ops);
                }
            }
            Which::Control => {
                self.read_messages(intake, LAST_READS_MAX);
                self.hole = false;
                if let Some(mut control) = self.control.take(intake.now) {
                    let (sends, mut last) = (control.sends.drain(), control.failed_message);
                    drop(control);
                    self.counters.failed += sends.len() as u64;
                    intake.flush();
                    for send in &sends {
                        report_failed(&mut last, self.index, send, OpError::Flushed, intake.events);
                    }
                }
            }
        }
        self.reopen(which, intake, key);
    }

    /// Opens an endpoint where there is none.
    pub(super) fn reopen(&mut self, which: Which, intake: &mut Intake<'_>, key: u64) {
        let (now, bases, shapes) = (intake.now, &self.bases, &self.shapes);
        match which {
            Which::Data => {
                let port = Port::open(&bases.data, &bases.data_info, shapes.data, key);
                self.data.opened(now, port);
            }
            Which::Control => {
                let control = Control::open(bases.of_control(), &bases.control_info, shapes.control, key);
                self.control.opened(now, control);
            }
        }
        match self.why_down().map(str::to_string) {
            Some(why) if !self.told_down => {
                log::warn!("rail {} is down: its endpoint cannot be opened again: {why}", self.name);
                self.told_down = true;
                intake.events.push(Event::RailDown { rail: self.index });
            }
            None if self.told_down => {
                log::info!("rail {} is up again", self.name);
                self.told_down = false;
                intake.events.push(Event::RailUp { rail: self.index });
            }
            _ => {}
        }
    }
}
