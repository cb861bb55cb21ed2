//! The keeper: parent and sub-reaper of the commands, owner of the run directory.
//!
//! One thread, one loop: wait for the front, signals, ends of processes or the next refresh; apply it; see whether the
//! end has come. It must stay the thread that starts the commands, because their parent-death signal is tied to it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use softefa_fabric::nic::Owner;
use softefa_fabric::process::ProcessIndex;
use softefa_fabric::{Fabric, Room, SEGMENT_FILE, clock};

use super::base;
use super::channel::Channel;
use super::commands::{self, Running, Streams};
use super::directory::RunDirectory;
use super::environment;
use super::error::Error;
use super::hardware::{CounterFiles, Hardware};
use super::leftovers;
use super::listen::{self, Listener};
use super::plan::{Cause, End, Order, Outcome, Report, Request};
use super::processes;
use super::signals::Signals;
use super::spec::{Device, Spec};
use super::timed::Timed;
use crate::library;

/// How often changed counters are copied to their files.
const REFRESH: Duration = Duration::from_millis(100);
/// How often node 0 is asked whether it listens.
const LISTEN_ROUND: Duration = Duration::from_millis(10);
/// How often the process table is searched for dead processes that no handle told of.
const SEARCH: Duration = Duration::from_secs(2);
/// How long commands may take to react to a signal that was passed on.
const GRACE: Duration = Duration::from_secs(5);
/// How long commands may take to react to SIGTERM at their deadline.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);
/// How long shells and others that joined the fabric may take to react to SIGHUP.
const HANGUP_GRACE: Duration = Duration::from_millis(300);
/// Longest time until everything that was killed is gone.
const END_MAX: Duration = Duration::from_secs(20);
/// Longest time until the front says what to do.
const ORDER_MAX: Duration = Duration::from_secs(10);
/// Bytes of one small file with its directory entry on a tmpfs: a page and some.
const FILE_BYTES: u64 = 5 << 10;
/// Files of one NIC in the private /sys, about.
const FILES_PER_NIC: u64 = 100;
/// Processes per node that there has to be room for.
const PROCESSES_PER_NODE: u64 = 2;

/// Runs as the keeper: called by the process that the front has started, with their socket as stdin.
///
/// # Errors
/// When the process was not started by a front. Everything else is told to the front.
pub fn keep() -> Result<(), Error> {
    let refused = |e: std::io::Error| Error::system("be a keeper: it is started by `kvrail softefa run`", e);
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(refused)?;
    let mut channel = Channel::new(UnixStream::from(socket));
    let fds = channel.receive_fds().map_err(refused)?;
    let order = channel.receive_one(ORDER_MAX).map_err(refused)?;
    let Order::Set { request, front } = order else {
        return Err(refused(std::io::ErrorKind::InvalidData.into()));
    };
    // A session of its own: the terminal's Ctrl-C and hang-up reach the front, which passes them on.
    let _ = rustix::process::setsid();
    let told = match Keeper::set_up(&request, front, &channel, fds) {
        Ok(keeper) => keeper.keep(&mut channel, &request),
        Err(error) => Err(error),
    };
    // The front may be gone: nobody is left to tell then, and everything has been removed.
    let _ = match told {
        Ok(outcome) => channel.send(&Report::Done(outcome)),
        Err(error) => channel.send(&Report::Failed(error.tell())),
    };
    Ok(())
}

/// Stdin, and stdout and stderr of each node, as the front sends them.
struct Terminals {
    stdin: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, OwnedFd)>,
}

impl Terminals {
    fn of(fds: Vec<OwnedFd>) -> Self {
        let mut fds = fds.into_iter();
        let stdin = fds.next();
        let mut outputs = Vec::new();
        while let (Some(out), Some(err)) = (fds.next(), fds.next()) {
            outputs.push((out, err));
        }
        Self { stdin, outputs }
    }

    /// Those of a node. A single command reads our stdin; of several, none could know which bytes are its own.
    fn take(&mut self, node: u32, alone: bool) -> Result<Streams, Error> {
        let missing =
            || Error::system("start a command", std::io::Error::other("the front sent no streams for it"));
        let (stdout, stderr) = self.outputs.get(node as usize).ok_or_else(missing)?;
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::system("copy a descriptor", e));
        Ok(Streams {
            stdin: if alone { self.stdin.take() } else { None },
            stdout: copy(stdout)?,
            stderr: copy(stderr)?,
        })
    }
}

/// What is being kept.
struct Keeper {
    directory: RunDirectory,
    fabric: Fabric,
    files: CounterFiles,
    signals: Signals,
    terminals: Terminals,
    commands: Vec<Running>,
    /// Handles on processes that have devices open.
    holders: HashMap<ProcessIndex, (Owner, OwnedFd)>,
}

/// Why and when what still runs is killed.
struct Ending {
    cause: Cause,
    kill_at: Instant,
}

impl Keeper {
    /// Makes everything; on failure, removes what was made.
    fn set_up(request: &Request, front: i32, channel: &Channel, fds: Vec<OwnedFd>) -> Result<Self, Error> {
        let begun = Instant::now();
        request.check()?;
        let signals = Signals::receive(&[SIGCHLD, SIGINT, SIGTERM, SIGHUP])?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| Error::system("become the sub-reaper", e))?;
        let hardware = Hardware::of(request)?;
        for fault in &request.faults {
            fault.check(request.nodes, hardware.nics().len() as u32)?;
        }
        let name = request.name.clone().unwrap_or_else(|| format!("softefa-{front}"));
        let directory = RunDirectory::create(&name, needed(request.nodes, hardware.nics().len()))?;
        let told = channel.send(&Report::Made { path: directory.path().to_path_buf() });
        let filled = told
            .map_err(|e| Error::system("speak to the front", e))
            .and_then(|()| fill(directory.path(), request, front, &hardware, channel));
        let (fabric, files) = match filled {
            Ok(filled) => filled,
            Err(error) => {
                // The first error is the one that matters.
                let _ = directory.remove();
                return Err(error);
            }
        };
        for note in hardware.note().into_iter().chain(base::note(directory.path())) {
            let _ = channel.send(&Report::Note(note));
        }
        let up =
            Report::Up { name, nics: hardware.nics().len() as u32, seconds: begun.elapsed().as_secs_f64() };
        let keeper = Self {
            directory,
            fabric,
            files,
            signals,
            terminals: Terminals::of(fds),
            commands: Vec::new(),
            holders: HashMap::new(),
        };
        // A front that has gone is seen by the loop.
        let _ = channel.send(&up);
        Ok(keeper)
    }

    /// Keeps the fabric until its end, and removes it.
    fn keep(mut self, channel: &mut Channel, request: &Request) -> Result<Outcome, Error> {
        let kept = self.turns(channel, request);
        let nodes = if request.commands.is_empty() { 0 } else { request.nodes };
        let torn_down = self.tear_down();
        let cause = kept?;
        let commands = torn_down?;
        let end = |node: u32| {
            let command = commands.iter().find(|command| command.node == node);
            command.map_or(End::NotStarted, |command| command.end.unwrap_or(End::Stopped))
        };
        Ok(Outcome { cause, ends: (0..nodes).map(end).collect() })
    }

    fn turns(&mut self, channel: &mut Channel, request: &Request) -> Result<Cause, Error> {
        let begun = Instant::now();
        let deadline = request.deadline.map(|d| begun + d);
        let mut ending: Option<Ending> = None;
        let mut waiting = 0..0;
        if !request.commands.is_empty() {
            let first = if request.after_listen.is_some() { 1 } else { request.nodes };
            self.start(request, 0..first)?;
            waiting = first..request.nodes;
        }
        let (mut refresh_at, mut search_at) = (Instant::now(), Instant::now() + SEARCH);
        let mut timed = Timed::of(&request.faults, begun);
        loop {
            self.reap(channel, request, &mut ending);
            timed.turn(&self.fabric, channel, begun)?;
            let awaited = request.after_listen.filter(|_| !waiting.is_empty() && ending.is_none());
            if let Some(port) = awaited
                && self.listens(port, begun, request)?
            {
                self.start(request, std::mem::take(&mut waiting))?;
            }
            let now = Instant::now();
            if ending.is_none() && deadline.is_some_and(|at| now >= at) {
                self.signal(Signal::TERM);
                ending = Some(Ending { cause: Cause::Deadline, kill_at: now + DEADLINE_GRACE });
            }
            let all_ended = !self.commands.is_empty() && self.commands.iter().all(|c| c.end.is_some());
            match &ending {
                Some(Ending { cause, kill_at })
                    if all_ended || self.commands.is_empty() || now >= *kill_at =>
                {
                    return Ok(*cause);
                }
                None if all_ended && waiting.is_empty() => return Ok(Cause::Finished),
                _ => {}
            }
            if now >= refresh_at || self.fabric.flush_wanted().is_some() {
                self.refresh()?;
                refresh_at = now + REFRESH;
            }
            if now >= search_at {
                self.fabric.reap_dead();
                search_at = now + SEARCH;
            }
            let mut until = refresh_at;
            until = ending.as_ref().map_or(until, |e| until.min(e.kill_at));
            until = deadline.filter(|_| ending.is_none()).map_or(until, |d| until.min(d));
            until = timed.next().map_or(until, |at| until.min(at));
            if !waiting.is_empty() {
                until = until.min(now + LISTEN_ROUND);
            }
            self.wait(channel, until)?;
            if let Some(cause) = self.hear(channel, &mut ending) {
                return Ok(cause);
            }
        }
    }

    fn start(&mut self, request: &Request, nodes: std::ops::Range<u32>) -> Result<(), Error> {
        for node in nodes {
            let Some(words) = request.command(node) else { continue };
            let libfabric = request.libfabric.as_ref();
            let variables = environment::variables(self.directory.path(), request.nodes, node, libfabric);
            let streams = self.terminals.take(node, request.nodes == 1)?;
            self.commands.push(commands::start(node, words, &variables, streams)?);
        }
        // Only the commands hold them now, so that the front sees their ends.
        if self.commands.len() == request.nodes as usize {
            self.terminals.outputs.clear();
        }
        Ok(())
    }

    /// Reaps children and tells of commands that have ended.
    fn reap(&mut self, channel: &Channel, request: &Request, ending: &mut Option<Ending>) {
        let before: Vec<bool> = self.commands.iter().map(|c| c.end.is_some()).collect();
        commands::reap(&mut self.commands);
        for (command, ended) in self.commands.iter().zip(before) {
            let Some(end) = command.end.filter(|_| !ended) else { continue };
            let running = self.commands.iter().filter(|c| c.end.is_none()).map(|c| c.node).collect();
            // A front that has gone is seen when the channel is read.
            let _ = channel.send(&Report::Ended { node: command.node, end, running });
            if request.fail_fast && end != End::Exited(0) && ending.is_none() {
                *ending = Some(Ending { cause: Cause::Failed, kill_at: Instant::now() + DEADLINE_GRACE });
                self.signal(Signal::TERM);
            }
        }
    }

    /// Whether node 0 listens.
    fn listens(&self, port: u16, begun: Instant, request: &Request) -> Result<bool, Error> {
        let Some(first) = self.commands.first() else { return Ok(false) };
        let mut node0 = vec![first.pid];
        let all = processes::descendants(rustix::process::getpid());
        node0.extend(all.into_iter().filter(|pid| *pid != first.pid && processes::is_on_node(*pid, 0)));
        let waited = begun.elapsed();
        match listen::on(port, &node0) {
            Listener::Ours => Ok(true),
            _ if first.end.is_some() && node0.len() == 1 => {
                Err(Error::NoListener { port, waited: None, elsewhere: false })
            }
            listener if waited > request.listen_deadline => Err(Error::NoListener {
                port,
                waited: Some(waited),
                elsewhere: listener == Listener::Foreign,
            }),
            _ => Ok(false),
        }
    }

    fn refresh(&mut self) -> Result<(), Error> {
        let wanted = self.fabric.flush_wanted();
        self.files.refresh(&self.fabric)?;
        if let Some(number) = wanted {
            self.fabric.flush_done(number);
        }
        for at in ProcessIndex::all() {
            let process = self.fabric.process(at);
            let owner = Owner { process: at, generation: process.generation() };
            let known = self.holders.get(&at).is_some_and(|(known, _)| *known == owner);
            if !process.is_live() {
                self.holders.remove(&at);
            } else if !known {
                let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw);
                if let Some(handle) = pid.and_then(processes::handle) {
                    self.holders.insert(at, (owner, handle));
                }
            }
        }
        Ok(())
    }

    /// Waits for something to happen, at most until `until`.
    fn wait(&mut self, channel: &Channel, until: Instant) -> Result<(), Error> {
        let slots: Vec<ProcessIndex> = self.holders.keys().copied().collect();
        let mut fds = vec![PollFd::from_borrowed_fd(channel.fd(), PollFlags::IN)];
        fds.extend(slots.iter().map(|at| PollFd::new(&self.holders[at].1, PollFlags::IN)));
        let holders = 1..fds.len();
        fds.extend(self.signals.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout(until))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::system("wait", e)),
        }
        let dead: Vec<ProcessIndex> = slots
            .into_iter()
            .zip(&fds[holders])
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(at, _)| at)
            .collect();
        for at in dead {
            if let Some((owner, _)) = self.holders.remove(&at) {
                self.fabric.reap(owner);
            }
        }
        Ok(())
    }

    /// What the front and signals say. Returns the cause of an end that waits for nothing.
    fn hear(&mut self, channel: &mut Channel, ending: &mut Option<Ending>) -> Option<Cause> {
        let mut came: Vec<i32> = self.signals.take();
        came.retain(|signal| *signal != SIGCHLD);
        match channel.receive::<Order>() {
            Ok(orders) => {
                for order in orders {
                    match order {
                        Order::Signal(signal) => came.push(signal),
                        Order::Stop(cause) => return Some(cause),
                        Order::Set { .. } => {}
                    }
                }
            }
            // The front is gone, or not one of ours: nobody is left to react for.
            Err(_) => return Some(Cause::Signal(SIGHUP)),
        }
        for number in came {
            if ending.is_some() {
                return Some(Cause::Signal(number));
            }
            let signal = match number {
                SIGINT => Signal::INT,
                SIGHUP => Signal::HUP,
                _ => Signal::TERM,
            };
            self.signal(signal);
            *ending = Some(Ending { cause: Cause::Signal(number), kill_at: Instant::now() + GRACE });
        }
        None
    }

    fn signal(&self, signal: Signal) {
        for command in self.commands.iter().filter(|c| c.end.is_none()) {
            commands::signal(command, signal);
        }
    }

    /// Ends whatever is left and removes everything.
    fn tear_down(mut self) -> Result<Vec<Running>, Error> {
        commands::reap(&mut self.commands);
        let path = self.directory.path().to_path_buf();
        hang_up_guests(&path);
        let me = rustix::process::getpid();
        let ended = processes::end_all(Instant::now() + END_MAX, || {
            let mut left = processes::descendants(me);
            left.extend(
                processes::marked(&path).into_iter().filter(|pid| !left.contains(pid)).collect::<Vec<_>>(),
            );
            left
        });
        drop(self.fabric);
        self.directory.remove()?;
        leftovers::remove();
        ended.map_err(|left| {
            let ids: Vec<_> = left.iter().map(ToString::to_string).collect();
            Error::system("end all processes", std::io::Error::other(format!("{} still run", ids.join(", "))))
        })?;
        Ok(self.commands)
    }
}

/// Shells that joined the fabric from other terminals are told first, as if their host had gone down.
fn hang_up_guests(directory: &Path) {
    let me = rustix::process::getpid();
    let ours = processes::descendants(me);
    let guests: Vec<Pid> =
        processes::marked(directory).into_iter().filter(|pid| !ours.contains(pid)).collect();
    let handles: Vec<OwnedFd> = guests.into_iter().filter_map(processes::handle).collect();
    for handle in &handles {
        let _ = rustix::process::pidfd_send_signal(handle, Signal::HUP);
    }
    let until = Instant::now() + HANGUP_GRACE;
    for handle in &handles {
        let _ = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout(until)));
    }
}

/// Bytes that the run directory takes, about, once each node's processes have opened their devices.
fn needed(nodes: u32, nics_per_node: usize) -> u64 {
    let nics = nodes as usize * nics_per_node;
    let room = Room::of(nics);
    let files = (nics as u64 * FILES_PER_NIC + u64::from(nodes) * FILES_PER_NIC) * FILE_BYTES;
    room.fixed
        + room.per_process * PROCESSES_PER_NODE * u64::from(nodes)
        + files
        + library::DEVICE.len() as u64
}

/// Fills the run directory.
fn fill(
    directory: &Path,
    request: &Request,
    front: i32,
    hardware: &Hardware,
    channel: &Channel,
) -> Result<(Fabric, CounterFiles), Error> {
    library::install(&directory.join("lib"))
        .map_err(|e| Error::system(format!("{} {}", e.action, e.path.display()), e.source))?;
    let mut roots = Vec::new();
    for node in 0..request.nodes {
        // On a slow disk this takes its time: look in between whether somebody still waits for it.
        if channel.is_closed() {
            return Err(Error::system("set up the fabric", std::io::Error::other("the front is gone")));
        }
        roots.push(hardware.lay_out(directory, node)?);
        let variables = environment::variables(directory, request.nodes, node, request.libfabric.as_ref());
        environment::write(directory, node, &variables)?;
    }
    let segment = softefa_fabric::Spec {
        nodes: request.nodes,
        nics: hardware.nics().to_vec(),
        seed: request.seed,
        model: request.model,
        limits: hardware.limits(),
    };
    let of_fabric = |e: softefa_fabric::FabricError| Error::Fabric(e.to_string());
    let fabric = Fabric::create(&directory.join(SEGMENT_FILE), &segment).map_err(of_fabric)?;
    for fault in request.faults.iter().filter(|fault| fault.begins.is_zero()) {
        fabric.add_fault(&fault.fault(clock::now_ns())).map_err(of_fabric)?;
    }
    let libfabric = request.libfabric.clone();
    let device = |nic: &softefa_fabric::NicSpec| Device { name: nic.name.clone(), rate_bps: nic.rate_bps };
    let spec = Spec {
        schema: Spec::schema(),
        name: directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        made_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        front_pid: front,
        keeper_pid: rustix::process::getpid().as_raw_nonzero().get(),
        nodes: request.nodes,
        shape: hardware.shape().to_owned(),
        seed: request.seed,
        model: request.model,
        devices: hardware.nics().iter().map(device).collect(),
        libfabric: libfabric.as_ref().map(|l| l.library.clone()),
        libfabric_search: libfabric.as_ref().and_then(|l| l.search.clone()),
        libfabric_providers: libfabric.and_then(|l| l.providers),
    };
    spec.write(directory)?;
    Ok((fabric, CounterFiles::of(roots)))
}

/// From now until then, for `poll`.
pub(super) fn timeout(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_of_32_nics_need_less_than_a_gibibyte() {
        assert!(needed(2, 32) < 1 << 30, "{} MiB", needed(2, 32) >> 20);
        eprintln!("{} MiB, of that {:?}", needed(2, 32) >> 20, Room::of(64));
    }
}
