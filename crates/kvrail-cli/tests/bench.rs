//! Black box: the program as a user meets it. Output, exit codes and messages are the contract.

mod program;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use program::{Running, free_port, kvrail, start};

/// A run that takes no time: two sizes, few iterations.
const QUICK: &str = "--block 4KiB,64KiB --iterations 20";

#[test]
fn two_processes_move_and_verify_blocks_in_both_directions() {
    let run = kvrail(&format!("bench {QUICK}"));
    run.exits(0);
    assert_eq!(run.stdout.lines().filter(|l| l.starts_with("write") || l.starts_with("read")).count(), 4);
    assert!(run.stdout.lines().all(|l| l.chars().count() <= 100), "{}", run.stdout);
    assert!(run.stderr.contains("transport "), "which transport and why is said: {}", run.stderr);
    assert!(!run.stdout.contains("WRONG"), "{}", run.stdout);
}

#[test]
fn scattered_batches_with_notifications_and_threads_verify() {
    for transport in ["shm", "tcp"] {
        for memory in ["shared", "private"] {
            let run = kvrail(&format!(
                "bench --transport {transport} --memory {memory} --layout scattered --block 4KiB,20000 --batch 7 \
                 --threads 2 --notify --iterations 40 --progress thread"
            ));
            run.exits(0);
        }
    }
}

#[test]
fn the_json_report_has_every_figure_and_its_histogram() {
    let run = kvrail(&format!("bench {QUICK} --format json --seed 5"));
    run.exits(0);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).expect("stdout is one document");
    assert_eq!(report["schema"], "kvrail.bench.v1");
    assert_eq!(
        (&report["complete"], &report["verified"], &report["seed"]),
        (&true.into(), &true.into(), &5.into())
    );
    let rows = report["results"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(row["iterations"], 20);
        assert_eq!(row["verified"], true);
        assert!(row["bandwidth_gbps"].as_f64().unwrap() > 0.0);
        assert!(row["ceiling_gbps"].as_f64().unwrap() > 0.0);
        for times in ["latency_us", "prepare_us", "post_us", "wire_us"] {
            let times = &row[times];
            assert!(times["p50"].as_f64().unwrap() <= times["p99"].as_f64().unwrap(), "{row}");
            assert!(times["p99"].as_f64().unwrap() <= times["max"].as_f64().unwrap(), "{row}");
            let buckets = times["histogram_ns"].as_array().unwrap();
            let counted: u64 = buckets.iter().map(|b| b[1].as_u64().unwrap()).sum();
            assert_eq!(counted, times["count"].as_u64().unwrap());
        }
        assert!(row["cpu_s"]["initiator"].is_number() && row["cpu_s"]["target"].is_number());
    }
    for side in ["initiator", "target"] {
        assert!(report["environment"][side]["kernel"].as_str().unwrap().starts_with("Linux"));
    }
}

#[test]
fn a_report_goes_to_its_file_and_the_table_to_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.csv");
    let run = kvrail(&format!("bench {QUICK} --op write --format csv --output {}", file.display()));
    run.exits(0);
    assert!(run.stdout.contains("write"), "{}", run.stdout);
    let csv = std::fs::read_to_string(file).unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
    assert!(csv.starts_with("case,op,transport"), "{csv}");
}

#[test]
fn a_flipped_byte_fails_the_run_and_is_named() {
    for (op, case) in [("write", 0), ("read", 0)] {
        let run = kvrail(&format!(
            "bench --op {op} --block 4KiB --batch 4 --iterations 10 --inject-corruption {case}:3:1234"
        ));
        run.exits(1);
        assert!(run.stderr.contains("block 3, offset 1234"), "{}", run.stderr);
        assert!(run.stderr.contains("1 byte is wrong"), "{}", run.stderr);
        assert!(run.stdout.contains("WRONG"), "{}", run.stdout);
    }
}

#[test]
fn a_flipped_byte_is_found_by_the_last_look_too_and_unseen_without_one() {
    let flip = "--op write --block 4KiB --iterations 500 --inject-corruption 0:0:7";
    kvrail(&format!("bench --verify last {flip}")).exits(1);
    let run = kvrail(&format!("bench --verify off {flip}"));
    run.exits(2);
    assert!(run.stdout.contains("UNSEEN"), "{}", run.stdout);
    assert!(run.stderr.contains("cannot be told"), "{}", run.stderr);
}

#[test]
fn roles_find_each_other_whoever_starts_first() {
    for target_first in [true, false] {
        let port = free_port();
        let target = format!("bench --role target --listen 127.0.0.1:{port} --timeout 20s");
        let initiator = format!("bench --role initiator --connect 127.0.0.1:{port} --timeout 20s {QUICK}");
        let (first, second) = if target_first { (target, initiator) } else { (initiator, target) };
        let first = start(&first);
        std::thread::sleep(Duration::from_millis(150));
        let second = start(&second);
        first.end().exits(0);
        second.end().exits(0);
    }
}

#[test]
fn two_autos_share_the_roles_out_at_their_rendezvous() {
    let port = free_port();
    let command = format!("bench --role auto --rendezvous 127.0.0.1:{port} --timeout 20s {QUICK}");
    let (a, b) = (start(&command), start(&command));
    let (a, b) = (a.end(), b.end());
    a.exits(0);
    b.exits(0);
    let targets = [&a, &b].iter().filter(|r| r.stderr.contains("this side is the target")).count();
    assert_eq!(targets, 1, "{}\n{}", a.stderr, b.stderr);
    assert_eq!([&a, &b].iter().filter(|r| r.stdout.contains("write")).count(), 1, "one side reports");
}

#[test]
fn an_absent_peer_is_an_error_that_says_how_to_start_it() {
    let run = kvrail(&format!("bench --role initiator --connect 127.0.0.1:{} --timeout 300ms", free_port()));
    run.exits(2);
    assert!(run.stderr.contains("nobody answers at 127.0.0.1:"), "{}", run.stderr);
    assert!(run.stderr.contains("--role target"), "{}", run.stderr);

    let run = kvrail(&format!("bench --role target --listen 127.0.0.1:{} --timeout 300ms", free_port()));
    run.exits(2);
    assert!(run.stderr.contains("no initiator came"), "{}", run.stderr);
}

/// Answers one connection with some bytes.
fn impostor(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(bytes).unwrap();
        let _ = socket.read(&mut [0; 64]);
        std::thread::sleep(Duration::from_millis(500));
    });
    port
}

#[test]
fn a_peer_of_another_version_or_kind_is_told_apart() {
    let run = kvrail(&format!("bench --connect 127.0.0.1:{}", impostor(b"KVRB\x63\0\0\0")));
    run.exits(2);
    assert!(run.stderr.contains("speaks version 99"), "{}", run.stderr);
    assert!(run.stderr.contains("same version"), "{}", run.stderr);

    let run = kvrail(&format!("bench --connect 127.0.0.1:{}", impostor(b"HTTP/1.1 400 Bad Request\r\n")));
    run.exits(2);
    assert!(run.stderr.contains("is no kvrail bench"), "{}", run.stderr);

    let port = free_port();
    let target = start(&format!("bench --role target --listen 127.0.0.1:{port} --timeout 20s"));
    let mut socket = program::connect(port);
    socket.write_all(b"KVRB\x63\0\0\0").unwrap();
    let ended = target.end();
    ended.exits(2);
    assert!(ended.stderr.contains("speaks version 99"), "{}", ended.stderr);
}

#[test]
fn two_sides_of_the_same_role_refuse_each_other() {
    let port = free_port();
    let target = start(&format!("bench --role target --listen 127.0.0.1:{port} --timeout 20s"));
    // A target that connects does not exist; garbage after a right preamble does.
    let mut socket = program::connect(port);
    socket.write_all(b"KVRB\x05\0\0\0\xff\xff\xff\xff\x01").unwrap();
    let ended = target.end();
    ended.exits(2);
    assert!(ended.stderr.contains("beyond its limit"), "{}", ended.stderr);
}

/// A run that goes on until it is stopped, and has printed a case already.
fn endless(port: u16) -> Running {
    let initiator = start(&format!(
        "bench --connect 127.0.0.1:{port} --op write --block 4KiB,64KiB..128KiB --duration 30s --timeout 10s \
         --format json --verify every"
    ));
    std::thread::sleep(Duration::from_millis(900));
    initiator
}

#[test]
fn a_killed_target_ends_the_run_with_what_was_measured() {
    let port = free_port();
    let mut target = start(&format!("bench --role target --listen 127.0.0.1:{port}"));
    let initiator = endless(port);
    target.kill();
    let begin = Instant::now();
    let ended = initiator.end();
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?} to notice", begin.elapsed());
    ended.exits(2);
    assert!(ended.stderr.contains("target") && ended.stderr.contains("killed"), "{}", ended.stderr);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["complete"], false);
    assert_eq!(report["failure"]["kind"], "peer");
    assert!(report["results"][0]["iterations"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_killed_initiator_ends_the_target() {
    let port = free_port();
    let target = start(&format!("bench --role target --listen 127.0.0.1:{port}"));
    let mut initiator = endless(port);
    initiator.kill();
    let ended = target.end();
    ended.exits(2);
    assert!(ended.stderr.contains("initiator"), "{}", ended.stderr);
}

#[test]
fn an_interrupt_ends_both_sides_and_prints_what_was_measured() {
    for at_target in [false, true] {
        let port = free_port();
        let target = start(&format!("bench --role target --listen 127.0.0.1:{port}"));
        let initiator = endless(port);
        if at_target {
            target.interrupt()
        } else {
            initiator.interrupt()
        }
        let (target, initiator) = (target.end(), initiator.end());
        target.exits(2);
        initiator.exits(2);
        assert!(initiator.stderr.contains("interrupted"), "{}", initiator.stderr);
        assert!(target.stderr.contains("interrupted"), "{}", target.stderr);
        let report: serde_json::Value = serde_json::from_str(&initiator.stdout).unwrap();
        assert!(report["results"][0]["iterations"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["failure"]["kind"], "interrupted");
    }
}

#[test]
fn an_interrupt_of_a_run_on_one_host_leaves_no_process_behind() {
    let run = start("bench --op write --block 4KiB --duration 30s --seed 1");
    std::thread::sleep(Duration::from_millis(700));
    let child = run.children();
    assert_eq!(child.len(), 1, "the target is a child");
    run.interrupt();
    let ended = run.end();
    ended.exits(2);
    assert!(ended.stdout.contains("write"), "{}", ended.stdout);
    assert!(!std::path::Path::new(&format!("/proc/{}/status", child[0])).exists());
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let run = kvrail(&format!("bench --role target --listen {}", taken.local_addr().unwrap()));
    run.exits(2);
    assert!(run.stderr.contains("cannot listen on 127.0.0.1:"), "{}", run.stderr);
    assert!(run.stderr.contains("in use"), "{}", run.stderr);
}

#[test]
fn an_output_that_cannot_be_written_is_found_before_the_run() {
    let begin = Instant::now();
    let run = kvrail("bench --duration 20s --output /proc/none/run.json --format json");
    run.exits(2);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(run.stderr.contains("cannot write /proc/none/run.json"), "{}", run.stderr);
}

#[test]
fn sizes_that_do_not_fit_memory_are_refused_before_they_are_touched() {
    let run = kvrail("bench --block 1GiB --batch 2048 --op write");
    run.exits(2);
    assert!(run.stderr.contains("TiB of memory"), "{}", run.stderr);
    assert!(run.stderr.contains("available on this host"), "{}", run.stderr);
}

#[test]
fn bad_flags_are_usage_errors_that_name_the_flag() {
    for (flags, named) in [
        ("--transport rdma", "rdma"),
        ("--block 64KiB..4KiB", "backwards"),
        ("--block 4KB", "ambiguous"),
        ("--batch 0", "zero"),
        ("--iterations 0", "--iterations"),
        ("--iterations 5 --duration 1s", "cannot be used with"),
        ("--pool 1MiB --block 1MiB --batch 4", "does not hold"),
        ("--role initiator", "--connect"),
        ("--role target --op read", "--op"),
        ("--role target --connect a:1", "--connect"),
        ("--preset kv --batch 3", "--batch"),
        ("--nonsense", "--nonsense"),
    ] {
        let run = kvrail(&format!("bench {flags}"));
        run.exits(2);
        assert!(run.stderr.contains(named), "{flags}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{flags}");
    }
}

#[test]
fn the_control_path_is_measured_in_its_documented_fields() {
    let run = kvrail("bench --kind control --format json");
    run.exits(0);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    for field in ["create_agent_ms", "register_10000_ms", "metadata_bytes", "import_ms"] {
        assert!(report["control"][field].as_f64().unwrap() > 0.0, "{field}: {report}");
    }
}

#[test]
fn version_help_and_completions_answer() {
    let run = kvrail("--version");
    run.exits(0);
    assert_eq!(run.stdout.trim(), format!("kvrail {}", env!("CARGO_PKG_VERSION")));
    let run = kvrail("help bench");
    run.exits(0);
    for said in ["Exit codes", "--rendezvous", "Examples", "KiB"] {
        assert!(run.stdout.contains(said), "{said}");
    }
    for hidden in ["inject-corruption", "spawned"] {
        assert!(!run.stdout.contains(hidden), "{hidden}");
    }
    let run = kvrail("completions bash");
    run.exits(0);
    assert!(run.stdout.contains("--preset"));
}

/// A program that its user may run but not read is not "dumpable": the kernel lets nobody look into it.
#[test]
fn a_forbidden_process_vm_is_an_error_that_says_so() {
    let Some(run) = program::unreadable("bench --transport shm --memory private --op write --block 4KiB")
    else {
        eprintln!("skipped: this user cannot become another");
        return;
    };
    run.exits(2);
    assert!(run.stderr.contains("process_vm"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: "), "{}", run.stderr);
}

#[test]
fn the_link_is_closed_to_silent_strangers() {
    let port = free_port();
    let target = start(&format!("bench --role target --listen 127.0.0.1:{port} --timeout 20s"));
    let silent: TcpStream = program::connect(port);
    let ended = target.end();
    drop(silent);
    ended.exits(2);
    assert!(ended.stderr.contains("does not answer"), "{}", ended.stderr);
}
