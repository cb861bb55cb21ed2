//! A peer that is broken: whatever it puts on the wire, nothing panics, and nothing is written where it may not be.

mod common;

use std::time::{Duration, Instant};

use common::{Duo, End, QKEY, pattern};
use softefa_fabric::wire::{NO_SLOT, Packet};
use softefa_fabric::{Counter, Model, ProcessIndex};
use softefa_verbs::nic::Opcode;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number that is right, nearly right, or anything.
    fn near(&mut self, right: u64) -> u64 {
        match self.next() % 16 {
            0 => self.next(),
            1 => right.wrapping_add(self.next() % 5).wrapping_sub(2),
            2 => [0, 1, 0xff, 0xffff, 0xffff_ffff, u64::MAX][self.next() as usize % 6],
            _ => right,
        }
    }
}

#[test]
fn random_packets_never_panic_and_never_write_outside_of_registered_memory() {
    const BYTES: usize = 100_000;
    for seed in 1..=4 {
        println!("seed {seed}");
        let mut random = Random(seed * 0x9e37_79b9);
        let mut duo = Duo::new(Model::instant(), 3 * BYTES);
        // Only the middle is registered: what is around it must stay as it is.
        let around = duo.b.buffer.clone();
        duo.b.device.deregister(duo.b.key).unwrap();
        let addr = duo.b.addr(BYTES);
        duo.b.key = duo.b.device.register(common::PD, addr, BYTES as u64, addr, common::ALL_ACCESS).unwrap();
        let peer = End::new(&duo.hosts[1], 0, 1000);
        // The broken peer: a process of node 0 that writes packets itself.
        let owner = duo.net.fabric.attach(0).unwrap();
        let victim = ProcessIndex::all()
            .find(|at| duo.net.fabric.process(*at).is_live() && duo.net.fabric.process(*at).node() == 1)
            .unwrap();
        let ring = duo.net.fabric.ring(owner.process, victim);
        let mut pushed = 0;
        let begin = Instant::now();
        while pushed < 30_000 {
            if duo.b.cq.poll().is_some() || random.next().is_multiple_of(64) {
                let receive = softefa_verbs::nic::ReceiveRequest { id: 1, into: duo.b.segment(BYTES, 1000) };
                let _ = duo.b.qp.post_receive(&receive);
            }
            let total = [0_u64, 8, 100, 8928, 9000, 50_000][random.next() as usize % 6];
            let offset = if total > 8928 { 8928 * (random.next() % 6) } else { 0 };
            let length = total.saturating_sub(offset).min(8928);
            let packet = Packet {
                kind: random.near(1 + pushed % 6) as u8,
                flags: random.next() as u8 & 1,
                status: if random.next().is_multiple_of(8) { random.next() as u8 } else { 0 },
                from: random.near(owner.process.get() as u64) as u8,
                generation: random.near(owner.generation.into()) as u32,
                message: random.near(random.0 % 50),
                due_ns: if random.next().is_multiple_of(16) { random.next() } else { 0 },
                remote_addr: random.near(addr + random.0 % 1000),
                remote_key: random.near(duo.b.key.into()) as u32,
                total: random.near(total) as u32,
                offset: random.near(offset) as u32,
                length: random.near(length) as u32,
                immediate: random.next() as u32,
                from_qpn: random.next() as u32,
                to_qpn: random.near(duo.b.qp.number().into()) as u32,
                qkey: random.near(QKEY.into()) as u32,
                from_node: random.near(0) as u8,
                from_nic: random.near(0) as u8,
                to_node: random.near(1) as u8,
                to_nic: random.near(0) as u8,
                slot: random.near(if length > 56 { random.0 % 1024 } else { NO_SLOT.into() }) as u32,
                inline: [0xee; 56],
            };
            if ring.push(&packet) {
                pushed += 1;
            }
            duo.net.fabric.process(victim).notify(owner.process, softefa_fabric::clock::now_ns());
            assert!(begin.elapsed() < Duration::from_secs(60), "{pushed} of 30000");
        }
        // It still works for others.
        pattern(seed, &mut duo.a.buffer[..50_000]);
        duo.b
            .qp
            .post_receive(&softefa_verbs::nic::ReceiveRequest { id: 9, into: duo.b.segment(BYTES, 1000) })
            .ok();
        duo.a.qp.post_send(&[duo.a.request(Opcode::Write, 5, &duo.b, (0, 50_000), BYTES)]).unwrap();
        duo.a.wait_ok();
        assert!(duo.b.buffer[..BYTES] == around[..BYTES]);
        assert!(duo.b.buffer[2 * BYTES..] == around[2 * BYTES..]);
        assert!(duo.net.counter(1, 0, Counter::RxDrops) > 100);
        peer.close();
        duo.net.fabric.reap(owner);
    }
}
