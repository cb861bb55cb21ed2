//! What polling gathers, from one rail after the other.

use kvrail_core::id::{LocalRail, PeerId, RemoteRail, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError};

use super::endpoint::OpEntry;
use super::fragment::Reassembly;
use super::region::Imports;
use super::word::Heard;

/// An op over this pair of rails ended because the peer's rail does not know this one's endpoint, or has another itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unknown {
    pub(super) peer: PeerId,
    pub(super) local: LocalRail,
    pub(super) remote: RemoteRail,
    /// The destination that the op went to.
    pub(super) to: u32,
}

/// What polling gathers from all rails.
pub(super) struct Intake<'a> {
    pub(super) events: &'a mut Vec<Event>,
    pub(super) now: Time,
    pub(super) imports: &'a mut Imports,
    pub(super) reassembly: &'a mut Reassembly,
    pub(super) heard: &'a mut Vec<Heard>,
    /// Imports that were ended and have nothing in flight any more.
    pub(super) settled: &'a mut Vec<u32>,
    /// Rails of peers that were found gone (true), or there after all.
    pub(super) gone: &'a mut Vec<(PeerId, RemoteRail, bool)>,
    /// Pairs of rails whose ops the peer's side does not know, or no longer.
    pub(super) unknown: &'a mut Vec<Unknown>,
    /// Consecutive ops of one transfer that completed: one event for many.
    run: Option<(Token, u32, u32)>,
}

impl<'a> Intake<'a> {
    #[allow(clippy::too_many_arguments, reason = "each is a part of it")]
    pub(super) fn new(
        now: Time,
        events: &'a mut Vec<Event>,
        imports: &'a mut Imports,
        reassembly: &'a mut Reassembly,
        heard: &'a mut Vec<Heard>,
        settled: &'a mut Vec<u32>,
        gone: &'a mut Vec<(PeerId, RemoteRail, bool)>,
        unknown: &'a mut Vec<Unknown>,
    ) -> Self {
        Self { events, now, imports, reassembly, heard, settled, gone, unknown, run: None }
    }

    #[inline]
    pub(super) fn completed(&mut self, token: Token, index: u32) {
        match &mut self.run {
            Some((of, first, count)) if *of == token && index == *first + *count => *count += 1,
            _ => {
                self.flush();
                self.run = Some((token, index, 1));
            }
        }
    }

    pub(super) fn failed(&mut self, token: Token, first: u32, error: OpError) {
        self.flush();
        self.events.push(Event::Failed { token, first, count: 1, error });
    }

    /// Reports the run that is open.
    #[inline]
    pub(super) fn flush(&mut self) {
        if let Some((token, first, count)) = self.run.take() {
            self.events.push(Event::Completed { token, first, count });
        }
    }

    pub(super) fn settle(&mut self, import: u32) {
        if self.imports.settled(import) {
            self.settled.push(import);
        }
    }

    /// Ops that were taken back, as few events as their order allows.
    pub(super) fn flushed(&mut self, mut ops: Vec<OpEntry>) {
        self.flush();
        ops.sort_unstable_by_key(|op| (op.token, op.index));
        let mut run: Option<(Token, u32, u32)> = None;
        for op in &ops {
            self.settle(op.import);
            match &mut run {
                Some((token, first, count)) if *token == op.token && op.index == *first + *count => {
                    *count += 1
                }
                _ => {
                    if let Some((token, first, count)) = run.replace((op.token, op.index, 1)) {
                        self.events.push(Event::Failed { token, first, count, error: OpError::Flushed });
                    }
                }
            }
        }
        if let Some((token, first, count)) = run {
            self.events.push(Event::Failed { token, first, count, error: OpError::Flushed });
        }
    }
}
