//! Black box: runs rendered anew, set against expectations and against each other, and the folder that a run leaves.

mod program;

use std::path::Path;

use program::kvrail;
use serde_json::Value;

/// A run that takes no time.
const QUICK: &str = "bench --transport shm --op write --block 4KiB,64KiB --iterations 40 --seed 5";

fn run_into(file: &Path) {
    kvrail(&format!("{QUICK} --format json --output {}", file.display())).exits(0);
}

fn load(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn a_document_is_enough_for_every_form_of_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.json");
    run_into(&file);
    let document = load(&file);
    assert_eq!(document["results"][0]["turns"].as_array().unwrap().len(), 1, "64 slots hold 40 iterations");
    assert_eq!(
        (&document["results"][0]["engine"], document["complete"].as_bool()),
        (&"kvrail".into(), Some(true))
    );
    assert_eq!(document["command"][0].as_str().map(|word| word.ends_with("kvrail")), Some(true));
    assert_eq!(document["results"][0]["ceilings"][0]["kind"], "memcpy");
    for side in ["initiator", "target"] {
        assert!(
            document["fingerprint"][side]["versions"]["kernel"].is_string(),
            "{}",
            document["fingerprint"]
        );
    }
    for (format, says) in [
        ("table", "shm, shared memory"),
        ("markdown", "## Figures"),
        ("csv", "case,op,transport"),
        ("junit", "<testsuite name="),
        ("html", "<!DOCTYPE html>"),
        ("nixlbench", "Block Size (B)      Batch Size     B/W (GB/Sec)   Avg Lat. (us)"),
        ("json", "\"schema\":\"kvrail.bench.v1\""),
    ] {
        let report = kvrail(&format!("report {} --format {format}", file.display()));
        report.exits(0);
        assert!(report.stdout.contains(says), "{format}: {}", report.stdout);
    }
    let output = folder.path().join("all.csv");
    let (a, b) = (file.display(), folder.path().display());
    kvrail(&format!("report {a} {b} --format csv --output {}", output.display())).exits(0);
    let csv = std::fs::read_to_string(output).unwrap();
    assert_eq!((csv.lines().count(), csv.starts_with("run,case,")), (5, true), "{csv}");
}

#[test]
fn what_is_no_document_ends_a_report_with_the_file_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let empty = kvrail(&format!("report {}", folder.path().display()));
    empty.exits(2);
    assert!(empty.stderr.contains("there is no document"), "{}", empty.stderr);
    let file = folder.path().join("run.json");
    std::fs::write(&file, "{\"schema\":\"kvrail.bench.v9\"}").unwrap();
    for what in [file.as_path(), folder.path()] {
        let report = kvrail(&format!("report {}", what.display()));
        report.exits(2);
        assert!(report.stderr.contains("run.json") && report.stderr.contains("v9"), "{}", report.stderr);
    }
    kvrail("report /nonexistent").exits(2);
}

#[test]
fn a_run_compared_with_itself_is_the_same_and_with_a_slower_one_a_regression() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.json"), folder.path().join("b.json"));
    run_into(&a);
    let mut document = load(&a);
    for (base, row) in [10.0, 5.0].into_iter().zip(document["results"].as_array_mut().unwrap()) {
        row["turns"] = (0..9)
            .map(|i| serde_json::json!({"bandwidth_gbps": base + f64::from(i) * 0.01, "latency_p50_us": 1.0}))
            .collect();
    }
    std::fs::write(&a, document.to_string()).unwrap();
    let same = kvrail(&format!("compare {} {}", a.display(), a.display()));
    same.exits(0);
    assert!(same.stdout.contains("2 same"), "{}", same.stdout);
    assert!(!same.stdout.contains("differs"), "{}", same.stdout);
    for turn in document["results"][1]["turns"].as_array_mut().unwrap() {
        turn["bandwidth_gbps"] = (turn["bandwidth_gbps"].as_f64().unwrap() * 0.8).into();
    }
    document["fingerprint"]["target"]["variables"]["UCX_TLS"] = "tcp".into();
    std::fs::write(&b, document.to_string()).unwrap();
    let worse = kvrail(&format!("compare {} {}", a.display(), b.display()));
    worse.exits(1);
    assert!(worse.stdout.contains("REGRESSED") && worse.stdout.contains("-20.0%"), "{}", worse.stdout);
    assert!(worse.stdout.contains("differs: target: UCX_TLS: none in A, tcp in B"), "{}", worse.stdout);
    assert!(worse.stderr.contains("B is worse than A: 1 REGRESSED, 1 same"), "{}", worse.stderr);
    let json = kvrail(&format!("compare {} {} --json", b.display(), a.display()));
    json.exits(0);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&json["schema"], &json["pairs"][1]["standing"]),
        (&"kvrail.compare.v1".into(), &"improved".into())
    );
    document["results"] = Value::Array(Vec::new());
    std::fs::write(&b, document.to_string()).unwrap();
    kvrail(&format!("compare {} {}", a.display(), b.display())).exits(2);
}

#[test]
fn expectations_decide_the_exit_code_and_stand_in_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (expect, file) = (folder.path().join("mine.toml"), folder.path().join("run.json"));
    let expecting = |gbps: &str| {
        let text = format!(
            "version = 1\n[[instance]]\nname = \"this laptop\"\n[[instance.figure]]\nbetween = \"processes\"\n\
             transfer_bytes = [65536, 65536]\ngbps = {gbps}\nsource = \"a guess\"\n"
        );
        std::fs::write(&expect, text).unwrap();
        kvrail(&format!("{QUICK} --format json --output {} --expect {}", file.display(), expect.display()))
    };
    expecting("0.001").exits(0);
    assert_eq!(load(&file)["results"][1]["verdicts"].as_array().unwrap().last().unwrap()["id"], "healthy");
    let missed = expecting("100000.0");
    missed.exits(1);
    assert!(
        missed.stderr.contains("1 of 1 rows are below what is expected of this laptop"),
        "{}",
        missed.stderr
    );
    assert_eq!(
        load(&file)["results"][1]["verdicts"].as_array().unwrap().last().unwrap()["id"],
        "below-expectation"
    );
    let junit = kvrail(&format!("report {} --format junit --expect {}", file.display(), expect.display()));
    junit.exits(1);
    assert!(junit.stdout.contains("tests=\"2\" failures=\"1\" errors=\"0\""), "{}", junit.stdout);
    // Nothing of this host is expected of a P5: that cannot be told.
    kvrail(&format!("{QUICK} --expect p5")).exits(2);
    let unknown = kvrail(&format!("{QUICK} --expect p99"));
    unknown.exits(2);
    assert!(unknown.stderr.contains("p5.48xlarge"), "{}", unknown.stderr);
    assert!(
        !unknown.stderr.contains("target: process"),
        "it is refused before anything runs: {}",
        unknown.stderr
    );
}

#[test]
fn a_run_leaves_a_folder_with_everything_and_says_what_is_absent() {
    let above = tempfile::tempdir().unwrap();
    let run = kvrail(&format!("{QUICK} --artifacts {}", above.path().display()));
    run.exits(0);
    let folder = std::fs::read_dir(above.path()).unwrap().next().unwrap().unwrap().path();
    assert!(run.stderr.contains(&format!("artefacts: {}", folder.display())), "{}", run.stderr);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect(name);
    assert_eq!(load(&folder.join("results.json"))["complete"], true);
    assert!(read("results.csv").lines().count() == 3 && read("results.md").contains("## Figures"));
    assert!(read("results.html").starts_with("<!DOCTYPE html>"));
    assert!(read("results.junit.xml").contains("tests=\"2\" failures=\"0\""));
    assert!(read("initiator.log").contains("transport shm"), "{}", read("initiator.log"));
    assert!(run.stderr.contains("transport shm"), "what is logged is said as before");
    let report = read("test-report.txt");
    for name in
        ["fi_info.txt", "gpu-info.txt", "efa-devices.txt", "topology.txt", "target.log", "initiator.log"]
    {
        let line = report.lines().find(|line| line.trim_start().starts_with(name)).expect(name);
        assert_eq!(folder.join(name).exists(), !line.contains("absent: "), "{line}");
    }
    assert!(report.contains("complete, every byte"), "{report}");
    kvrail(&format!("report {}", above.path().display())).exits(0);
    kvrail(&format!("{QUICK} --artifacts /proc/nowhere")).exits(2);
}
