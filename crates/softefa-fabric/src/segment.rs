//! The segment: making it, finding one's way in it, and giving back what dead processes held.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::fault::{Fault, FaultTable};
use crate::map::Map;
use crate::model::{Limits, Model, ModelCell};
use crate::nic::{Nic, NicIndex, Owner};
use crate::process::{self, Process, ProcessIndex, start_time};
use crate::wire::{Arena, ArenaCell, Ring, RingCell};
use crate::{FabricError, NICS_PER_NODE_MAX, NODES_MAX, PROCESSES_MAX, clock};

/// What a fabric is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Emulated hosts.
    pub nodes: u32,
    /// NICs of each.
    pub nics: Vec<NicSpec>,
    /// Seed of everything that is random.
    pub seed: u64,
    /// The network's timing.
    pub model: Model,
    /// The device's limits.
    pub limits: Limits,
}

/// One NIC of each node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicSpec {
    /// The device's name, at most 31 bytes.
    pub name: String,
    /// Nominal rate, bits per second.
    pub rate_bps: u64,
}

const MAGIC: u64 = u64::from_le_bytes(*b"softefa\x01");
/// Changes with every change of the layout that its sizes would not show.
const VERSION: u32 = 2;

#[repr(C, align(4096))]
struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    ready: AtomicU32,
    /// Sizes of everything: a program that was built from another layout must not touch this one.
    layout: u64,
    nodes: u32,
    nics_per_node: u32,
    seed: u64,
    limits: Limits,
    generation: AtomicU32,
    flush_wanted: AtomicU32,
    flush_done: AtomicU32,
    model: ModelCell,
    faults: FaultTable,
}

/// Offsets of the segment's parts.
#[derive(Clone, Copy)]
struct Layout {
    nics: usize,
    processes: usize,
    rings: usize,
    arenas: usize,
    len: usize,
}

const PAGE: usize = 4096;

impl Layout {
    const fn of(nics: usize) -> Layout {
        let nics_at = size_of::<Header>();
        let processes = (nics_at + nics * size_of::<Nic>()).next_multiple_of(PAGE);
        let rings = (processes + PROCESSES_MAX * size_of::<Process>()).next_multiple_of(PAGE);
        let arenas = (rings + PROCESSES_MAX * PROCESSES_MAX * size_of::<RingCell>()).next_multiple_of(PAGE);
        let len = arenas + PROCESSES_MAX * ARENA_STRIDE;
        Layout { nics: nics_at, processes, rings, arenas, len }
    }

    /// A number that differs when any size does.
    const fn check() -> u64 {
        let one = Layout::of(1);
        let mut sum = size_of::<Header>() as u64;
        let parts =
            [one.processes, one.rings, one.arenas, one.len, size_of::<RingCell>(), size_of::<ArenaCell>()];
        let mut i = 0;
        while i < parts.len() {
            sum = sum.wrapping_mul(0x0100_0000_01b3) ^ parts[i] as u64;
            i += 1;
        }
        sum
    }
}

const ARENA_STRIDE: usize = size_of::<ArenaCell>().next_multiple_of(PAGE);

/// How much of a file system a fabric takes, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// As soon as it is made.
    pub fixed: u64,
    /// For each process that has its devices open.
    pub per_process: u64,
}

impl Room {
    /// That of a fabric with this many NICs on all nodes together.
    #[must_use]
    pub const fn of(nics: usize) -> Room {
        let rings = PROCESSES_MAX * size_of::<RingCell>();
        Room { fixed: Layout::of(nics).rings as u64, per_process: (rings + ARENA_STRIDE) as u64 }
    }
}

/// A mapped fabric.
pub struct Fabric {
    map: Map,
    file: File,
    path: PathBuf,
    layout: Layout,
    nodes: u32,
    nics_per_node: u32,
}

impl Fabric {
    /// Makes a new segment at `path`, which must not exist.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] for a request beyond the limits, [`FabricError::Io`] and [`FabricError::NoRoom`] from the file system; then
    /// nothing is left behind.
    pub fn create(path: &Path, spec: &Spec) -> Result<Fabric, FabricError> {
        let within = |what, value: u64, max: u64| match value {
            0 => Err(FabricError::Invalid { what, value, max }),
            value if value > max => Err(FabricError::Invalid { what, value, max }),
            _ => Ok(()),
        };
        within("number of nodes", spec.nodes.into(), NODES_MAX.into())?;
        within("number of NICs per node", spec.nics.len() as u64, NICS_PER_NODE_MAX.into())?;
        let failed = |action, source| FabricError::Io { action, path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| failed("create", source))?;
        Fabric::fill(path, file, spec).inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })
    }

    fn fill(path: &Path, file: File, spec: &Spec) -> Result<Fabric, FabricError> {
        let nics_per_node = spec.nics.len() as u32;
        let layout = Layout::of((spec.nodes * nics_per_node) as usize);
        let failed = |action, source| FabricError::Io { action, path: path.to_owned(), source };
        file.set_len(layout.len as u64).map_err(|source| failed("size", source))?;
        reserve(&file, path, 0, layout.rings)?;
        let map = Map::new(&file, layout.len, path)?;
        let header = map.at::<Header>(0);
        // SAFETY: the file is new and nobody else maps it; a Header is integers and atomics, and the file's bytes are zero.
        let header = unsafe { &mut *header };
        header.layout = Layout::check();
        header.nodes = spec.nodes;
        header.nics_per_node = nics_per_node;
        header.seed = spec.seed;
        header.limits = spec.limits;
        header.model.store(&spec.model);
        for node in 0..spec.nodes {
            for (i, nic) in spec.nics.iter().enumerate() {
                let at =
                    layout.nics + (node * nics_per_node) as usize * size_of::<Nic>() + i * size_of::<Nic>();
                // SAFETY: as for the header.
                let cell = unsafe { &mut *map.at::<Nic>(at) };
                cell.set_name(&nic.name);
                cell.rate_bps.store(nic.rate_bps, Ordering::Relaxed);
            }
        }
        header.version.store(VERSION, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Relaxed);
        header.ready.store(1, Ordering::Release);
        Ok(Fabric { map, file, path: path.to_owned(), layout, nodes: spec.nodes, nics_per_node })
    }

    /// Maps the segment in the run directory `dir`.
    ///
    /// # Errors
    /// [`FabricError::Io`] when there is none, [`FabricError::Foreign`] when it is none of this version.
    pub fn open(dir: &Path) -> Result<Fabric, FabricError> {
        let path = dir.join(crate::SEGMENT_FILE);
        let failed = |action, source| FabricError::Io { action, path: path.clone(), source };
        let foreign = |why| FabricError::Foreign { path: path.clone(), why };
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(|source| failed("open", source))?;
        let len = file.metadata().map_err(|source| failed("look at", source))?.len() as usize;
        if len < size_of::<Header>() {
            return Err(foreign("it is too short"));
        }
        let map = Map::new(&file, len, &path)?;
        // SAFETY: the mapping is at least a Header long, and any bytes are one.
        let header = unsafe { &*map.at::<Header>(0) };
        if header.ready.load(Ordering::Acquire) != 1 || header.magic.load(Ordering::Relaxed) != MAGIC {
            return Err(foreign("it does not begin like one"));
        }
        if header.version.load(Ordering::Relaxed) != VERSION || header.layout != Layout::check() {
            return Err(foreign("its layout is another version's"));
        }
        let (nodes, nics_per_node) = (header.nodes, header.nics_per_node);
        if nodes == 0 || nodes > NODES_MAX || nics_per_node == 0 || nics_per_node > NICS_PER_NODE_MAX {
            return Err(foreign("its numbers of nodes and NICs are impossible"));
        }
        let layout = Layout::of((nodes * nics_per_node) as usize);
        if len != layout.len {
            return Err(foreign("its length is wrong"));
        }
        Ok(Fabric { map, file, path, layout, nodes, nics_per_node })
    }

    fn header(&self) -> &Header {
        // SAFETY: `create` and `open` have checked that a Header is there; what changes in it is atomic.
        unsafe { &*self.map.at::<Header>(0) }
    }

    /// Number of nodes.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Number of NICs of each node.
    #[must_use]
    pub fn nics_per_node(&self) -> u32 {
        self.nics_per_node
    }

    /// Seed of everything that is random.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.header().seed
    }

    /// The device's limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.header().limits
    }

    /// NIC `at`, if there is one.
    #[must_use]
    pub fn nic(&self, at: NicIndex) -> Option<&Nic> {
        if at.node >= self.nodes || at.nic >= self.nics_per_node {
            return None;
        }
        let index = (at.node * self.nics_per_node + at.nic) as usize;
        // SAFETY: the index lies inside the layout's NICs; what changes in a Nic is atomic.
        Some(unsafe { &*self.map.at::<Nic>(self.layout.nics + index * size_of::<Nic>()) })
    }

    /// All NICs of all nodes.
    pub fn nics(&self) -> impl Iterator<Item = (NicIndex, &Nic)> {
        let places =
            (0..self.nodes).flat_map(|node| (0..self.nics_per_node).map(move |nic| NicIndex { node, nic }));
        places.filter_map(|at| Some((at, self.nic(at)?)))
    }

    /// Slot `at` of the process table.
    #[must_use]
    pub fn process(&self, at: ProcessIndex) -> &Process {
        // SAFETY: there are PROCESSES_MAX slots, and an index is less; what is in them is atomic.
        unsafe { &*self.map.at::<Process>(self.layout.processes + at.get() * size_of::<Process>()) }
    }

    /// The ring of packets from `from` to `to`.
    #[must_use]
    pub fn ring(&self, from: ProcessIndex, to: ProcessIndex) -> Ring<'_> {
        let index = to.get() * PROCESSES_MAX + from.get();
        // SAFETY: both indices are less than PROCESSES_MAX; what is in a ring is atomic, or guarded by its indices.
        Ring(unsafe { &*self.map.at::<RingCell>(self.layout.rings + index * size_of::<RingCell>()) })
    }

    /// The packet slots of the process in slot `of`.
    #[must_use]
    pub fn arena(&self, of: ProcessIndex) -> Arena<'_> {
        // SAFETY: the index is less than PROCESSES_MAX; slots are only touched through raw pointers.
        Arena(unsafe { &*self.map.at::<ArenaCell>(self.layout.arenas + of.get() * ARENA_STRIDE) })
    }

    /// The network's timing as it is now.
    #[must_use]
    pub fn model(&self) -> Model {
        self.header().model.load()
    }

    /// Changes the network's timing.
    pub fn set_model(&self, model: &Model) {
        self.header().model.store(model);
        self.changed();
    }

    /// A number that changes whenever the model, a fault or the set of processes has.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.header().generation.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.header().generation.fetch_add(1, Ordering::AcqRel);
        for at in ProcessIndex::all() {
            if self.process(at).is_live() {
                self.process(at).wake(u64::MAX);
            }
        }
    }

    /// Adds a fault and returns its number.
    ///
    /// # Errors
    /// [`FabricError::TooManyFaults`].
    pub fn add_fault(&self, fault: &Fault) -> Result<u32, FabricError> {
        let id = self.header().faults.add(fault).ok_or(FabricError::TooManyFaults)?;
        self.changed();
        Ok(id)
    }

    /// Clears fault `id`; false when it is not active.
    pub fn clear_fault(&self, id: u32) -> bool {
        let cleared = self.header().faults.clear(id);
        self.changed();
        cleared
    }

    /// The faults that are active now, oldest first.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.header().faults.active(clock::now_ns())
    }

    /// Counts one chance for fault `id` to bite; true when it does. What is left of its count is shared by all processes.
    #[must_use]
    pub fn fault_bites(&self, id: u32, now_ns: u64) -> bool {
        self.header().faults.bites(id, now_ns)
    }

    /// Asks the supervisor to bring the counters' files up to date; returns the number to wait for in [`Fabric::flushed`].
    pub fn request_flush(&self) -> u32 {
        self.header().flush_wanted.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The last request whose files are up to date.
    #[must_use]
    pub fn flushed(&self) -> u32 {
        self.header().flush_done.load(Ordering::Acquire)
    }

    /// The supervisor's part: the request to answer, if there is one that is not answered.
    #[must_use]
    pub fn flush_wanted(&self) -> Option<u32> {
        let wanted = self.header().flush_wanted.load(Ordering::Acquire);
        (wanted != self.flushed()).then_some(wanted)
    }

    /// The supervisor's part: request `number` and all before it are answered.
    pub fn flush_done(&self, number: u32) {
        self.header().flush_done.store(number, Ordering::Release);
    }

    /// Enters the calling process into the table, on `node`.
    ///
    /// # Errors
    /// [`FabricError::NoSuchNode`], [`FabricError::TooManyProcesses`], [`FabricError::NoRoom`] when the process's packets do not fit into
    /// the file system.
    pub fn attach(&self, node: u32) -> Result<Owner, FabricError> {
        if node >= self.nodes {
            return Err(FabricError::NoSuchNode { node, nodes: self.nodes });
        }
        let now_ns = clock::now_ns();
        let at =
            ProcessIndex::all().find(|&at| self.claim(at, now_ns)).ok_or(FabricError::TooManyProcesses)?;
        let process = self.process(at);
        let prepared = self.prepare(at);
        if let Err(error) = prepared {
            process.state.store(process::FREE, Ordering::Release);
            return Err(error);
        }
        process.next_generation();
        let pid = std::process::id();
        process.pid.store(pid, Ordering::Relaxed);
        process.started.store(start_time(pid).unwrap_or(0), Ordering::Relaxed);
        process.node.store(node, Ordering::Relaxed);
        process.state.store(process::LIVE, Ordering::Release);
        Ok(Owner { process: at, generation: process.generation() })
    }

    fn claim(&self, at: ProcessIndex, now_ns: u64) -> bool {
        let process = self.process(at);
        let claim = |from| {
            process
                .state
                .compare_exchange(from, process::CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let rested = process.rest_until_ns.load(Ordering::Relaxed) <= now_ns;
        claim(process::FREE) || (rested && claim(process::RESTING))
    }

    /// Takes the memory of a process's rings and slots from the file system now: a write into a page that it has no room for would kill
    /// the process later.
    fn prepare(&self, at: ProcessIndex) -> Result<(), FabricError> {
        let rings = PROCESSES_MAX * size_of::<RingCell>();
        reserve(&self.file, &self.path, self.layout.rings + at.get() * rings, rings)?;
        reserve(&self.file, &self.path, self.layout.arenas + at.get() * ARENA_STRIDE, ARENA_STRIDE)?;
        self.arena(at).reset();
        for from in ProcessIndex::all() {
            self.ring(from, at).drain();
        }
        let _ = self.process(at).take_senders();
        let _ = self.process(at).take_waiting();
        Ok(())
    }

    /// Whether the queue pairs of `owner` can still answer.
    #[must_use]
    pub fn is_live(&self, owner: Owner) -> bool {
        let process = self.process(owner.process);
        process.is_live() && process.generation() == owner.generation
    }

    /// Takes the calling process out of the table; also what the supervisor does for a process that has died.
    pub fn reap(&self, owner: Owner) {
        let process = self.process(owner.process);
        if process.generation() != owner.generation {
            return;
        }
        process.rest_until_ns.store(clock::now_ns() + process::REST_NS, Ordering::Relaxed);
        let live = process.state.compare_exchange(
            process::LIVE,
            process::RESTING,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if live.is_ok() {
            for (_, nic) in self.nics() {
                nic.forget(owner);
                nic.forget_regions(owner.process);
            }
            self.changed();
        }
    }

    /// Takes all processes out of the table that are no longer there; returns how many. The supervisor calls it now and then.
    pub fn reap_dead(&self) -> usize {
        let dead: Vec<Owner> = ProcessIndex::all()
            .filter_map(|at| {
                let process = self.process(at);
                let gone = process.is_live() && start_time(process.pid()) != Some(process.started());
                gone.then(|| Owner { process: at, generation: process.generation() })
            })
            .collect();
        for &owner in &dead {
            self.reap(owner);
        }
        dead.len()
    }
}

/// Has the file system set aside room for a part of the file.
fn reserve(file: &File, path: &Path, offset: usize, len: usize) -> Result<(), FabricError> {
    loop {
        // SAFETY: the descriptor is open for writing; the call touches no memory of ours.
        let error =
            unsafe { libc::posix_fallocate(file.as_raw_fd(), offset as libc::off_t, len as libc::off_t) };
        return match error {
            0 => Ok(()),
            libc::EINTR => continue,
            libc::ENOSPC => Err(FabricError::NoRoom { path: path.to_owned(), needed: len as u64 }),
            error => Err(FabricError::Io {
                action: "reserve memory of",
                path: path.to_owned(),
                source: io::Error::from_raw_os_error(error),
            }),
        };
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
