//! What keeps a topology from being read at all.

use std::io;
use std::path::PathBuf;

/// A source that cannot be read. What a readable source lacks is a [`Warning`](crate::Warning) instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// The file or directory cannot be opened.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// What was asked for.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A directory that holds nothing of sysfs.
    #[error("{} is no sysfs tree: it has neither `devices` nor `class` nor `bus`", path.display())]
    NotSysfs {
        /// The directory.
        path: PathBuf,
        /// Whether it holds a directory `sys`, which may be what was meant.
        has_sys: bool,
    },
    /// A file that is no captured tree.
    #[error("{} line {line}: {what}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// A file that is not hwloc's XML.
    #[error("{} at byte {position}: {what}", path.display())]
    Hwloc {
        /// The file.
        path: PathBuf,
        /// Where.
        position: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file larger than is read.
    #[error("{} is larger than {} MiB", path.display(), limit_bytes >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit_bytes: u64,
    },
}

impl TopologyError {
    /// What to do about it, one line each.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                vec![
                    "sysfs is readable by everyone on an ordinary host; look at the container's mounts"
                        .into(),
                ]
            }
            Self::Unreadable { .. } => {
                vec!["give a sysfs root such as /sys, or a file written by `kvrail topo --capture`".into()]
            }
            Self::NotSysfs { path, has_sys: true } => {
                vec![format!("it holds a directory `sys`: did you mean {}?", path.join("sys").display())]
            }
            Self::NotSysfs { .. } => {
                vec![
                    "give the directory that holds `devices` and `class`, or leave it out to read /sys"
                        .into(),
                ]
            }
            Self::Capture { .. } => vec![
                "`kvrail topo --capture FILE` writes such a file".into(),
                "XML of `lstopo --of xml` is read with --hwloc".into(),
            ],
            Self::Hwloc { .. } => {
                vec!["`lstopo --of xml FILE` of hwloc 1.11 or 2.x writes such a file".into()]
            }
            Self::TooLarge { .. } => vec!["a capture or topology of one host has less than 1 MiB".into()],
        }
    }
}
