//! `kvrail doctor` where things are not as usual: streams that take nothing, an unreadable search path, a host without `/proc` and
//! `/sys`, Ctrl-C while somebody is asked. It ends with a result or an error, and never with a panic.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const KVRAIL: &str = env!("CARGO_BIN_EXE_kvrail");
const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

fn skipped(what: &str) {
    eprintln!("skipped: {what}");
}

/// Whether a command can be run here, as a right is asked for by using it.
fn can(words: &[&str]) -> bool {
    let tried = Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

fn run(words: &[&str], change: impl FnOnce(&mut Command) -> &mut Command) -> Output {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).env_remove("SYSFS_PATH");
    change(&mut command);
    command.output().unwrap()
}

/// The exit code. A panic has one that means nothing here.
fn code(output: &Output) -> i32 {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// A program of that name which runs this script.
fn program(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn streams_that_take_nothing_are_an_error_or_nothing_at_all() {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = run(&[KVRAIL, "doctor", "--check", "debug-logging"], |command| command.stdout(full()));
    assert_eq!(code(&output), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to stdout"), "{output:?}");
    // The error cannot be told, and is one all the same.
    let output = run(&[KVRAIL, "doctor", "--from", "/nowhere"], |command| command.stderr(full()));
    assert_eq!(code(&output), 2);
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("b.json");
    let words = [KVRAIL, "doctor", "--check", "debug-logging", "--bundle", bundle.to_str().unwrap()];
    let output = run(&words, |command| command.env("FI_LOG_LEVEL", "debug").stderr(full()));
    assert_eq!((code(&output), bundle.exists()), (1, true));
    // A reader that has seen enough.
    let script = format!("'{KVRAIL}' doctor --list | head -1; '{KVRAIL}' doctor --list >&-");
    let output = run(&["sh", "-c", &script], |command| command);
    assert_eq!((code(&output), output.stderr.as_slice()), (0, &b""[..]));
}

#[test]
fn a_directory_of_the_search_path_that_may_not_be_looked_into_hides_no_program() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let secret = folder.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let path = format!("{}:/usr/bin:/bin", secret.display());
    let before: &[&str] = if rustix::process::geteuid().is_root() { &AS_NOBODY } else { &[] };
    if !can(&[before, &[KVRAIL, "--version"]].concat()) {
        return skipped("nobody else may run the program that is tested");
    }
    let look = |path: &str| {
        let words = [before, &[KVRAIL, "doctor", "--verbose", "--check", "gpu-stuck"]].concat();
        run(&words, |command| command.env("PATH", path))
    };
    if can(&["nvidia-smi"]) {
        return skipped("this machine has an nvidia-smi");
    }
    let output = look(&path);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stdout));
    // One that is there and may not be run is another matter.
    program(folder.path(), "nvidia-smi", "exit 0");
    fs::set_permissions(folder.path().join("nvidia-smi"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = look(&format!("{}:/usr/bin:/bin", folder.path().display()));
    assert_eq!(code(&output), 2, "{}", String::from_utf8_lossy(&output.stdout));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_host_without_proc_and_sys_a_home_and_a_working_directory_is_looked_at() {
    let output = run(&[KVRAIL, "doctor"], |command| command.env_clear());
    assert!(code(&output) <= 2, "{output:?}");
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let script =
        format!("cd {0} && rmdir {0} && exec '{KVRAIL}' doctor --check debug-logging", gone.display());
    assert_eq!(code(&run(&["sh", "-c", &script], |command| command)), 0);
    const HIDE: &str = "mount -t tmpfs none /sys && mount -t tmpfs none /proc";
    if !can(&["unshare", "--mount", "sh", "-c", HIDE]) {
        return skipped("no right to mount in a namespace");
    }
    let script = format!("{HIDE} && exec '{KVRAIL}' doctor");
    let output = run(&["unshare", "--mount", "sh", "-c", &script], |command| command);
    assert!(code(&output) <= 2, "{output:?}");
}

#[test]
fn ctrl_c_ends_it_and_whoever_is_asked_at_that_time() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    program(
        folder.path(),
        "nvidia-smi",
        &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 300", pid.display()),
    );
    let mut command = Command::new(KVRAIL);
    command.args(["doctor", "--check", "gpu-stuck", "--deadline", "60s"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    let wait = |what: &str| {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    };
    while !pid.exists() {
        wait("nvidia-smi was not asked");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(2), "{status:?}");
    let asked = Path::new("/proc").join(fs::read_to_string(&pid).unwrap().trim());
    // Whoever adopted it may take a while to notice its end.
    let runs = || fs::read_to_string(asked.join("stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while runs() {
        wait("nvidia-smi still runs");
    }
}
