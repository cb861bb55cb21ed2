//! The engine that the flags name, and the memory that it moves.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use kvrail::Memory;
use kvrail::memory::{AllocateError, HugePages, Options, PrivateMemory, SharedMemory};
use kvrail_engines::{Engine, Name};
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

/// Makes the engine of this rank. `ip` is where others reach this host.
///
/// # Errors
/// When this host lacks what it needs, or an option is none of the engine's.
pub(crate) fn create(settings: &Settings, rank: u32, ip: IpAddr, seed: u64) -> Result<Box<dyn Engine>, Failure> {
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
        ofi: &libfabric(settings, rank)?,
        progress,
        timeout: settings.flags.timeout,
    })
    .map_err(failure)?;
    Ok(engine)
}

/// What is asked of libfabric.
fn libfabric(settings: &Settings, rank: u32) -> Result<ofi::Flags, Failure> {
    let flags = &settings.flags;
    let mut asked = ofi::Flags::default();
    let takes_options = [Name::Kvrail, Name::Libfabric].contains(&flags.engine);
    for option in flags.engine_options.split(',').filter(|option| !option.is_empty() && takes_options) {
        let bad = |why: &str| Failure::usage(format!("--engine_options: `{option}` {why}"));
        let (key, value) = option.split_once('=').ok_or_else(|| bad("is no key=value"))?;
        match key {
            "provider" => {
                asked.provider = Some(value.parse().map_err(|e: kvrail::ofi::OpenError| bad(&e.to_string()))?);
            }
            "rails" => {
                let rails = value.parse().ok().filter(|rails| (1..=64).contains(rails));
                asked.rails = Some(rails.ok_or_else(|| bad("is no number from 1 to 64"))?);
            }
            _ => return Err(bad("is none of provider, rails").hint("--device_list names NICs")),
        }
    }
    asked.devices = devices(settings, rank);
    asked.libfabric = flags.engine_library.clone().filter(|_| takes_options);
    Ok(asked)
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
    let len = usize::try_from(bytes)
        .map_err(|_| Failure::usage(format!("--total_buffer_size: {bytes} bytes are beyond this platform")))?;
    let huge_pages = if settings.flags.use_hugepages { HugePages::Require } else { HugePages::Never };
    let options = Options { huge_pages, prefault: false };
    match settings.flags.memory {
        report::Memory::Private => PrivateMemory::allocate(len, options)
            .map(|memory| (memory.pages().to_string(), memory.into())),
        report::Memory::Shared | report::Memory::Huge => SharedMemory::allocate(len, options)
            .map(|memory| (memory.pages().to_string(), memory.into())),
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
