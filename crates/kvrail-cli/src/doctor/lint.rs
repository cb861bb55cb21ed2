//! `kvrail doctor lint`: mistakes in the files that deploy and configure. What is looked for is in the crate `kvrail-doctor`.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use kvrail_doctor::lint;

use super::telling::Telling;
use crate::failure::Failure;

/// Files, and how what is found in them is told.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Lint {
    /// Kubernetes manifests, Slurm and shell scripts, vLLM, SGLang and Ray settings, Dockerfiles, env files, Python programs; `-` is stdin.
    /// Files that are given together are looked at as one deployment
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Take all of them for this, instead of recognising it by what stands in them
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    #[command(flatten)]
    telling: Telling,
}

const EXIT_CODES: &str = "\
Exit codes: 0 nothing but notes; 1 a mistake was found; 2 a file could not be read.";

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    /// Kubernetes objects, as YAML or JSON
    Kubernetes,
    /// A Ray Serve configuration
    Ray,
    /// A batch script
    Slurm,
    /// A script, a preamble, a command line
    Shell,
    /// What an image is built from
    Dockerfile,
    /// NAME=value lines
    Env,
    /// A program that configures engines or agents
    Python,
    /// Any other YAML or JSON: a launcher's job, vLLM's settings
    Settings,
}

impl From<Kind> for lint::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Kubernetes => Self::Kubernetes,
            Kind::Ray => Self::Ray,
            Kind::Slurm => Self::Slurm,
            Kind::Shell => Self::Shell,
            Kind::Dockerfile => Self::Dockerfile,
            Kind::Env => Self::Environment,
            Kind::Python => Self::Python,
            Kind::Settings => Self::Settings,
        }
    }
}

/// Looks at files.
pub(crate) fn main(arguments: &Lint) -> Result<ExitCode, Failure> {
    let begin = Instant::now();
    let mut unread = Vec::new();
    let sources: Vec<_> = arguments
        .files
        .iter()
        .filter_map(|name| lint::read_file(name).map_err(|error| unread.push(error)).ok())
        .collect();
    let mut linted = lint::lint(&sources, arguments.kind.map(Into::into));
    linted.errors.splice(0..0, unread);
    let mut report = linted.report().took(begin.elapsed());
    if arguments.telling.verbose {
        let kinds = linted.files.iter().map(|(name, kind)| format!("{name}: {}\n", kind.name()));
        report = report.table(kinds.collect::<String>());
    }
    arguments.telling.tell(&report)
}
