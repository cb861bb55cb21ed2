//! What a run changed, written down before it changes anything: `<store>/<run>/journal.json`, beside it what was replaced.
//!
//! A run is `<run>.new` while it is prepared (nothing has changed), `<run>` from its first change on, has a file `done` once all of it
//! was proven, a file `undoing` from the first step of its undo on, and is `<run>.old` when that is complete. So a crash at
//! any point leaves a name that says what is to be done: `.new` and `.old` are removed, a run without `done` or with `undoing` is
//! undone.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::change::State;
use super::folder::Folder;
use super::place::Place;
use super::{FixError, Remedy};

/// The schema that is written, and read.
const SCHEMA: &str = "kvrail.fix.v1";
pub(super) const NAME: &str = "journal.json";
pub(super) const DONE: &str = "done";
pub(super) const UNDOING: &str = "undoing";
pub(super) const NEW: &str = ".new";
pub(super) const OLD: &str = ".old";
/// Longest journal that is read.
const BYTES_MAX: usize = 64 << 20;

/// What a run changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Journal {
    schema: String,
    /// The run, as in `20261121T040302Z-1a2b`.
    pub run: String,
    /// What it was for.
    pub remedies: Vec<Remedy>,
    /// In the order in which they were made.
    pub entries: Vec<Entry>,
    /// What was installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<super::Installation>,
    /// When the directories that have them were last changed, before.
    pub(super) folders: Vec<(String, (i64, i64))>,
}

/// One path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Below the root of the place.
    pub path: String,
    /// What was there.
    pub before: State,
    /// What was put there.
    pub after: State,
    /// Why.
    pub why: String,
    /// Whether it is made from something else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub derived: bool,
    /// The name, in the same directory, under which the new one was prepared.
    pub(super) staged: String,
}

impl Journal {
    pub(super) fn new(run: String, remedies: &[Remedy]) -> Self {
        Self {
            schema: SCHEMA.into(),
            run,
            remedies: remedies.to_vec(),
            entries: Vec::new(),
            installed: None,
            folders: Vec::new(),
        }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Plain data: it always serialises.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    pub(super) fn read(place: &Place, directory: &Folder, run: &str) -> Result<Self, FixError> {
        let path = place.store().join(run).join(NAME);
        let wrong = |why: String| FixError::Journal { path: path.clone(), why };
        let text = directory.read(NAME).map_err(|why| wrong(why.to_string()))?;
        if text.len() > BYTES_MAX {
            return Err(wrong(format!("longer than {} MiB", BYTES_MAX >> 20)));
        }
        let journal: Self = serde_json::from_slice(&text).map_err(|why| wrong(why.to_string()))?;
        if journal.schema != SCHEMA {
            return Err(wrong(format!("of schema `{}`, and this program reads `{SCHEMA}`", journal.schema)));
        }
        Ok(journal)
    }
}

/// A name for a run: runs sort by when they began.
#[must_use]
pub fn new_run() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil(now.as_secs() / 86_400);
    let second = now.as_secs() % 86_400;
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}.{:06}Z-{:x}",
        second / 3600,
        second / 60 % 60,
        second % 60,
        now.subsec_micros(),
        std::process::id()
    )
}

/// Whether a name is one that [`new_run`] makes.
pub(super) fn is_run(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    name.len() >= 24
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_digit())
        && !name.contains("..")
}

/// The date of a day since 1970 in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_by_when_they_began() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
        let run = new_run();
        assert!(is_run(&run) && !is_run("lock") && !is_run("../../../../../../etc/passwd"), "{run}");
    }
}
