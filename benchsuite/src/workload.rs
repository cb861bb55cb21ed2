//! What is moved: the case as asked for, and the slots that its blocks come from and go to.

use std::fmt;

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::LimitError;
use crate::fabric::Options;
use crate::memory::Memory;

/// The loop that moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// libc's memcpy between pools that both processes map
    Memcpy,
    /// process_vm_readv or process_vm_writev, several blocks a call
    ProcessVm,
    /// send and recv on one loopback connection, complete when the last byte has arrived
    Tcp,
    /// fi_write or fi_read on a libfabric provider, over one or more rails
    Fabric,
}

/// Direction, seen from the process that drives the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// From the target to the initiator
    Read,
    /// From the initiator to the target
    Write,
}

/// Where the blocks lie in their pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Layout {
    /// In random slots, different ones on the two sides
    Scattered,
    /// In the first slots, in order
    Contiguous,
}

/// How a side of tcp, or the target of the fabric, waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// Asleep in the kernel
    Block,
    /// Asking again and again
    Spin,
}

/// One measurement, as asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) op: Op,
    pub(crate) memory: Memory,
    pub(crate) layout: Layout,
    pub(crate) block_bytes: usize,
    pub(crate) batch: usize,
    pub(crate) pool_bytes: usize,
    pub(crate) slices_per_call: usize,
    pub(crate) wait: Wait,
    /// The fabric's provider.
    pub(crate) provider: String,
    /// Endpoints of the fabric.
    pub(crate) rails: u16,
    /// Operations in flight on a rail of the fabric; none: as many as the provider takes.
    pub(crate) depth: Option<u32>,
    /// The libfabric of this side.
    #[serde(skip)]
    pub(crate) library: Option<PathBuf>,
    pub(crate) iterations: usize,
    pub(crate) warmup: usize,
    pub(crate) repetitions: usize,
    pub(crate) pin: bool,
}

impl Case {
    /// The memory that the loop really uses.
    pub(crate) fn memory(&self) -> Memory {
        if self.kind == Kind::Memcpy { self.memory } else { Memory::Private }
    }

    /// What the fabric is opened with.
    pub(crate) fn fabric_options(&self) -> Options {
        Options {
            library: self.library.clone(),
            provider: self.provider.clone(),
            rails: usize::from(self.rails),
            depth: self.depth.map(|depth| depth as usize),
            wait: self.wait,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, op, batch, block_bytes, .. } = self;
        write!(f, "{kind:?} {op:?} of {batch} x {block_bytes} bytes")?;
        if *kind == Kind::Fabric {
            write!(f, " on {} over {} rails", self.provider, self.rails)?;
        }
        Ok(())
    }
}

/// The slots of a case's blocks. Block `i` moves from `source[i]` to `destination[i]`.
#[derive(Debug)]
pub(crate) struct Slots {
    pub(crate) source: Vec<usize>,
    pub(crate) destination: Vec<usize>,
    pub(crate) in_pool: usize,
}

impl Slots {
    /// The slots of `case`, the same ones in every process and run.
    pub(crate) fn of(case: &Case) -> Result<Self, LimitError> {
        if !case.block_bytes.is_multiple_of(8) || case.block_bytes == 0 {
            return Err(LimitError::OddBlock { block_bytes: case.block_bytes });
        }
        let in_pool = case.pool_bytes / case.block_bytes;
        if case.batch > in_pool {
            return Err(LimitError::PoolTooSmall { blocks: case.batch, slots: in_pool });
        }
        let choose = |seed| match case.layout {
            Layout::Contiguous => (0..case.batch).collect(),
            Layout::Scattered => random_slots(seed, in_pool, case.batch),
        };
        Ok(Self { source: choose(1), destination: choose(2), in_pool })
    }
}

/// `count` different slots below `in_pool`, in random order.
fn random_slots(seed: u64, in_pool: usize, count: usize) -> Vec<usize> {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize
    };
    let mut slots: Vec<usize> = (0..in_pool).collect();
    for at in 0..count {
        slots.swap(at, at + random() % (in_pool - at));
    }
    slots.truncate(count);
    slots
}

/// The cases of a run without --kind: every limit that kvrail's speed table is set beside.
pub(crate) fn standard_cases(base: &Case) -> Vec<Case> {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    let kv = Case { block_bytes: 32 * KIB, batch: 12_800, pool_bytes: 1024 * MIB, ..base.clone() };
    let run = Case { block_bytes: 64 * MIB, batch: 1, pool_bytes: 256 * MIB, iterations: 10, ..base.clone() };
    let small = Case {
        block_bytes: 4 * KIB,
        batch: 1,
        pool_bytes: MIB,
        iterations: 10_000,
        warmup: 1_000,
        ..base.clone()
    };
    let mut cases = Vec::new();
    for op in [Op::Read, Op::Write] {
        for memory in [Memory::Shared, Memory::Huge] {
            for layout in [Layout::Scattered, Layout::Contiguous] {
                cases.push(Case { kind: Kind::Memcpy, op, memory, layout, ..kv.clone() });
            }
        }
        for slices_per_call in [1, 64] {
            cases.push(Case { kind: Kind::ProcessVm, op, slices_per_call, ..kv.clone() });
        }
        for kind in [Kind::Memcpy, Kind::ProcessVm] {
            for shape in [&run, &small] {
                cases.push(Case { kind, op, slices_per_call: 1, memory: Memory::Shared, ..shape.clone() });
            }
        }
        for wait in [Wait::Block, Wait::Spin] {
            cases.push(Case { kind: Kind::Tcp, op, wait, ..kv.clone() });
        }
        cases.push(Case { kind: Kind::Tcp, op, wait: Wait::Spin, ..small.clone() });
    }
    cases
}

/// `32KiB`, `1GiB`, `419MB` or plain bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[digits..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        unit => return Err(format!("unknown unit {unit}; known: B KiB MiB GiB kB MB GB")),
    };
    let number: usize = text[..digits].parse().map_err(|_| format!("{text} is no number of bytes"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_slots_are_distinct_and_inside_the_pool() {
        let mut slots = random_slots(7, 1000, 400);
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 400);
        assert!(slots.iter().all(|&slot| slot < 1000));
    }

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        assert_eq!(parse_bytes("32KiB"), Ok(32768));
        assert_eq!(parse_bytes("419MB"), Ok(419_000_000));
        assert_eq!(parse_bytes("7"), Ok(7));
        assert!(parse_bytes("3 parsecs").is_err());
        assert!(parse_bytes("KiB").is_err());
        assert!(parse_bytes("99999999999999GiB").is_err());
    }
}
