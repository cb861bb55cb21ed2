//! Runs a program to its end or to a deadline.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long output may trail after the program's end, in the hands of what it started.
const TRAILING: Duration = Duration::from_secs(2);

/// What a program left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// The last line that it told a person.
    pub(crate) fn last_words(&self) -> String {
        let line = self.stderr.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or("nothing on stderr").trim().to_owned()
    }
}

/// Runs `command` with no input; an error when it cannot start or outlives the deadline.
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<Finished, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{name} does not start: {error}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                let text = |from: Receiver<String>| from.recv_timeout(TRAILING).unwrap_or_default();
                return Ok(Finished { status, stdout: text(stdout), stderr: text(stderr) });
            }
            Ok(None) if began.elapsed() < deadline => thread::sleep(LOOK_EVERY),
            Ok(None) => {
                let ended = child.kill().and_then(|()| child.wait());
                let how = if ended.is_ok() { "was ended" } else { "could not be ended" };
                return Err(format!("{name} took more than {} s and {how}", deadline.as_secs()));
            }
            Err(error) => return Err(format!("{name} cannot be waited for: {error}")),
        }
    }
}

/// Reads a pipe to its end beside the program, which would stop at a full pipe otherwise.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is kept: it is all that there is to report.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_outlives_its_deadline_is_ended() {
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.contains("was ended"), "{error}");
    }

    #[test]
    fn output_larger_than_a_pipe_arrives_whole() {
        let finished = run(
            Command::new("sh").args(["-c", "head -c 300000 /dev/zero | tr '\\0' x; echo oops >&2; exit 3"]),
            Duration::from_secs(20),
        );
        let finished = finished.unwrap();
        assert_eq!(finished.stdout.len(), 300_000);
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.last_words(), "oops");
    }
}
