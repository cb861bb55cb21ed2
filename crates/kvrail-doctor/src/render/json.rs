//! For programs: schema `kvrail.doctor.v1`.

use serde_json::{Value, json};

use super::report::Report;
use crate::catalogue;
use crate::examine::Verdict;

/// The schema of the document.
pub const SCHEMA: &str = "kvrail.doctor.v1";

/// A report as a JSON document.
#[must_use]
pub fn json(report: &Report) -> String {
    // Plain data with string keys: it always serialises.
    serde_json::to_string_pretty(&document(report)).unwrap_or_default() + "\n"
}

fn document(report: &Report) -> Value {
    let findings: Vec<Value> = report
        .told
        .iter()
        .enumerate()
        .map(|(index, told)| {
            let finding = &told.finding;
            let mut value = serde_json::to_value(finding).unwrap_or_default();
            let explains: Vec<usize> = (0..report.told.len())
                .filter(|other| report.told[*other].explained_by == Some(index))
                .collect();
            value["explained_by"] = json!(told.explained_by);
            value["explains"] = json!(explains);
            value
        })
        .collect();
    let checks: Vec<Value> = report
        .checks
        .iter()
        .map(|checked| {
            json!({
                "rule": checked.rule.id,
                "area": catalogue::area(checked.rule),
                "outcome": checked.state,
                "said": checked.said,
                "took_us": micros(checked.took),
            })
        })
        .collect();
    let mut rules: Vec<&str> = Vec::new();
    let mut help = serde_json::Map::new();
    for told in &report.told {
        let rule = told.finding.rule;
        if !rules.contains(&rule.id) {
            rules.push(rule.id);
            help.insert(
                rule.id.into(),
                json!({ "title": rule.title, "remedy": rule.remedy, "references": rule.references }),
            );
        }
    }
    let mut document = json!({
        "schema": SCHEMA,
        "kvrail": env!("CARGO_PKG_VERSION"),
        "kind": report.kind,
        "subject": report.subject,
        "verdict": match report.verdict() {
            Verdict::Healthy => "healthy",
            Verdict::Findings => "findings",
            Verdict::CouldNotTell => "could_not_tell",
        },
        "findings": findings,
        "checks": checks,
        "unread": report.unread,
        "rules": help,
        "took_us": micros(report.took),
    });
    if let Some(data) = &report.data {
        document["data"] = data.clone();
    }
    document
}

fn micros(took: std::time::Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
