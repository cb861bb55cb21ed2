//! `kvrail report` and `kvrail compare`: documents read again, rendered anew, and set against each other.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kvrail_report::compare::{self, Limits};
use kvrail_report::{Document, csv, html, junit, markdown, nixlbench_table, table, versus};

use crate::expect::Expect;
use crate::failure::Failure;
use crate::sink;

/// Bytes of a document at most: histograms of a thousand rows are a tenth of that.
const DOCUMENT_BYTES_MAX: u64 = 512 << 20;
/// Files of a folder that are looked at.
const FILES_MAX: usize = 10_000;
/// Levels of folders below the one that is named.
const DEPTH_MAX: usize = 3;

/// How a report is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// For terminals.
    Table,
    /// For people and issues.
    Markdown,
    /// One line per row.
    Csv,
    /// For continuous integration: a case per row.
    Junit,
    /// One self-contained page for people, with charts.
    Html,
    /// nixlbench's own table.
    Nixlbench,
    /// The document itself; several as {"schema": "kvrail.report.v1", "runs": […]}.
    Json,
}

/// Arguments of `kvrail report`.
#[derive(Args, Debug)]
pub(crate) struct Report {
    /// Documents of kvrail bench, or folders with such (results.json of an artefact folder)
    #[arg(required = true, value_name = "FILE|DIR")]
    from: Vec<PathBuf>,
    /// How the report is written
    #[arg(long, value_enum, default_value_t = Format::Markdown)]
    format: Format,
    /// Write it to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Hold the figures against what an instance type should reach: p5, p4d, …, or a file of expectations
    #[arg(long, value_name = "NAME|FILE")]
    expect: Option<String>,
}

/// Arguments of `kvrail compare`.
#[derive(Args, Debug)]
pub(crate) struct Compare {
    /// The run that counts as before: a document, or a folder with documents
    a: PathBuf,
    /// The run that is held against it
    b: PathBuf,
    /// Differences up to this share are none, whatever the noise, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    floor: f64,
    /// So many spreads of the turns are noise
    #[arg(long, value_name = "N", default_value_t = 2.0)]
    spreads: f64,
    /// Write JSON (kvrail.compare.v1) instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs `kvrail report`.
///
/// # Errors
/// A file that cannot be read or written, or that is no document; with `--expect` also what misses it.
pub(crate) fn report(arguments: &Report) -> Result<(), Failure> {
    let expect = arguments.expect.as_deref().map(Expect::read).transpose()?;
    let mut documents = Vec::new();
    for path in &arguments.from {
        documents.extend(read(path)?);
    }
    let ended = match &expect {
        Some(expect) => expect.judge(&mut documents),
        None => Ok(()),
    };
    write(&render(arguments.format, &documents), arguments.output.as_deref())?;
    ended
}

/// Runs `kvrail compare`.
///
/// # Errors
/// A regression (exit code 1), or that nothing could be compared (2).
pub(crate) fn compare(arguments: &Compare) -> Result<(), Failure> {
    let share = arguments.floor / 100.0;
    if !(0.0..1.0).contains(&share) || !(0.0..=100.0).contains(&arguments.spreads) {
        return Err(Failure::usage("--floor is 0 to 100 percent, and --spreads 0 to 100"));
    }
    let limits = Limits { floor: share, spreads: arguments.spreads, ..Limits::default() };
    let comparison = compare::compare(&read(&arguments.a)?, &read(&arguments.b)?, limits);
    write(&if arguments.json { comparison.json() } else { comparison.text() }, None)?;
    match comparison.exit_code() {
        0 => Ok(()),
        1 => Err(Failure::check(format!("B is worse than A: {}", comparison.summary()))),
        _ => Err(Failure::environment(format!("nothing could be compared: {}", comparison.summary()))
            .hint("rows are matched by engine, op, transport, memory, layout, block, batch and threads")
            .hint("for more turns, measure longer: --duration 2s")),
    }
}

/// Documents as text.
pub(crate) fn render(format: Format, documents: &[Document]) -> String {
    match format {
        Format::Table => documents.iter().map(for_terminal).collect::<Vec<_>>().join("\n"),
        Format::Markdown => markdown::markdown(documents),
        Format::Csv => csv::csv_of(documents),
        Format::Junit => junit::junit(documents),
        Format::Html => html::html(documents),
        Format::Nixlbench => documents.iter().map(nixlbench_table::table).collect::<Vec<_>>().join("\n"),
        Format::Json => match documents {
            [one] => one.json(),
            several => {
                let runs: Vec<String> =
                    several.iter().map(|document| document.json().trim_end().into()).collect();
                format!("{{\"schema\":\"kvrail.report.v1\",\"runs\":[{}]}}\n", runs.join(","))
            }
        },
    }
}

/// The table that the run itself printed.
pub(crate) fn for_terminal(document: &Document) -> String {
    if document.engines().len() > 1 {
        return versus::table(document);
    }
    let mut table = table::Table::default();
    let mut out: String = document.all_controls().map(table::Table::control).collect();
    for row in &document.results {
        out += &table.row(row, document.used(row));
    }
    // A document may be anyone's: none of its texts speaks to the terminal.
    (out + &table.footer()).replace(|c: char| c.is_control() && c != '\n', " ")
}

/// The documents of a file or folder.
///
/// # Errors
/// When it cannot be read, or there is none.
pub(crate) fn read(path: &Path) -> Result<Vec<Document>, Failure> {
    let unreadable = |path: &Path, e: &dyn std::fmt::Display| {
        Failure::environment(format!("cannot read {}: {e}", path.display()))
    };
    if !path.is_dir() {
        let text = read_bounded(path).map_err(|e| unreadable(path, &e))?;
        return Ok(vec![judged(Document::read(&text).map_err(|e| unreadable(path, &e))?)]);
    }
    let mut files = Vec::new();
    find(path, 0, &mut files).map_err(|e| unreadable(path, &e))?;
    files.sort_unstable();
    let mut documents = Vec::new();
    for file in files {
        // Other JSON may lie beside documents; a damaged document may not pass for that.
        let text = read_bounded(&file).map_err(|e| unreadable(&file, &e))?;
        if text.contains("kvrail.bench.v") {
            documents.push(judged(Document::read(&text).map_err(|e| unreadable(&file, &e))?));
        }
    }
    if documents.is_empty() {
        return Err(Failure::environment(format!(
            "there is no document of kvrail bench in {}",
            path.display()
        ))
        .hint("kvrail bench --format json --output FILE, or --artifacts DIR, writes one"));
    }
    Ok(documents)
}

/// Documents of before say nothing of what follows from them.
fn judged(mut document: Document) -> Document {
    if document.results.iter().all(|row| row.ceilings.is_empty() && row.verdicts.is_empty()) {
        document.judge();
    }
    document
}

fn find(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth < DEPTH_MAX {
            find(&path, depth + 1, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|e| e == "json") && files.len() < FILES_MAX {
            files.push(path);
        }
    }
    Ok(())
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(path)?.take(DOCUMENT_BYTES_MAX + 1).read_to_string(&mut text)? as u64;
    if read > DOCUMENT_BYTES_MAX {
        return Err(std::io::Error::other("it is larger than any document"));
    }
    Ok(text)
}

fn write(text: &str, to: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = to else { return sink::print(text) };
    fs::write(path, text)
        .map_err(|e| Failure::environment(format!("cannot write {}: {e}", path.display())))?;
    eprintln!("written: {}", path.display());
    Ok(())
}
