//! The counters' files, rewritten while others read them.
//!
//! In a real `/sys` a reader that keeps a counter's file open and reads at offset 0 again gets the value of that
//! moment; renaming a new file over the old one would leave such a reader with the old value for ever. So a file is
//! rewritten in place, with one `pwrite`, and never so that a reader could take a part of a number for a number:
//! while its length has to change, the file is padded with line feeds, which every parser of these files skips.
//! The value itself is one copy of at most 21 bytes within one page.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{SysfsError, infiniband};
use crate::shape::Shape;

/// Names of the counters of each NIC: those of its port, and those of the device itself. No name may be in both.
#[derive(Clone, Copy, Debug)]
pub struct CounterNames<'a> {
    /// In `ports/1/hw_counters`.
    pub port: &'a [&'a str],
    /// In the device's `hw_counters`.
    pub device: &'a [&'a str],
}

/// The kernel's own file besides the counters: how old a value may be, in milliseconds.
pub(super) const LIFESPAN: &str = "lifespan";

impl CounterNames<'_> {
    pub(super) fn validate(&self) -> Result<(), SysfsError> {
        let mut seen = BTreeSet::new();
        for name in self.port.iter().chain(self.device) {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let problem = if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
                "no file name of letters, digits and '_'"
            } else if *name == LIFESPAN {
                "taken by the kernel's own file"
            } else if !seen.insert(name) {
                "given twice"
            } else {
                continue;
            };
            return Err(SysfsError::CounterName { name: name.to_string(), problem });
        }
        Ok(())
    }
}

/// One counter of every NIC; found by name once, then cheap to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterId(usize);

/// The counters' files of a node.
#[derive(Debug)]
pub struct Counters {
    /// Names, those of the port first.
    names: Vec<String>,
    /// For each NIC the directories of its port's and its own counters.
    nics: Vec<[PathBuf; 2]>,
    /// Values in the files: `names.len()` for each NIC.
    written: Vec<u64>,
    port_names: usize,
}

impl Counters {
    pub(super) fn new(root: &Path, shape: &Shape, names: CounterNames<'_>) -> Counters {
        let directories =
            |nic: usize| infiniband::counter_directories(shape, nic).map(|path| root.join(path));
        let names_of = names.port.iter().chain(names.device).map(|name| name.to_string()).collect::<Vec<_>>();
        Counters {
            written: vec![0; names_of.len() * shape.nics.len()],
            names: names_of,
            nics: (0..shape.nics.len()).map(directories).collect(),
            port_names: names.port.len(),
        }
    }

    /// The counter of that name.
    pub fn id(&self, name: &str) -> Option<CounterId> {
        self.names.iter().position(|known| known == name).map(CounterId)
    }

    /// The file of a counter of NIC `nic`.
    pub fn path(&self, nic: usize, counter: CounterId) -> Option<PathBuf> {
        let directory = self.nics.get(nic)?.get(usize::from(counter.0 >= self.port_names))?;
        Some(directory.join(self.names.get(counter.0)?))
    }

    /// Puts `value` into the file unless it is there already; says whether it was written. On an error the file keeps
    /// counting as stale, so that the next call tries again.
    pub fn set(&mut self, nic: usize, counter: CounterId, value: u64) -> Result<bool, SysfsError> {
        let nics = self.nics.len();
        let path = self.path(nic, counter).ok_or(SysfsError::NoSuchNic { nic, nics })?;
        let written = &mut self.written[nic * self.names.len() + counter.0];
        if *written == value {
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).open(&path);
        file.and_then(|file| rewrite(&file, *written, value))
            .map_err(SysfsError::io("update counter", &path))?;
        *written = value;
        Ok(true)
    }

    /// [`Counters::set`] for a snapshot of (NIC, name, value); says how many files were rewritten. Names that are not
    /// kept are skipped: a newer device may count more than this root shows. All values are tried, then the first
    /// error is returned.
    pub fn update<'a>(
        &mut self,
        snapshot: impl IntoIterator<Item = (usize, &'a str, u64)>,
    ) -> Result<usize, SysfsError> {
        let (mut changed, mut failed) = (0, None);
        for (nic, name, value) in snapshot {
            let Some(counter) = self.id(name) else { continue };
            match self.set(nic, counter, value) {
                Ok(written) => changed += usize::from(written),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(changed), Err)
    }
}

/// What the file of a counter holds.
pub(super) fn content(value: u64) -> String {
    format!("{value}\n")
}

/// Replaces `old` in `file` by `new`; see the module.
fn rewrite(file: &File, old: u64, new: u64) -> io::Result<()> {
    let (old, new) = (content(old), content(new));
    let padding = "\n".repeat(old.len().abs_diff(new.len()));
    if new.len() > old.len() {
        file.write_all_at(padding.as_bytes(), old.len() as u64)?;
    }
    if new.len() < old.len() {
        file.write_all_at(format!("{new}{padding}").as_bytes(), 0)?;
        return file.set_len(new.len() as u64);
    }
    file.write_all_at(new.as_bytes(), 0)
}
