//! The rows as comma-separated values (RFC 4180, lines end in a line feed): a header, then one line per row.

use crate::{Document, Row};

/// Name of a column, and what stands in it; nothing is an empty cell.
type Column = (&'static str, fn(&Row) -> Option<String>);

macro_rules! of_row {
    ($($field:ident),*) => { [$((stringify!($field), |row: &Row| Some(row.$field.to_string()))),*] };
}
macro_rules! of_figures {
    ($($name:literal: $($field:ident).+),* $(,)?) => {
        [$(($name, |row: &Row| row.figures.as_ref().map(|figures| figures.$($field).+.to_string()))),*]
    };
}

const CASE: [Column; 2] = of_row!(case, op);
const CARRIER: [Column; 3] = [
    ("transport", |row| row.transport.clone()),
    ("memory", |row| Some(row.memory.to_string())),
    ("pages", |row| row.pages.clone()),
];
const SHAPE: [Column; 7] = of_row!(layout, block_bytes, batch, pool_bytes, threads, notify, cooperate);
const FIGURES: [Column; 12] = of_figures! {
    "iterations": iterations,
    "bytes": bytes,
    "timed_s": timed_s,
    "bandwidth_gbps": bandwidth_gbps,
    "bandwidth_total_gbps": bandwidth_total_gbps,
    "latency_p50_us": latency_us.p50,
    "latency_p99_us": latency_us.p99,
    "latency_max_us": latency_us.max,
    "prepare_p50_us": prepare_us.p50,
    "post_p50_us": post_us.p50,
    "wire_p50_us": wire_us.p50,
    "cpu_initiator_s": cpu_s.initiator,
};
const CPU: [Column; 1] = of_figures! { "cpu_target_s": cpu_s.target };
const CHECK: [Column; 2] = of_row!(verify, verified);
const JUDGED: [Column; 9] = [
    ("ceiling_gbps", |row| row.figures.as_ref()?.ceiling_gbps.map(|gbps| gbps.to_string())),
    ("above_ceiling", |row| row.figures.as_ref().map(|figures| figures.above_ceiling.to_string())),
    ("engine", |row| Some(row.engine.clone())),
    ("engine_version", |row| row.engine_version.clone()),
    ("line_rate_gbps", |row| row.figures.as_ref()?.line_rate_gbps.map(|gbps| gbps.to_string())),
    ("turns", |row| row.figures.as_ref().map(|figures| figures.turns.len().to_string())),
    ("lowest_ceiling_gbps", |row| row.ceilings.first().map(|ceiling| ceiling.gbps.to_string())),
    ("verdicts", |row| Some(row.verdicts.iter().map(|v| v.id.as_str()).collect::<Vec<_>>().join(" "))),
    ("failure", |row| row.failure.as_ref().map(|failure| failure.what.clone())),
];

fn columns() -> impl Iterator<Item = Column> {
    CASE.into_iter().chain(CARRIER).chain(SHAPE).chain(FIGURES).chain(CPU).chain(CHECK).chain(JUDGED)
}

/// The rows of a document, or its control measurements where it has those.
#[must_use]
pub fn csv(document: &Document) -> String {
    csv_of(std::slice::from_ref(document))
}

/// The same of several documents, below one header; their first column is the run.
#[must_use]
pub fn csv_of(documents: &[Document]) -> String {
    let several = documents.len() > 1;
    if documents.iter().any(|document| document.all_controls().next().is_some()) {
        return controls(documents, several);
    }
    let run = several.then_some("run");
    let header: Vec<&str> = run.into_iter().chain(columns().map(|(name, _)| name)).collect();
    let mut out = header.join(",") + "\n";
    for document in documents {
        for row in &document.results {
            let cells = columns().map(|(_, cell)| cell(row).unwrap_or_default());
            line(&mut out, several.then(|| document.run_id.clone()).into_iter().chain(cells));
        }
    }
    out
}

fn controls(documents: &[Document], several: bool) -> String {
    let mut out = if several { "run," } else { "" }.to_string();
    out += "transport,repetitions,create_agent_ms,register_10000_ms,export_ms,metadata_bytes,import_ms\n";
    for document in documents {
        for control in document.all_controls() {
            let cells = [
                control.transport.clone(),
                control.repetitions.to_string(),
                control.create_agent_ms.to_string(),
                control.register_10000_ms.to_string(),
                control.export_ms.to_string(),
                control.metadata_bytes.to_string(),
                control.import_ms.to_string(),
            ];
            line(&mut out, several.then(|| document.run_id.clone()).into_iter().chain(cells));
        }
    }
    out
}

fn line(out: &mut String, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.map(|cell| quoted(&cell)).collect();
    *out += &cells.join(",");
    out.push('\n');
}

/// A cell. Text that a spreadsheet would take for a formula is told apart by a leading apostrophe: it may come from a peer.
fn quoted(text: &str) -> String {
    let formula =
        text.starts_with(['=', '+', '@', '\t']) || (text.starts_with('-') && text.parse::<f64>().is_err());
    let text = if formula { format!("'{text}") } else { text.to_string() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Failure;
    use crate::document::tests::{document, row};

    /// Reads RFC 4180, as strictly as a test can.
    fn read(csv: &str) -> Vec<Vec<String>> {
        let (mut lines, mut cells, mut cell, mut inside) = (Vec::new(), Vec::new(), String::new(), false);
        let mut chars = csv.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if inside && chars.peek() == Some(&'"') => cell.push(chars.next().unwrap()),
                '"' => inside = !inside,
                ',' if !inside => cells.push(std::mem::take(&mut cell)),
                '\n' if !inside => {
                    cells.push(std::mem::take(&mut cell));
                    lines.push(std::mem::take(&mut cells));
                }
                c => cell.push(c),
            }
        }
        assert!(!inside && cell.is_empty() && cells.is_empty());
        lines
    }

    #[test]
    fn every_line_has_as_many_cells_as_the_header_whatever_stands_in_them() {
        let mut document = document();
        let failure = Failure::engine("it said \"no\",\nand =died");
        document.results.push(Row {
            engine: "=cmd()".into(),
            figures: None,
            failure: Some(failure),
            ..row()
        });
        let lines = read(&csv(&document));
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        let at = |line: usize, name: &str| {
            let column = lines[0].iter().position(|head| head == name).unwrap();
            lines[line][column].clone()
        };
        assert_eq!(at(1, "pages"), "4, \"KiB\"");
        assert_eq!((at(1, "bandwidth_gbps"), at(2, "bandwidth_gbps")), ("10".into(), String::new()));
        assert_eq!(
            (at(2, "engine"), at(2, "failure")),
            ("'=cmd()".into(), "it said \"no\",\nand =died".into())
        );
    }

    #[test]
    fn several_documents_stand_below_one_header_with_their_runs() {
        let lines = read(&csv_of(&[document(), document()]));
        assert_eq!((lines.len(), lines[0][0].as_str()), (3, "run"));
        assert_eq!(lines[1][0], "19700101T000000Z-00000001");
    }
}
