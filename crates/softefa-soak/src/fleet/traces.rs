//! What a run may leave behind: processes, its directory, files.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Where programs of all kinds keep memory that they share.
const SHARED_MEMORY: &str = "/dev/shm";
/// Longest environment that is searched, bytes.
const ENVIRONMENT_BYTES_MAX: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Processes whose environment names the base directory: the front, the keeper, and everything on a node.
pub(super) fn processes(base: &Path) -> Vec<String> {
    let me = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()) && *pid != me)
        .filter(|pid| names(pid, base))
        .map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            format!("process {pid} ({})", command.trim())
        })
        .collect()
}

/// Whether a process is one of this run's: an id alone may have become another's.
pub(super) fn is_of(pid: u32, base: &Path) -> bool {
    names(&pid.to_string(), base)
}

/// Whether a process is there and holds what it held: a dying one loses its memory first and its locks last.
pub(super) fn runs(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything.
    let state = stat.iter().rposition(|b| *b == b')').and_then(|end| stat.get(end + 2));
    state.is_some_and(|state| !matches!(state, b'Z' | b'X'))
}

fn names(pid: &str, base: &Path) -> bool {
    let mut environment = Vec::new();
    let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else { return false };
    // A process that ends meanwhile has no environment.
    if file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment).is_err() {
        return false;
    }
    let base = base.as_os_str().as_bytes();
    environment.split(|b| *b == 0).any(|entry| {
        let value = entry.strip_prefix(b"SOFTEFA_DIR=").or_else(|| entry.strip_prefix(b"SOFTEFA_BASE="));
        value.is_some_and(|value| value.starts_with(base))
    })
}

/// Everything below a directory.
pub(super) fn files(below: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = vec![below.to_path_buf()];
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            found.push(format!("{}", entry.path().display()));
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
    }
    found
}

/// Files in /dev/shm.
pub(super) struct SharedMemory(HashSet<PathBuf>);

impl SharedMemory {
    /// Those that are there now.
    pub(super) fn now() -> Self {
        Self(shared_files())
    }

    /// Those of this user that have come since and that no process has open or mapped: what others are working with is theirs.
    pub(super) fn left_since(&self) -> Vec<String> {
        let fresh: Vec<PathBuf> = shared_files().into_iter().filter(|path| !self.0.contains(path)).collect();
        if fresh.is_empty() {
            return Vec::new();
        }
        let used = used();
        let left = fresh.into_iter().filter(|path| !used.contains(path) && path.exists());
        left.map(|path| format!("{}", path.display())).collect()
    }
}

fn shared_files() -> HashSet<PathBuf> {
    // SAFETY: the call touches no memory.
    let uid = unsafe { libc::geteuid() };
    let entries = fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten();
    let own = entries.filter(|entry| entry.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == uid));
    own.map(|entry| entry.path()).collect()
}

/// Files below /dev/shm that a process has open or mapped.
fn used() -> HashSet<PathBuf> {
    let mut used = HashSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let maps = fs::read_to_string(process.path().join("maps")).unwrap_or_default();
        used.extend(maps.lines().filter_map(|line| line.get(line.find('/')?..)).map(PathBuf::from));
        let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        used.extend(descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()));
    }
    used
}

/// Looks until nothing is left or the time is over; what is left then.
pub(super) fn until_none(longest: Duration, look: impl Fn() -> Vec<String>) -> Vec<String> {
    let deadline = Instant::now() + longest;
    loop {
        let left = look();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        thread::sleep(LOOK_EVERY);
    }
}
