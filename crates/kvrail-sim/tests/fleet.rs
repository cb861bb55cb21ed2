//! The engine under the simulator: a few hundred seeds, every canary, and that a seed is a run.

use kvrail_sim::canary::Canary;
use kvrail_sim::driver::run;
use kvrail_sim::fleet::{hunt, sail};
use kvrail_sim::violation::Checker;

/// Seeds per test run; the long fleets are `cargo run --release -p kvrail-sim -- --seeds N`.
const SEEDS: u64 = 3_000;
/// Within so many seeds each canary is seen.
const HUNT: u64 = 400;

#[test]
fn a_fleet_of_seeds_breaks_no_rule_and_makes_progress() {
    let fleet = sail(1, SEEDS, |_, _| {});
    let story: Vec<String> = fleet
        .failures
        .iter()
        .flat_map(|(seed, verdict)| verdict.violations.iter().map(move |v| format!("seed {seed}: {v}")))
        .collect();
    assert!(story.is_empty(), "{}", story.join("\n"));
    assert!(fleet.unstable.is_empty(), "two runs of these seeds differ: {:?}", fleet.unstable);
    assert!(
        fleet.done * 10 > fleet.transfers * 8,
        "{} of {} transfers succeeded",
        fleet.done,
        fleet.transfers
    );
}

#[test]
fn a_seed_replays_to_the_same_trace_and_another_seed_does_not() {
    let (first, again, traced) = (run(11, None, false), run(11, None, false), run(11, None, true));
    assert_eq!(first.hash, again.hash);
    assert_eq!(first.hash, traced.hash, "keeping the text changes nothing");
    assert!(!traced.trace.is_empty() && first.trace.is_empty());
    assert_ne!(first.hash, run(12, None, false).hash);
}

#[test]
fn every_canary_is_seen_by_the_checker_that_is_meant_to_see_it() {
    let missed: Vec<String> = Canary::ALL
        .into_iter()
        .filter_map(|canary| hunt(canary, 1, HUNT).err().map(|others| (canary, others)))
        .map(|(canary, others)| format!("{} ({others} seeds stopped by another checker)", canary.name()))
        .collect();
    assert!(missed.is_empty(), "missed within {HUNT} seeds: {}", missed.join(", "));
}

#[test]
fn a_canary_replays_too() {
    let found = hunt(Canary::MissingFence, 1, HUNT).expect("it is seen within the seeds of the hunt");
    let again = run(found.seed, Some(Canary::MissingFence), false);
    assert_eq!((again.hash, &again.violations), (found.verdict.hash, &found.verdict.violations));
}

#[test]
fn every_checker_of_the_engine_has_a_canary() {
    for checker in Checker::ALL {
        let watched = Canary::ALL.iter().any(|canary| canary.intended().contains(&checker));
        assert!(watched || checker == Checker::Fabric, "nothing shows that `{checker}` can fail");
    }
}
