//! Where workers run: plain processes on loopback, or emulated EFA nodes that `kvrail softefa run` keeps.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest time until a fabric is there, or gone.
const FABRIC_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The programs that take part.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `kvrail`; not needed on loopback.
    pub kvrail: PathBuf,
    /// A program that becomes [`crate::worker`] when its arguments have the word.
    pub worker: PathBuf,
    /// Its arguments before that word.
    pub worker_words: Vec<OsString>,
    /// The libfabric of emulated nodes.
    pub libfabric: Option<PathBuf>,
}

/// An emulated fabric.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Emulated {
    /// Hosts.
    pub nodes: usize,
    /// NICs of each.
    pub nics: usize,
    /// Of the network's own randomness.
    pub seed: u64,
    /// When the device gives a silent peer up, milliseconds.
    pub unresponsive_ms: u64,
    /// Further words of `kvrail softefa run`.
    pub network: Vec<String>,
}

/// A place that is up.
#[derive(Debug)]
pub struct Place {
    programs: Programs,
    fabric: Option<(String, Child)>,
}

impl Place {
    /// Loopback: nothing is set up, and there are no faults but kills.
    #[must_use]
    pub fn loopback(programs: &Programs) -> Self {
        Self { programs: programs.clone(), fabric: None }
    }

    /// Sets up emulated nodes.
    ///
    /// # Errors
    /// What `kvrail softefa run` said.
    pub fn emulated(programs: &Programs, name: &str, wanted: &Emulated) -> Result<Self, String> {
        let mut command = Command::new(&programs.kvrail);
        command.args(["softefa", "run", "--quiet", "--name", name]);
        let numbers = [
            ("--nodes", wanted.nodes.to_string()),
            ("--nics", wanted.nics.to_string()),
            ("--seed", wanted.seed.to_string()),
            ("--unresponsive-after", format!("{}ms", wanted.unresponsive_ms)),
        ];
        numbers.iter().for_each(|(flag, value)| _ = command.args([flag, value.as_str()]));
        if let Some(libfabric) = &programs.libfabric {
            command.arg("--libfabric").arg(libfabric);
        }
        command.args(&wanted.network);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let front = command.spawn().map_err(|e| format!("kvrail softefa run does not start: {e}"))?;
        let mut place = Self { programs: programs.clone(), fabric: Some((name.to_owned(), front)) };
        let until = Instant::now() + FABRIC_MAX;
        while !place.is_up() {
            if place.front_has_ended() {
                return Err("kvrail softefa run ended at once".into());
            }
            if Instant::now() > until {
                return Err(format!("fabric {name} is not up after {} s", FABRIC_MAX.as_secs()));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(place)
    }

    fn is_up(&self) -> bool {
        self.tell(&["fault", "list"]).is_ok()
    }

    fn front_has_ended(&mut self) -> bool {
        self.fabric.as_mut().is_some_and(|(_, front)| matches!(front.try_wait(), Ok(Some(_))))
    }

    /// Whether there are faults here.
    #[must_use]
    pub fn has_faults(&self) -> bool {
        self.fabric.is_some()
    }

    /// The command of a worker on a node.
    #[must_use]
    pub fn worker(&self, node: usize) -> Command {
        let mut command = match &self.fabric {
            None => Command::new(&self.programs.worker),
            Some((name, _)) => {
                let mut command = Command::new(&self.programs.kvrail);
                let node = node.to_string();
                command.args(["softefa", "shell", "--name", name, "--node", &node, "--"]);
                command.arg(&self.programs.worker);
                command
            }
        };
        command.args(&self.programs.worker_words).arg(crate::worker::WORD);
        command
    }

    /// `kvrail softefa fault WORDS`; what it printed.
    ///
    /// # Errors
    /// What it said.
    pub fn fault(&self, words: &[String]) -> Result<String, String> {
        let words: Vec<&str> = std::iter::once("fault").chain(words.iter().map(String::as_str)).collect();
        self.tell(&words)
    }

    /// `kvrail softefa WORDS` for this fabric.
    fn tell(&self, words: &[&str]) -> Result<String, String> {
        let Some((name, _)) = &self.fabric else { return Err("there is no emulated fabric here".into()) };
        let mut command = Command::new(&self.programs.kvrail);
        command.arg("softefa").args(words).args(["--name", name.as_str()]).stdin(Stdio::null());
        let said = command.output().map_err(|e| format!("kvrail does not start: {e}"))?;
        if said.status.success() {
            return Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned());
        }
        Err(format!("kvrail softefa {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr).trim()))
    }

    /// Takes the fabric down.
    ///
    /// # Errors
    /// It does not go.
    pub fn end(mut self) -> Result<(), String> {
        let Some((name, mut front)) = self.fabric.take() else { return Ok(()) };
        terminate(&front);
        let until = Instant::now() + FABRIC_MAX;
        while Instant::now() < until {
            match front.try_wait() {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => thread::sleep(LOOK_EVERY),
                Err(error) => return Err(format!("fabric {name} cannot be waited for: {error}")),
            }
        }
        let _ = front.kill();
        let _ = front.wait();
        Err(format!("fabric {name} was still there {} s after SIGTERM", FABRIC_MAX.as_secs()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((_, mut front)) = self.fabric.take() {
            terminate(&front);
            // Its keeper removes what is left.
            let until = Instant::now() + Duration::from_secs(5);
            while Instant::now() < until && !matches!(front.try_wait(), Ok(Some(_))) {
                thread::sleep(LOOK_EVERY);
            }
            let _ = front.kill();
            let _ = front.wait();
        }
    }
}

fn terminate(child: &Child) {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        // One that has ended needs no signal.
        let _ = kill_process(pid, Signal::TERM);
    }
}
