#![no_main]
//! Manifests, scripts and settings, whole or broken.

use kvrail_doctor::lint::{self, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (choice, bytes) = input;
    let Ok(source) = lint::from_bytes("file", bytes) else { return };
    let kind = Kind::ALL.get(usize::from(choice)).copied();
    for finding in lint::lint(&[source], kind).findings {
        let at = finding.location.expect("every finding has its place");
        assert!(at.line >= 1 && at.column.is_none_or(|column| column >= 1));
    }
});
