//! What an initiator and a target tell each other: who they are, their rails, and short messages in between.

use serde::{Deserialize, Serialize};

use crate::error::{EngineError, Kind};

/// Version of the metadata and of the messages.
pub(super) const VERSION: u16 = 1;
/// Rails at most, as kvrail's.
pub(super) const RAILS_MAX: usize = 64;
/// Posting threads at most: the low byte of a tag.
pub(super) const LANES_MAX: usize = 256;
/// Bytes of an address at most; the longest of today's is a name of shared memory, 256.
const ADDRESS_BYTES_MAX: usize = 512;

/// A side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) provider: String,
    /// High three bytes of the tags of its lanes; random.
    pub(super) tag: u32,
    /// Bytes of its memory.
    pub(super) len: u64,
    /// The rails of each posting thread; of a target, of each that it would have.
    pub(super) lanes: Vec<Vec<RailOffer>>,
}

/// A rail.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RailOffer {
    /// Its endpoint's.
    pub(super) address: Vec<u8>,
    /// Of the memory, on this rail.
    pub(super) key: u64,
    /// Where the memory begins, as operations name it.
    pub(super) base: u64,
}

impl Offer {
    /// Checks what is input from outside.
    ///
    /// # Errors
    /// What is out of bounds, or of another provider.
    pub(super) fn check(&self, provider: &str) -> Result<(), EngineError> {
        let refused =
            |why: String| Err(EngineError::new(Kind::Peer, format!("the peer's rails make no sense: {why}")));
        if self.provider != provider {
            let theirs = self.provider.escape_debug();
            let what = format!("the peer's rails are of provider {theirs}, these are of {provider}");
            return Err(EngineError::new(Kind::Usage, what).hint("give both sides the same --provider"));
        }
        if self.lanes.is_empty() || self.lanes.len() > LANES_MAX {
            return refused(format!("{} lanes", self.lanes.len()));
        }
        let rails = self.lanes[0].len();
        if rails == 0 || rails > RAILS_MAX || self.lanes.iter().any(|lane| lane.len() != rails) {
            return refused(format!("{rails} rails, or unlike ones"));
        }
        let bad = |rail: &RailOffer| {
            rail.address.is_empty()
                || rail.address.len() > ADDRESS_BYTES_MAX
                || rail.base.checked_add(self.len).is_none()
        };
        if self.tag & 0xff != 0 || self.lanes.iter().flatten().any(bad) {
            return refused("an address, a base or a tag".into());
        }
        Ok(())
    }
}

/// A message between a lane and its target's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub(super) kind: Word,
    /// The rail of the initiator that it goes over.
    pub(super) rail: u8,
    /// How the initiator numbers this target.
    pub(super) peer: u32,
    /// The initiator's lane.
    pub(super) tag: u32,
    pub(super) value: u64,
}

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// Initiator: here I am. Value: tell me your count after so many more writes. Answer: `Welcome`, on the same rail.
    Hello,
    /// Target.
    Welcome,
    /// Initiator: tell me when you have counted so many writes in all.
    Close,
    /// Target: so many writes of this lane have arrived.
    Counted,
}

const MAGIC: u32 = u32::from_le_bytes(*b"kvEm");
/// Bytes of a message.
pub(super) const MESSAGE_BYTES: usize = 24;

impl Message {
    pub(super) fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let mut bytes = [0; MESSAGE_BYTES];
        let kind = match self.kind {
            Word::Hello => 1,
            Word::Welcome => 2,
            Word::Close => 3,
            Word::Counted => 4,
        };
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&[kind, self.rail, VERSION as u8, 0]);
        bytes[8..12].copy_from_slice(&self.peer.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    /// None for bytes that are no message: whoever knows an address can send some.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match bytes[4] {
            1 => Word::Hello,
            2 => Word::Welcome,
            3 => Word::Close,
            4 => Word::Counted,
            _ => return None,
        };
        let value = u64::from(word(16)) | u64::from(word(20)) << 32;
        let is_ours = word(0) == MAGIC && bytes[6] == VERSION as u8;
        is_ours.then_some(Self { kind, rail: bytes[5], peer: word(8), tag: word(12), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        let rail = RailOffer { address: vec![1; 56], key: 7, base: 4096 };
        Offer { provider: "efa".into(), tag: 0x1234_5600, len: 1 << 30, lanes: vec![vec![rail; 4]; 2] }
    }

    #[test]
    fn a_message_comes_back_as_it_was_and_others_are_none() {
        for kind in [Word::Hello, Word::Welcome, Word::Close, Word::Counted] {
            let message = Message { kind, rail: 31, peer: 70_000, tag: 0xAABB_CC07, value: u64::MAX - 5 };
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        let mut bytes = Message { kind: Word::Hello, rail: 0, peer: 0, tag: 0, value: 0 }.encode();
        assert_eq!(Message::decode(&bytes[1..]), None);
        bytes[4] = 9;
        assert_eq!(Message::decode(&bytes), None);
        assert_eq!(Message::decode(&[0; MESSAGE_BYTES]), None);
    }

    #[test]
    fn what_a_peer_says_of_its_rails_is_checked() {
        assert_eq!(offer().check("efa"), Ok(()));
        assert!(offer().check("tcp").unwrap_err().what.contains("of provider efa, these are of tcp"));
        let mut lanes = offer().lanes;
        lanes[1].pop();
        assert!(Offer { lanes, ..offer() }.check("efa").is_err());
        assert!(Offer { lanes: Vec::new(), ..offer() }.check("efa").is_err());
        assert!(Offer { len: u64::MAX, ..offer() }.check("efa").is_err());
        assert!(Offer { tag: 1, ..offer() }.check("efa").is_err());
        let mut lanes = offer().lanes;
        lanes[0][0].address = vec![0; 513];
        assert!(Offer { lanes, ..offer() }.check("efa").is_err());
    }
}
