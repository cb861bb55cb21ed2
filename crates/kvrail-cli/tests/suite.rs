//! `kvrail suite`, as its users meet it: a plan runs in order, an interrupted run goes on, what is missing is said by name.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PLAN: &str = r#"
[plan]
name = "mini"
about = "a try"
[[phase]]
id = "preflight"
title = "Infrastructure"
[[phase.step]]
id = "host"
preflight = true
[[phase]]
id = "bench"
title = "Benchmarks"
[[phase.step]]
id = "bench-{op}"
run = ["bench", "--op", "{op}", "--block", "4KiB", "--duration", "20ms"]
matrix = { op = ["read", "write"] }
[[phase.step]]
id = "gpu"
needs = ["gpu-memory"]
run = ["bench"]
[[phase.step]]
id = "slow"
run = ["bench", "--block", "4KiB", "--op", "write", "--duration", "1s"]
"#;

fn suite(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.args(["suite", "run"]).args(words).current_dir(dir).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ends it however the test ends.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_run_goes_on_where_it_stopped_and_ends_in_one_report() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plan.toml"), PLAN).unwrap();
    let mut first =
        Reaped(suite(dir.path(), &["plan.toml", "--dir", "out"]).stderr(Stdio::null()).spawn().unwrap());
    let steps = dir.path().join("out/steps");
    until("the last step's beginning", || steps.join("bench/slow/stderr.txt").exists());
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(!steps.join("bench/slow/step.json").exists());

    let second = suite(dir.path(), &["plan.toml", "--dir", "out"]).output().unwrap();
    let said = text(&second);
    assert_eq!(second.status.code(), Some(0), "{said}");
    for step in ["host", "bench-read", "bench-write"] {
        let line = said.lines().find(|line| line.trim_start().starts_with(step)).unwrap();
        assert!(line.contains("passed") && line.ends_with("(before)"), "{said}");
    }
    let slow = said.lines().find(|line| line.trim_start().starts_with("slow")).unwrap();
    assert!(slow.contains("passed") && !slow.contains("(before)"), "{said}");
    assert!(said.contains("skipped: needs gpu-memory"), "{said}");
    assert!(said.contains("4 passed, 0 failed, 0 could not tell, 1 skipped"), "{said}");
    for report in ["report.html", "report.md", "report.csv", "report.junit.xml"] {
        let written = fs::read_to_string(dir.path().join("out").join(report)).unwrap();
        assert!(written.contains("4") && written.len() > 100, "{report}: {written}");
    }
}

#[test]
fn a_step_that_finds_something_wrong_ends_the_run_with_1_and_the_others_still_run() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = "[[phase.step]]\nid = \"wrong\"\nrun = [\"bench\", \"--inject-corruption\", \"0:0:0\", \"--block\", \"4KiB\"]\n\
                 [[phase.step]]\nid = \"after\"\nrun = [\"topo\"]\n";
    let plan = format!("[plan]\nname = \"x\"\n[[phase]]\nid = \"a\"\ntitle = \"A\"\n{wrong}");
    fs::write(dir.path().join("plan.toml"), plan).unwrap();
    let output = suite(dir.path(), &["plan.toml"]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("expected 0x"), "the step's own last words are shown: {said}");
    assert!(said.contains("after") && said.contains("1 passed, 1 failed"), "{said}");
}

#[test]
fn a_step_is_ended_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let plan = "[plan]\nname = \"x\"\n[[phase]]\nid = \"a\"\ntitle = \"A\"\n[[phase.step]]\nid = \"long\"\n\
                run = [\"bench\", \"--block\", \"4KiB\", \"--duration\", \"60s\"]\ntimeout = \"1s\"\n";
    fs::write(dir.path().join("plan.toml"), plan).unwrap();
    let begun = Instant::now();
    let output = suite(dir.path(), &["plan.toml"]).output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("ended at its deadline of 1 s"), "{}", text(&output));
}

#[test]
fn a_plan_that_is_none_is_said_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plan.toml"), "[plan]\nname = \"x\"\n[[phase]]\nid = \"a\"\ntitle = \"A\"\n")
        .unwrap();
    for (words, says) in [
        (&["plan.toml"][..], "has no [[phase.step]]"),
        (&["nowhere.toml"], "laptop, p5"),
        (&["laptop", "--only", "lunch"], "no such phase or step"),
    ] {
        let output = suite(dir.path(), words).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output).contains(says), "{}", text(&output));
    }
    assert!(!dir.path().join("kvrail-suite-x").exists());
}
