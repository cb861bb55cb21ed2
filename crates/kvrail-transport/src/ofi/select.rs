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
        } else {
            let other = used.first().filter(|first| first.address_format != one.address_format);
            other.map(|first| format!("its addresses are of another format than those of {}", first.name))
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
mod tests;
