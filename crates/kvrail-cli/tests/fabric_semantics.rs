//! What a healthy emulated fabric does to plain libfabric calls: operations, immediates, messages, keys, visibility.

mod nodes;

use std::time::Duration;

use nodes::pair::{BUFFER_BYTES, DIRECT, EFA, OURS, Outcome, Pair};
use nodes::probe::Refusal;

/// Neither a packet's length nor a page's.
const ODD: u64 = 1_000_003;
const SOON: Duration = Duration::from_secs(5);
/// Long enough that what was going to come has come.
const QUIET: Duration = Duration::from_millis(300);
/// What `fi_getinfo` says when there is no such endpoint.
const NOT_OFFERED: i64 = -61;
/// Completion status "the remote key is not valid there" and the error that libfabric makes of it.
const BAD_ADDRESS: Outcome = Outcome::Failed { err: 22, prov_errno: 7 };

#[test]
fn every_nic_is_a_domain_of_both_fabrics() {
    let bench = bench!("every_nic_is_a_domain_of_both_fabrics");
    let fabric = bench.fabric(&["--nics", "4"]);
    let mut probe = fabric.probe(&bench, 0);
    for asked in [EFA, DIRECT] {
        let answer = probe.tell(&format!("info fabric={} {}", asked.fabric, asked.options));
        let domains: Vec<_> = answer.of_kind("item").map(|item| item.text("domain").to_owned()).collect();
        let expected: Vec<_> = (0..4).map(|nic| format!("{}-rdm", fabric.device(nic))).collect();
        assert_eq!(domains, expected, "{}", asked.fabric);
    }
}

#[test]
fn writes_and_reads_move_every_byte_to_its_place() {
    let bench = bench!("writes_and_reads_move_every_byte_to_its_place");
    let fabric = bench.fabric(&["--nics", "2"]);
    for rails in [EFA.of(2), DIRECT.of(2)] {
        let mut pair = Pair::open(&bench, &fabric, rails);
        for rail in 0..2 {
            let off = 17 + u64::from(rail) * ODD;
            assert_eq!(pair.run(rail, "write", off, ODD), Outcome::Done, "{}", rails.fabric);
        }
        assert!(pair.target_has_ours(17, 2 * ODD));
        assert_eq!(pair.run(1, "read", 3 * ODD, ODD), Outcome::Done);
        assert!(pair.initiator_has_theirs(3 * ODD, ODD));
    }
}

#[test]
fn the_counters_of_both_ends_count_what_was_moved() {
    let bench = bench!("the_counters_of_both_ends_count_what_was_moved");
    let fabric = bench.fabric(&[]);
    let mut pair = Pair::open(&bench, &fabric, DIRECT);
    assert_eq!(pair.run(0, "write", 0, ODD), Outcome::Done);
    assert_eq!(pair.run(0, "read", 0, 2 * ODD), Outcome::Done);
    assert_eq!(fabric.counter(0, 0, "rdma_write_wrs"), 1);
    assert_eq!(fabric.counter(0, 0, "rdma_write_bytes"), ODD);
    assert_eq!(fabric.counter(0, 0, "rdma_read_wrs"), 1);
    assert_eq!(fabric.counter(0, 0, "rdma_read_bytes"), 2 * ODD);
    assert_eq!(fabric.counter(1, 0, "rdma_write_recv_bytes"), ODD);
    assert_eq!(fabric.counter(1, 0, "rdma_read_resp_bytes"), 2 * ODD);
    for node in 0..2 {
        for (name, least) in
            [("tx_bytes", ODD), ("rx_bytes", ODD), ("tx_pkts", ODD / 8928), ("rx_pkts", ODD / 8928)]
        {
            let counted = fabric.counter(node, 0, name);
            assert!(counted >= least, "node {node} {name}: {counted}");
        }
        for name in ["unresponsive_remote_events", "rdma_write_wr_err", "rdma_read_wr_err", "rx_drops"] {
            assert_eq!(fabric.counter(node, 0, name), 0, "node {node} {name}");
        }
    }
}

#[test]
fn an_immediate_arrives_once_and_after_its_own_bytes() {
    let bench = bench!("an_immediate_arrives_once_and_after_its_own_bytes");
    let fabric = bench.fabric(&[]);
    for rails in [EFA, DIRECT] {
        let mut pair = Pair::open(&bench, &fabric, rails);
        for round in 0..20_u64 {
            pair.target.tell(&format!("post op=recv rail=0 ctx={round} buf=0 off=0 len=64"));
            let (off, data) = (64 + round * 70_001, 0xabc0_0000 + round);
            let ctx = pair.post(0, "writedata", off, 70_001, &format!("data={data}"));
            let arrived = pair.at_target(0, 1, SOON);
            assert_eq!(arrived.len(), 1, "{}: {arrived:?}", rails.fabric);
            assert_eq!((arrived[0].kind.as_str(), arrived[0].number("data")), ("comp", data));
            assert!(pair.target_has_ours(off, 70_001), "{}: round {round}", rails.fabric);
            assert_eq!(pair.outcome(0, ctx, SOON), Outcome::Done);
        }
        assert!(pair.at_target(0, 1, QUIET).is_empty());
    }
}

#[test]
fn an_immediate_waits_for_a_receive_that_is_posted_later() {
    let bench = bench!("an_immediate_waits_for_a_receive_that_is_posted_later");
    let fabric = bench.fabric(&[]);
    let mut pair = Pair::open(&bench, &fabric, DIRECT);
    let ctx = pair.post(0, "writedata", 64, 4096, "data=7");
    assert!(pair.at_target(0, 1, QUIET).is_empty());
    pair.target.tell("post op=recv rail=0 ctx=3 buf=0 off=0 len=64");
    let arrived = pair.at_target(0, 1, SOON);
    assert_eq!(arrived.len(), 1, "{arrived:?}");
    assert_eq!((arrived[0].text("ctx"), arrived[0].number("data")), ("3", 7));
    assert_eq!(pair.outcome(0, ctx, SOON), Outcome::Done);
}

#[test]
fn an_unsolicited_immediate_needs_no_receive() {
    let bench = bench!("an_unsolicited_immediate_needs_no_receive");
    let fabric = bench.fabric(&[]);
    let asked = fabric.probe(&bench, 0).try_tell("info fabric=efa-direct");
    if let Err(Refusal::Failed { rc: NOT_OFFERED, .. }) = asked {
        nodes::note("an_unsolicited_immediate_needs_no_receive: this libfabric was compiled without them");
        return;
    }
    let mut rails = DIRECT;
    rails.options = "";
    let mut pair = Pair::open(&bench, &fabric, rails);
    for round in 0..20_u64 {
        let off = round * 70_001;
        let ctx = pair.post(0, "writedata", off, 70_001, &format!("data={round}"));
        let arrived = pair.at_target(0, 1, SOON);
        assert_eq!(arrived.len(), 1, "round {round}: {arrived:?}");
        assert_eq!((arrived[0].text("ctx"), arrived[0].number("data")), ("none", round));
        assert!(pair.target_has_ours(off, 70_001), "round {round}");
        assert_eq!(pair.outcome(0, ctx, SOON), Outcome::Done);
    }
}

#[test]
fn messages_of_all_sizes_arrive_whole() {
    let bench = bench!("messages_of_all_sizes_arrive_whole");
    let fabric = bench.fabric(&[]);
    // The device's own limit for a message is its packet; above it the efa protocol splits, or reads from the sender.
    for (rails, sizes) in [(DIRECT, &[1, 32, 4096, 8900][..]), (EFA, &[0, 1, 4096, 9000, 70_001, ODD])] {
        let mut pair = Pair::open(&bench, &fabric, rails);
        for (round, len) in sizes.iter().copied().enumerate() {
            pair.target.tell(&format!("post op=recv rail=0 ctx={round} buf=0 off=0 len={ODD}"));
            pair.initiator.tell(&format!("post op=send rail=0 ctx=9 buf=0 off=0 len={len} peer=0"));
            let arrived = pair.at_target(0, 1, SOON);
            assert_eq!(arrived.len(), 1, "{} {len}: {arrived:?}", rails.fabric);
            assert_eq!((arrived[0].kind.as_str(), arrived[0].number("len")), ("comp", len), "{arrived:?}");
            assert!(pair.target_has_ours(0, len), "{} {len}", rails.fabric);
            assert_eq!(pair.outcome(0, 9, SOON), Outcome::Done);
        }
    }
}

#[test]
fn delivery_complete_means_that_the_bytes_are_there() {
    let bench = bench!("delivery_complete_means_that_the_bytes_are_there");
    let fabric = bench.fabric(&[]);
    let mut pair = Pair::open(&bench, &fabric, EFA);
    for round in 0..20 {
        let off = round * 70_001;
        let ctx = pair.post(0, "write", off, 70_001, "dc=1");
        assert_eq!(pair.outcome(0, ctx, SOON), Outcome::Done);
        assert!(pair.target_has_ours(off, 70_001), "round {round}");
    }
}

#[test]
fn a_bad_key_fails_the_operation_and_touches_nothing() {
    let bench = bench!("a_bad_key_fails_the_operation_and_touches_nothing");
    let fabric = bench.fabric(&[]);
    for rails in [EFA, DIRECT] {
        let mut pair = Pair::open(&bench, &fabric, rails);
        let key = pair.target_keys[0] ^ 0x5555;
        for op in ["write", "read"] {
            let ctx = pair.post_with_key(0, op, 0, 4096, key, "");
            assert_eq!(pair.outcome(0, ctx, SOON), BAD_ADDRESS, "{} {op}", rails.fabric);
        }
        assert_eq!(pair.run(0, "write", BUFFER_BYTES - 4096, 4096), Outcome::Done);
        let beyond = BUFFER_BYTES - 2048;
        let base = pair.target_base() + beyond;
        let key = pair.target_keys[0];
        pair.initiator.tell(&format!(
            "post op=write rail=0 ctx=77 buf=0 off=0 len=4096 peer=0 raddr={base} rkey={key}"
        ));
        assert_eq!(pair.outcome(0, 77, SOON), BAD_ADDRESS, "{} beyond the region", rails.fabric);
        assert!(!pair.target_has_ours(0, 4096));
        assert!(pair.initiator.tell(&format!("verify buf=0 seed={OURS}")).last.number("same") == 1);
    }
    assert_eq!(fabric.counter(0, 0, "rdma_write_wr_err"), 4);
    assert_eq!(fabric.counter(0, 0, "rdma_read_wr_err"), 2);
}

#[test]
fn a_key_is_good_on_its_own_nic_only() {
    let bench = bench!("a_key_is_good_on_its_own_nic_only");
    let fabric = bench.fabric(&["--nics", "2"]);
    let mut pair = Pair::open(&bench, &fabric, DIRECT.of(2));
    let key_of_rail_1 = pair.target_keys[1];
    let ctx = pair.post_with_key(0, "write", 0, 4096, key_of_rail_1, "");
    assert_eq!(pair.outcome(0, ctx, SOON), BAD_ADDRESS);
    assert_eq!(pair.run(1, "write", 0, 4096), Outcome::Done);
}

#[test]
fn a_closed_registration_is_a_bad_key() {
    let bench = bench!("a_closed_registration_is_a_bad_key");
    let fabric = bench.fabric(&[]);
    let mut pair = Pair::open(&bench, &fabric, DIRECT);
    assert_eq!(pair.run(0, "write", 0, 4096), Outcome::Done);
    pair.target.tell("mr_close rail=0 buf=0");
    assert_eq!(pair.run(0, "write", 0, 4096), BAD_ADDRESS);
}

#[test]
fn a_target_that_does_not_know_the_initiator_refuses_rdma() {
    let bench = bench!("a_target_that_does_not_know_the_initiator_refuses_rdma");
    let fabric = bench.fabric(&[]);
    let mut rails = DIRECT;
    rails.target_knows_initiator = false;
    let mut pair = Pair::open(&bench, &fabric, rails);
    let Outcome::Failed { prov_errno, .. } = pair.run(0, "write", 0, 4096) else {
        panic!("a stranger's write was let through");
    };
    assert_eq!(prov_errno, 14);
    // A message may come from a stranger: it is how peers meet.
    pair.target.tell("post op=recv rail=0 ctx=1 buf=0 off=0 len=4096");
    pair.initiator.tell("post op=send rail=0 ctx=5 buf=0 off=0 len=100 peer=0");
    assert_eq!(pair.at_target(0, 1, SOON).len(), 1);
    assert_eq!(pair.outcome(0, 5, SOON), Outcome::Done);
}

#[test]
fn a_nic_does_not_reach_itself() {
    let bench = bench!("a_nic_does_not_reach_itself");
    let fabric = bench.fabric(&[]);
    let mut probe = fabric.probe(&bench, 0);
    probe.tell("open rail=0 nic=0 fabric=efa-direct rx_cq_data=1");
    let name = probe.tell("name rail=0").last.text("addr").to_owned();
    probe.tell(&format!("av rail=0 addr={name}"));
    probe.tell("buffer buf=0 len=8192 seed=1");
    let key = probe.tell("mr rail=0 buf=0").last.number("key");
    let base = probe.tell("buffer buf=1 len=8192 seed=2").last.number("addr");
    let _ = (key, base);
    probe.tell("post op=recv rail=0 ctx=1 buf=0 off=4096 len=4096");
    probe.tell("post op=send rail=0 ctx=2 buf=0 off=0 len=64 peer=0");
    let answer = probe.tell("poll rail=0 want=1 ms=500");
    assert!(answer.lines.is_empty(), "{:?}", answer.lines);
}

#[test]
fn two_processes_on_one_node_share_its_nic_and_its_counters() {
    let bench = bench!("two_processes_on_one_node_share_its_nic_and_its_counters");
    let fabric = bench.fabric(&[]);
    let mut one = Pair::open(&bench, &fabric, DIRECT);
    let mut two = Pair::open(&bench, &fabric, DIRECT);
    assert_eq!(one.run(0, "write", 0, ODD), Outcome::Done);
    assert_eq!(two.run(0, "write", 0, ODD), Outcome::Done);
    assert!(one.target_has_ours(0, ODD) && two.target_has_ours(0, ODD));
    assert_eq!(fabric.counter(0, 0, "rdma_write_wrs"), 2);
    assert_eq!(fabric.counter(1, 0, "rdma_write_recv_bytes"), 2 * ODD);
}

#[test]
fn a_deep_queue_of_writes_ends_in_full() {
    let bench = bench!("a_deep_queue_of_writes_ends_in_full");
    let fabric = bench.fabric(&[]);
    for rails in [EFA, DIRECT] {
        let mut pair = Pair::open(&bench, &fabric, rails);
        let base = pair.target_base();
        let key = pair.target_keys[0];
        // More than a send queue holds: the probe polls and tries again on EAGAIN.
        let (count, len) = (6000, 512);
        pair.initiator.tell(&format!(
            "post op=write rail=0 ctx=0 buf=0 off=0 len={len} stride={len} count={count} peer=0 raddr={base} rkey={key} ms=20000"
        ));
        let answer = pair.initiator.tell(&format!("poll rail=0 want={count} ms=20000"));
        assert_eq!(answer.last.number("comps"), count, "{}: {:?}", rails.fabric, answer.last);
        let mut seen: Vec<u64> = answer.of_kind("comp").map(|line| line.number("ctx")).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len() as u64, count, "{}: a completion came twice", rails.fabric);
        assert!(pair.target_has_ours(0, count * len));
    }
}
