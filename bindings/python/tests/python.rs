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

use harness::{process, pytest, site};

#[test]
fn stage_the_package() {
    let site = site::stage().unwrap();
    let mut python = std::process::Command::new("python3");
    python.args(["-c", "import kvrail; print(kvrail.__file__)"]).env("PYTHONPATH", &site);
    let finished = process::run(&mut python, site::IMPORT_DEADLINE).unwrap();
    assert!(finished.status.success(), "{}", finished.said);
    assert!(finished.said.starts_with(&*site.to_string_lossy()), "not the staged one: {}", finished.said);
}

/// One test for each suite, so that a failure names it.
macro_rules! suites {
    ($($name:ident: $directory:literal),* $(,)?) => {
        const SUITES: &[&str] = &[$($directory),*];
        $(
            #[test]
            fn $name() {
                pytest::run($directory);
            }
        )*
    };
}

suites! {
    the_distributions_install_and_say_when_they_collide: "packaging",
}

#[test]
fn every_suite_is_run() {
    assert_eq!(pytest::suites(), SUITES, "directories of tests/ with a test_*.py, and the suites above");
}
