//! The target of a run on one host: this program once more, as a child that cannot outlive its parent.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::run::Run;

/// Longest time from its start until the child listens.
const START_MAX: Duration = Duration::from_secs(20);
/// Longest time from the last word to the child's exit.
const END_MAX: Duration = Duration::from_secs(5);
/// Word before the address on the child's stdout.
const LISTENING: &str = "listening ";

/// The child. Dropping it waits a moment for it to end by itself, then kills it.
pub(crate) struct Spawned {
    child: Child,
    address: SocketAddr,
}

impl Spawned {
    /// Starts a target on the loopback interface and learns its port.
    ///
    /// # Errors
    /// When it cannot be started or does not come up.
    pub(crate) fn start(run: &Run) -> Result<Self, Failure> {
        let failed = |what: &str| Failure::environment(format!("the target process {what}"));
        let timeout = format!("{}ms", run.timeout.as_millis().max(1));
        // Not `current_exe`: that path is stale when the program was replaced while it runs.
        let mut command = Command::new("/proc/self/exe");
        command.args([
            "bench",
            "--role",
            "target",
            "--listen",
            "127.0.0.1:0",
            "--spawned",
            "--timeout",
            &timeout,
        ]);
        command.args(run.ofi.words());
        if let Some(injection) = run.injection {
            command.arg("--inject-corruption").arg(injection.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(&format!("cannot be started: {e}")))?;
        let Some(stdout) = child.stdout.take() else { return Err(failed("has no stdout")) };
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        // From here on, a failure drops this and so ends the child.
        let mut spawned = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let line = receiver
            .recv_timeout(START_MAX)
            .map_err(|_| failed(&format!("did not listen within {}", crate::units::span(START_MAX))))?;
        match line.trim().strip_prefix(LISTENING).and_then(|a| a.parse().ok()) {
            Some(address) => spawned.address = address,
            None => return Err(failed("ended before it listened")),
        }
        Ok(spawned)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let deadline = Instant::now() + END_MAX;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        // Errors mean that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child: tells the parent where it listens, and asks the kernel to end it with its parent.
///
/// # Errors
/// When the kernel or the pipe refuses.
pub(crate) fn report_to_parent(address: SocketAddr) -> Result<(), Failure> {
    use std::io::Write;
    let failed = |e: std::io::Error| Failure::environment(format!("cannot tell the parent process: {e}"));
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| failed(e.into()))?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{LISTENING}{address}").and_then(|()| stdout.flush()).map_err(failed)
}
