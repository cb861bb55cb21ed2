//! An agent's public metadata: who it is, how each of its transports is reached, and its regions (KR-12).
//!
//! Whole or partial: a partial export has the same form with fewer regions; importing it adds to what is known.
//! Columns are run-length encoded ([`super::column`]), so that 10,000 regular regions take a few hundred bytes and
//! irregular ones well under 16 bytes each.

use alloc::string::String;
use alloc::vec::Vec;

use super::{DecodeError, Reader, VERSION, Writer, checksum, column};
use crate::id::{Generation, Incarnation, RegionId};
use crate::limits::{ADDRESS_BYTES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX, RAILS_MAX, REGIONS_MAX};
use crate::transport::{Device, RailInfo, RegionInfo, Transport};

const MAGIC: [u8; 4] = *b"KVRM";
const TRANSPORTS_MAX: usize = 16;
const KEY_BYTES_MAX: usize = 4096;

/// What a peer must know of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// The agent's name.
    pub name: String,
    /// Its life (KR-11).
    pub incarnation: Incarnation,
    /// In the agent's order of preference.
    pub transports: Vec<TransportMetadata>,
    /// Regions, whole or partial.
    pub regions: Vec<RegionInfo>,
}

/// How one transport of an agent is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransportMetadata {
    /// [`crate::transport::Caps::name`].
    pub name: String,
    /// [`crate::transport::Transport::address`].
    pub address: Vec<u8>,
    /// Its rails.
    pub rails: Vec<RailInfo>,
    /// A key for each of [`Metadata::regions`], in the same order.
    pub keys: Keys,
}

impl TransportMetadata {
    /// What a transport tells peers of itself and of regions that are registered with it.
    #[must_use]
    pub fn of(transport: &dyn Transport, regions: &[RegionInfo]) -> Self {
        let (mut address, mut keys) = (Vec::new(), Keys::default());
        transport.address(&mut address);
        for region in regions {
            keys.push_with(|out| transport.region_key(region.id, out));
        }
        Self { name: transport.caps().name.into(), address, rails: transport.rails().to_vec(), keys }
    }
}

/// Byte strings, one per region, in one allocation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keys {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Keys {
    /// Appends the key that `write` appends to the vector it is given.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    /// The key of region `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        self.bytes.get(start..end)
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn lens(&self) -> impl Iterator<Item = u64> {
        let starts = core::iter::once(0).chain(self.ends.iter().copied());
        self.ends.iter().zip(starts).map(|(end, start)| u64::from(end - start))
    }
}

impl Metadata {
    /// Writes the metadata.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256 + self.regions.len() * 8);
        bytes.extend_from_slice(&MAGIC);
        let mut out = Writer(&mut bytes);
        out.u8(VERSION);
        out.bytes(self.name.as_bytes());
        out.u64(self.incarnation.0);
        out.varint(self.regions.len() as u64);
        let regions = || self.regions.iter();
        column::write(&mut out, regions().map(|r| u64::from(r.id.0)));
        column::write(&mut out, regions().map(|r| u64::from(r.generation.0)));
        column::write(&mut out, regions().map(|r| r.base));
        column::write(&mut out, regions().map(|r| r.len));
        column::write(&mut out, regions().map(|r| device_code(r.device)));
        out.varint(self.transports.len() as u64);
        for transport in &self.transports {
            out.bytes(transport.name.as_bytes());
            out.bytes(&transport.address);
            write_rails(&mut out, &transport.rails);
            column::write(&mut out, transport.keys.lens());
            out.bytes(&transport.keys.bytes);
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads metadata.
    ///
    /// # Errors
    /// [`DecodeError`]: input from outside.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > METADATA_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                field: "metadata",
                found: bytes.len() as u64,
                limit: METADATA_BYTES_MAX as u64,
            });
        }
        let mut from = Reader::new(bytes);
        from.preamble(&MAGIC, VERSION)?;
        let (body, sum) =
            bytes.split_last_chunk::<8>().ok_or(DecodeError::Truncated { field: "checksum" })?;
        if checksum(body) != u64::from_le_bytes(*sum) {
            return Err(DecodeError::Checksum);
        }
        let mut from = Reader::new(&body[5..]);
        let name = read_name(&mut from, "name")?;
        let incarnation = Incarnation(from.u64("incarnation")?);
        let regions = read_regions(&mut from)?;
        let count = from.bounded(TRANSPORTS_MAX, "transports")?;
        let mut transports = Vec::with_capacity(count);
        for _ in 0..count {
            transports.push(TransportMetadata {
                name: read_name(&mut from, "transport name")?,
                address: from.bytes(ADDRESS_BYTES_MAX, "transport address")?.to_vec(),
                rails: read_rails(&mut from)?,
                keys: read_keys(&mut from, regions.len())?,
            });
        }
        from.finish()?;
        Ok(Self { name, incarnation, transports, regions })
    }
}

fn device_code(device: Device) -> u64 {
    match device {
        Device::Host => 0,
        Device::Cuda(n) => 1 + u64::from(n),
    }
}

fn device_from(code: u64) -> Result<Device, DecodeError> {
    match code {
        0 => Ok(Device::Host),
        n => u16::try_from(n - 1)
            .map(Device::Cuda)
            .map_err(|_| DecodeError::Invalid { field: "region device" }),
    }
}

fn read_name(from: &mut Reader<'_>, field: &'static str) -> Result<String, DecodeError> {
    let name = from.string(NAME_BYTES_MAX, field)?;
    if name.is_empty() { Err(DecodeError::Invalid { field }) } else { Ok(name) }
}

fn read_regions(from: &mut Reader<'_>) -> Result<Vec<RegionInfo>, DecodeError> {
    let count = from.bounded(REGIONS_MAX, "regions")?;
    let ids = column::read(from, count, "region ids")?;
    let generations = column::read(from, count, "region generations")?;
    let bases = column::read(from, count, "region bases")?;
    let lens = column::read(from, count, "region lengths")?;
    let devices = column::read(from, count, "region devices")?;
    let mut regions = Vec::with_capacity(count);
    for i in 0..count {
        let id = u32::try_from(ids[i]).ok().filter(|&id| (id as usize) < REGIONS_MAX);
        let generation = u32::try_from(generations[i]).ok().filter(|&g| g != 0);
        let (Some(id), Some(generation)) = (id, generation) else {
            return Err(DecodeError::Invalid { field: "region id" });
        };
        if lens[i] == 0 || bases[i].checked_add(lens[i]).is_none() {
            return Err(DecodeError::Invalid { field: "region length" });
        }
        regions.push(RegionInfo {
            id: RegionId(id),
            generation: Generation(generation),
            base: bases[i],
            len: lens[i],
            device: device_from(devices[i])?,
        });
    }
    Ok(regions)
}

fn read_keys(from: &mut Reader<'_>, count: usize) -> Result<Keys, DecodeError> {
    let lens = column::read(from, count, "key lengths")?;
    let bytes = from.bytes(METADATA_BYTES_MAX, "keys")?;
    let mut end = 0u64;
    let mut ends = Vec::with_capacity(count);
    for len in lens {
        if len > KEY_BYTES_MAX as u64 {
            return Err(DecodeError::TooLarge {
                field: "key length",
                found: len,
                limit: KEY_BYTES_MAX as u64,
            });
        }
        end += len;
        if end > bytes.len() as u64 {
            return Err(DecodeError::Truncated { field: "keys" });
        }
        ends.push(end as u32);
    }
    if end != bytes.len() as u64 {
        return Err(DecodeError::Invalid { field: "keys" });
    }
    Ok(Keys { bytes: bytes.to_vec(), ends })
}

fn write_rails(out: &mut Writer<'_>, rails: &[RailInfo]) {
    out.varint(rails.len() as u64);
    for rail in rails {
        let fits = |end: &usize| rail.name.is_char_boundary(*end);
        let end = (0..=rail.name.len().min(RAIL_NAME_BYTES_MAX)).rev().find(fits).unwrap_or(0);
        out.bytes(&rail.name.as_bytes()[..end]);
        out.varint(rail.rate_bps);
    }
}

/// Longer device names are cut: they are for people.
const RAIL_NAME_BYTES_MAX: usize = 64;

fn read_rails(from: &mut Reader<'_>) -> Result<Vec<RailInfo>, DecodeError> {
    let count = from.bounded(RAILS_MAX, "rails")?;
    if count == 0 {
        return Err(DecodeError::Invalid { field: "rails" });
    }
    let mut rails = Vec::with_capacity(count);
    for _ in 0..count {
        let name = from.string(RAIL_NAME_BYTES_MAX, "rail name")?;
        rails.push(RailInfo { name, rate_bps: from.varint("rail rate")? });
    }
    Ok(rails)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
    use proptest::prelude::*;

    prop_compose! {
        fn regions()(raw in prop::collection::vec((0u32..1 << 20, 1u32.., any::<u32>(), 1u64..1 << 40, 0u64..9), 0..50)) -> Vec<RegionInfo> {
            raw.into_iter().map(|(id, generation, base, len, device)| RegionInfo {
                id: RegionId(id), generation: Generation(generation), base: u64::from(base) << 12, len,
                device: device_from(device).unwrap(),
            }).collect()
        }
    }

    prop_compose! {
        fn metadata()(regions in regions(), name in "[a-z]{1,20}", incarnation: u64,
                rails in prop::collection::vec(("[a-z0-9]{0,10}", any::<u64>()), 1..5), key in prop::collection::vec(any::<u8>(), 0..9),
                address: Vec<u8>) -> Metadata {
            let mut keys = Keys::default();
            for i in 0..regions.len() { keys.push_with(|out| out.extend_from_slice(&key[..key.len().min(i % 9)])); }
            let rails = rails.into_iter().map(|(name, rate_bps)| RailInfo { name, rate_bps }).collect();
            Metadata { name, incarnation: Incarnation(incarnation), regions,
                transports: alloc::vec![TransportMetadata { name: "tcp".to_string(), address, rails, keys }] }
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = sample(3).encode();
        bytes[4] = 9;
        assert_eq!(
            Metadata::decode(&bytes).unwrap_err().to_string(),
            "written in format version 9; this program reads version 1"
        );
    }

    #[test]
    fn ten_thousand_irregular_regions_fit_in_160_kb() {
        let bytes = sample(10_000).encode();
        assert!(bytes.len() <= 160_000, "{} bytes", bytes.len());
        assert_eq!(Metadata::decode(&bytes).unwrap(), sample(10_000));
    }

    fn sample(regions: u64) -> Metadata {
        let regions: Vec<_> = (0..regions)
            .map(|i| RegionInfo {
                id: RegionId(i as u32),
                generation: Generation(1),
                base: 0x7f12_3456_0000 + i * 139_264 + (i * 7919 % 61) * 4096,
                len: 65_536 + (i % 5) * 4096,
                device: Device::Host,
            })
            .collect();
        let mut keys = Keys::default();
        regions.iter().for_each(|r| keys.push_with(|out| out.extend_from_slice(&r.base.to_le_bytes()[..3])));
        let transports = ["shm", "tcp"].map(|name| TransportMetadata {
            name: name.to_string(),
            address: alloc::vec![7; 40],
            rails: alloc::vec![RailInfo { name: format!("{name}0"), rate_bps: 0 }],
            keys: keys.clone(),
        });
        let name = "prefill-0".to_string();
        Metadata { name, incarnation: Incarnation(5), transports: transports.to_vec(), regions }
    }

    #[test]
    fn a_long_rail_name_is_cut_between_characters() {
        let mut metadata = sample(1);
        metadata.transports[0].rails[0].name = "é".repeat(40) + "x";
        metadata.transports[1].rails[0].name = "x".to_string() + &"é".repeat(40);
        let read = Metadata::decode(&metadata.encode()).unwrap();
        assert_eq!(read.transports[0].rails[0].name, "é".repeat(32));
        assert_eq!(read.transports[1].rails[0].name, "x".to_string() + &"é".repeat(31));
        assert_eq!(Metadata::decode(&read.encode()).unwrap(), read);
    }

    proptest! {
        #[test]
        fn metadata_comes_back(metadata in metadata()) {
            prop_assert_eq!(Metadata::decode(&metadata.encode()).unwrap(), metadata);
        }

        #[test]
        fn damaged_metadata_is_refused(metadata in metadata(), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = metadata.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Metadata::decode(&bytes).is_err());
        }

        #[test]
        fn cut_metadata_is_refused(metadata in metadata(), at: prop::sample::Index) {
            let bytes = metadata.encode();
            prop_assert!(Metadata::decode(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn hostile_bytes_with_a_good_checksum_end_in_metadata_or_an_error(tail: Vec<u8>) {
            let mut bytes = [&MAGIC[..], &[VERSION], &tail].concat();
            let sum = checksum(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            let _ = Metadata::decode(&bytes);
        }
    }
}
