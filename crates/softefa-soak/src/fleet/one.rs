//! One run: `kvrail softefa run` with the exerciser on every node, what the schedule does to it, and what is found afterwards.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use softefa_fabric::clock::now_ns;
use softefa_fabric::{Fabric, Fault};

use super::traces::{self, SharedMemory};
use super::{Programs, Violation};
use crate::board::{Board, Phase, Stage};
use crate::exercise::{self, Files, WORD};
use crate::memory::Memory;
use crate::plant::Plant;
use crate::schedule::{Act, By, Ending, LIVES_MAX, Rank, Schedule};

/// Longest time until all processes are ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// Longest time from the last fault's end until nothing is unfinished: longer than what processes give themselves.
const DRAINED_MAX: Duration = Duration::from_secs(20);
/// Longest time from the beginning of the end until the front has gone.
const GONE_MAX: Duration = Duration::from_secs(30);
/// Longest time in which a keeper whose front was killed, or a cleaner, removes everything.
const REMOVED_MAX: Duration = Duration::from_secs(15);
/// How long a file in /dev/shm may be nobody's: another program may be about to map or remove its own.
const SETTLED_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// Most of what a run has printed that is shown, bytes.
const SAID_MAX: usize = 2000;

/// A run that is under way.
struct Run<'a> {
    schedule: &'a Schedule,
    programs: &'a Programs,
    base: PathBuf,
    log: PathBuf,
    name: String,
    front: Child,
    ended: Option<ExitStatus>,
    board: Board,
    fabric: Option<Fabric>,
    /// The number that each fault got.
    set: Vec<Option<u32>>,
    killed_command: bool,
}

/// Operations that a run has seen.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    /// Posted.
    pub posted: u64,
    /// Ended well.
    pub well: u64,
    /// Ended with an error.
    pub badly: u64,
}

/// Carries a schedule out below `root`, which is empty before and after.
pub(super) fn run(
    root: &Path,
    schedule: &Schedule,
    programs: &Programs,
    plant: Option<Plant>,
) -> Result<Seen, Violation> {
    let shared = SharedMemory::now();
    let wrong = |what: String| Violation { seed: schedule.seed, what, said: String::new() };
    let (base, work) = (root.join("base"), root.join("work"));
    let files = Files(work.clone());
    let prepared = fs::create_dir_all(&base).and_then(|()| fs::create_dir_all(&work));
    prepared.map_err(|e| wrong(format!("cannot make {}: {e}", work.display())))?;
    let cannot = |e: io::Error| wrong(format!("cannot start a run: {e}"));
    let board = Board::create(&files.board()).map_err(cannot)?;
    Memory::create(&files.memory(), &schedule.traffic).map_err(cannot)?;
    for (number, planned) in schedule.faults.iter().enumerate() {
        if planned.by == By::Start {
            board.fault(number).from_ns.store(1, Ordering::Release);
        }
    }
    let log = work.join("log");
    let name = "soak".to_owned();
    let front = start(schedule, programs, &base, &log, &name, &exercise::words(&work, schedule.seed, plant));
    let mut run = Run {
        schedule,
        programs,
        base,
        log,
        name,
        front: front.map_err(cannot)?,
        ended: None,
        board,
        fabric: None,
        set: vec![None; schedule.faults.len()],
        killed_command: false,
    };
    let happened = run.happen(plant, &shared);
    let seen = run.seen();
    let said = run.said();
    run.clean_up();
    let removed = fs::remove_dir_all(root);
    happened.map_err(|what| Violation { seed: schedule.seed, what, said })?;
    removed.map_err(|e| wrong(format!("cannot remove {}: {e}", root.display())))?;
    Ok(seen)
}

fn start(
    schedule: &Schedule,
    programs: &Programs,
    base: &Path,
    log: &Path,
    name: &str,
    words: &[OsString],
) -> io::Result<Child> {
    let log = fs::File::create(log)?;
    let mut command = Command::new(&programs.kvrail);
    command
        .args(schedule.words(name))
        .arg(&programs.exerciser)
        .args(&programs.exerciser_words)
        .arg(WORD)
        .args(words);
    command.env("SOFTEFA_BASE", base);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn()
}

impl Run<'_> {
    fn happen(&mut self, plant: Option<Plant>, shared: &SharedMemory) -> Result<(), String> {
        self.wait_until_ready()?;
        self.fabric =
            Some(Fabric::open(&self.directory()).map_err(|e| format!("cannot open the fabric: {e}"))?);
        self.begin();
        self.follow_timeline()?;
        let keeper = self.keeper()?;
        self.end(keeper)?;
        self.judge()?;
        // Whoever forgets a file or a process does so before it is looked for.
        let _planted = plant.filter(|plant| plant.is_left_behind()).map(|plant| self.leave(plant));
        self.search(shared)
    }

    fn directory(&self) -> PathBuf {
        // SAFETY: the call touches no memory.
        let uid = unsafe { libc::geteuid() };
        self.base.join(format!("softefa-{uid}")).join(&self.name)
    }

    /// Processes of the first life.
    fn first_ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        let (nodes, processes) = (self.schedule.nodes, self.schedule.processes);
        (0..nodes).flat_map(move |node| (0..processes).map(move |process| Rank::of(node, process, 0)))
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        self.wait("all processes to be ready", READY_MAX, |run| {
            run.first_ranks().all(|rank| run.board.cell(rank).stage() >= Stage::Ready)
        })
    }

    fn wait(&mut self, what: &str, longest: Duration, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + longest;
        while !done(self) {
            self.violations()?;
            if self.has_ended()? {
                return Err(format!("`kvrail softefa run` ended ({}) instead of {what}", self.how()));
            }
            if Instant::now() > deadline {
                let stages: Vec<String> = self
                    .first_ranks()
                    .map(|rank| {
                        format!(
                            "node {} process {} is {:?}",
                            rank.node(),
                            rank.process(),
                            self.board.cell(rank).stage()
                        )
                    })
                    .collect();
                return Err(format!("waited {} s for {what}: {}", longest.as_secs(), stages.join(", ")));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn has_ended(&mut self) -> Result<bool, String> {
        if self.ended.is_none() {
            self.ended = self.front.try_wait().map_err(|e| format!("cannot wait for the front: {e}"))?;
        }
        Ok(self.ended.is_some())
    }

    fn how(&self) -> String {
        self.ended.map_or_else(|| "it runs".into(), |status| status.to_string())
    }

    fn begin(&self) {
        let now = now_ns();
        for (number, planned) in self.schedule.faults.iter().enumerate() {
            if let (By::Start, Some(us)) = (planned.by, planned.lasts_us) {
                // It began a little earlier, and was rounded up to whole milliseconds.
                self.board.fault(number).until_ns.store(now + us * 1000 + 1_000_000, Ordering::Release);
            }
        }
        self.board.set_phase(Phase::Run, now);
    }

    fn follow_timeline(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let run_until = begun + Duration::from_micros(self.schedule.run_us);
        for (at_us, act) in self.schedule.timeline.clone() {
            self.sleep_until(begun + Duration::from_micros(at_us))?;
            self.act(act)?;
        }
        self.sleep_until(run_until)
    }

    fn sleep_until(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            self.violations()?;
            thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        if self.has_ended()? && !self.may_have_ended() {
            return Err(format!("`kvrail softefa run` ended ({}) while its commands worked", self.how()));
        }
        Ok(())
    }

    /// Whether nobody may be left: a command was killed, or all processes were.
    fn may_have_ended(&self) -> bool {
        self.killed_command || self.first_ranks().all(|rank| self.board.cell(rank).was_killed())
    }

    fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Set(number) => self.set(number),
            Act::Clear(number) => self.clear(number),
            Act::Kill(rank) => {
                let cell = self.board.cell(rank);
                let pid = cell.pid.load(Ordering::Acquire);
                if traces::is_of(pid, &self.base) {
                    cell.killed_ns.store(now_ns(), Ordering::Release);
                    kill(pid, libc::SIGKILL);
                }
                Ok(())
            }
            Act::KillCommand(node) => {
                let pid = self.board.command(node).load(Ordering::Acquire);
                if traces::is_of(pid, &self.base) {
                    self.killed_command = true;
                    kill(pid, libc::SIGKILL);
                }
                Ok(())
            }
            Act::Status => self.command(&["status", "--format", "json"]).map(drop),
        }
    }

    fn set(&mut self, number: usize) -> Result<(), String> {
        let planned = self.schedule.faults[number];
        let active = self.board.fault(number);
        let now = now_ns();
        active.from_ns.store(now, Ordering::Release);
        match planned.by {
            By::Start => {}
            By::Memory => {
                let until_ns = planned.lasts_us.map_or(u64::MAX, |us| now + us * 1000);
                let fault = Fault { until_ns, ..planned.fault };
                let fabric = self.fabric.as_ref().ok_or("no fabric is open")?;
                self.set[number] =
                    Some(fabric.add_fault(&fault).map_err(|e| format!("cannot set a fault: {e}"))?);
            }
            By::Command => {
                let words = planned.words();
                let mut all: Vec<&str> = vec!["fault"];
                all.extend(words.iter().map(String::as_str));
                all.extend(["--name", self.name.as_str()]);
                let said = self.command(&all)?;
                if self.may_have_ended() && said.is_empty() {
                    return Ok(());
                }
                let id = said.trim().parse();
                self.set[number] =
                    Some(id.map_err(|_| format!("`kvrail softefa fault` said {said:?}, no number"))?);
            }
        }
        if let Some(us) = planned.lasts_us {
            // Whole milliseconds on the command line.
            let until = now_ns() + us * 1000 + 1_000_000;
            self.board.fault(number).until_ns.store(until, Ordering::Release);
        }
        Ok(())
    }

    fn clear(&mut self, number: usize) -> Result<(), String> {
        let Some(id) = self.set[number] else { return Ok(()) };
        let fabric = self.fabric.as_ref().ok_or("no fabric is open")?;
        fabric.clear_fault(id);
        let now = now_ns();
        // One that has ended by itself has done so before.
        let earlier = |until: u64| Some(if until == 0 { now } else { until.min(now) });
        let active = self.board.fault(number);
        let _ = active.until_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, earlier);
        Ok(())
    }

    /// `kvrail softefa …`; what it printed. A fabric that is gone because its commands were killed is no failure.
    fn command(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.programs.kvrail);
        command.arg("softefa").args(words).env("SOFTEFA_BASE", &self.base).stdin(Stdio::null());
        let text = format!("kvrail softefa {}", words.join(" "));
        let done = command.output().map_err(|e| format!("`{text}` does not start: {e}"))?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        if done.status.success() {
            return Ok(said);
        }
        if self.may_have_ended() {
            return Ok(String::new());
        }
        let error = String::from_utf8_lossy(&done.stderr);
        Err(format!("`{text}` failed ({}): {}", done.status, error.trim()))
    }

    fn keeper(&self) -> Result<Option<u32>, String> {
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

    fn end(&mut self, keeper: Option<u32>) -> Result<(), String> {
        // A front that has ended was reaped: its id may be another's.
        let front = if self.has_ended()? { 0 } else { self.front.id() };
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

    /// What processes found wrong.
    fn violations(&self) -> Result<(), String> {
        let mut all = Rank::all().map(|rank| (rank, self.board.cell(rank)));
        match all.find(|(_, cell)| cell.violations.load(Ordering::Acquire) > 0) {
            None => Ok(()),
            Some((rank, cell)) => Err(format!(
                "node {} process {}{}: {}",
                rank.node(),
                rank.process(),
                if rank.life() > 0 { ", second life" } else { "" },
                cell.text()
            )),
        }
    }

    /// Whether processes and the front ended as the schedule says.
    fn judge(&self) -> Result<(), String> {
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
    fn search(&self, shared: &SharedMemory) -> Result<(), String> {
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

    fn leave(&self, plant: Plant) -> Left {
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

    fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for cell in Rank::all().map(|rank| self.board.cell(rank)) {
            seen.posted += cell.posted.load(Ordering::Relaxed);
            seen.well += cell.ended[0].load(Ordering::Relaxed);
            seen.badly += cell.ended[1].load(Ordering::Relaxed);
        }
        seen
    }

    fn said(&self) -> String {
        let said = fs::read(&self.log).unwrap_or_default();
        let from = said.len().saturating_sub(SAID_MAX);
        String::from_utf8_lossy(&said[from..]).trim().to_owned()
    }

    /// Ends what a failed run has left, so that the next one begins with nothing.
    fn clean_up(&mut self) {
        if self.has_ended().unwrap_or(false) && traces::processes(&self.base).is_empty() {
            return;
        }
        kill(self.front.id(), libc::SIGTERM);
        let deadline = Instant::now() + REMOVED_MAX;
        while !self.has_ended().unwrap_or(true) && Instant::now() < deadline {
            thread::sleep(LOOK_EVERY);
        }
        let _ = self.front.kill();
        let _ = self.front.wait();
        // The exercisers are this fleet's own, and are known by the base directory, which is this run's alone.
        for rank in Rank::all() {
            let pid = self.board.cell(rank).pid.load(Ordering::Acquire);
            let own =
                traces::processes(&self.base).iter().any(|text| text.starts_with(&format!("process {pid} ")));
            if pid != 0 && own {
                kill(pid, libc::SIGKILL);
            }
        }
        let _ = traces::until_none(REMOVED_MAX, || traces::processes(&self.base));
    }
}

/// What was left on purpose: removed in the end.
struct Left {
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

fn kill(pid: u32, signal: i32) {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else { return };
    // SAFETY: the call touches no memory. Who is gone needs no signal.
    unsafe { libc::kill(pid, signal) };
}

const _: () = assert!(LIVES_MAX == 2);
