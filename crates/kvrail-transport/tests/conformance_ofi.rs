//! The transport contract on libfabric's `tcp` and `shm` providers. (EFA's providers need an emulated device: see the
//! program's tests.) Skipped, by name, where no libfabric is found that has them.

#[path = "common/ofi_suite.rs"]
#[allow(dead_code, reason = "shared with a program")]
mod ofi_suite;

use std::collections::HashMap;
use std::sync::Mutex;

use kvrail_conformance::{Rig, Verdict};
use kvrail_transport::ofi::Ofi;

/// Whether a provider can be had; said once.
fn is_there(provider: &'static str) -> bool {
    static KNOWN: Mutex<Option<HashMap<&'static str, bool>>> = Mutex::new(None);
    let mut known = KNOWN.lock().expect("no test panics while it holds this");
    *known.get_or_insert_default().entry(provider).or_insert_with(|| {
        Ofi::new(ofi_suite::config(provider, 1))
            .inspect_err(|error| eprintln!("SKIPPED libfabric's {provider}: {error}"))
            .is_ok()
    })
}

fn check(provider: &'static str, rails: &[u16], name: &str, property: fn(&mut Rig<'_>) -> Verdict) {
    if is_there(provider) {
        kvrail_conformance::check(&mut ofi_suite::world(provider, rails), name, property);
    }
}

macro_rules! tests {
    ([$provider:expr, $rails:expr] $($name:ident)*) => { $(
        #[test]
        fn $name() {
            super::check($provider, $rails, stringify!($name), kvrail_conformance::properties::$name);
        }
    )* };
}

mod tcp_1_rail {
    kvrail_conformance::for_each_property! { [tests] "tcp", &[1] }
}
mod tcp_4_rails {
    kvrail_conformance::for_each_property! { [tests] "tcp", &[4] }
}
mod tcp_2_rails_with_5 {
    kvrail_conformance::for_each_property! { [tests] "tcp", &[2, 5] }
}

/// Names the lane that this process is to run on `shm`.
const LANE: &str = "KVRAIL_TEST_OFI_SHM_RAILS";

/// `shm` in a process of its own: endpoints of several threads of one process crash each other in libfabric.
fn shm(rails: &str) {
    if !is_there("shm") {
        return;
    }
    let program = std::env::current_exe().expect("this program has a file");
    let ended = std::process::Command::new(program)
        .args(["--exact", "the_contract_on_shm_alone", "--nocapture", "--test-threads=1"])
        .env(LANE, rails)
        .output()
        .expect("this program starts");
    let said = String::from_utf8_lossy(&ended.stdout);
    said.lines().filter(|line| line.starts_with("SKIPPED")).for_each(|line| eprintln!("{line}"));
    assert!(ended.status.success(), "{}: {said}\n{}", ended.status, String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn the_contract_on_shm_alone() {
    // Only as a child of the tests below.
    let Ok(rails) = std::env::var(LANE) else { return };
    let outcome = ofi_suite::run(&["shm".into(), rails]);
    assert_eq!(outcome, std::process::ExitCode::SUCCESS);
}

#[test]
fn the_contract_holds_on_shm_with_one_rail() {
    shm("1");
}

#[test]
fn the_contract_holds_on_shm_with_three_rails() {
    shm("3");
}
