//! `kvrail suite`: a plan of benchmarks, run in order, resumed after an interruption, one report at the end.

mod components;
mod folder;
mod needs;
mod plan;
mod preflight;
mod report;
mod run;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::failure::Failure;
use needs::Host;
use plan::{Action, PLAN_BYTES_MAX, Plan, SHIPPED};

/// Runs and shows plans.
#[derive(Subcommand, Debug)]
pub(crate) enum Suite {
    /// Run a plan: phase by phase, each step with its artefacts, one report at the end
    #[command(after_long_help = RUN_HELP)]
    Run(Run),
    /// Show what a plan would run on this host, and what it would skip and why
    Show(Show),
    /// List the plans that come with the program
    List,
}

/// What runs, and where its results go.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// A plan that comes with the program, or a file
    #[arg(value_name = "PLAN")]
    plan: String,
    /// Where the run's folder is; one that is there is resumed [default: kvrail-suite-PLAN]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where another host waits (kvrail bench --listen … --keep); steps that need a peer are skipped without
    #[arg(long, value_name = "HOST:PORT")]
    peer: Option<String>,
    /// Run every step again, also those that have ended
    #[arg(long)]
    fresh: bool,
    /// Only these phases or steps, comma-separated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    only: Vec<String>,
}

/// What is shown.
#[derive(Args, Debug)]
pub(crate) struct Show {
    /// A plan that comes with the program, or a file
    #[arg(value_name = "PLAN")]
    plan: String,
    /// Where another host waits
    #[arg(long, value_name = "HOST:PORT")]
    peer: Option<String>,
    /// Print the plan's file instead, to write one's own from
    #[arg(long)]
    toml: bool,
}

const RUN_HELP: &str = "\
Examples:
  kvrail suite run laptop                                 five minutes on one host
  kvrail suite run p5 --peer node-2:7100                  two P5; there: kvrail bench --listen 0.0.0.0:7100 --keep
  kvrail suite show p5 --toml > mine.toml                 a plan of one's own
  kvrail suite run mine.toml --only engines

A run that was interrupted goes on where it stopped when the same command is given again: steps that passed or failed are not
repeated, others are. A step of which the host lacks something is skipped, by name and with the reason.

Exit codes: 0 every step that could run passed; 1 one found something wrong; 2 one could not tell, or the run was interrupted.";

/// Runs the command.
pub(crate) fn main(suite: &Suite) -> Result<(), Failure> {
    match suite {
        Suite::Run(arguments) => run::run(arguments),
        Suite::Show(arguments) => show(arguments),
        Suite::List => {
            for (name, text) in SHIPPED {
                crate::sink::print(&format!("{name:<10} {}\n", Plan::parse(text, name)?.about))?;
            }
            Ok(())
        }
    }
}

fn show(arguments: &Show) -> Result<(), Failure> {
    let (plan, text) = load(&arguments.plan)?;
    if arguments.toml {
        return crate::sink::print(&text);
    }
    let host = Host::look(arguments.peer.as_deref());
    let mut out = format!("{}: {}\n", plan.name, plan.about);
    for phase in &plan.phases {
        out += &format!("\n{} ({})\n", phase.title, phase.id);
        for step in &phase.steps {
            let what = match host.missing(phase.needs.iter().chain(&step.needs)) {
                Some(reason) => format!("skipped: {reason}"),
                None => match &step.action {
                    Action::Preflight => "looks at this host".into(),
                    Action::Run(words) => {
                        let variables =
                            step.environment.iter().map(|(name, value)| format!("{name}={value} "));
                        format!("{}kvrail {}", variables.collect::<String>(), words.join(" "))
                    }
                },
            };
            out += &format!("  {:<28} {what}\n", step.id);
        }
    }
    crate::sink::print(&out)
}

/// A plan by its name, or from a file; and its text.
fn load(name: &str) -> Result<(Plan, String), Failure> {
    if let Some((name, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
        return Ok((Plan::parse(text, name)?, (*text).into()));
    }
    let text = read(Path::new(name)).map_err(|e| {
        let names: Vec<_> = SHIPPED.iter().map(|(name, _)| *name).collect();
        Failure::usage(format!("plan {name}: {e}"))
            .hint(format!("give a file, or a plan that comes with the program: {}", names.join(", ")))
    })?;
    Ok((Plan::parse(&text, name)?, text))
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(PLAN_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > PLAN_BYTES_MAX {
        return Err(std::io::Error::other(format!("more than {PLAN_BYTES_MAX} bytes are no plan")));
    }
    Ok(text)
}
