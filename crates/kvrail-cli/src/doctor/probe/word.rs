//! What the two sides of a probe say to each other, within the messages of the control link.

use kvrail_doctor::probe::{Counted, Side, Wrong};
use serde::{Deserialize, Serialize};

use super::RAILS_MAX;
use super::end::BLOCK_BYTES;

/// Longest name of a device or provider.
const NAME_BYTES_MAX: usize = 128;

/// What is said.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "probe", rename_all = "snake_case")]
pub(crate) enum Word {
    /// Both, first: what this side is.
    Side {
        /// What.
        side: Box<Side>,
    },
    /// Prober: open these rails. Answer: `Opened`, and as blobs the metadata of those that could be.
    Open {
        /// What carries the bytes.
        carrier: String,
        /// The listener's device of each rail; empty where the carrier has none.
        devices: Vec<String>,
        /// What the bytes are made from.
        seed: u64,
        /// How long a rail may take to answer, milliseconds.
        patience_ms: u64,
    },
    /// Listener: which rails are open.
    Opened {
        /// In the order of the question.
        rails: Vec<Opened>,
    },
    /// Prober: meet these; their metadata follow as blobs. Answer: `Met`.
    Meet {
        /// The rails, by index.
        rails: Vec<u16>,
    },
    /// Listener: what became of it.
    Met {
        /// Why it could not be imported, in the order of the question.
        failures: Vec<Option<String>>,
    },
    /// Prober: poison what this rail receives. Answer: `Poisoned`.
    Poison {
        /// By index.
        rail: u16,
    },
    /// Listener: done.
    Poisoned,
    /// Prober: look at what this rail has received. Answer: `Checked`.
    Check {
        /// By index.
        rail: u16,
        /// How much of it.
        bytes: u64,
    },
    /// Listener: what it looks like.
    Checked {
        /// What is wrong, if anything is.
        wrong: Option<Wrong>,
    },
    /// Prober: how far do your devices count. Answer: `Counted`.
    Count,
    /// Listener: what each has counted since it was opened.
    Counted {
        /// In the order of the rails.
        rails: Vec<Option<Counted>>,
    },
    /// Prober: what do your security groups say. Answer: `Groups`.
    AskGroups,
    /// Listener: this.
    Groups {
        /// As the AWS command line prints them, where it may be asked.
        groups: Option<String>,
    },
}

/// What became of opening a rail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    /// Why not, where it is not open.
    pub(crate) failure: Option<String>,
    /// Whether the provider emulates (reads, writes).
    pub(crate) emulated: Option<(bool, bool)>,
}

impl Word {
    /// What is wrong with a word from outside, beyond its shape. `rails` is how many there are.
    ///
    /// # Errors
    /// What is beyond its limits.
    pub(crate) fn check(&self, rails: usize) -> Result<(), String> {
        let within = |rail: u16| match usize::from(rail) < rails {
            true => Ok(()),
            false => Err(format!("there is no rail {rail}: {rails} are open")),
        };
        match self {
            Self::Open { carrier, devices, patience_ms, .. } => {
                if devices.is_empty() || devices.len() > RAILS_MAX {
                    return Err(format!("{} rails are not within 1 to {RAILS_MAX}", devices.len()));
                }
                let long = devices.iter().chain([carrier]).any(|name| name.len() > NAME_BYTES_MAX);
                if long || !(1..=600_000).contains(patience_ms) {
                    return Err("a name or a time is beyond its limit".into());
                }
                Ok(())
            }
            Self::Meet { rails } => rails.iter().try_for_each(|rail| within(*rail)),
            Self::Poison { rail } => within(*rail),
            Self::Check { rail, bytes } if (1..=BLOCK_BYTES).contains(bytes) => within(*rail),
            Self::Check { bytes, .. } => Err(format!("{bytes} bytes are not within 1 to {BLOCK_BYTES}")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_its_limits_is_refused() {
        let open = |count, patience_ms| Word::Open {
            carrier: "efa".into(),
            devices: vec!["a".into(); count],
            seed: 1,
            patience_ms,
        };
        assert_eq!(open(4, 3000).check(0), Ok(()));
        for word in [
            open(0, 3000),
            open(RAILS_MAX + 1, 3000),
            open(1, 0),
            open(1, u64::MAX),
            Word::Poison { rail: 2 },
            Word::Check { rail: 0, bytes: 0 },
            Word::Check { rail: 0, bytes: BLOCK_BYTES + 1 },
            Word::Meet { rails: vec![0, 9] },
            Word::Open { carrier: "x".repeat(500), devices: vec![String::new()], seed: 0, patience_ms: 1 },
        ] {
            assert!(word.check(2).is_err(), "{word:?}");
        }
    }
}
