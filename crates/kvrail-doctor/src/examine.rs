//! Runs checks on a host, all at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Rule, Severity};

/// Checks that look at the same time. They wait for commands, disks and networks, not for a core.
const AT_ONCE: usize = 16;

/// A rule about a host, and how it is looked at.
#[derive(Debug)]
pub struct Check {
    /// What is known.
    pub rule: &'static Rule,
    /// Looks. It asks the host and nothing else, so that each wait has a deadline and a bundle answers the same.
    pub look: fn(&Host) -> Outcome,
}

/// What one check said.
#[derive(Clone, PartialEq, Debug)]
pub struct Looked {
    /// Its rule.
    pub rule: &'static Rule,
    /// What it said.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// What all checks said.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Examination {
    /// In the order of the catalogue.
    pub looked: Vec<Looked>,
    /// How long all took together.
    pub took: Duration,
}

/// How an examination ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing was found that fails or slows anything down.
    Healthy,
    /// Something was found.
    Findings,
    /// Nothing was found, and a check that matters could not look.
    CouldNotTell,
}

impl Verdict {
    /// The exit code of the program.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Findings => 1,
            Self::CouldNotTell => 2,
        }
    }
}

/// Runs checks on a host.
#[must_use]
pub fn examine(host: &Host, checks: &[&'static Check]) -> Examination {
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let looked = Mutex::new(Vec::with_capacity(checks.len()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(checks.len()) {
            scope.spawn(|| {
                while let Some((index, check)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|index| Some((index, checks.get(index)?)))
                {
                    let begin = Instant::now();
                    // A defect of one check must not take the others' findings away.
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| (check.look)(host))).unwrap_or_else(|_| {
                            Outcome::Unknown(format!(
                                "a defect of kvrail: the check {} panicked; please report it",
                                check.rule.id
                            ))
                        });
                    let said = Looked { rule: check.rule, outcome, took: begin.elapsed() };
                    looked.lock().unwrap_or_else(PoisonError::into_inner).push((index, said));
                }
            });
        }
    });
    let mut looked = looked.into_inner().unwrap_or_else(PoisonError::into_inner);
    looked.sort_by_key(|(index, _)| *index);
    Examination { looked: looked.into_iter().map(|(_, looked)| looked).collect(), took: begin.elapsed() }
}

impl Examination {
    /// What was found, in the order of the catalogue. [`Report`](crate::render::Report) puts it into the order in which people should
    /// read it.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.looked.iter().flat_map(|looked| looked.outcome.findings())
    }

    /// How it ended.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.findings().any(|finding| finding.severity > Severity::Note) {
            Verdict::Findings
        } else if self.looked.iter().any(|looked| matches!(looked.outcome, Outcome::Unknown(_))) {
            Verdict::CouldNotTell
        } else {
            Verdict::Healthy
        }
    }
}

impl Outcome {
    /// What is wrong; empty where nothing is.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::Findings(findings) => findings,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Live, Scope};
    use crate::rule::Kind;

    const fn rule(id: &'static str, severity: Severity) -> Rule {
        Rule {
            id,
            title: id,
            severity,
            kind: Kind::Host,
            cause: "",
            remedy: "",
            story: "",
            references: &[],
            explained_by: &[],
        }
    }
    static NOTE: Rule = rule("note", Severity::Note);
    static SLOW: Rule = rule("slow", Severity::Warning);

    fn found(rule: &'static Rule) -> Outcome {
        Outcome::Findings(vec![Finding::new(rule, rule.id)])
    }
    static CHECKS: [Check; 2] =
        [Check { rule: &NOTE, look: |_| found(&NOTE) }, Check { rule: &SLOW, look: |_| found(&SLOW) }];

    fn looked_at(ids: &[&str]) -> Examination {
        let checks: Vec<_> = CHECKS.iter().filter(|check| ids.contains(&check.rule.id)).collect();
        examine(&Host::live(Live::new(), Scope::default()), &checks)
    }

    #[test]
    fn notes_do_not_change_the_verdict_and_a_check_that_panics_is_one_that_could_not_tell() {
        assert_eq!(looked_at(&["note"]).verdict(), Verdict::Healthy);
        assert_eq!(looked_at(&["note", "slow"]).verdict(), Verdict::Findings);
        static PANICS: Check = Check { rule: &SLOW, look: |_| panic!("a defect") };
        static WELL: Check = Check { rule: &NOTE, look: |_| Outcome::Healthy("well".into()) };
        let host = Host::live(Live::new(), Scope::default());
        let examination = examine(&host, &[&PANICS, &WELL]);
        assert_eq!(examination.verdict(), Verdict::CouldNotTell);
        assert_eq!(examination.looked[1].outcome, Outcome::Healthy("well".into()));
    }
}
