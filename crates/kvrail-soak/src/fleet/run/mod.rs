//! One run: workers on nodes, a schedule, and the questions of the checkers.
//!
//! A leg breaks things for a while; then all faults end, everything in flight ends, and everybody must reach everybody. A run has a few
//! legs with the same processes, so that what grows is seen.

mod demand;
mod hear;
mod settle;

use std::time::{Duration, Instant};

use kvrail_sim::rng::{Rng, mix};

use crate::fleet::book::{Book, Entry, Seen, Stage};
use crate::fleet::crew::{Crew, Mate, Said};
use crate::fleet::extents::Extents;
use crate::fleet::place::Place;
use crate::fleet::schedule::{Act, Ground, Schedule, TIMEOUT_MS, shape};
use crate::fleet::weather::Weather;
use crate::layout::Shape;
use crate::plant::Plant;
use crate::talk::{Count, Extent, Find, Order, Part, Rails, Tenant, Way};
use crate::violation::{Checker, Violation};

/// How much later than its timeout a transfer may end: two stalls, the device's own patience, and a busy machine.
pub(super) const BOUND: Duration = Duration::from_secs(10);
/// Longest time without an answer to an order.
const ANSWER_MAX: Duration = Duration::from_secs(25);
/// How long a transfer's memory rests before it is looked at for the last time.
const REST: Duration = Duration::from_millis(120);
/// How long what a killed process sent may be on its way.
const STRAYS: Duration = Duration::from_millis(500);
/// How soon a killed process comes back.
const BACK_AFTER: Duration = Duration::from_millis(50);
/// Between two introductions.
const INTRODUCE_EVERY: Duration = Duration::from_millis(40);
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
                return Err(Violation::new(
                    Checker::Deadline,
                    format!("left after {longest:?}: {}", left.join("; ")),
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
                        let status =
                            self.nodes[node].mate.as_mut().and_then(|m| m.wait(Duration::from_secs(2)));
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
}
