//! What is known of a path without opening it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// Size, mode and time of the last change (seconds) of what is at `path`, as decimal numbers; none when nothing is there or it
/// cannot be seen. Symbolic links are followed.
#[must_use]
pub fn query(path: &[u8]) -> Option<BTreeMap<String, String>> {
    // Callers hand over C strings: a path ends where those end.
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    let metadata = std::fs::metadata(OsStr::from_bytes(path)).ok()?;
    let facts = [
        ("size", metadata.size().to_string()),
        ("mode", metadata.mode().to_string()),
        ("mtime", metadata.mtime().to_string()),
    ];
    Some(facts.map(|(name, value)| (name.to_owned(), value)).into())
}
