//! A short soak of the library: random transfers between processes, killed and started again, every byte checked; and defects that
//! are planted to see that each checker finds its own. The long one is `cargo xtask softefa kvrail-soak`.
//!
//! This program is also the worker that it starts, so that it has a `main` of its own, which understands the words of cargo's
//! test harness that people use: filters, `--exact`, `--list`.

// Modules of it have tests of their own, which are run elsewhere.
#[allow(unused_imports)]
mod nodes;

mod asked;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kvrail_soak::fleet::{self, Emulated, Ground, Place, Programs, Schedule, fabric_name};
use kvrail_soak::layout::Shape;
use kvrail_soak::seeds::{self, Script};
use kvrail_soak::talk::{Part, Rails, Way};
use kvrail_soak::troupe::{Errand, Finished, Troupe};
use kvrail_soak::{Plant, worker};
use nodes::Libfabric;

type Test = (&'static str, fn(&Programs));

/// On loopback.
const PLAIN: [Test; 2] = [
    (
        "killed_and_restarted_processes_lose_nothing_over_tcp",
        killed_and_restarted_processes_lose_nothing_over_tcp,
    ),
    ("each_planted_defect_is_found_by_its_checker", each_planted_defect_is_found_by_its_checker),
];

/// On emulated NICs: a libfabric with `efa` is needed.
const EMULATED: [Test; 5] = [
    (
        "random_faults_kills_and_restarts_on_emulated_nics_lose_nothing",
        random_faults_kills_and_restarts_on_emulated_nics_lose_nothing,
    ),
    (
        "seeds_end_alike_in_the_simulator_and_on_emulated_nics",
        seeds_end_alike_in_the_simulator_and_on_emulated_nics,
    ),
    (
        "a_peer_that_restarts_under_its_name_is_met_again_over_efa_direct",
        a_peer_that_restarts_under_its_name_is_met_again_over_efa_direct,
    ),
    (
        "more_than_65_536_transfers_of_one_pair_each_notify_once",
        more_than_65_536_transfers_of_one_pair_each_notify_once,
    ),
    ("far_more_peers_than_256_come_and_go", far_more_peers_than_256_come_and_go),
];

fn killed_and_restarted_processes_lose_nothing_over_tcp(programs: &Programs) {
    for seed in [101, 102] {
        let mut schedule = Schedule::of(seed, &Ground::Loopback);
        (schedule.legs, schedule.leg_ms) = (2, 1_000);
        let verdict = fleet::run(programs, &schedule, None).unwrap();
        assert!(verdict.violation.is_none(), "{verdict}");
        assert!(verdict.seen.done > 20, "{}", verdict.seen);
    }
}

fn each_planted_defect_is_found_by_its_checker(programs: &Programs) {
    // Those that are found at once; the others wait for what never comes.
    for plant in Plant::ALL.into_iter().filter(|plant| !plant.is_slow()) {
        let (found, verdict) = fleet::canary(programs, &Ground::Loopback, 1, plant).unwrap();
        assert!(found, "{} was not found by {}: {verdict}", plant.name(), fleet::names(plant.checkers()));
    }
}

fn random_faults_kills_and_restarts_on_emulated_nics_lose_nothing(programs: &Programs) {
    let ground = Ground::Emulated { provider: "efa-direct".into(), rails_max: 8 };
    let mut faults = 0;
    for seed in [12, 203, 208] {
        let mut schedule = Schedule::of(seed, &ground);
        (schedule.legs, schedule.leg_ms) = (2, 1_500);
        let verdict = fleet::run(programs, &schedule, None).unwrap();
        assert!(verdict.violation.is_none(), "{verdict}");
        assert!(verdict.seen.done > 20, "{}", verdict.seen);
        faults += verdict.seen.faults;
    }
    assert!(faults > 0);
}

fn seeds_end_alike_in_the_simulator_and_on_emulated_nics(programs: &Programs) {
    // A silent rail of four; a black hole, a dead rail and a silent one; packets that are late.
    for seed in [1, 3, 6] {
        let script = Script::of(seed);
        let simulated = seeds::simulate(&script);
        let emulated = seeds::emulate(programs, "efa-direct", &script).unwrap();
        let verdict = seeds::compare(&script, &simulated, &emulated);
        assert!(verdict.is_fine(), "seed {seed}: {verdict:?}; {}", script.summary());
        assert!(verdict.same() > verdict.lines.len() / 2, "seed {seed}: {verdict:?}");
    }
}

/// An agent on emulated NICs.
fn part(programs: &Programs, name: &str, rails: u16) -> Part {
    Part {
        name: name.into(),
        rails: Rails::Ofi {
            provider: "efa-direct".into(),
            libfabric: programs.libfabric.clone(),
            count: Some(rails),
            stall_ms: Some(500),
        },
        thread: true,
        regions: vec![8 << 20],
        seed: 1,
        peer_timeout_ms: 5_000,
        plant: None,
    }
}

/// Two agents that know each other: the first on node 0, the other on node 1.
fn pair(programs: &Programs, rails: u16) -> Troupe {
    let network = vec!["--instant".to_owned()];
    let wanted = Emulated { nodes: 2, nics: rails.into(), seed: 1, unresponsive_ms: 300, network };
    let place = Place::emulated(programs, &fabric_name("kvpair"), &wanted).unwrap();
    let mut troupe = Troupe::new(place, 1).unwrap();
    for (node, name) in ["prefill", "decode"].into_iter().enumerate() {
        troupe.add(node, part(programs, name, rails)).unwrap();
    }
    troupe.acquaint(0, 1).unwrap();
    troupe
}

fn errand(from: usize, way: Way, seed: u64) -> Errand {
    let shape = Shape { seed, count: 40, len_min: 1, len_max: 60_000, gap_max: 900, shuffled: true };
    Errand { from, to: 1 - from, way, shape, notify: true, timeout_ms: 10_000, cancel_us: None }
}

fn carry(troupe: &mut Troupe, errand: Errand) -> Finished {
    let id = troupe.post(errand).unwrap();
    troupe.finish(id, Duration::from_secs(20)).unwrap()
}

fn a_peer_that_restarts_under_its_name_is_met_again_over_efa_direct(programs: &Programs) {
    let mut troupe = pair(programs, 2);
    for life in 0..4 {
        for way in [Way::Write, Way::Read] {
            for from in [0, 1] {
                let end = carry(&mut troupe, errand(from, way, life));
                assert!(end.is_done() && end.notified == 1, "life {life}, node {from}, {way:?}: {end:?}");
            }
        }
        // One in flight when the process dies: it ends with an error, or had ended before.
        let id = troupe.post(errand(0, Way::Write, 100 + life)).unwrap();
        troupe.restart(1).unwrap();
        let end = troupe.finish(id, Duration::from_secs(20)).unwrap();
        assert!(end.wrong.is_empty() && end.outcome.is_some(), "{end:?}");
        if life < 3 {
            troupe.acquaint(0, 1).unwrap();
        }
    }
    troupe.end().unwrap();
}

fn more_than_65_536_transfers_of_one_pair_each_notify_once(programs: &Programs) {
    const COUNT: u64 = 70_000;
    let mut troupe = pair(programs, 1);
    let before = troupe.count(0).unwrap();
    troupe.burst(0, 1, COUNT, Duration::from_secs(120)).unwrap();
    let heard = troupe.count(1).unwrap();
    assert_eq!((heard.heard, heard.heard_twice), (COUNT, 0));
    let after = troupe.count(0).unwrap();
    assert!(after.resident_kib < before.resident_kib + (32 << 10), "{before:?} {after:?}");
    let end = carry(&mut troupe, errand(1, Way::Read, 7));
    assert!(end.is_done(), "{end:?}");
    troupe.end().unwrap();
}

fn far_more_peers_than_256_come_and_go(programs: &Programs) {
    const COUNT: u64 = 300;
    let mut troupe = pair(programs, 1);
    let before = troupe.count(1).unwrap();
    troupe.visit(0, 1, COUNT, Duration::from_secs(120)).unwrap();
    let after = troupe.count(1).unwrap();
    assert_eq!((after.heard, after.heard_twice), (COUNT, 0));
    assert!(after.resident_kib < before.resident_kib + (32 << 10), "{before:?} {after:?}");
    assert!(after.descriptors < before.descriptors + 32, "{before:?} {after:?}");
    let end = carry(&mut troupe, errand(0, Way::Write, 7));
    assert!(end.is_done(), "{end:?}");
    troupe.end().unwrap();
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == worker::WORD) {
        return worker::main(arguments.into_iter().skip(1));
    }
    let wanted = asked::wanted(PLAIN.into_iter().chain(EMULATED), |(name, ..)| *name, &arguments);
    if wanted.is_empty() {
        return ExitCode::SUCCESS;
    }
    let libfabric = Libfabric::find();
    let programs = Programs {
        kvrail: PathBuf::from(env!("CARGO_BIN_EXE_kvrail")),
        worker: std::env::current_exe().unwrap(),
        worker_words: Vec::new(),
        libfabric: libfabric.clone().ok().map(|libfabric| libfabric.directory),
    };
    for (name, test) in &wanted {
        if let (Err(why), true) = (&libfabric, EMULATED.iter().any(|(other, _)| other == name)) {
            nodes::skip(name, why);
            continue;
        }
        test(&programs);
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}
