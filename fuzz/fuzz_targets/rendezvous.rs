#![no_main]
//! Rendezvous frames, as anyone who reaches the port may send them.

use kvrail::rendezvous::frame::{HEADER_BYTES, Header, METADATA_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = Header::decode(bytes) {
        assert!(header.len as usize <= METADATA_BYTES_MAX);
        assert_eq!(&header.encode(), bytes);
    }
});
