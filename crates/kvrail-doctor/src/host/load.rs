//! Questions that only a trial answers: whether a library can be loaded, and how a Python that uses NIXL begins and ends. Each is
//! tried in a process of its own, so that a crash is an answer.

use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::run::{Ran, ended};
use super::{Answer, Host, Lack, Live, Question};

/// The first argument of the program that is started to load libraries; the others are the libraries.
pub const LOAD: &str = "try-to-load";
/// Longest wait for a Python: its files may come over a network for the first time.
const PYTHON_PATIENCE: Duration = Duration::from_secs(8);
/// Begins the lines that the trial of a Python says.
const MARK: &str = "kvrail-trial ";
/// Most libraries of a process that are kept.
const MAPPED_MAX: usize = 4096;

/// How loading libraries went.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Loaded {
    /// The one that the loader refused, and its words.
    pub refused: Option<(String, String)>,
    /// The signal that ended the process while it loaded them, or when it ended afterwards.
    pub signal: Option<i32>,
    /// Whether it came to an end of loading, whatever that was.
    pub finished: bool,
    /// Shared libraries that it had mapped then.
    pub mapped: Vec<String>,
}

/// How far a Python came that uses NIXL, and how it ended.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PythonTrial {
    /// How far it came.
    pub reached: Reached,
    /// The exception that it did not get past, in one line.
    pub error: Option<String>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What NIXL lists as its plugins, whether they can be loaded or not.
    pub plugins: Vec<String>,
    /// What an agent gets that names no backends.
    pub backends: Vec<String>,
    /// Shared libraries that it had mapped before it ended.
    pub mapped: Vec<String>,
}

/// How far a trial came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// The interpreter began.
    #[default]
    Begun,
    /// NIXL is imported.
    Imported,
    /// An agent without a backend is made.
    Made,
    /// The agent has the backend UCX.
    Ucx,
}

impl Host {
    /// Loads libraries one after the other in a process that is started for it.
    ///
    /// # Errors
    /// [`Lack::Absent`] where there is no program to do it, [`Lack::Late`] when it did not end in time.
    pub fn load(&self, libraries: &[&str]) -> Answer<Loaded> {
        self.ask(&Load(libraries))
    }

    /// Imports NIXL in a Python, makes an agent with the backend UCX over TCP, and lets the interpreter end as it always does.
    ///
    /// # Errors
    /// [`Lack::Absent`] where there is no such Python, [`Lack::Late`] when it did not end in time.
    pub fn python_with_nixl(&self, python: &str, module: &str) -> Answer<PythonTrial> {
        self.ask(&Python { python, module })
    }
}

struct Load<'a>(&'a [&'a str]);

impl Question for Load<'_> {
    const SECTION: &'static str = "load";
    type Answer = Loaded;

    fn key(&self) -> String {
        self.0.join(" ")
    }

    fn ask(&self, live: &Live) -> Answer<Loaded> {
        if !live.is_here() {
            return Err(Lack::Failed("libraries of another root are not loaded".into()));
        }
        let mut command = Command::new(live.program().ok_or(Lack::Absent)?);
        command.arg(LOAD).args(self.0).env_clear().envs(live.variables());
        let ran = ended(command, live.patience())?;
        let mut loaded: Loaded =
            ran.stdout.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        loaded.signal = ran.signal;
        loaded.mapped.truncate(MAPPED_MAX);
        if !loaded.finished && ran.signal.is_none() {
            return Err(Lack::Failed(format!("the trial ended without a word: {}", last_line(&ran.stderr))));
        }
        Ok(loaded)
    }
}

/// What the process does that is started to load libraries; the line that it has to write.
#[must_use]
pub fn load_here(libraries: &[std::path::PathBuf]) -> String {
    let trial = kvrail_sys::trial::load(libraries);
    let loaded = Loaded {
        refused: trial.refused.map(|(path, said)| (path.display().to_string(), said)),
        signal: None,
        finished: true,
        mapped: trial.mapped.iter().map(|path| path.display().to_string()).collect(),
    };
    // Plain data: it always serialises.
    serde_json::to_string(&loaded).unwrap_or_default() + "\n"
}

struct Python<'a> {
    python: &'a str,
    module: &'a str,
}

/// Says what it reaches, line by line, since any of these steps may be its last.
const SCRIPT: &str = r#"
import importlib, inspect, json, sys
def say(**what):
    sys.stdout.write("kvrail-trial " + json.dumps(what) + "\n")
    sys.stdout.flush()
def mapped():
    try:
        with open("/proc/self/maps") as maps:
            return sorted({line[line.index("/"):].rstrip("\n") for line in maps if "/" in line and ".so" in line})
    except OSError:
        return []
try:
    api = importlib.import_module(sys.argv[1] + "._api")
    default = inspect.signature(api.nixl_agent_config.__init__).parameters.get("backends")
    say(reached="imported", backends=list(default.default) if default is not None else [])
    make = lambda name, backends: api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=backends))
    agent = make("kvrail-doctor", [])
    plugins = list(getattr(agent, "plugin_list", []))
    say(reached="made", plugins=plugins, mapped=mapped())
    if "UCX" in plugins:
        other = make("kvrail-doctor-ucx", ["UCX"])
        say(reached="ucx", mapped=mapped())
except BaseException as error:
    say(error=type(error).__name__ + ": " + str(error).replace("\n", " ")[:400], mapped=mapped())
"#;

/// A line that the script writes.
#[derive(Deserialize)]
struct Said {
    reached: Option<Reached>,
    error: Option<String>,
    plugins: Option<Vec<String>>,
    backends: Option<Vec<String>>,
    mapped: Option<Vec<String>>,
}

impl Question for Python<'_> {
    const SECTION: &'static str = "python";
    type Answer = PythonTrial;

    fn key(&self) -> String {
        format!("{} {}", self.python, self.module)
    }

    fn ask(&self, live: &Live) -> Answer<PythonTrial> {
        if !live.is_here() {
            return Err(Lack::Failed("no Python of another root is started".into()));
        }
        let mut command = Command::new(self.python);
        command.args(["-c", SCRIPT, self.module]).env_clear().envs(live.variables()).envs([
            // No GPU and no NIC is touched; UCX maps its modules for them all the same.
            ("UCX_TLS", "tcp,self"),
            ("UCX_LOG_LEVEL", "error"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ]);
        Ok(PythonTrial::of(&ended(command, PYTHON_PATIENCE.max(live.patience()))?))
    }
}

impl PythonTrial {
    fn of(ran: &Ran) -> Self {
        let mut trial = Self { signal: ran.signal, ..Self::default() };
        let lines = ran.stdout.lines().filter_map(|line| line.strip_prefix(MARK));
        for said in lines.filter_map(|line| serde_json::from_str::<Said>(line).ok()) {
            trial.reached = said.reached.unwrap_or(trial.reached);
            trial.error = said.error.or(trial.error);
            trial.plugins = said.plugins.unwrap_or(trial.plugins);
            trial.backends = said.backends.unwrap_or(trial.backends);
            trial.mapped = said.mapped.unwrap_or(trial.mapped);
        }
        trial.mapped.truncate(MAPPED_MAX);
        if trial.error.is_none() && trial.signal.is_none() && ran.status != Some(0) {
            trial.error = Some(last_line(&ran.stderr).to_owned());
        }
        trial
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing on standard error")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Scope;
    use std::os::unix::fs::PermissionsExt;

    fn program(text: &str) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    #[test]
    fn a_crash_a_refusal_and_silence_are_answers() {
        let load = |text: &str| {
            let program = program(text);
            let live = Live::new().with_program(&program).with_patience(Duration::from_millis(500));
            Host::live(live, Scope::default()).load(&["/a.so", "/b.so"])
        };
        let crashed = load("kill -SEGV $$").unwrap();
        assert_eq!((crashed.signal, crashed.finished), (Some(11), false));
        let refused = load(r#"echo '{"finished": true, "refused": ["/b.so", "/b.so: no"]}'"#).unwrap();
        assert_eq!(refused.refused, Some(("/b.so".into(), "/b.so: no".into())));
        assert!(matches!(load("echo oh >&2; exit 1"), Err(Lack::Failed(why)) if why.contains("oh")));
        assert_eq!(load("sleep 60"), Err(Lack::Late));
        assert_eq!(Host::live(Live::new(), Scope::default()).load(&["/a.so"]), Err(Lack::Absent));
    }

    #[test]
    fn what_a_python_said_before_it_crashed_is_kept() {
        let ran = Ran {
            signal: Some(11),
            stdout: "noise\nkvrail-trial {\"reached\": \"made\", \"plugins\": [\"UCX\"], \"mapped\": [\"/a.so\"]}\n\
                     kvrail-trial {\"reached\": \"ucx\", \"mapped\": [\"/a.so\", \"/b.so\"]}\nkvrail-trial {\"rea"
                .into(),
            ..Ran::default()
        };
        let trial = PythonTrial::of(&ran);
        assert_eq!((trial.reached, trial.signal, trial.mapped.len()), (Reached::Ucx, Some(11), 2));
        let ended =
            Ran { status: Some(1), stderr: "Fatal Python error: no encodings\n\n".into(), ..Ran::default() };
        assert!(PythonTrial::of(&ended).error.unwrap().contains("no encodings"));
    }

    #[test]
    fn a_python_without_nixl_says_so() {
        let host = Host::live(Live::new(), Scope::default());
        let trial = host.python_with_nixl("python3", "kvrail_no_such_module").unwrap();
        assert_eq!((trial.reached, trial.signal), (Reached::Begun, None));
        assert!(trial.error.unwrap().starts_with("ModuleNotFoundError"));
        assert_eq!(host.python_with_nixl("/nonexistent/python3", "nixl"), Err(Lack::Absent));
    }
}
