//! A live fabric as it is now: NICs with their counters and faults, processes, and what changed in between.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use softefa_fabric::nic::NicIndex;
use softefa_fabric::process::ProcessIndex;
use softefa_fabric::{Counter, Fabric, Fault, FaultKind, clock};

use super::directory::Live;
use super::error::Error;
use super::spec::Spec;

/// Longest wait for the keeper to bring the counters' files up to date.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Longest command line that is repeated, characters.
const COMMAND_MAX: usize = 120;

/// A live fabric.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// `softefa.status.v1`.
    pub schema: &'static str,
    /// Its run directory.
    pub path: PathBuf,
    /// What it is.
    pub spec: Spec,
    /// The faults that are active, oldest first.
    pub faults: Vec<FaultStatus>,
    /// Processes that have its devices open.
    pub processes: Vec<ProcessStatus>,
    /// All NICs, by node and number.
    pub nics: Vec<NicStatus>,
    /// For how long it was watched for changes, seconds.
    pub watched_s: Option<f64>,
}

/// An active fault.
#[derive(Clone, Debug, Serialize)]
pub struct FaultStatus {
    /// Its number.
    pub id: u32,
    /// Its kind.
    pub kind: String,
    /// Node that it sits on; `None` = all.
    pub node: Option<u32>,
    /// NIC that it sits on; `None` = all.
    pub nic: Option<u32>,
    /// Node at the other side; `None` = any.
    pub peer_node: Option<u32>,
    /// NIC at the other side; `None` = any.
    pub peer_nic: Option<u32>,
    /// Seconds until it ends by itself.
    pub ends_in_s: Option<f64>,
    /// How many operations are still let through.
    pub after: u64,
    /// How often it may still bite.
    pub count_left: Option<u64>,
    /// How often it bites: 1 = always.
    pub probability: f64,
    /// What the kind says: nanoseconds, bits per second, entries.
    pub amount: u64,
    /// What the kind says.
    pub spread: u64,
    /// How often it has bitten.
    pub hits: u64,
}

/// A process that has devices open.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessStatus {
    /// The node that it is on.
    pub node: u32,
    /// Its id.
    pub pid: u32,
    /// Its command line, as far as it may be read.
    pub command: String,
}

/// One NIC.
#[derive(Clone, Debug, Serialize)]
pub struct NicStatus {
    /// Its node.
    pub node: u32,
    /// Its number on that node.
    pub nic: u32,
    /// The device's name.
    pub name: String,
    /// Its address.
    pub gid: String,
    /// `up` or `down`.
    pub state: &'static str,
    /// Nominal rate, bits per second.
    pub rate_bps: u64,
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Memory regions.
    pub regions: u64,
    /// Numbers of the faults that sit on it.
    pub faults: Vec<u32>,
    /// Its counters by the driver's names.
    pub counters: BTreeMap<&'static str, u64>,
    /// By how much those grew that changed while it was watched.
    pub changed: BTreeMap<&'static str, u64>,
}

impl NicStatus {
    /// A counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(counter.name()).copied().unwrap_or(0)
    }

    /// Whether nothing has ever happened on it: up, no fault, no packet, no queue pair.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let quiet = [Counter::TxPackets, Counter::RxPackets, Counter::RxDrops, Counter::UnresponsiveRemotes];
        self.queue_pairs == 0 && self.faults.is_empty() && quiet.into_iter().all(|c| self.counter(c) == 0)
    }
}

/// Opens the shared memory of a live fabric.
///
/// # Errors
/// When it is gone or another version's.
pub fn open(directory: &Path) -> Result<Fabric, Error> {
    Fabric::open(directory).map_err(|e| Error::Fabric(e.to_string()))
}

/// Looks at a live fabric, after its files in /sys have been brought up to date; watches it for a while if told to.
///
/// # Errors
/// When it is gone or another version's.
pub fn status(live: &Live, watch: Option<Duration>) -> Result<Status, Error> {
    let spec = Spec::read(&live.path)?;
    let fabric = open(&live.path)?;
    flush(&fabric);
    let counters = |at: NicIndex| {
        let nic = fabric.nic(at);
        Counter::ALL.iter().map(move |c| (c.name(), nic.map_or(0, |nic| nic.counter(*c))))
    };
    let before: Option<(Instant, Vec<BTreeMap<_, u64>>)> = watch.map(|watch| {
        let before = fabric.nics().map(|(at, _)| counters(at).collect()).collect();
        let begun = Instant::now();
        thread::sleep(watch);
        (begun, before)
    });
    let watched_s = before.as_ref().map(|(begun, _)| begun.elapsed().as_secs_f64());
    let faults = fabric.faults();
    let nics = fabric.nics().enumerate().map(|(n, (at, nic))| {
        let counters: BTreeMap<_, u64> = counters(at).collect();
        let grown = |(name, value): (&&'static str, &u64)| {
            let before = *before.as_ref()?.1.get(n)?.get(name)?;
            (*value != before).then(|| (*name, value.wrapping_sub(before)))
        };
        let sitting = |fault: &&Fault| fault.scope.sits_on(at);
        let down = |fault: &Fault| fault.kind == FaultKind::RailDown;
        NicStatus {
            node: at.node,
            nic: at.nic,
            name: nic.name().into(),
            gid: at.gid().to_string(),
            state: if faults.iter().filter(sitting).any(down) { "down" } else { "up" },
            rate_bps: nic.rate_bps(),
            queue_pairs: nic.qps(),
            regions: nic.regions(),
            faults: faults.iter().filter(sitting).map(|fault| fault.id).collect(),
            changed: counters.iter().filter_map(grown).collect(),
            counters,
        }
    });
    let nics = nics.collect();
    let now_ns = clock::now_ns();
    Ok(Status {
        schema: "softefa.status.v1",
        path: live.path.clone(),
        spec,
        faults: faults.iter().map(|fault| fault_status(fault, now_ns)).collect(),
        processes: processes(&fabric),
        nics,
        watched_s,
    })
}

/// Has the keeper write the counters' files. One that does not answer in time does not keep anybody from looking: the
/// counters themselves are in shared memory.
pub(super) fn flush(fabric: &Fabric) {
    let wanted = fabric.request_flush();
    let deadline = Instant::now() + FLUSH_MAX;
    // The numbers wrap around: a difference below half of their range is "not yet".
    while wanted.wrapping_sub(fabric.flushed()).wrapping_sub(1) < u32::MAX / 2 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

fn fault_status(fault: &Fault, now_ns: u64) -> FaultStatus {
    FaultStatus {
        id: fault.id,
        kind: fault.kind.name().into(),
        node: fault.scope.node,
        nic: fault.scope.nic,
        peer_node: fault.scope.peer_node,
        peer_nic: fault.scope.peer_nic,
        ends_in_s: (fault.until_ns != u64::MAX).then(|| fault.until_ns.saturating_sub(now_ns) as f64 / 1e9),
        after: fault.after,
        count_left: (fault.count != u64::MAX).then_some(fault.count),
        probability: f64::from(fault.probability_ppm) / 1e6,
        amount: fault.amount,
        spread: fault.spread,
        hits: fault.hits,
    }
}

fn processes(fabric: &Fabric) -> Vec<ProcessStatus> {
    let live = ProcessIndex::all().map(|at| fabric.process(at)).filter(|process| process.is_live());
    let mut processes: Vec<ProcessStatus> = live
        .map(|process| {
            let pid = process.pid();
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&line).replace('\0', " ");
            let command = words.trim_end().chars().take(COMMAND_MAX).collect();
            ProcessStatus { node: process.node(), pid, command }
        })
        .collect();
    processes.sort_by_key(|process| (process.node, process.pid));
    processes
}
