//! A private `/sys` and `/proc` for one emulated node, laid out as the kernel's PCI core, RDMA core and `efa`
//! driver lay out the real ones.
//!
//! ```text
//! <root>/sys/devices/pci0000:44/…/0000:4f:00.0/        PCI functions, bridges with their configuration space
//!        …/infiniband/rdmap79s0/ports/1/hw_counters/   the EFA device, its port, its counters
//!        …/infiniband_verbs/uverbs0/
//! <root>/sys/class/…  sys/bus/pci/…  sys/module/…       links into it, drivers, modules
//! <root>/sys/devices/system/{cpu,node}/                 processors, caches, NUMA nodes
//! <root>/proc/{cpuinfo,meminfo,…}                       what hwloc and people look at besides
//! ```
//!
//! Who reads it: libfabric and rdma-core (`SYSFS_PATH=<root>/sys`), hwloc and with it `lstopo` and NIXL's LIBFABRIC
//! plugin (`HWLOC_FSROOT=<root>`), monitoring that takes a path to `/sys`, and people. All files but the counters are
//! constant; equal ones are hard links to one inode, so that a node of 192 CPUs and 32 NICs needs little memory.
//!
//! The directory belongs to whoever created it: a [`Root`] removes nothing when dropped, because the supervisor that
//! replaces a killed one must be able to remove it too. [`Root::create`] leaves nothing behind when it fails.

mod config_space;
mod counters;
mod infiniband;
mod pci;
mod processors;
mod tree;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use counters::{CounterId, CounterNames, Counters};

use crate::shape::{Shape, ShapeError};
use tree::Tree;

/// Why a root could not be made, updated or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysfsError {
    /// The shape cannot be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Something is already where the root should be.
    #[error("{} exists already: remove what is there or choose another place", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A counter's name that is no file name, or is given twice.
    #[error("counter name {name:?} is {problem}")]
    CounterName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A value for a NIC that the node does not have.
    #[error("there is no NIC {nic}: the node has {nics}")]
    NoSuchNic {
        /// The NIC's index.
        nic: usize,
        /// NICs that there are.
        nics: usize,
    },
}

impl SysfsError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SysfsError {
        let path = path.to_path_buf();
        move |source| SysfsError::Io { action, path, source }
    }

    /// Whether the file system is full: give the run another base directory.
    pub fn is_out_of_space(&self) -> bool {
        let full = |source: &io::Error| {
            matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory
            )
        };
        matches!(self, SysfsError::Io { source, .. } if full(source))
    }
}

/// How many NUMA nodes this host has: what libnuma will say to programs whatever root hwloc reads, and thus what to
/// give to [`Shape::folded_to_numa_nodes`]. 1 where the kernel does not say.
pub fn host_numa_nodes() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    count_from_list(&online).unwrap_or(1)
}

/// One more than the last number of a list such as `0-1,4`.
fn count_from_list(list: &str) -> Option<u32> {
    list.trim_ascii().rsplit([',', '-']).next()?.parse::<u32>().ok()?.checked_add(1)
}

/// The private root of one node.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    shape: Shape,
    counters: Counters,
}

impl Root {
    /// Makes the root of node `node` at `path`, which must not exist but whose parent must.
    ///
    /// The node has the first `nics` NICs of `shape`. `gid` gives the GID of each, by index; its last eight bytes become
    /// the node GUID. `names` are the counters to keep, all 0 at first.
    ///
    /// # Errors
    /// A shape or number of NICs that cannot be, a bad counter name, something at `path` already, or what the file
    /// system says. Nothing is left behind then.
    pub fn create(
        path: &Path,
        shape: &Shape,
        node: u32,
        nics: usize,
        gid: impl Fn(usize) -> [u8; 16],
        names: CounterNames<'_>,
    ) -> Result<Root, SysfsError> {
        shape.validate()?;
        let shape = shape.clone().with_nics(nics)?;
        names.validate()?;
        fs::create_dir(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => SysfsError::Exists { path: path.to_path_buf() },
            _ => SysfsError::io("create directory", path)(source),
        })?;
        let written = Root::write(path, &shape, node, &gid, names);
        if written.is_err() {
            // The error that is reported is the one that made this necessary; a second one would only hide it.
            let _ = fs::remove_dir_all(path);
        }
        let counters = written?;
        Ok(Root { path: path.to_path_buf(), shape, counters })
    }

    /// Takes over the root that another process made at `path` with the same shape, NICs and names, to go on
    /// counting in it. The other one must count no more.
    ///
    /// # Errors
    /// A shape or number of NICs that cannot be, or a counter's file that is missing or holds no number.
    pub fn open(
        path: &Path,
        shape: &Shape,
        nics: usize,
        names: CounterNames<'_>,
    ) -> Result<Root, SysfsError> {
        shape.validate()?;
        let shape = shape.clone().with_nics(nics)?;
        names.validate()?;
        let mut counters = Counters::new(path, &shape, names);
        counters.read_back()?;
        Ok(Root { path: path.to_path_buf(), shape, counters })
    }

    fn write(
        path: &Path,
        shape: &Shape,
        node: u32,
        gid: &dyn Fn(usize) -> [u8; 16],
        names: CounterNames<'_>,
    ) -> Result<Counters, SysfsError> {
        let mut tree = Tree::new(path);
        tree.directory(counters::SPARES)?;
        processors::write(&mut tree, shape, node)?;
        pci::write(&mut tree, shape, node)?;
        infiniband::write(&mut tree, shape, gid, names)?;
        Ok(Counters::new(path, shape, names))
    }

    /// The root: what `HWLOC_FSROOT` has to name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `/sys`: what `SYSFS_PATH` has to name.
    pub fn sys(&self) -> PathBuf {
        self.path.join("sys")
    }

    /// The shape that was written: the one asked for, with the NICs asked for.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What a command on this node needs in its environment so that libraries read this root.
    ///
    /// The last one keeps hwloc from asking the host's processor (by CPUID) what it is, which it does even when
    /// told to read another root, and would then take for the emulated one's answer.
    pub fn environment(&self) -> [(&'static str, OsString); 3] {
        [
            ("SYSFS_PATH", self.sys().into_os_string()),
            ("HWLOC_FSROOT", self.path.clone().into_os_string()),
            ("HWLOC_COMPONENTS", OsString::from("-x86")),
        ]
    }

    /// The counters' files.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Removes the root and all in it.
    pub fn remove(self) -> Result<(), SysfsError> {
        Root::remove_at(&self.path)
    }

    /// Removes a root that another process made, or a part of one; that none is there is no error.
    pub fn remove_at(path: &Path) -> Result<(), SysfsError> {
        match fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(SysfsError::io("remove directory", path)(source))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numa_nodes_are_counted_up_to_the_last() {
        for (list, count) in
            [("0\n", Some(1)), ("0-1\n", Some(2)), ("0-1,8\n", Some(9)), ("", None), ("x", None)]
        {
            assert_eq!(count_from_list(list), count, "{list:?}");
        }
        assert!(host_numa_nodes() >= 1);
    }
}
