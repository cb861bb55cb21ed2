//! The bytes by which a peer reaches a [`super::Tcp`]: version, instance, rails, socket addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kvrail_core::limits::RAILS_MAX;
use kvrail_core::transport::PeerError;

use super::frame::{VERSION, u128_at};

const MAGIC: [u8; 4] = *b"KVRt";
const FIXED_BYTES: usize = 4 + 2 + 2 + 16 + 2;

/// Socket addresses in one address: more interfaces than that are not advertised.
pub(crate) const SOCKETS_MAX: usize = 32;

/// Where an instance can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    /// One life of one [`super::Tcp`]; also the secret that a dialer has to know.
    pub(crate) instance: u128,
    /// Number of its rails.
    pub(crate) rails: u16,
    /// Listening addresses, best first.
    pub(crate) sockets: Vec<SocketAddr>,
}

impl Address {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.rails.to_le_bytes());
        out.extend_from_slice(&self.instance.to_le_bytes());
        out.extend_from_slice(&(self.sockets.len() as u16).to_le_bytes());
        for socket in &self.sockets {
            match socket.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend_from_slice(&ip.octets());
                }
            }
            out.extend_from_slice(&socket.port().to_le_bytes());
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, PeerError> {
        let malformed =
            |what: &str| PeerError::Malformed(format!("tcp address of {} bytes: {what}", bytes.len()));
        let Some((fixed, mut rest)) = bytes.split_at_checked(FIXED_BYTES) else {
            return Err(malformed("too short"));
        };
        if fixed[..4] != MAGIC {
            return Err(malformed("not a tcp address"));
        }
        let version = u16::from_le_bytes([fixed[4], fixed[5]]);
        if version != VERSION {
            return Err(PeerError::Unreachable(format!(
                "the peer speaks version {version} of the tcp format, this is version {VERSION}; run the same kvrail \
                 on both sides"
            )));
        }
        let rails = u16::from_le_bytes([fixed[6], fixed[7]]);
        if !(1..=RAILS_MAX).contains(&usize::from(rails)) {
            return Err(malformed("a number of rails beyond the limit"));
        }
        let instance = u128_at(fixed, 8);
        let count = usize::from(u16::from_le_bytes([fixed[24], fixed[25]]));
        if count > SOCKETS_MAX {
            return Err(malformed("too many socket addresses"));
        }
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            let Some((family, after)) = rest.split_first() else { return Err(malformed("cut short")) };
            let ip_bytes = match family {
                4 => 4,
                6 => 16,
                _ => return Err(malformed("an unknown address family")),
            };
            let Some((ip, after)) = after.split_at_checked(ip_bytes) else {
                return Err(malformed("cut short"));
            };
            let Some((port, after)) = after.split_at_checked(2) else { return Err(malformed("cut short")) };
            let ip = match <[u8; 4]>::try_from(ip) {
                Ok(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
                Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).unwrap_or_default())),
            };
            sockets.push(SocketAddr::new(ip, u16::from_le_bytes([port[0], port[1]])));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(malformed("bytes after its end"));
        }
        Ok(Self { instance, rails, sockets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_address_survives_the_wire_and_no_prefix_does(
            instance: u128,
            rails in 1..=RAILS_MAX as u16,
            v4 in prop::collection::vec((any::<[u8; 4]>(), any::<u16>()), 0..4),
            v6 in prop::collection::vec((any::<[u8; 16]>(), any::<u16>()), 0..4),
        ) {
            let v4 = v4.into_iter().map(|(ip, port)| SocketAddr::from((ip, port)));
            let v6 = v6.into_iter().map(|(ip, port)| SocketAddr::from((ip, port)));
            let address = Address { instance, rails, sockets: v4.chain(v6).collect() };
            let mut bytes = Vec::new();
            address.encode(&mut bytes);
            for cut in 0..bytes.len() {
                prop_assert!(Address::decode(&bytes[..cut]).is_err());
            }
            prop_assert_eq!(Address::decode(&bytes), Ok(address));
        }

        #[test]
        fn any_bytes_are_an_address_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..200), known: bool) {
            if known && bytes.len() > 8 {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
            }
            let _ = Address::decode(&bytes);
        }
    }

    #[test]
    fn another_version_is_a_clear_error() {
        let mut bytes = Vec::new();
        Address { instance: 1, rails: 1, sockets: Vec::new() }.encode(&mut bytes);
        bytes[4] = 77;
        let error = Address::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("version 77") && error.contains("version 1"), "{error}");
    }
}
