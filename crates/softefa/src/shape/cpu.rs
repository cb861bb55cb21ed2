//! Processors of a shape: packages, cores, threads, caches, and sets of logical CPUs as the kernel prints them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What a processor says it is; decides the form of `/proc/cpuinfo`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuModel {
    /// x86-64.
    X86 {
        /// CPUID vendor string.
        vendor: String,
        /// Model name.
        name: String,
        /// Display family.
        family: u32,
        /// Display model.
        model: u32,
        /// Stepping.
        stepping: u32,
    },
    /// aarch64: fields of MIDR_EL1.
    Arm {
        /// Implementer code (0x41 = Arm).
        implementer: u32,
        /// Variant.
        variant: u32,
        /// Part number.
        part: u32,
        /// Revision.
        revision: u32,
    },
}

impl CpuModel {
    /// Architecture as `uname -m` prints it.
    pub fn architecture(&self) -> &'static str {
        match self {
            CpuModel::X86 { .. } => "x86_64",
            CpuModel::Arm { .. } => "aarch64",
        }
    }
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// Data only.
    Data,
    /// Instructions only.
    Instruction,
    /// Both.
    Unified,
}

/// One level of cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheShape {
    /// Level, 1–3.
    pub level: u8,
    /// What it holds.
    pub kind: CacheKind,
    /// Size of one instance in bytes.
    pub size_bytes: u64,
    /// Associativity.
    pub ways: u32,
    /// Cores that share one instance.
    pub cores: u32,
}

/// Bytes of a cache line on every processor here.
pub const CACHE_LINE_BYTES: u64 = 64;

/// The processors of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuShape {
    /// What they are.
    pub model: CpuModel,
    /// The kernel's id of each package (socket).
    pub packages: Vec<u32>,
    /// Cores in a package.
    pub cores_per_package: u32,
    /// Hardware threads in a core.
    pub threads_per_core: u32,
    /// Caches, innermost first.
    pub caches: Vec<CacheShape>,
}

/// Where one logical CPU sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPlace {
    /// Index of its package in [`CpuShape::packages`].
    pub package: u32,
    /// Index of its core in the package.
    pub core: u32,
    /// Hardware thread of the core.
    pub thread: u32,
}

impl CpuShape {
    /// Number of logical CPUs.
    pub fn count(&self) -> u32 {
        self.packages.len() as u32 * self.cores_per_package * self.threads_per_core
    }

    /// The logical CPU at `place`. EC2's firmware numbers first threads of all cores first.
    pub fn cpu(&self, place: CpuPlace) -> u32 {
        let cores = self.packages.len() as u32 * self.cores_per_package;
        place.thread * cores + place.package * self.cores_per_package + place.core
    }

    /// Where logical CPU `cpu` sits.
    pub fn place(&self, cpu: u32) -> CpuPlace {
        let cores = self.packages.len() as u32 * self.cores_per_package;
        let core = cpu % cores;
        CpuPlace {
            package: core / self.cores_per_package,
            core: core % self.cores_per_package,
            thread: cpu / cores,
        }
    }

    /// The logical CPUs of `cores` cores of package `package`, from core `first` on.
    pub fn cores(&self, package: u32, first: u32, cores: u32) -> CpuSet {
        let last = (first + cores).min(self.cores_per_package);
        let mut set = CpuSet::empty(self.count());
        for thread in 0..self.threads_per_core {
            for core in first..last {
                set.insert(self.cpu(CpuPlace { package, core, thread }));
            }
        }
        set
    }

    /// The logical CPUs of package `package`.
    pub fn package(&self, package: u32) -> CpuSet {
        self.cores(package, 0, self.cores_per_package)
    }
}

/// A set of logical CPUs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSet {
    present: Vec<bool>,
}

impl CpuSet {
    /// No CPU of `count`.
    pub fn empty(count: u32) -> CpuSet {
        CpuSet { present: vec![false; count as usize] }
    }

    /// All of `count` CPUs.
    pub fn full(count: u32) -> CpuSet {
        CpuSet { present: vec![true; count as usize] }
    }

    fn insert(&mut self, cpu: u32) {
        if let Some(present) = self.present.get_mut(cpu as usize) {
            *present = true;
        }
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &CpuSet) {
        other.iter().for_each(|cpu| self.insert(cpu));
    }

    /// The CPUs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.present.iter().enumerate().filter(|(_, present)| **present).map(|(cpu, _)| cpu as u32)
    }

    /// As the kernel's `…list` files print it: `0-47,96-143`.
    pub fn list(&self) -> String {
        let mut text = String::new();
        let mut cpus = self.iter().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            let comma = if text.is_empty() { "" } else { "," };
            let _ = if first == last {
                write!(text, "{comma}{first}")
            } else {
                write!(text, "{comma}{first}-{last}")
            };
        }
        text
    }

    /// As the kernel's mask files print it: groups of 32 bits, highest first, the first one only as wide as the
    /// node has CPUs.
    pub fn mask(&self) -> String {
        let mut groups = Vec::new();
        for bits in self.present.chunks(32) {
            let value = bits.iter().enumerate().fold(0u32, |value, (bit, on)| value | u32::from(*on) << bit);
            groups.push(format!("{value:0digits$x}", digits = bits.len().div_ceil(4)));
        }
        groups.reverse();
        groups.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_print_as_the_kernel_prints_them() {
        let mut set = CpuSet::empty(36);
        assert_eq!((set.list(), set.mask()), (String::new(), "0,00000000".to_string()));
        [0, 1, 2, 33, 35].into_iter().for_each(|cpu| set.insert(cpu));
        assert_eq!((set.list().as_str(), set.mask().as_str()), ("0-2,33,35", "a,00000007"));
        assert_eq!(CpuSet::full(64).mask(), "ffffffff,ffffffff");
    }
}
