//! The Markdown that a comparison leaves.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::rows::Bound;
use super::verdict::{Judged, Spread, Taken, Verdict};

const SECONDS_PER_DAY: u64 = 86_400;

/// Prints a report, and writes it to a file where one is asked for.
pub(crate) fn deliver(text: &str, to: Option<&Path>) -> Result<(), String> {
    print!("{text}");
    to.map_or(Ok(()), |path| {
        fs::write(path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))
    })
}

/// What a reader must know to judge the figures.
#[derive(Debug)]
pub(crate) struct Circumstances {
    pub(crate) title: &'static str,
    /// Where the engines ran, and how.
    pub(crate) setting: String,
    pub(crate) runs: usize,
    pub(crate) nixl_version: Option<String>,
    pub(crate) turns: usize,
    /// Turns that began on a busy machine.
    pub(crate) noisy_turns: usize,
    /// Rows that this machine cannot run, and why.
    pub(crate) skipped_rows: Vec<(String, String)>,
}

impl Circumstances {
    /// Adds the turns of a row.
    pub(crate) fn count(&mut self, taken: &Taken) {
        self.noisy_turns += taken.noisy_turns;
        self.turns += taken.turns;
        if self.nixl_version.is_none() {
            let version = taken.samples.values().flatten().find_map(|sample| sample.version());
            self.nixl_version = version.map(str::to_owned);
        }
    }
}

/// The whole report.
pub(crate) fn markdown(judged: &[Judged], about: &Circumstances) -> String {
    let mut text = format!("# {}\n\n", about.title);
    let nixl = about.nixl_version.as_deref().unwrap_or("not run");
    let facts = [
        machine(),
        format!("NIXL {nixl}; {}; every byte verified", about.setting),
        format!(
            "median [lowest..highest] of {} runs in turns; ratio: median of the ratios within the runs; \
             {} of {} turns began on a busy machine",
            about.runs, about.noisy_turns, about.turns
        ),
    ];
    for fact in facts {
        let _ = writeln!(text, "- {fact}");
    }
    text.push_str(
        "\n| row | figure | kvrail | beside | ratio | required | |\n|---|---|---|---|---|---|---|\n",
    );
    for line in judged {
        let _ = writeln!(text, "{}", table_row(line));
    }
    let notes = judged.iter().filter_map(|line| match &line.verdict {
        Verdict::Skipped(reason) => Some(format!("skipped: {}: {reason}", line.row)),
        Verdict::NotMeasured(reason) => Some(format!("not measured: {}: {reason}", line.row)),
        Verdict::Met | Verdict::Missed | Verdict::Shown => None,
    });
    let rows = about.skipped_rows.iter().map(|(row, reason)| format!("skipped: {row}: {reason}"));
    let mut notes: Vec<String> = rows.chain(notes).collect();
    notes.dedup();
    if !notes.is_empty() {
        text.push('\n');
        for note in notes {
            let _ = writeln!(text, "- {note}");
        }
    }
    text
}

fn table_row(line: &Judged) -> String {
    let metric = line.check.metric;
    let figure = |spread: Option<Spread>| spread.map_or_else(|| "–".into(), show);
    let beside = match line.check.bound.peer() {
        Some(peer) => format!("{} {}", peer.name(), figure(line.beside)),
        None => "–".into(),
    };
    let required = match line.check.bound {
        Bound::Share { at_least, .. } => format!("≥ {at_least}×"),
        Bound::AtMost { limit } => format!("≤ {limit} {}", metric.unit()),
        Bound::Shown { .. } => String::new(),
    };
    let verdict = match line.verdict {
        Verdict::Met => "met",
        Verdict::Missed => "**missed**",
        Verdict::Shown => "",
        Verdict::Skipped(_) => "skipped",
        Verdict::NotMeasured(_) => "**not measured**",
    };
    let noise = if line.noisy { " (noisy)" } else { "" };
    format!(
        "| {} | {}, {} | {} | {beside} | {} | {required} | {verdict}{noise} |",
        line.row,
        metric.name(),
        metric.unit(),
        figure(line.kvrail),
        figure(line.ratio),
    )
}

/// Three digits that matter, whatever the size.
pub(crate) fn show(spread: Spread) -> String {
    let digits = match spread.median {
        median if median >= 100.0 => 0,
        median if median >= 10.0 => 1,
        _ => 2,
    };
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} [{min:.digits$}..{max:.digits$}]")
}

/// Date, processor, kernel.
pub(crate) fn machine() -> String {
    format!("{} · {} · Linux {}", today(), processor(), kernel())
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim())
    };
    let count = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{count} × {} (family {} model {})", of("model name"), of("cpu family"), of("model\t"))
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "?".into(), |text| text.trim().to_owned())
}

fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / SECONDS_PER_DAY);
    format!("{year}-{month:02}-{day:02}")
}

/// Year, month and day of a day counted from 1970-01-01, UTC.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::super::reading::Metric;
    use super::super::rows::{Check, Peer};
    use super::*;

    #[test]
    fn days_become_dates_also_around_a_leap_day() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }

    #[test]
    fn a_missed_bound_and_a_skipped_peer_are_both_said() {
        let spread = Spread::of(&[2.0, 1.0, 4.0]);
        let line = |verdict| Judged {
            row: "shared-kv-read".into(),
            check: Check {
                metric: Metric::Bandwidth,
                bound: Bound::Share { of: Peer::NixlUcx, at_least: 2.3 },
            },
            kvrail: spread,
            beside: spread,
            ratio: spread,
            verdict,
            noisy: true,
        };
        let about = Circumstances {
            title: "a test",
            setting: "nowhere".into(),
            runs: 3,
            nixl_version: None,
            turns: 6,
            noisy_turns: 0,
            skipped_rows: Vec::new(),
        };
        let text =
            markdown(&[line(Verdict::Missed), line(Verdict::Skipped("NIXL UCX: no wheel".into()))], &about);
        assert!(text.contains("| 2.00 [1.00..4.00] | NIXL UCX 2.00 [1.00..4.00] |"), "{text}");
        assert!(text.contains("| ≥ 2.3× | **missed** (noisy) |"), "{text}");
        assert!(text.contains("- skipped: shared-kv-read: NIXL UCX: no wheel"), "{text}");
    }
}
