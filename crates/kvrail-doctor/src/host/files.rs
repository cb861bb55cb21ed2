//! Questions about files: their text, what a directory has, what a path is.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Answer, Host, Lack, Live, Question};

/// Most of a file that is read. What checks look at is far smaller; a file of `/proc` says its length to nobody.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Most names of a directory.
const NAMES_MAX: usize = 1 << 16;

struct File<'a>(&'a str);
struct Names<'a>(&'a str);
struct What<'a>(&'a str);

/// What a path is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What it is, or what a link leads to is.
    pub kind: EntryKind,
    /// Where it really is, with all links followed.
    pub real: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Length of a file in bytes.
    pub bytes: u64,
}

/// Kinds of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// A device.
    Device,
    /// A socket, a pipe.
    Other,
}

impl Host {
    /// A file's text. Bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self, path: &str) -> Answer<String> {
        self.ask(&File(path))
    }

    /// A file's text without white space around it: a value of `/sys` or `/proc`.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn value(&self, path: &str) -> Answer<String> {
        Ok(self.read(path)?.trim().to_owned())
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn names(&self, path: &str) -> Answer<Vec<String>> {
        self.ask(&Names(path))
    }

    /// What a path is; links are followed.
    ///
    /// # Errors
    /// Why that cannot be said; [`Lack::Absent`] also for a link that leads nowhere.
    pub fn entry(&self, path: &str) -> Answer<Entry> {
        self.ask(&What(path))
    }

    /// Whether there is something at a path.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.entry(path).is_ok()
    }
}

impl Question for File<'_> {
    const SECTION: &'static str = "file";
    type Answer = String;

    fn key(&self) -> String {
        self.0.into()
    }

    fn ask(&self, live: &Live) -> Answer<String> {
        let path = live.path(self.0);
        // Opening a pipe would wait for its writer.
        let kind = path.metadata()?.file_type();
        if !kind.is_file() && !kind.is_char_device() {
            return Err(Lack::Failed("not a file".into()));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            return Err(Lack::Failed(format!("longer than {} MiB", TEXT_BYTES_MAX >> 20)));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Question for Names<'_> {
    const SECTION: &'static str = "directory";
    type Answer = Vec<String>;

    fn key(&self) -> String {
        self.0.into()
    }

    fn ask(&self, live: &Live) -> Answer<Vec<String>> {
        let mut names = Vec::new();
        for entry in live.path(self.0).read_dir()?.take(NAMES_MAX) {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }
}

impl Question for What<'_> {
    const SECTION: &'static str = "entry";
    type Answer = Entry;

    fn key(&self) -> String {
        self.0.into()
    }

    fn ask(&self, live: &Live) -> Answer<Entry> {
        let path = live.path(self.0);
        let metadata = path.metadata()?;
        let kind = kind(&metadata);
        let real = path.canonicalize()?;
        Ok(Entry {
            kind,
            real: live.name(&real),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            bytes: metadata.len(),
        })
    }
}

/// What is at a path, links followed.
pub(super) fn kind_of(path: &Path) -> Answer<EntryKind> {
    Ok(kind(&path.metadata()?))
}

fn kind(metadata: &Metadata) -> EntryKind {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => EntryKind::File,
        () if kind.is_dir() => EntryKind::Directory,
        () if kind.is_char_device() || kind.is_block_device() => EntryKind::Device,
        () => EntryKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Scope;

    #[test]
    fn paths_are_told_as_the_host_names_them_and_pipes_and_long_files_are_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("d")).unwrap();
        std::fs::write(root.path().join("d/f"), "text").unwrap();
        std::os::unix::fs::symlink("f", root.path().join("d/link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("d/broken")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.path().join("d/pipe"), 0o600.into()).unwrap();
        let long = std::fs::File::create(root.path().join("d/long")).unwrap();
        long.set_len(TEXT_BYTES_MAX + 1).unwrap();
        let host = Host::live(Live::new().with_root(root.path()), Scope::default());
        assert_eq!(host.names("/d").unwrap(), ["broken", "f", "link", "long", "pipe"]);
        let link = host.entry("/d/link").unwrap();
        let real = root.path().canonicalize().unwrap();
        assert!(link.real == "/d/f" || link.real == real.join("d/f").display().to_string(), "{link:?}");
        assert_eq!(host.entry("/d/broken"), Err(Lack::Absent));
        assert_eq!(host.entry("/d/pipe").unwrap().kind, EntryKind::Other);
        assert!(matches!(host.read("/d/pipe"), Err(Lack::Failed(_))));
        assert!(matches!(host.read("/d/long"), Err(Lack::Failed(why)) if why.contains("1 MiB")));
        assert_eq!(host.names("/d/f"), Err(Lack::Absent));
    }
}
