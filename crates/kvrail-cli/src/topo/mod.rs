//! `kvrail topo`: what the host is made of and which rails serve which GPU, drawn for people and written for programs.
//!
//! Reading and the mapping's rule are in the crate `kvrail-topology`; here it is only shown.

mod json;
mod paint;
mod svg;
mod tables;
mod text;
mod view;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kvrail_topology::{Source, Topology, TopologyError};

use crate::failure::Failure;

/// How the topology is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// A drawing for terminals.
    Text,
    /// Schema kvrail.topo.v1.
    Json,
    /// A drawing for browsers and documents.
    Svg,
}

/// What is read, and how it is shown.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Topo {
    /// Read this sysfs tree, or a file that --capture wrote [default: $SYSFS_PATH, else /sys]
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "hwloc")]
    sysfs: Option<PathBuf>,
    /// Read what `lstopo --of xml FILE` wrote
    #[arg(long, value_name = "FILE")]
    hwloc: Option<PathBuf>,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write it to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write what was read to a file that --sysfs accepts elsewhere; no GUIDs, MAC addresses or serial numbers
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hwloc", "output", "format"])]
    capture: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  kvrail topo                                      this host
  kvrail topo --format svg --output host.svg       a drawing
  kvrail topo --format json                        for programs: schema kvrail.topo.v1
  kvrail topo --capture host.capture               what was read, to look at elsewhere:
  kvrail topo --sysfs host.capture
  lstopo --of xml host.xml; kvrail topo --hwloc host.xml

GPUs are numbered by PCI address, as CUDA does with CUDA_DEVICE_ORDER=PCI_BUS_ID.
GB/s are decimal (10^9 bytes). How rails are assigned and what sets a ceiling: docs/topology.md.

Exit codes: 0 shown (also where there is neither GPU nor RDMA device); 2 the source cannot be read.";

/// Shows the topology.
pub(crate) fn main(arguments: &Topo) -> Result<(), Failure> {
    let source = match (&arguments.hwloc, &arguments.sysfs) {
        (Some(file), _) => Source::Hwloc(file.clone()),
        (None, Some(root)) => Source::Sysfs(root.clone()),
        (None, None) => Source::default(),
    };
    if let Some(file) = &arguments.capture {
        return capture(source.path(), file);
    }
    let topology = Topology::read(&source).map_err(|error| failure(&error))?;
    for warning in topology.warnings() {
        eprintln!("warning: {warning}");
    }
    let colours = arguments.output.is_none()
        && std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let written = match arguments.format {
        Format::Text => text::draw(&topology, colours),
        Format::Svg => svg::draw(&topology),
        Format::Json => json::write(&topology, &source)?,
    };
    match &arguments.output {
        Some(file) => write_file(file, &written),
        None => crate::sink::print(&written),
    }
}

/// This host's topology as text, for a folder of artefacts.
pub(crate) fn drawing() -> Result<String, String> {
    Topology::read_default().map(|topology| text::draw(&topology, false)).map_err(|error| error.to_string())
}

fn capture(root: &Path, file: &Path) -> Result<(), Failure> {
    let comments =
        [format!("by kvrail {}; {}", crate::environment::VERSION, "no GUIDs, MAC addresses, serial numbers")];
    let text = kvrail_topology::capture(root, &comments).map_err(|error| failure(&error))?;
    write_file(file, &text)?;
    let lines = text.lines().count();
    eprintln!(
        "note: wrote {} lines to {}; look at it with --sysfs {}",
        lines,
        file.display(),
        file.display()
    );
    Ok(())
}

fn failure(error: &TopologyError) -> Failure {
    error.hints().into_iter().fold(Failure::environment(error.to_string()), Failure::hint)
}

fn write_file(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text)
        .map_err(|error| Failure::environment(format!("cannot write {}: {error}", file.display())))
}
