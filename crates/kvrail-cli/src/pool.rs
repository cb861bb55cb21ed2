//! The memory of one side: allocated here, or lent by the process that several engines have in common.
//!
//! Engines that are measured in turns live in processes of their own and work on the same pages: whoever started them allocates
//! the pool once, and lends it out. What travels is the number of a file of the lender, who is the borrower's parent; nothing else
//! is ever opened on a peer's word.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::process::parent_id;

use kvrail::memory::{AllocateError, HugePages, Options, PrivateMemory, SharedMemory};
use serde::{Deserialize, Serialize};

use crate::case::Memory;
use crate::failure::Failure;
use crate::pattern::{self, Bytes};

/// Memory that is not registered yet.
pub(crate) struct Backing {
    pub(crate) memory: kvrail::Memory,
    pub(crate) pages: String,
}

/// Registered memory.
pub(crate) struct Pool {
    memory: kvrail::Memory,
    pages: String,
}

/// A pool that a parent process lends to its children.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Loan {
    /// Descriptor of the memory's file in the lender.
    file: u32,
    /// The pages that it is on.
    pages: String,
}

/// Memory of one engine alone, poisoned; or what the parent process lends, which is.
///
/// # Errors
/// As [`allocate`] and [`borrow`].
pub(crate) fn obtain(loan: Option<Loan>, kind: Memory, len: u64) -> Result<Backing, Failure> {
    match loan {
        Some(loan) => borrow(loan, len),
        None => {
            let backing = allocate(kind, len)?;
            backing.poison();
            Ok(backing)
        }
    }
}

/// Allocates and touches memory.
///
/// # Errors
/// When the operating system refuses, or there are no huge pages.
pub(crate) fn allocate(kind: Memory, len: u64) -> Result<Backing, Failure> {
    let refused = |e: AllocateError| {
        let failure = Failure::environment(format!("no {kind} memory: {e}"));
        match kind {
            Memory::Huge => failure
                .hint("reserve huge pages: sysctl vm.nr_hugepages=N, or measure with --memory shared")
                .hint("transparent ones are allowed by /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            _ => failure.hint("use a smaller --pool, --block or --batch"),
        }
    };
    let len = length(len)?;
    match kind {
        Memory::Shared | Memory::Huge => {
            SharedMemory::allocate(len, options(kind)).map(|memory| shared(memory, None))
        }
        Memory::Private => PrivateMemory::allocate(len, options(kind))
            .map(|memory| Backing { pages: memory.pages().to_string(), memory: memory.into() }),
    }
    .map_err(refused)
}

/// Maps what the parent process lends.
///
/// # Errors
/// When the parent has no such memory, or the kernel keeps this process from it.
fn borrow(loan: Loan, len: u64) -> Result<Backing, Failure> {
    let path = format!("/proc/{}/fd/{}", parent_id(), loan.file);
    let refused = |e: &dyn std::fmt::Display| {
        Failure::environment(format!("cannot map the memory that all engines share, {path}: {e}"))
            .hint("measure the engines one by one, or with --memory private")
    };
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| refused(&e))?;
    let memory = SharedMemory::map(file.into(), length(len)?).map_err(|e| refused(&e))?;
    memory.prefault().map_err(|e| refused(&e))?;
    Ok(shared(memory, Some(loan.pages)))
}

/// The lender's word for the pages is the better one: a mapping does not say what its huge pages came from.
fn shared(memory: SharedMemory, pages: Option<String>) -> Backing {
    Backing { pages: pages.unwrap_or_else(|| memory.pages().to_string()), memory: memory.into() }
}

fn length(len: u64) -> Result<usize, Failure> {
    usize::try_from(len).map_err(|_| Failure::usage(format!("{len} bytes are beyond this platform")))
}

const fn options(kind: Memory) -> Options {
    let huge_pages = match kind {
        Memory::Huge => HugePages::Require,
        Memory::Shared | Memory::Private => HugePages::Never,
    };
    Options { huge_pages, prefault: true }
}

impl Backing {
    /// What a child of this process borrows; nothing for memory that cannot be shared.
    pub(crate) fn lend(&self) -> Option<Loan> {
        let share = self.memory.share()?;
        Some(Loan { file: u32::try_from(share.file.as_raw_fd()).ok()?, pages: self.pages.clone() })
    }

    /// Once it is registered.
    pub(crate) fn registered(self) -> Pool {
        Pool { memory: self.memory, pages: self.pages }
    }

    /// Poisons all of it.
    pub(crate) fn poison(&self) {
        let pool = Pool { memory: self.memory.clone(), pages: String::new() };
        pattern::poison(&pool, 0, self.memory.len() as u64);
    }
}

impl Pool {
    /// The pages that it is on.
    pub(crate) fn pages(&self) -> String {
        self.pages.clone()
    }
}

impl Bytes for Pool {
    fn read(&self, offset: u64, out: &mut [u8]) {
        // In bounds: offsets come from a geometry of a case that was checked against the pool.
        let read = self.memory.read(offset as usize, out);
        debug_assert!(read.is_ok(), "{read:?}");
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let written = self.memory.write(offset as usize, bytes);
        debug_assert!(written.is_ok(), "{written:?}");
    }
}
