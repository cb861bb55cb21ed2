//! A short soak of the library: random transfers between processes, killed and started again, every byte checked; and defects that
//! are planted to see that each checker finds its own. The long one is `cargo xtask softefa kvrail-soak`.
//!
//! This program is also the worker that it starts, so that it has a `main` of its own, which understands the words of cargo's
//! test harness that people use: filters, `--exact`, `--list`.

use std::path::PathBuf;
use std::process::ExitCode;

use kvrail_soak::fleet::{self, Ground, Programs, Schedule};
use kvrail_soak::{Plant, worker};

type Test = (&'static str, fn(&Programs));

const TESTS: [Test; 2] = [
    ("killed_and_restarted_processes_lose_nothing_over_tcp", killed_and_restarted_processes_lose_nothing_over_tcp),
    ("each_planted_defect_is_found_by_its_checker", each_planted_defect_is_found_by_its_checker),
];

fn killed_and_restarted_processes_lose_nothing_over_tcp(programs: &Programs) {
    for seed in [1, 2] {
        let mut schedule = Schedule::of(seed, &Ground::Loopback);
        (schedule.legs, schedule.leg_ms) = (2, 1_000);
        let verdict = fleet::run(programs, &schedule, None).unwrap();
        assert!(verdict.violation.is_none(), "{verdict}");
        assert!(verdict.seen.done > 20, "{}", verdict.seen);
    }
}

fn each_planted_defect_is_found_by_its_checker(programs: &Programs) {
    // Those that are found at once; two others wait for what never comes.
    for plant in Plant::ALL.into_iter().filter(|plant| !plant.is_slow()) {
        let (found, verdict) = fleet::canary(programs, &Ground::Loopback, 1, plant).unwrap();
        assert!(found, "{} was not found by {}: {verdict}", plant.name(), fleet::names(plant.checkers()));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == worker::WORD) {
        return worker::main(arguments.into_iter().skip(1));
    }
    let exact = arguments.iter().any(|word| word == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| {
        let matches =
            |filter: &&String| if exact { name == **filter } else { name.contains(filter.as_str()) };
        filters.is_empty() || filters.iter().any(matches)
    };
    let wanted: Vec<Test> = TESTS.into_iter().filter(|(name, _)| is_wanted(name)).collect();
    if arguments.iter().any(|word| word == "--list") {
        wanted.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    // What a doctest or `--ignored` asks for is not here.
    if arguments.iter().any(|word| word == "--ignored") {
        return ExitCode::SUCCESS;
    }
    let programs = Programs {
        kvrail: PathBuf::from(env!("CARGO_BIN_EXE_kvrail")),
        worker: std::env::current_exe().unwrap(),
        worker_words: Vec::new(),
        libfabric: None,
    };
    for (name, test) in &wanted {
        test(&programs);
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}
