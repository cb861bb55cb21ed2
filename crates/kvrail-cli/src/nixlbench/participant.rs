//! One participant's part of a run: it meets the others, moves or offers blocks for every size, and rank 0 says what came of it.
//!
//! For each size, and in it for the warm-up and the timed part: sources write their pattern and destinations poison; all wait for all;
//! initiators move while targets take notifications or drive their engine; all wait for all; destinations check every byte. A
//! participant that cannot go on tells the others why, and one that dies is noticed by its lease or connection.

use std::time::{Duration, Instant};

use kvrail_engines::{Engine, PeerId};
use kvrail_rendezvous::Group;
use kvrail_rendezvous::launch::Launch;
use serde::{Deserialize, Serialize};

use crate::endpoint::failure;
use crate::environment;
use crate::failure::{Failure, Kind};
use crate::measure::cpu_time;
use crate::signals;
use crate::units;

use super::bytes::Holdings;
use super::course::{Batch, Course, Work, works};
use super::engine;
use super::figures::Figures;
use super::meet::{self, Hello, Together};
use super::plan::{Plan, Side, Size};
use super::record::{Means, Recorder};
use super::settings::Settings;
use super::workload::Turns;

/// How long the host of the rendezvous waits for the others to leave.
const LINGER: Duration = Duration::from_secs(5);
/// How long an engine's account of a lost peer waits for the group's.
const BLAME: Duration = Duration::from_secs(1);
/// Longest single wait for notifications, between two looks at the group.
const NOTIFICATIONS_SLICE: Duration = Duration::from_millis(100);
/// Notifications asked for at a time: no inbox holds more.
const NOTIFICATIONS_MAX: u64 = 1024;

/// Takes part in a run as one of its ranks.
///
/// # Errors
/// What ended it early; the others are told.
pub(crate) fn run(settings: &Settings, launch: &Launch, recorder: &mut Recorder) -> Result<(), Failure> {
    signals::install()?;
    let group = meet::join(settings, launch)?;
    match take_part(settings, &group, recorder) {
        Ok(()) => {
            // Everything is said and done; whoever hosts the rendezvous waits for the others itself.
            let _ = group.leave(LINGER);
            Ok(())
        }
        Err(failure) => {
            let failure = blamed(&group, failure);
            let _ = group.give_up(&failure.what);
            Err(failure)
        }
    }
}

/// An engine may notice first that a peer is gone, and knows it by another name; the group knows its rank and host a moment later.
fn blamed(group: &Group, failure: Failure) -> Failure {
    let deadline = Instant::now() + BLAME;
    while failure.kind == Kind::Peer && !failure.what.contains("rank ") && Instant::now() < deadline {
        if let Some(member) = group.check().err().and_then(|error| error.member().cloned()) {
            return Failure {
                what: format!("{member} is lost: {}", failure.what),
                hints: Vec::new(),
                ..failure
            };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    failure
}

fn take_part(settings: &Settings, group: &Group, recorder: &mut Recorder) -> Result<(), Failure> {
    let (plan, rank) = (&settings.plan, group.rank());
    let alone = Together { group, engine: None, timeout: settings.flags.timeout };
    let hello = Hello::new(settings, settings.flags.seed.unwrap_or_else(environment::random_seed));
    let hellos = alone.gather("hello", &hello, 1)?;
    hello.agree(&hellos[0], rank)?;
    let seed = hellos[0].seed;

    let mut engine = engine::create(settings, rank, meet::address(group, &hellos), seed)?;
    let (memory, pages) = engine::allocate(settings, plan.side(rank))?;
    engine.lanes(plan.shape().threads).map_err(failure)?;
    engine.register(&memory).map_err(failure)?;
    let metadata = engine.metadata().map_err(failure)?;
    let everybody = alone.gather_bytes("metadata", &metadata, 1)?;
    for route in plan.routes().iter().filter(|route| route.target == rank) {
        engine.admit(&everybody[route.initiator as usize]).map_err(failure)?;
    }
    alone.barrier("admitted", 1)?;
    let mut peers = Vec::new();
    for route in plan.routes().iter().filter(|route| route.initiator == rank) {
        let within = settings.flags.timeout;
        peers.push(engine.connect(&everybody[route.target as usize], within).map_err(failure)?);
    }
    let engine = &*engine;
    let together = Together { engine: Some(engine), ..alone };
    let means = together.gather("connected", &Means::new(engine, &pages, plan, rank), 2)?;
    let line_rate_gbps = means[rank as usize].line_rate_gbps();
    if rank == 0 {
        recorder.begin(settings, &means, seed)?;
    }

    let mut participant =
        Participant { settings, plan, rank, engine, together, peers, line_rate_gbps, round: 0 };
    for (index, size) in settings.sweep.sizes().into_iter().enumerate() {
        let turns = settings.sweep.turns(size.block_bytes);
        let slots = u64::from(turns.depth);
        let holdings = Holdings::new(plan, &memory, rank, settings.direction, seed, size, slots);
        let works = participant.works(turns, size);
        if turns.warmup > 0 {
            participant.phase(&holdings, &works, turns.warmup, size, settings.flags.check_consistency)?;
        }
        let figures = participant.phase(&holdings, &works, turns.timed, size, true)?;
        if rank == 0 {
            recorder.row(settings, &means, index as u32, size, &figures)?;
        }
    }
    // Nobody lets go of memory that another one may still touch.
    together.barrier("done", 1)
}

struct Participant<'a> {
    settings: &'a Settings,
    plan: &'a Plan,
    rank: u32,
    engine: &'a dyn Engine,
    together: Together<'a>,
    /// Of this rank's routes, in order.
    peers: Vec<PeerId>,
    line_rate_gbps: Option<f64>,
    round: u32,
}

/// What a participant says after a phase.
#[derive(Serialize, Deserialize)]
struct Told {
    /// Bytes that are wrong.
    failure: Option<Failure>,
    /// Of an initiator.
    figures: Option<Figures>,
}

impl Participant<'_> {
    /// What each thread of this rank moves; nothing at a target.
    fn works(&self, turns: Turns, size: Size) -> Vec<Work> {
        if self.plan.side(self.rank) == Side::Target {
            return Vec::new();
        }
        works(self.plan.shape().threads, turns, |thread, slot| {
            let routes = self.plan.routes();
            let own = routes.iter().filter(|route| route.initiator == self.rank);
            own.zip(&self.peers)
                .map(|(route, peer)| {
                    let places = self.plan.places(*route, thread, slot, size);
                    Batch { peer: *peer, local: places.initiator, remote: places.target }
                })
                .collect()
        })
    }

    /// Moves `count` transfers per thread of every initiator; with `check`, looks at every byte, and says what was measured.
    fn phase(
        &mut self,
        holdings: &Holdings<'_>,
        works: &[Work],
        count: u32,
        size: Size,
        check: bool,
    ) -> Result<Vec<Figures>, Failure> {
        let flags = &self.settings.flags;
        self.round += 1;
        holdings.set(self.round);
        self.together.barrier("set", 2)?;
        let notification = engine::notification(flags.engine);
        let figures = match self.plan.side(self.rank) {
            Side::Target => {
                if notification.is_some() {
                    self.take_notifications(count)?;
                }
                None
            }
            Side::Initiator => {
                let course = Course {
                    engine: self.engine,
                    direction: self.settings.direction,
                    block_bytes: size.block_bytes,
                    notification,
                    recreate: flags.recreate_xfer,
                    reregister: flags.reregister_mem,
                    timeout: flags.timeout,
                    watch: &|| self.together.check(),
                };
                let cpu = cpu_time();
                let (samples, total) = course.run(works, count)?;
                let cpu = cpu_time().saturating_sub(cpu);
                let weight = self.plan.weight(self.rank);
                Some(Figures::new(&samples, total, size, weight, count, cpu, self.line_rate_gbps))
            }
        };
        // Each transfer has a deadline of its own, so that their sum bounds the wait.
        self.together.barrier("ran", count.saturating_add(2))?;
        if !check {
            return Ok(Vec::new());
        }
        let told = Told { failure: holdings.check(self.round).err(), figures };
        let all = self.together.gather("checked", &told, 2)?;
        if let Some(failure) = told.failure {
            return Err(failure);
        }
        let mut figures = Vec::new();
        for (told, rank) in all.into_iter().zip(0..) {
            match told.failure {
                Some(failure) if rank != self.rank => return Err(failure),
                _ => figures.extend(told.figures),
            }
        }
        Ok(figures)
    }

    /// Takes one notification for each transfer to this target.
    fn take_notifications(&self, count: u32) -> Result<(), Failure> {
        let routes = self.plan.routes();
        let routes = routes.iter().filter(|route| route.target == self.rank).count() as u64;
        let all = routes * u64::from(self.plan.shape().threads) * u64::from(count);
        let mut left = all;
        let mut last = Instant::now();
        while left > 0 {
            let taken = self
                .engine
                .notifications(left.min(NOTIFICATIONS_MAX), NOTIFICATIONS_SLICE)
                .map_err(failure)?;
            left -= taken.min(left);
            if taken > 0 {
                last = Instant::now();
                continue;
            }
            self.together.check()?;
            if last.elapsed() > self.settings.flags.timeout {
                return Err(Failure::check(format!(
                    "rank {}: {left} of {all} notifications have not come, and none within {}",
                    self.rank,
                    units::span(self.settings.flags.timeout)
                )));
            }
        }
        Ok(())
    }
}
