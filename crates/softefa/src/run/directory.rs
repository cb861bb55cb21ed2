//! The run directory of a fabric: made, locked, found again, and removed whatever happened to its keeper.
//!
//! The keeper holds an exclusive lock on the file `lock` for its whole life; the kernel gives it up with the process.
//! So a directory whose lock can be taken is stale: nobody keeps it, and whoever finds it may end what still runs in
//! it and remove it. Making and removing happen under a second lock, on the user's directory, so that a fabric that is
//! just being made never looks stale to others.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use softefa_fabric::DIR_VARIABLE;

use super::base;
use super::error::Error;
use super::leftovers;
use super::processes;
use super::spec;

/// The keeper's lock, in the run directory.
const LOCK: &str = "lock";
/// The lock of the user's directory. A fabric's name never starts with a dot.
const GUARD: &str = ".lock";
/// Longest wait for a lock that others hold for a moment only.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest time in which the processes of a stale fabric must be gone.
const END_MAX: Duration = Duration::from_secs(10);
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 64;

/// A run directory whose lock this process holds.
#[derive(Debug)]
pub(super) struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

/// A fabric whose keeper lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Live {
    /// Its name.
    pub name: String,
    /// Its run directory.
    pub path: PathBuf,
}

/// What was left of a fabric whose keeper was killed, and has been removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// The fabric's name.
    pub name: String,
    /// The run directory that it had.
    pub path: PathBuf,
    /// Processes that still ran in it and were ended.
    pub processes: usize,
}

/// The lock of the user's directory.
struct Guard(File);

impl Guard {
    fn take(user: &Path) -> Result<Self, Error> {
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            base::make_private(user).map_err(|why| Error::at("make", user, std::io::Error::other(why)))?;
            let path = user.join(GUARD);
            match open_lock(&path) {
                Ok(file) => {
                    lock(&file, &path, FlockOperation::NonBlockingLockExclusive, deadline)?;
                    // Its last user may have removed it while it was awaited: then it locks nothing any more.
                    if file.metadata().is_ok_and(|meta| meta.nlink() > 0) {
                        return Ok(Self(file));
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && Instant::now() < deadline => {}
                Err(e) => return Err(Error::at("open", &path, e)),
            }
        }
    }

    /// Removes the user's directory if no fabric is left in it.
    fn leave(self, user: &Path) {
        if is_empty(user) {
            // The lock is still held: whoever waits for it finds that it has no name any more, and starts over.
            let _ = fs::remove_file(user.join(GUARD));
            let _ = fs::remove_dir(user);
        }
        drop(self.0);
    }
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Takes a lock that others hold for moments.
fn lock(file: &File, path: &Path, how: FlockOperation, deadline: Instant) -> Result<(), Error> {
    loop {
        match flock(file.as_fd(), how) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(Error::at("lock", path, e)),
        }
    }
}

impl RunDirectory {
    /// Makes the directory of a fabric below the first base that has room for `needed` bytes, and takes its lock.
    pub(super) fn create(name: &str, needed: u64) -> Result<Self, Error> {
        check_name(name)?;
        if live().iter().any(|other| other.name == name) {
            return Err(Error::NameTaken(name.into()));
        }
        let user = base::user_directory(&base::choose(needed)?);
        let guard = Guard::take(&user)?;
        let made = Self::make(user.join(name));
        if made.is_err() {
            guard.leave(&user);
        }
        made
    }

    fn make(path: PathBuf) -> Result<Self, Error> {
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::NameTaken(name_of(&path)));
            }
            Err(e) => return Err(Error::at("make", &path, e)),
        }
        match Self::take(path.clone()) {
            Err(e) => {
                let _ = fs::remove_dir_all(&path);
                Err(e)
            }
            taken => taken,
        }
    }

    /// Takes the lock of a directory that is there.
    fn take(path: PathBuf) -> Result<Self, Error> {
        let file = path.join(LOCK);
        let opened = open_lock(&file).map_err(|e| Error::at("open", &file, e))?;
        // Who asks whether the fabric is live holds the lock, shared, for a moment.
        let deadline = Instant::now() + Duration::from_secs(1);
        lock(&opened, &file, FlockOperation::NonBlockingLockExclusive, deadline)?;
        Ok(Self { path, _lock: opened })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory with all that is in it, and the user's directory when this was its last fabric.
    pub(super) fn remove(self) -> Result<(), Error> {
        let user = self.path.parent().map(Path::to_path_buf).unwrap_or_default();
        let guard = Guard::take(&user)?;
        let removed = remove_all(&self.path);
        guard.leave(&user);
        removed
    }
}

/// Removes a run directory. What says that there is a fabric goes first, so that nobody takes what is left for one.
fn remove_all(path: &Path) -> Result<(), Error> {
    let _ = fs::remove_file(path.join(spec::FILE));
    fs::remove_dir_all(path).map_err(|e| Error::at("remove", path, e))
}

fn check_name(name: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let right = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.');
    if right && name.bytes().all(allowed) { Ok(()) } else { Err(Error::BadName(name.into())) }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether somebody keeps the fabric in this directory.
fn is_kept(path: &Path) -> bool {
    // Opened for reading only: a question must not make a lock file.
    let Ok(file) = File::open(path.join(LOCK)) else { return false };
    matches!(flock(file.as_fd(), FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// This user's directories below all bases.
fn users() -> impl Iterator<Item = PathBuf> {
    let own = |meta: &fs::Metadata| meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw();
    let users = base::candidates().into_iter().map(|base| base::user_directory(&base));
    users.filter(move |user| fs::symlink_metadata(user).is_ok_and(|meta| own(&meta)))
}

/// Whether no fabric is in it.
fn is_empty(user: &Path) -> bool {
    fs::read_dir(user).is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == GUARD))
}

/// All run directories of this user below all bases.
fn all() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for user in users() {
        let entries = fs::read_dir(&user).into_iter().flatten().flatten();
        found.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    found.sort();
    found
}

/// The fabrics of this user that live, sorted by directory.
#[must_use]
pub fn live() -> Vec<Live> {
    let kept = all().into_iter().filter(|path| is_kept(path));
    kept.map(|path| Live { name: name_of(&path), path }).collect()
}

/// The fabric of this name; without a name the one whose node this process is on, or the only one that lives.
///
/// # Errors
/// [`Error::NoFabric`] or [`Error::Several`], which list those that live.
pub fn find(name: Option<&str>) -> Result<Live, Error> {
    let mut live = live();
    let names = |live: &[Live]| live.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
    if let Some(name) = name {
        let at = live.iter().position(|l| l.name == name);
        return at
            .map(|at| live.swap_remove(at))
            .ok_or_else(|| Error::NoFabric { name: Some(name.into()), live: names(&live) });
    }
    if let Some(path) = env::var_os(DIR_VARIABLE).map(PathBuf::from).filter(|path| is_kept(path)) {
        return Ok(Live { name: name_of(&path), path });
    }
    match live.len() {
        1 => Ok(live.swap_remove(0)),
        0 => Err(Error::NoFabric { name: None, live: Vec::new() }),
        _ => Err(Error::Several(names(&live))),
    }
}

/// Ends the processes and removes the directories of all fabrics of this user whose keeper is gone.
///
/// # Errors
/// When something of them cannot be ended or removed.
pub fn remove_stale() -> Result<Vec<Removed>, Error> {
    let mut removed = Vec::new();
    for path in all().into_iter().filter(|path| !is_kept(path)) {
        removed.extend(remove_if_stale(&path)?);
    }
    // One that was killed before it had made anything leaves the user's directory, empty.
    for user in users().filter(|user| is_empty(user)) {
        Guard::take(&user)?.leave(&user);
    }
    Ok(removed)
}

/// Removes one fabric, unless it turns out to be kept.
pub(super) fn remove_if_stale(path: &Path) -> Result<Option<Removed>, Error> {
    let Some(user) = path.parent() else { return Ok(None) };
    let guard = Guard::take(user)?;
    // Asked again under the guard: before, it may have been one that was just being made, or removed.
    if !path.is_dir() || is_kept(path) {
        guard.leave(user);
        return Ok(None);
    }
    let ended = RunDirectory::take(path.to_path_buf()).and_then(|taken| {
        let ended =
            processes::end_all(Instant::now() + END_MAX, || processes::marked(path)).map_err(|left| {
                let ids: Vec<_> = left.iter().map(ToString::to_string).collect();
                let still = std::io::Error::other(format!("processes {} do not end", ids.join(", ")));
                Error::at("clear", path, still)
            })?;
        remove_all(path)?;
        drop(taken);
        Ok(ended)
    });
    guard.leave(user);
    leftovers::remove();
    Ok(Some(Removed { name: name_of(path), path: path.to_path_buf(), processes: ended? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> (tempfile::TempDir, PathBuf) {
        let base = tempfile::tempdir().unwrap();
        let user = base.path().join("softefa-test");
        base::make_private(&user).unwrap();
        (base, user)
    }

    #[test]
    fn a_kept_directory_is_not_stale_and_one_whose_keeper_is_gone_is_removed() {
        let (base, user) = user();
        let kept = RunDirectory::make(user.join("a")).unwrap();
        let path = kept.path().to_path_buf();
        assert!(is_kept(&path));
        assert_eq!(remove_if_stale(&path).unwrap(), None);
        assert!(matches!(RunDirectory::make(path.clone()), Err(Error::NameTaken(name)) if name == "a"));
        fs::write(path.join("fabric"), b"x").unwrap();
        drop(kept); // As the kernel does with a killed keeper: the lock is given up, the files stay.
        assert!(!is_kept(&path));
        let removed = remove_if_stale(&path).unwrap().unwrap();
        assert_eq!((removed.name.as_str(), removed.processes), ("a", 0));
        assert_eq!(
            fs::read_dir(base.path()).unwrap().count(),
            0,
            "the user's directory goes with its last fabric"
        );
    }

    #[test]
    fn removing_one_fabric_leaves_the_other() {
        let (_base, user) = user();
        let (one, two) =
            (RunDirectory::make(user.join("1")).unwrap(), RunDirectory::make(user.join("2")).unwrap());
        one.remove().unwrap();
        assert!(is_kept(two.path()));
        two.remove().unwrap();
        assert!(!user.exists());
    }

    #[test]
    fn names_that_leave_the_directory_or_hide_are_refused() {
        for name in ["", ".", "..", ".lock", "a/b", "a b", "\u{e4}", &"x".repeat(65)] {
            assert!(matches!(check_name(name), Err(Error::BadName(_))), "{name}");
        }
        assert!(check_name("softefa-123").is_ok());
    }
}
