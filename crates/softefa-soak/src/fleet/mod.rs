//! Many schedules, a few at a time, and the canaries that show that the search would find something.

mod ending;
mod one;
mod traces;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use one::Seen;

use crate::plant::Plant;
use crate::schedule::{Ending, Network, Schedule};

/// Where files of a fleet lie, best first: the fabric's segment wants memory.
const ROOTS: [&str; 3] = ["/dev/shm", "/run", "/tmp"];
/// What a fleet's directory is called, before its process id.
const ROOT_PREFIX: &str = "kvrail-soak-";

/// The programs that take part.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `kvrail`.
    pub kvrail: PathBuf,
    /// A program that becomes [`crate::exercise`] when its arguments have the word.
    pub exerciser: PathBuf,
    /// Its arguments before that word.
    pub exerciser_words: Vec<OsString>,
}

/// Which schedules.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// Seed of the first; the others follow.
    pub seed: u64,
    /// How many.
    pub schedules: u64,
    /// How many at a time.
    pub jobs: usize,
    /// After how many violations to end.
    pub violations_max: usize,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Of which schedule.
    pub seed: u64,
    /// What.
    pub what: String,
    /// What the run has printed.
    pub said: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "  schedule: {}", Schedule::of(self.seed).summary())?;
        for line in self.said.lines() {
            write!(f, "\n  said: {line}")?;
        }
        Ok(())
    }
}

/// What a fleet found.
#[derive(Debug, Default)]
pub struct Report {
    /// Schedules that were carried out.
    pub schedules: u64,
    /// All operations.
    pub seen: Seen,
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// How long it took.
    pub took: Duration,
}

/// A schedule that was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Done<'a> {
    /// How many have been carried out.
    pub schedules: u64,
    /// This one.
    pub schedule: &'a Schedule,
    /// How long it took.
    pub took: Duration,
    /// What is wrong.
    pub violation: Option<&'a Violation>,
}

/// The fleet's directory, removed in the end.
struct Root(PathBuf);

impl Root {
    fn make() -> io::Result<Self> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut why = io::Error::from(io::ErrorKind::NotFound);
        for parent in ROOTS {
            remove_stale(parent);
            let path = PathBuf::from(parent).join(format!("{ROOT_PREFIX}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes directories of fleets that were killed.
fn remove_stale(parent: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(ROOT_PREFIX))
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Carries schedules out; `progress` is told of each that has ended.
///
/// # Errors
/// When there is no place for a fleet's files.
pub fn run(
    programs: &Programs,
    orders: &Orders,
    progress: &(dyn Fn(&Done<'_>) + Sync),
) -> io::Result<Report> {
    let root = Root::make()?;
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    let work = |job: usize| {
        while !enough.load(Ordering::Acquire) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= orders.schedules {
                break;
            }
            let schedule = Schedule::of(orders.seed.wrapping_add(number));
            let at = Instant::now();
            let result = one::run(&root.0.join(format!("job{job}")), &schedule, programs, None);
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.schedules += 1;
            let violation = match result {
                Ok(seen) => {
                    report.seen.add(seen);
                    None
                }
                Err(violation) => Some(violation),
            };
            let (schedules, took) = (report.schedules, at.elapsed());
            progress(&Done { schedules, schedule: &schedule, took, violation: violation.as_ref() });
            report.violations.extend(violation);
            enough.fetch_or(report.violations.len() >= orders.violations_max, Ordering::AcqRel);
        }
    };
    thread::scope(|scope| {
        for job in 0..orders.jobs.max(1) {
            scope.spawn(move || work(job));
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.took = begun.elapsed();
    Ok(report)
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.posted += other.posted;
        self.well += other.well;
        self.badly += other.badly;
    }
}

/// Plants a defect in a run that is otherwise quiet; what was found, which should be something.
///
/// # Errors
/// When there is no place for the run's files.
pub fn canary(programs: &Programs, seed: u64, plant: Plant) -> io::Result<Option<Violation>> {
    let root = Root::make()?;
    let quiet = (seed..).map(Schedule::of).find(is_quiet);
    let Some(schedule) = quiet else { return Ok(None) };
    Ok(one::run(&root.0.join("canary"), &schedule, programs, Some(plant)).err())
}

/// A schedule in which everything goes well, with several hosts.
fn is_quiet(schedule: &Schedule) -> bool {
    schedule.faults.is_empty()
        && schedule.timeline.is_empty()
        && schedule.ending == Ending::Drained
        && schedule.nodes > 1
        && schedule.network == Network::Instant
        && schedule.traffic.rnr_retry == 7
        && schedule.run_us >= 30_000
}
