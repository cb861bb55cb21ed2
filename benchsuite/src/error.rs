//! Why a case has no figure.

use std::fmt;
use std::io;

/// Why a case has no figure.
#[derive(Debug)]
pub(crate) enum LimitError {
    /// A system call failed.
    Os { doing: &'static str, source: io::Error },
    /// The blocks do not fit the pool.
    PoolTooSmall { blocks: usize, slots: usize },
    /// Blocks are checked in words of 8 bytes.
    OddBlock { block_bytes: usize },
    /// A call moved fewer bytes than it was asked to.
    Short { doing: &'static str, moved: usize, asked: usize },
    /// The destination does not hold what was sent; `slot` and `offset` name the first wrong word.
    WrongBytes { slot: usize, offset: usize, found: u64, expected: u64 },
    /// The other process said something that the protocol does not allow, or closed its end.
    Peer { said: String },
    /// The other process closed its end.
    Gone,
    /// There is no libfabric to measure, or it has not what was asked for.
    NoFabric { why: String },
    /// A call of libfabric failed.
    Fabric { doing: &'static str, rail: usize, code: i64, says: String },
    /// An operation on the fabric ended with an error.
    Completion { rail: usize, error: i32, provider_error: i32, says: String },
    /// Nothing more arrived.
    Stalled { doing: &'static str, done: usize, of: usize },
}

impl LimitError {
    /// The last system call failed.
    pub(crate) fn last_os(doing: &'static str) -> Self {
        Self::Os { doing, source: io::Error::last_os_error() }
    }

    /// For `map_err` on calls of the standard library.
    pub(crate) fn os(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { doing, source }
    }
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os { doing, source } => write!(f, "{doing}: {source}"),
            Self::PoolTooSmall { blocks, slots } => {
                write!(f, "{blocks} blocks do not fit a pool of {slots} slots")
            }
            Self::OddBlock { block_bytes } => {
                write!(f, "a block of {block_bytes} bytes is not a multiple of 8")
            }
            Self::Short { doing, moved, asked } => write!(f, "{doing} moved {moved} of {asked} bytes"),
            Self::WrongBytes { slot, offset, found, expected } => {
                write!(f, "slot {slot} offset {offset} holds {found:#018x}, expected {expected:#018x}")
            }
            Self::Peer { said } => write!(f, "the target: {said}"),
            Self::Gone => write!(f, "the other process is gone"),
            Self::NoFabric { why } => write!(f, "no fabric: {why}"),
            Self::Fabric { doing, rail, code, says } => write!(f, "{doing} on rail {rail}: {says} ({code})"),
            Self::Completion { rail, error, provider_error, says } => {
                write!(
                    f,
                    "an operation on rail {rail} failed with {error}, the provider's {provider_error}: {says}"
                )
            }
            Self::Stalled { doing, done, of } => write!(f, "{doing}: no progress after {done} of {of}"),
        }
    }
}

impl std::error::Error for LimitError {}
