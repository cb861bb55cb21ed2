//! `kvrail doctor log`: what logs say that is known. What is known is in the crate `kvrail-doctor`.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvrail_doctor::log::Logs;

use super::telling::Telling;
use crate::failure::Failure;

/// Logs, and how what they say is told.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES, after_long_help = EXAMPLES)]
pub(crate) struct Log {
    /// Logs of the engines, libraries and the kernel, plain or gzip; `-` is stdin. What is given together explains each other: both
    /// sides' logs, and dmesg
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    #[command(flatten)]
    telling: Telling,
}

const EXIT_CODES: &str = "Exit codes: 0 nothing known was found; 1 something was; 2 a log could not be read, and nothing was found in the others.";

const EXAMPLES: &str = "\
Examples:
  kvrail doctor log prefill.log decode.log dmesg.txt    both sides and the kernel: causes first
  kubectl logs decode-0 | kvrail doctor log -           from a pipe
  kvrail doctor log --verbose worker-*.log.gz           every consequence, all evidence
  kvrail doctor --explain log-efa-remote-key            the story of what was found

Exit codes: 0 nothing known was found; 1 something was; 2 a log could not be read, and nothing was found in the others.";

/// A shorter log is read before a bar could be seen.
const WORTH_A_BAR_BYTES: u64 = 64 << 20;

/// Reads logs.
pub(crate) fn main(arguments: &Log) -> Result<ExitCode, Failure> {
    let mut logs = Logs::new();
    for name in &arguments.files {
        if name == "-" {
            // What cannot be read is in the report, with the reason.
            let _ = logs.read("stdin", io::stdin().lock());
        } else {
            match File::open(name) {
                Ok(file) => {
                    let bar = bar(&file, name);
                    let _ = logs.read(name, bar.wrap_read(file));
                    bar.finish_and_clear();
                }
                Err(error) => logs.unread(name, &error),
            }
        }
    }
    arguments.telling.tell(&logs.conclude())
}

/// How far a large file is read, for whoever sits at a terminal.
fn bar(file: &File, name: &str) -> ProgressBar {
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if bytes < WORTH_A_BAR_BYTES || plain || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes).with_message(name.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
