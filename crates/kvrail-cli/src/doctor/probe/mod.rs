//! `kvrail doctor probe`: small verified transfers with another host over every rail, and what is wrong between the two.
//!
//! One side listens, the other asks. Over the control link that `kvrail bench` has, too, they tell each other what they are, open an
//! agent for each pair of NICs, so that each rail's verdict is its own, and move a few bytes both ways. What was seen is judged by
//! [`kvrail_doctor::probe::judge`], which moves nothing.

mod ask;
mod end;
mod listen;
mod side;
pub(crate) mod word;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::telling::Telling;
use crate::failure::Failure;
use crate::signals;
use crate::units;

/// The port where nobody says another.
const PORT: u16 = 7200;
/// Rails of a probe at most.
pub(super) const RAILS_MAX: usize = 64;

/// Who is probed, and how.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Probe {
    /// The host that listens, with its port if that is not 7200
    #[arg(value_name = "HOST[:PORT]", required_unless_present = "listen", conflicts_with = "listen")]
    host: Option<String>,
    /// Be the other side: wait for a probe here [default: 0.0.0.0:7200]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "0.0.0.0:7200")]
    listen: Option<String>,
    /// Wait for the next probe when one is over
    #[arg(long, requires = "listen")]
    keep: bool,
    /// Probe the first N rails, or all of them
    #[arg(long, value_name = "all|N", default_value = "all", value_parser = rails)]
    rails: usize,
    /// What carries the bytes: efa-direct, efa, cxi, verbs, or tcp [default: the best that both sides have]
    #[arg(long, value_name = "NAME", conflicts_with = "listen")]
    over: Option<String>,
    /// libfabric.so.1 or its directory, this side's [default: searched for]
    #[arg(long, value_name = "PATH")]
    libfabric: Option<PathBuf>,
    /// How long a rail may take to answer
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = units::duration)]
    patience: Duration,
    /// How long the other side may take to be there, and all of the probe; a listener waits a day for somebody to come
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = units::duration)]
    timeout: Duration,
    /// Damage what arrived on a rail before it is looked at: RAIL:zeros, RAIL:stale, RAIL:swapped or RAIL:flipped
    #[arg(long, hide = true, requires = "listen", value_parser = end::Plant::parse)]
    plant: Option<end::Plant>,
    #[command(flatten)]
    telling: Telling,
}

const EXAMPLES: &str = "\
Examples:
  kvrail doctor probe --listen          on one host; it prints what to type on the other
  kvrail doctor probe node-2            on the other

  Start both as the workload is started: in its container, with its variables. With two pods:
  kubectl exec POD-2 -- kvrail doctor probe --listen &
  kubectl exec POD-1 -- kvrail doctor probe \"$(kubectl get pod POD-2 -o jsonpath='{.status.podIP}')\"

Exit codes: 0 healthy; 1 something was found; 2 could not tell.";

fn rails(text: &str) -> Result<usize, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(RAILS_MAX);
    }
    match text.parse() {
        Ok(count) if (1..=RAILS_MAX).contains(&count) => Ok(count),
        _ => Err(format!("write all, or a number from 1 to {RAILS_MAX}")),
    }
}

/// Probes, or is probed.
pub(super) fn main(probe: &Probe) -> Result<ExitCode, Failure> {
    signals::install()?;
    if let Some(provider) = &probe.over
        && provider != side::TCP
    {
        provider.parse::<kvrail::ofi::Provider>().map_err(|error| Failure::usage(error.to_string()))?;
    }
    match (&probe.listen, &probe.host) {
        (Some(address), _) => listen::main(probe, address),
        (None, Some(host)) => ask::main(probe, &with_port(host)),
        // clap requires one of them.
        (None, None) => Err(Failure::usage("name the host that listens, or --listen")),
    }
}

/// The address of a host: with the default port where it names none.
fn with_port(host: &str) -> String {
    let has_port = match host.rfind(':') {
        // An IPv6 address has colons of its own, and a port only behind brackets.
        Some(_) if host.starts_with('[') => !host.ends_with(']'),
        Some(_) => host.matches(':').count() == 1,
        None => false,
    };
    match has_port {
        true => host.into(),
        false if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{PORT}"),
        false => format!("{host}:{PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_port_gets_ours() {
        for (host, address) in [
            ("node-2", "node-2:7200"),
            ("node-2:99", "node-2:99"),
            ("10.0.0.7", "10.0.0.7:7200"),
            ("fd00::2", "[fd00::2]:7200"),
            ("[fd00::2]", "[fd00::2]:7200"),
            ("[fd00::2]:99", "[fd00::2]:99"),
        ] {
            assert_eq!(with_port(host), address);
        }
    }

    #[test]
    fn rails_are_all_or_a_number_within_the_limit() {
        assert_eq!(rails("all"), Ok(RAILS_MAX));
        assert_eq!(rails("4"), Ok(4));
        assert!(rails("0").is_err() && rails("65").is_err() && rails("many").is_err());
    }
}
