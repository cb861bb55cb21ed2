//! What the figures of a run may depend on, apart from the run itself: versions, limits, settings, topology, environment.
//!
//! Two runs that differ are compared by these first. Whatever cannot be read is left out, never guessed. Every text goes
//! through [`crate::redact`]. Reading takes a few milliseconds and touches files of `/proc` and `/sys` only.

mod git;
mod limits;
mod topology;
mod variables;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use git::Git;
pub use limits::{HugePages, Limits};
pub use topology::{Nics, TopologySummary, path_ceiling};

use crate::redact;

/// What one side's figures may depend on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fingerprint {
    /// Versions by component: `kvrail`, `kernel`, `efa` (driver), `efa-installer`, `nvidia` (driver), `mlx5_core`; engines and
    /// libraries as they say themselves stand in the rows and in `transports`.
    pub versions: BTreeMap<String, String>,
    /// What the machine is, as its firmware names it; on EC2 the instance type.
    pub machine: Option<String>,
    /// Architecture that the program was built for.
    pub architecture: String,
    /// NUMA nodes, GPUs and NICs in short.
    pub topology: Option<TopologySummary>,
    /// Variables of the environment that move figures.
    pub variables: BTreeMap<String, String>,
    /// Commit of the working directory, if that is a repository.
    pub git: Option<Git>,
    /// Limits of the process and its control group, and settings of the machine.
    pub limits: Limits,
}

impl Fingerprint {
    /// Of this process and host. `kvrail` is the program's version.
    #[must_use]
    pub fn read(kvrail: &str) -> Self {
        let here = std::env::current_dir().ok();
        let variables = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        Self::read_from(Path::new("/"), kvrail, here.as_deref(), variables)
    }

    /// The same, of a root with `proc` and `sys` below it.
    #[must_use]
    pub fn read_from(
        root: &Path,
        kvrail: &str,
        here: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let topology = topology::read(root);
        Self {
            versions: versions(root, kvrail),
            machine: topology.as_ref().and_then(|t| t.machine().map(redact::text)),
            architecture: std::env::consts::ARCH.into(),
            topology: topology.as_ref().map(TopologySummary::new),
            variables: variables::relevant(variables),
            git: here.and_then(git::read),
            limits: Limits::read(root),
        }
    }

    /// What differs from `other`, one line each: `kernel 6.1 here, 6.8 there`. Nothing that changes from run to run by
    /// itself is compared.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut out = Vec::new();
        let mut say = |what: &str, a: &str, b: &str| {
            if a != b {
                let or_none =
                    |text: &str| if text.is_empty() { "none".to_string() } else { text.to_string() };
                out.push(format!("{what}: {} in A, {} in B", or_none(a), or_none(b)));
            }
        };
        fn keys<'a>(a: &'a BTreeMap<String, String>, b: &'a BTreeMap<String, String>) -> Vec<&'a String> {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            keys
        }
        let of = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
        for key in keys(&self.versions, &other.versions) {
            say(key, &of(&self.versions, key), &of(&other.versions, key));
        }
        say("machine", self.machine.as_deref().unwrap_or(""), other.machine.as_deref().unwrap_or(""));
        say("architecture", &self.architecture, &other.architecture);
        let summary = |of: &Self| of.topology.as_ref().map_or_else(String::new, ToString::to_string);
        say("topology", &summary(self), &summary(other));
        for key in keys(&self.variables, &other.variables) {
            if key != "SLURM_JOB_ID" {
                say(key, &of(&self.variables, key), &of(&other.variables, key));
            }
        }
        let (here, there) = (self.limits.words(), other.limits.words());
        for key in keys(&here, &there) {
            say(key, &of(&here, key), &of(&there, key));
        }
        let commit = |of: &Self| of.git.as_ref().map_or_else(String::new, |git| git.commit.clone());
        say("commit", &commit(self), &commit(other));
        out
    }
}

fn versions(root: &Path, kvrail: &str) -> BTreeMap<String, String> {
    let module = |name: &str| word(&root.join("sys/module").join(name).join("version"));
    let installer = || {
        let text = text(&root.join("opt/amazon/efa_installed_packages"))?;
        text.lines().find_map(|line| {
            line.trim_start_matches('#')
                .trim()
                .strip_prefix("EFA installer version:")
                .map(|v| v.trim().to_string())
        })
    };
    [
        ("kvrail", Some(kvrail.to_string())),
        ("kernel", word(&root.join("proc/sys/kernel/osrelease"))),
        ("efa", module("efa")),
        ("efa-installer", installer()),
        ("gdrdrv", module("gdrdrv")),
        ("mlx5_core", module("mlx5_core")),
        ("nvidia", module("nvidia")),
        ("nvidia_peermem", module("nvidia_peermem")),
    ]
    .into_iter()
    .filter_map(|(name, version)| Some((name.to_string(), redact::text(&version?))))
    .collect()
}

/// Bytes of a file at most: these files are short, and a path may be led elsewhere.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A short text file; nothing where it cannot be read.
fn text(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Its first line, if that says something.
fn word(path: &Path) -> Option<String> {
    let text = text(path)?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_root_yields_versions_limits_and_variables_and_nothing_that_is_not_there() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        put(root, "sys/module/efa/version", "2.17.2g\n");
        put(root, "proc/sys/kernel/osrelease", "6.8.0-aws\n");
        put(
            root,
            "opt/amazon/efa_installed_packages",
            "# EFA installer version: 1.43.2\n# Debug packages: no\n",
        );
        put(root, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1024\n");
        put(root, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "1000\n");
        put(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n");
        put(
            root,
            "proc/self/limits",
            "Limit   Soft Limit   Hard Limit   Units\nMax locked memory         65536                65536                bytes\n",
        );
        let variables =
            [("FI_PROVIDER", "efa"), ("HF_TOKEN", "x"), ("NIXL_ETCD_PASSWORD", "x"), ("HOME", "/root")];
        let variables = variables.map(|(name, value)| (name.to_string(), value.to_string()));
        let print = Fingerprint::read_from(root, "0.1.0", None, variables);
        assert_eq!(print.versions["efa"], "2.17.2g");
        assert_eq!(print.versions["efa-installer"], "1.43.2");
        assert_eq!(print.versions["kernel"], "6.8.0-aws");
        assert!(!print.versions.contains_key("nvidia"));
        let expected = [
            ("FI_PROVIDER".to_string(), "efa".to_string()),
            ("NIXL_ETCD_PASSWORD".into(), redact::REDACTED.into()),
        ];
        assert_eq!(print.variables, expected.into());
        assert_eq!(print.limits.memlock_bytes, Some(65536));
        assert_eq!(print.limits.governors, ["performance"]);
        assert_eq!(print.limits.huge_pages, [HugePages { page_bytes: 2 << 20, total: 1024, free: 1000 }]);
    }

    #[test]
    fn this_host_has_a_fingerprint_and_does_not_differ_from_itself() {
        let here = Fingerprint::read("0.1.0");
        assert!(here.versions.contains_key("kernel"), "{here:?}");
        assert_eq!(here.differences(&here.clone()), [""; 0]);
        let json = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), here);
        let other = Fingerprint { machine: Some("p5.48xlarge".into()), ..here.clone() };
        let said = here.differences(&other);
        assert!(said.len() == 1 && said[0].ends_with("p5.48xlarge in B"), "{said:?}");
    }
}
