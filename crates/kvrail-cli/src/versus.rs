//! Several engines side by side, for people: one line per case, one column per engine.

use std::collections::BTreeMap;

use kvrail_report::{Ratio, Row, Verify};

use crate::case::Case;
use crate::engines::Choice;
use crate::units::{Size, grouped};

/// Width of an engine's column: a rate, a space, a ratio.
const COLUMN: usize = 14;

/// Prints cases under a header, which appears whenever what is above the columns changes.
pub(crate) struct Versus {
    engines: Vec<String>,
    above: Option<String>,
    base: Option<String>,
    /// Why engines failed, and how often.
    failures: BTreeMap<(String, String), u32>,
    unverified: bool,
}

impl Versus {
    pub(crate) fn new(engines: &[Choice]) -> Self {
        Self {
            engines: engines.iter().map(ToString::to_string).collect(),
            above: None,
            base: None,
            failures: BTreeMap::new(),
            unverified: false,
        }
    }

    /// The lines for one more case.
    pub(crate) fn case(&mut self, case: &Case, rows: &[Row], ratios: &[Ratio]) -> String {
        let threads = if case.threads == 1 { String::new() } else { format!(", {} threads", case.threads) };
        let notify = if case.notify { ", with notifications" } else { "" };
        let above = format!("{} memory, {} blocks{threads}{notify}", case.memory, case.layout);
        let mut out = String::new();
        if self.above.as_ref() != Some(&above) {
            let gap = if self.above.is_some() { "\n" } else { "" };
            out += &format!("{gap}{above}; GB/s, and in multiples of the first\n{:<5} {:>8} {:>7}", "op", "block", "batch");
            for engine in &self.engines {
                let name: String = engine.chars().take(COLUMN).collect();
                out += &format!(" {name:>COLUMN$}");
            }
            out.push('\n');
            self.above = Some(above);
        }
        out += &format!("{:<5} {:>8} {:>7}", case.op.to_string(), Size(case.block_bytes).to_string(), grouped(case.batch));
        for row in rows {
            if let Some(failure) = &row.failure {
                let key = (row.engine.clone(), failure.what.clone());
                *self.failures.entry(key).or_default() += 1;
            }
            self.unverified |= row.verify == Verify::Off;
            let ratio = ratios.iter().find(|ratio| ratio.case == row.case && ratio.engine == row.engine);
            self.base = ratio.map(|ratio| ratio.base.clone()).or(self.base.take());
            out += &format!(" {:>COLUMN$}", cell(row, ratio));
        }
        out.push('\n');
        out
    }

    /// What stands below: to what the ratios refer, and what went wrong.
    pub(crate) fn footer(&self) -> String {
        let mut out = String::new();
        if let Some(base) = &self.base {
            out += &format!("x: multiples of {base}, medians of the ratios within the turns\n");
        }
        if self.unverified {
            out += "UNSEEN: nobody looked at the bytes; these figures do not count\n";
        }
        for ((engine, what), count) in &self.failures {
            let cases = if *count == 1 { "one case".into() } else { format!("{count} cases") };
            out += &format!("{engine}, {cases}: {what}\n");
        }
        out
    }
}

fn cell(row: &Row, ratio: Option<&Ratio>) -> String {
    let wrong = row.figures.is_some() && !row.verified && row.verify != Verify::Off;
    let Some(gbps) = row.bandwidth_gbps() else {
        return if wrong { "WRONG".into() } else { "failed".into() };
    };
    let rate = if gbps < 9.995 { format!("{gbps:.2}") } else { format!("{gbps:.1}") };
    let mark = if row.verify == Verify::Off { "UNSEEN ".into() } else { String::new() };
    match ratio {
        Some(ratio) => format!("{mark}{rate} {:.2}x", ratio.bandwidth),
        None => format!("{mark}{rate}      "),
    }
}
