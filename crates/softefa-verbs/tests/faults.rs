//! What goes wrong, and how operations end then.

mod common;

use std::time::{Duration, Instant};

use common::{ALL_ACCESS, Duo, End, Net, PD, QKEY, forward, pattern};
use softefa_fabric::{Counter, Fault, FaultKind, Model, NicIndex, Scope};
use softefa_verbs::nic::{AsyncEvent, Flags, Opcode, ReceiveRequest, SendRequest, State, Status};

/// Gives up after 50 ms, and retries quickly.
fn impatient() -> Model {
    Model { unresponsive_ns: 50_000_000, retransmit_ns: 200_000, rnr_wait_ns: 1_000_000, ..Model::instant() }
}

const MS: Duration = Duration::from_millis(1);

fn write_ends(duo: &Duo, change: impl Fn(&mut SendRequest)) -> Status {
    let mut request = duo.a.request(Opcode::Write, 1, &duo.b, (0, 100), 0);
    change(&mut request);
    duo.a.qp.post_send(&[request]).unwrap();
    duo.a.wait().status
}

#[test]
fn a_wrong_key_ends_with_remote_bad_address_and_touches_nothing() {
    let mut duo = Duo::new(Model::instant(), 30_000);
    duo.a.buffer.fill(1);
    assert_eq!(write_ends(&duo, |request| request.remote_key ^= 1 << 20), Status::RemoteBadAddress);
    assert_eq!(write_ends(&duo, |request| request.remote_addr += 30_000), Status::RemoteBadAddress);
    assert_eq!(write_ends(&duo, |request| request.remote_addr -= 1), Status::RemoteBadAddress);
    assert_eq!(write_ends(&duo, |request| request.remote_addr = u64::MAX - 3), Status::RemoteBadAddress);
    // Of several packets, of which the first ones would fit.
    let request = duo.a.request(Opcode::Write, 1, &duo.b, (0, 30_000), 1);
    duo.a.qp.post_send(&[request]).unwrap();
    assert_eq!(duo.a.wait().status, Status::RemoteBadAddress);
    let request = duo.a.request(Opcode::Read, 1, &duo.b, (0, 30_000), 1);
    duo.a.qp.post_send(&[request]).unwrap();
    assert_eq!(duo.a.wait().status, Status::RemoteBadAddress);
    assert!(duo.b.buffer.iter().all(|byte| *byte == 0));
    assert_eq!(duo.net.counter(0, 0, Counter::WriteErrors), 5);
    assert_eq!(duo.net.counter(0, 0, Counter::ReadErrors), 1);
}

#[test]
fn another_nics_key_and_another_domains_key_are_wrong_keys() {
    let duo = Duo::new(Model::instant(), 1000);
    let bytes = vec![0_u8; 1000];
    let addr = bytes.as_ptr() as u64;
    let other_nic = duo.hosts[1].devices()[1].register(PD, addr, 1000, addr, ALL_ACCESS).unwrap();
    let other_domain = duo.b.device.register(PD + 1, addr, 1000, addr, ALL_ACCESS).unwrap();
    let right = duo.b.device.register(PD, addr, 1000, addr, ALL_ACCESS).unwrap();
    for (key, status) in
        [(other_nic, Status::RemoteBadAddress), (other_domain, Status::RemoteBadAddress), (right, Status::Ok)]
    {
        let ended = write_ends(&duo, |request| (request.remote_key, request.remote_addr) = (key, addr));
        assert_eq!(ended, status);
    }
    duo.b.device.deregister(right).unwrap();
    let ended = write_ends(&duo, |request| (request.remote_key, request.remote_addr) = (right, addr));
    assert_eq!(ended, Status::RemoteBadAddress);
}

#[test]
fn a_key_allows_what_it_was_registered_for() {
    use softefa_verbs::nic::Access;
    let duo = Duo::new(Model::instant(), 1000);
    let bytes = vec![0_u8; 1000];
    let addr = bytes.as_ptr() as u64;
    let read_only = duo.b.device.register(PD, addr, 1000, 0x1000, Access::REMOTE_READ).unwrap();
    let ended = write_ends(&duo, |request| (request.remote_key, request.remote_addr) = (read_only, 0x1000));
    assert_eq!(ended, Status::RemoteBadAddress);
    let ended = write_ends(&duo, |request| {
        (request.remote_key, request.remote_addr, request.opcode) = (read_only, 0x1000, Opcode::Read);
    });
    assert_eq!(ended, Status::Ok);
}

#[test]
fn a_wrong_local_key_ends_with_invalid_lkey() {
    let duo = Duo::new(Model::instant(), 1000);
    let mut request = duo.a.request(Opcode::Write, 1, &duo.b, (0, 100), 0);
    let segment = softefa_verbs::nic::Segment { key: duo.a.key ^ 1 << 10, ..duo.a.segment(0, 100) };
    request.payload = common::segments(&[segment]);
    duo.a.qp.post_send(&[request]).unwrap();
    assert_eq!(duo.a.wait().status, Status::InvalidLkey);
}

#[test]
fn memory_that_is_gone_ends_operations_and_not_the_process() {
    let duo = Duo::new(Model::instant(), 100_000);
    // SAFETY: a new mapping of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            1 << 20,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let addr = start as u64;
    let there = duo.b.device.register(PD, addr, 1 << 20, addr, ALL_ACCESS).unwrap();
    let here = duo.a.device.register(PD, addr, 1 << 20, addr, ALL_ACCESS).unwrap();
    // Not unmapped: another test of this process would get the addresses.
    // SAFETY: the mapping is this test's.
    unsafe { libc::mprotect(start, 1 << 20, libc::PROT_NONE) };
    for len in [100, 100_000] {
        let mut request = duo.a.request(Opcode::Write, 1, &duo.b, (0, len), 0);
        (request.remote_key, request.remote_addr) = (there, addr);
        duo.a.qp.post_send(&[request]).unwrap();
        assert_eq!(duo.a.wait().status, Status::RemoteBadAddress);
        request.opcode = Opcode::Read;
        duo.a.qp.post_send(&[request]).unwrap();
        assert_eq!(duo.a.wait().status, Status::RemoteBadAddress);
        let mut request = duo.a.request(Opcode::Write, 1, &duo.b, (0, len), 0);
        let segment = softefa_verbs::nic::Segment { addr, len: len as u32, key: here };
        request.payload = common::segments(&[segment]);
        duo.a.qp.post_send(&[request]).unwrap();
        assert_eq!(duo.a.wait().status, Status::InvalidLkey);
        request.opcode = Opcode::Read;
        duo.a.qp.post_send(&[request]).unwrap();
        assert_eq!(duo.a.wait().status, Status::InvalidLkey);
    }
    duo.a.write(9, &duo.b, (0, 100_000), 0);
    duo.a.wait_ok();
}

#[test]
fn a_target_without_an_address_handle_answers_unknown_peer_to_rdma_and_takes_sends() {
    let duo = Duo::new(Model::instant(), 100_000);
    duo.b.device.drop_address_handle(duo.a.device.gid());
    for (opcode, len) in [(Opcode::Write, 8), (Opcode::Write, 100_000), (Opcode::Read, 8)] {
        let request = duo.a.request(opcode, 1, &duo.b, (0, len), 0);
        duo.a.qp.post_send(&[request]).unwrap();
        assert_eq!(duo.a.wait().status, Status::RemoteUnknownPeer);
    }
    duo.b.receive(1, 0, 100);
    duo.a.send(2, &duo.b, (0, 100));
    duo.a.wait_ok();
    assert_eq!(duo.b.wait_ok().from_handle, None);
}

#[test]
fn a_wrong_queue_key_and_a_queue_pair_that_is_gone_are_bad_destinations() {
    let duo = Duo::new(Model::instant(), 100);
    assert_eq!(write_ends(&duo, |request| request.qkey = QKEY + 1), Status::RemoteBadDestQpn);
    assert_eq!(write_ends(&duo, |request| request.qpn += 1), Status::RemoteBadDestQpn);
    duo.b.qp.close();
    assert_eq!(write_ends(&duo, |_| {}), Status::RemoteBadDestQpn);
}

#[test]
fn a_message_that_is_longer_than_the_receive_ends_on_both_sides() {
    let duo = Duo::new(Model::instant(), 1000);
    duo.b.receive(5, 0, 99);
    duo.a.send(1, &duo.b, (0, 100));
    assert_eq!(duo.a.wait().status, Status::RemoteBadLength);
    let here = duo.b.wait();
    assert_eq!((here.id, here.status), (5, Status::BadLength));
}

#[test]
fn a_message_without_a_receive_is_sent_again_until_there_is_one() {
    let duo = Duo::new(impatient(), 1000);
    duo.a.send(1, &duo.b, (0, 100));
    duo.a.wait_for_nothing(20 * MS);
    duo.b.receive(5, 0, 100);
    duo.a.wait_ok();
    assert_eq!(duo.b.wait_ok().id, 5);
}

#[test]
fn a_message_without_a_receive_ends_with_not_ready_when_its_retries_are_used_up() {
    let duo = Duo::new(impatient(), 1000);
    duo.a.qp.set_rnr_retry(3);
    let before = duo.net.counter(1, 0, Counter::RxPackets);
    duo.a.send(1, &duo.b, (0, 100));
    assert_eq!(duo.a.wait().status, Status::RemoteNotReady);
    assert_eq!(duo.net.counter(1, 0, Counter::RxPackets) - before, 4, "once, and three times again");
}

#[test]
fn a_write_whose_immediate_finds_no_receive_is_sent_again_too() {
    let mut duo = Duo::new(impatient(), 100_000);
    pattern(3, &mut duo.a.buffer);
    let request =
        SendRequest { immediate: Some(3), ..duo.a.request(Opcode::Write, 1, &duo.b, (0, 100_000), 0) };
    duo.a.qp.post_send(&[request]).unwrap();
    duo.a.wait_for_nothing(10 * MS);
    duo.b.receive(5, 0, 0);
    duo.a.wait_ok();
    assert_eq!(duo.b.wait_ok().immediate, Some(3));
    assert!(duo.a.buffer == duo.b.buffer);
}

#[test]
fn a_black_hole_ends_operations_unreachable_before_a_peer_was_heard_and_unresponsive_after() {
    let duo = Duo::new(impatient(), 100_000);
    let hole = duo.net.fault(FaultKind::BlackHole, forward());
    let begin = Instant::now();
    assert_eq!(write_ends(&duo, |_| {}), Status::UnreachableRemote);
    assert!(begin.elapsed() >= 49 * MS && begin.elapsed() < 1_900 * MS, "{:?}", begin.elapsed());
    assert!(duo.net.counter(0, 0, Counter::TxPackets) > 1, "sent again");
    assert_eq!(duo.net.counter(1, 0, Counter::RxPackets), 0);
    duo.net.fabric.clear_fault(hole);
    assert_eq!(write_ends(&duo, |_| {}), Status::Ok);
    duo.net.fault(FaultKind::BlackHole, forward());
    assert_eq!(write_ends(&duo, |_| {}), Status::UnresponsiveRemote);
    assert_eq!(duo.net.counter(0, 0, Counter::UnresponsiveRemotes), 2);
    assert!(duo.net.counter(0, 0, Counter::RetransmittedPackets) > 1);
}

#[test]
fn a_black_hole_on_the_way_back_is_one_as_well() {
    let duo = Duo::new(Model { unresponsive_ns: 500_000_000, ..impatient() }, 100_000);
    let back = Scope { node: Some(1), peer_node: Some(0), ..Scope::default() };
    let hole = duo.net.fault(FaultKind::BlackHole, back);
    assert_eq!(write_ends(&duo, |_| {}), Status::UnreachableRemote);
    assert_eq!(duo.net.counter(1, 0, Counter::RxPackets), 1, "it was executed");
    duo.net.fabric.clear_fault(hole);
    duo.a.wait_for_nothing(20 * MS);
    assert_eq!(write_ends(&duo, |_| {}), Status::Ok);
}

#[test]
fn a_black_hole_that_heals_in_time_costs_time_only() {
    let mut duo = Duo::new(Model { unresponsive_ns: 2_000_000_000, ..impatient() }, 1 << 20);
    pattern(4, &mut duo.a.buffer);
    let hole = duo.net.fault(FaultKind::BlackHole, Scope::default());
    for i in 0..8 {
        duo.a.write(i, &duo.b, (i as usize * 100_000, 100_000), i as usize * 100_000);
    }
    duo.a.wait_for_nothing(100 * MS);
    duo.net.fabric.clear_fault(hole);
    for _ in 0..8 {
        duo.a.wait_ok();
    }
    assert!(duo.a.buffer[..800_000] == duo.b.buffer[..800_000]);
}

#[test]
fn silent_faults_count_as_sent_and_never_end() {
    let silent = |kind, amount| Fault { amount, ..Fault::new(kind, forward()) };
    for fault in
        [silent(FaultKind::BlackHole, 1), silent(FaultKind::NoEgress, 0), silent(FaultKind::SecondaryCidr, 0)]
    {
        let duo = Duo::new(impatient(), 100_000);
        let id = duo.net.fabric.add_fault(&fault).unwrap();
        duo.a.write(1, &duo.b, (0, 100), 0);
        duo.a.write(2, &duo.b, (0, 100_000), 0);
        duo.a.wait_for_nothing(200 * MS);
        assert!(duo.net.counter(0, 0, Counter::TxPackets) >= 2, "{:?}", fault.kind);
        assert_eq!(duo.net.counter(1, 0, Counter::RxPackets), 0, "{:?}", fault.kind);
        assert_eq!(duo.net.counter(0, 0, Counter::UnresponsiveRemotes), 0);
        duo.net.fabric.clear_fault(id);
        duo.a.wait_ok();
        duo.a.wait_ok();
    }
}

#[test]
fn a_nic_does_not_reach_itself_unless_the_model_says_so() {
    let net = Net::new(1, 2, impatient());
    let host = net.host(0);
    let (a, b) = (End::new(&host, 0, 1000), End::new(&host, 0, 1000));
    a.knows(&b);
    a.write(1, &b, (0, 1000), 0);
    a.wait_for_nothing(150 * MS);
    assert!(net.counter(0, 0, Counter::TxPackets) >= 1);
    assert_eq!(net.counter(0, 0, Counter::RxPackets), 0);
    net.fabric.set_model(&Model { loopback: 1, ..impatient() });
    a.wait_ok();
    a.write(1, &b, (0, 1000), 0);
    a.wait_ok();
}

#[test]
fn a_rail_that_is_down_sends_and_receives_nothing_and_works_again_when_it_is_back() {
    let duo = Duo::new(Model { unresponsive_ns: 400_000_000, ..impatient() }, 100_000);
    let second = (End::new(&duo.hosts[0], 1, 100_000), End::new(&duo.hosts[1], 1, 100_000));
    second.0.knows(&second.1);
    second.1.knows(&second.0);
    duo.a.write(1, &duo.b, (0, 100_000), 0);
    duo.a.wait_ok();
    let counters = || {
        let of =
            |node| [Counter::RxPackets, Counter::RxBytes].map(|counter| duo.net.counter(node, 0, counter));
        (of(0), of(1), duo.net.counter(1, 0, Counter::TxPackets))
    };
    let before = counters();
    let scope = Scope { node: Some(1), nic: Some(0), ..Scope::default() };
    let down =
        duo.net.fabric.add_fault(&Fault { amount: 1, ..Fault::new(FaultKind::RailDown, scope) }).unwrap();
    duo.a.write(2, &duo.b, (0, 100_000), 0);
    duo.b.write(3, &duo.a, (0, 100_000), 0);
    second.0.write(4, &second.1, (0, 100_000), 0);
    second.0.wait_ok();
    duo.a.wait_for_nothing(20 * MS);
    assert_eq!(counters(), before);
    assert_eq!(duo.b.device.take_async_event(), Some(AsyncEvent::PortError));
    assert_eq!(duo.a.device.take_async_event(), None);
    assert_eq!(duo.a.wait().status, Status::UnresponsiveRemote);
    assert_eq!(duo.b.wait().status, Status::UnresponsiveRemote);
    duo.a.write(5, &duo.b, (0, 100_000), 0);
    duo.a.wait_for_nothing(20 * MS);
    duo.net.fabric.clear_fault(down);
    assert_eq!(duo.a.wait_ok().id, 5);
    assert_eq!(duo.b.device.take_async_event(), Some(AsyncEvent::PortActive));
}

#[test]
fn lost_packets_are_sent_again_and_counted() {
    let mut duo = Duo::new(Model { retransmit_ns: 20_000, ..Model::instant() }, 2 << 20);
    let drop = Fault { probability_ppm: 200_000, ..Fault::new(FaultKind::Drop, Scope::default()) };
    duo.net.fabric.add_fault(&drop).unwrap();
    pattern(6, &mut duo.a.buffer[..1 << 20]);
    duo.a.write(1, &duo.b, (0, 1 << 20), 0);
    duo.a.wait_ok();
    assert!(duo.a.buffer[..1 << 20] == duo.b.buffer[..1 << 20]);
    duo.a.read(2, &duo.b, (1 << 20, 1 << 20), 0);
    duo.a.wait_ok();
    assert!(duo.a.buffer[1 << 20..] == duo.b.buffer[..1 << 20]);
    let sent = duo.net.counter(0, 0, Counter::TxPackets);
    let again = duo.net.counter(0, 0, Counter::RetransmittedPackets);
    assert!(again > 0 && again < sent, "{again} of {sent}");
    assert_eq!(duo.net.counter(1, 0, Counter::RxPackets), 118 + 1);
    assert_eq!(sent - again, 118 + 1);
}

#[test]
fn a_delay_and_a_rate_make_things_slower_by_as_much() {
    let duo = Duo::new(Model::instant(), 4 << 20);
    let delay = Fault { amount: 30_000_000, ..Fault::new(FaultKind::Delay, forward()) };
    let id = duo.net.fabric.add_fault(&delay).unwrap();
    let begin = Instant::now();
    duo.a.write(1, &duo.b, (0, 1000), 0);
    duo.a.wait_ok();
    assert!(begin.elapsed() >= 30 * MS && begin.elapsed() < 3_000 * MS, "{:?}", begin.elapsed());
    duo.net.fabric.clear_fault(id);
    // 2 MiB at 160 Mb/s take 105 ms.
    let rate = Fault { amount: 160_000_000, ..Fault::new(FaultKind::Rate, forward()) };
    duo.net.fabric.add_fault(&rate).unwrap();
    let begin = Instant::now();
    duo.a.write(1, &duo.b, (0, 2 << 20), 0);
    duo.a.wait_ok();
    assert!(begin.elapsed() >= 103 * MS && begin.elapsed() < 3_000 * MS, "{:?}", begin.elapsed());
}

#[test]
fn a_slow_rail_leaves_the_others_their_speed() {
    let duo = Duo::new(Model::instant(), 16 << 20);
    let second = (End::new(&duo.hosts[0], 1, 1 << 20), End::new(&duo.hosts[1], 1, 1 << 20));
    second.1.knows(&second.0);
    let slow = Scope { nic: Some(0), ..forward() };
    duo.net.fabric.add_fault(&Fault { amount: 13_000_000, ..Fault::new(FaultKind::Rate, slow) }).unwrap();
    // It takes ten seconds.
    duo.a.write(1, &duo.b, (0, 16 << 20), 0);
    let begin = Instant::now();
    for i in 0..50 {
        second.0.write(i, &second.1, (0, 1 << 20), 0);
        second.0.wait_ok();
    }
    assert!(begin.elapsed() < 8_000 * MS, "{:?}", begin.elapsed());
    assert!(duo.a.cq.poll().is_none());
}

#[test]
fn the_models_rate_is_that_of_the_nic() {
    let duo = Duo::new(Model { rated: 1, goodput_permille: 10, ..Model::instant() }, 4 << 20);
    // 1 Gb/s: 4 MiB take 33.5 ms.
    let begin = Instant::now();
    duo.a.write(1, &duo.b, (0, 4 << 20), 0);
    duo.a.wait_ok();
    assert!(begin.elapsed() >= 33 * MS && begin.elapsed() < 3_000 * MS, "{:?}", begin.elapsed());
}

#[test]
fn faults_of_single_operations_end_as_many_as_they_are_for() {
    for (kind, status) in [
        (FaultKind::BadKey, Status::RemoteBadAddress),
        (FaultKind::MissingHandle, Status::RemoteUnknownPeer),
        (FaultKind::PeerRestarted, Status::RemoteBadDestQpn),
        (FaultKind::Unreachable, Status::UnreachableRemote),
        (FaultKind::Unresponsive, Status::UnresponsiveRemote),
    ] {
        for len in [100, 100_000] {
            let duo = Duo::new(Model::instant(), 100_000);
            let fault = Fault { after: 1, count: 2, amount: 3_000_000, ..Fault::new(kind, forward()) };
            duo.net.fabric.add_fault(&fault).unwrap();
            let statuses = [1, 2, 3, 4].map(|id| {
                duo.a.write(id, &duo.b, (0, len), 0);
                duo.a.wait().status
            });
            assert_eq!(statuses, [Status::Ok, status, status, Status::Ok], "{kind} {len}");
        }
    }
}

#[test]
fn not_ready_as_a_fault_is_retried_like_a_missing_receive() {
    let duo = Duo::new(impatient(), 1000);
    let fault = Fault { count: 3, ..Fault::new(FaultKind::NotReady, forward()) };
    duo.net.fabric.add_fault(&fault).unwrap();
    duo.b.receive(1, 0, 100);
    duo.a.send(1, &duo.b, (0, 100));
    duo.a.wait_ok();
    duo.net.fault(FaultKind::NotReady, forward());
    duo.a.qp.set_rnr_retry(2);
    duo.a.send(2, &duo.b, (0, 100));
    assert_eq!(duo.a.wait().status, Status::RemoteNotReady);
}

#[test]
fn an_unresponsive_peer_that_is_there_again_gets_what_waits() {
    let duo = Duo::new(Model::instant(), 1000);
    let fault = Fault { amount: 5_000_000_000, ..Fault::new(FaultKind::Unresponsive, forward()) };
    let id = duo.net.fabric.add_fault(&fault).unwrap();
    duo.a.write(1, &duo.b, (0, 1000), 0);
    duo.a.wait_for_nothing(30 * MS);
    duo.net.fabric.clear_fault(id);
    duo.a.wait_ok();
}

#[test]
fn a_fault_that_ends_by_itself_does_so() {
    let duo = Duo::new(impatient(), 1000);
    let until_ns = softefa_fabric::clock::now_ns() + 30_000_000;
    let fault = Fault { until_ns, ..Fault::new(FaultKind::BlackHole, forward()) };
    duo.net.fabric.add_fault(&fault).unwrap();
    let begin = Instant::now();
    duo.a.write(1, &duo.b, (0, 1000), 0);
    duo.a.wait_ok();
    assert!(begin.elapsed() >= 29 * MS && begin.elapsed() < 3_000 * MS);
}

#[test]
fn a_completion_queue_that_overflows_says_so_once_and_takes_no_more() {
    let net = Net::new(2, 1, Model::instant());
    let hosts = [net.host(0), net.host(1)];
    let a = End::with(&hosts[0], 0, 100, 4, Flags::default());
    let b = End::new(&hosts[1], 0, 100);
    b.knows(&a);
    let requests: Vec<_> = (0..8).map(|id| a.request(Opcode::Write, id, &b, (0, 10), 0)).collect();
    a.qp.post_send(&requests).unwrap();
    let begin = Instant::now();
    let event = loop {
        if let Some(event) = a.device.take_async_event() {
            break event;
        }
        assert!(begin.elapsed() < common::SOON);
        std::thread::sleep(MS);
    };
    assert_eq!(event, AsyncEvent::CompletionQueueError { token: 1 });
    std::thread::sleep(20 * MS);
    let got = std::iter::from_fn(|| a.cq.poll()).count();
    assert_eq!((got, a.device.take_async_event()), (4, None));
    a.qp.post_send(&requests[..1]).unwrap();
    a.wait_for_nothing(20 * MS);
}

#[test]
fn a_fault_makes_completion_queues_smaller() {
    let duo = Duo::new(Model::instant(), 100);
    let fault =
        Fault { amount: 2, ..Fault::new(FaultKind::CqOverflow, Scope { node: Some(0), ..Scope::default() }) };
    duo.net.fabric.add_fault(&fault).unwrap();
    let requests: Vec<_> = (0..3).map(|id| duo.a.request(Opcode::Write, id, &duo.b, (0, 10), 0)).collect();
    duo.a.qp.post_send(&requests).unwrap();
    let begin = Instant::now();
    while duo.a.device.take_async_event().is_none() {
        assert!(begin.elapsed() < common::SOON);
    }
    assert_eq!(duo.net.fabric.faults()[0].hits, 1);
}

#[test]
fn a_flushed_queue_pair_completes_everything_and_a_closed_one_nothing() {
    let duo = Duo::new(Model { unresponsive_ns: u64::MAX / 4, ..impatient() }, 100_000);
    duo.net.fault(FaultKind::BlackHole, forward());
    for round in 0..2 {
        for id in 0..3 {
            duo.a.write(id, &duo.b, (0, 100_000), 0);
            duo.a.receive(10 + id, 0, 10);
        }
        if round == 0 {
            duo.a.qp.set_state(State::Err);
            let mut ids: Vec<u64> = (0..6)
                .map(|_| {
                    let completion = duo.a.wait();
                    assert_eq!(completion.status, Status::Flushed);
                    completion.id
                })
                .collect();
            ids.sort_unstable();
            assert_eq!(ids, [0, 1, 2, 10, 11, 12]);
            for state in [State::Reset, State::Init, State::Rtr, State::Rts] {
                duo.a.qp.set_state(state);
            }
        } else {
            duo.a.qp.close();
            duo.a.wait_for_nothing(20 * MS);
        }
    }
    let receive = ReceiveRequest { id: 1, into: duo.a.segment(0, 10) };
    assert_eq!(duo.a.qp.post_receive(&receive), Err(softefa_verbs::nic::Limit::Gone));
}

#[test]
fn a_write_under_which_the_targets_queue_pair_begins_anew_ends() {
    // Packets come over some 100 ms, in between the queue pair is reset: what came before it counts no more.
    let duo = Duo::new(Model { jitter_ns: 20_000_000, ..impatient() }, 8928 * 100);
    duo.a.write(1, &duo.b, (0, 8928 * 100), 0);
    let begin = Instant::now();
    while duo.net.counter(1, 0, Counter::WriteReceivedBytes) == 0 {
        assert!(begin.elapsed() < common::SOON);
        std::thread::sleep(MS);
    }
    for state in [State::Reset, State::Init, State::Rtr, State::Rts] {
        duo.b.qp.set_state(state);
    }
    assert_eq!(duo.a.wait().status, Status::RemoteBadDestQpn);
    duo.a.write(2, &duo.b, (0, 8928 * 100), 0);
    duo.a.wait_ok();
}

#[test]
fn a_nic_that_no_node_has_is_unreachable() {
    let duo = Duo::new(impatient(), 100);
    let nowhere = NicIndex { node: 9, nic: 0 }.gid();
    assert_eq!(write_ends(&duo, |request| request.to = Some(nowhere)), Status::UnreachableRemote);
    assert_eq!(write_ends(&duo, |request| request.to = None), Status::InvalidAh);
}
