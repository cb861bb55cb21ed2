//! Logs as they are met: each known failure is found in one that has it, and in nothing else; what arrives in pieces is read as
//! what arrives at once; nothing that is read ends the program.
//!
//! A file of `fixtures/log/broken/` begins with a line `finds: …`, which is not part of the log; `fixtures/log/healthy/` has logs with the
//! same words and no failure.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use kvrail_doctor::log::{Logs, NotRead, RULES};
use kvrail_doctor::render::Report;
use kvrail_doctor::{Confidence, Finding};
use proptest::prelude::*;

fn fixtures(of: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/log").join(of);
    let mut files: Vec<_> = directory
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn read(log: impl Read) -> Report {
    let mut logs = Logs::new();
    logs.read("a.log", log).unwrap();
    logs.conclude()
}

fn ids(report: &Report) -> BTreeSet<String> {
    report.told().iter().map(|told| told.finding.rule.id.to_owned()).collect()
}

/// The log of a broken fixture without its first line, and what that line says is found.
fn broken() -> Vec<(String, BTreeSet<String>, Vec<u8>)> {
    let parts = |(name, bytes): (String, Vec<u8>)| {
        let end = bytes.iter().position(|b| *b == b'\n').unwrap();
        let first = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let finds =
            first.strip_prefix("finds: ").unwrap_or_else(|| panic!("{name} does not say what it finds"));
        (name, finds.split(' ').map(str::to_owned).collect(), bytes[end + 1..].to_vec())
    };
    fixtures("broken").into_iter().map(parts).collect()
}

#[test]
fn each_broken_log_is_found_for_what_is_broken_and_for_nothing_else() {
    let mut wrong = Vec::new();
    for (name, expected, log) in broken() {
        let found = ids(&read(&*log));
        if found != expected {
            wrong.push(format!("{name}: found {found:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn healthy_logs_with_the_same_words_are_silent() {
    let mut wrong = Vec::new();
    for (name, log) in fixtures("healthy") {
        let found = ids(&read(&*log));
        if !found.is_empty() {
            wrong.push(format!("{name}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_has_a_broken_log_and_a_healthy_twin() {
    let (broken, healthy) = (broken(), fixtures("healthy"));
    for rule in RULES {
        assert!(broken.iter().any(|(_, finds, _)| finds.contains(rule.id)), "{} has no broken log", rule.id);
        assert!(healthy.iter().any(|(name, _)| name == rule.id), "{} has no healthy twin", rule.id);
    }
}

fn the(report: &Report, id: &str) -> Finding {
    let told = report.told().iter().find(|told| told.finding.rule.id == id);
    told.unwrap_or_else(|| panic!("no {id}")).finding.clone()
}

fn evidence(finding: &Finding, source: &str) -> String {
    finding.evidence.iter().find(|e| e.source == source).map(|e| e.seen.clone()).unwrap_or_default()
}

#[test]
fn a_failure_is_told_once_with_its_first_line_how_often_when_and_which_rails() {
    let mut log = String::from("2026-02-06 09:00:00 all is well\n");
    for (n, rail) in [(10, 28), (11, 28), (12, 3)] {
        log += &format!(
            "2026-02-06 09:13:{n} libfabric_rail.cpp:712] CQ read failed on rail {rail} with error: Invalid argument password=hunter2\n"
        );
    }
    let finding = the(&read(log.as_bytes()), "log-rail-failed");
    let place = finding.location.clone().unwrap();
    assert_eq!((place.file.as_str(), place.line, finding.count), ("a.log", 2, 3));
    assert_eq!(finding.title, "operations failed on rail 3 and 28");
    assert_eq!(evidence(&finding, "when"), "3 lines, from 2026-02-06 09:13:10 to 2026-02-06 09:13:12");
    assert_eq!(evidence(&finding, "rail"), "28 (2 times), 3");
    let sample = evidence(&finding, "a.log:2");
    assert!(sample.contains("rail 28") && !sample.contains("hunter2"), "{sample}");
    assert!(
        finding
            .fix
            .iter()
            .any(|step| step.command.as_deref() == Some("export FI_LOG_LEVEL=warn FI_LOG_PROV=efa"))
    );
}

#[test]
fn numbers_are_explained_and_consequences_are_told_after_their_cause() {
    let log = "libfabric:1:1760404169::efa:cq:x():1<warn> err: 22, message: Remote key (RKEY) not registered or does not match remote IOVA (7)\n\
libfabric_rail.cpp:712] CQ read failed on rail 28 with error: Invalid argument\n\
Oct  7 12:00:01 n kernel: NVRM: Xid (PCI:0000:53:00): 79, GPU has fallen off the bus.\n";
    let report = read(log.as_bytes());
    let xid = the(&report, "log-gpu-xid");
    assert!(evidence(&xid, "xid 79").contains("only the host's restart"), "{xid:?}");
    assert_eq!(xid.confidence, Confidence::Certain);
    let failed = report.told().iter().find(|told| told.finding.rule.id == "log-rail-failed").unwrap();
    let cause = &report.told()[failed.explained_by.unwrap()];
    assert_eq!(cause.finding.rule.id, "log-efa-remote-key");
}

#[test]
fn several_logs_make_one_finding_and_explain_each_other() {
    let mut logs = Logs::new();
    let asked = "{'backends': ['LIBFABRIC']}\nNIXL INFO Backend UCX was instantiated\n";
    logs.read("prefill.log", asked.as_bytes()).unwrap();
    logs.read("decode.log", ["NIXL INFO Backend LIBFABRIC was not built\n", asked].concat().as_bytes())
        .unwrap();
    let finding = the(&logs.conclude(), "log-backend-not-chosen");
    assert_eq!((finding.count, finding.location.unwrap().file.as_str()), (2, "prefill.log"));
    assert!(
        finding.evidence.iter().any(|evidence| evidence.source == "decode.log:2"),
        "{:?}",
        finding.evidence
    );
}

#[test]
fn a_line_longer_than_anything_held_is_read_and_found_across_every_border() {
    let needle = "Remote key (RKEY) not registered or does not match remote IOVA";
    // Around the borders of the buffer of 1 MiB, and of the excerpts.
    for before in [0, 1, 2047, 2048, 1_046_500, 1_048_500, 1_048_576, 1_050_000, 2_097_100] {
        let line = format!("{}{needle}{}", "x ".repeat(before / 2), " y".repeat(700_000));
        let finding = the(&read(line.as_bytes()), "log-efa-remote-key");
        assert_eq!((finding.count, finding.location.unwrap().line), (1, 1), "{before}");
        assert!(finding.evidence[0].seen.len() < 500, "{before}: evidence is cut to a line");
    }
}

#[test]
fn counts_stay_right_where_every_line_is_one() {
    let log = "Releasing expired KV blocks for request a which were retrieved by 0 decode worker(s)\n"
        .repeat(300_000);
    let finding = the(&read(log.as_bytes()), "log-kv-expired");
    assert!(finding.count.abs_diff(300_000) <= 16, "{}", finding.count);
    assert!(evidence(&finding, "when").starts_with("about "), "{:?}", finding.evidence);
}

#[test]
fn one_line_that_is_meant_is_found_behind_a_hundred_thousand_that_are_like_it() {
    // Not a multiple of anything that is sampled.
    let mut log = "a key (RKEY) not registered is what this text speaks of\n".repeat(100_003);
    assert_eq!(ids(&read(log.as_bytes())), BTreeSet::new());
    log += "libfabric:1:2::efa:cq:efa_cq_handle_error():103<warn> err: 22, message: Remote key (RKEY) not registered or does not match remote IOVA\n";
    assert!(ids(&read(log.as_bytes())).contains("log-efa-remote-key"));
}

#[test]
fn what_is_no_log_is_refused_and_what_breaks_off_counts_as_far_as_it_was_read() {
    let mut logs = Logs::new();
    assert!(matches!(logs.read("core", &b"\x7fELF\x02\x01\x01"[..]), Err(NotRead::Binary)));
    struct Breaks(&'static [u8]);
    impl Read for Breaks {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::Error::other("the disk is gone")) } else { self.0.read(into) }
        }
    }
    let broke = logs.read("b.log", Breaks(b"bind: zmq: Address already in use\n"));
    assert!(matches!(broke, Err(NotRead::Io(_))), "{broke:?}");
    assert_eq!(ids(&logs.conclude()), BTreeSet::from(["log-address-in-use".to_owned()]));
}

/// Gives bytes in pieces of given sizes, again and again.
struct Trickle<'b> {
    bytes: &'b [u8],
    sizes: Vec<usize>,
    next: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes[self.next % self.sizes.len()].max(1);
        self.next += 1;
        let n = size.min(into.len()).min(self.bytes.len());
        into[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        Ok(n)
    }
}

/// Pieces of real logs, with anything between them.
fn mixtures() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<Vec<u8>> =
        broken().into_iter().map(|(_, _, log)| log).filter(|log| log.len() < 4000).collect();
    let piece = prop_oneof![
        4 => proptest::sample::select(pieces),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        1 => Just(vec![b'x'; 3000]),
        1 => Just(b"\n".to_vec()),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_end_the_program(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let mut logs = Logs::new();
        let _ = logs.read("a.log", &*bytes);
        let _ = logs.conclude();
    }

    #[test]
    fn what_arrives_in_pieces_is_read_as_what_arrives_at_once(
        bytes in mixtures(),
        sizes in proptest::collection::vec(1usize..5000, 1..6),
    ) {
        let all = |from: &mut dyn Read| {
            let mut logs = Logs::new();
            let extent = logs.read("a.log", from);
            (extent.map_err(|e| e.to_string()), logs.conclude().told().to_vec())
        };
        let whole = all(&mut &*bytes);
        let trickled = all(&mut Trickle { bytes: &bytes, sizes, next: 0 });
        prop_assert_eq!(whole, trickled);
    }
}
