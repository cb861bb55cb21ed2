//! What was found and chosen when the transport was opened, for people and reports: nothing falls back in silence
//! (KR-13).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kvrail_core::transport::Evidence;
use kvrail_sys::libfabric::Library;

use super::address::Messages;

/// A provider that was asked for and not used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassedOver {
    /// Its name, as in [`super::Provider`].
    pub name: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why)
    }
}

/// The library that was loaded. Its file name, the release it says it is, and the symbols it has are three things: an old
/// file under a new name is found out by comparing them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LibraryFacts {
    /// Where it was found.
    pub path: PathBuf,
    /// The release that its file name stands for: `v2.5`; `None` when the name has no version.
    pub file: Option<String>,
    /// The release that `fi_version` says: `2.5`.
    pub release: String,
    /// Its highest symbol version: `FABRIC_1.9`.
    pub symbols: String,
    /// The API version that was asked for: `2.5`.
    pub api: String,
}

impl From<&Library> for LibraryFacts {
    fn from(library: &Library) -> Self {
        let (major, minor) = library.version();
        let api = library.api_version();
        Self {
            path: library.path().into(),
            file: library.file_version().and(library.release()).map(|release| release.to_string()),
            release: format!("{major}.{minor}"),
            symbols: format!("FABRIC_1.{}", library.symbols()),
            api: format!("{}.{}", api >> 16, api & 0xffff),
        }
    }
}

/// How bytes that nobody asked for are received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receives {
    /// An immediate takes one of the receives posted.
    Posted,
    /// An immediate takes none: the completion queue bounds them.
    Unsolicited,
}

impl fmt::Display for Receives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Posted => "each immediate takes a posted receive",
            Self::Unsolicited => "immediates take no receive",
        })
    }
}

/// How an idle thread is woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// By the completion queues' descriptors.
    Descriptor,
    /// By a timer: the provider has no descriptors, or makes no progress on its own.
    Timer,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptor => "by the queues' descriptors",
            Self::Timer => "by a timer",
        })
    }
}

/// One rail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RailFacts {
    /// NIC or interface: `rdmap79s0`, `eth0`.
    pub nic: String,
    /// libfabric's domain: `rdmap79s0-rdm`.
    pub domain: String,
    /// PCI address, `0000:4f:00.0`; `None` for what is no PCI device.
    pub pci: Option<String>,
    /// NUMA node; `None` when unknown.
    pub numa: Option<u16>,
    /// Line rate, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// Whether it can be used now, and why not.
    pub state: RailState,
}

/// Whether a rail can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RailState {
    /// Yes.
    Up,
    /// No; the text says why.
    Down(String),
}

impl fmt::Display for RailState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Down(why) => write!(f, "down: {why}"),
        }
    }
}

/// What was found and chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The library.
    pub library: LibraryFacts,
    /// Chosen, as in [`super::Provider`]: `efa-direct`.
    pub provider: String,
    /// libfabric's own name of it: `efa`, `verbs;ofi_rxm`.
    pub provider_raw: String,
    /// libfabric's fabric: `efa-direct`, `172.31.0.0/16`.
    pub fabric: String,
    /// The provider's own version, `206.0`.
    pub provider_version: String,
    /// What was asked for before it, and why it was not used.
    pub passed: Vec<PassedOver>,
    /// In the order of their indices.
    pub rails: Vec<RailFacts>,
    /// NICs that are there and no rails: down, not asked for, beyond the number of rails. Each with the reason.
    pub left_out: Vec<PassedOver>,
    /// What proves that a write is visible.
    pub evidence: Evidence,
    /// Why that and nothing stronger or weaker.
    pub evidence_why: &'static str,
    /// How immediates are received.
    pub receives: Receives,
    /// Receives posted for immediates on each rail; 0 where they take none of kvrail's.
    pub receives_posted: u32,
    /// Over what messages go.
    pub messages: Messages,
    /// Receives posted for messages on each rail.
    pub message_receives: u32,
    /// Whether the provider emulates (read, write) by messages; `None` where it cannot be asked.
    pub emulated: Option<(bool, bool)>,
    /// Whether memory of GPUs can be registered.
    pub hmem: bool,
    /// libfabric's registration mode bits, as names.
    pub mr_mode: String,
    /// Largest op, bytes.
    pub op_bytes_max: u32,
    /// Largest message that is copied at posting, bytes.
    pub inject_bytes_max: usize,
    /// Ops in flight for each rail.
    pub ops_in_flight_max: u32,
    /// Memory for messages, contexts and receives of all rails together, bytes.
    pub control_bytes: u64,
    /// Memory for packets that the provider itself keeps for all rails together, as far as it is known, bytes.
    pub provider_bytes: u64,
    /// How an idle thread is woken.
    pub wait: Wait,
    /// How long bytes of a failed op may still land.
    pub linger: Duration,
}

/// A rate as people write it: `100 Gb/s`.
fn rate(bps: u64) -> String {
    match bps {
        0 => "rate unknown".into(),
        1_000_000_000.. => format!("{} Gb/s", bps as f64 / 1e9),
        _ => format!("{} Mb/s", bps as f64 / 1e6),
    }
}

/// A size as people write it: `32 MiB`.
fn size(bytes: u64) -> String {
    match bytes {
        0x4000_0000.. if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        0x10_0000.. => format!("{} MiB", (bytes as f64 * 100.0 / f64::from(1 << 20)).round() / 100.0),
        1_024.. => format!("{} KiB", bytes / 1_024),
        _ => format!("{bytes} bytes"),
    }
}

impl fmt::Display for LibraryFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or("no version in its name");
        let Self { path, release, symbols, api, .. } = self;
        write!(f, "{} (file: {file}; fi_version {release}; symbols {symbols}), API {api}", path.display())
    }
}

impl fmt::Display for Facts {
    /// A few lines that a person reads at start; the last has no line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "libfabric   {}", self.library)?;
        write!(f, "provider    {}", self.provider)?;
        writeln!(
            f,
            " (libfabric's {} {}, fabric {})",
            self.provider_raw, self.provider_version, self.fabric
        )?;
        for passed in &self.passed {
            writeln!(f, "passed over {passed}")?;
        }
        self.write_rails(f)?;
        for left in &self.left_out {
            writeln!(f, "left out    {left}")?;
        }
        writeln!(f, "evidence    {}: {}", self.evidence, self.evidence_why)?;
        let immediates = match self.receives_posted {
            0 => String::new(),
            count => format!(", {count} for immediates"),
        };
        let Self { message_receives, receives, messages, .. } = self;
        writeln!(f, "receives    {message_receives} for messages{immediates} on each rail; {receives}")?;
        writeln!(f, "messages    over an endpoint of their own on each rail, {messages}")?;
        let emulated = match self.emulated {
            None => "cannot be asked",
            Some((false, false)) => "nothing",
            Some((true, false)) => "reads",
            Some((false, true)) => "writes",
            Some((true, true)) => "reads and writes",
        };
        let hmem = if self.hmem { "yes" } else { "no" };
        writeln!(f, "emulated    {emulated}; GPU memory: {hmem}; registration: {}", self.mr_mode)?;
        writeln!(
            f,
            "limits      op {}, inject {} bytes, {} ops in flight on each rail, linger {:?}",
            size(self.op_bytes_max.into()),
            self.inject_bytes_max,
            self.ops_in_flight_max,
            self.linger
        )?;
        let provider = match self.provider_bytes {
            0 => String::new(),
            bytes => format!(" and {} of the provider's for packets", size(bytes)),
        };
        write!(
            f,
            "memory      {} for control{provider}; idle threads are woken {}",
            size(self.control_bytes),
            self.wait
        )
    }
}

impl Facts {
    fn write_rails(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |of: fn(&RailFacts) -> usize| self.rails.iter().map(of).max().unwrap_or(0);
        let nic = width(|rail| rail.nic.chars().count());
        let pci = width(|rail| rail.pci.as_deref().unwrap_or("-").chars().count());
        for (index, rail) in self.rails.iter().enumerate() {
            let numa = rail.numa.map_or("NUMA ?".into(), |node| format!("NUMA {node}"));
            let address = rail.pci.as_deref().unwrap_or("-");
            let (rate, state) = (rate(rail.rate_bps), &rail.state);
            writeln!(f, "rail {index:<2}     {:nic$}  {address:pci$}  {numa}  {rate}  {state}", rail.nic)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> Facts {
        let rail = |nic: &str, pci: &str, state| RailFacts {
            nic: nic.into(),
            domain: format!("{nic}-rdm"),
            pci: Some(pci.into()),
            numa: Some(0),
            rate_bps: 100_000_000_000,
            state,
        };
        Facts {
            library: LibraryFacts {
                path: "/opt/amazon/efa/lib/libfabric.so.1".into(),
                file: Some("v2.5".into()),
                release: "2.5".into(),
                symbols: "FABRIC_1.9".into(),
                api: "2.5".into(),
            },
            provider: "efa-direct".into(),
            provider_raw: "efa".into(),
            provider_version: "205.0".into(),
            fabric: "efa-direct".into(),
            passed: Vec::new(),
            rails: vec![
                rail("rdmap79s0", "0000:4f:00.0", RailState::Up),
                rail(
                    "rdmap116s0",
                    "0000:74:00.0",
                    RailState::Down("its endpoint could not be opened".into()),
                ),
            ],
            left_out: vec![PassedOver { name: "rdmap80s0".into(), why: "its port is down".into() }],
            evidence: Evidence::Counted,
            evidence_why: "a completion says that the peer's NIC has it",
            receives: Receives::Unsolicited,
            receives_posted: 0,
            messages: Messages::Own,
            message_receives: 512,
            emulated: Some((false, false)),
            hmem: false,
            mr_mode: "local, virt_addr, allocated, prov_key".into(),
            op_bytes_max: 8 << 20,
            inject_bytes_max: 32,
            ops_in_flight_max: 2_048,
            control_bytes: 32 << 20,
            provider_bytes: 0,
            wait: Wait::Timer,
            linger: Duration::from_millis(20),
        }
    }

    #[test]
    fn a_person_reads_what_was_found_and_chosen() {
        let text = sample().to_string();
        let expected = "\
libfabric   /opt/amazon/efa/lib/libfabric.so.1 (file: v2.5; fi_version 2.5; symbols FABRIC_1.9), API 2.5
provider    efa-direct (libfabric's efa 205.0, fabric efa-direct)
rail 0      rdmap79s0   0000:4f:00.0  NUMA 0  100 Gb/s  up
rail 1      rdmap116s0  0000:74:00.0  NUMA 0  100 Gb/s  down: its endpoint could not be opened
left out    rdmap80s0: its port is down
evidence    counted: a completion says that the peer's NIC has it
receives    512 for messages on each rail; immediates take no receive
messages    over an endpoint of their own on each rail, of the same provider
emulated    nothing; GPU memory: no; registration: local, virt_addr, allocated, prov_key
limits      op 8 MiB, inject 32 bytes, 2048 ops in flight on each rail, linger 20ms
memory      32 MiB for control; idle threads are woken by a timer";
        assert_eq!(text, expected);
    }

    #[test]
    fn sizes_and_rates_are_written_with_their_units() {
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size(3 << 19), "1.5 MiB");
        assert_eq!(size(2_048), "2 KiB");
        assert_eq!(rate(0), "rate unknown");
        assert_eq!(rate(25_000_000_000), "25 Gb/s");
        assert_eq!(rate(100_000_000), "100 Mb/s");
    }
}
