//! `kvrail config`: the settings with which an engine's KV caches travel here, from what doctor finds. What they are and why is decided
//! in `kvrail_doctor::config`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kvrail_doctor::config::{self, Ask, Backend, Facts, Refusal};
use kvrail_doctor::render::{self, Manner, Report};
use kvrail_doctor::{Kind, catalogue, examine};

use crate::doctor::{Patient, write_whole};
use crate::failure::Failure;

/// What the settings are for, and how they are written.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES, after_long_help = EXAMPLES)]
pub(crate) struct Config {
    /// What the settings are for
    engine: Engine,
    /// What the worker does [default for vllm: both]
    #[arg(long, value_enum, required_if_eq_any([("engine", "sglang"), ("engine", "dynamo")]))]
    role: Option<Role>,
    /// The engine of Dynamo's worker
    #[arg(long, value_enum, default_value_t = Worker::Vllm)]
    worker: Worker,
    /// What carries the bytes, in any case [default: the best that is here]
    #[arg(long, value_enum, ignore_case = true)]
    backend: Option<Carrier>,
    /// The worker's tensor-parallel size
    #[arg(long, visible_alias = "tensor-parallel-size", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    tp: Option<u32>,
    /// That of the workers on the other side
    #[arg(long, value_name = "N", requires = "tp", value_parser = clap::value_parser!(u32).range(1..=1024))]
    peer_tp: Option<u32>,
    /// What they are pasted into
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write to this file instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    patient: Patient,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Engine {
    /// `vllm serve`
    Vllm,
    /// `sglang.launch_server`
    Sglang,
    /// A worker of Dynamo: --worker
    Dynamo,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Role {
    /// Fills KV caches and gives them away
    #[value(alias = "producer", alias = "kv_producer")]
    Prefill,
    /// Takes KV caches and goes on from there
    #[value(alias = "consumer", alias = "kv_consumer")]
    Decode,
    /// Either (vLLM)
    #[value(alias = "kv_both")]
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Worker {
    Vllm,
    Sglang,
    Trtllm,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Carrier {
    /// NIXL's plugin for libfabric
    Libfabric,
    /// NIXL's plugin for UCX
    Ucx,
    /// kvrail in NIXL's place (kvrail-nixl)
    Kvrail,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Format {
    /// A shell, the reason above each value
    #[default]
    Shell,
    /// The container of a pod
    Yaml,
    /// A file of variables
    Env,
    /// The flags on one line
    Args,
    /// A program: schema kvrail.config.v1
    Json,
}

const EXIT_CODES: &str = "\
Exit codes: 0 settings; 1 what was found here keeps it from working (said on stderr); 2 could not tell (usage, environment).";

const EXAMPLES: &str = "\
Examples:
  kvrail config vllm --role prefill                      for the shell that starts it
  kvrail config vllm --role decode --tp 8 --peer-tp 4    both sides divide their heads differently
  kvrail config sglang --role decode --format yaml       for a pod
  kvrail config dynamo --worker trtllm --role prefill
  kvrail config vllm --from node7.json                   for the host of a bundle

Exit codes: 0 settings; 1 what was found here keeps it from working (said on stderr); 2 could not tell (usage, environment).";

/// Writes settings, or says why there are none.
pub(crate) fn main(arguments: &Config) -> Result<ExitCode, Failure> {
    let (host, subject) = arguments.patient.host()?;
    let examination = examine(&host, &catalogue::checks());
    let report = Report::of_host(subject, &examination);
    let found: Vec<_> = report.told().iter().map(|told| &told.finding).collect();
    let settings = match config::compose(&Facts::of(&host), &found, &arguments.ask()) {
        Ok(settings) => settings,
        Err(Refusal::Usage(why)) => return Err(Failure::usage(why)),
        Err(Refusal::Found { what, findings, meanwhile }) => {
            let why = Report::of_findings(Kind::Host, what, &[], findings).took(examination.took);
            eprint!("{}", render::terminal(&why, Manner::default()));
            if let Some(meanwhile) = meanwhile {
                eprintln!("meanwhile: {meanwhile}");
            }
            return Ok(ExitCode::from(1));
        }
    };
    let text = match arguments.format {
        Format::Shell => config::shell(&settings),
        Format::Yaml => config::yaml(&settings),
        Format::Env => config::env(&settings),
        Format::Args => config::args(&settings),
        Format::Json => config::json(&settings),
    };
    // What comes with reasons has these in it.
    if arguments.format == Format::Args {
        settings.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    match &arguments.output {
        Some(path) => write_whole(path, text.as_bytes(), 0o644)?,
        None => crate::sink::print(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Config {
    fn ask(&self) -> Ask {
        Ask {
            engine: match (self.engine, self.worker) {
                (Engine::Vllm, _) => config::Engine::Vllm,
                (Engine::Sglang, _) => config::Engine::Sglang,
                (Engine::Dynamo, Worker::Vllm) => config::Engine::Dynamo(config::Worker::Vllm),
                (Engine::Dynamo, Worker::Sglang) => config::Engine::Dynamo(config::Worker::Sglang),
                (Engine::Dynamo, Worker::Trtllm) => config::Engine::Dynamo(config::Worker::Trtllm),
            },
            role: match self.role {
                Some(Role::Prefill) => config::Role::Prefill,
                Some(Role::Decode) => config::Role::Decode,
                Some(Role::Both) | None => config::Role::Both,
            },
            backend: self.backend.map(|backend| match backend {
                Carrier::Libfabric => Backend::Libfabric,
                Carrier::Ucx => Backend::Ucx,
                Carrier::Kvrail => Backend::Kvrail,
            }),
            tensor_parallel: self.tp,
            peer_tensor_parallel: self.peer_tp,
        }
    }
}
