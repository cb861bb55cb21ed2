//! Random faults that come and go under random operations: each operation ends exactly once, and afterwards everything works.

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::{End, Net};
use softefa_fabric::{Counter, Fault, FaultKind, Model, Scope};
use softefa_verbs::nic::{Flags, Opcode, ReceiveRequest, SendRequest, State, Status};

const NODES: usize = 3;
const NICS: usize = 2;
const BYTES: usize = 1 << 20;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn place(&mut self, n: usize) -> Option<u32> {
        let place = self.below(n as u64 + 1);
        (place < n as u64).then_some(place as u32)
    }
}

fn fault(random: &mut Random) -> Fault {
    let kinds = FaultKind::ALL;
    // A completion queue that has overflowed is lost for good: that has its own test.
    let kind = loop {
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        if kind != FaultKind::CqOverflow {
            break kind;
        }
    };
    let scope = Scope {
        node: random.place(NODES),
        nic: random.place(NICS),
        peer_node: random.place(NODES),
        peer_nic: random.place(NICS),
    };
    let amount = match kind {
        FaultKind::Delay => random.below(3_000_000),
        FaultKind::Rate => 200_000_000 + random.below(10_000_000_000),
        FaultKind::BlackHole | FaultKind::RailDown => random.below(2),
        _ => random.below(5_000_000),
    };
    Fault {
        amount,
        spread: random.below(500_000),
        after: random.below(4),
        count: if random.below(2) == 0 { u64::MAX } else { random.below(50) },
        probability_ppm: if random.below(2) == 0 { 1_000_000 } else { random.below(1_000_000) as u32 },
        ..Fault::new(kind, scope)
    }
}

/// What a node's queue pair has posted and not seen completed, by id.
type Posted = HashMap<u64, Opcode>;

fn poll(end: &End, posted: &mut Posted, ok: &mut u64) {
    while let Some(completion) = end.cq.poll() {
        if matches!(completion.opcode, Opcode::Receive | Opcode::ReceiveWrite) {
            continue;
        }
        let opcode = posted.remove(&completion.id);
        assert_eq!(opcode, Some(completion.opcode), "it ends once: {completion:?}");
        *ok += u64::from(completion.status == Status::Ok);
    }
}

fn schedule(seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let model = Model {
        unresponsive_ns: 4_000_000,
        retransmit_ns: 50_000,
        rnr_wait_ns: 50_000,
        commit_ns: if seed.is_multiple_of(3) { 100_000 } else { 0 },
        ..if seed.is_multiple_of(2) { Model::instant() } else { Model::default() }
    };
    let net = Net::new(NODES as u32, NICS, model);
    let hosts: Vec<_> = (0..NODES as u32).map(|node| net.host(node)).collect();
    let flags = Flags { unsolicited_write_receive: seed % 4 < 2 };
    let ends: Vec<End> = hosts
        .iter()
        .flat_map(|host| (0..NICS).map(|nic| End::with(host, nic, 2 * BYTES, 32_768, flags)))
        .collect();
    for (a, b) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
        a.knows(b);
        a.qp.set_rnr_retry((seed % 8) as u8);
    }
    let mut posted: Vec<Posted> = ends.iter().map(|_| HashMap::new()).collect();
    let (mut ok, mut id) = (0, 0);
    let mut active = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(150) {
        match random.below(12) {
            0 if active.len() < 6 => active.push(net.fabric.add_fault(&fault(&mut random)).unwrap()),
            1 if !active.is_empty() => {
                let at = random.below(active.len() as u64) as usize;
                net.fabric.clear_fault(active.swap_remove(at));
            }
            2 => {
                // A queue pair that is reset and set up again.
                let at = random.below(ends.len() as u64) as usize;
                if random.below(4) == 0 {
                    ends[at].qp.set_state(State::Err);
                    poll(&ends[at], &mut posted[at], &mut ok);
                    assert!(posted[at].is_empty(), "all were flushed: {:?}", posted[at]);
                    for state in [State::Reset, State::Init, State::Rtr, State::Rts] {
                        ends[at].qp.set_state(state);
                    }
                }
            }
            3 => {
                let end = &ends[random.below(ends.len() as u64) as usize];
                let _ = end.qp.post_receive(&ReceiveRequest { id: 1, into: end.segment(BYTES, 10_000) });
            }
            4..=8 => {
                let at = random.below(ends.len() as u64) as usize;
                let to = random.below(ends.len() as u64) as usize;
                // A NIC does not reach itself, and nobody says so.
                if at != to && posted[at].len() < 100 {
                    id += 1;
                    let opcode = [Opcode::Write, Opcode::Read, Opcode::Send][random.below(3) as usize];
                    let most = [100, 9_000, 300_000][random.below(3) as usize];
                    let len = random.below(if opcode == Opcode::Send { 8_928 } else { most }) as usize;
                    let immediate = (opcode != Opcode::Read && random.below(2) == 0).then_some(7);
                    let request =
                        SendRequest { immediate, ..ends[at].request(opcode, id, &ends[to], (0, len), BYTES) };
                    ends[at].qp.post_send(&[request]).unwrap();
                    posted[at].insert(id, opcode);
                }
            }
            _ => {
                for (end, posted) in ends.iter().zip(&mut posted) {
                    poll(end, posted, &mut ok);
                }
            }
        }
    }
    for id in active {
        net.fabric.clear_fault(id);
    }
    let end = Instant::now();
    while posted.iter().any(|posted| !posted.is_empty()) {
        for (end, posted) in ends.iter().zip(&mut posted) {
            // Those that wait for a receive get one.
            let _ = end.qp.post_receive(&ReceiveRequest { id: 1, into: end.segment(BYTES, 10_000) });
            poll(end, posted, &mut ok);
        }
        assert!(end.elapsed() < common::SOON, "seed {seed}: still posted: {posted:?}");
    }
    assert!(ok > 0);
    // More than all slots, over every pair of NICs: none is lost.
    for (at, a) in ends.iter().enumerate() {
        for (to, b) in ends.iter().enumerate().filter(|(to, _)| *to != at) {
            a.write((at * 100 + to) as u64, b, (0, BYTES), BYTES);
            while a.wait_ok().opcode != Opcode::Write {}
        }
    }
    let drops: u64 = net.fabric.nics().map(|(_, nic)| nic.counter(Counter::RxDrops)).sum();
    assert_eq!(drops, 0, "seed {seed}");
}

#[test]
fn every_operation_ends_once_whatever_faults_come_and_go() {
    let from = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let many = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    (from..from + many).for_each(schedule);
}
