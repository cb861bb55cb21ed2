//! Why a fabric could not be set up, found or supervised: what, where, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What ended a call of this module.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No directory holds the fabric: each was refused for a reason.
    NoBase(Vec<(PathBuf, Refusal)>),
    /// A live fabric has this name already.
    NameTaken(String),
    /// The name cannot be a directory's.
    BadName(String),
    /// There is no live fabric of this name, or none at all.
    NoFabric {
        /// The name that was asked for.
        name: Option<String>,
        /// The live ones.
        live: Vec<String>,
    },
    /// The fabric is just being set up, or taken down.
    NotUp(String),
    /// No name was given and several fabrics are live.
    Several(Vec<String>),
    /// The request contradicts itself or exceeds a limit.
    Request(String),
    /// A command could not be started.
    Command {
        /// The node on which it was to run.
        node: u32,
        /// Its first word.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Nothing on node 0 listened on the awaited port.
    NoListener {
        /// The TCP port.
        port: u16,
        /// How long it was awaited; `None` when node 0 ended before.
        waited: Option<Duration>,
        /// Whether a process outside of node 0 listens on it.
        elsewhere: bool,
    },
    /// The shared memory could not be made or opened.
    Fabric(String),
    /// A node's private /sys could not be written.
    Sysfs(String),
    /// The keeper ended without having said so; what it kept has been removed.
    KeeperGone,
    /// The operating system refused something.
    System {
        /// What was tried, without a full stop.
        what: String,
        /// What it said.
        source: io::Error,
    },
    /// A failure of the keeper, as it told it.
    Told(Told),
}

/// Why a directory cannot hold a fabric.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a directory that this process may write to.
    Unwritable(String),
    /// The file system, or the memory behind it, has too little room, in bytes.
    Room {
        /// What the fabric needs.
        needed: u64,
        /// What is there.
        available: u64,
        /// What is short: `file system` or `memory`.
        of: &'static str,
    },
}

/// A failure in words, as it travels from the keeper to the front.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    /// What failed and where.
    pub what: String,
    /// What to do, one line each.
    pub hints: Vec<String>,
}

impl Error {
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }

    pub(crate) fn at(doing: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::system(format!("{doing} {}", path.display()), source)
    }

    /// What to do, one line each.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NoBase(refusals) => {
                let mut hints = vec!["set SOFTEFA_BASE to a writable directory, best on a tmpfs".into()];
                if refusals.iter().any(|(_, r)| matches!(r, Refusal::Room { .. })) {
                    hints.push(
                        "or use fewer nodes or NICs, or end other fabrics: `kvrail softefa status`".into(),
                    );
                    hints
                        .push("containers: docker run --shm-size=1g, or an emptyDir of medium Memory".into());
                }
                hints
            }
            Self::NameTaken(_) => vec!["choose another --name, or end that fabric".into()],
            Self::BadName(_) => vec!["use letters, digits, `-`, `_` and `.`, at most 64".into()],
            Self::NoFabric { live, .. } if live.is_empty() => {
                vec!["start one: `kvrail softefa run --nodes 2 -- COMMAND`".into()]
            }
            Self::NoFabric { live, .. } | Self::Several(live) => {
                vec![format!("name one of these with --name: {}", live.join(", "))]
            }
            Self::NoListener { elsewhere: true, port, .. } => {
                vec![format!("a process outside of node 0 listens on port {port}; choose another port")]
            }
            Self::NoListener { waited: Some(_), .. } => {
                vec!["give node 0 more time with --listen-deadline, or correct --after-listen".into()]
            }
            Self::NotUp(_) => vec!["try again in a moment".into()],
            Self::KeeperGone => vec!["was it killed for memory? see `dmesg`".into()],
            Self::Told(told) => told.hints.clone(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn tell(&self) -> Told {
        Told { what: self.to_string(), hints: self.hints() }
    }
}

/// Bytes for reading: whole MiB, because that is what one frees.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwritable(why) => f.write_str(why),
            Self::Room { needed, available, of } => {
                write!(
                    f,
                    "needs {} ({needed} bytes), {of} has {} ({available} bytes)",
                    mib(*needed),
                    mib(*available)
                )
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBase(refusals) => {
                f.write_str("no directory can hold the fabric")?;
                for (n, (path, why)) in refusals.iter().enumerate() {
                    write!(f, "{} {}: {why}", if n == 0 { ":" } else { ";" }, path.display())?;
                }
                Ok(())
            }
            Self::NameTaken(name) => write!(f, "a fabric named {name} is live already"),
            Self::BadName(name) => write!(f, "`{name}` is no name for a fabric"),
            Self::NoFabric { name: Some(name), .. } => write!(f, "no live fabric is named {name}"),
            Self::NoFabric { name: None, .. } => f.write_str("no fabric is live"),
            Self::NotUp(name) => write!(f, "fabric {name} is just being set up, or taken down"),
            Self::Several(live) => write!(f, "{} fabrics are live", live.len()),
            Self::Request(what) => f.write_str(what),
            Self::Command { node, program, source } => {
                write!(f, "node{node} cannot run `{program}`: {source}")
            }
            Self::NoListener { port, waited: Some(waited), .. } => {
                write!(f, "node0 did not listen on port {port} within {:.1} s", waited.as_secs_f64())
            }
            Self::NoListener { port, waited: None, .. } => {
                write!(f, "node0 ended before it listened on port {port}")
            }
            Self::Fabric(what) => write!(f, "the fabric's shared memory: {what}"),
            Self::Sysfs(what) => write!(f, "the private /sys: {what}"),
            Self::KeeperGone => {
                f.write_str("the keeper of the fabric was killed; its processes and files have been removed")
            }
            Self::System { what, source } => write!(f, "cannot {what}: {source}"),
            Self::Told(told) => f.write_str(&told.what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Command { source, .. } | Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}
