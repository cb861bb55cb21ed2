//! One agent's end in a test: a transport, its clock, and what it has heard.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::time::{Duration, Instant};

use kvrail_core::id::{Generation, LocalRail, PeerId, RegionId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Device, Direction, Event, Op, OpError, PostError, RegionInfo, Transport,
};
use kvrail_transport::Fabric;
use kvrail_transport::memory::Mapping;
use kvrail_transport::shm::{Config, Shm};

pub const ROUTE: Route = Route { local: LocalRail(0), remote: RemoteRail(0) };
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn peer(slot: u32) -> PeerId {
    PeerId { slot, generation: Generation(1) }
}

pub fn info(id: u32, memory: &Mapping) -> RegionInfo {
    RegionInfo {
        id: RegionId(id),
        generation: Generation(1),
        base: memory.as_ptr() as u64,
        len: memory.len() as u64,
        device: Device::Host,
    }
}

pub fn op(local: u32, local_offset: u64, remote: u32, remote_offset: u64, len: u32) -> Op {
    Op { local_region: RegionId(local), local_offset, remote_region: RegionId(remote), remote_offset, len }
}

/// Byte `i` of a memory that was filled with `seed`.
pub fn pattern(seed: u64, i: u64) -> u8 {
    ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

pub fn paint(memory: &Mapping, seed: u64) {
    let bytes: Vec<u8> = (0..memory.len() as u64).map(|i| pattern(seed, i)).collect();
    memory.write(0, &bytes);
}

pub fn bytes(memory: &Mapping, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    memory.read(offset as usize, &mut out);
    out
}

/// How each op of a post ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub completed: u32,
    pub failed: Vec<(u32, OpError)>,
}

pub struct Agent {
    pub shm: Shm,
    origin: Instant,
    pub events: Vec<Event>,
    pub messages: Vec<Vec<u8>>,
    pub gone: Vec<PeerId>,
    tokens: u32,
}

impl Agent {
    pub fn new(config: Config) -> Self {
        Self {
            shm: Shm::open(config).unwrap(),
            origin: Instant::now(),
            events: Vec::new(),
            messages: Vec::new(),
            gone: Vec::new(),
            tokens: 0,
        }
    }

    pub fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    pub fn address(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.shm.address(&mut out);
        out
    }

    pub fn key(&self, region: u32) -> Vec<u8> {
        let mut out = Vec::new();
        self.shm.region_key(RegionId(region), &mut out);
        out
    }

    pub fn add(&mut self, slot: u32, address: &[u8]) {
        let now = self.now();
        self.shm.add_peer(now, peer(slot), address).unwrap();
    }

    pub fn poll(&mut self) {
        let now = self.now();
        let from = self.events.len();
        self.shm.poll(now, &mut self.events);
        let mut i = from;
        while i < self.events.len() {
            match &self.events[i] {
                Event::Message { .. } => {
                    let Event::Message { bytes, .. } = self.events.remove(i) else { unreachable!() };
                    self.messages.push(bytes);
                }
                Event::PeerGone { peer } => {
                    self.gone.push(*peer);
                    self.events.remove(i);
                }
                _ => i += 1,
            }
        }
    }

    /// Posts all ops and waits until each has ended exactly once. `meanwhile` runs between polls.
    pub fn run(&mut self, slot: u32, direction: Direction, ops: &[Op], mut meanwhile: impl FnMut()) -> Ended {
        self.try_run(slot, direction, ops, &mut meanwhile).expect("the post was refused")
    }

    pub fn try_run(
        &mut self,
        slot: u32,
        direction: Direction,
        ops: &[Op],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Ended, PostError> {
        self.tokens += 1;
        let token = Token { slot: self.tokens, generation: Generation(1) };
        let mut seen = vec![false; ops.len()];
        let mut ended = Ended::default();
        let mut posted = 0;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if posted < ops.len() {
                let batch = Batch {
                    peer: peer(slot),
                    route: ROUTE,
                    direction,
                    token,
                    first: posted as u32,
                    ops: &ops[posted..],
                    immediate: None,
                };
                let now = self.now();
                match self.shm.post(now, &batch) {
                    Ok(taken) => posted += taken,
                    Err(error) if posted == 0 => return Err(error),
                    Err(_) => posted = ops.len(),
                }
            }
            self.poll();
            for event in self.events.drain(..) {
                let (first, count, error) = match event {
                    Event::Completed { token: t, first, count } if t == token => (first, count, None),
                    Event::Failed { token: t, first, count, error } if t == token => {
                        (first, count, Some(error))
                    }
                    other => panic!("unexpected {other:?}"),
                };
                for i in first..first + count {
                    assert!(!std::mem::replace(&mut seen[i as usize], true), "op {i} ended twice");
                    match error {
                        None => ended.completed += 1,
                        Some(error) => ended.failed.push((i, error)),
                    }
                }
            }
            let done = seen.iter().filter(|s| **s).count();
            if done == posted && posted == ops.len() {
                ended.failed.sort_by_key(|f| f.0);
                return Ok(ended);
            }
            if !self.gone.is_empty() && done == posted {
                return Ok(ended);
            }
            assert!(Instant::now() < deadline, "{done} of {} ops ended ({posted} posted)", ops.len());
            meanwhile();
        }
    }

    pub fn send(&mut self, slot: u32, message: &[u8]) -> bool {
        let now = self.now();
        self.shm.send(now, peer(slot), ROUTE, message).unwrap()
    }

    /// Sleeps as an engine does: on the descriptor, when there is nothing to do.
    pub fn sleep(&mut self, at_most: Duration) {
        if self.shm.arm() {
            let mut poll = libc::pollfd { fd: self.shm.wait_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = if self.shm.poll_timeout().is_some() { 1 } else { at_most.as_millis() as i32 };
            // SAFETY: one entry, which lives through the call.
            let _ = unsafe { libc::poll(&raw mut poll, 1, timeout) };
        }
    }
}

/// Runs until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
