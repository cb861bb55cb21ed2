//! What workers say, and whether it may be.

use std::time::{Duration, Instant};

use super::{BOUND, Run};
use crate::fleet::book::Stage;
use crate::fleet::weather::Case;
use crate::talk::{Class, Find, Order, Outcome, Posting, Word};
use crate::violation::{Checker, Violation};

impl Run<'_> {
    pub(super) fn hear(&mut self, node: usize, word: Word) -> Result<(), Violation> {
        let now = Instant::now();
        self.nodes[node].asked = None;
        let life = (node, self.nodes[node].life);
        match word {
            Word::Am { tenants, rails } => {
                let note = format!("node {node} is there with {} rails", rails.len());
                self.note(note);
                self.nodes[node].tenants = tenants;
                self.nodes.iter_mut().for_each(|other| other.stale = true);
            }
            Word::Cannot { what } => {
                return Err(Violation::new(Checker::Ending, format!("node {node}: {what}")));
            }
            Word::Metadata { metadata } => {
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    if self.nodes[other].mate.is_some() && !self.nodes[other].tenants.is_empty() {
                        self.order(other, &Order::Meet { metadata: metadata.clone() });
                        let known = self.nodes[node].describing.map(|v| (self.nodes[other].life, v));
                        self.nodes[node].known_by[other] = known;
                    }
                }
                self.nodes[node].describing = None;
            }
            Word::Met { peer: Ok(_) } => {}
            Word::Met { peer: Err(why) } => {
                // It may concern a life that has just ended, or a device under a fault: it is tried again.
                self.note(format!("node {node} cannot import a peer: {why}"));
                for other in self.nodes.iter_mut() {
                    if other.life != life.1 {
                        other.known_by[node] = None;
                        other.stale = true;
                    }
                }
            }
            Word::Ready { id } => self.post(id),
            Word::Posted { id, .. } => {
                if let Some(entry) = self.book.entries.get_mut(&id) {
                    entry.stage = Stage::Moving;
                    entry.posted = Some(now);
                    self.book.seen.posted += 1;
                }
            }
            Word::Refused { id, class, text } => self.refused(id, class, text, now)?,
            Word::Ended { id, outcome, took_us } => {
                self.judge(id, &outcome, now)?;
                self.book.ended(id, outcome, Duration::from_micros(took_us), BOUND)?;
                if let Some(entry) = self.book.entries.get_mut(&id) {
                    entry.stage = Stage::Ended { look_at: now };
                }
            }
            Word::Notified { id, wrong, .. } => self.book.notified(id, life, wrong)?,
            Word::ToldOfFailure { id } => {
                if let Some(entry) = self.book.entries.get_mut(&id) {
                    entry.told += 1;
                    if entry.told > 1 || matches!(entry.outcome, Some(Outcome::Done { .. })) {
                        let what = format!("{}: its peer was told of its failure", entry.describe(id));
                        return Err(Violation::new(Checker::ExactlyOnce, what));
                    }
                }
            }
            Word::Heard { number } => {
                if let Some((.., times)) = self.book.messages.get_mut(&number) {
                    *times += 1;
                    self.book.seen.messages += 1;
                    if *times > 1 {
                        let what = format!("message {number} came {times} times to node {node}");
                        return Err(Violation::new(Checker::ExactlyOnce, what));
                    }
                }
            }
            Word::Sent { number, accepted } => {
                if !accepted {
                    self.book.messages.remove(&number);
                }
            }
            Word::Settled { id, wrong } | Word::Released { id, wrong } => {
                if let Some(wrong) = wrong {
                    let end =
                        self.book.entries.get(&id).map(|e| format!("{:?}", e.outcome)).unwrap_or_default();
                    return Err(Violation::new(
                        wrong.checker,
                        format!("node {node}: {} (it ended as {end})", wrong.what),
                    ));
                }
                self.answered(id);
            }
            Word::Renewed { region, tenant } => {
                let state = &mut self.nodes[node];
                state.renewing = None;
                match tenant {
                    Ok(tenant) => {
                        state.tenants[region] = tenant;
                        state.version += 1;
                        state.stale = true;
                        self.book.seen.renewed += 1;
                    }
                    Err(why) => {
                        return Err(Violation::new(
                            Checker::Leaks,
                            format!("node {node} cannot register region {region} anew: {why}"),
                        ));
                    }
                }
                self.weather.renewed(node, now);
            }
            Word::Lost { peer, cause } => {
                self.note(format!("node {node} has lost {peer}: {cause}"));
                let other = peer.strip_prefix("node-").and_then(|n| n.parse::<usize>().ok());
                if let Some(other) = other.filter(|other| *other < self.nodes.len()) {
                    self.lost(node, other, &cause, now)?;
                }
            }
            Word::Route { peer, what } => {
                self.book.seen.routes += 1;
                self.note(format!("node {node} to {peer}: {what}"));
            }
            // A script's, not a fleet's.
            Word::BurstEnded { .. } => {}
            Word::Counted(count) => {
                self.nodes[node].counting = false;
                self.nodes[node].counts.push(count);
            }
            Word::Ending { undrained } => {
                self.nodes[node].ended = true;
                if undrained > 0 {
                    let what = format!("node {node} closed with {undrained} transfers that had not drained");
                    return Err(Violation::new(Checker::Leaks, what));
                }
            }
        }
        Ok(())
    }

    /// A node has lost another one: something must explain it, and they are introduced again.
    pub(super) fn lost(
        &mut self,
        node: usize,
        other: usize,
        cause: &str,
        now: Instant,
    ) -> Result<(), Violation> {
        if self.nodes[node].ending || self.nodes[other].ending {
            return Ok(());
        }
        let case = Case {
            initiator: node,
            responder: other,
            rails: self.nodes[node].rails.min(self.nodes[other].rails),
            began: now,
            class: Class::Other,
        };
        let explained = self.weather.explains(&case) || self.weather.parted_since(node, other, now);
        self.weather.parted(node, other, now);
        if !explained {
            return Err(Violation::new(
                Checker::Explained,
                format!("node {node} has lost node {other} ({cause}), and nothing had happened to them"),
            ));
        }
        for (a, b) in [(node, other), (other, node)] {
            self.nodes[b].known_by[a] = None;
            self.nodes[b].stale = true;
        }
        Ok(())
    }

    pub(super) fn post(&mut self, id: u64) {
        let Some(entry) = self.book.entries.get(&id) else { return };
        let (a, b) = (entry.initiator, entry.responder);
        if !self.lives(a) || !self.lives(b) || entry.stage != Stage::Claimed {
            return;
        }
        let posting = Posting {
            id,
            peer: format!("node-{}", b.0),
            way: entry.way,
            shape: entry.shape,
            local: entry.local,
            remote: entry.remote,
            tenant: self.nodes[b.0].tenants[entry.remote.region],
            notify: entry.notify,
            timeout_ms: entry.timeout_ms,
            cancel_us: entry.cancel_us,
        };
        self.order(a.0, &Order::Post(posting));
        if let Some(entry) = self.book.entries.get_mut(&id) {
            entry.stage = Stage::Posting;
            entry.began = Instant::now();
        }
    }

    pub(super) fn case(&self, id: u64, class: Class) -> Option<(Case, String, bool, bool)> {
        let entry = self.book.entries.get(&id)?;
        let (a, b) = (entry.initiator.0, entry.responder.0);
        let case = Case {
            initiator: a,
            responder: b,
            rails: self.nodes[a].rails.min(self.nodes[b].rails),
            began: entry.began,
            class,
        };
        Some((case, entry.describe(id), entry.hurry, entry.cancel_us.is_some()))
    }

    pub(super) fn refused(
        &mut self,
        id: u64,
        class: Class,
        text: String,
        now: Instant,
    ) -> Result<(), Violation> {
        let Some((case, what, ..)) = self.case(id, class) else { return Ok(()) };
        let explained =
            matches!(class, Class::StaleRegion | Class::UnknownPeer) && self.weather.explains(&case);
        if !explained {
            return Err(Violation::new(Checker::Explained, format!("{what} was refused: {text}")));
        }
        self.book.seen.refused += 1;
        if let Some(entry) = self.book.entries.get_mut(&id) {
            entry.outcome = Some(Outcome::Failed { class, text, hints: Vec::new() });
            entry.find = Find::None;
            entry.stage = Stage::Ended { look_at: now };
        }
        // Whatever it does not know: it is told.
        self.nodes[case.responder].stale = true;
        Ok(())
    }

    /// Whether an ending may be.
    pub(super) fn judge(&mut self, id: u64, outcome: &Outcome, _now: Instant) -> Result<(), Violation> {
        let Outcome::Failed { class, text, .. } = outcome else { return Ok(()) };
        let Some((case, what, hurry, cancelled)) = self.case(id, *class) else { return Ok(()) };
        self.note(format!("{what} failed: {text}"));
        let explained = match class {
            Class::Cancelled => cancelled,
            Class::Overshoot => false,
            Class::Deadline | Class::Unconfirmed if hurry => true,
            // An agent that was lost meanwhile said so.
            _ => self.weather.explains(&case),
        };
        if !explained {
            return Err(Violation::new(
                Checker::Explained,
                format!("{what} failed, and nothing explains it: {text}"),
            ));
        }
        Ok(())
    }
}
