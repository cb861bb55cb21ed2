//! What was changed, told to people and programs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kvrail_doctor::fix::{Entry, Environment, Journal, Plan, Run, Verdict};
use serde_json::{Value, json};

const SCHEMA: &str = "kvrail.fix.v1";

/// Whether changes are made or only shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    WouldChange,
    Changed,
}

/// One environment.
struct Part<'a> {
    plan: &'a Plan,
    run: Option<String>,
    entries: Vec<Entry>,
    failures: Vec<(String, String)>,
}

/// What was or would be installed in an environment; nothing where it is there.
pub(super) struct Install {
    pub(super) packages: Vec<String>,
    pub(super) says: String,
    pub(super) run: Option<String>,
}

/// All environments of a command.
pub(super) struct Told<'a> {
    doing: Doing,
    installs: Vec<(String, Install)>,
    parts: Vec<Part<'a>>,
}

impl<'a> Told<'a> {
    pub(super) fn new(doing: Doing) -> Self {
        Self { doing, installs: Vec::new(), parts: Vec::new() }
    }

    pub(super) fn add(
        &mut self,
        plan: &'a Plan,
        run: Option<String>,
        entries: Vec<Entry>,
        failures: Vec<(String, String)>,
    ) {
        self.parts.push(Part { plan, run, entries, failures });
    }

    pub(super) fn installed(&mut self, environment: &Environment, install: Install) {
        self.installs.push((environment.root.clone(), install));
    }

    pub(super) fn changes(&self) -> usize {
        let installed: usize = self.installs.iter().map(|(_, install)| install.packages.len()).sum();
        installed + self.parts.iter().map(|part| part.entries.len()).sum::<usize>()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (root, install) in &self.installs {
            let Install { packages, says, run } = install;
            let _ = match (run, packages.is_empty()) {
                (_, true) => writeln!(text, "{root}\n  install-nixl: nothing to do: {says}"),
                (None, _) => {
                    writeln!(text, "{root}\n  install-nixl: would install {} ({says})", packages.join(" "))
                }
                (Some(run), _) => writeln!(
                    text,
                    "{root}\n  install-nixl: installed {} ({says}), and it can be imported; to take it back: kvrail fix --python {root} --undo {run}",
                    packages.join(" ")
                ),
            };
        }
        for part in &self.parts {
            let _ = writeln!(text, "{}", part.plan.environment.root);
            if part.plan.proposals.is_empty() {
                let _ = writeln!(text, "  no NIXL is installed here");
            }
            for proposal in &part.plan.proposals {
                let said = match &proposal.verdict {
                    Verdict::Apply { .. } if part.entries.is_empty() => "already done".into(),
                    Verdict::Apply { .. } if self.doing == Doing::WouldChange => "would change".into(),
                    Verdict::Apply { .. } => "changed".into(),
                    Verdict::Well(why) => format!("nothing to do: {why}"),
                    Verdict::NotHere(why) => format!("does not apply: {why}"),
                    Verdict::Refused(why) => format!("not done: {why}"),
                };
                let _ = writeln!(text, "  {} ({}): {said}", proposal.remedy, proposal.nixl.release());
                let Verdict::Apply { changes, left } = &proposal.verdict else { continue };
                let place = &part.plan.place;
                let mine = |entry: &&Entry| {
                    changes.iter().any(|change| place.relative(&change.path).as_ref() == Some(&entry.path))
                };
                for entry in part.entries.iter().filter(mine) {
                    let _ = writeln!(text, "    {}", entry.path);
                    let _ = writeln!(text, "      before: {}", entry.before);
                    let _ = writeln!(text, "      after:  {}", entry.after);
                    let _ = writeln!(text, "      why:    {}", entry.why);
                }
                for why in left {
                    let _ = writeln!(text, "    not done: {why}");
                }
            }
            for (what, why) in &part.failures {
                let _ = writeln!(text, "  does not work, as before: {what}: {why}");
            }
            if let Some(run) = &part.run {
                let _ = writeln!(
                    text,
                    "  done and tried out; to take it back: kvrail fix --python {} --undo {run}",
                    part.plan.environment.root
                );
            }
        }
        let changes = self.changes();
        let _ = match (self.doing, changes) {
            (_, 0) => writeln!(text, "nothing to do"),
            (Doing::WouldChange, n) => writeln!(text, "{n} changes would be made; nothing was changed"),
            (Doing::Changed, n) => writeln!(text, "{n} changes made"),
        };
        text
    }

    pub(super) fn json(&self) -> String {
        document(&self.value())
    }

    pub(super) fn value(&self) -> Value {
        let parts: Vec<Value> = self.parts.iter().map(|part| {
            let proposals: Vec<Value> = part.plan.proposals.iter().map(|proposal| {
                let (state, says) = match &proposal.verdict {
                    Verdict::Apply { left, .. } => ("applies", left.clone()),
                    Verdict::Well(why) => ("well", vec![why.clone()]),
                    Verdict::NotHere(why) => ("not_here", vec![why.clone()]),
                    Verdict::Refused(why) => ("refused", vec![why.clone()]),
                };
                json!({"remedy": proposal.remedy, "wheel": proposal.nixl.release(), "state": state, "says": says})
            }).collect();
            let failures: Vec<Value> = part.failures.iter().map(|(what, why)| json!({"what": what, "why": why})).collect();
            json!({
                "environment": part.plan.environment.root,
                "store": part.plan.place.store(),
                "run": part.run,
                "remedies": proposals,
                "changes": part.entries.iter().map(entry).collect::<Vec<_>>(),
                "not_working": failures,
            })
        }).collect();
        let changed = self.doing == Doing::Changed && self.changes() > 0;
        let installs: Vec<Value> = self
            .installs
            .iter()
            .map(|(root, install)| {
                json!({"environment": root, "run": install.run, "packages": install.packages, "says": install.says})
            })
            .collect();
        json!({"schema": SCHEMA, "changed": changed, "changes": self.changes(), "installs": installs, "environments": parts})
    }
}

/// The beginning of the lines in which a node says what it did.
pub(super) const LINE: &str = "kvrail-fix";
/// Bytes of one such line's content. srun passes on lines whole only while they are shorter than one of its messages (1,024 bytes).
const PART_BYTES: usize = 400;

/// What one node says: lines `kvrail-fix NODE PART PARTS HEXADECIMAL`, so that those of many nodes may come mixed.
pub(super) fn line(said: &Value, exit: u8) -> String {
    // Nodes of a test, and some containers, share a host's name; Slurm's own comes first.
    let node = std::env::var("SLURMD_NODENAME")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let text = json!({"exit": exit, "said": said}).to_string();
    let parts: Vec<&[u8]> = text.as_bytes().chunks(PART_BYTES).collect();
    let mut lines = String::new();
    for (index, part) in parts.iter().enumerate() {
        let _ = write!(lines, "{LINE} {} {index} {} ", node.replace(char::is_whitespace, "-"), parts.len());
        for byte in *part {
            let _ = write!(lines, "{byte:02x}");
        }
        lines.push('\n');
    }
    lines
}

fn entry(entry: &Entry) -> Value {
    json!({"path": entry.path, "before": entry.before, "after": entry.after, "why": entry.why})
}

fn document(value: &Value) -> String {
    // Plain data with string keys: it always serialises.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

pub(super) fn list(runs: &[(PathBuf, Run)], as_json: bool) -> String {
    if as_json {
        let runs: Vec<Value> = runs
            .iter()
            .map(|(root, run)| {
                json!({
                    "run": run.journal.run,
                    "place": root,
                    "interrupted": run.interrupted,
                    "remedies": run.journal.remedies,
                    "changes": run.journal.entries.iter().map(entry).collect::<Vec<_>>(),
                })
            })
            .collect();
        return document(&json!({"schema": SCHEMA, "runs": runs}));
    }
    let mut text = String::new();
    for (root, run) in runs {
        let mut remedies: Vec<_> =
            run.journal.remedies.iter().map(|remedy| remedy.name().to_owned()).collect();
        if let Some(installed) = &run.journal.installed {
            remedies.push(format!("installed {}", installed.packages.join(" ")));
        }
        let interrupted = if run.interrupted { ", interrupted: the next run takes it back" } else { "" };
        let count = run.journal.entries.len();
        let _ = writeln!(
            text,
            "{}  {}  {count} paths  {}{interrupted}",
            run.journal.run,
            root.display(),
            remedies.join(", ")
        );
    }
    if runs.is_empty() {
        text.push_str("nothing was changed by kvrail fix, or all of it was taken back\n");
    }
    text
}

pub(super) fn undone(root: &Path, journal: &Journal, as_json: bool) -> String {
    if as_json {
        let changes: Vec<Value> = journal.entries.iter().map(entry).collect();
        return document(
            &json!({"schema": SCHEMA, "undone": journal.run, "place": root, "changes": changes}),
        );
    }
    let mut text = format!("run {} is taken back in {}\n", journal.run, root.display());
    for entry in &journal.entries {
        let _ = writeln!(text, "  {}: {}", entry.path, entry.before);
    }
    text
}
