//! The fabric's own contract, before any engine runs over it.

use kvrail_core::id::{Generation, LocalRail, PeerId, RegionId, RemoteRail, Route, Token};
use kvrail_core::transport::{Batch, Direction, Event, Evidence, Op, OpError, RegionInfo, Transport};

use super::*;
use crate::model::{MS, US};
use crate::territory::Span;

const TOKEN: Token = Token { slot: 3, generation: Generation(1) };
const PEER: PeerId = PeerId { slot: 0, generation: Generation(1) };
const BYTES: u64 = 64 << 10;

/// Two nodes that know each other, each with one region over all its memory.
struct Pair {
    fabric: SimFabric,
    a: SimTransport,
    b: SimTransport,
}

fn pair(seed: u64, model: Model, rails: (usize, usize)) -> Pair {
    let spec = |rails| NodeSpec { rails: vec![100_000_000_000; rails], memory: BYTES, sockets: 1 };
    let fabric = SimFabric::new(seed, model, vec![spec(rails.0), spec(rails.1)], false);
    let (mut a, mut b) = (fabric.transport(0), fabric.transport(1));
    introduce(&mut a, &mut b);
    introduce(&mut b, &mut a);
    for (t, node) in [(&mut a, 0), (&mut b, 1)] {
        t.register(&region(&fabric, node, 1)).unwrap();
    }
    share(&fabric, &mut a, &b, 1, 1);
    share(&fabric, &mut b, &a, 0, 1);
    for i in 0..BYTES {
        fabric.memory(0, |m| m.slice_mut(m.base() + i, 1).unwrap()[0] = (i * 31 + (i >> 8)) as u8);
    }
    Pair { fabric, a, b }
}

fn introduce(from: &mut SimTransport, to: &mut SimTransport) {
    let mut address = Vec::new();
    to.address(&mut address);
    from.add_peer(Time(0), PEER, &address).unwrap();
}

fn region(fabric: &SimFabric, node: usize, generation: u32) -> RegionInfo {
    let base = fabric.memory(node, |m| m.base());
    let device = kvrail_core::transport::Device::Host;
    RegionInfo { id: RegionId(0), generation: Generation(generation), base, len: BYTES, device }
}

fn share(fabric: &SimFabric, to: &mut SimTransport, of: &SimTransport, node: usize, generation: u32) {
    let mut key = Vec::new();
    of.region_key(RegionId(0), &mut key);
    to.import_region(PEER, &region(fabric, node, generation), &key).unwrap();
}

fn route(local: u16, remote: u16) -> Route {
    Route { local: LocalRail(local), remote: RemoteRail(remote) }
}

fn op(local_offset: u64, remote_offset: u64, len: u32) -> Op {
    Op { local_offset, remote_offset, local_region: RegionId(0), remote_region: RegionId(0), len }
}

fn post(t: &mut SimTransport, fabric: &SimFabric, direction: Direction, route: Route, ops: &[Op]) -> usize {
    let immediate = (direction == Direction::Write).then_some(9);
    let batch = Batch { peer: PEER, route, direction, token: TOKEN, first: 0, ops, immediate };
    t.post(fabric.now(), &batch).unwrap()
}

/// Runs for a time, polling a node after each event; returns its events with their times.
fn watch(fabric: &SimFabric, t: &mut SimTransport, ns: u64) -> Vec<(u64, Event)> {
    let until = fabric.now().0 + ns;
    fabric.schedule(Time(until), 0);
    let (mut all, mut events) = (Vec::new(), Vec::new());
    while let Some(step) = fabric.step() {
        t.poll(fabric.now(), &mut events);
        all.extend(events.drain(..).map(|event| (fabric.now().0, event)));
        if step.is_some() {
            break;
        }
    }
    all
}

fn bytes(fabric: &SimFabric, node: usize, offset: u64, len: u64) -> Vec<u8> {
    fabric.memory(node, |m| m.slice(m.base() + offset, len).unwrap().to_vec())
}

#[test]
fn a_write_moves_its_bytes_and_tells_both_sides() {
    let Pair { fabric, mut a, mut b } = pair(1, Model { mtu: 100, ..Model::default() }, (2, 3));
    assert_eq!(post(&mut a, &fabric, Direction::Write, route(1, 2), &[op(100, 7000, 1001)]), 1);
    let done = watch(&fabric, &mut a, 20 * MS);
    assert!(matches!(done[..], [(_, Event::Completed { token: TOKEN, first: 0, count: 1 })]), "{done:?}");
    let mut events = Vec::new();
    b.poll(fabric.now(), &mut events);
    assert_eq!(events, [Event::Immediate { rail: LocalRail(2), value: 9 }]);
    assert_eq!(bytes(&fabric, 1, 7000, 1001), bytes(&fabric, 0, 100, 1001));
    assert_eq!(bytes(&fabric, 1, 6999, 1), [0xA5 ^ 1]);
    assert_eq!(bytes(&fabric, 1, 8001, 1), [0xA5 ^ 1]);
    assert!(!fabric.violated());
}

#[test]
fn a_read_fetches_bytes_and_the_target_notices_nothing() {
    let Pair { fabric, a: _a, mut b } = pair(2, Model { mtu: 256, ..Model::default() }, (1, 1));
    post(&mut b, &fabric, Direction::Read, route(0, 0), &[op(0, 50, 5000)]);
    let done = watch(&fabric, &mut b, 20 * MS);
    assert!(matches!(done[..], [(_, Event::Completed { .. })]), "{done:?}");
    assert_eq!(bytes(&fabric, 1, 0, 5000), bytes(&fabric, 0, 50, 5000));
}

#[test]
fn ops_complete_out_of_order_and_so_do_the_packets_inside_them() {
    let Pair { fabric, mut a, b: _b } = pair(3, Model { mtu: 64, ..Model::default() }, (1, 1));
    let ops: Vec<Op> = (0..64).map(|i| op(i * 128, i * 128, 128)).collect();
    post(&mut a, &fabric, Direction::Write, route(0, 0), &ops);
    let order: Vec<u32> = watch(&fabric, &mut a, 20 * MS)
        .into_iter()
        .filter_map(|(_, event)| match event {
            Event::Completed { first, .. } => Some(first),
            _ => None,
        })
        .collect();
    assert_eq!(order.len(), 64);
    assert!(order.windows(2).any(|w| w[0] > w[1]), "{order:?}");
}

#[test]
fn a_completion_may_come_before_its_bytes_are_visible_but_an_immediate_never() {
    let model = Model { commit_max: 3 * MS, tail_ppm: 0, ..Model::default() };
    let (mut early, mut runs) = (0, 0);
    for seed in 0..50 {
        let Pair { fabric, mut a, mut b } = pair(seed, model.clone(), (1, 1));
        post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 100)]);
        let mut events = Vec::new();
        while fabric.step().is_some() {
            a.poll(fabric.now(), &mut events);
            let visible = bytes(&fabric, 1, 0, 100) == bytes(&fabric, 0, 0, 100);
            if events.drain(..).any(|event| matches!(event, Event::Completed { .. })) {
                runs += 1;
                early += usize::from(!visible);
            }
            b.poll(fabric.now(), &mut events);
            assert!(visible || !events.drain(..).any(|e| matches!(e, Event::Immediate { .. })));
        }
    }
    assert_eq!(runs, 50);
    assert!(early > 10, "{early}");
}

#[test]
fn a_delivered_completion_never_comes_before_its_bytes() {
    for seed in 0..50 {
        let model = Model { evidence: Evidence::Delivered, mtu: 64, ..Model::default() };
        let Pair { fabric, mut a, mut b } = pair(seed, model, (1, 1));
        post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 1000)]);
        let done = watch(&fabric, &mut a, 10 * MS);
        assert_eq!(done.len(), 1);
        assert_eq!(bytes(&fabric, 1, 0, 1000), bytes(&fabric, 0, 0, 1000));
        let mut events = Vec::new();
        b.poll(fabric.now(), &mut events);
        assert!(events.is_empty(), "no immediates on a fabric that delivers: {events:?}");
    }
}

#[test]
fn strays_land_after_a_reset_but_never_after_the_linger() {
    let (mut landed_late, linger) = (0, 2 * MS);
    for seed in 0..200 {
        let model = Model { linger, ..Model::default() };
        let Pair { fabric, mut a, b: _b } = pair(seed, model, (1, 1));
        fabric.inject(Fault::RailSilent { node: 0, rail: 0 });
        post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 100)]);
        assert!(watch(&fabric, &mut a, 50 * MS).is_empty(), "silence reports nothing");
        let before = bytes(&fabric, 1, 0, 100);
        let reset_at = fabric.now().0;
        a.reset(fabric.now(), PEER, route(0, 0));
        let ended = watch(&fabric, &mut a, 100 * US);
        assert!(
            matches!(ended[..], [(at, Event::Failed { error: OpError::Flushed, .. })] if at <= reset_at + 50 * US),
            "{ended:?}"
        );
        fabric.run_until(Time(reset_at + linger));
        let at_linger = bytes(&fabric, 1, 0, 100);
        landed_late += usize::from(at_linger != before);
        fabric.inject(Fault::Heal);
        fabric.run_until(Time(reset_at + 100 * MS));
        assert_eq!(bytes(&fabric, 1, 0, 100), at_linger);
    }
    assert!(landed_late > 20, "{landed_late}");
}

#[test]
fn a_reset_takes_back_nothing_that_was_acknowledged() {
    let mut late = 0;
    for seed in 0..400 {
        let model = Model { commit_max: 200 * US, linger: 200 * US, ..Model::default() };
        let Pair { fabric, mut a, mut b } = pair(seed, model, (1, 1));
        post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 100)]);
        fabric.run_until(Time(seed * 100));
        a.reset(fabric.now(), PEER, route(0, 0));
        let ended = watch(&fabric, &mut a, 5 * MS);
        let done = match ended[..] {
            [(_, Event::Completed { .. })] => true,
            [(_, Event::Failed { error: OpError::Flushed, .. })] => false,
            _ => panic!("{ended:?}"),
        };
        let mut events = Vec::new();
        b.poll(fabric.now(), &mut events);
        late += usize::from(done);
        assert!(!done || events.len() == 1, "seed {seed}: completed, and its immediate never came");
        assert!(!done || bytes(&fabric, 1, 0, 100) == bytes(&fabric, 0, 0, 100), "seed {seed}");
    }
    assert!((50..350).contains(&late), "{late}");
}

#[test]
fn a_dead_rail_fails_every_op_on_it_and_refuses_posts_until_it_returns() {
    let Pair { fabric, mut a, b: _b } = pair(5, Model::default(), (2, 2));
    let ops: Vec<Op> = (0..8).map(|i| op(i * 100, i * 100, 100)).collect();
    post(&mut a, &fabric, Direction::Write, route(0, 0), &ops);
    fabric.inject(Fault::RailDown { node: 0, rail: 0 });
    let events = watch(&fabric, &mut a, 20 * MS);
    let ended =
        events.iter().filter(|(_, e)| matches!(e, Event::Failed { .. } | Event::Completed { .. })).count();
    assert_eq!(ended, 8, "{events:?}");
    assert!(events.iter().any(|(_, e)| matches!(e, Event::RailDown { rail: LocalRail(0) })));
    let ops = [op(0, 0, 1)];
    let batch = Batch {
        peer: PEER,
        route: route(0, 0),
        direction: Direction::Write,
        token: TOKEN,
        first: 0,
        ops: &ops,
        immediate: Some(1),
    };
    assert!(a.post(fabric.now(), &batch).is_err());
    fabric.inject(Fault::Heal);
    let events = watch(&fabric, &mut a, MS);
    assert!(matches!(events[..], [(_, Event::RailUp { .. })]), "{events:?}");
    assert_eq!(a.post(fabric.now(), &batch), Ok(1));
}

#[test]
fn a_partition_swallows_and_a_heal_resends_or_a_reset_ends_it() {
    let mut ends = BTreeSet::new();
    for seed in 0..40 {
        let Pair { fabric, mut a, b: _b } = pair(seed, Model::default(), (1, 1));
        fabric.inject(Fault::Partition { a: 0, b: 1 });
        post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 100)]);
        let first = watch(&fabric, &mut a, 10 * MS);
        fabric.inject(Fault::Heal);
        let second = watch(&fabric, &mut a, 10 * MS);
        a.reset(fabric.now(), PEER, route(0, 0));
        let third = watch(&fabric, &mut a, MS);
        assert_eq!(first.len() + second.len() + third.len(), 1, "paid exactly once");
        ends.insert((first.len(), second.len(), third.len()));
    }
    assert_eq!(ends.len(), 3, "found out, healed, or reset: {ends:?}");
}

#[test]
fn a_restarted_process_refuses_the_old_ones_keys() {
    let Pair { fabric, mut a, b: _b } = pair(6, Model::default(), (1, 1));
    let mut b = fabric.restart(1);
    b.register(&region(&fabric, 1, 1)).unwrap();
    let before = bytes(&fabric, 1, 0, BYTES);
    post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 100)]);
    let events = watch(&fabric, &mut a, 10 * MS);
    assert!(
        events.iter().any(|(_, e)| matches!(e, Event::Failed { error: OpError::PeerRestarted, .. })),
        "{events:?}"
    );
    assert_eq!(bytes(&fabric, 1, 0, BYTES), before);
}

#[test]
fn a_key_of_an_earlier_registration_or_of_another_rail_is_refused() {
    let Pair { fabric, mut a, mut b } = pair(7, Model::default(), (1, 2));
    b.deregister(RegionId(0)).unwrap();
    b.register(&region(&fabric, 1, 2)).unwrap();
    post(&mut a, &fabric, Direction::Write, route(0, 1), &[op(0, 0, 100)]);
    let events = watch(&fabric, &mut a, 10 * MS);
    assert!(matches!(events[..], [(_, Event::Failed { error: OpError::BadKey, .. })]), "{events:?}");
    assert!(!fabric.violated(), "the region's owner did this, not the initiator");

    let mut key = Vec::new();
    b.region_key(RegionId(0), &mut key);
    // A count, then each rail with its key: the keys change places.
    let (first, second) = key[2..].split_at_mut(10);
    first[2..].swap_with_slice(&mut second[2..]);
    a.import_region(PEER, &region(&fabric, 1, 2), &key).unwrap();
    post(&mut a, &fabric, Direction::Write, route(0, 1), &[op(0, 0, 100)]);
    watch(&fabric, &mut a, 10 * MS);
    assert_eq!(fabric.violations()[0].checker, Checker::Addressing);
}

#[test]
fn there_is_no_loopback() {
    let Pair { fabric, mut a, b: _b } = pair(8, Model::default(), (1, 1));
    let (mut address, me) = (Vec::new(), PeerId { slot: 5, ..PEER });
    a.address(&mut address);
    a.add_peer(Time(0), me, &address).unwrap();
    assert_eq!(a.send(fabric.now(), me, route(0, 0), b"hello"), Ok(true));
    assert!(watch(&fabric, &mut a, 100 * MS).is_empty());
}

#[test]
fn more_unread_immediates_than_receives_are_a_violation() {
    let model = Model { receives_max: 4, ..Model::default() };
    let Pair { fabric, mut a, b: _b } = pair(9, model, (1, 1));
    let ops: Vec<Op> = (0..5).map(|i| op(i * 100, i * 100, 100)).collect();
    post(&mut a, &fabric, Direction::Write, route(0, 0), &ops);
    fabric.run_until(Time(20 * MS));
    assert_eq!(fabric.violations()[0].checker, Checker::Credits);
}

#[test]
fn messages_wait_for_a_receive_and_fail_when_none_comes() {
    let model = Model { receives_max: 4, ..Model::default() };
    let Pair { fabric, mut a, mut b } = pair(9, model, (1, 1));
    for _ in 0..6 {
        assert_eq!(a.send(fabric.now(), PEER, route(0, 0), b"hello"), Ok(true));
    }
    let failed = watch(&fabric, &mut a, 200 * MS);
    assert_eq!(failed.len(), 2, "{failed:?}");
    let mut events = Vec::new();
    b.poll(fabric.now(), &mut events);
    assert_eq!(events.len(), 4);
    assert!(!fabric.violated());
}

#[test]
fn a_full_send_queue_takes_a_prefix_and_has_room_after_polls() {
    let model = Model { ops_in_flight_max: 4, ..Model::default() };
    let Pair { fabric, mut a, b: _b } = pair(10, model, (1, 1));
    let ops: Vec<Op> = (0..6).map(|i| op(i * 100, i * 100, 100)).collect();
    assert_eq!(post(&mut a, &fabric, Direction::Write, route(0, 0), &ops), 4);
    assert_eq!(post(&mut a, &fabric, Direction::Write, route(0, 0), &ops), 0);
    fabric.run_until(Time(20 * MS));
    assert_eq!(post(&mut a, &fabric, Direction::Write, route(0, 0), &ops), 0, "completions are unread");
    a.poll(fabric.now(), &mut Vec::new());
    assert_eq!(post(&mut a, &fabric, Direction::Write, route(0, 0), &ops), 4);
}

#[test]
fn memory_released_in_flight_is_seen_at_the_deregistration() {
    let Pair { fabric, mut a, b: _b } = pair(11, Model::default(), (1, 1));
    post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 100)]);
    a.deregister(RegionId(0)).unwrap();
    assert_eq!(fabric.violations()[0].checker, Checker::LateRead);
}

#[test]
fn bytes_off_their_claim_are_seen_at_the_packet() {
    let Pair { fabric, mut a, b: _b } = pair(12, Model::default(), (1, 1));
    let bases = (fabric.memory(0, |m| m.base()), fabric.memory(1, |m| m.base()));
    fabric.territory(|t| {
        t.enable();
        t.claim(1, (0, 1), (0, 1), Time(0), vec![Span { source: bases.0, target: bases.1 + 500, len: 100 }]);
    });
    post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 500, 100)]);
    watch(&fabric, &mut a, 20 * MS);
    assert!(!fabric.violated());
    post(&mut a, &fabric, Direction::Write, route(0, 0), &[op(0, 0, 100)]);
    watch(&fabric, &mut a, 20 * MS);
    assert_eq!(fabric.violations()[0].checker, Checker::Territory);
}

#[test]
fn every_op_is_paid_exactly_once_whatever_breaks() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let model = Model {
            mtu: 64,
            evidence: rng.pick(&[Evidence::Counted, Evidence::Delivered]),
            linger: rng.pick(&[0, MS]),
            ..Model::default()
        };
        let Pair { fabric, mut a, b: _b } = pair(seed, model, (2, 2));
        fabric.inject(Fault::Chaos(Chaos {
            full_ppm: 100_000,
            error_ppm: 100_000,
            drop_ppm: 100_000,
            ack_loss_ppm: 50_000,
            not_ready_ppm: 50_000,
            reorder_ppm: 100_000,
            delay_max: MS,
            ..Chaos::CALM
        }));
        let fault = match rng.below(4) {
            0 => Fault::RailDown { node: rng.index(2), rail: rng.index(2) },
            1 => Fault::RailSilent { node: rng.index(2), rail: rng.index(2) },
            2 => Fault::BlackHole { from: (0, rng.index(2)), to: (1, rng.index(2)) },
            _ => Fault::Partition { a: 0, b: 1 },
        };
        fabric.schedule_fault(Time(rng.below(40 * US)), fault);
        let ops: Vec<Op> = (0..20).map(|i| op(i * 200, i * 200, 200)).collect();
        let mut taken = 0;
        let mut ends = Vec::new();
        for rail in 0..2 {
            let direction = rng.pick(&[Direction::Read, Direction::Write]);
            taken += post(&mut a, &fabric, direction, route(rail, rail), &ops);
        }
        ends.extend(watch(&fabric, &mut a, 10 * MS));
        fabric.inject(Fault::Heal);
        ends.extend(watch(&fabric, &mut a, 10 * MS));
        for rail in 0..2 {
            a.reset(fabric.now(), PEER, route(rail, rail));
        }
        ends.extend(watch(&fabric, &mut a, 10 * MS));
        let paid: u32 = ends
            .iter()
            .map(|(_, event)| match event {
                Event::Completed { count, .. } | Event::Failed { count, .. } => *count,
                _ => 0,
            })
            .sum();
        assert_eq!(paid as usize, taken, "seed {seed}");
        assert!(!fabric.violated(), "seed {seed}: {:?}", fabric.violations());
        assert_eq!(fabric.ops_in_flight(0), 0);
    }
}
