//! What the device refuses, what it counts, and what it costs when nothing happens.

mod common;

use std::time::{Duration, Instant};

use common::{ALL_ACCESS, Duo, End, Net, PD};
use softefa_fabric::{Counter, Fault, FaultKind, Gid, Limits, Model, Scope};
use softefa_verbs::nic::{
    Channel, CompletionQueue, Flags, Limit, Opcode, QueuePair, ReceiveRequest, SendRequest, State,
};

#[test]
fn a_full_send_queue_takes_nothing_of_a_batch() {
    let duo = Duo::new(Model { unresponsive_ns: u64::MAX / 4, ..Model::instant() }, 100);
    let hole = duo.net.fault(FaultKind::BlackHole, common::forward());
    let limit = duo.a.device.limits().send_queue as u64;
    let request = |id| duo.a.request(Opcode::Write, id, &duo.b, (0, 8), 0);
    let all: Vec<SendRequest> = (0..limit - 1).map(request).collect();
    duo.a.qp.post_send(&all).unwrap();
    assert_eq!(duo.a.qp.post_send(&[request(8000), request(8001)]), Err(Limit::Exhausted));
    duo.a.qp.post_send(&[request(limit - 1)]).unwrap();
    assert_eq!(duo.a.qp.post_send(&[request(8002)]), Err(Limit::Exhausted));
    duo.net.fabric.clear_fault(hole);
    let mut ids: Vec<u64> = (0..limit).map(|_| duo.a.wait_ok().id).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..limit));
    duo.a.qp.post_send(&[request(1)]).unwrap();
    duo.a.wait_ok();
}

#[test]
fn a_send_makes_room_only_when_its_completion_is_polled() {
    let net = Net::new(2, 1, Model::instant());
    let hosts = [net.host(0), net.host(1)];
    let (a, b) = (End::new(&hosts[0], 0, 100), End::new(&hosts[1], 0, 100));
    b.knows(&a);
    let small = QueuePair::new(&a.device, PD, &a.cq, &a.cq, 2, 2, Flags::default()).unwrap();
    for state in [State::Init, State::Rtr, State::Rts] {
        small.set_state(state);
    }
    let request = a.request(Opcode::Write, 1, &b, (0, 8), 0);
    small.post_send(&[request, request]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(small.post_send(&[request]), Err(Limit::Exhausted));
    a.wait_ok();
    small.post_send(&[request]).unwrap();
}

#[test]
fn a_full_receive_queue_and_a_wrong_state_are_refused() {
    let net = Net::new(1, 1, Model::instant());
    let host = net.host(0);
    let a = End::new(&host, 0, 100);
    let small = QueuePair::new(&a.device, PD, &a.cq, &a.cq, 2, 2, Flags::default()).unwrap();
    let receive = ReceiveRequest { id: 1, into: a.segment(0, 10) };
    assert_eq!(small.post_receive(&receive), Err(Limit::Beyond), "in state Reset");
    small.set_state(State::Init);
    small.post_receive(&receive).unwrap();
    small.post_receive(&receive).unwrap();
    assert_eq!(small.post_receive(&receive), Err(Limit::Exhausted));
    let send = a.request(Opcode::Send, 1, &a, (0, 8), 0);
    assert_eq!(small.post_send(&[send]), Err(Limit::Beyond), "in state Init");
}

#[test]
fn queues_beyond_the_device_are_refused() {
    let net = Net::new(1, 2, Model::instant());
    let host = net.host(0);
    let (device, other) = (&host.devices()[0], &host.devices()[1]);
    let limits = device.limits();
    assert!(CompletionQueue::new(device, limits.completion_queue + 1, None, 0).is_err());
    assert!(CompletionQueue::new(device, 0, None, 0).is_err());
    let cq = CompletionQueue::new(device, 16, None, 0).unwrap();
    let new = |device, sends, receives| {
        QueuePair::new(device, PD, &cq, &cq, sends, receives, Flags::default()).map(|pair| pair.close())
    };
    assert_eq!(new(device, limits.send_queue + 1, 1), Err(Limit::Beyond));
    assert_eq!(new(device, 1, limits.receive_queue + 1), Err(Limit::Beyond));
    assert_eq!(new(other, 1, 1), Err(Limit::Beyond), "the completion queue is another NIC's");
    assert_eq!(new(device, limits.send_queue, limits.receive_queue), Ok(()));
    assert_eq!(net.counter(0, 0, Counter::QpErrors), 2);
}

#[test]
fn all_queue_pairs_of_a_nic_can_be_taken_and_given_back() {
    let net = Net::new(1, 1, Model::instant());
    let host = net.host(0);
    let device = &host.devices()[0];
    let cq = CompletionQueue::new(device, 16, None, 0).unwrap();
    for _ in 0..2 {
        let pairs: Vec<_> =
            std::iter::from_fn(|| QueuePair::new(device, PD, &cq, &cq, 16, 16, Flags::default()).ok())
                .collect();
        assert_eq!(pairs.len(), softefa_fabric::QPS_PER_NIC_MAX);
        pairs.iter().for_each(|pair| pair.close());
    }
}

#[test]
fn registration_has_limits_and_wants_memory() {
    let limits = Limits { regions: 3, pages: 10, region_bytes: 1 << 20, ..Limits::default() };
    let net = Net::with(1, 1, Model::instant(), limits);
    let host = net.host(0);
    let device = &host.devices()[0];
    let bytes = vec![0_u8; 1 << 21];
    let addr = (bytes.as_ptr() as u64).next_multiple_of(4096);
    let register = |addr, len| device.register(PD, addr, len, addr, ALL_ACCESS);
    assert_eq!(register(addr, 0), Err(Limit::Beyond));
    assert_eq!(register(addr, (1 << 20) + 1), Err(Limit::Beyond));
    assert_eq!(register(u64::MAX - 10, 100), Err(Limit::Beyond));
    assert_eq!(register(4096, 4096), Err(Limit::Unmapped));
    assert_eq!(register(addr, 11 * 4096), Err(Limit::Exhausted), "too many pages");
    let keys = [register(addr, 8 * 4096), register(addr, 1), register(addr, 4096)].map(Result::unwrap);
    assert_eq!(register(addr, 1), Err(Limit::Exhausted), "too many regions");
    device.deregister(keys[0]).unwrap();
    assert_eq!(device.deregister(keys[0]), Err(Limit::Gone));
    register(addr, 8 * 4096).unwrap();
    assert_eq!(net.counter(0, 0, Counter::MrErrors), 6);
    assert_eq!(net.fabric.nic(device.index()).unwrap().regions(), 3);
}

#[test]
fn a_fault_exhausts_registration_after_so_many() {
    let net = Net::new(1, 2, Model::instant());
    let host = net.host(0);
    let fault = Fault {
        after: 2,
        ..Fault::new(FaultKind::NoRegistration, Scope { node: Some(0), nic: Some(0), ..Scope::default() })
    };
    let id = net.fabric.add_fault(&fault).unwrap();
    let bytes = [0_u8; 64];
    let register = |nic: usize| {
        let addr = bytes.as_ptr() as u64;
        host.devices()[nic].register(PD, addr, 64, addr, ALL_ACCESS)
    };
    assert!(register(0).is_ok() && register(0).is_ok());
    assert_eq!(register(0), Err(Limit::Exhausted));
    assert!(register(1).is_ok());
    net.fabric.clear_fault(id);
    assert!(register(0).is_ok());
}

#[test]
fn address_handles_are_counted_and_limited() {
    let net = Net::with(1, 1, Model::instant(), Limits { address_handles: 2, ..Limits::default() });
    let host = net.host(0);
    let device = &host.devices()[0];
    let handle = |nic| device.address_handle(PD, Gid::of(0, nic));
    assert_eq!((handle(0), handle(1), handle(0)), (Ok(0), Ok(1), Ok(0)));
    assert_eq!(handle(2), Err(Limit::Exhausted));
    assert_eq!(device.address_handle(PD, Gid([1; 16])), Err(Limit::Beyond));
    device.drop_address_handle(Gid::of(0, 1));
    assert_eq!(handle(2), Ok(1));
}

#[test]
fn counters_are_exact() {
    let duo = Duo::of(Net::new(2, 1, Model::instant()), 100_000, Flags { unsolicited_write_receive: true });
    for _ in 0..3 {
        duo.a.write(1, &duo.b, (0, 20_000), 0); // three packets
        duo.a.wait_ok();
    }
    duo.a.read(2, &duo.b, (0, 10_000), 0); // a request, and two packets back
    duo.a.wait_ok();
    duo.b.receive(3, 0, 100);
    duo.a.send(4, &duo.b, (0, 77));
    duo.a.wait_ok();
    let now = |node, counter| duo.net.counter(node, 0, counter);
    let a = [
        (Counter::TxPackets, 9 + 1 + 1),
        (Counter::TxBytes, 60_000 + 77),
        (Counter::RxPackets, 2),
        (Counter::RxBytes, 10_000),
        (Counter::WriteRequests, 3),
        (Counter::WriteBytes, 60_000),
        (Counter::ReadRequests, 1),
        (Counter::ReadBytes, 10_000),
        (Counter::SendRequests, 1),
        (Counter::SendBytes, 77),
        (Counter::RxDrops, 0),
        (Counter::RetransmittedPackets, 0),
    ];
    let b = [
        (Counter::TxPackets, 2),
        (Counter::TxBytes, 10_000),
        (Counter::RxPackets, 9 + 1 + 1),
        (Counter::RxBytes, 60_000 + 77),
        (Counter::WriteReceivedBytes, 60_000),
        (Counter::ReadResponseBytes, 10_000),
        (Counter::ReceiveRequests, 1),
        (Counter::ReceiveBytes, 77),
        (Counter::WriteRequests, 0),
    ];
    for (node, counters) in [(0, &a[..]), (1, &b[..])] {
        for (counter, wanted) in counters {
            assert_eq!(now(node, *counter), *wanted, "node {node} {}", counter.name());
        }
    }
}

#[test]
fn an_armed_queue_gives_one_event_to_a_program_that_sleeps() {
    let net = Net::new(2, 1, Model::instant());
    let hosts = [net.host(0), net.host(1)];
    let a = End::new(&hosts[0], 0, 100);
    let device = &hosts[1].devices()[0];
    let channel = Channel::new().unwrap();
    let cq = CompletionQueue::new(device, 100, Some(channel.clone()), 77).unwrap();
    let b = End::on(device, cq, 100, Flags::default());
    for id in 0..3 {
        b.receive(id, 0, 10);
    }
    let readable = |ms| {
        let mut poll = libc::pollfd { fd: channel.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        unsafe { libc::poll(&mut poll, 1, ms) == 1 }
    };
    assert!(!readable(0) && channel.take().is_none());
    b.cq.arm();
    a.send(1, &b, (0, 10));
    assert!(readable(5_000));
    assert_eq!((channel.take(), channel.take()), (Some(77), None));
    a.wait_ok();
    a.send(2, &b, (0, 10));
    a.wait_ok();
    assert!(!readable(20), "it was not armed again");
    assert_eq!(std::iter::from_fn(|| b.cq.poll()).count(), 2);
    b.cq.arm();
    a.send(3, &b, (0, 10));
    assert!(readable(5_000));
}

#[test]
fn a_small_write_to_a_program_that_sleeps_takes_microseconds() {
    let duo = Duo::new(Model::instant(), 100);
    let mut times: Vec<Duration> = (0..200)
        .map(|id| {
            let begin = Instant::now();
            duo.a.write(id, &duo.b, (0, 8), 0);
            duo.a.wait_ok();
            let time = begin.elapsed();
            if id % 10 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            time
        })
        .collect();
    times.sort_unstable();
    // A bound for a loaded machine, not a measurement: the example `wire` measures.
    assert!(times[100] < Duration::from_millis(1), "{:?}", times[100]);
}

#[test]
fn what_belongs_to_a_host_that_is_gone_answers_gone() {
    let net = Net::new(2, 1, Model::instant());
    let (a_host, b_host) = (net.host(0), net.host(1));
    let (a, b) = (End::new(&a_host, 0, 100), End::new(&b_host, 0, 100));
    b.knows(&a);
    a.write(1, &b, (0, 10), 0);
    a.wait_ok();
    drop(a_host);
    let request = a.request(Opcode::Write, 1, &b, (0, 8), 0);
    assert_eq!(a.qp.post_send(&[request]), Err(Limit::Gone));
    assert_eq!(a.device.register(PD, a.addr(0), 10, 0, ALL_ACCESS), Err(Limit::Gone));
    assert!(a.cq.poll().is_none());
    a.close();
    assert_eq!(net.fabric.nic(a.device.index()).unwrap().qps(), 0);
}
