//! `kvrail doctor probe` between two emulated nodes over libfabric's real efa provider: each fault is found and named, and the healthy
//! twin is silent.

mod fabric;
mod nodes;
mod program;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use fabric::{Ended, Place};
use nodes::Bench;
use serde_json::Value;

const KVRAIL: &str = env!("CARGO_BIN_EXE_kvrail");

/// Node 0 listens, node 1 probes; each with what belongs to its side. `before` stands before a command: variables.
#[derive(Clone, Copy, Default)]
struct Pair<'a> {
    options: &'a [&'a str],
    listener: &'a str,
    prober: &'a str,
    listener_before: &'a str,
}

/// What the prober said.
struct Probed {
    ended: Ended,
    report: Value,
    code: i64,
}

impl Pair<'_> {
    fn run(&self, bench: &Bench) -> Probed {
        let place = Place::new();
        let port = program::free_port();
        let libfabric = bench.libfabric.directory.to_str().expect("the build's directory has a plain name");
        let Self { options, listener, prober, listener_before } = self;
        let listen =
            format!("exec env {listener_before} {KVRAIL} doctor probe --listen 127.0.0.1:{port} {listener}");
        let probe = format!(
            "{KVRAIL} doctor probe 127.0.0.1:{port} --patience 1500ms --format json {prober}; echo \"{{\\\"code\\\": $?}}\""
        );
        let mut words = vec!["run", "--nodes", "2", "--libfabric", libfabric, "--deadline", "25s", "--raw"];
        words.extend(*options);
        words.extend(["--", "sh", "-c", &listen, "::", "sh", "-c", &probe]);
        let ended = place.softefa(&words);
        place.is_empty();
        let mut documents = serde_json::Deserializer::from_str(&ended.stdout).into_iter::<Value>();
        let said = |ended: &Ended| format!("stdout:\n{}\nstderr:\n{}", ended.stdout, ended.stderr);
        let mut next = || documents.next().and_then(Result::ok).unwrap_or_else(|| panic!("{}", said(&ended)));
        let first = next();
        let (report, code) = match first.get("code") {
            Some(code) => (Value::Null, code.as_i64()),
            None => (first, next()["code"].as_i64()),
        };
        Probed { report, code: code.expect("an exit code"), ended }
    }
}

impl Probed {
    /// The rules that found something.
    fn ids(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
        findings.iter().filter_map(|finding| finding["rule"].as_str()).collect()
    }

    /// Asserts what was found, in order, and the exit code that goes with it.
    #[track_caller]
    fn finds(&self, ids: &[&str]) -> &Value {
        assert_eq!(self.ids(), ids, "{:#}\n{}", self.report, self.ended.stderr);
        assert_eq!(self.code, i64::from(!ids.is_empty()), "{}", self.ended.stderr);
        &self.report["findings"][0]
    }

    fn rails(&self) -> &[Value] {
        self.report["data"]["rails"].as_array().map(Vec::as_slice).unwrap_or_default()
    }
}

fn text<'a>(finding: &'a Value, member: &str) -> &'a str {
    finding[member].as_str().unwrap_or_default()
}

#[test]
fn healthy_nodes_are_silent_and_every_rail_is_measured_and_counted_on_both_sides() {
    let bench = bench!("healthy_nodes_are_silent_and_every_rail_is_measured_and_counted_on_both_sides");
    let begin = Instant::now();
    let probed = Pair { options: &["--nics", "4"], ..Pair::default() }.run(&bench);
    probed.finds(&[]);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let data = &probed.report["data"];
    assert_eq!((&data["schema"], &data["carrier"]), (&"kvrail.probe.v1".into(), &"efa-direct".into()));
    assert_eq!(probed.rails().len(), 4);
    for rail in probed.rails() {
        for direction in ["write", "read"] {
            assert!(rail[direction]["latency_us"].as_f64().is_some_and(|us| us > 0.0), "{rail}");
            assert!(rail[direction]["bytes_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{rail}");
        }
        for side in ["counted_here", "counted_there"] {
            assert!(rail[side]["tx"].as_u64() > Some(0) && rail[side]["rx"].as_u64() > Some(0), "{rail}");
        }
        assert_eq!(rail["rate_bps"], 100_000_000_000u64);
    }
}

/// Proves: probe-nothing-returns
#[test]
fn a_security_group_without_egress_is_named_with_the_side_that_has_it() {
    let bench = bench!("a_security_group_without_egress_is_named_with_the_side_that_has_it");
    for (node, says) in [("0", "nothing that node0 sends"), ("1", "nothing that node1 sends")] {
        let fault = format!("no-egress --node {node}");
        let options = ["--nics", "2", "--fault", &fault];
        let probed = Pair { options: &options, ..Pair::default() }.run(&bench);
        let finding = probed.finds(&["probe-nothing-returns"]);
        assert!(text(finding, "title").starts_with(says), "{finding:#}");
        assert!(text(finding, "cause").contains("0.0.0.0/0 does not cover EFA"), "{finding:#}");
        let commands = finding["fix"].to_string();
        assert!(commands.contains("authorize-security-group-egress"), "{commands}");
    }
}

/// Proves: probe-nothing-returns
#[test]
fn a_range_that_no_rule_covers_is_told_for_both_directions() {
    let bench = bench!("a_range_that_no_rule_covers_is_told_for_both_directions");
    let options = ["--nics", "2", "--fault", "secondary-cidr --node 0"];
    let probed = Pair { options: &options, ..Pair::default() }.run(&bench);
    let finding = probed.finds(&["probe-nothing-returns"]);
    assert!(text(finding, "title").contains("send each other"), "{finding:#}");
    assert!(finding["fix"].to_string().contains("100.64.0.0/16"), "{finding:#}");
}

/// Proves: probe-dead-rail
#[test]
fn one_dead_rail_of_four_is_named_and_the_others_are_measured() {
    let bench = bench!("one_dead_rail_of_four_is_named_and_the_others_are_measured");
    for fault in ["rail-down --node 1 --nic 2", "black-hole --silent --node 0 --nic 2"] {
        let options = ["--nics", "4", "--fault", fault];
        let probed = Pair { options: &options, ..Pair::default() }.run(&bench);
        let finding = probed.finds(&["probe-dead-rail"]);
        let name = text(&probed.rails()[2], "here").to_owned();
        assert_eq!(text(finding, "title"), format!("1 of 4 rails is dead: {name}"));
        let measured = probed.rails().iter().filter(|rail| rail["write"]["bytes_per_s"].as_f64() > Some(0.0));
        assert_eq!(measured.count(), 3, "{:#}", probed.report);
    }
}

/// Proves: probe-wrong-device
#[test]
fn devices_that_send_nothing_are_told_from_packets_that_are_lost() {
    let bench = bench!("devices_that_send_nothing_are_told_from_packets_that_are_lost");
    for node in ["0", "1"] {
        let fault = format!("rail-down --node {node}");
        let options = ["--nics", "2", "--fault", &fault];
        let probed = Pair { options: &options, ..Pair::default() }.run(&bench);
        let finding = probed.finds(&["probe-wrong-device"]);
        assert!(text(finding, "title").contains(&format!("no device of node{node} sends")), "{finding:#}");
    }
}

/// Proves: probe-no-answer
#[test]
fn packets_that_go_both_ways_and_operations_that_fail_are_no_security_group() {
    let bench = bench!("packets_that_go_both_ways_and_operations_that_fail_are_no_security_group");
    let options = ["--nics", "2", "--fault", "bad-key --node 1"];
    let probed = Pair { options: &options, ..Pair::default() }.run(&bench);
    let finding = probed.finds(&["probe-no-answer"]);
    assert!(text(finding, "cause").contains("no security group"), "{finding:#}");
    assert_eq!(finding["evidence"][0]["source"], "what the engine says");
}

/// Proves: probe-wrong-bytes
#[test]
fn planted_damage_is_found_and_its_kind_and_rail_are_named() {
    let bench = bench!("planted_damage_is_found_and_its_kind_and_rail_are_named");
    for (kind, like) in [
        ("zeros", "zeros"),
        ("stale", "never written"),
        ("swapped", "wrong offset"),
        ("flipped", "1 bit flipped"),
    ] {
        let plant = format!("--plant 1:{kind}");
        let probed = Pair { options: &["--nics", "2"], listener: &plant, ..Pair::default() }.run(&bench);
        let finding = probed.finds(&["probe-wrong-bytes"]);
        assert_eq!(finding["confidence"], "certain");
        let name = text(&probed.rails()[1], "here").to_owned();
        let title = text(finding, "title");
        assert!(title.starts_with(&name) && title.contains(like), "{kind}: {title}");
    }
}

#[test]
fn acknowledgements_that_precede_their_bytes_are_waited_out() {
    let bench = bench!("acknowledgements_that_precede_their_bytes_are_waited_out");
    let options = ["--nics", "2", "--commit-delay", "2ms"];
    Pair { options: &options, ..Pair::default() }.run(&bench).finds(&[]);
}

/// Proves: probe-not-the-fabric
#[test]
fn a_side_without_devices_is_named_when_the_bytes_go_over_tcp() {
    let bench = bench!("a_side_without_devices_is_named_when_the_bytes_go_over_tcp");
    let bare = Pair { options: &["--nics", "2"], listener_before: "SYSFS_PATH=/nowhere", ..Pair::default() };
    let probed = bare.run(&bench);
    let finding = probed.finds(&["probe-not-the-fabric"]);
    assert!(text(finding, "title").contains("over tcp: node0 has no RDMA device"), "{finding:#}");
    assert_eq!(probed.report["data"]["carrier"], "tcp");
    assert!(probed.rails()[0]["write"]["bytes_per_s"].as_f64() > Some(0.0), "{:#}", probed.report);
    // Who asks for tcp is not told that it is tcp.
    Pair { prober: "--over tcp", ..bare }.run(&bench).finds(&[]);
}

/// Proves: probe-debug-logging
#[test]
fn a_log_level_of_the_other_side_is_found() {
    let bench = bench!("a_log_level_of_the_other_side_is_found");
    let before = "NIXL_LOG_LEVEL=DEBUG";
    let probed = Pair { options: &["--nics", "2"], listener_before: before, ..Pair::default() }.run(&bench);
    let finding = probed.finds(&["probe-debug-logging"]);
    assert!(text(finding, "title").contains("NIXL_LOG_LEVEL=DEBUG on node0"), "{finding:#}");
}

/// Proves: probe-emulated-writes
#[test]
fn a_provider_that_emulates_rdma_is_found_on_its_side() {
    let bench = bench!("a_provider_that_emulates_rdma_is_found_on_its_side");
    let pair = Pair {
        options: &["--nics", "2"],
        prober: "--over efa",
        listener_before: "FI_EFA_USE_DEVICE_RDMA=0",
        ..Pair::default()
    };
    let probed = pair.run(&bench);
    let finding = probed.finds(&["probe-emulated-writes"]);
    assert!(text(finding, "title").contains("efa on node0 emulates"), "{finding:#}");
    assert!(finding["fix"].to_string().contains("unset FI_EFA_USE_DEVICE_RDMA"), "{finding:#}");
}

/// Proves: probe-slow-rail
#[test]
fn a_rail_at_a_fraction_of_its_siblings_is_named() {
    let bench = bench!("a_rail_at_a_fraction_of_its_siblings_is_named");
    let options = [
        "--nics",
        "4",
        "--fault",
        "rate 200Mbps --node 0 --nic 3",
        "--fault",
        "rate 200Mbps --node 1 --nic 3",
    ];
    let probed = Pair { options: &options, ..Pair::default() }.run(&bench);
    let finding = probed.finds(&["probe-slow-rail"]);
    let name = text(&probed.rails()[3], "here").to_owned();
    assert!(text(finding, "title").starts_with(&format!("rail {name} carries")), "{finding:#}");
}

#[test]
fn over_efa_the_same_rails_are_probed() {
    let bench = bench!("over_efa_the_same_rails_are_probed");
    let probed =
        Pair { options: &["--nics", "2"], prober: "--over efa --rails 1", ..Pair::default() }.run(&bench);
    probed.finds(&[]);
    assert_eq!((probed.report["data"]["carrier"].as_str(), probed.rails().len()), (Some("efa"), 1));
}

/// No emulation: what has no RDMA device is probed over TCP, and said to be.
/// Proves: probe-same-node
#[test]
fn two_processes_of_one_host_are_told_that_they_are() {
    let port = program::free_port();
    let listener = program::start(&format!("doctor probe --listen 127.0.0.1:{port}"));
    let run = program::kvrail(&format!("doctor probe 127.0.0.1:{port} --over tcp"));
    run.exits(1);
    assert!(run.stdout.contains("probe-same-node"), "{}", run.stdout);
    assert!(run.stdout.contains("over tcp, 1 rail"), "{}", run.stdout);
    listener.end().exits(0);
}

#[test]
fn a_listener_that_is_not_there_and_one_that_is_something_else_are_exit_code_2() {
    let port = program::free_port();
    let run = program::kvrail(&format!("doctor probe 127.0.0.1:{port} --timeout 300ms"));
    run.exits(2);
    assert!(run.stderr.contains("kvrail doctor probe --listen"), "{}", run.stderr);
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut socket, _) = server.accept().unwrap();
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = socket.read(&mut [0; 64]);
    });
    let run = program::kvrail(&format!("doctor probe 127.0.0.1:{port}"));
    run.exits(2);
    answering.join().unwrap();
}

#[test]
fn bytes_that_are_no_protocol_end_a_listener_with_an_error_and_a_kept_one_goes_on() {
    let port = program::free_port();
    let kept = program::start(&format!("doctor probe --listen 127.0.0.1:{port} --keep"));
    program::connect(port).write_all(&[0xff; 64]).unwrap();
    let run = program::kvrail(&format!("doctor probe 127.0.0.1:{port} --over tcp --format json"));
    run.exits(1);
    kept.interrupt();
    let ended = kept.end();
    ended.exits(0);
    assert!(ended.stderr.contains("waiting for the next one"), "{}", ended.stderr);
}

#[test]
fn a_listener_that_is_killed_in_the_middle_ends_the_probe() {
    let bench = bench!("a_listener_that_is_killed_in_the_middle_ends_the_probe");
    // The greetings are waited for when it is killed.
    let pair = Pair {
        options: &["--nics", "2", "--fault", "no-egress --node 1"],
        listener: "& sleep 1; kill -9 $!",
        ..Pair::default()
    };
    let begin = Instant::now();
    let probed = pair.run(&bench);
    assert_eq!((probed.code, &probed.report), (2, &Value::Null), "{}", probed.ended.stderr);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}
