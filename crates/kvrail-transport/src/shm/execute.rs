//! Ops that the caller's own core carries out at once: between mappings by copy, otherwise through the kernel.

use kvrail_core::transport::{Batch, Direction, Op, OpError};

use super::gate;
use super::ledger::Ledger;
use super::neighbour::{Access, Link, Memory, Neighbour, Peer};
use super::process::{Slice, Vectors, is_denial};
use super::region::{Local, Locals, Remote};
use crate::memory::copy::Kernel;

/// What one post may copy, bytes: about half a millisecond. The caller comes again.
const POST_BYTES: u64 = 6 << 20;
const POST_BYTES_PRIVATE: u64 = 3 << 20;
/// Batches from this size on are written past the cache. Smaller ones leave their bytes where the peer's core will
/// look for them, and were twice as fast that way when the memory was warm; larger ones do not fit beside their
/// source.
const STREAM_BYTES: u64 = 4 << 20;

/// What copying needs.
pub(super) struct Tools {
    pub(super) kernel: Kernel,
    pub(super) vectors: Vectors,
    slices: Slices,
}

/// Reused between calls; the pointers in it mean something only during one.
struct Slices(Vec<Slice>);

// SAFETY: see the type.
unsafe impl Send for Slices {}

impl Tools {
    pub(super) fn new() -> Self {
        Self { kernel: Kernel::detect(), vectors: Vectors::new(), slices: Slices(Vec::new()) }
    }
}

/// What a post did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Taken {
    /// Ops taken, from the first of the batch.
    pub(super) ops: usize,
    /// Why it went no further.
    pub(super) then: Then,
}

/// Why a post went no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// All done, enough for now, or something is still on its way.
    Stop,
    /// The next ops are private memory that this core should or can not copy alone.
    Offer,
    /// The neighbour is gone.
    Gone,
}

/// A copy between mappings, or why there is none.
enum Found {
    Copy { target: *mut u8, source: *mut u8 },
    Private,
    NotYet,
    Bad(OpError),
}

/// One side's end of a batch, put together from what the transport knows.
pub(super) struct Ends<'a> {
    pub(super) locals: &'a Locals,
    pub(super) peer: &'a Peer,
    pub(super) neighbour: &'a mut Neighbour,
}

/// Whether what was imported is what its owner has registered right now, as a NIC checks a key. Inside the gate only.
pub(super) fn is_live(link: &Link, op: &Op, remote: &Remote) -> bool {
    let index = op.remote_region.index();
    if remote.generation == 0 || !gate::permits(link.control.generation(index), remote.generation) {
        return false;
    }
    let (start, len) = link.control.region(index);
    start == remote.start && remote.len <= len
}

fn find(
    locals: &Locals,
    peer: &Peer,
    neighbour: &Neighbour,
    link: &Link,
    direction: Direction,
    op: &Op,
) -> Found {
    let Some(remote) = peer.regions.get(op.remote_region.index()).filter(|r| is_live(link, op, r)) else {
        return Found::Bad(OpError::BadKey);
    };
    let Some(start) = remote.at(op.remote_offset, op.len) else { return Found::Bad(OpError::BadKey) };
    let Some(here) = locals.find(op.local_region).and_then(|l: &Local| l.at(op.local_offset, op.len)) else {
        return Found::Bad(OpError::Fault(libc::EFAULT));
    };
    if remote.memory == 0 {
        return Found::Private;
    }
    let mapping = match neighbour.memories.get(remote.memory as usize - 1) {
        Some((_, Memory::Mapped(mapping))) => mapping,
        Some((_, Memory::Wanted { .. })) => return Found::NotYet,
        _ => return Found::Bad(OpError::BadKey),
    };
    let Some(there) = mapping.at(start, op.len as usize) else { return Found::Bad(OpError::BadKey) };
    match direction {
        Direction::Read => Found::Copy { target: here, source: there },
        Direction::Write => Found::Copy { target: there, source: here },
    }
}

/// Carries out a prefix of a batch. `offers_from` is the number of private bytes from which on the peer's cores
/// should help.
pub(super) fn run(
    ends: &mut Ends<'_>,
    tools: &mut Tools,
    ledger: &mut Ledger,
    batch: &Batch<'_>,
    offers_from: u64,
) -> Taken {
    let busy_turn = match &ends.neighbour.link {
        Some(link) => gate::enter(link.control.busy(link.slot), ends.neighbour.turn),
        None => return Taken { ops: 0, then: Then::Stop },
    };
    ends.neighbour.turn = busy_turn;
    let mut taken = Taken { ops: 0, then: Then::Stop };
    let mut access = ends.neighbour.access;
    if let Some(link) = &ends.neighbour.link {
        if gate::permits(link.control.closed(), 0) {
            taken = inside(ends, link, &mut access, tools, ledger, batch, offers_from);
        } else {
            taken.then = Then::Gone;
        }
        // What was written past the cache must be there before the owner may see us outside, and before anyone
        // hears that it is complete.
        tools.kernel.fence();
        gate::leave(link.control.busy(link.slot), busy_turn);
    }
    ends.neighbour.access = access;
    taken
}

fn inside(
    ends: &Ends<'_>,
    link: &Link,
    access: &mut Access,
    tools: &mut Tools,
    ledger: &mut Ledger,
    batch: &Batch<'_>,
    offers_from: u64,
) -> Taken {
    let ops = batch.ops;
    let find = |op: &Op| find(ends.locals, ends.peer, ends.neighbour, link, batch.direction, op);
    let streams = is_large(ops);
    let mut bytes = 0;
    let mut at = 0;
    let Some(mut found) = ops.first().map(find) else { return Taken { ops: 0, then: Then::Stop } };
    while at < ops.len() && bytes < POST_BYTES {
        let (op, index) = (&ops[at], batch.first + at as u32);
        match found {
            Found::Copy { target, source } => {
                let next = ops.get(at + 1).map(find);
                if streams {
                    let hint = if let Some(Found::Copy { source, .. }) = next { source } else { source };
                    // SAFETY: `find` took both addresses from a registered region, which its owner keeps mapped
                    // while ops use it, and from a mapping of ours, and checked that `len` bytes lie inside each.
                    // They are different mappings.
                    unsafe { tools.kernel.stream(target, source, op.len as usize, hint) }
                } else {
                    // SAFETY: as above.
                    unsafe { tools.kernel.copy(target, source, op.len as usize) }
                }
                ledger.completed(batch.token, index, 1);
                bytes += u64::from(op.len);
                at += 1;
                found = next.unwrap_or(Found::NotYet);
            }
            Found::Bad(error) => {
                ledger.failed(batch.token, index, 1, error);
                at += 1;
                found = ops.get(at).map_or(Found::NotYet, find);
            }
            Found::NotYet => break,
            Found::Private => {
                if matches!(access, Access::Denied(_))
                    || private_bytes(ends.peer, &ops[at..], offers_from) >= offers_from
                {
                    // The first private op of all finds out whether the kernel permits it.
                    if *access != Access::Untried {
                        return Taken { ops: at, then: Then::Offer };
                    }
                }
                let count = if *access == Access::Untried { 1 } else { ops.len() };
                let run = &ops[at..(at + count).min(ops.len())];
                let (done, then) = private(ends, link, access, tools, ledger, batch, at, run);
                at += done;
                if then != Then::Stop || (done == 0) {
                    return Taken { ops: at, then };
                }
                bytes += POST_BYTES / POST_BYTES_PRIVATE
                    * ops[at - done..at].iter().map(|o| u64::from(o.len)).sum::<u64>();
                found = ops.get(at).map_or(Found::NotYet, find);
            }
        }
    }
    Taken { ops: at, then: Then::Stop }
}

fn is_large(ops: &[Op]) -> bool {
    let mut bytes = 0;
    ops.iter().any(|op| {
        bytes += u64::from(op.len);
        bytes >= STREAM_BYTES
    })
}

/// Bytes of the leading run of private ops; no need to count beyond `enough`.
pub(super) fn private_bytes(peer: &Peer, ops: &[Op], enough: u64) -> u64 {
    let mut bytes = 0;
    for op in ops {
        let private =
            peer.regions.get(op.remote_region.index()).is_some_and(|r| r.generation != 0 && r.memory == 0);
        if !private || bytes >= enough {
            break;
        }
        bytes += u64::from(op.len);
    }
    bytes
}

/// Copies the leading run of private ops through the kernel; says how many of them ended.
fn private(
    ends: &Ends<'_>,
    link: &Link,
    access: &mut Access,
    tools: &mut Tools,
    ledger: &mut Ledger,
    batch: &Batch<'_>,
    from: usize,
    run: &[Op],
) -> (usize, Then) {
    let slices = &mut tools.slices.0;
    slices.clear();
    let mut bytes = 0;
    let mut bad = None;
    for op in run {
        if bytes >= POST_BYTES_PRIVATE {
            break;
        }
        let remote = match ends.peer.regions.get(op.remote_region.index()) {
            Some(remote) if remote.memory == 0 && is_live(link, op, remote) => remote,
            _ => break,
        };
        let local = ends.locals.find(op.local_region).and_then(|l| l.at(op.local_offset, op.len));
        let (Some(local), Some(there)) = (local, remote.at(op.remote_offset, op.len)) else {
            bad = Some(if local.is_none() { OpError::Fault(libc::EFAULT) } else { OpError::BadKey });
            break;
        };
        slices.push(Slice { local, remote: there, len: op.len as usize });
        bytes += u64::from(op.len);
    }
    let first = batch.first + from as u32;
    let progress = tools.vectors.copy(&link.process, batch.direction, slices);
    ledger.completed(batch.token, first, progress.done as u32);
    if progress.done > 0 {
        *access = Access::Open;
    }
    let failed = first + progress.done as u32;
    match progress.error {
        None => {
            if let Some(error) = bad {
                ledger.failed(batch.token, failed, 1, error);
            }
            (progress.done + usize::from(bad.is_some()), Then::Stop)
        }
        Some(libc::ESRCH) => (progress.done, Then::Gone),
        // Nothing of this op moved: another way is found for it.
        Some(errno) if is_denial(errno) => {
            *access = Access::Denied(errno);
            log::warn!(
                "process_vm access to process {} is denied (errno {errno}): its private memory goes through a bounce \
                 ring; see ptrace rules, or share the memory",
                link.process.pid()
            );
            (progress.done, Then::Offer)
        }
        Some(errno) => {
            ledger.failed(batch.token, failed, 1, OpError::Fault(errno));
            (progress.done + 1, Then::Stop)
        }
    }
}
