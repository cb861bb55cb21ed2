//! What was seen of one signature in all files, and the finding that it makes.

use std::fmt::Write as _;

use super::Logs;
use super::signature::Signature;
use super::signatures::Mark;
use super::tally::{Captures, Tally};
use super::text;
use crate::finding::{Finding, Location};

/// Values of one capture that are told.
const VALUES_TOLD: usize = 6;
/// Other files that are named.
const FILES_TOLD: usize = 4;

/// What was seen of a signature, for its judge.
pub(super) struct Seen<'a> {
    pub(super) signature: &'static Signature,
    pub(super) logs: &'a Logs,
    /// What was found before it, in the order of the signatures.
    pub(super) told: &'a [Finding],
    /// Files with such lines.
    pub(super) files: Vec<(&'a str, &'a Tally)>,
}

impl Seen<'_> {
    /// Lines that name it.
    pub(super) fn count(&self) -> u64 {
        self.files.iter().map(|(_, tally)| tally.count).sum()
    }

    /// Lines of a mark, in all files.
    pub(super) fn marked(&self, mark: Mark) -> u64 {
        self.logs.marked(mark)
    }

    /// Combinations of captures, in all files, as often as they were seen.
    pub(super) fn combinations(&self) -> impl Iterator<Item = &(Captures, u64)> {
        self.files.iter().flat_map(|(_, tally)| &tally.combinations)
    }

    /// Different values of a capture, most frequent first.
    pub(super) fn values(&self, name: &str) -> Vec<(String, u64)> {
        let mut values: Vec<(String, u64)> = Vec::new();
        for (captures, count) in self.combinations() {
            let Some((_, value)) = captures.iter().find(|(captured, _)| *captured == name) else { continue };
            match values.iter_mut().find(|(known, _)| known == value) {
                Some((_, sum)) => *sum += count,
                None => values.push((value.clone(), *count)),
            }
        }
        values.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| natural(&a.0).cmp(&natural(&b.0))));
        values
    }

    /// The finding, as the signature's data has it.
    pub(super) fn finding(&self) -> Finding {
        let signature = self.signature;
        let rule = &signature.rule;
        let title = self.fill(signature.headline).unwrap_or_else(|| rule.title.into());
        let mut finding = Finding::new(rule, title).confidence(signature.confidence);
        finding.count = self.count();
        let Some((file, tally)) = self.files.first() else { return finding };
        finding = finding
            .at(Location { file: (*file).into(), line: tally.first_line, column: None })
            .evidence(format!("{file}:{}", tally.first_line), tally.sample.clone());
        if let Some(when) = self.when() {
            finding = finding.evidence("when", when);
        }
        for name in names(signature) {
            let values = self.values(name);
            if values.len() > 1 || values.first().is_some_and(|(value, _)| !tally.sample.contains(value)) {
                finding = finding.evidence(name, told(&values));
            }
        }
        if let Some((name, meaning)) = signature.meaning {
            for (value, _) in self.values(name).into_iter().take(VALUES_TOLD) {
                if let Some(meaning) = meaning(&value) {
                    finding = finding.evidence(format!("{name} {value}"), meaning);
                }
            }
        }
        for (file, tally) in self.files.iter().skip(1).take(FILES_TOLD) {
            finding = finding.evidence(format!("{file}:{}", tally.first_line), tally.sample.clone());
        }
        for (text, command) in signature.steps {
            match (self.fill(text), self.fill(command)) {
                (Some(text), Some(command)) if !command.is_empty() => finding = finding.fix(text, command),
                (Some(text), Some(_)) => finding = finding.advice(text),
                _ => {}
            }
        }
        finding
    }

    /// How often, from when to when.
    fn when(&self) -> Option<String> {
        let count = self.count();
        let about = self.files.iter().any(|(_, tally)| tally.about);
        let first = self.files.first().and_then(|(_, tally)| text::time(&tally.first_head));
        let last = self.files.last().and_then(|(_, tally)| text::time(&tally.last_head));
        let mut when = String::new();
        if count > 1 {
            let files = self.files.len();
            let _ = write!(
                when,
                "{}{} lines",
                if about { "about " } else { "" },
                kvrail_report::units::grouped(count)
            );
            if files > 1 {
                let _ = write!(when, " in {files} files");
            }
        }
        let separator = if when.is_empty() { "" } else { ", " };
        match (first, last) {
            (Some(first), Some(last)) if first != last => {
                let _ = write!(when, "{separator}from {first} to {last}");
            }
            (Some(at), _) | (None, Some(at)) => {
                let _ = write!(when, "{separator}at {at}");
            }
            (None, None) => {}
        }
        (!when.is_empty()).then_some(when)
    }

    /// A text with its captures filled in; nothing where one was never seen.
    pub(super) fn fill(&self, template: &str) -> Option<String> {
        let mut out = String::with_capacity(template.len());
        let mut rest = template;
        for name in placeholders(template) {
            let (before, after) = rest.split_once(&format!("{{{name}}}"))?;
            out.push_str(before);
            if name == "count" {
                out.push_str(&kvrail_report::units::grouped(self.count()));
            } else {
                let values = self.values(name);
                out.push_str(&listed(&values)?);
            }
            rest = after;
        }
        Some(kvrail_report::redact::text(&(out + rest)))
    }
}

/// Names in braces, in order. Braces around anything but a name are text (`${HOME}`, `{}` of a command).
pub(super) fn placeholders(template: &str) -> impl Iterator<Item = &str> {
    template.split('{').skip(1).filter_map(|part| {
        let (name, _) = part.split_once('}')?;
        (!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase())).then_some(name)
    })
}

fn names(signature: &'static Signature) -> impl Iterator<Item = &'static str> {
    let parts = signature.needle.pattern.split("(?P<").skip(1);
    parts.filter_map(|part| part.split_once('>').map(|(name, _)| name))
}

/// `28 (12 times), 3 and 2 more`.
fn told(values: &[(String, u64)]) -> String {
    let mut out = String::new();
    for (index, (value, count)) in values.iter().take(VALUES_TOLD).enumerate() {
        let separator = if index > 0 { ", " } else { "" };
        let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
        let _ = write!(out, "{separator}{value}{times}");
    }
    if values.len() > VALUES_TOLD {
        let _ = write!(out, " and {} more", values.len() - VALUES_TOLD);
    }
    out
}

/// `28`, `3 and 28`, `3, 28 and 5 more`; nothing of nothing.
fn listed(values: &[(String, u64)]) -> Option<String> {
    let mut values: Vec<_> = values.iter().map(|(value, _)| value.as_str()).collect();
    values.sort_by_key(|value| natural(value));
    Some(match values.as_slice() {
        [] => return None,
        [one] => (*one).into(),
        [one, two] => format!("{one} and {two}"),
        [one, two, rest @ ..] => format!("{one}, {two} and {} more", rest.len()),
    })
}

/// Numbers by their value, anything else by its text.
fn natural(text: &str) -> (u64, String) {
    (text.parse().unwrap_or(u64::MAX), text.into())
}
