//! The rest: what failed and why, what each engine really used, the hosts, how to repeat a run, and how to read all this.

use std::fmt::Write;

use super::text::esc;
use crate::fingerprint::Fingerprint;
use crate::units::{Size, about, grouped};
use crate::{Carriage, Document, Environment, Severity};

/// All of it.
pub(super) fn all(documents: &[Document]) -> String {
    let mut out = failures(documents);
    out += &verdicts(documents);
    out += &used(documents);
    out += &hosts(documents);
    out += &repeat(documents);
    out + NOTES
}

const NOTES: &str = "<h2>How to read this</h2><ul class=\"notes\">\
    <li>GB/s are decimal: 10<sup>9</sup> bytes per second. KiB and MiB are binary: 1,024 and 1,048,576 bytes.</li>\
    <li>Engines ran in turns on the same blocks. A ratio is the median of the ratios within the turns, so that a machine that \
    becomes slower does not favour whoever ran first.</li>\
    <li>Latency is per transfer, that is per batch of blocks: from just before it is posted until its completion was seen.</li>\
    <li>A figure counts only if its bytes were verified: the source holds a pattern in which every word names its round and place, \
    the destination is poisoned before, and every byte is looked at outside the timed part.</li>\
    <li>A plain copy is what one loop of memory copies over the same blocks reaches on the initiator's host. On one host an \
    engine can be above it by using more cores; across a network nothing is above the line rate.</li></ul>";

fn failures(documents: &[Document]) -> String {
    let mut out = String::new();
    let mut said: Vec<(&str, &str)> = Vec::new();
    for row in documents.iter().flat_map(|document| &document.results) {
        let Some(failure) = &row.failure else { continue };
        if said.contains(&(&row.engine, &failure.what)) {
            continue;
        }
        said.push((&row.engine, &failure.what));
        let _ = write!(
            out,
            "<li><strong>{}</strong>, {} {} × {}: {}",
            esc(&row.engine),
            row.op,
            grouped(row.batch),
            Size(row.block_bytes),
            esc(&failure.what)
        );
        for hint in &failure.hints {
            let _ = write!(out, "<br/><em>{}</em>", esc(hint));
        }
        out += "</li>";
    }
    if out.is_empty() { out } else { format!("<h2>What failed</h2><ul class=\"notes\">{out}</ul>") }
}

fn verdicts(documents: &[Document]) -> String {
    let mut said: Vec<&str> = Vec::new();
    let mut out = String::new();
    for row in documents.iter().flat_map(|document| &document.results) {
        for verdict in row.verdicts.iter().filter(|v| v.severity < Severity::Warning) {
            if !said.contains(&verdict.text.as_str()) && said.len() < 20 {
                said.push(&verdict.text);
                let _ = write!(out, "<li>{}: {}</li>", esc(&row.engine), esc(&verdict.text));
            }
        }
    }
    if out.is_empty() { out } else { format!("<h2>Verdicts</h2><ul class=\"notes\">{out}</ul>") }
}

fn used(documents: &[Document]) -> String {
    let mut out = String::new();
    let mut shown: Vec<(&str, Option<&Carriage>, Option<&Carriage>)> = Vec::new();
    for of in documents.iter().flat_map(|document| &document.transports) {
        let this = (of.engine.as_str(), of.initiator.as_ref(), of.target.as_ref());
        if shown.contains(&this) {
            continue;
        }
        shown.push(this);
        let version = documents.iter().flat_map(|d| &d.results).find(|row| row.engine == of.engine);
        let version = version.and_then(|row| row.engine_version.as_deref()).unwrap_or_default();
        let _ = write!(
            out,
            "<details{}><summary><strong>{}</strong> {} <span class=\"dim\">{}</span></summary>",
            if shown.len() <= 6 { " open=\"open\"" } else { "" },
            esc(&of.engine),
            esc(version),
            esc(of.transport().unwrap_or("unknown transport"))
        );
        match (&of.initiator, &of.target) {
            (Some(here), Some(there)) if here == there => out += &carriage("both sides", here),
            (here, there) => {
                out += &here.as_ref().map_or_else(String::new, |side| carriage("initiator", side));
                out += &there.as_ref().map_or_else(String::new, |side| carriage("target", side));
            }
        }
        out += "</details>";
    }
    if out.is_empty() { out } else { format!("<h2>What was really used</h2>{out}") }
}

fn carriage(side: &str, of: &Carriage) -> String {
    let mut lines: Vec<(String, String)> = vec![("transport".into(), of.transport.clone())];
    if !of.evidence.is_empty() {
        lines.push(("evidence of arrival".into(), of.evidence.clone()));
    }
    match of.rails.as_slice() {
        [] => {}
        rails => {
            let names: Vec<&str> = rails.iter().take(8).map(|rail| rail.name.as_str()).collect();
            let more = if rails.len() > 8 { format!(" and {} more", rails.len() - 8) } else { String::new() };
            let rate = of
                .line_rate_gbps()
                .map_or_else(String::new, |rate| format!("; line rate {rate:.3} GB/s in all"));
            lines.push((format!("{} rails", rails.len()), format!("{}{more}{rate}", names.join(", "))));
        }
    }
    if let Some(path) = &of.path {
        lines.push(("way to memory".into(), format!("{:.1} GB/s: {}", path.bps as f64 / 8e9, path.bound)));
    }
    if let Some(of) = &of.libfabric {
        lines.push(("provider".into(), format!("{} (fabric {})", of.provider, of.fabric)));
        lines.push(("libfabric".into(), format!("{}, {}; {}", of.release, of.symbols, of.path)));
        lines.extend(of.passed_over.iter().map(|text| ("passed over".to_string(), text.clone())));
        lines.extend(of.left_out.iter().map(|text| ("left out".to_string(), text.clone())));
    }
    lines.extend(of.facts.iter().map(|(name, value)| (name.clone(), value.clone())));
    definitions(side, &lines)
}

fn definitions(caption: &str, lines: &[(String, String)]) -> String {
    let mut out =
        format!("<div class=\"scroll\"><table class=\"facts\"><caption>{}</caption><tbody>", esc(caption));
    for (name, value) in lines {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", esc(name), esc(value));
    }
    out + "</tbody></table></div>"
}

fn hosts(documents: &[Document]) -> String {
    let mut out = String::new();
    let mut shown: Vec<(&Environment, Option<&Fingerprint>)> = Vec::new();
    for document in documents {
        let sides = [
            ("initiator", &document.environment.initiator, &document.fingerprint.initiator),
            ("target", &document.environment.target, &document.fingerprint.target),
        ];
        for (side, environment, fingerprint) in sides {
            let Some(environment) = environment else { continue };
            if shown.iter().any(|before| {
                before.0 == environment && (before.1 == fingerprint.as_ref() || fingerprint.is_none())
            }) {
                continue;
            }
            shown.push((environment, fingerprint.as_ref()));
            let both = document.environment.initiator == document.environment.target;
            let caption = if both {
                format!("{} (both sides)", environment.host)
            } else {
                format!("{} ({side})", environment.host)
            };
            out += &definitions(&caption, &host(environment, fingerprint.as_ref()));
        }
    }
    if out.is_empty() { out } else { format!("<h2>Hosts</h2>{out}") }
}

fn host(of: &Environment, fingerprint: Option<&Fingerprint>) -> Vec<(String, String)> {
    let mut lines = vec![
        ("CPU".to_string(), format!("{}, {} usable", of.cpu, of.cpus)),
        ("memory".into(), about(of.memory_bytes)),
        ("kernel".into(), of.kernel.clone()),
        ("kvrail".into(), format!("{} ({})", of.kvrail, of.profile)),
    ];
    let Some(print) = fingerprint else { return lines };
    if let Some(machine) = &print.machine {
        lines.insert(0, ("machine".into(), machine.clone()));
    }
    for (name, value) in
        print.versions.iter().filter(|(name, _)| !matches!(name.as_str(), "kvrail" | "kernel"))
    {
        lines.push((name.clone(), value.clone()));
    }
    // The rest as the document has it: its fields are named for readers.
    let rest = [
        ("topology", serde_json::to_value(&print.topology)),
        ("limits", serde_json::to_value(&print.limits)),
        ("git", serde_json::to_value(&print.git)),
    ];
    for (name, value) in rest {
        if let Ok(value) = value
            && let Some(text) = flat(&value)
        {
            lines.push((name.into(), text));
        }
    }
    lines.extend(print.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
    lines
}

/// `numa_nodes 2, gpus 8, nics 32 × 100 Gb/s`: a value's leaves with their names.
fn flat(value: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(flat).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => {
            let named = fields
                .iter()
                .filter_map(|(name, value)| Some(format!("{} {}", name.replace('_', " "), flat(value)?)));
            named.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    (!text.is_empty()).then_some(text)
}

fn repeat(documents: &[Document]) -> String {
    let mut out = String::new();
    for document in documents.iter().filter(|document| !document.command.is_empty()) {
        let command = document.command.join(" ");
        let seed =
            if command.contains("--seed") { String::new() } else { format!(" --seed {}", document.seed) };
        let _ = writeln!(out, "{}{seed}", esc(&command));
    }
    if out.is_empty() { out } else { format!("<h2>How to repeat it</h2><pre>{out}</pre>") }
}
