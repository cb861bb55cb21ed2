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

    /// The finished run of a program on each of two nodes.
    pub(super) fn on_two_nodes(self, node0: &Command, node1: &Command) -> Command {
        let words = |command: &Command| -> Vec<OsString> {
            std::iter::once(command.get_program()).chain(command.get_args()).map(ToOwned::to_owned).collect()
        };
        self.on_next_node(words(node0)).on_next_node(words(node1)).command()
    }

    pub(super) fn command(self) -> Command {
        self.command
    }
}

/// Tells programs on kvrail which rails to use.
pub(super) fn on_ofi(run: Run, provider: &str, rails: u32) -> Run {
    run.environment("KVRAIL_TRANSPORT", "ofi")
        .environment("KVRAIL_OFI_PROVIDER", provider)
        .environment("KVRAIL_OFI_RAILS", rails.to_string())
}

/// The last error that a node told, else the last line.
pub(super) fn words(stderr: &str) -> String {
    let mut lines = stderr.lines().rev().filter(|line| !line.trim().is_empty());
    let last = lines.clone().next().unwrap_or("nothing on stderr");
    lines.find(|line| line.contains("error")).unwrap_or(last).trim().to_owned()
}

/// Names of fabrics are one per user: several lanes may run.
pub(super) fn name(lane: &str) -> String {
    format!("{lane}-{}", std::process::id())
}

/// Seconds as `--deadline` takes them.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_more_than_the_last_word() {
        assert_eq!(words("node0 | error: no rail\nnode1 (exit 1)\n"), "node0 | error: no rail");
        assert_eq!(words("\n"), "nothing on stderr");
    }
}
