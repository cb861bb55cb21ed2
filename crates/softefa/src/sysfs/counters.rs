//! The counters' files, rewritten while others read them.
//!
//! A real counter's file is made when it is read: it is never half of a number, and a reader that keeps it open and
//! reads at offset 0 again gets the value of that moment. A file on disk gives one or the other: written in place, a
//! read at the same moment gets a mixture of both values (seen: `44444…888`); replaced by renaming, it leaves who
//! has it open with the old value for ever. So a counter that changes has two files. The new value goes to the spare
//! one, which nobody can open, and both are exchanged by name: whoever opens and reads gets a whole number. At the next
//! update the spare one is brought up to date in place: whoever kept it open is at most two updates behind. Only for
//! such a reader a mixture remains possible, in the nanoseconds of a copy of 21 bytes.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use softefa_fabric::nic::{COUNTERS, Counter, PORT_COUNTERS};

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

const EFA_NAMES: [&str; COUNTERS] = {
    let mut names = [""; COUNTERS];
    let mut at = 0;
    while at < COUNTERS {
        names[at] = Counter::ALL[at].name();
        at += 1;
    }
    names
};

impl CounterNames<'static> {
    /// All that an emulated NIC counts, in the order of [`Counter::ALL`].
    pub const EFA: CounterNames<'static> = {
        let (port, device) = EFA_NAMES.split_at(PORT_COUNTERS);
        CounterNames { port, device }
    };
}

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

/// The counters' files of a node. One process at a time may write them: what is in a file is remembered, not read.
///
/// Updates should be some milliseconds apart, so that no reader is still between opening a file and reading it when
/// the file is written again.
#[derive(Debug)]
pub struct Counters {
    /// Names, those of the port first.
    names: Vec<String>,
    port_names: usize,
    /// For each NIC the directories of its port's and its own counters.
    nics: Vec<[PathBuf; 2]>,
    /// Where the spare files are.
    spares: PathBuf,
    /// `names.len()` for each NIC.
    files: Vec<Files>,
    /// Which of `files` have a spare file that is behind.
    behind: BTreeSet<usize>,
}

/// What the two files of a counter hold.
#[derive(Clone, Copy, Debug, Default)]
struct Files {
    shown: u64,
    /// `None` while there is none: most counters never change.
    spare: Option<u64>,
}

impl Counters {
    pub(super) fn new(root: &Path, shape: &Shape, names: CounterNames<'_>) -> Counters {
        let directories =
            |nic: usize| infiniband::counter_directories(shape, nic).map(|path| root.join(path));
        let names_of = names.port.iter().chain(names.device).map(|name| name.to_string()).collect::<Vec<_>>();
        Counters {
            files: vec![Files::default(); names_of.len() * shape.nics.len()],
            names: names_of,
            port_names: names.port.len(),
            nics: (0..shape.nics.len()).map(directories).collect(),
            spares: root.join(SPARES),
            behind: BTreeSet::new(),
        }
    }

    /// Takes over what another process left in the files.
    pub(super) fn read_back(&mut self) -> Result<(), SysfsError> {
        for nic in 0..self.nics.len() {
            for counter in (0..self.names.len()).map(CounterId) {
                let Some(path) = self.path(nic, counter) else { continue };
                let value = std::fs::read_to_string(&path).and_then(|text| {
                    text.trim_ascii()
                        .parse()
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
                });
                let value = value.map_err(SysfsError::io("read counter", &path))?;
                self.files[nic * self.names.len() + counter.0].shown = value;
            }
        }
        // What its spare files hold is unknown; readers that keep one of them open are behind from here on.
        match std::fs::remove_dir_all(&self.spares) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(SysfsError::io("remove directory", &self.spares)(source))
            }
            _ => std::fs::create_dir(&self.spares).map_err(SysfsError::io("create directory", &self.spares)),
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

    /// Shows `value` unless it is shown already; says whether it was not. On an error the file keeps counting as
    /// stale, so that the next call tries again.
    pub fn set(&mut self, nic: usize, counter: CounterId, value: u64) -> Result<bool, SysfsError> {
        let index = nic * self.names.len() + counter.0;
        // First what holds for nearly all counters at nearly all times: nothing changed.
        if nic < self.nics.len() && self.files.get(index).is_some_and(|files| files.shown == value) {
            return Ok(false);
        }
        let nics = self.nics.len();
        let path = self.path(nic, counter).ok_or(SysfsError::NoSuchNic { nic, nics })?;
        let spare = self.write_spare(index, value)?;
        let exchanged = exchange(&spare, &path).map_err(SysfsError::io("update counter", &path))?;
        self.files[index] =
            Files { shown: value, spare: if exchanged { Some(self.files[index].shown) } else { None } };
        if exchanged {
            self.behind.insert(index);
        }
        Ok(true)
    }

    /// [`Counters::set`] for a snapshot of (NIC, name, value); says how many counters changed. Names that are not
    /// kept are skipped: a newer device may count more than this root shows. All values are tried, then the first
    /// error is returned. Also catches up for readers that keep files open, so call it although nothing changed.
    pub fn update<'a>(
        &mut self,
        snapshot: impl IntoIterator<Item = (usize, &'a str, u64)>,
    ) -> Result<usize, SysfsError> {
        let (mut changed, mut failed) = (0, None);
        let behind = std::mem::take(&mut self.behind);
        for (nic, name, value) in snapshot {
            let Some(counter) = self.id(name) else { continue };
            match self.set(nic, counter, value) {
                Ok(written) => changed += usize::from(written),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for index in behind {
            if !self.behind.contains(&index)
                && let Err(error) = self.write_spare(index, self.files[index].shown)
            {
                self.behind.insert(index);
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    /// Puts `value` into the spare file of `files[index]`, in place; makes the file if there is none.
    fn write_spare(&mut self, index: usize, value: u64) -> Result<PathBuf, SysfsError> {
        let path = self.spares.join(index.to_string());
        let spare = &mut self.files[index].spare;
        let written = match *spare {
            Some(old) => {
                OpenOptions::new().write(true).open(&path).and_then(|file| rewrite(&file, old, value))
            }
            None => std::fs::write(&path, content(value)),
        };
        if written.is_err() {
            // It may hold anything now: start over with a new one.
            *spare = None;
            let _ = std::fs::remove_file(&path);
        }
        written.map_err(SysfsError::io("update counter", &path))?;
        *spare = Some(value);
        Ok(path)
    }
}

/// Directory of the spare files, next to `sys`.
pub(super) const SPARES: &str = "counters";

/// What the file of a counter holds.
pub(super) fn content(value: u64) -> String {
    format!("{value}\n")
}

/// Exchanges the names of both files; where the file system cannot, `new` takes over the name of `shown`. Says which
/// of both.
fn exchange(new: &Path, shown: &Path) -> io::Result<bool> {
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
    let (from, to) = (c_path(new)?, c_path(shown)?);
    // SAFETY: renameat2 reads two paths, both NUL-terminated and alive until it returns, and keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => std::fs::rename(new, shown).map(|()| false),
        _ => Err(error),
    }
}

/// Replaces `old` in `file` by `new`, in place. While its length changes the file is padded with line feeds, which
/// every parser of these files skips, so that no moment shows a part of a number.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewritten_file_reads_as_the_kernel_prints_it() {
        let path = std::env::temp_dir().join(format!("softefa-counter-{}", std::process::id()));
        std::fs::write(&path, content(0)).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut old = 0;
        for new in [7, 12, 99, 123_456, 5, u64::MAX, 0] {
            rewrite(&file, old, new).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            old = new;
            assert_eq!(text, format!("{new}\n"));
        }
        std::fs::remove_file(&path).unwrap();
    }
}
