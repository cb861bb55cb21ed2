//! The keys of a run, below its prefix.
//!
//! ```text
//! member/<rank>                    a seat: the record of the member that holds it
//! ready/<incarnation>              which set of members its writer agrees to
//! challenge/<holder>/<from>        `from` wants a seat that `holder` has: is it alive?
//! answer/<holder>/<from>           it is
//! value/<incarnation>/<name>       what that member published
//! ```
//! All but the seats name incarnations, so that what an earlier life left behind is never taken for this one's.

use std::fmt;

use crate::limits::{KEY_BYTES_MAX, WORLD_SIZE_MAX};
use crate::member::Incarnation;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key<'a> {
    Member(u32),
    Ready(Incarnation),
    Challenge { holder: Incarnation, from: Incarnation },
    Answer { holder: Incarnation, from: Incarnation },
    Value { owner: Incarnation, name: &'a str },
}

impl<'a> Key<'a> {
    /// Reads a key that came from the store; none where it is not one of these.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > KEY_BYTES_MAX {
            return None;
        }
        let (kind, rest) = text.split_once('/')?;
        let pair = || {
            let (holder, from) = rest.split_once('/')?;
            Some((Incarnation::parse(holder)?, Incarnation::parse(from)?))
        };
        match kind {
            "member" => {
                let rank: u32 = rest.parse().ok()?;
                (rank < WORLD_SIZE_MAX && rank.to_string() == rest).then_some(Self::Member(rank))
            }
            "ready" => Incarnation::parse(rest).map(Self::Ready),
            "challenge" => pair().map(|(holder, from)| Self::Challenge { holder, from }),
            "answer" => pair().map(|(holder, from)| Self::Answer { holder, from }),
            "value" => {
                let (owner, name) = rest.split_once('/')?;
                (!name.is_empty()).then_some(Self::Value { owner: Incarnation::parse(owner)?, name })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(rank) => write!(f, "member/{rank}"),
            Self::Ready(member) => write!(f, "ready/{member}"),
            Self::Challenge { holder, from } => write!(f, "challenge/{holder}/{from}"),
            Self::Answer { holder, from } => write!(f, "answer/{holder}/{from}"),
            Self::Value { owner, name } => write!(f, "value/{owner}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_parses_is_written_the_same(text in "(member|ready|challenge|answer|value|x)/([0-9a-f]{16}|[0-9]{1,5})(/[0-9a-f]{16}|/[a-z]{0,3})?") {
            if let Some(key) = Key::parse(&text) {
                prop_assert_eq!(key.to_string(), text);
            }
        }

        #[test]
        fn what_is_written_parses(a: u64, b: u64, rank in 0..WORLD_SIZE_MAX, name in "[a-z/]{1,100}") {
            let (holder, from) = (Incarnation(a), Incarnation(b));
            for key in [Key::Member(rank), Key::Ready(holder), Key::Challenge { holder, from }, Key::Answer { holder, from }, Key::Value { owner: holder, name: &name }] {
                let text = key.to_string();
                prop_assert_eq!(Key::parse(&text), Some(key));
            }
        }
    }
}
