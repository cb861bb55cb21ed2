//! The supervisor: carries schedules out, keeps the book, says what is wrong.

mod book;
mod crew;
mod extents;
mod place;
mod run;
mod schedule;
mod weather;

use std::fmt;
use std::time::{Duration, Instant};

pub use book::Seen;
pub use crew::{Crew, Mate, Said};
pub(crate) use extents::Extents;
pub use place::{Emulated, Place, Programs};
pub use schedule::{Act, Ground, Mix, Schedule};
pub use weather::Fault;

use crate::plant::Plant;
use crate::violation::{Checker, Violation};

/// What a run came to.
#[derive(Debug)]
pub struct Verdict {
    /// Its seed.
    pub seed: u64,
    /// What was seen.
    pub seen: Seen,
    /// What must not be.
    pub violation: Option<Violation>,
    /// What happened, the end of it.
    pub log: Vec<String>,
    /// The schedule in a line.
    pub summary: String,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.violation {
            None => write!(f, "seed {}: clean: {}", self.seed, self.seen),
            Some(violation) => {
                writeln!(f, "seed {}: {violation}", self.seed)?;
                write!(f, "  schedule: {}", self.summary)?;
                let last = self.log.len().saturating_sub(60);
                self.log[last..].iter().try_for_each(|line| write!(f, "\n  {line}"))
            }
        }
    }
}

/// Carries out a schedule.
///
/// # Errors
/// The place cannot be set up: nothing was found out.
pub fn run(programs: &Programs, schedule: &Schedule, plant: Option<Plant>) -> Result<Verdict, String> {
    let began = Instant::now();
    let place = match &schedule.ground {
        Ground::Loopback => Place::loopback(programs),
        Ground::Emulated { .. } => {
            let wanted = Emulated {
                nodes: schedule.rails.len(),
                nics: usize::from(schedule.rails.iter().copied().max().unwrap_or(1)),
                seed: schedule.seed,
                unresponsive_ms: schedule.unresponsive_ms,
                network: schedule.network.clone(),
            };
            Place::emulated(programs, &fabric_name("kvsoak"), &wanted)?
        }
    };
    let mut run = run::Run::new(schedule, place, plant, programs.libfabric.clone())?;
    let result = run.carry_out();
    let (seen, log) = (run.seen(), run.log().to_vec());
    let closed = run.close();
    Ok(Verdict {
        seed: schedule.seed,
        seen,
        violation: result.and(closed).err(),
        log,
        summary: schedule.summary(),
        took: began.elapsed(),
    })
}

/// Plants a defect in a calm run: whether its checker found it, and what was found.
///
/// # Errors
/// The place cannot be set up.
pub fn canary(
    programs: &Programs,
    ground: &Ground,
    seed: u64,
    plant: Plant,
) -> Result<(bool, Verdict), String> {
    let mut schedule = Schedule::calm(seed, ground);
    if plant == Plant::NeverEnds {
        schedule.legs = 1;
    }
    let verdict = run(programs, &schedule, Some(plant))?;
    let by = verdict.violation.as_ref().map(|violation| violation.checker);
    Ok((by.is_some_and(|by| plant.checkers().contains(&by)), verdict))
}

/// Names of fabrics are one per user: several may run.
#[must_use]
pub fn fabric_name(what: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    format!("{what}-{}-{}", std::process::id(), NUMBERS.fetch_add(1, Ordering::Relaxed))
}

/// What checks a plant, as text.
#[must_use]
pub fn names(checkers: &[Checker]) -> String {
    let names: Vec<&str> = checkers.iter().map(|checker| checker.name()).collect();
    names.join(" or ")
}
