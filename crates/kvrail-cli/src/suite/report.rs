//! The report at a run's end: one for all steps, in every format, made from what the steps left in the folder.

use std::fmt::Write;

use kvrail_report::Document;

use super::folder::{Ending, Folder, Status};
use super::plan::{Phase, Plan, Step};
use crate::failure::Failure;
use crate::report::{self, Format};

/// Writes it.
///
/// # Errors
/// When the file system refuses, or a step left a document that is none.
pub(super) fn write(
    folder: &Folder,
    plan: &Plan,
    endings: &[(&Phase, &Step, Ending)],
) -> Result<(), Failure> {
    let mut all = Vec::new();
    for (phase, step, _) in endings.iter().filter(|(_, _, ending)| ending.status != Status::Skipped) {
        all.extend(documents(folder, phase, step)?);
    }
    for (name, format) in
        [("report.html", Format::Html), ("report.csv", Format::Csv), ("report.junit.xml", Format::Junit)]
    {
        folder.write(name, &report::render(format, &all))?;
    }
    folder.write("report.md", &(steps(plan, endings) + &report::render(Format::Markdown, &all)))?;
    eprintln!("report: {}", folder.path().join("report.html").display());
    Ok(())
}

/// What a step measured; nothing if it measured nothing. One that ended before it could write has left an empty file, and its ending
/// says why.
fn documents(folder: &Folder, phase: &Phase, step: &Step) -> Result<Vec<Document>, Failure> {
    let path = folder.path().join(Folder::of(phase, step)).join("results.json");
    match std::fs::metadata(&path) {
        Ok(file) if file.len() > 0 => report::read(&path),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::environment(format!("{}: {e}", path.display())))
        }
        _ => Ok(Vec::new()),
    }
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
