//! NICs: RDMA devices with their ports, and network interfaces of real hardware.

use super::Reader;
use crate::model::{LinkState, Nic, NicId, NicKind, RateSource};
use crate::pci::PciPath;
use crate::rate;

const RDMA: &str = "class/infiniband";
const NET: &str = "class/net";
/// Most GIDs of a port that are read; RoCE ports have 256 slots, most of them empty.
const GIDS_MAX: usize = 256;
/// Type of an Ethernet interface (`ARPHRD_ETHER`).
const ETHERNET: &str = "1";

/// A port as its files describe it.
struct Port {
    number: u8,
    state: LinkState,
}

impl Reader<'_> {
    pub(super) fn rdma_devices(&mut self) {
        for name in self.names(RDMA) {
            let device = format!("{RDMA}/{name}");
            if let Some(at) = self.place_of(&device) {
                self.rdma_device(name, &device, &at);
            }
        }
    }

    fn rdma_device(&mut self, name: String, device: &str, at: &str) {
        // A tree copied without its links still has `device` in the device's directory.
        let mut function = PciPath::parse(at).map(|_| pci_part(at));
        if function.is_none() {
            let resolved = self.tree.resolve(&format!("{at}/device"));
            function = self.or_warn(resolved).map(|(at, _)| at).filter(|at| PciPath::parse(at).is_some());
        }
        if function.is_none() {
            self.warn(device, "no PCI function above it; its place is not known");
        }
        let mut nic = self.nic_of_function(name, NicKind::Rdma, function.as_deref());
        let guid = self.tree.private_text(&format!("{at}/node_guid"));
        nic.node_guid = self.or_warn(guid).filter(|guid| !guid.is_empty());
        if let Some(Port { number, state }) = self.port(at) {
            let port = format!("{at}/ports/{number}");
            nic.port = Some(number);
            nic.state = state;
            nic.rate_bps = self.port_rate(&format!("{port}/rate"));
            nic.rate_source = nic.rate_bps.map(|_| RateSource::Port);
            nic.link_layer = self.text(&format!("{port}/link_layer"));
            nic.gids = self.gids(&port);
        } else {
            self.warn(&format!("{device}/ports"), "no port; state and line rate are not known");
        }
        if let Some(at) = &function {
            nic.interfaces = self.names(&format!("{at}/net"));
        }
        self.facts.nics.push(nic);
    }

    /// The first active port of a device, else its first.
    fn port(&mut self, at: &str) -> Option<Port> {
        let names = self.names(&format!("{at}/ports"));
        let mut numbers: Vec<u8> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        let mut first = None;
        for number in numbers {
            let state = self.port_state(&format!("{at}/ports/{number}/state"));
            let port = Port { number, state };
            if port.state == LinkState::Up {
                return Some(port);
            }
            first = first.or(Some(port));
        }
        first
    }

    /// `4: ACTIVE`. Only an active port moves data: one that is `INIT` has no subnet manager yet.
    fn port_state(&mut self, file: &str) -> LinkState {
        let Some(text) = self.text(file) else {
            self.warn(file, "missing; the port is taken for usable");
            return LinkState::Unknown;
        };
        let (number, word) = text.split_once(':').unwrap_or((&text, ""));
        match number.trim().parse::<u8>() {
            Ok(4) => LinkState::Up,
            Ok(_) => LinkState::Down(word.trim().chars().take(32).collect()),
            Err(_) => {
                self.warn(file, "makes no sense; the port is taken for usable");
                LinkState::Unknown
            }
        }
    }

    fn port_rate(&mut self, file: &str) -> Option<u64> {
        const UNKNOWN: &str = "the line rate is not known and counts as 0 in ceilings";
        let Some(text) = self.text(file) else {
            self.warn(file, format!("missing; {UNKNOWN}"));
            return None;
        };
        let rate = rate::parse_port(&text);
        if rate.is_none() {
            self.warn(file, format!("`{}` is no rate; {UNKNOWN}", super::shown(&text)));
        }
        rate
    }

    fn gids(&mut self, port: &str) -> Vec<(u16, String)> {
        let names = self.names(&format!("{port}/gids"));
        let mut slots: Vec<u16> = names.iter().filter_map(|name| name.parse().ok()).collect();
        slots.sort_unstable();
        let mut gids = Vec::new();
        for slot in slots.into_iter().take(GIDS_MAX) {
            // Slots of RoCE ports that are not in use fail to read; that is no news.
            let gid = self.tree.private_text(&format!("{port}/gids/{slot}"));
            let set = |gid: &String| gid.chars().any(|it| !matches!(it, '0' | ':'));
            gids.extend(gid.ok().flatten().filter(set).map(|gid| (slot, gid)));
        }
        gids
    }

    pub(super) fn interfaces(&mut self) {
        for name in self.names(NET) {
            let class = format!("{NET}/{name}");
            let Some(at) = self.place_of(&class) else { continue };
            // Of real hardware: not `lo`, bridges, tunnels. Already seen: the same function has an RDMA device.
            let virtual_one = at.starts_with("devices/virtual/") || at == class;
            let seen = self.facts.nics.iter().any(|nic| nic.interfaces.contains(&name));
            if virtual_one || seen || self.text(&format!("{at}/type")).as_deref() != Some(ETHERNET) {
                continue;
            }
            let function = PciPath::parse(&at).map(|_| pci_part(&at));
            let mut nic = self.nic_of_function(name.clone(), NicKind::Ethernet, function.as_deref());
            nic.state = match self.text(&format!("{at}/operstate")).as_deref() {
                Some("up") => LinkState::Up,
                Some("unknown") | None => LinkState::Unknown,
                Some(word) => LinkState::Down(word.chars().take(32).collect()),
            };
            // The file cannot be read while the link is down, and virtual machines' drivers often say -1: no news either.
            let speed = self.tree.text(&format!("{at}/speed")).ok().flatten();
            nic.rate_bps = speed.as_deref().and_then(rate::parse_net);
            nic.rate_source = nic.rate_bps.map(|_| RateSource::Port);
            nic.link_layer = Some("Ethernet".into());
            nic.interfaces = vec![name];
            self.facts.nics.push(nic);
        }
    }

    /// A NIC with what its PCI function at the plain path `function` says.
    fn nic_of_function(&mut self, name: String, kind: NicKind, function: Option<&str>) -> Nic {
        let found = function.and_then(|at| Some((at, PciPath::parse(at)?)));
        let (numa, link, driver) = match &found {
            Some((at, _)) => {
                let driver = self.tree.link_name(&format!("{at}/driver"));
                (self.numa(at), self.link(at), self.or_warn(driver))
            }
            None => (None, None, None),
        };
        let (pci, path) = found.map(|(_, found)| found).unzip();
        Nic {
            id: NicId(0),
            name,
            kind,
            pci,
            path,
            numa,
            link,
            driver,
            rate_bps: None,
            rate_source: None,
            state: LinkState::Unknown,
            port: None,
            link_layer: None,
            node_guid: None,
            gids: Vec::new(),
            interfaces: Vec::new(),
        }
    }
}

/// `path` up to the last PCI function on it.
fn pci_part(path: &str) -> String {
    let Some((address, _)) = PciPath::parse(path) else { return String::new() };
    let name = address.to_string();
    let mut kept = Vec::new();
    for part in path.split('/') {
        kept.push(part);
        if part == name {
            break;
        }
    }
    kept.join("/")
}
