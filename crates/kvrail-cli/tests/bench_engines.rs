//! Black box: several engines in turns. What an engine does, also when it dies, hangs or is not there, stands in its row, and the
//! others go on.

mod program;
#[path = "../../kvrail-engines/tests/nixl/wheel.rs"]
#[allow(dead_code)] // This test needs a part of it.
mod wheel;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use program::{Ended, Running, free_port, kvrail, start};
use serde_json::Value;

/// Two sizes, few iterations.
const QUICK: &str = "--block 4KiB,64KiB --iterations 40 --format json";

fn report(run: &Ended) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", run.stdout, run.stderr))
}

fn rows<'a>(report: &'a Value, engine: &str) -> Vec<&'a Value> {
    report["results"].as_array().unwrap().iter().filter(|row| row["engine"] == engine).collect()
}

/// A run that goes on for a while, and its first turns are over.
fn long(engines: &str) -> Running {
    let run = start(&format!(
        "bench --engine {engines} --op write --block 64KiB --duration 4s --format json --timeout 20s"
    ));
    std::thread::sleep(Duration::from_millis(2500));
    run
}

/// The process of an engine: `--connect` tells a player, and it is a child of the run; a servant is a child of the target.
fn process_of(parent: u32, words: &str) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find_map(|pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(words) { Some(pid) } else { process_of(pid, words) }
    })
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn two_engines_take_turns_on_one_host_and_are_set_against_each_other() {
    let run = kvrail(&format!("bench --engine kvrail:shm,memcpy {QUICK}"));
    run.exits(0);
    let report = report(&run);
    assert_eq!((&report["complete"], &report["verified"]), (&true.into(), &true.into()));
    for engine in ["kvrail:shm", "memcpy"] {
        let rows = rows(&report, engine);
        assert_eq!(rows.len(), 4, "{report}");
        for row in rows {
            assert_eq!((&row["iterations"], &row["verified"]), (&40.into(), &true.into()));
            assert_eq!(row["turns"].as_array().unwrap().len(), 5, "{row}");
            assert!(row["failure"].is_null());
        }
    }
    let ratios = report["ratios"].as_array().unwrap();
    assert_eq!(ratios.len(), 4, "{report}");
    assert!(ratios.iter().all(|ratio| ratio["turns"] == 5));
    assert_eq!(report["transports"].as_array().unwrap().len(), 2, "{report}");
}

#[test]
fn the_table_has_a_column_for_each_engine() {
    let run = kvrail(
        "bench --engine kvrail:shm,kvrail:tcp,memcpy --op read --block 4KiB,20000 --batch 3 --layout scattered \
         --threads 2 --iterations 10 --memory private",
    );
    run.exits(0);
    for name in ["kvrail:shm", "kvrail:tcp", "memcpy"] {
        assert!(run.stdout.contains(name), "{name}: {}", run.stdout);
    }
    assert!(run.stdout.lines().all(|line| line.chars().count() <= 100), "{}", run.stdout);
}

#[test]
fn an_engine_that_is_not_there_has_a_row_that_says_so_and_the_others_finish() {
    for (engine, flag) in [("ucx", "--ucx"), ("nixl", "--nixl")] {
        let run =
            kvrail(&format!("bench --engine {engine},kvrail:shm {flag} /nonexistent --op write {QUICK}"));
        run.exits(2);
        let report = report(&run);
        let absent = rows(&report, engine);
        assert_eq!(absent.len(), 2, "{report}");
        for row in absent {
            assert!(row["failure"]["what"].as_str().unwrap().contains("/nonexistent"), "{row}");
            assert!(row.get("bandwidth_gbps").is_none_or(Value::is_null), "{row}");
        }
        assert!(rows(&report, "kvrail:shm").iter().all(|row| row["verified"] == true), "{report}");
        assert!(run.stderr.contains("without figures that count"), "{}", run.stderr);
    }
}

#[test]
fn an_engine_that_is_killed_on_either_side_becomes_a_row_and_the_others_finish() {
    // The player carries its engine in its words, the servant is the last that the target started.
    for words in ["--engine memcpy", "--conducted target"] {
        let run = long("memcpy,kvrail:shm");
        let pid = process_of(run.id(), words).expect("the engine's process");
        signal(pid, "-KILL");
        let ended = run.end();
        ended.exits(2);
        let report = report(&ended);
        let dead = rows(&report, "memcpy")[0];
        assert_eq!(dead["failure"]["kind"], "engine", "{words}: {report}");
        if words == "--engine memcpy" {
            assert!(dead["failure"]["what"].as_str().unwrap().contains("killed by signal 9"), "{dead}");
        }
        let alive = rows(&report, "kvrail:shm")[0];
        assert!(alive["failure"].is_null() && alive["verified"] == true, "{words}: {alive}");
    }
}

#[test]
fn an_engine_that_hangs_is_ended_and_the_others_finish() {
    let run = long("memcpy,kvrail:shm");
    let pid = process_of(run.id(), "--engine memcpy").expect("the engine's process");
    let begin = Instant::now();
    signal(pid, "-STOP");
    let ended = run.end();
    assert!(begin.elapsed() < Duration::from_secs(60), "took {:?}", begin.elapsed());
    ended.exits(2);
    let report = report(&ended);
    let hung = rows(&report, "memcpy")[0];
    assert!(hung["failure"]["what"].as_str().unwrap().contains("silent for 10 s"), "{hung}");
    assert!(rows(&report, "kvrail:shm")[0]["failure"].is_null(), "{report}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it was left behind");
}

#[test]
fn a_target_elsewhere_serves_every_engine_over_one_port() {
    let port = free_port();
    let target = start(&format!("bench --role target --listen 127.0.0.1:{port} --timeout 20s"));
    let run = kvrail(&format!(
        "bench --connect 127.0.0.1:{port} --engine kvrail:tcp,kvrail:shm,memcpy {QUICK} --memory private,shared"
    ));
    run.exits(0);
    target.end().exits(0);
    assert_eq!(report(&run)["results"].as_array().unwrap().len(), 24);
}

#[test]
fn an_interrupt_ends_every_process_of_every_engine_and_prints_what_was_measured() {
    let run = start(
        "bench --engine kvrail:shm,memcpy --op write --block 4KiB,64KiB..1MiB --duration 1s --verify last --timeout 20s \
         --format json",
    );
    std::thread::sleep(Duration::from_millis(6000));
    let pids: Vec<u32> = ["--engine kvrail:shm", "--engine memcpy", "--spawned"]
        .map(|words| process_of(run.id(), words).unwrap())
        .into();
    run.interrupt();
    let ended = run.end();
    ended.exits(2);
    assert!(ended.stderr.contains("interrupted"), "{}", ended.stderr);
    let report = report(&ended);
    assert_eq!((&report["complete"], &report["failure"]["kind"]), (&false.into(), &"interrupted".into()));
    assert!(!rows(&report, "memcpy").is_empty(), "{report}");
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} was left behind");
    }
}

/// What the check must call each defect.
const CANARIES: [(&str, &[&str]); 6] = [
    ("swapped", &["swapped: the bytes belong to block"]),
    ("wrong-offset", &["wrong offset", "belongs to no block", "swapped"]),
    ("stale", &["stale"]),
    ("zeros", &["zeros"]),
    ("flip-bit", &["1 bit flipped"]),
    ("short-tail", &["short tail"]),
];

/// Plants each defect on the path of these engines: caught, named, exit code 1.
fn canaries(engines: &[&str], flags: &str) {
    for (plant, names) in CANARIES {
        let run = kvrail(&format!(
            "bench --engine {} {flags} --plant {plant} --block 16KiB --batch 6 --layout scattered --iterations 12 \
             --format json --seed 7",
            engines.join(",")
        ));
        run.exits(1);
        let report = report(&run);
        for engine in engines {
            let rows = rows(&report, engine);
            assert_eq!(rows.len(), 2, "{engine}: {report}");
            for row in rows {
                let failure = &row["failure"];
                let what = failure["what"].as_str().unwrap_or_default();
                assert_eq!(failure["kind"], "check", "{engine} {plant} {}: {failure}", row["op"]);
                assert!(
                    names.iter().any(|name| what.contains(name)),
                    "{engine} {plant} {}: {what}",
                    row["op"]
                );
                assert_eq!(row["verified"], false);
            }
        }
    }
}

#[test]
fn every_planted_defect_is_caught_and_named_on_our_own_paths() {
    canaries(&["kvrail:shm", "kvrail:tcp", "memcpy"], "");
}

/// Whether an engine can be had here; else its absence is told past the harness, and is a failure in CI.
fn at_hand(test: &str, engine: &str, flags: &str) -> bool {
    let run = kvrail(&format!(
        "bench --engine {engine} {flags} --op write --block 4KiB --iterations 5 --format json"
    ));
    if run.succeeded() {
        return true;
    }
    let why = report(&run)["results"][0]["failure"]["what"].to_string();
    assert!(std::env::var_os("CI").is_none(), "{test}: {engine}: {why}");
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("skipped: {test}: {engine}: {why}\n").as_bytes());
    false
}

#[test]
fn every_planted_defect_is_caught_and_named_on_libfabrics_and_ucxs_paths() {
    let test = "every_planted_defect_is_caught_and_named_on_libfabrics_and_ucxs_paths";
    let engines: Vec<&str> =
        ["libfabric:tcp", "ucx", "ucx:tcp"].into_iter().filter(|engine| at_hand(test, engine, "")).collect();
    if !engines.is_empty() {
        canaries(&engines, "");
    }
}

#[test]
fn every_planted_defect_is_caught_and_named_on_nixls_path() {
    let test = "every_planted_defect_is_caught_and_named_on_nixls_path";
    let Some(root) = wheel::nixl(test) else { return };
    canaries(&["nixl:UCX"], &format!("--nixl {}", root.display()));
}
