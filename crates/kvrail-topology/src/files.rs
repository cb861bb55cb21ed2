//! A tree of files read as sysfs is: small texts, directories, symbolic links that stay inside the tree.
//!
//! Links are followed here, step by step and by name, so that a captured tree behaves as the live one: a link that leads
//! outside, a loop, a file that is too large are faults that name the file, never a read of something else.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::path::PathBuf;

/// Most bytes of a file; what the kernel shows in one file of sysfs is at most a page, but for lists of CPUs.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most names of a directory: more than a host has PCI functions.
const NAMES_MAX: usize = 16_384;
/// Most links on the way to one file, as in Linux.
const LINKS_MAX: usize = 40;
/// Most parts of a path, links followed.
const PARTS_MAX: usize = 256;

/// What is at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    File,
    Directory,
    /// A symbolic link and its text.
    Link(String),
}

/// Where files come from. Paths are relative, plain (no `.`, `..`, links) and separated by `/`.
pub(crate) trait Files {
    /// What is there; `None` for nothing.
    fn entry(&self, path: &str) -> io::Result<Option<Entry>>;
    /// The first [`FILE_BYTES_MAX`] + 1 bytes of a file.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;
    /// Names in a directory, at most [`NAMES_MAX`] + 1, in no order.
    fn names(&self, path: &str) -> io::Result<Vec<String>>;
}

/// A directory of this host.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Files for Directory {
    fn entry(&self, path: &str) -> io::Result<Option<Entry>> {
        let full = self.0.join(path);
        let kind = match full.symlink_metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if kind.is_symlink() {
            return Ok(Some(Entry::Link(full.read_link()?.to_string_lossy().into_owned())));
        }
        if kind.is_dir() {
            return Ok(Some(Entry::Directory));
        }
        // Pipes and devices have no place in sysfs, and opening one can block.
        if kind.is_file() {
            Ok(Some(Entry::File))
        } else {
            Err(io::Error::other("neither file nor directory"))
        }
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(self.0.join(path))?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.0.join(path))?.take(NAMES_MAX + 1);
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// A file or directory that cannot be read as it should.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) place: String,
    pub(crate) what: String,
}

/// What was read, to write it down again: links by path, contents by path.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) links: BTreeMap<String, String>,
    pub(crate) texts: BTreeMap<String, String>,
}

/// A tree whose links are followed.
pub(crate) struct Tree<'a> {
    files: &'a dyn Files,
    /// Directories known to be no links.
    plain: RefCell<HashSet<String>>,
    record: Option<RefCell<Record>>,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(files: &'a dyn Files) -> Self {
        Self { files, plain: RefCell::default(), record: None }
    }

    /// A tree that remembers what was read of it.
    pub(crate) fn recording(files: &'a dyn Files) -> Self {
        Self { record: Some(RefCell::default()), ..Self::new(files) }
    }

    pub(crate) fn into_record(self) -> Record {
        self.record.map(RefCell::into_inner).unwrap_or_default()
    }

    /// The plain path that `path` leads to, and what is there; `None` if nothing is.
    pub(crate) fn resolve(&self, path: &str) -> Result<Option<(String, Entry)>, Fault> {
        let fault = |what: String| Fault { place: path.to_string(), what };
        let mut left: VecDeque<String> = parts(path).collect();
        let (mut at, mut entry) = (String::new(), Entry::Directory);
        let (mut links, mut steps) = (0, 0);
        while let Some(part) = left.pop_front() {
            steps += 1;
            if steps > PARTS_MAX {
                return Err(fault(format!("more than {PARTS_MAX} parts on its path")));
            }
            if part == ".." {
                if at.is_empty() {
                    return Err(fault("a link leads outside of the tree; it is not followed".into()));
                }
                at.truncate(at.rfind('/').unwrap_or(0));
                entry = Entry::Directory;
                continue;
            }
            let above = at.len();
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(&part);
            if self.plain.borrow().contains(&at) {
                entry = Entry::Directory;
                continue;
            }
            match self.files.entry(&at).map_err(|error| fault(error.to_string()))? {
                None => return Ok(None),
                Some(Entry::Link(text)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(fault("its links go in a circle".into()));
                    }
                    self.remember_link(&at, &text);
                    at.truncate(above);
                    if let Some(absolute) = text.strip_prefix('/') {
                        let inside = absolute.strip_prefix("sys/").ok_or_else(|| {
                            fault("a link leads outside of the tree; it is not followed".into())
                        })?;
                        at.clear();
                        parts(inside).rev().for_each(|part| left.push_front(part));
                    } else {
                        parts(&text).rev().for_each(|part| left.push_front(part));
                    }
                    entry = Entry::Directory;
                }
                Some(found) => {
                    if found == Entry::Directory {
                        self.plain.borrow_mut().insert(at.clone());
                    } else if !left.is_empty() {
                        return Ok(None);
                    }
                    entry = found;
                }
            }
        }
        Ok(Some((at, entry)))
    }

    /// The text of a file without space around it; `None` where there is no such file.
    pub(crate) fn text(&self, path: &str) -> Result<Option<String>, Fault> {
        self.read(path, true)
    }

    /// [`Tree::text`] for what must not be written down: identifiers of this very host.
    pub(crate) fn private_text(&self, path: &str) -> Result<Option<String>, Fault> {
        self.read(path, false)
    }

    fn read(&self, path: &str, remember: bool) -> Result<Option<String>, Fault> {
        let fault = |what: String| Fault { place: path.to_string(), what };
        let at = match self.resolve(path)? {
            Some((at, Entry::File)) => at,
            Some(_) => return Err(fault("a directory where a file should be".into())),
            None => return Ok(None),
        };
        let bytes = self.files.read(&at).map_err(|error| fault(error.to_string()))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(fault(format!("larger than {} KiB", FILE_BYTES_MAX >> 10)));
        }
        let text = String::from_utf8(bytes).map_err(|_| fault("not text".into()))?;
        let text = text.trim().to_string();
        if let (Some(record), true) = (&self.record, remember) {
            record.borrow_mut().texts.insert(at, text.clone());
        }
        Ok(Some(text))
    }

    /// The names in a directory, sorted; none where there is no such directory.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<String>, Fault> {
        let fault = |what: String| Fault { place: path.to_string(), what };
        let at = match self.resolve(path)? {
            Some((at, Entry::Directory)) => at,
            Some(_) => return Err(fault("a file where a directory should be".into())),
            None => return Ok(Vec::new()),
        };
        let mut names = self.files.names(&at).map_err(|error| fault(error.to_string()))?;
        if names.len() > NAMES_MAX {
            return Err(fault(format!("more than {NAMES_MAX} names")));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The last part of what the link at `path` says, without following it; `None` where there is no link.
    pub(crate) fn link_name(&self, path: &str) -> Result<Option<String>, Fault> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some((above, _)) = self.resolve(above)? else { return Ok(None) };
        let at = if above.is_empty() { name.to_string() } else { format!("{above}/{name}") };
        let entry = self.files.entry(&at);
        let entry = entry.map_err(|error| Fault { place: path.to_string(), what: error.to_string() })?;
        let Some(Entry::Link(text)) = entry else { return Ok(None) };
        self.remember_link(&at, &text);
        Ok(parts(&text).last())
    }

    fn remember_link(&self, at: &str, text: &str) {
        if let Some(record) = &self.record {
            record.borrow_mut().links.insert(at.to_string(), text.to_string());
        }
    }
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = String> + '_ {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_string)
}
