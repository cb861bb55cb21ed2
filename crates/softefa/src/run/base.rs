//! Where fabrics live: the first directory that this user may write to and that has room.
//!
//! A fabric's segment is touched by every packet, so a tmpfs comes first. Below the base, each user has one directory
//! (`softefa-<uid>`, mode 0700) that holds one directory per fabric.

use std::env;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::{Error, Refusal};

/// Environment variable: the directory below which fabrics are made; nothing else is tried when it is set.
pub const BASE_VARIABLE: &str = "SOFTEFA_BASE";

/// `f_type` of a tmpfs (statfs(2)): its room is memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Kept free beside what a fabric needs, bytes: whoever else uses the file system also writes.
const SPARE_BYTES: u64 = 1 << 20;

/// Directories in which fabrics of this user may lie, best first.
pub(super) fn candidates() -> Vec<PathBuf> {
    if let Some(base) = env::var_os(BASE_VARIABLE).filter(|v| !v.is_empty()) {
        return vec![base.into()];
    }
    let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut bases = vec![PathBuf::from("/dev/shm")];
    bases.extend(runtime);
    bases.extend(["/run".into(), "/tmp".into()]);
    bases
}

/// The user's directory below a base. It need not exist.
pub(super) fn user_directory(base: &Path) -> PathBuf {
    base.join(format!("softefa-{}", rustix::process::geteuid().as_raw()))
}

/// The first base with room for `needed` bytes.
///
/// # Errors
/// [`Error::NoBase`] with the reason of each.
pub(super) fn choose(needed: u64) -> Result<PathBuf, Error> {
    let mut refusals = Vec::new();
    for base in candidates() {
        match suits(&base, needed) {
            Ok(()) => return Ok(base),
            Err(why) => refusals.push((base, why)),
        }
    }
    Err(Error::NoBase(refusals))
}

fn suits(base: &Path, needed: u64) -> Result<(), Refusal> {
    let user = user_directory(base);
    make_private(&user).map_err(Refusal::Unwritable)?;
    let refused = |e: rustix::io::Errno| Refusal::Unwritable(e.to_string());
    let room = rustix::fs::statvfs(base).map_err(refused)?;
    let available = room.f_bavail.saturating_mul(room.f_frsize);
    let needed = needed.saturating_add(SPARE_BYTES);
    if available < needed {
        let _ = fs::remove_dir(&user);
        return Err(Refusal::Room { needed, available, of: "its file system" });
    }
    if is_memory(base)
        && let Some(available) = memory_available().filter(|a| *a < needed)
    {
        let _ = fs::remove_dir(&user);
        return Err(Refusal::Room { needed, available, of: "this host's memory" });
    }
    Ok(())
}

/// Makes the user's directory, or checks that the one that is there can be trusted: others could have put it into a
/// base that everybody may write to.
pub(super) fn make_private(user: &Path) -> Result<(), String> {
    match fs::DirBuilder::new().mode(0o700).create(user) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.to_string()),
    }
    let meta = fs::symlink_metadata(user).map_err(|e| e.to_string())?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(format!("{} is there and not this user's own private directory", user.display()));
    }
    Ok(())
}

fn is_memory(path: &Path) -> bool {
    #[allow(clippy::unnecessary_cast)] // The type of the field differs between architectures.
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as i64 == TMPFS_MAGIC)
}

/// What people should know of the place of a fabric.
pub(super) fn note(directory: &Path) -> Option<String> {
    (!is_memory(directory)).then(|| {
        format!(
            "{} is on no tmpfs: setting up and every packet may wait for a disk; see SOFTEFA_BASE, or give /dev/shm \
             more room",
            directory.display()
        )
    })
}

fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_without_room_says_what_is_needed_and_what_is_there_and_is_left_empty() {
        let base = tempfile::tempdir().unwrap();
        let Err(Refusal::Room { needed, available, .. }) = suits(base.path(), 1 << 60) else {
            panic!("suits")
        };
        assert!(needed > available && available > 0);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().unwrap();
        let user = user_directory(base.path());
        assert_eq!(suits(base.path(), 1), Ok(()));
        assert_eq!(fs::metadata(&user).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&user, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(suits(base.path(), 1), Err(Refusal::Unwritable(_))));
        fs::remove_dir(&user).unwrap();
        std::os::unix::fs::symlink("/tmp", &user).unwrap();
        assert!(matches!(suits(base.path(), 1), Err(Refusal::Unwritable(_))));
    }
}
