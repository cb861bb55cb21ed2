//! Where changes are made: everything below one root, with the journals of its runs in one directory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::FixError;
use super::folder::Folder;

/// Longest wait for another run to end.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// Where the journals of an environment are, below its root.
pub const STORE: &str = ".kvrail-fix";
/// Where the journals of the system are, below its root.
pub const SYSTEM_STORE: &str = "var/lib/kvrail/fix";
const LOCK: &str = "lock";

/// Where changes are made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    root: PathBuf,
    /// Below the root.
    store: String,
}

impl Place {
    /// A Python environment of its own (venv, conda).
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn environment(root: &Path) -> Result<Self, FixError> {
        Self::at(root, STORE)
    }

    /// The whole system, for what is in no environment.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn system(root: &Path) -> Result<Self, FixError> {
        Self::at(root, SYSTEM_STORE)
    }

    fn at(root: &Path, store: &str) -> Result<Self, FixError> {
        let real = root
            .canonicalize()
            .map_err(|why| FixError::Unwritable { path: root.into(), why: why.to_string() })?;
        Ok(Self { root: real, store: store.into() })
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where its journals are.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join(&self.store)
    }

    /// A path as this place names it, where it is in there.
    #[must_use]
    pub fn relative(&self, path: &str) -> Option<String> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?.to_str()?;
        Some(below.to_owned()).filter(|below| !below.is_empty())
    }

    /// The store, where there is one.
    pub(super) fn opened(&self) -> Result<Option<Folder>, FixError> {
        let names: Vec<_> = self.store.split('/').collect();
        match Folder::root(&self.root)?.below(&names) {
            Ok(store) => Ok(Some(store)),
            Err(Errno::NOENT) => Ok(None),
            Err(why) => Err(FixError::Journal { path: self.store(), why: why.to_string() }),
        }
    }

    /// The store, made where it is missing, and locked.
    pub(super) fn locked(&self, patience: Duration) -> Result<Held, FixError> {
        let deadline = Instant::now() + patience;
        let wrong = |why: Errno| FixError::Unwritable { path: self.store(), why: why.to_string() };
        loop {
            let root = Folder::root(&self.root)?;
            let before = root.changed().map_err(wrong)?;
            let mut store = root.below(&[]).map_err(wrong)?;
            for name in self.store.split('/') {
                store = store.made(name).map_err(wrong)?;
            }
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let lock = match rustix::fs::openat(&store, LOCK, flags, Mode::from_raw_mode(0o600)) {
                Ok(lock) => lock,
                // Another run has just ended, and removed the empty store.
                Err(Errno::NOENT) if Instant::now() < deadline => continue,
                Err(why) => return Err(wrong(why)),
            };
            loop {
                match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => break,
                    Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Err(Errno::WOULDBLOCK | Errno::INTR) => {
                        return Err(FixError::Locked {
                            root: self.root.clone(),
                            seconds: patience.as_secs(),
                        });
                    }
                    Err(why) => return Err(wrong(why)),
                }
            }
            // It may be the lock of a store that another run has removed meanwhile.
            let mine = rustix::fs::fstat(&lock).map_err(wrong)?;
            let named =
                self.opened()?.and_then(|now| rustix::fs::statat(&now, LOCK, AtFlags::SYMLINK_NOFOLLOW).ok());
            if named.is_some_and(|named| (named.st_ino, named.st_dev) == (mine.st_ino, mine.st_dev)) {
                let lock = File::from(lock);
                let after = root.changed().map_err(wrong)?;
                if mine.st_size == 0 && before != after {
                    // When the store is removed again, its directory looks as if it had never been there.
                    let noted = format!("{} {} {} {}", before.0, before.1, after.0, after.1);
                    let _ = (&lock).write_all(noted.as_bytes());
                }
                return Ok(Held { place: self.clone(), root, store, _lock: lock });
            }
        }
    }
}

/// A store that only this run uses.
#[derive(Debug)]
pub(super) struct Held {
    place: Place,
    root: Folder,
    pub(super) store: Folder,
    _lock: File,
}

impl Drop for Held {
    /// A store without a run leaves nothing behind.
    fn drop(&mut self) {
        if self.store.names().is_ok_and(|names| names == [LOCK]) {
            let noted = self.store.read(LOCK).unwrap_or_default();
            let now = self.root.changed();
            let _ = self.store.remove(LOCK);
            let path = self.place.store();
            let _ = std::fs::remove_dir(&path);
            if self.place.store == SYSTEM_STORE
                && let Some(parent) = path.parent()
            {
                let _ = std::fs::remove_dir(parent);
            }
            let noted = String::from_utf8_lossy(&noted);
            let noted: Vec<i64> = noted.split(' ').filter_map(|number| number.parse().ok()).collect();
            if let [seconds, nanoseconds, after, after_nanoseconds] = noted[..]
                && now == Ok((after, after_nanoseconds))
            {
                self.root.set_changed((seconds, nanoseconds));
            }
        }
    }
}
