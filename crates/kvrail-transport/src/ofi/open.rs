//! Opening: libfabric is loaded, asked for offers, and the rails that [`super::select`] chooses are opened.
//! What is asked for, and why, is in [`super::offers`].

use std::path::Path;

use kvrail_core::id::{LocalRail, RailSet};
use kvrail_core::transport::{Caps, Evidence, RailInfo};
use kvrail_sys::libfabric::abi::{
    self, FI_MR_ALLOCATED, FI_MR_HMEM, FI_MR_LOCAL, FI_MR_PROV_KEY, FI_MR_VIRT_ADDR, FI_RX_CQ_DATA,
};
use kvrail_sys::libfabric::{Fabric, FabricError, Info, Library, LoadError, Search, Wait};
use kvrail_topology::{Source, Topology};

use super::address::Messages;
use super::config::Config;
use super::control::ControlShape;
use super::counters::{self, Counters};
use super::endpoint::{Base, Opening, PortError, Shape};
use super::error::{LibraryError, OpenError};
use super::evidence;
use super::facts::{Facts, LibraryFacts, RailFacts, RailState, Receives, Wait as WaitFacts};
use super::fragment::MESSAGE_BYTES_MAX;
use super::key::Addressing;
use super::messages::SENDS_OF_ONE_MAX;
use super::offers::{Discovery, discover, name_of};
use super::rail::{Bases, Rail, Shapes};
use super::region::Terms;
use super::select::{Choice, ChosenRail};
use super::status::Family;

/// Ops that a turn posts on all rails together: about 100 µs of a posting thread at 200 ns each.
const TURN_OPS_MAX: u32 = 512;
/// Longest op, bytes: long enough that a NIC of 400 Gb/s is busy for 160 µs, short enough that the overlap of pieces
/// costs nothing, and that a stall is told from a slow path.
const OP_BYTES_MAX: u32 = 8 << 20;

/// Fragments on their way out, for each rail: four destinations may hold as many as one may.
const SENDS: usize = 4 * SENDS_OF_ONE_MAX;

/// Receives for messages, for each rail: what comes beyond those waits at its sender's device.
const MESSAGE_RECEIVES: usize = 512;

/// Ops in flight on each rail of `efa`, and its receives, whatever is set beyond: the provider has a buffer of a packet's length for
/// each (8.9 KB; 8,192 receives and 4,096 sends unless told otherwise). 512 blocks of 4 KiB keep a NIC of 400 Gb/s busy for 40 µs.
const EFA_QUEUE: usize = 512;

/// Buffer of a packet of `efa`, bytes.
const EFA_PACKET_BYTES: usize = 9_088;

/// Immediates that a rail holds unread where they take no receive, and the queue has room for them.
const IMMEDIATES: usize = 8_192;

/// Part of the provider's receives on `efa` that is kept for its own packets where immediates take receives.
const OWN_PACKETS_PART: usize = 4;

/// What control may take on an agent with as many rails as a P5 has, with the default settings.
const CONTROL_BYTES_MAX: usize = 64 << 20;
const PLAIN: Opening = Opening { queue: 0, wait: Wait::None, unsolicited: false, no_shared_memory: false };
const _: () = assert!(
    32 * Shapes {
        data: Shape { opening: PLAIN, ops: 2_048, receives: 1_024, delivery: false, more: false },
        control: ControlShape {
            opening: PLAIN,
            sends: SENDS,
            receives: MESSAGE_RECEIVES,
            more: false,
            numbered: false
        },
    }
    .bytes()
        <= CONTROL_BYTES_MAX,
    "32 rails take no more than 64 MiB (the field's engine: 1 GiB)"
);

/// What was opened.
pub(super) struct Opened {
    pub(super) rails: Vec<Rail>,
    pub(super) infos: Vec<RailInfo>,
    pub(super) caps: Caps,
    pub(super) facts: Facts,
    pub(super) shapes: Shapes,
    pub(super) messages: Messages,
    pub(super) terms: Terms,
    pub(super) address_format: u32,
    pub(super) near: Near,
}

/// Which rails are near which memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Near {
    /// The rails of each NUMA node.
    pub(super) numa: Vec<(u16, RailSet)>,
    /// The rails of each GPU, in the order of their PCI addresses.
    pub(super) gpus: Vec<RailSet>,
}

fn version(v: u32) -> String {
    format!("{}.{}", v >> 16, v & 0xffff)
}

fn call(error: &FabricError, what: &str) -> OpenError {
    OpenError::Call {
        what: format!("{} of {what}", error.call),
        errno: error.code,
        words: error.text.clone(),
    }
}

/// Opens the rails that the settings ask for. `key` gives keys for the memory of messages where they are chosen here.
pub(super) fn open(config: &Config, mut key: impl FnMut() -> u64) -> Result<Opened, OpenError> {
    config.validate()?;
    let library = Library::load(&Search::new(config.library.as_deref())).map_err(|error: LoadError| {
        let hints = error.hints();
        OpenError::Library(LibraryError::new(error, hints))
    })?;
    let sysfs = counters::sysfs_root(config.sysfs.as_deref());
    let topology = Topology::read(&Source::Sysfs(sysfs.clone()));
    if let Err(error) = &topology {
        log::warn!("the host's topology is not known, all rails count as near: {error}");
    }
    let found = discover(&library, config, topology.as_ref().ok())?;
    let mut opened = rails(config, &library, &found, &sysfs, &mut key)?;
    opened.near = near(topology.as_ref().ok(), &found.choice.rails);
    Ok(opened)
}

fn near(topology: Option<&Topology>, rails: &[ChosenRail]) -> Near {
    let mut near = Near::default();
    for (index, rail) in rails.iter().enumerate() {
        let Some(node) = rail.numa else { continue };
        match near.numa.iter_mut().find(|(known, _)| *known == node) {
            Some((_, set)) => *set = set.with(index),
            None => near.numa.push((node, RailSet::NONE.with(index))),
        }
    }
    let Some(topology) = topology else { return near };
    for gpu in topology.gpus() {
        let names: Vec<&str> = topology
            .rails_of_gpu(gpu.id)
            .into_iter()
            .filter_map(|nic| topology.nic(nic))
            .map(|nic| nic.name.as_str())
            .collect();
        let its = |(_, rail): &(usize, &ChosenRail)| names.contains(&rail.nic.as_str());
        let set = rails.iter().enumerate().filter(its).fold(RailSet::NONE, |set, (i, _)| set.with(i));
        near.gpus.push(set);
    }
    near
}

/// Opens the chosen rails.
fn rails(
    config: &Config,
    library: &Library,
    found: &Discovery,
    sysfs: &Path,
    key: &mut impl FnMut() -> u64,
) -> Result<Opened, OpenError> {
    let choice = &found.choice;
    let provider = choice.provider.as_str();
    let grants = evidence::of(provider);
    let Some(first) = found.infos.first().map(Info::first) else {
        return Err(OpenError::NoProvider { library: name_of(library), passed: choice.passed.clone() });
    };
    let is_efa = matches!(provider, "efa" | "efa-direct");
    let posted = first.mode() & FI_RX_CQ_DATA != 0;
    let unsolicited = provider == "efa-direct" && !posted;

    let (tx, rx) = match provider {
        "efa" => (first.tx_size().min(EFA_QUEUE), first.rx_size().min(EFA_QUEUE)),
        _ => (first.tx_size(), first.rx_size()),
    };
    let ops = (config.ops_in_flight_max as usize).min(tx.max(1));
    let receives = if posted { (config.receives as usize).min(rx.max(1)) } else { 0 };
    let immediates = match (grants.evidence, provider) {
        // Its writes carry none.
        (Evidence::Delivered, _) => 0,
        // The provider's own receives take them.
        (Evidence::Counted, "efa") => rx - rx / OWN_PACKETS_PART,
        (Evidence::Counted, _) if posted => receives,
        (Evidence::Counted, _) => IMMEDIATES,
    };
    let receives_max = if grants.evidence == Evidence::Delivered { 1 << 20 } else { immediates as u32 };
    let messages = match &found.messages {
        Some(_) => Messages::EfaDirect,
        None => Messages::Own,
    };
    let message_info = found.messages.as_ref().and_then(|infos| infos.first()).map_or(first, Info::first);
    let (sends, message_receives) =
        (SENDS.min(message_info.tx_size().max(1)), MESSAGE_RECEIVES.min(message_info.rx_size().max(1)));
    let opening = |queue| Opening { queue, wait: Wait::Fd, unsolicited: false, no_shared_memory: is_efa };
    let direct = provider == "efa-direct";
    let mut shapes = Shapes {
        data: Shape {
            opening: Opening { unsolicited, ..opening(ops + immediates) },
            ops,
            receives,
            delivery: grants.evidence == Evidence::Delivered,
            more: direct,
        },
        control: ControlShape {
            opening: opening(sends + message_receives),
            sends,
            receives: message_receives,
            more: direct || messages == Messages::EfaDirect,
            numbered: provider == "efa" && messages == Messages::Own,
        },
    };
    let sizes = match provider {
        "efa" => Some((tx, rx)),
        // Where none are posted, the least that was ever seen to be taken.
        "efa-direct" => Some((ops, receives.max(64))),
        _ => None,
    };
    let mut opened: Vec<Rail> = Vec::new();
    for (index, (chosen, info)) in choice.rails.iter().zip(&found.infos).enumerate() {
        let own = found.messages.as_ref().and_then(|infos| infos.get(index));
        let rail = open_rail(index, chosen, (info, own), sizes, provider, &mut shapes, key)?;
        opened.push(rail);
    }
    for rail in &mut opened {
        if let Some(chosen) = choice.rails.get(rail.index.index()) {
            rail.device = Counters::open(sysfs, &chosen.nic);
        }
    }
    let emulated = if is_efa { Some(emulation(&opened, choice, provider, library)?) } else { None };
    let rma =
        opened.first().and_then(|rail| rail.data.get()?.bound.endpoint.size(abi::FI_OPT_MAX_RMA_SIZE).ok());
    let longest = rma.filter(|&bytes| bytes > 0).unwrap_or_else(|| first.max_msg_bytes());
    let op_bytes_max = longest.min(OP_BYTES_MAX as usize) as u32;
    let linger = config.linger.unwrap_or(grants.linger);
    let mr_mode = first.mr_mode();
    let terms = Terms {
        piece_bytes_max: config.region_chunk_bytes,
        op_bytes_max,
        addressing: if mr_mode & FI_MR_VIRT_ADDR != 0 { Addressing::Virtual } else { Addressing::Offset },
        provider_keys: mr_mode & FI_MR_PROV_KEY != 0,
        key_bytes: first.mr_key_bytes(),
        hmem: found.hmem,
    };
    let caps = Caps {
        name: "ofi",
        evidence: grants.evidence,
        op_bytes_max,
        message_bytes_max: MESSAGE_BYTES_MAX,
        ops_in_flight_max: ops as u32,
        turn_ops_max: TURN_OPS_MAX,
        receives_max,
        linger,
        stall_timeout: config.stall_timeout,
    };
    let rail_facts = |chosen: &ChosenRail| RailFacts {
        nic: chosen.name.clone(),
        domain: chosen.domain.clone(),
        pci: chosen.pci.map(|pci| pci.to_string()),
        numa: chosen.numa,
        rate_bps: chosen.rate_bps,
        state: RailState::Up,
    };
    let facts = Facts {
        library: LibraryFacts::from(library),
        provider: provider.into(),
        provider_raw: first.provider().into(),
        fabric: first.fabric_name().into(),
        provider_version: version(first.fabric().map_or(0, |fabric| fabric.prov_version)),
        passed: choice.passed.clone(),
        rails: choice.rails.iter().map(rail_facts).collect(),
        left_out: choice.left_out.clone(),
        evidence: grants.evidence,
        evidence_why: grants.why,
        receives: if posted { Receives::Posted } else { Receives::Unsolicited },
        receives_posted: receives as u32,
        messages,
        message_receives: message_receives as u32,
        emulated,
        hmem: found.hmem,
        mr_mode: mr_mode_words(mr_mode),
        op_bytes_max,
        inject_bytes_max: first.inject_bytes(),
        ops_in_flight_max: ops as u32,
        control_bytes: (shapes.bytes() * opened.len()) as u64,
        provider_bytes: if provider == "efa" {
            ((tx + rx) * EFA_PACKET_BYTES * opened.len()) as u64
        } else {
            0
        },
        wait: if shapes.data.opening.wait == Wait::Fd { WaitFacts::Descriptor } else { WaitFacts::Timer },
        linger,
    };
    let infos = choice
        .rails
        .iter()
        .map(|chosen| RailInfo { name: chosen.name.clone(), rate_bps: chosen.rate_bps })
        .collect();
    let near = Near::default();
    let address_format = first.raw().addr_format;
    Ok(Opened { rails: opened, infos, caps, facts, shapes, messages, terms, address_format, near })
}

/// Opens a rail: `infos` are that of its ops and, where messages go over another provider, of those; `sizes` are of the queues
/// for ops that its endpoint is opened with, where the provider's own are not wanted.
fn open_rail(
    index: usize,
    chosen: &ChosenRail,
    (info, messages): (&Info, Option<&Info>),
    sizes: Option<(usize, usize)>,
    provider: &str,
    shapes: &mut Shapes,
    key: &mut impl FnMut() -> u64,
) -> Result<Rail, OpenError> {
    let failed = |error: &FabricError| call(error, &chosen.name);
    let sized = |info: &Info, sizes: Option<(usize, usize)>| {
        let info = info.first().to_owned()?;
        Ok(match sizes {
            Some((tx, rx)) => info.edit().tx_size(tx).rx_size(rx).done(),
            None => info,
        })
    };
    let bases = |control: &ControlShape| -> Result<Bases, FabricError> {
        let is_efa = matches!(provider, "efa" | "efa-direct");
        let control_sizes = (is_efa && !control.numbered).then_some((control.sends, control.receives));
        let data_info = sized(info, sizes)?;
        let own = messages.map(|info| sized(info, control_sizes)).transpose()?;
        let control_info = match &own {
            Some(own) => own.first().to_owned()?,
            None => sized(info, control_sizes)?,
        };
        let data = base(&data_info)?;
        let control = own.as_ref().map(base).transpose()?;
        Ok(Bases { data, data_info, control, control_info })
    };
    loop {
        let bases = bases(&shapes.control).map_err(|error| failed(&error))?;
        let (index, family) = (LocalRail(index as u16), Family::of(provider));
        let rail =
            Rail::new(index, chosen.name.clone(), bases, family, *shapes, provider == "efa", &mut *key);
        let wait = shapes.data.opening.wait;
        let none = |shapes: &mut Shapes| {
            (shapes.data.opening.wait, shapes.control.opening.wait) = (Wait::None, Wait::None);
        };
        match rail {
            Ok(rail)
                if wait == Wait::Fd
                    && rail.data.get().is_some_and(|port| port.bound.queue.wait_fd().is_err()) =>
            {
                none(shapes);
            }
            Ok(rail) => return Ok(rail),
            // No descriptor to be had: the timer wakes.
            Err(PortError::Fabric(error)) if wait == Wait::Fd && error.call == "fi_cq_open" => none(shapes),
            Err(PortError::Fabric(error)) => return Err(failed(&error)),
            Err(PortError::Memory(error)) => {
                return Err(OpenError::Call {
                    what: format!("memory for messages of {}", chosen.name),
                    errno: libc::ENOMEM,
                    words: error.to_string(),
                });
            }
        }
    }
}

fn base(info: &Info) -> Result<Base, FabricError> {
    let fabric = Fabric::open(info)?;
    // SAFETY: the domain and all that stands on it belong to one rail, which belongs to one transport: one owner, so
    // one thread at a time, which is what the strictest level asks for.
    let domain = unsafe { fabric.domain(info) }?;
    let events = fabric.event_queue(0).ok();
    Ok(Base { events, domain, fabric })
}

/// EFA's provider emulates one-sided transfers by messages on some devices and for callers of old interfaces: then a bad
/// key is an error of the target's, and a completion lies. That is refused.
fn emulation(
    rails: &[Rail],
    choice: &Choice,
    provider: &str,
    library: &Library,
) -> Result<(bool, bool), OpenError> {
    for rail in rails {
        let Some(port) = rail.data.get() else { continue };
        let asked = [("read", abi::FI_OPT_EFA_EMULATED_READ), ("write", abi::FI_OPT_EFA_EMULATED_WRITE)];
        for (what, option) in asked {
            // A release that cannot say (before 1.18) emulates both.
            if port.bound.endpoint.flag(option).unwrap_or(true) {
                let nic = choice.rails.get(rail.index.index()).map_or("", |chosen| &chosen.nic);
                return Err(OpenError::Emulated {
                    provider: provider.into(),
                    nic: nic.into(),
                    what,
                    api: version(library.api_version()),
                });
            }
        }
    }
    Ok((false, false))
}

fn mr_mode_words(mode: libc::c_int) -> String {
    let names = [
        (FI_MR_LOCAL, "local"),
        (FI_MR_VIRT_ADDR, "virt_addr"),
        (FI_MR_ALLOCATED, "allocated"),
        (FI_MR_PROV_KEY, "prov_key"),
        (abi::FI_MR_ENDPOINT, "endpoint"),
        (FI_MR_HMEM, "hmem"),
    ];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "nothing asked".into() } else { set.join(", ") }
}
