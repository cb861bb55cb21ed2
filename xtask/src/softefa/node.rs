//! Commands on emulated nodes, as a user runs them: through `kvrail softefa run`.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::Bench;

/// Beside a lane's own deadline: making and removing the fabric.
pub(super) const AROUND: Duration = Duration::from_secs(30);

/// `kvrail softefa run` with one command per node.
#[derive(Debug)]
pub(super) struct Run {
    command: Command,
    commands: usize,
}

impl Run {
    pub(super) fn new(bench: &Bench, name: &str, nics: u32, libfabric: &Path) -> Self {
        Self::of(bench, name, libfabric).option(&["--nics", &nics.to_string()])
    }

    /// On nodes that look like an instance type.
    pub(super) fn shaped(bench: &Bench, name: &str, shape: &str, libfabric: &Path) -> Self {
        Self::of(bench, name, libfabric).option(&["--shape", shape])
    }

    fn of(bench: &Bench, name: &str, libfabric: &Path) -> Self {
        let mut command = Command::new(&bench.kvrail);
        command.args(["softefa", "run", "--nodes", "2", "--name", name]);
        command.arg("--libfabric").arg(libfabric);
        Self { command, commands: 0 }
    }

    /// A further option of `run`.
    pub(super) fn option(mut self, words: &[&str]) -> Self {
        self.command.args(words);
        self
    }

    pub(super) fn environment(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The next node's command.
    pub(super) fn on_next_node<I, S>(mut self, words: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        self.command.arg(if self.commands == 0 { "--" } else { "::" });
        self.command.args(words.into_iter().map(Into::into));
        self.commands += 1;
        self
    }

    pub(super) fn command(self) -> Command {
        self.command
    }
}

/// Names of fabrics are one per user: several lanes may run.
pub(super) fn name(lane: &str) -> String {
    format!("{lane}-{}", std::process::id())
}

/// Seconds as `--deadline` takes them.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}
