//! What a colleague reads first: the result in one sentence, then every case in a table.

use std::fmt::Write;

use super::group::Names;
use super::text::{esc, gbps, times};
use crate::units::{Size, grouped};
use crate::{Document, Op, Row, Severity, Verdict, Verify};

/// Engines that say what the machine can do, not what somebody made of it.
const CEILINGS: [&str; 2] = ["memcpy", "libfabric"];

/// Verdicts that are told at the top at most; all are in the tables.
const NOTICES_MAX: usize = 8;

/// `kvrail and 3 other engines on node-1`
pub(super) fn title(documents: &[Document], names: &Names) -> String {
    // In the order of the legend, each once however many ways it went.
    let mut engines: Vec<&str> =
        names.iter().map(|(name, _)| name.split([' ', ':']).next().unwrap_or(name)).collect();
    let mut seen = Vec::new();
    engines.retain(|engine| {
        !seen.contains(engine) && {
            seen.push(*engine);
            true
        }
    });
    let what = match engines.as_slice() {
        [] => "kvrail bench".into(),
        [one] => (*one).to_string(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    };
    let hosts = documents.iter().find_map(|document| document.environment.initiator.as_ref());
    let there = documents.iter().find_map(|document| document.environment.target.as_ref());
    match (hosts, there) {
        (Some(here), Some(there)) if here.host != there.host => {
            format!("{what}: {} to {}", here.host, there.host)
        }
        (Some(here), _) => format!("{what} on {}", here.host),
        _ => what,
    }
}

/// Title, result, when and where.
pub(super) fn head(documents: &[Document], title: &str) -> String {
    let mut out = format!("<header><p class=\"brand\">kvrail benchmark report</p><h1>{}</h1>", esc(title));
    let _ = write!(out, "<p class=\"result\">{}</p>", esc(&result(documents)));
    let mut facts = Vec::new();
    if let Some(started) = documents.iter().map(|d| d.started.as_str()).find(|started| !started.is_empty()) {
        facts.push(started.replace('T', " ").replace('Z', " UTC"));
    }
    if let Some(here) = documents.iter().find_map(|d| d.environment.initiator.as_ref()) {
        facts.push(format!("{}, {} CPUs, {}", here.cpu, here.cpus, here.kernel));
        facts.push(format!(
            "kvrail {}{}",
            here.kvrail,
            if here.profile == "debug" { " (debug build)" } else { "" }
        ));
    }
    if documents.len() > 1 {
        facts.push(format!("{} runs", documents.len()));
    }
    let facts: Vec<String> = facts.iter().map(|fact| esc(fact).into_owned()).collect();
    let _ = write!(out, "<p class=\"facts\">{}</p>", facts.join(" · "));
    out += &notices(documents);
    out + "</header>"
}

/// The result in a sentence or two.
fn result(documents: &[Document]) -> String {
    let rows =
        || documents.iter().flat_map(|document| document.results.iter().map(move |row| (document, row)));
    let measured = || rows().filter(|(_, row)| row.bandwidth_gbps().is_some());
    let Some((document, best)) = headline(documents) else {
        return "Nothing was measured.".into();
    };
    let what = if best.batch > 1 {
        format!("{} × {}, {}, {} memory", grouped(best.batch), Size(best.block_bytes), best.op, best.memory)
    } else {
        format!("{} {}, {} memory", Size(best.block_bytes), best.op, best.memory)
    };
    let bandwidth = best.bandwidth_gbps().unwrap_or(0.0);
    let mut ratios: Vec<(bool, String)> = document
        .results
        .iter()
        .filter(|row| row.case == best.case && row.engine != best.engine)
        .filter_map(|row| {
            let ratio = bandwidth / row.bandwidth_gbps()?;
            ratio.is_finite().then(|| {
                (CEILINGS.contains(&row.engine.as_str()), format!("{} {}", times(ratio), row.engine))
            })
        })
        .collect();
    ratios.sort_by_key(|(is_ceiling, _)| *is_ceiling);
    let ratios: Vec<String> = ratios.into_iter().map(|(_, text)| text).collect();
    let beside = if ratios.is_empty() { String::new() } else { format!(": {}", ratios.join(", ")) };
    let unsure = rows().filter(|(_, row)| !row.verified && row.figures.is_some()).count();
    let failed = rows().filter(|(_, row)| row.figures.is_none()).count();
    let mut out = format!("{what}: {} moves {} GB/s{beside}.", best.engine, gbps(bandwidth));
    out += &match unsure {
        0 if measured().all(|(_, row)| row.verify == Verify::Every) => " Every byte was verified.".into(),
        0 => " The last transfers on each block were verified.".to_string(),
        n => format!(" {n} of {} figures are not verified.", rows().count() - failed),
    };
    if failed > 0 {
        out += &format!(" {failed} of {} measurements failed.", rows().count());
    }
    out
}

/// The case that says most: several engines before one, a batch before single blocks, more bytes before fewer; kvrail's row of it.
fn headline(documents: &[Document]) -> Option<(&Document, &Row)> {
    let rows = documents.iter().flat_map(|document| document.results.iter().map(move |row| (document, row)));
    rows.filter(|(_, row)| row.bandwidth_gbps().is_some()).max_by_key(|(document, row)| {
        let rivals =
            document.results.iter().filter(|other| other.case == row.case && other.engine != row.engine);
        let rivals = rivals.filter(|other| other.bandwidth_gbps().is_some()).count();
        (row.engine == "kvrail", rivals.min(2), row.batch > 1, row.transfer_bytes(), row.op == Op::Read)
    })
}

/// What ended runs early, and verdicts that are bad.
fn notices(documents: &[Document]) -> String {
    let mut out = String::new();
    for document in documents {
        if let Some(failure) = &document.failure {
            let _ = write!(
                out,
                "<div class=\"notice bad\"><strong>The run ended early:</strong> {}",
                esc(&failure.what)
            );
            for hint in &failure.hints {
                let _ = write!(out, "<br/>{}", esc(hint));
            }
            out += "</div>";
        }
        if document.environment.initiator.as_ref().is_some_and(|here| here.profile == "debug") {
            out += "<div class=\"notice bad\">This is a debug build: its figures mean nothing.</div>";
        }
    }
    // One of a kind for each engine: the rest differ by their numbers.
    let mut said: Vec<(&str, &Verdict, usize)> = Vec::new();
    for row in documents.iter().flat_map(|document| &document.results) {
        for verdict in row.verdicts.iter().filter(|verdict| verdict.severity >= Severity::Warning) {
            match said.iter_mut().find(|(engine, before, _)| *engine == row.engine && before.id == verdict.id)
            {
                Some((_, _, more)) => *more += 1,
                None => said.push((&row.engine, verdict, 0)),
            }
        }
    }
    for (engine, verdict, more) in said.iter().take(NOTICES_MAX) {
        let class = if verdict.severity == Severity::Bad { "bad" } else { "warning" };
        let more = if *more == 0 { String::new() } else { format!(" (and {more} more)") };
        let _ = write!(
            out,
            "<div class=\"notice {class}\"><strong>{}</strong> {}: {}{more}</div>",
            esc(&verdict.id.replace('-', " ")),
            esc(engine),
            esc(&verdict.text)
        );
    }
    if said.len() > NOTICES_MAX {
        let _ = write!(
            out,
            "<div class=\"notice\">{} more kinds are in the tables.</div>",
            said.len() - NOTICES_MAX
        );
    }
    out
}

/// A table per run: a line per case, a column per engine.
pub(super) fn tables(documents: &[Document], names: &Names) -> String {
    let mut out = String::new();
    for document in documents.iter().filter(|document| !document.results.is_empty()) {
        out += &table(document, names);
    }
    if out.is_empty() { out } else { format!("<h2>Every case</h2>{out}") }
}

fn table(document: &Document, names: &Names) -> String {
    let mut columns: Vec<usize> = document.results.iter().filter_map(|row| names.position(row)).collect();
    columns.sort_unstable();
    columns.dedup();
    let mut cases: Vec<u32> = document.results.iter().map(|row| row.case).collect();
    cases.dedup();
    cases.sort_unstable();
    cases.dedup();
    let mut out = String::from("<div class=\"scroll\"><table class=\"cases\"><caption>");
    let command = document.command.join(" ");
    let caption =
        if command.is_empty() { "Bandwidth in GB/s".into() } else { format!("{command}; bandwidth in GB/s") };
    let _ = write!(out, "{}</caption><thead><tr><th scope=\"col\">case</th>", esc(&caption));
    for column in &columns {
        let (name, style) = names.at(*column);
        let _ = write!(
            out,
            "<th scope=\"col\" class=\"n {style}\"><span class=\"swatch\"></span>{}</th>",
            esc(name)
        );
    }
    out += "<th scope=\"col\" class=\"n\">plain copy</th><th scope=\"col\">bytes</th></tr></thead><tbody>";
    for case in cases {
        let rows: Vec<&Row> = document.results.iter().filter(|row| row.case == case).collect();
        let Some(first) = rows.first() else { continue };
        let best = rows.iter().filter_map(|row| row.bandwidth_gbps()).fold(0.0, f64::max);
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", esc(&what(first)));
        for column in &columns {
            match rows.iter().find(|row| names.position(row) == Some(*column)) {
                None => out += "<td></td>",
                Some(row) => out += &cell(document, row, best),
            }
        }
        let copy = rows.iter().filter_map(|row| row.figures.as_ref()?.ceiling_gbps).fold(f64::NAN, f64::max);
        let _ = write!(
            out,
            "<td class=\"n dim\">{}</td>",
            if copy.is_finite() { gbps(copy) } else { "–".into() }
        );
        let wrong = rows
            .iter()
            .any(|row| !row.verified && row.failure.as_ref().is_some_and(|f| f.kind == crate::Kind::Check));
        let mut measured = rows.iter().filter(|row| row.figures.is_some());
        out += match (wrong, measured.all(|row| row.verified)) {
            (true, _) => "<td class=\"bad\">WRONG</td></tr>",
            (false, true) => "<td class=\"good\">right</td></tr>",
            (false, false) => "<td class=\"dim\">not all seen</td></tr>",
        };
    }
    out + "</tbody></table></div>"
}

/// A figure with its ratio and badges; or why there is none.
fn cell(document: &Document, row: &Row, best: f64) -> String {
    let Some(gb) = row.bandwidth_gbps() else {
        let why = row.failure.as_ref().map_or("nothing was measured", |failure| &failure.what);
        let wrong = row.failure.as_ref().is_some_and(|failure| failure.kind == crate::Kind::Check);
        let word = if wrong { "wrong bytes" } else { "failed" };
        return format!("<td class=\"bad\" title=\"{}\">{word}</td>", esc(why));
    };
    let class = if gb >= best { "n best" } else { "n" };
    let ratio = document.ratios.iter().find(|ratio| ratio.case == row.case && ratio.engine == row.engine);
    let ratio = ratio.map_or_else(String::new, |ratio| {
        format!("<small>{} {}</small>", times(ratio.bandwidth), esc(&ratio.base))
    });
    let badges: String = row
        .verdicts
        .iter()
        .filter(|verdict| verdict.severity >= Severity::Warning)
        .map(|verdict| {
            let class = if verdict.severity == Severity::Bad { "bad" } else { "warning" };
            format!(
                "<abbr class=\"badge {class}\" title=\"{}\">{}</abbr>",
                esc(&verdict.text),
                esc(&verdict.id.replace('-', " "))
            )
        })
        .collect();
    format!("<td class=\"{class}\">{}{ratio}{badges}</td>", gbps(gb))
}

/// `write 12,800 × 32 KiB scattered, private`
fn what(row: &Row) -> String {
    let mut out = format!("{} ", row.op);
    if row.batch > 1 {
        out += &format!("{} × ", grouped(row.batch));
    }
    out += &format!("{} {}, {}", Size(row.block_bytes), row.layout, row.memory);
    if row.threads > 1 {
        out += &format!(", {} threads", row.threads);
    }
    out
}
