//! For people at a terminal: what is wrong first, each with its cause and what to type; what is well in one line.

use std::fmt::Write as _;

use super::report::{Checked, Report, State};
use super::text::{ascii, counted, cut, paragraph, seconds};
use crate::catalogue;
use crate::finding::Finding;
use crate::rule::{Confidence, Kind, Severity};

/// Widest text: longer lines are hard to read, on however wide a terminal.
const WIDTH_MAX: usize = 100;
/// Evidence that is told where not all is.
const EVIDENCE_SHORT: usize = 2;
/// Longest evidence that is told where not all is.
const EVIDENCE_CHARACTERS: usize = 240;

/// How it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manner {
    /// With colours.
    pub colours: bool,
    /// With every check and all evidence.
    pub verbose: bool,
    /// Only characters of ASCII, for terminals whose locale is not UTF-8; names of the host stay as they are.
    pub ascii: bool,
    /// Columns of the terminal.
    pub width: usize,
}

impl Default for Manner {
    fn default() -> Self {
        Self { colours: false, verbose: false, ascii: false, width: WIDTH_MAX }
    }
}

/// A report as text.
#[must_use]
pub fn terminal(report: &Report, manner: Manner) -> String {
    let mut page = Page { out: String::new(), manner, width: manner.width.clamp(40, WIDTH_MAX) };
    page.findings(report);
    page.table(report);
    page.could_not_tell(report);
    if manner.verbose {
        page.every_check(report);
    } else {
        page.what_is_well(report);
    }
    page.summary(report);
    if manner.ascii { ascii(&page.out) } else { page.out }
}

pub(super) struct Page {
    pub(super) out: String,
    pub(super) manner: Manner,
    pub(super) width: usize,
}

impl Page {
    fn findings(&mut self, report: &Report) {
        let mut told_at: Vec<&Finding> = Vec::new();
        for (index, told) in report.told.iter().enumerate() {
            if told.explained_by.is_some() && !self.manner.verbose {
                continue;
            }
            let finding = &told.finding;
            self.headline(finding);
            // A rule that speaks of many places gives its cause and its remedy once.
            let said = |other: &&Finding| {
                other.rule.id == finding.rule.id && other.cause == finding.cause && other.fix == finding.fix
            };
            if told_at.iter().any(said) {
                self.evidence(finding);
            } else {
                self.cause(finding);
                self.fix(finding);
                self.evidence(finding);
                told_at.push(finding);
            }
            if let Some(cause) = told.explained_by {
                self.labelled("because:", &format!("{} (above)", report.told[cause].finding.rule.id));
            } else {
                self.consequences(report, index);
            }
            self.out.push('\n');
        }
    }

    fn headline(&mut self, finding: &Finding) {
        let word = format!("{}[{}]", finding.severity, finding.rule.id);
        let place = finding.location.as_ref().map(|at| match at.column {
            Some(column) => format!("{}:{}:{column}: ", at.file, at.line),
            None => format!("{}:{}: ", at.file, at.line),
        });
        let times = if finding.count > 1 { format!(" (×{})", finding.count) } else { String::new() };
        let place = place.unwrap_or_default();
        let line = format!("{place}{word}: {}{times}", finding.title);
        let mut plain = String::new();
        paragraph(&mut plain, self.width, "", "  ", &line);
        let code = match finding.severity {
            Severity::Error => "1;31",
            Severity::Warning => "1;33",
            Severity::Note => "1;36",
        };
        // The word has no space in it, so that it is on one line.
        let painted = self.paint(code, &word);
        self.out.push_str(&plain.replacen(&word, &painted, 1));
    }

    fn cause(&mut self, finding: &Finding) {
        let label = match finding.confidence {
            Confidence::Certain => "cause:",
            Confidence::Likely => "likely:",
            Confidence::Possible => "perhaps:",
        };
        self.labelled(label, &finding.cause);
    }

    fn fix(&mut self, finding: &Finding) {
        if finding.fix.is_empty() {
            self.labelled("fix:", finding.rule.remedy);
        }
        for step in &finding.fix {
            self.labelled("fix:", &step.text);
            for line in step.command.iter().flat_map(|command| command.lines()) {
                let line = self.paint("1", line);
                // Not wrapped: it is there to be copied.
                let _ = writeln!(self.out, "             {line}");
            }
        }
    }

    fn evidence(&mut self, finding: &Finding) {
        let shown = if self.manner.verbose { finding.evidence.len() } else { EVIDENCE_SHORT };
        for evidence in finding.evidence.iter().take(shown) {
            let seen = if self.manner.verbose {
                evidence.seen.clone()
            } else {
                cut(&evidence.seen, EVIDENCE_CHARACTERS)
            };
            self.labelled("saw:", &format!("{}: {seen}", evidence.source));
        }
        let more = finding.evidence.len().saturating_sub(shown);
        if more > 0 {
            self.labelled("", &format!("and {more} more (--verbose)"));
        }
    }

    fn consequences(&mut self, report: &Report, root: usize) {
        let mut titles: Vec<String> = Vec::new();
        for (index, told) in report.told.iter().enumerate() {
            if index != root && report.root(index) == root {
                let title = format!("{} [{}]", told.finding.title, told.finding.rule.id);
                if !titles.contains(&title) {
                    titles.push(title);
                }
            }
        }
        if !titles.is_empty() {
            self.labelled("explains:", &titles.join("; "));
        }
    }

    fn table(&mut self, report: &Report) {
        if let Some(table) = &report.table {
            self.out.push_str(table.trim_end());
            self.out.push_str("\n\n");
        }
    }

    fn could_not_tell(&mut self, report: &Report) {
        for (what, why) in report.could_not_tell() {
            let mut plain = String::new();
            paragraph(&mut plain, self.width, "", "  ", &format!("could not tell: {what}: {why}"));
            let painted = self.paint("1;35", "could not tell");
            self.out.push_str(&plain.replacen("could not tell", &painted, 1));
        }
    }

    fn every_check(&mut self, report: &Report) {
        let mut area = "";
        for checked in &report.checks {
            let (mark, code) = match checked.state {
                State::Healthy => ("✓", "32"),
                State::NotApplicable => ("·", "2"),
                State::Findings => ("✗", "31"),
                State::Unknown => ("?", "35"),
            };
            let of = catalogue::area(checked.rule);
            if of != area {
                area = of;
                let heading = self.paint("1", of);
                let _ = writeln!(self.out, "{heading}");
            }
            let mut plain = String::new();
            let line = format!("{}: {}", checked.rule.id, checked.said);
            paragraph(&mut plain, self.width, "  @ ", "      ", &line);
            let painted = self.paint(code, mark);
            self.out.push_str(&plain.replacen('@', &painted, 1));
        }
        if !report.checks.is_empty() {
            self.out.push('\n');
        }
    }

    fn what_is_well(&mut self, report: &Report) {
        let well: Vec<&Checked> = report.checks.iter().filter(|c| c.state == State::Healthy).collect();
        if well.is_empty() {
            return;
        }
        let mut areas: Vec<(&str, usize)> = Vec::new();
        for checked in &well {
            let area = catalogue::area(checked.rule);
            match areas.iter_mut().find(|(name, _)| *name == area) {
                Some((_, count)) => *count += 1,
                None => areas.push((area, 1)),
            }
        }
        let areas: Vec<_> = areas.iter().map(|(area, count)| format!("{area} {count}")).collect();
        let said = format!(
            "{} {} well: {}",
            counted(well.len(), "check"),
            if well.len() == 1 { "is" } else { "are" },
            areas.join(", ")
        );
        let mut plain = String::new();
        paragraph(&mut plain, self.width, "@ ", "  ", &said);
        let painted = self.paint("32", "✓");
        self.out.push_str(&plain.replacen('@', &painted, 1));
    }

    fn summary(&mut self, report: &Report) {
        let mut parts: Vec<String> = [Severity::Error, Severity::Warning, Severity::Note]
            .into_iter()
            .map(|severity| (report.count(severity), severity))
            .filter(|(count, _)| *count > 0)
            .map(|(count, severity)| counted(count, &severity.to_string()))
            .collect();
        if parts.is_empty() {
            parts.push("nothing found".into());
        }
        let unknown = report.could_not_tell().count();
        if unknown > 0 {
            parts.push(format!("{unknown} could not tell"));
        }
        let mut line = format!("{}: {}, in {}", report.subject, parts.join(", "), seconds(report.took));
        if let Some(first) = report.told.first() {
            let _ = write!(line, "; more: kvrail doctor --explain {}", first.finding.rule.id);
        } else if report.kind == Kind::Host && !self.manner.verbose {
            line.push_str("; each check: --verbose");
        }
        paragraph(&mut self.out, self.width, "", "  ", &line);
    }

    /// Text behind a word that says what it is.
    fn labelled(&mut self, label: &str, text: &str) {
        let padded = format!("  {label:<9}");
        let mut plain = String::new();
        paragraph(&mut plain, self.width, &padded, "           ", text);
        if !label.is_empty() {
            plain = plain.replacen(label, &self.paint("2", label), 1);
        }
        self.out.push_str(&plain);
    }

    pub(super) fn paint(&self, code: &str, text: &str) -> String {
        if self.manner.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}
