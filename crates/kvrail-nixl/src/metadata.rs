//! An agent's metadata: kvrail's own, and what NIXL's callers name memory by besides (kind and device).
//!
//! Little-endian: magic `KVRN`, version 1, flags (bit 0: with connection information), backends; the number of classes as u32, per class the number of
//! regions as u32, kind, backends, device as u64; then kvrail's metadata, which is empty when there is nothing to say; last the
//! checksum of all before as u64. Classes run along the regions of kvrail's metadata, so that ten thousand tensors of one GPU take 14 bytes.

use kvrail_core::wire::checksum;
use kvrail_core::wire::metadata::Metadata;

use crate::backend::BackendSet;
use crate::error::{Error, Result, Status};
use crate::list::MemoryKind;

const MAGIC: &[u8; 4] = b"KVRN";
const VERSION: u8 = 1;
const WITH_CONNECTION: u8 = 1;
const HEAD_BYTES: usize = 11;
const CLASS_BYTES: usize = 14;
const SUM_BYTES: usize = 8;

/// What callers name a region by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Class {
    pub(crate) kind: MemoryKind,
    pub(crate) backends: BackendSet,
    pub(crate) device: u64,
}

/// Metadata that was read.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) with_connection: bool,
    pub(crate) backends: BackendSet,
    /// One for each region, in order.
    pub(crate) classes: Vec<Class>,
    /// kvrail's.
    pub(crate) own: Metadata,
    /// The same as bytes.
    pub(crate) own_bytes: &'a [u8],
}

/// Writes metadata; `classes` are those of the regions of `own`, in order.
pub(crate) fn encode(with_connection: bool, backends: BackendSet, classes: &[Class], own: &[u8]) -> Vec<u8> {
    let mut runs: Vec<(u32, Class)> = Vec::new();
    for class in classes {
        match runs.last_mut() {
            Some((count, last)) if last == class => *count += 1,
            _ => runs.push((1, *class)),
        }
    }
    let mut bytes = Vec::with_capacity(HEAD_BYTES + runs.len() * CLASS_BYTES + own.len() + SUM_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[VERSION, if with_connection { WITH_CONNECTION } else { 0 }, backends.bits()]);
    bytes.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    for (count, class) in runs {
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[class.kind as u8, class.backends.bits()]);
        bytes.extend_from_slice(&class.device.to_le_bytes());
    }
    bytes.extend_from_slice(own);
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn mismatch(what: impl Into<String>) -> Error {
    Error::new(Status::Mismatch, what)
}

/// Reads metadata, which is input from outside.
///
/// # Errors
/// [`Status::Mismatch`].
pub(crate) fn decode(bytes: &[u8]) -> Result<Parsed<'_>> {
    let damaged = |what: &str| mismatch(format!("cannot read the metadata ({} bytes): {what}", bytes.len()));
    if bytes.starts_with(b"nixlSerDes|") {
        return Err(mismatch("this is metadata of NIXL's own library; kvrail reaches kvrail only").hint(
            "install kvrail-nixl on both sides: its wire format and NIXL's backends are different things",
        ));
    }
    if !bytes.starts_with(MAGIC) {
        return Err(damaged("it is no kvrail agent's metadata"));
    }
    let (body, sum) = bytes.split_last_chunk::<SUM_BYTES>().ok_or_else(|| damaged("it ends too early"))?;
    let head = body.get(..HEAD_BYTES).ok_or_else(|| damaged("it ends too early"))?;
    let [_, _, _, _, version, flags, backends, count @ ..] = head else {
        return Err(damaged("it ends too early"));
    };
    if *version != VERSION {
        return Err(mismatch(format!(
            "metadata of format version {version}; this kvrail reads version {VERSION}"
        ))
        .hint("run the same kvrail on both sides"));
    }
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(damaged("the checksum does not match, the bytes were damaged on the way"));
    }
    let backends = BackendSet::from_bits(*backends).ok_or_else(|| damaged("an unknown backend"))?;
    let count = u32::from_le_bytes(count.try_into().map_err(|_| damaged("it ends too early"))?) as usize;
    let rest = &body[HEAD_BYTES..];
    if count > rest.len() / CLASS_BYTES {
        return Err(damaged("more classes are announced than there are bytes for"));
    }
    let (runs, own_bytes) = rest.split_at(count * CLASS_BYTES);
    let own = Metadata::decode(own_bytes)
        .map_err(|error| mismatch(format!("cannot read the metadata: {error}")))?;
    let mut classes = Vec::with_capacity(own.regions.len());
    for run in runs.chunks_exact(CLASS_BYTES) {
        let (count, rest) = run.split_first_chunk::<4>().expect("chunks are longer");
        let (&[kind, backends], rest) = rest.split_first_chunk::<2>().expect("chunks are longer");
        let (device, _) = rest.split_first_chunk::<8>().expect("chunks are longer");
        let kind = MemoryKind::of(kind.into()).ok_or_else(|| damaged("an unknown kind of memory"))?;
        let backends = BackendSet::from_bits(backends).ok_or_else(|| damaged("an unknown backend"))?;
        let class = Class { kind, backends, device: u64::from_le_bytes(*device) };
        let count = u32::from_le_bytes(*count) as usize;
        if count > own.regions.len() - classes.len() {
            return Err(damaged("there are more classes than regions"));
        }
        classes.resize(classes.len() + count, class);
    }
    if classes.len() != own.regions.len() {
        return Err(damaged("there are fewer classes than regions"));
    }
    Ok(Parsed { with_connection: flags & WITH_CONNECTION != 0, backends, classes, own, own_bytes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::BackendKind;

    fn sample(regions: usize) -> (Vec<Class>, Vec<u8>) {
        let agent = kvrail::Agent::builder("metadata-test")
            .ignore_environment()
            .transports([kvrail::TransportConfig::shm()])
            .build()
            .unwrap();
        let memory = kvrail::Memory::private(regions.max(1) * 4096).unwrap();
        let slices = (0..regions).map(|i| memory.slice(i * 4096, 4096).unwrap()).collect();
        let regions = agent.register_many(slices).unwrap();
        let class =
            |device| Class { kind: MemoryKind::Dram, backends: BackendSet::of(BackendKind::Ucx), device };
        (
            regions.iter().enumerate().map(|(i, _)| class((i / 100) as u64)).collect(),
            agent.metadata().unwrap(),
        )
    }

    #[test]
    fn metadata_comes_back_as_it_was_and_a_damaged_byte_is_an_error() {
        let (classes, own) = sample(250);
        let backends = BackendSet::of(BackendKind::Ucx);
        let bytes = encode(true, backends, &classes, &own);
        assert!(bytes.len() < own.len() + 100, "{} bytes for {}", bytes.len(), own.len());
        let parsed = decode(&bytes).unwrap();
        assert_eq!((parsed.with_connection, parsed.backends), (true, backends));
        assert_eq!(parsed.classes, classes);
        assert_eq!(parsed.own_bytes, own);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(decode(&bytes).unwrap_err().status, Status::Mismatch, "byte {at}");
            assert_eq!(decode(&bytes[..at]).unwrap_err().status, Status::Mismatch, "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_with_a_good_checksum_end_in_metadata_or_an_error(tail: Vec<u8>, backends: u8, count in 0..5u32) {
            let mut bytes = [&b"KVRN\x01\x01"[..], &[backends], &count.to_le_bytes(), &tail].concat();
            bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
            let _ = decode(&bytes);
        }
    }
}
