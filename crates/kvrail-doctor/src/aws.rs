//! What AWS's network lets an EFA interface send and receive, decided from data: the rules of security groups, the ranges of
//! subnets and VPCs. Nothing here asks anybody.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::Deserialize;

/// A range of IPv4 addresses, as in `100.64.0.0/16`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cidr {
    base: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// Whether all of another range lies within this one.
    pub(crate) fn covers(self, other: Self) -> bool {
        other.prefix >= self.prefix && self.contains(other.base)
    }

    /// Whether an address lies within it.
    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(u32::from(32 - self.prefix)).unwrap_or(0);
        (address.to_bits() ^ self.base.to_bits()) & mask == 0
    }
}

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (base, prefix) = text.trim().split_once('/').ok_or(())?;
        let range = Self { base: base.parse().map_err(|_| ())?, prefix: prefix.parse().map_err(|_| ())? };
        if range.prefix <= 32 { Ok(range) } else { Err(()) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Where a subnet lies in its VPC, as far as EFA's protocol is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// In the range that the VPC was made with.
    Primary,
    /// In a range that was added later: what is sent by SRD from or to there is dropped.
    Secondary { subnet: Cidr, primary: Cidr },
    /// It cannot be told.
    Unknown,
}

/// Where a subnet lies, from the subnet's range and the VPC's first one.
pub(crate) fn standing(subnet: Option<&str>, primary: Option<&str>) -> Standing {
    let parse = |text: Option<&str>| text.and_then(|text| text.parse::<Cidr>().ok());
    match (parse(subnet), parse(primary)) {
        (Some(subnet), Some(primary)) if primary.covers(subnet) => Standing::Primary,
        (Some(subnet), Some(primary)) => Standing::Secondary { subnet, primary },
        _ => Standing::Unknown,
    }
}

/// A security group, as `aws ec2 describe-security-groups` tells it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Group {
    /// As in `sg-0123456789abcdef0`.
    #[serde(rename = "GroupId")]
    pub(crate) id: String,
    /// As people call it.
    #[serde(rename = "GroupName")]
    pub(crate) name: String,
    /// What may come in.
    #[serde(rename = "IpPermissions")]
    pub(crate) ingress: Vec<Permission>,
    /// What may go out.
    #[serde(rename = "IpPermissionsEgress")]
    pub(crate) egress: Vec<Permission>,
}

/// One rule of a security group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Permission {
    /// `-1` for all traffic; else `tcp`, `udp`, `icmp` or a number.
    #[serde(rename = "IpProtocol")]
    pub(crate) protocol: String,
    /// Groups at the other end.
    #[serde(rename = "UserIdGroupPairs")]
    pub(crate) groups: Vec<GroupPair>,
    /// IPv4 ranges at the other end.
    #[serde(rename = "IpRanges")]
    pub(crate) ranges: Vec<IpRange>,
}

/// A group that a rule names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GroupPair {
    /// As in `sg-0123456789abcdef0`.
    #[serde(rename = "GroupId")]
    pub(crate) id: String,
}

/// A range that a rule names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct IpRange {
    /// As in `0.0.0.0/0`.
    #[serde(rename = "CidrIp")]
    pub(crate) cidr: String,
}

/// The groups in the JSON that `aws ec2 describe-security-groups` prints.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn groups(text: &str) -> Result<Vec<Group>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Told {
        #[serde(rename = "SecurityGroups")]
        groups: Vec<Group>,
    }
    serde_json::from_str::<Told>(text).map(|told| told.groups)
}

/// Each interface with its type (`interface`, `efa`, `efa-only`), from what `aws ec2 describe-network-interfaces` prints.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn interface_types(text: &str) -> Result<Vec<(String, String)>, String> {
    #[derive(Deserialize)]
    struct Told {
        #[serde(rename = "NetworkInterfaces")]
        interfaces: Vec<Interface>,
    }
    #[derive(Deserialize)]
    struct Interface {
        #[serde(rename = "NetworkInterfaceId")]
        id: String,
        #[serde(rename = "InterfaceType")]
        kind: String,
    }
    let told: Told = serde_json::from_str(text).map_err(|error| format!("aws: {error}"))?;
    Ok(told.interfaces.into_iter().map(|interface| (interface.id, interface.kind)).collect())
}

/// Which way packets go, as seen from the interface that carries the groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// Out of it.
    Egress,
    /// Into it.
    Ingress,
}

/// Whether EFA's packets pass an interface's security groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Passage {
    /// They do, by a rule of this group.
    Open {
        /// The group that has the rule.
        by: String,
    },
    /// Rules name addresses only. EFA's packets have none that a rule could match: all of them are dropped.
    AddressesOnly {
        /// The ranges that are named.
        ranges: Vec<String>,
    },
    /// The peer's group is named, for some protocols only; EFA needs all traffic.
    ProtocolsOnly {
        /// The protocols that are named.
        protocols: Vec<String>,
    },
    /// Nothing lets them pass.
    Shut,
}

/// Whether EFA's packets pass in a direction: it takes a rule for all traffic of one of the interface's own groups that names a group which the peer's
/// interface carries. `0.0.0.0/0` is not enough.
pub(crate) fn passage(own: &[Group], peer: &[String], direction: Direction) -> Passage {
    let (mut ranges, mut protocols) = (Vec::new(), Vec::new());
    for group in own {
        let rules = match direction {
            Direction::Egress => &group.egress,
            Direction::Ingress => &group.ingress,
        };
        for rule in rules {
            if rule.groups.iter().any(|pair| peer.contains(&pair.id)) {
                if rule.protocol == "-1" {
                    return Passage::Open { by: group.id.clone() };
                }
                protocols.push(rule.protocol.clone());
            }
            ranges.extend(rule.ranges.iter().map(|range| range.cidr.clone()));
        }
    }
    for list in [&mut ranges, &mut protocols] {
        list.sort_unstable();
        list.dedup();
    }
    match (protocols.is_empty(), ranges.is_empty()) {
        (false, _) => Passage::ProtocolsOnly { protocols },
        (true, false) => Passage::AddressesOnly { ranges },
        (true, true) => Passage::Shut,
    }
}

/// The hardware address of the interface that an EFA device's GID (`fe80:0000:…`) was made of; none where it was not made of one.
pub(crate) fn mac_of_gid(gid: &str) -> Option<String> {
    let address: std::net::Ipv6Addr = gid.trim().parse().ok()?;
    let bytes = address.octets();
    let [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] = bytes else { return None };
    Some(format!("{:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}", a ^ 2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(egress: &str) -> Vec<Group> {
        let text = format!(
            r#"{{"SecurityGroups": [{{"GroupId": "sg-1", "GroupName": "workers", "OwnerId": "1",
                "IpPermissions": [{{"IpProtocol": "-1", "IpRanges": [], "Ipv6Ranges": [], "UserIdGroupPairs": [{{"UserId": "1", "GroupId": "sg-1"}}]}}],
                "IpPermissionsEgress": [{egress}]}}]}}"#
        );
        groups(&text).unwrap()
    }

    #[test]
    fn only_all_traffic_to_a_group_of_the_peer_lets_efa_out() {
        let out = |egress, peer: &str| passage(&group(egress), &[peer.into()], Direction::Egress);
        let itself = r#"{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1"}]}"#;
        let anywhere = r#"{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}"#;
        let tcp = r#"{"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535, "UserIdGroupPairs": [{"GroupId": "sg-1"}]}"#;
        assert_eq!(out(itself, "sg-1"), Passage::Open { by: "sg-1".into() });
        assert_eq!(out(anywhere, "sg-1"), Passage::AddressesOnly { ranges: vec!["0.0.0.0/0".into()] });
        assert_eq!(out(tcp, "sg-1"), Passage::ProtocolsOnly { protocols: vec!["tcp".into()] });
        assert_eq!(out("", "sg-1"), Passage::Shut);
        assert_eq!(out(itself, "sg-2"), Passage::Shut, "a peer with other groups");
        assert!(matches!(out(&format!("{anywhere}, {itself}"), "sg-1"), Passage::Open { .. }));
        assert!(matches!(passage(&group(""), &["sg-1".into()], Direction::Ingress), Passage::Open { .. }));
        assert!(groups("An error occurred").is_err());
    }

    #[test]
    fn a_subnet_of_a_range_that_was_added_later_is_told() {
        let primary = Some("10.0.0.0/16");
        assert_eq!(standing(Some("10.0.3.0/24"), primary), Standing::Primary);
        let Standing::Secondary { subnet, .. } = standing(Some("100.64.3.0/24"), primary) else {
            panic!("100.64/16 is no part of 10.0/16")
        };
        assert_eq!(subnet.to_string(), "100.64.3.0/24");
        for (subnet, primary) in [(None, primary), (Some("x"), primary), (Some("10.0.0.0/33"), primary)] {
            assert_eq!(standing(subnet, primary), Standing::Unknown);
        }
    }

    #[test]
    fn a_gid_tells_its_hardware_address() {
        let gid = "fe80:0000:0000:0000:0c49:61ff:fe0f:c311";
        assert_eq!(mac_of_gid(gid).as_deref(), Some("0e:49:61:0f:c3:11"));
        for other in ["", "fe80::1", "::ffff:10.0.0.1", "x"] {
            assert_eq!(mac_of_gid(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_range_contains_exactly_what_its_mask_says(base: u32, prefix in 0u8..=32, other: u32) {
            let range: Cidr = format!("{}/{prefix}", Ipv4Addr::from_bits(base)).parse().unwrap();
            let same = (0..u32::from(prefix)).all(|bit| (base ^ other) >> (31 - bit) & 1 == 0);
            prop_assert_eq!(range.contains(Ipv4Addr::from_bits(other)), same);
            prop_assert!(range.covers(range));
        }
    }
}
