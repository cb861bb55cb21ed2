//! The engine's own cost, without any fabric: nanoseconds per descriptor to prepare and to post, per transfer of one
//! op, and how that grows with the number of peers. Run with `cargo bench -p kvrail-core`.
//!
//! The fabric here takes every op and completes it at the next poll without touching memory, so that all time is
//! the planner's and the engine's. Figures are medians of 15 runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail_core::descriptor::Descriptors;
use kvrail_core::engine::{Engine, EngineConfig, EngineEvent, PostOptions};
use kvrail_core::id::{Incarnation, LocalRail, PeerId, RegionId, Route};
use kvrail_core::region::RegionTable;
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Device, Direction, Event, Evidence, PeerError, PostError, RailInfo, RegionInfo,
    RegisterError, Transport,
};
use kvrail_core::wire::control::{Body, Greeting, Header, read_message, write_message};
use kvrail_core::wire::metadata::{Keys, Metadata, TransportMetadata};

const RUNS: usize = 15;
const BLOCK: u64 = 32 << 10;

/// Completes everything at once, and answers greetings in the peers' stead.
struct Null {
    caps: Caps,
    rails: Vec<RailInfo>,
    events: Vec<Event>,
    one_by_one: bool,
}

impl Null {
    fn new(rails: usize, one_by_one: bool) -> Self {
        let caps = Caps {
            name: "null",
            evidence: Evidence::Delivered,
            op_bytes_max: 1 << 20,
            message_bytes_max: 1 << 16,
            ops_in_flight_max: 1 << 20,
            turn_ops_max: u32::MAX,
            receives_max: 1 << 16,
            linger: Duration::ZERO,
            stall_timeout: Duration::from_secs(5),
        };
        let rail = |i| RailInfo { name: format!("null{i}"), rate_bps: 100_000_000_000 };
        Self { caps, rails: (0..rails).map(rail).collect(), events: Vec::new(), one_by_one }
    }
}

impl Transport for Null {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn rails(&self) -> &[RailInfo] {
        &self.rails
    }
    fn address(&self, out: &mut Vec<u8>) {
        out.push(0);
    }
    fn register(&mut self, _: &RegionInfo) -> Result<(), RegisterError> {
        Ok(())
    }
    fn region_key(&self, _: RegionId, _: &mut Vec<u8>) {}
    fn deregister(&mut self, _: RegionId) -> Result<(), String> {
        Ok(())
    }
    fn add_peer(&mut self, _: Time, _: PeerId, _: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        Ok(self.rails.clone())
    }
    fn remove_peer(&mut self, _: Time, _: PeerId) {}
    fn import_region(&mut self, _: PeerId, _: &RegionInfo, _: &[u8]) -> Result<(), PeerError> {
        Ok(())
    }
    fn post(&mut self, _: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let count = batch.ops.len() as u32;
        if self.one_by_one {
            let each = |i| Event::Completed { token: batch.token, first: batch.first + i, count: 1 };
            self.events.extend((0..count).map(each));
        } else {
            self.events.push(Event::Completed { token: batch.token, first: batch.first, count });
        }
        Ok(batch.ops.len())
    }
    fn send(&mut self, _: Time, _: PeerId, _: Route, message: &[u8]) -> Result<bool, PostError> {
        if let Ok((header, Body::Hello(hello))) = read_message(message) {
            let greeting = Greeting {
                name: "peer".into(),
                address: vec![0],
                credit: 0,
                slots: vec![],
                nonce: hello.nonce,
            };
            let (link, sender_link) = (header.sender_link, 0);
            let header = Header { from: header.to, to: header.from, link, sender_link, ..header };
            let mut bytes = Vec::new();
            write_message(&mut bytes, &header, &Body::Welcome(greeting).encode());
            self.events.push(Event::Message { rail: LocalRail(0), bytes });
        }
        Ok(true)
    }
    fn poll(&mut self, _: Time, events: &mut Vec<Event>) {
        events.append(&mut self.events);
    }
    fn reset(&mut self, _: Time, _: PeerId, _: Route) {}
}

struct World {
    engine: Engine,
    fabric: Null,
    peers: Vec<PeerId>,
    epoch: Instant,
}

impl World {
    fn new(peers: u64, rails: usize, one_by_one: bool) -> Self {
        let mut fabric = Null::new(rails, one_by_one);
        let mut engine = Engine::new(EngineConfig::new("bench", Incarnation(1)), &fabric).expect("valid");
        let mut table = RegionTable::new();
        let region = table.insert(1 << 40, 1 << 30, Device::Host).expect("a region");
        engine.add_region(&mut fabric, &region).expect("registered");
        let mut world = Self { engine, fabric, peers: Vec::new(), epoch: Instant::now() };
        for i in 0..peers {
            let mut keys = Keys::default();
            keys.push_with(|_| {});
            let rails = world.fabric.rails.clone();
            let metadata = Metadata {
                name: format!("peer-{i}"),
                incarnation: Incarnation(100 + i),
                transports: vec![TransportMetadata { name: "null".into(), address: vec![0], rails, keys }],
                regions: vec![region],
            };
            let now = world.now();
            world.peers.push(world.engine.add_peer(now, &mut world.fabric, &metadata).expect("added"));
        }
        while world.drive() {}
        while world.engine.poll_event().is_some() {}
        world
    }

    fn now(&self) -> Time {
        Time(self.epoch.elapsed().as_nanos() as u64)
    }

    fn drive(&mut self) -> bool {
        let now = self.now();
        self.engine.drive(now, &mut self.fabric)
    }

    /// Posts and drives until the transfer ended.
    fn transfer(&mut self, plan: &Arc<kvrail_core::plan::Plan>) {
        let now = self.now();
        self.engine.post(now, plan, Direction::Write, PostOptions::default()).expect("posted");
        loop {
            self.drive();
            if let Some(EngineEvent::TransferEnded { result, .. }) = self.engine.poll_event() {
                result.expect("done");
                return;
            }
        }
    }
}

/// Blocks at odd multiples, so that no two are adjacent.
fn scattered(blocks: u64) -> Descriptors {
    (0..blocks).map(|i| (RegionId(0), (i * 7919 % 16_384) * 2 * BLOCK, BLOCK)).collect()
}

fn median(mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS).map(|_| run()).collect();
    times.sort_unstable();
    times[RUNS / 2]
}

fn main() {
    let blocks = 12_800;
    let list = scattered(blocks);
    for rails in [1, 4, 32] {
        for one_by_one in [false, true] {
            let mut world = World::new(1, rails, one_by_one);
            let peer = world.peers[0];
            let prepare = median(|| {
                let start = Instant::now();
                drop(world.engine.prepare(peer, &list, &list).expect("a plan"));
                start.elapsed()
            });
            let plan = Arc::new(world.engine.prepare(peer, &list, &list).expect("a plan"));
            let post = median(|| {
                let start = Instant::now();
                world.transfer(&plan);
                start.elapsed()
            });
            println!(
                "{blocks} blocks, {rails:2} rails, completions {}: prepare {:6.1} us ({:4.1} ns/descriptor), post to end {:6.1} us ({:4.1} ns/descriptor)",
                if one_by_one { "singly" } else { "in runs" },
                prepare.as_nanos() as f64 / 1e3,
                prepare.as_nanos() as f64 / blocks as f64,
                post.as_nanos() as f64 / 1e3,
                post.as_nanos() as f64 / blocks as f64,
            );
        }
    }
    for peers in [1u64, 10, 100, 1000] {
        let mut world = World::new(peers, 1, false);
        let one = scattered(1);
        let plans: Vec<_> = world
            .peers
            .clone()
            .into_iter()
            .map(|p| Arc::new(world.engine.prepare(p, &one, &one).expect("a plan")))
            .collect();
        let rounds = 20_000 / plans.len();
        let time = median(|| {
            let start = Instant::now();
            for _ in 0..rounds {
                plans.iter().for_each(|plan| world.transfer(plan));
            }
            start.elapsed() / (rounds * plans.len()) as u32
        });
        println!("{peers:4} peers, transfers of one op: {} ns each", time.as_nanos());
    }
}
