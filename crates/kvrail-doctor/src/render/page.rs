//! A rule as a page of help, and all of them as a list.

use std::fmt::Write as _;

use serde_json::json;

use super::markdown::{cell, code};
use super::terminal::{Manner, Page};
use super::text::{ascii, paragraph};
use crate::catalogue;
use crate::rule::{Kind, Rule};

const KINDS: [Kind; 4] = [Kind::Host, Kind::Lint, Kind::Log, Kind::Probe];

/// A rule as a page of help.
#[must_use]
pub fn page(rule: &Rule, manner: Manner) -> String {
    let width = manner.width.clamp(40, 88);
    let mut page = Page { out: String::new(), manner, width };
    let heading = page.paint("1", rule.id);
    let _ = writeln!(page.out, "{heading}: {}", rule.title);
    let _ = writeln!(page.out, "{}, found by {}\n", rule.severity, catalogue::command(rule.kind));
    for part in rule.story.split("\n\n") {
        if part.lines().any(|line| line.starts_with("  ")) {
            // Written in columns: as it stands.
            page.out.push_str(part.trim_end());
            page.out.push('\n');
        } else {
            paragraph(&mut page.out, width, "", "", part.trim());
        }
        page.out.push('\n');
    }
    for (label, text) in [("Cause", rule.cause), ("Remedy", rule.remedy)] {
        let label = page.paint("1", label);
        let _ = writeln!(page.out, "{label}");
        paragraph(&mut page.out, width, "  ", "  ", text);
        page.out.push('\n');
    }
    let explains: Vec<&str> = catalogue::rules()
        .iter()
        .filter(|other| other.explained_by.contains(&rule.id))
        .map(|other| other.id)
        .collect();
    for (label, ids) in [("May come from", rule.explained_by), ("May lead to", explains.as_slice())] {
        if !ids.is_empty() {
            let label = page.paint("1", label);
            let _ = writeln!(page.out, "{label}");
            paragraph(&mut page.out, width, "  ", "  ", &ids.join(", "));
            page.out.push('\n');
        }
    }
    let label = page.paint("1", "References");
    let _ = writeln!(page.out, "{label}");
    for reference in rule.references {
        let _ = writeln!(page.out, "  {}\n    {}", reference.title, reference.url);
    }
    if manner.ascii { ascii(&page.out) } else { page.out }
}

/// All rules by kind and area, for people at a terminal.
#[must_use]
pub fn list(manner: Manner) -> String {
    let rules = catalogue::rules();
    let widest = rules.iter().map(|rule| rule.id.len()).max().unwrap_or(0);
    let mut page = Page { out: String::new(), manner, width: manner.width.clamp(40, 100) };
    for kind in KINDS {
        let mut area = "";
        for rule in rules.iter().filter(|rule| rule.kind == kind) {
            let of = catalogue::area(rule);
            if of != area {
                area = of;
                let heading = if kind == Kind::Host {
                    format!("{}: {of}", catalogue::command(kind))
                } else {
                    catalogue::command(kind).into()
                };
                let heading = page.paint("1", &heading);
                let blank = if page.out.is_empty() { "" } else { "\n" };
                let _ = writeln!(page.out, "{blank}{heading}");
            }
            let first = format!("  {:widest$}  {:7}  ", rule.id, rule.severity.to_string());
            let rest = " ".repeat(first.len());
            paragraph(&mut page.out, page.width.max(first.len() + 30), &first, &rest, rule.title);
        }
    }
    if manner.ascii { ascii(&page.out) } else { page.out }
}

/// All rules, for programs: an array of what is known.
#[must_use]
pub fn list_json() -> String {
    let rules: Vec<_> = catalogue::rules()
        .iter()
        .map(|rule| {
            let mut value = serde_json::to_value(rule).unwrap_or_default();
            value["area"] = json!(catalogue::area(rule));
            value
        })
        .collect();
    let list =
        json!({ "schema": "kvrail.doctor-rules.v1", "kvrail": env!("CARGO_PKG_VERSION"), "rules": rules });
    serde_json::to_string_pretty(&list).unwrap_or_default() + "\n"
}

/// All rules as the page of the documentation.
#[must_use]
pub fn list_markdown() -> String {
    let rules = catalogue::rules();
    let mut out = String::from(
        "# What `kvrail doctor` knows\n\nMade from the program: `kvrail doctor --list --format markdown`. \
         `kvrail doctor --explain ID` tells the story of each.\n",
    );
    for kind in KINDS {
        let of_kind: Vec<_> = rules.iter().filter(|rule| rule.kind == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n## {}: {} rules\n", code(catalogue::command(kind)), of_kind.len());
        let _ = writeln!(
            out,
            "| id | area | severity | what is wrong | what it comes from | what to do | builds on |"
        );
        let _ = writeln!(out, "|---|---|---|---|---|---|---|");
        for rule in of_kind {
            let references: Vec<String> =
                rule.references.iter().map(|r| format!("[{}]({})", cell(r.title), r.url)).collect();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                code(rule.id),
                catalogue::area(rule),
                rule.severity,
                cell(rule.title),
                cell(rule.cause),
                cell(rule.remedy),
                references.join("; ")
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::test_rules::FAILS;

    #[test]
    fn a_page_wraps_its_story_and_leaves_columns_alone() {
        let text = page(&FAILS, Manner { width: 40, ..Manner::default() });
        assert!(
            text.starts_with("fails: something is wrong with the rail\nerror, found by kvrail doctor\n\n"),
            "{text}"
        );
        assert!(text.contains("\n    tx_pkts 100\n    rx_pkts 0\n\n"), "{text}");
        assert!(text.contains("A rail that leads nowhere takes what is\nsent and loses it:"), "{text}");
        assert!(
            text.contains("May come from\n  root\n") && text.contains("https://example.org/rails"),
            "{text}"
        );
    }

    #[test]
    fn every_list_names_every_rule() {
        let lists = [list(Manner::default()), list_json(), list_markdown()];
        for rule in catalogue::rules() {
            for list in &lists {
                assert!(list.contains(rule.id), "{}", rule.id);
            }
        }
    }
}
