//! Starting `kvrail softefa` in a place of its own, and looking at what it leaves.

#![allow(dead_code)] // Each test binary uses its part.

use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest run of a test's program.
const END_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// A base directory that no other test sees, and a word that marks its commands.
pub(crate) struct Place {
    base: tempfile::TempDir,
    pub(crate) mark: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        // In memory where there is such a place: thousands of small files take seconds on some disks.
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let mark = format!(
            "300.{}",
            base.path().to_str().unwrap().bytes().fold(0u64, |h, b| h * 31 % 999_983 + u64::from(b))
        );
        Self { base, mark: format!("{mark}{}", std::process::id()) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.base.path()
    }

    /// A command line of `kvrail softefa`.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        // Whoever runs the tests (nohup, a shell's background job) may have signals ignored, and that is inherited.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,INT", env!("CARGO_BIN_EXE_kvrail"), "softefa"]);
        command.args(arguments).env("SOFTEFA_BASE", self.path());
        for variable in ["SOFTEFA_DIR", "SOFTEFA_NODE", "SOFTEFA_LIBFABRIC", "VIRTUAL_ENV", "LD_LIBRARY_PATH"]
        {
            command.env_remove(variable);
        }
        // A group of its own, so that a test can press Ctrl-C for it.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::of(self.command(arguments))
    }

    /// Runs it to its end.
    pub(crate) fn softefa(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).end()
    }

    /// Starts `run` with a shell script on each node, and waits until each has come to `@ready` (else its beginning).
    pub(crate) fn run_ready(&self, options: &[&str], nodes: usize, script: &str) -> Running {
        let count = nodes.to_string();
        let ready = self.path().join("ready");
        let script = if script.contains("@ready") { script.into() } else { format!("@ready; {script}") };
        let script = script.replace("@ready", &format!("touch {}.$SOFTEFA_NODE", ready.display()));
        let mut arguments = vec!["run", "--libfabric", "none", "--nodes", &count];
        arguments.extend(options);
        arguments.extend(["--", "sh", "-c", &script]);
        let running = self.start(&arguments);
        for node in 0..nodes {
            let file = self.path().join(format!("ready.{node}"));
            until(&format!("node {node} is ready"), || file.exists());
            fs::remove_file(file).unwrap();
        }
        running
    }

    /// The run directories that are there.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for user in fs::read_dir(self.path()).unwrap().flatten().filter(|e| e.path().is_dir()) {
            found.extend(
                fs::read_dir(user.path())
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|e| e.path())
                    .filter(|p| p.is_dir()),
            );
        }
        found
    }

    /// Processes that carry this place in their environment or its mark in their command line, without this one.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let has = |pid: i32, file: &str, what: &str| {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(what)
        };
        let mark = format!("SOFTEFA_DIR={}", self.path().display());
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != std::process::id() as i32)
            .filter(|pid| has(*pid, "environ", &mark) || has(*pid, "cmdline", &self.mark))
            .collect()
    }

    /// Process id of a live fabric's keeper.
    pub(crate) fn keeper(&self) -> i32 {
        let directories = self.directories();
        assert_eq!(directories.len(), 1, "{directories:?}");
        let text = fs::read_to_string(directories[0].join("spec.json")).unwrap();
        let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        i32::try_from(spec["keeper_pid"].as_i64().unwrap()).unwrap()
    }

    /// Asserts that nothing is left: no process, no file.
    #[track_caller]
    pub(crate) fn is_empty(&self) {
        until("no process is left", || self.processes().is_empty());
        let left: Vec<_> = fs::read_dir(self.path()).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "{left:?} {:?}", self.directories());
    }
}

/// Waits for something that is about to be.
#[track_caller]
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + END_MAX;
    while !is() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Sends a signal to a process, or to a group if negative.
pub(crate) fn signal(pid: i32, name: &str) {
    let sent = Command::new("kill").args(["-s", name, "--", &pid.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -s {name} {pid}");
}

/// What a program left.
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: ExitStatus,
}

impl Ended {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn exits(&self, code: i32) {
        let signal = self.status.signal();
        assert_eq!(
            self.status.code(),
            Some(code),
            "signal {signal:?}\nstdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
    }
}

/// A program that runs. Killed when a test ends without having waited for it.
pub(crate) struct Running {
    child: Child,
    pipes: Option<(JoinHandle<String>, JoinHandle<String>)>,
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

impl Running {
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let pipes = (drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap()));
        Self { child, pipes: Some(pipes) }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let deadline = Instant::now() + END_MAX;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("it did not end within {END_MAX:?}");
            }
            std::thread::sleep(PAUSE);
        };
        let (stdout, stderr) = self.pipes.take().unwrap();
        Ended { stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), status }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM, so that the fabric takes itself down; an error means that it has ended.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.pid(), "TERM");
            let _ = self.child.wait();
        }
    }
}
