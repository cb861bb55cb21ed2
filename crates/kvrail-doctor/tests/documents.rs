//! What is documented is what is written: the JSON document against its schema, the table of rules against the catalogue.

mod proof;

use std::path::PathBuf;

use kvrail_doctor::host::{Live, Scope};
use kvrail_doctor::render::{self, Report};
use kvrail_doctor::rule::{Kind, Reference, Rule, Severity};
use kvrail_doctor::{Finding, Host, Location, catalogue, examine};

static CAUSE: Rule = Rule {
    id: "a-cause",
    title: "t",
    severity: Severity::Error,
    kind: Kind::Log,
    cause: "c",
    remedy: "r",
    story: "s",
    references: &[Reference { title: "t", url: "https://example.org" }],
    explained_by: &[],
};
static CONSEQUENCE: Rule = Rule { id: "a-consequence", explained_by: &["a-cause"], ..CAUSE };

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

#[test]
fn every_document_keeps_to_its_schema() {
    let mut schemas = boon::Schemas::new();
    let schema =
        boon::Compiler::new().compile(docs("doctor.schema.json").to_str().unwrap(), &mut schemas).unwrap();
    let host = Host::live(Live::new().with_variables([("FI_LOG_LEVEL", "debug")]), Scope::default());
    let of_host = Report::of_host("this host", &examine(&host, &catalogue::checks()));
    let at = Location { file: "a.log".into(), line: 7, column: Some(1) };
    let findings = [
        Finding::new(&CONSEQUENCE, "b").at(at),
        Finding::new(&CAUSE, "a").evidence("x", "y").advice("z").fix("f", "g"),
    ];
    let of_log = Report::of_findings(Kind::Log, "1 file", &[&CAUSE], findings)
        .unread("b.log", "permission denied")
        .table("| |")
        .data(serde_json::json!({ "rails": [] }));
    for (report, findings) in [(of_host, None), (of_log, Some(2))] {
        let document: serde_json::Value = serde_json::from_str(&render::json(&report)).unwrap();
        schemas.validate(&document, schema).unwrap_or_else(|error| panic!("{error:#}"));
        assert!(
            findings.is_none_or(|count| document["findings"].as_array().unwrap().len() == count),
            "{document}"
        );
    }
    // The schema can refuse.
    assert!(schemas.validate(&serde_json::json!({ "schema": "kvrail.doctor.v1" }), schema).is_err());
}

#[test]
fn a_consequence_and_its_cause_point_at_each_other() {
    let findings = [Finding::new(&CONSEQUENCE, "b"), Finding::new(&CAUSE, "a")];
    let report = Report::of_findings(Kind::Log, "1 file", &[], findings);
    let document: serde_json::Value = serde_json::from_str(&render::json(&report)).unwrap();
    assert_eq!(document["findings"][0]["rule"], "a-cause");
    assert_eq!(
        (&document["findings"][0]["explains"][0], &document["findings"][1]["explained_by"]),
        (&1.into(), &0.into())
    );
    assert_eq!(document["rules"]["a-cause"]["references"][0]["url"], "https://example.org");
}

#[test]
fn the_table_of_rules_is_that_of_the_catalogue() {
    let written = std::fs::read_to_string(docs("doctor-rules.md")).unwrap_or_default();
    assert!(
        written == render::list_markdown() + &proof::markdown(),
        "docs/doctor-rules.md is stale: cargo run -p kvrail-doctor --example doctor_rules > docs/doctor-rules.md"
    );
}

#[test]
fn every_rule_is_proved() {
    let proofs = proof::all();
    let rules = catalogue::rules();
    let unproved: Vec<_> =
        rules.iter().filter(|rule| proof::is_unproved(rule, proofs.get(rule.id))).collect();
    assert!(unproved.is_empty(), "{:?}", unproved.iter().map(|rule| rule.id).collect::<Vec<_>>());
    let strangers: Vec<_> =
        proofs.keys().filter(|id| rules.iter().all(|rule| rule.id != id.as_str())).collect();
    assert!(strangers.is_empty(), "no rules: {strangers:?}");
}

#[test]
fn a_test_that_says_what_it_proves_asks_for_it() {
    let claims = proof::claims();
    assert!(claims.len() >= 30, "{}", claims.len());
    for claim in claims {
        assert!(!claim.test.is_empty() && claim.body.contains("#[test]"), "{}: {:?}", claim.file, claim.ids);
        for id in &claim.ids {
            assert!(claim.body.contains(id.as_str()), "{}: {} does not name {id}", claim.file, claim.test);
        }
    }
}
