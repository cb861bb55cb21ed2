//! The other participants on this host, for a run that nobody said a word about ranks and rendezvous of.
//!
//! They are this program once more, with the same flags and a rank. The rendezvous lives in the process that the user started, so
//! that they end with it, however it ends.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvrail_rendezvous::{Host, RunId};

use crate::failure::Failure;

use super::flags::Flags;
use super::plan::Plan;

/// Longest time from the last word to a participant's exit.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two looks at one that is ending.
const NAP: Duration = Duration::from_millis(10);

/// The others. Dropping it waits a moment for them to end by themselves, then kills them.
pub(crate) struct Peers {
    children: Vec<Child>,
    host: Option<Host>,
}

impl Peers {
    /// Starts every rank but 0, and points this process's flags at the rendezvous.
    ///
    /// # Errors
    /// When a process or the rendezvous cannot be started.
    pub(crate) fn start(words: &[String], plan: &Plan, flags: &mut Flags) -> Result<Self, Failure> {
        let run_id = RunId::generate();
        let host =
            Host::start("127.0.0.1:0", run_id.clone()).map_err(|e| Failure::environment(e.to_string()))?;
        flags.runtime_type = "ASIO".into();
        flags.asio_address = "127.0.0.1".into();
        flags.asio_port = host.address().port();
        flags.run_id = Some(run_id.to_string());
        flags.rank = Some(0);
        let mut peers = Self { children: Vec::new(), host: Some(host) };
        let others = plan.participants() - 1;
        if !flags.quiet {
            let (who, verb) = match others {
                1 => ("a target".to_owned(), "is"),
                _ => (format!("{others} more participants"), "are"),
            };
            eprintln!("no rendezvous was named: {who} {verb} started on this host");
        }
        for rank in 1..plan.participants() {
            // Not `current_exe`: that path is stale when the program was replaced while it runs.
            let mut command = Command::new("/proc/self/exe");
            command.arg("nixlbench").args(words);
            command.arg("--runtime_type=ASIO").arg("--asio_address=127.0.0.1");
            command.arg(format!("--asio_port={}", flags.asio_port));
            command.arg(format!("--run_id={run_id}")).arg(format!("--rank={rank}")).arg("--quiet");
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let child = command
                .spawn()
                .map_err(|e| Failure::environment(format!("participant {rank} cannot be started: {e}")))?;
            peers.children.push(child);
        }
        Ok(peers)
    }

    /// Waits a moment for them to end.
    pub(crate) fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let deadline = Instant::now() + END_MAX;
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(NAP);
            }
            if matches!(child.try_wait(), Ok(None)) {
                // It was this process's own child all along: no other can be meant.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        self.children.clear();
        if let Some(host) = self.host.take() {
            host.end(Duration::ZERO);
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.finish();
    }
}
