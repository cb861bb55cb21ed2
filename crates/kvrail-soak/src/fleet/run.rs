//! One run: workers on nodes, a schedule, and the questions of the checkers.
//!
//! A leg breaks things for a while; then all faults end, everything in flight ends, and everybody must reach everybody. A run has a few
//! legs with the same processes, so that what grows is seen.

use std::time::{Duration, Instant};

use kvrail_sim::rng::{Rng, mix};

use super::book::{Book, Entry, Seen, Stage};
use super::crew::{Crew, Mate, Said};
use super::extents::Extents;
use super::place::Place;
use super::schedule::{Act, Ground, Schedule, TIMEOUT_MS, shape};
use super::weather::{Case, Weather};
use crate::layout::Shape;
use crate::plant::Plant;
use crate::talk::{Class, Count, Extent, Find, Order, Outcome, Part, Posting, Rails, Tenant, Way, Word};
use crate::violation::{Checker, Violation};

/// How much later than its timeout a transfer may end: two stalls, the device's own patience, and a busy machine.
pub(super) const BOUND: Duration = Duration::from_secs(10);
/// Longest time without an answer to an order.
const ANSWER_MAX: Duration = Duration::from_secs(25);
/// How long after the healing everybody must have reached everybody.
const DEMAND_MAX: Duration = Duration::from_secs(25);
/// How long a transfer's memory rests before it is looked at for the last time.
const REST: Duration = Duration::from_millis(120);
/// How long what a killed process sent may be on its way.
const STRAYS: Duration = Duration::from_millis(500);
/// How soon a killed process comes back.
const BACK_AFTER: Duration = Duration::from_millis(50);
/// Between two introductions.
const INTRODUCE_EVERY: Duration = Duration::from_millis(40);
/// How long a worker may take to end.
const END_MAX: Duration = Duration::from_secs(20);
/// How much the memory of a process may grow after its first leg, KiB: allocators keep what threads gave back.
const GROWTH_MAX_KIB: u64 = 24 << 10;
/// The same for open descriptors.
const DESCRIPTORS_MAX: usize = 64;
const TICK: Duration = Duration::from_millis(2);

/// A node.
struct Node {
    mate: Option<Mate>,
    life: u64,
    tenants: Vec<Tenant>,
    extents: Vec<Extents>,
    /// Grows with everything that peers must be told.
    version: u64,
    /// Its last version that each other node has imported: that node's life, version.
    known_by: Vec<Option<(u64, u64)>>,
    /// Version that the metadata under way has.
    describing: Option<u64>,
    described: Instant,
    /// Peers must be introduced (again).
    stale: bool,
    renewing: Option<usize>,
    /// Counts of this life, at the end of each leg.
    counts: Vec<Count>,
    counting: bool,
    ending: bool,
    ended: bool,
    /// When it comes back.
    back_at: Option<Instant>,
    /// The oldest order without an answer.
    asked: Option<Instant>,
    rails: usize,
    in_flight: usize,
}

/// A run under way.
pub(super) struct Run<'a> {
    schedule: &'a Schedule,
    place: Place,
    crew: Crew,
    plant: Option<Plant>,
    libfabric: Option<std::path::PathBuf>,
    nodes: Vec<Node>,
    book: Book,
    weather: Weather,
    rng: Rng,
    breaking: bool,
    begun: usize,
    log: Vec<String>,
    since: Instant,
}

/// A transfer that must succeed after healing.
struct Want {
    a: usize,
    b: usize,
    way: Way,
    /// The try that is under way.
    id: Option<u64>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        schedule: &'a Schedule,
        place: Place,
        plant: Option<Plant>,
        libfabric: Option<std::path::PathBuf>,
    ) -> Result<Self, String> {
        let now = Instant::now();
        let node = |rails: &u16| Node {
            mate: None,
            life: 0,
            tenants: Vec::new(),
            extents: schedule.regions.iter().map(|bytes| Extents::new(*bytes)).collect(),
            version: 0,
            known_by: vec![None; schedule.rails.len()],
            describing: None,
            described: now,
            stale: false,
            renewing: None,
            counts: Vec::new(),
            counting: false,
            ending: false,
            ended: false,
            back_at: None,
            asked: None,
            rails: usize::from(*rails),
            in_flight: 0,
        };
        Ok(Self {
            schedule,
            place,
            crew: Crew::new().map_err(|e| format!("cannot listen for workers: {e}"))?,
            plant,
            libfabric,
            nodes: schedule.rails.iter().map(node).collect(),
            book: Book::default(),
            weather: Weather::default(),
            rng: Rng::new(mix(schedule.seed)),
            breaking: false,
            begun: 0,
            log: Vec::new(),
            since: now,
        })
    }

    /// Carries the schedule out.
    pub(super) fn carry_out(&mut self) -> Result<(), Violation> {
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        for leg in 0..self.schedule.legs {
            self.break_things(leg)?;
            self.heal()?;
            self.drain()?;
            self.demand()?;
            self.drain()?;
            self.check_promises()?;
            self.count()?;
        }
        self.end()
    }

    pub(super) fn seen(&self) -> Seen {
        self.book.seen
    }

    /// What happened, for people.
    pub(super) fn log(&self) -> &[String] {
        &self.log
    }

    /// Takes the place down.
    pub(super) fn close(mut self) -> Result<(), Violation> {
        self.nodes.clear();
        self.place.end().map_err(|what| Violation::new(Checker::Ending, what))
    }

    fn note(&mut self, what: String) {
        let at = self.since.elapsed().as_secs_f64();
        self.log.push(format!("{at:7.3} {what}"));
        // The last of them tell the story.
        if self.log.len() > 400 {
            self.log.drain(..200);
        }
    }

    fn part(&self, node: usize) -> Part {
        let rails = match &self.schedule.ground {
            Ground::Loopback => Rails::Tcp { connections: self.schedule.rails[node] },
            Ground::Emulated { provider, .. } => Rails::Ofi {
                provider: provider.clone(),
                libfabric: self.libfabric.clone(),
                count: Some(self.schedule.rails[node]),
                stall_ms: Some(self.schedule.stall_ms),
            },
        };
        Part {
            name: format!("node-{node}"),
            rails,
            thread: self.schedule.thread[node],
            regions: self.schedule.regions.clone(),
            seed: self.schedule.seed,
            peer_timeout_ms: self.schedule.peer_timeout_ms,
            plant: self.plant.filter(|_| node == 0),
        }
    }

    fn start(&mut self, node: usize) -> Result<(), Violation> {
        let part = self.part(node);
        let mate = self.crew.start(&self.place, node, &part);
        let mate = mate.map_err(|what| Violation::new(Checker::Ending, what))?;
        self.note(format!("node {node} starts as worker {}, pid {}", mate.number, mate.pid()));
        let state = &mut self.nodes[node];
        state.life = mate.number;
        state.mate = Some(mate);
        state.tenants.clear();
        state.extents = self.schedule.regions.iter().map(|bytes| Extents::new(*bytes)).collect();
        state.version += 1;
        state.known_by.fill(None);
        (state.describing, state.renewing, state.counting) = (None, None, false);
        state.counts.clear();
        state.asked = Some(Instant::now());
        (state.back_at, state.stale) = (None, false);
        Ok(())
    }

    fn kill(&mut self, node: usize) {
        let now = Instant::now();
        let Some(mut mate) = self.nodes[node].mate.take() else { return };
        mate.kill();
        self.note(format!("node {node} is killed"));
        self.weather.killed(node, now);
        self.nodes[node].back_at = Some(now + BACK_AFTER);
        self.nodes[node].asked = None;
        self.book.seen.restarts += 1;
        let ids: Vec<u64> = self.book.entries.keys().copied().collect();
        for id in ids {
            let Some(entry) = self.book.entries.get_mut(&id) else { continue };
            let life = (node, self.nodes[node].life);
            if entry.initiator == life {
                // Nobody will say how it ended; what it sent may still land for a while.
                entry.find = match entry.stage {
                    Stage::Claimed => Find::None,
                    Stage::Ended { .. } | Stage::Settling => entry.find,
                    _ => Find::Some,
                };
                match entry.stage {
                    Stage::Claimed | Stage::Posting | Stage::Moving | Stage::Ended { .. } => {
                        entry.stage = Stage::Ended { look_at: now + STRAYS };
                    }
                    // The responder's answer is still to come, if it has not.
                    Stage::Settling | Stage::Resting { .. } | Stage::Releasing => self.abandon(id),
                }
            } else if entry.responder == life {
                match entry.stage {
                    Stage::Claimed => self.abandon(id),
                    Stage::Settling | Stage::Releasing => self.answered(id),
                    _ => {}
                }
            }
        }
    }

    /// Nothing more can be learned of a transfer.
    fn abandon(&mut self, id: u64) {
        if let Some(entry) = self.book.close(id) {
            self.free(&entry);
        }
    }

    fn free(&mut self, entry: &Entry) {
        for ((node, life), extent) in [(entry.initiator, entry.local), (entry.responder, entry.remote)] {
            if self.nodes[node].life == life {
                self.nodes[node].extents[extent.region].give_back(extent.offset);
            }
        }
    }

    fn lives(&self, life: (usize, u64)) -> bool {
        self.nodes[life.0].life == life.1 && self.nodes[life.0].mate.is_some()
    }

    fn order(&mut self, node: usize, order: &Order) {
        if let Some(mate) = &mut self.nodes[node].mate {
            mate.order(order);
            self.nodes[node].asked.get_or_insert_with(Instant::now);
        }
    }

    fn break_things(&mut self, leg: u32) -> Result<(), Violation> {
        self.note(format!("leg {leg} begins"));
        (self.breaking, self.begun) = (true, 0);
        let began = Instant::now();
        let until = began + Duration::from_millis(self.schedule.leg_ms);
        let mut acts = self.schedule.acts(leg).into_iter().peekable();
        while Instant::now() < until {
            while let Some((_, act)) =
                acts.next_if(|(at, _)| began + Duration::from_millis(*at) <= Instant::now())
            {
                self.act(act)?;
            }
            self.step()?;
            self.work();
        }
        self.breaking = false;
        Ok(())
    }

    fn act(&mut self, act: Act) -> Result<(), Violation> {
        let cannot = |what: String| Violation::new(Checker::Ending, what);
        match act {
            Act::Kill(node) => self.kill(node),
            Act::Clear => {
                self.place.fault(&["clear".to_owned()]).map_err(cannot)?;
                self.weather.clear(Instant::now());
                self.note("all faults are cleared".into());
            }
            Act::Fault(fault) => {
                let words = fault.words();
                self.weather.fault(fault, Instant::now());
                self.place.fault(&words).map_err(cannot)?;
                self.book.seen.faults += 1;
                self.note(format!("fault {}", words.join(" ")));
            }
        }
        Ok(())
    }

    fn heal(&mut self) -> Result<(), Violation> {
        if self.place.has_faults() {
            self.act(Act::Clear)?;
        }
        Ok(())
    }

    /// Lets everything that was begun come to its end.
    fn drain(&mut self) -> Result<(), Violation> {
        let longest = Duration::from_millis(TIMEOUT_MS) + BOUND + ANSWER_MAX;
        let until = Instant::now() + longest;
        while !self.book.entries.is_empty() || self.nodes.iter().any(|n| n.mate.is_none()) {
            self.step()?;
            if Instant::now() > until {
                let left: Vec<String> = self
                    .book
                    .entries
                    .iter()
                    .take(5)
                    .map(|(id, entry)| format!("{} is {:?}", entry.describe(*id), entry.stage))
                    .collect();
                return Err(Violation::new(Checker::Deadline, format!("left after {longest:?}: {}", left.join("; "))));
            }
        }
        Ok(())
    }

    /// Whoever lives must reach whoever lives, in both directions.
    fn demand(&mut self) -> Result<(), Violation> {
        let mut wanted = Vec::new();
        for a in 0..self.nodes.len() {
            for b in (0..self.nodes.len()).filter(|b| *b != a) {
                wanted.extend([Way::Write, Way::Read].map(|way| Want { a, b, way, id: None }));
            }
        }
        let until = Instant::now() + DEMAND_MAX;
        let mut last = String::from("nothing");
        while !wanted.is_empty() {
            self.step()?;
            for want in &mut wanted {
                match want.id.map(|id| (id, self.book.past.get(&id))) {
                    Some((_, Some(past))) if !past.done => {
                        // It is tried again until time is over.
                        last = format!("{} ended as {:?}", past.text, past.failed);
                        want.id = None;
                    }
                    None if self.can_post(want.a, want.b) => {
                        let seed = self.rng.bits();
                        let shape =
                            Shape { count: 16, len_max: 16 << 10, gap_max: 500, ..Shape::block(seed, 1) };
                        want.id = self.claim(want.a, want.b, want.way, shape, true);
                    }
                    _ => {}
                }
            }
            let served = |want: &Want| want.id.and_then(|id| self.book.past.get(&id)).is_some_and(|p| p.done);
            wanted.retain(|want| !served(want));
            let Some(Want { a, b, way, id }) = wanted.first() else { break };
            if Instant::now() > until {
                let how = if id.is_some() { "one is in flight" } else { "they are not acquainted" };
                return Err(Violation::new(
                    Checker::Progress,
                    format!(
                        "{} s after all faults had ended node {a} has had no {way:?} with node {b}: {how}; {} such pairs; last: \
                         {last}",
                        DEMAND_MAX.as_secs(),
                        wanted.len(),
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Whether a node is believed to know another one as it is now.
    fn can_post(&self, a: usize, b: usize) -> bool {
        let (from, to) = (&self.nodes[a], &self.nodes[b]);
        from.mate.is_some()
            && to.mate.is_some()
            && !from.tenants.is_empty()
            && !to.tenants.is_empty()
            && from.renewing.is_none()
            && to.renewing.is_none()
            && to.known_by[a] == Some((from.life, to.version))
    }

    /// New transfers, messages, renewals, as the mix says.
    fn work(&mut self) {
        let mix = self.schedule.mix;
        for a in 0..self.nodes.len() {
            if self.nodes[a].in_flight >= mix.in_flight || self.begun >= mix.transfers {
                continue;
            }
            let b = (a + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len();
            if !self.can_post(a, b) {
                continue;
            }
            if self.rng.chance(mix.renew_ppm) {
                self.renew(a);
            } else if self.rng.chance(mix.message_ppm) {
                let number = self.book.number();
                let lives = ((a, self.nodes[a].life), (b, self.nodes[b].life));
                self.book.messages.insert(number, (lives.0, lives.1, Instant::now(), 0));
                self.order(a, &Order::Send { peer: format!("node-{b}"), number });
            } else {
                let way = if self.rng.chance(mix.read_ppm) { Way::Read } else { Way::Write };
                let shape = shape(&mut self.rng);
                if self.claim(a, b, way, shape, false).is_some() {
                    self.begun += 1;
                }
            }
        }
    }

    /// A region goes, whoever uses it from afar, and comes back under a new generation.
    fn renew(&mut self, node: usize) {
        let region = self.rng.index(self.nodes[node].tenants.len());
        let life = (node, self.nodes[node].life);
        let own = self.book.entries.values().any(|e| e.initiator == life && e.local.region == region);
        if !own {
            self.nodes[node].renewing = Some(region);
            self.weather.renewed(node, Instant::now());
            self.note(format!("node {node} renews region {region}"));
            self.order(node, &Order::Renew { region });
        }
    }

    /// Gives a transfer its memory at both ends, and lets the responder prepare.
    fn claim(&mut self, a: usize, b: usize, way: Way, shape: Shape, demanded: bool) -> Option<u64> {
        let layout = shape.layout();
        let mut take = |node: usize, bytes: u64, rng: &mut Rng| {
            let state = &mut self.nodes[node];
            let region = rng.index(state.extents.len());
            state.extents[region].take(bytes, rng).map(|offset| Extent { region, offset })
        };
        let local = take(a, layout.local_bytes, &mut self.rng)?;
        let Some(remote) = take(b, layout.remote_bytes, &mut self.rng) else {
            self.nodes[a].extents[local.region].give_back(local.offset);
            return None;
        };
        let mix = self.schedule.mix;
        let id = self.book.number();
        let hurry = !demanded && self.rng.chance(mix.hurry_ppm);
        let cancelled = !demanded && self.rng.chance(mix.cancel_ppm);
        let entry = Entry {
            initiator: (a, self.nodes[a].life),
            responder: (b, self.nodes[b].life),
            way,
            shape,
            bytes: layout.bytes,
            local,
            remote,
            notify: demanded || self.rng.chance(mix.notify_ppm),
            timeout_ms: if hurry { self.rng.within(1, 60) } else { TIMEOUT_MS },
            cancel_us: cancelled.then(|| self.rng.below(5_000)),
            hurry,
            stage: Stage::Claimed,
            began: Instant::now(),
            posted: None,
            outcome: None,
            find: Find::None,
            notified: 0,
            told: 0,
            awaited: 0,
            late: false,
        };
        self.book.entries.insert(id, entry);
        self.nodes[a].in_flight += 1;
        self.order(b, &Order::Expect { id, way, shape, extent: remote });
        Some(id)
    }

    /// Takes in what workers say, and does what is due.
    fn step(&mut self) -> Result<(), Violation> {
        let mut said = self.crew.next(TICK);
        while let Some((number, what)) = said {
            if let Some(node) = self.nodes.iter().position(|n| n.life == number && n.mate.is_some()) {
                match what {
                    Said::Word(word) => self.hear(node, word)?,
                    Said::Gone if self.nodes[node].ending => {}
                    Said::Gone => {
                        let status = self.nodes[node].mate.as_mut().and_then(|m| m.wait(Duration::from_secs(2)));
                        let how = status.map_or_else(|| "it runs".into(), |s| s.to_string());
                        return Err(Violation::new(
                            Checker::Ending,
                            format!("node {node}'s process left by itself: {how}"),
                        ));
                    }
                }
            }
            said = self.crew.next(Duration::ZERO);
        }
        self.due()
    }

    fn due(&mut self) -> Result<(), Violation> {
        let now = Instant::now();
        for node in 0..self.nodes.len() {
            if self.nodes[node].back_at.is_some_and(|at| at <= now) {
                self.start(node)?;
            }
            if self.nodes[node].asked.is_some_and(|at| at + ANSWER_MAX < now) {
                let what = format!("node {node} has not answered for {} s", ANSWER_MAX.as_secs());
                return Err(Violation::new(Checker::Ending, what));
            }
            let state = &mut self.nodes[node];
            let idle = state.describing.is_none() && state.described + INTRODUCE_EVERY < now;
            if state.mate.is_some() && state.stale && idle && !state.tenants.is_empty() {
                (state.stale, state.described) = (false, now);
                state.describing = Some(state.version);
                self.order(node, &Order::Describe);
            }
        }
        let due: Vec<u64> = self
            .book
            .entries
            .iter()
            .filter(|(_, entry)| match entry.stage {
                Stage::Ended { look_at } => look_at <= now,
                Stage::Resting { until } => until <= now,
                Stage::Moving => true,
                _ => false,
            })
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.advance(id, now)?;
        }
        for node in 0..self.nodes.len() {
            let life = (node, self.nodes[node].life);
            let busy = |e: &&Entry| {
                e.initiator == life && matches!(e.stage, Stage::Claimed | Stage::Posting | Stage::Moving)
            };
            self.nodes[node].in_flight = self.book.entries.values().filter(busy).count();
        }
        Ok(())
    }

    fn advance(&mut self, id: u64, now: Instant) -> Result<(), Violation> {
        let Some(entry) = self.book.entries.get_mut(&id) else { return Ok(()) };
        match entry.stage {
            Stage::Moving => {
                let limit = Duration::from_millis(entry.timeout_ms) + BOUND + Duration::from_secs(1);
                if entry.posted.is_some_and(|at| at + limit < now) && !entry.late {
                    entry.late = true;
                    return Err(Violation::new(
                        Checker::Deadline,
                        format!("{} has not ended {limit:.1?} after its posting", entry.describe(id)),
                    ));
                }
            }
            Stage::Ended { .. } => {
                entry.stage = Stage::Settling;
                let find = entry.find;
                self.ask_both(id, &Order::Settle { id, find });
            }
            Stage::Resting { .. } => {
                entry.stage = Stage::Releasing;
                self.ask_both(id, &Order::Release { id });
            }
            _ => {}
        }
        Ok(())
    }

    /// Asks the ends that live.
    fn ask_both(&mut self, id: u64, order: &Order) {
        let Some(entry) = self.book.entries.get(&id) else { return };
        let ends = [entry.initiator, entry.responder];
        let living: Vec<usize> = ends.into_iter().filter(|life| self.lives(*life)).map(|l| l.0).collect();
        if let Some(entry) = self.book.entries.get_mut(&id) {
            entry.awaited = living.len() as u32;
        }
        living.iter().for_each(|node| self.order(*node, order));
        if living.is_empty() {
            self.abandon(id);
        }
    }

    /// One end has looked.
    fn answered(&mut self, id: u64) {
        let Some(entry) = self.book.entries.get_mut(&id) else { return };
        entry.awaited = entry.awaited.saturating_sub(1);
        if entry.awaited > 0 {
            return;
        }
        match entry.stage {
            Stage::Settling => entry.stage = Stage::Resting { until: Instant::now() + REST },
            Stage::Releasing => self.abandon(id),
            _ => {}
        }
    }

    fn hear(&mut self, node: usize, word: Word) -> Result<(), Violation> {
        let now = Instant::now();
        self.nodes[node].asked = None;
        let life = (node, self.nodes[node].life);
        match word {
            Word::Am { tenants, rails } => {
                let note = format!("node {node} is there with {} rails", rails.len());
                self.note(note);
                self.nodes[node].tenants = tenants;
                self.nodes.iter_mut().for_each(|other| other.stale = true);
            }
            Word::Cannot { what } => {
                return Err(Violation::new(Checker::Ending, format!("node {node}: {what}")));
            }
            Word::Metadata { metadata } => {
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    if self.nodes[other].mate.is_some() && !self.nodes[other].tenants.is_empty() {
                        self.order(other, &Order::Meet { metadata: metadata.clone() });
                        let known = self.nodes[node].describing.map(|v| (self.nodes[other].life, v));
                        self.nodes[node].known_by[other] = known;
                    }
                }
                self.nodes[node].describing = None;
            }
            Word::Met { peer: Ok(_) } => {}
            Word::Met { peer: Err(why) } => {
                // It may concern a life that has just ended, or a device under a fault: it is tried again.
                self.note(format!("node {node} cannot import a peer: {why}"));
                for other in self.nodes.iter_mut() {
                    if other.life != life.1 {
                        other.known_by[node] = None;
                        other.stale = true;
                    }
                }
            }
            Word::Ready { id } => self.post(id),
            Word::Posted { id, .. } => {
                if let Some(entry) = self.book.entries.get_mut(&id) {
                    entry.stage = Stage::Moving;
                    entry.posted = Some(now);
                    self.book.seen.posted += 1;
                }
            }
            Word::Refused { id, class, text } => self.refused(id, class, text, now)?,
            Word::Ended { id, outcome, took_us } => {
                self.judge(id, &outcome, now)?;
                self.book.ended(id, outcome, Duration::from_micros(took_us), BOUND)?;
                if let Some(entry) = self.book.entries.get_mut(&id) {
                    entry.stage = Stage::Ended { look_at: now };
                }
            }
            Word::Notified { id, wrong, .. } => self.book.notified(id, life, wrong)?,
            Word::ToldOfFailure { id } => {
                if let Some(entry) = self.book.entries.get_mut(&id) {
                    entry.told += 1;
                    if entry.told > 1 || matches!(entry.outcome, Some(Outcome::Done { .. })) {
                        let what = format!("{}: its peer was told of its failure", entry.describe(id));
                        return Err(Violation::new(Checker::ExactlyOnce, what));
                    }
                }
            }
            Word::Heard { number } => {
                if let Some((.., times)) = self.book.messages.get_mut(&number) {
                    *times += 1;
                    self.book.seen.messages += 1;
                    if *times > 1 {
                        let what = format!("message {number} came {times} times to node {node}");
                        return Err(Violation::new(Checker::ExactlyOnce, what));
                    }
                }
            }
            Word::Sent { number, accepted } => {
                if !accepted {
                    self.book.messages.remove(&number);
                }
            }
            Word::Settled { id, wrong } | Word::Released { id, wrong } => {
                if let Some(wrong) = wrong {
                    let end = self.book.entries.get(&id).map(|e| format!("{:?}", e.outcome)).unwrap_or_default();
                    return Err(Violation::new(
                        wrong.checker,
                        format!("node {node}: {} (it ended as {end})", wrong.what),
                    ));
                }
                self.answered(id);
            }
            Word::Renewed { region, tenant } => {
                let state = &mut self.nodes[node];
                state.renewing = None;
                match tenant {
                    Ok(tenant) => {
                        state.tenants[region] = tenant;
                        state.version += 1;
                        state.stale = true;
                        self.book.seen.renewed += 1;
                    }
                    Err(why) => {
                        return Err(Violation::new(
                            Checker::Leaks,
                            format!("node {node} cannot register region {region} anew: {why}"),
                        ));
                    }
                }
                self.weather.renewed(node, now);
            }
            Word::Lost { peer, cause } => {
                self.note(format!("node {node} has lost {peer}: {cause}"));
                let other = peer.strip_prefix("node-").and_then(|n| n.parse::<usize>().ok());
                if let Some(other) = other.filter(|other| *other < self.nodes.len()) {
                    self.lost(node, other, &cause, now)?;
                }
            }
            Word::Route { peer, what } => {
                self.book.seen.routes += 1;
                self.note(format!("node {node} to {peer}: {what}"));
            }
            // A script's, not a fleet's.
            Word::BurstEnded { .. } => {}
            Word::Counted(count) => {
                self.nodes[node].counting = false;
                self.nodes[node].counts.push(count);
            }
            Word::Ending { undrained } => {
                self.nodes[node].ended = true;
                if undrained > 0 {
                    let what = format!("node {node} closed with {undrained} transfers that had not drained");
                    return Err(Violation::new(Checker::Leaks, what));
                }
            }
        }
        Ok(())
    }

    /// A node has lost another one: something must explain it, and they are introduced again.
    fn lost(&mut self, node: usize, other: usize, cause: &str, now: Instant) -> Result<(), Violation> {
        if self.nodes[node].ending || self.nodes[other].ending {
            return Ok(());
        }
        let case = Case {
            initiator: node,
            responder: other,
            rails: self.nodes[node].rails.min(self.nodes[other].rails),
            began: now,
            class: Class::Other,
        };
        let explained = self.weather.explains(&case) || self.weather.parted_since(node, other, now);
        self.weather.parted(node, other, now);
        if !explained {
            return Err(Violation::new(
                Checker::Explained,
                format!("node {node} has lost node {other} ({cause}), and nothing had happened to them"),
            ));
        }
        for (a, b) in [(node, other), (other, node)] {
            self.nodes[b].known_by[a] = None;
            self.nodes[b].stale = true;
        }
        Ok(())
    }

    fn post(&mut self, id: u64) {
        let Some(entry) = self.book.entries.get(&id) else { return };
        let (a, b) = (entry.initiator, entry.responder);
        if !self.lives(a) || !self.lives(b) || entry.stage != Stage::Claimed {
            return;
        }
        let posting = Posting {
            id,
            peer: format!("node-{}", b.0),
            way: entry.way,
            shape: entry.shape,
            local: entry.local,
            remote: entry.remote,
            tenant: self.nodes[b.0].tenants[entry.remote.region],
            notify: entry.notify,
            timeout_ms: entry.timeout_ms,
            cancel_us: entry.cancel_us,
        };
        self.order(a.0, &Order::Post(posting));
        if let Some(entry) = self.book.entries.get_mut(&id) {
            entry.stage = Stage::Posting;
            entry.began = Instant::now();
        }
    }

    fn case(&self, id: u64, class: Class) -> Option<(Case, String, bool, bool)> {
        let entry = self.book.entries.get(&id)?;
        let (a, b) = (entry.initiator.0, entry.responder.0);
        let case = Case {
            initiator: a,
            responder: b,
            rails: self.nodes[a].rails.min(self.nodes[b].rails),
            began: entry.began,
            class,
        };
        Some((case, entry.describe(id), entry.hurry, entry.cancel_us.is_some()))
    }

    fn refused(&mut self, id: u64, class: Class, text: String, now: Instant) -> Result<(), Violation> {
        let Some((case, what, ..)) = self.case(id, class) else { return Ok(()) };
        let explained = matches!(class, Class::StaleRegion | Class::UnknownPeer) && self.weather.explains(&case);
        if !explained {
            return Err(Violation::new(Checker::Explained, format!("{what} was refused: {text}")));
        }
        self.book.seen.refused += 1;
        if let Some(entry) = self.book.entries.get_mut(&id) {
            entry.outcome = Some(Outcome::Failed { class, text, hints: Vec::new() });
            entry.find = Find::None;
            entry.stage = Stage::Ended { look_at: now };
        }
        // Whatever it does not know: it is told.
        self.nodes[case.responder].stale = true;
        Ok(())
    }

    /// Whether an ending may be.
    fn judge(&mut self, id: u64, outcome: &Outcome, _now: Instant) -> Result<(), Violation> {
        let Outcome::Failed { class, text, .. } = outcome else { return Ok(()) };
        let Some((case, what, hurry, cancelled)) = self.case(id, *class) else { return Ok(()) };
        self.note(format!("{what} failed: {text}"));
        let explained = match class {
            Class::Cancelled => cancelled,
            Class::Overshoot => false,
            Class::Deadline | Class::Unconfirmed if hurry => true,
            // An agent that was lost meanwhile said so.
            _ => self.weather.explains(&case),
        };
        if !explained {
            return Err(Violation::new(Checker::Explained, format!("{what} failed, and nothing explains it: {text}")));
        }
        Ok(())
    }

    /// Every promise to a peer that was never lost is kept.
    fn check_promises(&mut self) -> Result<(), Violation> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let broken = self.broken_promise();
            match broken {
                None => break,
                Some(what) if Instant::now() > until => {
                    return Err(Violation::new(Checker::ExactlyOnce, what));
                }
                // Messages may still be on their way.
                Some(_) => self.step()?,
            }
        }
        // What is kept shows what comes twice; not all of it for ever.
        let keep = self.book.past.len().saturating_sub(20_000);
        let old: Vec<u64> = self.book.past.keys().take(keep).copied().collect();
        old.iter().for_each(|id| _ = self.book.past.remove(id));
        self.book.past.values_mut().for_each(|past| past.due = false);
        self.book.messages.clear();
        self.weather.forget_before(Instant::now());
        Ok(())
    }

    fn broken_promise(&self) -> Option<String> {
        let kept = |from: (usize, u64), to: (usize, u64), since: Instant| {
            !self.lives(from) || !self.lives(to) || self.weather.parted_since(from.0, to.0, since)
        };
        let due = self.book.past.values().find(|past| {
            past.due && past.notified == 0 && !kept(past.initiator, past.responder, past.began)
        });
        if let Some(past) = due {
            return Some(format!("{} is done, and its peer was never notified", past.text));
        }
        let message = self.book.messages.iter().find(|(_, (from, to, at, times))| {
            *times == 0 && !kept(*from, *to, *at)
        });
        message.map(|(number, (from, to, ..))| {
            format!("message {number} from node {} never reached node {}", from.0, to.0)
        })
    }

    /// What processes have, with nothing in flight.
    fn count(&mut self) -> Result<(), Violation> {
        for node in 0..self.nodes.len() {
            self.nodes[node].counting = true;
            self.order(node, &Order::Count);
        }
        while self.nodes.iter().any(|n| n.counting) {
            self.step()?;
        }
        let wanted = self.schedule.regions.len();
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(last) = node.counts.last() else { continue };
            let wrong = |what: String| Err(Violation::new(Checker::Leaks, format!("node {index}: {what}")));
            if last.regions != wanted {
                return wrong(format!("{} regions are registered instead of {wanted}", last.regions));
            }
            if last.transfers > 0 {
                return wrong(format!("{} transfers are in flight, and all have ended", last.transfers));
            }
            if last.unknown > 0 {
                return wrong(format!("{} completions paid no debt", last.unknown));
            }
            let Some(first) = node.counts.first().filter(|_| node.counts.len() > 1) else { continue };
            let grown = last.resident_kib.saturating_sub(first.resident_kib);
            if grown > GROWTH_MAX_KIB {
                return Err(Violation::new(
                    Checker::Growth,
                    format!("node {index} has grown by {grown} KiB in {} legs", node.counts.len() - 1),
                ));
            }
            if last.descriptors > first.descriptors + DESCRIPTORS_MAX {
                return Err(Violation::new(
                    Checker::Growth,
                    format!("node {index} has {} descriptors, after {}", last.descriptors, first.descriptors),
                ));
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Violation> {
        self.note("all are told to end".into());
        let late = |node: usize, how: String| {
            Violation::new(Checker::Ending, format!("node {node} was told to end: {how}"))
        };
        for node in 0..self.nodes.len() {
            self.nodes[node].ending = true;
            self.order(node, &Order::End);
        }
        let until = Instant::now() + END_MAX;
        while self.nodes.iter().any(|n| !n.ended && n.mate.is_some()) {
            self.step()?;
            if Instant::now() > until {
                let node = self.nodes.iter().position(|n| !n.ended).unwrap_or(0);
                return Err(late(node, format!("it has not after {} s", END_MAX.as_secs())));
            }
        }
        for node in 0..self.nodes.len() {
            let Some(mate) = &mut self.nodes[node].mate else { continue };
            match mate.wait(END_MAX) {
                Some(status) if status.success() => {}
                Some(status) => return Err(late(node, format!("it ended with {status}"))),
                None => return Err(late(node, "it closed its agent and did not end".into())),
            }
        }
        Ok(())
    }
}
