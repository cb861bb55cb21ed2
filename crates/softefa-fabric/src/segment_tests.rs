//! Tests of the segment.

use super::*;
use crate::wire::{NO_SLOT, Packet, PacketKind, RING_ENTRIES};
use crate::{Counter, FaultKind, Scope};

fn spec(nodes: u32, nics: usize) -> Spec {
    let nics =
        (0..nics).map(|i| NicSpec { name: format!("rdmap{i}s0"), rate_bps: 100_000_000_000 }).collect();
    Spec { nodes, nics, seed: 7, model: Model::default(), limits: Limits::default() }
}

fn fabric(nodes: u32, nics: usize) -> (tempfile::TempDir, Fabric) {
    let dir = tempfile::tempdir().unwrap();
    let fabric = Fabric::create(&dir.path().join(crate::SEGMENT_FILE), &spec(nodes, nics)).unwrap();
    (dir, fabric)
}

fn packet(message: u64) -> Packet {
    // SAFETY: a packet is integers.
    let zero: Packet = unsafe { core::mem::zeroed() };
    Packet { kind: PacketKind::Write as u8, message, slot: NO_SLOT, ..zero }
}

#[test]
fn what_one_mapping_says_another_hears() {
    let (dir, one) = fabric(2, 32);
    let two = Fabric::open(dir.path()).unwrap();
    let at = NicIndex { node: 1, nic: 31 };
    one.nic(at).unwrap().count(Counter::TxBytes, 5);
    assert_eq!(two.nic(at).unwrap().counter(Counter::TxBytes), 5);
    assert_eq!(two.nic(at).unwrap().name(), "rdmap31s0");
    assert_eq!(two.model(), Model::default());
    assert_eq!(two.nics().count(), 64);
    assert!(two.nic(NicIndex { node: 2, nic: 0 }).is_none());
    let before = two.generation();
    let id = one.add_fault(&Fault::new(FaultKind::RailDown, Scope::default())).unwrap();
    assert_ne!(two.generation(), before);
    assert_eq!(two.faults()[0].id, id);
    assert!(two.clear_fault(id) && !two.clear_fault(id) && one.faults().is_empty());
}

#[test]
fn a_ring_keeps_every_packet_in_order_and_refuses_when_full() {
    let (_dir, fabric) = fabric(1, 1);
    let (a, b) = (ProcessIndex::new(0).unwrap(), ProcessIndex::new(63).unwrap());
    let ring = fabric.ring(a, b);
    for round in 0..3_u64 {
        for i in 0..RING_ENTRIES as u64 {
            assert!(ring.push(&packet(round << 32 | i)));
        }
        assert!(!ring.push(&packet(0)));
        for i in 0..RING_ENTRIES as u64 {
            assert_eq!(ring.pop().unwrap().message, round << 32 | i);
        }
        assert!(ring.pop().is_none());
    }
    assert!(fabric.ring(b, a).is_empty());
}

#[test]
fn a_process_that_is_gone_leaves_no_queue_pair_and_no_region() {
    let (_dir, fabric) = fabric(1, 2);
    let owner = fabric.attach(0).unwrap();
    let nic = fabric.nic(NicIndex { node: 0, nic: 1 }).unwrap();
    let qpn = nic.open_qp(owner).unwrap();
    assert!(nic.take_region(owner.process, 10, 1, 10));
    assert!(!nic.take_region(owner.process, 1, 1, 100));
    assert!(fabric.is_live(owner));
    fabric.process(owner.process).pid.store(u32::MAX, Ordering::Relaxed);
    assert_eq!(fabric.reap_dead(), 1);
    assert!(!fabric.is_live(owner));
    assert_eq!((nic.qp(qpn), nic.regions()), (None, 0));
    let next = fabric.attach(0).unwrap();
    assert_ne!(next, owner, "a slot rests before it is given again");
}

#[test]
fn the_table_of_processes_has_an_end_and_says_so() {
    let (_dir, fabric) = fabric(1, 1);
    for _ in 0..PROCESSES_MAX {
        fabric.attach(0).unwrap();
    }
    assert!(matches!(fabric.attach(0), Err(FabricError::TooManyProcesses)));
    assert!(matches!(fabric.attach(1), Err(FabricError::NoSuchNode { node: 1, nodes: 1 })));
}

#[test]
fn a_file_that_is_no_fabric_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(crate::SEGMENT_FILE);
    assert!(matches!(Fabric::open(dir.path()), Err(FabricError::Io { .. })));
    for len in [0, 1, 4096, 1 << 20] {
        std::fs::write(&path, vec![0x5a; len]).unwrap();
        assert!(matches!(Fabric::open(dir.path()), Err(FabricError::Foreign { .. })), "{len}");
    }
    std::fs::remove_file(&path).unwrap();
    for (nodes, nics) in [(0, 1), (1, 0), (17, 1), (1, 65)] {
        assert!(matches!(Fabric::create(&path, &spec(nodes, nics)), Err(FabricError::Invalid { .. })));
        assert!(!path.exists());
    }
}

#[test]
fn a_fault_bites_after_so_many_and_so_often() {
    let (_dir, fabric) = fabric(1, 1);
    let fault = Fault { after: 2, count: 3, ..Fault::new(FaultKind::BadKey, Scope::default()) };
    let id = fabric.add_fault(&fault).unwrap();
    let bites: Vec<bool> = (0..7).map(|_| fabric.fault_bites(id, 1)).collect();
    assert_eq!(bites, [false, false, true, true, true, false, false]);
    assert_eq!(fabric.faults()[0].hits, 3);
}
