//! What a remedy changes, as values: a path, and what is to be there. And what is there now.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One change below the root of a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Below the root, as in `lib/python3.12/site-packages/nixl.libs/libfabric-fc70961d.so.1.29.0`.
    pub path: String,
    /// What is to be there.
    pub to: To,
    /// Why, in one line.
    pub why: String,
    /// Made from something else, and made again by whoever misses it (bytecode): what it has become since does not stop an undo.
    pub derived: bool,
}

/// What is to be at a path.
#[derive(Clone, PartialEq, Eq)]
pub enum To {
    /// A symbolic link.
    Link(String),
    /// A file; it keeps the mode and the owner of the file that it replaces, and is 0644 where there was none.
    File(Vec<u8>),
    /// Nothing.
    Absent,
}

impl fmt::Debug for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(target) => write!(f, "Link({target})"),
            Self::File(content) => write!(f, "File({} bytes)", content.len()),
            Self::Absent => f.write_str("Absent"),
        }
    }
}

impl Change {
    /// A link.
    #[must_use]
    pub fn link(path: impl Into<String>, target: impl Into<String>, why: impl Into<String>) -> Self {
        Self { path: path.into(), to: To::Link(target.into()), why: why.into(), derived: false }
    }

    /// A file.
    #[must_use]
    pub fn file(path: impl Into<String>, content: impl Into<Vec<u8>>, why: impl Into<String>) -> Self {
        Self { path: path.into(), to: To::File(content.into()), why: why.into(), derived: false }
    }

    /// Nothing where something was made from what changes.
    #[must_use]
    pub fn stale(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self { path: path.into(), to: To::Absent, why: why.into(), derived: true }
    }
}

/// What is at a path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum State {
    /// Nothing.
    Absent,
    /// A file.
    File {
        /// Of its content, in hexadecimal.
        sha256: String,
        /// Its length.
        bytes: u64,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it leads, as it stands.
        target: String,
    },
    /// A directory, a device, a pipe: nothing that is replaced.
    Other,
}

impl State {
    /// What is at a name in a directory; links are not followed.
    pub(super) fn of(folder: impl AsFd, name: &str) -> rustix::io::Result<Self> {
        let folder = folder.as_fd();
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(Self::Absent),
            other => other?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
                let target = OsStr::from_bytes(target.as_bytes()).to_string_lossy().into_owned();
                Ok(Self::Link { target })
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
                let sha256 = digest_of(std::fs::File::from(file)).map_err(|error| {
                    rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
                })?;
                Ok(Self::File {
                    sha256,
                    bytes: u64::try_from(stat.st_size).unwrap_or(0),
                    mode: stat.st_mode & 0o7777,
                    uid: stat.st_uid,
                    gid: stat.st_gid,
                })
            }
            _ => Ok(Self::Other),
        }
    }

    /// Whether both have the same content, kind and permissions.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::File { sha256: a, bytes: n, mode: p, .. },
                Self::File { sha256: b, bytes: m, mode: q, .. },
            ) => a == b && n == m && p == q,
            (a, b) => a == b,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::File { sha256, bytes, .. } => {
                write!(f, "file, {bytes} bytes, sha256 {sha256}")
            }
            Self::Link { target } => write!(f, "link to {target}"),
            Self::Other => f.write_str("neither a file nor a link"),
        }
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn digest_of(mut from: impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}
