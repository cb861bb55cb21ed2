//! Runs a suite: a directory of pytest's, in a process of its own, with the staged package before everything else.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{bindings, in_ci, process, site, venv};

/// What a whole suite may take; each of its tests has a limit of its own (`pyproject.toml`).
const SUITE_DEADLINE: Duration = Duration::from_secs(600);

/// One suite at a time: their processes move memory, and wait with deadlines.
static TURN: Mutex<()> = Mutex::new(());

/// Fails with pytest's own words; what it left out is said past the test harness.
pub(crate) fn run(suite: &str) {
    let site = site::stage().unwrap();
    let python = venv::of_tests().unwrap();
    let mut command = Command::new(&python);
    command.args(["-m", "pytest", "--color=no", "-p", "no:cacheprovider", "-c"]);
    command.arg(bindings().join("python/pyproject.toml")).arg(bindings().join("python/tests").join(suite));
    command.env("PYTHONPATH", &site).env("PYTHONUNBUFFERED", "1");
    // The suites have no business in the source tree.
    command.env("PYTHONPYCACHEPREFIX", super::under_target().join("pycache"));
    command.env("KVRAIL_PYTHON_TARGET", super::under_target());
    match real_nixl() {
        Ok(python) => command.env("KVRAIL_REAL_NIXL_PYTHON", python),
        Err(why) => command.env("KVRAIL_REAL_NIXL_MISSING", why),
    };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let finished = process::run(&mut command, SUITE_DEADLINE).unwrap_or_else(|why| panic!("{suite}: {why}"));
    assert!(finished.status.success(), "{suite}: {}\n{}", finished.status, finished.said);
    for left_out in finished.said.lines().filter_map(|line| line.strip_prefix("SKIPPED ")) {
        // The harness keeps what a passing test prints; this goes past it.
        let _ = std::io::stderr().write_all(format!("skipped: {suite}: {left_out}\n").as_bytes());
    }
    println!("{}", finished.said);
}

/// The suites that there are, sorted.
pub(crate) fn suites() -> Vec<String> {
    let tests = bindings().join("python/tests");
    let directories = fs::read_dir(&tests).unwrap().flatten().map(|entry| entry.path());
    let mut suites: Vec<String> = directories
        .filter(|path| path.is_dir() && has_tests(path))
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    suites.sort();
    suites
}

fn has_tests(directory: &Path) -> bool {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).any(|name| name.starts_with("test_"))
}

/// The interpreter that has the real NIXL: the one that is named, or an environment made with it.
fn real_nixl() -> Result<String, String> {
    if let Ok(named) = std::env::var("KVRAIL_REAL_NIXL_PYTHON") {
        return Ok(named);
    }
    let python = venv::of_nixl();
    assert!(python.is_ok() || !in_ci(), "the real NIXL can be had in CI: {python:?}");
    python.map(|python| python.to_string_lossy().into_owned())
}
