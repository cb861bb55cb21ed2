//! What the library itself costs: `cargo bench -p kvrail --bench facade`.
//!
//! Lone latencies are the median of rounds; everything else is the best of several runs, because on a busy machine
//! the best run is the one that was disturbed least.

use std::collections::HashMap;
use std::hint::black_box;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvrail::{Agent, Descriptors, Memory, Plan, Progress, Region, TransportConfig};
use kvrail_core::id::{LocalRail, PeerId, RegionId, Route};
use kvrail_core::limits::MESSAGE_BYTES_MIN;
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Event, Evidence, PeerError, PostError, RailInfo, RegionInfo, RegisterError, Transport,
};
use kvrail_transport::Fabric;

fn main() {
    if std::env::args().any(|argument| argument == "hot") {
        return hot();
    }
    if cfg!(debug_assertions) {
        println!("a debug build: its figures mean nothing");
    }
    creation();
    regions();
    preparation();
    for progress in [Progress::Inline, Progress::Thread] {
        latency("nothing (engine and facade)", progress, null);
        latency("shm", progress, TransportConfig::shm);
        latency("tcp", progress, || TransportConfig::tcp("127.0.0.1:0"));
    }
    per_descriptor();
}

/// Nothing but posting and waiting, for a profiler: `cargo bench -p kvrail --bench facade -- hot`.
fn hot() {
    let pair = pair(Progress::Inline, 1 << 20, null);
    let plan = plan(&pair, 1, 4096);
    let mut transfer = plan.write().post().unwrap();
    transfer.wait().unwrap();
    const ROUNDS: u32 = 10_000_000;
    let (_, took) = timed(|| {
        for _ in 0..ROUNDS {
            transfer.post().unwrap();
            transfer.wait().unwrap();
        }
    });
    println!("{:?} each", took / ROUNDS);
}

fn agent(name: &str, progress: Progress, transport: TransportConfig) -> Agent {
    Agent::builder(name).transports([transport]).progress(progress).build().unwrap()
}

fn best(rounds: usize, mut run: impl FnMut() -> Duration) -> Duration {
    (0..rounds).map(|_| run()).min().unwrap()
}

fn timed<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let output = body();
    (output, started.elapsed())
}

fn creation() {
    let took = best(20, || timed(|| Agent::builder("a").ignore_environment().build().unwrap()).1);
    println!("create an agent with shm and tcp: {took:?}");
}

fn regions() {
    const COUNT: usize = 10_000;
    let [mut register, mut export, mut import, mut drops] = [Duration::MAX; 4];
    let mut bytes = 0;
    for _ in 0..7 {
        let here = Agent::builder("here").ignore_environment().build().unwrap();
        let there = Agent::builder("there").ignore_environment().build().unwrap();
        let whole = Memory::shared(COUNT * 8192).unwrap();
        let list: Vec<_> = (0..COUNT).map(|i| whole.slice(i * 8192 + i % 61 * 64, 4096).unwrap()).collect();
        let (held, took) = timed(|| there.register_many(list).unwrap());
        register = register.min(took);
        let (metadata, took) = timed(|| there.metadata().unwrap());
        export = export.min(took);
        bytes = metadata.len();
        import = import.min(timed(|| here.connect(&metadata).unwrap()).1);
        drops = drops.min(timed(|| drop(held)).1);
    }
    println!(
        "10,000 regions: register {register:?}, metadata {bytes} bytes in {export:?}, import {import:?}, \
         deregister {drops:?}"
    );
}

/// Two agents that know each other, with a region each.
struct Pair {
    here: Agent,
    _there: Agent,
    source: Region,
    target: Region,
    peer: kvrail::Peer,
}

fn pair(progress: Progress, bytes: usize, transport: fn() -> TransportConfig) -> Pair {
    // The target drives itself, as another process would.
    let (here, there) = (agent("here", progress, transport()), agent("there", Progress::Thread, transport()));
    let memory = || {
        let memory = Memory::shared(bytes).unwrap();
        memory.fill(0, bytes, 1).unwrap();
        memory
    };
    let source = here.register(memory()).unwrap();
    let target = there.register(memory()).unwrap();
    let peer = here.connect(&there.metadata().unwrap()).unwrap();
    Pair { here, _there: there, source, target, peer }
}

fn scattered(region: RegionId, count: u64, block: u64) -> Descriptors {
    (0..count).map(|i| (region, (i * 7919 % count) * 2 * block, block)).collect()
}

fn preparation() {
    const COUNT: u64 = 12_800;
    let pair = pair(Progress::Inline, COUNT as usize * 8192, TransportConfig::shm);
    let (local, remote) =
        (scattered(pair.source.id(), COUNT, 4096), scattered(pair.target.id(), COUNT, 4096));
    let took = best(50, || timed(|| black_box(pair.here.prepare(&pair.peer, &local, &remote).unwrap())).1);
    println!("prepare 12,800 descriptors: {took:?}");
}

fn plan(pair: &Pair, count: u64, block: u64) -> Plan {
    let (local, remote) =
        (scattered(pair.source.id(), count, block), scattered(pair.target.id(), count, block));
    pair.here.prepare(&pair.peer, &local, &remote).unwrap()
}

fn latency(name: &str, progress: Progress, transport: fn() -> TransportConfig) {
    const ROUNDS: usize = 20_000;
    let pair = pair(progress, 1 << 20, transport);
    let plan = plan(&pair, 1, 4096);
    let mut transfer = plan.write().post().unwrap();
    transfer.wait().unwrap();
    let p = |mut times: Vec<Duration>| {
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let fresh: Vec<_> =
        (0..ROUNDS).map(|_| timed(|| plan.write().post().unwrap().wait().unwrap()).1).collect();
    let again: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let run = || {
                transfer.post().unwrap();
                transfer.wait().unwrap()
            };
            timed(run).1
        })
        .collect();
    let clock: Vec<_> = (0..ROUNDS).map(|_| timed(|| ()).1).collect();
    // Without a clock reading around each: what a loop of such transfers costs.
    let (_, loop_took) = timed(|| {
        for _ in 0..ROUNDS {
            transfer.post().unwrap();
            transfer.wait().unwrap();
        }
    });
    println!(
        "4 KiB write over {name}, {progress:?}: post + wait p50 {:?} p99 {:?}; same handle p50 {:?}; \
         loop {:?} each; of which the measurement {:?}",
        p(fresh.clone()).0,
        p(fresh).1,
        p(again).0,
        loop_took / ROUNDS as u32,
        p(clock).0
    );
}

fn per_descriptor() {
    const COUNT: u64 = 12_800;
    let pair = pair(Progress::Inline, 1 << 20, null);
    let (local, remote) = (
        (0..COUNT).map(|i| (pair.source.id(), i * 7919 % 8192 * 128, 64)).collect::<Descriptors>(),
        (0..COUNT).map(|i| (pair.target.id(), i * 7919 % 8192 * 128, 64)).collect::<Descriptors>(),
    );
    let plan = pair.here.prepare(&pair.peer, &local, &remote).unwrap();
    let mut transfer = plan.write().post().unwrap();
    transfer.wait().unwrap();
    let took = best(200, || {
        let run = || {
            transfer.post().unwrap();
            transfer.wait().unwrap()
        };
        timed(run).1
    });
    let each = took.as_secs_f64() * 1e9 / COUNT as f64;
    println!("engine and facade per descriptor, 12,800 in one plan: {each:.1} ns");
}

/// A fabric that completes everything at once and touches no memory: what is left is the engine's and the facade's
/// own cost. Messages do travel, for the greeting.
struct Null {
    caps: Caps,
    rails: Vec<RailInfo>,
    events: Vec<Event>,
    node: Arc<Node>,
    peers: HashMap<PeerId, Arc<Node>>,
}

struct Node {
    mail: Mutex<Vec<Vec<u8>>>,
    full: AtomicBool,
    bell: OwnedFd,
}

static NODES: Mutex<Vec<Arc<Node>>> = Mutex::new(Vec::new());

fn null() -> TransportConfig {
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let node = Arc::new(Node { mail: Mutex::default(), full: AtomicBool::new(false), bell });
    NODES.lock().unwrap().push(node.clone());
    let caps = Caps {
        name: "null",
        evidence: Evidence::Delivered,
        op_bytes_max: 1 << 20,
        message_bytes_max: MESSAGE_BYTES_MIN,
        ops_in_flight_max: 1 << 16,
        turn_ops_max: u32::MAX,
        receives_max: 1 << 16,
        linger: Duration::ZERO,
        stall_timeout: Duration::from_secs(10),
    };
    let rails = vec![RailInfo { name: "null0".into(), rate_bps: 0 }];
    TransportConfig::custom(Box::new(Null { caps, rails, events: Vec::new(), node, peers: HashMap::new() }))
}

impl Transport for Null {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn rails(&self) -> &[RailInfo] {
        &self.rails
    }
    fn address(&self, out: &mut Vec<u8>) {
        let index = NODES.lock().unwrap().iter().position(|node| Arc::ptr_eq(node, &self.node)).unwrap();
        out.extend_from_slice(&index.to_le_bytes());
    }
    fn register(&mut self, _: &RegionInfo) -> Result<(), RegisterError> {
        Ok(())
    }
    fn region_key(&self, _: RegionId, _: &mut Vec<u8>) {}
    fn deregister(&mut self, _: RegionId) -> Result<(), String> {
        Ok(())
    }
    fn add_peer(&mut self, _: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        let index = usize::from_le_bytes(address.try_into().unwrap());
        self.peers.insert(peer, NODES.lock().unwrap()[index].clone());
        Ok(self.rails.clone())
    }
    fn remove_peer(&mut self, _: Time, peer: PeerId) {
        self.peers.remove(&peer);
    }
    fn import_region(&mut self, _: PeerId, _: &RegionInfo, _: &[u8]) -> Result<(), PeerError> {
        Ok(())
    }
    fn post(&mut self, _: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let (token, first, count) = (batch.token, batch.first, batch.ops.len() as u32);
        self.events.push(Event::Completed { token, first, count });
        Ok(batch.ops.len())
    }
    fn send(&mut self, _: Time, peer: PeerId, _: Route, message: &[u8]) -> Result<bool, PostError> {
        let to = self.peers.get(&peer).ok_or(PostError::UnknownPeer)?;
        to.mail.lock().unwrap().push(message.to_vec());
        to.full.store(true, Ordering::Release);
        rustix::io::write(&to.bell, &1u64.to_ne_bytes()).unwrap();
        Ok(true)
    }
    fn poll(&mut self, _: Time, events: &mut Vec<Event>) {
        events.append(&mut self.events);
        if self.node.full.load(Ordering::Acquire) {
            self.node.full.store(false, Ordering::Release);
            let mail = std::mem::take(&mut *self.node.mail.lock().unwrap());
            events.extend(mail.into_iter().map(|bytes| Event::Message { rail: LocalRail(0), bytes }));
        }
    }
    fn reset(&mut self, _: Time, _: PeerId, _: Route) {}
}

impl Fabric for Null {
    fn wait_fd(&self) -> RawFd {
        self.node.bell.as_raw_fd()
    }
    fn arm(&mut self) -> bool {
        let _ = rustix::io::read(&self.node.bell, &mut [0; 8]);
        !self.node.full.load(Ordering::Acquire) && self.events.is_empty()
    }
}
