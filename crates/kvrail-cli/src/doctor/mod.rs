//! `kvrail doctor`: why transfers fail, hang or crawl here. What is known and how it is looked at is in the crate `kvrail-doctor`.

mod bundle;
mod explain;
mod lint;
mod log;
pub(crate) mod probe;
mod telling;
#[cfg(test)]
mod typed_tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use kvrail_doctor::config::Facts;
use kvrail_doctor::host::{Live, Scope};
use kvrail_doctor::render::Report;
use kvrail_doctor::{Host, catalogue, examine};

use crate::failure::Failure;
use telling::Telling;

pub(crate) use telling::write_whole;

/// What is looked at, and how it is told.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES, after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Doctor {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    patient: Patient,
    /// Run only these checks, comma-separated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    check: Vec<String>,
    /// Also write what the checks read here to a file, secrets taken out, for --from
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "explain", "list"])]
    bundle: Option<PathBuf>,
    /// Tell the story of a rule: what one sees, why, what mends it
    #[arg(long, value_name = "ID", conflicts_with_all = ["list", "check", "from"])]
    explain: Option<String>,
    /// List all rules, of this command and of its parts
    #[arg(long, conflicts_with_all = ["check", "from"])]
    list: bool,
    #[command(flatten)]
    telling: Telling,
}

/// Which host is looked at, and how.
#[derive(Args, Debug)]
pub(crate) struct Patient {
    /// Look at the host of this bundle; this one is asked nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["python", "etcd", "instance", "deadline"])]
    from: Option<PathBuf>,
    /// Also look at this Python environment; may be given again
    #[arg(long, value_name = "DIR")]
    python: Vec<PathBuf>,
    /// Also ask this etcd; may be given again
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// The instance type, where the metadata service does not say: p5.48xlarge
    #[arg(long, value_name = "TYPE")]
    instance: Option<String>,
    /// Longest wait for one answer of the system: a command, a request, a trial load [default: 1.5s]
    #[arg(long, value_name = "TIME", value_parser = crate::units::duration)]
    deadline: Option<Duration>,
}

/// What else than this host can be looked at. Each part flattens [`Telling`] and ends with [`Telling::tell`].
#[derive(Subcommand, Debug)]
enum Part {
    /// Small verified transfers with another host over every rail, and what is wrong between the two
    Probe(Box<probe::Probe>),
    /// Known failures in logs of the engines, libraries and the kernel, each explained once
    Log(log::Log),
    /// Mistakes in manifests, job scripts and engine settings, each with its line and the corrected text
    Lint(lint::Lint),
}

const EXIT_CODES: &str = "\
Exit codes: 0 healthy (notes do not count); 1 something was found; 2 could not tell (a check that matters could not look, usage).";

const EXAMPLES: &str = "\
Examples:
  kvrail doctor                                  this host: causes first, each with what to type
  kvrail doctor --verbose                        every check, every consequence, all evidence
  kvrail doctor --check memlock,debug-logging    these checks
  kvrail doctor --explain memlock                the story of a rule
  kvrail doctor --bundle node7.json              also what the checks read, to look at elsewhere
  kvrail doctor --from node7.json                elsewhere
  kvrail doctor --format markdown                to paste into an issue
  kvrail doctor probe node-2                     every rail between this host and another
  kvrail doctor log prefill.log decode.log       known failures in logs
  kvrail doctor lint pods.yaml run.sh            mistakes in what deploys it

Exit codes: 0 healthy (notes do not count); 1 something was found; 2 could not tell (a check that matters could not look, usage).";

/// Examines a host, or tells what is known.
pub(crate) fn main(arguments: &Doctor) -> Result<ExitCode, Failure> {
    if let Some(part) = &arguments.part {
        return match part {
            Part::Probe(probe) => probe::main(probe),
            Part::Log(arguments) => log::main(arguments),
            Part::Lint(arguments) => lint::main(arguments),
        };
    }
    let telling = &arguments.telling;
    if let Some(id) = &arguments.explain {
        return explain::explain(id, telling).map(|()| ExitCode::SUCCESS);
    }
    if arguments.list {
        return explain::list(telling).map(|()| ExitCode::SUCCESS);
    }
    let checks = catalogue::select(&arguments.check).map_err(Failure::usage)?;
    let (host, subject) = arguments.patient.host()?;
    let report = Report::of_host(subject, &examine(&host, &checks));
    // The bundle first: what was found is then the last that a person sees.
    if let Some(path) = &arguments.bundle {
        // What `kvrail config --from` will ask.
        let _ = Facts::of(&host);
        bundle::write(path, &host)?;
    }
    telling.tell(&report)
}

impl Patient {
    /// The host, and how it is called in a report.
    pub(crate) fn host(&self) -> Result<(Host, String), Failure> {
        if let Some(path) = &self.from {
            return bundle::read(path);
        }
        crate::signals::on_end(kvrail_doctor::host::kill_all)?;
        let mut live = Live::new();
        if let Ok(program) = std::env::current_exe() {
            live = live.with_program(&program);
        }
        if let Some(deadline) = self.deadline {
            live = live.with_patience(deadline);
        }
        let name = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let scope = Scope {
            python: self.python.iter().map(|path| named(&name(path))).collect(),
            etcd: self.etcd.clone(),
            instance: self.instance.clone(),
        };
        let host = Host::live(live, scope);
        let subject = bundle::this_host(&host);
        Ok((host, subject))
    }
}

fn named(path: &Path) -> String {
    path.display().to_string()
}

/// Loads libraries in this process, which was started for that, and says how it went. A crash says it otherwise.
pub(crate) fn load(libraries: &[PathBuf]) -> Result<(), Failure> {
    crate::sink::print(&kvrail_doctor::host::load_here(libraries))
}
