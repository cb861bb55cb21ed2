//! Loading libraries to see whether it can be done: for a process that was started for nothing else, because a library may crash it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::dl;

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trial {
    /// What the loader said of the first that it refused.
    pub refused: Option<(PathBuf, String)>,
    /// Libraries that are mapped after it.
    pub mapped: BTreeSet<PathBuf>,
}

/// Loads libraries one after the other, all symbols at once, until one is refused. They stay loaded.
#[must_use]
pub fn load(libraries: &[PathBuf]) -> Trial {
    let refused = libraries.iter().find_map(|library| Some((library.clone(), dl::map(library).err()?)));
    Trial { refused, mapped: mapped() }
}

/// The shared libraries that this process has mapped.
fn mapped() -> BTreeSet<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths.filter(|path| path.contains(".so")).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_refuses_is_named_with_its_words() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let trial = load(&["libc.so.6".into(), file.path().into(), "/nonexistent.so".into()]);
        let (path, said) = trial.refused.unwrap();
        assert_eq!(path, file.path());
        assert!(said.contains("short"), "{said}");
        assert!(trial.mapped.iter().any(|path| path.ends_with("libc.so.6")), "{:?}", trial.mapped);
        assert_eq!(load(&["libc.so.6".into()]).refused, None);
    }
}
