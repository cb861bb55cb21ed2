//! The bare libfabric loop between two processes, on the providers that every libfabric has.
//!
//! Needs a libfabric, as kvrail finds it. Without one these tests are skipped, by name; with `CI` set they fail. On another
//! fabric than `tcp` and `shm`, on a node of `kvrail softefa run --nodes 1 --nics 4 --loopback` for instance:
//! `KVRAIL_ENGINES_TEST_RAILS='efa-direct 1 -,efa-direct 4 64'`.

mod common;

use std::io::Write as _;
use std::time::{Duration, Instant};

use common::{Pair, Target};
use kvrail::Memory;
use kvrail_engines::libfabric::{Libfabric, Options};
use kvrail_engines::{Direction, Engine, Kind};
use kvrail_sys::libfabric::{Library, Search};

/// `PROVIDER RAILS DEPTH`.
fn make(words: &str) -> (Box<dyn Engine>, Memory) {
    let words: Vec<&str> = words.split(' ').collect();
    let options = Options {
        provider: words[0].parse().unwrap(),
        rails: words[1].parse().ok(),
        depth: words[2].parse().ok(),
        // Two hosts are one here.
        devices: if words[0] == "tcp" { vec!["lo".into()] } else { Vec::new() },
        ..Options::default()
    };
    (Box::new(Libfabric::open(&options).unwrap()), Memory::shared(common::POOL).unwrap())
}

/// Words of [`make`], unless others are named.
fn rails(usual: &str) -> Vec<String> {
    let named = std::env::var("KVRAIL_ENGINES_TEST_RAILS");
    named.as_deref().unwrap_or(usual).split(',').map(String::from).collect()
}

/// Whether there is a libfabric; the test ends, skipped, where there is none.
fn there_is_a_libfabric(test: &str) -> bool {
    let Err(error) = Library::load(&Search::new(None)) else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test}: {error}");
    // Past the harness, which swallows what tests print.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {error}");
    false
}

#[test]
fn a_target_for_the_other_tests() {
    common::be_target(make);
}

#[test]
fn right_bytes_move_both_ways_over_rails_and_threads() {
    if !there_is_a_libfabric("right_bytes_move_both_ways_over_rails_and_threads") {
        return;
    }
    for words in rails("tcp 1 -,tcp 3 16,shm 1 -,shm 2 16") {
        let words = words.as_str();
        let lanes = if words.ends_with('-') { 1 } else { 2 };
        let evidence = if words.starts_with("tcp") { "delivered" } else { "counted" };
        let mut pair = Pair::meet(make, words, lanes);
        pair.moves_right_bytes_both_ways(lanes);
        let used = pair.engine.used();
        let rails: usize = words.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!((used[0].rails.len(), used[0].evidence.as_str()), (rails, evidence), "{words}");
        assert_eq!(used[0].transport, words.split(' ').next().unwrap());
        let fact = |name: &str| used[0].facts.iter().find(|f| f.name == name).map(|f| f.value.clone());
        assert!(fact("library").unwrap().contains("libfabric"), "{used:?}");
        assert!(fact("depth").unwrap().parse::<u32>().unwrap() > 0);
        assert!(pair.engine.needs_driving());
    }
}

#[test]
fn several_transfers_of_one_thread_are_in_flight_at_once() {
    if !there_is_a_libfabric("several_transfers_of_one_thread_are_in_flight_at_once") {
        return;
    }
    for words in rails("tcp 2 8,shm 2 8") {
        let mut pair = Pair::meet(make, &words, 1);
        let places: Vec<u64> = (0..80).map(|i| i * common::BLOCK).collect();
        common::fill(&pair.memory, 5);
        let all: Vec<&[u64]> = places.chunks(20).collect();
        let mut postings: Vec<_> = all.iter().map(|p| pair.prepare(Direction::Write, 0, (p, p))).collect();
        for posting in &mut postings {
            posting.post().unwrap();
        }
        // In another order than they were posted.
        for posting in postings.iter_mut().rev() {
            posting.wait(common::DEADLINE).unwrap().unwrap();
        }
        assert_eq!(pair.target.wrong(5, &places, &places), "None");
    }
}

#[test]
fn a_target_that_is_killed_is_an_error_by_the_deadline() {
    if !there_is_a_libfabric("a_target_that_is_killed_is_an_error_by_the_deadline") {
        return;
    }
    let both = [Direction::Write, Direction::Read];
    for (words, direction) in rails("tcp 2 16,tcp 1 16,shm 1 16").iter().zip(both.into_iter().cycle()) {
        let mut pair = Pair::meet(make, words, 1);
        let places: Vec<u64> = (0..40).map(|i| i * common::BLOCK).collect();
        let blocks = kvrail_engines::Blocks {
            direction,
            peer: pair.peer,
            lane: 0,
            local: &places,
            remote: &places,
            block_bytes: common::BLOCK,
            notification: None,
            timeout: Duration::from_millis(500),
        };
        // A loaded host may take longer than that deadline for what works.
        common::finish(&mut *pair.prepare(direction, 0, (&places, &places))).unwrap();
        let mut posting = pair.engine.prepare(&blocks).unwrap();
        pair.target.kill();
        let began = Instant::now();
        let error = common::fails_in_time(&mut *posting, Duration::from_secs(5));
        assert_eq!(error.kind, Kind::Peer, "{words}: {error}");
        assert!(began.elapsed() < Duration::from_secs(3), "{words}: {error}");
        // The lane has ended; it says why instead of hanging.
        assert_eq!(posting.post().unwrap_err(), error);
    }
}

#[test]
fn a_target_that_is_not_driven_does_not_hold_a_connection_for_ever() {
    if !there_is_a_libfabric("a_target_that_is_not_driven_does_not_hold_a_connection_for_ever") {
        return;
    }
    let (mut engine, memory) = make("tcp 1 -");
    let (mut silent, other) = make("tcp 1 -");
    engine.register(&memory).unwrap();
    silent.register(&other).unwrap();
    silent.admit(&engine.metadata().unwrap()).unwrap();
    let error = engine.connect(&silent.metadata().unwrap(), Duration::from_millis(300)).unwrap_err();
    assert_eq!(error.kind, Kind::Peer, "{error}");
    assert!(error.what.contains("0 of 1 rails"), "{error}");
}

#[test]
fn two_providers_do_not_meet_and_the_error_says_which() {
    if !there_is_a_libfabric("two_providers_do_not_meet_and_the_error_says_which") {
        return;
    }
    let target = Target::start("shm 1 -");
    let (mut engine, memory) = make("tcp 1 -");
    engine.register(&memory).unwrap();
    let error = engine.connect(&target.metadata, common::DEADLINE).unwrap_err();
    assert!(error.what.contains("of provider shm, these are of tcp"), "{error}");
    assert_eq!(error.kind, Kind::Usage);
}

#[test]
fn what_is_not_there_is_an_error_with_advice() {
    let options = Options { library: Some("/nowhere/libfabric.so.1".into()), ..Options::default() };
    let error = Libfabric::open(&options).map(|_| ()).unwrap_err();
    assert!(error.what.contains("/nowhere/libfabric.so.1") && !error.hints.is_empty(), "{error}");
    if !there_is_a_libfabric("what_is_not_there_is_an_error_with_advice") {
        return;
    }
    let options =
        Options { provider: "tcp".parse().unwrap(), devices: vec!["nosuch0".into()], ..Options::default() };
    let error = Libfabric::open(&options).map(|_| ()).unwrap_err();
    assert!(error.what.contains("nosuch0"), "{error}");
}
