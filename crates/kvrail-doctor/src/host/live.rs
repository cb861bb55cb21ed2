//! A running system, as questions see it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for one command, one HTTP request or one trial load, where a question does not say otherwise.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A running system: where its files are, what its environment says, how long one answer may take.
#[derive(Clone, Debug)]
pub struct Live {
    root: Option<PathBuf>,
    sysfs: Option<PathBuf>,
    variables: BTreeMap<String, String>,
    patience: Duration,
    program: Option<PathBuf>,
}

impl Default for Live {
    fn default() -> Self {
        Self::new()
    }
}

impl Live {
    /// The system that this process runs on, with this process's environment. `/sys` is where `SYSFS_PATH` says, as for libfabric's
    /// `efa` provider: emulated hosts set it.
    #[must_use]
    pub fn new() -> Self {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        let sysfs = variables.get("SYSFS_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        Self { root: None, sysfs, variables, patience: PATIENCE, program: None }
    }

    /// The same with all paths below a directory: for tests, and for a container's file system that is mounted somewhere.
    #[must_use]
    pub fn with_root(mut self, root: &Path) -> Self {
        self.root = Some(root.into());
        self.sysfs = None;
        self
    }

    /// The same with another environment.
    #[must_use]
    pub fn with_variables<'a>(mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        self
    }

    /// The same with another longest wait for one answer.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same with the program that is started to load a library where a crash does no harm: `kvrail`.
    #[must_use]
    pub fn with_program(mut self, program: &Path) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Where a path of the host that is looked at really is.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        if let Some(sysfs) = &self.sysfs
            && let Some(below) = path.strip_prefix("/sys")
            && (below.is_empty() || below.starts_with('/'))
        {
            return sysfs.join(below.trim_start_matches('/'));
        }
        match &self.root {
            Some(root) => root.join(path.trim_start_matches('/')),
            None => path.into(),
        }
    }

    /// A real path as the host that is looked at names it.
    #[must_use]
    pub fn name(&self, path: &Path) -> String {
        let below = self.root.as_deref().and_then(|root| path.strip_prefix(root).ok());
        match below {
            Some(below) => format!("/{}", below.display()),
            None => path.display().to_string(),
        }
    }

    /// Its environment.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Longest wait for one answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The program that is started to load a library where a crash does no harm.
    #[must_use]
    pub fn program(&self) -> Option<&Path> {
        self.program.as_deref()
    }

    /// Whether its files are those of this process's own root, so that commands and sockets are of the same system.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.root.is_none()
    }
}
