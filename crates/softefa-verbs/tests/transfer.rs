//! Bytes from one host to another.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::{Duo, End, Net, pattern, segments};
use softefa_fabric::{Model, NicIndex, ProcessIndex};
use softefa_verbs::nic::{Flags, Limit, Opcode, Payload, SendRequest, Status};

const SIZES: [usize; 14] = [0, 1, 7, 55, 56, 57, 64, 4096, 8927, 8928, 8929, 100_000, 142_848, 1_000_003];

#[test]
fn writes_of_many_sizes_arrive() {
    let mut duo = Duo::new(Model::instant(), 1 << 20);
    for (i, size) in SIZES.into_iter().enumerate() {
        pattern(i as u64, &mut duo.a.buffer[..size]);
        duo.a.write(i as u64, &duo.b, (0, size), 9);
        let done = duo.a.wait_ok();
        assert_eq!((done.id, done.bytes as usize, done.opcode), (i as u64, size, Opcode::Write));
        assert_eq!(duo.a.buffer[..size], duo.b.buffer[9..9 + size], "{size}");
    }
}

#[test]
fn reads_of_many_sizes_arrive() {
    let mut duo = Duo::new(Model::instant(), 1 << 20);
    for (i, size) in SIZES.into_iter().enumerate() {
        pattern(i as u64, &mut duo.b.buffer[..size]);
        duo.a.read(i as u64, &duo.b, (5, size), 0);
        let done = duo.a.wait_ok();
        assert_eq!((done.id, done.bytes as usize, done.opcode), (i as u64, size, Opcode::Read));
        assert_eq!(duo.b.buffer[..size], duo.a.buffer[5..5 + size], "{size}");
    }
}

#[test]
fn sends_of_many_sizes_arrive() {
    let mut duo = Duo::new(Model::instant(), 1 << 20);
    for (i, size) in SIZES.into_iter().enumerate().filter(|(_, size)| *size <= 8928) {
        pattern(i as u64, &mut duo.a.buffer[..size]);
        duo.b.receive(70 + i as u64, 100, 8928);
        duo.a.send(i as u64, &duo.b, (0, size));
        assert_eq!(duo.a.wait_ok().id, i as u64);
        let got = duo.b.wait_ok();
        assert_eq!((got.id, got.bytes as usize, got.opcode), (70 + i as u64, size, Opcode::Receive));
        assert_eq!((got.from_qpn, got.from), (duo.a.qp.number(), Some(duo.a.device.gid())));
        assert_eq!(duo.a.buffer[..size], duo.b.buffer[100..100 + size], "{size}");
    }
}

/// Small numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}

/// Writes, reads and sends of any size, all in flight together, over several NICs: each byte is where it belongs, each operation completes
/// once, and nothing else has changed. Every operation has its own piece of memory on both sides.
fn any_operations(seed: u64, model: Model) {
    const ENDS: usize = 3;
    const PIECE: usize = 40_000;
    const PIECES: usize = 60;
    /// What messages are made of lies behind all pieces, and nothing changes it.
    const END: usize = PIECE * PIECES;
    println!("seed {seed}");
    let mut random = Random(seed);
    let net = Net::new(2, ENDS, model);
    let hosts = [net.host(0), net.host(1)];
    let mut ends = hosts
        .each_ref()
        .map(|host| (0..ENDS).map(|nic| End::new(host, nic, PIECE * PIECES + 3_000)).collect::<Vec<End>>());
    for (i, end) in ends.iter_mut().flatten().enumerate() {
        pattern(seed + i as u64, &mut end.buffer);
    }
    let mut wanted =
        ends.each_ref().map(|ends| ends.iter().map(|end| end.buffer.clone()).collect::<Vec<_>>());
    for (a, b) in ends[0].iter().zip(&ends[1]) {
        a.knows(b);
        b.knows(a);
    }
    for piece in 0..PIECES {
        for nic in 0..ENDS {
            let side = random.below(2);
            let (from, to) = (&ends[side][nic], &ends[1 - side][nic]);
            let len = [random.below(80), random.below(9_000), random.below(PIECE)][random.below(3)];
            let here = PIECE * piece + random.below(PIECE - len);
            let there = PIECE * piece + random.below(PIECE - len);
            let id = piece as u64;
            let [mine, theirs] = if side == 0 { [0, 1] } else { [1, 0] };
            let copy = |wanted: &mut [Vec<Vec<u8>>; 2],
                        (from, at): (usize, usize),
                        (to, into): (usize, usize),
                        len| {
                let bytes = wanted[from][nic][at..at + len].to_vec();
                wanted[to][nic][into..into + len].copy_from_slice(&bytes);
            };
            match random.below(3) {
                0 => {
                    copy(&mut wanted, (mine, here), (theirs, there), len);
                    from.write(id, to, (here, len), there);
                }
                1 => {
                    copy(&mut wanted, (theirs, there), (mine, here), len);
                    from.read(id, to, (here, len), there);
                }
                _ => {
                    // Which receive a message gets is open while several are in flight: all messages of a side are the same.
                    let there = PIECE * piece;
                    to.receive(1_000 + id, there, 3_000);
                    let request = SendRequest {
                        immediate: Some(piece as u32),
                        payload: segments(&[from.segment(END, 1_000), from.segment(END + 1_000, 2_000)]),
                        ..from.request(Opcode::Send, id, to, (0, 0), 0)
                    };
                    copy(&mut wanted, (mine, END), (theirs, there), 3_000);
                    from.qp.post_send(&[request]).unwrap();
                }
            }
        }
    }
    for nic in 0..ENDS {
        let mut completed = [0; 2];
        let mut received = HashSet::new();
        let begin = std::time::Instant::now();
        while completed[0] + completed[1] < PIECES {
            for side in 0..2 {
                while let Some(completion) = ends[side][nic].cq.poll() {
                    assert_eq!(completion.status, Status::Ok, "{completion:?}");
                    match completion.opcode {
                        Opcode::Receive => assert!(received.insert((side, completion.id))),
                        _ => completed[side] += 1,
                    }
                }
            }
            assert!(begin.elapsed() < common::SOON, "seed {seed}: {completed:?} of {PIECES}");
        }
        for side in 0..2 {
            let same = ends[side][nic].buffer == wanted[side][nic];
            assert!(same, "seed {seed}: node {side} NIC {nic}");
        }
    }
}

#[test]
fn any_operations_arrive_exactly_without_latency() {
    (0..12).for_each(|seed| any_operations(1_000 + seed, Model::instant()));
}

#[test]
fn any_operations_arrive_exactly_with_the_networks_latency() {
    let model = Model { tail_ppm: 20_000, ..Model::default() };
    (0..6).for_each(|seed| any_operations(2_000 + seed, model));
}

#[test]
fn a_write_can_be_acknowledged_before_it_is_visible() {
    const LATER: Duration = Duration::from_millis(300);
    let mut duo = Duo::new(Model { commit_ns: LATER.as_nanos() as u64, ..Model::instant() }, 200_000);
    pattern(5, &mut duo.a.buffer);
    let begin = std::time::Instant::now();
    duo.a.write(1, &duo.b, (0, 200_000), 0);
    duo.a.wait_ok();
    let acknowledged = begin.elapsed();
    while std::hint::black_box(&duo.a.buffer) != std::hint::black_box(&duo.b.buffer) {
        assert!(begin.elapsed() < common::SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(begin.elapsed() >= LATER && acknowledged < LATER, "{acknowledged:?} {:?}", begin.elapsed());
}

#[test]
fn an_immediate_comes_after_its_own_bytes_and_after_the_acknowledgement_if_that_is_early() {
    for commit_ns in [0, 5_000_000] {
        let net = Net::new(2, 1, Model { commit_ns, jitter_ns: 20_000, base_ns: 1_000, ..Model::instant() });
        let mut duo = Duo::of(net, 100_000, Flags { unsolicited_write_receive: true });
        for round in 1..20_u8 {
            duo.a.buffer.fill(round);
            let request = SendRequest {
                immediate: Some(round.into()),
                ..duo.a.request(Opcode::Write, 1, &duo.b, (0, 100_000), 0)
            };
            duo.a.qp.post_send(&[request]).unwrap();
            let told = duo.b.wait_ok();
            assert!(duo.b.buffer.iter().all(|byte| *byte == round), "round {round}");
            assert_eq!((told.immediate, told.bytes, told.id), (Some(round.into()), 100_000, 0));
            assert!(told.unsolicited && told.opcode == Opcode::ReceiveWrite);
            assert_eq!(told.from_handle, Some(0));
            duo.a.wait_ok();
        }
    }
}

#[test]
fn without_unsolicited_receives_an_immediate_uses_up_a_receive() {
    let duo = Duo::new(Model::instant(), 50_000);
    duo.b.receive(44, 0, 10);
    let request =
        |id| SendRequest { immediate: Some(9), ..duo.a.request(Opcode::Write, id, &duo.b, (0, 50_000), 0) };
    duo.a.qp.set_rnr_retry(0);
    duo.a.qp.post_send(&[request(1)]).unwrap();
    assert_eq!(duo.a.wait_ok().id, 1);
    let told = duo.b.wait_ok();
    assert_eq!((told.id, told.immediate, told.unsolicited), (44, Some(9), false));
    duo.a.qp.post_send(&[request(2)]).unwrap();
    assert_eq!(duo.a.wait().status, Status::RemoteNotReady);
}

#[test]
fn messages_and_their_packets_are_delivered_out_of_order_without_latency() {
    let duo = Duo::of(Net::new(2, 1, Model::instant()), 1 << 20, Flags { unsolicited_write_receive: true });
    let requests: Vec<SendRequest> = (0..64)
        .map(|i| SendRequest {
            immediate: Some(i as u32),
            ..duo.a.request(Opcode::Write, i, &duo.b, (0, 8), 0)
        })
        .collect();
    duo.a.qp.post_send(&requests).unwrap();
    let order: Vec<u32> = (0..64).map(|_| duo.b.wait_ok().immediate.unwrap()).collect();
    assert!(!order.is_sorted(), "{order:?}");
    let all: HashSet<u32> = order.into_iter().collect();
    assert_eq!(all.len(), 64);
}

#[test]
fn packets_of_one_message_leave_in_any_order_each_of_them_once() {
    const PACKETS: usize = 100;
    let net = Net::new(2, 1, Model::instant());
    let host = net.host(0);
    let a = End::new(&host, 0, 8928 * PACKETS);
    // A process that only looks at the wire.
    let looker = net.fabric.attach(1).unwrap();
    let at = NicIndex { node: 1, nic: 0 };
    let qpn = net.fabric.nic(at).unwrap().open_qp(looker).unwrap();
    let request =
        SendRequest { to: Some(at.gid()), qpn, ..a.request(Opcode::Write, 1, &a, (0, 8928 * PACKETS), 0) };
    a.qp.post_send(&[request]).unwrap();
    let sender = ProcessIndex::all().find(|at| *at != looker.process && net.fabric.process(*at).is_live());
    let ring = net.fabric.ring(sender.unwrap(), looker.process);
    let begin = std::time::Instant::now();
    let mut offsets = Vec::new();
    while offsets.len() < PACKETS {
        let _ = a.cq.poll();
        offsets.extend(std::iter::from_fn(|| ring.pop()).map(|packet| packet.offset as usize / 8928));
        assert!(begin.elapsed() < common::SOON, "{offsets:?}");
    }
    assert!(!offsets.is_sorted(), "{offsets:?}");
    offsets.sort_unstable();
    assert!(offsets.into_iter().eq(0..PACKETS));
}

#[test]
fn more_bytes_are_in_flight_than_there_are_slots_in_both_directions_at_once() {
    const BYTES: usize = 24 << 20;
    let mut duo = Duo::new(Model::instant(), 2 * BYTES);
    pattern(1, &mut duo.a.buffer[..BYTES]);
    pattern(2, &mut duo.b.buffer[..BYTES]);
    duo.a.write(1, &duo.b, (0, BYTES), BYTES);
    duo.b.write(2, &duo.a, (0, BYTES), BYTES);
    duo.a.wait_ok();
    duo.b.wait_ok();
    assert!(duo.a.buffer[..BYTES] == duo.b.buffer[BYTES..] && duo.b.buffer[..BYTES] == duo.a.buffer[BYTES..]);
    duo.a.read(3, &duo.b, (BYTES, BYTES), 0);
    duo.b.read(4, &duo.a, (BYTES, BYTES), 0);
    duo.a.wait_ok();
    duo.b.wait_ok();
}

#[test]
fn queue_pairs_of_one_process_reach_each_other_over_two_nics() {
    let net = Net::new(1, 2, Model::instant());
    let host = net.host(0);
    let (mut a, b) = (End::new(&host, 0, 100_000), End::new(&host, 1, 100_000));
    a.knows(&b);
    b.knows(&a);
    pattern(8, &mut a.buffer);
    a.write(1, &b, (0, 100_000), 0);
    a.wait_ok();
    assert_eq!(a.buffer, b.buffer);
}

#[test]
fn inline_bytes_are_those_at_the_time_of_the_post() {
    let duo = Duo::new(Model::instant(), 100);
    let mut bytes = [0; softefa_verbs::nic::INLINE_MAX];
    bytes[..32].copy_from_slice(&[5; 32]);
    let payload = Payload::Inline { len: 32, bytes };
    let request = SendRequest { payload, ..duo.a.request(Opcode::Send, 1, &duo.b, (0, 0), 0) };
    duo.b.receive(2, 10, 90);
    duo.a.qp.post_send(&[request]).unwrap();
    duo.a.wait_ok();
    assert_eq!(duo.b.wait_ok().bytes, 32);
    assert_eq!(duo.b.buffer[10..42], [5; 32]);
    let too_long = SendRequest { payload: Payload::Inline { len: 33, bytes }, ..request };
    assert_eq!(duo.a.qp.post_send(&[too_long]), Err(Limit::Beyond));
}
