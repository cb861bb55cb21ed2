//! The control path, measured: creating an agent, registering thousands of regions, metadata, import. No block is moved, and
//! only kvrail has it.

use std::time::{Duration, Instant};

use kvrail_engines::Name;
use kvrail_report::Control;

use crate::case::{Cooperate, Memory, Progress, Transport};
use crate::control::Message;
use crate::endpoint::Endpoint;
use crate::engines::{Choice, Setup};
use crate::environment;
use crate::failure::Failure;
use crate::link::Link;
use crate::pool;
use crate::run::Run;
use crate::target::ROUND_MAX;

/// Repetitions of a control measurement.
const CONTROL_REPETITIONS: u32 = 7;
/// Regions of a control measurement: the name of its field says so, too.
const CONTROL_REGIONS: u32 = 10_000;
/// Regions of a control measurement at most.
const CONTROL_REGIONS_MAX: u32 = 100_000;
/// Bytes of each of them.
const CONTROL_REGION_BYTES: u64 = 4096;

/// Measures the control path on one transport.
///
/// # Errors
/// What ended it early.
pub(crate) fn measure(link: &Link, run: &Run, transport: Transport) -> Result<Control, Failure> {
    let mut times: [Vec<u64>; 4] = Default::default();
    let (mut metadata_bytes, mut name) = (0, String::new());
    environment::check_memory(
        2 * u64::from(CONTROL_REGIONS) * CONTROL_REGION_BYTES,
        "the control measurement",
    )?;
    for repetition in 0..CONTROL_REPETITIONS {
        link.send(Message::OpenControl { regions: CONTROL_REGIONS, transport })?;
        let awaited = "its registrations";
        match link.receive(awaited, run.timeout)? {
            Message::ControlReady { create_agent_ns, register_ns, export_ns } => {
                for (times, ns) in times.iter_mut().zip([create_agent_ns, register_ns, export_ns]) {
                    times.push(ns);
                }
            }
            other => return Err(link.unexpected(awaited, &other)),
        }
        let metadata = link.receive_blob("its metadata", run.timeout)?;
        metadata_bytes = metadata.len() as u64;
        let agent = format!("kvrail-bench-initiator-{}-c{repetition}", std::process::id());
        let endpoint = Endpoint::create(Setup {
            engine: &Choice::plain(Name::Kvrail),
            name: &agent,
            transport,
            cooperate: Cooperate::On,
            ip: &link.local_ip(),
            ofi: &run.ofi,
            libraries: &run.libraries,
            progress: run.progress,
            plant: run.plant,
            timeout: run.timeout,
        })?;
        let start = Instant::now();
        let transport = endpoint.import(&metadata)?;
        times[3].push(start.elapsed().as_nanos().try_into().unwrap_or(u64::MAX));
        name = transport;
        drop(endpoint);
        link.send(Message::Close)?;
        match link.receive("the end of the measurement", run.timeout)? {
            Message::Closed { .. } => {}
            other => return Err(link.unexpected("the end of the measurement", &other)),
        }
    }
    let [create, register, export, import] = times.map(|mut t| {
        t.sort_unstable();
        t[t.len() / 2] as f64 / 1e6
    });
    Ok(Control {
        transport: name,
        repetitions: CONTROL_REPETITIONS,
        create_agent_ms: create,
        register_10000_ms: register,
        export_ms: export,
        metadata_bytes,
        import_ms: import,
    })
}

/// The target's part.
///
/// # Errors
/// What ended it early.
pub(crate) fn serve(link: &Link, regions: u32, transport: Transport, run: &Run) -> Result<(), Failure> {
    if regions == 0 || regions > CONTROL_REGIONS_MAX {
        return Err(Failure::usage(format!("{regions} regions are not within 1 to {CONTROL_REGIONS_MAX}")));
    }
    let bytes = u64::from(regions) * CONTROL_REGION_BYTES;
    environment::check_memory(bytes, "the target")?;
    let backing = pool::allocate(Memory::Shared, bytes)?;
    let start = Instant::now();
    let name = format!("kvrail-bench-target-{}", std::process::id());
    let mut endpoint = Endpoint::create(Setup {
        engine: &Choice::plain(Name::Kvrail),
        name: &name,
        transport,
        cooperate: Cooperate::On,
        ip: &link.local_ip(),
        ofi: &run.ofi,
        libraries: &run.libraries,
        progress: Progress::Thread,
        plant: None,
        timeout: run.timeout,
    })?;
    let created = Instant::now();
    let parts = endpoint.register_parts(&backing, regions)?;
    let registered = Instant::now();
    let metadata = endpoint.metadata()?;
    let exported = Instant::now();
    let ns = |d: Duration| d.as_nanos().try_into().unwrap_or(u64::MAX);
    link.send(Message::ControlReady {
        create_agent_ns: ns(created - start),
        register_ns: ns(registered - created),
        export_ns: ns(exported - registered),
    })?;
    link.send_blob(metadata)?;
    let awaited = "the end of the control measurement";
    match link.receive(awaited, ROUND_MAX)? {
        Message::Close => {}
        other => return Err(link.unexpected(awaited, &other)),
    }
    drop(parts);
    drop(endpoint);
    link.send(Message::Closed { stray: None })
}
