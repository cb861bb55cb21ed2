//! Processes that this program starts of itself: each holds one engine, and none outlives who started it.
//!
//! Engines are other people's code. What a child says on stderr is told with its name before it, so much and no more; how it ended is
//! told, too. Whoever waits for a child does so over a link with a deadline, and kills it when that has passed.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::rails::Say;

/// Longest time from its start until a child listens.
const START_MAX: Duration = Duration::from_secs(20);
/// Longest time from the last word to a child's exit.
const END_MAX: Duration = Duration::from_secs(5);
/// Word before the address on a child's stdout.
const LISTENING: &str = "listening ";
/// Lines of a child's stderr that are told.
const TOLD_LINES_MAX: usize = 40;
/// Bytes of such a line.
const LINE_BYTES_MAX: u64 = 1000;
/// Last lines that are kept for the account of its end.
const KEPT_LINES: usize = 3;

/// Whose stderr it is, and who hears it.
#[derive(Clone)]
pub(crate) struct Voice {
    pub(crate) name: String,
    pub(crate) say: Say,
}

/// A child. Dropping it waits a moment for it to end by itself, then kills it.
pub(crate) struct Kid {
    child: Child,
    /// Its last lines on stderr.
    last: Arc<Mutex<VecDeque<String>>>,
}

/// This program once more. Not `current_exe`: that path is stale when the program was replaced while it runs.
pub(crate) fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("bench");
    command
}

impl Kid {
    /// Starts a child that serves one link, on its stdin.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn on_socket(mut command: Command, socket: TcpStream, voice: Voice) -> Result<Self, Failure> {
        command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null());
        Self::start(command, Some(voice))
    }

    /// Starts a child that listens, and learns where. Without a voice it speaks for itself.
    ///
    /// # Errors
    /// When it cannot be started or does not come up.
    pub(crate) fn listening(
        mut command: Command,
        voice: Option<Voice>,
    ) -> Result<(Self, SocketAddr), Failure> {
        let failed = |what: &str| Failure::environment(format!("a process that this one started {what}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // From here on, a failure drops this and so ends the child.
        let mut kid = Self::start(command, voice)?;
        let Some(stdout) = kid.child.stdout.take() else { return Err(failed("has no stdout")) };
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout.take(LINE_BYTES_MAX)).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(START_MAX).map_err(|_| {
            kid.kill();
            failed(&format!("did not listen within {}", crate::units::span(START_MAX)))
        })?;
        match line.trim().strip_prefix(LISTENING).and_then(|a| a.parse().ok()) {
            Some(address) => Ok((kid, address)),
            None => Err(failed(&format!("ended before it listened{}", kid.account()))),
        }
    }

    fn start(mut command: Command, voice: Option<Voice>) -> Result<Self, Failure> {
        if voice.is_some() {
            command.stderr(Stdio::piped());
        }
        let mut child = command
            .spawn()
            .map_err(|e| Failure::environment(format!("cannot start this program once more: {e}")))?;
        let last = Arc::new(Mutex::new(VecDeque::new()));
        if let (Some(stderr), Some(voice)) = (child.stderr.take(), voice) {
            let last = Arc::clone(&last);
            thread::spawn(move || hear(stderr, &voice, &last));
        }
        Ok(Self { child, last })
    }

    /// Ends it at once, stopped or not.
    pub(crate) fn kill(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has, and what it said last: `, killed by signal 9; it said: …`.
    pub(crate) fn account(&mut self) -> String {
        // The link breaks a moment before the process is gone.
        let ended = self.ended(Duration::from_millis(200)).map_or_else(String::new, |status| {
            match (status.signal(), status.code()) {
                (Some(signal), _) => format!(", killed by signal {signal}"),
                (None, Some(code)) => format!(", exit code {code}"),
                (None, None) => String::new(),
            }
        });
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let said: Vec<&str> = last.iter().map(String::as_str).collect();
        if said.is_empty() { ended } else { format!("{ended}; it said: {}", said.join(" / ")) }
    }

    fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Kid {
    fn drop(&mut self) {
        if self.ended(END_MAX).is_none() {
            self.kill();
        }
    }
}

/// Tells what a child says, line by line, until there is too much of it; reads on, so that the child never blocks.
fn hear(stderr: impl Read, voice: &Voice, last: &Mutex<VecDeque<String>>) {
    let mut stderr = BufReader::new(stderr);
    let mut told = 0;
    loop {
        let mut line = Vec::new();
        match (&mut stderr).take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if line.is_empty() {
            continue;
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT_LINES {
            last.pop_front();
        }
        last.push_back(line.to_owned());
        drop(last);
        told += 1;
        if told <= TOLD_LINES_MAX {
            (voice.say)(&format!("{}: {line}", voice.name));
        } else if told == TOLD_LINES_MAX + 1 {
            (voice.say)(&format!("{}: (it says more; left out)", voice.name));
        }
    }
}

/// In a child: asks the kernel to end it with its parent.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| Failure::environment(format!("cannot be tied to the parent process: {e}")))
}

/// In a child: tells the parent where it listens, and ends with it.
///
/// # Errors
/// When the kernel or the pipe refuses.
pub(crate) fn report_to_parent(address: SocketAddr) -> Result<(), Failure> {
    use std::io::Write;
    end_with_parent()?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{LISTENING}{address}")
        .and_then(|()| stdout.flush())
        .map_err(|e| Failure::environment(format!("cannot tell the parent process: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_says_too_much_is_heard_in_part_and_remembered_by_its_end() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = Arc::clone(&heard);
        let say: Say = Arc::new(move |line| ears.lock().unwrap().push(line.to_owned()));
        let voice = Voice { name: "ucx".into(), say };
        let text: String = (0..1000).map(|i| format!("line {i}\n\n")).collect();
        let last = Mutex::new(VecDeque::new());
        hear(text.as_bytes(), &voice, &last);
        let heard = heard.lock().unwrap();
        assert_eq!((heard.len(), heard[0].as_str()), (TOLD_LINES_MAX + 1, "ucx: line 0"));
        assert_eq!(*last.lock().unwrap(), ["line 997", "line 998", "line 999"]);
    }

    #[test]
    fn the_end_of_a_child_is_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such device >&2; kill -9 $$"]);
        let voice = Voice { name: "x".into(), say: Arc::new(|_| {}) };
        let mut kid = Kid::start(command, Some(voice)).unwrap();
        kid.child.wait().unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(kid.account(), ", killed by signal 9; it said: no such device");
    }
}
