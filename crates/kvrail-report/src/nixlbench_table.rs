//! The table of nixlbench, byte for byte, so that what parses its output parses ours.
//!
//! Columns are left-aligned and padded with blanks to their widths, also the last; bandwidths have six decimals, times
//! one; a rule of 160 dashes stands below the header. Runs of more than one pair of processes have two columns more.

use std::fmt::Write;

use crate::{Document, Row};

/// Width of the rule.
const RULE: usize = 160;

/// One line of the table.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Line {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks of a transfer.
    pub batch: u64,
    /// All bytes over all time, GB/s.
    pub gbps: f64,
    /// Time over the blocks that a thread moved, microseconds.
    pub latency_us: f64,
    /// Preparing a transfer: mean and 99th percentile, microseconds.
    pub prepare_us: (f64, f64),
    /// Posting it.
    pub post_us: (f64, f64),
    /// From its posting to its completion.
    pub transfer_us: (f64, f64),
    /// Runs of several pairs of processes only.
    pub aggregate: Option<Aggregate>,
}

/// What all pairs of processes reached together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Aggregate {
    /// Sum of their bandwidths, GB/s.
    pub gbps: f64,
    /// That in percent of the line rate of the rails used, where it is known. nixlbench takes 50 GB/s a pair for it.
    pub percent: Option<f64>,
}

/// The header and the rule below it.
#[must_use]
pub fn header(aggregate: bool) -> String {
    let mut out = format!("{:<20}{:<15}{:<15}", "Block Size (B)", "Batch Size", "B/W (GB/Sec)");
    if aggregate {
        out += &format!("{:<25}{:<20}", "Aggregate B/W (GB/Sec)", "Network Util (%)");
    }
    for head in [
        "Avg Lat. (us)",
        "Avg Prep (us)",
        "P99 Prep (us)",
        "Avg Post (us)",
        "P99 Post (us)",
        "Avg Tx (us)",
        "P99 Tx (us)",
    ] {
        out += &format!("{head:<15}");
    }
    out + "\n" + &"-".repeat(RULE) + "\n"
}

impl Line {
    /// The line of a row; nothing without figures.
    #[must_use]
    pub fn new(row: &Row) -> Option<Self> {
        let figures = row.figures.as_ref()?;
        let pair = |of: &crate::Distribution| (of.mean, of.p99);
        let blocks = figures.iterations as f64 / f64::from(row.threads.max(1)) * row.batch as f64;
        Some(Self {
            block_bytes: row.block_bytes,
            batch: row.batch,
            gbps: figures.bandwidth_total_gbps,
            latency_us: if blocks > 0.0 { figures.timed_s * 1e6 / blocks } else { 0.0 },
            prepare_us: pair(&figures.prepare_us),
            post_us: pair(&figures.post_us),
            transfer_us: pair(&figures.wire_us),
            aggregate: None,
        })
    }

    /// As printed, with its end of line.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{:<20}{:<15}{:<15.6}", self.block_bytes, self.batch, self.gbps);
        if let Some(Aggregate { gbps, percent }) = self.aggregate {
            let percent = percent.map_or_else(|| "nan".into(), |percent| format!("{percent:.6}"));
            out += &format!("{gbps:<25.6}{percent:<20}");
        }
        let [prepare, post, transfer] = [self.prepare_us, self.post_us, self.transfer_us];
        for us in [self.latency_us, prepare.0, prepare.1, post.0, post.1, transfer.0, transfer.1] {
            let _ = write!(out, "{us:<15.1}"); // Writing to a string cannot fail.
        }
        out + "\n"
    }
}

/// The table of a document. Where engines or workloads change, a new header begins, below a line that names them.
#[must_use]
pub fn table(document: &Document) -> String {
    let mut out = String::new();
    let mut above = None;
    for row in &document.results {
        let Some(line) = Line::new(row) else { continue };
        let now = (row.engine.as_str(), row.op, row.memory, row.layout, row.threads);
        if above != Some(now) {
            let gap = if out.is_empty() { "" } else { "\n" };
            let threads =
                if row.threads == 1 { "1 thread".into() } else { format!("{} threads", row.threads) };
            out += &format!(
                "{gap}{}, {}, {} memory, {}, {threads}\n",
                row.engine, row.op, row.memory, row.layout
            );
            out += &header(false);
            above = Some(now);
        }
        out += &line.text();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::document;

    #[test]
    fn header_and_lines_are_those_of_nixlbench() {
        let line = Line {
            block_bytes: 65536,
            batch: 16,
            gbps: 12.345_678_9,
            latency_us: 84.94,
            prepare_us: (1.0, 2.0),
            post_us: (3.0, 4.04),
            transfer_us: (5.0, 1443.8),
            aggregate: None,
        };
        let expected = "\
Block Size (B)      Batch Size     B/W (GB/Sec)   Avg Lat. (us)  Avg Prep (us)  P99 Prep (us)  Avg Post (us)  P99 Post (us)  Avg Tx (us)    P99 Tx (us)    
----------------------------------------------------------------------------------------------------------------------------------------------------------------
65536               16             12.345679      84.9           1.0            2.0            3.0            4.0            5.0            1443.8         
";
        assert_eq!(header(false) + &line.text(), expected);
        let several = Line { aggregate: Some(Aggregate { gbps: 25.0, percent: Some(25.0) }), ..line };
        assert!(several.text().starts_with("65536               16             12.345679      25.000000                25.000000           84.9 "));
        let unknown = Line { aggregate: Some(Aggregate { gbps: 25.0, percent: None }), ..line };
        assert!(unknown.text().contains(" 25.000000                nan                 84.9 "));
        assert_eq!(header(true).lines().next().unwrap().len(), several.text().trim_end_matches('\n').len());
    }

    #[test]
    fn latency_is_per_block_of_a_thread() {
        let mut document = document();
        document.results[0].threads = 2;
        let line = Line::new(&document.results[0]).unwrap();
        assert!((line.latency_us - 1000.0 / (2.5 * 100.0)).abs() < 1e-9, "{}", line.latency_us);
        assert!(
            table(&document)
                .starts_with("kvrail, write, shared memory, scattered, 2 threads\nBlock Size (B)")
        );
    }
}
