//! SARIF 2.1.0, for what shows findings beside files: code scanning, editors.
//!
//! What is found in a file has its place there; what is found on a host has a logical location, since a host has no lines.
//!
//! <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>

use serde_json::{Value, json};

use super::report::{Report, Told};
use crate::catalogue;
use crate::rule::{Rule, Severity};

/// A report as a SARIF log.
#[must_use]
pub fn sarif(report: &Report) -> String {
    let mut rules: Vec<&'static Rule> = report.rules.clone();
    for told in &report.told {
        if !rules.iter().any(|rule| rule.id == told.finding.rule.id) {
            rules.push(told.finding.rule);
        }
    }
    let results: Vec<Value> = (0..report.told.len()).map(|index| result(report, &rules, index)).collect();
    let notifications: Vec<Value> = report
        .could_not_tell()
        .map(|(what, why)| json!({ "level": "warning", "message": { "text": format!("could not tell: {what}: {why}") } }))
        .collect();
    let log = json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "kvrail doctor",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules.iter().map(|rule| descriptor(rule)).collect::<Vec<_>>(),
            } },
            "automationDetails": { "id": format!("kvrail-doctor/{}/", report.kind) },
            "columnKind": "unicodeCodePoints",
            "invocations": [{
                "executionSuccessful": true,
                "exitCode": report.verdict().exit_code(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    });
    serde_json::to_string_pretty(&log).unwrap_or_default() + "\n"
}

fn descriptor(rule: &Rule) -> Value {
    let references: Vec<String> = rule.references.iter().map(|r| format!("{}: {}", r.title, r.url)).collect();
    let links: Vec<String> = rule.references.iter().map(|r| format!("- [{}]({})", r.title, r.url)).collect();
    json!({
        "id": rule.id,
        "shortDescription": { "text": rule.title },
        "fullDescription": { "text": format!("{} {}", rule.cause, rule.remedy) },
        "help": {
            "text": format!("{}\n\n{}\n\n{}", rule.story, rule.remedy, references.join("\n")),
            "markdown": format!("{}\n\n**{}**\n\n{}", rule.story, rule.remedy, links.join("\n")),
        },
        "helpUri": rule.references.first().map(|reference| reference.url),
        "defaultConfiguration": { "level": level(rule.severity) },
        "properties": { "tags": [rule.kind.word(), catalogue::area(rule)], "precision": "high" },
    })
}

fn result(report: &Report, rules: &[&'static Rule], index: usize) -> Value {
    let Told { finding, explained_by } = &report.told[index];
    let steps = finding.fix.iter().map(|step| match &step.command {
        Some(command) => format!("{}:\n    {}", step.text, command.replace('\n', "\n    ")),
        None => step.text.clone(),
    });
    let steps: Vec<String> =
        if finding.fix.is_empty() { vec![finding.rule.remedy.into()] } else { steps.collect() };
    let evidence = finding.evidence.iter().map(|e| format!("{}: {}", e.source, e.seen));
    let mut message =
        format!("{}\n\nCause: {}\n\nFix: {}", finding.title, finding.cause, steps.join("\nFix: "));
    for line in evidence.clone() {
        message += &format!("\nSaw: {line}");
    }
    let place = match &finding.location {
        Some(at) if at.file != "-" => {
            let mut region = json!({ "startLine": at.line.max(1) });
            if let Some(column) = at.column {
                region["startColumn"] = json!(column.max(1));
            }
            json!({ "physicalLocation": { "artifactLocation": { "uri": uri(&at.file) }, "region": region } })
        }
        _ => {
            let source = finding.evidence.first().map_or(report.subject.as_str(), |e| e.source.as_str());
            json!({ "logicalLocations": [{
                "name": source,
                "fullyQualifiedName": format!("{}/{source}", report.subject),
                "kind": "resource",
            }] })
        }
    };
    let rank = rules.iter().position(|rule| rule.id == finding.rule.id);
    let mut value = json!({
        "ruleId": finding.rule.id,
        "level": level(finding.severity),
        "message": { "text": message },
        "locations": [place],
        "occurrenceCount": finding.count.max(1),
        "partialFingerprints": { "kvrailFinding/v1": format!("{:016x}", fingerprint(report, index)) },
        "properties": {
            "confidence": finding.confidence,
            "explainedBy": explained_by.map(|cause| report.told[cause].finding.rule.id),
        },
    });
    if let Some(rank) = rank {
        value["ruleIndex"] = json!(rank);
    }
    value
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// A path as the reference of a URI: what may not stand in one is percent-encoded.
fn uri(path: &str) -> String {
    let mut out = String::from(if path.starts_with('/') { "file://" } else { "" });
    // A colon in the first part of a relative reference would be a scheme's.
    let relative = path.strip_prefix("./").unwrap_or(path);
    for byte in relative.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'-' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

/// What stays the same while lines above come and go: the rule, the file, what was said, and the how-many-eth of those it is.
fn fingerprint(report: &Report, index: usize) -> u64 {
    let of = |told: &Told| {
        let file = told.finding.location.as_ref().map(|location| location.file.clone());
        (told.finding.rule.id, file, told.finding.title.clone())
    };
    let this = of(&report.told[index]);
    let before = report.told[..index].iter().filter(|told| of(told) == this).count();
    let text = format!("{}\0{}\0{}\0{before}", this.0, this.1.unwrap_or_default(), this.2);
    // FNV-1a: the same for every build and machine, which the standard library's hasher does not promise.
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::{Finding, Location};
    use crate::render::test_rules::{FAILS, ROOT, SLOW};
    use crate::rule::Kind;

    fn log(report: &Report) -> Value {
        serde_json::from_str(&sarif(report)).unwrap()
    }

    #[test]
    fn results_have_what_code_scanning_asks_for() {
        let at = |line| Location { file: "a dir/pod#1.yaml".into(), line, column: Some(7) };
        let findings = [
            Finding::new(&SLOW, "slow here").at(at(3)).evidence("x", "y"),
            Finding::new(&SLOW, "slow here").at(at(9)),
            Finding::new(&FAILS, "fails").fix("type", "one\ntwo"),
        ];
        let report =
            Report::of_findings(Kind::Lint, "1 file", &[&ROOT, &SLOW], findings).unread("b.yaml", "denied");
        let log = log(&report);
        assert_eq!((&log["version"], log["runs"].as_array().unwrap().len()), (&json!("2.1.0"), 1));
        let run = &log["runs"][0];
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        let results = run["results"].as_array().unwrap();
        assert_eq!((rules.len(), results.len()), (3, 3));
        for result in results {
            let rule = &rules[usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap()];
            assert_eq!(rule["id"], result["ruleId"]);
            for text in [
                &rule["shortDescription"]["text"],
                &rule["help"]["text"],
                &rule["help"]["markdown"],
                &result["message"]["text"],
            ] {
                assert!(text.as_str().is_some_and(|text| !text.is_empty()), "{result}");
            }
            assert!(["note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
            assert_eq!(result["locations"].as_array().unwrap().len(), 1);
        }
        let place = &results[0]["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "a%20dir/pod%231.yaml");
        assert_eq!(place["region"], json!({ "startLine": 3, "startColumn": 7 }));
        assert!(results[2]["locations"][0]["logicalLocations"][0]["name"].is_string());
        let prints: Vec<_> = results.iter().map(|r| &r["partialFingerprints"]["kvrailFinding/v1"]).collect();
        assert!(prints[0] != prints[1] && prints[1] != prints[2], "{prints:?}");
        assert_eq!(run["invocations"][0]["toolExecutionNotifications"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_finding_keeps_its_fingerprint_when_it_moves() {
        let at = |line| {
            let location = Location { file: "pod.yaml".into(), line, column: None };
            let report =
                Report::of_findings(Kind::Lint, "1 file", &[], [Finding::new(&SLOW, "slow").at(location)]);
            log(&report)["runs"][0]["results"][0]["partialFingerprints"].clone()
        };
        assert_eq!(at(3), at(30));
    }
}
