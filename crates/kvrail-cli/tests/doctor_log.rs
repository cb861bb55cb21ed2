//! `kvrail doctor log`: exit codes, files and pipes, what is printed first.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvrail"))
        .args(["doctor", "log"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

fn file(directory: &tempfile::TempDir, name: &str, text: &[u8]) -> String {
    let path: PathBuf = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

const HUNG: &str = "\
2025-10-14 01:09:20 NIXL INFO Backend LIBFABRIC was instantiated
libfabric:1242394:1760404169::efa:cq:efa_cq_handle_error():103<warn> err: 22, message: Remote key (RKEY) not registered or does not match remote IOVA
libfabric_rail.cpp:712] CQ read failed on rail 28 with error: Invalid argument
";

#[test]
fn the_cause_and_the_fix_stand_in_the_first_ten_lines() {
    let directory = tempfile::tempdir().unwrap();
    let log = file(&directory, "decode.log", HUNG.as_bytes());
    let output = run(&[&log], b"");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    // However the lines are broken: the name of the file may be a long one.
    let first: String =
        text.lines().take(10).flat_map(|line| line.split_whitespace()).collect::<Vec<_>>().join(" ");
    for wanted in ["log-efa-remote-key", "its key is not registered there", "kvrail doctor probe"] {
        assert!(first.contains(wanted), "`{wanted}` is not in\n{text}");
    }
}

#[test]
fn stdin_and_several_files_are_read_and_programs_are_told_where() {
    let directory = tempfile::tempdir().unwrap();
    let healthy = file(
        &directory,
        "prefill.log",
        b"2025-10-14 01:09:20 NIXL INFO Backend LIBFABRIC was instantiated\n",
    );
    let output = run(&["--format", "json", &healthy, "-"], HUNG.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = document.to_string();
    assert!(text.contains("\"stdin\"") && text.contains("log-efa-remote-key"), "{text}");
    assert!(text.contains("\"lines\":3"), "{text}");
}

#[test]
fn nothing_known_is_healthy_and_what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let healthy = file(&directory, "a.log", b"all is well\n");
    assert_eq!(run(&[&healthy], b"").status.code(), Some(0));
    let output = run(&[&healthy, "/no/such/log"], b"");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("/no/such/log"), "{text}");
    let binary = file(&directory, "core", b"\x7fELF\x02\x01\x01\x00");
    let output = run(&[&binary], b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no text"));
    assert_eq!(run(&[], b"").status.code(), Some(2), "a file must be named");
}

/// A rule, the command that fails so, and its variables.
type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)]);

/// What a command says, on both streams; nothing where there is no such command.
fn said(words: &[&str], variables: &[(&str, &str)]) -> Option<Vec<u8>> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env_remove("LD_LIBRARY_PATH").envs(variables.iter().copied());
    let Ok(output) = command.stdin(Stdio::null()).output() else {
        assert!(std::env::var_os("CI").is_none(), "CI can have {}", words[0]);
        eprintln!("skipped: what {} says", words[0]);
        return None;
    };
    Some([output.stdout, output.stderr].concat())
}

/// Proves: log-nixl-missing, log-no-fabric, log-ucx-no-transport, log-etcd-unreachable, log-open-files
#[test]
fn what_real_programs_say_of_real_failures_is_recognised() {
    let nobody = ["--endpoints=http://127.0.0.1:1", "--dial-timeout=1s", "--command-timeout=1s", "get", "x"];
    let etcdctl: Vec<&str> = ["etcdctl"].into_iter().chain(nobody).collect();
    let opens = "import os\nfor i in range(20): os.open('/dev/null', 0)";
    let few = format!("ulimit -n 8; exec python3 -I -S -c \"{opens}\"");
    let cases: [Case<'_>; 5] = [
        ("log-nixl-missing", &["python3", "-I", "-S", "-c", "import nixl"], &[]),
        ("log-no-fabric", &["fi_info", "-p", "no-such-provider"], &[]),
        ("log-ucx-no-transport", &["ucx_info", "-e", "-u", "t", "-D", "net"], &[("UCX_TLS", "rc")]),
        ("log-etcd-unreachable", &etcdctl, &[("ETCDCTL_API", "3")]),
        ("log-open-files", &["/bin/bash", "-c", &few], &[("PATH", "/usr/bin:/bin")]),
    ];
    for (rule, words, variables) in cases {
        let Some(log) = said(words, variables) else { continue };
        let output = run(&["-"], &log);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("[{rule}]")), "{}\n{text}", String::from_utf8_lossy(&log));
    }
}

#[test]
fn every_rule_of_logs_can_be_explained() {
    let output = Command::new(env!("CARGO_BIN_EXE_kvrail"))
        .args(["doctor", "--explain", "log-efa-unreachable"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("0.0.0.0/0"), "{text}");
}
