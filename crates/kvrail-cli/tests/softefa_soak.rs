//! A short soak: random verbs work under random faults and kills. The long one is `cargo xtask softefa soak`.
//!
//! This program is also what runs on the nodes, so that it has a `main` of its own, which understands the words of cargo's
//! test harness that people use: filters, `--exact`, `--list`.

mod asked;

use std::path::PathBuf;
use std::process::ExitCode;

use softefa_soak::fleet::{self, Orders, Programs};
use softefa_soak::{Plant, exercise};

type Test = (&'static str, fn(&Programs));

const TESTS: [Test; 2] = [
    (
        "random_faults_and_kills_lose_nothing_and_leave_nothing",
        random_faults_and_kills_lose_nothing_and_leave_nothing,
    ),
    ("what_is_planted_is_found", what_is_planted_is_found),
];

fn random_faults_and_kills_lose_nothing_and_leave_nothing(programs: &Programs) {
    let orders = Orders { seed: 1, schedules: 24, jobs: 2, violations_max: 3 };
    let report = fleet::run(programs, &orders, &|_| {}).unwrap();
    let found: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(report.seen.well > 1000 && report.seen.badly > 0, "{:?}", report.seen);
}

fn what_is_planted_is_found(programs: &Programs) {
    // Those that are found at once; the others wait for what never comes.
    let quick =
        [Plant::LeaveFile, Plant::LeaveProcess, Plant::WrongByte, Plant::WrongStatus, Plant::DoubleImmediate];
    for plant in quick {
        let found = fleet::canary(programs, 1, plant).unwrap();
        assert!(found.is_some(), "{} was not found", plant.name());
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == exercise::WORD) {
        return exercise::main();
    }
    let wanted = asked::wanted(TESTS, |(name, ..)| *name, &arguments);
    let programs = Programs {
        kvrail: PathBuf::from(env!("CARGO_BIN_EXE_kvrail")),
        exerciser: std::env::current_exe().unwrap(),
        exerciser_words: Vec::new(),
    };
    for (name, test) in &wanted {
        test(&programs);
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}
