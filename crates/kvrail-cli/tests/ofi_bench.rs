//! `kvrail bench --transport ofi` over libfabric's real efa provider, on emulated nodes whose NICs break.

mod fabric;
mod nodes;
mod program;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use fabric::{Ended, Place};
use nodes::Bench;
use serde_json::Value;

const KVRAIL: &str = env!("CARGO_BIN_EXE_kvrail");
/// Blocks of a case: some hundred ops per transfer, on each rail a few.
const BLOCKS: &str = "--op write --block 32KiB --batch 256 --layout scattered --format json";
/// A dead peer is known soon, so that tests are quick.
const SOON: &[&str] = &["--unresponsive-after", "300ms"];

/// Two nodes: `target` on node 0, `initiator` on node 1, with what belongs to their sides.
struct Pair<'a> {
    options: &'a [&'a str],
    target: &'a str,
    initiator: &'a str,
    timeout: &'a str,
}

impl Pair<'_> {
    fn run(&self, bench: &Bench) -> Ended {
        let place = Place::new();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let libfabric = bench.libfabric.directory.to_str().expect("the build's directory has a plain name");
        let target =
            format!("exec {KVRAIL} bench --listen {address} --timeout {} {}", self.timeout, self.target);
        let initiator = format!(
            "exec {KVRAIL} bench --connect {address} --transport ofi --timeout {} {}",
            self.timeout, self.initiator
        );
        let mut words = vec!["run", "--nodes", "2", "--libfabric", libfabric, "--deadline", "25s", "--raw"];
        words.extend(self.options);
        words.extend(["--", "sh", "-c", &target, "::", "sh", "-c", &initiator]);
        let ended = place.softefa(&words);
        place.is_empty();
        ended
    }
}

/// The initiator's report: the only document on stdout.
#[track_caller]
fn report(ended: &Ended) -> Value {
    let document = ended.stdout.lines().find(|line| line.starts_with('{'));
    let document = document.unwrap_or_else(|| panic!("no report:\n{}\n{}", ended.stdout, ended.stderr));
    serde_json::from_str(document).unwrap()
}

#[track_caller]
fn verified(ended: &Ended) -> Value {
    ended.exits(0);
    let report = report(ended);
    assert_eq!((&report["complete"], &report["verified"]), (&true.into(), &true.into()), "{}", ended.stderr);
    report
}

fn rails(row: &Value) -> &Vec<Value> {
    row["rails"].as_array().expect("a row has rails")
}

#[test]
fn four_rails_of_efa_direct_carry_verified_blocks_and_the_report_says_on_what() {
    let bench = bench!("four_rails_of_efa_direct_carry_verified_blocks_and_the_report_says_on_what");
    let options = ["--nics", "4"];
    let initiator = format!("{BLOCKS} --provider efa-direct --iterations 4");
    let ended =
        Pair { options: &options, target: "--provider efa-direct", initiator: &initiator, timeout: "20s" }
            .run(&bench);
    let report = verified(&ended);
    for side in ["initiator", "target"] {
        let carriage = &report["transports"][0][side];
        assert_eq!(carriage["libfabric"]["provider"], "efa-direct", "{report}");
        assert_eq!(carriage["evidence"], "counted");
        assert_eq!(carriage["rails"].as_array().unwrap().len(), 4);
        assert!(carriage["libfabric"]["path"].as_str().unwrap().contains("libfabric.so"));
    }
    let row = &report["results"][0];
    assert_eq!(row["transport"], "ofi");
    assert_eq!(row["line_rate_gbps"], 50.0, "4 rails of 100 Gb/s");
    assert!(rails(row).iter().all(|rail| rail["bytes_posted"].as_u64().unwrap() > 0), "{row}");
    assert!(row["rail_events"].as_array().unwrap().is_empty(), "{row}");
}

#[test]
fn a_rail_that_dies_in_mid_transfer_and_returns_costs_no_byte_and_is_used_again() {
    let bench = bench!("a_rail_that_dies_in_mid_transfer_and_returns_costs_no_byte_and_is_used_again");
    let options = [SOON, &["--nics", "4", "--fault", "rail-down --node 0 --nic 2 --in 2s --for 1s"]].concat();
    let initiator = format!("{BLOCKS} --provider efa-direct --duration 2.5s");
    let ended = Pair { options: &options, target: "", initiator: &initiator, timeout: "20s" }.run(&bench);
    let report = verified(&ended);
    let row = &report["results"][0];
    let events = row["rail_events"].as_array().unwrap();
    assert!(events.iter().any(|e| e["up"] == false && e["why"].is_string()), "{}", ended.stderr);
    assert!(events.iter().any(|e| e["up"] == true), "{}", ended.stderr);
    let used: u64 = rails(row).iter().filter_map(|rail| rail["bytes_since_return"].as_u64()).sum();
    assert!(used > 0, "it returned and was used again: {row}");
    for said in [" down (route ", " up again (route ", "failed and were repeated"] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
}

#[test]
fn with_every_rail_dead_the_transfer_ends_within_its_deadline_with_counters_and_a_cause() {
    let bench =
        bench!("with_every_rail_dead_the_transfer_ends_within_its_deadline_with_counters_and_a_cause");
    let options = [SOON, &["--nics", "2", "--fault", "rail-down --node 0 --in 2s"]].concat();
    let initiator = format!("{BLOCKS} --provider efa-direct --duration 60s");
    let begun = Instant::now();
    let ended = Pair { options: &options, target: "", initiator: &initiator, timeout: "3s" }.run(&bench);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}\n{}", begun.elapsed(), ended.stderr);
    assert!(ended.stderr.contains("exited with 2"), "it could not tell: {}", ended.stderr);
    assert!(ended.stderr.contains("the deadline passed"), "{}", ended.stderr);
    assert!(ended.stderr.contains("ofi, 2 rails, in the last "), "{}", ended.stderr);
    assert!(ended.stderr.contains("packets sent, "), "each rail's counters: {}", ended.stderr);
    let report = report(&ended);
    assert_eq!((&report["complete"], &report["failure"]["kind"]), (&false.into(), &"peer".into()));
}

#[test]
fn a_security_group_without_egress_is_named() {
    let bench = bench!("a_security_group_without_egress_is_named");
    let options = ["--nics", "2", "--fault", "no-egress --node 1"];
    let initiator = format!("{BLOCKS} --provider efa-direct --iterations 4");
    let ended = Pair { options: &options, target: "", initiator: &initiator, timeout: "2s" }.run(&bench);
    assert!(ended.stderr.contains("exited with 2"), "{}", ended.stderr);
    assert!(ended.stderr.contains("none has ever come back"), "{}", ended.stderr);
    assert!(ended.stderr.contains("hint: EFA needs an egress rule"), "{}", ended.stderr);
}

#[test]
fn a_killed_peer_ends_the_run() {
    let bench = bench!("a_killed_peer_ends_the_run");
    let options = [SOON, &["--nics", "2"]].concat();
    let initiator = format!("{BLOCKS} --provider efa-direct --duration 60s");
    // The shell becomes the program, so that its own killer has its number.
    let target = "& sleep 2; kill -9 $!";
    let place_target = format!("--provider efa-direct {target}");
    let begun = Instant::now();
    let ended =
        Pair { options: &options, target: &place_target, initiator: &initiator, timeout: "8s" }.run(&bench);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(ended.stderr.contains("its process"), "{}", ended.stderr);
    assert_eq!(report(&ended)["failure"]["kind"], "peer");
}

#[test]
fn sides_with_32_rails_and_one_understand_each_other() {
    let bench = bench!("sides_with_32_rails_and_one_understand_each_other");
    let options = ["--nics", "32"];
    for (target, initiator) in [(1, 32), (32, 1)] {
        let target = format!("--rails {target}");
        let initiator = format!("{BLOCKS} --provider efa-direct --rails {initiator} --iterations 2");
        let ended =
            Pair { options: &options, target: &target, initiator: &initiator, timeout: "20s" }.run(&bench);
        let report = verified(&ended);
        assert_eq!(report["results"][0]["line_rate_gbps"], 12.5, "the side with one rail bounds");
    }
}

/// No emulation: libfabric's tcp provider, and a target that this process starts.
#[test]
fn a_started_target_gets_the_same_library_provider_and_rails() {
    let bench = bench!("a_started_target_gets_the_same_library_provider_and_rails");
    let directory = bench.libfabric.directory.display();
    let run = program::kvrail(&format!(
        "bench --transport ofi --provider tcp --rails 2 --libfabric {directory} --block 64KiB --batch 8 \
         --iterations 5 --format json"
    ));
    run.exits(0);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["verified"], true);
    for side in ["initiator", "target"] {
        let carriage = &report["transports"][0][side];
        assert_eq!(carriage["libfabric"]["provider"], "tcp", "{report}");
        assert_eq!(carriage["rails"].as_array().unwrap().len(), 2);
        assert_eq!(carriage["evidence"], "delivered");
    }
}

#[test]
fn a_library_that_is_none_is_named() {
    let run = program::kvrail("bench --transport ofi --libfabric /nowhere/libfabric.so.1 --block 4KiB");
    run.exits(2);
    assert!(run.stderr.contains("/nowhere/libfabric.so.1"), "{}", run.stderr);
}
