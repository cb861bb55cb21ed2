//! The two ends of a connection's conversation: what this side asked for and is owed an answer to, and what the peer
//! asked for and this side owes. Answers come in the order of the questions, so both are queues (KR-6).

use std::collections::VecDeque;

use kvrail_core::id::Token;
use kvrail_core::transport::{Event, OpError};

use super::frame::{Asked, Descriptor, FrameError, Head, Refusal};
use super::region::Slice;

/// Messages that may be unanswered on one connection, and their bytes.
const MESSAGES_OPEN_MAX: usize = 64;
const MESSAGE_BYTES_OPEN_MAX: usize = 256 << 10;
/// Control frames that may wait to be sent before nothing more is read from the peer.
const CONTROL_QUEUED_MAX: usize = 1 << 10;
/// Entries that an idle queue may keep room for.
const KEPT_MAX: usize = 64;

/// Ops that one side may have open on a connection; also what a peer may ask for before it floods.
pub(crate) const OPS_OPEN_MAX: usize = 4_096;

/// One op of this side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) token: Token,
    pub(crate) index: u32,
    pub(crate) local: Slice,
    pub(crate) remote: Descriptor,
}

/// What this side asked for.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) writes_queued: VecDeque<Pending>,
    pub(crate) writes_sent: VecDeque<Pending>,
    pub(crate) reads_queued: VecDeque<Pending>,
    pub(crate) reads_sent: VecDeque<Pending>,
    pub(crate) messages_queued: VecDeque<Vec<u8>>,
    /// Lengths of those that were sent and not answered.
    pub(crate) messages_sent: VecDeque<u32>,
    message_bytes: usize,
}

impl Requests {
    /// Ops without an outcome.
    pub(crate) fn ops_open(&self) -> usize {
        self.writes_queued.len() + self.writes_sent.len() + self.reads_queued.len() + self.reads_sent.len()
    }

    pub(crate) fn messages_open(&self) -> usize {
        self.messages_queued.len() + self.messages_sent.len()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.ops_open() == 0 && self.messages_open() == 0
    }

    /// Something waits to be sent.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.writes_queued.is_empty() || !self.reads_queued.is_empty() || !self.messages_queued.is_empty()
    }

    /// Takes a message unless the peer is behind.
    pub(crate) fn queue_message(&mut self, message: &[u8]) -> bool {
        let fits = self.message_bytes + message.len() <= MESSAGE_BYTES_OPEN_MAX || self.messages_open() == 0;
        if self.messages_open() >= MESSAGES_OPEN_MAX || !fits {
            return false;
        }
        self.message_bytes += message.len();
        self.messages_queued.push_back(message.to_vec());
        true
    }

    /// The oldest writes were placed, or refused.
    pub(crate) fn writes_answered(
        &mut self,
        count: u32,
        error: Option<OpError>,
        events: &mut Vec<Event>,
    ) -> Result<(), FrameError> {
        answered(&mut self.writes_sent, count, error, events)
    }

    /// The oldest reads are here, or were refused.
    pub(crate) fn reads_answered(
        &mut self,
        count: u32,
        error: Option<OpError>,
        events: &mut Vec<Event>,
    ) -> Result<(), FrameError> {
        answered(&mut self.reads_sent, count, error, events)
    }

    pub(crate) fn messages_answered(&mut self, count: u32) -> Result<(), FrameError> {
        for _ in 0..count {
            let len = self.messages_sent.pop_front().ok_or(FrameError::Unasked)?;
            self.message_bytes -= len as usize;
        }
        self.messages_queued.shrink_to(KEPT_MAX);
        Ok(())
    }
}

fn answered(
    sent: &mut VecDeque<Pending>,
    count: u32,
    error: Option<OpError>,
    events: &mut Vec<Event>,
) -> Result<(), FrameError> {
    if count as usize > sent.len() {
        return Err(FrameError::Unasked);
    }
    for op in sent.drain(..count as usize) {
        report(&op, error, events);
    }
    if sent.is_empty() {
        sent.shrink_to(KEPT_MAX);
    }
    Ok(())
}

/// Reports how an op ended; neighbours of one transfer that ended alike share an event.
pub(crate) fn report(op: &Pending, error: Option<OpError>, events: &mut Vec<Event>) {
    match (events.last_mut(), error) {
        (Some(Event::Completed { token, first, count }), None)
            if *token == op.token && first.wrapping_add(*count) == op.index =>
        {
            *count += 1;
        }
        (Some(Event::Failed { token, first, count, error: same }), Some(error))
            if *token == op.token && first.wrapping_add(*count) == op.index && *same == error =>
        {
            *count += 1;
        }
        (_, None) => events.push(Event::Completed { token: op.token, first: op.index, count: 1 }),
        (_, Some(error)) => events.push(Event::Failed { token: op.token, first: op.index, count: 1, error }),
    }
}

/// What the peer asked for.
#[derive(Default)]
pub(crate) struct Serving {
    /// Reads to answer with data.
    pub(crate) reads: VecDeque<Slice>,
    /// Frames without payload.
    pub(crate) control: VecDeque<Head>,
}

impl Serving {
    /// The peer does not take its answers: until it does, it is not listened to.
    pub(crate) fn is_swamped(&self) -> bool {
        self.control.len() > CONTROL_QUEUED_MAX
    }

    pub(crate) fn wants_to_send(&self) -> bool {
        !self.reads.is_empty() || !self.control.is_empty()
    }

    pub(crate) fn queue_read(&mut self, slice: Slice) -> Result<(), FrameError> {
        if self.reads.len() >= OPS_OPEN_MAX {
            return Err(FrameError::Flood);
        }
        self.reads.push_back(slice);
        Ok(())
    }

    /// One more write or message was placed.
    pub(crate) fn done(&mut self, asked: Asked) {
        match self.control.back_mut() {
            Some(Head::Done { asked: same, count }) if *same == asked => *count += 1,
            _ => self.control.push_back(Head::Done { asked, count: 1 }),
        }
    }

    /// One more write was refused.
    pub(crate) fn refuse_write(&mut self, why: Refusal) {
        match self.control.back_mut() {
            Some(Head::Refused { asked: Asked::Writes, count, why: same }) if *same == why => *count += 1,
            _ => self.control.push_back(Head::Refused { asked: Asked::Writes, count: 1, why }),
        }
    }

    pub(crate) fn shrink(&mut self) {
        self.control.shrink_to(KEPT_MAX);
        self.reads.shrink_to(KEPT_MAX);
    }
}
