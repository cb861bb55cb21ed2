//! `kvrail bench`: finds the other side, runs the cases, and writes what came out, also when it ended early.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kvrail_report::table::Table;
use kvrail_report::{Document, Fingerprint, Used, redact};

use crate::args::{Bench, Format};
use crate::case::Verify;
use crate::control::{Hello, Message};
use crate::environment::{self, PROFILE, VERSION};
use crate::failure::Failure;
use crate::initiator::{self, Audience};
use crate::link::{self, Link};
use crate::rails::Say;
use crate::rows::Carrier;
use crate::run::{Place, Run};
use crate::signals;
use crate::spawn::{self, Spawned};
use crate::target;

/// Runs the command.
///
/// # Errors
/// What ended it early; all that was measured has been written by then.
pub(crate) fn run(bench: &Bench) -> Result<(), Failure> {
    let run = bench.resolve(environment::random_seed())?;
    run.ofi.check(|variable| std::env::var(variable).ok())?;
    if run.spawned {
        signals::ignore_interrupt()?;
    } else {
        signals::install()?;
        if PROFILE == "debug" {
            eprintln!("warning: this is a debug build; its figures mean nothing (build with --release)");
        }
    }
    match &run.place {
        Place::Both => initiate(bench, &run, None),
        Place::Initiator(address) => initiate(bench, &run, Some(address)),
        Place::Target(address) => serve(&run, address),
        Place::Auto(address) => match link::bind_or_leave(address)? {
            Some(listener) => {
                eprintln!("this side is the target: it was first at {address}");
                serve_on(&run, &listener)
            }
            None => {
                eprintln!("this side is the initiator: {address} is taken or another host's");
                initiate(bench, &run, Some(address))
            }
        },
    }
}

fn hello(role: &str) -> Hello {
    Hello {
        program: VERSION.into(),
        boot_id: environment::boot_id(),
        pid: std::process::id(),
        role: role.into(),
        environment: environment::here(),
        fingerprint: Box::new(Fingerprint::read(VERSION)),
    }
}

fn serve(run: &Run, address: &str) -> Result<(), Failure> {
    serve_on(run, &link::listen(address)?)
}

fn serve_on(run: &Run, listener: &std::net::TcpListener) -> Result<(), Failure> {
    let address = listener
        .local_addr()
        .map_err(|e| Failure::environment(format!("the listening socket is gone: {e}")))?;
    if run.spawned {
        spawn::report_to_parent(address)?;
    } else {
        eprintln!("target listens on {address}; start: kvrail bench --role initiator --connect {address}");
    }
    let (socket, from) = link::accept(listener, run.timeout)?;
    let link = Link::open(socket, hello("target"))?;
    if !run.spawned {
        eprintln!("initiator {from} on {} is here", link.hello.environment.host);
    }
    let ended = target::serve(&link, run);
    // The parent of a spawned target tells the user; two voices would say the same.
    if run.spawned { Ok(()) } else { ended }
}

fn initiate(bench: &Bench, run: &Run, address: Option<&str>) -> Result<(), Failure> {
    let mut sink = Sink::open(bench)?;
    let mut report = Document::begin(SystemTime::now(), environment::random_seed(), run.seed);
    report.command = redact::command(std::env::args());
    report.environment.initiator = Some(environment::here());
    report.fingerprint.initiator = Some(Fingerprint::read(VERSION));
    let ended = measure(run, address, &mut report, &mut sink);
    report.conclude(ended.clone());
    sink.finish(&report)?;
    ended?;
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
            spawned = Spawned::start(run)?;
            spawned.address()
        }
    };
    let link = Link::open(link::connect(&address, run.timeout)?, hello("initiator"))?;
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
    let ended = measure_all(run, &link, report, sink);
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
            let control = initiator::run_control(link, run, transport)?;
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
        let (row, ended) = initiator::run_case(link, run, &run.engines[0], case, &mut audience);
        if let Some(row) = row {
            sink.text(&table.row(&row, met.as_ref()))?;
            report.results.push(row);
        }
        if let Some(used) = met {
            report.met(used);
        }
        if ended.is_err() {
            sink.text(&table.footer())?;
            return ended;
        }
        sink.step();
    }
    sink.text(&table.footer())
}

/// Where the result goes: the table to stdout as it grows, or a document at the end.
struct Sink {
    format: Format,
    file: Option<(File, String)>,
    bar: ProgressBar,
}

impl Sink {
    /// Opens the output first of all: a run of minutes must not end in a file that cannot be written.
    fn open(bench: &Bench) -> Result<Self, Failure> {
        let file = bench.output.as_deref().map(open_output).transpose()?;
        let talk =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let bar = ProgressBar::with_draw_target(
            Some(0),
            if talk { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Ok(Self { format: bench.format, file, bar })
    }

    fn expect(&self, cases: usize) {
        self.bar.set_length(cases as u64);
    }

    fn begin(&self, what: &str) {
        self.bar.set_message(what.to_string());
        self.bar.tick();
    }

    fn step(&self) {
        self.bar.inc(1);
    }

    /// Talk, on stderr.
    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// The same, from anywhere.
    fn speaker(&self) -> Say {
        let bar = self.bar.clone();
        Arc::new(move |line| bar.suspend(|| eprintln!("{line}")))
    }

    /// A part of the table, unless stdout is for a document.
    fn text(&mut self, text: &str) -> Result<(), Failure> {
        if self.format == Format::Table
            && let Some((file, path)) = &mut self.file
        {
            file.write_all(text.as_bytes()).map_err(|e| unwritable(path, &e))?;
        }
        if self.format == Format::Table || self.file.is_some() {
            return self.bar.suspend(|| print(text));
        }
        Ok(())
    }

    /// The document, if one was asked for.
    fn finish(&mut self, report: &Document) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        let document = match self.format {
            Format::Table => return Ok(()),
            Format::Json => report.json(),
            Format::Csv => kvrail_report::csv::csv(report),
        };
        match &mut self.file {
            None => print(&document),
            Some((file, path)) => {
                file.write_all(document.as_bytes())
                    .and_then(|()| file.flush())
                    .map_err(|e| unwritable(path, &e))?;
                eprintln!("written: {path}");
                Ok(())
            }
        }
    }
}

fn open_output(path: &Path) -> Result<(File, String), Failure> {
    let name = path.display().to_string();
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
    file.map(|f| (f, name.clone())).map_err(|e| unwritable(&name, &e))
}

fn unwritable(path: &str, e: &std::io::Error) -> Failure {
    Failure::environment(format!("cannot write {path}: {e}"))
        .hint("choose another place for --output, or leave it out to write to stdout")
}

/// Data, on stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(unwritable("to stdout", &e)),
        _ => Ok(()),
    }
}
