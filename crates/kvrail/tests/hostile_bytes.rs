//! Bytes from outside end in a value or an error, never in a panic: the stable twin of `fuzz/`.

mod common;

use common::Net;
use kvrail::{Agent, Memory, Progress};
use kvrail_core::wire::control::read_message;
use kvrail_core::wire::metadata::Metadata;
use proptest::prelude::*;

/// An agent, and the metadata of another one.
fn importer() -> (Agent, Vec<u8>) {
    let net = Net::default();
    let agent = |name: &str| {
        let agent = Agent::builder(name).transports([net.transport()]).progress(Progress::Inline);
        agent.ignore_environment().build().unwrap()
    };
    let (here, there) = (agent("here"), agent("there"));
    let whole = Memory::private(1 << 20).unwrap();
    let list = (0..50).map(|i| whole.slice(i * 20_000, 300 * (i + 1)).unwrap()).collect();
    let regions = there.register_many(list).unwrap();
    let metadata = there.metadata().unwrap();
    drop(regions);
    (here, metadata)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_metadata_never_becomes_a_peer(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (here, sound) = importer();
        let mut bytes = sound.clone();
        for (at, mask) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        prop_assume!(bytes != sound);
        prop_assert!(here.connect(&bytes).is_err());
        prop_assert!(here.peers().is_empty());
    }

    #[test]
    fn any_bytes_as_metadata_or_message_end_in_a_value_or_an_error(bytes: Vec<u8>) {
        if let Ok(metadata) = Metadata::decode(&bytes) {
            prop_assert_eq!(Metadata::decode(&metadata.encode()).unwrap(), metadata);
        }
        let _ = read_message(&bytes);
    }
}
