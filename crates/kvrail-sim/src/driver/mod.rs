//! One run: agents over the fabric, a workload, troubles, healing, and the questions of the checkers.
//!
//! An agent is called when something arrived for it or when its engine's own deadline is due, never otherwise: an engine
//! that waits without a deadline stands still here, and is found out (KR-4).

mod agent;
mod layout;
mod ledger;
mod work;

use core::time::Duration;

use kvrail_core::engine::{EngineConfig, EngineEvent};
use kvrail_core::error::PeerLostCause;
use kvrail_core::limits::SLOTS_PER_PEER;
use kvrail_core::time::Time;
use kvrail_core::transport::Transport;
use kvrail_core::wire::metadata::Metadata;

use crate::canary::Canary;
use crate::fabric::SimFabric;
use crate::model::{Fault, MS, US};
use crate::rng::{Rng, mix};
use crate::scenario::{Scenario, Trouble};
use crate::violation::{Checker, Violation};
use agent::Agent;
use ledger::{Ledger, RemoteEnd, untag};

/// What the driver asked to be called for.
#[derive(Clone, Copy, Debug)]
enum Call {
    Wake(usize),
    Act,
    Trouble(usize),
    Heal,
    /// Demand progress, once everybody knows each other again.
    Demand,
    Cancel(usize),
    /// Ranges of a dead initiator's transfer return to their owner.
    Reclaim(usize),
    /// Node learns of node.
    Introduce(usize, usize),
    Register(usize, usize),
    /// Everybody learns of everybody once more.
    Meet,
    /// Everybody says goodbye.
    Close,
    Stop,
}

impl Call {
    fn pack(self) -> u64 {
        let (kind, a, b) = match self {
            Self::Wake(node) => (0, node, 0),
            Self::Act => (1, 0, 0),
            Self::Trouble(index) => (2, index, 0),
            Self::Heal => (3, 0, 0),
            Self::Demand => (4, 0, 0),
            Self::Cancel(index) => (5, index, 0),
            Self::Reclaim(index) => (6, index, 0),
            Self::Introduce(to, of) => (7, to, of),
            Self::Register(node, area) => (8, node, area),
            Self::Close => (9, 0, 0),
            Self::Stop => (10, 0, 0),
            Self::Meet => (11, 0, 0),
        };
        kind | (a as u64) << 8 | (b as u64) << 32
    }

    fn unpack(bits: u64) -> Self {
        let (a, b) = ((bits >> 8) as usize & 0xFF_FFFF, (bits >> 32) as usize);
        match bits & 0xFF {
            0 => Self::Wake(a),
            1 => Self::Act,
            2 => Self::Trouble(a),
            3 => Self::Heal,
            4 => Self::Demand,
            5 => Self::Cancel(a),
            6 => Self::Reclaim(a),
            7 => Self::Introduce(a, b),
            8 => Self::Register(a, b),
            9 => Self::Close,
            10 => Self::Stop,
            _ => Self::Meet,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Breaking,
    Healing,
    Demanding,
    Closing,
    Over,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What the checkers found; the run stops soon after the first.
    pub violations: Vec<Violation>,
    /// Equal for equal runs.
    pub hash: u64,
    /// Virtual time of the run.
    pub virtual_time: Time,
    /// Transfers posted, and how many of them succeeded.
    pub transfers: (usize, usize),
    /// Text of the run, when asked for.
    pub trace: Vec<String>,
    /// The scenario in a line.
    pub summary: String,
}

/// After healing, everything ends within this.
const PATIENCE: u64 = 60_000 * MS;
/// Steps of one run; more is a livelock.
const STEPS_MAX: u64 = 3_000_000;

struct Run {
    seed: u64,
    rng: Rng,
    fabric: SimFabric,
    scenario: Scenario,
    config: EngineConfig,
    canary: Option<Canary>,
    agents: Vec<Option<Agent>>,
    /// Longest wait between an arrival and the poll that sees it, per node, ns.
    delays: Vec<u64>,
    ledger: Ledger,
    stage: Stage,
    posted: u32,
    /// Pairs of lives of which one side lost the other: what was promised between them may be lost too.
    parted: Vec<(ledger::Life, ledger::Life)>,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, canary: Option<Canary>, trace: bool) -> Verdict {
    let mut rng = Rng::new(seed);
    let scenario = Scenario::new(&mut rng.fork());
    let fabric = SimFabric::new(mix(seed ^ 0xFAB), scenario.model.clone(), scenario.nodes.clone(), trace);
    fabric.territory(crate::territory::Territory::enable);
    let mut config = EngineConfig::new("agent", kvrail_core::id::Incarnation(1));
    config.stripe_bytes_min = rng.pick(&[256, 1024]);
    config.transfer_timeout = Duration::from_secs(20);
    config.peer_timeout = Duration::from_millis(rng.pick(&[20, 50, 10_000, 10_000]));
    config.route_retry = Duration::from_micros(rng.pick(&[100, 1000]));
    config.inbox_messages_max = scenario.mix.inbox_messages_max;
    config.transfers_max = scenario.mix.transfers_max;
    let nodes = scenario.nodes.len();
    let mut run = Run {
        seed,
        rng,
        fabric,
        scenario,
        config,
        canary,
        agents: Vec::new(),
        delays: vec![2 * US; nodes],
        ledger: Ledger::default(),
        stage: Stage::Breaking,
        posted: 0,
        parted: Vec::new(),
    };
    run.start();
    run.go();
    run.verdict()
}

impl Run {
    fn start(&mut self) {
        let summary = self.scenario.summary();
        self.fabric.trace(|t| t.note(Time(0), || summary));
        for node in 0..self.scenario.nodes.len() {
            let mut rng = self.rng.fork();
            let agent = Agent::new(&self.fabric, node, self.config.clone(), self.canary, &mut rng);
            self.agents.push(Some(agent));
        }
        for node in 0..self.agents.len() {
            self.acquaint(node, 20 * US);
        }
        for (index, (at, _)) in self.scenario.troubles.clone().into_iter().enumerate() {
            self.call_at(at, Call::Trouble(index));
        }
        self.call_at(30 * US, Call::Act);
        self.call_at(self.scenario.heal_at, Call::Heal);
    }

    /// Everybody who lives learns of a node, and it of them, each at its own moment.
    fn acquaint(&mut self, node: usize, within: u64) {
        for other in 0..self.agents.len() {
            if other != node && self.agents[other].is_some() && self.agents[node].is_some() {
                for call in [Call::Introduce(node, other), Call::Introduce(other, node)] {
                    let at = self.fabric.now().0 + self.rng.below(within);
                    self.call_at(at, call);
                }
            }
        }
    }

    fn call_at(&self, at: u64, call: Call) {
        self.fabric.schedule(Time(at), call.pack());
    }

    fn go(&mut self) {
        for _ in 0..STEPS_MAX {
            let Some(step) = self.fabric.step() else {
                if self.stage != Stage::Over {
                    self.stuck("nothing is left to happen");
                }
                return;
            };
            if let Some(bits) = step {
                self.handle(Call::unpack(bits));
            }
            for node in 0..self.agents.len() {
                if self.fabric.take_wake(node) {
                    let soon = self.fabric.now().0 + self.rng.within(200, self.delays[node]);
                    self.wake(node, soon);
                }
            }
            if self.stage == Stage::Over || self.fabric.violated() {
                return;
            }
        }
        self.stuck("the run does not end: somebody is busy for ever");
    }

    fn stuck(&mut self, how: &str) {
        let mut what = format!("{how}, in the stage {:?};", self.stage);
        for index in self.ledger.active() {
            let (node, _) = self.ledger.records[index].initiator;
            let token = self.ledger.token_of(index);
            let progress = self.agents[node].as_ref().zip(token).and_then(|(a, t)| a.engine.progress_of(t));
            what.push_str(&format!(" {} waits ({progress:?});", self.ledger.describe(index)));
        }
        self.fabric.violate(Checker::Progress, what);
    }

    fn handle(&mut self, call: Call) {
        match call {
            Call::Wake(node) => {
                let due = self.agents[node].as_ref().is_some_and(|a| a.wake_at <= self.fabric.now().0);
                if due {
                    self.drive(node);
                }
            }
            Call::Act => self.act(),
            Call::Trouble(index) => self.trouble(self.scenario.troubles[index].1),
            Call::Heal => self.heal(),
            Call::Demand => self.demand(),
            Call::Cancel(index) => self.cancel(index),
            Call::Reclaim(index) => self.reclaim(index),
            Call::Introduce(to, of) => self.introduce(to, of),
            Call::Register(node, area) => self.register(node, area),
            Call::Meet => self.meet(),
            Call::Close => self.close(),
            Call::Stop => self.stop(),
        }
    }

    /// Asks for a drive of a node at a time, unless it is driven earlier anyway.
    fn wake(&mut self, node: usize, at: u64) {
        let Some(agent) = self.agents[node].as_mut() else { return };
        if at < agent.wake_at {
            agent.wake_at = at;
            self.call_at(at, Call::Wake(node));
        }
    }

    /// Lets an engine work, and hears what it says.
    fn drive(&mut self, node: usize) {
        let now = self.fabric.now();
        let Some(agent) = self.agents[node].as_mut() else { return };
        agent.wake_at = u64::MAX;
        let busy = agent.engine.drive(now, &mut agent.transport);
        let unread = self.stage == Stage::Breaking && self.rng.chance(self.scenario.mix.unread_ppm);
        let next = |agent: &mut Agent| {
            if unread { agent.engine.poll_news() } else { agent.engine.poll_event() }
        };
        let events: Vec<_> = std::iter::from_fn(|| next(agent)).collect();
        let left = agent.engine.messages_waiting();
        // A notification is accepted before its bytes have come: each slot may bring one more.
        let others = self.scenario.nodes.len() - 1;
        let max = self.scenario.mix.inbox_messages_max + others * SLOTS_PER_PEER;
        if left > max {
            self.fabric.violate(Checker::Credits, format!("node {node} keeps {left} messages unread"));
        }
        for event in events {
            self.hear(node, event);
        }
        self.plan_wake(node);
        if left > 0 {
            // The application reads them later.
            let later = now.0 + self.rng.within(US, 2 * MS);
            self.wake(node, later);
        }
        if busy {
            let soon = now.0 + self.rng.within(200, self.delays[node]);
            self.wake(node, soon);
        }
    }

    /// The next drive of a node, from its own deadlines.
    fn plan_wake(&mut self, node: usize) {
        let now = self.fabric.now().0;
        let Some(agent) = self.agents[node].as_ref() else { return };
        let own = agent.engine.poll_timeout();
        if own.is_none() && agent.engine.active_transfers() > 0 {
            let active = agent.engine.active_transfers();
            self.stuck(&format!("node {node} has {active} transfers and no deadline"));
            return;
        }
        let next = own.into_iter().chain(agent.transport.poll_timeout()).min();
        if let Some(at) = next {
            self.wake(node, at.0.max(now + 300));
        }
    }

    /// An engine's event reaches its application.
    fn hear(&mut self, node: usize, event: EngineEvent) {
        let now = self.fabric.now();
        let Some(agent) = self.agents[node].as_ref() else { return };
        let life = agent.life;
        self.fabric.trace(|t| t.note(now, || format!("node {node} hears {event:?}")));
        match event {
            EngineEvent::TransferEnded { token, result, .. } => {
                let result = result.map(|_| ());
                if let Some(index) = self.ledger.ended(&self.fabric, life, token, result) {
                    self.fabric.territory(|t| {
                        t.release_target(index as u64);
                        t.release_source(index as u64);
                    });
                    self.give_back(index);
                }
            }
            EngineEvent::Notification { message, .. } => match untag(&message) {
                Some((b'N', index)) => self.told(life, index, RemoteEnd::Notified),
                Some((b'M', index)) => self.ledger.message(&self.fabric, life, index),
                _ => self.fabric.violate(Checker::Bytes, format!("node {node} got a mangled notification")),
            },
            EngineEvent::PeerTransferFailed { message, .. } => match untag(&message) {
                Some((b'N', index)) => self.told(life, index, RemoteEnd::ToldOfFailure),
                _ => self.fabric.violate(Checker::Bytes, format!("node {node} got a mangled notification")),
            },
            EngineEvent::PeerLost { peer, cause, .. } => self.lost(node, peer, cause),
            EngineEvent::PeerReady { peer } => self.ready(node, peer),
            EngineEvent::RouteDown { .. } | EngineEvent::RouteUp { .. } => {}
        }
    }

    fn told(&mut self, life: ledger::Life, index: usize, end: RemoteEnd) {
        if self.ledger.ended_remotely(&self.fabric, life, index, end).is_some() && end == RemoteEnd::Notified
        {
            self.release_remote(index);
        }
    }

    fn lost(&mut self, node: usize, peer: kvrail_core::id::PeerId, cause: PeerLostCause) {
        let Some(agent) = self.agents[node].as_mut() else { return };
        let life = agent.life;
        let found =
            agent.peers.iter().find(|(_, (id, _))| *id == peer).map(|(other, (_, epoch))| (*other, *epoch));
        let Some((other, epoch)) = found else { return };
        agent.peers.remove(&other);
        self.parted.push((life, (other, epoch)));
        let alive = self.fabric.life(other) == (epoch, true);
        // A late hello of an earlier life may be taken for a later one: incarnations have no order. It is set right by
        // the next hello of the one that lives.
        let mistaken = cause == PeerLostCause::Restarted && epoch > 1;
        let explained = matches!(
            cause,
            PeerLostCause::Silent
                | PeerLostCause::Closed
                | PeerLostCause::Removed
                | PeerLostCause::Reconnected
        );
        if alive && !mistaken && !explained {
            self.fabric.violate(
                Checker::Progress,
                format!("node {node} believes that node {other} is lost ({cause}), but it lives"),
            );
        }
        if alive && self.stage < Stage::Closing {
            // Its application finds the peer again, sooner or later.
            let at = self.fabric.now().0 + self.rng.below(2 * MS);
            self.call_at(at, Call::Introduce(node, other));
        }
    }

    /// A node knows a peer; perhaps by the peer's own greeting, before anybody introduced it.
    fn ready(&mut self, node: usize, peer: kvrail_core::id::PeerId) {
        let Some(agent) = self.agents[node].as_ref() else { return };
        let Some(view) = agent.engine.peer(peer) else { return };
        let is_it = |other: &Agent| *other.name == *view.name && other.incarnation == view.incarnation;
        let Some(life) = self.agents.iter().flatten().find(|other| is_it(other)).map(|other| other.life)
        else {
            return;
        };
        if let Some(agent) = self.agents[node].as_mut() {
            agent.peers.insert(life.0, (peer, life.1));
        }
    }

    fn trouble(&mut self, trouble: Trouble) {
        if self.stage != Stage::Breaking {
            return;
        }
        match trouble {
            Trouble::Fabric(fault) => self.fabric.inject(fault),
            Trouble::Kill(node) => self.kill(node),
            Trouble::Restart(node) => {
                self.kill(node);
                self.revive(node);
            }
            Trouble::Slow { node, delay } => self.delays[node] = delay,
            Trouble::Forget { node, peer } => self.forget(node, peer),
        }
    }

    /// An application gives a peer up, for reasons of its own.
    fn forget(&mut self, node: usize, peer: usize) {
        let now = self.fabric.now();
        let Some(agent) = self.agents[node].as_mut() else { return };
        if let Some((id, _)) = agent.peers.get(&peer).copied() {
            self.fabric.trace(|t| t.note(now, || format!("node {node} forgets node {peer}")));
            agent.engine.remove_peer(now, &mut agent.transport, id);
            // It uses that peer no more, from this moment on.
            self.drive(node);
        }
    }

    fn kill(&mut self, node: usize) {
        let Some(agent) = self.agents[node].take() else { return };
        self.fabric.kill(node);
        self.ledger.died(agent.life);
        // What it sent may still land; its peers' memory is theirs again when that is over.
        let quiet = self.fabric.now().0 + self.scenario.model.linger + MS;
        for index in 0..self.ledger.records.len() {
            if self.ledger.records[index].initiator == agent.life {
                self.call_at(quiet, Call::Reclaim(index));
            }
        }
    }

    fn revive(&mut self, node: usize) {
        let _ = self.fabric.restart(node);
        let mut rng = self.rng.fork();
        self.agents[node] = Some(Agent::new(&self.fabric, node, self.config.clone(), self.canary, &mut rng));
        self.acquaint(node, 300 * US);
    }

    /// A node is given another one's metadata.
    fn introduce(&mut self, to: usize, of: usize) {
        let now = self.fabric.now();
        let Some((life, bytes)) = self.agents[of].as_ref().map(|a| (a.life, a.metadata())) else { return };
        let Some(agent) = self.agents[to].as_mut() else { return };
        let metadata = match Metadata::decode(&bytes) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.fabric
                    .violate(Checker::Bytes, format!("metadata of node {of} does not decode: {error}"));
                return;
            }
        };
        match agent.engine.add_peer(now, &mut agent.transport, &metadata) {
            Ok(id) => {
                let before = agent.peers.insert(of, (id, life.1));
                if let Some((_, epoch)) = before.filter(|(_, epoch)| *epoch != life.1) {
                    self.parted.push(((to, agent.life.1), (of, epoch)));
                }
            }
            Err(error) => {
                self.fabric.violate(Checker::Progress, format!("node {to} cannot add node {of}: {error}"));
            }
        }
        self.drive_soon(to);
    }

    fn drive_soon(&mut self, node: usize) {
        let at = self.fabric.now().0 + self.rng.within(100, 1_000);
        self.wake(node, at);
    }

    /// Phase one is over: nothing breaks any more.
    fn heal(&mut self) {
        self.stage = Stage::Healing;
        self.fabric.inject(Fault::Heal);
        self.delays.fill(2 * US);
        for node in 0..self.agents.len() {
            if self.agents[node].is_none() && self.rng.chance(500_000) {
                self.revive(node);
            }
        }
        self.meet();
        // Who gave a peer up, or soon will, needs the time to meet it again.
        let hasty = self.config.peer_timeout < Duration::from_secs(1);
        let mut at =
            self.fabric.now().0 + if hasty { 3_000 * MS } else { self.rng.within(200 * US, 20 * MS) };
        if self.scenario.model.reset_replaces_endpoint {
            // Two agents whose every endpoint was replaced before either had told the other do not find each other over
            // the fabric: their applications exchange metadata again. What stalls will have been reset by then.
            let over = self.fabric.now().0 + 3 * self.scenario.model.stall_timeout + 5 * MS;
            self.call_at(over, Call::Meet);
            at = at.max(over + MS);
        }
        self.call_at(at, Call::Demand);
        self.call_at(at + PATIENCE, Call::Close);
    }

    fn meet(&mut self) {
        for node in 0..self.agents.len() {
            self.acquaint(node, 100 * US);
        }
    }

    fn close(&mut self) {
        if self.stage >= Stage::Closing {
            return;
        }
        if !self.ledger.active().is_empty() {
            self.stuck("time is over");
            return;
        }
        self.stage = Stage::Closing;
        self.check_promises();
        let now = self.fabric.now();
        for node in 0..self.agents.len() {
            if let Some(agent) = self.agents[node].as_mut() {
                let dead =
                    |(other, (_, epoch)): &(&usize, &(_, u64))| self.fabric.life(**other) != (*epoch, true);
                let dead: Vec<_> = agent.peers.iter().filter(dead).map(|(_, (id, _))| *id).collect();
                for id in dead {
                    agent.engine.remove_peer(now, &mut agent.transport, id);
                }
                agent.engine.close(now);
            }
            self.drive_soon(node);
        }
        self.call_at(now.0 + 2_000 * MS, Call::Stop);
    }

    /// Every promise to a peer that was never lost is kept.
    fn check_promises(&mut self) {
        let parted = |a: ledger::Life, b: ledger::Life| {
            let gone = |life: ledger::Life| self.fabric.life(life.0) != (life.1, true);
            gone(a) || gone(b) || self.parted.iter().any(|(x, y)| (*x, *y) == (a, b) || (*x, *y) == (b, a))
        };
        let mut broken = Vec::new();
        for (index, record) in self.ledger.records.iter().enumerate() {
            let never_told = record.announced && record.remote_end.is_none();
            if never_told && !parted(record.initiator, record.responder) {
                let (what, end) = (self.ledger.describe(index), &record.outcome);
                broken.push(format!("{what}, ended as {end:?} and its peer was never told"));
            }
        }
        for (index, (from, to, times)) in self.ledger.messages.iter().enumerate() {
            if *times == 0 && !parted(*from, *to) {
                broken.push(format!("message {index} from node {} never reached node {}", from.0, to.0));
            }
        }
        for what in broken {
            self.fabric.violate(Checker::ExactlyOnce, what);
        }
    }

    /// Nothing is left over anywhere.
    fn stop(&mut self) {
        self.stage = Stage::Over;
        for node in 0..self.agents.len() {
            let Some(agent) = self.agents[node].as_mut() else { continue };
            let mut left = Vec::new();
            if agent.engine.active_transfers() > 0 {
                left.push(format!("{} transfers", agent.engine.active_transfers()));
            }
            if !agent.engine.is_settled() {
                left.push("debts".into());
            }
            let unknown = agent.engine.stats().completions_unknown;
            if unknown > 0 && self.canary.is_none() {
                left.push(format!("{unknown} completions that paid no debt"));
            }
            let ids: Vec<_> = agent.table.iter().map(|info| info.id).collect();
            for id in ids {
                if let Err(error) = agent.engine.remove_region(&mut agent.transport, id) {
                    left.push(format!("{id}: {error}"));
                }
            }
            let ops = self.fabric.ops_in_flight(node);
            if ops > 0 {
                left.push(format!("{ops} ops in flight"));
            }
            let registrations = self.fabric.registrations(node);
            if registrations > 0 {
                left.push(format!("{registrations} registrations in the fabric"));
            }
            if !left.is_empty() {
                self.fabric.violate(Checker::Leaks, format!("node {node} keeps {}", left.join(", ")));
            }
        }
    }

    fn verdict(self) -> Verdict {
        let done = self.ledger.records.iter().filter(|r| r.outcome == Some(ledger::Outcome::Done)).count();
        Verdict {
            violations: self.fabric.violations(),
            hash: self.fabric.trace(|t| t.hash()),
            virtual_time: self.fabric.now(),
            transfers: (self.ledger.records.len(), done),
            trace: self.fabric.trace(|t| t.lines().to_vec()),
            summary: self.scenario.summary(),
        }
    }
}
