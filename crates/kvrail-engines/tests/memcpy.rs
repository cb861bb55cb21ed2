//! Plain copies between two processes, as a user of the crate sees them.

mod common;

use std::time::Duration;

use common::{Pair, Target};
use kvrail::Memory;
use kvrail_engines::memcpy::Memcpy;
use kvrail_engines::{Direction, Engine};

fn make(words: &str) -> (Box<dyn Engine>, Memory) {
    let memory = match words {
        "shared" => Memory::shared(common::POOL),
        _ => Memory::private(common::POOL),
    };
    (Box::new(Memcpy::new()), memory.unwrap())
}

#[test]
fn a_target_for_the_other_tests() {
    common::be_target(make);
}

#[test]
fn shared_and_private_memory_move_both_ways_on_several_threads() {
    for (words, transport) in [("shared", "memcpy"), ("private", "process_vm")] {
        let mut pair = Pair::meet(make, words, 2);
        pair.moves_right_bytes_both_ways(2);
        let used = pair.engine.used();
        assert_eq!((used.len(), used[0].transport.as_str()), (1, transport));
        assert!(!pair.engine.needs_driving());
    }
}

#[test]
fn a_slice_of_shared_memory_is_reached_where_it_lies() {
    fn make_slice(_: &str) -> (Box<dyn Engine>, Memory) {
        let whole = Memory::shared(3 * common::POOL).unwrap();
        (Box::new(Memcpy::new()), whole.slice(4096 + 77, common::POOL).unwrap())
    }
    // The child's memory is whole, this side's is a slice; and the other way round by reading.
    let mut target = Target::start("shared");
    let (mut engine, memory) = make_slice("");
    engine.register(&memory).unwrap();
    let peer = engine.connect(&target.metadata.clone(), common::DEADLINE).unwrap();
    assert_eq!(target.admit(&engine.metadata().unwrap()), "Ok(())");
    Pair { engine, memory, target, peer }.moves_right_bytes_both_ways(1);
}

#[test]
fn a_target_that_is_killed_ends_the_transfers() {
    for words in ["shared", "private"] {
        let mut pair = Pair::meet(make, words, 1);
        let mut posting =
            pair.prepare(Direction::Write, 0, (&[0, common::BLOCK * 2], &[0, common::BLOCK * 2]));
        common::finish(&mut *posting).unwrap();
        pair.target.kill();
        let error = common::fails_in_time(&mut *posting, Duration::from_secs(5));
        assert_eq!(error.kind, kvrail_engines::Kind::Peer, "{error}");
        assert!(error.what.contains("has ended"), "{error}");
    }
}

#[test]
fn what_is_not_possible_is_refused_with_the_reason() {
    let mut target = Target::start("shared");
    let (mut engine, memory) = make("shared");
    engine.register(&memory).unwrap();
    let refused = |engine: &mut dyn Engine, from: &str, to: &str| {
        let text = String::from_utf8(target.metadata.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        engine.connect(text.replacen(from, to, 1).as_bytes(), common::DEADLINE).unwrap_err()
    };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let error = refused(&mut *engine, boot.trim(), "another");
    assert!(error.what.contains("on another") && !error.hints.is_empty(), "{error}");
    let error = refused(&mut *engine, "pid:[", "pid:[9");
    assert!(error.what.contains("pid namespace") && !error.hints.is_empty(), "{error}");
    let error = refused(&mut *engine, "\"inode\":", "\"inode\":1");
    assert!(error.what.contains("another file"), "{error}");
    let error = refused(&mut *engine, "\"len\":", "\"len\":9");
    assert!(error.what.contains("mapping"), "{error}");
    target.kill();
    let error = engine.connect(&target.metadata.clone(), common::DEADLINE).unwrap_err();
    assert_eq!(error.kind, kvrail_engines::Kind::Peer, "{error}");
}
