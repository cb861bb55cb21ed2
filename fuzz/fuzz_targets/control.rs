#![no_main]
//! Control messages, as a peer may send them.

use kvrail_core::wire::control::{read_message, write_message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((header, body)) = read_message(bytes) {
        let mut again = Vec::new();
        write_message(&mut again, &header, &body.encode());
        assert_eq!(read_message(&again), Ok((header, body)));
    }
});
