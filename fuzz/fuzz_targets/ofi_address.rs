#![no_main]
//! Addresses of the libfabric transport, as a peer may send them.

use kvrail_transport::ofi::address::{Address, VERSION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // Past the magic and the version, where a fuzzer would not come by itself.
    check(&[b"KVRo", &[VERSION][..], bytes].concat());
});

fn check(bytes: &[u8]) {
    let Ok(address) = Address::decode(bytes) else { return };
    let mut again = Vec::new();
    if address.encode(&mut again).is_ok() {
        assert_eq!(Address::decode(&again).as_ref(), Ok(&address));
    }
    let mut merged = address.clone();
    assert_eq!(merged.merge(&address), Ok(Vec::new()));
}
