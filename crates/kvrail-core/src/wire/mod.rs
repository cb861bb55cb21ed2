//! Bytes that leave the process: metadata and control messages, versioned and self-describing (KR-12).
//!
//! Everything decoded here comes from outside: every length is checked against what is left and every count
//! against [`crate::limits`] before anything is allocated for it.
//! Integers are little-endian or LEB128 varints (signed ones zigzagged).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub mod column;
pub mod control;
pub mod metadata;

/// The version of every format in this module. A reader takes its own version only and names both otherwise.
pub const VERSION: u8 = 1;

/// Why bytes were refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end inside a field.
    Truncated {
        /// The field.
        field: &'static str,
    },
    /// These are not kvrail's bytes.
    BadMagic,
    /// Written by another version.
    Version {
        /// The version that wrote them.
        found: u8,
        /// The version that reads them.
        expected: u8,
    },
    /// A field has a value that it cannot have.
    Invalid {
        /// The field.
        field: &'static str,
    },
    /// A field is larger than its limit.
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The checksum does not match: the bytes were damaged on the way.
    Checksum,
    /// Bytes follow after the end.
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { field } => write!(f, "the bytes end inside `{field}`"),
            Self::BadMagic => f.write_str("these bytes are not kvrail's"),
            Self::Version { found, expected } => {
                write!(f, "written in format version {found}; this program reads version {expected}")
            }
            Self::Invalid { field } => write!(f, "`{field}` has a value that it cannot have"),
            Self::TooLarge { field, found, limit } => {
                write!(f, "`{field}` is {found}; the limit is {limit}")
            }
            Self::Checksum => f.write_str("the checksum does not match: the bytes were damaged"),
            Self::Trailing { bytes } => write!(f, "{bytes} bytes follow after the end"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Appends fields. Transports write their addresses and keys with it too.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// One to ten bytes, seven bits each.
    #[inline]
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A length and as many bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    pub(crate) fn optional_bytes(&mut self, value: Option<&[u8]>) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            self.bytes(value);
        }
    }
}

/// Takes fields off the front, each with the name that an error will carry.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins with the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not taken yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// What a format begins with: its magic bytes and its version.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`], [`DecodeError::Version`], or that the bytes end before.
    pub fn preamble(&mut self, magic: &[u8], version: u8) -> Result<(), DecodeError> {
        if self.take(magic.len(), "magic")? != magic {
            return Err(DecodeError::BadMagic);
        }
        let found = self.u8("version")?;
        if found == version { Ok(()) } else { Err(DecodeError::Version { found, expected: version }) }
    }

    /// So many bytes.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// Four bytes, little-endian.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// Eight bytes, little-endian.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// One to ten bytes, seven bits each.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    #[inline]
    pub fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (i, &byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if i == 9 && bits > 1 {
                return Err(DecodeError::Invalid { field });
            }
            value |= bits << (7 * i);
            if byte < 0x80 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() >= 10 {
            DecodeError::Invalid { field }
        } else {
            DecodeError::Truncated { field }
        })
    }

    /// A varint of at most `limit`.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn bounded(&mut self, limit: usize, field: &'static str) -> Result<usize, DecodeError> {
        let found = self.varint(field)?;
        if found > limit as u64 {
            return Err(DecodeError::TooLarge { field, found, limit: limit as u64 });
        }
        Ok(found as usize)
    }

    /// Length-prefixed bytes of at most `limit`.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn bytes(&mut self, limit: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.bounded(limit, field)?;
        self.take(len, field)
    }

    /// Length-prefixed text of at most `limit` bytes.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn string(&mut self, limit: usize, field: &'static str) -> Result<String, DecodeError> {
        let bytes = self.bytes(limit, field)?;
        core::str::from_utf8(bytes).map(String::from).map_err(|_| DecodeError::Invalid { field })
    }

    pub(crate) fn optional_bytes(
        &mut self,
        limit: usize,
        field: &'static str,
    ) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.u8(field)? {
            0 => Ok(None),
            1 => self.bytes(limit, field).map(Some),
            _ => Err(DecodeError::Invalid { field }),
        }
    }

    /// There is nothing left.
    ///
    /// # Errors
    /// [`DecodeError`] that names the field.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { bytes: self.rest.len() }) }
    }
}

/// FNV-1a over 8-byte words, 64 bits: finds damage, is no defence against forgery.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut words = bytes.chunks_exact(8);
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ bytes.len() as u64;
    let mut mix = |word: u64| {
        hash = (hash ^ word).wrapping_mul(PRIME);
        hash ^= hash >> 29;
    };
    for word in &mut words {
        mix(word.iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b)));
    }
    for &byte in words.remainder() {
        mix(u64::from(byte));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value: u64) {
            let mut bytes = Vec::new();
            Writer(&mut bytes).varint(value);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint("v"), Ok(value));
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn any_bytes_as_a_varint_end_in_a_value_or_an_error(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).varint("v");
        }

        #[test]
        fn one_flipped_bit_changes_the_checksum(mut bytes in prop::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index, bit in 0u8..8) {
            let before = checksum(&bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(checksum(&bytes), before);
        }
    }
}
