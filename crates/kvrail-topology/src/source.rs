//! Where a topology is read from.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::capture::Capture;
use crate::error::TopologyError;
use crate::files::{Directory, Tree};
use crate::model::{Origin, Topology};
use crate::{hwloc, sysfs};

/// The variable that names another root of sysfs. libfabric's `efa` provider and rdma-core honour it; emulated hosts
/// set it.
pub(crate) const SYSFS_VARIABLE: &str = "SYSFS_PATH";
/// Most bytes of a captured tree or of hwloc's XML.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Where a topology is read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A directory laid out as `/sys`, or a file that [`capture`] wrote.
    Sysfs(PathBuf),
    /// XML of hwloc 1.x or 2.x (`lstopo --of xml`).
    Hwloc(PathBuf),
}

impl Default for Source {
    /// The directory that `SYSFS_PATH` names if it is set and not empty, else `/sys`.
    fn default() -> Self {
        let named = std::env::var_os(SYSFS_VARIABLE).filter(|path| !path.is_empty());
        Self::Sysfs(named.map_or_else(|| PathBuf::from("/sys"), PathBuf::from))
    }
}

impl Source {
    /// The directory or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Sysfs(path) | Self::Hwloc(path) => path,
        }
    }
}

impl Topology {
    /// Reads a topology. Takes a few milliseconds for a host of 32 NICs.
    ///
    /// # Errors
    /// A source that cannot be opened, or that is not of the kind that it should be. Everything else is a
    /// [`Warning`](crate::Warning) in the model.
    pub fn read(source: &Source) -> Result<Self, TopologyError> {
        match source {
            Source::Hwloc(path) => {
                let text = read_bounded(path)?;
                let facts = hwloc::read(&text).map_err(|(position, what)| TopologyError::Hwloc {
                    path: path.clone(),
                    position,
                    what,
                })?;
                Ok(Self::new(Origin::Hwloc, facts))
            }
            Source::Sysfs(path) => with_tree(path, false, |tree| sysfs::read(&tree)),
        }
    }

    /// Reads this host: [`Topology::read`] of the default source.
    ///
    /// # Errors
    /// Those of [`Topology::read`].
    pub fn read_default() -> Result<Self, TopologyError> {
        Self::read(&Source::default())
    }

    /// Reads a captured tree that is in memory, as [`capture`] gives it.
    ///
    /// # Errors
    /// [`TopologyError::Capture`], with an empty path.
    pub fn read_capture(text: &str) -> Result<Self, TopologyError> {
        let capture = parse_capture(Path::new(""), text)?;
        Ok(Self::new(Origin::Sysfs, sysfs::read(&Tree::new(&capture))))
    }

    /// Reads hwloc's XML that is in memory.
    ///
    /// # Errors
    /// [`TopologyError::Hwloc`], with an empty path.
    pub fn read_hwloc(text: &str) -> Result<Self, TopologyError> {
        let failed = |(position, what)| TopologyError::Hwloc { path: PathBuf::new(), position, what };
        Ok(Self::new(Origin::Hwloc, hwloc::read(text).map_err(failed)?))
    }
}

/// What [`Topology::read`] reads of the sysfs tree at `root`, as the text of a file that [`Source::Sysfs`] accepts. Names
/// of devices and interfaces are in it, and the machine's model; GUIDs, GIDs, MAC addresses and serial numbers are not.
///
/// # Errors
/// Those of [`Topology::read`].
pub fn capture(root: &Path, comments: &[String]) -> Result<String, TopologyError> {
    let mut text = String::new();
    with_tree(root, true, |tree| {
        let facts = sysfs::read(&tree);
        text = Capture::write(&tree.into_record(), comments);
        facts
    })?;
    Ok(text)
}

fn with_tree(
    path: &Path,
    recording: bool,
    read: impl FnOnce(Tree<'_>) -> crate::model::Facts,
) -> Result<Topology, TopologyError> {
    let unreadable = |source| TopologyError::Unreadable { path: path.to_path_buf(), source };
    let new = if recording { Tree::recording } else { Tree::new };
    if !path.metadata().map_err(unreadable)?.is_dir() {
        let capture = parse_capture(path, &read_bounded(path)?)?;
        let new = if recording { Tree::recording } else { Tree::new };
        return Ok(Topology::new(Origin::Sysfs, read(new(&capture))));
    }
    std::fs::read_dir(path).map_err(unreadable)?;
    if !["devices", "class", "bus"].iter().any(|name| path.join(name).is_dir()) {
        let has_sys = path.join("sys").is_dir();
        return Err(TopologyError::NotSysfs { path: path.to_path_buf(), has_sys });
    }
    let directory = Directory(path.to_path_buf());
    Ok(Topology::new(Origin::Sysfs, read(new(&directory))))
}

fn parse_capture(path: &Path, text: &str) -> Result<Capture, TopologyError> {
    Capture::parse(text).map_err(|(line, what)| TopologyError::Capture { path: path.into(), line, what })
}

fn read_bounded(path: &Path) -> Result<String, TopologyError> {
    let unreadable = |source| TopologyError::Unreadable { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TopologyError::TooLarge { path: path.to_path_buf(), limit_bytes: FILE_BYTES_MAX });
    }
    // Names in a topology are ASCII; a stray byte must not hide the rest.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
