//! Defects that are planted in a worker, each to see that the checker meant for it finds it.

use serde::{Deserialize, Serialize};

use crate::violation::Checker;

/// A defect of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Plant {
    /// One byte of what a write brought is changed.
    FlipByte,
    /// One byte beside what a write brought is changed.
    Spill,
    /// The last slice is one byte short.
    ShortTail,
    /// All remote slices begin at the region's base: the field's best-known corruption.
    RegionBase,
    /// Done is said of a write that never moved.
    FalseDone,
    /// The notification is sent before the bytes.
    EarlyNotification,
    /// The notification is sent twice.
    DoubleNotification,
    /// The notification is never sent.
    NoNotification,
    /// A transfer's end is reported twice.
    EndedTwice,
    /// A transfer's end is never reported.
    NeverEnds,
    /// The same bytes are written once more after the transfer's end.
    StaleWrite,
    /// A transfer is said to have failed although nothing was wrong.
    UnexplainedError,
    /// Memory is allocated and forgotten.
    LeakMemory,
    /// A region is registered and forgotten.
    LeakRegion,
    /// The process does not end when it is told to.
    Linger,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::FlipByte,
        Self::Spill,
        Self::ShortTail,
        Self::RegionBase,
        Self::FalseDone,
        Self::EarlyNotification,
        Self::DoubleNotification,
        Self::NoNotification,
        Self::EndedTwice,
        Self::NeverEnds,
        Self::StaleWrite,
        Self::UnexplainedError,
        Self::LeakMemory,
        Self::LeakRegion,
        Self::Linger,
    ];

    /// The checkers of which one must find it.
    #[must_use]
    pub fn checkers(self) -> &'static [Checker] {
        match self {
            Self::FlipByte | Self::FalseDone => &[Checker::Bytes],
            Self::ShortTail => &[Checker::Bytes, Checker::Notification],
            Self::Spill => &[Checker::Surroundings],
            // Who looks first: the transfer whose bytes are missing, or the one that they were written over.
            Self::RegionBase => {
                &[Checker::Bytes, Checker::Surroundings, Checker::Notification, Checker::Quiet]
            }
            Self::EarlyNotification => &[Checker::Notification],
            Self::DoubleNotification | Self::NoNotification | Self::EndedTwice => &[Checker::ExactlyOnce],
            Self::NeverEnds => &[Checker::Deadline],
            // A target that looks late sees it as wrong bytes of a transfer that came after.
            Self::StaleWrite => &[Checker::Quiet, Checker::Bytes],
            Self::UnexplainedError => &[Checker::Explained],
            Self::LeakMemory => &[Checker::Growth],
            Self::LeakRegion => &[Checker::Leaks],
            Self::Linger => &[Checker::Ending],
        }
    }

    /// It is found by what never comes, after a while.
    #[must_use]
    pub fn is_slow(self) -> bool {
        matches!(self, Self::NeverEnds | Self::NoNotification | Self::Linger)
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FlipByte => "flip-byte",
            Self::Spill => "spill",
            Self::ShortTail => "short-tail",
            Self::RegionBase => "region-base",
            Self::FalseDone => "false-done",
            Self::EarlyNotification => "early-notification",
            Self::DoubleNotification => "double-notification",
            Self::NoNotification => "no-notification",
            Self::EndedTwice => "ended-twice",
            Self::NeverEnds => "never-ends",
            Self::StaleWrite => "stale-write",
            Self::UnexplainedError => "unexplained-error",
            Self::LeakMemory => "leak-memory",
            Self::LeakRegion => "leak-region",
            Self::Linger => "linger",
        }
    }
}

impl std::str::FromStr for Plant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|plant| plant.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|plant| plant.name()).collect();
            format!("there is no defect `{name}`; there are {}", names.join(", "))
        })
    }
}
