//! Which provider, which NICs, in which order: decided from what libfabric offers, without touching it.
//!
//! [`choose`] asks for offers one provider at a time, in the order of [`super::Provider`], and takes the first that has a
//! NIC it can use. Whatever was asked and not taken, and whatever NIC is there and no rail, is in the [`Choice`] with its
//! reason, or in the error: nothing falls back in silence (KR-13).
//!
//! Rails are in the order of their NICs' PCI addresses, so that two runs on one host, and two hosts of one kind, number
//! them alike. Peers do not rely on that: they pair rails by count (KR-10).

use std::collections::HashSet;

use kvrail_core::limits::RAILS_MAX;
use kvrail_topology::{LinkState, Nic};

/// Where a NIC is.
pub use kvrail_topology::PciAddress as Pci;

use super::config::{Config, Provider};
use super::error::OpenError;
use super::facts::PassedOver;
use super::fragment::FRAGMENT_BYTES;

/// Fewest sends and receives that an endpoint must hold: with less there is no room for messages beside data.
const QUEUE_MIN: usize = 64;
/// Bytes of an immediate that counted writes carry.
const IMMEDIATE_BYTES: usize = 4;
/// Longest name that is shown to people, characters.
const NAME_CHARS_MAX: usize = 64;

/// What libfabric offers: one endpoint type on one domain of one fabric.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offer {
    /// `efa`, `tcp`, `verbs;ofi_rxm`.
    pub provider: String,
    /// `efa-direct`, `efa`, a network.
    pub fabric: String,
    /// `rdmap79s0-rdm`, `eth0`.
    pub domain: String,
    /// The provider's version.
    pub version: u32,
    /// The hardware, where the provider says.
    pub nic: Option<OfferedNic>,
    /// Format of its addresses.
    pub address_format: u32,
    /// What it lacks of what the transport needs, in words: whoever read the offer has compared its bits. Empty is good.
    pub lacks: Vec<&'static str>,
    /// Bytes of an immediate.
    pub immediate_bytes: usize,
    /// Longest message or op, bytes.
    pub message_bytes_max: usize,
    /// Sends, and receives, that an endpoint holds.
    pub queue: (usize, usize),
}

/// The hardware below an offer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OfferedNic {
    /// `rdmap79s0`.
    pub name: String,
    /// Domain, bus, device, function; `None` for what is on no PCI bus.
    pub pci: Option<Pci>,
    /// Bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// Its port is down.
    pub down: bool,
}

/// What the host's topology says of a NIC.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNic {
    /// The device's name: `rdmap79s0`, `eth0`.
    pub name: String,
    /// Names of its network interfaces.
    pub interfaces: Vec<String>,
    /// Where it is.
    pub pci: Option<Pci>,
    /// Its NUMA node.
    pub numa: Option<u16>,
    /// Line rate, bits per second.
    pub rate_bps: Option<u64>,
    /// Why it cannot be used: `port is down`.
    pub down: Option<String>,
}

impl From<&Nic> for HostNic {
    fn from(nic: &Nic) -> Self {
        let down = match &nic.state {
            LinkState::Down(word) => Some(format!("its link is down ({word})")),
            _ => None,
        };
        Self {
            name: nic.name.clone(),
            interfaces: nic.interfaces.clone(),
            pci: nic.pci,
            numa: nic.numa.and_then(|node| u16::try_from(node).ok()),
            rate_bps: nic.rate_bps,
            down,
        }
    }
}

/// What came of asking for a provider.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The library does not have it.
    Absent,
    /// It is there and offers nothing; the text says what libfabric said.
    Nothing(String),
    /// Offers, best first.
    Offers(Vec<Offer>),
}

/// The provider that is used, and its rails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// As in [`Provider`].
    pub provider: String,
    /// At least one, at most [`RAILS_MAX`].
    pub rails: Vec<ChosenRail>,
    /// What was asked before, and why it was not used.
    pub passed: Vec<PassedOver>,
    /// NICs that are no rails, and why.
    pub left_out: Vec<PassedOver>,
}

/// A rail to be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChosenRail {
    /// Which of the provider's offers.
    pub offer: usize,
    /// Its NIC, and `#2` for the second endpoint on it.
    pub name: String,
    /// Its NIC as the counters' tree has it.
    pub nic: String,
    /// libfabric's domain.
    pub domain: String,
    /// Where the NIC is.
    pub pci: Option<Pci>,
    /// The NIC's NUMA node.
    pub numa: Option<u16>,
    /// Line rate, bits per second; 0 when unknown. Endpoints that share a NIC share its rate.
    pub rate_bps: u64,
}

/// A provider's name as it stands in libfabric's `prov_name`.
#[must_use]
pub fn libfabric_name(provider: &str) -> &str {
    match provider {
        "efa-direct" => "efa",
        "verbs" => "verbs;ofi_rxm",
        other => other,
    }
}

/// Whether an offer is one of that provider's: libfabric has `efa-direct` as a fabric of provider `efa`, and layers some
/// providers over others (`tcp;ofi_rxm`).
fn belongs(offer: &Offer, provider: &str) -> bool {
    let raw = libfabric_name(provider);
    let same = offer.provider == raw || offer.provider.split(';').next() == Some(raw);
    match provider {
        "efa-direct" => same && offer.fabric == "efa-direct",
        "efa" => same && offer.fabric != "efa-direct",
        _ => same,
    }
}

/// Whether a provider is one of NICs, each an offer of its own. The others are networks and memory.
#[must_use]
pub fn has_nics(provider: &str) -> bool {
    matches!(provider, "efa-direct" | "efa" | "cxi" | "verbs" | "opx" | "psm3")
}

/// Chooses. `ask` is called with each name in turn, until one can be used; `library` is how errors name the library, `has`
/// lists its providers for the error that there is none of a name.
///
/// # Errors
/// [`OpenError`]: `Knob`, `NoSuchProvider`, `NoProvider`, `NoSuchDevice`, `AllDown`, `TooManyRails`.
pub fn choose(
    config: &Config,
    nics: &[HostNic],
    library: &str,
    has: &[String],
    mut ask: impl FnMut(&str) -> Answer,
) -> Result<Choice, OpenError> {
    let mut passed = Vec::new();
    let named = matches!(config.provider, Provider::Named(_));
    for name in config.provider.names() {
        let why = match ask(&name) {
            // Releases before 2.0 leave out of their list what they have and find no NIC for.
            Answer::Absent if has_nics(&name) => "not in this library, or no NIC for it".into(),
            Answer::Absent if named => {
                let has = has.iter().map(|name| shown(name)).collect();
                return Err(OpenError::NoSuchProvider { name, library: library.into(), has });
            }
            Answer::Absent => "not in this library".into(),
            Answer::Nothing(why) => shown(&why),
            Answer::Offers(offers) => match rails(config, nics, &name, &offers) {
                Ok((rails, left_out)) => return Ok(Choice { provider: name, rails, passed, left_out }),
                // A device that is asked for, or the only ones there, and not to be had: another provider would be no
                // answer to that when the provider was named. Else it may be.
                Err(Unusable::Fatal(error)) => return Err(error),
                Err(Unusable::Error(error)) if named => return Err(error),
                Err(Unusable::Error(error)) => error.to_string(),
                Err(Unusable::Why(why)) => why,
            },
        };
        passed.push(PassedOver { name, why });
    }
    Err(OpenError::NoProvider { library: library.into(), passed })
}

/// Why a provider that offers something is not used.
enum Unusable {
    Why(String),
    /// Where the provider was named; for [`Provider::Auto`] the next is asked.
    Error(OpenError),
    /// Whatever was asked for.
    Fatal(OpenError),
}

/// One NIC of the provider, with what is known of it.
struct Found<'a> {
    offer: usize,
    name: String,
    domain: &'a str,
    pci: Option<Pci>,
    host: Option<&'a HostNic>,
    rate_bps: u64,
    down: Option<String>,
    address_format: u32,
}

fn rails(
    config: &Config,
    nics: &[HostNic],
    provider: &str,
    offers: &[Offer],
) -> Result<(Vec<ChosenRail>, Vec<PassedOver>), Unusable> {
    let mut lacking: Vec<String> = Vec::new();
    let mut found: Vec<Found<'_>> = Vec::new();
    let mut seen = HashSet::new();
    for (index, offer) in offers.iter().enumerate().filter(|(_, offer)| belongs(offer, provider)) {
        if let Some(why) = lacks(offer) {
            lacking.push(format!("{} {why}", shown(&offer.domain)));
            continue;
        }
        let one = describe(nics, provider, index, offer);
        // libfabric sorts its offers: the first of a NIC is its best.
        if seen.insert(one.name.clone()) {
            found.push(one);
        }
    }
    if found.is_empty() {
        // Releases before there was efa-direct answer with what they have.
        let instead = |offer: &Offer| {
            format!("only fabric {} of {} is offered", shown(&offer.fabric), shown(&offer.provider))
        };
        let why = lacking.first().cloned().or_else(|| offers.first().map(instead));
        return Err(Unusable::Why(why.unwrap_or_else(|| "no device".into())));
    }
    // What is on a PCI bus comes first, by address; the rest as libfabric has it.
    found.sort_by_key(|one| (one.pci.is_none(), one.pci));
    let has: Vec<String> = found.iter().map(|one| one.name.clone()).collect();
    for device in &config.devices {
        if !found.iter().any(|one| is_called(one, device)) {
            let (name, provider) = (device.clone(), provider.to_string());
            return Err(Unusable::Error(OpenError::NoSuchDevice { name, provider, has }));
        }
    }
    let (used, left_out) = sort_out(config, provider, found);
    if used.is_empty() {
        return Err(Unusable::Error(OpenError::AllDown { provider: provider.into(), nics: has }));
    }
    let count = config.rails.map_or(used.len(), usize::from);
    if count > RAILS_MAX {
        return Err(Unusable::Fatal(OpenError::TooManyRails {
            found: count,
            limit: format!("an agent has at most {RAILS_MAX}"),
        }));
    }
    Ok(spread(used, count, left_out))
}

/// What an offer lacks of what the transport needs.
fn lacks(offer: &Offer) -> Option<String> {
    if let Some(lack) = offer.lacks.first() {
        return Some(format!("lacks {lack}"));
    }
    if offer.domain.is_empty() {
        return Some("has no name".into());
    }
    if offer.immediate_bytes < IMMEDIATE_BYTES {
        return Some(format!(
            "has immediates of {} bytes; {IMMEDIATE_BYTES} are needed",
            offer.immediate_bytes
        ));
    }
    if offer.message_bytes_max < FRAGMENT_BYTES {
        let found = offer.message_bytes_max;
        return Some(format!("takes messages of {found} bytes; {FRAGMENT_BYTES} are needed"));
    }
    if offer.queue.0.min(offer.queue.1) < QUEUE_MIN {
        let (tx, rx) = offer.queue;
        return Some(format!("holds {tx} sends and {rx} receives; {QUEUE_MIN} of each are needed"));
    }
    None
}

/// Joins an offer with what the host's topology says of its NIC.
fn describe<'a>(nics: &'a [HostNic], provider: &str, index: usize, offer: &'a Offer) -> Found<'a> {
    let nic = offer.nic.as_ref();
    let domain = offer.domain.as_str();
    let device = nic.map(|nic| nic.name.as_str()).filter(|name| !name.is_empty() && has_nics(provider));
    let name = device.unwrap_or(domain.strip_suffix("-rdm").unwrap_or(domain));
    let pci = nic.and_then(|nic| nic.pci);
    let is_it = |host: &&HostNic| {
        host.name == name || host.interfaces.iter().any(|i| i == name) || (pci.is_some() && host.pci == pci)
    };
    let host = nics.iter().find(|host| host.name == name).or_else(|| nics.iter().find(is_it));
    let rate = host.and_then(|host| host.rate_bps).filter(|&rate| rate > 0);
    // The kernel's word comes first; where it has none, the provider's.
    let said_by_provider = || nic.filter(|nic| nic.down).map(|_| "its port is down".to_string());
    let down = host.and_then(|host| host.down.clone()).or_else(said_by_provider);
    Found {
        offer: index,
        name: shown(name),
        domain,
        pci: pci.or_else(|| host.and_then(|host| host.pci)),
        host,
        rate_bps: rate.unwrap_or_else(|| nic.map_or(0, |nic| nic.rate_bps)),
        down,
        address_format: offer.address_format,
    }
}

fn is_called(one: &Found<'_>, device: &str) -> bool {
    one.name == device || one.domain == device || one.host.is_some_and(|host| host.name == device)
}

/// Tells the NICs that become rails from those that do not.
fn sort_out<'a>(config: &Config, provider: &str, found: Vec<Found<'a>>) -> (Vec<Found<'a>>, Vec<PassedOver>) {
    let alone = !found.iter().any(|one| one.name != "lo" && one.down.is_none());
    let (mut used, mut left_out): (Vec<Found<'_>>, Vec<PassedOver>) = (Vec::new(), Vec::new());
    for one in found {
        let asked = config.devices.is_empty() || config.devices.iter().any(|device| is_called(&one, device));
        let why = if !asked {
            Some("not among the devices asked for".to_string())
        } else if one.down.is_some() {
            one.down.clone()
        } else if !has_nics(provider) && one.name == "lo" && config.devices.is_empty() && !alone {
            Some("loopback reaches no other host".into())
        } else if let Some(first) = used.first().filter(|first| first.address_format != one.address_format) {
            Some(format!("its addresses are of another format than those of {}", first.name))
        } else {
            None
        };
        match why {
            Some(why) => left_out.push(PassedOver { name: one.name, why: shown(&why) }),
            None => used.push(one),
        }
    }
    (used, left_out)
}

/// Gives each rail its NIC: the first ones when there are more NICs than rails, and in turn when there are fewer.
fn spread(
    used: Vec<Found<'_>>,
    count: usize,
    mut left_out: Vec<PassedOver>,
) -> (Vec<ChosenRail>, Vec<PassedOver>) {
    let nics = used.len();
    for one in used.iter().skip(count) {
        left_out
            .push(PassedOver { name: one.name.clone(), why: format!("beyond the {count} rails asked for") });
    }
    let rail = |index: usize| {
        let (one, round) = (&used[index % nics], index / nics);
        let sharing = (count / nics + usize::from(index % nics < count % nics)).max(1);
        ChosenRail {
            offer: one.offer,
            name: if round == 0 { one.name.clone() } else { format!("{}#{}", one.name, round + 1) },
            nic: one.name.clone(),
            domain: one.domain.to_string(),
            pci: one.pci,
            numa: one.host.and_then(|host| host.numa),
            rate_bps: one.rate_bps / sharing as u64,
        }
    };
    ((0..count).map(rail).collect(), left_out)
}

/// A name from a library as it is shown to people: printable and not endless.
fn shown(name: &str) -> String {
    let printable = |c: char| if c.is_control() { '?' } else { c };
    name.chars().take(NAME_CHARS_MAX * 4).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn efa(fabric: &str, nic: &str, bus: u8) -> Offer {
        Offer {
            provider: "efa".into(),
            fabric: fabric.into(),
            domain: format!("{nic}-rdm"),
            version: 0,
            nic: Some(OfferedNic {
                name: nic.into(),
                pci: Some(Pci::new(0, bus, 0, 0)),
                rate_bps: 100_000_000_000,
                down: false,
            }),
            address_format: 12,
            lacks: Vec::new(),
            immediate_bytes: 4,
            message_bytes_max: 8_928,
            queue: (4_096, 8_192),
        }
    }

    fn tcp(interface: &str, address_format: u32) -> Offer {
        Offer {
            provider: "tcp".into(),
            fabric: "10.0.0.0/8".into(),
            domain: interface.into(),
            immediate_bytes: 8,
            message_bytes_max: usize::MAX,
            queue: (1_024, 1_024),
            address_format,
            ..Offer::default()
        }
    }

    fn config(provider: &str) -> Config {
        Config { provider: provider.parse().unwrap(), ..Config::default() }
    }

    /// Chooses among what a library offers by provider; what is not listed is not in the library.
    fn choose_of(config: &Config, nics: &[HostNic], offers: &[(&str, Answer)]) -> Result<Choice, OpenError> {
        let has: Vec<String> = offers.iter().map(|(name, _)| name.to_string()).collect();
        choose(config, nics, "/lib/libfabric.so.1 (v2.5)", &has, |name| {
            offers
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(Answer::Absent, |(_, answer)| answer.clone())
        })
    }

    fn names(choice: &Choice) -> Vec<&str> {
        choice.rails.iter().map(|rail| rail.name.as_str()).collect()
    }

    #[test]
    fn auto_takes_efa_direct_and_its_nics_in_pci_order() {
        let offers = vec![
            efa("efa-direct", "rdmap116s0", 0x74),
            efa("efa", "rdmap79s0", 0x4f),
            efa("efa-direct", "rdmap79s0", 0x4f),
        ];
        let choice = choose_of(&config("auto"), &[], &[("efa-direct", Answer::Offers(offers))]).unwrap();
        assert_eq!(
            (choice.provider.as_str(), names(&choice)),
            ("efa-direct", vec!["rdmap79s0", "rdmap116s0"])
        );
        assert_eq!(choice.rails[0].offer, 2, "the offer of the fabric that was asked for");
        assert!(choice.passed.is_empty() && choice.left_out.is_empty());
        assert_eq!(choice.rails[1].pci.unwrap().to_string(), "0000:74:00.0");
    }

    #[test]
    fn where_only_efa_is_offered_auto_says_why_it_is_not_efa_direct() {
        let only_efa = || Answer::Offers(vec![efa("efa", "rdmap0s6", 0)]);
        for direct in [Answer::Nothing("this release has no efa-direct".into()), only_efa(), Answer::Absent] {
            let choice =
                choose_of(&config("auto"), &[], &[("efa-direct", direct), ("efa", only_efa())]).unwrap();
            assert_eq!(choice.provider, "efa");
            assert_eq!(choice.passed[0].name, "efa-direct");
            assert!(!choice.passed[0].why.is_empty());
        }
    }

    #[test]
    fn a_named_provider_is_that_one_or_an_error() {
        let efa_only = [
            ("efa", Answer::Offers(vec![efa("efa", "rdmap0s6", 0)])),
            ("tcp", Answer::Offers(vec![tcp("eth0", 2)])),
        ];
        let error = choose_of(&config("psm9"), &[], &efa_only).unwrap_err();
        assert!(matches!(&error, OpenError::NoSuchProvider { has, .. } if has == &["efa", "tcp"]), "{error}");
        // Which of the two it is, libfabric before 2.0 does not say.
        let error = choose_of(&config("efa-direct"), &[], &efa_only).unwrap_err().to_string();
        assert!(error.ends_with("efa-direct: not in this library, or no NIC for it"), "{error}");
        let nothing = [("efa-direct", Answer::Nothing("no device".into()))];
        let error = choose_of(&config("efa-direct"), &[], &nothing).unwrap_err().to_string();
        assert!(error.ends_with("can be used here: efa-direct: no device"), "{error}");
    }

    #[test]
    fn auto_without_a_nic_is_an_error_that_names_all_it_asked() {
        let error =
            choose_of(&config("auto"), &[], &[("tcp", Answer::Offers(vec![tcp("eth0", 2)]))]).unwrap_err();
        let OpenError::NoProvider { passed, .. } = &error else { panic!("{error}") };
        let asked: Vec<_> = passed.iter().map(|passed| passed.name.as_str()).collect();
        assert_eq!(asked, ["efa-direct", "efa", "cxi", "verbs"]);
        assert!(!error.hints().is_empty());
    }

    #[test]
    fn devices_that_are_asked_for_are_taken_or_missed_by_name() {
        let offers = || Answer::Offers(vec![efa("efa", "a", 1), efa("efa", "b", 2), efa("efa", "c", 3)]);
        let with = |devices: &[&str]| Config {
            devices: devices.iter().map(ToString::to_string).collect(),
            ..config("efa")
        };
        let choice = choose_of(&with(&["c", "a-rdm"]), &[], &[("efa", offers())]).unwrap();
        assert_eq!(names(&choice), ["a", "c"]);
        assert_eq!(
            choice.left_out,
            [PassedOver { name: "b".into(), why: "not among the devices asked for".into() }]
        );
        let error = choose_of(&with(&["a", "x"]), &[], &[("efa", offers())]).unwrap_err();
        assert_eq!(error.to_string(), "provider efa offers no device x; it offers a, b, c");
    }

    #[test]
    fn a_nic_that_is_down_is_left_out_and_named() {
        let offers = || Answer::Offers(vec![efa("efa", "a", 1), efa("efa", "b", 2)]);
        let down = |name: &str| HostNic {
            name: name.into(),
            down: Some("its link is down (INIT)".into()),
            ..HostNic::default()
        };
        let choice = choose_of(&config("efa"), &[down("a")], &[("efa", offers())]).unwrap();
        assert_eq!(names(&choice), ["b"]);
        assert_eq!(choice.left_out[0].to_string(), "a: its link is down (INIT)");
        let error = choose_of(&config("efa"), &[down("a"), down("b")], &[("efa", offers())]).unwrap_err();
        assert_eq!(error, OpenError::AllDown { provider: "efa".into(), nics: vec!["a".into(), "b".into()] });
        let mut by_provider = efa("efa", "a", 1);
        by_provider.nic.as_mut().unwrap().down = true;
        let choice =
            choose_of(&config("efa"), &[], &[("efa", Answer::Offers(vec![by_provider, efa("efa", "b", 2)]))]);
        assert_eq!(names(&choice.unwrap()), ["b"]);
    }

    #[test]
    fn rails_take_rate_and_numa_node_from_the_topology() {
        let pci = Some(Pci::new(0, 2, 0, 0));
        let nic = HostNic {
            name: "other-name".into(),
            pci,
            numa: Some(1),
            rate_bps: Some(200_000_000_000),
            ..HostNic::default()
        };
        let offers = [("efa", Answer::Offers(vec![efa("efa", "a", 1), efa("efa", "b", 2)]))];
        let rails = choose_of(&config("efa"), &[nic], &offers).unwrap().rails;
        assert_eq!((rails[0].numa, rails[0].rate_bps), (None, 100_000_000_000));
        assert_eq!((rails[1].numa, rails[1].rate_bps), (Some(1), 200_000_000_000));
    }

    #[test]
    fn fewer_rails_take_the_first_nics_and_more_share_them() {
        let offers =
            || [("efa", Answer::Offers((1..=4).map(|bus| efa("efa", &format!("n{bus}"), bus)).collect()))];
        let with = |rails| Config { rails: Some(rails), ..config("efa") };
        let two = choose_of(&with(2), &[], &offers()).unwrap();
        assert_eq!(names(&two), ["n1", "n2"]);
        assert_eq!(two.left_out[1].to_string(), "n4: beyond the 2 rails asked for");
        let six = choose_of(&with(6), &[], &offers()).unwrap();
        assert_eq!(names(&six), ["n1", "n2", "n3", "n4", "n1#2", "n2#2"]);
        assert_eq!((six.rails[0].rate_bps, six.rails[3].rate_bps), (50_000_000_000, 100_000_000_000));
        assert_eq!((six.rails[4].nic.as_str(), six.rails[4].offer), ("n1", 0));
    }

    #[test]
    fn more_nics_than_rails_can_be_is_an_error() {
        let offers = (0..65).map(|bus| efa("efa", &format!("n{bus}"), bus)).collect();
        let error = choose_of(&config("efa"), &[], &[("efa", Answer::Offers(offers))]).unwrap_err();
        assert_eq!(error.to_string(), "65 rails are too many; an agent has at most 64");
    }

    #[test]
    fn tcp_takes_each_interface_once_without_loopback_and_one_kind_of_address() {
        let offers = || Answer::Offers(vec![tcp("eth0", 2), tcp("eth0", 3), tcp("eth1", 3), tcp("lo", 2)]);
        let choice = choose_of(&config("tcp"), &[], &[("tcp", offers())]).unwrap();
        assert_eq!(names(&choice), ["eth0"]);
        let left: Vec<_> = choice.left_out.iter().map(|left| left.name.as_str()).collect();
        assert_eq!(left, ["eth1", "lo"]);
        let lo = Config { devices: vec!["lo".into()], ..config("tcp") };
        assert_eq!(names(&choose_of(&lo, &[], &[("tcp", offers())]).unwrap()), ["lo"]);
        // Where there is nothing but loopback, it is what there is.
        let alone = [("tcp", Answer::Offers(vec![tcp("lo", 2)]))];
        assert_eq!(names(&choose_of(&config("tcp"), &[], &alone).unwrap()), ["lo"]);
    }

    #[test]
    fn what_an_offer_lacks_is_said() {
        for (spoil, why) in [
            ((|offer| offer.lacks = vec!["RDMA writes"]) as fn(&mut Offer), "a-rdm lacks RDMA writes"),
            (|offer| offer.immediate_bytes = 0, "immediates of 0 bytes"),
            (|offer| offer.message_bytes_max = 100, "messages of 100 bytes"),
            (|offer| offer.queue = (4_096, 1), "1 receives"),
            (|offer| offer.domain.clear(), "has no name"),
            (|offer| offer.provider = "else".into(), "only fabric efa of else is offered"),
        ] {
            let mut offer = efa("efa", "a", 1);
            spoil(&mut offer);
            let error = choose_of(&config("efa"), &[], &[("efa", Answer::Offers(vec![offer]))])
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{error} should have said {why}");
        }
    }

    #[test]
    fn names_from_a_library_are_shown_printable_and_short() {
        let hostile = format!("\u{1b}[31m{}\n", "x".repeat(10_000));
        let mut offer = tcp(&hostile, 2);
        offer.fabric = hostile.clone();
        let choice = choose_of(&config("tcp"), &[], &[("tcp", Answer::Offers(vec![offer]))]).unwrap();
        assert!(choice.rails[0].name.chars().all(|c| !c.is_control()) && choice.rails[0].name.len() <= 256);
        assert_eq!(choice.rails[0].domain, hostile, "what libfabric is asked for is its own name");
        let error =
            choose_of(&config("efa"), &[], &[("efa", Answer::Nothing(hostile))]).unwrap_err().to_string();
        assert!(error.len() < 600 && !error.contains('\u{1b}'), "{error}");
    }
}
