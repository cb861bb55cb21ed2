//! Several engines side by side, for a terminal: one line per case, and for each engine what it reached, its share of the
//! lowest ceiling, how it stands to the first, and its latency. At most 100 columns; with more engines the columns that
//! matter least go first.

use crate::judge::number;
use crate::units::{Size, grouped, micros};
use crate::{Document, Ratio, Row, Severity};

/// Widths of op, block and batch, with a blank behind each.
const LEFT: [usize; 3] = [5, 7, 6];
/// Longest line.
const COLUMNS: usize = 100;
/// Sentences below the table.
const SENTENCES_MAX: usize = 16;

/// A column of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Column {
    Rate,
    Percent,
    Ratio,
    Latency,
}

impl Column {
    const fn head(self) -> &'static str {
        match self {
            Self::Rate => "GB/s",
            Self::Percent => "%",
            Self::Ratio => "ratio",
            Self::Latency => "p50 \u{b5}s",
        }
    }

    const fn width(self) -> usize {
        match self {
            Self::Rate => 6,
            Self::Percent => 4,
            Self::Ratio => 5,
            Self::Latency => 7,
        }
    }
}

/// What is left out first as engines become more.
const SETS: [&[Column]; 3] = [
    &[Column::Rate, Column::Percent, Column::Ratio, Column::Latency],
    &[Column::Rate, Column::Percent, Column::Ratio],
    &[Column::Rate, Column::Ratio],
];

/// The columns of an engine: the first is what the others' ratios are to.
fn columns(set: &'static [Column], first: bool) -> impl Iterator<Item = Column> {
    set.iter().copied().filter(move |column| !(first && *column == Column::Ratio))
}

fn width(set: &'static [Column], first: bool) -> usize {
    columns(set, first).map(|column| column.width() + 1).sum()
}

fn left() -> usize {
    LEFT.iter().map(|width| width + 1).sum()
}

/// The richest set of columns with which so many engines fit, and how many fit then.
fn fitting(engines: usize) -> (&'static [Column], usize) {
    let holds = |set| 1 + (COLUMNS + 1 - left() - width(set, true)) / width(set, false);
    let poorest = SETS[SETS.len() - 1];
    let set = SETS.into_iter().find(|set| holds(set) >= engines).unwrap_or(poorest);
    (set, holds(set))
}

/// The table of a document in which several engines took turns.
#[must_use]
pub fn table(document: &Document) -> String {
    let mut engines = document.engines();
    if let Some(at) = engines.iter().position(|engine| *engine == "kvrail") {
        let base = engines.remove(at);
        engines.insert(0, base);
    }
    let Some((base, others)) = engines.split_first() else { return String::new() };
    let (set, fit) = fitting(engines.len());
    // More engines than any set holds: one table below the other, each beginning with the first engine.
    let mut groups: Vec<&[&str]> = others.chunks(fit.max(2) - 1).collect();
    if groups.is_empty() {
        groups.push(&[]);
    }
    let tables: Vec<String> = groups
        .into_iter()
        .map(|others| {
            let engines: Vec<&str> = std::iter::once(*base).chain(others.iter().copied()).collect();
            group(document, &engines, set)
        })
        .collect();
    let text = tables.join("\n") + &footer(document);
    // Documents come from files: no value in them widens the table, and none of their texts speaks to the terminal.
    text.lines().map(|line| cut(&line.replace(char::is_control, " "), COLUMNS) + "\n").collect()
}

fn group(document: &Document, engines: &[&str], set: &'static [Column]) -> String {
    let mut out = String::new();
    let mut above = None;
    let mut cases: Vec<u32> = document.results.iter().map(|row| row.case).collect();
    cases.dedup();
    cases.sort_unstable();
    cases.dedup();
    for case in cases {
        let of = |engine: &str| document.results.iter().find(|row| row.case == case && row.engine == engine);
        let rows: Vec<Option<&Row>> = engines.iter().map(|engine| of(engine)).collect();
        let Some(first) = rows.iter().flatten().next() else { continue };
        let threads = if first.threads == 1 { String::new() } else { format!(", {} threads", first.threads) };
        let notify = if first.notify { ", with notifications" } else { "" };
        let carried: Vec<String> = rows
            .iter()
            .flatten()
            .filter_map(|row| Some(format!("{} over {}", row.engine, row.transport.as_deref()?)))
            .collect();
        let what = format!("{} memory, {} blocks{threads}{notify}", first.memory, first.layout);
        let now = (what, carried);
        if above.as_ref() != Some(&now) {
            let gap = if above.is_some() { "\n" } else { "" };
            out += &format!(
                "{gap}{}\n{}{}{}",
                now.0,
                wrapped(&now.1),
                engine_heads(engines, set),
                heads(engines.len(), set)
            );
            above = Some(now);
        }
        out += &line(document, first, &rows, set);
    }
    out
}

/// Words in lines of at most 100 columns.
fn wrapped(words: &[String]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + word.chars().count() < COLUMNS => {
                *line += "; ";
                *line += word;
            }
            _ => lines.push(word.clone()),
        }
    }
    lines.iter().map(|line| cut(line, COLUMNS) + "\n").collect()
}

/// A text of at most so many characters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// Each engine's name in the middle of a rule as wide as its columns.
fn engine_heads(engines: &[&str], set: &'static [Column]) -> String {
    let mut out = " ".repeat(left());
    for (index, engine) in engines.iter().enumerate() {
        let width = width(set, index == 0) - 1;
        let name = cut(engine, width);
        let name = if name.chars().count() + 2 <= width { format!(" {name} ") } else { name };
        out += &format!("{name:-^width$} ");
    }
    out.trim_end().to_string() + "\n"
}

fn heads(engines: usize, set: &'static [Column]) -> String {
    let mut out = String::new();
    for (head, width) in ["op", "block", "batch"].into_iter().zip(LEFT) {
        out += &if head == "op" { format!("{head:<width$} ") } else { format!("{head:>width$} ") };
    }
    for index in 0..engines {
        for column in columns(set, index == 0) {
            out += &format!("{:>1$} ", column.head(), column.width());
        }
    }
    out.trim_end().to_string() + "\n"
}

fn line(document: &Document, first: &Row, rows: &[Option<&Row>], set: &'static [Column]) -> String {
    let cells = [first.op.to_string(), Size(first.block_bytes).to_string(), grouped(first.batch)];
    let mut out = format!("{:<3$} {:>4$} {:>5$} ", cells[0], cells[1], cells[2], LEFT[0], LEFT[1], LEFT[2]);
    for (index, row) in rows.iter().enumerate() {
        let wide = width(set, index == 0) - 1;
        let Some(row) = row else {
            out += &format!("{:>wide$} ", "-");
            continue;
        };
        let Some(figures) = &row.figures else {
            out += &format!("{:>wide$} ", "failed");
            continue;
        };
        let marked = row.verdicts.iter().any(|verdict| verdict.severity >= Severity::Warning);
        for column in columns(set, index == 0) {
            let mark = if marked { "!" } else { "" };
            let cell = match column {
                Column::Rate => format!("{}{mark}", rate(figures.bandwidth_gbps)),
                Column::Percent => {
                    let percent = row.ceilings.first().and_then(|ceiling| ceiling.percent);
                    percent.map_or_else(|| "-".into(), |percent| format!("{:.0}", percent.min(9999.0)))
                }
                Column::Ratio => {
                    ratio(document, row).map_or_else(|| "-".into(), |ratio| times(ratio.bandwidth))
                }
                Column::Latency => micros(figures.latency_us.p50),
            };
            out += &format!("{cell:>0$} ", column.width());
        }
    }
    out.trim_end().to_string() + "\n"
}

fn ratio<'a>(document: &'a Document, row: &Row) -> Option<&'a Ratio> {
    document.ratios.iter().find(|ratio| ratio.case == row.case && ratio.engine == row.engine)
}

/// At most five characters, so that a mark fits behind.
fn rate(gbps: f64) -> String {
    match gbps {
        gbps if gbps < 9.995 => format!("{gbps:.2}"),
        gbps if gbps < 999.95 => format!("{gbps:.1}"),
        gbps => format!("{:.0}", gbps.min(99_999.0)),
    }
}

/// A ratio in at most five characters.
fn times(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 0.0995 => format!("{ratio:.3}"),
        ratio if ratio < 99.95 => format!("{ratio:.2}"),
        ratio => format!("{:.0}", ratio.min(99_999.0)),
    }
}

/// What columns and marks mean, and the verdicts in full, the worst first.
fn footer(document: &Document) -> String {
    let mut out = String::new();
    if !document.ratios.is_empty() {
        let base = document.ratios.first().map_or("", |ratio| ratio.base.as_str());
        out += &folded(&format!(
            "ratio: bandwidth in multiples of {base}'s, median of the turns; %: of the lowest ceiling"
        ));
    }
    let mut said: Vec<(Severity, String, Vec<String>)> = Vec::new();
    for row in &document.results {
        for verdict in row.verdicts.iter().filter(|verdict| verdict.severity >= Severity::Warning) {
            let place = format!("{} {} {}", row.engine, row.op, Size(row.block_bytes));
            // One sentence stands for all rows of an engine that got the same verdict; the first one's numbers are said.
            let key = format!("{} {}", row.engine, verdict.id);
            match said.iter_mut().find(|(_, text, _)| text.starts_with(&key)) {
                Some((_, _, places)) => places.push(place),
                None => said.push((verdict.severity, format!("{key}: {}", verdict.text), vec![place])),
            }
        }
    }
    said.sort_by_key(|(severity, ..)| std::cmp::Reverse(*severity));
    for (_, text, places) in said.iter().take(SENTENCES_MAX) {
        let others =
            if places.len() > 1 { format!(" (and {} more rows)", places.len() - 1) } else { String::new() };
        let sentence = text.split_once(": ").map_or(text.as_str(), |(_, text)| text);
        out += &folded(&format!("! {}: {sentence}{others}", places[0]));
    }
    if said.len() > SENTENCES_MAX {
        out += &format!("! and {} more\n", said.len() - SENTENCES_MAX);
    }
    out
}

/// A sentence in lines of at most 100 columns, the later ones indented. A word that is longer is cut: its document has it whole.
fn folded(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word = cut(word, COLUMNS - 2);
        match lines.last_mut() {
            Some(line) if line.is_empty() => *line += &word,
            Some(line) if line.chars().count() + word.chars().count() < COLUMNS => {
                *line += " ";
                *line += &word;
            }
            _ => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n") + "\n"
}

/// One sentence on the whole run: how the base stands to each other engine at the case where most bytes move.
#[must_use]
pub fn in_one_sentence(document: &Document) -> Option<String> {
    let largest = document
        .results
        .iter()
        .filter(|row| document.ratios.iter().any(|ratio| ratio.case == row.case))
        .max_by_key(|row| row.transfer_bytes())?;
    let against: Vec<String> = document
        .ratios
        .iter()
        .filter(|ratio| ratio.case == largest.case && ratio.bandwidth > 0.0)
        .map(|ratio| format!("{} times {}", number(1.0 / ratio.bandwidth), ratio.engine))
        .collect();
    let base = &document.ratios.iter().find(|ratio| ratio.case == largest.case)?.base;
    (!against.is_empty())
        .then(|| format!("{base} is {} at {}", against.join(", "), crate::judge::shape(largest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::{document, row};
    use crate::{Failure, Figures};

    fn of(engine: &str, gbps: f64) -> Row {
        let figures = Some(Figures { bandwidth_gbps: gbps, ..row().figures.unwrap() });
        Row { engine: engine.into(), figures, ..row() }
    }

    fn run(engines: &[(&str, f64)]) -> Document {
        let mut document = document();
        document.results = engines.iter().map(|(engine, gbps)| of(engine, *gbps)).collect();
        document.conclude(Ok(()));
        document
    }

    #[test]
    fn three_engines_stand_side_by_side_in_a_hundred_columns() {
        let document = run(&[("nixl:UCX", 8.0), ("kvrail", 9.5), ("ucx", 285.0)]);
        let text = table(&document);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let expected = "\
op      block  batch   GB/s    %  p50 \u{b5}s   GB/s    % ratio  p50 \u{b5}s   GB/s    % ratio  p50 \u{b5}s
write  32 KiB    100   9.50   79   1.500   8.00   67  1.00   1.500  285.0 2375  1.00   1.500
";
        assert!(text.contains(expected), "{text}");
        assert!(text.lines().nth(2).unwrap().contains("-- kvrail --"), "{text}");
        assert_eq!(
            in_one_sentence(&document).unwrap(),
            "kvrail is 1 times nixl:UCX, 1 times ucx at write, 100 x 32 KiB scattered"
        );
    }

    #[test]
    fn more_engines_lose_columns_and_at_last_wrap_but_never_widen() {
        let names: Vec<String> = (0..11).map(|i| format!("engine-with-a-long-name-{i}")).collect();
        for count in 1..=11 {
            let engines: Vec<(&str, f64)> = names[..count].iter().map(|name| (name.as_str(), 1.0)).collect();
            let text = table(&run(&engines));
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
            let lines = text.lines().filter(|line| line.starts_with("write")).count();
            assert_eq!(lines, if count <= 6 { 1 } else { 2 }, "{count}: {text}");
        }
        assert_eq!(table(&run(&[])), "");
    }

    #[test]
    fn a_failed_engine_and_a_verdict_are_marked_and_said_below() {
        let mut document = run(&[("kvrail", 9.5), ("ucx", 8.0)]);
        document.results[0].verify = crate::Verify::Off;
        document.results[0].verified = false;
        document.results[1] =
            Row { figures: None, failure: Some(Failure::engine("it died")), ..of("ucx", 0.0) };
        document.conclude(Ok(()));
        let text = table(&document);
        assert!(text.contains(" 9.50! ") && text.contains(" failed\n"), "{text}");
        assert!(text.contains("! ucx write 32 KiB: it died\n"), "{text}");
        assert!(text.contains("! kvrail write 32 KiB: nobody looked at the bytes"), "{text}");
    }
}
