//! `kvrail doctor lint`: mistakes in the files that deploy and configure. What is looked for is in the crate `kvrail-doctor`.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kvrail_doctor::examine::Verdict;
use kvrail_doctor::lint::{self, Report};
use kvrail_doctor::{Finding, Severity};

use crate::failure::Failure;

/// Files, and how what is found in them is told.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Lint {
    /// Kubernetes manifests, Slurm and shell scripts, vLLM, SGLang and Ray settings, Dockerfiles, env files; `-` is stdin.
    /// Files that are given together are looked at as one deployment
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Take all of them for this, instead of recognising it by what stands in them
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// How what is found is written
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Tell all evidence, and what each file was taken for
    #[arg(long, short)]
    verbose: bool,
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
    /// Any other YAML or JSON: a launcher's job, vLLM's settings
    Settings,
}

/// How it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
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
            Kind::Settings => Self::Settings,
        }
    }
}

/// Looks at files.
pub(crate) fn main(arguments: &Lint) -> Result<ExitCode, Failure> {
    let mut unread = Vec::new();
    let sources: Vec<_> = arguments
        .files
        .iter()
        .filter_map(|name| lint::read_file(name).map_err(|error| unread.push(error)).ok())
        .collect();
    let mut report = lint::lint(&sources, arguments.kind.map(Into::into));
    report.errors.splice(0..0, unread);
    match arguments.format {
        Format::Json => crate::sink::print(&json(&report))?,
        Format::Text => {
            let colours = std::io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            crate::sink::print(&text(&report, colours, arguments.verbose))?;
        }
    }
    for error in &report.errors {
        eprintln!("error: {error}");
    }
    Ok(ExitCode::from(report.verdict().exit_code()))
}

fn text(report: &Report, colours: bool, verbose: bool) -> String {
    let mut text = String::new();
    let paint = |severity: Severity| match (colours, severity) {
        (false, _) => ("", ""),
        (true, Severity::Error) => ("\x1b[1;31m", "\x1b[0m"),
        (true, Severity::Warning) => ("\x1b[1;33m", "\x1b[0m"),
        (true, Severity::Note) => ("\x1b[1;36m", "\x1b[0m"),
    };
    // What fails comes first in each file, notes last: a reader stops at what matters.
    let mut findings: Vec<&Finding> = report.findings.iter().collect();
    findings.sort_by_key(|finding| {
        let file = finding.location.as_ref().map(|at| at.file.as_str()).unwrap_or_default();
        let file = report.files.iter().position(|(name, _)| name == file);
        (finding.severity == Severity::Note, file)
    });
    for finding in findings {
        let (on, off) = paint(finding.severity);
        if let Some(at) = &finding.location {
            let _ = write!(text, "{}:{}:{}: ", at.file, at.line, at.column.unwrap_or(1));
        }
        let _ = writeln!(text, "{on}{}{off}: {} [{}]", finding.severity, finding.title, finding.rule.id);
        let _ = writeln!(text, "  cause: {}", finding.cause);
        if verbose {
            for evidence in &finding.evidence {
                let _ = writeln!(text, "  saw:   {}: {}", evidence.source, evidence.seen);
            }
            let _ = writeln!(text, "  sure:  {}", finding.confidence);
        }
        for step in &finding.fix {
            let _ = write!(text, "  fix:   {}", step.text);
            match &step.command {
                Some(command) if command.contains('\n') => {
                    text.push_str(":\n");
                    command.lines().for_each(|line| {
                        let _ = writeln!(text, "         {line}");
                    });
                }
                Some(command) => {
                    let _ = writeln!(text, ": {command}");
                }
                None => text.push('\n'),
            }
        }
        if finding.count > 1 {
            let _ = writeln!(text, "  and {} more like it", finding.count - 1);
        }
        text.push('\n');
    }
    if verbose {
        for (name, kind) in &report.files {
            let _ = writeln!(text, "{name}: {}", kind.name());
        }
    }
    let of = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let told = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let files = told(report.files.len(), "file");
    if report.findings.is_empty() && report.errors.is_empty() {
        let _ = writeln!(text, "{files}: nothing wrong found by {} rules", lint::RULES.len());
    } else {
        let counts = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")]
            .map(|(severity, noun)| told(of(severity), noun));
        let _ = writeln!(text, "{files}: {}", counts.join(", "));
        if report.verdict() == Verdict::Findings {
            text.push_str("a page about a rule: kvrail doctor --explain ID\n");
        }
    }
    text
}

fn json(report: &Report) -> String {
    let files =
        report.files.iter().map(|(name, kind)| serde_json::json!({ "file": name, "kind": kind.name() }));
    let document = serde_json::json!({
        "schema": "kvrail.lint.v1",
        "files": files.collect::<Vec<_>>(),
        "findings": report.findings,
        "errors": report.errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}
