//! `kvrail doctor lint` as a person or a script calls it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kvrail-doctor/fixtures/lint").join(name)
}

fn lint(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvrail"))
        .args(["doctor", "lint"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that has ended without reading is told by its output.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn good_files_end_with_0_and_bad_ones_with_1_and_their_lines() {
    let (code, text, _) = said(&lint(&[fixture("good/bench-pods.yaml").to_str().unwrap()], ""));
    assert_eq!((code, text.lines().count()), (Some(0), 1), "{text}");
    let file = fixture("bad/p2p-disabled.yaml");
    let (code, text, _) = said(&lint(&[file.to_str().unwrap()], ""));
    assert_eq!(code, Some(1), "{text}");
    let first: Vec<_> = text.lines().take(10).collect();
    assert!(
        first[0].starts_with(&format!("{}:", file.display())) && text.contains("[lint-p2p-disabled]"),
        "{text}"
    );
    assert!(
        first.iter().any(|line| line.contains("cause:")) && first.iter().any(|line| line.contains("fix:")),
        "{text}"
    );
    let (code, _, _) = said(&lint(&[fixture("bad/image-latest.yaml").to_str().unwrap()], ""));
    assert_eq!(code, Some(0), "notes are no mistakes");
}

#[test]
fn stdin_is_read_and_its_kind_can_be_forced() {
    let (code, text, _) = said(&lint(&["-"], "FI_LOG_LEVEL=debug\n"));
    assert!(code == Some(1) && text.starts_with("stdin:1:1: "), "{text}");
    let (_, text, _) = said(&lint(&["--verbose", "--kind", "shell", "-"], "FI_LOG_LEVEL=debug\n"));
    assert!(text.contains("stdin: shell"), "{text}");
}

#[test]
fn what_cannot_be_read_ends_with_2_and_says_where() {
    let (code, errors, _) = said(&lint(&["-"], "kind: Pod\napiVersion: v1\nspec: [\n"));
    assert!(code == Some(2) && errors.contains("could not tell: stdin:"), "{errors}");
    let (code, errors, _) = said(&lint(&["/nowhere.yaml", env!("CARGO_MANIFEST_DIR")], ""));
    assert!(code == Some(2) && errors.contains("/nowhere.yaml") && errors.contains("directory"), "{errors}");
    // What was found counts before what could not be read.
    let (code, _, _) =
        said(&lint(&["/nowhere.yaml", fixture("bad/p2p-disabled.yaml").to_str().unwrap()], ""));
    assert_eq!(code, Some(1));
}

#[test]
fn json_has_each_finding_with_its_place() {
    let (code, text, _) =
        said(&lint(&["--format", "json", fixture("bad/everything.yaml").to_str().unwrap()], ""));
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, document["schema"].as_str()), (Some(1), Some("kvrail.doctor.v1")));
    let findings = document["findings"].as_array().unwrap();
    assert!(
        findings.len() > 10 && findings.iter().all(|finding| finding["location"]["line"].as_u64() > Some(0)),
        "{text}"
    );
}
