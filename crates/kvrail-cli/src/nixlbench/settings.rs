//! What the flags add up to: nixlbench's rules about what goes together, the errors for what cannot be done here, and notes about
//! what is understood but has no effect.

use kvrail_engines::{Direction, Name};

use crate::case::THREADS_MAX;
use crate::failure::Failure;
use crate::units;

use super::flags::{FLAGS, Flags, Group};
use super::parse::Given;
use super::plan::{self, Mode, Plan, Scheme, Shape, Side};
use super::workload::{Sweep, round_up};

/// What buffers are rounded up to with `--use_hugepages`, bytes.
const HUGE_PAGE: u64 = 2 << 20;
/// Transfers of a thread in flight.
const DEPTH_MAX: i32 = 4096;
/// Blocks of one transfer.
const BATCH_MAX: u64 = 1 << 20;

/// Backends that move bytes to files, objects or disks.
const STORAGE: [&str; 8] = ["GDS", "GDS_MT", "POSIX", "HF3FS", "OBJ", "GUSLI", "AZURE_BLOB", "INFINIA"];

/// How participants meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Runtime {
    /// At etcd.
    Etcd,
    /// At a server that one of them runs.
    Embedded,
}

impl Runtime {
    /// nixlbench's name for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Etcd => "ETCD",
            Self::Embedded => "ASIO",
        }
    }
}

/// A run that makes sense.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// As given, with what nixlbench adjusts adjusted.
    pub(crate) flags: Flags,
    pub(crate) direction: Direction,
    pub(crate) runtime: Runtime,
    pub(crate) sweep: Sweep,
    pub(crate) plan: Plan,
    /// NIC of each device of a side; none for all.
    pub(crate) devices: Option<Vec<String>>,
    /// What should be said before the run.
    pub(crate) notes: Vec<String>,
    /// Whether a word was said about how participants meet.
    pub(crate) names_a_rendezvous: bool,
    /// Whether the benchmark group was given.
    names_a_group: bool,
}

impl Settings {
    /// Checks the flags.
    ///
    /// # Errors
    /// The first contradiction, or the first thing that cannot be done here.
    pub(crate) fn new(given: &Given) -> Result<Self, Failure> {
        let mut flags = given.flags.clone();
        let mut notes = Vec::new();
        refuse_what_needs_a_gpu(&flags)?;
        check_backend(given, &mut flags, &mut notes)?;

        let direction = match one_of("op_type", &flags.op_type, &["READ", "WRITE"])? {
            0 => Direction::Read,
            _ => Direction::Write,
        };
        flags.op_type = if direction == Direction::Read { "READ" } else { "WRITE" }.into();
        let scheme = Scheme::ALL[one_of("scheme", &flags.scheme, &Scheme::ALL.map(Scheme::as_str))?];
        flags.scheme = scheme.as_str().into();
        let mode = [Mode::Single, Mode::Multi][one_of("mode", &flags.mode, &["SG", "MG"])?];
        flags.mode = if mode == Mode::Single { "SG" } else { "MG" }.into();
        let runtime = [Runtime::Etcd, Runtime::Embedded]
            [one_of("runtime_type", &flags.runtime_type, &["ETCD", "ASIO"])?];
        flags.runtime_type = runtime.as_str().into();
        if runtime == Runtime::Etcd && flags.etcd_endpoints.is_empty() {
            flags.etcd_endpoints = "http://localhost:2379".into();
        }
        note_what_the_rendezvous_ignores(given, runtime, &mut notes);

        let initiators = count("num_initiator_dev", flags.num_initiator_dev, plan::DEVICES_MAX)?;
        let targets = count("num_target_dev", flags.num_target_dev, plan::DEVICES_MAX)?;
        let threads = count("num_threads", flags.num_threads, THREADS_MAX)?;
        adjust(&mut flags, &mut notes)?;
        check_sizes(&flags, initiators, targets, threads)?;
        let shape = Shape {
            scheme,
            mode,
            initiators,
            targets,
            threads,
            total_bytes: flags.total_buffer_size,
            huge_pages: flags.use_hugepages,
        };
        let plan = Plan::new(shape).map_err(Failure::usage)?;
        let sweep = sweep(&flags, threads);
        check_room(&plan, &sweep, &mut notes)?;
        let devices = devices(&flags, scheme, initiators, targets)?;
        if let Some(size) = flags.world_size.filter(|size| *size != plan.participants()) {
            return Err(Failure::usage(format!(
                "--world_size={size}, but {initiators} initiator and {targets} target devices in mode {} are {} \
                 participants",
                flags.mode,
                plan.participants()
            )));
        }
        if let Some(rank) = flags.rank.filter(|rank| *rank >= plan.participants()) {
            return Err(Failure::usage(format!(
                "--rank={rank}, but ranks of {} participants end at {}",
                plan.participants(),
                plan.participants() - 1
            )));
        }
        let names_a_rendezvous = given.names().any(|name| {
            let group = FLAGS.iter().find(|flag| flag.name == name).map(|flag| flag.group);
            group == Some(Group::Rendezvous)
                || ["run_id", "rank", "world_size"].contains(&name)
                || name.starts_with("etcd_")
        });
        let names_a_group = given.source("benchmark_group").is_some();
        Ok(Self { flags, direction, runtime, sweep, plan, devices, notes, names_a_rendezvous, names_a_group })
    }

    /// Says something on stderr, unless that is not wanted.
    pub(crate) fn tell(&self, text: &str) {
        if !self.flags.quiet {
            eprintln!("{text}");
        }
    }

    /// The name under which participants meet, if one was given.
    pub(crate) fn run_id(&self) -> Option<&str> {
        let group = self.names_a_group.then_some(self.flags.benchmark_group.as_str());
        self.flags.run_id.as_deref().or(group)
    }
}

/// The index of `word` in `words`, in any case.
fn one_of(flag: &str, word: &str, words: &[&str]) -> Result<usize, Failure> {
    words
        .iter()
        .position(|known| known.eq_ignore_ascii_case(word))
        .ok_or_else(|| Failure::usage(format!("--{flag}: `{word}` is none of {}", words.join(", "))))
}

fn count(flag: &str, value: i32, max: u32) -> Result<u32, Failure> {
    u32::try_from(value)
        .ok()
        .filter(|value| (1..=max).contains(value))
        .ok_or_else(|| Failure::usage(format!("--{flag}={value} is not from 1 to {max}")))
}

fn refuse_what_needs_a_gpu(flags: &Flags) -> Result<(), Failure> {
    match one_of("worker_type", &flags.worker_type, &["nixl", "nvshmem"])? {
        0 => {}
        _ => {
            return Err(Failure::usage(
                "--worker_type=nvshmem moves between GPUs, which is not supported yet",
            )
            .hint("--worker_type=nixl, the default, moves host memory"));
        }
    }
    for (flag, value) in
        [("initiator_seg_type", &flags.initiator_seg_type), ("target_seg_type", &flags.target_seg_type)]
    {
        if one_of(flag, value, &["DRAM", "VRAM"])? == 1 {
            return Err(Failure::usage(format!("--{flag}=VRAM: GPU memory is not supported yet"))
                .hint("--initiator_seg_type=DRAM --target_seg_type=DRAM measures host memory"));
        }
    }
    for (flag, given) in [("enable_vmm", flags.enable_vmm), ("use_device_api", flags.use_device_api)] {
        if given {
            return Err(Failure::usage(format!("--{flag} needs GPU memory, which is not supported yet")));
        }
    }
    Ok(())
}

/// Checks the backend against the engine, and says which flags have no effect.
fn check_backend(given: &Given, flags: &mut Flags, notes: &mut Vec<String>) -> Result<(), Failure> {
    let backend = flags.backend.to_ascii_uppercase();
    if STORAGE.contains(&backend.as_str()) {
        return Err(Failure::usage(format!(
            "--backend={}: a storage backend; kvrail nixlbench measures network transfers",
            flags.backend
        ))
        .hint("backends of network transfers are UCX, LIBFABRIC, Mooncake and UCCL"));
    }
    if backend == "GPUNETIO" {
        return Err(Failure::usage("--backend=GPUNETIO needs GPU memory, which is not supported yet"));
    }
    if ["UCX", "LIBFABRIC", "UCCL"].contains(&backend.as_str()) {
        flags.backend = backend.clone();
    }
    let known: &[&str] = match flags.engine {
        Name::Kvrail => &["UCX", "LIBFABRIC"],
        Name::Ucx => &["UCX"],
        Name::Libfabric => &["LIBFABRIC"],
        _ => &[],
    };
    match (flags.engine, given.source("backend")) {
        (Name::Nixl, _) | (_, None) => {}
        (Name::Memcpy, Some(_)) => notes.push("--backend has no effect with --engine memcpy".into()),
        (engine, Some(_)) if !known.contains(&backend.as_str()) => {
            return Err(Failure::usage(format!(
                "--engine {engine} answers to --backend {}, not to {}",
                known.join(" and "),
                flags.backend
            ))
            .hint("--engine nixl, the default, runs any backend of NIXL"));
        }
        _ => {}
    }
    if flags.progress_threads > 0 && flags.engine != Name::Nixl {
        notes.push(format!("--progress_threads has no effect with --engine {}", flags.engine));
    }
    for name in given.names() {
        let group = FLAGS.iter().find(|flag| flag.name == name).map(|flag| flag.group);
        if group == Some(Group::Storage) {
            notes.push(format!("--{name} has no effect: kvrail nixlbench measures network transfers"));
        } else if name.starts_with("gpunetio_") {
            notes.push(format!("--{name} has no effect: GPU memory is not supported yet"));
        }
    }
    Ok(())
}

fn note_what_the_rendezvous_ignores(given: &Given, runtime: Runtime, notes: &mut Vec<String>) {
    let (prefix, other) = match runtime {
        Runtime::Etcd => ("asio_", "ASIO"),
        Runtime::Embedded => ("etcd_", "ETCD"),
    };
    for name in given.names().filter(|name| name.starts_with(prefix)) {
        notes.push(format!("--{name} has no effect without --runtime_type={other}"));
    }
}

/// What nixlbench changes by itself, and says so.
fn adjust(flags: &mut Flags, notes: &mut Vec<String>) -> Result<(), Failure> {
    if flags.num_iter < 1 {
        return Err(Failure::usage("--num_iter must be at least 1"));
    }
    if flags.warmup_iter < 0 {
        return Err(Failure::usage("--warmup_iter must be at least 0"));
    }
    if flags.large_blk_iter_ftr < 1 {
        return Err(Failure::usage("--large_blk_iter_ftr must be at least 1"));
    }
    count("pipeline_depth", flags.pipeline_depth, DEPTH_MAX as u32)?;
    if flags.prepared_xfer && flags.reregister_mem {
        return Err(Failure::usage(
            "--prepared_xfer and --reregister_mem exclude each other: prepared descriptor lists pin the registration",
        ));
    }
    if flags.reregister_mem && !flags.recreate_xfer {
        notes.push("--reregister_mem prepares every transfer anew: --recreate_xfer is set".into());
        flags.recreate_xfer = true;
    }
    if flags.use_hugepages && !flags.total_buffer_size.is_multiple_of(HUGE_PAGE) {
        let rounded = flags
            .total_buffer_size
            .checked_next_multiple_of(HUGE_PAGE)
            .ok_or_else(|| Failure::usage("--total_buffer_size is too large"))?;
        notes.push(format!(
            "--total_buffer_size is rounded up from {} to {rounded}, a multiple of 2 MiB",
            flags.total_buffer_size
        ));
        flags.total_buffer_size = rounded;
    }
    let partition = flags
        .num_threads
        .checked_mul(flags.large_blk_iter_ftr)
        .ok_or_else(|| Failure::usage("--num_threads x --large_blk_iter_ftr is too large"))?;
    for (name, value) in [("num_iter", &mut flags.num_iter), ("warmup_iter", &mut flags.warmup_iter)] {
        let rounded = round_up(*value, partition)
            .ok_or_else(|| Failure::usage(format!("--{name}={value} is too large")))?;
        if rounded != *value {
            notes.push(format!(
                "--{name} is rounded up from {value} to {rounded}, a multiple of num_threads x large_blk_iter_ftr \
                 = {partition}"
            ));
            *value = rounded;
        }
    }
    Ok(())
}

fn check_sizes(flags: &Flags, initiators: u32, targets: u32, threads: u32) -> Result<(), Failure> {
    for (what, first, last) in [
        ("block", flags.start_block_size, flags.max_block_size),
        ("batch", flags.start_batch_size, flags.max_batch_size),
    ] {
        if first == 0 {
            return Err(Failure::usage(format!("--start_{what}_size must be at least 1")));
        }
        if first > last {
            return Err(Failure::usage(format!(
                "--start_{what}_size={first} is above --max_{what}_size={last}: there is nothing to measure"
            )));
        }
    }
    if flags.max_batch_size > BATCH_MAX {
        return Err(Failure::usage(format!(
            "--max_batch_size={} is above {BATCH_MAX}",
            flags.max_batch_size
        )));
    }
    let total = flags.total_buffer_size;
    let largest = flags.max_block_size.checked_mul(flags.max_batch_size);
    for (name, parts) in
        [("num_initiator_dev", initiators), ("num_target_dev", targets), ("num_threads", threads)]
    {
        let room = total / u64::from(parts);
        if largest.is_none_or(|largest| largest > room) {
            return Err(Failure::usage(format!(
                "--max_block_size x --max_batch_size = {} x {} bytes do not fit into --total_buffer_size / --{name} \
                 = {room} bytes",
                flags.max_block_size, flags.max_batch_size
            )));
        }
    }
    for (name, devices) in [("num_initiator_dev", initiators), ("num_target_dev", targets)] {
        let partition = u64::from(devices) * u64::from(threads);
        if !total.is_multiple_of(partition) {
            return Err(Failure::usage(format!(
                "--total_buffer_size={total} is no multiple of --{name} x --num_threads = {partition}"
            ))
            .hint(format!("the next one is {}", total - total % partition + partition)));
        }
    }
    Ok(())
}

fn sweep(flags: &Flags, threads: u32) -> Sweep {
    // Checked to be at least 0, or 1, before.
    let natural = |n: i32| n.unsigned_abs();
    Sweep {
        block_bytes_min: flags.start_block_size,
        block_bytes_max: flags.max_block_size,
        batch_min: flags.start_batch_size,
        batch_max: flags.max_batch_size,
        timed: natural(flags.num_iter),
        warmup: natural(flags.warmup_iter),
        large_factor: natural(flags.large_blk_iter_ftr),
        threads,
        depth: natural(flags.pipeline_depth),
    }
}

/// Every link needs room for one block at least; with less than all that are in flight, some lie where others do.
fn check_room(plan: &Plan, sweep: &Sweep, notes: &mut Vec<String>) -> Result<(), Failure> {
    if let Some(link) = plan.too_small_for(sweep.block_bytes_max) {
        let shape = plan.shape();
        return Err(Failure::usage(format!(
            "a block of {} does not fit between initiator device {} and target device {}: they share {} and {} of \
             their buffers of {} and {} per thread",
            units::about(sweep.block_bytes_max),
            link.initiator,
            link.target,
            units::about(link.at_initiator.end - link.at_initiator.start),
            units::about(link.at_target.end - link.at_target.start),
            units::about(shape.buffer_bytes(Side::Initiator)),
            units::about(shape.buffer_bytes(Side::Target)),
        ))
        .hint("a buffer is --total_buffer_size / devices of its side / --num_threads, shared by the device's partners"));
    }
    let aliased = sweep.sizes().into_iter().find(|size| {
        let turns = sweep.turns(size.block_bytes);
        plan.aliases(*size, u64::from(turns.depth))
    });
    if let Some(size) = aliased {
        notes.push(format!(
            "from {} blocks of {} on, blocks of a transfer lie in the same memory, as with nixlbench; a larger \
             --total_buffer_size keeps them apart",
            size.batch,
            units::about(size.block_bytes)
        ));
    }
    Ok(())
}

/// The NIC of each device, as nixlbench hands them out: only in scheme pairwise, one for each device of a side.
fn devices(
    flags: &Flags,
    scheme: Scheme,
    initiators: u32,
    targets: u32,
) -> Result<Option<Vec<String>>, Failure> {
    if flags.device_list.eq_ignore_ascii_case("all") {
        return Ok(None);
    }
    let devices: Vec<_> = flags.device_list.split(',').map(|name| name.trim().to_owned()).collect();
    if devices.iter().any(String::is_empty) {
        return Err(Failure::usage(format!("--device_list={} has an empty name", flags.device_list)));
    }
    if scheme != Scheme::Pairwise {
        return Err(Failure::usage(format!(
            "--device_list names a NIC for each pair, and scheme {} has no pairs",
            flags.scheme
        ))
        .hint("leave it out to use every NIC, or use --scheme=pairwise"));
    }
    if devices.len() != initiators as usize || devices.len() != targets as usize {
        return Err(Failure::usage(format!(
            "--device_list has {} names for {initiators} initiator and {targets} target devices",
            devices.len()
        )));
    }
    Ok(Some(devices))
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
