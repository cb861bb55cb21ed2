//! What can be wrong with a fabric.

use std::path::PathBuf;
use std::{fmt, io};

/// Why a fabric could not be made, mapped or used.
#[derive(Debug)]
#[non_exhaustive]
pub enum FabricError {
    /// A request that no fabric can fulfil: which value, and its limits.
    Invalid {
        /// Which value.
        what: &'static str,
        /// What it was.
        value: u64,
        /// The largest that is possible.
        max: u64,
    },
    /// A system call on the segment's file failed.
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a segment, or one of another version of this program.
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What does not match.
        why: &'static str,
    },
    /// The file system that holds the segment has no room.
    NoRoom {
        /// Which file.
        path: PathBuf,
        /// How many bytes were asked of it.
        needed: u64,
    },
    /// All process slots are taken.
    TooManyProcesses,
    /// All fault slots are taken.
    TooManyFaults,
    /// There is no such node.
    NoSuchNode {
        /// Which was asked for.
        node: u32,
        /// How many there are.
        nodes: u32,
    },
}

impl fmt::Display for FabricError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FabricError::Invalid { what, value, max } => write!(f, "{what} {value} is not in 1..={max}"),
            FabricError::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())
            }
            FabricError::Foreign { path, why } => {
                write!(f, "{} is not a fabric of this version of softefa: {why}", path.display())
            }
            FabricError::NoRoom { path, needed } => write!(
                f,
                "no room for {needed} bytes of {}: its file system is full (in a container, /dev/shm is 64 MiB \
                 unless --shm-size says otherwise)",
                path.display()
            ),
            FabricError::TooManyProcesses => {
                write!(
                    f,
                    "{} processes have devices of this fabric open, and no more can",
                    crate::PROCESSES_MAX
                )
            }
            FabricError::TooManyFaults => {
                write!(f, "{} faults are active, and no more can be: clear one first", crate::FAULTS_MAX)
            }
            FabricError::NoSuchNode { node, nodes } => {
                write!(f, "there is no node {node}: this fabric has nodes 0 to {}", nodes - 1)
            }
        }
    }
}

impl std::error::Error for FabricError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FabricError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
