//! Documents as Markdown: what a colleague wants to know of a run, in the order of interest.

use crate::judge::number;
use crate::units::{Size, about, grouped, micros};
use crate::{Document, Fingerprint, Row, Severity, Verify, versus};

/// All documents, one after the other.
#[must_use]
pub fn markdown(documents: &[Document]) -> String {
    documents.iter().map(one).collect::<Vec<_>>().join("\n---\n\n")
}

fn one(document: &Document) -> String {
    let mut out = String::from("# kvrail bench");
    if !document.run_id.is_empty() {
        out += &format!(" {}", plain(&document.run_id));
    }
    out += "\n\n";
    if let Some(sentence) = versus::in_one_sentence(document) {
        out += &format!("**{}.** ", plain(&sentence));
    }
    out += match (document.complete, document.verified) {
        (true, true) => "Every byte that was to be looked at was right.\n",
        (true, false) => "Not every figure counts: see below.\n",
        (false, _) => "The run is incomplete: see below.\n",
    };
    if let Some(failure) = &document.failure {
        out += &format!("\nIt ended early: {}.\n", plain(&failure.what));
        out += &failure.hints.iter().map(|hint| format!("- {}\n", plain(hint))).collect::<String>();
    }
    out += &figures(document);
    out += &verdicts(document);
    out += &controls(document);
    out += &used(document);
    out += &hosts(document);
    out += &repeat(document);
    out
}

/// A table: heads, whether each column is of numbers, rows.
fn table(heads: &[(&str, bool)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n", heads.iter().map(|(head, _)| *head).collect::<Vec<_>>().join(" | "));
    out += &format!(
        "|{}|\n",
        heads.iter().map(|(_, number)| if *number { "--:" } else { ":--" }).collect::<Vec<_>>().join("|")
    );
    for row in rows {
        out += &format!("| {} |\n", row.join(" | "));
    }
    out
}

/// Text that Markdown takes as it is. Line ends become blanks: a cell has one line.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' | '`' | '*' | '_' | '<' | '>' | '[' | ']' | '#' | '&' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Text that is shown as code, whatever is in it.
fn code(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let gap = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{gap}{}{gap}{fence}", text.replace('|', "\\|"))
}

fn figures(document: &Document) -> String {
    if document.results.is_empty() {
        return String::new();
    }
    let heads = [
        ("op", false),
        ("block", true),
        ("batch", true),
        ("memory", false),
        ("layout", false),
        ("engine", false),
        ("over", false),
        ("GB/s", true),
        ("ratio", true),
        ("ceiling", true),
        ("%", true),
        ("p50 \u{b5}s", true),
        ("p99 \u{b5}s", true),
        ("bytes", false),
    ];
    let dash = || "-".to_string();
    let cells = |row: &Row| {
        let ratio = document.ratios.iter().find(|ratio| ratio.case == row.case && ratio.engine == row.engine);
        let figures = row.figures.as_ref();
        let ceiling = row.ceilings.first();
        let bytes = match (figures, row.verify, row.verified) {
            (None, ..) => "failed",
            (_, Verify::Off, _) => "unseen",
            (_, _, false) => "WRONG",
            (_, Verify::Last, true) => "last right",
            (_, Verify::Every, true) => "right",
        };
        let memory = match row.threads {
            1 => row.memory.to_string(),
            threads => format!("{}, {threads} threads", row.memory),
        };
        vec![
            row.op.to_string(),
            Size(row.block_bytes).to_string(),
            grouped(row.batch),
            memory,
            row.layout.to_string(),
            plain(&row.engine),
            plain(row.transport.as_deref().unwrap_or("-")),
            figures.map_or_else(dash, |figures| number(figures.bandwidth_gbps)),
            ratio.map_or_else(dash, |ratio| format!("{:.2}", ratio.bandwidth)),
            ceiling.map_or_else(dash, |ceiling| number(ceiling.gbps)),
            ceiling.and_then(|ceiling| ceiling.percent).map_or_else(dash, |percent| format!("{percent:.0}")),
            figures.map_or_else(dash, |figures| micros(figures.latency_us.p50)),
            figures.map_or_else(dash, |figures| micros(figures.latency_us.p99)),
            bytes.into(),
        ]
    };
    let mut out = String::from("\n## Figures\n\n") + &table(&heads, document.results.iter().map(cells));
    out += "\nGB/s are decimal (10^9 bytes), sizes binary (1 KiB = 1,024 bytes). Latency is per transfer, that is per batch. ";
    out += match document.ratios.first() {
        Some(ratio) => format!("The ratio is to {}: the median of the turns' ratios. ", plain(&ratio.base)),
        None => String::new(),
    }
    .as_str();
    out + "The ceiling is the lowest that the figure cannot honestly exceed.\n"
}

fn verdicts(document: &Document) -> String {
    let mut lines: Vec<(Severity, String)> = Vec::new();
    for row in &document.results {
        for verdict in &row.verdicts {
            let word = match verdict.severity {
                Severity::Bad => "bad",
                Severity::Warning => "warning",
                Severity::Note => "note",
                Severity::Good => "good",
            };
            let (engine, shape) = (plain(&row.engine), crate::judge::shape(row));
            lines.push((
                verdict.severity,
                format!("- **{word}** {engine}, {shape}: {}\n", plain(&verdict.text)),
            ));
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    lines.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
    String::from("\n## Verdicts\n\n") + &lines.into_iter().map(|(_, line)| line).collect::<String>()
}

fn controls(document: &Document) -> String {
    if document.all_controls().next().is_none() {
        return String::new();
    }
    let heads = [
        ("transport", false),
        ("create an agent, ms", true),
        ("register 10,000 regions, ms", true),
        ("export, ms", true),
        ("metadata, bytes", true),
        ("import, ms", true),
    ];
    let ms = |ms: f64| format!("{ms:.3}");
    let rows = document.all_controls().map(|control| {
        vec![
            plain(&control.transport),
            ms(control.create_agent_ms),
            ms(control.register_10000_ms),
            ms(control.export_ms),
            grouped(control.metadata_bytes),
            ms(control.import_ms),
        ]
    });
    String::from("\n## Control path\n\n") + &table(&heads, rows)
}

fn used(document: &Document) -> String {
    let mut out = String::new();
    for used in &document.transports {
        for (side, carriage) in [("initiator", &used.initiator), ("target", &used.target)] {
            let Some(carriage) = carriage else { continue };
            let mut parts = vec![format!("over {}", plain(&carriage.transport))];
            parts.extend(carriage.provider().map(|provider| format!("provider {}", plain(provider))));
            if let Some(library) = &carriage.libfabric {
                parts.push(format!("libfabric {} ({})", plain(&library.release), code(&library.path)));
            }
            match carriage.rails.as_slice() {
                [] => {}
                [one] => parts.push(format!("1 rail, {}", plain(&one.name))),
                [first, .., last] => {
                    parts.push(format!(
                        "{} rails, {} to {}",
                        carriage.rails.len(),
                        plain(&first.name),
                        plain(&last.name)
                    ));
                }
            }
            if !carriage.evidence.is_empty() {
                parts.push(format!("evidence {}", plain(&carriage.evidence)));
            }
            parts.extend(
                carriage.facts.iter().map(|(name, value)| format!("{} {}", plain(name), code(value))),
            );
            out += &format!("- {}, {side}: {}\n", plain(&used.engine), parts.join(", "));
        }
    }
    if out.is_empty() { out } else { String::from("\n## What was used\n\n") + &out }
}

fn hosts(document: &Document) -> String {
    let mut out = String::new();
    let sides = [
        ("initiator", &document.environment.initiator, &document.fingerprint.initiator),
        ("target", &document.environment.target, &document.fingerprint.target),
    ];
    for (side, environment, print) in sides {
        if let Some(host) = environment {
            out += &format!(
                "- {side}: {}, {}, {} ({} CPUs), {}, kvrail {} ({} build)\n",
                plain(&host.host),
                plain(&host.kernel),
                plain(&host.cpu),
                host.cpus,
                about(host.memory_bytes),
                plain(&host.kvrail),
                plain(&host.profile)
            );
            if host.profile == "debug" {
                out += "  - a debug build: its figures mean nothing\n";
            }
        }
        out += &print.as_ref().map_or_else(String::new, fingerprint);
    }
    if out.is_empty() { out } else { String::from("\n## Hosts\n\n") + &out }
}

fn fingerprint(print: &Fingerprint) -> String {
    let mut out = String::new();
    let mut say = |name: &str, what: String| out += &format!("  - {name}: {what}\n");
    if let Some(machine) = &print.machine {
        say("machine", plain(machine));
    }
    if let Some(topology) = &print.topology {
        say("topology", plain(&topology.to_string()));
    }
    let versions: Vec<String> =
        print.versions.iter().map(|(name, version)| format!("{} {}", plain(name), plain(version))).collect();
    say("versions", versions.join(", "));
    let limits: Vec<String> =
        print.limits.words().iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
    if !limits.is_empty() {
        say("limits and settings", limits.join(", "));
    }
    if let Some(git) = &print.git {
        say("commit of the working directory", code(&git.commit));
    }
    for (name, value) in &print.variables {
        say("variable", code(&format!("{name}={value}")));
    }
    out
}

fn repeat(document: &Document) -> String {
    if document.command.is_empty() {
        return String::new();
    }
    let seeded = document.command.iter().any(|word| word == "--seed" || word.starts_with("--seed="));
    let bench = document.command.get(1).is_some_and(|word| word == "bench");
    let seed = if seeded || !bench { String::new() } else { format!(" --seed {}", document.seed) };
    let words: Vec<String> = document.command.iter().map(|word| for_shell(word)).collect();
    let started =
        if document.started.is_empty() { String::new() } else { format!("Begun {}.\n\n", document.started) };
    // A fence longer than any within the command.
    format!("\n## Repeat it\n\n{}````sh\n{}{seed}\n````\n", started, words.join(" ").replace("````", "```"))
}

/// A word as a shell reads it.
fn for_shell(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::{document, row};
    use crate::{Failure, Sides, Used};

    #[test]
    fn a_document_is_told_from_its_result_to_how_to_repeat_it() {
        let mut document = document();
        document.command = ["kvrail", "bench", "--output", "a b.json"].map(String::from).to_vec();
        let side = crate::carriage::tests::carriage(32, 100_000_000_000);
        document.met(Used::new("kvrail", Sides { initiator: Some(side.clone()), target: Some(side) }));
        document.fingerprint.initiator = Some(Fingerprint::default());
        let failed = Row { engine: "nixl:UCX".into(), figures: None, transport: None, ..row() };
        document.results.push(Row { failure: Some(Failure::engine("no libucp.so.0")), ..failed });
        document.conclude(Ok(()));
        let text = markdown(&[document]);
        let order =
            ["# kvrail bench", "## Figures", "## Verdicts", "## What was used", "## Hosts", "## Repeat it"];
        let places: Vec<usize> = order.iter().map(|head| text.find(head).expect(head)).collect();
        assert!(places.is_sorted(), "{text}");
        assert!(
            text.contains("| write | 32 KiB | 100 | shared | scattered | kvrail | shm | 10 | - | 12 | 83 |"),
            "{text}"
        );
        assert!(text.contains("- **bad** nixl:UCX, write, 100 x 32 KiB scattered: no libucp.so.0"), "{text}");
        assert!(text.contains("kvrail bench --output 'a b.json' --seed 1\n"), "{text}");
    }

    #[test]
    fn hostile_texts_stay_texts_and_tables_keep_their_columns() {
        let mut document = document();
        document.results[0].engine = "a|b`<script>\n# x".into();
        document.command = vec!["````\nrm".into()];
        let text = markdown(&[document]);
        let bars = |line: &str| line.replace("\\|", "").matches('|').count();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(lines.iter().all(|line| bars(line) == bars(lines[0])), "{text}");
        assert!(!text.contains("<script>") || text.contains("\\<script\\>"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("````")).count(), 2, "{text}");
        assert_eq!((code("a`b"), code("`a")), ("``a`b``".into(), "`` `a ``".into()));
    }

    #[test]
    fn several_documents_are_told_one_after_the_other() {
        assert_eq!(markdown(&[document(), document()]).matches("# kvrail bench").count(), 2);
        assert_eq!(markdown(&[]), "");
    }
}
