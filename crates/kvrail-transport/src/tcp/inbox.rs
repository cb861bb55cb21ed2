//! What arrives on a connection: parsed in place, payload received straight into registered memory.
//!
//! While the target of the next bytes is known, they are received there; the rest goes to a staging buffer shared by
//! all connections, from which heads, tables and the first bytes of a payload are taken. A connection keeps bytes of
//! its own only in the middle of a head, a table or a message.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use kvrail_core::id::LocalRail;
use kvrail_core::transport::{Event, OpError};

use super::config::RailCounters;
use super::frame::{
    ANSWER_BYTES, Answer, Asked, ConnectionName, DESCRIPTOR_BYTES, FrameError, GREETING_BYTES, Greeting,
    HEAD_BYTES, Head, Refusal, decode_table,
};
use super::region::{Regions, Slice};
use super::requests::{Requests, Serving};
use super::sys::{self, iovec};

/// Staging buffer, bytes: takes a small op whole, and little of a large one's payload.
pub(crate) const STAGING_BYTES: usize = 16 << 10;
/// Where refused payload goes, bytes at a time.
const DRAIN_BYTES: usize = 64 << 10;
/// Slices and bytes of one receive call. More than this falls out of the caches before it is looked at.
const IOVECS_MAX: usize = 64;
const RECEIVE_BYTES_MAX: usize = 512 << 10;
/// What one connection may take in one poll before the others have their turn, bytes.
const TURN_BYTES_MAX: usize = 2 << 20;
/// Capacity that an idle connection may keep, bytes.
const KEPT_BYTES_MAX: usize = 256;

/// Buffers that all connections share: one thread owns them all (KR-5).
pub(crate) struct Scratch {
    staging: Box<[u8]>,
    drain: Box<[u8]>,
    pub(crate) iovecs: Vec<iovec>,
}

// SAFETY: the vectors of `iovecs` are made and used within one call and are otherwise stale addresses that nobody
// reads; what they point to is not owned by this struct.
unsafe impl Send for Scratch {}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            drain: vec![0; DRAIN_BYTES].into_boxed_slice(),
            iovecs: Vec::with_capacity(IOVECS_MAX + 1),
        }
    }
}

/// What a frame asks of the transport as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// A dialer introduced itself.
    Greeted(Greeting),
    /// The acceptor welcomed this side.
    Welcomed,
    /// See [`Head::Fence`].
    Fence(ConnectionName),
    /// See [`Head::Fenced`].
    Fenced(ConnectionName),
    /// The peer's instance ends.
    Bye,
}

/// Why a connection cannot be used any more.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The peer closed it.
    Ended,
    /// The kernel gave it up.
    Io(io::Error),
    /// The peer sent what it must not.
    Protocol(FrameError),
    /// The acceptor does not want this side.
    Rejected(Answer),
    /// This side ended it: a reset, a removal, a deadline.
    Closed(OpError),
}

impl From<FrameError> for Broken {
    fn from(e: FrameError) -> Self {
        Self::Protocol(e)
    }
}

/// The rest of the connection and of the transport, as the inbox needs it.
pub(crate) struct Surroundings<'a> {
    pub(crate) regions: &'a Regions,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) requests: &'a mut Requests,
    pub(crate) serving: &'a mut Serving,
    pub(crate) counters: &'a mut RailCounters,
    pub(crate) events: &'a mut Vec<Event>,
    pub(crate) effects: &'a mut Vec<Effect>,
    pub(crate) rail: LocalRail,
}

enum Stage {
    Greeting,
    Answer,
    Head,
    Table(Head),
    /// Payload of writes by the peer, or of reads by this side.
    Landing(Asked),
    Message(Vec<u8>, usize),
}

/// Where the bytes of one op go.
struct Landing {
    /// What is still to come.
    rest: Slice,
    touched: bool,
    refusal: Option<Refusal>,
}

/// The receiving half of a connection.
pub(crate) struct Inbox {
    stage: Stage,
    partial: Vec<u8>,
    landings: VecDeque<Landing>,
}

impl Inbox {
    /// Of a connection that was dialed: the answer comes first.
    pub(crate) fn dialed() -> Self {
        Self { stage: Stage::Answer, partial: Vec::new(), landings: VecDeque::new() }
    }

    /// Of a connection that was accepted: the greeting comes first.
    pub(crate) fn accepted() -> Self {
        Self { stage: Stage::Greeting, partial: Vec::new(), landings: VecDeque::new() }
    }

    /// Receives until the kernel has no more or the turn is over. Returns the number of bytes.
    pub(crate) fn receive(&mut self, fd: RawFd, s: &mut Surroundings<'_>) -> Result<usize, Broken> {
        let mut turn = 0;
        // Whether only the next op's memory is aimed at: a fault does not say whose memory it was.
        let mut alone = false;
        while turn < TURN_BYTES_MAX && !s.serving.is_swamped() {
            let (landing_bytes, asked) = self.aim(s, alone);
            // SAFETY: `aim` made the slices from registered memory, which its owner keeps valid and writable until it
            // is deregistered, and from the scratch buffers, which are not looked at until the call is over.
            let taken = match unsafe { sys::receive(fd, &s.scratch.iovecs) } {
                Ok(0) => return Err(Broken::Ended),
                Ok(taken) => taken,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.raw_os_error() == Some(libc::EFAULT) && !self.landings.is_empty() => {
                    if alone {
                        self.fault(libc::EFAULT);
                    }
                    alone = !alone;
                    continue;
                }
                Err(e) => return Err(Broken::Io(e)),
            };
            alone = false;
            turn += taken;
            s.counters.rx_bytes += taken as u64;
            let landed = taken.min(landing_bytes);
            self.landed(landed, s)?;
            self.parse(taken - landed, s)?;
            if taken < asked {
                break;
            }
        }
        Ok(turn)
    }

    /// Aims the next receive: known targets first, then the staging buffer; or the next target alone. Returns the bytes of the
    /// targets and of all.
    fn aim(&mut self, s: &mut Surroundings<'_>, alone: bool) -> (usize, usize) {
        let Scratch { staging, drain, iovecs } = &mut *s.scratch;
        iovecs.clear();
        let mut bytes = 0;
        let mut complete = true;
        for landing in &mut self.landings {
            if iovecs.len() >= IOVECS_MAX || bytes >= RECEIVE_BYTES_MAX {
                complete = false;
                break;
            }
            let (base, len) = match landing.target(s.regions) {
                Some(base) => (base, landing.rest.len as usize),
                None => (drain.as_mut_ptr(), (landing.rest.len as usize).min(DRAIN_BYTES)),
            };
            iovecs.push(iovec { iov_base: base.cast(), iov_len: len });
            bytes += len;
            if len < landing.rest.len as usize || alone {
                complete = false;
                break;
            }
        }
        if !complete {
            return (bytes, bytes);
        }
        iovecs.push(iovec { iov_base: staging.as_mut_ptr().cast(), iov_len: staging.len() });
        (bytes, bytes + staging.len())
    }

    /// The memory of the next op cannot be written.
    fn fault(&mut self, errno: i32) {
        if let Some(landing) = self.landings.front_mut() {
            landing.refusal = Some(Refusal::Fault(errno));
        }
    }

    /// So many bytes were received into the targets that [`Inbox::aim`] chose.
    fn landed(&mut self, mut bytes: usize, s: &mut Surroundings<'_>) -> Result<(), Broken> {
        while bytes > 0 {
            let Some(landing) = self.landings.front_mut() else { break };
            let step = bytes.min(landing.rest.len as usize);
            landing.advance(step);
            bytes -= step;
            if landing.rest.len == 0 {
                self.finish_landing(s)?;
            }
        }
        Ok(())
    }

    /// The front op has all its bytes.
    fn finish_landing(&mut self, s: &mut Surroundings<'_>) -> Result<(), Broken> {
        let Stage::Landing(asked) = self.stage else { return Ok(()) };
        let Some(landing) = self.landings.pop_front() else { return Ok(()) };
        match (asked, landing.refusal) {
            (Asked::Reads, None) => {
                s.counters.ops_completed += 1;
                s.requests.reads_answered(1, None, s.events)?;
            }
            (Asked::Reads, Some(refusal)) => {
                s.counters.ops_failed += 1;
                // The memory of this side's own op is gone: no answer of the peer.
                let errno = if let Refusal::Fault(errno) = refusal { errno } else { libc::EFAULT };
                s.requests.reads_answered(1, Some(OpError::Fault(errno)), s.events)?;
            }
            (_, None) => {
                s.counters.ops_served += 1;
                s.serving.done(Asked::Writes);
            }
            (_, Some(why)) => {
                s.counters.ops_refused += 1;
                s.serving.refuse_write(why);
            }
        }
        if self.landings.is_empty() {
            self.stage = Stage::Head;
        }
        Ok(())
    }

    /// Takes the staging buffer's first bytes apart.
    fn parse(&mut self, bytes: usize, s: &mut Surroundings<'_>) -> Result<(), Broken> {
        // The buffer is taken out for the time of parsing, so that the surroundings can be lent on.
        let staging = std::mem::take(&mut s.scratch.staging);
        let result = self.parse_bytes(&staging[..bytes], s);
        s.scratch.staging = staging;
        result
    }

    fn parse_bytes(&mut self, mut bytes: &[u8], s: &mut Surroundings<'_>) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match &mut self.stage {
                Stage::Greeting => {
                    if self.partial.len() < 8
                        && !Greeting::may_begin(&bytes[..bytes.len().min(8)])
                        && self.partial.is_empty()
                    {
                        return Err(FrameError::Stranger.into());
                    }
                    let Some(whole) = collect::<GREETING_BYTES>(&mut self.partial, &mut bytes) else { break };
                    s.effects.push(Effect::Greeted(Greeting::decode(&whole)?));
                    if !bytes.is_empty() {
                        // The dialer has to wait for the answer.
                        return Err(FrameError::Unasked.into());
                    }
                    self.stage = Stage::Head;
                }
                Stage::Answer => {
                    let Some(whole) = collect::<ANSWER_BYTES>(&mut self.partial, &mut bytes) else { break };
                    match Answer::decode(&whole)? {
                        Answer::Welcome => s.effects.push(Effect::Welcomed),
                        other => return Err(Broken::Rejected(other)),
                    }
                    self.stage = Stage::Head;
                }
                Stage::Head => {
                    let Some(whole) = collect::<HEAD_BYTES>(&mut self.partial, &mut bytes) else { break };
                    self.head(Head::decode(&whole)?, s)?;
                }
                Stage::Table(head) => {
                    let head = *head;
                    let (Head::Write { ops, .. } | Head::Read { ops, .. }) = head else { break };
                    let need = usize::from(ops) * DESCRIPTOR_BYTES;
                    if self.partial.is_empty()
                        && let Some((table, rest)) = bytes.split_at_checked(need)
                    {
                        bytes = rest;
                        self.table(head, table, s)?;
                    } else {
                        let step = bytes.len().min(need - self.partial.len());
                        self.partial.extend_from_slice(&bytes[..step]);
                        bytes = &bytes[step..];
                        if self.partial.len() == need {
                            let table = std::mem::take(&mut self.partial);
                            self.table(head, &table, s)?;
                        }
                    }
                }
                Stage::Landing(_) => {
                    let Some(landing) = self.landings.front_mut() else { break };
                    let step = bytes.len().min(landing.rest.len as usize);
                    if landing.target(s.regions).is_some()
                        && !s.regions.copy_in(&landing.rest, &bytes[..step])
                    {
                        landing.refusal = Some(Refusal::Fault(libc::EFAULT));
                    }
                    landing.advance(step);
                    bytes = &bytes[step..];
                    if landing.rest.len == 0 {
                        self.finish_landing(s)?;
                    }
                }
                Stage::Message(message, left) => {
                    let step = bytes.len().min(*left);
                    message.extend_from_slice(&bytes[..step]);
                    bytes = &bytes[step..];
                    *left -= step;
                    if *left == 0 {
                        let bytes = std::mem::take(message);
                        self.stage = Stage::Head;
                        s.counters.messages_rx += 1;
                        s.events.push(Event::Message { rail: s.rail, bytes });
                        s.serving.done(Asked::Messages);
                    }
                }
            }
        }
        Ok(())
    }

    fn head(&mut self, head: Head, s: &mut Surroundings<'_>) -> Result<(), Broken> {
        match head {
            Head::Write { .. } | Head::Read { .. } => self.stage = Stage::Table(head),
            Head::ReadData { ops, bytes } => self.read_data(usize::from(ops), bytes, s)?,
            Head::Done { asked: Asked::Writes, count } => {
                s.requests.writes_answered(count, None, s.events)?;
                s.counters.ops_completed += u64::from(count);
            }
            Head::Done { asked: Asked::Messages, count } => s.requests.messages_answered(count)?,
            Head::Done { asked: Asked::Reads, .. } => return Err(FrameError::Unasked.into()),
            Head::Refused { asked, count, why } => {
                let error = match why {
                    Refusal::BadKey => OpError::BadKey,
                    Refusal::Fault(errno) => OpError::Fault(errno),
                };
                match asked {
                    Asked::Writes => s.requests.writes_answered(count, Some(error), s.events)?,
                    Asked::Reads => s.requests.reads_answered(count, Some(error), s.events)?,
                    Asked::Messages => return Err(FrameError::Unasked.into()),
                }
                s.counters.ops_failed += u64::from(count);
            }
            Head::Message { bytes } => {
                // At most 64 KiB, and only for a connection that knows this instance.
                self.stage = Stage::Message(Vec::with_capacity(bytes as usize), bytes as usize);
            }
            Head::Fence { connection } => s.effects.push(Effect::Fence(connection)),
            Head::Fenced { connection } => s.effects.push(Effect::Fenced(connection)),
            Head::Bye => s.effects.push(Effect::Bye),
        }
        Ok(())
    }

    fn table(&mut self, head: Head, table: &[u8], s: &mut Surroundings<'_>) -> Result<(), Broken> {
        self.partial.shrink_to(KEPT_BYTES_MAX);
        match head {
            Head::Write { bytes, .. } => {
                let landings = &mut self.landings;
                decode_table(table, bytes, |d| {
                    let rest =
                        Slice { region: d.region, generation: d.generation, offset: d.offset, len: d.len };
                    landings.push_back(Landing { rest, touched: false, refusal: None });
                })?;
                self.stage = Stage::Landing(Asked::Writes);
            }
            Head::Read { bytes, .. } => {
                let mut flood = Ok(());
                decode_table(table, bytes, |d| {
                    let slice =
                        Slice { region: d.region, generation: d.generation, offset: d.offset, len: d.len };
                    flood = flood.and(s.serving.queue_read(slice));
                })?;
                flood?;
                self.stage = Stage::Head;
            }
            _ => {}
        }
        Ok(())
    }

    /// Data for the oldest reads of this side: they say where it goes and how much it must be.
    fn read_data(&mut self, ops: usize, bytes: u32, s: &mut Surroundings<'_>) -> Result<(), Broken> {
        if ops > s.requests.reads_sent.len() {
            return Err(FrameError::Unasked.into());
        }
        let mut sum = 0u64;
        for op in s.requests.reads_sent.iter().take(ops) {
            sum += u64::from(op.local.len);
            self.landings.push_back(Landing { rest: op.local, touched: false, refusal: None });
        }
        if sum != u64::from(bytes) {
            return Err(FrameError::Length(bytes).into());
        }
        self.stage = Stage::Landing(Asked::Reads);
        Ok(())
    }
}

impl Landing {
    /// Where the next bytes go; `None` once the op is refused. Asked before every access, because the region can be
    /// deregistered between two.
    fn target(&mut self, regions: &Regions) -> Option<*mut u8> {
        if self.refusal.is_some() {
            return None;
        }
        let target = regions.resolve(&self.rest);
        if target.is_none() {
            self.refusal = Some(if self.touched { Refusal::Fault(libc::EFAULT) } else { Refusal::BadKey });
        }
        target
    }

    fn advance(&mut self, bytes: usize) {
        self.touched |= bytes > 0 && self.refusal.is_none();
        // Bounded by `rest.len`; a hostile offset may be close to the end of the numbers.
        self.rest.offset = self.rest.offset.wrapping_add(bytes as u64);
        self.rest.len -= bytes as u32;
    }
}

/// Gathers a fixed number of bytes, from what was kept and what is here; `None` until they are all there.
fn collect<const N: usize>(partial: &mut Vec<u8>, bytes: &mut &[u8]) -> Option<[u8; N]> {
    if partial.is_empty()
        && let Some((whole, rest)) = bytes.split_first_chunk::<N>()
    {
        *bytes = rest;
        return Some(*whole);
    }
    let step = bytes.len().min(N - partial.len());
    partial.extend_from_slice(&bytes[..step]);
    *bytes = &bytes[step..];
    let whole = <[u8; N]>::try_from(&partial[..]).ok()?;
    partial.clear();
    Some(whole)
}
