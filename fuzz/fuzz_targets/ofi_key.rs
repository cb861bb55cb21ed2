#![no_main]
//! Region keys of the libfabric transport, as a peer may send them, for a region of any length.

use kvrail_transport::ofi::address::VERSION;
use kvrail_transport::ofi::key::RegionKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u64, u64, u8, &[u8])| {
    let (rails, len, offset, flags, tail) = input;
    let rails = usize::from(rails % 64) + 1;
    let bytes = [&[VERSION << 4 | flags & 3][..], tail].concat();
    let Ok(key) = RegionKey::decode(&bytes, rails, len) else { return };
    for rail in 0..64 {
        let there = key.slice(rail, 0, offset, 1).is_some();
        assert_eq!(there, offset < len && key.rails().contains(rail));
    }
    let mut again = Vec::new();
    if key.encode(&mut again).is_ok() {
        assert_eq!(RegionKey::decode(&again, rails, len).as_ref(), Ok(&key));
    }
});
