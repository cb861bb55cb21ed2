//! What can be chosen about NIXL, and what a process needs to be started with for it.

use std::env;
use std::path::PathBuf;

use kvrail_sys::nixl::{Installation, LoadError, Search, Surroundings};

use crate::error::{EngineError, Kind};

/// What becomes of a request between two postings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Requests {
    /// It is posted again, as it is.
    #[default]
    Repost,
    /// It is released, and a new one made of the same blocks, within what is timed.
    Recreate,
}

/// What is chosen. The default is what NIXL's own users have: UCX, no progress thread.
#[derive(Clone, Debug)]
pub struct Options {
    /// The NIXL to use: a library, its directory, a `site-packages` or the root of an environment; else it is searched for.
    pub library: Option<PathBuf>,
    /// Its backend, in any case.
    pub backend: String,
    /// Parameters of the backend, as `num_threads` → `4`.
    pub parameters: Vec<(String, String)>,
    /// Whether NIXL makes progress on a thread of its own.
    pub progress_thread: bool,
    /// What becomes of a request between two postings.
    pub requests: Requests,
    /// Whether lists of blocks are prepared once, for requests to select from.
    pub prepared_lists: bool,
    /// Directories that come first in the search for what the backend's plugin needs.
    pub libraries: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            library: None,
            backend: "UCX".into(),
            parameters: Vec::new(),
            progress_thread: false,
            requests: Requests::default(),
            prepared_lists: false,
            libraries: Vec::new(),
        }
    }
}

impl Options {
    /// The NIXL that is meant. Nothing is loaded.
    ///
    /// # Errors
    /// That there is none, or why it cannot be used.
    pub fn installation(&self) -> Result<Installation, EngineError> {
        Installation::find(&Search::new(self.library.as_deref())).map_err(|error| absent(&error))
    }

    /// What a process must be started with that opens an engine with these options: the loader, NIXL and UCX look at their environment
    /// too early for a process to change its own.
    ///
    /// # Errors
    /// As [`installation`](Self::installation).
    pub fn surroundings(&self) -> Result<Surroundings, EngineError> {
        let installation = self.installation()?;
        let backend = installation.backend(&self.backend);
        Ok(Surroundings::of(&installation, &backend, &self.libraries, |name| env::var_os(name)))
    }
}

pub(super) fn absent(error: &LoadError) -> EngineError {
    let kind = match error {
        LoadError::NotThere { .. } => Kind::Usage,
        _ => Kind::Environment,
    };
    error.hints().into_iter().fold(EngineError::new(kind, error.to_string()), EngineError::hint)
}
