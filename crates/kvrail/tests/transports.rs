//! Two agents over the real transports, in one process and in two: every byte is looked at.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{MODES, PATIENCE};
use kvrail::{
    Agent, Descriptors, Hints, Memory, Peer, PeerState, Progress, Region, RegionId, RemoteRegion, Slice,
    TransportConfig,
};

const TRANSPORTS: [&str; 2] = ["shm", "tcp"];
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 96;
const BYTES: usize = (BLOCKS * BLOCK * 2) as usize;

fn transport(name: &str) -> TransportConfig {
    match name {
        "shm" => TransportConfig::shm(),
        _ => TransportConfig::tcp("127.0.0.1:0").connections(3),
    }
}

fn agent(name: &str, over: &str, progress: Progress) -> Agent {
    Agent::builder(name)
        .transports([transport(over)])
        .progress(progress)
        .ignore_environment()
        .build()
        .unwrap()
}

/// A byte that depends on who wrote it and where it is.
fn pattern(seed: u64, offset: u64) -> u8 {
    ((seed ^ offset).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 53) as u8
}

fn fill(region: &Region, seed: u64) {
    region.write(0, &(0..region.len()).map(|at| pattern(seed, at)).collect::<Vec<_>>()).unwrap();
}

fn bytes(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len() as usize];
    region.read(0, &mut bytes).unwrap();
    bytes
}

/// Blocks in an order of their own, with gaps.
fn local(region: RegionId) -> Descriptors {
    (0..BLOCKS).map(|i| (region, i * 5 % BLOCKS * 2 * BLOCK + 64, BLOCK)).collect()
}

fn remote(region: RegionId) -> Descriptors {
    (0..BLOCKS).map(|i| (region, i * 7 % BLOCKS * BLOCK, BLOCK)).collect()
}

/// What the far side must hold after a write, or the near side after a read.
fn check(seed: u64, whole: &[u8], target_is_remote: bool) {
    let mut written = vec![false; whole.len()];
    for i in 0..BLOCKS {
        let (l, r) = (i * 5 % BLOCKS * 2 * BLOCK + 64, i * 7 % BLOCKS * BLOCK);
        let (from, to) = if target_is_remote { (l, r) } else { (r, l) };
        for k in 0..BLOCK {
            let at = (to + k) as usize;
            assert_eq!(whole[at], pattern(seed, from + k), "block {i} byte {k}");
            written[at] = true;
        }
    }
    let strays = whole.iter().zip(written).filter(|(byte, written)| !written && **byte != 0).count();
    assert_eq!(strays, 0, "bytes outside the blocks changed");
}

#[test]
fn every_byte_arrives_both_ways_over_every_transport_in_both_modes() {
    for over in TRANSPORTS {
        for mode in MODES {
            for shared in [true, false] {
                let memory = || if shared { Memory::shared(BYTES) } else { Memory::private(BYTES) }.unwrap();
                let (here, there) = (agent("here", over, mode), agent("there", over, Progress::Thread));
                let (a, b) = (here.register(memory()).unwrap(), there.register(memory()).unwrap());
                let peer = here.connect(&there.metadata().unwrap()).unwrap();
                assert_eq!((peer.transport(), peer.regions().len()), (over, 1));
                fill(&a, 1);
                let plan = here.prepare(&peer, &local(a.id()), &remote(b.id())).unwrap();
                let report = plan.write().notify("w").post().unwrap().wait().unwrap();
                assert_eq!(report.bytes, BLOCKS * BLOCK);
                assert_eq!(there.wait_notification(PATIENCE).unwrap().message, b"w");
                check(1, &bytes(&b), true);
                a.fill(0, BYTES, 0).unwrap();
                fill(&b, 2);
                plan.read().post().unwrap().wait().unwrap();
                check(2, &bytes(&a), false);
            }
        }
    }
}

#[test]
fn the_first_transfer_to_a_new_peer_waits_for_no_timer() {
    for over in TRANSPORTS {
        for mode in MODES {
            let mut times: Vec<_> = std::thread::scope(|scope| {
                let meet = |_| {
                    let (here, there) = (agent("here", over, mode), agent("there", over, Progress::Thread));
                    let a = here.register(Memory::shared(4096).unwrap()).unwrap();
                    let b = there.register(Memory::shared(4096).unwrap()).unwrap();
                    let started = Instant::now();
                    let peer = here.connect(&there.metadata().unwrap()).unwrap();
                    let (from, to) = (a.slice(0, 4096).unwrap(), b.slice(0, 4096).unwrap());
                    let plan = here.prepare(&peer, &from, &to).unwrap();
                    let transfer = plan.write().post().unwrap();
                    transfer.wait_timeout(PATIENCE).expect("nobody woke up").unwrap();
                    started.elapsed()
                };
                // Several at a time: the order of their steps varies.
                let threads: Vec<_> =
                    (0..4).map(|_| scope.spawn(move || (0..25).map(meet).collect::<Vec<_>>())).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            times.sort_unstable();
            let median = times[times.len() / 2];
            assert!(median < Duration::from_millis(25), "{over} {mode:?}: {median:?}");
        }
    }
}

#[test]
fn large_transfers_are_left_to_the_thread_and_arrive_whole() {
    for over in TRANSPORTS {
        let len = 24 << 20;
        let (here, there) = (agent("here", over, Progress::Thread), agent("there", over, Progress::Thread));
        let a = here.register(Memory::shared(len).unwrap()).unwrap();
        let b = there.register(Memory::shared(len).unwrap()).unwrap();
        fill(&a, 3);
        let peer = here.connect(&there.metadata().unwrap()).unwrap();
        let all = |slice: Result<Slice, _>| slice.map(Descriptors::from).unwrap();
        let plan = here.prepare(&peer, &all(a.slice(0, len as u64)), &all(b.slice(0, len as u64))).unwrap();
        let transfer = plan.write().post().unwrap();
        pollster::block_on(transfer).unwrap();
        assert!(bytes(&a) == bytes(&b));
    }
}

#[test]
fn the_transport_is_chosen_by_reach_and_says_why_others_were_passed_over() {
    let both = |name: &str| {
        let transports = [TransportConfig::shm(), TransportConfig::tcp("127.0.0.1:0")];
        Agent::builder(name).transports(transports).ignore_environment().build().unwrap()
    };
    let (here, there) = (both("here"), both("there"));
    let peer = here.connect(&there.metadata().unwrap()).unwrap();
    assert_eq!((peer.transport(), peer.transport_choice().passed_over.len()), ("shm", 0));
    let far = agent("far", "tcp", Progress::Thread);
    let peer = here.connect(&far.metadata().unwrap()).unwrap();
    assert_eq!(peer.transport(), "tcp");
    let text = peer.transport_choice().to_string();
    assert_eq!(text, "tcp; not shm: the peer's metadata offers tcp, not shm");
    let near = agent("near", "shm", Progress::Thread);
    let error = near.connect(&far.metadata().unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("no transport reaches far: shm: "), "{error}");
    assert!(matches!(here.connect(&here.metadata().unwrap()), Err(kvrail::ConnectError::Itself)));
}

#[test]
fn a_transport_that_may_be_missing_is_passed_over_with_its_reason() {
    // Whatever this host has: a library that is none cannot be loaded.
    let nowhere =
        TransportConfig::ofi().provider("efa".parse().unwrap()).libfabric("/nowhere/libfabric.so.1");
    let build = |ofi: TransportConfig| {
        let transports = [ofi, TransportConfig::tcp("127.0.0.1:0")];
        Agent::builder("here").transports(transports).ignore_environment().build()
    };
    let here = build(nowhere.if_possible()).unwrap();
    let facts = here.facts();
    assert_eq!(facts.transports.iter().map(|t| t.name).collect::<Vec<_>>(), ["tcp"]);
    let [passed] = facts.passed_over.as_slice() else { panic!("{facts:?}") };
    assert_eq!(passed.transport, "ofi");
    let there = agent("there", "tcp", Progress::Thread);
    let peer = here.connect(&there.metadata().unwrap()).unwrap();
    let choice = peer.transport_choice().to_string();
    assert_eq!(choice, format!("tcp; not ofi: {}", passed.reason));
    let must = TransportConfig::ofi().provider("efa".parse().unwrap()).libfabric("/nowhere/libfabric.so.1");
    let error = build(must).unwrap_err().to_string();
    assert!(error.starts_with("transport ofi (from code) is not possible: "), "{error}");
}

#[test]
fn an_agent_says_what_it_runs_on() {
    let here = agent("here", "tcp", Progress::Thread);
    let facts = here.facts();
    assert_eq!(facts.transports[0].to_string(), "tcp, 3 rails, evidence delivered");
    assert_eq!((facts.transports[0].rate_bps(), &facts.transports[0].ofi), (0, &None));
}

#[test]
fn waiting_for_a_peer_ends_when_it_is_ready_and_says_what_was_counted_when_it_is_not() {
    for mode in MODES {
        let (here, there) = (agent("here", "tcp", mode), agent("there", "tcp", Progress::Thread));
        let peer = here.connect(&there.metadata().unwrap()).unwrap();
        peer.wait_ready(PATIENCE).unwrap();
        assert_eq!(peer.state(), PeerState::Ready);
        // Nobody listens there any more, and nobody says so: the process that held the port is this one.
        let deaf = agent("deaf", "tcp", Progress::Inline);
        let peer = here.connect(&deaf.metadata().unwrap()).unwrap();
        let error = peer.wait_ready(Duration::from_millis(50)).unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("deaf did not answer within 50ms: tcp, 3 rails: "), "{error}");
        assert_eq!(error.hints().iter().filter(|hint| hint.starts_with("rail tcp")).count(), 3);
    }
}

#[test]
fn a_taken_port_is_an_error_that_names_it_and_may_be_tried_again() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let build = |listen: &str| {
        Agent::builder("a").transports([TransportConfig::tcp(listen)]).ignore_environment().build()
    };
    let error = build(&at).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains(&at), "{error}");
    assert!(!build("nowhere").unwrap_err().is_retryable());
    assert!(Agent::builder("").build().is_err());
    assert!(Agent::builder("n".repeat(257)).build().is_err());
}

#[test]
fn threads_hammer_one_agent_over_real_transports() {
    for over in TRANSPORTS {
        for mode in MODES {
            let (here, there) = (agent("here", over, mode), agent("there", over, Progress::Thread));
            let a = here.register(Memory::shared(1 << 20).unwrap()).unwrap();
            let b = there.register(Memory::shared(1 << 20).unwrap()).unwrap();
            fill(&a, 4);
            let peer = here.connect(&there.metadata().unwrap()).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4u64 {
                    let (here, peer, a, b) = (&here, &peer, &a, &b);
                    scope.spawn(move || {
                        for i in 0..40 {
                            let at = (thread * 40 + i) * 4096;
                            let (from, to) = (a.slice(at, 4096).unwrap(), b.slice(at, 4096).unwrap());
                            let plan = here.prepare(peer, &from, &to).unwrap();
                            if i % 4 == 0 {
                                drop(plan.write().post().unwrap());
                            }
                            plan.write().post().unwrap().wait().unwrap();
                        }
                    });
                }
            });
            let moved = 160 * 4096;
            assert!(bytes(&a)[..moved] == bytes(&b)[..moved], "{over} {mode:?}");
        }
    }
}

#[test]
fn a_region_that_is_dropped_during_a_transfer_goes_when_it_has_ended() {
    for over in TRANSPORTS {
        let (here, there) = (agent("here", over, Progress::Thread), agent("there", over, Progress::Thread));
        let a = here.register(Memory::shared(8 << 20).unwrap()).unwrap();
        let b = there.register(Memory::shared(8 << 20).unwrap()).unwrap();
        let peer = here.connect(&there.metadata().unwrap()).unwrap();
        let plan = here.prepare(&peer, &a.slice(0, 8 << 20).unwrap(), &b.slice(0, 8 << 20).unwrap());
        let transfer = plan.unwrap().write().post().unwrap();
        a.deregister(PATIENCE).unwrap();
        assert!(
            transfer.wait_timeout(Duration::from_secs(1)).is_some(),
            "the region went before its transfer"
        );
        b.deregister(PATIENCE).unwrap();
    }
}

// Two processes: the test starts itself again as the peer.

const ROLE: &str = "KVRAIL_TEST_PEER_OVER";

/// The peer: serves until its standard input ends. Does nothing unless a test started it.
#[test]
fn peer_process() {
    let Ok(over) = std::env::var(ROLE) else { return };
    let agent = agent("there", &over, Progress::Thread);
    let region = agent.register(Memory::shared(BYTES).unwrap()).unwrap();
    let server = agent.serve("127.0.0.1:0").unwrap();
    println!("\nserving {}", server.local_addr());
    let peer = server.accept(PATIENCE).unwrap();
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "check" => {
                let written = agent.wait_notification(PATIENCE).unwrap();
                assert_eq!(written.message, b"written");
                check(9, &bytes(&region), true);
                fill(&region, 10);
                agent.send(&peer, "checked").unwrap();
            }
            other => panic!("{other}"),
        }
    }
}

struct PeerProcess {
    child: Child,
    address: String,
}

impl PeerProcess {
    fn start(over: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer_process", "--nocapture", "--test-threads=1"])
            .env(ROLE, over)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the peer process ended early").unwrap();
            if let Some(address) = line.strip_prefix("serving ") {
                break address.to_string();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(here: &Agent, process: &PeerProcess) -> (Peer, RemoteRegion) {
    let peer = here.connect_to(&process.address, PATIENCE).unwrap();
    let region = peer.regions()[0];
    (peer, region)
}

#[test]
fn blocks_move_between_two_processes() {
    for over in TRANSPORTS {
        for mode in MODES {
            let mut process = PeerProcess::start(over);
            let here = agent("here", over, mode);
            let a = here.register(Memory::shared(BYTES).unwrap()).unwrap();
            let (peer, b) = connect(&here, &process);
            fill(&a, 9);
            let plan = here.prepare(&peer, &local(a.id()), &remote(b.id)).unwrap();
            plan.write().notify("written").post().unwrap().wait().unwrap();
            process.tell("check");
            assert_eq!(here.wait_notification(PATIENCE).unwrap().message, b"checked");
            a.fill(0, BYTES, 0).unwrap();
            plan.read().post().unwrap().wait().unwrap();
            check(10, &bytes(&a), false);
        }
    }
}

#[test]
fn a_killed_process_ends_transfers_and_its_successor_is_a_new_peer() {
    for over in TRANSPORTS {
        let mut process = PeerProcess::start(over);
        let here = agent("here", over, Progress::Thread);
        let a = here.register(Memory::shared(BYTES).unwrap()).unwrap();
        let (peer, b) = connect(&here, &process);
        let plan = here.prepare(&peer, &local(a.id()), &remote(b.id)).unwrap();
        plan.write().post().unwrap().wait().unwrap();
        process.child.kill().unwrap();
        let killed = Instant::now();
        let error = loop {
            let posted = plan.write().timeout(Duration::from_secs(8)).post();
            match posted.map(|transfer| transfer.wait()) {
                Err(refused) => break refused.to_string(),
                Ok(Err(failed)) => break failed.to_string(),
                Ok(Ok(_)) => assert!(killed.elapsed() < PATIENCE, "{over}: nobody noticed"),
            }
        };
        assert!(error.contains("there"), "{error}");
        let process = PeerProcess::start(over);
        let (successor, region) = connect(&here, &process);
        assert_ne!(successor, peer);
        assert!(matches!(peer.state(), PeerState::Lost(_)));
        assert!(plan.write().post().is_err(), "a plan of the dead process was taken");
        let plan = here.prepare(&successor, &local(a.id()), &remote(region.id)).unwrap();
        plan.write().post().unwrap().wait().unwrap();
    }
}
