//! Frames: what two agents say to each other while they exchange metadata by address. Input from outside.
//!
//! A frame is a header of 20 bytes and a body, all little-endian: magic `KVNX`, version (2 bytes), kind (1 byte), zero (1
//! byte), length of the body (4 bytes), checksum of what comes before it and of the body (8 bytes). A connection carries one
//! request and its answer.

use std::fmt;

use kvrail_core::wire::checksum;

/// Version of this protocol; both ends must have the same.
pub const VERSION: u16 = 1;
/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 20;
/// Longest metadata that is sent or accepted, bytes.
pub const METADATA_BYTES_MAX: usize = 64 << 20;
/// Longest name of an agent, bytes.
pub const NAME_BYTES_MAX: usize = 4 << 10;
/// Longest reason for a refusal, bytes.
pub const REASON_BYTES_MAX: usize = 4 << 10;

const MAGIC: [u8; 4] = *b"KVNX";
const SUMMED_BYTES: usize = 12;

const _: () = assert!(
    METADATA_BYTES_MAX > kvrail::rendezvous::frame::METADATA_BYTES_MAX,
    "the metadata of any agent of the library fits, with the names of backends around it"
);

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Request: the body is the sender's metadata; load it.
    Load,
    /// Request: give me your metadata. No body.
    Fetch,
    /// Request: forget the agent that the body names, in UTF-8.
    Forget,
    /// Answer to a fetch: the body is the metadata.
    Metadata,
    /// Answer: it is done. No body.
    Done,
    /// Answer: it is not; the body says why, in UTF-8.
    Refused,
}

impl Kind {
    /// All of them, in the order of their codes, which begin at 1.
    pub const ALL: [Self; 6] =
        [Self::Load, Self::Fetch, Self::Forget, Self::Metadata, Self::Done, Self::Refused];

    const fn body_bytes_max(self) -> usize {
        match self {
            Self::Load | Self::Metadata => METADATA_BYTES_MAX,
            Self::Fetch | Self::Done => 0,
            Self::Forget => NAME_BYTES_MAX,
            Self::Refused => REASON_BYTES_MAX,
        }
    }
}

/// The part of a frame before its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the frame says.
    pub kind: Kind,
    /// Bytes of the body; within the limit of the kind.
    pub len: u32,
    sum: u64,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FrameError {
    /// The other end is NIXL itself.
    Nixl,
    /// The first four bytes are not `KVNX`: the other end is something else.
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
    /// The body is longer than a frame of this kind may be.
    TooLong {
        /// What the frame says.
        kind: Kind,
        /// Bytes announced.
        len: u32,
    },
    /// The bytes are not those that were sent.
    Damaged {
        /// What the frame says.
        kind: Kind,
    },
    /// A name or reason is not UTF-8.
    NotText {
        /// What the frame says.
        kind: Kind,
    },
    /// An answer where a request belongs, or another answer than the request has.
    Unexpected {
        /// What the frame says.
        kind: Kind,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nixl => f.write_str(
                "the other end is NIXL itself; agents of kvrail exchange metadata with each other only",
            ),
            Self::NotKvrail(first) => {
                write!(
                    f,
                    "the other end is not an agent of kvrail: it began with \"{}\"",
                    first.escape_ascii()
                )
            }
            Self::Version { theirs } => {
                write!(f, "the other end speaks version {theirs} of the exchange, this one version {VERSION}")
            }
            Self::UnknownKind(code) => write!(f, "frame kind {code} is unknown"),
            Self::Reserved(byte) => write!(f, "a reserved byte of the header is {byte}, not 0"),
            Self::TooLong { kind, len } => {
                write!(f, "a frame announces {len} bytes; {kind:?} has at most {}", kind.body_bytes_max())
            }
            Self::Damaged { kind } => {
                write!(f, "a frame {kind:?} was damaged on its way: its checksum is another")
            }
            Self::NotText { kind } => write!(f, "the body of a frame {kind:?} is not UTF-8"),
            Self::Unexpected { kind } => write!(f, "a frame {kind:?} does not belong here"),
        }
    }
}

impl std::error::Error for FrameError {}

impl Header {
    /// The header of a frame with this body.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn new(kind: Kind, body: &[u8]) -> Result<Self, FrameError> {
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        if body.len() > kind.body_bytes_max() {
            return Err(FrameError::TooLong { kind, len });
        }
        let mut header = Self { kind, len, sum: 0 };
        header.sum = header.sum(body);
        Ok(header)
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.kind as u8 + 1;
        out[8..SUMMED_BYTES].copy_from_slice(&self.len.to_le_bytes());
        out[SUMMED_BYTES..].copy_from_slice(&self.sum.to_le_bytes());
        out
    }

    /// Reads a header that came from outside.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, v0, v1, code, reserved, l0, l1, l2, l3, s @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            // NIXL's begin with a length of 8 bytes.
            let nixl = &bytes[8..16] == b"NIXLCOMM";
            return Err(if nixl { FrameError::Nixl } else { FrameError::NotKvrail([m0, m1, m2, m3]) });
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != VERSION {
            return Err(FrameError::Version { theirs });
        }
        let kind = usize::from(code).checked_sub(1).and_then(|index| Kind::ALL.get(index)).copied();
        let kind = kind.ok_or(FrameError::UnknownKind(code))?;
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if len as usize > kind.body_bytes_max() {
            return Err(FrameError::TooLong { kind, len });
        }
        Ok(Self { kind, len, sum: u64::from_le_bytes(s) })
    }

    /// Whether these are the bytes that the frame was sent with.
    ///
    /// # Errors
    /// [`FrameError::Damaged`].
    pub fn verify(self, body: &[u8]) -> Result<(), FrameError> {
        let whole = body.len() == self.len as usize && self.sum(body) == self.sum;
        if whole { Ok(()) } else { Err(FrameError::Damaged { kind: self.kind }) }
    }

    fn sum(self, body: &[u8]) -> u64 {
        // The header's sum is turned, so that it does not cancel out an equal body's.
        checksum(&self.encode()[..SUMMED_BYTES]).rotate_left(1) ^ checksum(body)
    }
}

/// The text of a frame's body.
///
/// # Errors
/// [`FrameError::NotText`].
pub fn text(kind: Kind, body: Vec<u8>) -> Result<String, FrameError> {
    String::from_utf8(body).map_err(|_| FrameError::NotText { kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nixl_a_web_browser_and_another_version_are_told_apart() {
        let mut bytes = *b"GET / HTTP/1.1\r\nHost:";
        assert_eq!(
            Header::decode(bytes[..HEADER_BYTES].try_into().expect("20 bytes")),
            Err(FrameError::NotKvrail(*b"GET "))
        );
        bytes[..8].copy_from_slice(&13u64.to_le_bytes());
        bytes[8..21].copy_from_slice(b"NIXLCOMM:SEND");
        assert_eq!(
            Header::decode(bytes[..HEADER_BYTES].try_into().expect("20 bytes")),
            Err(FrameError::Nixl)
        );
        let mut bytes = Header::new(Kind::Done, &[]).expect("it fits").encode();
        bytes[4] = 9;
        assert_eq!(Header::decode(&bytes), Err(FrameError::Version { theirs: 9 }));
    }

    #[test]
    fn a_hostile_length_is_refused_before_a_byte_is_allocated() {
        let mut bytes = Header::new(Kind::Load, &[1]).expect("it fits").encode();
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Header::decode(&bytes), Err(FrameError::TooLong { len: u32::MAX, .. })));
        assert!(Header::new(Kind::Forget, &vec![0; NAME_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: [u8; HEADER_BYTES], forged: bool, kind in 0u8..8) {
            let mut bytes = bytes;
            if forged {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4..8].copy_from_slice(&[1, 0, kind, 0]);
            }
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn a_flipped_bit_is_found(body in proptest::collection::vec(any::<u8>(), 1..100), at: prop::sample::Index) {
            let header = Header::new(Kind::Load, &body).expect("it fits");
            prop_assert_eq!(header.verify(&body), Ok(()));
            let mut frame = [&header.encode()[..], &body].concat();
            let bit = at.index(frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            let (head, body) = frame.split_first_chunk().expect("it has a header");
            let sound = Header::decode(head).and_then(|header| header.verify(body));
            prop_assert!(sound.is_err());
        }
    }
}
