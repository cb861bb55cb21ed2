#![no_main]
//! Logs, as anything may have written them: read whole and byte for byte of the same, told the same.

use std::io::{self, Read};

use kvrail_doctor::log::Logs;
use kvrail_doctor::render::{self, Manner};
use libfuzzer_sys::fuzz_target;

/// Gives few bytes at a time.
struct Trickle<'b>(&'b [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let few = into.len().min(7);
        self.0.read(&mut into[..few])
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (mut whole, mut trickled) = (Logs::new(), Logs::new());
    let read = whole.read("log", bytes).map_err(|error| error.to_string());
    assert_eq!(read, trickled.read("log", Trickle(bytes)).map_err(|error| error.to_string()));
    let (whole, trickled) = (whole.conclude(), trickled.conclude());
    assert_eq!(whole.told(), trickled.told());
    assert!(!render::terminal(&whole, Manner::default()).contains('\x1b'));
});
