//! Runs a program to its end or to a deadline, and leaves nothing of it behind.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a program ended, and what it said on stdout and stderr.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) said: String,
}

/// Runs `command` with no input; an error when it cannot start, or when it outlives the deadline and is ended with all that it started.
pub(crate) fn run(command: &mut Command, within: Duration) -> Result<Finished, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let wrong = |error: std::io::Error| format!("{name}: {error}");
    // A file and no pipe: what outlives the program cannot hold its reader.
    let mut output = tempfile::tempfile().map_err(wrong)?;
    let copy = |file: &File| file.try_clone().map(Stdio::from);
    command.stdin(Stdio::null()).stdout(copy(&output).map_err(wrong)?).stderr(copy(&output).map_err(wrong)?);
    let mut group = Group(command.process_group(0).spawn().map_err(wrong)?);
    let deadline = Instant::now() + within;
    let status = loop {
        match group.0.try_wait().map_err(wrong)? {
            Some(status) => break Some(status),
            None if Instant::now() < deadline => thread::sleep(LOOK_EVERY),
            None => break None,
        }
    };
    drop(group);
    let mut said = Vec::new();
    output.seek(SeekFrom::Start(0)).and_then(|_| output.read_to_end(&mut said)).map_err(wrong)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    match status {
        Some(status) => Ok(Finished { status, said }),
        None => {
            Err(format!("{name} took more than {} s and was ended; it had said:\n{said}", within.as_secs()))
        }
    }
}

/// The same, and an error when it does not end well.
pub(crate) fn succeed(command: &mut Command, within: Duration) -> Result<String, String> {
    let finished = run(command, within)?;
    if finished.status.success() {
        return Ok(finished.said);
    }
    Err(format!("{command:?}: {}:\n{}", finished.status, finished.said))
}

/// A process with a group of its own, which ends with it.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // Already empty is what one hopes for.
            let _ = kill_process_group(leader, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}
