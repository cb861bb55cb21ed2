//! Limits of the process and its control group, and settings of the machine that move figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{text, word};
use crate::units;

/// Limits and settings; null: not read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// What the process runs in: `docker`, `podman`, `kubernetes`; null: no container that shows itself.
    pub container: Option<String>,
    /// Memory limit of the control group or the tightest one above it, bytes; null: none.
    pub cgroup_memory_bytes: Option<u64>,
    /// CPU limit of the control group, in thousandths of a CPU; null: none.
    pub cgroup_cpu_millis: Option<u64>,
    /// Memory that may be locked, bytes; null: unlimited or not read.
    pub memlock_bytes: Option<u64>,
    /// Huge pages of each size that were set aside.
    pub huge_pages: Vec<HugePages>,
    /// Transparent huge pages: `always`, `madvise`, `never`.
    pub transparent_huge_pages: Option<String>,
    /// CPU frequency governors in use; empty where the machine has none.
    pub governors: Vec<String>,
    /// Automatic NUMA balancing.
    pub numa_balancing: Option<bool>,
}

/// Huge pages of one size.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HugePages {
    /// Size, bytes.
    pub page_bytes: u64,
    /// Pages that were set aside.
    pub total: u64,
    /// Those of them that were free when the run began.
    pub free: u64,
}

/// CPUs whose governor is looked at.
const CPUS_MAX: u32 = 4096;

impl Limits {
    pub(super) fn read(root: &Path) -> Self {
        let (cgroup_memory_bytes, cgroup_cpu_millis) = control_group(root);
        Self {
            container: container(root),
            cgroup_memory_bytes,
            cgroup_cpu_millis,
            memlock_bytes: memlock(root),
            huge_pages: huge_pages(root),
            transparent_huge_pages: chosen(&root.join("sys/kernel/mm/transparent_hugepage/enabled")),
            governors: governors(root),
            numa_balancing: word(&root.join("proc/sys/kernel/numa_balancing")).map(|w| w != "0"),
        }
    }

    /// As words, for comparing. Free huge pages are left out: they change by themselves.
    pub(crate) fn words(&self) -> BTreeMap<String, String> {
        let size = |bytes: Option<u64>| bytes.map(units::about);
        let pages = self.huge_pages.iter().filter(|pages| pages.total > 0);
        let pages: Vec<String> =
            pages.map(|p| format!("{} of {}", units::grouped(p.total), units::about(p.page_bytes))).collect();
        [
            ("container", self.container.clone()),
            ("memory limit", size(self.cgroup_memory_bytes)),
            ("CPU limit", self.cgroup_cpu_millis.map(|millis| format!("{} CPUs", millis as f64 / 1e3))),
            ("memlock limit", size(self.memlock_bytes)),
            ("huge pages", (!pages.is_empty()).then(|| pages.join(", "))),
            ("transparent huge pages", self.transparent_huge_pages.clone()),
            ("CPU governor", (!self.governors.is_empty()).then(|| self.governors.join(", "))),
            ("NUMA balancing", self.numa_balancing.map(|on| if on { "on" } else { "off" }.into())),
        ]
        .into_iter()
        .filter_map(|(name, words)| Some((name.to_string(), words?)))
        .collect()
    }
}

fn container(root: &Path) -> Option<String> {
    let kinds = [
        ("var/run/secrets/kubernetes.io", "kubernetes"),
        ("run/.containerenv", "podman"),
        (".dockerenv", "docker"),
    ];
    kinds.into_iter().find(|(file, _)| root.join(file).exists()).map(|(_, kind)| kind.into())
}

/// Tightest memory and CPU limits of this process's control group and those above it (version 2).
fn control_group(root: &Path) -> (Option<u64>, Option<u64>) {
    let top = root.join("sys/fs/cgroup");
    let Some(groups) = text(&root.join("proc/self/cgroup")) else { return (None, None) };
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return (None, None) };
    let mut group = if path.split('/').any(|part| part == "..") { top.clone() } else { top.join(path) };
    let (mut memory, mut cpu): (Option<u64>, Option<u64>) = (None, None);
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    while group.starts_with(&top) {
        memory = least(memory, word(&group.join("memory.max")).and_then(|w| w.parse().ok()));
        let max = word(&group.join("cpu.max"));
        let share = max.as_deref().and_then(|words| {
            let (quota, period) = words.split_once(' ')?;
            quota.parse::<u64>().ok()?.checked_mul(1000)?.checked_div(period.parse().ok()?)
        });
        cpu = least(cpu, share);
        if !group.pop() {
            break;
        }
    }
    (memory, cpu)
}

fn memlock(root: &Path) -> Option<u64> {
    let limits = text(&root.join("proc/self/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn huge_pages(root: &Path) -> Vec<HugePages> {
    let Ok(folder) = fs::read_dir(root.join("sys/kernel/mm/hugepages")) else { return Vec::new() };
    let mut pages: Vec<HugePages> = folder
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let kib = path.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            let number = |file: &str| word(&path.join(file))?.parse().ok();
            Some(HugePages {
                page_bytes: kib.parse::<u64>().ok()?.checked_mul(1024)?,
                total: number("nr_hugepages")?,
                free: number("free_hugepages")?,
            })
        })
        .collect();
    pages.sort_unstable_by_key(|pages| pages.page_bytes);
    pages
}

/// The word in brackets: `always [madvise] never`.
fn chosen(path: &Path) -> Option<String> {
    let line = word(path)?;
    Some(line.split_once('[')?.1.split_once(']')?.0.into())
}

fn governors(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for cpu in 0..CPUS_MAX {
        let cpu = root.join(format!("sys/devices/system/cpu/cpu{cpu}"));
        if !cpu.exists() {
            break;
        }
        found.extend(word(&cpu.join("cpufreq/scaling_governor")));
    }
    found.sort_unstable();
    found.dedup();
    found
}
