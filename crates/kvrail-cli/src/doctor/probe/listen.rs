//! The side that waits for a probe, and does as it is told: it obeys one prober at a time and checks all that it is told.

use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use super::Probe;
use super::end::{End, Opening, Refused, SMALL_BYTES};
use super::side::Here;
use super::word::{Opened, Word};
use crate::bench::hello;
use crate::control::Message;
use crate::failure::{Failure, Kind};
use crate::link::Link;
use crate::meet;
use crate::pattern::Source;

/// How long a listener waits for somebody to come.
const KEPT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest wait for the prober's next word: it may be measuring 64 rails. (One that is gone is noticed much earlier.)
const WORD_MAX: Duration = Duration::from_secs(600);
/// Metadata of one rail.
const BLOB_MAX: Duration = Duration::from_secs(10);

/// Listens.
pub(super) fn main(probe: &Probe, address: &str) -> Result<ExitCode, Failure> {
    let listener = meet::listen(address)?;
    let bound = listener
        .local_addr()
        .map_err(|error| Failure::environment(format!("the listening socket is gone: {error}")))?;
    let name = crate::environment::here().host;
    eprintln!("listening on {bound}; on the other host: kvrail doctor probe {name}:{}", bound.port());
    loop {
        let ended = serve_one(probe, &listener);
        match ended {
            Err(failure) if failure.kind == Kind::Interrupted && probe.keep => return Ok(ExitCode::SUCCESS),
            Err(failure) if probe.keep => eprintln!("{failure}\nwaiting for the next one"),
            Ok(()) if probe.keep => eprintln!("it is done; waiting for the next one"),
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(failure) => return Err(failure),
        }
    }
}

fn serve_one(probe: &Probe, listener: &TcpListener) -> Result<(), Failure> {
    let (socket, from) = meet::accept(listener, KEPT_MAX).map_err(|failure| match failure.kind {
        Kind::Peer => Failure::peer("nobody came to probe within a day"),
        _ => failure,
    })?;
    let link = Link::open(socket, hello("listener"))?;
    eprintln!("{from} on {} probes", link.hello.environment.host);
    let ended = serve(probe, &link);
    if let Err(failure) = &ended {
        // If the link is gone, so is who would want to know.
        let _ = link.send(Message::Abort { failure: failure.clone() });
    }
    ended
}

fn serve(probe: &Probe, link: &Link) -> Result<(), Failure> {
    let here = Here::look(None, probe.libfabric.as_deref());
    say(link, Word::Side { side: Box::new(here.side.clone()) })?;
    let mut ends = Ends(Vec::new());
    loop {
        let word = match link.receive("the next step of the probe", WORD_MAX)? {
            Message::Probe { word } => *word,
            Message::Bye => return Ok(()),
            other => return Err(link.unexpected("the next step of the probe", &other)),
        };
        word.check(ends.0.len()).map_err(|why| Failure::peer(format!("the prober asked too much: {why}")))?;
        match word {
            // What the other side is, is the prober's to judge.
            Word::Side { .. } => {}
            Word::Open { carrier, devices, seed, patience_ms } => {
                let ip = link.local_ip();
                let opening = Opening {
                    carrier: &carrier,
                    device: "",
                    ip: &ip,
                    library: probe.libfabric.as_deref(),
                    source: Source::Target,
                    seed,
                    index: 0,
                    patience: Duration::from_millis(patience_ms),
                };
                // Devices that are held twice are not opened twice.
                ends.0.clear();
                ends.0 = open(&opening, &devices);
                tell_opened(link, &ends.0)?;
            }
            Word::Meet { rails } => {
                let mut failures = Vec::new();
                for rail in rails {
                    let metadata = link.receive_blob("a rail's metadata", BLOB_MAX)?;
                    let met = match &mut ends.0[usize::from(rail)] {
                        Ok(end) => end.meet(&metadata),
                        Err(refused) => Err(refused.why.clone()),
                    };
                    failures.push(met.err());
                }
                say(link, Word::Met { failures })?;
            }
            Word::Poison { rail } => {
                if let Ok(end) = &ends.0[usize::from(rail)] {
                    end.poison();
                }
                say(link, Word::Poisoned)?;
            }
            Word::Check { rail, bytes } => {
                let end = ends.0[usize::from(rail)].as_ref();
                let end = end
                    .map_err(|refused| Failure::peer(format!("rail {rail} is not open: {}", refused.why)))?;
                if let Some(plant) = probe.plant.filter(|plant| plant.rail == rail && bytes > SMALL_BYTES) {
                    end.damage(plant.kind, bytes);
                }
                let wrong = end.check(&super::ask::step_name(true, bytes), bytes);
                say(link, Word::Checked { wrong })?;
            }
            Word::Count => {
                let rails = ends.0.iter().map(|end| end.as_ref().ok()?.counted()).collect();
                say(link, Word::Counted { rails })?;
            }
            Word::AskGroups => say(link, Word::Groups { groups: here.groups() })?,
            other => {
                return Err(Failure::peer(format!("the prober says what only a listener says: {other:?}")));
            }
        }
    }
}

fn tell_opened(link: &Link, ends: &[Result<End, Refused>]) -> Result<(), Failure> {
    let mut blobs = Vec::new();
    let rails = ends.iter().map(|end| {
        let metadata = end.as_ref().map_err(Clone::clone).and_then(|end| Ok((end, end.metadata()?)));
        match metadata {
            Ok((end, metadata)) => {
                blobs.push(metadata);
                Opened { failure: None, emulated: end.emulated }
            }
            Err(Refused { why, emulated }) => Opened { failure: Some(why), emulated },
        }
    });
    let rails = rails.collect();
    say(link, Word::Opened { rails })?;
    blobs.into_iter().try_for_each(|blob| link.send_blob(blob))
}

/// Opens all rails at once: each takes a while, and none of them a core.
pub(super) fn open(opening: &Opening<'_>, devices: &[String]) -> Vec<Result<End, Refused>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(index, device)| scope.spawn(move || End::open(&Opening { device, index, ..*opening })))
            .collect();
        let panicked = |_| Err(Refused::from("a defect of kvrail: opening it panicked".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

/// The ends of all rails. They are closed at once: one that is dead takes its time.
pub(super) struct Ends(pub(super) Vec<Result<End, Refused>>);

impl Drop for Ends {
    fn drop(&mut self) {
        let ends = std::mem::take(&mut self.0);
        std::thread::scope(|scope| {
            for end in ends {
                scope.spawn(move || drop(end));
            }
        });
    }
}

pub(super) fn say(link: &Link, word: Word) -> Result<(), Failure> {
    link.send(Message::Probe { word: Box::new(word) })
}
