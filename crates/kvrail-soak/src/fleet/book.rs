//! What was asked of the agents and what they said: the book that the checkers read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::layout::Shape;
use crate::talk::{Class, Extent, Find, Outcome, Way};
use crate::violation::{Checker, Violation};

/// A node's process: node, and the worker's number.
pub(super) type Life = (usize, u64);

/// How far a transfer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The responder prepares its end.
    Claimed,
    /// The initiator was told to post.
    Posting,
    /// It moves.
    Moving,
    /// It has ended; both ends look at their bytes once this time has come.
    Ended { look_at: Instant },
    /// They look.
    Settling,
    /// Nothing may move any more, and after this time that is looked at.
    Resting { until: Instant },
    /// They look.
    Releasing,
}

/// One transfer.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) initiator: Life,
    pub(super) responder: Life,
    pub(super) way: Way,
    pub(super) shape: Shape,
    pub(super) bytes: u64,
    pub(super) local: Extent,
    pub(super) remote: Extent,
    pub(super) notify: bool,
    pub(super) timeout_ms: u64,
    pub(super) cancel_us: Option<u64>,
    pub(super) hurry: bool,
    pub(super) stage: Stage,
    pub(super) began: Instant,
    pub(super) posted: Option<Instant>,
    pub(super) outcome: Option<Outcome>,
    pub(super) find: Find,
    pub(super) notified: u32,
    pub(super) told: u32,
    /// Answers of the ends that are still to come.
    pub(super) awaited: u32,
    /// It was late, and that was said.
    pub(super) late: bool,
}

impl Entry {
    pub(super) fn describe(&self, id: u64) -> String {
        format!(
            "transfer {id} ({:?} of {} bytes in {} slices, node {} to node {}{})",
            self.way,
            self.bytes,
            self.shape.count,
            self.initiator.0,
            self.responder.0,
            if self.notify { ", notified" } else { "" }
        )
    }
}

/// A transfer that is over, as far as its notification is concerned.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) text: String,
    pub(super) initiator: Life,
    pub(super) responder: Life,
    pub(super) began: Instant,
    /// It must be notified exactly once.
    pub(super) due: bool,
    pub(super) done: bool,
    pub(super) failed: Option<Class>,
    pub(super) notify: bool,
    pub(super) notified: u32,
}

/// What was seen.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    /// Transfers posted.
    pub posted: u64,
    /// Of those, done and verified.
    pub done: u64,
    /// Ended with an error that something explains.
    pub failed: u64,
    /// Refused by the library, explained.
    pub refused: u64,
    /// Bytes of transfers that are done.
    pub bytes: u64,
    /// Ops that were posted again.
    pub retried: u64,
    /// Notifications, each verified when it came.
    pub notified: u64,
    /// Messages that arrived.
    pub messages: u64,
    /// Faults that were set.
    pub faults: u64,
    /// Processes that were killed and came back.
    pub restarts: u64,
    /// Regions that were registered anew.
    pub renewed: u64,
    /// Routes that went down or up.
    pub routes: u64,
}

impl Seen {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.posted += other.posted;
        self.done += other.done;
        self.failed += other.failed;
        self.refused += other.refused;
        self.bytes += other.bytes;
        self.retried += other.retried;
        self.notified += other.notified;
        self.messages += other.messages;
        self.faults += other.faults;
        self.restarts += other.restarts;
        self.renewed += other.renewed;
        self.routes += other.routes;
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} transfers ({} done and verified, {:.1} GB; {} failed and {} refused for a reason), {} notifications, {} \
             messages, {} ops repeated; {} faults, {} restarts, {} regions renewed, {} route changes",
            self.posted,
            self.done,
            self.bytes as f64 / 1e9,
            self.failed,
            self.refused,
            self.notified,
            self.messages,
            self.retried,
            self.faults,
            self.restarts,
            self.renewed,
            self.routes,
        )
    }
}

/// All transfers of a run.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) past: BTreeMap<u64, Past>,
    /// Messages: from, to, when, times heard.
    pub(super) messages: BTreeMap<u64, (Life, Life, Instant, u32)>,
    pub(super) seen: Seen,
    numbers: u64,
}

impl Book {
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A notification came. `wrong`: what its bytes were like.
    pub(super) fn notified(&mut self, id: u64, at: Life, wrong: Option<String>) -> Result<(), Violation> {
        if let Some(wrong) = wrong {
            return Err(Violation::new(
                Checker::Notification,
                format!("when the notification of transfer {id} came to node {}, {wrong}", at.0),
            ));
        }
        self.seen.notified += 1;
        let (times, text, notify, failed, responder) =
            match (self.entries.get_mut(&id), self.past.get_mut(&id)) {
                (Some(entry), _) => {
                    entry.notified += 1;
                    let failed = match &entry.outcome {
                        Some(Outcome::Failed { class, .. }) => Some(*class),
                        _ => None,
                    };
                    (entry.notified, entry.describe(id), entry.notify, failed, entry.responder)
                }
                (None, Some(past)) => {
                    past.notified += 1;
                    (past.notified, past.text.clone(), past.notify, past.failed, past.responder)
                }
                (None, None) => return Ok(()),
            };
        let once = |what: String| Err(Violation::new(Checker::ExactlyOnce, what));
        if responder != at {
            return once(format!("the notification of {text} came to node {}", at.0));
        }
        if !notify {
            return once(format!("{text} was notified without being asked to"));
        }
        if times > 1 {
            return once(format!("{text} was notified {times} times"));
        }
        match failed {
            Some(class) if !undecidable(class) => {
                once(format!("{text} was notified after it had failed ({class:?})"))
            }
            _ => Ok(()),
        }
    }

    /// An initiator says that a transfer has ended.
    pub(super) fn ended(
        &mut self,
        id: u64,
        outcome: Outcome,
        took: Duration,
        bound: Duration,
    ) -> Result<(), Violation> {
        let Some(entry) = self.entries.get_mut(&id) else {
            let text = self.past.get(&id).map_or_else(|| format!("transfer {id}"), |past| past.text.clone());
            return Err(Violation::new(Checker::ExactlyOnce, format!("{text} ended again: {outcome:?}")));
        };
        if let Some(earlier) = &entry.outcome {
            return Err(Violation::new(
                Checker::ExactlyOnce,
                format!("{} ended twice: {earlier:?}, then {outcome:?}", entry.describe(id)),
            ));
        }
        let limit = Duration::from_millis(entry.timeout_ms) + bound;
        if took > limit && !entry.late {
            return Err(Violation::new(
                Checker::Deadline,
                format!(
                    "{} ended {took:.1?} after its posting: {outcome:?}; its timeout was {} ms",
                    entry.describe(id),
                    entry.timeout_ms
                ),
            ));
        }
        match &outcome {
            Outcome::Done { retried, .. } => {
                self.seen.done += 1;
                self.seen.bytes += entry.bytes;
                self.seen.retried += u64::from(*retried);
            }
            Outcome::Failed { class, text, .. } => {
                self.seen.failed += 1;
                if entry.notified > 0 && !undecidable(*class) {
                    return Err(Violation::new(
                        Checker::ExactlyOnce,
                        format!("{} was notified and then failed: {text}", entry.describe(id)),
                    ));
                }
            }
        }
        entry.find = Find::after(&outcome);
        entry.outcome = Some(outcome);
        Ok(())
    }

    /// A transfer is over for good.
    pub(super) fn close(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        let failed = match &entry.outcome {
            Some(Outcome::Failed { class, .. }) => Some(*class),
            _ => None,
        };
        let done = matches!(entry.outcome, Some(Outcome::Done { .. }));
        self.past.insert(
            id,
            Past {
                text: entry.describe(id),
                initiator: entry.initiator,
                responder: entry.responder,
                began: entry.began,
                due: entry.notify && done,
                done,
                failed,
                notify: entry.notify,
                notified: entry.notified,
            },
        );
        Some(entry)
    }
}

/// The peer may have been told of a good end although the initiator saw a bad one: its word was lost on the way.
fn undecidable(class: Class) -> bool {
    matches!(class, Class::PeerLost | Class::Unconfirmed)
}
