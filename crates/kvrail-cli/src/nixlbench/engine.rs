//! The engine that the flags name, and the memory that it moves.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use kvrail::Memory;
use kvrail::memory::{AllocateError, HugePages, Options, PrivateMemory, SharedMemory};
use kvrail_engines::{Engine, Name, Planted, nixl, ucx};
use kvrail_report as report;

use crate::case::{Cooperate, Progress, Transport};
use crate::endpoint::failure;
use crate::engines::{self, Choice, Setup};
use crate::failure::Failure;
use crate::ofi;

use super::plan::{Mode, Side};
use super::settings::Settings;

/// What transfers carry to the target where the engine has notifications, as nixlbench's do.
const NOTIFICATION: &[u8] = b"0xBEEF";

/// The engine, and which of its ways: what documents call it.
pub(crate) fn choice(settings: &Settings) -> Choice {
    let way = match settings.flags.engine {
        Name::Nixl => Some(settings.flags.backend.clone()),
        Name::Kvrail if settings.flags.backend == "LIBFABRIC" => Some(Transport::Ofi.to_string()),
        _ => None,
    };
    Choice { name: settings.flags.engine, way }
}

/// Set in a process that has been started with what its engine needs.
const SURROUNDED: &str = "KVRAIL_SURROUNDED";

/// Starts this program again, in its own process, with the environment that its engine must find at its start; returns if it has it.
///
/// # Errors
/// When the engine's library is not there, or the program cannot be started.
pub(crate) fn surround(settings: &Settings) -> Result<(), Failure> {
    if std::env::var_os(SURROUNDED).is_some() {
        return Ok(());
    }
    let variables: Vec<(String, OsString)> = match settings.flags.engine {
        Name::Nixl => {
            let surroundings = nixl_options(settings, 0)?.surroundings().map_err(failure)?;
            surroundings.variables().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        }
        Name::Ucx => {
            ucx::surroundings().into_iter().map(|(name, value)| (name.into(), value.into())).collect()
        }
        _ => Vec::new(),
    };
    let missing = |(name, value): &(String, OsString)| std::env::var_os(name).as_ref() != Some(value);
    if !variables.iter().any(missing) {
        return Ok(());
    }
    // Not `current_exe`: that path is stale when the program was replaced while it runs.
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).envs(variables).env(SURROUNDED, "1");
    let error = command.exec();
    Err(Failure::environment(format!(
        "cannot start this program again with the engine's environment: {error}"
    )))
}

/// Makes the engine of this rank. `ip` is where others reach this host.
///
/// # Errors
/// When this host lacks what it needs, or an option is none of the engine's.
pub(crate) fn create(
    settings: &Settings,
    rank: u32,
    ip: IpAddr,
    seed: u64,
) -> Result<Box<dyn Engine>, Failure> {
    let engine = sound(settings, rank, ip, seed)?;
    Ok(match settings.flags.plant {
        Some(plant) => Box::new(Planted::new(engine, plant)),
        None => engine,
    })
}

/// The engine without a planted defect.
fn sound(settings: &Settings, rank: u32, ip: IpAddr, seed: u64) -> Result<Box<dyn Engine>, Failure> {
    match settings.flags.engine {
        Name::Nixl => return Ok(Box::new(nixl::Nixl::open(nixl_options(settings, rank)?).map_err(failure)?)),
        Name::Ucx => return Ok(Box::new(ucx::Ucx::open(ucx_config(settings, rank)?).map_err(failure)?)),
        _ => {}
    }
    let choice = choice(settings);
    let transport = choice.transport().unwrap_or(Transport::Auto);
    let progress = if settings.flags.enable_pt { Progress::Thread } else { Progress::Inline };
    let (engine, _) = engines::create(Setup {
        engine: &choice,
        // Unique on every host, also beside a run of before that has not quite ended.
        name: &format!("nixlbench-{rank}-{seed:016x}"),
        transport,
        cooperate: Cooperate::On,
        ip: &ip.to_string(),
        ofi: &libfabric_flags(settings, rank)?,
        libraries: &engines::Flags::default(),
        progress,
        plant: None,
        timeout: settings.flags.timeout,
    })
    .map_err(failure)?;
    Ok(engine)
}

/// The pairs of `--engine_options`.
fn options(settings: &Settings) -> Result<Vec<(&str, &str)>, Failure> {
    let options = settings.flags.engine_options.split(',').filter(|option| !option.is_empty());
    let pair = |option: &'_ str| Failure::usage(format!("--engine_options: `{option}` is no key=value"));
    options.map(|option| option.split_once('=').ok_or_else(|| pair(option))).collect()
}

fn no_option(key: &str, value: &str, known: &str) -> Failure {
    Failure::usage(format!("--engine_options: `{key}={value}` is not understood; there is {known}"))
        .hint("--device_list names NICs")
}

/// NIXL as nixlbench sets it up, and what the options say beyond that.
fn nixl_options(settings: &Settings, rank: u32) -> Result<nixl::Options, Failure> {
    let flags = &settings.flags;
    let mut parameters = Vec::new();
    if ["UCX", "LIBFABRIC"].contains(&flags.backend.as_str()) {
        parameters.push(("num_threads".to_owned(), flags.progress_threads.to_string()));
    }
    if flags.backend == "UCX" {
        parameters.push(("num_workers".into(), (flags.num_threads + 1).to_string()));
        let devices = devices(settings, rank);
        if !devices.is_empty() {
            parameters.push(("device_list".into(), devices.join(",")));
        }
    }
    for (key, value) in options(settings)? {
        parameters.retain(|(known, _)| known != key);
        parameters.push((key.to_owned(), value.to_owned()));
    }
    Ok(nixl::Options {
        library: flags.engine_library.clone(),
        backend: flags.backend.clone(),
        parameters,
        progress_thread: flags.enable_pt,
        prepared_lists: flags.prepared_xfer,
        ..nixl::Options::default()
    })
}

fn ucx_config(settings: &Settings, rank: u32) -> Result<ucx::Config, Failure> {
    let mut config = ucx::Config { library: settings.flags.engine_library.clone(), ..ucx::Config::default() };
    for (key, value) in options(settings)? {
        match key {
            "tls" => config.tls = Some(value.replace('+', ",")),
            _ => return Err(no_option(key, value, "tls=NAME+NAME")),
        }
    }
    config.devices = Some(devices(settings, rank).join(",")).filter(|devices| !devices.is_empty());
    Ok(config)
}

/// What is asked of libfabric, by kvrail or plainly.
fn libfabric_flags(settings: &Settings, rank: u32) -> Result<ofi::Flags, Failure> {
    let mut asked = ofi::Flags { devices: devices(settings, rank), ..ofi::Flags::default() };
    if settings.flags.engine != Name::Memcpy {
        asked.libfabric = settings.flags.engine_library.clone();
    }
    for (key, value) in options(settings)? {
        match key {
            _ if settings.flags.engine == Name::Memcpy => {
                return Err(no_option(key, value, "none with memcpy"));
            }
            "provider" => {
                let provider = value.parse();
                asked.provider =
                    Some(provider.map_err(|e: kvrail::ofi::OpenError| Failure::usage(e.to_string()))?);
            }
            "rails" => {
                let rails = value.parse().ok().filter(|rails| (1..=64).contains(rails));
                asked.rails = Some(rails.ok_or_else(|| no_option(key, value, "rails=1 to rails=64"))?);
            }
            _ => return Err(no_option(key, value, "provider=NAME and rails=N")),
        }
    }
    Ok(asked)
}

/// Whether the engine is other people's code, whose libraries may crash at an ordinary exit.
pub(crate) fn is_foreign(settings: &Settings) -> bool {
    engines::is_foreign(settings.flags.engine)
}

/// The NICs of this rank; none for all.
fn devices(settings: &Settings, rank: u32) -> Vec<String> {
    let Some(devices) = &settings.devices else { return Vec::new() };
    match settings.plan.shape().mode {
        Mode::Multi => devices.clone(),
        Mode::Single => {
            let index = match settings.plan.side(rank) {
                Side::Initiator => rank,
                Side::Target => rank - settings.plan.initiators(),
            };
            devices.get(index as usize).cloned().into_iter().collect()
        }
    }
}

/// What every transfer tells its target; none where the engine has no notifications.
pub(crate) fn notification(name: Name) -> Option<&'static [u8]> {
    [Name::Kvrail, Name::Nixl].contains(&name).then_some(NOTIFICATION)
}

/// Memory of one process, and the pages that it is on. It is touched when its blocks are first written, as nixlbench's is.
///
/// # Errors
/// When the system refuses it.
pub(crate) fn allocate(settings: &Settings, side: Side) -> Result<(Memory, String), Failure> {
    let bytes = settings.plan.pool_bytes(side);
    let refused = |e: AllocateError| {
        let failure = Failure::environment(format!("no {bytes} bytes of memory for a {side}: {e}"));
        if settings.flags.use_hugepages {
            failure.hint("reserve huge pages: sysctl vm.nr_hugepages=N")
        } else {
            failure.hint("use a smaller --total_buffer_size")
        }
    };
    let len = usize::try_from(bytes).map_err(|_| {
        Failure::usage(format!("--total_buffer_size: {bytes} bytes are beyond this platform"))
    })?;
    let huge_pages = if settings.flags.use_hugepages { HugePages::Require } else { HugePages::Never };
    let options = Options { huge_pages, prefault: false };
    match settings.flags.memory {
        report::Memory::Private => {
            PrivateMemory::allocate(len, options).map(|memory| (memory.pages().to_string(), memory.into()))
        }
        report::Memory::Shared | report::Memory::Huge => {
            SharedMemory::allocate(len, options).map(|memory| (memory.pages().to_string(), memory.into()))
        }
    }
    .map(|(pages, memory)| (memory, pages))
    .map_err(refused)
}

/// The address of this host on the way to another one; loopback when there is no way or it is this host itself.
pub(crate) fn address_towards(host: &str, port: u16) -> IpAddr {
    let towards = |any: &str| {
        // Connecting a UDP socket sends nothing; it only asks for the route.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((host, port)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    towards("0.0.0.0").or_else(|| towards("::")).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
