//! Engines on the simulated fabric, driven in virtual time by one loop, for tests that script what happens.
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Arc;
use std::time::Duration;

use kvrail_core::descriptor::Descriptors;
use kvrail_core::engine::{Engine, EngineConfig, EngineEvent, PostOptions};
use kvrail_core::id::{Incarnation, PeerId, RegionId, Token};
use kvrail_core::plan::Plan;
use kvrail_core::region::RegionTable;
use kvrail_core::time::Time;
use kvrail_core::transport::{Device, Direction, Transport};
use kvrail_core::wire::metadata::{Metadata, TransportMetadata};
use kvrail_sim::fabric::{NodeSpec, SimFabric, SimTransport};
use kvrail_sim::model::Model;

/// One agent with all its memory registered as one region.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) engine: Engine,
    pub(crate) transport: SimTransport,
    pub(crate) incarnation: Incarnation,
    pub(crate) table: RegionTable,
    pub(crate) events: Vec<(Time, EngineEvent)>,
    due: Time,
}

/// Agents, one per node, and virtual time.
pub(crate) struct Stage {
    pub(crate) fabric: SimFabric,
    pub(crate) agents: Vec<Option<Agent>>,
    pub(crate) config: EngineConfig,
    lives: u64,
}

pub(crate) fn rails(count: usize, rate_bps: u64, memory: u64) -> NodeSpec {
    NodeSpec { rails: vec![rate_bps; count], memory, sockets: 1 }
}

impl Stage {
    pub(crate) fn new(model: Model, nodes: Vec<NodeSpec>) -> Self {
        let count = nodes.len();
        let fabric = SimFabric::new(7, model, nodes, false);
        let config = EngineConfig::new("agent", Incarnation(1));
        let mut stage = Self { fabric, agents: Vec::new(), config, lives: 0 };
        for node in 0..count {
            stage.agents.push(None);
            stage.start(node);
        }
        stage
    }

    /// A process starts on a node.
    pub(crate) fn start(&mut self, node: usize) {
        self.lives += 1;
        let name = format!("agent-{node}");
        let incarnation = Incarnation(1_000 + self.lives);
        let config = EngineConfig { name: name.clone(), incarnation, ..self.config.clone() };
        let mut transport = self.fabric.transport(node);
        let mut engine = Engine::new(config, &transport).expect("a valid configuration");
        let mut table = RegionTable::new();
        let (base, len) = self.fabric.memory(node, |memory| (memory.base(), memory.len()));
        let region = table.insert(base, len, Device::Host).expect("a region");
        engine.add_region(&mut transport, &region).expect("registered");
        let due = self.fabric.now();
        self.agents[node] =
            Some(Agent { name, engine, transport, incarnation, table, events: Vec::new(), due });
    }

    /// The process on a node dies, and another one starts there.
    pub(crate) fn restart(&mut self, node: usize) {
        self.agents[node] = None;
        let _ = self.fabric.restart(node);
        self.start(node);
    }

    pub(crate) fn agent(&mut self, node: usize) -> &mut Agent {
        self.agents[node].as_mut().expect("it lives")
    }

    pub(crate) fn metadata(&self, of: usize) -> Metadata {
        let agent = self.agents[of].as_ref().expect("it lives");
        let regions: Vec<_> = agent.table.iter().copied().collect();
        let offer = TransportMetadata::of(&agent.transport, &regions);
        let name = agent.name.clone();
        Metadata { name, incarnation: agent.incarnation, transports: vec![offer], regions }
    }

    /// An agent is given another one's metadata.
    pub(crate) fn introduce(&mut self, to: usize, of: usize) -> PeerId {
        let (metadata, now) = (self.metadata(of), self.fabric.now());
        let agent = self.agent(to);
        agent.due = now;
        agent.engine.add_peer(now, &mut agent.transport, &metadata).expect("a peer")
    }

    /// Blocks of equal size, `stride` apart there and dense here.
    pub(crate) fn plan(&mut self, from: usize, to: PeerId, blocks: u64, len: u64, stride: u64) -> Arc<Plan> {
        let here: Descriptors = (0..blocks).map(|i| (RegionId(0), i * len, len)).collect();
        let there: Descriptors = (0..blocks).map(|i| (RegionId(0), i * stride, len)).collect();
        Arc::new(self.agent(from).engine.prepare(to, &here, &there).expect("a plan"))
    }

    pub(crate) fn post(&mut self, from: usize, plan: &Arc<Plan>, direction: Direction) -> Token {
        let now = self.fabric.now();
        let agent = self.agent(from);
        agent.due = now;
        agent.engine.post(now, plan, direction, PostOptions::default()).expect("posted")
    }

    /// Drives everybody who has a reason, until something holds; panics when virtual patience ends.
    pub(crate) fn until(&mut self, what: &str, patience: Duration, mut holds: impl FnMut(&mut Self) -> bool) {
        let give_up = self.fabric.now() + patience;
        loop {
            let now = self.fabric.now();
            let mut next = self.fabric.next_at();
            for node in 0..self.agents.len() {
                let woken = self.fabric.take_wake(node);
                let Some(agent) = self.agents[node].as_mut() else { continue };
                if woken || agent.due <= now {
                    while agent.engine.drive(now, &mut agent.transport) {}
                    agent.events.extend(std::iter::from_fn(|| agent.engine.poll_event()).map(|e| (now, e)));
                    let timer = agent.engine.poll_timeout().into_iter().chain(agent.transport.poll_timeout());
                    agent.due = timer.min().unwrap_or(Time::NEVER).max(Time(now.0 + 1));
                }
            }
            if holds(self) {
                return;
            }
            assert!(now < give_up, "waited {patience:?} for this: {what}");
            next = next.into_iter().chain(self.fabric.next_at()).min();
            for agent in self.agents.iter().flatten() {
                next = Some(next.map_or(agent.due, |next| next.min(agent.due)));
            }
            self.fabric.run_until(next.unwrap_or(give_up).min(give_up));
        }
    }

    /// Drives until a transfer has ended; how, and when it was heard of.
    pub(crate) fn ended(&mut self, node: usize, token: Token) -> (Time, EngineEvent) {
        let of =
            |event: &EngineEvent| matches!(event, EngineEvent::TransferEnded { token: t, .. } if *t == token);
        self.until("the transfer ends", Duration::from_secs(60), |stage| {
            stage.agent(node).events.iter().any(|(_, event)| of(event))
        });
        let events = &mut self.agent(node).events;
        let at = events.iter().position(|(_, event)| of(event)).expect("it was just there");
        events.remove(at)
    }

    /// Drives until two agents are ready for each other.
    pub(crate) fn acquaint(&mut self, a: usize, b: usize) -> (PeerId, PeerId) {
        let ids = (self.introduce(a, b), self.introduce(b, a));
        self.until("both are ready", Duration::from_secs(5), |stage| {
            let ready = |stage: &mut Self, node, id| {
                stage
                    .agent(node)
                    .engine
                    .peer(id)
                    .is_some_and(|p| p.state == kvrail_core::engine::PeerState::Ready)
            };
            ready(stage, a, ids.0) && ready(stage, b, ids.1)
        });
        ids
    }
}
