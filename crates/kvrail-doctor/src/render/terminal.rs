//! For people at a terminal: what is wrong first, each with its cause and what to type; what is well in one line.

use std::fmt::Write as _;

use super::report::{Checked, Report, State};
use super::text::{ascii, counted, cut, paragraph, seconds};
use crate::catalogue;
use crate::finding::Finding;
use crate::rule::{Confidence, Severity};

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
        let mut told_before: Vec<&Finding> = Vec::new();
        for (index, told) in report.told.iter().enumerate() {
            if told.explained_by.is_some() && !self.manner.verbose {
                continue;
            }
            let finding = &told.finding;
            self.headline(finding);
            // A rule that speaks of many places gives its cause once, and its remedy where that is the same.
            let before = || told_before.iter().filter(|other| other.rule.id == finding.rule.id);
            if !before().any(|other| other.cause == finding.cause) {
                self.cause(finding);
            }
            if !before().any(|other| other.fix == finding.fix) {
                self.fix(finding);
            }
            self.evidence(finding);
            told_before.push(finding);
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
                let _ = writeln!(self.out, "              {line}");
            }
        }
    }

    fn evidence(&mut self, finding: &Finding) {
        // What one place showed is told in one go: a path is long.
        let mut places: Vec<(&str, Vec<&str>)> = Vec::new();
        for evidence in &finding.evidence {
            match places.last_mut() {
                Some((source, seen)) if *source == evidence.source => seen.push(&evidence.seen),
                _ => places.push((&evidence.source, vec![&evidence.seen])),
            }
        }
        let shown = if self.manner.verbose { places.len() } else { EVIDENCE_SHORT };
        for (source, seen) in places.iter().take(shown) {
            let seen = seen.join("; ");
            let seen = if self.manner.verbose { seen } else { cut(&seen, EVIDENCE_CHARACTERS) };
            self.labelled("saw:", &format!("{source}: {seen}"));
        }
        let more = places.len().saturating_sub(shown);
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
        // What one thing keeps from looking is told in one go.
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (what, why) in report.could_not_tell() {
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, kept)) => kept.push(what),
                None => reasons.push((why, vec![what])),
            }
        }
        for (why, kept) in reasons {
            let mut plain = String::new();
            let line = format!("could not tell: {}: {why}", kept.join(", "));
            paragraph(&mut plain, self.width, "", "  ", &line);
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
        let line = format!("{}: {}, in {}", report.subject, parts.join(", "), seconds(report.took));
        paragraph(&mut self.out, self.width, "", "  ", &line);
        if let Some(first) = report.told.first() {
            let _ = writeln!(self.out, "more: kvrail doctor --explain {}", first.finding.rule.id);
        }
    }

    /// Text behind a word that says what it is.
    fn labelled(&mut self, label: &str, text: &str) {
        let padded = format!("  {label:<10}");
        let mut plain = String::new();
        paragraph(&mut plain, self.width, &padded, "            ", text);
        if !label.is_empty() {
            plain = plain.replacen(label, &self.paint("2", label), 1);
        }
        self.out.push_str(&plain);
    }

    pub(super) fn paint(&self, code: &str, text: &str) -> String {
        if self.manner.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::examine::{Examination, Looked};
    use crate::finding::{Location, Outcome};
    use crate::render::test_rules::{FAILS, NOTE, ROOT, SLOW};
    use crate::rule::Kind;

    fn examination() -> Examination {
        let looked = |rule, outcome| Looked { rule, outcome, took: Duration::ZERO };
        let root = Finding::new(&ROOT, "rail 7 leads nowhere")
            .evidence("/sys/class/infiniband/rdmap79s0", "tx_pkts 100")
            .evidence("peer", "rx_pkts 0")
            .evidence("third", "not told")
            .fix("connect it", "sudo connect --rail 7 --to the-other-host.example.org --with-a-command-that-is-longer-than-any-terminal-is-wide");
        Examination {
            looked: vec![
                looked(&NOTE, Outcome::Healthy("fine".into())),
                looked(&SLOW, Outcome::Unknown("permission denied".into())),
                looked(&FAILS, Outcome::Findings(vec![Finding::new(&FAILS, "transfers hang")])),
                looked(&ROOT, Outcome::Findings(vec![root])),
            ],
            took: Duration::from_millis(250),
        }
    }

    #[test]
    fn cause_and_fix_of_what_matters_most_are_in_the_first_ten_lines() {
        let text = terminal(
            &Report::of_host("this host", &examination()),
            Manner { width: 80, ..Manner::default() },
        );
        let first: Vec<&str> = text.lines().take(10).collect();
        assert_eq!(first[0], "error[root]: rail 7 leads nowhere");
        let has = |words: &str| first.iter().any(|line| line.contains(words));
        assert!(
            has("cause:    The rail is not connected")
                && has("fix:      connect it")
                && has("sudo connect --rail 7"),
            "{text}"
        );
        assert!(
            has("saw:      peer: rx_pkts 0") && has("and 1 more (--verbose)") && !text.contains("not told"),
            "{text}"
        );
        assert!(text.contains("explains: transfers hang [fails]"), "the consequence is folded: {text}");
        assert!(!text.contains("error[fails]"), "{text}");
        assert!(text.contains("could not tell: slow: permission denied\n"), "{text}");
        assert!(text.contains("1 check is well"), "{text}");
        assert!(
            text.ends_with(
                "this host: 2 errors, 1 could not tell, in 0.25 s\nmore: kvrail doctor --explain root\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn verbose_tells_every_check_every_consequence_and_all_evidence() {
        let text = terminal(
            &Report::of_host("this host", &examination()),
            Manner { verbose: true, ..Manner::default() },
        );
        for said in [
            "third: not told",
            "error[fails]: transfers hang",
            "because:  root (above)",
            "✓ note: fine",
            "? slow: permission denied",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }

    #[test]
    fn colours_only_change_how_it_looks_and_ascii_only_what_it_is_written_in() {
        let report = Report::of_host("this host", &examination());
        let plain = terminal(&report, Manner { verbose: true, ..Manner::default() });
        let coloured = terminal(&report, Manner { verbose: true, colours: true, ..Manner::default() });
        assert!(coloured.contains("\x1b[1;31merror[root]\x1b[0m: rail 7"), "{coloured}");
        let mut bare = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            bare += before;
            rest = after.split_once('m').unwrap().1;
        }
        assert_eq!(bare + rest, plain);
        let ascii = terminal(&report, Manner { verbose: true, ascii: true, ..Manner::default() });
        assert!(ascii.is_ascii() && ascii.contains("ok note: fine"), "{ascii}");
    }

    #[test]
    fn a_rule_that_speaks_of_many_lines_gives_cause_and_remedy_once() {
        let at = |line| {
            Finding::new(&SLOW, "slow here").at(Location { file: "pod.yaml".into(), line, column: Some(5) })
        };
        let report = Report::of_findings(Kind::Lint, "1 file", &[], [at(3), at(9)]);
        let text = terminal(&report, Manner::default());
        assert!(
            text.contains("pod.yaml:3:5: warning[slow]: slow here\n")
                && text.contains("pod.yaml:9:5: warning[slow]"),
            "{text}"
        );
        assert_eq!((text.matches("cause:").count(), text.matches("Connect it.").count()), (1, 1), "{text}");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal_but_for_words_that_are(
            width in 40usize..140,
            title in "[a-z]{1,12}( [a-z]{1,12}){0,30}",
            seen in "\\PC{0,200}",
        ) {
            let finding = Finding::new(&SLOW, title).evidence("/proc/x", seen);
            let text = terminal(&Report::of_findings(Kind::Host, "h", &[], [finding]), Manner { width, ..Manner::default() });
            for line in text.lines() {
                let words = line.split_whitespace().count();
                prop_assert!(textwrap::core::display_width(line) <= width.clamp(40, WIDTH_MAX) || words <= 4, "{line:?}");
            }
        }
    }
}
