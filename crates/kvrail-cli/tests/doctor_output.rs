//! `kvrail doctor` from outside: formats, bundles, help, exit codes, what goes to which stream.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A bundle of a host with two things that are wrong, of which one could not be made here: no locked memory for a NIC.
const BROKEN: &str = r#"{
  "schema": "kvrail.bundle.v1", "kvrail": "0.1.0", "taken": 1795208684, "complete": true,
  "variables": {"FI_LOG_LEVEL": "debug"},
  "answers": {
    "directory": {"/sys/class/infiniband": ["rdmap79s0"]},
    "file": {
      "/proc/sys/kernel/hostname": ["node7"],
      "/proc/self/limits": ["Max locked memory         65536                65536                bytes     "],
      "/proc/self/status": ["CapEff:\t0000000000000000"]
    }
  }
}"#;
const CHECKS: &str = "memlock,debug-logging";

fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.arg("doctor").args(arguments).env_remove("SYSFS_PATH").env_remove("FI_LOG_LEVEL");
    command
}

fn run(arguments: &[&str]) -> Output {
    doctor(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn folder_with(name: &str, content: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn named(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_cause_and_the_fix_of_a_broken_host_are_in_the_first_ten_lines() {
    let (_folder, path) = folder_with("b.json", BROKEN);
    let output = run(&["--from", named(&path), "--check", CHECKS]);
    assert_eq!(code(&output), 1, "{output:?}");
    let first = text(&output.stdout).lines().take(10).collect::<Vec<_>>().join("\n");
    for said in ["error[memlock]: only 64 KiB", "cause:", "fix:", "memlock"] {
        assert!(first.contains(said), "{said}\n{first}");
    }
    let all = text(&output.stdout);
    assert!(all.contains("of node7, taken 2026-11-20T21:04:44Z by kvrail 0.1.0"), "{all}");
    assert!(!all.contains('\x1b'), "no colours into a pipe");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn what_a_bundle_recorded_here_says_elsewhere_is_the_same_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.json");
    let findings = |output: &Output| {
        let mut document: Value = serde_json::from_slice(&output.stdout).unwrap();
        for check in document["checks"].as_array_mut().unwrap() {
            check["took_us"].take();
        }
        ["findings", "checks", "verdict", "rules"].map(|member| document[member].to_string())
    };
    let live = doctor(&["--bundle", named(&path), "--format", "json"])
        .env("FI_LOG_LEVEL", "debug")
        .env("CANARY_TOKEN", "hunter2x7Q9z")
        .env("ETCD_ENDPOINTS", "http://root:hunter2x7Q9z@127.0.0.1:1")
        .output()
        .unwrap();
    assert_eq!(code(&live), 1, "{}", text(&live.stderr));
    assert!(
        text(&live.stderr).contains("bundle.json") && text(&live.stderr).contains("answers ("),
        "{}",
        text(&live.stderr)
    );
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&path).unwrap().contains("x7Q9z"));
    assert!(!text(&live.stdout).contains("x7Q9z"));
    // Another environment, another working directory: nothing of this host is asked.
    let replayed = doctor(&["--from", named(&path), "--format", "json"])
        .env("UCX_LOG_LEVEL", "data")
        .env_remove("PATH")
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(findings(&live), findings(&replayed));
    assert_eq!(code(&replayed), 1);
}

#[test]
fn a_file_that_is_no_bundle_is_an_error_that_names_it() {
    for (content, says) in [
        ("", "not a bundle"),
        ("\u{0}\u{1}garbage", "not a bundle"),
        (&BROKEN[..BROKEN.len() / 2], "EOF"),
        (&"{\"schema\":".repeat(100_000), "recursion limit"),
        (&BROKEN.replace("bundle.v1", "bundle.v9"), "`kvrail.bundle.v9`"),
    ] {
        let (_folder, path) = folder_with("b.json", content);
        let output = run(&["--from", named(&path)]);
        assert_eq!((code(&output), text(&output.stdout)), (2, ""));
        assert!(
            text(&output.stderr).contains(says) && text(&output.stderr).contains("b.json"),
            "{}",
            text(&output.stderr)
        );
    }
    let output = run(&["--from", "/nowhere/b.json"]);
    assert!(code(&output) == 2 && text(&output.stderr).contains("/nowhere/b.json"), "{output:?}");
    let (_folder, path) = folder_with("b.json", BROKEN);
    let output = run(&["--from", named(&path), "--etcd", "http://etcd:2379"]);
    assert!(
        code(&output) == 2 && text(&output.stderr).contains("--etcd"),
        "a bundle is asked, and nothing else: {output:?}"
    );
}

#[test]
fn every_format_goes_to_stdout_or_whole_into_a_file() {
    let (folder, path) = folder_with("b.json", BROKEN);
    for (format, begins) in [
        ("text", "error[memlock]"),
        ("json", "{\n"),
        ("markdown", "### kvrail doctor: 1 error, 1 warning"),
        ("sarif", "{\n"),
    ] {
        let arguments = ["--from", named(&path), "--check", CHECKS, "--format", format];
        let output = run(&arguments);
        assert_eq!(code(&output), 1);
        assert!(text(&output.stdout).starts_with(begins), "{format}: {}", text(&output.stdout));
        let file = folder.path().join(format);
        std::fs::write(&file, "something of before that is longer than whatever comes").unwrap();
        let into = doctor(&arguments).args(["--output", named(&file)]).output().unwrap();
        assert_eq!((code(&into), text(&into.stdout)), (1, ""));
        assert!(std::fs::read_to_string(&file).unwrap().starts_with(begins));
    }
    let sarif: Value = serde_json::from_slice(
        &run(&["--from", named(&path), "--check", CHECKS, "--format", "sarif"]).stdout,
    )
    .unwrap();
    assert_eq!(sarif["runs"][0]["results"][0]["ruleId"], "memlock");
    let left: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "no draft is left: {left:?}");
    let output = run(&["--from", named(&path), "--output", "/nowhere/x"]);
    assert!(code(&output) == 2 && text(&output.stderr).contains("/nowhere/x"), "{output:?}");
}

#[test]
fn a_rule_is_explained_and_a_slip_is_answered_with_what_was_meant() {
    let output = run(&["--explain", "memlock"]);
    assert_eq!(code(&output), 0);
    for said in ["memlock: ", "Cannot allocate memory", "Remedy", "https://man7.org/"] {
        assert!(text(&output.stdout).contains(said), "{said}");
    }
    let json: Value =
        serde_json::from_slice(&run(&["--explain", "memlock", "--format", "json"]).stdout).unwrap();
    assert_eq!(json["id"], "memlock");
    for arguments in [["--explain", "memlok"], ["--check", "memlok"]] {
        let output = run(&arguments);
        assert!(code(&output) == 2 && text(&output.stderr).contains("did you mean memlock"), "{output:?}");
    }
}

#[test]
fn all_rules_are_listed_for_people_and_for_programs() {
    let list: Value = serde_json::from_slice(&run(&["--list", "--format", "json"]).stdout).unwrap();
    let text_list = run(&["--list"]);
    let rules = list["rules"].as_array().unwrap();
    assert!(rules.len() >= 2);
    for rule in rules {
        assert!(text(&text_list.stdout).contains(rule["id"].as_str().unwrap()), "{rule}");
    }
    assert!(
        text(&run(&["--list", "--format", "markdown"]).stdout).starts_with("# What `kvrail doctor` knows")
    );
}

#[test]
fn help_says_what_the_exit_codes_mean() {
    for flag in ["-h", "--help"] {
        let output = run(&[flag]);
        assert!(text(&output.stdout).contains("Exit codes: 0 healthy"), "{}", text(&output.stdout));
    }
}

#[test]
fn a_healthy_choice_of_checks_exits_with_0() {
    let healthy = BROKEN.replace("65536  ", "unlimited").replace("\"debug\"", "\"warn\"");
    let (_folder, path) = folder_with("b.json", &healthy);
    let output = run(&["--from", named(&path), "--check", CHECKS]);
    assert_eq!(code(&output), 0, "{}", text(&output.stdout));
    assert!(
        text(&output.stdout).contains("2 checks are well: limits 1, logging 1"),
        "{}",
        text(&output.stdout)
    );
    // A bundle that does not say is one that cannot tell.
    let unsaid = healthy
        .replace("\"complete\": true", "\"complete\": false")
        .replace("/proc/self/limits", "/proc/self/other");
    let (_folder, path) = folder_with("b.json", &unsaid);
    let output = run(&["--from", named(&path), "--check", CHECKS]);
    assert_eq!(code(&output), 2);
    assert!(
        text(&output.stdout).contains("could not tell: memlock: /proc/self/limits: not in the bundle"),
        "{}",
        text(&output.stdout)
    );
}

/// The documented budget is 2 s for the local checks on an idle machine; tests share theirs.
#[test]
fn the_local_checks_end_long_before_anybody_thinks_that_they_hang() {
    let begin = std::time::Instant::now();
    let output = run(&[]);
    assert!(code(&output) <= 2, "{output:?}");
    assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
}
