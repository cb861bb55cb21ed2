//! Many seeds in a row, and the search for a canary.

use kvrail_core::time::Time;

use crate::canary::Canary;
use crate::driver::{Verdict, run};

/// What a range of seeds came to.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Seeds run.
    pub seeds: u64,
    /// Seeds with violations, and the verdict of each (without text).
    pub failures: Vec<(u64, Verdict)>,
    /// Seeds whose second run was not the same as their first.
    pub unstable: Vec<u64>,
    /// Virtual time of all runs.
    pub virtual_time: Time,
    /// Transfers posted.
    pub transfers: usize,
    /// Transfers that succeeded.
    pub done: usize,
}

/// So many first seeds of a range are run twice, to see that a seed is a run.
pub const TWICE: u64 = 20;

/// Runs seeds from `start` on; `each` hears of every verdict.
pub fn sail(start: u64, seeds: u64, mut each: impl FnMut(u64, &Verdict)) -> Fleet {
    let mut fleet = Fleet::default();
    for seed in start..start.saturating_add(seeds) {
        let verdict = run(seed, None, false);
        fleet.seeds += 1;
        if seed - start < TWICE && run(seed, None, false).hash != verdict.hash {
            fleet.unstable.push(seed);
        }
        fleet.virtual_time = Time(fleet.virtual_time.0 + verdict.virtual_time.0);
        fleet.transfers += verdict.transfers.0;
        fleet.done += verdict.transfers.1;
        each(seed, &verdict);
        if !verdict.violations.is_empty() {
            fleet.failures.push((seed, verdict));
        }
    }
    fleet
}

/// How a canary was found.
#[derive(Clone, Debug)]
pub struct Catch {
    /// The first seed in which a checker that is meant to see it did.
    pub seed: u64,
    /// Seeds run until then.
    pub tried: u64,
    /// Its verdict.
    pub verdict: Verdict,
}

/// Runs seeds with a planted defect until a checker that is meant to see it does.
///
/// # Errors
/// The number of seeds in which some other checker objected, when none of the intended ones did within `seeds`.
pub fn hunt(canary: Canary, start: u64, seeds: u64) -> Result<Catch, u64> {
    let mut others = 0;
    for seed in start..start.saturating_add(seeds) {
        let verdict = run(seed, Some(canary), false);
        match verdict.violations.first() {
            Some(first) if canary.intended().contains(&first.checker) => {
                return Ok(Catch { seed, tried: seed - start + 1, verdict });
            }
            Some(_) => others += 1,
            None => {}
        }
    }
    Err(others)
}
