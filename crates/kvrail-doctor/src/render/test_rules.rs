//! Rules for the tests of the renderers.

use crate::rule::{Kind, Reference, Rule, Severity};

const fn rule(id: &'static str, severity: Severity, explained_by: &'static [&'static str]) -> Rule {
    Rule {
        id,
        title: "something is wrong with the rail",
        severity,
        kind: Kind::Host,
        cause: "The rail is not connected to anything.",
        remedy: "Connect it.",
        story: "Nothing arrives, and nothing says why.\n\nA rail that leads nowhere takes what is sent and loses it:\n\n    tx_pkts 100\n    rx_pkts 0\n\nSo both counters are read.",
        references: &[Reference { title: "Rails: a manual", url: "https://example.org/rails" }],
        explained_by,
    }
}

pub(super) static NOTE: Rule = rule("note", Severity::Note, &[]);
pub(super) static SLOW: Rule = rule("slow", Severity::Warning, &[]);
pub(super) static FAILS: Rule = rule("fails", Severity::Error, &["root"]);
pub(super) static ROOT: Rule = rule("root", Severity::Error, &[]);
pub(super) static UNSURE: Rule = rule("unsure", Severity::Error, &[]);
pub(super) static CIRCLE_A: Rule = rule("circle-a", Severity::Error, &["circle-b"]);
pub(super) static CIRCLE_B: Rule = rule("circle-b", Severity::Error, &["circle-a"]);
