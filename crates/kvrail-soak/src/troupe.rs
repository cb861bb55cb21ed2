//! A few workers that do one thing after the other, as a script says: for tables of faults, for scenarios that a simulator plays as well,
//! and for tests that ask for one thing.
//!
//! Where the [`fleet`](crate::fleet) throws dice, a script knows what it wants, and hears of everything that happened.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kvrail_sim::rng::Rng;

use crate::fleet::{Crew, Extents, Mate, Place, Said};
use crate::layout::Shape;
use crate::talk::{Class, Count, Extent, Find, Order, Outcome, Part, Posting, Tenant, Way, Word};
use crate::violation::Violation;

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(25);
/// How long memory rests between the end of a transfer and the last look at it.
const REST: Duration = Duration::from_millis(60);

/// A worker.
#[derive(Debug)]
struct Actor {
    mate: Option<Mate>,
    node: usize,
    part: Part,
    tenants: Vec<Tenant>,
    extents: Vec<Extents>,
    metadata: Option<String>,
    met: Option<Result<String, String>>,
    count: Option<Count>,
    burst: Option<(Result<u64, String>, u64)>,
    ended: bool,
}

/// A transfer that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Errand {
    /// Who posts it.
    pub from: usize,
    /// With whom.
    pub to: usize,
    /// Which way.
    pub way: Way,
    /// Its slices.
    pub shape: Shape,
    /// Tell the peer.
    pub notify: bool,
    /// When it must end, milliseconds.
    pub timeout_ms: u64,
    /// Cancel it after that many microseconds.
    pub cancel_us: Option<u64>,
}

/// A transfer that was begun.
#[derive(Clone, Debug)]
struct Track {
    errand: Errand,
    /// The workers' numbers: a restarted one is another.
    lives: (u64, u64),
    local: Extent,
    remote: Extent,
    ready: bool,
    posted: bool,
    ended: Option<(Outcome, Duration)>,
    notified: u32,
    told: u32,
    answers: u32,
    wrong: Vec<String>,
}

/// How a transfer ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finished {
    /// As its initiator saw it; none: the initiator's process is gone.
    pub outcome: Option<Outcome>,
    /// Since it was posted.
    pub took: Duration,
    /// Notifications that came of it.
    pub notified: u32,
    /// News of its failure that came to its peer.
    pub told: u32,
    /// What must not be.
    pub wrong: Vec<String>,
}

impl Finished {
    /// Whether it is done, and every byte was looked at.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Done { .. })) && self.wrong.is_empty()
    }

    /// How it failed.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        match &self.outcome {
            Some(Outcome::Failed { class, .. }) => Some(*class),
            _ => None,
        }
    }
}

/// Several workers.
#[derive(Debug)]
pub struct Troupe {
    place: Place,
    crew: Crew,
    actors: Vec<Actor>,
    tracks: BTreeMap<u64, Track>,
    rng: Rng,
    numbers: u64,
    news: Vec<(usize, Word)>,
    /// Notifications of transfers that are finished, with those before.
    late: BTreeMap<u64, u32>,
    /// What a worker could not do.
    cannot: Option<String>,
}

impl Troupe {
    /// Nobody yet.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(place: Place, seed: u64) -> Result<Self, String> {
        Ok(Self {
            place,
            crew: Crew::new().map_err(|error| format!("cannot listen for workers: {error}"))?,
            actors: Vec::new(),
            tracks: BTreeMap::new(),
            rng: Rng::new(seed),
            numbers: 0,
            news: Vec::new(),
            late: BTreeMap::new(),
            cannot: None,
        })
    }

    /// Starts a worker on a node; its number here.
    ///
    /// # Errors
    /// It does not start, or its agent cannot be built.
    pub fn add(&mut self, node: usize, part: Part) -> Result<usize, String> {
        let extents = part.regions.iter().map(|bytes| Extents::new(*bytes)).collect();
        let (tenants, metadata, met, count, burst) = (Vec::new(), None, None, None, None);
        let (mate, ended) = (None, false);
        self.actors.push(Actor { mate, node, part, tenants, extents, metadata, met, count, burst, ended });
        let actor = self.actors.len() - 1;
        self.start(actor)?;
        Ok(actor)
    }

    fn start(&mut self, actor: usize) -> Result<(), String> {
        let state = &mut self.actors[actor];
        state.tenants.clear();
        state.extents = state.part.regions.iter().map(|bytes| Extents::new(*bytes)).collect();
        state.ended = false;
        state.mate = Some(self.crew.start(&self.place, state.node, &state.part)?);
        self.wait("a worker's agent", ANSWER_MAX, |troupe| !troupe.actors[actor].tenants.is_empty())
    }

    /// Kills a worker's process.
    pub fn kill(&mut self, actor: usize) {
        if let Some(mut mate) = self.actors[actor].mate.take() {
            mate.kill();
        }
    }

    /// Kills a worker's process and starts another one under its name.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, actor: usize) -> Result<(), String> {
        self.kill(actor);
        self.start(actor)
    }

    /// Where it plays.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    fn life(&self, actor: usize) -> u64 {
        self.actors[actor].mate.as_ref().map_or(0, |mate| mate.number)
    }

    fn order(&mut self, actor: usize, order: &Order) {
        if let Some(mate) = &mut self.actors[actor].mate {
            mate.order(order);
        }
    }

    /// One worker imports another one's metadata.
    ///
    /// # Errors
    /// What the library said.
    pub fn meet(&mut self, actor: usize, other: usize) -> Result<(), String> {
        self.actors[other].metadata = None;
        self.order(other, &Order::Describe);
        self.wait("metadata", ANSWER_MAX, |troupe| troupe.actors[other].metadata.is_some())?;
        let metadata = self.actors[other].metadata.take().unwrap_or_default();
        self.actors[actor].met = None;
        self.order(actor, &Order::Meet { metadata });
        self.wait("an import", ANSWER_MAX, |troupe| troupe.actors[actor].met.is_some())?;
        self.actors[actor].met.take().unwrap_or(Err("nothing was said".into())).map(drop)
    }

    /// Two workers import each other's metadata.
    ///
    /// # Errors
    /// What the library said.
    pub fn acquaint(&mut self, a: usize, b: usize) -> Result<(), String> {
        self.meet(a, b)?;
        self.meet(b, a)
    }

    /// Begins a transfer: its number.
    ///
    /// # Errors
    /// There is no room for it, or a worker does not answer.
    pub fn post(&mut self, errand: Errand) -> Result<u64, String> {
        let Errand { from, to, way, shape, .. } = errand;
        let layout = shape.layout();
        let rng = &mut self.rng;
        let mut take = |actor: usize, bytes| {
            let extents = &mut self.actors[actor].extents;
            let found = (0..extents.len())
                .find_map(|region| extents[region].take(bytes, rng).map(|offset| Extent { region, offset }));
            found.ok_or_else(|| format!("no region of worker {actor} has {bytes} bytes left"))
        };
        let (local, remote) = (take(from, layout.local_bytes)?, take(to, layout.remote_bytes)?);
        self.numbers += 1;
        let id = self.numbers;
        let lives = (self.life(from), self.life(to));
        let track = Track {
            errand,
            lives,
            local,
            remote,
            ready: self.actors[to].mate.is_none(),
            posted: false,
            ended: None,
            notified: 0,
            told: 0,
            answers: 0,
            wrong: Vec::new(),
        };
        self.tracks.insert(id, track);
        self.order(to, &Order::Expect { id, way, shape, extent: remote });
        self.wait("a prepared target", ANSWER_MAX, |troupe| troupe.tracks[&id].ready)?;
        let tenant = self.actors[to].tenants[remote.region];
        let peer = self.actors[to].part.name.clone();
        let Errand { notify, timeout_ms, cancel_us, .. } = errand;
        let posting = Posting { id, peer, way, shape, local, remote, tenant, notify, timeout_ms, cancel_us };
        self.order(from, &Order::Post(posting));
        self.wait("a posting", ANSWER_MAX, |troupe| troupe.tracks[&id].posted)?;
        Ok(id)
    }

    /// Whether a transfer has ended.
    #[must_use]
    pub fn has_ended(&self, id: u64) -> bool {
        self.tracks.get(&id).is_none_or(|track| track.ended.is_some())
    }

    /// Takes in what workers say, for that long at most, or until something was said.
    ///
    /// # Errors
    /// A worker cannot do what it should, or has left by itself.
    pub fn listen(&mut self, longest: Duration) -> Result<(), String> {
        let mut said = self.crew.next(longest);
        while let Some((number, what)) = said {
            let actor = self.actors.iter().position(|a| a.mate.as_ref().is_some_and(|m| m.number == number));
            if let Some(actor) = actor {
                match what {
                    Said::Word(word) => self.hear(actor, word),
                    Said::Gone if self.actors[actor].ended => {}
                    Said::Gone => {
                        let status =
                            self.actors[actor].mate.as_mut().and_then(|m| m.wait(Duration::from_secs(2)));
                        let how = status.map_or_else(|| "it runs".into(), |status| status.to_string());
                        self.actors[actor].mate = None;
                        let cannot = format!("worker {actor} left by itself: {how}");
                        self.cannot.get_or_insert(cannot);
                    }
                }
            }
            said = self.crew.next(Duration::ZERO);
        }
        self.cannot.take().map_or(Ok(()), Err)
    }

    fn wait(&mut self, what: &str, longest: Duration, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let until = Instant::now() + longest;
        while !done(self) {
            self.listen(Duration::from_millis(5))?;
            if Instant::now() > until {
                return Err(format!("waited {:.1} s for {what}", longest.as_secs_f64()));
            }
        }
        Ok(())
    }

    /// Waits for a transfer's end, and looks at every byte of it at both ends, twice.
    ///
    /// # Errors
    /// It has not ended in that time, or a worker does not answer.
    pub fn finish(&mut self, id: u64, longest: Duration) -> Result<Finished, String> {
        let of = |troupe: &Self, id| troupe.tracks.get(&id).map(|t: &Track| (t.errand, t.lives));
        let (errand, lives) = of(self, id).ok_or("no such transfer")?;
        let (from, to) = (errand.from, errand.to);
        self.wait("the end of a transfer", longest, |troupe| {
            troupe.has_ended(id) || troupe.life(from) != lives.0
        })?;
        let find = match self.tracks.get(&id).and_then(|track| track.ended.as_ref()) {
            Some((outcome, _)) => Find::after(outcome),
            None => Find::Some,
        };
        for (order, rest) in [(Order::Settle { id, find }, REST), (Order::Release { id }, Duration::ZERO)] {
            let living: Vec<usize> = [(from, lives.0), (to, lives.1)]
                .into_iter()
                .filter(|(a, l)| *l != 0 && self.life(*a) == *l)
                .map(|p| p.0)
                .collect();
            let wanted = living.len() as u32;
            self.tracks.entry(id).and_modify(|track| track.answers = 0);
            living.iter().for_each(|actor| self.order(*actor, &order));
            self.wait("a look at the bytes", ANSWER_MAX, |troupe| {
                troupe.tracks.get(&id).is_none_or(|track| track.answers >= wanted)
            })?;
            let until = Instant::now() + rest;
            while Instant::now() < until {
                self.listen(Duration::from_millis(5))?;
            }
        }
        let track = self.tracks.remove(&id).ok_or("no such transfer")?;
        self.late.insert(id, track.notified);
        for (actor, life, extent) in [(from, lives.0, track.local), (to, lives.1, track.remote)] {
            if life != 0 && self.life(actor) == life {
                self.actors[actor].extents[extent.region].give_back(extent.offset);
            }
        }
        let (outcome, took) =
            track.ended.map_or((None, Duration::ZERO), |(outcome, took)| (Some(outcome), took));
        Ok(Finished { outcome, took, notified: track.notified, told: track.told, wrong: track.wrong })
    }

    /// News of peers and routes since this was last asked.
    pub fn news(&mut self) -> Vec<(usize, Word)> {
        std::mem::take(&mut self.news)
    }

    /// What a worker has.
    ///
    /// # Errors
    /// It does not answer.
    pub fn count(&mut self, actor: usize) -> Result<Count, String> {
        self.actors[actor].count = None;
        self.order(actor, &Order::Count);
        self.wait("a count", ANSWER_MAX, |troupe| troupe.actors[actor].count.is_some())?;
        Ok(self.actors[actor].count.unwrap_or_default())
    }

    /// One worker posts so many small writes to another, each with a notification; how long that took.
    ///
    /// # Errors
    /// What the library said.
    pub fn burst(
        &mut self,
        from: usize,
        to: usize,
        count: u64,
        longest: Duration,
    ) -> Result<Duration, String> {
        let peer = self.actors[to].part.name.clone();
        self.actors[from].burst = None;
        self.order(from, &Order::Burst { peer, count });
        self.much(from, longest)
    }

    /// In one worker's process so many agents, one after the other, meet another worker's and write to it; how long
    /// that took.
    ///
    /// # Errors
    /// What the library said.
    pub fn visit(
        &mut self,
        from: usize,
        to: usize,
        count: u64,
        longest: Duration,
    ) -> Result<Duration, String> {
        self.actors[to].metadata = None;
        self.order(to, &Order::Describe);
        self.wait("metadata", ANSWER_MAX, |troupe| troupe.actors[to].metadata.is_some())?;
        let metadata = self.actors[to].metadata.take().unwrap_or_default();
        self.actors[from].burst = None;
        self.order(from, &Order::Visit { metadata, count });
        self.much(from, longest)
    }

    fn much(&mut self, actor: usize, longest: Duration) -> Result<Duration, String> {
        self.wait("much of one thing", longest, |troupe| troupe.actors[actor].burst.is_some())?;
        let (done, took_us) = self.actors[actor].burst.take().ok_or("nothing was said")?;
        done.map(|_| Duration::from_micros(took_us))
    }

    /// How often a transfer was notified, counting what came after it was finished.
    #[must_use]
    pub fn notified(&self, id: u64) -> u32 {
        self.tracks.get(&id).map_or(0, |track| track.notified) + self.late.get(&id).copied().unwrap_or(0)
    }

    /// Ends all workers and the place.
    ///
    /// # Errors
    /// A worker does not end, or not well.
    pub fn end(mut self) -> Result<(), String> {
        for actor in 0..self.actors.len() {
            self.actors[actor].ended = true;
            self.order(actor, &Order::End);
        }
        for actor in &mut self.actors {
            let Some(mate) = &mut actor.mate else { continue };
            match mate.wait(ANSWER_MAX) {
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("a worker ended with {status}")),
                None => return Err(format!("a worker has not ended within {} s", ANSWER_MAX.as_secs())),
            }
        }
        self.actors.clear();
        self.place.end()
    }

    fn hear(&mut self, actor: usize, word: Word) {
        let state = &mut self.actors[actor];
        match word {
            Word::Am { tenants, .. } => state.tenants = tenants,
            Word::Cannot { what } => _ = self.cannot.get_or_insert(what),
            Word::Metadata { metadata } => state.metadata = Some(metadata),
            Word::Met { peer } => state.met = Some(peer),
            Word::Counted(count) => state.count = Some(count),
            Word::BurstEnded { done, took_us } => state.burst = Some((done, took_us)),
            Word::Ready { id } => self.of(id, |track| track.ready = true),
            Word::Posted { id, .. } => self.of(id, |track| track.posted = true),
            Word::Refused { id, class, text } => self.of(id, |track| {
                track.posted = true;
                track.ended = Some((Outcome::Failed { class, text, hints: Vec::new() }, Duration::ZERO));
            }),
            Word::Ended { id, outcome, took_us } => self.of(id, |track| {
                let ended = (outcome, Duration::from_micros(took_us));
                if let Some((earlier, _)) = track.ended.replace(ended) {
                    track.wrong.push(format!("it had ended before: {earlier:?}"));
                }
            }),
            Word::Notified { id, .. } if !self.tracks.contains_key(&id) => {
                *self.late.entry(id).or_default() += 1
            }
            Word::Notified { id, wrong, .. } => self.of(id, |track| {
                track.notified += 1;
                let early = wrong.map(|wrong| format!("when its notification came, {wrong}"));
                track.wrong.extend(early);
                if track.notified > 1 {
                    track.wrong.push(format!("notified {} times", track.notified));
                }
            }),
            Word::ToldOfFailure { id } => self.of(id, |track| track.told += 1),
            Word::Settled { id, wrong } | Word::Released { id, wrong } => self.of(id, |track| {
                track.answers += 1;
                track.wrong.extend(wrong.map(|wrong: Violation| wrong.to_string()));
            }),
            Word::Lost { .. } | Word::Route { .. } => self.news.push((actor, word)),
            Word::Renewed { .. } | Word::Heard { .. } | Word::Sent { .. } | Word::Ending { .. } => {}
        }
    }

    fn of(&mut self, id: u64, change: impl FnOnce(&mut Track)) {
        if let Some(track) = self.tracks.get_mut(&id) {
            change(track);
        }
    }
}
