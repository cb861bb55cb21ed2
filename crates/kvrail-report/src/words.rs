//! The words that say what a case is, the same on the command line, between the sides and in documents.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! word {
    ($(#[$about:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$of])* $variant),*
        }

        impl $name {
            /// The word.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

word! {
    /// Direction of a transfer, seen from the initiator.
    Op {
        /// From the initiator's memory into the target's.
        Write = "write",
        /// From the target's memory into the initiator's.
        Read = "read",
    }
}

word! {
    /// What kind of memory the blocks are in.
    Memory {
        /// memfd-backed: a peer on the same host can map it.
        Shared = "shared",
        /// Anonymous, as malloc gives it.
        Private = "private",
        /// Shared and on huge pages.
        Huge = "huge",
    }
}

word! {
    /// How the blocks of a transfer lie in their regions.
    Layout {
        /// One behind the other: kvrail may join them.
        Contiguous = "contiguous",
        /// Distinct blocks in random order, other ones on each side: a paged KV cache.
        Scattered = "scattered",
    }
}

word! {
    /// How much of what was moved is looked at.
    Verify {
        /// Every byte of every timed transfer.
        Every = "every",
        /// Every byte of the last transfer on each block; earlier ones could have failed unseen.
        Last = "last",
        /// Nothing. The figures are marked, and the exit code is 2: whether they count cannot be told.
        Off = "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_printed_as_it_is_written_in_documents() {
        for (word, json) in [
            (Op::Write.word(), serde_json::to_string(&Op::Write)),
            (Memory::Private.word(), serde_json::to_string(&Memory::Private)),
            (Layout::Scattered.word(), serde_json::to_string(&Layout::Scattered)),
            (Verify::Every.word(), serde_json::to_string(&Verify::Every)),
        ] {
            assert_eq!(json.unwrap(), format!("\"{word}\""));
        }
    }
}
