//! What is called failed cannot land any more; and who cannot connect back still answers.

mod common;

use std::time::{Duration, Instant};

use common::{PEER, Target, byte, quick};
use kvrail_conformance::host::Memory;
use kvrail_core::id::{Generation, LocalRail, RegionId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{Batch, Direction, Event, Op, OpError, Transport};
use kvrail_transport::tcp::Config;

const LEN: usize = 1 << 20;
const ROUTE: Route = Route { local: LocalRail(0), remote: RemoteRail(0) };

fn now(node: &Target) -> Time {
    Time::ZERO + node.origin.elapsed()
}

fn introduce(a: &mut Target, b: &Target) {
    let (offer, at) = (b.offer(), now(a));
    a.tcp.add_peer(at, PEER, &offer.address).expect("a valid address");
    a.tcp.import_region(PEER, &offer.region, &[]).expect("a valid region");
}

fn blocks(token: u32, count: u64) -> (Token, Vec<Op>) {
    let op = |i: u64| Op {
        local_offset: i * 4_096,
        remote_offset: i * 4_096,
        local_region: RegionId(0),
        remote_region: RegionId(0),
        len: 4_096,
    };
    (Token { slot: token, generation: Generation(1) }, (0..count).map(op).collect())
}

fn post(a: &mut Target, direction: Direction, token: Token, ops: &[Op]) -> usize {
    let batch = Batch { peer: PEER, route: ROUTE, direction, token, first: 0, ops, immediate: None };
    let at = now(a);
    a.tcp.post(at, &batch).unwrap_or(0)
}

/// Polls both until `holds`, for at most five seconds.
fn until(
    a: &mut Target,
    b: &mut Target,
    what: &str,
    mut holds: impl FnMut(&mut Target, &mut Target) -> bool,
) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds(a, b) {
        assert!(Instant::now() < end, "waited for this: {what}");
        a.poll();
        b.poll();
    }
}

fn ended(events: &[Event]) -> usize {
    let count = |e: &Event| match e {
        Event::Completed { count, .. } | Event::Failed { count, .. } => *count as usize,
        _ => 0,
    };
    events.iter().map(count).sum()
}

fn warm(a: &mut Target, b: &mut Target) {
    let (token, ops) = blocks(1, 1);
    until(a, b, "the route is taken", |a, _| post(a, Direction::Read, token, &ops) == 1);
    until(a, b, "the first op ends", |a, _| ended(&a.events) == 1);
    a.events.clear();
}

#[test]
fn no_byte_lands_after_its_write_was_called_failed() {
    for round in 0..20 {
        let (mut a, mut b) = (Target::new(quick(), LEN), Target::new(quick(), LEN));
        introduce(&mut a, &b);
        warm(&mut a, &mut b);
        a.memory.write(0, &(0..LEN).map(|at| byte(round, at)).collect::<Vec<u8>>());
        let (token, ops) = blocks(2, 256);
        assert_eq!(post(&mut a, Direction::Write, token, &ops), 256);
        // The bytes are in the target's kernel; of some rounds, a part is in its memory.
        (0..3).for_each(|_| a.poll());
        (0..round % 3).for_each(|_| b.poll());
        let at = now(&a);
        a.tcp.reset(at, PEER, ROUTE);
        until(&mut a, &mut b, "every write ends", |a, _| ended(&a.events) == 256);
        let mut then = vec![0; LEN];
        b.memory.read(0, &mut then);
        b.poll_for(Duration::from_millis(5));
        let mut later = vec![0; LEN];
        b.memory.read(0, &mut later);
        assert!(then == later, "round {round}: bytes landed after their write was called failed");
        let counters = a.tcp.counters();
        let failed = a.events.iter().any(|e| matches!(e, Event::Failed { error: OpError::Flushed, .. }));
        assert!(!failed || (counters.fenced, counters.unfenced) == (1, 0), "{counters:?}");
    }
}

#[test]
fn writes_to_a_silent_peer_wait_for_the_fence_and_no_longer_than_its_timeout() {
    let (mut a, mut b) = (Target::new(quick(), LEN), Target::new(quick(), LEN));
    introduce(&mut a, &b);
    warm(&mut a, &mut b);
    let (token, ops) = blocks(2, 64);
    assert_eq!(post(&mut a, Direction::Write, token, &ops), 64);
    a.poll();
    let (at, begin) = (now(&a), Instant::now());
    a.tcp.reset(at, PEER, ROUTE);
    while ended(&a.events) < 64 {
        a.poll();
        assert!(begin.elapsed() < quick().fence_timeout * 2, "the fence has no timeout");
    }
    assert!(
        begin.elapsed() >= quick().fence_timeout,
        "nobody answered, and still the writes are called failed"
    );
    assert_eq!(a.tcp.counters().unfenced, 1);
}

#[test]
fn a_peer_that_cannot_connect_back_still_answers() {
    // The initiator advertises an address that leads nowhere.
    let nowhere = Config { advertise: vec![([127, 0, 0, 1], 9).into()], ..quick() };
    let (mut a, mut b) = (Target::new(nowhere, LEN), Target::new(quick(), LEN));
    introduce(&mut a, &b);
    warm(&mut a, &mut b);
    introduce(&mut b, &a);
    let at = now(&b);
    let sent = b.tcp.send(at, PEER, ROUTE, b"over the connection that you made");
    assert_eq!(sent, Ok(true));
    until(&mut a, &mut b, "the answer arrives", |a, _| {
        a.events.iter().any(|e| matches!(e, Event::Message { .. }))
    });
    let (token, ops) = blocks(3, 16);
    assert_eq!(post(&mut b, Direction::Write, token, &ops), 16);
    until(&mut a, &mut b, "ops run the other way too", |_, b| ended(&b.events) == 16);
    assert!(b.events.iter().all(|e| matches!(e, Event::Completed { .. })), "{:?}", b.events);
}

#[test]
fn a_peer_that_says_goodbye_is_gone_at_once() {
    let (mut a, mut b) = (Target::new(quick(), LEN), Target::new(quick(), LEN));
    introduce(&mut a, &b);
    warm(&mut a, &mut b);
    drop(b);
    a.poll_for(Duration::from_millis(20));
    assert_eq!(a.events, [Event::PeerGone { peer: PEER }]);
    let (token, ops) = blocks(2, 1);
    assert_eq!(post(&mut a, Direction::Write, token, &ops), 0);
}

#[test]
fn a_dropped_message_is_reported() {
    let (mut a, mut b) = (Target::new(quick(), LEN), Target::new(quick(), LEN));
    introduce(&mut a, &b);
    warm(&mut a, &mut b);
    let at = now(&a);
    for _ in 0..5 {
        assert_eq!(a.tcp.send(at, PEER, ROUTE, b"lost"), Ok(true));
    }
    a.tcp.reset(at, PEER, ROUTE);
    a.poll_for(Duration::from_millis(5));
    let failed = a.events.iter().filter(|e| matches!(e, Event::SendFailed { peer: PEER, .. })).count();
    assert_eq!(failed, 5);
}

#[test]
fn sleeping_on_the_descriptor_misses_nothing() {
    use kvrail_transport::Fabric;
    let (mut a, mut b) = (Target::new(quick(), LEN), Target::new(quick(), LEN));
    introduce(&mut a, &b);
    warm(&mut a, &mut b);
    let readable = |fd| {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one live `pollfd`.
        unsafe { libc::poll(&raw mut poll, 1, 20) == 1 }
    };
    b.poll_for(Duration::from_millis(5));
    assert!(b.tcp.arm() && !readable(b.tcp.wait_fd()), "an idle transport wants to be polled");
    let (token, ops) = blocks(2, 4);
    assert_eq!(post(&mut a, Direction::Write, token, &ops), 4);
    assert!(!a.tcp.arm(), "what was posted has not been sent yet");
    a.poll();
    assert!(b.tcp.arm() && readable(b.tcp.wait_fd()), "an arrival does not wake the sleeper");
    b.poll();
    assert!(a.tcp.arm() && readable(a.tcp.wait_fd()), "an answer does not wake the sleeper");
    a.poll();
    assert_eq!(ended(&a.events), 4);
}
