//! What was asked of the engines and what they said: the book that the checkers read.

use std::collections::BTreeMap;

use kvrail_core::error::{Awaited, TransferError};
use kvrail_core::id::Token;
use kvrail_core::time::Time;
use kvrail_core::transport::Direction;

use super::layout::Slice;
use crate::fabric::SimFabric;
use crate::pattern::Pattern;
use crate::territory::Span;
use crate::violation::Checker;

/// A node in one of its lives.
pub(crate) type Life = (usize, u64);

/// How a posting ended at its initiator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done,
    Failed(TransferError),
    /// Its initiator died: nobody will say.
    Abandoned,
}

/// One posting.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) initiator: Life,
    pub(crate) responder: Life,
    pub(crate) direction: Direction,
    /// Addresses at both ends.
    pub(crate) spans: Vec<Span>,
    pub(crate) pattern: Pattern,
    /// It carries a notification.
    pub(crate) announced: bool,
    /// It must succeed.
    pub(crate) must_succeed: bool,
    /// It must have ended by then.
    pub(crate) end_by: Time,
    pub(crate) outcome: Option<Outcome>,
    /// The peer's one terminal event: its notification, or the news that the transfer failed.
    pub(crate) remote_end: Option<RemoteEnd>,
    /// The ranges at the responder belong to its application again.
    pub(crate) remote_released: bool,
    /// The responder took a region of it away: it may fail, and its bytes prove nothing.
    pub(crate) excused: bool,
    /// Its plan was stale when it was posted: no byte may move.
    pub(crate) stale: bool,
}

/// A terminal event at the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RemoteEnd {
    Notified,
    ToldOfFailure,
}

impl Record {
    fn target(&self) -> Life {
        match self.direction {
            Direction::Write => self.responder,
            Direction::Read => self.initiator,
        }
    }
}

/// Addresses of slices, as source and target.
pub(crate) fn spans(slices: &[Slice], direction: Direction, local: &[u64], remote: &[u64]) -> Vec<Span> {
    slices
        .iter()
        .map(|s| {
            let (here, there) = (local[s.local_area] + s.local, remote[s.remote_area] + s.remote);
            let (source, target) = match direction {
                Direction::Write => (here, there),
                Direction::Read => (there, here),
            };
            Span { source, target, len: s.len }
        })
        .collect()
}

/// All postings of a run.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) records: Vec<Record>,
    by_token: BTreeMap<(Life, u32, u32), usize>,
    /// Application messages: sender, receiver, times delivered.
    pub(crate) messages: Vec<(Life, Life, u32)>,
}

impl Ledger {
    pub(crate) fn open(&mut self, record: Record) -> usize {
        self.records.push(record);
        self.records.len() - 1
    }

    /// The engine took the posting.
    pub(crate) fn accepted(&mut self, index: usize, token: Token) {
        let life = self.records[index].initiator;
        self.by_token.insert((life, token.slot, token.generation.0), index);
    }

    pub(crate) fn token_of(&self, index: usize) -> Option<Token> {
        let life = self.records[index].initiator;
        let found = self.by_token.iter().find(|((of, _, _), at)| *of == life && **at == index);
        found.map(|((_, slot, generation), _)| Token {
            slot: *slot,
            generation: kvrail_core::id::Generation(*generation),
        })
    }

    /// Postings that have not ended.
    pub(crate) fn active(&self) -> Vec<usize> {
        (0..self.records.len()).filter(|i| self.records[*i].outcome.is_none()).collect()
    }

    /// A posting's terminal event at its initiator. Returns its index.
    pub(crate) fn ended(
        &mut self,
        fabric: &SimFabric,
        life: Life,
        token: Token,
        result: Result<(), TransferError>,
    ) -> Option<usize> {
        let Some(&index) = self.by_token.get(&(life, token.slot, token.generation.0)) else {
            fabric.violate(
                Checker::ExactlyOnce,
                format!("node {} ended a transfer that was never posted", life.0),
            );
            return None;
        };
        let record = &self.records[index];
        if fabric.now() > record.end_by {
            fabric.violate(
                Checker::Progress,
                format!("transfer {index} of node {} ended later than {}: {result:?}", life.0, record.end_by),
            );
        }
        if let Some(earlier) = &record.outcome {
            fabric.violate(
                Checker::ExactlyOnce,
                format!("transfer {index} of node {} ended twice: {earlier:?}, then {result:?}", life.0),
            );
            return None;
        }
        match &result {
            Ok(()) => {
                if record.stale {
                    fabric
                        .violate(Checker::Addressing, format!("transfer {index} of a stale plan succeeded"));
                } else if !record.remote_released || record.direction == Direction::Read {
                    self.verify(fabric, index, "its end");
                }
                if record.remote_end == Some(RemoteEnd::ToldOfFailure) {
                    fabric.violate(
                        Checker::ExactlyOnce,
                        format!("transfer {index} is done at node {} and failed at its peer", life.0),
                    );
                }
            }
            Err(error) => self.judge_failure(fabric, index, error),
        }
        self.records[index].outcome = Some(match result {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error),
        });
        Some(index)
    }

    fn judge_failure(&self, fabric: &SimFabric, index: usize, error: &TransferError) {
        let record = &self.records[index];
        if record.must_succeed {
            fabric.violate(
                Checker::Progress,
                format!(
                    "transfer {index} of node {} failed after everything had healed: {error}",
                    record.initiator.0
                ),
            );
        }
        // The peer's word may be lost with the peer, or come after the deadline. Otherwise both sides must agree.
        let undecidable = matches!(
            error,
            TransferError::PeerLost(_)
                | TransferError::DeadlineExceeded { awaited: Awaited::Confirmation, .. }
        );
        if record.remote_end == Some(RemoteEnd::Notified) && !undecidable {
            fabric.violate(
                Checker::ExactlyOnce,
                format!(
                    "transfer {index} was announced to its peer and then failed at its initiator: {error}"
                ),
            );
        }
        if *error == TransferError::Overshoot {
            fabric.violate(
                Checker::ExactlyOnce,
                format!("transfer {index} of node {}: {error}", record.initiator.0),
            );
        }
    }

    /// The peer's terminal event of a posting. Returns its index.
    pub(crate) fn ended_remotely(
        &mut self,
        fabric: &SimFabric,
        at: Life,
        index: usize,
        end: RemoteEnd,
    ) -> Option<usize> {
        let Some(record) = self.records.get(index).filter(|r| r.announced && r.responder == at) else {
            fabric.violate(
                Checker::ExactlyOnce,
                format!("node {} was told of transfer {index}, not its own", at.0),
            );
            return None;
        };
        if let Some(earlier) = record.remote_end {
            fabric.violate(
                Checker::ExactlyOnce,
                format!("node {} was told twice how transfer {index} ended: {earlier:?}, then {end:?}", at.0),
            );
            return None;
        }
        match (end, &record.outcome) {
            (RemoteEnd::ToldOfFailure, Some(Outcome::Done)) => fabric.violate(
                Checker::ExactlyOnce,
                format!("transfer {index} is done at its initiator and failed at node {}", at.0),
            ),
            (RemoteEnd::Notified, Some(Outcome::Failed(error)))
                if !matches!(
                    error,
                    TransferError::PeerLost(_)
                        | TransferError::DeadlineExceeded { awaited: Awaited::Confirmation, .. }
                ) =>
            {
                fabric.violate(
                    Checker::ExactlyOnce,
                    format!(
                        "transfer {index} failed at its initiator ({error}) and was announced to node {}",
                        at.0
                    ),
                );
            }
            (RemoteEnd::Notified, _) => {
                // A read's initiator may have used its target since it ended.
                let target_is_ours = record.target() == at && !record.remote_released;
                let still_moving = record.target() != at && record.outcome.is_none();
                if target_is_ours || still_moving {
                    self.verify(fabric, index, "its notification");
                }
            }
            _ => {}
        }
        self.records[index].remote_end = Some(end);
        Some(index)
    }

    /// Every byte of a posting, now.
    fn verify(&self, fabric: &SimFabric, index: usize, moment: &str) {
        let record = &self.records[index];
        let (node, epoch) = record.target();
        if fabric.life(node) != (epoch, true) || record.excused {
            return;
        }
        let wrong = fabric.memory(node, |memory| {
            record.spans.iter().find_map(|span| {
                let bytes = memory.slice(span.target, span.len)?;
                record.pattern.mismatch(span.source, bytes).map(|at| (*span, at))
            })
        });
        if let Some((span, at)) = wrong {
            fabric.violate(
                Checker::Bytes,
                format!(
                    "transfer {index} ({} from node {} to node {}): at {moment}, byte {at} of the {} at {:#x} of node \
                     {node} is wrong",
                    record.direction, record.initiator.0, record.responder.0, span.len, span.target
                ),
            );
        }
    }

    /// An application's message arrived.
    pub(crate) fn message(&mut self, fabric: &SimFabric, at: Life, index: usize) {
        match self.messages.get_mut(index).filter(|(_, to, _)| *to == at) {
            Some((_, _, times)) => {
                *times += 1;
                if *times > 1 {
                    fabric.violate(Checker::ExactlyOnce, format!("node {} got message {index} twice", at.0));
                }
            }
            None => {
                fabric.violate(
                    Checker::ExactlyOnce,
                    format!("node {} got message {index}, never sent to it", at.0),
                );
            }
        }
    }

    /// A node's process died.
    pub(crate) fn died(&mut self, life: Life) {
        for record in &mut self.records {
            if record.initiator == life && record.outcome.is_none() {
                record.outcome = Some(Outcome::Abandoned);
            }
        }
    }

    /// Who moves what where, for the reader of a trace.
    pub(crate) fn describe(&self, index: usize) -> String {
        let r = &self.records[index];
        let bytes: u64 = r.spans.iter().map(|span| span.len).sum();
        format!(
            "transfer {index}: {} of {bytes} bytes in {} pieces, node {} to node {}{}",
            r.direction,
            r.spans.len(),
            r.initiator.0,
            r.responder.0,
            if r.announced { ", announced" } else { "" }
        )
    }
}

/// A notification's or message's first byte, and the number after it.
pub(crate) fn tag(kind: u8, index: usize, padding: usize) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((index as u64).to_le_bytes());
    bytes.resize(9 + padding, kind);
    bytes
}

/// The inverse of [`tag`].
pub(crate) fn untag(bytes: &[u8]) -> Option<(u8, usize)> {
    let (kind, rest) = bytes.split_first()?;
    let index = u64::from_le_bytes(*rest.first_chunk()?);
    rest[8..].iter().all(|byte| byte == kind).then_some((*kind, index as usize))
}
