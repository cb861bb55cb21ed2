//! `kvrail bench`: finds the other side, runs the cases, and writes what came out, also when it ended early.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use kvrail_report::table::Table;
use kvrail_report::{Document, Fingerprint, Used, time};

use crate::args::{Bench, Conducted};
use crate::artifacts::{Artifacts, Side};
use crate::case::Verify;
use crate::conductor;
use crate::control::{Hello, Message};
use crate::control_path;
use crate::engines;
use crate::environment::{self, PROFILE, VERSION};
use crate::expect::Expect;
use crate::failure::{Failure, Kind};
use crate::initiator::{self, Audience, Part};
use crate::kid;
use crate::link::Link;
use crate::meet;
use crate::player;
use crate::rows::Carrier;
use crate::run::{Place, Run};
use crate::signals;
use crate::sink::Sink;
use crate::spawn::Spawned;
use crate::target;

/// How long a target that is kept waits for somebody to come or to press Ctrl-C: a year.
const KEPT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs the command.
///
/// # Errors
/// What ended it early; all that was measured has been written by then.
pub(crate) fn run(bench: &Bench) -> Result<(), Failure> {
    let mut bench = bench.clone();
    bench.engines.has_rdma = engines::has_rdma();
    let bench = &bench;
    let run = bench.resolve(environment::random_seed())?;
    run.ofi.check(|variable| std::env::var(variable).ok())?;
    if run.spawned || run.conducted.is_some() {
        signals::ignore_interrupt()?;
    } else {
        signals::install()?;
        if PROFILE == "debug" {
            eprintln!("warning: this is a debug build; its figures mean nothing (build with --release)");
        }
    }
    if let Some(part) = run.conducted {
        return conducted(&run, part);
    }
    match &run.place {
        Place::Both => initiate(bench, &run, None),
        Place::Initiator(address) => initiate(bench, &run, Some(address)),
        Place::Target(address) => serve(bench, &run, address),
        Place::Auto(address) => match meet::bind_or_leave(address)? {
            Some(listener) => {
                eprintln!("this side is the target: it was first at {address}");
                serve_with_log(bench, &run, &listener)
            }
            None => {
                eprintln!("this side is the initiator: {address} is taken or another host's");
                initiate(bench, &run, Some(address))
            }
        },
    }
}

/// A process of one engine among several. It leaves without the destructors of that engine's libraries.
fn conducted(run: &Run, part: Conducted) -> Result<(), Failure> {
    let ended = match (part, &run.place, run.engines.as_slice()) {
        (Conducted::Initiator, Place::Initiator(target), [engine]) => player::play(run, engine, target),
        (Conducted::Target, ..) => serve_stdin(run),
        _ => Err(Failure::usage("--conducted is for processes that kvrail starts itself")),
    };
    // Who started this process has been told over the link.
    engines::leave(ended.err().map_or(0, |failure| i32::from(failure.kind.exit_code())))
}

/// Serves the link that this process was given as its stdin.
fn serve_stdin(run: &Run) -> Result<(), Failure> {
    kid::end_with_parent()?;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = stdin.map_err(|e| Failure::environment(format!("stdin is no link: {e}")))?;
    let link = Link::open(TcpStream::from(socket), hello("target"))?;
    target::serve(&link, run, None)
}

pub(crate) fn hello(role: &str) -> Hello {
    Hello {
        program: VERSION.into(),
        boot_id: environment::boot_id(),
        pid: std::process::id(),
        role: role.into(),
        environment: environment::here(),
        fingerprint: Box::new(Fingerprint::read(VERSION)),
    }
}

fn serve(bench: &Bench, run: &Run, address: &str) -> Result<(), Failure> {
    serve_with_log(bench, run, &meet::listen(address)?)
}

/// A target that someone started keeps its log, too.
fn serve_with_log(bench: &Bench, run: &Run, listener: &TcpListener) -> Result<(), Failure> {
    let id = time::run_id(SystemTime::now(), environment::random_seed());
    let artifacts = bench.artifacts.as_deref().map(|above| Artifacts::begin(above, &id, Side::Target));
    let artifacts = artifacts.transpose()?;
    let ended = serve_on(run, listener);
    if let Some(artifacts) = artifacts {
        artifacts.end();
    }
    ended
}

fn serve_on(run: &Run, listener: &TcpListener) -> Result<(), Failure> {
    let address = listener
        .local_addr()
        .map_err(|e| Failure::environment(format!("the listening socket is gone: {e}")))?;
    if run.spawned {
        kid::report_to_parent(address)?;
    } else {
        eprintln!("target listens on {address}; start: kvrail bench --role initiator --connect {address}");
    }
    if !run.keep {
        let ended = serve_one(run, listener, meet::accept(listener, run.timeout)?);
        // The parent of a spawned target tells the user; two voices would say the same.
        return if run.spawned { Ok(()) } else { ended };
    }
    loop {
        match meet::accept(listener, KEPT_MAX) {
            Ok(met) => match serve_one(run, listener, met) {
                Ok(()) => eprintln!("it is done; waiting for the next one"),
                Err(failure) if failure.kind == Kind::Interrupted => return Ok(()),
                Err(failure) => eprintln!("{failure}\nwaiting for the next one"),
            },
            Err(failure) if failure.kind == Kind::Interrupted => return Ok(()),
            Err(failure) => return Err(failure),
        }
    }
}

/// Serves an initiator that has come.
fn serve_one(
    run: &Run,
    listener: &TcpListener,
    (socket, from): (TcpStream, SocketAddr),
) -> Result<(), Failure> {
    let link = Link::open(socket, hello("target"))?;
    if !run.spawned {
        eprintln!("initiator {from} on {} is here", link.hello.environment.host);
    }
    target::serve(&link, run, Some(listener))
}

fn initiate(bench: &Bench, run: &Run, address: Option<&str>) -> Result<(), Failure> {
    let expect = bench.expect.as_deref().map(Expect::read).transpose()?;
    let mut report = Document::begin(SystemTime::now(), environment::random_seed(), run.seed);
    let artifacts =
        bench.artifacts.as_deref().map(|above| Artifacts::begin(above, &report.run_id, Side::Initiator));
    let artifacts = artifacts.transpose()?;
    let mut sink = Sink::open(bench)?;
    report.command = environment::command();
    report.environment.initiator = Some(environment::here());
    report.fingerprint.initiator = Some(Fingerprint::read(VERSION));
    let ended = measure(run, address, &mut report, &mut sink);
    report.conclude(ended.clone());
    let met = expect.map_or(Ok(()), |expect| expect.judge(std::slice::from_mut(&mut report)));
    sink.finish(&report)?;
    artifacts.map_or(Ok(()), |artifacts| artifacts.finish(&report))?;
    ended?;
    conductor::verdict(&report)?;
    met?;
    if run.cases.iter().any(|case| case.verify == Verify::Off) {
        return Err(Failure::environment(
            "nobody looked at the bytes, so whether the figures count cannot be told",
        )
        .hint("leave --verify off out"));
    }
    Ok(())
}

fn measure(run: &Run, address: Option<&str>, report: &mut Document, sink: &mut Sink) -> Result<(), Failure> {
    // Dropped last: the child ends by itself when the link has said goodbye.
    let spawned;
    let address = match address {
        Some(address) => address.to_string(),
        None => {
            spawned = Spawned::target(run)?;
            spawned.address()
        }
    };
    let link = Link::open(meet::connect(&address, run.timeout)?, hello("initiator"))?;
    let there = &link.hello;
    eprintln!(
        "target: process {} on {} ({}), seed {}",
        there.pid, there.environment.host, there.environment.cpu, run.seed
    );
    if there.environment.profile == "debug" && PROFILE != "debug" {
        eprintln!("warning: the target is a debug build; its figures mean nothing");
    }
    report.environment.target = Some(there.environment.clone());
    report.fingerprint.target = Some((*there.fingerprint).clone());
    let ended = if run.is_conducted() {
        conductor::measure(run, &link, &address, report, sink)
    } else {
        measure_all(run, &link, report, sink)
    };
    // The target may be the one that is gone; then there is nobody to tell.
    let _ = match &ended {
        Ok(()) => link.send(Message::Bye),
        // The advice is for whoever reads it here, beside the counters of this side.
        Err(failure) => {
            link.send(Message::Abort { failure: Failure { hints: Vec::new(), ..failure.clone() } })
        }
    };
    ended
}

fn measure_all(run: &Run, link: &Link, report: &mut Document, sink: &mut Sink) -> Result<(), Failure> {
    let began = Instant::now();
    if let Some(transports) = &run.control {
        for &transport in transports {
            let control = control_path::measure(link, run, transport)?;
            sink.text(&Table::control(&control))?;
            report.controls.push(control);
        }
        if let [one] = report.controls.as_slice() {
            report.control = Some(one.clone());
            report.controls.clear();
        }
        return Ok(());
    }
    let mut table = Table::default();
    let mut carrier = None;
    sink.expect(run.cases.len());
    for case in &run.cases {
        sink.begin(&case.to_string());
        let mut met: Option<Used> = None;
        let mut said = |now: &Carrier| {
            met = Some(now.used());
            if carrier
                .as_ref()
                .is_none_or(|was: &Carrier| (&was.transport, &was.reason) != (&now.transport, &now.reason))
            {
                sink.say(&format!("transport {}: {}", now.transport, now.reason));
                carrier = Some(now.clone());
            }
        };
        let mut audience = Audience { began, rails: sink.speaker(), carrier: &mut said };
        let part = Part { link, run, engine: &run.engines[0], case };
        let initiator::Outcome { row, used, failure } = initiator::run_case(part, &mut audience);
        if let Some(row) = row {
            sink.text(&table.row(&row, used.as_ref().or(met.as_ref())))?;
            report.results.push(row);
        }
        if let Some(used) = used.or(met) {
            report.met(used);
        }
        if let Some(failure) = failure {
            sink.text(&table.footer())?;
            return Err(failure);
        }
        sink.step();
    }
    sink.text(&table.footer())
}
