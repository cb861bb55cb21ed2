//! What the fabric tests stand on: a libfabric with the `efa` provider, an emulated fabric, and probes on its nodes.
//!
//! What is not to be had on a machine (PyPI, headers of libfabric) skips the test, by name and with the reason, on the
//! standard error of the test program itself; with `CI=true` it fails instead, so that a lane cannot pass on nothing.

// Each test program uses a part of this.
#![allow(dead_code)]

pub(crate) mod emulated;
pub(crate) mod libfabric;
pub(crate) mod pair;
pub(crate) mod probe;
#[path = "../../../../xtask/src/process.rs"]
pub(crate) mod process;
#[path = "../../../../xtask/src/venv.rs"]
pub(crate) mod venv;

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};

pub(crate) use emulated::Fabric;
pub(crate) use libfabric::Libfabric;

/// Tests that run at one time: each keeps two processes and a device thread in each busy.
const AT_ONCE_MAX: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// What a test needs, and its turn to run.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) libfabric: Libfabric,
    pub(crate) probe: PathBuf,
    _turn: Turn,
}

impl Bench {
    /// `None` when this machine lacks something: the test ends there, skipped.
    pub(crate) fn ready(test: &str) -> Option<Self> {
        let ready = Libfabric::find().and_then(|libfabric| Ok((libfabric, probe::build()?)));
        match ready {
            Ok((libfabric, probe)) => Some(Self { libfabric, probe, _turn: Turn::take() }),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    /// An emulated fabric that ends with what is returned. `options` are those of `kvrail softefa run`.
    pub(crate) fn fabric(&self, options: &[&str]) -> Fabric {
        Fabric::start(&self.libfabric, options)
    }
}

/// Says that a test did not run.
pub(crate) fn skip(test: &str, why: &str) {
    assert!(env::var("CI").as_deref() != Ok("true"), "{test} could not run: {why}");
    note(&format!("{test}: {why}"));
}

/// Says that something was not looked at, where it is seen: the test harness keeps what `eprintln!` says.
pub(crate) fn note(what: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}

#[derive(Debug)]
struct Turn;

impl Turn {
    fn take() -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= AT_ONCE_MAX {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// The build's directory, in which what tests make is kept between runs.
pub(crate) fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// The name of the running test, as the harness names it.
#[macro_export]
macro_rules! bench {
    ($test:literal) => {
        match $crate::nodes::Bench::ready($test) {
            Some(bench) => bench,
            None => return,
        }
    };
}
