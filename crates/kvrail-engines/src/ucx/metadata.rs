//! What one side tells the other: bytes from outside for whoever gets them.
//!
//! UCX checks little of an address or a key that it is given, so that a record is only handed to it whole: it ends in a checksum.

use crate::error::{EngineError, Kind};

const MAGIC: &[u8; 6] = b"KVRUCX";
const VERSION: u8 = 1;
/// Longest record. A worker's address is a few hundred bytes and grows with its devices; a key is tens of bytes.
pub(super) const BYTES_MAX: usize = 1 << 20;
/// Most workers of one side: one per posting thread.
pub(super) const WORKERS_MAX: usize = 1024;

/// One side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Metadata {
    /// Its UCX, as in `1.13.1`.
    pub(super) release: String,
    /// Its host, until that boots again; empty where it does not say.
    pub(super) host: String,
    /// Address of its memory's first byte, in its process.
    pub(super) base: u64,
    /// Bytes of its memory.
    pub(super) len: u64,
    /// The memory's packed key.
    pub(super) key: Vec<u8>,
    /// Its workers' addresses.
    pub(super) workers: Vec<Vec<u8>>,
}

impl Metadata {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        put(&mut out, self.release.as_bytes());
        put(&mut out, self.host.as_bytes());
        out.extend(self.base.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        put(&mut out, &self.key);
        out.extend((self.workers.len() as u32).to_le_bytes());
        for worker in &self.workers {
            put(&mut out, worker);
        }
        out.extend(checksum(&out).to_le_bytes());
        out
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When it is none, of another version, damaged, or beyond the limits.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, EngineError> {
        let wrong = |why: &str| EngineError::new(Kind::Peer, format!("the peer's UCX metadata {why}"));
        if bytes.len() > BYTES_MAX {
            return Err(wrong(&format!("has {} bytes; at most {BYTES_MAX} are taken", bytes.len())));
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("is none: it is of another engine"))?;
        match rest.first() {
            Some(&VERSION) => {}
            Some(other) => {
                return Err(wrong(&format!("is of version {other}; this program reads {VERSION}"))
                    .hint("run the same release of kvrail on both sides"));
            }
            None => return Err(wrong("ends early")),
        }
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or_else(|| wrong("ends early"))?;
        if checksum(body) != u64::from_le_bytes(*sum) {
            return Err(wrong("is damaged: its checksum does not fit"));
        }
        let mut at = Reader(body.get(MAGIC.len() + 1..).unwrap_or_default());
        Self::body(&mut at).filter(|_| at.0.is_empty()).ok_or_else(|| wrong("contradicts itself"))
    }

    fn body(at: &mut Reader<'_>) -> Option<Self> {
        let release = String::from_utf8(at.bytes()?.to_vec()).ok()?;
        let host = String::from_utf8(at.bytes()?.to_vec()).ok()?;
        let (base, len) =
            (at.number::<8>().map(u64::from_le_bytes)?, at.number::<8>().map(u64::from_le_bytes)?);
        base.checked_add(len)?;
        let key = at.bytes()?.to_vec();
        let count = u32::from_le_bytes(at.number::<4>()?) as usize;
        if count == 0 || count > WORKERS_MAX || key.is_empty() {
            return None;
        }
        let workers = (0..count).map(|_| at.bytes().map(<[u8]>::to_vec)).collect::<Option<_>>()?;
        Some(Self { release, host, base, len, key, workers })
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (number, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*number)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = u32::from_le_bytes(self.number::<4>()?) as usize;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// FNV-1a: against accidents, not against malice; who can send metadata can ask for any transfer.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        Metadata {
            release: "1.13.1".into(),
            host: "4c1e".into(),
            base: 0x7f00_0000_0000,
            len: 1 << 30,
            key: vec![7; 40],
            workers: vec![vec![1; 200], vec![2; 333]],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Metadata::decode(&sample().encode()).unwrap(), sample());
    }

    #[test]
    fn a_record_that_ends_early_or_has_a_flipped_bit_never_reaches_ucx() {
        let whole = sample().encode();
        for len in 0..whole.len() {
            assert!(Metadata::decode(&whole[..len]).is_err(), "{len} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Metadata::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_version_and_limits_are_named() {
        let mut other = sample().encode();
        other[MAGIC.len()] = 9;
        assert!(Metadata::decode(&other).unwrap_err().what.contains("version 9"));
        assert!(Metadata::decode(b"something else").unwrap_err().what.contains("another engine"));
        assert!(Metadata::decode(&vec![0; BYTES_MAX + 1]).unwrap_err().what.contains("at most"));
        let none = Metadata { workers: Vec::new(), ..sample() };
        assert!(Metadata::decode(&none.encode()).is_err());
        let beyond = Metadata { base: u64::MAX, ..sample() };
        assert!(Metadata::decode(&beyond.encode()).is_err());
    }
}
