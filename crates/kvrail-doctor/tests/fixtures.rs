//! Bundles that were written from the documents: a healthy P5 node, and the same node with one thing broken.
//!
//! `fixtures/p5-healthy/*.json` are the parts of one complete bundle, a part for each area. A file of `fixtures/broken/` is a JSON merge
//! patch (RFC 7396) onto it, with the rules that must be found: those and no others, so that every other check has its healthy twin
//! in every file.

mod patients;

use std::collections::BTreeSet;

use kvrail_doctor::host::Bundle;
use kvrail_doctor::{Host, Outcome, Severity, catalogue, examine};
use patients::{Broken, broken, healthy};
use serde_json::Value;

/// Ids of what is found in a bundle, notes left out, and what could not be told.
fn found(bundle: &Value) -> (BTreeSet<String>, Vec<String>) {
    let host = Host::replay(Bundle::parse(&bundle.to_string()).unwrap());
    let examination = examine(&host, &catalogue::checks());
    let found = examination.findings().filter(|finding| finding.severity > Severity::Note);
    let unknown = examination.looked.iter().filter_map(|looked| match &looked.outcome {
        Outcome::Unknown(why) => Some(format!("{}: {why}", looked.rule.id)),
        _ => None,
    });
    (found.map(|finding| finding.rule.id.to_owned()).collect(), unknown.collect())
}

#[test]
fn a_healthy_node_is_silent() {
    let (found, unknown) = found(&healthy());
    assert!(found.is_empty() && unknown.is_empty(), "found {found:?}, could not tell {unknown:?}");
}

/// A check for which the healthy node has nothing to look at would be silent about every node.
#[test]
fn what_is_installed_on_the_healthy_node_is_looked_at() {
    let host = Host::replay(Bundle::parse(&healthy().to_string()).unwrap());
    let ids = [
        "nixl-missing",
        "cuda-major-mismatch",
        "plugin-libfabric-too-old",
        "nixl-core-libraries-hidden",
        "plugin-library-missing",
        "plugin-not-loadable",
        "bundled-efa-libraries",
        "duplicate-libraries",
        "rdma-provider-abi",
        "efa-driver-libfabric-mismatch",
        "nixl-not-usable",
        "nixl-crash-at-exit",
        "nixl-default-backend",
        "library-not-loadable",
    ];
    let checks = catalogue::select(&ids.map(String::from)).unwrap();
    for looked in examine(&host, &checks).looked {
        assert!(matches!(looked.outcome, Outcome::Healthy(_)), "{}: {:?}", looked.rule.id, looked.outcome);
    }
}

#[test]
fn each_broken_node_is_found_for_what_is_broken_and_for_nothing_else() {
    let mut wrong = Vec::new();
    for Broken { name, fixture, bundle } in broken() {
        let expected: BTreeSet<String> = serde_json::from_value(fixture["finds"].clone()).unwrap();
        assert!(
            !expected.is_empty() && fixture["story"].is_string(),
            "{name} must say what it finds, and its story"
        );
        let (found, unknown) = found(&bundle);
        let may_not_tell = fixture["unknown"].as_array().map_or(0, Vec::len);
        if found != expected || unknown.len() != may_not_tell {
            wrong.push(format!("{name}: found {found:?}, not {expected:?}; could not tell {unknown:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
