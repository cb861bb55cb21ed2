//! The bytes by which peers reach this transport: who it is, and where each of its rails is.
//!
//! A rail is found by its endpoint of messages, over which transports tell each other where those of one-sided ops are. It
//! stays while its transport lives, with the exceptions of `control.rs`: then its epoch counts up, and [`Address::merge`] takes
//! each rail's newest whatever the order in which addresses come.
//!
//! An agent of [`RAILS_MAX`] EFA rails has to fit [`ADDRESS_BYTES_MAX`]. Rails of one host resemble each other (EFA's GIDs
//! differ in a few bytes), so an endpoint of the same length as the one before is written as the bytes that differ.

use std::fmt;

use kvrail_core::limits::{ADDRESS_BYTES_MAX, RAILS_MAX};
use kvrail_core::transport::PeerError;
use kvrail_core::wire::{DecodeError, Reader, Writer};

use super::config::PROVIDER_BYTES_MAX;

const MAGIC: [u8; 4] = *b"KVRo";
/// Version of the address, of region keys and of fragments together.
pub const VERSION: u8 = 2;

/// Longest endpoint name (what `fi_getname` gives), bytes. EFA's has 32, an IPv6 socket's 28.
pub const ENDPOINT_BYTES_MAX: usize = 256;
/// An EFA endpoint's, bytes.
const EFA_ENDPOINT_BYTES: usize = 32;
/// Longest name of a NIC on the wire, bytes, as Linux has it for interfaces: longer ones are cut, they are for people.
pub const NIC_BYTES_MAX: usize = 15;
/// Largest rate on the wire, Mb/s: four bytes of seven bits.
const RATE_MBPS_MAX: u64 = (1 << 28) - 1;
/// NUMA node on the wire when it is unknown, or too large.
const NUMA_UNKNOWN: u8 = u8::MAX;

const HEAD_BYTES_MAX: usize = 4 + 1 + (1 + PROVIDER_BYTES_MAX) + 5 + 16 + 1 + 1;
const EFA_RAIL_BYTES_MAX: usize =
    (1 + NIC_BYTES_MAX) + 5 + 4 + 1 + (1 + EFA_ENDPOINT_BYTES / 8 + EFA_ENDPOINT_BYTES);
const _: () = assert!(
    HEAD_BYTES_MAX + RAILS_MAX * EFA_RAIL_BYTES_MAX <= ADDRESS_BYTES_MAX,
    "as many EFA rails as there can be, with nothing in common, fit an address"
);

/// Where one life of one transport can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Its provider, as in [`super::Provider`]: peers must have the same.
    pub provider: String,
    /// libfabric's format of endpoint names (`FI_ADDR_EFA`, …): peers must have the same.
    pub format: u32,
    /// One life of one transport, chosen at random; fragments of messages carry it.
    pub instance: u128,
    /// Over what its messages go: peers must have the same.
    pub messages: Messages,
    /// Its rails, in the order of their indices; 1 to [`RAILS_MAX`].
    pub rails: Vec<RailAddress>,
}

/// Over what a transport's messages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Messages {
    /// Its own provider.
    Own = 0,
    /// `efa-direct`, under a transport over `efa`.
    EfaDirect = 1,
}

impl fmt::Display for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "of the same provider",
            Self::EfaDirect => "of efa-direct, where a lost message holds back no other",
        })
    }
}

/// Where one rail is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RailAddress {
    /// Its NIC's name, for people; on the wire at most [`NIC_BYTES_MAX`] bytes.
    pub nic: String,
    /// Counts its endpoints of messages: a later one replaces an earlier one.
    pub epoch: u32,
    /// The name of its endpoint of messages, at most [`ENDPOINT_BYTES_MAX`] bytes; empty while it has none.
    pub endpoint: Vec<u8>,
    /// Line rate, bits per second; on the wire whole Mb/s. 0 when unknown.
    pub rate_bps: u64,
    /// NUMA node of its NIC; `None` when unknown.
    pub numa: Option<u8>,
}

/// The rails' endpoints are too long for one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressTooLong {
    /// Rails.
    pub rails: usize,
    /// Bytes that they would take.
    pub bytes: usize,
}

impl fmt::Display for AddressTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rails, bytes } = self;
        write!(
            f,
            "the addresses of {rails} rails take {bytes} bytes; an agent has {ADDRESS_BYTES_MAX} for them"
        )
    }
}

impl std::error::Error for AddressTooLong {}

impl Address {
    /// Appends the address.
    ///
    /// # Errors
    /// [`AddressTooLong`]; nothing is appended then. Never for EFA's endpoints.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), AddressTooLong> {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        let mut to = Writer(out);
        to.u8(VERSION);
        to.bytes(self.provider.as_bytes());
        to.varint(self.format.into());
        to.0.extend_from_slice(&self.instance.to_le_bytes());
        to.u8(self.messages as u8);
        to.u8(self.rails.len() as u8);
        let mut previous: &[u8] = &[];
        for rail in &self.rails {
            to.bytes(nic_on_the_wire(&rail.nic).as_bytes());
            to.varint(rail.epoch.into());
            to.varint((rail.rate_bps / 1_000_000).min(RATE_MBPS_MAX));
            to.u8(rail.numa.unwrap_or(NUMA_UNKNOWN));
            write_endpoint(&mut to, previous, &rail.endpoint);
            previous = &rail.endpoint;
        }
        let bytes = out.len() - start;
        if bytes <= ADDRESS_BYTES_MAX {
            return Ok(());
        }
        out.truncate(start);
        Err(AddressTooLong { rails: self.rails.len(), bytes })
    }

    /// Reads an address.
    ///
    /// # Errors
    /// [`PeerError::Malformed`] that names the field; [`PeerError::Unreachable`] for another version's.
    pub fn decode(bytes: &[u8]) -> Result<Self, PeerError> {
        Self::read(bytes).map_err(|error| match error {
            DecodeError::Version { found, expected } => PeerError::Unreachable(format!(
                "the peer speaks version {found} of the libfabric transport's format, this is version {expected}; \
                 run the same kvrail on both sides"
            )),
            error => PeerError::Malformed(format!("ofi address of {} bytes: {error}", bytes.len())),
        })
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        from.preamble(&MAGIC, VERSION)?;
        if bytes.len() > ADDRESS_BYTES_MAX {
            let (found, limit) = (bytes.len() as u64, ADDRESS_BYTES_MAX as u64);
            return Err(DecodeError::TooLarge { field: "address", found, limit });
        }
        let provider = from.string(PROVIDER_BYTES_MAX, "provider")?;
        if provider.is_empty() || !provider.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(DecodeError::Invalid { field: "provider" });
        }
        let format = from.bounded(u32::MAX as usize, "address format")? as u32;
        let mut instance = [0; 16];
        instance.copy_from_slice(from.take(16, "instance")?);
        let messages = match from.u8("messages' provider")? {
            0 => Messages::Own,
            1 => Messages::EfaDirect,
            _ => return Err(DecodeError::Invalid { field: "messages' provider" }),
        };
        let count = usize::from(from.u8("rails")?);
        if !(1..=RAILS_MAX).contains(&count) {
            return Err(DecodeError::Invalid { field: "rails" });
        }
        let mut rails: Vec<RailAddress> = Vec::with_capacity(count);
        for _ in 0..count {
            let nic = from.string(NIC_BYTES_MAX, "rail's device")?;
            let epoch = from.bounded(u32::MAX as usize, "rail's epoch")? as u32;
            let rate_bps = from.bounded(RATE_MBPS_MAX as usize, "rail's rate")? as u64 * 1_000_000;
            let numa = Some(from.u8("rail's NUMA node")?).filter(|&node| node != NUMA_UNKNOWN);
            let previous = rails.last().map_or(&[][..], |rail| &rail.endpoint);
            let endpoint = read_endpoint(&mut from, previous)?;
            rails.push(RailAddress { nic, epoch, endpoint, rate_bps, numa });
        }
        from.finish()?;
        Ok(Self { provider, format, instance: u128::from_le_bytes(instance), messages, rails })
    }

    /// Whether a peer with that address can be reached from here.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`] that names both providers, or both address formats.
    pub fn reaches(&self, peer: &Self) -> Result<(), PeerError> {
        if self.provider != peer.provider {
            return Err(PeerError::Unreachable(format!(
                "the peer's libfabric provider is {}, this agent's is {}; name the same on both sides",
                peer.provider, self.provider
            )));
        }
        if self.format != peer.format {
            return Err(PeerError::Unreachable(format!(
                "the peer's endpoints have libfabric's address format {}, this agent's have {}; run the same \
                 libfabric on both sides",
                peer.format, self.format
            )));
        }
        if self.messages != peer.messages {
            return Err(PeerError::Unreachable(format!(
                "the peer's messages go over endpoints {}, this agent's over endpoints {}: one side's libfabric has no \
                 efa-direct; run the same libfabric on both sides",
                peer.messages, self.messages
            )));
        }
        Ok(())
    }

    /// Takes in another address of the same life: of each rail the newer endpoint. Returns the indices of the rails
    /// that changed, ascending; none when it is older, or the same.
    ///
    /// # Errors
    /// [`PeerError::Malformed`] when it is another life's, or contradicts what is known; what was known stands.
    pub fn merge(&mut self, other: &Self) -> Result<Vec<usize>, PeerError> {
        let contradicts = |what: &str| Err(PeerError::Malformed(format!("ofi address: {what}")));
        if self.instance != other.instance {
            return contradicts("it is another life's than the one given before");
        }
        if (&self.provider, self.format, self.messages) != (&other.provider, other.format, other.messages) {
            return contradicts("its provider changed");
        }
        if self.rails.len() != other.rails.len() {
            return contradicts("its number of rails changed");
        }
        let both = || self.rails.iter().zip(&other.rails);
        if let Some(at) =
            both().position(|(known, new)| known.epoch == new.epoch && known.endpoint != new.endpoint)
        {
            return contradicts(&format!("rail {at} has two endpoints in one epoch"));
        }
        let newer: Vec<usize> =
            both().enumerate().filter(|(_, (k, n))| n.epoch > k.epoch).map(|(at, _)| at).collect();
        for &at in &newer {
            self.rails[at].clone_from(&other.rails[at]);
        }
        Ok(newer)
    }
}

/// A NIC's name as far as it is written, cut between characters.
fn nic_on_the_wire(name: &str) -> &str {
    let fits = |end: &usize| name.is_char_boundary(*end);
    let end = (0..=name.len().min(NIC_BYTES_MAX)).rev().find(fits).unwrap_or(0);
    &name[..end]
}

/// How an endpoint is written, in the lowest bit of its length.
const WHOLE: u64 = 0;
const DIFFERENCE: u64 = 1;

/// Writes an endpoint: the whole of it, or where one bit for each byte says so only the bytes that differ from the one
/// before.
fn write_endpoint(to: &mut Writer<'_>, previous: &[u8], endpoint: &[u8]) {
    let differs = |at: usize| endpoint[at] != previous[at];
    let mask_bytes = endpoint.len().div_ceil(8);
    let alike = endpoint.len() == previous.len()
        && (0..endpoint.len()).filter(|&at| differs(at)).count() + mask_bytes < endpoint.len();
    to.varint((endpoint.len() as u64) << 1 | if alike { DIFFERENCE } else { WHOLE });
    if !alike {
        to.0.extend_from_slice(endpoint);
        return;
    }
    for byte in 0..mask_bytes {
        let bits = (byte * 8..endpoint.len().min(byte * 8 + 8)).filter(|&at| differs(at));
        to.u8(bits.fold(0, |mask, at| mask | 1 << (at % 8)));
    }
    to.0.extend((0..endpoint.len()).filter(|&at| differs(at)).map(|at| endpoint[at]));
}

fn read_endpoint(from: &mut Reader<'_>, previous: &[u8]) -> Result<Vec<u8>, DecodeError> {
    const FIELD: &str = "rail's endpoint";
    let head = from.bounded(ENDPOINT_BYTES_MAX << 1 | 1, FIELD)?;
    let len = head >> 1;
    if head as u64 & 1 == WHOLE {
        return Ok(from.take(len, FIELD)?.to_vec());
    }
    if len != previous.len() {
        return Err(DecodeError::Invalid { field: FIELD });
    }
    let mask = from.take(len.div_ceil(8), FIELD)?;
    let mut endpoint = previous.to_vec();
    for (byte, bits) in mask.iter().enumerate() {
        for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
            let target = endpoint.get_mut(byte * 8 + bit).ok_or(DecodeError::Invalid { field: FIELD })?;
            *target = from.u8(FIELD)?;
        }
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As EFA has it: a link-local GID, a queue pair number, a key, zeros.
    fn efa(rail: usize, qkey: u32) -> Vec<u8> {
        let mut endpoint = vec![0; EFA_ENDPOINT_BYTES];
        endpoint[..2].copy_from_slice(&[0xfe, 0x80]);
        endpoint[8..16].copy_from_slice(&(0x00fe_1234_5600_0000 + rail as u64 * 0x0101_0701).to_be_bytes());
        endpoint[16..18].copy_from_slice(&(rail as u16 * 3).to_le_bytes());
        endpoint[20..24].copy_from_slice(&qkey.to_le_bytes());
        endpoint
    }

    fn sample(rails: usize) -> Address {
        let rail = |at: usize| RailAddress {
            nic: format!("rdmap{}s0", 79 + at),
            epoch: 1,
            endpoint: efa(at, (at as u32).wrapping_mul(0x9e37_79b9)),
            rate_bps: 100_000_000_000,
            numa: Some((at / 16) as u8),
        };
        Address {
            provider: "efa-direct".into(),
            format: 0x80ef,
            instance: 7,
            messages: Messages::Own,
            rails: (0..rails).map(rail).collect(),
        }
    }

    fn encoded(address: &Address) -> Vec<u8> {
        let mut bytes = Vec::new();
        address.encode(&mut bytes).unwrap();
        bytes
    }

    prop_compose! {
        fn rail()(nic in "[a-z0-9]{0,15}", epoch: u32, whole: [u8; 32], len in 0usize..=32, mbps in 0..=RATE_MBPS_MAX,
                numa in prop::option::of(0u8..255), alike: bool) -> RailAddress {
            let mut endpoint = whole[..len].to_vec();
            if alike {
                endpoint = vec![9; 32];
                endpoint[3] = whole[3];
            }
            RailAddress { nic, epoch, endpoint, rate_bps: mbps * 1_000_000, numa }
        }
    }

    prop_compose! {
        fn address()(provider in "[a-z0-9-]{1,32}", format: u32, instance: u128, direct: bool,
                rails in prop::collection::vec(rail(), 1..=RAILS_MAX)) -> Address {
            let messages = if direct { Messages::EfaDirect } else { Messages::Own };
            Address { provider, format, instance, messages, rails }
        }
    }

    proptest! {
        #[test]
        fn an_address_survives_the_wire_and_no_prefix_does(address in address()) {
            let bytes = encoded(&address);
            prop_assert_eq!(Address::decode(&bytes), Ok(address));
            for cut in 0..bytes.len() {
                prop_assert!(Address::decode(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_an_address_or_an_error(tail: Vec<u8>, flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4)) {
            let _ = Address::decode(&[&MAGIC[..], &[VERSION], &tail].concat());
            let mut bytes = encoded(&sample(3));
            for (at, mask) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            if let Ok(address) = Address::decode(&bytes) {
                prop_assert_eq!(Address::decode(&encoded(&address)), Ok(address));
            }
        }

        #[test]
        fn addresses_merge_to_the_same_whatever_their_order(order in Just((0..4usize).collect::<Vec<_>>()).prop_shuffle()) {
            let mut versions = vec![sample(2)];
            for (rail, epoch) in [(0, 2), (1, 2), (0, 3)] {
                let mut next = versions.last().unwrap().clone();
                next.rails[rail].epoch = epoch;
                next.rails[rail].endpoint = efa(rail, epoch << 8);
                versions.push(next);
            }
            let mut known = versions[order[0]].clone();
            for &at in &order[1..] {
                known.merge(&versions[at]).unwrap();
            }
            prop_assert_eq!(&known, versions.last().unwrap());
            prop_assert_eq!(known.merge(&versions[0]), Ok(vec![]));
        }
    }

    #[test]
    fn sixty_four_efa_rails_fit_and_take_little() {
        let bytes = encoded(&sample(RAILS_MAX)).len();
        assert!(bytes <= RAILS_MAX * 36, "{bytes} bytes");
        // With nothing in common they still fit, and with longer names than Linux has.
        let mut worst = sample(RAILS_MAX);
        worst.provider = "p".repeat(PROVIDER_BYTES_MAX);
        worst.format = u32::MAX;
        for (at, rail) in worst.rails.iter_mut().enumerate() {
            rail.nic = "é".repeat(40);
            rail.epoch = u32::MAX;
            rail.rate_bps = u64::MAX;
            rail.endpoint = vec![at as u8; EFA_ENDPOINT_BYTES];
        }
        let bytes = encoded(&worst);
        assert!(bytes.len() <= ADDRESS_BYTES_MAX);
        assert_eq!(Address::decode(&bytes).unwrap().rails[0].nic, "é".repeat(7));
    }

    #[test]
    fn endpoints_that_do_not_fit_are_a_typed_error_and_nothing_is_written() {
        let mut address = sample(RAILS_MAX);
        for (at, rail) in address.rails.iter_mut().enumerate() {
            rail.endpoint = vec![at as u8; 200];
        }
        let mut bytes = vec![1, 2, 3];
        let error = address.encode(&mut bytes).unwrap_err();
        assert_eq!((error.rails, bytes), (RAILS_MAX, vec![1, 2, 3]));
        assert!(error.to_string().contains("an agent has 4096"), "{error}");
    }

    #[test]
    fn errors_name_the_field() {
        let bytes = encoded(&sample(1));
        let said = |bytes: &[u8]| Address::decode(bytes).unwrap_err().to_string();
        assert!(said(b"KVRtxxxx").contains("not kvrail's"));
        assert!(said(&bytes[..bytes.len() - 1]).contains("`rail's endpoint`"));
        assert!(said(&[&bytes[..], &[0]].concat()).contains("1 bytes follow"));
        let mut other = bytes.clone();
        other[4] = 9;
        assert!(
            matches!(Address::decode(&other), Err(PeerError::Unreachable(text)) if text.contains("version 9"))
        );
    }

    #[test]
    fn another_provider_is_named_with_our_own() {
        let (ours, mut theirs) = (sample(1), sample(1));
        assert_eq!(ours.reaches(&theirs), Ok(()));
        theirs.provider = "tcp".into();
        let error = ours.reaches(&theirs).unwrap_err().to_string();
        assert!(error.contains("provider is tcp") && error.contains("this agent's is efa-direct"), "{error}");
        theirs = sample(1);
        theirs.format = 1;
        assert!(ours.reaches(&theirs).is_err());
        theirs = sample(1);
        theirs.messages = Messages::EfaDirect;
        let error = ours.reaches(&theirs).unwrap_err().to_string();
        assert!(error.contains("efa-direct") && error.contains("same libfabric"), "{error}");
    }

    #[test]
    fn what_contradicts_is_refused_and_what_was_known_stands() {
        let known = sample(2);
        let mut fork = known.clone();
        fork.rails[1].endpoint[0] ^= 1;
        let other = Address { instance: 8, ..known.clone() };
        let fewer = Address { rails: known.rails[..1].to_vec(), ..known.clone() };
        for hostile in [fork, other, fewer] {
            let mut merged = known.clone();
            assert!(matches!(merged.merge(&hostile), Err(PeerError::Malformed(_))));
            assert_eq!(merged, known);
        }
    }
}
