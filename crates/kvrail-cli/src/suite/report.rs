//! The report at a run's end: one for all steps, in every format, made from what the steps left in the folder.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;

use kvrail_report::{Document, csv, html, junit, markdown};

use super::folder::{Ending, Folder, Status};
use super::plan::{Phase, Plan, Step};
use crate::failure::Failure;

/// Bytes of a step's document at most.
const DOCUMENT_BYTES_MAX: u64 = 256 << 20;

/// Writes it.
///
/// # Errors
/// When the file system refuses, or a step left a document that is none.
pub(super) fn write(
    folder: &Folder,
    plan: &Plan,
    endings: &[(&Phase, &Step, Ending)],
) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for (phase, step, _) in endings.iter().filter(|(_, _, ending)| ending.status != Status::Skipped) {
        documents.extend(document(folder, phase, step)?);
    }
    folder.write("report.html", &html::html(&documents))?;
    folder.write("report.csv", &csv::csv_of(&documents))?;
    folder.write("report.junit.xml", &junit::junit(&documents))?;
    folder.write("report.md", &(steps(plan, endings) + &markdown::markdown(&documents)))?;
    eprintln!("report: {}", folder.path().join("report.html").display());
    Ok(())
}

/// What a step measured; nothing if it measured nothing.
fn document(folder: &Folder, phase: &Phase, step: &Step) -> Result<Option<Document>, Failure> {
    let path = folder.path().join(Folder::of(phase, step)).join("results.json");
    let mut text = String::new();
    let failed = |e: &dyn std::fmt::Display| Failure::environment(format!("{}: {e}", path.display()));
    match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(&e)),
        Ok(file) => file.take(DOCUMENT_BYTES_MAX).read_to_string(&mut text).map_err(|e| failed(&e))?,
    };
    // One that ended before it could write has left an empty file, and its ending says why.
    if text.trim().is_empty() {
        return Ok(None);
    }
    Document::read(&text).map(Some).map_err(|e| failed(&e))
}

/// The steps as a table.
fn steps(plan: &Plan, endings: &[(&Phase, &Step, Ending)]) -> String {
    let mut out = format!(
        "# {}\n\n{}\n\n| phase | step | end | s | why |\n|---|---|---|---|---|\n",
        plan.name, plan.about
    );
    for (phase, step, ending) in endings {
        let why = ending.reason.as_deref().unwrap_or_default().replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.1} | {why} |",
            phase.title,
            step.id,
            ending.status.word(),
            ending.took_s
        );
    }
    out + "\n"
}
