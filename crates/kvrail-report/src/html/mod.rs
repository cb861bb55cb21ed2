//! The report for people: one HTML file without anything from elsewhere, made from documents and nothing else.
//!
//! Charts are SVG, drawn here; colours follow the reader's light or dark setting and are told apart by shape as well; lines are
//! switched on and off without a script; printing fits A4. Whatever a document says is text, also where it looks like markup.

mod chart;
mod facts;
mod figures;
mod group;
mod scale;
mod summary;
mod text;

#[cfg(test)]
mod tests;

use std::fmt::Write;

use group::Names;
use text::esc;

use crate::Document;

const STYLE: &str = include_str!("style.css");

/// One page of all documents.
#[must_use]
pub fn html(documents: &[Document]) -> String {
    let names = Names::of(documents);
    let title = summary::title(documents, &names);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <meta name=\"generator\" content=\"kvrail {}\"/><meta name=\"color-scheme\" content=\"light dark\"/>\
         <title>{}</title><style>{STYLE}{}</style></head><body><main>",
        env!("CARGO_PKG_VERSION"),
        esc(&title),
        switches(&names)
    );
    out += &summary::head(documents, &title);
    out += &charts(documents, &names);
    out += &summary::tables(documents, &names);
    out += &facts::all(documents);
    out += "</main></body></html>\n";
    out
}

/// Style rules that hide a line whose box is not ticked.
fn switches(names: &Names) -> String {
    names
        .iter()
        .map(|(_, style)| {
            format!("body:has(#on-{style}:not(:checked)) .line.{style},body:has(#on-{style}:not(:checked)) tr.{style}{{display:none}}")
        })
        .collect()
}

fn charts(documents: &[Document], names: &Names) -> String {
    let groups = group::groups(documents, names);
    if groups.is_empty() {
        return String::new();
    }
    let mut out = String::from("<h2>Figures</h2><fieldset class=\"legend\"><legend>Engines</legend>");
    for (name, style) in names.iter() {
        let _ = write!(
            out,
            "<label class=\"{style}\"><input type=\"checkbox\" id=\"on-{style}\" checked=\"checked\"/>\
             <svg viewBox=\"0 0 28 12\" class=\"key\" aria-hidden=\"true\"><g class=\"line {style}\"><polyline points=\"0,6 28,6\"/>{}</g></svg>{}</label>",
            chart::marker(style, 14.0, 6.0),
            esc(name)
        );
    }
    out += "</fieldset>";
    for (number, group) in groups.iter().enumerate() {
        out += &figures::group(group, names, number);
    }
    let rails = figures::rails(documents.iter().flat_map(|document| &document.results), names);
    if !rails.is_empty() {
        let _ = write!(out, "<h2>Rails</h2>{rails}");
    }
    out
}
