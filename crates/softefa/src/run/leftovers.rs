//! Files that libfabric leaves in /dev/shm when a command is killed.
//!
//! For peers on one host, libfabric's `efa` provider opens its shared-memory provider, whose file is named after the
//! NIC's address: `<gid>_<queue pair>_<key>_<uid>`. A command that is killed cannot remove it. Emulated NICs have
//! addresses that no real one has, so that these files are known by name; another live fabric may use the same
//! addresses, so that only files that no process maps are removed.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use softefa_fabric::Gid;

use super::directory;

const SHARED_MEMORY: &str = "/dev/shm";
/// A file this young may be another fabric's, made and not yet mapped.
const YOUNG: Duration = Duration::from_secs(2);

/// Removes them.
pub(super) fn remove() {
    let others_live = !directory::live().is_empty();
    remove_in(Path::new(SHARED_MEMORY), others_live);
}

fn remove_in(place: &Path, others_live: bool) {
    let uid = rustix::process::geteuid().as_raw();
    let prefix = prefix();
    let left = fs::read_dir(place).into_iter().flatten().flatten().filter(|entry| {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix));
        let meta = entry.metadata().ok().filter(|meta| named && meta.is_file() && meta.uid() == uid);
        let is_old = |meta: &fs::Metadata| {
            meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > YOUNG)
        };
        meta.is_some_and(|meta| !others_live || is_old(&meta))
    });
    let left: Vec<PathBuf> = left.map(|entry| entry.path()).collect();
    if left.is_empty() {
        return;
    }
    let mapped = mapped(place);
    for path in left.iter().filter(|path| !mapped.contains(*path)) {
        // Gone already is as good, and what cannot be removed is not ours to complain about.
        let _ = fs::remove_file(path);
    }
}

/// What the addresses of all emulated NICs begin with, as inet_ntop(3) writes them.
fn prefix() -> String {
    let address = std::net::Ipv6Addr::from(Gid::of(0, 0).0).to_string();
    // The last group holds node and NIC.
    address.rsplit_once(':').map(|(head, _)| format!("{head}:")).unwrap_or(address)
}

/// Files below `place` that some process maps.
fn mapped(place: &Path) -> HashSet<PathBuf> {
    let mut files = HashSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let maps = fs::read_to_string(entry.path().join("maps")).unwrap_or_default();
        let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..)).map(PathBuf::from);
        files.extend(paths.filter(|path| path.starts_with(place)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_emulated_nics_that_nobody_maps_are_removed() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: String| {
            let path = place.path().join(name);
            fs::write(&path, b"x").unwrap();
            path
        };
        assert_eq!(prefix(), "fe80::2ef:a0ff:fe00:");
        let ours = file(format!("{}_0001_466e4432_0000", std::net::Ipv6Addr::from(Gid::of(1, 2).0)));
        let real = file("fe80::4c:8dff:fe8f:8b_0001_466e4432_0000".into());
        remove_in(place.path(), true);
        assert!(ours.exists(), "young, and another fabric lives");
        remove_in(place.path(), false);
        assert!(!ours.exists() && real.exists());
    }
}
