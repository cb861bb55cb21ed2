//! The control segment: one per agent, made by it, mapped by its peers. This is the contract between two processes
//! that may run different builds, so it has a version and never borrows the layout of a Rust type.
//!
//! Pages that nobody touches cost nothing: the segment is sparse. What an idle peer touches lies in the first
//! 2 MiB, so that it costs the mapping process one page of page tables.

use kvrail_core::limits::{MESSAGE_BYTES_MIN, REGIONS_MAX};

/// First word of every control segment.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"kvrailsh");
/// Changes with anything in this file.
pub(super) const VERSION: u32 = 1;

pub(super) const AT_MAGIC: usize = 0;
pub(super) const AT_VERSION: usize = 8;
pub(super) const AT_NONCE: usize = 16;
/// Non-zero once the agent is closed.
pub(super) const AT_CLOSED: usize = 64;
/// Non-zero while the agent sleeps and wants to be woken.
pub(super) const AT_ASLEEP: usize = 128;
pub(super) const AT_INBOX_LOCK: usize = 192;
pub(super) const AT_INBOX_TAIL: usize = 256;
pub(super) const AT_INBOX_HEAD: usize = 320;

/// The inbox' ring.
pub(super) const AT_INBOX: usize = 4 << 10;
pub(super) const INBOX_BYTES: u32 = 256 << 10;

/// One line per neighbour, numbered by the segment's owner.
const AT_CHANNELS: usize = 512 << 10;
/// Other agents on this host that one agent can know at a time.
pub(super) const NEIGHBOURS_MAX: usize = 1 << 16;
const CHANNEL_BYTES: usize = 64;

/// Each of the owner's regions: generation (zero where none is registered), start, bytes.
const AT_REGIONS: usize = 8 << 20;
const REGION_BYTES: usize = 32;

/// Jobs that the owner offers for cooperation.
const AT_JOBS: usize = 48 << 20;
/// Jobs of one agent at a time. They are 2 MiB of address space each, and cost memory only once used.
pub(super) const JOBS_MAX: usize = 16;
const JOB_STRIDE: usize = 4 << 20;

/// All of it.
pub(super) const CONTROL_BYTES: usize = AT_JOBS + JOBS_MAX * JOB_STRIDE;

/// The busy word of a neighbour: odd while it touches the owner's regions.
pub(super) const fn channel_busy(slot: u32) -> usize {
    AT_CHANNELS + slot as usize * CHANNEL_BYTES
}

/// Bit `j` is set while the neighbour's job `j` waits to be noticed.
pub(super) const fn channel_jobs(slot: u32) -> usize {
    channel_busy(slot) + 4
}

/// The busy word of a neighbour as helper: odd while it works on one of the owner's jobs.
pub(super) const fn channel_helping(slot: u32) -> usize {
    channel_busy(slot) + 8
}

/// The generation: the permit of whoever reaches in.
pub(super) const fn region_generation(region: usize) -> usize {
    AT_REGIONS + region * REGION_BYTES
}

/// Address of the first byte (private memory) or its offset (shareable memory).
pub(super) const fn region_start(region: usize) -> usize {
    region_generation(region) + 8
}

pub(super) const fn region_len(region: usize) -> usize {
    region_generation(region) + 16
}

/// Ops of one job.
pub(super) const JOB_OPS_MAX: usize = 4096;
/// Bytes of one job.
pub(super) const JOB_BYTES_MAX: u64 = 128 << 20;
/// A chunk is closed when it has this many bytes…
pub(super) const CHUNK_BYTES: u64 = 512 << 10;
/// …or this many ops.
pub(super) const CHUNK_OPS_MAX: usize = 1024;
pub(super) const CHUNKS_MAX: usize = 512;
/// The bounce ring: slots and bytes of each.
pub(super) const RING_SLOTS: u32 = 16;
pub(super) const RING_SLOT_BYTES: usize = 64 << 10;

/// Where the parts of one job lie.
#[derive(Clone, Copy)]
pub(super) struct JobAt(usize);

impl JobAt {
    pub(super) const fn new(job: usize) -> Self {
        Self(AT_JOBS + job * JOB_STRIDE)
    }
    /// The job's number; zero when there is none. The permit of the helper.
    pub(super) const fn active(self) -> usize {
        self.0
    }
    /// The next chunk that nobody has claimed.
    pub(super) const fn next(self) -> usize {
        self.0 + 128
    }
    /// Slots of the ring ever filled.
    pub(super) const fn head(self) -> usize {
        self.0 + 192
    }
    /// Slots of the ring ever emptied.
    pub(super) const fn tail(self) -> usize {
        self.0 + 256
    }
    /// The number of the job that the helper has joined.
    pub(super) const fn joined(self) -> usize {
        self.0 + 320
    }
    /// Direction, chunks, ops, required, helper: five words.
    pub(super) const fn facts(self) -> usize {
        self.0 + 384
    }
    /// Chunk and bytes of a ring slot: two words.
    pub(super) const fn slot_facts(self, slot: u32) -> usize {
        self.0 + 512 + (slot % RING_SLOTS) as usize * 8
    }
    /// First op of a chunk; one more entry than chunks.
    pub(super) const fn chunk_first(self, chunk: usize) -> usize {
        self.0 + 4096 + chunk * 4
    }
    /// Equals the job's number once the helper is done with the chunk.
    pub(super) const fn chunk_done(self, chunk: usize) -> usize {
        self.0 + 8192 + chunk * 4
    }
    /// What the helper found about an op: one byte.
    pub(super) const fn op_status(self, op: usize) -> usize {
        self.0 + 16_384 + op
    }
    /// Region, generation, offset, length of an op at the helper: see [`OP_BYTES`].
    pub(super) const fn op(self, op: usize) -> usize {
        self.0 + 32_768 + op * OP_BYTES
    }
    /// Bytes of a ring slot.
    pub(super) const fn slot(self, slot: u32) -> usize {
        self.0 + (1 << 20) + (slot % RING_SLOTS) as usize * RING_SLOT_BYTES
    }
}

/// Bytes of one op in a job: region 4, generation 4, offset 8, length 4, nothing 4.
pub(super) const OP_BYTES: usize = 24;

/// Values of [`JobAt::op_status`].
pub(super) const STATUS_GOOD: u8 = 0;
/// The helper knows no such region, generation or range; no byte of the op moved.
pub(super) const STATUS_BAD_KEY: u8 = 1;
/// The region went away in the middle of the op.
pub(super) const STATUS_TORN: u8 = 2;

const _: () = assert!(AT_CHANNELS + NEIGHBOURS_MAX * CHANNEL_BYTES <= AT_REGIONS, "channels fit");
const _: () = assert!(region_generation(REGIONS_MAX) <= AT_JOBS, "regions fit");
const _: () = assert!(AT_INBOX + INBOX_BYTES as usize <= AT_CHANNELS, "the inbox fits");
const _: () = assert!(
    INBOX_BYTES.is_power_of_two() && INBOX_BYTES as usize >= 8 * MESSAGE_BYTES_MIN,
    "several of the longest messages fit"
);
const _: () = assert!(
    JOB_BYTES_MAX / CHUNK_BYTES + (JOB_OPS_MAX / CHUNK_OPS_MAX) as u64 + 2 <= CHUNKS_MAX as u64,
    "every chunk of a job but its last is closed by bytes or by ops"
);
const _: () = assert!(4096 + (CHUNKS_MAX + 1) * 4 <= 8192, "chunk table fits");
const _: () = assert!(8192 + CHUNKS_MAX * 4 <= 16_384 && 16_384 + JOB_OPS_MAX <= 32_768, "status fits");
const _: () = assert!(32_768 + JOB_OPS_MAX * OP_BYTES <= 1 << 20, "ops fit");
const _: () = assert!((1 << 20) + RING_SLOTS as usize * RING_SLOT_BYTES <= JOB_STRIDE, "the ring fits");
const _: () = assert!(RING_SLOTS.is_power_of_two(), "counters wrap");
const _: () = assert!(JOBS_MAX <= 32, "one bit each");
