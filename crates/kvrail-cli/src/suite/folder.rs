//! A run's folder: what makes it resumable.
//!
//! ```text
//! DIR/plan.toml                the plan as it was run
//! DIR/suite.json               what the run is: name, host, when it began
//! DIR/steps/PHASE/STEP/        a step's artefacts: results.json, stdout.txt, stderr.txt, …
//! DIR/steps/PHASE/STEP/step.json   how it ended; written last and at once: a step without it has not ended
//! DIR/report.html, report.md, report.junit.xml, report.csv
//! ```
//!
//! One run at a time has a folder: a lock of the operating system, which a killed run leaves behind open.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{Phase, Step};
use crate::failure::Failure;

/// How a step ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Ending {
    /// Of the step's work: a plan that was changed runs it again.
    pub(super) fingerprint: String,
    pub(super) status: Status,
    /// Of the program; none when it did not run, or was killed.
    pub(super) exit_code: Option<i32>,
    /// Why it was skipped or failed, one sentence.
    pub(super) reason: Option<String>,
    /// When it began, seconds since 1970.
    pub(super) began_unix_s: u64,
    pub(super) took_s: f64,
}

/// In which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    /// Exit code 0.
    Passed,
    /// Exit code 1: something was found to be wrong.
    Failed,
    /// Any other end: whether anything is wrong cannot be told.
    Unknown,
    /// It was not run, for a reason.
    Skipped,
}

impl Status {
    /// Runs again when a run is resumed: what could not be told or run may be possible now.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Passed | Self::Failed)
    }

    /// The word for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Unknown => "cannot tell",
            Self::Skipped => "skipped",
        }
    }
}

/// What a run is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct About {
    /// `kvrail.suite.v1`
    pub(super) schema: String,
    pub(super) plan: String,
    pub(super) kvrail: String,
    pub(super) host: String,
    pub(super) began_unix_s: u64,
}

/// An open folder, locked until it is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Opens or makes it.
    ///
    /// # Errors
    /// When it cannot be made or written, when another run has it, or when it holds something else.
    pub(super) fn open(path: &Path, about: &About, plan: &str) -> Result<Self, Failure> {
        let failed = |what: &str, e: &std::io::Error| {
            Failure::environment(format!("{}: {what}: {e}", path.display()))
                .hint("give another place by --dir")
        };
        fs::create_dir_all(path.join("steps")).map_err(|e| failed("cannot be made", &e))?;
        let lock = File::create(path.join(".lock")).map_err(|e| failed("cannot be written", &e))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Failure::environment(format!(
                    "{}: another suite runs in this folder",
                    path.display()
                ))
                .hint("wait for it, or give another place by --dir"));
            }
            Err(e) => return Err(failed("cannot be locked", &e.into())),
        }
        let folder = Self { path: path.to_path_buf(), _lock: lock };
        let begun = folder.read::<About>("suite.json")?;
        match begun {
            Some(there) if there.plan != about.plan => {
                return Err(Failure::usage(format!(
                    "{}: holds a run of the plan `{}`, not of `{}`",
                    path.display(),
                    there.plan,
                    about.plan
                ))
                .hint("give another place by --dir"));
            }
            Some(_) => {}
            None => folder.write("suite.json", &json(about))?,
        }
        folder.write("plan.toml", plan)?;
        Ok(folder)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A step's place in it.
    pub(super) fn of(phase: &Phase, step: &Step) -> PathBuf {
        Path::new("steps").join(&phase.id).join(&step.id)
    }

    /// How a step ended in this run or an earlier one, if that was this work.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(super) fn ending(&self, phase: &Phase, step: &Step) -> Result<Option<Ending>, Failure> {
        let name = Self::of(phase, step).join("step.json");
        Ok(self.read::<Ending>(name)?.filter(|ending| ending.fingerprint == step.fingerprint()))
    }

    /// Empties a step's folder, for it to run; where it is.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn begin(&self, phase: &Phase, step: &Step) -> Result<PathBuf, Failure> {
        let path = self.path.join(Self::of(phase, step));
        let failed = |e: std::io::Error| Failure::environment(format!("{}: {e}", path.display()));
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        fs::create_dir_all(&path).map_err(failed)?;
        Ok(path)
    }

    /// Notes how a step ended.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn end(&self, phase: &Phase, step: &Step, ending: &Ending) -> Result<(), Failure> {
        self.write(Self::of(phase, step).join("step.json"), &json(ending))
    }

    /// Writes a file of the folder: whole or not at all.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn write(&self, name: impl AsRef<Path>, text: &str) -> Result<(), Failure> {
        let path = self.path.join(name);
        let beside = path.with_extension("new");
        let written = File::create(&beside)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&beside, &path));
        written.map_err(|e| Failure::environment(format!("cannot write {}: {e}", path.display())))
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, name: impl AsRef<Path>) -> Result<Option<T>, Failure> {
        let path = self.path.join(name);
        let damaged = |e: &dyn std::fmt::Display| {
            Failure::environment(format!("{} is damaged: {e}", path.display()))
                .hint("remove the file to run that part again, or give another place by --dir")
        };
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(damaged(&e)),
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|e| damaged(&e)),
        }
    }
}

fn json(value: &impl Serialize) -> String {
    // Only maps with keys that are no strings can fail here; there are none.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::plan::Plan;

    fn about(plan: &str) -> About {
        About {
            schema: "kvrail.suite.v1".into(),
            plan: plan.into(),
            kvrail: "0".into(),
            host: "h".into(),
            began_unix_s: 0,
        }
    }

    fn plan(block: &str) -> Plan {
        let text = format!(
            "[plan]\nname = \"x\"\n[[phase]]\nid = \"a\"\ntitle = \"A\"\n[[phase.step]]\nid = \"s\"\nrun = [\"bench\", \"{block}\"]\n"
        );
        Plan::parse(&text, "x").unwrap()
    }

    fn ended(step: &Step, status: Status) -> Ending {
        let fingerprint = step.fingerprint();
        Ending { fingerprint, status, exit_code: Some(0), reason: None, began_unix_s: 1, took_s: 2.0 }
    }

    #[test]
    fn what_has_ended_is_known_to_the_next_run_until_its_work_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (before, after) = (plan("4KiB"), plan("8KiB"));
        let (phase, step) = before.steps().next().unwrap();
        let folder = Folder::open(dir.path(), &about("x"), "").unwrap();
        folder.begin(phase, step).unwrap();
        assert_eq!(folder.ending(phase, step).unwrap(), None);
        folder.end(phase, step, &ended(step, Status::Passed)).unwrap();
        drop(folder);

        let folder = Folder::open(dir.path(), &about("x"), "").unwrap();
        assert_eq!(folder.ending(phase, step).unwrap(), Some(ended(step, Status::Passed)));
        let (phase, step) = after.steps().next().unwrap();
        assert_eq!(folder.ending(phase, step).unwrap(), None);
    }

    #[test]
    fn a_folder_has_one_run_of_one_plan() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), &about("x"), "").unwrap();
        let failure = Folder::open(dir.path(), &about("x"), "").unwrap_err();
        assert!(failure.what.contains("another suite runs"), "{failure}");
        drop(folder);
        let failure = Folder::open(dir.path(), &about("y"), "").unwrap_err();
        assert!(failure.what.contains("holds a run of the plan `x`"), "{failure}");
    }

    #[test]
    fn a_damaged_note_is_said_and_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan("4KiB");
        let (phase, step) = plan.steps().next().unwrap();
        let folder = Folder::open(dir.path(), &about("x"), "").unwrap();
        folder.begin(phase, step).unwrap();
        folder.write(Folder::of(phase, step).join("step.json"), "{").unwrap();
        assert!(folder.ending(phase, step).unwrap_err().what.contains("damaged"));
    }
}
