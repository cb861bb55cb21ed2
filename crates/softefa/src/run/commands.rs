//! The commands of the nodes: started as the keeper's children, each in a process group of its own, and reaped.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, WaitOptions};

use super::environment::Variable;
use super::error::Error;
use super::plan::End;

/// Where a command reads and writes.
pub(super) struct Streams {
    /// `None` = nothing to read.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// The command of one node.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) node: u32,
    pub(super) pid: Pid,
    /// How it ended, as far as it has.
    pub(super) end: Option<End>,
}

/// Starts the command of a node.
pub(super) fn start(
    node: u32,
    words: &[std::ffi::OsString],
    variables: &[Variable],
    streams: Streams,
) -> Result<Running, Error> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Error::Request("a command is empty".into()));
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(streams.stdin.map_or_else(Stdio::null, Stdio::from));
    command.stdout(streams.stdout).stderr(streams.stderr);
    // A group of its own, so that a signal reaches the command with all that it started.
    command.process_group(0);
    let keeper = rustix::process::getpid();
    let die_with_keeper = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The keeper may have died before the line above: then nobody would ever send the signal.
        if rustix::process::getppid() == Some(keeper) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes two raw system calls
    // (prctl, getppid) and converts a small integer error into `io::Error` without allocating.
    unsafe { command.pre_exec(die_with_keeper) };
    let child = command.spawn().map_err(|source| Error::Command {
        node,
        program: program.to_string_lossy().into_owned(),
        source,
    })?;
    // Reaped below, together with orphans that the kernel hands to the keeper; dropping the handle reaps nothing.
    Ok(Running { node, pid: Pid::from_child(&child), end: None })
}

/// Reaps all children that have ended, and notes the ends of commands.
pub(super) fn reap(commands: &mut [Running]) {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if let Some(command) = commands.iter_mut().find(|c| c.pid == pid) {
            command.end = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Some(End::Exited(code)),
                (_, Some(signal)) => Some(End::Signalled(signal)),
                _ => continue,
            };
        }
    }
}

/// Sends a signal to a command and all that shares its group.
pub(super) fn signal(command: &Running, signal: Signal) {
    // The group may be empty by now: that is as good.
    let _ = rustix::process::kill_process_group(command.pid, signal);
}
