//! Every fault, seen through plain libfabric calls and in the counters, with the same calls before it as a canary.

mod nodes;

use std::time::{Duration, Instant};

use nodes::pair::{DIRECT, EFA, Outcome, Pair};
use nodes::probe::Refusal;
use nodes::{Bench, Fabric};
use softefa_fabric::{Fault, FaultKind, Scope};

/// How long a peer may be silent in these tests before the device gives it up.
const UNRESPONSIVE: &[&str] = &["--unresponsive-after", "300ms"];
const LEN: u64 = 100_003;
/// Where the canary reads to: what it leaves there is the target's, and no write of these tests takes it from there.
const CANARY_READ_OFF: u64 = 3 << 20;
const SOON: Duration = Duration::from_secs(8);
/// Several times what an unresponsive peer is given.
const SILENCE: Duration = Duration::from_millis(1200);

/// Completion statuses of the device, which the provider passes on.
const BAD_ADDRESS: u64 = 7;
const BAD_DESTINATION: u64 = 9;
const RECEIVER_NOT_READY: u64 = 10;
const UNRESPONSIVE_REMOTE: u64 = 13;
const UNKNOWN_PEER: u64 = 14;
const UNREACHABLE_REMOTE: u64 = 15;
/// The efa protocol's own word for 13 (or 15) from a peer with which it has shaken hands.
const UNRESPONSIVE_ESTABLISHED: u64 = 4124;

const SIGABRT: i32 = 6;
const ENOMEM: i64 = -12;

fn at(kind: FaultKind, node: u32, nic: u32) -> Fault {
    Fault::new(kind, Scope { node: Some(node), nic: Some(nic), ..Scope::default() })
}

fn status(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Failed { prov_errno, .. } => *prov_errno,
        other => panic!("it was to fail: {other:?}"),
    }
}

/// A pair on the device's own operations, which have just worked.
fn healthy(bench: &Bench, options: &[&str]) -> (Fabric, Pair) {
    let fabric = bench.fabric(&[UNRESPONSIVE, options].concat());
    let mut pair = Pair::open(bench, &fabric, DIRECT);
    works(&mut pair, 0);
    (fabric, pair)
}

#[track_caller]
fn works(pair: &mut Pair, rail: u32) {
    assert_eq!(pair.run(rail, "write", 0, LEN), Outcome::Done);
    assert_eq!(pair.run(rail, "read", CANARY_READ_OFF, LEN), Outcome::Done);
    assert!(pair.target_has_ours(0, LEN) && pair.initiator_has_theirs(CANARY_READ_OFF, LEN));
}

/// What the counters of two ends say of a stretch of time.
struct Watch<'a> {
    fabric: &'a Fabric,
    before: Vec<(u32, &'static str, u64)>,
}

impl<'a> Watch<'a> {
    fn start(fabric: &'a Fabric) -> Self {
        let names = ["tx_pkts", "rx_pkts", "retrans_pkts", "unresponsive_remote_events", "rdma_write_wr_err"];
        let of = |node| names.map(|name| (node, name, fabric.counter(node, 0, name)));
        Self { fabric, before: [of(0), of(1)].concat() }
    }

    /// How much a counter of NIC 0 of `node` has grown.
    fn grew(&self, node: u32, name: &str) -> u64 {
        let before = self.before.iter().find(|(n, counter, _)| *n == node && *counter == name);
        self.fabric.counter(node, 0, name) - before.expect("it is watched").2
    }
}

#[test]
fn a_dead_rail_completes_with_unresponsive_remote_and_its_return_is_noticed() {
    let bench = bench!("a_dead_rail_completes_with_unresponsive_remote_and_its_return_is_noticed");
    let (fabric, mut pair) = healthy(&bench, &[]);
    let watch = Watch::start(&fabric);
    let dead = fabric.fault(at(FaultKind::RailDown, 1, 0));
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), UNRESPONSIVE_REMOTE);
    assert_eq!(status(&pair.run(0, "read", 0, LEN)), UNRESPONSIVE_REMOTE);
    assert!(watch.grew(0, "tx_pkts") > 0);
    assert_eq!(watch.grew(1, "rx_pkts"), 0);
    assert!(watch.grew(0, "unresponsive_remote_events") > 0);
    fabric.clear(dead);
    works(&mut pair, 0);
}

#[test]
fn one_of_ones_own_rails_can_die_alone() {
    let bench = bench!("one_of_ones_own_rails_can_die_alone");
    let fabric = bench.fabric(&[UNRESPONSIVE, &["--nics", "2"]].concat());
    let mut pair = Pair::open(&bench, &fabric, DIRECT.of(2));
    works(&mut pair, 0);
    works(&mut pair, 1);
    let sent = fabric.counter(0, 0, "tx_pkts");
    fabric.fault(at(FaultKind::RailDown, 0, 0));
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), UNRESPONSIVE_REMOTE);
    works(&mut pair, 1);
    assert_eq!(fabric.counter(0, 0, "tx_pkts"), sent, "a NIC that is down sends nothing");
}

#[test]
fn a_peer_that_was_never_heard_is_unreachable() {
    let bench = bench!("a_peer_that_was_never_heard_is_unreachable");
    let fabric = bench.fabric(UNRESPONSIVE);
    let dead = fabric.fault(at(FaultKind::RailDown, 1, 0));
    let mut pair = Pair::open(&bench, &fabric, DIRECT);
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), UNREACHABLE_REMOTE);
    fabric.clear(dead);
    works(&mut pair, 0);
}

#[test]
fn under_the_efa_protocol_a_dead_rail_has_the_providers_own_code() {
    let bench = bench!("under_the_efa_protocol_a_dead_rail_has_the_providers_own_code");
    let fabric = bench.fabric(UNRESPONSIVE);
    let mut pair = Pair::open(&bench, &fabric, EFA);
    works(&mut pair, 0);
    fabric.fault(at(FaultKind::RailDown, 1, 0));
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), UNRESPONSIVE_ESTABLISHED);
    assert!(fabric.counter(0, 0, "unresponsive_remote_events") > 0);
}

#[test]
fn under_the_efa_protocol_a_peer_that_was_never_met_speaks_through_the_event_queue_alone() {
    let bench =
        bench!("under_the_efa_protocol_a_peer_that_was_never_met_speaks_through_the_event_queue_alone");
    let fabric = bench.fabric(UNRESPONSIVE);
    fabric.fault(at(FaultKind::RailDown, 1, 0));
    let mut pair = Pair::open(&bench, &fabric, EFA);
    assert!(pair.event(0, Duration::from_millis(100)).is_none());
    let ctx = pair.post(0, "write", 0, LEN, "");
    let event = pair.event(0, SOON).expect("the event queue is silent");
    assert_eq!(event.number("prov_errno"), UNREACHABLE_REMOTE, "{event:?}");
    assert_eq!(pair.outcome(0, ctx, SILENCE), Outcome::Silent);
}

#[test]
fn a_black_hole_takes_one_direction_only() {
    let bench = bench!("a_black_hole_takes_one_direction_only");
    let (fabric, mut pair) = healthy(&bench, &[]);
    let watch = Watch::start(&fabric);
    let mut fault = at(FaultKind::BlackHole, 0, 0);
    (fault.scope.peer_node, fault.scope.peer_nic) = (Some(1), Some(0));
    let hole = fabric.fault(fault);
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), UNRESPONSIVE_REMOTE);
    assert!(watch.grew(0, "tx_pkts") > 0 && watch.grew(0, "retrans_pkts") > 0);
    assert_eq!(watch.grew(1, "rx_pkts"), 0);
    assert!(watch.grew(0, "unresponsive_remote_events") > 0);
    fabric.clear(hole);
    works(&mut pair, 0);
}

#[test]
fn what_a_silent_black_hole_took_ends_when_it_heals() {
    let bench = bench!("what_a_silent_black_hole_took_ends_when_it_heals");
    let (fabric, mut pair) = healthy(&bench, &[]);
    let watch = Watch::start(&fabric);
    let hole = fabric.fault(Fault { amount: 1, ..at(FaultKind::BlackHole, 0, 0) });
    let ctx = pair.post(0, "write", 2 << 20, LEN, "");
    assert_eq!(pair.outcome(0, ctx, SILENCE), Outcome::Silent);
    assert!(watch.grew(0, "tx_pkts") > 0);
    assert_eq!(watch.grew(1, "rx_pkts"), 0);
    assert_eq!(watch.grew(0, "unresponsive_remote_events"), 0);
    assert_eq!(watch.grew(0, "rdma_write_wr_err"), 0);
    fabric.clear(hole);
    assert_eq!(pair.outcome(0, ctx, SOON), Outcome::Done);
    assert!(pair.target_has_ours(2 << 20, LEN));
}

/// The signature of a missing rule: packets leave, none arrives, and no error is to be seen anywhere.
fn sends_into_nothing(bench: &Bench, fault: Fault) {
    let fabric = bench.fabric(UNRESPONSIVE);
    let rule = fabric.fault(fault);
    for rails in [EFA, DIRECT] {
        let mut pair = Pair::open(bench, &fabric, rails);
        let ctx = pair.post(0, "write", 0, LEN, "");
        assert_eq!(pair.outcome(0, ctx, SILENCE), Outcome::Silent, "{}", rails.fabric);
        assert!(pair.event(0, Duration::from_millis(50)).is_none());
    }
    assert!(fabric.counter(0, 0, "tx_pkts") > 0);
    assert_eq!(fabric.counter(1, 0, "rx_pkts"), 0);
    assert_eq!(fabric.counter(0, 0, "rx_pkts"), 0);
    for name in ["unresponsive_remote_events", "rdma_write_wr_err", "rdma_read_wr_err", "rx_drops"] {
        assert_eq!((fabric.counter(0, 0, name), fabric.counter(1, 0, name)), (0, 0), "{name}");
    }
    fabric.clear(rule);
    let mut pair = Pair::open(bench, &fabric, DIRECT);
    works(&mut pair, 0);
    assert!(fabric.counter(1, 0, "rx_pkts") > 0);
}

#[test]
fn a_security_group_without_egress_sends_into_nothing() {
    let bench = bench!("a_security_group_without_egress_sends_into_nothing");
    let scope = Scope { node: Some(0), ..Scope::default() };
    sends_into_nothing(&bench, Fault::new(FaultKind::NoEgress, scope));
}

#[test]
fn a_secondary_cidr_sends_into_nothing() {
    let bench = bench!("a_secondary_cidr_sends_into_nothing");
    let scope = Scope { node: Some(1), ..Scope::default() };
    sends_into_nothing(&bench, Fault::new(FaultKind::SecondaryCidr, scope));
}

#[test]
fn dropped_packets_are_sent_again_and_nothing_is_lost() {
    let bench = bench!("dropped_packets_are_sent_again_and_nothing_is_lost");
    let (fabric, mut pair) = healthy(&bench, &[]);
    assert_eq!(fabric.counter(0, 0, "retrans_pkts"), 0);
    fabric.fault(Fault { probability_ppm: 100_000, ..at(FaultKind::Drop, 0, 0) });
    for round in 0..20 {
        assert_eq!(pair.run(0, "write", round * LEN, LEN), Outcome::Done);
        assert!(pair.target_has_ours(round * LEN, LEN), "round {round}");
    }
    assert!(fabric.counter(0, 0, "retrans_pkts") > 0);
    assert!(fabric.counter(0, 0, "retrans_bytes") > 0);
    assert_eq!(fabric.counter(0, 0, "unresponsive_remote_events"), 0);
}

#[test]
fn a_delay_is_felt_by_every_operation() {
    let bench = bench!("a_delay_is_felt_by_every_operation");
    let (fabric, mut pair) = healthy(&bench, &[]);
    let delay = Duration::from_millis(60);
    fabric.fault(Fault { amount: delay.as_nanos() as u64, ..at(FaultKind::Delay, 0, 0) });
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(pair.run(0, "write", 0, 64), Outcome::Done);
        assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    }
    assert_eq!(fabric.counter(0, 0, "retrans_pkts"), 0, "late is not lost");
}

#[test]
fn a_rate_bounds_what_a_nic_sends() {
    let bench = bench!("a_rate_bounds_what_a_nic_sends");
    let (fabric, mut pair) = healthy(&bench, &[]);
    // 2 MB at 64 Mb/s are a quarter of a second.
    let slow = fabric.fault(Fault { amount: 64_000_000, ..at(FaultKind::Rate, 0, 0) });
    let began = Instant::now();
    assert_eq!(pair.run(0, "write", 0, 2_000_000), Outcome::Done);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    assert!(pair.target_has_ours(0, 2_000_000));
    fabric.clear(slow);
    works(&mut pair, 0);
}

/// A fault that fails operations at once with a status, and counts them.
fn fails_with(bench: &Bench, kind: FaultKind, expected: u64) {
    let (fabric, mut pair) = healthy(bench, &[]);
    let watch = Watch::start(&fabric);
    let fault = fabric.fault(at(kind, 0, 0));
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), expected);
    assert_eq!(status(&pair.run(0, "read", 0, LEN)), expected);
    assert_eq!(watch.grew(0, "rdma_write_wr_err"), 1);
    fabric.clear(fault);
    works(&mut pair, 0);
}

#[test]
fn a_key_that_went_bad_fails_with_bad_address() {
    let bench = bench!("a_key_that_went_bad_fails_with_bad_address");
    fails_with(&bench, FaultKind::BadKey, BAD_ADDRESS);
}

#[test]
fn a_handle_that_is_missing_fails_with_unknown_peer() {
    let bench = bench!("a_handle_that_is_missing_fails_with_unknown_peer");
    fails_with(&bench, FaultKind::MissingHandle, UNKNOWN_PEER);
}

#[test]
fn a_peer_that_was_restarted_fails_with_bad_destination() {
    let bench = bench!("a_peer_that_was_restarted_fails_with_bad_destination");
    fails_with(&bench, FaultKind::PeerRestarted, BAD_DESTINATION);
}

#[test]
fn a_peer_process_that_was_killed_fails_with_bad_destination() {
    let bench = bench!("a_peer_process_that_was_killed_fails_with_bad_destination");
    let (_fabric, mut pair) = healthy(&bench, &[]);
    pair.kill_target();
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), BAD_DESTINATION);
}

#[test]
fn a_receiver_that_is_never_ready_uses_up_the_retries() {
    let bench = bench!("a_receiver_that_is_never_ready_uses_up_the_retries");
    let fabric = bench.fabric(UNRESPONSIVE);
    let mut rails = DIRECT;
    rails.options = "rx_cq_data=1 rnr_retry=2";
    let mut pair = Pair::open(&bench, &fabric, rails);
    works(&mut pair, 0);
    let fault = fabric.fault(at(FaultKind::NotReady, 0, 0));
    pair.target.tell("post op=recv rail=0 ctx=1 buf=0 off=0 len=4096");
    pair.initiator.tell("post op=send rail=0 ctx=50 buf=0 off=0 len=100 peer=0");
    assert_eq!(status(&pair.outcome(0, 50, SOON)), RECEIVER_NOT_READY);
    assert!(pair.at_target(0, 1, Duration::from_millis(100)).is_empty());
    fabric.clear(fault);
    pair.initiator.tell("post op=send rail=0 ctx=51 buf=0 off=0 len=100 peer=0");
    assert_eq!(pair.outcome(0, 51, SOON), Outcome::Done);
    assert_eq!(pair.at_target(0, 1, SOON).len(), 1);
}

#[test]
fn unreachable_and_unresponsive_come_after_their_own_time() {
    let bench = bench!("unreachable_and_unresponsive_come_after_their_own_time");
    // The model's own time is far away: what ends the operations is the fault's.
    let fabric = bench.fabric(&["--unresponsive-after", "60s"]);
    let mut pair = Pair::open(&bench, &fabric, DIRECT);
    works(&mut pair, 0);
    let after = Duration::from_millis(200);
    for (kind, expected) in
        [(FaultKind::Unreachable, UNREACHABLE_REMOTE), (FaultKind::Unresponsive, UNRESPONSIVE_REMOTE)]
    {
        let fault = fabric.fault(Fault { amount: after.as_nanos() as u64, ..at(kind, 0, 0) });
        let began = Instant::now();
        assert_eq!(status(&pair.run(0, "write", 0, LEN)), expected, "{kind}");
        assert!(began.elapsed() >= after, "{kind}: {:?}", began.elapsed());
        fabric.clear(fault);
    }
    works(&mut pair, 0);
}

#[test]
fn registrations_run_out_with_enomem() {
    let bench = bench!("registrations_run_out_with_enomem");
    let (fabric, mut pair) = healthy(&bench, &[]);
    for buffer in 1..=4 {
        pair.initiator.tell(&format!("buffer buf={buffer} len=65536"));
    }
    let fault = fabric.fault(Fault { after: 2, ..at(FaultKind::NoRegistration, 0, 0) });
    pair.initiator.tell("mr rail=0 buf=1");
    pair.initiator.tell("mr rail=0 buf=2");
    let refused = pair.initiator.try_tell("mr rail=0 buf=3");
    assert!(matches!(&refused, Err(Refusal::Failed { rc: ENOMEM, .. })), "{refused:?}");
    assert!(fabric.device_counter(0, 0, "reg_mr_err") > 0);
    works(&mut pair, 0);
    fabric.clear(fault);
    pair.initiator.tell("mr rail=0 buf=4");
}

#[test]
fn a_completion_queue_that_overflows_loses_completions_and_says_so() {
    let bench = bench!("a_completion_queue_that_overflows_loses_completions_and_says_so");
    let (fabric, mut pair) = healthy(&bench, &[]);
    fabric.fault(Fault { amount: 16, ..at(FaultKind::CqOverflow, 0, 0) });
    let (base, key, count) = (pair.target_base(), pair.target_keys[0], 200);
    pair.initiator.tell("idle progress=0");
    pair.initiator.tell(&format!(
        "post op=write rail=0 ctx=0 buf=0 off=0 len=64 stride=64 count={count} peer=0 raddr={base} rkey={key}"
    ));
    std::thread::sleep(Duration::from_millis(300));
    let answer = pair.initiator.tell(&format!("poll rail=0 want={count} ms=1000"));
    assert!(answer.last.number("comps") < count, "{:?}", answer.last);
}

#[test]
fn a_fault_bites_as_often_and_as_long_as_it_was_told() {
    let bench = bench!("a_fault_bites_as_often_and_as_long_as_it_was_told");
    let (fabric, mut pair) = healthy(&bench, &[]);
    fabric.fault(Fault { count: 2, ..at(FaultKind::BadKey, 0, 0) });
    for _ in 0..2 {
        assert_eq!(status(&pair.run(0, "write", 0, LEN)), BAD_ADDRESS);
    }
    works(&mut pair, 0);
    let ends = softefa_fabric::clock::now_ns() + 300_000_000;
    fabric.fault(Fault { until_ns: ends, ..at(FaultKind::BadKey, 0, 0) });
    assert_eq!(status(&pair.run(0, "write", 0, LEN)), BAD_ADDRESS);
    std::thread::sleep(Duration::from_millis(350));
    works(&mut pair, 0);
}

#[test]
fn without_an_event_queue_the_efa_protocol_ends_the_process_when_a_peer_is_never_met() {
    let bench = bench!("without_an_event_queue_the_efa_protocol_ends_the_process_when_a_peer_is_never_met");
    let fabric = bench.fabric(UNRESPONSIVE);
    let mut rails = EFA;
    rails.options = "eq=0";
    let mut pair = Pair::open(&bench, &fabric, rails);
    works(&mut pair, 0);
    let mut pair = Pair::open(&bench, &fabric, rails);
    fabric.fault(at(FaultKind::RailDown, 1, 0));
    let ended = pair.try_run(0, "write", 0, LEN);
    let signal = ended.as_ref().err().and_then(Refusal::signal);
    assert_eq!(signal, Some(SIGABRT), "{ended:?}");
}
