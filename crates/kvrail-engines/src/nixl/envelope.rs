//! What two engines tell each other: NIXL's metadata, and where the registered memory is. Bytes from outside for whoever reads them.

use crate::error::{EngineError, Kind};

const MAGIC: &[u8; 8] = b"kvr-nixl";
const VERSION: u16 = 1;
/// NIXL's metadata of one region is a few hundred bytes, and 64 more per rail.
const METADATA_BYTES_MAX: usize = 1 << 20;
const NAME_BYTES_MAX: usize = 64;

/// What one side tells the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Envelope {
    /// The backend, in NIXL's own case.
    pub(super) backend: String,
    /// Address of the registered memory.
    pub(super) base: u64,
    /// Its length, bytes.
    pub(super) len: u64,
    /// What NIXL takes in.
    pub(super) metadata: Vec<u8>,
}

impl Envelope {
    /// As bytes; an error where NIXL's own are too many.
    pub(super) fn write(&self) -> Result<Vec<u8>, EngineError> {
        let backend = self.backend.as_bytes();
        let name_len = u8::try_from(backend.len()).ok().filter(|len| usize::from(*len) <= NAME_BYTES_MAX);
        let metadata_len =
            u32::try_from(self.metadata.len()).ok().filter(|len| *len as usize <= METADATA_BYTES_MAX);
        let (Some(name_len), Some(metadata_len)) = (name_len, metadata_len) else {
            let what = format!(
                "NIXL's metadata have {} bytes; at most {METADATA_BYTES_MAX} are sent",
                self.metadata.len()
            );
            return Err(EngineError::new(Kind::Engine, what));
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.push(name_len);
        bytes.extend(backend);
        bytes.extend(self.base.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(metadata_len.to_le_bytes());
        bytes.extend(&self.metadata);
        Ok(bytes)
    }

    /// From bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, EngineError> {
        let wrong = |what: String| EngineError::new(Kind::Peer, format!("the peer's metadata {what}"));
        let short = || wrong("end too early".into());
        let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| {
            wrong("are not those of the engine nixl".into()).hint("both sides must run the same engine")
        })?;
        let mut take = |len: usize| {
            let (taken, left) = rest.split_at_checked(len).ok_or_else(short)?;
            rest = left;
            Ok::<_, EngineError>(taken)
        };
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        let version = number(take(2)?);
        if version != u64::from(VERSION) {
            return Err(wrong(format!("are version {version}, this program reads {VERSION}"))
                .hint("both sides must be the same release"));
        }
        let name_len = take(1)?[0];
        let backend = std::str::from_utf8(take(usize::from(name_len))?);
        let backend = backend.map_err(|_| wrong("name a backend that is no text".into()))?.to_owned();
        let (base, len) = (number(take(8)?), number(take(8)?));
        if base.checked_add(len).is_none() {
            return Err(wrong(format!("name memory that cannot be: {len} bytes at {base:#x}")));
        }
        let metadata_len = usize::try_from(number(take(4)?)).unwrap_or(usize::MAX);
        if metadata_len > METADATA_BYTES_MAX {
            return Err(wrong(format!(
                "announce {metadata_len} bytes, at most {METADATA_BYTES_MAX} are read"
            )));
        }
        let metadata = take(metadata_len)?.to_vec();
        if !rest.is_empty() {
            return Err(wrong(format!("go on for {} bytes after their end", rest.len())));
        }
        Ok(Self { backend, base, len, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope { backend: "UCX".into(), base: 0x7f00_0000_0000, len: 1 << 30, metadata: vec![7; 331] }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = envelope().write().unwrap();
        assert_eq!(Envelope::read(&bytes).unwrap(), envelope());
    }

    #[test]
    fn no_part_of_it_and_nothing_longer_is_taken_for_it() {
        let bytes = envelope().write().unwrap();
        for end in 0..bytes.len() {
            assert_eq!(Envelope::read(&bytes[..end]).unwrap_err().kind, Kind::Peer);
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Envelope::read(&longer).unwrap_err().what.contains("go on"));
    }

    #[test]
    fn lengths_that_lie_are_refused_before_anything_is_taken() {
        let mut huge = envelope().write().unwrap();
        let at = MAGIC.len() + 2 + 1 + 3 + 16;
        huge[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Envelope::read(&huge).unwrap_err().what.contains("announce"));
        let mut wraps = Envelope { base: u64::MAX, ..envelope() };
        assert!(Envelope::read(&wraps.write().unwrap()).unwrap_err().what.contains("cannot be"));
        wraps.metadata = vec![0; METADATA_BYTES_MAX + 1];
        assert!(wraps.write().is_err());
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = envelope().write().unwrap();
        bytes[8] = 9;
        assert!(Envelope::read(&bytes).unwrap_err().what.contains("version 9"));
    }
}
