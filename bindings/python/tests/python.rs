//! The Python package under its test suites: `cargo test` covers all of it, without maturin.
//!
//! cargo has built the native module already. It is staged with the Python sources, as an installation would lie, into
//! `target/python/site`, and each directory of `tests/` that holds a `test_*.py` is a pytest suite and a test here:
//!
//! ```sh
//! cargo test -p kvrail-python --test python                  # everything
//! cargo test -p kvrail-python --test python stage            # the staging alone; then, as often as one likes:
//! PYTHONPATH=target/python/site target/python/venv/bin/python -m pytest -c bindings/python/pyproject.toml bindings/python/tests/native
//! ```

mod harness;

use std::process::{Command, ExitCode};

use harness::{process, pytest, site, venv};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let suites = match pytest::suites() {
        Ok(suites) if !suites.is_empty() => suites,
        Ok(_) => return lost("no directory of tests/ holds a test_*.py"),
        Err(why) => return lost(&why),
    };
    let mut trials = vec![Trial::test("stage_the_package", || stage_the_package().map_err(Failed::from))];
    trials.extend(suites.into_iter().map(|suite| {
        Trial::test(format!("suite_{suite}"), move || pytest::run(&suite).map_err(Failed::from))
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn lost(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::FAILURE
}

fn stage_the_package() -> Result<(), String> {
    let site = site::stage()?;
    let mut python = Command::new(venv::of_tests()?);
    python.args(["-c", "import kvrail; print(kvrail.__file__)"]).env("PYTHONPATH", &site);
    let said = process::succeed(&mut python, site::IMPORT_DEADLINE)?;
    if said.starts_with(&*site.to_string_lossy()) {
        return Ok(());
    }
    Err(format!("not the staged package is imported, but {said}"))
}
