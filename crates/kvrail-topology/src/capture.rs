//! A captured sysfs tree in one text file, as `kvrail topo --capture` writes it.
//!
//! ```text
//! # kvrail sysfs capture v1
//! bus/pci/devices/
//!  0000:4f:00.0 -> ../../../devices/pci0000:44/0000:44:00.0/0000:45:00.0/0000:46:01.0/0000:4f:00.0
//! devices/system/node/
//!  online<TAB>0-1
//! ```
//!
//! A line that ends in `/` names a directory; the lines below it that begin with one space are of that directory, all
//! others of the root. `name -> text` is a symbolic link, `name TAB text` a file, a name alone an empty file; `\n`, `\t`
//! and `\\` stand for themselves in texts. `#` begins a comment line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use crate::files::{Entry, Files, Record};

/// What the first line of a capture begins with.
pub(crate) const HEADER: &str = "# kvrail sysfs capture v1";
/// Most files and links of a capture: a host with 1,000 PCI functions has about 10,000.
const ENTRIES_MAX: usize = 1 << 20;
/// Longest path.
const PATH_BYTES_MAX: usize = 4096;

/// A captured tree.
#[derive(Default, Debug)]
pub(crate) struct Capture {
    /// Contents by path; a link holds its text in `Err`.
    entries: BTreeMap<String, Result<String, String>>,
}

impl Capture {
    /// Reads a capture.
    ///
    /// # Errors
    /// The line, from 1, and what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, String)> {
        if !text.starts_with(HEADER) {
            return Err((1, format!("not a captured tree: the first line is not `{HEADER}`")));
        }
        let mut entries = BTreeMap::new();
        let mut directory = String::new();
        for (index, line) in text.lines().enumerate() {
            let bad = |what: &str| (index + 1, what.to_string());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (above, line) = match line.strip_prefix(' ') {
                Some(line) => (directory.as_str(), line),
                None => ("", line),
            };
            if let (Some(name), false) = (line.strip_suffix('/'), line.contains(['\t', '>'])) {
                directory = join("", name).ok_or_else(|| bad("a path with `..` or an empty part"))?;
                continue;
            }
            let (name, content) = match (line.split_once('\t'), line.split_once(" -> ")) {
                (Some((name, text)), _) => (name, Ok(unescape(text))),
                (None, Some((name, target))) => (name, Err(target.to_string())),
                (None, None) => (line, Ok(String::new())),
            };
            let path =
                join(above, name).ok_or_else(|| bad("a path with `..`, an empty part, or too long"))?;
            if entries.len() >= ENTRIES_MAX {
                return Err(bad("more entries than a host can have"));
            }
            if entries.insert(path, content).is_some() {
                return Err(bad("a path that came before"));
            }
        }
        Ok(Self { entries })
    }

    /// Writes down what was read of a tree.
    pub(crate) fn write(record: &Record, comments: &[String]) -> String {
        let mut lines: BTreeMap<(&str, &str), String> = BTreeMap::new();
        let split =
            |path: &'_ str| -> (usize, usize) { path.rfind('/').map_or((0, 0), |slash| (slash, slash + 1)) };
        for (path, text) in &record.texts {
            let (end, start) = split(path);
            lines.insert((&path[..end], &path[start..]), format!("\t{}", escape(text)));
        }
        for (path, target) in &record.links {
            let (end, start) = split(path);
            lines.insert((&path[..end], &path[start..]), format!(" -> {target}"));
        }
        let mut written = format!("{HEADER}\n");
        for comment in comments {
            let _ = writeln!(written, "# {comment}");
        }
        let mut directory = "";
        for ((above, name), rest) in &lines {
            if *above != directory {
                let _ = writeln!(written, "{above}/");
                directory = above;
            }
            let indent = if above.is_empty() { "" } else { " " };
            let _ = writeln!(written, "{indent}{name}{rest}");
        }
        written
    }
}

fn join(above: &str, name: &str) -> Option<String> {
    let plain = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    let path = if above.is_empty() { name.to_string() } else { format!("{above}/{name}") };
    (plain && path.len() <= PATH_BYTES_MAX).then_some(path)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t")
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('n') => plain.push('\n'),
                Some('t') => plain.push('\t'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            (character, false) => plain.push(character),
        }
    }
    plain
}

impl Capture {
    /// The names of what lies in `path`; `None` where nothing does.
    fn below(&self, path: &str) -> Option<Vec<String>> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut names: Vec<String> = Vec::new();
        let mut from = prefix.clone();
        // One look-up for each name, not a walk over all that lies below it.
        while let Some((next, _)) = self.entries.range(from..).next() {
            let Some(rest) = next.strip_prefix(&prefix) else { break };
            let name = rest.split('/').next().unwrap_or(rest);
            // `0` is the character after `/`: past all that lies below.
            from = match rest.len() == name.len() {
                true => format!("{prefix}{name}\0"),
                false => format!("{prefix}{name}0"),
            };
            if names.last().is_none_or(|last| last != name) {
                names.push(name.to_string());
            }
        }
        (!names.is_empty()).then_some(names)
    }
}

impl Files for Capture {
    fn entry(&self, path: &str) -> io::Result<Option<Entry>> {
        Ok(match self.entries.get(path) {
            Some(Ok(_)) => Some(Entry::File),
            Some(Err(target)) => Some(Entry::Link(target.clone())),
            None => {
                let prefix = format!("{path}/");
                let next = self.entries.range(prefix.clone()..).next();
                next.filter(|(next, _)| next.starts_with(&prefix)).map(|_| Entry::Directory)
            }
        })
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        match self.entries.get(path) {
            Some(Ok(text)) => Ok(text.clone().into_bytes()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        self.below(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let mut record = Record::default();
        record.texts.insert("a/b/c".into(), "two\nlines\tand \\".into());
        record.texts.insert("a/b-x".into(), "1".into());
        record.texts.insert("top".into(), String::new());
        record.links.insert("a/link".into(), "../top".into());
        let text = Capture::write(&record, &["by a test".into()]);
        let capture = Capture::parse(&text).unwrap();
        assert_eq!(capture.read("a/b/c").unwrap(), b"two\nlines\tand \\");
        assert_eq!(capture.entry("a/link").unwrap(), Some(Entry::Link("../top".into())));
        assert_eq!(capture.entry("a/b").unwrap(), Some(Entry::Directory));
        assert_eq!(capture.entry("a/x").unwrap(), None);
        let mut names = capture.names("a").unwrap();
        names.sort_unstable();
        assert_eq!(names, ["b", "b-x", "link"]);
        assert_eq!(capture.names("").unwrap(), ["a", "top"]);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, line) in [
            ("", 1),
            ("bus/\n", 1),
            ("# kvrail sysfs capture v1\n../x\t1", 2),
            ("# kvrail sysfs capture v1\na\t1\na\t2", 3),
            ("# kvrail sysfs capture v1\na//b\t1", 2),
        ] {
            assert_eq!(Capture::parse(text).unwrap_err().0, line, "{text}");
        }
    }
}
