//! `kvrail doctor --explain ID` and `--list`: what is known, without looking at anything.

use kvrail_doctor::{catalogue, render};

use super::telling::{Format, Telling};
use crate::failure::Failure;

/// Tells the story of a rule.
pub(super) fn explain(id: &str, telling: &Telling) -> Result<(), Failure> {
    let rule = catalogue::rule(id).map_err(|alike| {
        let failure = Failure::usage(format!("there is no rule `{id}`"));
        let failure = match alike.as_slice() {
            [] => failure,
            alike => failure.hint(format!("did you mean {}?", alike.join(", "))),
        };
        failure.hint("`kvrail doctor --list` has all")
    })?;
    match telling.format {
        Format::Text => telling.write(&render::page(rule, telling.manner())),
        Format::Json => {
            let json = serde_json::to_string_pretty(rule).unwrap_or_default();
            telling.write(&(json + "\n"))
        }
        Format::Markdown | Format::Sarif => Err(Failure::usage("--explain writes text or json")),
    }
}

/// Lists all rules.
pub(super) fn list(telling: &Telling) -> Result<(), Failure> {
    match telling.format {
        Format::Text => telling.write(&render::list(telling.manner())),
        Format::Json => telling.write(&render::list_json()),
        Format::Markdown => telling.write(&render::list_markdown()),
        Format::Sarif => Err(Failure::usage("--list writes text, json or markdown")),
    }
}
