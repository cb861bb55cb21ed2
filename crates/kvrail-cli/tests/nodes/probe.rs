//! A probe process on one node: it is told one command at a time and its answer is read, with a deadline.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::process;

/// What an answer may take beside what its command was told to wait.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
const COMPILE_DEADLINE: Duration = Duration::from_secs(60);
const EXIT_DEADLINE: Duration = Duration::from_secs(5);
/// Lines of standard error that are kept for a failure's report.
const LAST_WORDS: usize = 30;

/// What this machine lacks when the compiler's words contain it; anything else is a defect of the probe.
const LACKING: &[(&str, &str)] = &[
    ("cc does not start", "no C compiler (Debian: gcc)"),
    ("rdma/fabric.h: No such file", "no headers of libfabric (Debian: libfabric-dev)"),
    ("cannot find -lfabric", "no libfabric to link with (Debian: libfabric-dev)"),
];

/// Compiles the probe once in a run of tests.
pub(crate) fn build() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(compile).clone()
}

fn compile() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../softefa/probe/fabric_probe.c");
    // Test programs that run at one time each build theirs; one name, put there whole, keeps the directory from filling.
    let program = super::target().join(format!("fabric_probe-{}", std::process::id()));
    let shared = super::target().join("fabric_probe");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-o"]);
    compiler.arg(&program).arg(&source).arg("-lfabric");
    let said = match process::run(&mut compiler, COMPILE_DEADLINE) {
        Ok(finished) if finished.status.success() => {
            fs::rename(&program, &shared).expect("the probe is put in its place");
            return Ok(shared);
        }
        Ok(finished) => finished.stderr,
        Err(why) => why,
    };
    match LACKING.iter().find(|(words, _)| said.contains(words)) {
        Some((_, lacking)) => Err((*lacking).to_owned()),
        None => panic!("{} does not compile:\n{said}", source.display()),
    }
}

/// One line of an answer: `kind key=value ... text=the rest`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) kind: String,
    fields: BTreeMap<String, String>,
}

impl Line {
    fn parse(line: &str) -> Self {
        let (head, text) = match line.split_once(" text=") {
            Some((head, text)) => (head, Some(text)),
            None => (line, None),
        };
        let mut words = head.split(' ');
        let kind = words.next().unwrap_or_default().to_owned();
        let pairs = words.filter_map(|word| word.split_once('='));
        let mut fields: BTreeMap<_, _> =
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        fields.extend(text.map(|text| ("text".to_owned(), text.to_owned())));
        Self { kind, fields }
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.fields.get(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }

    /// A number in decimal or, after `0x`, hex.
    pub(crate) fn number(&self, key: &str) -> u64 {
        let text = self.text(key);
        let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
        parsed.unwrap_or_else(|_| panic!("{key} is no number in {self:?}"))
    }
}

/// The lines before the last, and the last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) lines: Vec<Line>,
    pub(crate) last: Line,
}

impl Answer {
    pub(crate) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| line.kind == kind)
    }
}

/// Why a command has no good answer.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// The call failed and said so.
    Failed { what: String, rc: i64, text: String },
    /// The process ended, by a signal or with a code.
    Died(ExitStatus, String),
}

/// The process.
#[derive(Debug)]
pub(crate) struct Probe {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

impl Probe {
    /// Starts `command`, which runs the probe on a node.
    pub(crate) fn spawn(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("it was asked for"));
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = child.stderr.take().expect("it was asked for");
        thread::spawn({
            let last_words = Arc::clone(&last_words);
            move || keep_last_words(stderr, &last_words)
        });
        Self { name: name.to_owned(), stdin: child.stdin.take(), child, lines, last_words }
    }

    /// Tells one command that has to succeed.
    #[track_caller]
    pub(crate) fn tell(&mut self, command: &str) -> Answer {
        self.try_tell(command).unwrap_or_else(|refusal| {
            panic!("{} was told `{command}`: {refusal:?}\n{}", self.name, self.last_words())
        })
    }

    /// Tells one command and says how it was refused.
    #[track_caller]
    pub(crate) fn try_tell(&mut self, command: &str) -> Result<Answer, Refusal> {
        let told_to_wait = command.split(' ').find_map(|word| word.strip_prefix("ms=")?.parse().ok());
        let until = Instant::now() + ANSWER_DEADLINE + Duration::from_millis(told_to_wait.unwrap_or(5000));
        let written =
            self.stdin.as_mut().map(|stdin| writeln!(stdin, "{command}").and_then(|()| stdin.flush()));
        if !matches!(written, Some(Ok(()))) {
            return Err(self.death());
        }
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(text) => {
                    let line = Line::parse(&text);
                    match line.kind.as_str() {
                        "done" => return Ok(Answer { lines, last: line }),
                        "fail" => {
                            let rc = line.text("rc").parse().unwrap_or_default();
                            let (what, text) = (line.text("what").to_owned(), line.text("text").to_owned());
                            return Err(Refusal::Failed { what, rc, text });
                        }
                        _ => lines.push(line),
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.death()),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{} has not answered `{command}`\n{}", self.name, self.last_words())
                }
            }
        }
    }

    /// What it said on standard error, at the end of it.
    pub(crate) fn last_words(&self) -> String {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        words.iter().map(|line| format!("{}: {line}\n", self.name)).collect()
    }

    /// Ends it as a crash would: nothing is closed, nobody is told.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn death(&mut self) -> Refusal {
        drop(self.stdin.take());
        let until = Instant::now() + EXIT_DEADLINE;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                _ if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                _ => panic!("{} has closed its output and runs\n{}", self.name, self.last_words()),
            }
        };
        // Its last words are in the pipe; their reader ends with the process.
        thread::sleep(Duration::from_millis(50));
        Refusal::Died(status, self.last_words())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Refusal {
    /// The signal that ended the process, if one did.
    pub(crate) fn signal(&self) -> Option<i32> {
        match self {
            Self::Died(status, _) => status.signal(),
            Self::Failed { .. } => None,
        }
    }
}

fn keep_last_words(stderr: impl Read, words: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() == LAST_WORDS {
            words.pop_front();
        }
        words.push_back(line);
    }
}
