//! Asks libfabric what it offers, in terms of what the transport needs: the thin half of [`super::select`].
//!
//! A provider is asked for what the transport would use, not for everything: EFA's answers differ with the question. Asked
//! with an API before 1.18, `efa` emulates RDMA on the first devices (P4d, P5); asked for RMA by a caller that does not
//! grant `FI_RX_CQ_DATA`, `efa-direct` offers nothing where immediates take a receive. So each question is put in its
//! variants, best first, and the first that is answered counts.

use std::path::Path;
use std::sync::Arc;

use kvrail_sys::libfabric::abi::{
    FI_CONTEXT, FI_CONTEXT2, FI_DELIVERY_COMPLETE, FI_ENODATA, FI_EP_RDM, FI_HMEM, FI_LINK_DOWN,
    FI_MR_ALLOCATED, FI_MR_HMEM, FI_MR_LOCAL, FI_MR_PROV_KEY, FI_MR_VIRT_ADDR, FI_MSG, FI_PROGRESS_MANUAL,
    FI_PROV_ATTR_ONLY, FI_READ, FI_RECV, FI_REMOTE_READ, FI_REMOTE_WRITE, FI_RMA, FI_RX_CQ_DATA, FI_SEND,
    FI_THREAD_DOMAIN, FI_THREAD_FID, FI_THREAD_SAFE, FI_WRITE,
};
use kvrail_sys::libfabric::{Edit, Entry, FabricError, Info, Library};
use kvrail_topology::{Nic, PciAddress, Topology};

use kvrail_core::transport::Evidence;

use super::config::Config;
use super::error::OpenError;
use super::evidence;
use super::fragment::FRAGMENT_BYTES;
use super::select::{Answer, Choice, HostNic, Offer, OfferedNic, choose, has_nics, libfabric_name};

// What each bit is asked for:
// * `FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY` are all met, so that no provider is kept out; `tcp`
//   demands none of them, `shm` `FI_MR_VIRT_ADDR`, EFA all. `FI_MR_ENDPOINT` is not met: registrations outlive endpoints.
// * Manual progress: whoever polls does the work. `tcp` would start a thread for each domain otherwise; `efa-direct` makes
//   progress by itself whatever is asked.
// * `FI_THREAD_DOMAIN`: one thread at a time, so that providers take no locks (KR-5).

/// What one-sided ops and messages need.
const CAPS: u64 = FI_MSG | FI_RMA | FI_SEND | FI_RECV | FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
/// What the transport does for a provider: contexts of either size that stay in place while an op is in flight.
const MODE: u64 = FI_CONTEXT | FI_CONTEXT2;
/// How the transport can register memory.
const MR_MODE: i32 = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;

/// The provider that is used, its rails, and libfabric's entry for each.
#[derive(Debug)]
pub struct Discovery {
    /// Which, and why not others.
    pub choice: Choice,
    /// Of each rail, in the order of [`Choice::rails`].
    pub infos: Vec<Info>,
    /// Of each rail, over what its messages go where that is another provider: `efa-direct` on the NICs of `efa`, where libfabric
    /// has it. `efa` numbers messages, so that a lost one holds back all later ones.
    pub messages: Option<Vec<Info>>,
    /// Whether `FI_RX_CQ_DATA` was granted to the provider: immediates may take a posted receive.
    pub immediates_take_receives: bool,
    /// Whether memory of GPUs can be registered.
    pub hmem: bool,
}

/// Finds the provider and the NICs to use.
///
/// # Errors
/// Those of [`choose`], and `Call` when libfabric fails otherwise than by offering nothing.
pub fn discover(
    library: &Arc<Library>,
    config: &Config,
    topology: Option<&Topology>,
) -> Result<Discovery, OpenError> {
    let nics: Vec<HostNic> =
        topology.map(Topology::nics).unwrap_or_default().iter().map(HostNic::from).collect();
    let queue = config.ops_in_flight_max.max(config.receives) as usize;
    // Asking for GPU memory where there is no GPU keeps providers out, or has them copy through the host. A container may
    // see GPUs in `/sys` that it was not given.
    let gpus = Path::new("/dev/nvidiactl").exists();
    let has = providers(library).map_err(|error| failed("", &error))?;
    let mut found: Option<Asked> = None;
    let mut failure = None;
    let choice = choose(config, &nics, &name_of(library), &has, |provider| {
        if !has.iter().any(|known| is_of(known, provider)) {
            return Answer::Absent;
        }
        match ask(library, provider, gpus, queue) {
            Ok(Some(asked)) => {
                let offers = asked.info.entries().map(|entry| offer(&entry)).collect();
                found = Some(asked);
                Answer::Offers(offers)
            }
            Ok(None) => Answer::Nothing(why_nothing(library, provider)),
            Err(error) => {
                let said = error.to_string();
                failure.get_or_insert_with(|| failed(provider, &error));
                Answer::Nothing(said)
            }
        }
    });
    let choice = choice.map_err(|error| match error {
        // A call that failed outright says more than that nothing was offered.
        OpenError::NoProvider { ref passed, .. } if passed.len() == 1 => failure.unwrap_or(error),
        error => error,
    })?;
    let Some(Asked { info, rx_cq_data, hmem }) = found else {
        return Err(OpenError::NoProvider { library: name_of(library), passed: choice.passed });
    };
    let entries: Vec<Entry<'_>> = info.entries().collect();
    // The flags of the question would be those of messages too: each write says for itself what it asks for.
    let owned = |at: usize| match entries[at].to_owned() {
        Ok(info) => Ok(info.edit().tx_op_flags(0).done()),
        Err(error) => Err(failed(&choice.provider, &error)),
    };
    let infos = choice.rails.iter().map(|rail| owned(rail.offer)).collect::<Result<Vec<_>, _>>()?;
    let messages = match choice.provider.as_str() {
        "efa" => direct(library, &infos)?,
        _ => None,
    };
    Ok(Discovery { choice, infos, messages, immediates_take_receives: rx_cq_data, hmem })
}

/// `efa-direct` for messages on each of these NICs, if it is there on all of them.
fn direct(library: &Arc<Library>, infos: &[Info]) -> Result<Option<Vec<Info>>, OpenError> {
    let failed = |error: &FabricError| failed("efa-direct", error);
    let hints = named(library, "efa-direct").map_err(|error| failed(&error))?;
    let hints = hints
        .caps(FI_MSG | FI_SEND | FI_RECV)
        .mode(MODE)
        .mr_mode(MR_MODE)
        .threading(FI_THREAD_DOMAIN)
        .control_progress(FI_PROGRESS_MANUAL)
        .data_progress(FI_PROGRESS_MANUAL);
    let found = match hints.query() {
        Err(error) if error.is(FI_ENODATA) => return Ok(None),
        found => found.map_err(|error| failed(&error))?,
    };
    let mut messages = Vec::with_capacity(infos.len());
    for info in infos {
        let domain = info.first().domain_name();
        let same = |entry: &Entry<'_>| {
            entry.fabric_name() == "efa-direct"
                && entry.domain_name() == domain
                && entry.mode() & !MODE == 0
                && entry.max_msg_bytes() >= FRAGMENT_BYTES
        };
        let Some(entry) = found.entries().find(same) else { return Ok(None) };
        messages.push(entry.to_owned().map_err(|error| failed(&error))?);
    }
    Ok(Some(messages))
}

/// What the host's topology says of its NICs.
#[must_use]
pub fn host_nics(topology: &Topology) -> Vec<HostNic> {
    let one = |nic: &Nic| {
        let numa = topology.numa_of(nic.numa).and_then(|node| u16::try_from(node).ok());
        HostNic { numa, ..HostNic::from(nic) }
    };
    topology.nics().iter().map(one).collect()
}

/// How errors and logs name a library.
#[must_use]
pub fn name_of(library: &Library) -> String {
    let (major, minor) = library.version();
    format!("{} (v{major}.{minor})", library.path().display())
}

fn failed(provider: &str, error: &FabricError) -> OpenError {
    let what = if provider.is_empty() { error.call.into() } else { format!("{} for {provider}", error.call) };
    OpenError::Call { what, errno: error.code, words: error.text.clone() }
}

/// Names of the providers that can be asked for: not those that only stand on or between others.
fn providers(library: &Arc<Library>) -> Result<Vec<String>, FabricError> {
    let all = match Info::query(&Info::hints(library)?.done(), None, None, FI_PROV_ATTR_ONLY) {
        Err(error) if error.is(FI_ENODATA) => return Ok(Vec::new()),
        all => all?,
    };
    let mut names: Vec<String> = Vec::new();
    for name in all.entries().map(|entry| entry.provider().to_string()) {
        let is_layer = name.starts_with("ofi_") || name.starts_with("off_") || name.is_empty();
        if !is_layer && !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether a provider of libfabric's list is the one meant by a name.
fn is_of(known: &str, provider: &str) -> bool {
    let first = |name: &str| name.split(';').next().unwrap_or_default().to_string();
    first(known) == first(libfabric_name(provider))
}

/// An answer, and what was granted to get it.
struct Asked {
    info: Info,
    rx_cq_data: bool,
    hmem: bool,
}

/// Puts the question in its variants; `None` when none is answered.
fn ask(
    library: &Arc<Library>,
    provider: &str,
    gpus: bool,
    queue: usize,
) -> Result<Option<Asked>, FabricError> {
    // Queues as long as the transport wants them: `tcp` gives shorter ones to whom asks for none, `shm` has no longer ones.
    let own = if has_nics(provider) { 0 } else { queue };
    for rx_cq_data in [false, true] {
        for hmem in [true, false].into_iter().filter(|&hmem| gpus || !hmem) {
            for queue in [own, 0] {
                match hints(library, provider, rx_cq_data, hmem)?.tx_size(queue).rx_size(queue).query() {
                    Ok(info) => return Ok(Some(Asked { info, rx_cq_data, hmem })),
                    Err(error) if error.is(FI_ENODATA) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(None)
}

fn hints(library: &Arc<Library>, provider: &str, rx_cq_data: bool, hmem: bool) -> Result<Edit, FabricError> {
    let caps = CAPS | if hmem { FI_HMEM } else { 0 };
    let flags = match evidence::of(provider).evidence {
        Evidence::Delivered => FI_DELIVERY_COMPLETE,
        Evidence::Counted => 0,
    };
    named(library, provider).map(|hints| {
        hints
            .caps(caps)
            .mode(MODE | if rx_cq_data { FI_RX_CQ_DATA } else { 0 })
            .mr_mode(MR_MODE | if hmem { FI_MR_HMEM } else { 0 })
            .threading(FI_THREAD_DOMAIN)
            .control_progress(FI_PROGRESS_MANUAL)
            .data_progress(FI_PROGRESS_MANUAL)
            .cq_data_bytes(4)
            .tx_op_flags(flags)
    })
}

/// Hints for a provider's reliable datagrams and nothing else.
fn named(library: &Arc<Library>, provider: &str) -> Result<Edit, FabricError> {
    let fabric = matches!(provider, "efa" | "efa-direct").then_some(provider);
    // Before there was efa-direct, the fabric had other names.
    let fabric = fabric.filter(|name| *name == "efa-direct" || library.version().0 >= 2);
    let hints = Info::hints(library)?.provider(Some(libfabric_name(provider)))?;
    Ok(hints.fabric_name(fabric)?.ep_type(FI_EP_RDM))
}

/// Why a provider that the library has offers nothing: no device, or none that can do it.
fn why_nothing(library: &Arc<Library>, provider: &str) -> String {
    let everything = |provider: &str| {
        // All that the transport could do for a provider, and nothing asked in return.
        let hints = named(library, provider).ok()?.mode(MODE | FI_RX_CQ_DATA).mr_mode(MR_MODE | FI_MR_HMEM);
        hints.query().ok().map(|info| info.first().domain_name().to_string())
    };
    match everything(provider) {
        Some(domain) => format!(
            "{domain} is there, without what is needed: reliable datagrams, RDMA reads and writes with immediates"
        ),
        None if provider == "efa-direct" && everything("efa").is_some() => {
            let (major, minor) = library.version();
            format!("libfabric {major}.{minor} has efa without efa-direct here")
        }
        None => "no device".into(),
    }
}

/// An entry in the terms of the choice.
fn offer(entry: &Entry<'_>) -> Offer {
    let mut lacks = Vec::new();
    let mut need = |met: bool, what| {
        if !met {
            lacks.push(what);
        }
    };
    need(entry.ep_type() == FI_EP_RDM, "reliable datagrams");
    need(entry.caps() & FI_MSG != 0, "messages");
    need(entry.caps() & FI_RMA != 0, "RDMA");
    need(entry.mode() & !(MODE | FI_RX_CQ_DATA) == 0, "an interface without modes that kvrail does not know");
    need(entry.mr_mode() & !(MR_MODE | FI_MR_HMEM) == 0, "a way of registering memory that kvrail knows");
    // Whoever owns the transport is the only one to call (KR-5), which every level but one thread per queue allows.
    let levels = [FI_THREAD_DOMAIN, FI_THREAD_FID, FI_THREAD_SAFE];
    need(levels.contains(&entry.threading()), "a threading level that kvrail can meet");
    need(entry.msg_prefix_bytes() == 0, "messages without a prefix");
    need(entry.mr_key_bytes() <= 8, "keys of at most 8 bytes");
    // Delivery is asked for by flags; a provider that ignores them would not have answered.
    let nic = entry.nic().map(|nic| OfferedNic {
        name: nic.device_name().into(),
        pci: nic.pci().map(|pci| {
            let (domain, bus, device, function) = pci.parts;
            PciAddress::new(domain.into(), bus, device, function)
        }),
        rate_bps: nic.bits_per_second(),
        down: nic.link_state() == FI_LINK_DOWN,
    });
    Offer {
        provider: entry.provider().into(),
        fabric: entry.fabric_name().into(),
        domain: entry.domain_name().into(),
        version: entry.fabric().map_or(0, |fabric| fabric.prov_version),
        nic,
        address_format: entry.raw().addr_format,
        lacks,
        immediate_bytes: entry.cq_data_bytes(),
        message_bytes_max: entry.max_msg_bytes(),
        queue: (entry.tx_size(), entry.rx_size()),
    }
}
