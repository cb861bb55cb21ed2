//! `cargo xtask softefa pingpong`: libfabric's own ping-pong, as Debian builds it, between two emulated nodes.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::node::{self, Run};
use super::{Bench, Common};
use crate::process;

const DEADLINE: Duration = Duration::from_secs(60);
/// fi_pingpong's own control port.
const PORT: &str = "47592";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Messages of each size
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    if Command::new("fi_pingpong").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return Err("fi_pingpong does not start: apt install libfabric-bin".into());
    }
    let bench = Bench::prepare(&args.common)?;
    let iterations = args.iterations.to_string();
    let words = ["fi_pingpong", "-p", "efa", "-e", "rdm", "-c", "-I", &iterations];
    let mut command = Run::new(&bench, &node::name("pingpong"), 1, &bench.libfabric)
        .option(&["--after-listen", PORT, "--deadline", &node::seconds(DEADLINE)])
        .on_next_node(words)
        .on_next_node(words.into_iter().chain(["127.0.0.1"]))
        .command();
    let finished = process::run(&mut command, DEADLINE + node::AROUND)?;
    print!("{}", finished.stdout);
    eprint!("{}", finished.stderr);
    match finished.status.code() {
        Some(0) => Ok(0),
        Some(1) => Ok(1),
        _ => Err(format!("kvrail softefa run ended with {}", finished.status)),
    }
}
