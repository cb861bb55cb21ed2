//! One process's place in a fabric.

use std::path::Path;
use std::{fmt, io};

use softefa_fabric::FabricError;

use super::device::Device;

/// Why a process has no devices.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// The environment names no fabric.
    NotAsked,
    /// The environment names no node, or not by a number.
    Node {
        /// What it says.
        value: String,
    },
    /// The fabric cannot be used.
    Fabric(FabricError),
    /// The device's thread or descriptors could not be made.
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::NotAsked => write!(
                f,
                "{} is not set: run the command under `kvrail softefa run` or `kvrail softefa shell`",
                softefa_fabric::DIR_VARIABLE
            ),
            AttachError::Node { value } => {
                write!(f, "{} is {value:?}: a node's number is wanted", softefa_fabric::NODE_VARIABLE)
            }
            AttachError::Fabric(error) => error.fmt(f),
            AttachError::System { action, source } => write!(f, "cannot {action}: {source}"),
        }
    }
}

impl std::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AttachError::Fabric(error) => Some(error),
            AttachError::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<FabricError> for AttachError {
    fn from(error: FabricError) -> AttachError {
        AttachError::Fabric(error)
    }
}

/// A process's devices: all NICs of its node.
pub struct Host {
    devices: Vec<Device>,
}

/// The calling process's devices, as `SOFTEFA_DIR` and `SOFTEFA_NODE` say. The first call attaches; a forked child attaches anew.
///
/// # Errors
/// [`AttachError`]; the next call tries again.
pub fn attach() -> Result<&'static Host, AttachError> {
    Err(AttachError::NotAsked)
}

impl Host {
    /// Attaches to the fabric in run directory `dir` as a process of `node`.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn open(dir: &Path, node: u32) -> Result<Host, AttachError> {
        let _ = (dir, node);
        Err(AttachError::NotAsked)
    }

    /// Its devices, in the order of their numbers.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }
}
