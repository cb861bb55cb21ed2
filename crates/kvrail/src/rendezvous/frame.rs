//! Rendezvous frames: what two agents say to each other while they exchange metadata. Input from outside.
//!
//! A frame is a header of 12 bytes and a body, all little-endian: magic `KVRZ`, version (2 bytes), kind (1 byte),
//! zero (1 byte), length of the body (4 bytes).

use std::fmt;

/// Version of this protocol; both ends must have the same.
pub const VERSION: u16 = 1;
/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 12;
/// Longest metadata that is accepted, bytes. The most regions that an agent may have take half of it.
pub const METADATA_BYTES_MAX: usize = 32 << 20;
/// Longest reason for a refusal, bytes.
pub const REASON_BYTES_MAX: usize = 4 << 10;

const MAGIC: [u8; 4] = *b"KVRZ";

const _: () = assert!(
    METADATA_BYTES_MAX >= kvrail_core::limits::REGIONS_MAX * 16,
    "metadata of as many regions as an agent may have fits (16 bytes each are what 10,000 in 160 kB allow)"
);
const _: () = assert!(
    METADATA_BYTES_MAX <= kvrail_core::limits::METADATA_BYTES_MAX,
    "what the rendezvous carries, the codec takes"
);

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// The body is the sender's metadata.
    Metadata,
    /// The sender has imported the metadata that it was sent. No body.
    Accepted,
    /// The sender has not; the body says why, in UTF-8.
    Refused,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Metadata => 1,
            Self::Accepted => 2,
            Self::Refused => 3,
        }
    }

    const fn body_bytes_max(self) -> usize {
        match self {
            Self::Metadata => METADATA_BYTES_MAX,
            Self::Accepted => 0,
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
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FrameError {
    /// The first four bytes are not `KVRZ`: the other end is something else.
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
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKvrail(first) => {
                write!(
                    f,
                    "the other end is not a kvrail rendezvous: it began with \"{}\"",
                    first.escape_ascii()
                )
            }
            Self::Version { theirs } => {
                write!(f, "the other end speaks rendezvous version {theirs}, this one version {VERSION}")
            }
            Self::UnknownKind(code) => write!(f, "frame kind {code} is unknown"),
            Self::Reserved(byte) => write!(f, "a reserved byte of the header is {byte}, not 0"),
            Self::TooLong { kind, len } => {
                write!(f, "a frame announces {len} bytes; {kind:?} has at most {}", kind.body_bytes_max())
            }
        }
    }
}

impl std::error::Error for FrameError {}

impl Header {
    /// The header of a frame whose body has `len` bytes.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn new(kind: Kind, len: usize) -> Result<Self, FrameError> {
        let clamped = u32::try_from(len).unwrap_or(u32::MAX);
        if len > kind.body_bytes_max() {
            return Err(FrameError::TooLong { kind, len: clamped });
        }
        Ok(Self { kind, len: clamped })
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.kind.code();
        out[8..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// Reads a header that came from outside.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, v0, v1, code, reserved, l0, l1, l2, l3] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::NotKvrail([m0, m1, m2, m3]));
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != VERSION {
            return Err(FrameError::Version { theirs });
        }
        let kind = match code {
            1 => Kind::Metadata,
            2 => Kind::Accepted,
            3 => Kind::Refused,
            _ => return Err(FrameError::UnknownKind(code)),
        };
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if len as usize > kind.body_bytes_max() {
            return Err(FrameError::TooLong { kind, len });
        }
        Ok(Self { kind, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_web_browser_is_told_apart_from_another_version() {
        let mut bytes = *b"GET / HTTP/1";
        assert_eq!(Header::decode(&bytes), Err(FrameError::NotKvrail(*b"GET ")));
        bytes = Header { kind: Kind::Accepted, len: 0 }.encode();
        bytes[4] = 9;
        assert_eq!(Header::decode(&bytes), Err(FrameError::Version { theirs: 9 }));
    }

    #[test]
    fn a_hostile_length_is_refused_before_a_byte_is_allocated() {
        let mut bytes = Header { kind: Kind::Metadata, len: 1 }.encode();
        bytes[8..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Header::decode(&bytes), Err(FrameError::TooLong { len: u32::MAX, .. })));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: [u8; HEADER_BYTES], forged in any::<bool>(), kind in 0u8..6) {
            let mut bytes = bytes;
            if forged {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4..8].copy_from_slice(&[1, 0, kind, 0]);
            }
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
