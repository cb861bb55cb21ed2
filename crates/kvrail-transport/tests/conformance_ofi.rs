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
mod shm_1_rail {
    kvrail_conformance::for_each_property! { [tests] "shm", &[1] }
}
mod shm_3_rails {
    kvrail_conformance::for_each_property! { [tests] "shm", &[3] }
}
