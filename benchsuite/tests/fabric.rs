//! The bare fabric loop as a black box: verified bytes on libfabric's tcp and shm, between a forked pair and between two
//! programs that meet.
//!
//! Needs a libfabric, as kvrail finds it. Without one these tests are skipped, by name; with `CI` set they fail.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use kvrail_sys::libfabric::{Library, Search};

const SMALL: [&str; 10] =
    ["--block", "4KiB", "--batch", "100", "--pool", "1MiB", "--iterations", "2", "--repetitions", "2"];

fn limits() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limits"));
    command.args(["--kind", "fabric"]).stdin(Stdio::null());
    command
}

/// Whether there is a libfabric; the test ends, skipped, where there is none.
fn there_is_a_libfabric(test: &str) -> bool {
    let Err(error) = Library::load(&Search::new(None)) else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test}: {error}");
    // Past the harness, which swallows what tests print.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {error}");
    false
}

fn row(output: &Output) -> serde_json::Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn verified_bytes_move_both_ways_over_one_and_several_rails() {
    if !there_is_a_libfabric("verified_bytes_move_both_ways_over_one_and_several_rails") {
        return;
    }
    for (provider, rails, op, wait, evidence) in [
        ("tcp", "1", "read", "block", "delivered"),
        ("tcp", "3", "write", "spin", "delivered"),
        ("shm", "2", "read", "block", "counted"),
        ("shm", "1", "write", "spin", "counted"),
    ] {
        let words = ["--provider", provider, "--rails", rails, "--op", op, "--wait", wait, "--depth", "16"];
        let output = limits().args(SMALL).args(words).output().unwrap();
        let row = row(&output);
        assert_eq!(row["verified"], true, "{words:?}: {row}");
        assert_eq!(row["fabric"]["provider"], provider);
        assert_eq!(row["fabric"]["rails"].as_u64(), rails.parse().ok());
        assert_eq!(row["fabric"]["evidence"], evidence);
        assert!(row["bandwidth_gbps"].as_f64().is_some_and(|gbps| gbps > 0.0));
    }
}

#[test]
fn two_programs_meet_and_the_target_takes_the_case_from_the_initiator() {
    if !there_is_a_libfabric("two_programs_meet_and_the_target_takes_the_case_from_the_initiator") {
        return;
    }
    let place = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut target = limits().args(["--role", "target", "--meet", &place]).spawn().unwrap();
    let role = ["--role", "initiator", "--meet", &place, "--op", "write"];
    let output = limits().args(SMALL).args(role).output().unwrap();
    if !output.status.success() {
        // It would wait for another initiator.
        target.kill().unwrap();
    }
    let ended = target.wait().unwrap();
    assert_eq!(row(&output)["verified"], true);
    assert!(ended.success());
}

#[test]
fn a_libfabric_that_is_not_there_is_no_figure() {
    let words = ["--libfabric", "/nowhere/libfabric.so.1", "--provider", "tcp"];
    let output = limits().args(SMALL).args(words).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/nowhere/libfabric.so.1"), "{said}");
}
