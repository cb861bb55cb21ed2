//! Writes a tree of small files, equal ones only once.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::SysfsError;

/// A directory being filled. Paths are relative to it, without `.` and `..`.
pub(super) struct Tree {
    root: PathBuf,
    /// Where the first file of each content is.
    contents: HashMap<Vec<u8>, PathBuf>,
    /// Where the first symbolic link of each text is.
    links: HashMap<String, PathBuf>,
    directories: HashSet<String>,
}

impl Tree {
    /// Fills `root`, which exists and is empty.
    pub(super) fn new(root: &Path) -> Tree {
        Tree {
            root: root.to_path_buf(),
            contents: HashMap::new(),
            links: HashMap::new(),
            directories: HashSet::new(),
        }
    }

    /// Makes a directory and those above it.
    pub(super) fn directory(&mut self, path: &str) -> Result<(), SysfsError> {
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.directory(parent(path))?;
        let full = self.root.join(path);
        fs::create_dir(&full).map_err(SysfsError::io("create directory", &full))?;
        self.directories.insert(path.to_string());
        Ok(())
    }

    /// Writes a constant, read-only file. A content that is there already is linked, not written again: it shares the
    /// inode, and thus the page that a file system in memory spends on it.
    pub(super) fn file(&mut self, path: &str, content: impl AsRef<[u8]>) -> Result<(), SysfsError> {
        self.directory(parent(path))?;
        let (full, content) = (self.root.join(path), content.as_ref());
        // Where links are refused (none on that file system, or too many on this inode) the file is written instead.
        if self.contents.get(content).is_some_and(|same| fs::hard_link(same, &full).is_ok()) {
            return Ok(());
        }
        write_new(&full, content, 0o444)?;
        self.contents.insert(content.to_vec(), full);
        Ok(())
    }

    /// [`Tree::file`] for what the kernel prints as one line.
    pub(super) fn line(&mut self, path: &str, text: impl std::fmt::Display) -> Result<(), SysfsError> {
        self.file(path, format!("{text}\n"))
    }

    /// Writes a file of its own that its owner may rewrite.
    pub(super) fn own_file(&mut self, path: &str, content: impl AsRef<[u8]>) -> Result<(), SysfsError> {
        self.directory(parent(path))?;
        write_new(&self.root.join(path), content.as_ref(), 0o644)
    }

    /// Makes `path` a relative symbolic link to `target` of the same tree.
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), SysfsError> {
        self.directory(parent(path))?;
        let (full, text) = (self.root.join(path), relative(parent(path), target));
        // std links a symbolic link itself, not what it leads to.
        if self.links.get(&text).is_some_and(|same| fs::hard_link(same, &full).is_ok()) {
            return Ok(());
        }
        symlink(&text, &full).map_err(SysfsError::io("create link", &full))?;
        self.links.insert(text, full);
        Ok(())
    }
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), SysfsError> {
    let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = open.and_then(|mut file| file.write_all(content));
    written.map_err(SysfsError::io("write file", path))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The way from directory `from` to `to`. Ends with the name of `to` even where `from` is below it, as the kernel's
/// links do: readers take the last part of a link's text for a name.
fn relative(from: &str, to: &str) -> String {
    let split =
        |path: &str| path.split('/').filter(|part| !part.is_empty()).map(str::to_string).collect::<Vec<_>>();
    let (from, to) = (split(from), split(to));
    let above = &to[..to.len().saturating_sub(1)];
    let shared = from.iter().zip(above).take_while(|(one, other)| one == other).count();
    let up = from[shared..].iter().map(|_| "..");
    up.chain(to[shared..].iter().map(String::as_str)).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_their_own_directory() {
        assert_eq!(relative("sys/class/net", "sys/devices/a/net"), "../../devices/a/net");
        assert_eq!(relative("a/b", "a/b/c"), "c");
        assert_eq!(relative("bus/slot/net", "bus/slot"), "../../slot");
    }
}
