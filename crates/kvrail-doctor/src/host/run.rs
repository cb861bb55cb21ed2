//! Questions to programs that are installed (`nvidia-smi`, `ibv_devices`, `aws`), each with a deadline and a bounded answer.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use serde::{Deserialize, Serialize};

use super::{Answer, Host, Lack, Live, Question};

/// Most of one stream that is kept.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// What a program said.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ran {
    /// Its exit status; none when a signal ended it.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to standard output, at most 1 MiB.
    pub stdout: String,
    /// What it wrote to standard error, at most 1 MiB.
    pub stderr: String,
}

impl Ran {
    /// Whether it ended by itself with status 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status == Some(0)
    }
}

struct Run<'a> {
    words: &'a [&'a str],
    variables: &'a [(&'a str, &'a str)],
    patience: Option<Duration>,
}

impl Host {
    /// What a program says, started without a shell, by the deadline of the host.
    ///
    /// # Errors
    /// [`Lack::Absent`] when there is no such program, [`Lack::Late`] when it did not end in time and was killed with its children.
    pub fn run(&self, words: &[&str]) -> Answer<Ran> {
        self.ask(&Run { words, variables: &[], patience: None })
    }

    /// The same with variables besides those of the host, and a deadline of its own.
    ///
    /// # Errors
    /// Those of [`Host::run`].
    pub fn run_with(&self, words: &[&str], variables: &[(&str, &str)], patience: Duration) -> Answer<Ran> {
        self.ask(&Run { words, variables, patience: Some(patience) })
    }
}

impl Question for Run<'_> {
    const SECTION: &'static str = "command";
    type Answer = Ran;

    /// The command as one would type it.
    fn key(&self) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("{name}={value}"));
        variables.chain(self.words.iter().map(ToString::to_string)).collect::<Vec<_>>().join(" ")
    }

    fn ask(&self, live: &Live) -> Answer<Ran> {
        if !live.is_here() {
            return Err(Lack::Failed("commands are not run in another root".into()));
        }
        let [program, arguments @ ..] = self.words else { return Err(Lack::Absent) };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(live.variables()).envs(self.variables.iter().copied());
        match ended(command, self.patience.unwrap_or(live.patience())) {
            // A directory of the search path that may not be looked into, as root's for anybody else, is no program that may not be run.
            Err(Lack::Denied) if !is_there(live, program) => Err(Lack::Absent),
            answer => answer,
        }
    }
}

/// Whether a program is where it is searched for.
fn is_there(live: &Live, program: &str) -> bool {
    let path = live.variables().get("PATH").map_or("", String::as_str);
    program.contains('/') || path.split(':').any(|directory| Path::new(directory).join(program).is_file())
}

/// Groups of the programs that run, for whoever has to end before they do.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn groups() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills every program that was started here and still runs, with its children: they have groups of their own, which a terminal's
/// Ctrl-C does not reach. None is started afterwards; to be called right before the end of the process.
pub fn kill_all() {
    let groups = groups();
    for group in groups.iter().filter_map(|group| Pid::from_raw(*group)) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    // Whoever would start another one waits here.
    std::mem::forget(groups);
}

/// Starts a command in a process group of its own, and waits for its end; whoever is left of the group at the deadline is killed.
pub(crate) fn ended(mut command: Command, patience: Duration) -> Answer<Ran> {
    let deadline = Instant::now() + patience;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let (mut child, group) = {
        let mut groups = groups();
        let child = command.spawn()?;
        let group = Pid::from_child(&child);
        groups.insert(group.as_raw_nonzero().get());
        (child, group)
    };
    let collect = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
                // The rest is taken in, so that the writer is not held up, and thrown away.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
            bytes
        })
    };
    let stdout = collect(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = collect(child.stderr.take().map(|stream| Box::new(stream) as _));
    let kill = || {
        groups().remove(&group.as_raw_nonzero().get());
        kill_process_group(group, Signal::KILL)
    };
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => {
                let _ = kill();
                // A process that hangs in a driver (a stuck GPU's nvidia-smi) is not ended by a signal, and is not waited for here.
                std::thread::spawn(move || child.wait());
                return Err(Lack::Late);
            }
            Err(error) => {
                let _ = kill();
                return Err(error.into());
            }
        }
    };
    // A child that it left behind would keep the streams open.
    let _ = kill();
    let text = |stream: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&stream.join().unwrap_or_default()).into_owned()
    };
    Ok(Ran { status: status.code(), signal: status.signal(), stdout: text(stdout), stderr: text(stderr) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Scope;

    #[test]
    fn programs_that_are_missing_hang_crash_or_talk_without_end_are_answers() {
        let live = Live::new().with_patience(Duration::from_millis(300));
        let host = Host::live(live, Scope::default());
        assert_eq!(host.run(&["kvrail-no-such-program"]), Err(Lack::Absent));
        assert_eq!(host.run(&["/etc/passwd"]), Err(Lack::Denied));
        let begin = Instant::now();
        assert_eq!(host.run(&["sh", "-c", "sleep 60 & sleep 60"]), Err(Lack::Late));
        // What stays behind does not hold the answer up.
        let left = host.run(&["sh", "-c", "sleep 60 & echo done"]).unwrap();
        assert_eq!((left.status, left.stdout.as_str()), (Some(0), "done\n"));
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(host.run(&["sh", "-c", "kill -SEGV $$"]).unwrap().signal, Some(11));
        assert_eq!(host.run(&["yes"]), Err(Lack::Late));
        let said = host.run_with(
            &["sh", "-c", "echo $A; echo b >&2; exit 3"],
            &[("A", "a")],
            Duration::from_secs(5),
        );
        let said = said.unwrap();
        assert_eq!((said.status, said.stdout.as_str(), said.stderr.as_str()), (Some(3), "a\n", "b\n"));
    }
}
