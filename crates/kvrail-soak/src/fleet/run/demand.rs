//! What is asked of everybody when nothing is broken any more: progress, kept promises, nothing left over, a clean end.

use std::time::{Duration, Instant};

use super::Run;
use crate::layout::Shape;
use crate::talk::{Order, Way};
use crate::violation::{Checker, Violation};

/// How long after the healing everybody must have reached everybody.
const DEMAND_MAX: Duration = Duration::from_secs(25);
/// How long a worker may take to end.
const END_MAX: Duration = Duration::from_secs(20);
/// How much the memory of a process may grow beyond what the first half of its legs took, KiB: allocators keep what threads
/// gave back, and what a leg happens to need differs.
const GROWTH_MAX_KIB: u64 = 24 << 10;
/// The same for open descriptors.
const DESCRIPTORS_MAX: usize = 64;

/// What libfabric's `efa` provider itself takes for each endpoint, as packets come: 8,192 receives of 8,928 bytes, KiB.
const POOL_MAX_KIB: u64 = 80 << 10;

/// A transfer that must succeed after healing.
struct Want {
    a: usize,
    b: usize,
    way: Way,
    /// The try that is under way.
    id: Option<u64>,
}

impl Run<'_> {
    /// Whoever lives must reach whoever lives, in both directions.
    pub(super) fn demand(&mut self) -> Result<(), Violation> {
        let mut wanted = Vec::new();
        for a in 0..self.nodes.len() {
            for b in (0..self.nodes.len()).filter(|b| *b != a) {
                wanted.extend([Way::Write, Way::Read].map(|way| Want { a, b, way, id: None }));
            }
        }
        let until = Instant::now() + DEMAND_MAX;
        let mut last = String::from("nothing");
        while !wanted.is_empty() {
            self.step()?;
            for want in &mut wanted {
                match want.id.map(|id| (id, self.book.past.get(&id))) {
                    Some((_, Some(past))) if !past.done => {
                        // It is tried again until time is over.
                        last = format!("{} ended as {:?}", past.text, past.failed);
                        want.id = None;
                    }
                    None if self.can_post(want.a, want.b) => {
                        let seed = self.rng.bits();
                        let shape =
                            Shape { count: 16, len_max: 16 << 10, gap_max: 500, ..Shape::block(seed, 1) };
                        want.id = self.claim(want.a, want.b, want.way, shape, true);
                    }
                    _ => {}
                }
            }
            let served = |want: &Want| want.id.and_then(|id| self.book.past.get(&id)).is_some_and(|p| p.done);
            wanted.retain(|want| !served(want));
            let Some(Want { a, b, way, id }) = wanted.first() else { break };
            if Instant::now() > until {
                let how = if id.is_some() { "one is in flight" } else { "they are not acquainted" };
                return Err(Violation::new(
                    Checker::Progress,
                    format!(
                        "{} s after all faults had ended node {a} has had no {way:?} with node {b}: {how}; {} such pairs; last: \
                         {last}",
                        DEMAND_MAX.as_secs(),
                        wanted.len(),
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Every promise to a peer that was never lost is kept.
    pub(super) fn check_promises(&mut self) -> Result<(), Violation> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let broken = self.broken_promise();
            match broken {
                None => break,
                Some(what) if Instant::now() > until => {
                    return Err(Violation::new(Checker::ExactlyOnce, what));
                }
                // Messages may still be on their way.
                Some(_) => self.step()?,
            }
        }
        // What is kept shows what comes twice; not all of it for ever.
        let keep = self.book.past.len().saturating_sub(20_000);
        let old: Vec<u64> = self.book.past.keys().take(keep).copied().collect();
        old.iter().for_each(|id| _ = self.book.past.remove(id));
        self.book.past.values_mut().for_each(|past| past.due = false);
        self.book.messages.clear();
        self.weather.forget_before(Instant::now());
        Ok(())
    }

    pub(super) fn broken_promise(&self) -> Option<String> {
        let kept = |from: (usize, u64), to: (usize, u64), since: Instant| {
            !self.lives(from) || !self.lives(to) || self.weather.parted_since(from.0, to.0, since)
        };
        let due =
            self.book.past.values().find(|past| {
                past.due && past.notified == 0 && !kept(past.initiator, past.responder, past.began)
            });
        if let Some(past) = due {
            return Some(format!("{} is done, and its peer was never notified", past.text));
        }
        let message = self
            .book
            .messages
            .iter()
            .find(|(_, (from, to, at, times))| *times == 0 && !kept(*from, *to, *at));
        message.map(|(number, (from, to, ..))| {
            format!("message {number} from node {} never reached node {}", from.0, to.0)
        })
    }

    /// What processes have, with nothing in flight.
    pub(super) fn count(&mut self) -> Result<(), Violation> {
        for node in 0..self.nodes.len() {
            self.nodes[node].counting = true;
            self.order(node, &Order::Count);
        }
        while self.nodes.iter().any(|n| n.counting) {
            self.step()?;
        }
        let wanted = self.schedule.regions.len();
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(last) = node.counts.last() else { continue };
            let wrong = |what: String| Err(Violation::new(Checker::Leaks, format!("node {index}: {what}")));
            if last.regions != wanted {
                return wrong(format!("{} regions are registered instead of {wanted}", last.regions));
            }
            if last.transfers > 0 {
                return wrong(format!("{} transfers are in flight, and all have ended", last.transfers));
            }
            if last.unknown > 0 {
                return wrong(format!("{} completions paid no debt", last.unknown));
            }
            // What pools and caches want is taken early; later nothing more may be. A process that has begun one leg ago (it was killed and is
            // there again) has not had its pools' first needs behind it when it was first counted.
            if node.counts.len() < 3 {
                continue;
            }
            let early = &node.counts[..node.counts.len().div_ceil(2).min(node.counts.len() - 1)];
            let Some(most) = early.iter().map(|count| count.resident_kib).max() else { continue };
            let descriptors = early.iter().map(|count| count.descriptors).max().unwrap_or(0);
            let grown = last.resident_kib.saturating_sub(most);
            let pools = if self.schedule.keeps_packet_pools() { node.rails as u64 * POOL_MAX_KIB } else { 0 };
            if grown > GROWTH_MAX_KIB + pools {
                return Err(Violation::new(
                    Checker::Growth,
                    format!("node {index} has grown by {grown} KiB in {} legs", node.counts.len() - 1),
                ));
            }
            if last.descriptors > descriptors + DESCRIPTORS_MAX {
                return Err(Violation::new(
                    Checker::Growth,
                    format!("node {index} has {} descriptors, after {descriptors}", last.descriptors),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<(), Violation> {
        self.note("all are told to end".into());
        let late = |node: usize, how: String| {
            Violation::new(Checker::Ending, format!("node {node} was told to end: {how}"))
        };
        for node in 0..self.nodes.len() {
            self.nodes[node].ending = true;
            self.order(node, &Order::End);
        }
        let until = Instant::now() + END_MAX;
        while self.nodes.iter().any(|n| !n.ended && n.mate.is_some()) {
            self.step()?;
            if Instant::now() > until {
                let node = self.nodes.iter().position(|n| !n.ended).unwrap_or(0);
                return Err(late(node, format!("it has not after {} s", END_MAX.as_secs())));
            }
        }
        for node in 0..self.nodes.len() {
            let Some(mate) = &mut self.nodes[node].mate else { continue };
            match mate.wait(END_MAX) {
                Some(status) if status.success() => {}
                Some(status) => return Err(late(node, format!("it ended with {status}"))),
                None => return Err(late(node, "it closed its agent and did not end".into())),
            }
        }
        Ok(())
    }
}
