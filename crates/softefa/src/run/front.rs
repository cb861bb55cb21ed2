//! The front: starts the keeper, prints what the commands print, passes signals on, and cleans up after a keeper that
//! was killed.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::channel::Channel;
use super::directory;
use super::error::Error;
use super::keeper::timeout;
use super::output::{self, Output, Printer, Sink};
use super::plan::{Cause, End, Order, Outcome, Report, Request};
use super::processes;
use super::signals::Signals;

/// Words that make this program a keeper.
const KEEPER: [&str; 2] = ["softefa", "keep"];
/// Longest sleep while what was read waits for whoever reads our stdout.
const BEHIND: Duration = Duration::from_millis(10);
/// Longest time for what is left in the pipes.
const REST_MAX: Duration = Duration::from_secs(5);
/// Longest time in which the processes of a killed keeper must be gone.
const END_MAX: Duration = Duration::from_secs(20);
/// Longest sleep of the loop: nothing depends on it.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Most that is kept of each stream of captured commands, bytes.
const CAPTURED_BYTES_MAX: usize = 1 << 20;

/// What happens while a fabric is up, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// The fabric is up.
    Up {
        /// Its name.
        name: String,
        /// Its run directory.
        path: PathBuf,
        /// NICs of each node.
        nics: u32,
        /// How long it took.
        took: Duration,
    },
    /// The command of a node has ended.
    Ended {
        /// The node.
        node: u32,
        /// How.
        end: End,
        /// Nodes whose commands still run.
        running: Vec<u32>,
    },
    /// A signal was passed on to the commands.
    Passed(i32),
    /// Anything else.
    Note(String),
}

/// Sets up a fabric, runs its commands, and returns when everything is gone again.
///
/// The process becomes a sub-reaper and handles SIGINT, SIGTERM and SIGHUP meanwhile. It must be a program that
/// becomes a keeper when it is started with the words `softefa keep`: then it calls [`super::keep`].
///
/// # Errors
/// When the fabric cannot be set up or a command cannot be started; nothing is left behind then.
pub fn run(request: &Request, say: &mut dyn FnMut(Said)) -> Result<Outcome, Error> {
    run_with(request, output::to_terminal(), say)
}

/// As [`run`], but what the commands print on stdout and stderr is returned, each up to 1 MiB.
///
/// # Errors
/// As [`run`].
pub fn run_captured(request: &Request) -> Result<(Outcome, Captured), Error> {
    let captured = Arc::new(Mutex::new(Captured::default()));
    let shared = Arc::clone(&captured);
    let keep = move |sink, block: &[u8]| {
        let mut captured = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = if sink == Sink::Stdout { &mut captured.stdout } else { &mut captured.stderr };
        let room = CAPTURED_BYTES_MAX.saturating_sub(stream.len()).min(block.len());
        stream.extend_from_slice(&block[..room]);
        Ok(())
    };
    let outcome = run_with(&Request { raw: false, ..request.clone() }, Box::new(keep), &mut |_| {})?;
    let captured = std::mem::take(&mut *captured.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((outcome, captured))
}

/// What commands have printed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Captured {
    /// On stdout.
    pub stdout: Vec<u8>,
    /// On stderr.
    pub stderr: Vec<u8>,
}

fn run_with(request: &Request, write: Printer, say: &mut dyn FnMut(Said)) -> Result<Outcome, Error> {
    request.check()?;
    let signals = Signals::receive(&[SIGINT, SIGTERM, SIGHUP])?;
    let before: HashSet<Pid> = processes::descendants(rustix::process::getpid()).into_iter().collect();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| Error::system("become a sub-reaper", e))?;
    let mut front = Front::start(request, write, signals, before)?;
    let ended = front.turns(say);
    front.finish(ended)
}

struct Front {
    keeper: Child,
    channel: Channel,
    signals: Signals,
    output: Output,
    /// Where the fabric is, once the keeper has said so.
    path: Option<PathBuf>,
    /// Descendants of this process that have nothing to do with the fabric.
    before: HashSet<Pid>,
}

impl Front {
    fn start(
        request: &Request,
        write: Printer,
        signals: Signals,
        before: HashSet<Pid>,
    ) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::system("start the keeper", e);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // Not `current_exe`: that path is stale when the program was replaced while it runs.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("kvrail").args(KEEPER).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let keeper = command.spawn().map_err(failed)?;
        drop(command); // It holds the other end.
        let mut front = Self {
            keeper,
            channel: Channel::new(ours),
            signals,
            output: Output::new(write),
            path: None,
            before,
        };
        front.send(request).map_err(failed)?;
        Ok(front)
    }

    fn send(&mut self, request: &Request) -> std::io::Result<()> {
        let front = rustix::process::getpid().as_raw_nonzero().get();
        let order = Order::Set { request: Box::new(request.clone()), front };
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        if request.raw || request.commands.is_empty() {
            let mut fds = vec![stdin.as_fd()];
            for _ in 0..request.nodes {
                fds.extend([stdout.as_fd(), stderr.as_fd()]);
            }
            return self.channel.send_with(&order, &fds);
        }
        let mut writers = Vec::new();
        for node in 0..request.nodes {
            let mark = (request.nodes > 1).then_some(node);
            writers.push(self.output.open(mark, Sink::Stdout)?);
            writers.push(self.output.open(mark, Sink::Stderr)?);
        }
        let mut fds: Vec<BorrowedFd<'_>> = vec![stdin.as_fd()];
        fds.extend(writers.iter().map(AsFd::as_fd));
        self.channel.send_with(&order, &fds)
    }

    /// Until the keeper says the last word. `None` = it died without one.
    fn turns(&mut self, say: &mut dyn FnMut(Said)) -> Option<Result<Outcome, Error>> {
        let mut stopping = false;
        loop {
            self.wait();
            self.output.turn();
            // A keeper that is gone is seen below.
            if self.output.is_broken() && !stopping {
                let _ = self.channel.send(&Order::Stop(Cause::Unread));
                stopping = true;
            }
            for signal in self.signals.take() {
                say(Said::Passed(signal));
                let _ = self.channel.send(&Order::Signal(signal));
            }
            let reports = match self.channel.receive() {
                Ok(reports) => reports,
                Err(_) => return None,
            };
            for report in reports {
                match report {
                    Report::Made { path } => self.path = Some(path),
                    Report::Up { name, nics, seconds } => say(Said::Up {
                        name,
                        path: self.path.clone().unwrap_or_default(),
                        nics,
                        took: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
                    }),
                    Report::Note(note) => say(Said::Note(note)),
                    Report::Ended { node, end, running } => {
                        self.output.turn();
                        say(Said::Ended { node, end, running });
                    }
                    Report::Failed(told) => return Some(Err(Error::Told(told))),
                    Report::Done(outcome) => return Some(Ok(outcome)),
                }
            }
        }
    }

    fn wait(&self) {
        let mut fds = vec![PollFd::from_borrowed_fd(self.channel.fd(), PollFlags::IN)];
        fds.extend(self.signals.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        fds.extend(self.output.fds().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let longest = if self.output.is_behind() { BEHIND } else { SLEEP_MAX };
        // Interrupted or not: the loop looks at everything.
        let _ = poll(&mut fds, Some(&timeout(Instant::now() + longest)));
    }

    fn finish(mut self, ended: Option<Result<Outcome, Error>>) -> Result<Outcome, Error> {
        if let Some(ended) = ended {
            let _ = self.keeper.wait();
            self.output.finish(REST_MAX);
            return ended;
        }
        let _ = self.keeper.wait();
        // Its orphans are this process's children now. What was there before is not.
        let me = rustix::process::getpid();
        let before = &self.before;
        let ours = || processes::descendants(me).into_iter().filter(|pid| !before.contains(pid)).collect();
        let still = |left: Vec<Pid>| {
            let ids: Vec<_> = left.iter().map(ToString::to_string).collect();
            Error::system("end all processes", std::io::Error::other(format!("{} still run", ids.join(", "))))
        };
        let ended = processes::end_all(Instant::now() + END_MAX, ours);
        self.output.finish(REST_MAX);
        remove(self.path.as_deref())?;
        ended.map_err(still)?;
        Err(Error::KeeperGone)
    }
}

fn remove(path: Option<&Path>) -> Result<(), Error> {
    match path {
        Some(path) => directory::remove_if_stale(path).map(drop),
        // Killed between making the directory and saying so.
        None => directory::remove_stale().map(drop),
    }
}
