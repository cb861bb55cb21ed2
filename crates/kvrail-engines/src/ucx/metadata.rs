//! What one side tells the other: bytes from outside for whoever gets them.
//!
//! UCX checks little of an address or a key that it is given, so that a record is only handed to it whole: it carries a checksum.

use serde::{Deserialize, Serialize};

use crate::engine::Name;
use crate::error::{EngineError, Kind};
use crate::metadata;

/// Version of the record.
const VERSION: u16 = 1;
/// Most workers of one side: one per posting thread.
pub(super) const WORKERS_MAX: usize = 1024;
/// Longest address or key, bytes. An address is a few hundred bytes and grows with its devices; a key is tens.
const BLOB_BYTES_MAX: usize = 64 << 10;

/// One side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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

/// A record: one side, and the sum of it.
#[derive(Serialize, Deserialize)]
struct Record {
    sum: u64,
    side: Metadata,
}

impl Metadata {
    /// Writes the record.
    ///
    /// # Errors
    /// When it is longer than the other side would take.
    pub(super) fn seal(self) -> Result<Vec<u8>, EngineError> {
        metadata::seal(Name::Ucx, VERSION, &Record { sum: self.sum(), side: self })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When it is none, of another version, damaged, or beyond the limits.
    pub(super) fn open(bytes: &[u8]) -> Result<Self, EngineError> {
        let Record { sum, side } = metadata::open(Name::Ucx, VERSION, bytes)?;
        let wrong = |why: &str| EngineError::new(Kind::Peer, format!("the peer's metadata of ucx {why}"));
        if sum != side.sum() {
            return Err(wrong("is damaged: its checksum does not fit"));
        }
        let fits = |blob: &Vec<u8>| !blob.is_empty() && blob.len() <= BLOB_BYTES_MAX;
        if side.workers.is_empty() || side.workers.len() > WORKERS_MAX || !side.workers.iter().all(fits) {
            return Err(wrong("has no worker, too many, or one without an address"));
        }
        if !fits(&side.key) || side.base.checked_add(side.len).is_none() {
            return Err(wrong("has no key, or memory that no process can have"));
        }
        Ok(side)
    }

    /// FNV-1a over every field and its length: against accidents, not against malice; who can send metadata can ask for any transfer.
    fn sum(&self) -> u64 {
        let numbers = [self.base, self.len].map(u64::to_le_bytes);
        let fields = [self.release.as_bytes(), self.host.as_bytes(), numbers.as_flattened(), &self.key];
        let all = fields.into_iter().chain(self.workers.iter().map(Vec::as_slice));
        all.fold(0xcbf2_9ce4_8422_2325, |sum, field| {
            let len = (field.len() as u64).to_le_bytes();
            len.iter()
                .chain(field)
                .fold(sum, |sum: u64, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
        })
    }
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
            workers: vec![vec![1; 20], vec![2; 33]],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Metadata::open(&sample().seal().unwrap()).unwrap(), sample());
    }

    #[test]
    fn a_record_that_ends_early_or_has_a_flipped_bit_never_reaches_ucx() {
        let whole = sample().seal().unwrap();
        for len in 0..whole.len() {
            assert!(Metadata::open(&whole[..len]).is_err(), "{len} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Metadata::open(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_no_side_can_be_is_refused() {
        for wrong in [
            Metadata { workers: Vec::new(), ..sample() },
            Metadata { workers: vec![vec![1]; WORKERS_MAX + 1], ..sample() },
            Metadata { workers: vec![Vec::new()], ..sample() },
            Metadata { key: Vec::new(), ..sample() },
            Metadata { key: vec![0; BLOB_BYTES_MAX + 1], ..sample() },
            Metadata { base: u64::MAX, ..sample() },
        ] {
            assert_eq!(Metadata::open(&wrong.seal().unwrap()).unwrap_err().kind, Kind::Peer);
        }
    }
}
