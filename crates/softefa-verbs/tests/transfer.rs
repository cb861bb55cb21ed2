//! Bytes from one host to another.

mod common;

use common::{Duo, pattern};
use softefa_fabric::Model;
use softefa_verbs::nic::Opcode;

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
