//! The result for people: at most 100 columns, units in the header, one line per case as soon as it is measured.

use crate::units::{Size, grouped, micros};
use crate::{Control, Row, Used, Verify};

/// Prints rows under headers; a header appears whenever what is above the columns changes.
#[derive(Default)]
pub struct Table {
    above: Option<String>,
    marked: bool,
    unverified: bool,
}

/// Column heads.
const HEADS: [&str; 14] = [
    "op",
    "block",
    "batch",
    "kvrail",
    "copy",
    "%",
    "p50",
    "p99",
    "max",
    "prep",
    "post",
    "wire",
    "init/targ",
    "bytes",
];

/// What stands above them: heading, first and last column.
const SPANS: [(&str, usize, usize); 4] =
    [("GB/s", 3, 5), ("latency \u{b5}s per request", 6, 8), ("median \u{b5}s", 9, 11), ("cpu ms", 12, 12)];

/// Column widths; with a space between, 100 columns in all.
const WIDTHS: [usize; 14] = [5, 7, 6, 6, 5, 4, 7, 7, 7, 6, 6, 6, 9, 6];

const fn sum(widths: [usize; 14]) -> usize {
    let (mut all, mut i) = (0, 0);
    while i < widths.len() {
        all += widths[i];
        i += 1;
    }
    all
}
const _: () = assert!(sum(WIDTHS) + WIDTHS.len() - 1 <= 100, "fits a terminal of 100 columns");

/// The line above the heads: each heading in the middle of a rule as wide as its columns.
fn spans() -> String {
    let mut out = String::new();
    let mut at = 0;
    for (text, first, last) in SPANS {
        let start = WIDTHS[..first].iter().map(|w| w + 1).sum::<usize>();
        let width = WIDTHS[first..=last].iter().map(|w| w + 1).sum::<usize>() - 1;
        let text = format!(" {text} ");
        let text = if text.chars().count() > width { text.trim() } else { &text };
        out += &" ".repeat(start - at);
        out += &format!("{text:-^width$}");
        at = start + width;
    }
    out + "\n"
}

/// One line: the first cell to the left, the others to the right.
fn line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let mut out = String::new();
    for (i, (cell, width)) in cells.into_iter().zip(WIDTHS).enumerate() {
        match i {
            0 => out += &format!("{cell:<width$}"),
            _ => out += &format!(" {cell:>width$}"),
        }
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

impl Table {
    /// The lines for one more row; `used` is what stands above the figures of its transport.
    pub fn row(&mut self, row: &Row, used: Option<&Used>) -> String {
        let mut out = String::new();
        let threads = if row.threads == 1 { String::new() } else { format!(", {} threads", row.threads) };
        let engine = if row.engine == "kvrail" { String::new() } else { format!("{}, ", row.engine) };
        let notify = if row.notify { ", with notifications" } else { "" };
        let above = format!(
            "{engine}{}, {} memory on {}, {} blocks{threads}{notify}",
            row.carrier(),
            row.memory,
            row.pages.as_deref().unwrap_or("unknown pages"),
            row.layout
        );
        if self.above.as_ref() != Some(&above) {
            let gap = if self.above.is_some() { "\n" } else { "" };
            let head = used.map(Used::head).unwrap_or_default();
            let head: String = head.iter().map(|line| format!("{line}\n")).collect();
            out += &format!("{gap}{above}\n{head}{}{}", spans(), line(HEADS));
            self.above = Some(above);
        }
        let Some(figures) = &row.figures else {
            let what = row.failure.as_ref().map_or("nothing was measured", |failure| failure.what.as_str());
            let (block, batch) = (Size(row.block_bytes).to_string(), grouped(row.batch));
            let line = line([row.op.word(), &block, &batch]);
            return format!("{out}{}  {what}\n", line.trim_end());
        };
        self.marked |= figures.above_ceiling;
        self.unverified |= row.verify == Verify::Off;
        let percent = figures.ceiling_percent.map_or_else(
            || "-".into(),
            |p| format!("{:.0}{}", p.min(9999.0), if figures.above_ceiling { "!" } else { "%" }),
        );
        let cpu = |seconds: f64| format!("{:.0}", seconds * 1e3);
        let verified = match (row.verify, row.verified) {
            (Verify::Off, _) => "UNSEEN",
            (_, false) => "WRONG",
            (Verify::Last, true) => "last",
            (Verify::Every, true) => "right",
        };
        let cells = [
            row.op.to_string(),
            Size(row.block_bytes).to_string(),
            grouped(row.batch),
            rate(figures.bandwidth_gbps),
            figures.ceiling_gbps.map_or_else(|| "-".into(), rate),
            percent,
            micros(figures.latency_us.p50),
            micros(figures.latency_us.p99),
            micros(figures.latency_us.max),
            micros(figures.prepare_us.p50),
            micros(figures.post_us.p50),
            micros(figures.wire_us.p50),
            format!("{}/{}", cpu(figures.cpu_s.initiator), cpu(figures.cpu_s.target)),
            verified.to_string(),
        ];
        out += &line(cells.iter().map(String::as_str));
        out
    }

    /// What the marks mean, where there are any.
    pub fn footer(&self) -> String {
        let mut out = String::new();
        if self.marked {
            out +=
                "! above the plain copy: more cores, or stores past the cache, than one copying loop has\n";
        }
        if self.unverified {
            out += "UNSEEN: nobody looked at the bytes; these figures do not count\n";
        }
        out
    }

    /// The control path.
    pub fn control(control: &Control) -> String {
        format!(
            "{}, medians of {} repetitions\n\
             create an agent             {:>10.3} ms\n\
             register 10,000 regions     {:>10.3} ms\n\
             export metadata             {:>10.3} ms\n\
             metadata                    {:>10} bytes\n\
             import at the peer          {:>10.3} ms\n",
            control.transport,
            control.repetitions,
            control.create_agent_ms,
            control.register_10000_ms,
            control.export_ms,
            grouped(control.metadata_bytes),
            control.import_ms
        )
    }
}

fn rate(gbps: f64) -> String {
    if gbps < 9.995 { format!("{gbps:.2}") } else { format!("{gbps:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::row;
    use crate::{Failure, Figures};

    #[test]
    fn a_line_fits_a_hundred_columns() {
        let text = Table::default().row(&row(), None);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("32 KiB"), "{text}");
    }

    #[test]
    fn a_figure_above_its_ceiling_is_marked_and_the_mark_explained() {
        let mut row = row();
        let above = |figures| Figures { above_ceiling: true, ceiling_percent: Some(120.4), ..figures };
        row.figures = row.figures.map(above);
        let mut table = Table::default();
        assert!(table.row(&row, None).contains(" 120! "));
        assert!(table.footer().starts_with("! above the plain copy"));
    }

    #[test]
    fn an_engine_that_failed_has_a_line_that_says_why() {
        let failed = Row { figures: None, failure: Some(Failure::engine("it died")), ..row() };
        let text = Table::default().row(&failed, None);
        assert!(text.ends_with("write  32 KiB    100  it died\n"), "{text}");
    }
}
