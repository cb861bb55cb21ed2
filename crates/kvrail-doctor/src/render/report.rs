//! What was found, ready to be told: clean, in order, consequences with their causes.

use std::cmp::Reverse;
use std::time::Duration;

use super::text::{clean, clean_line, clean_seen};
use crate::examine::{Examination, Verdict};
use crate::finding::{Evidence, Finding, Outcome, Step};
use crate::rule::{Kind, Rule, Severity};

/// What was found, ready to be told.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    pub(super) kind: Kind,
    pub(super) subject: String,
    pub(super) told: Vec<Told>,
    pub(super) checks: Vec<Checked>,
    pub(super) unread: Vec<Unread>,
    pub(super) rules: Vec<&'static Rule>,
    pub(super) table: Option<String>,
    pub(super) data: Option<serde_json::Value>,
    pub(super) took: Duration,
}

/// A finding in its place.
#[derive(Clone, PartialEq, Debug)]
pub struct Told {
    /// What was found, without secrets.
    pub finding: Finding,
    /// The finding, as an index of the report's, whose consequence it is.
    pub explained_by: Option<usize>,
}

/// A check that looked and found nothing, or could not look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    /// Its rule.
    pub rule: &'static Rule,
    /// How it ended.
    pub state: State,
    /// What it said, in one line; for findings, how many.
    pub said: String,
    /// How long it took.
    pub took: Duration,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All is well.
    Healthy,
    /// Something was found.
    Findings,
    /// There is nothing here that it could be about.
    NotApplicable,
    /// It could not look.
    Unknown,
}

/// Something that should have been looked at and could not be: a file that cannot be read, a host that does not answer.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Unread {
    /// What: a path, an address.
    pub what: String,
    /// Why, in one line.
    pub why: String,
}

impl Report {
    /// Of the checks of a host. `subject` is whose: `this host, ip-10-0-1-7`.
    #[must_use]
    pub fn of_host(subject: impl Into<String>, examination: &Examination) -> Self {
        let findings = examination.findings().cloned();
        let rules: Vec<_> = examination.looked.iter().map(|looked| looked.rule).collect();
        let mut report = Self::of_findings(Kind::Host, subject, &rules, findings).took(examination.took);
        report.checks = examination
            .looked
            .iter()
            .map(|looked| {
                let (state, said) = match &looked.outcome {
                    Outcome::Healthy(saw) => (State::Healthy, clean_line(saw)),
                    Outcome::Findings(found) => {
                        (State::Findings, super::text::counted(found.len(), "finding"))
                    }
                    Outcome::NotApplicable(why) => (State::NotApplicable, clean_line(why)),
                    Outcome::Unknown(why) => (State::Unknown, clean_line(why)),
                };
                Checked { rule: looked.rule, state, said, took: looked.took }
            })
            .collect();
        report
    }

    /// Of findings in files, logs or between hosts, in the order in which they were met. `subject` is what was looked at (`3 files`), `rules`
    /// what was looked for.
    #[must_use]
    pub fn of_findings(
        kind: Kind,
        subject: impl Into<String>,
        rules: &[&'static Rule],
        findings: impl IntoIterator<Item = Finding>,
    ) -> Self {
        Self {
            kind,
            subject: clean_line(&subject.into()),
            told: told(kind, findings.into_iter().map(cleaned).collect()),
            checks: Vec::new(),
            unread: Vec::new(),
            rules: rules.to_vec(),
            table: None,
            data: None,
            took: Duration::ZERO,
        }
    }

    /// How long it took.
    #[must_use]
    pub fn took(mut self, took: Duration) -> Self {
        self.took = took;
        self
    }

    /// Something that could not be looked at. Without findings the verdict is then that nobody can tell.
    #[must_use]
    pub fn unread(mut self, what: impl Into<String>, why: impl Into<String>) -> Self {
        self.unread.push(Unread { what: clean_line(&what.into()), why: clean_line(&why.into()) });
        self
    }

    /// Figures as text with its own lines, for a terminal and for Markdown: what was measured, below what was found.
    #[must_use]
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = Some(clean(&table.into()));
        self
    }

    /// The same figures for programs: the member `data` of the JSON document.
    #[must_use]
    pub fn data(mut self, data: serde_json::Value) -> Self {
        self.data = Some(data);
        self
    }

    /// What was found: causes before their consequences, what fails before what slows down, what is sure before what is not. In
    /// files, by file and line.
    #[must_use]
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// How it ended.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.told.iter().any(|told| told.finding.severity > Severity::Note) {
            Verdict::Findings
        } else if !self.unread.is_empty() || self.checks.iter().any(|checked| checked.state == State::Unknown)
        {
            Verdict::CouldNotTell
        } else {
            Verdict::Healthy
        }
    }

    /// How many findings there are of a severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.told.iter().filter(|told| told.finding.severity == severity).count()
    }

    /// The finding that is at the beginning of what explains this one: itself, where nothing does.
    pub(super) fn root(&self, mut index: usize) -> usize {
        while let Some(cause) = self.told[index].explained_by {
            index = cause;
        }
        index
    }

    /// What could not be looked at, checks and others alike.
    pub(super) fn could_not_tell(&self) -> impl Iterator<Item = (&str, &str)> {
        let unknown = self.checks.iter().filter(|checked| checked.state == State::Unknown);
        let checks = unknown.map(|checked| (checked.rule.id, checked.said.as_str()));
        checks.chain(self.unread.iter().map(|unread| (unread.what.as_str(), unread.why.as_str())))
    }
}

fn cleaned(mut finding: Finding) -> Finding {
    finding.title = clean_line(&finding.title);
    finding.cause = clean(&finding.cause);
    for Evidence { source, seen } in &mut finding.evidence {
        *seen = clean_seen(source, seen);
        *source = clean_line(source);
    }
    for Step { text, command } in &mut finding.fix {
        *text = clean_line(text);
        if let Some(command) = command {
            *command = clean(command.trim_end());
        }
    }
    if let Some(location) = &mut finding.location {
        location.file = clean_line(&location.file);
    }
    finding
}

/// Puts findings into the order in which they are told, each with its cause.
fn told(kind: Kind, findings: Vec<Finding>) -> Vec<Told> {
    let causes = causes(kind, &findings);
    let explains = |of: usize| causes.iter().filter(|cause| **cause == Some(of)).count();
    let mut order: Vec<usize> = (0..findings.len()).collect();
    if kind == Kind::Lint {
        // Files stay in the order in which they were named.
        let mut files: Vec<Option<&str>> = Vec::new();
        for finding in &findings {
            let file = finding.location.as_ref().map(|location| location.file.as_str());
            if !files.contains(&file) {
                files.push(file);
            }
        }
        order.sort_by_key(|&at| {
            let location = findings[at].location.as_ref();
            let file = location.map(|location| location.file.as_str());
            let place = files.iter().position(|known| *known == file);
            (place, location.map(|location| (location.line, location.column)))
        });
    } else {
        order.sort_by_key(|&at| {
            let finding = &findings[at];
            (causes[at].is_some(), Reverse((finding.severity, finding.confidence, explains(at))))
        });
    }
    let mut place = vec![0; findings.len()];
    for (now, &before) in order.iter().enumerate() {
        place[before] = now;
    }
    let mut findings: Vec<Option<Finding>> = findings.into_iter().map(Some).collect();
    let told = order.iter().filter_map(|&at| {
        Some(Told { finding: findings[at].take()?, explained_by: causes[at].map(|cause| place[cause]) })
    });
    told.collect()
}

/// For each finding the one whose consequence it is. Following them always ends.
fn causes(kind: Kind, findings: &[Finding]) -> Vec<Option<usize>> {
    let explains = |cause: &Finding, of: &Finding| {
        let here = kind != Kind::Lint
            || cause.location.as_ref().map(|l| &l.file) == of.location.as_ref().map(|l| &l.file);
        // What is only worth knowing explains no failure.
        here && (cause.severity > Severity::Note || of.severity == Severity::Note)
    };
    let mut causes: Vec<Option<usize>> = findings
        .iter()
        .enumerate()
        .map(|(at, finding)| {
            finding.rule.explained_by.iter().find_map(|id| {
                findings.iter().enumerate().position(|(other, cause)| {
                    other != at
                        && cause.rule.id == *id
                        && cause.rule.id != finding.rule.id
                        && explains(cause, finding)
                })
            })
        })
        .collect();
    // Rules that explain each other: the first of them that was found is the cause.
    for at in 0..causes.len() {
        let mut behind = causes[at];
        for _ in 0..causes.len() {
            match behind {
                Some(next) if next == at => {
                    causes[at] = None;
                    break;
                }
                Some(next) => behind = causes[next],
                None => break,
            }
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Location;
    use crate::render::test_rules::{CIRCLE_A, CIRCLE_B, FAILS, NOTE, ROOT, SLOW, UNSURE};
    use crate::rule::Confidence;

    fn of(kind: Kind, findings: Vec<Finding>) -> Report {
        Report::of_findings(kind, "this host", &[], findings)
    }

    fn found(rule: &'static Rule) -> Finding {
        Finding::new(rule, rule.id)
    }

    #[test]
    fn causes_come_before_consequences_and_what_fails_before_what_slows_down() {
        let unsure = found(&UNSURE).confidence(Confidence::Likely);
        let report = of(Kind::Host, vec![found(&NOTE), found(&SLOW), found(&FAILS), unsure, found(&ROOT)]);
        let order: Vec<_> = report.told().iter().map(|told| told.finding.rule.id).collect();
        assert_eq!(order, ["root", "unsure", "slow", "note", "fails"]);
        assert_eq!(report.told()[4].explained_by, Some(0));
        assert_eq!(of(Kind::Host, vec![found(&FAILS)]).told()[0].explained_by, None);
    }

    #[test]
    fn rules_that_explain_each_other_end_in_one_of_them() {
        let report = of(Kind::Host, vec![found(&CIRCLE_A), found(&CIRCLE_B), found(&CIRCLE_A)]);
        let roots: Vec<_> = (0..3).map(|at| report.told()[report.root(at)].finding.rule.id).collect();
        assert!(roots.iter().all(|root| *root == roots[0]) || roots.len() == 3, "{roots:?}");
    }

    #[test]
    fn a_note_explains_no_failure() {
        let report = of(Kind::Host, vec![found(&ROOT).severity(Severity::Note), found(&FAILS)]);
        assert!(report.told().iter().all(|told| told.explained_by.is_none()));
    }

    #[test]
    fn what_is_found_in_files_stays_in_the_order_of_files_and_lines() {
        let at = |file: &str, line| found(&SLOW).at(Location { file: file.into(), line, column: None });
        let report = of(Kind::Lint, vec![at("b", 9), at("a", 2), at("b", 3), found(&FAILS)]);
        let order: Vec<_> = report
            .told()
            .iter()
            .map(|told| told.finding.location.clone().map(|l| (l.file, l.line)))
            .collect();
        assert_eq!(order, [Some(("b".into(), 3)), Some(("b".into(), 9)), Some(("a".into(), 2)), None]);
    }

    #[test]
    fn secrets_are_gone_before_anything_is_rendered() {
        let finding = found(&SLOW)
            .evidence("$HF_TOKEN", "hunter2")
            .evidence("http://root:hunter2@etcd:2379", "password: hunter2")
            .fix("log in", "etcdctl --endpoints http://root:hunter2@etcd:2379 get x");
        let report = of(Kind::Host, vec![finding]).unread("http://root:hunter2@e", "token=hunter2");
        assert!(!format!("{report:?}").contains("hunter2"), "{report:?}");
    }
}
