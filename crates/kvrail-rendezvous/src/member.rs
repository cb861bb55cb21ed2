//! Members of a group, and the record of one in the store.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::limits::{REASON_BYTES_MAX, RECORD_BYTES_MAX, WORLD_SIZE_MAX};

/// Version of the records and keys; all members of a group must have the same.
pub(crate) const PROTOCOL: u32 = 1;

/// One life of one process as a member: random, so that nothing of an earlier life is taken for this one's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation(pub(crate) u64);

impl Incarnation {
    pub(crate) fn new() -> Self {
        Self(random_u64())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let canonical = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if canonical { u64::from_str_radix(text, 16).ok().map(Self) } else { None }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Random bits of the kernel; of the clock and the process where it gives none.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_le_bytes(bytes),
        _ => {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one((Instant::now(), std::process::id()))
        }
    }
}

/// A member of a group: who it is and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its rank, below the group's size.
    pub rank: u32,
    /// The name of its host, as it gave it.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// This life of it.
    pub incarnation: Incarnation,
}

impl fmt::Display for Member {
    /// `rank 3 (node-a pid 4711)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} ({} pid {})", self.rank, self.host, self.pid)
    }
}

/// What a member says of itself under its seat's key. JSON, so that a person with etcdctl can read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) member: Member,
    pub(crate) world_size: u32,
    pub(crate) parting: Option<Parting>,
}

/// How a member went that said so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Parting {
    /// Its work was done.
    Left,
    /// It could not go on.
    GaveUp(String),
}

#[derive(Serialize, Deserialize)]
struct Text {
    protocol: u32,
    rank: u32,
    world_size: u32,
    host: String,
    pid: u32,
    incarnation: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gave_up: Option<String>,
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Member { rank, host, pid, incarnation } = &self.member;
        let text = Text {
            protocol: PROTOCOL,
            rank: *rank,
            world_size: self.world_size,
            host: host.clone(),
            pid: *pid,
            incarnation: incarnation.to_string(),
            left: self.parting == Some(Parting::Left),
            gave_up: match &self.parting {
                Some(Parting::GaveUp(reason)) => Some(tame(reason, REASON_BYTES_MAX)),
                _ => None,
            },
        };
        serde_json::to_vec(&text).unwrap_or_default()
    }

    /// Reads a record that came from the store; none where it is not one of this version for seat `rank`.
    pub(crate) fn decode(rank: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() > RECORD_BYTES_MAX {
            return None;
        }
        let text: Text = serde_json::from_slice(bytes).ok()?;
        let plausible = text.protocol == PROTOCOL
            && text.rank == rank
            && rank < text.world_size
            && text.world_size <= WORLD_SIZE_MAX
            && text.host == tame_host(&text.host)
            && text.gave_up.as_ref().is_none_or(|reason| *reason == tame(reason, REASON_BYTES_MAX));
        if !plausible {
            return None;
        }
        let parting = match text.gave_up {
            Some(reason) => Some(Parting::GaveUp(reason)),
            None => text.left.then_some(Parting::Left),
        };
        let incarnation = Incarnation::parse(&text.incarnation)?;
        let member = Member { rank, host: text.host, pid: text.pid, incarnation };
        Some(Self { member, world_size: text.world_size, parting })
    }
}

/// A host's name as it may be shown: printable ASCII, at most 255 bytes.
pub(crate) fn tame_host(host: &str) -> String {
    let tamed: String = host.chars().filter(char::is_ascii_graphic).take(255).collect();
    if tamed.is_empty() { "unnamed".into() } else { tamed }
}

/// Text of a peer as it may be shown: no control characters, cut to `max` bytes.
pub(crate) fn tame(text: &str, max: usize) -> String {
    let mut tamed = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if tamed.len() + c.len_utf8() > max {
            break;
        }
        tamed.push(c);
    }
    tamed
}

/// The name of this host.
pub(crate) fn this_host() -> String {
    tame_host(&rustix::system::uname().nodename().to_string_lossy())
}

/// Ranks as a person writes them: `3, 5-7`.
pub(crate) fn ranks(sorted: impl IntoIterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for rank in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let one = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranks_are_written_as_ranges() {
        assert_eq!(ranks([]), "");
        assert_eq!(ranks([3]), "3");
        assert_eq!(ranks([0, 1, 3, 5, 6, 7]), "0, 1, 3, 5-7");
    }

    proptest! {
        #[test]
        fn any_record_comes_back_as_it_was(rank in 0u32..8, pid: u32, id: u64, host in "\\PC{0,300}", reason in proptest::option::of("(?s).{0,700}")) {
            let member = Member { rank, host: tame_host(&host), pid, incarnation: Incarnation(id) };
            let parting = reason.map(|reason| Parting::GaveUp(tame(&reason, REASON_BYTES_MAX)));
            let record = Record { member, world_size: 8, parting };
            let bytes = record.encode();
            prop_assert!(bytes.len() <= RECORD_BYTES_MAX);
            prop_assert_eq!(Record::decode(rank, &bytes), Some(record.clone()));
            prop_assert_eq!(Record::decode(rank + 1, &bytes), None);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Record::decode(0, &bytes);
        }
    }
}
