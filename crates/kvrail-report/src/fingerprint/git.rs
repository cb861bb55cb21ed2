//! The commit of the working directory, read from git's files: no program is started in a folder that may be anyone's.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{text, word};
use crate::redact;

/// A commit.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Git {
    /// Its hash. Whether files differ from it is not looked at.
    pub commit: String,
    /// The branch, unless the head is detached.
    pub branch: Option<String>,
}

/// The commit of the repository that `here` lies in.
pub(super) fn read(here: &Path) -> Option<Git> {
    let folder = here.ancestors().map(|above| above.join(".git")).find(|git| git.exists())?;
    let folder = if folder.is_dir() { folder } else { led_to(&folder)? };
    let head = word(&folder.join("HEAD"))?;
    let Some(reference) = head.strip_prefix("ref: ").map(str::trim) else {
        return hash(&head).map(|commit| Git { commit, branch: None });
    };
    // The head is read from a file: it must not lead anywhere else.
    if reference.starts_with('/') || reference.split('/').any(|part| part == "..") {
        return None;
    }
    // A linked working tree has its own HEAD, and its references in the common folder.
    let common = word(&folder.join("commondir")).map(|to| folder.join(to));
    let places = [Some(folder), common];
    let loose = || places.iter().flatten().find_map(|place| word(&place.join(reference)));
    let packed = || {
        let lists = places.iter().flatten().filter_map(|place| text(&place.join("packed-refs")));
        lists.into_iter().find_map(|list| {
            let mut lines = list.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(_, name)| *name == reference).map(|(commit, _)| commit.to_string())
        })
    };
    let commit = hash(&loose().or_else(packed)?)?;
    let branch = reference.strip_prefix("refs/heads/").unwrap_or(reference);
    Some(Git { commit, branch: Some(redact::text(branch)) })
}

/// Where the `.git` file of a linked working tree leads.
fn led_to(file: &Path) -> Option<PathBuf> {
    let line = word(file)?;
    Some(file.parent()?.join(line.strip_prefix("gitdir:")?.trim()))
}

fn hash(text: &str) -> Option<String> {
    let text = text.trim();
    (matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn loose_packed_detached_and_linked_heads_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        let below = top.join("a/b");
        fs::create_dir_all(&below).unwrap();
        assert_eq!(read(&below), None);
        fs::create_dir_all(top.join(".git/refs/heads")).unwrap();
        fs::write(top.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        assert_eq!(read(&below), None);
        let main = Some(Git { commit: COMMIT.into(), branch: Some("main".into()) });
        fs::write(top.join(".git/packed-refs"), format!("# pack-refs\n{COMMIT} refs/heads/main\n")).unwrap();
        assert_eq!(read(&below), main);
        fs::write(top.join(".git/refs/heads/main"), format!("{COMMIT}\n")).unwrap();
        assert_eq!(read(&below), main);
        let linked = top.join(".git/worktrees/w");
        fs::create_dir_all(&linked).unwrap();
        fs::write(linked.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::write(linked.join("commondir"), "../..\n").unwrap();
        fs::write(below.join(".git"), format!("gitdir: {}\n", linked.display())).unwrap();
        assert_eq!(read(&below), main);
        fs::write(linked.join("HEAD"), format!("{COMMIT}\n")).unwrap();
        assert_eq!(read(&below), Some(Git { commit: COMMIT.into(), branch: None }));
        fs::write(linked.join("HEAD"), "ref: ../../etc/shadow\n").unwrap();
        assert_eq!(read(&below), None);
    }
}
