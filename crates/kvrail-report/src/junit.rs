//! Documents as JUnit XML, in the dialect that Jenkins, GitLab and GitHub's actions read: a suite per run, a case per row.
//!
//! A failure is a check that said no: wrong bytes, a figure that cannot be or misses what is expected. An error is what could
//! not be told: an engine that failed, a run that ended early. A row that nobody verified is skipped, never passed.

use std::fmt::Write;

use quick_xml::escape::escape;

use crate::judge::{number, shape};
use crate::{Document, Row, Severity, Verify};

/// All documents as one file.
#[must_use]
pub fn junit(documents: &[Document]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for (index, document) in documents.iter().enumerate() {
        suite(&mut out, index, document);
    }
    out + "</testsuites>\n"
}

/// What a row comes out as.
enum Mark {
    Passed,
    Failure(String),
    Error(String),
    Skipped(String),
}

fn mark(row: &Row) -> Mark {
    if let Some(failure) = &row.failure {
        let kind = failure.kind;
        return if kind.exit_code() == 1 {
            Mark::Failure(failure.what.clone())
        } else {
            Mark::Error(failure.what.clone())
        };
    }
    if row.figures.is_none() {
        return Mark::Error("nothing was measured".into());
    }
    let bad: Vec<&str> = row
        .verdicts
        .iter()
        .filter(|verdict| verdict.severity == Severity::Bad && verdict.id != "unseen")
        .map(|verdict| verdict.text.as_str())
        .collect();
    match (row.verified, row.verify) {
        _ if !bad.is_empty() => Mark::Failure(bad.join("\n")),
        (false, Verify::Off) => Mark::Skipped("nobody looked at the bytes".into()),
        (false, _) => Mark::Failure("bytes arrived wrong".into()),
        (true, _) => Mark::Passed,
    }
}

fn suite(out: &mut String, index: usize, document: &Document) {
    let marks: Vec<Mark> = document.results.iter().map(mark).collect();
    // What ended the run early is a case of its own, unless a row already says it.
    let ended = document
        .failure
        .as_ref()
        .filter(|failure| !document.results.iter().any(|row| row.failure.as_ref() == Some(failure)));
    let count = |is: fn(&Mark) -> bool| marks.iter().filter(|mark| is(mark)).count();
    let time: f64 = document.results.iter().filter_map(|row| Some(row.figures.as_ref()?.timed_s)).sum();
    let host = document.environment.initiator.as_ref().map_or("", |here| here.host.as_str());
    let _ = writeln!(
        out,
        "  <testsuite name=\"{}\" id=\"{index}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{time:.6}\" \
         timestamp=\"{}\" hostname=\"{}\">",
        attribute(&format!("kvrail bench {}", document.run_id)),
        marks.len() + usize::from(ended.is_some()),
        count(|mark| matches!(mark, Mark::Failure(_))),
        count(|mark| matches!(mark, Mark::Error(_))) + usize::from(ended.is_some()),
        count(|mark| matches!(mark, Mark::Skipped(_))),
        attribute(document.started.trim_end_matches('Z')),
        attribute(host),
    );
    properties(out, document);
    for (row, mark) in document.results.iter().zip(&marks) {
        case(out, row, mark);
    }
    if let Some(failure) = ended {
        let _ = writeln!(
            out,
            "    <testcase name=\"the run ends in order\" classname=\"kvrail.bench\" time=\"0\">\n      <error message=\"{}\"/>\n    \
             </testcase>",
            attribute(&failure.what)
        );
    }
    *out += "  </testsuite>\n";
}

fn properties(out: &mut String, document: &Document) {
    let mut properties =
        vec![("seed".to_string(), document.seed.to_string()), ("command".into(), document.command.join(" "))];
    for (side, print) in
        [("initiator", &document.fingerprint.initiator), ("target", &document.fingerprint.target)]
    {
        let Some(print) = print else { continue };
        properties
            .extend(print.versions.iter().map(|(name, version)| (format!("{side}.{name}"), version.clone())));
        properties.extend(print.machine.iter().map(|machine| (format!("{side}.machine"), machine.clone())));
    }
    *out += "    <properties>\n";
    for (name, value) in properties {
        let _ =
            writeln!(out, "      <property name=\"{}\" value=\"{}\"/>", attribute(&name), attribute(&value));
    }
    *out += "    </properties>\n";
}

fn case(out: &mut String, row: &Row, mark: &Mark) {
    let threads = if row.threads == 1 { String::new() } else { format!(", {} threads", row.threads) };
    let notify = if row.notify { ", with notifications" } else { "" };
    let name = format!("{} {} memory{threads}{notify} over {}", shape(row), row.memory, row.carrier());
    let time = row.figures.as_ref().map_or(0.0, |figures| figures.timed_s);
    // A dot in a class name makes a package of what is before it.
    let class = format!("kvrail.bench.{}", row.engine.replace(['.', ' '], "_"));
    let _ = writeln!(
        out,
        "    <testcase name=\"{}\" classname=\"{}\" time=\"{time:.6}\">",
        attribute(&name),
        attribute(&class)
    );
    match mark {
        Mark::Passed => {}
        Mark::Failure(why) => {
            let _ = writeln!(out, "      <failure message=\"{}\" type=\"check\"/>", attribute(why));
        }
        Mark::Error(why) => {
            let _ = writeln!(out, "      <error message=\"{}\" type=\"engine\"/>", attribute(why));
        }
        Mark::Skipped(why) => {
            let _ = writeln!(out, "      <skipped message=\"{}\"/>", attribute(why));
        }
    }
    if let Some(figures) = &row.figures {
        let lines: Vec<String> =
            std::iter::once(format!(
                "{} GB/s, latency p50 {:.3} us, p99 {:.3} us",
                number(figures.bandwidth_gbps),
                figures.latency_us.p50,
                figures.latency_us.p99
            ))
            .chain(row.ceilings.iter().map(|c| {
                format!("{:.1}% of {} GB/s: {}", c.percent.unwrap_or(0.0), number(c.gbps), c.source)
            }))
            .chain(row.verdicts.iter().map(|verdict| format!("{}: {}", verdict.id, verdict.text)))
            .collect();
        let _ = writeln!(out, "      <system-out>{}</system-out>", attribute(&lines.join("\n")));
    }
    *out += "    </testcase>\n";
}

/// Text that XML can hold: characters that it forbids even when escaped are replaced.
fn attribute(text: &str) -> String {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    let clean: String = text.chars().map(|c| if allowed(c) { c } else { '\u{fffd}' }).collect();
    escape(clean.as_str()).replace('\n', "&#10;").replace('\r', "&#13;").replace('\t', "&#9;")
}

#[cfg(test)]
mod tests {
    use quick_xml::Reader;
    use quick_xml::events::Event;

    use super::*;
    use crate::Failure;
    use crate::document::tests::{document, row};

    /// What the common schema of JUnit files allows below each element, and which attributes it demands.
    const ELEMENTS: [(&str, &[&str], &[&str]); 9] = [
        ("testsuites", &["testsuite"], &[]),
        (
            "testsuite",
            &["properties", "testcase"],
            &["name", "tests", "failures", "errors", "time", "timestamp", "hostname"],
        ),
        ("properties", &["property"], &[]),
        ("property", &[], &["name", "value"]),
        ("testcase", &["skipped", "error", "failure", "system-out"], &["name", "classname", "time"]),
        ("failure", &[], &["message"]),
        ("error", &[], &["message"]),
        ("skipped", &[], &["message"]),
        ("system-out", &[], &[]),
    ];

    /// Reads a file, checks its structure, and counts its elements.
    fn check(xml: &str) -> impl Fn(&str) -> usize {
        let mut reader = Reader::from_str(xml);
        let (mut open, mut seen): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        loop {
            let (start, closes) = match reader.read_event().unwrap() {
                Event::Eof => break,
                Event::End(_) => {
                    open.pop();
                    continue;
                }
                Event::Start(start) => (start, false),
                Event::Empty(start) => (start, true),
                Event::Text(text) => {
                    text.xml_content().unwrap();
                    continue;
                }
                _ => continue,
            };
            let name = String::from_utf8(start.name().as_ref().to_vec()).unwrap();
            let (_, _, demanded) = ELEMENTS.iter().find(|(element, ..)| *element == name).expect(&name);
            if let Some(parent) = open.last() {
                let (_, children, _) = ELEMENTS.iter().find(|(element, ..)| element == parent).unwrap();
                assert!(children.contains(&name.as_str()), "{name} below {parent}");
            }
            let attributes: Vec<_> = start.attributes().map(|a| a.unwrap()).collect();
            for attribute in &attributes {
                attribute.unescape_value().unwrap();
            }
            for wanted in *demanded {
                assert!(attributes.iter().any(|a| a.key.as_ref() == wanted.as_bytes()), "{wanted} of {name}");
            }
            seen.push(name.clone());
            if !closes {
                open.push(name);
            }
        }
        assert!(open.is_empty());
        move |name| seen.iter().filter(|seen| *seen == name).count()
    }

    #[test]
    fn every_row_is_a_case_and_comes_out_as_what_it_is() {
        let mut document = document();
        document.results.push(Row { verified: false, ..row() });
        document.results.push(Row { verified: false, verify: Verify::Off, ..row() });
        let failure = Some(Failure::engine("it \"died\" <of> \u{1b}[31m&\u{0}"));
        document.results.push(Row { engine: "nixl:UCX".into(), figures: None, failure, ..row() });
        document.conclude(Err(Failure::peer("the target is gone")));
        let xml = junit(&[document, super::tests::document()]);
        let count = check(&xml);
        assert_eq!((count("testsuite"), count("testcase")), (2, 6));
        assert_eq!((count("failure"), count("error"), count("skipped")), (1, 2, 1));
        assert!(xml.contains("tests=\"5\" failures=\"1\" errors=\"2\" skipped=\"1\""), "{xml}");
        assert!(xml.contains("timestamp=\"1970-01-01T00:00:00\""), "{xml}");
        assert!(!xml.contains('\u{1b}') && !xml.contains('\u{0}'));
    }

    #[test]
    fn no_documents_are_an_empty_file_and_no_error() {
        assert_eq!(check(&junit(&[]))("testsuite"), 0);
    }
}
