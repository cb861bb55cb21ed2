//! What members and an embedded service say to each other. Input from outside: nothing is allocated before its length is
//! known to be within its limit.
//!
//! A frame is a header of 12 bytes and a body, all little-endian: magic `KVRG`, version (2 bytes), kind (1 byte), zero
//! (1 byte), length of the body (4 bytes). In bodies a text has 2 bytes of length before it; a value is the rest.

use std::fmt;
use std::sync::Arc;

use crate::limits::{KEY_BYTES_MAX, REASON_BYTES_MAX, RUN_ID_BYTES_MAX, VALUE_BYTES_MAX};

/// Version of this protocol; both ends must have the same.
pub const VERSION: u16 = 1;
/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 12;
/// Longest body, bytes: a value, two keys and numbers.
pub const BODY_BYTES_MAX: usize = VALUE_BYTES_MAX + 2 * KEY_BYTES_MAX + 64;
/// Longest name of a host, bytes.
const HOST_BYTES_MAX: usize = 255;

const MAGIC: [u8; 4] = *b"KVRG";

/// One message. Keys are below the run's prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Message {
    /// A member comes. First on every connection.
    Hello {
        /// The run it is for; empty for whatever run is there.
        run_id: String,
        /// This life of it.
        incarnation: u64,
        /// Its host's name.
        host: String,
        /// Its process id there.
        pid: u32,
        /// How long it may be silent, milliseconds.
        lease_ms: u32,
    },
    /// The member may stay. First answer.
    Welcome {
        /// The run.
        run_id: String,
        /// The life of the member that hosts the service; 0 where no member does.
        host: u64,
    },
    /// The member may not stay. The last message on the connection.
    Refused {
        /// Why, for programs.
        why: Refusal,
        /// Why, for people.
        reason: String,
    },
    /// A key is there or has a new value.
    Put {
        /// The connection that it lives with.
        owner: u64,
        /// The key.
        key: String,
        /// Its value.
        value: Arc<[u8]>,
    },
    /// A key is gone.
    Delete {
        /// The key.
        key: String,
    },
    /// All that was there when the member came has been sent.
    Current,
    /// Puts a key if it does not exist.
    Create {
        /// Names the request.
        seq: u32,
        /// The key.
        key: String,
        /// Its value.
        value: Arc<[u8]>,
    },
    /// Puts a key and deletes another one.
    Write {
        /// Names the request.
        seq: u32,
        /// The key.
        key: String,
        /// The key to delete; empty for none.
        delete: String,
        /// Its value.
        value: Arc<[u8]>,
    },
    /// Takes everything away from the connection that `key` lives with, if that is `owner`.
    Evict {
        /// Names the request.
        seq: u32,
        /// The connection.
        owner: u64,
        /// The key.
        key: String,
    },
    /// A request was carried out, or was not.
    Done {
        /// Which request.
        seq: u32,
        /// Whether it was.
        outcome: Outcome,
        /// Why it was refused, for people.
        reason: String,
    },
    /// A sign of life.
    Ping,
    /// Its answer.
    Pong,
}

/// Why a member may not stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The service is for another run.
    AnotherRun,
    /// The service is about to end.
    Ending,
    /// There are too many members already.
    Full,
    /// Another process has taken this one's seat, because it did not answer.
    Evicted,
    /// What it said makes no sense.
    Nonsense,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It was carried out.
    Did,
    /// The key existed.
    Existed,
    /// It is not allowed.
    Refused,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FrameError {
    /// The first four bytes are not `KVRG`: the other end is something else.
    NotKvrail([u8; 4]),
    /// The other end speaks another version.
    Version {
        /// Its version.
        theirs: u16,
    },
    /// A kind that this version does not know.
    UnknownKind(u8),
    /// A byte that must be zero is not.
    Reserved(u8),
    /// The body is longer than any.
    TooLong {
        /// Bytes announced.
        len: u32,
    },
    /// The body is not one of its kind.
    Malformed {
        /// The kind's number.
        kind: u8,
        /// What is wrong.
        what: &'static str,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKvrail(first) => write!(f, "it began with \"{}\"", first.escape_ascii()),
            Self::Version { theirs } => {
                write!(f, "it speaks version {theirs} of the rendezvous, this program version {VERSION}")
            }
            Self::UnknownKind(kind) => write!(f, "frame kind {kind} is unknown"),
            Self::Reserved(byte) => write!(f, "a reserved byte of the header is {byte}, not 0"),
            Self::TooLong { len } => {
                write!(f, "a frame announces {len} bytes; {BODY_BYTES_MAX} are the most")
            }
            Self::Malformed { kind, what } => write!(f, "a frame of kind {kind} is malformed: {what}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The part of a frame before its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    kind: u8,
    len: u32,
}

impl Header {
    /// Reads a header that came from outside.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, v0, v1, kind, reserved, l0, l1, l2, l3] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::NotKvrail([m0, m1, m2, m3]));
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != VERSION {
            return Err(FrameError::Version { theirs });
        }
        if !(1..=12).contains(&kind) {
            return Err(FrameError::UnknownKind(kind));
        }
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if len as usize > BODY_BYTES_MAX {
            return Err(FrameError::TooLong { len });
        }
        Ok(Self { kind, len })
    }

    /// Bytes of the body, at most [`BODY_BYTES_MAX`].
    #[must_use]
    pub fn body_len(self) -> usize {
        self.len as usize
    }
}

impl Message {
    /// The whole frame. Texts that are too long for their place are cut, which members never need.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        match self {
            Self::Hello { run_id, incarnation, host, pid, lease_ms } => {
                out.extend_from_slice(&incarnation.to_le_bytes());
                out.extend_from_slice(&pid.to_le_bytes());
                out.extend_from_slice(&lease_ms.to_le_bytes());
                text(&mut out, run_id, RUN_ID_BYTES_MAX);
                text(&mut out, host, HOST_BYTES_MAX);
            }
            Self::Welcome { run_id, host } => {
                out.extend_from_slice(&host.to_le_bytes());
                text(&mut out, run_id, RUN_ID_BYTES_MAX);
            }
            Self::Refused { why, reason } => {
                out.push(why.code());
                text(&mut out, reason, REASON_BYTES_MAX);
            }
            Self::Put { owner, key, value } => {
                out.extend_from_slice(&owner.to_le_bytes());
                text(&mut out, key, KEY_BYTES_MAX);
                out.extend_from_slice(value);
            }
            Self::Delete { key } => text(&mut out, key, KEY_BYTES_MAX),
            Self::Create { seq, key, value } => {
                out.extend_from_slice(&seq.to_le_bytes());
                text(&mut out, key, KEY_BYTES_MAX);
                out.extend_from_slice(value);
            }
            Self::Write { seq, key, delete, value } => {
                out.extend_from_slice(&seq.to_le_bytes());
                text(&mut out, key, KEY_BYTES_MAX);
                text(&mut out, delete, KEY_BYTES_MAX);
                out.extend_from_slice(value);
            }
            Self::Evict { seq, owner, key } => {
                out.extend_from_slice(&seq.to_le_bytes());
                out.extend_from_slice(&owner.to_le_bytes());
                text(&mut out, key, KEY_BYTES_MAX);
            }
            Self::Done { seq, outcome, reason } => {
                out.extend_from_slice(&seq.to_le_bytes());
                out.push(outcome.code());
                text(&mut out, reason, REASON_BYTES_MAX);
            }
            Self::Current | Self::Ping | Self::Pong => {}
        }
        let len = u32::try_from(out.len() - HEADER_BYTES).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.kind();
        out[8..HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
        out
    }

    /// Reads the body that belongs to `header`.
    ///
    /// # Errors
    /// [`FrameError::Malformed`].
    pub fn decode(header: Header, body: &[u8]) -> Result<Self, FrameError> {
        let kind = header.kind;
        let malformed = |what| FrameError::Malformed { kind, what };
        if body.len() != header.body_len() {
            return Err(malformed("its body has another length"));
        }
        let mut reader = Reader { kind, rest: body };
        let message = match kind {
            1 => {
                let (incarnation, pid, lease_ms) = (reader.u64()?, reader.u32()?, reader.u32()?);
                let run_id = reader.text(RUN_ID_BYTES_MAX)?;
                Self::Hello { run_id, incarnation, host: reader.text(HOST_BYTES_MAX)?, pid, lease_ms }
            }
            2 => Self::Welcome { host: reader.u64()?, run_id: reader.text(RUN_ID_BYTES_MAX)? },
            3 => {
                let why = Refusal::from_code(reader.u8()?).ok_or_else(|| malformed("an unknown refusal"))?;
                Self::Refused { why, reason: reader.text(REASON_BYTES_MAX)? }
            }
            4 => {
                let (owner, key) = (reader.u64()?, reader.text(KEY_BYTES_MAX)?);
                Self::Put { owner, key, value: reader.value()? }
            }
            5 => Self::Delete { key: reader.text(KEY_BYTES_MAX)? },
            6 => Self::Current,
            7 => {
                let (seq, key) = (reader.u32()?, reader.text(KEY_BYTES_MAX)?);
                Self::Create { seq, key, value: reader.value()? }
            }
            8 => {
                let (seq, key) = (reader.u32()?, reader.text(KEY_BYTES_MAX)?);
                let delete = reader.text(KEY_BYTES_MAX)?;
                Self::Write { seq, key, delete, value: reader.value()? }
            }
            9 => {
                let (seq, owner) = (reader.u32()?, reader.u64()?);
                Self::Evict { seq, owner, key: reader.text(KEY_BYTES_MAX)? }
            }
            10 => {
                let (seq, code) = (reader.u32()?, reader.u8()?);
                let outcome = Outcome::from_code(code).ok_or_else(|| malformed("an unknown outcome"))?;
                Self::Done { seq, outcome, reason: reader.text(REASON_BYTES_MAX)? }
            }
            11 => Self::Ping,
            12 => Self::Pong,
            _ => return Err(FrameError::UnknownKind(kind)),
        };
        if reader.rest.is_empty() { Ok(message) } else { Err(malformed("bytes are left over")) }
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Welcome { .. } => 2,
            Self::Refused { .. } => 3,
            Self::Put { .. } => 4,
            Self::Delete { .. } => 5,
            Self::Current => 6,
            Self::Create { .. } => 7,
            Self::Write { .. } => 8,
            Self::Evict { .. } => 9,
            Self::Done { .. } => 10,
            Self::Ping => 11,
            Self::Pong => 12,
        }
    }
}

impl Refusal {
    const ALL: [Self; 5] = [Self::AnotherRun, Self::Ending, Self::Full, Self::Evicted, Self::Nonsense];

    fn code(self) -> u8 {
        Self::ALL.iter().position(|&one| one == self).map_or(0, |at| at as u8 + 1)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Did, Self::Existed, Self::Refused];

    fn code(self) -> u8 {
        Self::ALL.iter().position(|&one| one == self).map_or(0, |at| at as u8 + 1)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

fn text(out: &mut Vec<u8>, text: &str, max: usize) {
    let end = (0..=text.len().min(max)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    // `max` is below 65,536 for every text.
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(FrameError::Malformed { kind: self.kind, what: "it ends early" })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, max: usize) -> Result<String, FrameError> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        let malformed = |what| FrameError::Malformed { kind: self.kind, what };
        if len > max {
            return Err(malformed("a text is too long"));
        }
        let not_text = malformed("a text is not UTF-8");
        std::str::from_utf8(self.take(len)?).map(Into::into).map_err(|_| not_text)
    }

    fn value(&mut self) -> Result<Arc<[u8]>, FrameError> {
        let rest = std::mem::take(&mut self.rest);
        if rest.len() > VALUE_BYTES_MAX {
            return Err(FrameError::Malformed { kind: self.kind, what: "a value is too long" });
        }
        Ok(rest.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(bytes: &[u8]) -> Result<Header, FrameError> {
        Header::decode(bytes.first_chunk().expect("a whole header"))
    }

    #[test]
    fn a_web_browser_is_told_apart_from_another_version() {
        assert_eq!(Header::decode(b"GET / HTTP/1"), Err(FrameError::NotKvrail(*b"GET ")));
        let mut bytes = Message::Ping.encode();
        bytes[4] = 9;
        assert_eq!(header(&bytes), Err(FrameError::Version { theirs: 9 }));
    }

    #[test]
    fn a_hostile_length_is_refused_before_a_byte_is_allocated() {
        let mut bytes = Message::Ping.encode();
        bytes[8..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(header(&bytes), Err(FrameError::TooLong { len: u32::MAX }));
    }

    #[test]
    fn the_longest_value_passes_and_a_longer_one_does_not() {
        let with =
            |len| Message::Create { seq: 1, key: "k".repeat(KEY_BYTES_MAX), value: vec![7; len].into() };
        let bytes = with(VALUE_BYTES_MAX).encode();
        let head = header(&bytes).expect("within the limit");
        assert_eq!(Message::decode(head, &bytes[HEADER_BYTES..]), Ok(with(VALUE_BYTES_MAX)));
        let bytes = with(VALUE_BYTES_MAX + 1).encode();
        let head = header(&bytes).expect("a frame may be this long, its value not");
        assert!(Message::decode(head, &bytes[HEADER_BYTES..]).is_err());
    }

    fn messages() -> impl Strategy<Value = Message> {
        let key = || "[a-z/0-9é]{0,100}";
        let value = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Arc::from);
        prop_oneof![
            (key(), any::<u64>(), key(), any::<u32>(), any::<u32>()).prop_map(
                |(run_id, incarnation, host, pid, lease_ms)| Message::Hello {
                    run_id: run_id.chars().take(50).collect(),
                    incarnation,
                    host,
                    pid,
                    lease_ms
                }
            ),
            ("[a-z]{0,50}", any::<u64>()).prop_map(|(run_id, host)| Message::Welcome { run_id, host }),
            (0..Refusal::ALL.len(), key())
                .prop_map(|(at, reason)| Message::Refused { why: Refusal::ALL[at], reason }),
            (any::<u64>(), key(), value()).prop_map(|(owner, key, value)| Message::Put { owner, key, value }),
            key().prop_map(|key| Message::Delete { key }),
            (any::<u32>(), key(), value()).prop_map(|(seq, key, value)| Message::Create { seq, key, value }),
            (any::<u32>(), key(), key(), value()).prop_map(|(seq, key, delete, value)| Message::Write {
                seq,
                key,
                delete,
                value
            }),
            (any::<u32>(), any::<u64>(), key()).prop_map(|(seq, owner, key)| Message::Evict {
                seq,
                owner,
                key
            }),
            (any::<u32>(), 0..Outcome::ALL.len(), key()).prop_map(|(seq, at, reason)| Message::Done {
                seq,
                outcome: Outcome::ALL[at],
                reason
            }),
            Just(Message::Current),
            Just(Message::Ping),
            Just(Message::Pong),
        ]
    }

    proptest! {
        #[test]
        fn any_message_comes_back_as_it_was(message in messages()) {
            let bytes = message.encode();
            let header = header(&bytes)?;
            prop_assert_eq!(Message::decode(header, &bytes[HEADER_BYTES..]), Ok(message));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(kind in 1u8..=12, body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let head = Header { kind, len: body.len() as u32 };
            if let Ok(message) = Message::decode(head, &body) {
                prop_assert_eq!(&message.encode()[HEADER_BYTES..], &body[..]);
            }
        }

        #[test]
        fn a_frame_cut_anywhere_is_an_error(message in messages(), cut: proptest::sample::Index) {
            let bytes = message.encode();
            let body = &bytes[HEADER_BYTES..];
            // A value has no end of its own: only the header's length says it.
            if !body.is_empty() {
                let header = header(&bytes)?;
                prop_assert!(Message::decode(header, &body[..cut.index(body.len())]).is_err());
            }
        }
    }
}
