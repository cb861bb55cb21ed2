//! Directories below a root, reached name by name and never over a link, so that whoever can write in one of them cannot
//! lead a change elsewhere.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::FixError;

/// An open directory.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Folder {
    /// A root. Links on the way to it are followed: it is what the user named.
    pub(super) fn root(path: &Path) -> Result<Self, FixError> {
        let opened = fs::open(path, FLAGS, Mode::empty());
        opened.map(Self).map_err(|why| FixError::Unwritable { path: path.into(), why: why.to_string() })
    }

    /// A directory below it.
    pub(super) fn below(&self, names: &[&str]) -> Result<Self, Errno> {
        let mut at = fs::openat(self, ".", FLAGS, Mode::empty())?;
        for name in names {
            at = fs::openat(&at, *name, FLAGS | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(Self(at))
    }

    /// The same, made where it is missing.
    pub(super) fn made(&self, name: &str) -> Result<Self, Errno> {
        match fs::mkdirat(self, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.below(&[name]),
            Err(error) => Err(error),
        }
    }

    /// Whether this process may make and remove names in it.
    pub(super) fn is_writable(&self) -> Result<(), Errno> {
        fs::accessat(self, ".", fs::Access::WRITE_OK | fs::Access::EXEC_OK, AtFlags::EACCESS)
    }

    /// Whether there is something of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Writes a new file to the end of the disk's cache.
    pub(super) fn write(&self, name: &str, content: &[u8], like: Option<&Like>) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(self, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        let io = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        file.write_all(content).map_err(io)?;
        if let Some(like) = like {
            like.owner(&file)?;
        }
        fs::fchmod(&file, Mode::from_raw_mode(like.map_or(0o644, |like| like.mode)))?;
        if let Some(times) = like.and_then(|like| like.times.as_ref()) {
            fs::futimens(&file, times)?;
        }
        file.sync_all().map_err(io)
    }

    /// The content of a file.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let file =
            fs::openat(self, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut content)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(content)
    }

    /// Puts what has a name under another one, whatever had that one.
    pub(super) fn rename(&self, from: &str, to: &Self, name: &str) -> Result<(), Errno> {
        fs::renameat(self, from, to, name)
    }

    /// Removes a name, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), Errno> {
        match fs::unlinkat(self, name, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(self)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes sure that its names survive a power failure.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        match fs::fsync(self) {
            // Some network file systems have no such thing for directories.
            Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
            other => other,
        }
    }

    /// The second name of a file or a link, or a copy where file systems differ. True: the same file.
    pub(super) fn keep(&self, name: &str, to: &Self, kept: &str) -> Result<bool, Errno> {
        match fs::linkat(self, name, to, kept, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::NOTSUP | Errno::NOSYS) => {
                self.copy(name, to, kept)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A copy of a file or a link, with its mode, owner and times.
    pub(super) fn copy(&self, name: &str, to: &Self, copied: &str) -> Result<(), Errno> {
        let stat = fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let like = Like::of(&stat);
        if fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::Symlink {
            fs::symlinkat(fs::readlinkat(self, name, Vec::new())?, to, copied)?;
            let _ = fs::chownat(to, copied, like.uid, like.gid, AtFlags::SYMLINK_NOFOLLOW);
            return like
                .times
                .map_or(Ok(()), |times| fs::utimensat(to, copied, &times, AtFlags::SYMLINK_NOFOLLOW));
        }
        to.write(copied, &self.read(name)?, Some(&like))
    }

    /// When it was last changed.
    pub(super) fn changed(&self) -> Result<(i64, i64), Errno> {
        let stat = fs::fstat(self)?;
        Ok((stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)))
    }

    /// Says when it was last changed, as far as the system lets it.
    pub(super) fn set_changed(&self, (seconds, nanoseconds): (i64, i64)) {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(0, fs::UTIME_OMIT),
            last_modification: time(seconds, nanoseconds as _),
        };
        let _ = fs::futimens(self, &times);
    }
}

/// The owner, mode and times that a new file gets.
#[derive(Clone, Debug)]
pub(super) struct Like {
    pub(super) mode: u32,
    pub(super) uid: Option<Uid>,
    pub(super) gid: Option<Gid>,
    pub(super) times: Option<Timestamps>,
}

impl Like {
    fn of(stat: &fs::Stat) -> Self {
        let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
        Self {
            mode: stat.st_mode & 0o7777,
            uid: Some(Uid::from_raw(stat.st_uid)),
            gid: Some(Gid::from_raw(stat.st_gid)),
            times: Some(Timestamps {
                last_access: time(stat.st_atime, stat.st_atime_nsec),
                last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
            }),
        }
    }

    /// Only root may give files away; what this process makes is its own already.
    fn owner(&self, file: impl AsFd) -> Result<(), Errno> {
        let now = fs::fstat(&file)?;
        let same = |id: Option<u32>, is: u32| id.is_none_or(|id| id == is);
        if same(self.uid.map(Uid::as_raw), now.st_uid) && same(self.gid.map(Gid::as_raw), now.st_gid) {
            return Ok(());
        }
        fs::fchown(file, self.uid, self.gid)
    }
}

/// The names of a path below a root: none of them empty, `.` or `..`.
pub(super) fn names<'a>(root: &Path, path: &'a str) -> Result<(Vec<&'a str>, &'a str), FixError> {
    let mut names: Vec<&str> = path.split('/').collect();
    let bad = |name: &&str| matches!(*name, "" | "." | "..") || name.contains('\0');
    if names.iter().any(bad) {
        return Err(FixError::Outside { path: PathBuf::from(path), root: root.into() });
    }
    let last = names.pop().unwrap_or_default();
    Ok((names, last))
}
