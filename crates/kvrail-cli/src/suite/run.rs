//! Running a plan: one step after the other, each in a process of its own with a deadline.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::folder::{About, Ending, Folder, Status};
use super::needs::{Host, Need};
use super::plan::{Action, Phase, Plan, Step};
use super::preflight;
use crate::environment::{self, VERSION};
use crate::failure::Failure;
use crate::signals;

/// How often a step's process is looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long a process that was told to end may take to do so.
const GRACE: Duration = Duration::from_secs(10);
/// Lines of a step's talk that are shown when it did not pass.
const LAST_LINES: usize = 6;

/// Runs a plan, or goes on with it.
///
/// # Errors
/// When a step found something wrong, or one could not tell, or the run was interrupted.
pub(super) fn run(arguments: &super::Run) -> Result<(), Failure> {
    let (plan, text) = super::load(&arguments.plan)?;
    check_only(&plan, &arguments.only)?;
    signals::install()?;
    let dir = arguments.dir.clone().unwrap_or_else(|| format!("kvrail-suite-{}", plan.name).into());
    let host = environment::here().host;
    let about = About {
        schema: "kvrail.suite.v1".into(),
        plan: plan.name.clone(),
        kvrail: VERSION.into(),
        host,
        began_unix_s: unix_s(),
    };
    let folder = Folder::open(&dir, &about, &text)?;
    let suite = Running {
        host: Host::look(arguments.peer.as_deref()),
        peer: arguments.peer.as_deref(),
        fresh: arguments.fresh,
        began: Instant::now(),
        plan: &plan,
        folder: &folder,
    };
    eprintln!("{}: {} ({} steps; results in {})", plan.name, plan.about, plan.steps().count(), dir.display());
    let mut endings = Vec::new();
    for phase in &plan.phases {
        let steps: Vec<_> = phase.steps.iter().filter(|step| wanted(phase, step, &arguments.only)).collect();
        if !steps.is_empty() {
            eprintln!("\n{}", phase.title);
        }
        for step in steps {
            match suite.step(phase, step)? {
                Some(ending) => endings.push((phase, step, ending)),
                None => break,
            }
        }
        if signals::interrupted() {
            break;
        }
    }
    conclude(&suite, &endings)
}

fn wanted(phase: &Phase, step: &Step, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|id| *id == phase.id || *id == step.id)
}

fn check_only(plan: &Plan, only: &[String]) -> Result<(), Failure> {
    for id in only {
        if !plan.steps().any(|(phase, step)| *id == phase.id || *id == step.id) {
            let ids: Vec<_> = plan.phases.iter().map(|phase| phase.id.as_str()).collect();
            return Err(Failure::usage(format!(
                "--only {id}: the plan `{}` has no such phase or step",
                plan.name
            ))
            .hint(format!("its phases are {}; `kvrail suite show` lists its steps", ids.join(", "))));
        }
    }
    Ok(())
}

struct Running<'a> {
    host: Host,
    peer: Option<&'a str>,
    fresh: bool,
    began: Instant,
    plan: &'a Plan,
    folder: &'a Folder,
}

impl Running<'_> {
    /// Runs a step, unless it has ended before; none when the run was interrupted meanwhile.
    fn step(&self, phase: &Phase, step: &Step) -> Result<Option<Ending>, Failure> {
        if signals::interrupted() {
            return Ok(None);
        }
        if !self.fresh
            && let Some(before) = self.folder.ending(phase, step)?.filter(|before| before.status.is_final())
        {
            say(step, &before, " (before)");
            return Ok(Some(before));
        }
        let path = self.folder.begin(phase, step)?;
        let began_unix_s = unix_s();
        let begun = Instant::now();
        let over = self.plan.budget.is_some_and(|budget| self.began.elapsed() >= budget);
        let missing = self.host.missing(phase.needs.iter().chain(&step.needs));
        let reason = missing.or_else(|| over.then(|| "the plan's budget of time is spent".into()));
        let (status, exit_code, reason) = match (reason, &step.action) {
            (Some(reason), _) => (Status::Skipped, None, Some(reason)),
            (None, Action::Preflight) => self.preflight(&Folder::of(phase, step))?,
            (None, Action::Run(words)) => {
                let ended = self.child(words, step, &path)?;
                if signals::interrupted() {
                    return Ok(None);
                }
                ended
            }
        };
        let took_s = begun.elapsed().as_secs_f64();
        let fingerprint = step.fingerprint();
        let ending = Ending { fingerprint, status, exit_code, reason, began_unix_s, took_s };
        self.folder.end(phase, step, &ending)?;
        say(step, &ending, "");
        if matches!(status, Status::Failed | Status::Unknown) {
            last_lines(&path.join("stderr.txt")).iter().for_each(|line| eprintln!("      | {line}"));
        }
        Ok(Some(ending))
    }

    fn preflight(&self, place: &Path) -> Result<(Status, Option<i32>, Option<String>), Failure> {
        let (status, text, reason) = match preflight::look(&self.host) {
            Ok(seen) => {
                seen.lines.iter().for_each(|line| eprintln!("    {line}"));
                seen.warnings.iter().for_each(|warning| eprintln!("    warning: {warning}"));
                let warnings = seen.warnings.iter().map(|warning| format!("warning: {warning}"));
                let lines: Vec<_> = seen.lines.iter().cloned().chain(warnings).collect();
                (Status::Passed, lines.join("\n") + "\n", None)
            }
            Err(failure) => (Status::Unknown, format!("{failure}\n"), Some(failure.what)),
        };
        self.folder.write(place.join("preflight.txt"), &text)?;
        Ok((status, None, reason))
    }

    /// Runs this program once more, with its talk in files.
    fn child(
        &self,
        words: &[String],
        step: &Step,
        path: &Path,
    ) -> Result<(Status, Option<i32>, Option<String>), Failure> {
        let open = |name: &str| {
            let file = path.join(name);
            File::create(&file)
                .map_err(|e| Failure::environment(format!("cannot write {}: {e}", file.display())))
        };
        // Not `current_exe`: that path is stale when the program was replaced while it runs.
        let mut command = Command::new("/proc/self/exe");
        command.args(words).envs(&step.environment);
        command.stdin(Stdio::null()).stdout(open("stdout.txt")?).stderr(open("stderr.txt")?);
        if words.first().is_some_and(|command| command != "topo") {
            command.args(["--format", "json", "--output"]).arg(path.join("results.json"));
        }
        if let Some(peer) = self.peer.filter(|_| step.needs.contains(&Need::Peer)) {
            command.args(["--connect", peer]);
        }
        let mut child = command
            .spawn()
            .map_err(|e| Failure::environment(format!("step {}: cannot be started: {e}", step.id)))?;
        let deadline = Instant::now() + step.timeout;
        let mut told = None;
        loop {
            let status = child
                .try_wait()
                .map_err(|e| Failure::environment(format!("step {}: cannot be waited for: {e}", step.id)))?;
            if let Some(status) = status {
                let code = status.code();
                return Ok(match (told, code) {
                    (Some(_), _) => (Status::Unknown, code, Some(over(step))),
                    (None, Some(0)) => (Status::Passed, code, None),
                    (None, Some(1)) => (Status::Failed, code, Some("something was found to be wrong".into())),
                    (None, Some(code)) => (Status::Unknown, Some(code), Some(format!("exit code {code}"))),
                    (None, None) => (Status::Unknown, None, Some(format!("ended by a signal: {status}"))),
                });
            }
            match told {
                None if Instant::now() >= deadline || signals::interrupted() => {
                    terminate(&child);
                    told = Some(Instant::now());
                }
                // Gone already, if this fails.
                Some(since) if since.elapsed() >= GRACE => drop(child.kill()),
                _ => {}
            }
            thread::sleep(TICK);
        }
    }
}

fn over(step: &Step) -> String {
    format!("ended at its deadline of {}", crate::units::span(step.timeout))
}

fn terminate(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // Gone already, if this fails.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

fn say(step: &Step, ending: &Ending, when: &str) {
    let reason = ending.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let took =
        if ending.status == Status::Skipped { String::new() } else { format!(" {:.1} s", ending.took_s) };
    eprintln!("  {:<32} {}{took}{reason}{when}", step.id, ending.status.word());
}

fn last_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| (*line).to_string()).collect()
}

/// The report, and what it all means.
fn conclude(suite: &Running<'_>, endings: &[(&Phase, &Step, Ending)]) -> Result<(), Failure> {
    let count = |status| endings.iter().filter(|(_, _, ending)| ending.status == status).count();
    let (passed, failed) = (count(Status::Passed), count(Status::Failed));
    let (unknown, skipped) = (count(Status::Unknown), count(Status::Skipped));
    eprintln!("\n{passed} passed, {failed} failed, {unknown} could not tell, {skipped} skipped");
    super::report::write(suite.folder, suite.plan, endings)?;
    let named = |status| {
        let ids = endings
            .iter()
            .filter(|(_, _, ending)| ending.status == status)
            .map(|(_, step, _)| step.id.as_str());
        ids.collect::<Vec<_>>().join(", ")
    };
    if failed > 0 {
        return Err(Failure::check(format!("something is wrong: {}", named(Status::Failed))));
    }
    if signals::interrupted() {
        return Err(Failure::interrupted().hint("give the same command again to go on"));
    }
    if unknown > 0 {
        return Err(Failure::environment(format!("these could not tell: {}", named(Status::Unknown)))
            .hint("their stderr.txt says why; give the same command again to try them once more"));
    }
    Ok(())
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
