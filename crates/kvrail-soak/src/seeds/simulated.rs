//! The script in the simulator, in virtual time: the same engine over [`SimFabric`], with the emulated device's figures.

use std::time::Duration;

use kvrail_core::descriptor::Descriptors;
use kvrail_core::engine::{Engine, EngineConfig, EngineEvent, PostOptions};
use kvrail_core::id::{Incarnation, PeerId, RegionId, Token};
use kvrail_core::region::RegionTable;
use kvrail_core::time::Time;
use kvrail_core::transport::{Device, Direction, Transport};
use kvrail_core::wire::metadata::{Metadata, TransportMetadata};
use kvrail_sim::fabric::{NodeSpec, SimFabric, SimTransport};
use kvrail_sim::model::{Chaos, Fault, MS, Model, US};
use kvrail_sim::rng::{Rng, mix};

use super::script::{LATE_US, PEER_TIMEOUT_MS, RATE_BPS, REGION, STALL_MS, TIMEOUT_MS, UNRESPONSIVE_MS};
use super::{End, Event, Played, Script, Strike};
use crate::fleet::Extents;
use crate::layout::Layout;
use crate::pattern::Bytes;
use crate::talk::{Class, Way};

/// More steps than this is a livelock.
const STEPS_MAX: u64 = 20_000_000;
/// How much later than its deadline a transfer may end.
const BOUND_MS: u64 = 2_000;
/// How long a new process takes to be introduced.
const INTRODUCE: u64 = 20 * MS;
/// When, after everything has mended and ended, more is asked for.
const PAUSE: u64 = 50 * MS;

/// What the world asks to be called for.
#[derive(Clone, Copy)]
enum Call {
    Wake(usize),
    Event(usize),
    Cancel(usize),
    Introduce(usize),
    Heal,
    /// Look whether all is over, and go on.
    Look,
}

impl Call {
    fn pack(self) -> u64 {
        let (kind, number) = match self {
            Self::Wake(node) => (0, node),
            Self::Event(index) => (1, index),
            Self::Cancel(number) => (2, number),
            Self::Introduce(to) => (3, to),
            Self::Heal => (4, 0),
            Self::Look => (5, 0),
        };
        kind | (number as u64) << 8
    }

    fn unpack(bits: u64) -> Self {
        let number = (bits >> 8) as usize;
        match bits & 0xFF {
            0 => Self::Wake(number),
            1 => Self::Event(number),
            2 => Self::Cancel(number),
            3 => Self::Introduce(number),
            4 => Self::Heal,
            _ => Self::Look,
        }
    }
}

/// One process.
struct Agent {
    engine: Engine,
    transport: SimTransport,
    table: RegionTable,
    region: RegionId,
    name: String,
    incarnation: Incarnation,
    extents: Extents,
    /// The other node as it is known: its life.
    peer: Option<(PeerId, u64)>,
    wake_at: u64,
    life: u64,
}

/// A transfer under way.
#[derive(Clone)]
struct Move {
    token: Token,
    lives: [u64; 2],
    layout: Layout,
    local: u64,
    remote: u64,
    began: Time,
    notified: u32,
}

struct World<'a> {
    script: &'a Script,
    fabric: SimFabric,
    agents: [Option<Agent>; 2],
    moves: Vec<Option<Move>>,
    played: Played,
    rng: Rng,
    /// The transfer of the second phase that comes next.
    next: usize,
    mended: bool,
    over: bool,
}

/// Plays a script in virtual time.
#[must_use]
pub fn play(script: &Script) -> Played {
    let model = Model {
        linger: 20 * MS,
        stall_timeout: STALL_MS * MS,
        unresponsive: UNRESPONSIVE_MS * MS,
        latency: 12 * US,
        jitter: 8 * US,
        tail_ppm: 1_000,
        op_bytes_max: 8 << 20,
        ops_in_flight_max: 2048,
        receives_max: 1024,
        reset_replaces_endpoint: true,
        ..Model::default()
    };
    let nodes =
        script.rails.map(|rails| NodeSpec { rails: vec![RATE_BPS; rails], memory: REGION, sockets: 1 });
    let fabric = SimFabric::new(mix(script.seed ^ 0xFAB), model, nodes.to_vec(), false);
    let count = script.posts.len();
    let mut world = World {
        script,
        fabric,
        agents: [None, None],
        moves: vec![None; count],
        played: Played { ends: vec![None; count], wrong: Vec::new() },
        rng: Rng::new(mix(script.seed ^ 0x51A7)),
        next: script.demanded,
        mended: false,
        over: false,
    };
    world.play();
    world.played
}

impl World<'_> {
    fn play(&mut self) {
        for node in 0..2 {
            self.start(node);
        }
        for node in 0..2 {
            self.call(INTRODUCE, Call::Introduce(node));
        }
        let begins = 2 * INTRODUCE;
        for (index, (at, _)) in self.script.events.iter().enumerate() {
            self.call(begins + at * MS, Call::Event(index));
        }
        self.call(begins + self.script.heal_ms * MS, Call::Heal);
        for _ in 0..STEPS_MAX {
            let Some(step) = self.fabric.step() else { break };
            if let Some(bits) = step {
                self.called(Call::unpack(bits));
            }
            for node in 0..2 {
                if self.fabric.take_wake(node) {
                    let soon = self.fabric.now().0 + self.rng.within(500, 5 * US);
                    self.wake(node, soon);
                }
            }
            if self.over {
                break;
            }
        }
        if !self.over {
            self.wrong("the world stands still or does not end".into());
        }
        let found: Vec<String> = self.fabric.violations().iter().map(ToString::to_string).collect();
        self.played.wrong.extend(found);
    }

    fn wrong(&mut self, what: String) {
        self.played.wrong.push(what);
    }

    fn call(&self, after: u64, call: Call) {
        self.fabric.schedule(Time(self.fabric.now().0 + after), call.pack());
    }

    fn called(&mut self, call: Call) {
        match call {
            Call::Wake(node) => {
                let due = self.agents[node].as_ref().is_some_and(|a| a.wake_at <= self.fabric.now().0);
                if due {
                    self.drive(node);
                }
            }
            Call::Event(index) => match self.script.events[index].1 {
                Event::Post(number) => self.post(number),
                Event::Strike(strike) => self.strike(strike),
            },
            Call::Cancel(number) => self.cancel(number),
            Call::Introduce(to) => self.introduce(to),
            Call::Heal => {
                self.fabric.inject(Fault::Heal);
                self.mended = true;
                self.call(PAUSE, Call::Look);
            }
            Call::Look => self.look(),
        }
    }

    /// The second phase: one after the other, when all of the first has ended.
    fn look(&mut self) {
        if !self.mended || self.moves.iter().any(Option::is_some) {
            return self.call(PAUSE, Call::Look);
        }
        if self.next == self.script.demanded {
            (0..2).for_each(|node| self.introduce(node));
        }
        if self.next == self.script.posts.len() {
            self.over = true;
            return;
        }
        let number = self.next;
        self.next += 1;
        self.post(number);
        self.call(PAUSE, Call::Look);
    }

    fn start(&mut self, node: usize) {
        let transport = self.fabric.transport(node);
        let incarnation = Incarnation(self.rng.bits() | 1);
        let name = format!("node-{node}");
        let mut config = EngineConfig::new(name.clone(), incarnation);
        config.peer_timeout = Duration::from_millis(PEER_TIMEOUT_MS);
        let life = self.fabric.life(node).0;
        let mut agent = match Engine::new(config, &transport) {
            Ok(engine) => Agent {
                engine,
                transport,
                table: RegionTable::new(),
                region: RegionId(0),
                name,
                incarnation,
                extents: Extents::new(REGION),
                peer: None,
                wake_at: u64::MAX,
                life,
            },
            Err(error) => return self.wrong(format!("node {node} has no engine: {error}")),
        };
        let base = self.fabric.memory(node, |memory| memory.base());
        let registered = match agent.table.insert(base, REGION, Device::Host) {
            Ok(info) => {
                agent.region = info.id;
                agent.engine.add_region(&mut agent.transport, &info).map_err(|error| format!("{error:?}"))
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = registered {
            self.wrong(format!("node {node} cannot register: {error}"));
        }
        self.agents[node] = Some(agent);
    }

    fn introduce(&mut self, to: usize) {
        let now = self.fabric.now();
        let Some(other) = self.agents[1 - to].as_ref() else { return };
        let (metadata, life) = (other.metadata(), other.life);
        let Some(agent) = self.agents[to].as_mut() else { return };
        let result = Metadata::decode(&metadata)
            .map_err(|error| error.to_string())
            .and_then(|m| agent.engine.add_peer(now, &mut agent.transport, &m).map_err(|e| e.to_string()));
        match result {
            Ok(id) => agent.peer = Some((id, life)),
            Err(error) => self.wrong(format!("node {to} cannot add the other: {error}")),
        }
        self.wake_soon(to);
    }

    fn strike(&mut self, strike: Strike) {
        let rail = |node, rail| (node, rail);
        match strike {
            Strike::RailDown(node, rail) => self.fabric.inject(Fault::RailDown { node, rail }),
            Strike::RailSilent(node, rail) => self.fabric.inject(Fault::RailSilent { node, rail }),
            Strike::RailUp(node, rail) => self.fabric.inject(Fault::RailUp { node, rail }),
            Strike::BlackHole(from, to) => {
                self.fabric.inject(Fault::BlackHole { from: rail(from.0, from.1), to: rail(to.0, to.1) });
            }
            Strike::Partition => self.fabric.inject(Fault::Partition { a: 0, b: 1 }),
            Strike::Heal => self.fabric.inject(Fault::Heal),
            Strike::Late => {
                let chaos = Chaos { reorder_ppm: 1_000_000, delay_max: LATE_US * US, ..Chaos::CALM };
                self.fabric.inject(Fault::Chaos(chaos));
            }
            Strike::Restart(node) => {
                self.agents[node] = None;
                let _ = self.fabric.restart(node);
                for number in 0..self.moves.len() {
                    if self.script.posts[number].from == node && self.moves[number].is_some() {
                        self.end(number, End::Abandoned);
                    }
                }
                self.start(node);
                self.call(INTRODUCE, Call::Introduce(0));
                self.call(INTRODUCE, Call::Introduce(1));
            }
        }
    }

    fn post(&mut self, number: usize) {
        let post = self.script.posts[number];
        let (a, b) = (post.from, 1 - post.from);
        let now = self.fabric.now();
        let layout = post.shape.layout();
        let unposted = |world: &mut Self| world.played.ends[number] = Some((End::Unposted, 0));
        let [Some(one), Some(two)] = &mut self.agents else { return unposted(self) };
        let (agent, other) = if a == 0 { (one, two) } else { (two, one) };
        let Some((peer, life)) = agent.peer else { return unposted(self) };
        if life != other.life {
            return unposted(self);
        }
        let local = agent.extents.take(layout.local_bytes, &mut self.rng);
        let remote = other.extents.take(layout.remote_bytes, &mut self.rng);
        let (Some(local), Some(remote)) = (local, remote) else {
            return self.wrong(format!("transfer {number} has no room"));
        };
        let spans = || layout.spans.iter();
        let ours: Descriptors = spans().map(|s| (agent.region, local + s.local, s.len)).collect();
        let theirs: Descriptors = spans().map(|s| (other.region, remote + s.remote, s.len)).collect();
        let lives = [agent.life, other.life];
        let plan = match agent.engine.prepare(peer, &ours, &theirs) {
            Ok(plan) => std::sync::Arc::new(plan),
            Err(_) => {
                self.played.ends[number] = Some((End::Failed(Class::UnknownPeer), 0));
                return;
            }
        };
        let (source, target) = if post.way == Way::Write { (a, b) } else { (b, a) };
        let at =
            |node: usize| if node == a { (local, layout.local_bytes) } else { (remote, layout.remote_bytes) };
        for (node, moved) in [(source, true), (target, false)] {
            let (offset, bytes) = at(node);
            let mut extent = vec![0; bytes as usize];
            self.expect(number, &layout, node == a, moved, &mut extent);
            self.fabric.memory(node, |memory| {
                let base = memory.base();
                if let Some(bytes) = memory.slice_mut(base + offset, bytes) {
                    bytes.copy_from_slice(&extent);
                }
            });
        }
        let direction = if post.way == Way::Write { Direction::Write } else { Direction::Read };
        let options = PostOptions {
            notification: post.notify.then(|| (number as u64).to_le_bytes().to_vec()),
            timeout: Some(Duration::from_millis(TIMEOUT_MS)),
        };
        let Some(agent) = self.agents[a].as_mut() else { return };
        match agent.engine.post(now, &plan, direction, options) {
            Ok(token) => {
                let moving = Move { token, lives, layout, local, remote, began: now, notified: 0 };
                self.moves[number] = Some(moving);
                if let Some(us) = post.cancel_us {
                    self.call(us * US, Call::Cancel(number));
                }
            }
            Err(_) => self.played.ends[number] = Some((End::Failed(Class::UnknownPeer), 0)),
        }
        self.wake_soon(a);
    }

    /// What should be in an extent: poison, and the pattern in the slices when `moved`.
    fn expect(&self, number: usize, layout: &Layout, local: bool, moved: bool, out: &mut [u8]) {
        Bytes::poison(self.script.seed, number as u64, u64::from(local)).fill(0, out);
        if moved {
            for span in &layout.spans {
                let offset = if local { span.local } else { span.remote } as usize;
                let slice = &mut out[offset..offset + span.len as usize];
                Bytes::of_transfer(self.script.seed, number as u64).fill(span.position, slice);
            }
        }
    }

    /// Whether all bytes of a transfer are at its target, and nothing else.
    fn is_there(&self, number: usize, moving: &Move) -> bool {
        let post = self.script.posts[number];
        let local = post.way == Way::Read;
        let (node, offset, bytes) = if local {
            (post.from, moving.local, moving.layout.local_bytes)
        } else {
            (1 - post.from, moving.remote, moving.layout.remote_bytes)
        };
        let mut wanted = vec![0; bytes as usize];
        self.expect(number, &moving.layout, local, true, &mut wanted);
        self.fabric.memory(node, |memory| {
            let base = memory.base();
            memory.slice(base + offset, bytes).is_some_and(|seen| seen == wanted)
        })
    }

    fn cancel(&mut self, number: usize) {
        let now = self.fabric.now();
        let (Some(moving), from) = (&self.moves[number], self.script.posts[number].from) else { return };
        if let Some(agent) = self.agents[from].as_mut().filter(|agent| agent.life == moving.lives[0]) {
            agent.engine.cancel(now, moving.token);
            self.wake_soon(from);
        }
    }

    fn wake_soon(&mut self, node: usize) {
        let at = self.fabric.now().0 + US;
        self.wake(node, at);
    }

    fn wake(&mut self, node: usize, at: u64) {
        let Some(agent) = self.agents[node].as_mut() else { return };
        if at < agent.wake_at {
            agent.wake_at = at;
            self.fabric.schedule(Time(at), Call::Wake(node).pack());
        }
    }

    fn drive(&mut self, node: usize) {
        let now = self.fabric.now();
        let Some(agent) = self.agents[node].as_mut() else { return };
        agent.wake_at = u64::MAX;
        let busy = agent.engine.drive(now, &mut agent.transport);
        let events: Vec<EngineEvent> = std::iter::from_fn(|| agent.engine.poll_event()).collect();
        let next = agent.engine.poll_timeout().into_iter().chain(agent.transport.poll_timeout()).min();
        for event in events {
            self.hear(node, event);
        }
        if let Some(at) = next {
            self.wake(node, at.0.max(now.0 + 500));
        }
        if busy {
            self.wake(node, now.0 + 2 * US);
        }
    }

    fn hear(&mut self, node: usize, event: EngineEvent) {
        match event {
            EngineEvent::TransferEnded { token, result, .. } => {
                let life = self.agents[node].as_ref().map_or(0, |agent| agent.life);
                let of = |moving: &Option<Move>| {
                    moving.as_ref().is_some_and(|m| m.token == token && m.lives[0] == life)
                };
                let number = (0..self.moves.len())
                    .find(|number| self.script.posts[*number].from == node && of(&self.moves[*number]));
                let Some(number) = number else {
                    return self
                        .wrong(format!("node {node} ended a transfer that was never posted, or twice"));
                };
                let end = result.map_or_else(|error| End::Failed(Class::of_engine(&error)), |_| End::Done);
                self.end(number, end);
            }
            EngineEvent::Notification { message, .. } => {
                let number =
                    message.try_into().map_or(usize::MAX, |m: [u8; 8]| u64::from_le_bytes(m) as usize);
                self.notified(number);
            }
            EngineEvent::PeerLost { .. } => {
                // Its application finds the peer again.
                self.call(INTRODUCE, Call::Introduce(node));
            }
            _ => {}
        }
    }

    fn notified(&mut self, number: usize) {
        let Some(moving) = self.moves.get_mut(number).and_then(Option::as_mut) else { return };
        moving.notified += 1;
        if moving.notified > 1 {
            self.wrong(format!("transfer {number} was notified twice"));
        }
        let moving = self.moves[number].clone();
        if let Some(moving) = moving
            && self.script.posts[number].way == Way::Write
            && !self.is_there(number, &moving)
        {
            self.wrong(format!("transfer {number} was notified before its bytes were there"));
        }
    }

    fn end(&mut self, number: usize, end: End) {
        let Some(moving) = self.moves[number].take() else { return };
        let took_ms = self.fabric.now().since(moving.began).as_millis() as u64;
        let post = self.script.posts[number];
        let target_lives = match post.way {
            Way::Read => true,
            Way::Write => self.agents[1 - post.from].as_ref().is_some_and(|a| a.life == moving.lives[1]),
        };
        if end == End::Done && target_lives && !self.is_there(number, &moving) {
            self.wrong(format!("transfer {number} is done and its bytes are not there"));
        }
        if took_ms > TIMEOUT_MS + BOUND_MS {
            self.wrong(format!("transfer {number} ended after {took_ms} ms"));
        }
        for (node, life, offset) in
            [(post.from, moving.lives[0], moving.local), (1 - post.from, moving.lives[1], moving.remote)]
        {
            if let Some(agent) = self.agents[node].as_mut().filter(|agent| agent.life == life) {
                agent.extents.give_back(offset);
            }
        }
        self.played.ends[number] = Some((end, took_ms));
    }
}

impl Agent {
    fn metadata(&self) -> Vec<u8> {
        let regions: Vec<_> = self.table.iter().copied().collect();
        let offer = TransportMetadata::of(&self.transport, &regions);
        let (name, incarnation) = (self.name.clone(), self.incarnation);
        Metadata { name, incarnation, transports: vec![offer], regions }.encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_play_to_their_end_in_virtual_time_and_what_is_asked_for_after_healing_succeeds() {
        let mut done = 0;
        for seed in 0..60 {
            let script = Script::of(seed);
            let played = play(&script);
            assert!(played.wrong.is_empty(), "seed {seed}: {:?}; {}", played.wrong, script.summary());
            assert!(played.ends.iter().all(Option::is_some), "seed {seed}: {:?}", played.ends);
            let demanded = &played.ends[script.demanded..];
            assert!(
                demanded.iter().all(|end| matches!(end, Some((End::Done, _)))),
                "seed {seed}: {demanded:?}; {}",
                script.summary()
            );
            done += played.ends.iter().filter(|end| matches!(end, Some((End::Done, _)))).count();
        }
        assert!(done > 300, "{done}");
    }

    #[test]
    fn a_seed_plays_the_same_way_twice() {
        for seed in 0..10 {
            let script = Script::of(seed);
            assert_eq!(play(&script).ends, play(&script).ends);
        }
    }
}
