//! The bytes that a peer needs to reach a region: on which rails it is registered, in which pieces, and the provider's
//! key of each.
//!
//! A long region is registered in pieces that overlap by the longest op, so that every op lies within one piece and
//! is never cut: one op, one immediate.

use std::fmt;
use std::ops::Range;

use kvrail_core::id::RailSet;
use kvrail_core::limits::RAILS_MAX;
use kvrail_core::transport::PeerError;
use kvrail_core::wire::{DecodeError, Reader, Writer, column};

use super::address::VERSION;

/// Longest key, bytes: what an agent's metadata has for one region.
pub const KEY_BYTES_MAX: usize = 4_096;
/// Pieces of one region on all its rails together: more cannot be written, at one byte each.
const KEYS_MAX: usize = KEY_BYTES_MAX;

/// How a region is cut into registrations: piece `i` begins at `i * stride`, and is `stride + overlap` long or ends
/// with the region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pieces {
    len: u64,
    stride: u64,
    overlap: u64,
    count: u64,
}

impl Pieces {
    /// Cuts `len` bytes (not 0) into pieces of at most `piece_bytes_max` for ops of at most `op_bytes_max`. `None` when
    /// a piece would have no room beside the overlap.
    #[must_use]
    pub fn cut(len: u64, piece_bytes_max: u64, op_bytes_max: u32) -> Option<Self> {
        let overlap = u64::from(op_bytes_max);
        if len <= piece_bytes_max {
            return (len > 0).then_some(Self::whole(len));
        }
        let stride = piece_bytes_max.checked_sub(overlap)?;
        Self::with(len, stride, overlap)
    }

    fn whole(len: u64) -> Self {
        Self { len, stride: len, overlap: 0, count: 1 }
    }

    /// More than one piece, with some overlap but less than they are long.
    fn with(len: u64, stride: u64, overlap: u64) -> Option<Self> {
        let many = (1..=stride).contains(&overlap) && stride.checked_add(overlap)? < len;
        many.then(|| Self { len, stride, overlap, count: (len - overlap).div_ceil(stride) })
    }

    /// Number of pieces; at least one.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of the region in a piece.
    #[must_use]
    pub fn range(&self, piece: u64) -> Range<u64> {
        let start = piece.saturating_mul(self.stride).min(self.len);
        let end = start.saturating_add(self.stride).saturating_add(self.overlap).min(self.len);
        start..end
    }

    /// The piece in which an op lies wholly; `None` when it lies outside the region, or is longer than the overlap and
    /// crosses a piece's end.
    #[inline]
    #[must_use]
    pub fn of(&self, offset: u64, len: u32) -> Option<u64> {
        let end = offset.checked_add(u64::from(len))?;
        if end > self.len {
            return None;
        }
        if self.count == 1 {
            return Some(0);
        }
        let piece = (offset / self.stride).min(self.count - 1);
        (end <= self.range(piece).end).then_some(piece)
    }

    /// Bytes of the region.
    #[must_use]
    pub fn region_len(&self) -> u64 {
        self.len
    }
}

/// What the address in an op to a peer's memory counts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addressing {
    /// The peer's address space: `FI_MR_VIRT_ADDR` is set.
    Virtual,
    /// The beginning of the registration.
    Offset,
}

/// How a region is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionKey {
    /// What addresses count from.
    pub addressing: Addressing,
    /// Its registrations on each rail.
    pub pieces: Pieces,
    rails: RailSet,
    /// Of the rails in ascending order, each with a key for every piece.
    keys: Vec<u64>,
    /// Where each rail's keys begin; [`ABSENT`] for those on which it is not registered.
    starts: [u16; RAILS_MAX],
}

const ABSENT: u16 = u16::MAX;
const _: () = assert!(KEYS_MAX < ABSENT as usize);

fn starts(rails: RailSet, pieces: &Pieces) -> [u16; RAILS_MAX] {
    let mut starts = [ABSENT; RAILS_MAX];
    for (before, rail) in rails.below(RAILS_MAX).enumerate() {
        // Below `ABSENT`: whoever makes a key has counted.
        starts[rail] = u16::try_from(before as u64 * pieces.count()).unwrap_or(ABSENT);
    }
    starts
}

/// Where an op goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteSlice {
    /// The provider's address of its first byte.
    pub address: u64,
    /// The provider's key.
    pub key: u64,
}

/// A region has too many registrations for one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyTooLong {
    /// Rails.
    pub rails: usize,
    /// Registrations on each.
    pub pieces: u64,
    /// Bytes that the key would have, at least.
    pub bytes: u64,
}

impl fmt::Display for KeyTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rails, pieces, bytes } = self;
        write!(
            f,
            "{pieces} registrations on each of {rails} rails need a key of {bytes} bytes, and {KEY_BYTES_MAX} are the \
             limit: register less at once, on fewer rails, or in longer pieces (region_chunk_bytes)"
        )
    }
}

impl std::error::Error for KeyTooLong {}

impl RegionKey {
    /// The key of a region: `keys` of its rails in ascending order, each with one for every piece.
    ///
    /// # Panics
    /// When the number of keys is not that of rails times pieces, or more than [`RegionKey::check`] allows.
    #[must_use]
    pub fn new(addressing: Addressing, pieces: Pieces, rails: RailSet, keys: Vec<u64>) -> Self {
        let count = rails.bits().count_ones() as usize * pieces.count() as usize;
        assert_eq!(keys.len(), count, "a key for every piece on every rail");
        assert!(count < ABSENT.into(), "no more than `check` allows");
        Self { addressing, pieces, rails, keys, starts: starts(rails, &pieces) }
    }

    /// Whether a region of so many pieces could have a key, before anything is registered: keys of `key_bytes` each.
    ///
    /// # Errors
    /// [`KeyTooLong`].
    pub fn check(pieces: &Pieces, rails: usize, key_bytes: usize) -> Result<(), KeyTooLong> {
        let count = pieces.count().saturating_mul(rails as u64);
        let bytes = count.saturating_mul(key_bytes.clamp(1, 8) as u64).saturating_add(HEAD_BYTES_MAX as u64);
        if count <= KEYS_MAX as u64 && bytes <= KEY_BYTES_MAX as u64 {
            return Ok(());
        }
        Err(KeyTooLong { rails, pieces: pieces.count(), bytes })
    }

    /// The rails on which it is registered.
    #[must_use]
    pub fn rails(&self) -> RailSet {
        self.rails
    }

    /// The provider's key of a piece on a rail.
    #[inline]
    #[must_use]
    pub fn key(&self, rail: usize, piece: u64) -> Option<u64> {
        let start = *self.starts.get(rail)?;
        if start == ABSENT || piece >= self.pieces.count() {
            return None;
        }
        self.keys.get(usize::from(start) + piece as usize).copied()
    }

    /// Where an op on a rail goes, `base` being the region's address at its owner. `None` when it lies outside the
    /// region, or the region is not registered on that rail.
    #[inline]
    #[must_use]
    pub fn slice(&self, rail: usize, base: u64, offset: u64, len: u32) -> Option<RemoteSlice> {
        let piece = self.pieces.of(offset, len)?;
        let key = self.key(rail, piece)?;
        let address = match self.addressing {
            Addressing::Virtual => base.checked_add(offset)?,
            Addressing::Offset => offset - self.pieces.range(piece).start,
        };
        Some(RemoteSlice { address, key })
    }

    /// Appends the key.
    ///
    /// # Errors
    /// [`KeyTooLong`]; nothing is appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), KeyTooLong> {
        let start = out.len();
        let mut to = Writer(out);
        let flags = match self.addressing {
            Addressing::Virtual => VIRTUAL,
            Addressing::Offset => 0,
        };
        // Keys of devices are random numbers of four bytes, an application's own count up: each has its shorter form.
        let width = self.keys.iter().map(|key| key_bytes(*key)).max().unwrap_or(1);
        let mut steps = Vec::new();
        column::write(&mut Writer(&mut steps), self.keys.iter().copied());
        let columns = steps.len() < width * self.keys.len();
        to.u8(VERSION << 4 | flags | if columns { COLUMN } else { 0 });
        to.varint(self.rails.bits());
        let whole = self.pieces.count == 1;
        to.varint(if whole { 0 } else { self.pieces.stride });
        if !whole {
            to.varint(self.pieces.overlap);
        }
        if columns {
            to.0.extend_from_slice(&steps);
        } else {
            to.u8(width as u8);
            self.keys.iter().for_each(|key| to.0.extend_from_slice(&key.to_le_bytes()[..width]));
        }
        let bytes = out.len() - start;
        if bytes <= KEY_BYTES_MAX && self.keys.len() <= KEYS_MAX {
            return Ok(());
        }
        out.truncate(start);
        let rails = self.rails.bits().count_ones() as usize;
        Err(KeyTooLong { rails, pieces: self.pieces.count(), bytes: bytes as u64 })
    }

    /// Reads the key of a peer's region of `len` bytes; the peer has `rails` rails.
    ///
    /// # Errors
    /// [`PeerError::Malformed`] that names the field.
    pub fn decode(bytes: &[u8], rails: usize, len: u64) -> Result<Self, PeerError> {
        Self::read(bytes, rails, len).map_err(|error| match error {
            DecodeError::Version { found, expected } => PeerError::Unreachable(format!(
                "the peer speaks version {found} of the libfabric transport's format, this is version {expected}"
            )),
            error => PeerError::Malformed(format!("ofi key of {} bytes: {error}", bytes.len())),
        })
    }

    fn read(bytes: &[u8], rails: usize, len: u64) -> Result<Self, DecodeError> {
        if bytes.len() > KEY_BYTES_MAX {
            let (found, limit) = (bytes.len() as u64, KEY_BYTES_MAX as u64);
            return Err(DecodeError::TooLarge { field: "key", found, limit });
        }
        let invalid = |field| DecodeError::Invalid { field };
        let mut from = Reader::new(bytes);
        let head = from.u8("key's version")?;
        if head >> 4 != VERSION {
            return Err(DecodeError::Version { found: head >> 4, expected: VERSION });
        }
        if head & 0xf & !(VIRTUAL | COLUMN) != 0 {
            return Err(invalid("key's flags"));
        }
        let addressing = if head & VIRTUAL == 0 { Addressing::Offset } else { Addressing::Virtual };
        let set = from.varint("key's rails")?;
        let known = if rails >= RAILS_MAX { u64::MAX } else { (1 << rails) - 1 };
        if set == 0 || set & !known != 0 {
            return Err(invalid("key's rails"));
        }
        let stride = from.varint("key's stride")?;
        let overlap = if stride == 0 { 0 } else { from.varint("key's overlap")? };
        let pieces = match stride {
            0 if len == 0 => return Err(invalid("region's length")),
            0 => Pieces::whole(len),
            _ => Pieces::with(len, stride, overlap).ok_or(invalid("key's stride"))?,
        };
        let count = pieces.count().saturating_mul(u64::from(set.count_ones()));
        if count > KEYS_MAX as u64 {
            return Err(DecodeError::TooLarge {
                field: "key's registrations",
                found: count,
                limit: KEYS_MAX as u64,
            });
        }
        let keys = if head & COLUMN == 0 {
            let width = usize::from(from.u8("key's width")?);
            if !(1..=8).contains(&width) {
                return Err(invalid("key's width"));
            }
            let raw = from.take(width * count as usize, "keys")?;
            let value = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            raw.chunks_exact(width).map(value).collect()
        } else {
            column::read(&mut from, count as usize, "keys")?
        };
        from.finish()?;
        let rails = RailSet::from_bits(set);
        Ok(Self { addressing, pieces, rails, keys, starts: starts(rails, &pieces) })
    }
}

const VIRTUAL: u8 = 1;
const COLUMN: u8 = 2;
/// Version and flags, rails, stride, overlap, width.
const HEAD_BYTES_MAX: usize = 1 + 10 + 10 + 10 + 1;

const _: () = assert!(VERSION < 16, "a key's version has four bits");
const _: () =
    assert!(HEAD_BYTES_MAX + 32 * 31 * 4 <= KEY_BYTES_MAX, "31 pieces on 32 rails with EFA's keys fit");
const _: () =
    assert!(HEAD_BYTES_MAX + RAILS_MAX * 7 * 8 <= KEY_BYTES_MAX, "7 pieces on 64 rails with any keys fit");

/// Bytes that a key needs.
fn key_bytes(key: u64) -> usize {
    (8 - key.leading_zeros() as usize / 8).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    prop_compose! {
        fn pieces()(len in 1u64..1 << 40, op in 1u32..64 << 20, factor in 2u64..50) -> Pieces {
            // Few enough pieces that their keys fit.
            let piece = (len / factor).max(2 * u64::from(op));
            Pieces::cut(len, piece, op).unwrap()
        }
    }

    prop_compose! {
        fn key()(pieces in pieces(), rails in 1u64.., seed: u64, counts: bool, narrow: bool, offset: bool) -> RegionKey {
            let rails = if narrow { rails & 0xff | 1 } else { rails };
            let count = u64::from(rails.count_ones()) * pieces.count();
            let mixed = |i: u64| seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> if narrow { 32 } else { 0 };
            let keys = (0..count).map(|i| if counts { seed.wrapping_add(i) } else { mixed(i) }).collect();
            let addressing = if offset { Addressing::Offset } else { Addressing::Virtual };
            RegionKey::new(addressing, pieces, RailSet::from_bits(rails), keys)
        }
    }

    proptest! {
        #[test]
        fn every_op_lies_within_one_piece(pieces in pieces(), op in 1u32..64 << 20, at: u64, edge in 0u64..100) {
            let overlap = if pieces.overlap == 0 { pieces.len.min(u64::from(u32::MAX)) } else { pieces.overlap };
            let op = u64::from(op).min(overlap).min(pieces.len);
            let room = pieces.len - op;
            // Anywhere, and around the ends of pieces.
            for offset in [at % (room + 1), (at % pieces.count() * pieces.stride).saturating_sub(edge).min(room), room] {
                let piece = pieces.of(offset, op as u32).unwrap();
                let range = pieces.range(piece);
                prop_assert!(range.start <= offset && offset + op <= range.end, "{offset}+{op} in {range:?}");
            }
            prop_assert_eq!(pieces.of(room + 1, op as u32), None);
            prop_assert_eq!(pieces.of(u64::MAX, op as u32), None);
        }

        #[test]
        fn pieces_cover_the_region_and_stay_within_it(pieces in pieces()) {
            prop_assert_eq!(pieces.range(0).start, 0);
            prop_assert_eq!(pieces.range(pieces.count() - 1).end, pieces.len);
            for piece in 1..pieces.count() {
                let (before, this) = (pieces.range(piece - 1), pieces.range(piece));
                prop_assert!(before.end - this.start >= pieces.overlap && before.end < pieces.len && !this.is_empty());
            }
        }

        #[test]
        fn a_key_survives_the_wire_and_no_prefix_does(key in key()) {
            let mut bytes = Vec::new();
            if let Err(error) = key.encode(&mut bytes) {
                prop_assert!(bytes.is_empty() && error.bytes > KEY_BYTES_MAX as u64);
                return Ok(());
            }
            prop_assert!(bytes.len() <= KEY_BYTES_MAX);
            for cut in (0..bytes.len()).step_by(7) {
                prop_assert!(RegionKey::decode(&bytes[..cut], 64, key.pieces.len).is_err());
            }
            prop_assert_eq!(RegionKey::decode(&bytes, 64, key.pieces.len), Ok(key));
        }

        #[test]
        fn any_bytes_are_a_key_or_an_error(tail: Vec<u8>, flags in 0u8..16, rails in 1usize..=64, len: u64) {
            let bytes = [&[VERSION << 4 | flags][..], &tail].concat();
            if let Ok(key) = RegionKey::decode(&bytes, rails, len) {
                prop_assert!(key.rails().below(rails).count() == key.rails().bits().count_ones() as usize);
                for rail in 0..64 {
                    for offset in [0, len / 2, len - 1] {
                        prop_assert_eq!(key.slice(rail, 0, offset, 1).is_some(), key.rails().contains(rail));
                    }
                    prop_assert_eq!(key.slice(rail, 0, len, 1), None);
                }
                let mut again = Vec::new();
                if key.encode(&mut again).is_ok() {
                    prop_assert_eq!(RegionKey::decode(&again, rails, len), Ok(key));
                }
            }
        }
    }

    #[test]
    fn a_rail_finds_its_own_key_and_no_others() {
        let pieces = Pieces::cut(100 * MIB, 64 * MIB, 1 << 20).unwrap();
        assert_eq!(pieces.count(), 2);
        let rails = RailSet::NONE.with(3).with(63);
        let key = RegionKey::new(Addressing::Virtual, pieces, rails, vec![30, 31, 630, 631]);
        assert_eq!(key.slice(3, 0x1000, 0, 8), Some(RemoteSlice { address: 0x1000, key: 30 }));
        assert_eq!(key.slice(63, 0x1000, 99 * MIB, 8).unwrap().key, 631);
        assert_eq!(key.slice(4, 0x1000, 0, 8), None);
        assert_eq!(key.slice(3, 0x1000, 100 * MIB, 1), None);
        // Where addresses are offsets, they count from the piece.
        let offset = RegionKey { addressing: Addressing::Offset, ..key };
        assert_eq!(offset.slice(63, 0x1000, 99 * MIB, 8).unwrap().address, 36 * MIB);
    }

    #[test]
    fn a_region_on_32_efa_rails_takes_a_small_key_and_too_many_pieces_are_refused_before_registering() {
        let rails = RailSet::from_bits(u32::MAX.into());
        let whole = Pieces::cut(8 * MIB, 64 * MIB, 1 << 20).unwrap();
        let keys = (0..32u64).map(|rail| (rail * 0x3779_7b91) & 0xffff_ffff).collect();
        let mut bytes = Vec::new();
        RegionKey::new(Addressing::Virtual, whole, rails, keys).encode(&mut bytes).unwrap();
        assert!(bytes.len() <= 32 * 4 + 9, "{} bytes", bytes.len());
        let many = Pieces::cut(1 << 40, 1 << 30, 1 << 20).unwrap();
        let error = RegionKey::check(&many, 32, 4).unwrap_err();
        assert_eq!((error.rails, error.pieces), (32, 1_025));
        assert!(error.to_string().contains("region_chunk_bytes"));
        assert_eq!(RegionKey::check(&Pieces::cut(30 << 30, 1 << 30, 1 << 20).unwrap(), 32, 4), Ok(()));
    }

    #[test]
    fn a_key_for_rails_that_the_peer_does_not_have_is_refused() {
        let pieces = Pieces::cut(100, 1000, 10).unwrap();
        let mut bytes = Vec::new();
        RegionKey::new(Addressing::Virtual, pieces, RailSet::NONE.with(4), vec![9])
            .encode(&mut bytes)
            .unwrap();
        assert!(RegionKey::decode(&bytes, 5, 100).is_ok());
        let error = RegionKey::decode(&bytes, 4, 100).unwrap_err().to_string();
        assert!(error.contains("`key's rails`"), "{error}");
    }

    #[test]
    fn pieces_with_no_room_beside_the_overlap_are_none() {
        assert_eq!(Pieces::cut(100, 10, 10), None);
        assert_eq!(Pieces::cut(100, 10, 6), None);
        assert_eq!(Pieces::cut(0, 10, 5), None);
        assert_eq!(Pieces::cut(100, 10, 5).map(|p| p.count()), Some(19));
    }
}
