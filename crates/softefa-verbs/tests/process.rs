//! Processes that come, fork, and die: this test program runs itself again as the peer.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{End, Net, QKEY, forward};
use softefa_fabric::{Counter, FaultKind, Model};
use softefa_verbs::nic::{Host, Limit, Opcode, Payload, SendRequest, Status};

const BYTES: usize = 4 << 20;

/// A peer process on node 1 with one queue pair and a buffer, which answers peers until it is told to end or is killed.
struct Peer {
    process: Child,
    qpn: u32,
    key: u32,
    addr: u64,
}

impl Peer {
    fn start(net: &Net, mode: &str) -> Peer {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_a_peer", "--nocapture", "--ignored"])
            .env("SOFTEFA_DIR", net.dir.path())
            .env("SOFTEFA_NODE", "1")
            .env("PEER_MODE", mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find(|line| line.contains("peer is ")).unwrap();
        let n: Vec<u64> =
            line.split("peer is ").nth(1).unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
        Peer { process, qpn: n[0] as u32, key: n[1] as u32, addr: n[2] }
    }

    fn request(&self, from: &End, opcode: Opcode, id: u64, len: usize) -> SendRequest {
        SendRequest {
            id,
            opcode,
            immediate: None,
            remote_key: self.key,
            remote_addr: self.addr,
            payload: common::segments(&[from.segment(0, len)]),
            to: Some(softefa_fabric::Gid::of(1, 0)),
            qpn: self.qpn,
            qkey: QKEY,
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test: what the peer process runs.
#[test]
#[ignore = "the peer process of other tests"]
fn as_a_peer() {
    let Ok(mode) = std::env::var("PEER_MODE") else { return };
    let host = softefa_verbs::nic::attach().unwrap();
    assert!(std::ptr::eq(host, softefa_verbs::nic::attach().unwrap()));
    let end = End::new(host, 0, BYTES);
    end.device.address_handle(common::PD, softefa_fabric::Gid::of(0, 0)).unwrap();
    println!("peer is {} {} {}", end.qp.number(), end.key, end.addr(0));
    std::io::stdout().flush().unwrap();
    if mode == "stop" {
        // SAFETY: the call stops this process.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
    let _ = std::io::read_to_string(std::io::stdin());
}

#[test]
fn a_peer_that_dies_ends_what_was_for_it_and_others_go_on() {
    let net = Net::new(3, 1, Model { base_ns: 300_000, ..Model::instant() });
    let host = net.host(0);
    let third = net.host(2);
    let (a, c) = (End::new(&host, 0, BYTES), End::new(&third, 0, BYTES));
    c.knows(&a);
    for round in 0..3 {
        let mut peer = Peer::start(&net, "answer");
        a.qp.post_send(&[peer.request(&a, Opcode::Write, 1, 1000)]).unwrap();
        assert_eq!(a.wait().status, Status::Ok, "round {round}");
        for id in 0..20 {
            let opcode = if id % 2 == 0 { Opcode::Write } else { Opcode::Read };
            a.qp.post_send(&[peer.request(&a, opcode, id, BYTES)]).unwrap();
        }
        peer.kill();
        assert_eq!(net.fabric.reap_dead(), 1);
        let statuses: Vec<Status> = (0..20).map(|_| a.wait().status).collect();
        assert!(statuses.iter().all(|status| matches!(status, Status::Ok | Status::RemoteBadDestQpn)));
        assert!(statuses.contains(&Status::RemoteBadDestQpn));
        a.qp.post_send(&[peer.request(&a, Opcode::Write, 1, 8)]).unwrap();
        assert_eq!(a.wait().status, Status::RemoteBadDestQpn);
        // All slots are free again: as many as there are, twice, over another path.
        a.write(7, &c, (0, BYTES), 0);
        assert_eq!(a.wait_ok().id, 7);
    }
}

#[test]
fn a_peer_that_is_stopped_holds_up_nobody_else() {
    let net = Net::new(3, 1, Model::instant());
    let host = net.host(0);
    let third = net.host(2);
    let (a, c) = (End::new(&host, 0, BYTES), End::new(&third, 0, BYTES));
    c.knows(&a);
    let mut peer = Peer::start(&net, "stop");
    for id in 0..20 {
        a.qp.post_send(&[peer.request(&a, Opcode::Write, 100 + id, BYTES)]).unwrap();
    }
    for _ in 0..20 {
        a.write(7, &c, (0, BYTES), 0);
        assert_eq!(a.wait_ok().id, 7);
    }
    // SAFETY: the call sends a signal to the process that this test has started.
    unsafe { libc::kill(peer.process.id() as libc::pid_t, libc::SIGCONT) };
    for _ in 0..20 {
        assert!(a.wait_ok().id >= 100);
    }
    peer.kill();
    net.fabric.reap_dead();
}

#[test]
fn a_process_that_dies_leaves_nothing_behind() {
    let net = Net::new(2, 1, Model::instant());
    let mut peer = Peer::start(&net, "answer");
    let at = softefa_fabric::NicIndex { node: 1, nic: 0 };
    assert_eq!((net.fabric.nic(at).unwrap().qps(), net.fabric.nic(at).unwrap().regions()), (1, 1));
    peer.kill();
    assert_eq!(net.fabric.reap_dead(), 1);
    assert_eq!((net.fabric.nic(at).unwrap().qps(), net.fabric.nic(at).unwrap().regions()), (0, 0));
}

#[test]
fn what_the_parent_had_answers_gone_in_a_forked_child() {
    let net = Net::new(2, 1, Model::instant());
    let hosts = [net.host(0), net.host(1)];
    let (a, b) = (End::new(&hosts[0], 0, 1000), End::new(&hosts[1], 0, 1000));
    b.knows(&a);
    let request = a.request(Opcode::Write, 1, &b, (0, 8), 0);
    // SAFETY: the child calls only what takes no lock, allocates nothing, and ends with _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let gone = a.qp.post_send(&[request]) == Err(Limit::Gone)
            && a.cq.poll().is_none()
            && a.device.deregister(a.key) == Err(Limit::Gone);
        a.qp.close();
        a.cq.close();
        // SAFETY: the call ends the child.
        unsafe { libc::_exit(if gone { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: `status` is a place for the child's status.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    a.qp.post_send(&[request]).unwrap();
    a.wait_ok();
}

#[test]
fn devices_that_do_nothing_use_no_cpu_time_even_with_operations_that_wait() {
    // In a process of its own: other tests of this one are busy.
    let net = Net::new(2, 4, Model::default());
    net.fault(FaultKind::NoEgress, forward());
    let peer = Peer::start(&net, "answer");
    let host = Host::open(net.dir.path(), 0).unwrap();
    let a = End::new(&host, 0, BYTES);
    for id in 0..100 {
        a.qp.post_send(&[peer.request(&a, Opcode::Write, id, 10_000)]).unwrap();
    }
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", peer.process.id())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(10 * ticks)
    };
    // Sleeps that ended, of the peer's device thread.
    let wakes = || -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", peer.process.id())).unwrap();
        let is_device = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "softefa")
        };
        let device = tasks.flatten().find(is_device).unwrap();
        let status = std::fs::read_to_string(device.path().join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    std::thread::sleep(Duration::from_millis(300));
    let before = (used(), wakes());
    std::thread::sleep(Duration::from_secs(1));
    let (cpu, wakes) = (used() - before.0, wakes() - before.1);
    assert!(cpu <= Duration::from_millis(20), "the idle peer used {cpu:?} in a second");
    assert!(wakes <= 5, "the idle peer woke {wakes} times in a second");
    assert!(net.counter(0, 0, Counter::TxPackets) >= 100);
}

#[test]
fn no_wake_up_is_lost_between_processes_that_poll_and_sleep_as_they_like() {
    let net = Net::new(2, 1, Model::instant());
    let host = net.host(0);
    let a = End::new(&host, 0, BYTES);
    let peer = Peer::start(&net, "answer");
    let begin = Instant::now();
    let mut x = 88172645463325252_u64;
    let mut slowest = Duration::ZERO;
    for id in 0..3_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let request = SendRequest { payload: Payload::EMPTY, ..peer.request(&a, Opcode::Write, id, 0) };
        let posted = Instant::now();
        a.qp.post_send(&[request]).unwrap();
        match x % 4 {
            0 => {}
            1 => (0..x % 300).for_each(|_| std::hint::spin_loop()),
            _ => std::thread::sleep(Duration::from_micros(x % 200)),
        }
        a.wait_ok();
        slowest = slowest.max(posted.elapsed());
    }
    // A lost wake-up costs until the device thread's own one, a second later.
    assert!(slowest < Duration::from_millis(900), "{slowest:?} after {:?}", begin.elapsed());
}
