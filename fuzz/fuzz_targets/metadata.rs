#![no_main]
//! An agent's metadata, as a peer may send it.

use kvrail_core::wire::checksum;
use kvrail_core::wire::metadata::Metadata;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // Past the magic, the version and the checksum, where a fuzzer would not come by itself.
    let mut sound = [b"KVRM\x01", bytes].concat();
    let sum = checksum(&sound);
    sound.extend_from_slice(&sum.to_le_bytes());
    check(&sound);
});

fn check(bytes: &[u8]) {
    if let Ok(metadata) = Metadata::decode(bytes) {
        assert_eq!(Metadata::decode(&metadata.encode()).as_ref(), Ok(&metadata));
    }
}
