//! What this host is and has: facts for the report, and limits that are checked before memory is touched.

use std::fs;

use kvrail_report::Environment;

use crate::failure::Failure;
use crate::units;

/// Version of this program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `release` or `debug`.
pub(crate) const PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

/// Facts about this host; what cannot be read is left empty.
pub(crate) fn here() -> Environment {
    let name = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "CPU implementer"));
    Environment {
        kvrail: VERSION.into(),
        profile: PROFILE.into(),
        host: text(name.nodename()),
        kernel: format!("{} {}", text(name.sysname()), text(name.release())),
        cpu: cpu.unwrap_or_default().into(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        memory_bytes: meminfo("MemTotal").unwrap_or(0),
    }
}

/// The command line of this process as one would type it, without secrets: a path of the program says nothing elsewhere.
pub(crate) fn command() -> Vec<String> {
    kvrail_report::redact::command(std::iter::once("kvrail".into()).chain(std::env::args().skip(1)))
}

/// Identity of the running kernel: equal for all processes, and containers, of one host.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().into()).unwrap_or_default()
}

/// A seed that differs from run to run.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds each of these from the operating system. 53 bits survive JSON readers that know
    // only floating point.
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 11
}

/// Whether the kernel lets this process into another's memory. The rule is the one of process_vm_readv; opening, unlike
/// reading, asks for nothing else.
///
/// # Errors
/// That it does not. A process that cannot be seen (another pid namespace) is no answer, and counts as allowed.
pub(crate) fn may_reach_process(pid: u32) -> Result<(), std::io::Error> {
    match fs::File::open(format!("/proc/{pid}/mem")) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Err(e),
        _ => Ok(()),
    }
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    kib(field(&text, key)?)
}

fn kib(value: &str) -> Option<u64> {
    value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// A limit on memory, and what sets it.
struct Limit {
    bytes: u64,
    what: &'static str,
    hint: &'static str,
}

fn limits() -> Vec<Limit> {
    let mut limits = Vec::new();
    if let Some(bytes) = meminfo("MemAvailable") {
        limits.push(Limit { bytes, what: "available on this host", hint: "end something that holds memory" });
    }
    if let Some(bytes) = cgroup_headroom() {
        let hint = "raise the memory limit of the container or slice";
        limits.push(Limit { bytes, what: "left under this control group's limit", hint });
    }
    if let Some(bytes) = address_space_headroom() {
        limits.push(Limit {
            bytes,
            what: "left under the address space limit",
            hint: "raise it: ulimit -v unlimited",
        });
    }
    limits
}

/// Room below the tightest memory limit of this process's control group and its parents (version 2).
fn cgroup_headroom() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/').to_string();
    let root = std::path::Path::new("/sys/fs/cgroup");
    let mut group = root.join(path);
    let mut least = None;
    while group.starts_with(root) {
        let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
        if let (Some(max), Some(current)) = (number("memory.max"), number("memory.current")) {
            let room = max.saturating_sub(current);
            least = Some(least.map_or(room, |l: u64| l.min(room)));
        }
        if !group.pop() {
            break;
        }
    }
    least
}

fn address_space_headroom() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max address space"))?;
    let soft = line.trim_start_matches("Max address space").split_whitespace().next()?.parse::<u64>().ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let used = kib(field(&status, "VmSize")?)?;
    Some(soft.saturating_sub(used))
}

/// Refuses what this host cannot hold, before the kernel's killer finds out.
///
/// # Errors
/// An environment failure that names the amount, the limit and what sets it.
pub(crate) fn check_memory(bytes: u64, whose: &str) -> Result<(), Failure> {
    for limit in limits() {
        // A sixteenth stays free: page tables, buffers, and everyone else.
        if bytes > limit.bytes - limit.bytes / 16 {
            return Err(Failure::environment(format!(
                "{whose} needs {} of memory and {} is {}",
                units::about(bytes),
                units::about(limit.bytes),
                limit.what
            ))
            .hint("use a smaller --pool, --block or --batch")
            .hint(limit.hint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_there_is_is_refused_by_name() {
        let failure = check_memory(1 << 60, "the run").unwrap_err();
        assert!(failure.what.contains("the run needs 1 EiB") || failure.what.contains("TiB"), "{failure}");
        assert!(check_memory(4096, "the run").is_ok());
    }

    #[test]
    fn a_host_knows_itself() {
        let here = here();
        assert!(here.kernel.starts_with("Linux "), "{here:?}");
        assert!(here.cpus > 0 && here.memory_bytes > 0, "{here:?}");
        assert_eq!(boot_id().len(), 36);
        assert_ne!(random_seed(), random_seed());
    }

    #[test]
    fn fields_are_found_by_their_exact_start() {
        assert_eq!(field("a: 1\nab: 2 kB\n", "ab"), Some("2 kB"));
        assert_eq!(kib("2 kB"), Some(2048));
        assert_eq!(kib("x"), None);
    }
}
