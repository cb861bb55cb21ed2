//! What goes wrong with files.

use std::io;
use std::path::PathBuf;

use kvrail_core::transport::Direction;

use crate::error::{Error, Status};

/// Why a file was not registered, or bytes were not moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A parameter of the backend has a value that cannot be.
    #[error("parameter {name}={value} of backend POSIX: not {wanted}")]
    Parameter {
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
        /// What could be.
        wanted: &'static str,
    },
    /// A path did not open.
    #[error("cannot open {path}: {source}", path = .path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A number is no open file descriptor.
    #[error("{device} is not the descriptor of an open file: {source}")]
    NotOpen {
        /// The number.
        device: u64,
        /// What the system says.
        source: io::Error,
    },
    /// A descriptor appends: its writes would land at the end whatever their offset is.
    #[error("descriptor {device} was opened to append, so that offsets would be ignored")]
    Appends {
        /// The number.
        device: u64,
    },
    /// A number is taken by another file.
    #[error("number {device} is that of another registered file")]
    Taken {
        /// The number.
        device: u64,
    },
    /// A number is not registered.
    #[error("no file is registered by number {device}")]
    Unregistered {
        /// The number.
        device: u64,
    },
    /// A descriptor was closed after its registration, and its number means another file now.
    #[error("descriptor {device} is of another file than the one that was registered")]
    Replaced {
        /// The number.
        device: u64,
    },
    /// A move has no end.
    #[error("{len} bytes at offset {offset} of file {device}, or in memory, end beyond the last address")]
    Range {
        /// The file's number.
        device: u64,
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Too much waits.
    #[error("{moves} moves find no room beside {waiting} that wait: {waiting_max} may wait at a time")]
    Full {
        /// Moves of the job that was refused.
        moves: usize,
        /// Moves that wait.
        waiting: usize,
        /// How many may.
        waiting_max: usize,
    },
    /// The system refused to move.
    #[error("cannot {direction} {len} bytes at offset {offset} of file {device}: {source}")]
    Refused {
        /// From the file or into it.
        direction: Direction,
        /// The file's number.
        device: u64,
        /// Where in the file.
        offset: u64,
        /// Bytes that had not moved.
        len: u64,
        /// Why.
        source: io::Error,
    },
    /// The file ended before the read did.
    #[error("file {device} ends at offset {offset}, {len} bytes short of the read")]
    Ended {
        /// The file's number.
        device: u64,
        /// Where it ends.
        offset: u64,
        /// Bytes that were wanted beyond.
        len: u64,
    },
    /// The job was cancelled; some of its bytes may have moved.
    #[error("the file transfer was cancelled")]
    Cancelled,
    /// A cancelled job is still inside the system.
    #[error("the system still moves {calls} parts of a cancelled file transfer after {waited_ms} ms")]
    StillMoving {
        /// System calls that have not returned.
        calls: usize,
        /// How long they were waited for.
        waited_ms: u64,
    },
    /// No thread could be started.
    #[error("cannot start a thread that moves bytes of files: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// The process is a forked child of the one that made the backend.
    #[error("backend POSIX was made before this process was forked, and its threads are not here")]
    Forked,
}

impl FileError {
    /// NIXL's status for it.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Parameter { .. } | Self::Taken { .. } | Self::Range { .. } | Self::Appends { .. } => {
                Status::InvalidParam
            }
            Self::Open { .. }
            | Self::NotOpen { .. }
            | Self::Replaced { .. }
            | Self::Refused { .. }
            | Self::Ended { .. }
            | Self::Thread { .. } => Status::Backend,
            Self::Unregistered { .. } => Status::NotFound,
            Self::Full { .. } | Self::Forked => Status::NotAllowed,
            Self::Cancelled => Status::Cancelled,
            Self::StillMoving { .. } => Status::RepostActive,
        }
    }

    fn hint(&self) -> Option<String> {
        let number = |source: &io::Error| source.raw_os_error();
        Some(match self {
            Self::Open { source, .. } if number(source) == Some(libc::ENOENT) => {
                "write rw,create:PATH to have the file made".to_owned()
            }
            Self::NotOpen { .. } | Self::Replaced { .. } => {
                "keep the file open from its registration to its deregistration, and register it again after it was closed"
                    .to_owned()
            }
            Self::Appends { .. } => "open it without O_APPEND".to_owned(),
            Self::Taken { .. } => "give each file that is opened from a path a number of its own".to_owned(),
            Self::Unregistered { .. } => "register the file first".to_owned(),
            Self::Full { waiting_max, .. } => {
                format!("wait for transfers before posting more, or make them smaller than {waiting_max} descriptors")
            }
            Self::Refused { source, direction, .. } => match number(source)? {
                libc::EBADF if *direction == Direction::Write => {
                    "the descriptor was closed, or the file was opened for reading only".to_owned()
                }
                libc::EBADF => "the descriptor was closed, or the file was opened for writing only".to_owned(),
                libc::ENOSPC | libc::EDQUOT => "free space on the filesystem of the file".to_owned(),
                libc::EFAULT => "the memory is not mapped: it was freed after its registration".to_owned(),
                libc::EINVAL => {
                    "for a file opened with O_DIRECT, addresses, offsets and lengths have to be multiples of its block size"
                        .to_owned()
                }
                libc::ESPIPE => "pipes and sockets have no offsets: register a file".to_owned(),
                libc::EFBIG => "the limit on file sizes (ulimit -f, or the filesystem's) is reached".to_owned(),
                _ => return None,
            },
            Self::Ended { .. } => "write the bytes before they are read".to_owned(),
            Self::StillMoving { .. } => "keep the memory; release the transfer again later".to_owned(),
            Self::Forked => "create the agent in the child".to_owned(),
            _ => return None,
        })
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        let told = Self::new(error.status(), error.to_string());
        match error.hint() {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}
