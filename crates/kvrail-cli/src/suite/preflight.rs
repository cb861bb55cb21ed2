//! Before anything is measured: what the host has, and what will make figures mean less.

use super::needs::{Host, Need};
use crate::environment::{self, PROFILE};
use crate::failure::Failure;

/// What was seen.
pub(super) struct Seen {
    /// For the reader, a line each.
    pub(super) lines: Vec<String>,
    /// What makes the figures doubtful.
    pub(super) warnings: Vec<String>,
}

/// Looks at the host.
///
/// # Errors
/// When nothing can be measured here at all.
pub(super) fn look(host: &Host) -> Result<Seen, Failure> {
    let here = environment::here();
    let mut lines = vec![
        format!("host {}: {}, {} CPUs, {}", here.host, here.cpu, here.cpus, here.kernel),
        format!("memory {}", crate::units::about(here.memory_bytes)),
    ];
    for need in Need::all() {
        lines.push(match host.finding(need) {
            Ok(found) => format!("{need:<11} {found}"),
            Err(missing) => format!("{need:<11} -  {missing}"),
        });
    }
    let mut warnings = Vec::new();
    if PROFILE == "debug" {
        warnings.push("this is a debug build; its figures mean nothing (build with --release)".to_string());
    }
    if let Some(load) = load_1min().filter(|load| *load > here.cpus as f64 * 0.5) {
        warnings.push(format!("the host is busy: load {load:.1} on {} CPUs", here.cpus));
    }
    for variable in ["FI_LOG_LEVEL", "NIXL_LOG_LEVEL", "UCX_LOG_LEVEL"] {
        let value = std::env::var(variable).unwrap_or_default().to_ascii_lowercase();
        if matches!(value.as_str(), "debug" | "trace" | "data" | "req" | "func" | "poll") {
            warnings.push(format!("{variable}={value} slows transfers down many times"));
        }
    }
    environment::check_memory(1 << 30, "a suite")?;
    Ok(Seen { lines, warnings })
}

fn load_1min() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
