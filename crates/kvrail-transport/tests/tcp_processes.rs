//! TCP between processes: killed, stopped, replaced, and in network namespaces with the link cut between them.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Initiator, Offer, Process, Target, fill, holds, quick, serve_as_target, tell};
use kvrail_core::transport::{Direction, OpError};
use kvrail_transport::tcp::Config;

const LEN: usize = 8 << 20;
const BLOCK: usize = 16 << 10;

/// Not a test of its own: the body of target processes.
#[test]
fn role_target() {
    if let Ok(listen) = std::env::var("KVRAIL_ROLE") {
        let listen = vec![listen.parse().expect("an address")];
        serve_as_target(Config { listen, ..quick() }, LEN);
    }
}

fn target() -> (Process, Offer) {
    let mut process = Process::start(&[], "role_target", "127.0.0.1:0");
    let offer = Offer::from_line(&process.line());
    (process, offer)
}

fn met(offer: &Offer) -> Initiator {
    let mut initiator = Initiator::new(quick(), LEN);
    initiator.meet(offer);
    initiator.write_and_read_back(1, BLOCK);
    assert_eq!(initiator.failures, 0, "nothing went wrong yet");
    initiator
}

#[test]
fn bytes_move_between_processes() {
    let (_process, offer) = target();
    let mut initiator = met(&offer);
    initiator.write_and_read_back(2, 1_000);
    assert_eq!((initiator.failures, initiator.resets), (0, 0));
    let counters = initiator.tcp.rail_counters();
    assert!(
        counters.iter().all(|c| c.ops_completed > 0 && c.tx_bytes > 0 && c.connects == 1),
        "{counters:?}"
    );
}

#[test]
fn a_killed_peer_is_gone_and_its_ops_end() {
    let (mut process, offer) = target();
    let mut initiator = met(&offer);
    let ops = initiator.cover(BLOCK).repeat(16);
    let begin = Instant::now();
    for direction in [Direction::Write, Direction::Read] {
        let outcome = initiator.run(direction, &ops, Duration::from_secs(10), |_| {
            let _ = process.child.kill();
            let _ = process.child.wait();
        });
        assert_eq!(outcome.unresolved, 0, "{outcome:?}");
    }
    assert!(initiator.gone, "the kernel of a dead process refuses: that is certain enough");
    assert!(begin.elapsed() < Duration::from_secs(5), "a dead process is found quickly");
}

#[test]
fn a_stopped_peer_is_found_by_deadline_and_comes_back() {
    let (process, offer) = target();
    let mut initiator = met(&offer);
    // More than the queues hold, so that some are not even posted when it happens.
    let ops = initiator.cover(BLOCK).repeat(16);
    let stopped = Instant::now();
    let outcome = initiator.run(Direction::Write, &ops, Duration::from_secs(2), |_| process.signal("-STOP"));
    assert_eq!(outcome.unresolved, 0, "{outcome:?}");
    assert!(!outcome.failed.is_empty(), "a stopped process places nothing");
    assert!(stopped.elapsed() < Duration::from_secs(4));
    assert!(!initiator.gone, "silent is not gone");
    process.signal("-CONT");
    initiator.write_and_read_back(3, BLOCK);
}

#[test]
fn a_successor_on_the_same_port_is_somebody_else() {
    let (mut process, offer) = target();
    let mut initiator = met(&offer);
    let _ = process.child.kill();
    let _ = process.child.wait();
    // The port is in the last two bytes of the address.
    let port =
        offer.address[offer.address.len() - 2..].try_into().map(u16::from_le_bytes).expect("two bytes");
    let listen = vec![([127, 0, 0, 1], port).into()];
    let mut successor = Target::new(Config { listen, ..quick() }, LEN);
    fill(&successor.memory, LEN, 77);
    let server = std::thread::spawn(move || {
        successor.poll_for(Duration::from_secs(1));
        successor
    });
    let ops = initiator.cover(BLOCK);
    let outcome = initiator.run(Direction::Write, &ops, Duration::from_secs(5), |_| ());
    assert_eq!((outcome.unresolved, outcome.completed), (0, 0), "{outcome:?}");
    assert!(initiator.gone, "the predecessor is gone");
    let gone_for_good = |e: &OpError| matches!(e, OpError::PeerRestarted | OpError::RailDown);
    assert!(outcome.failed.iter().all(gone_for_good), "{:?}", outcome.failed.first());
    let successor = server.join().expect("it polls");
    assert!(holds(&successor.memory, LEN, 77), "the successor's memory is its own");
}

// --- network namespaces ---

/// Two namespaces joined by a veth pair, removed when dropped.
struct Net {
    names: [String; 2],
}

impl Net {
    /// `None`, said aloud, where namespaces cannot be had; with `CI=true` that is a failure.
    fn new(test: &str) -> Option<Self> {
        let tag = format!("{:x}{}", std::process::id(), &test[..1]);
        let names = [format!("kvr{tag}a"), format!("kvr{tag}b")];
        let net = Self { names };
        let [a, b] = &net.names;
        let (va, vb) = (format!("v{tag}a"), format!("v{tag}b"));
        let steps = [
            vec!["netns", "add", a],
            vec!["netns", "add", b],
            vec!["link", "add", &va, "netns", a, "type", "veth", "peer", "name", &vb, "netns", b],
            vec!["-n", a, "link", "set", &va, "name", "link0"],
            vec!["-n", b, "link", "set", &vb, "name", "link0"],
            vec!["-n", a, "address", "add", "10.77.0.1/24", "dev", "link0"],
            vec!["-n", b, "address", "add", "10.77.0.2/24", "dev", "link0"],
            vec!["-n", a, "link", "set", "link0", "up"],
            vec!["-n", b, "link", "set", "link0", "up"],
        ];
        for step in &steps {
            if let Err(why) = ip(step) {
                assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test}: {why}");
                eprintln!("SKIPPED {test}: needs root and iproute2: {why}");
                return None;
            }
        }
        Some(net)
    }

    fn link(&self, state: &str) {
        ip(&["-n", &self.names[0], "link", "set", "link0", state]).expect("the link was set before");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|e| format!("ip: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {}", args.join(" "), said.trim())) }
}

/// Not a test of its own: the body of the initiator process in a namespace.
#[test]
fn role_initiator() {
    let Ok(offer) = std::env::var("KVRAIL_ROLE") else { return };
    let offer = Offer::from_line(&offer);
    let listen = vec!["10.77.0.1:0".parse().expect("an address")];
    let mut initiator = Initiator::new(Config { listen, ..quick() }, LEN);
    initiator.meet(&offer);
    initiator.write_and_read_back(1, BLOCK);
    fill(&initiator.memory, LEN, 5);
    let ops = initiator.cover(BLOCK).repeat(16);
    let patience = Duration::from_secs(25);
    let mut told = false;
    initiator.insist(Direction::Write, &ops, patience, |_| {
        if !std::mem::replace(&mut told, true) {
            tell("half");
            // The rest is posted while the parent cuts the link.
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    initiator.write_and_read_back(6, BLOCK);
    let counters = initiator.tcp.counters();
    assert!(!initiator.gone, "a cut link is not a dead peer");
    tell(&format!("failures {} resets {} {counters:?}", initiator.failures, initiator.resets));
}

#[test]
fn a_cut_link_loses_no_op_and_the_rails_return() {
    let Some(net) = Net::new("a_cut_link_loses_no_op_and_the_rails_return") else { return };
    let [a, b] = &net.names;
    let mut target = Process::start(&["ip", "netns", "exec", b], "role_target", "10.77.0.2:0");
    let offer = target.line();
    let mut initiator = Process::start(&["ip", "netns", "exec", a], "role_initiator", &offer);
    assert_eq!(initiator.line(), "half");
    net.link("down");
    std::thread::sleep(Duration::from_millis(2_500));
    net.link("up");
    let told = initiator.line();
    let failures: usize = told.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    eprintln!("{told}");
    assert!(failures > 0, "the cut was not felt: {told}");
}
