//! `kvrail softefa run`.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use softefa::libfabric;
use softefa::run::{Cause, End, FaultOrder, Loading, Outcome, Request, Said};
use softefa_fabric::Model;

use super::args::{Numa, Run};
use super::quantities::Rate;
use super::{clear_up, failure, fault};
use crate::environment;
use crate::failure::Failure;
use crate::units;

/// Separates the commands of the nodes.
const SEPARATOR: &str = "::";
/// Instead of a path: no libfabric.
const NO_LIBFABRIC: &str = "none";

pub(super) fn main(arguments: &Run) -> Result<ExitCode, Failure> {
    clear_up()?;
    let request = request(arguments)?;
    let quiet = arguments.quiet;
    let seed = request.seed;
    let idle = request.commands.is_empty();
    let outcome = softefa::run::run(&request, &mut |said| {
        if !quiet || matches!(&said, Said::Ended { end, .. } if *end != End::Exited(0)) {
            talk(&said, arguments, seed, idle);
        }
    })
    .map_err(failure)?;
    verdict(&outcome, &request, arguments.deadline)
}

fn request(arguments: &Run) -> Result<Request, Failure> {
    let mut request = Request::new(arguments.nodes);
    request.name = arguments.name.clone();
    request.nics = arguments.nics;
    request.shape = arguments.shape.clone();
    request.numa = match arguments.numa {
        Numa::Shape => softefa::run::Numa::Shape,
        Numa::Host => softefa::run::Numa::Host,
    };
    request.seed = arguments.seed.unwrap_or_else(environment::random_seed);
    request.model = model(arguments);
    request.rate_bps = match arguments.rate {
        Some(Rate::Bits(bits)) => Some(bits),
        _ => None,
    };
    request.faults = arguments.fault.iter().map(|text| fault_from(text)).collect::<Result<_, _>>()?;
    request.commands = commands(&arguments.command);
    request.deadline = arguments.deadline;
    request.after_listen = arguments.after_listen;
    request.listen_deadline = arguments.listen_deadline;
    request.fail_fast = arguments.fail_fast;
    request.raw = arguments.raw || arguments.nodes == 1;
    request.libfabric = libfabric(arguments.libfabric.as_deref())?;
    Ok(request)
}

fn model(arguments: &Run) -> Model {
    let mut model = if arguments.instant { Model::instant() } else { Model::default() };
    let set = |field: &mut u64, time: Option<Duration>| {
        if let Some(time) = time {
            *field = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        }
    };
    set(&mut model.base_ns, arguments.latency);
    set(&mut model.jitter_ns, arguments.jitter);
    set(&mut model.commit_ns, arguments.commit_delay);
    set(&mut model.unresponsive_ns, arguments.unresponsive_after);
    if let Some(ppm) = arguments.tail {
        model.tail_ppm = ppm.into();
    }
    if arguments.rate == Some(Rate::Unlimited) {
        model.rated = 0;
    }
    if arguments.loopback {
        model.loopback = 1;
    }
    model
}

/// A fault as it stands in quotes behind `--fault`.
fn fault_from(text: &str) -> Result<FaultOrder, Failure> {
    fault::parse(text).map_err(|why| Failure::usage(format!("--fault '{text}': {why}")))
}

/// The words between the separators.
fn commands(words: &[OsString]) -> Vec<Vec<OsString>> {
    if words.is_empty() {
        return Vec::new();
    }
    words.split(|word| word == OsStr::new(SEPARATOR)).map(<[OsString]>::to_vec).collect()
}

/// The libfabric that commands find. Not all commands need one: only one that was named has to be usable.
fn libfabric(named: Option<&Path>) -> Result<Option<Loading>, Failure> {
    if named == Some(Path::new(NO_LIBFABRIC)) {
        return Ok(None);
    }
    match libfabric::find(named) {
        Ok(found) => Ok(Some(found.loading())),
        Err(error) if named.is_some() || matches!(error, libfabric::Error::NotThere { .. }) => {
            let failure = Failure::environment(error.to_string());
            Err(error.hints().into_iter().fold(failure, Failure::hint))
        }
        Err(error) => {
            eprintln!("warning: {error}; commands that need libfabric will not find the emulated device");
            eprintln!("hint: `kvrail softefa check` tells more; `--libfabric none` if none is needed");
            Ok(None)
        }
    }
}

fn talk(said: &Said, arguments: &Run, seed: u64, idle: bool) {
    match said {
        Said::Up { name, path, nics, took } => {
            let ms = took.as_secs_f64() * 1e3;
            let count = |n: u32, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
            let (nodes, nics) = (count(arguments.nodes, "node"), count(*nics, "NIC"));
            eprintln!("fabric {name}: {nodes} with {nics} each, up in {ms:.0} ms, seed {seed}");
            if idle {
                eprintln!("its files are in {}", path.display());
                eprintln!("hint: kvrail softefa shell --name {name} --node 0; Ctrl-C here takes it down");
            }
        }
        Said::Ended { node, end, running } if *end != End::Exited(0) && !running.is_empty() => {
            let running: Vec<_> = running.iter().map(|n| format!("node{n}")).collect();
            eprintln!("node{node} {}; still running: {}", how(*end), running.join(", "));
        }
        Said::Ended { .. } => {}
        Said::Passed(_) if idle => {}
        Said::Passed(signal) => {
            eprintln!("{} passed on to the commands; once more kills them", signal_name(*signal));
        }
        Said::Note(note) => eprintln!("note: {note}"),
    }
}

/// How a command ended, after its node's name.
fn how(end: End) -> String {
    match end {
        End::Exited(code) => format!("exited with {code}"),
        End::Signalled(signal) => format!("was ended by {}", signal_name(signal)),
        End::Stopped => "was stopped".into(),
        _ => "was not started".into(),
    }
}

fn signal_name(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal).map_or_else(|| format!("signal {signal}"), String::from)
}

/// What the program says in the end, and its exit code.
fn verdict(outcome: &Outcome, request: &Request, deadline: Option<Duration>) -> Result<ExitCode, Failure> {
    let failed: Vec<String> = (0u32..)
        .zip(&outcome.ends)
        .filter(|(_, end)| **end != End::Exited(0))
        .map(|(node, end)| {
            let words = request.commands.get(node as usize).or(request.commands.first());
            let program =
                words.and_then(|words| words.first()).map(|word| word.to_string_lossy()).unwrap_or_default();
            format!("node{node} (`{program}`) {}", how(*end))
        })
        .collect();
    let failed = failed.join(", ");
    match outcome.cause {
        Cause::Finished if failed.is_empty() => Ok(ExitCode::SUCCESS),
        Cause::Finished | Cause::Failed => Err(Failure::check(failed)),
        Cause::Deadline => {
            let after = deadline.map(units::span).unwrap_or_default();
            Err(Failure::check(format!("still running after {after}: {failed}"))
                .hint("give it more time with --deadline"))
        }
        // Nobody reads: like any program in a pipe whose reader has gone, end without a word.
        Cause::Unread => Ok(ExitCode::from(2)),
        Cause::Signal(_) if request.commands.is_empty() => Ok(ExitCode::SUCCESS),
        Cause::Signal(signal) => {
            let what = if failed.is_empty() { String::new() } else { format!(": {failed}") };
            Err(Failure::environment(format!("ended by {}{what}", signal_name(signal))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_one_for_all_or_one_per_node() {
        let words = |text: &str| text.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        assert!(commands(&[]).is_empty());
        assert_eq!(commands(&words("a b")), [words("a b")]);
        assert_eq!(commands(&words("a b :: c")), [words("a b"), words("c")]);
        assert_eq!(commands(&words("a ::")), [words("a"), vec![]]);
    }
}
