//! What transports say to each other, beside the engines' messages: a word is one fragment, may be lost, doubled or late,
//! and is repeated by who needs its answer.
//!
//! * **Introductions.** Metadata names the endpoints of messages only; those of one-sided ops come and go. And EFA answers an op
//!   from an endpoint that the target has not inserted with status 14, while messages from anybody arrive. So before its
//!   first op over a pair of rails the initiator names its rail's endpoint; the target inserts it, and answers with its own. Both
//!   say which of the other's they have inserted, so that each knows when ops may go. After an endpoint was replaced, by
//!   either side or by both at once, the same words go over the endpoints of messages, which stay, until they are answered.
//!   Only pairs that are used are introduced: 32 rails on both sides would be 1,024 per peer.
//! * **Revocations.** On providers whose completions lie for a bad key (`shm`; `tcp` tears the connection down, with
//!   everybody's ops on it) the owner of a region withdraws it from its peers before it ends the registration: each stops
//!   posting to it, waits for what is in flight, and answers.

use kvrail_core::id::{Generation, LocalRail, RegionId};
use kvrail_core::limits::RAILS_MAX;
use kvrail_core::wire::{DecodeError, Reader, Writer};

use super::address::{ENDPOINT_BYTES_MAX, VERSION};
use super::fragment::FRAGMENT_BYTES;

const MAGIC: [u8; 3] = *b"KVw";
const HEAD_BYTES: usize = MAGIC.len() + 1 + 16 + 1;
const _: () =
    assert!(HEAD_BYTES + 1 + 5 + 5 + 2 + ENDPOINT_BYTES_MAX <= FRAGMENT_BYTES, "a word is one fragment");

/// What is said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// Where the sender's rail has its endpoint of ops. An answer is wanted.
    Introduce(Introduction),
    /// The same, as an answer.
    Introduced(Introduction),
    /// The sender ends this registration.
    Revoke {
        /// Which.
        region: RegionId,
        /// And all before it.
        generation: Generation,
    },
    /// The sender posts to it no more, and nothing is in flight.
    Revoked {
        /// Which.
        region: RegionId,
        /// And all before it.
        generation: Generation,
    },
}

/// Where a rail's endpoint of ops is, as the rail says to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Introduction {
    /// The sender's rail.
    pub(super) rail: u16,
    /// Grows each time the endpoint is replaced.
    pub(super) epoch: u32,
    /// Its address.
    pub(super) endpoint: Vec<u8>,
    /// The epoch of the receiver's own endpoint that the sender's has inserted, if it has.
    pub(super) knows: Option<u32>,
}

const INTRODUCE: u8 = 1;
const INTRODUCED: u8 = 2;
const REVOKE: u8 = 3;
const REVOKED: u8 = 4;

impl Word {
    /// Whether a fragment's bytes are a word's.
    #[inline]
    pub(super) fn is(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// The bytes, of the transport with that instance.
    pub(super) fn encode(&self, instance: u128) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&instance.to_le_bytes());
        let mut to = Writer(&mut out);
        match self {
            Self::Introduce(said) | Self::Introduced(said) => {
                to.u8(if matches!(self, Self::Introduce(_)) { INTRODUCE } else { INTRODUCED });
                to.varint(said.rail.into());
                to.varint(said.epoch.into());
                to.varint(said.knows.map_or(0, |epoch| u64::from(epoch) + 1));
                to.bytes(&said.endpoint);
            }
            Self::Revoke { region, generation } | Self::Revoked { region, generation } => {
                to.u8(if matches!(self, Self::Revoke { .. }) { REVOKE } else { REVOKED });
                to.varint(region.0.into());
                to.varint(generation.0.into());
            }
        }
        out
    }

    /// Reads one: the sender's instance, and what it says.
    ///
    /// # Errors
    /// Input from outside.
    pub(super) fn decode(bytes: &[u8]) -> Result<(u128, Self), DecodeError> {
        let mut from = Reader::new(bytes);
        from.preamble(&MAGIC, VERSION)?;
        let mut instance = [0; 16];
        instance.copy_from_slice(from.take(16, "instance")?);
        let instance = u128::from_le_bytes(instance);
        let kind = from.u8("word")?;
        let rail = |from: &mut Reader<'_>| from.bounded(RAILS_MAX - 1, "rail").map(|rail| rail as u16);
        let number = |from: &mut Reader<'_>, field| from.bounded(u32::MAX as usize, field).map(|n| n as u32);
        let word = match kind {
            INTRODUCE | INTRODUCED => {
                let (rail, epoch) = (rail(&mut from)?, number(&mut from, "epoch")?);
                let knows = from.bounded(u32::MAX as usize + 1, "known epoch")?.checked_sub(1);
                let endpoint = from.bytes(ENDPOINT_BYTES_MAX, "endpoint")?.to_vec();
                let said = Introduction { rail, epoch, endpoint, knows: knows.map(|epoch| epoch as u32) };
                if kind == INTRODUCE { Self::Introduce(said) } else { Self::Introduced(said) }
            }
            REVOKE | REVOKED => {
                let region = RegionId(number(&mut from, "region")?);
                let generation = Generation(number(&mut from, "generation")?);
                if kind == REVOKE {
                    Self::Revoke { region, generation }
                } else {
                    Self::Revoked { region, generation }
                }
            }
            _ => return Err(DecodeError::Invalid { field: "word" }),
        };
        from.finish()?;
        Ok((instance, word))
    }
}

/// A word that came, and the rail that it came on.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) rail: LocalRail,
    pub(super) instance: u128,
    pub(super) word: Word,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = Word> {
        let region = || (any::<u32>(), any::<u32>());
        let endpoint = || prop::collection::vec(any::<u8>(), 0..=ENDPOINT_BYTES_MAX);
        let said = || {
            (0..RAILS_MAX as u16, any::<u32>(), endpoint(), any::<Option<u32>>())
                .prop_map(|(rail, epoch, endpoint, knows)| Introduction { rail, epoch, endpoint, knows })
        };
        prop_oneof![
            said().prop_map(Word::Introduce),
            said().prop_map(Word::Introduced),
            region().prop_map(|(r, g)| Word::Revoke { region: RegionId(r), generation: Generation(g) }),
            region().prop_map(|(r, g)| Word::Revoked { region: RegionId(r), generation: Generation(g) }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard_and_fits_a_fragment(word in word(), instance in any::<u128>()) {
            let bytes = word.encode(instance);
            prop_assert!(bytes.len() <= FRAGMENT_BYTES && Word::is(&bytes));
            prop_assert_eq!(Word::decode(&bytes), Ok((instance, word)));
        }

        #[test]
        fn nothing_that_comes_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), word in word(), cut in 0usize..300) {
            let _ = Word::decode(&bytes);
            let mut said = word.encode(7);
            said.truncate(cut);
            let _ = Word::decode(&said);
        }
    }
}
