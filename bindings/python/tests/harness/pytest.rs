//! Runs a suite: a directory of pytest's, in a process of its own, with the staged package before everything else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{bindings, in_ci, lock, nixl_source, process, site, told, venv};

/// What a whole suite may take; each of its tests has a limit of its own (`pyproject.toml`).
const SUITE_DEADLINE: Duration = Duration::from_secs(600);

/// Runs a suite; pytest's own words when it fails.
pub(crate) fn run(suite: &str) -> Result<(), String> {
    let site = site::stage()?;
    let python = venv::of_tests()?;
    let mut command = Command::new(&python);
    command.args(["-m", "pytest", "--color=no", "-p", "no:cacheprovider", "-c"]);
    command.arg(bindings().join("python/pyproject.toml")).arg(bindings().join("python/tests").join(suite));
    command.env("PYTHONPATH", &site).env("PYTHONUNBUFFERED", "1");
    // The suites have no business in the source tree.
    command.env("PYTHONPYCACHEPREFIX", super::under_target().join("pycache"));
    command.env("KVRAIL_PYTHON_TARGET", super::under_target());
    match real_nixl()? {
        Ok(python) => command.env("KVRAIL_REAL_NIXL_PYTHON", python),
        Err(why) => command.env("KVRAIL_REAL_NIXL_MISSING", why),
    };
    // Where it is not to be had, the tests that need it are skipped, by their names.
    match nixl_source::checkout() {
        Ok(checkout) => command.env("KVRAIL_NIXL_SOURCE", checkout),
        Err(why) => command.env("KVRAIL_NIXL_SOURCE_MISSING", why),
    };
    // One suite at a time, in whatever process: theirs move memory, and wait with deadlines.
    let _turn = lock("suite")?;
    let said = process::succeed(&mut command, SUITE_DEADLINE)?;
    for left_out in said.lines().filter_map(|line| line.strip_prefix("SKIPPED ")) {
        eprintln!("skipped: {suite}: {left_out}");
    }
    if let Some(summary) = said.lines().next_back() {
        eprintln!("{suite}: {}", summary.trim_matches(['=', ' ']));
    }
    Ok(())
}

/// The suites that there are, sorted.
pub(crate) fn suites() -> Result<Vec<String>, String> {
    let tests = bindings().join("python/tests");
    let directories = fs::read_dir(&tests).map_err(|error| told(&tests, &error))?;
    let directories = directories.flatten().map(|entry| entry.path());
    let mut suites: Vec<String> = directories
        .filter(|path| path.is_dir() && has_tests(path))
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    suites.sort();
    Ok(suites)
}

fn has_tests(directory: &Path) -> bool {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).any(|name| name.starts_with("test_"))
}

/// The interpreter that has the real NIXL, the one that is named or an environment made with it; or why there is none.
fn real_nixl() -> Result<Result<PathBuf, String>, String> {
    if let Some(named) = std::env::var_os("KVRAIL_REAL_NIXL_PYTHON") {
        return Ok(Ok(named.into()));
    }
    match venv::of_nixl() {
        Err(why) if in_ci() => Err(format!("the real NIXL, which CI must have: {why}")),
        made => Ok(made),
    }
}
