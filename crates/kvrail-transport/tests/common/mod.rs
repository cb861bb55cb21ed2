//! A small stand-in for the engine, and targets in processes of their own, for the tests of real fabrics.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kvrail_conformance::host::{Memory, PrivateMemory};
use kvrail_core::id::{Generation, LocalRail, PeerId, RegionId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Device, Direction, Event, Op, OpError, PostError, RegionInfo, Transport,
};
use kvrail_transport::tcp::{Config, Tcp};

/// Settings under which a test notices trouble within a second.
pub(crate) fn quick() -> Config {
    Config {
        connect_timeout: Duration::from_millis(500),
        dead_after: Duration::from_secs(1),
        stall_timeout: Duration::from_millis(400),
        fence_timeout: Duration::from_millis(400),
        backoff: (Duration::from_millis(5), Duration::from_millis(100)),
        ..Config::default()
    }
}

pub(crate) fn region(id: u32, memory: &PrivateMemory, len: usize) -> RegionInfo {
    let (id, generation) = (RegionId(id), Generation(1));
    RegionInfo { id, generation, base: memory.base(), len: len as u64, device: Device::Host }
}

pub(crate) const PEER: PeerId = PeerId { slot: 0, generation: Generation(1) };

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
}

/// A byte that depends on its position and a seed.
pub(crate) fn byte(seed: u64, at: usize) -> u8 {
    let x = (at as u64 ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 40) as u8
}

pub(crate) fn fill(memory: &PrivateMemory, len: usize, seed: u64) {
    memory.write(0, &(0..len).map(|at| byte(seed, at)).collect::<Vec<u8>>());
}

pub(crate) fn holds(memory: &PrivateMemory, len: usize, seed: u64) -> bool {
    let mut bytes = vec![0; len];
    memory.read(0, &mut bytes);
    bytes.iter().enumerate().all(|(at, b)| *b == byte(seed, at))
}

/// An initiator with one peer that does what an engine does: posts, retries what may be retried, resets what stalls,
/// and keeps books about every op.
pub(crate) struct Initiator {
    pub(crate) tcp: Tcp,
    pub(crate) memory: PrivateMemory,
    pub(crate) len: usize,
    pub(crate) origin: Instant,
    pub(crate) gone: bool,
    pub(crate) failures: usize,
    pub(crate) resets: usize,
    pub(crate) routes: Vec<Route>,
    tokens: u32,
}

/// How a posting of many ops went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) completed: usize,
    pub(crate) failed: Vec<OpError>,
    pub(crate) unresolved: usize,
}

impl Initiator {
    pub(crate) fn new(config: Config, len: usize) -> Self {
        let memory = PrivateMemory::new(len);
        let mut tcp = Tcp::new(config).expect("listens");
        tcp.register(&region(0, &memory, len)).expect("host memory");
        let (origin, routes) = (Instant::now(), Vec::new());
        Self { tcp, memory, len, origin, gone: false, failures: 0, resets: 0, routes, tokens: 0 }
    }

    pub(crate) fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    pub(crate) fn meet(&mut self, target: &Offer) {
        let now = self.now();
        let rails = self.tcp.add_peer(now, PEER, &target.address).expect("a valid address").len();
        self.routes =
            (0..rails as u16).map(|i| Route { local: LocalRail(i), remote: RemoteRail(i) }).collect();
        self.tcp.import_region(PEER, &target.region, &[]).expect("a valid region");
    }

    /// Ops of `block` bytes that together cover the whole memory, place for place.
    pub(crate) fn cover(&self, block: usize) -> Vec<Op> {
        let op = |at: usize| Op {
            local_offset: at as u64,
            remote_offset: at as u64,
            local_region: RegionId(0),
            remote_region: RegionId(0),
            len: block.min(self.len - at) as u32,
        };
        (0..self.len).step_by(block).map(op).collect()
    }

    /// Posts ops, once each; `at_half` is called when half of them are resolved. Ends when all are resolved, or when
    /// `patience` is over; resets routes that stall.
    pub(crate) fn run(
        &mut self,
        direction: Direction,
        ops: &[Op],
        patience: Duration,
        mut at_half: impl FnMut(&mut Self),
    ) -> Outcome {
        self.tokens += 1;
        let token = Token { slot: self.tokens, generation: Generation(1) };
        let mut resolved = vec![false; ops.len()];
        let mut outcome = Outcome { completed: 0, failed: Vec::new(), unresolved: 0 };
        let (mut posted, mut done, mut half) = (0, 0, false);
        let (give_up, mut moved) = (Instant::now() + patience, Instant::now());
        let mut events = Vec::new();
        while done < ops.len() && Instant::now() < give_up {
            if posted < ops.len() && !self.gone {
                let route = self.routes[posted / 64 % self.routes.len()];
                let end = (posted / 64 * 64 + 64).min(ops.len());
                let first = posted as u32;
                let batch = Batch {
                    peer: PEER,
                    route,
                    direction,
                    token,
                    first,
                    ops: &ops[posted..end],
                    immediate: None,
                };
                match self.tcp.post(self.now(), &batch) {
                    Ok(taken) => posted += taken,
                    Err(PostError::RouteDown) => {}
                    Err(e) => panic!("post: {e:?}"),
                }
            }
            self.tcp.poll(self.now(), &mut events);
            let mut resolve = |first: u32, count: u32| {
                for (op, i) in resolved[first as usize..][..count as usize].iter_mut().zip(first..) {
                    assert!(!std::mem::replace(op, true), "op {i} was resolved twice");
                }
                done += count as usize;
            };
            let quiet = events.is_empty();
            for event in events.drain(..) {
                match event {
                    Event::Completed { token: t, first, count } if t == token => {
                        resolve(first, count);
                        outcome.completed += count as usize;
                    }
                    Event::Failed { token: t, first, count, error } if t == token => {
                        resolve(first, count);
                        outcome.failed.extend((0..count).map(|_| error));
                    }
                    Event::PeerGone { .. } => self.gone = true,
                    Event::SendFailed { .. } => {}
                    other => panic!("unexpected: {other:?}"),
                }
            }
            if !quiet {
                moved = Instant::now();
            } else if moved.elapsed() > self.tcp.caps().stall_timeout && posted > done {
                self.resets += 1;
                moved = Instant::now();
                for route in self.routes.clone() {
                    self.tcp.reset(self.now(), PEER, route);
                }
            } else {
                std::thread::yield_now();
            }
            if self.gone && posted == done {
                break;
            }
            if !half && done >= ops.len() / 2 {
                half = true;
                at_half(self);
            }
        }
        outcome.unresolved = posted - done;
        self.failures += outcome.failed.len();
        outcome
    }

    /// Runs ops until each has succeeded.
    pub(crate) fn insist(
        &mut self,
        direction: Direction,
        ops: &[Op],
        patience: Duration,
        mut at_half: impl FnMut(&mut Self),
    ) {
        let give_up = Instant::now() + patience;
        loop {
            let outcome = self.run(direction, ops, patience, &mut at_half);
            assert_eq!(outcome.unresolved, 0, "ops without an end: {outcome:?}");
            if outcome.completed == ops.len() {
                return;
            }
            assert!(Instant::now() < give_up, "still failing: {:?}", outcome.failed.first());
        }
    }

    /// Writes a pattern over the target's whole memory, reads it back into emptied memory, and compares.
    pub(crate) fn write_and_read_back(&mut self, seed: u64, block: usize) {
        let patience = Duration::from_secs(20);
        let ops = self.cover(block);
        fill(&self.memory, self.len, seed);
        self.insist(Direction::Write, &ops, patience, |_| ());
        fill(&self.memory, self.len, seed + 1);
        self.insist(Direction::Read, &ops, patience, |_| ());
        assert!(holds(&self.memory, self.len, seed), "the bytes that came back are not those that were sent");
    }
}

/// What a target tells an initiator.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) address: Vec<u8>,
    pub(crate) region: RegionInfo,
}

impl Offer {
    pub(crate) fn to_line(&self) -> String {
        format!("{} {} {}", hex(&self.address), self.region.base, self.region.len)
    }

    pub(crate) fn from_line(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let [address, base, len] = words[..] else { panic!("not an offer: {line}") };
        let (base, len) = (base.parse().expect("a number"), len.parse().expect("a number"));
        let (id, generation, device) = (RegionId(0), Generation(1), Device::Host);
        Self { address: unhex(address), region: RegionInfo { id, generation, base, len, device } }
    }
}

/// A target of this process.
pub(crate) struct Target {
    pub(crate) tcp: Tcp,
    pub(crate) memory: PrivateMemory,
    pub(crate) len: usize,
    pub(crate) origin: Instant,
    pub(crate) events: Vec<Event>,
}

impl Target {
    pub(crate) fn new(config: Config, len: usize) -> Self {
        let memory = PrivateMemory::new(len);
        let mut tcp = Tcp::new(config).expect("listens");
        tcp.register(&region(0, &memory, len)).expect("host memory");
        Self { tcp, memory, len, origin: Instant::now(), events: Vec::new() }
    }

    pub(crate) fn offer(&self) -> Offer {
        let mut address = Vec::new();
        self.tcp.address(&mut address);
        Offer { address, region: region(0, &self.memory, self.len) }
    }

    pub(crate) fn poll(&mut self) {
        self.tcp.poll(Time::ZERO + self.origin.elapsed(), &mut self.events);
    }

    /// Polls for a while.
    pub(crate) fn poll_for(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            self.poll();
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

const MARK: &str = "@kvrail ";

/// Says something to the parent process; the test harness prints lines of its own between.
pub(crate) fn tell(line: &str) {
    // On a line of its own: the harness leaves its own line unfinished.
    println!("\n{MARK}{line}");
    std::io::stdout().flush().expect("the parent listens");
}

/// A test of this binary, run as a process of its own.
pub(crate) struct Process {
    pub(crate) child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts the test `role` of this binary with `KVRAIL_ROLE` set to `argument`, through a launcher if one is given
    /// (`ip netns exec NAME`).
    pub(crate) fn start(launcher: &[&str], role: &str, argument: &str) -> Self {
        let exe = std::env::current_exe().expect("this binary");
        let mut words = launcher.iter().map(std::ffi::OsStr::new).chain([exe.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the binary"));
        command.args(words).args(["--exact", role, "--nocapture", "--test-threads=1"]);
        command.env("KVRAIL_ROLE", argument).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdin, stdout }
    }

    /// The next line that the process tells.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line).expect("a pipe");
            assert!(read > 0, "the process ended early: {:?}", self.child.wait());
            if let Some(told) = line.trim_end().strip_prefix(MARK) {
                return told.to_owned();
            }
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill");
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The role of a target process: offers its memory and polls until its parent closes standard input.
pub(crate) fn serve_as_target(config: Config, len: usize) {
    let mut target = Target::new(config, len);
    tell(&target.offer().to_line());
    let parent = std::thread::spawn(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    while !parent.is_finished() {
        for _ in 0..100 {
            target.poll();
        }
        target.events.clear();
        std::thread::sleep(Duration::from_micros(50));
    }
}
