//! For people at a terminal: what is wrong first, each with its cause and what to type; what is well folded into one line.

use std::fmt::Write as _;

use crate::examine::Examination;
use crate::finding::Outcome;

/// How it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Manner {
    /// With colours.
    pub colours: bool,
    /// With every check and all evidence.
    pub verbose: bool,
}

/// An examination as text.
#[must_use]
pub fn terminal(examination: &Examination, manner: Manner) -> String {
    let mut text = String::new();
    for finding in examination.findings() {
        let _ = writeln!(text, "{} [{}]: {}", finding.severity, finding.rule.id, finding.title);
        let _ = writeln!(text, "  cause: {}", finding.cause);
        for evidence in &finding.evidence {
            let _ = writeln!(text, "  saw:   {}: {}", evidence.source, evidence.seen);
        }
        for step in &finding.fix {
            let _ = writeln!(
                text,
                "  fix:   {}{}",
                step.text,
                step.command.as_ref().map(|c| format!(": {c}")).unwrap_or_default()
            );
        }
        text.push('\n');
    }
    for looked in &examination.looked {
        match &looked.outcome {
            Outcome::Unknown(why) => {
                let _ = writeln!(text, "could not tell [{}]: {why}", looked.rule.id);
            }
            Outcome::Healthy(saw) if manner.verbose => {
                let _ = writeln!(text, "ok [{}]: {saw}", looked.rule.id);
            }
            Outcome::NotApplicable(why) if manner.verbose => {
                let _ = writeln!(text, "not here [{}]: {why}", looked.rule.id);
            }
            _ => {}
        }
    }
    text
}
