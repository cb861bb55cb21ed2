//! For an issue or a chat: Markdown that reads well unrendered too.

use std::fmt::Write as _;

use super::report::{Report, State};
use super::text::{counted, seconds};
use crate::rule::{Confidence, Severity};

/// A report as Markdown.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let found: Vec<String> = [Severity::Error, Severity::Warning, Severity::Note]
        .into_iter()
        .filter(|severity| report.count(*severity) > 0)
        .map(|severity| counted(report.count(severity), &severity.to_string()))
        .collect();
    let found = if found.is_empty() { "nothing found".into() } else { found.join(", ") };
    let _ = writeln!(out, "### kvrail doctor: {found}\n");
    let _ = writeln!(
        out,
        "{}; kvrail {}; {}\n",
        inline(&report.subject),
        env!("CARGO_PKG_VERSION"),
        seconds(report.took)
    );
    for told in &report.told {
        let finding = &told.finding;
        let place =
            finding.location.as_ref().map(|at| format!(" at {}", code(&format!("{}:{}", at.file, at.line))));
        let times = if finding.count > 1 { format!(" (×{})", finding.count) } else { String::new() };
        let _ = writeln!(
            out,
            "#### {} {}{}: {}{times}\n",
            finding.severity,
            code(finding.rule.id),
            place.unwrap_or_default(),
            inline(&finding.title)
        );
        let label = match finding.confidence {
            Confidence::Certain => "Cause",
            Confidence::Likely => "Likely cause",
            Confidence::Possible => "Possible cause",
        };
        let _ = writeln!(out, "**{label}:** {}\n", inline(&finding.cause));
        if let Some(cause) = told.explained_by {
            let _ = writeln!(out, "A consequence of {}.\n", code(report.told[cause].finding.rule.id));
        }
        if finding.fix.is_empty() {
            let _ = writeln!(out, "**Fix:** {}\n", inline(finding.rule.remedy));
        }
        for step in &finding.fix {
            let _ = writeln!(out, "**Fix:** {}\n", inline(&step.text));
            if let Some(command) = &step.command {
                out.push_str(&fenced(command));
            }
        }
        if !finding.evidence.is_empty() {
            for evidence in &finding.evidence {
                let _ = writeln!(out, "- {}: {}", code(&evidence.source), code(&evidence.seen));
            }
            out.push('\n');
        }
    }
    if let Some(table) = &report.table {
        out.push_str(&fenced(table));
    }
    let mut unknown = false;
    for (what, why) in report.could_not_tell() {
        let _ = writeln!(out, "- could not tell {}: {}", code(what), inline(why));
        unknown = true;
    }
    if unknown {
        out.push('\n');
    }
    if !report.checks.is_empty() {
        let _ = writeln!(out, "<details><summary>{}</summary>\n", counted(report.checks.len(), "check"));
        let _ = writeln!(out, "| check | | said |\n|---|---|---|");
        for checked in &report.checks {
            let state = match checked.state {
                State::Healthy => "well",
                State::Findings => "found",
                State::NotApplicable => "not here",
                State::Unknown => "could not tell",
            };
            let _ = writeln!(out, "| {} | {state} | {} |", code(checked.rule.id), cell(&checked.said));
        }
        out.push_str("\n</details>\n");
    }
    out
}

/// Text whose characters mean nothing but themselves. Code that a text marks by backticks stays code.
pub(super) fn inline(text: &str) -> String {
    let text = text.replace('\n', " ");
    let pieces: Vec<&str> = text.split('`').collect();
    if pieces.len().is_multiple_of(2) {
        return escaped(&text);
    }
    let piece = |(at, piece): (usize, &&str)| if at.is_multiple_of(2) { escaped(piece) } else { code(piece) };
    pieces.iter().enumerate().map(piece).collect()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        // An underscore inside of a word begins nothing, and names of variables are easier to read without.
        let inside =
            c == '_' && before.is_alphanumeric() && rest.peek().is_some_and(|next| next.is_alphanumeric());
        if !inside && matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '@' | '~') {
            out.push('\\');
        }
        out.push(c);
        before = c;
    }
    out
}

/// The same in a cell of a table.
pub(super) fn cell(text: &str) -> String {
    // `inline` escapes the bar, except in code, where a table still takes it for a border.
    inline(text).replace("\\|", "|").replace('|', "\\|")
}

/// Code, with as many backticks around as it needs.
pub(super) fn code(text: &str) -> String {
    if text.is_empty() {
        return "(empty)".into();
    }
    let fence = "`".repeat(longest_run(text) + 1);
    if text.starts_with('`') || text.ends_with('`') {
        format!("{fence} {text} {fence}")
    } else {
        format!("{fence}{text}{fence}")
    }
}

/// A block of code, which nothing in it can end.
fn fenced(text: &str) -> String {
    let fence = "`".repeat((longest_run(text) + 1).max(3));
    format!("{fence}\n{}\n{fence}\n\n", text.trim_end())
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Finding;
    use crate::render::test_rules::{FAILS, ROOT};
    use crate::rule::Kind;

    #[test]
    fn nothing_that_was_seen_becomes_markup() {
        let finding = Finding::new(&ROOT, "<script> and *this* in `a_file`")
            .evidence("/x", "a `tick` | <b>")
            .fix("type", "echo '```'\nrm x");
        let text = markdown(&Report::of_findings(Kind::Host, "host_1", &[], [finding]));
        assert!(text.contains(r"\<script\> and \*this\* in `a_file`"), "{text}");
        assert!(text.contains("``a `tick` | <b>``"), "{text}");
        assert!(text.contains("````\necho '```'\nrm x\n````"), "{text}");
    }

    #[test]
    fn a_consequence_names_its_cause() {
        let findings = [Finding::new(&FAILS, "it fails"), Finding::new(&ROOT, "the rail is loose")];
        let text = markdown(&Report::of_findings(Kind::Host, "this host", &[], findings));
        assert!(text.starts_with("### kvrail doctor: 2 errors\n"), "{text}");
        assert!(text.contains("#### error `root`: the rail is loose"), "{text}");
        assert!(text.contains("A consequence of `root`."), "{text}");
        assert!(
            text.contains("**Fix:** Connect it."),
            "the rule's remedy, where the finding has none: {text}"
        );
    }

    #[test]
    fn a_bar_stays_in_its_cell() {
        assert_eq!(cell("a|b `c|d`"), "a\\|b `c\\|d`");
    }
}
