#![no_main]
//! Frames of the NIXL-like metadata exchange, as anyone who reaches an agent's port may send them.

use kvrail_nixl::exchange::frame::{HEADER_BYTES, Header, METADATA_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let Ok(header) = Header::decode(head) else { return };
    assert!(header.len as usize <= METADATA_BYTES_MAX);
    assert_eq!(&header.encode(), head);
    let _ = header.verify(body);
    // A checksum would stop a fuzzer at the door: the same with a good one.
    if let Ok(sound) = Header::new(header.kind, body) {
        assert_eq!(Header::decode(&sound.encode()), Ok(sound));
        assert_eq!(sound.verify(body), Ok(()));
    }
});
