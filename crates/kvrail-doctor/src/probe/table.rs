//! The rails of a probe, as people read them: a line for each, figures beside the line rate, packets of both devices.

use std::fmt::Write as _;

use super::facts::{Counted, End, Facts, Figures, Rail};

/// The rails as a table, with a line above that says what carried the bytes.
#[must_use]
pub fn table(facts: &Facts) -> String {
    let mut rows = vec![
        [
            "rail",
            "write µs",
            "read µs",
            "write GB/s",
            "read GB/s",
            "of line",
            "tx/rx here",
            "tx/rx there",
            "",
        ]
        .map(String::from),
    ];
    rows.extend(facts.rails.iter().map(row));
    // Remarks stand last and need no width.
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..9).map(width).collect();
    let mut text = heading(facts);
    for row in &rows {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for column in 1..8 {
            let _ = write!(line, "  {:>width$}", row[column], width = widths[column]);
        }
        let _ = write!(line, "  {}", row[8]);
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn heading(facts: &Facts) -> String {
    let line: u64 = facts.rails.iter().map(|rail| rail.rate_bps).sum();
    let mut text = format!("{} to {} over {}", facts.here.name(), facts.there.name(), facts.carrier);
    let known = facts.rails.iter().all(|rail| rail.rate_bps > 0) && line > 0;
    let count = facts.rails.len();
    let _ = write!(text, ", {count} rail{}", if count == 1 { "" } else { "s" });
    if known {
        let _ = write!(text, " of {} Gb/s together", line as f64 / 1e9);
    }
    if facts.here.emulated || facts.there.emulated {
        text += "; the devices are emulated: memory copies bound the figures, not the line";
    } else if facts.here.debug_build || facts.there.debug_build {
        text += "; a debug build: the figures mean nothing";
    }
    text.push('\n');
    text
}

fn row(rail: &Rail) -> [String; 9] {
    let latency = |figures: &Option<Figures>| {
        figures.filter(|f| f.latency_us > 0.0).map_or("-".into(), |f| format!("{:.1}", f.latency_us))
    };
    let rate = |figures: &Option<Figures>| {
        figures.filter(|f| f.bytes_per_s > 0.0).map_or("-".into(), |f| format!("{:.2}", f.bytes_per_s / 1e9))
    };
    let share = match (rail.rate(), rail.line()) {
        (Some(rate), Some(line)) => format!("{:.0} %", 100.0 * rate / line),
        _ => "-".into(),
    };
    let remark = match &rail.end {
        End::Works if rail.wrong.is_empty() => "",
        End::Works => "WRONG BYTES",
        End::NotOpened { .. } => "not opened",
        End::NotMet { .. } => "no answer",
        End::Failed { .. } => "failed",
        End::NotMeasured => "not measured: out of time",
    };
    [
        rail.name(),
        latency(&rail.write),
        latency(&rail.read),
        rate(&rail.write),
        rate(&rail.read),
        share,
        packets(rail.counted_here),
        packets(rail.counted_there),
        remark.into(),
    ]
}

fn packets(counted: Option<Counted>) -> String {
    counted.map_or("-".into(), |counted| format!("{}/{}", counted.tx, counted.rx))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Side;

    #[test]
    fn columns_stand_below_their_titles_and_what_was_not_measured_is_a_dash() {
        let figures = |us, gb: f64| Some(Figures { latency_us: us, bytes_per_s: gb * 1e9 });
        let good = Rail {
            here: "rdmap79s0".into(),
            there: "rdmap79s0".into(),
            rate_bps: 100_000_000_000,
            write: figures(14.25, 12.0),
            read: figures(28.5, 11.5),
            counted_here: Some(Counted { tx: 5000, rx: 4321, again: None }),
            ..Rail::default()
        };
        let dead =
            Rail { end: End::NotMet { why: "silence".into() }, write: None, read: None, ..good.clone() };
        let side = |host: &str| Side { host: host.into(), ..Side::default() };
        let facts = Facts {
            here: side("node-1"),
            there: side("node-2"),
            carrier: "efa-direct".into(),
            rails: vec![good, dead],
            ..Facts::default()
        };
        let expected = "\
node-1 to node-2 over efa-direct, 2 rails of 200 Gb/s together
rail       write µs  read µs  write GB/s  read GB/s  of line  tx/rx here  tx/rx there
rdmap79s0      14.2     28.5       12.00      11.50     96 %   5000/4321            -
rdmap79s0         -        -           -          -        -   5000/4321            -  no answer
";
        assert_eq!(table(&facts), expected);
    }
}
