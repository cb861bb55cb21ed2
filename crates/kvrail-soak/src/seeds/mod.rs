//! The same seeds in two worlds: the simulator's virtual time, and processes on emulated NICs.
//!
//! A [`Script`] is what both can express of the simulator's scenario of a seed: rails, transfers, faults and when. Both worlds play it with the
//! same engine, and for each transfer the class of its end is compared. What differs must be explained by timing, by a rule that is
//! written down here ([`compare`]); anything else is a finding about one of the worlds.

mod compare;
mod emulated;
mod script;
mod simulated;

pub use compare::{Line, Verdict, compare};
pub use emulated::play as emulate;
pub use script::{Event, Post, Script, Strike};
pub use simulated::play as simulate;

use std::fmt;

use crate::talk::{Class, Outcome};

/// How a transfer ended in a world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum End {
    /// Done, and every byte verified.
    Done,
    /// Failed.
    Failed(Class),
    /// Its initiator's process died first.
    Abandoned,
    /// It was not posted: its initiator did not know the other's process.
    Unposted,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Failed(class) => write!(f, "failed: {class:?}"),
            Self::Abandoned => f.write_str("abandoned"),
            Self::Unposted => f.write_str("not posted"),
        }
    }
}

impl From<&Outcome> for End {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done { .. } => Self::Done,
            Outcome::Failed { class, .. } => Self::Failed(*class),
        }
    }
}

/// What a world made of a script.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// The end of each transfer, and how long it took, milliseconds.
    pub ends: Vec<Option<(End, u64)>>,
    /// What must not be in any world.
    pub wrong: Vec<String>,
}
