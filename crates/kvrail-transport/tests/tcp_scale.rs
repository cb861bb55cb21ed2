//! Many peers: an idle one costs little memory and no time.

mod common;

use std::time::{Duration, Instant};

use common::{Target, quick, region};
use kvrail_conformance::host::PrivateMemory;
use kvrail_core::id::{Generation, LocalRail, PeerId, RegionId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{Batch, Direction, Event, Op, Transport};
use kvrail_transport::tcp::{Config, Tcp};

const PEERS: usize = 1_000;
/// Memory per idle peer, hub and spoke together, bytes.
const IDLE_BYTES_MAX: usize = 64 << 10;
const LEN: usize = 1 << 16;

/// Raises the limit on open files as far as it goes, and returns it.
fn open_files() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live local that the call fills.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a live local that the call reads.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    limit.rlim_max as usize
}

/// Memory of this process that is in use, bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

struct Hub {
    tcp: Tcp,
    origin: Instant,
    tokens: u32,
}

impl Hub {
    /// Writes and reads `ops` blocks of 4 KiB, one after the other; returns what one took.
    fn exercise(&mut self, spoke: usize, target: &mut Target, ops: u32) -> Duration {
        let route = Route { local: LocalRail(0), remote: RemoteRail(0) };
        let peer = PeerId { slot: spoke as u32, generation: Generation(1) };
        let mut events = Vec::new();
        let begin = Instant::now();
        for i in 0..ops {
            self.tokens += 1;
            let token = Token { slot: self.tokens, generation: Generation(1) };
            let at = u64::from(i % 8) * 4_096;
            let op = Op {
                local_offset: at,
                remote_offset: at,
                local_region: RegionId(0),
                remote_region: RegionId(0),
                len: 4_096,
            };
            let direction = if i % 2 == 0 { Direction::Write } else { Direction::Read };
            let batch = Batch { peer, route, direction, token, first: 0, ops: &[op], immediate: None };
            let mut posted = false;
            while events.is_empty() {
                let now = Time::ZERO + self.origin.elapsed();
                posted = posted || self.tcp.post(now, &batch).is_ok_and(|n| n == 1);
                self.tcp.poll(now, &mut events);
                target.poll();
            }
            assert_eq!(events.pop(), Some(Event::Completed { token, first: 0, count: 1 }));
        }
        begin.elapsed() / ops
    }
}

#[test]
fn a_thousand_idle_peers_cost_little_memory_and_no_time() {
    // Per peer: a listener and an epoll of its own, and both ends of its connections.
    let peers = PEERS.min(open_files().saturating_sub(200) / 8);
    if peers < PEERS {
        eprintln!("only {peers} peers: the limit on open files is low");
    }
    let memory = PrivateMemory::new(LEN);
    let mut hub = Hub { tcp: Tcp::new(quick()).expect("listens"), origin: Instant::now(), tokens: 0 };
    hub.tcp.register(&region(0, &memory, LEN)).expect("host memory");
    let config = Config { connections: 1, ..quick() };
    let mut spokes: Vec<Target> = (0..peers).map(|_| Target::new(config.clone(), LEN)).collect();
    let introduce = |hub: &mut Hub, i: usize, spoke: &Target| {
        let peer = PeerId { slot: i as u32, generation: Generation(1) };
        let offer = spoke.offer();
        hub.tcp.add_peer(Time::ZERO, peer, &offer.address).expect("a valid address");
        hub.tcp.import_region(peer, &offer.region, &[]).expect("a valid region");
    };
    introduce(&mut hub, 0, &spokes[0]);
    hub.exercise(0, &mut spokes[0], 200);
    let alone = (0..5).map(|_| hub.exercise(0, &mut spokes[0], 400)).min().expect("some");

    let before = resident();
    for (i, spoke) in spokes.iter_mut().enumerate().skip(1) {
        introduce(&mut hub, i, spoke);
        hub.exercise(i, spoke, 4);
    }
    let per_peer = resident().saturating_sub(before) / peers.max(1);
    assert!(hub.tcp.connections() >= peers, "{} connections to {peers} peers", hub.tcp.connections());
    let crowded = (0..5).map(|_| hub.exercise(0, &mut spokes[0], 400)).min().expect("some");

    eprintln!("{peers} peers: {per_peer} bytes each; an op takes {crowded:?}, with one peer {alone:?}");
    assert!(per_peer <= IDLE_BYTES_MAX, "an idle peer costs {per_peer} bytes");
    // 20 % is the goal; the rest is for the noise of a shared machine.
    assert!(crowded < alone * 3 / 2, "an op takes {crowded:?} among {peers} idle peers, {alone:?} alone");
}
