//! What the checkers say: which rule was broken, where, and when.

use std::fmt;

use kvrail_core::time::Time;

/// One independent rule. Each has a canary that must trip it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Checker {
    /// Every byte of a finished transfer is right at the moment its end or its notification is delivered (KR-2, KR-15).
    Bytes,
    /// Bytes land only in the targets of a live transfer, at the place its plan says (KR-9).
    Territory,
    /// Nothing lands in a range after it was handed back to the application (KR-7).
    LateWrite,
    /// Source memory is not read once the transfer has ended at its initiator (KR-7).
    LateRead,
    /// One terminal event per posting, one notification per announced posting, none unannounced (KR-3, KR-4).
    ExactlyOnce,
    /// Routes, keys and regions are those that the two sides exchanged (KR-9, KR-10).
    Addressing,
    /// No queue of the fabric overflows (KR-8).
    Credits,
    /// Nothing is left in an engine's tables when all is over.
    Leaks,
    /// No wait without a deadline; after healing every transfer between live peers succeeds (KR-4).
    Progress,
    /// The fabric itself kept its contract (checks the simulator, not the engine).
    Fabric,
}

impl Checker {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Bytes,
        Self::Territory,
        Self::LateWrite,
        Self::LateRead,
        Self::ExactlyOnce,
        Self::Addressing,
        Self::Credits,
        Self::Leaks,
        Self::Progress,
        Self::Fabric,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Territory => "territory",
            Self::LateWrite => "late-write",
            Self::LateRead => "late-read",
            Self::ExactlyOnce => "exactly-once",
            Self::Addressing => "addressing",
            Self::Credits => "credits",
            Self::Leaks => "leaks",
            Self::Progress => "progress",
            Self::Fabric => "fabric",
        }
    }
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One rule broken once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which rule.
    pub checker: Checker,
    /// When, virtual time.
    pub at: Time,
    /// What was seen, with names and numbers.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.checker, self.at, self.what)
    }
}
