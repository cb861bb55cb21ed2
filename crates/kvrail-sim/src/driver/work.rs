//! The application's part: posts, reposts, cancels, messages, regions that come and go.

use std::sync::Arc;
use std::time::Duration;

use kvrail_core::engine::PostOptions;
use kvrail_core::error::{PostTransferError, RemoveRegionError};
use kvrail_core::plan::Plan;
use kvrail_core::transport::Direction;

use super::agent::Known;
use super::layout::{Shape, Slice, slices};
use super::ledger::{Record, spans, tag};
use super::{Call, Run, Stage};
use crate::model::{MS, US};
use crate::pattern::Pattern;
use crate::violation::Checker;

/// A transfer that could be posted.
struct Proposal {
    node: usize,
    other: usize,
    plan: Arc<Plan>,
    slices: Vec<Slice>,
    direction: Direction,
    /// Slices of regions that were replaced since the plan was made: no byte of them may move.
    stale: Vec<bool>,
}

impl Run {
    /// The application of some node does something.
    pub(super) fn act(&mut self) {
        match self.stage {
            Stage::Breaking => {}
            Stage::Demanding if self.is_settled() => return self.close(),
            Stage::Demanding => return self.watch_for_the_end(),
            _ => return,
        }
        let mix = self.scenario.mix;
        let node = self.rng.index(self.agents.len());
        if self.rng.chance(mix.reregister_ppm) {
            self.take_region_away(node);
        } else if self.rng.chance(100_000) {
            self.message(node);
        } else if self.rng.chance(mix.repost_ppm) {
            self.repost(node);
        } else {
            let direction = if self.rng.chance(mix.read_ppm) { Direction::Read } else { Direction::Write };
            self.post_new(node, direction, false);
        }
        self.posted += 1;
        if self.posted < mix.transfers {
            let at = self.fabric.now().0 + self.rng.below(2 * mix.pace + 1);
            self.call_at(at, Call::Act);
        }
    }

    /// Phase two: whoever lives must reach whoever lives.
    pub(super) fn demand(&mut self) {
        self.stage = Stage::Demanding;
        for node in 0..self.agents.len() {
            let others: Vec<usize> =
                self.agents[node].as_ref().map(|a| a.peers.keys().copied().collect()).unwrap_or_default();
            for other in others {
                for direction in [Direction::Write, Direction::Read] {
                    self.post_to(node, other, direction, true);
                }
            }
        }
        self.watch_for_the_end();
    }

    /// Looks now and then whether everything has ended.
    fn watch_for_the_end(&mut self) {
        let at = self.fabric.now().0 + 50 * MS;
        self.call_at(at, Call::Act);
    }

    /// Everything has ended, and everybody has acknowledged everything.
    fn is_settled(&self) -> bool {
        self.ledger.active().is_empty() && self.agents.iter().flatten().all(|agent| agent.engine.is_settled())
    }

    fn post_new(&mut self, node: usize, direction: Direction, must_succeed: bool) {
        let known: Vec<usize> =
            self.agents[node].as_ref().map(|a| a.peers.keys().copied().collect()).unwrap_or_default();
        if !known.is_empty() {
            let other = self.rng.pick(&known);
            self.post_to(node, other, direction, must_succeed);
        }
    }

    /// A fresh plan from one node to another.
    fn post_to(&mut self, node: usize, other: usize, direction: Direction, must_succeed: bool) {
        let (low, high) = (node.min(other), node.max(other));
        let (head, tail) = self.agents.split_at_mut(high);
        let (Some(first), Some(second)) = (head[low].as_mut(), tail[0].as_mut()) else { return };
        let (agent, peer) = if node < other { (first, second) } else { (second, first) };
        let Some(&(id, epoch)) = agent.peers.get(&other) else { return };
        if epoch != peer.life.1 {
            // It does not know of the new life yet.
            return;
        }
        let index = self.ledger.records.len() as u64;
        let shape = self.rng.pick(&[Shape::Contiguous, Shape::Scattered, Shape::Strided, Shape::Large]);
        let Some((slices, ours, theirs)) =
            slices(shape, &mut agent.layout, &mut peer.layout, index, &mut self.rng)
        else {
            return;
        };
        // The ranges are taken again when the plan is posted.
        agent.layout.give_back(index);
        peer.layout.give_back(index);
        let plan = match agent.engine.prepare(id, &ours, &theirs) {
            Ok(plan) => Arc::new(plan),
            Err(error) => {
                if slices.iter().all(|s| agent.knows(other, s, peer)) {
                    self.fabric.violate(
                        Checker::Progress,
                        format!("node {node} cannot plan to node {other}: {error}"),
                    );
                }
                return;
            }
        };
        // What the plan was made for: a peer that registered anew may be known by its earlier generation only.
        let tenant = |s: &Slice| agent.knows(other, s, peer).then(|| peer.region_of(s.remote_area)).flatten();
        let regions: Vec<_> = slices.iter().map(|s| (agent.region_of(s.local_area), tenant(s))).collect();
        let stale = regions.iter().map(|(_, tenant)| tenant.is_none()).collect();
        agent.plans.push(Known { peer: peer.life, plan: Arc::clone(&plan), slices: slices.clone(), regions });
        self.post(Proposal { node, other, plan, slices, direction, stale }, must_succeed);
    }

    /// An earlier plan once more.
    fn repost(&mut self, node: usize) {
        let Some(agent) = self.agents[node].as_ref() else { return };
        if agent.plans.is_empty() {
            return;
        }
        let known = &agent.plans[self.rng.index(agent.plans.len())];
        let other = known.peer.0;
        let Some(peer) = self.agents[other].as_ref() else { return };
        if known.peer != peer.life {
            return;
        }
        let local = |s: &Slice| (s.local_area, s.local, s.len);
        let remote = |s: &Slice| (s.remote_area, s.remote, s.len);
        if !agent.layout.all_free(known.slices.iter().map(local))
            || !peer.layout.all_free(known.slices.iter().map(remote))
        {
            return;
        }
        let stale = known
            .slices
            .iter()
            .zip(&known.regions)
            .map(|(s, then)| {
                let now = (agent.region_of(s.local_area), peer.region_of(s.remote_area));
                now != *then || now.0.is_none() || now.1.is_none()
            })
            .collect();
        let (plan, slices) = (Arc::clone(&known.plan), known.slices.clone());
        let direction = if self.rng.chance(500_000) { Direction::Read } else { Direction::Write };
        self.post(Proposal { node, other, plan, slices, direction, stale }, false);
    }

    fn post(&mut self, proposal: Proposal, must_succeed: bool) {
        let Proposal { node, other, plan, mut slices, direction, stale } = proposal;
        let mut fresh = stale.iter().map(|stale| !stale);
        slices.retain(|_| fresh.next().unwrap_or(false));
        let stale = stale.contains(&true);
        let now = self.fabric.now();
        let (Some(agent), Some(peer)) = (self.agents[node].as_ref(), self.agents[other].as_ref()) else {
            return;
        };
        let bases =
            |layout: &super::layout::Layout| layout.areas.iter().map(|a| a.base).collect::<Vec<u64>>();
        let spans = spans(&slices, direction, &bases(&agent.layout), &bases(&peer.layout));
        let (life, peer_life) = (agent.life, peer.life);
        let index = self.ledger.records.len();
        let pattern = Pattern::new(self.seed, index as u64);
        let announced = self.rng.chance(self.scenario.mix.notify_ppm);
        let (source, target) = match direction {
            Direction::Write => (node, other),
            Direction::Read => (other, node),
        };
        for span in &spans {
            self.fabric.memory(source, |memory| {
                if let Some(bytes) = memory.slice_mut(span.source, span.len) {
                    pattern.fill(span.source, bytes);
                }
            });
            self.fabric.memory(target, |memory| {
                if let Some(bytes) = memory.slice_mut(span.target, span.len) {
                    pattern.poison(span.source, bytes);
                }
            });
        }
        self.fabric.trace(|t| t.note(now, || format!("claim {index}: {source}->{target} {spans:x?}")));
        self.fabric.territory(|t| t.claim(index as u64, life, (source, target), now, spans.clone()));
        let notification = announced.then(|| tag(b'N', index, self.rng.index(40)));
        let hurry = !must_succeed && self.rng.chance(150_000);
        let timeout = hurry.then(|| Duration::from_nanos(self.rng.within(50 * US, 50 * MS)));
        let end_by = now + timeout.unwrap_or(self.config.transfer_timeout) + self.drain_max();
        self.ledger.open(Record {
            initiator: life,
            responder: peer_life,
            direction,
            spans,
            pattern,
            announced,
            must_succeed,
            end_by,
            outcome: None,
            remote_end: None,
            remote_released: false,
            excused: stale,
            stale,
        });
        let line = self.ledger.describe(index);
        self.fabric
            .trace(|t| t.note(now, || format!("post {line}{}", if stale { ", stale plan" } else { "" })));
        let Some(agent) = self.agents[node].as_mut() else { return };
        match agent.engine.post(now, &plan, direction, PostOptions { notification, timeout }) {
            Ok(token) => {
                self.ledger.accepted(index, token);
                agent.layout.take(index as u64, slices.iter().map(|s| (s.local_area, s.local, s.len)));
                if let Some(peer) = self.agents[other].as_mut() {
                    peer.layout.take(index as u64, slices.iter().map(|s| (s.remote_area, s.remote, s.len)));
                }
                if !must_succeed && self.rng.chance(self.scenario.mix.cancel_ppm) {
                    let at = now.0 + self.rng.within(0, 200 * US);
                    self.call_at(at, Call::Cancel(index));
                }
            }
            Err(error) => {
                let expected = matches!(error, PostTransferError::TooManyTransfers(_))
                    || (stale || matches!(error, PostTransferError::UnknownPeer(_))) && !must_succeed;
                if !expected {
                    self.fabric.violate(
                        Checker::Progress,
                        format!("node {node} cannot post to node {other}: {error}"),
                    );
                }
                self.ledger.records.pop();
                self.fabric.territory(|t| {
                    t.release_target(index as u64);
                    t.release_source(index as u64);
                });
            }
        }
        self.drive_soon(node);
    }

    /// How long after its deadline a transfer may still drain: stalled ops are found, flushed and waited out.
    fn drain_max(&self) -> Duration {
        let model = &self.scenario.model;
        let polls = 4 * self.delays.iter().copied().max().unwrap_or(0);
        Duration::from_nanos(
            2 * model.stall_timeout + 2 * model.linger + model.flush_max + model.tail_max + polls + MS,
        )
    }

    pub(super) fn cancel(&mut self, index: usize) {
        let (node, epoch) = self.ledger.records[index].initiator;
        let now = self.fabric.now();
        let token = self.ledger.token_of(index);
        let agent = self.agents[node].as_mut().filter(|a| a.life.1 == epoch);
        if let (Some(agent), Some(token)) = (agent, token) {
            self.fabric.trace(|t| t.note(now, || format!("cancel transfer {index}")));
            agent.engine.cancel(now, token);
            self.drive_soon(node);
        }
    }

    fn message(&mut self, node: usize) {
        let padding = self.rng.index(60);
        let index = self.ledger.messages.len();
        let Some(agent) = self.agents[node].as_mut() else { return };
        let known: Vec<_> = agent.peers.iter().map(|(other, (id, epoch))| (*other, *id, *epoch)).collect();
        if known.is_empty() {
            return;
        }
        let (other, id, epoch) = self.rng.pick(&known);
        if agent.engine.send_message(id, tag(b'M', index, padding)).is_ok() {
            self.ledger.messages.push((agent.life, (other, epoch), 0));
        }
        self.drive_soon(node);
    }

    /// A region goes, whoever uses it from afar, and comes back under a new generation.
    fn take_region_away(&mut self, node: usize) {
        let Some(agent) = self.agents[node].as_mut() else { return };
        let area = self.rng.index(agent.layout.areas.len());
        let Some(region) = agent.layout.areas[area].region else { return };
        let (base, len) = (agent.layout.areas[area].base, agent.layout.areas[area].len);
        match agent.engine.remove_region(&mut agent.transport, region) {
            Ok(()) => {}
            Err(RemoveRegionError::Busy(_)) => return,
            Err(error) => {
                self.fabric.violate(Checker::Leaks, format!("node {node} cannot remove {region}: {error}"));
                return;
            }
        }
        agent.table.remove(region);
        agent.layout.areas[area].region = None;
        let life = agent.life;
        let now = self.fabric.now();
        self.fabric.trace(|t| t.note(now, || format!("node {node} deregistered {region}")));
        for index in 0..self.ledger.records.len() {
            let record = &mut self.ledger.records[index];
            let remote = |span: &crate::territory::Span| match record.direction {
                Direction::Write => span.target,
                Direction::Read => span.source,
            };
            let touches = record.spans.iter().any(|span| (base..base + len).contains(&remote(span)));
            if record.responder == life && touches && !record.remote_released {
                record.excused = true;
                self.release_remote_area(index, base, len);
            }
        }
        let at = now.0 + self.rng.below(2 * MS);
        self.call_at(at, Call::Register(node, area));
    }

    pub(super) fn register(&mut self, node: usize, area: usize) {
        let Some(agent) = self.agents[node].as_mut() else { return };
        if agent.layout.areas.get(area).is_none_or(|a| a.region.is_some()) {
            return;
        }
        agent.register(area);
        self.acquaint(node, 300 * US);
    }

    /// The responder owns the ranges of a posting again.
    pub(super) fn release_remote(&mut self, index: usize) {
        let record = &mut self.ledger.records[index];
        if std::mem::replace(&mut record.remote_released, true) {
            return;
        }
        let (direction, responder) = (record.direction, record.responder);
        self.fabric.territory(|t| match direction {
            Direction::Write => t.release_target(index as u64),
            Direction::Read => t.release_source(index as u64),
        });
        if let Some(peer) = self.agents[responder.0].as_mut().filter(|peer| peer.life == responder) {
            peer.layout.give_back(index as u64);
        }
    }

    /// The responder took one of its areas away: nothing may touch that any more. The rest of the posting goes on.
    fn release_remote_area(&mut self, index: usize, base: u64, len: u64) {
        self.fabric.territory(|t| t.retire(index as u64, self.ledger.records[index].responder.0, base, len));
    }

    /// A posting has ended at its initiator: both ends' ranges are free.
    pub(super) fn give_back(&mut self, index: usize) {
        let (initiator, responder) =
            (self.ledger.records[index].initiator, self.ledger.records[index].responder);
        self.ledger.records[index].remote_released = true;
        for life in [initiator, responder] {
            if let Some(agent) = self.agents[life.0].as_mut().filter(|agent| agent.life == life) {
                agent.layout.give_back(index as u64);
            }
        }
    }

    /// The strays of a dead initiator's posting are over.
    pub(super) fn reclaim(&mut self, index: usize) {
        if !self.ledger.records[index].remote_released {
            self.release_remote(index);
        }
    }
}
