//! How a run ends, how that is judged, and what is looked for afterwards.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use softefa_fabric::Fabric;
use softefa_fabric::clock::now_ns;

use super::one::{LOOK_EVERY, REMOVED_MAX, Run, kill};
use super::traces::{self, SharedMemory};
use crate::board::{Phase, Stage};
use crate::plant::Plant;
use crate::schedule::Ending;

/// Longest time from the last fault's end until nothing is unfinished: longer than what processes give themselves.
const DRAINED_MAX: Duration = Duration::from_secs(20);
/// Longest time from the beginning of the end until the front has gone.
const GONE_MAX: Duration = Duration::from_secs(30);
/// How long a file in /dev/shm may be nobody's: another program may be about to map or remove its own.
const SETTLED_MAX: Duration = Duration::from_secs(2);

impl Run<'_> {
    pub(super) fn keeper(&self) -> Result<Option<u32>, String> {
        if !matches!(self.schedule.ending, Ending::KillKeeper | Ending::KillBoth { .. }) {
            return Ok(None);
        }
        // The one child of the front.
        let front = self.front.id();
        let children = fs::read_to_string(format!("/proc/{front}/task/{front}/children")).unwrap_or_default();
        let keeper = children.split_whitespace().find_map(|pid| pid.parse().ok());
        if keeper.is_none() && !self.may_have_ended() {
            return Err("the front has no keeper".into());
        }
        Ok(keeper)
    }

    pub(super) fn end(&mut self, keeper: Option<u32>) -> Result<(), String> {
        // A front that has ended was reaped: its id may be another's.
        let front = if self.has_ended()? { 0 } else { self.front.id() };
        if !matches!(self.schedule.ending, Ending::Drained | Ending::Flushed) {
            // From now on any process may go, and whoever outlives its peers for a moment sees that.
            let now = now_ns();
            self.board
                .present()
                .for_each(|rank| self.board.cell(rank).killed_ns.store(now, Ordering::Release));
        }
        match self.schedule.ending {
            Ending::Drained => {
                for id in
                    self.fabric.as_ref().map(Fabric::faults).unwrap_or_default().iter().map(|fault| fault.id)
                {
                    self.fabric.as_ref().map(|fabric| fabric.clear_fault(id));
                }
                let now = now_ns();
                for number in 0..self.schedule.faults.len() {
                    let active = self.board.fault(number);
                    let earlier = |until: u64| Some(if until == 0 { now } else { until.min(now) });
                    let _ = active.until_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, earlier);
                }
                self.board.set_phase(Phase::Drain, now);
                let drained = |run: &Self| {
                    let mut present = run.board.present();
                    present.all(|rank| {
                        run.board.cell(rank).stage() >= Stage::Drained || run.board.cell(rank).was_killed()
                    })
                };
                if !self.may_have_ended() {
                    self.wait("all operations to end", DRAINED_MAX, drained)?;
                }
                self.board.set_phase(Phase::Stop, now_ns());
            }
            Ending::Flushed => self.board.set_phase(Phase::Stop, now_ns()),
            Ending::Signal(signal) => kill(front, signal),
            Ending::KillFront => kill(front, libc::SIGKILL),
            Ending::KillKeeper => keeper.into_iter().for_each(|keeper| kill(keeper, libc::SIGKILL)),
            Ending::KillBoth { front_first } => {
                let mut order = [Some(front), keeper];
                if !front_first {
                    order.reverse();
                }
                order.into_iter().flatten().for_each(|pid| kill(pid, libc::SIGKILL));
            }
        }
        let deadline = Instant::now() + GONE_MAX;
        // A keeper that was killed with its front keeps its lock until the kernel has taken it down.
        let keeper = keeper.filter(|_| matches!(self.schedule.ending, Ending::KillBoth { .. }));
        while !self.has_ended()? || keeper.is_some_and(traces::runs) {
            if Instant::now() > deadline {
                return Err(format!("`kvrail softefa run` did not end within {} s", GONE_MAX.as_secs()));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Whether processes and the front ended as the schedule says.
    pub(super) fn judge(&self) -> Result<(), String> {
        self.violations()?;
        let status = self.ended.ok_or("the front runs")?;
        let code = status.code();
        let right = match self.schedule.ending {
            Ending::Drained | Ending::Flushed if self.killed_command => code == Some(1),
            Ending::Drained | Ending::Flushed => code == Some(0),
            Ending::KillFront => status.signal() == Some(libc::SIGKILL) || self.may_have_ended(),
            // The kernel may be faster with the one than this process with the other.
            Ending::KillBoth { .. } => code.is_none_or(|code| code == 2) || self.may_have_ended(),
            Ending::KillKeeper => code == Some(2) || self.may_have_ended(),
            // How a command takes the signal is its own affair; it must be a way to end.
            Ending::Signal(_) => code.is_some(),
        };
        if right {
            Ok(())
        } else {
            Err(format!("`kvrail softefa run` ended with {status}, at the end {:?}", self.schedule.ending))
        }
    }

    /// Looks for everything that may not be there any more.
    pub(super) fn search(&self, shared: &SharedMemory) -> Result<(), String> {
        let longest = match self.schedule.ending {
            Ending::KillFront => REMOVED_MAX,
            Ending::KillBoth { .. } => {
                // Whoever uses softefa next removes it.
                let next: &[&str] = if self.schedule.seed.is_multiple_of(2) {
                    &["softefa", "status"]
                } else {
                    &[
                        "softefa",
                        "run",
                        "--quiet",
                        "--nodes",
                        "1",
                        "--nics",
                        "1",
                        "--libfabric",
                        "none",
                        "--",
                        "true",
                    ]
                };
                let mut command = Command::new(&self.programs.kvrail);
                command.args(next).env("SOFTEFA_BASE", &self.base).stdin(Stdio::null());
                let done = command.output().map_err(|e| format!("the next run does not start: {e}"))?;
                if !done.status.success() {
                    let error = String::from_utf8_lossy(&done.stderr);
                    return Err(format!("the next `kvrail {}` failed: {}", next.join(" "), error.trim()));
                }
                Duration::ZERO
            }
            _ => Duration::ZERO,
        };
        let mut left = traces::until_none(longest, || {
            let mut left = traces::processes(&self.base);
            left.extend(traces::files(&self.base));
            left
        });
        left.extend(traces::until_none(SETTLED_MAX, || shared.left_since()));
        if left.is_empty() {
            return Ok(());
        }
        left.truncate(10);
        Err(format!("left at the end {:?}: {}", self.schedule.ending, left.join(", ")))
    }

    pub(super) fn leave(&self, plant: Plant) -> Left {
        let mut left = Left { child: None, file: None };
        match plant {
            Plant::LeaveFile => drop(fs::write(self.base.join("planted"), b"x")),
            Plant::LeaveSharedMemory => {
                let path = PathBuf::from(format!("/dev/shm/softefa-planted-{}", std::process::id()));
                let _ = fs::write(&path, b"x");
                left.file = Some(path);
            }
            _ => {
                let mut command = Command::new("sleep");
                command.arg("60").env("SOFTEFA_DIR", self.directory()).stdout(Stdio::null());
                left.child = command.spawn().ok();
                // Its environment is its own once it has become `sleep`.
                thread::sleep(Duration::from_millis(50));
            }
        }
        left
    }
}

/// What was left on purpose: removed in the end.
pub(super) struct Left {
    child: Option<Child>,
    file: Option<PathBuf>,
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}
