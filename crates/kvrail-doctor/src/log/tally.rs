//! What is kept of the lines of one signature in one file: how many, the first, the last, and the values of its captures. Bounded,
//! however many there are.

use super::signature::Sharp;

/// The captures of so many lines are kept; of later lines only those of one in [`DETAIL_EACH`].
const DETAIL: u64 = 512;
const DETAIL_EACH: u64 = 64;
/// Different combinations of captures that are kept.
const COMBINATIONS: usize = 32;
/// Bytes of a value that are kept.
const VALUE: usize = 120;
/// Bytes of the first line that are kept, around what was recognised.
const SAMPLE: usize = 400;
/// Bytes of the last line that are kept: its time stands at its beginning.
const HEAD: usize = 96;

#[derive(Default)]
pub(super) struct Tally {
    /// Lines that name it; an estimate where [`Self::about`] says so.
    pub(super) count: u64,
    /// Whether not all lines were looked at.
    pub(super) about: bool,
    /// Number of the first line, from 1.
    pub(super) first_line: u64,
    /// The first line.
    pub(super) sample: String,
    /// Beginnings of the first and the last line.
    pub(super) first_head: Vec<u8>,
    pub(super) last_head: Vec<u8>,
    /// Combinations of captures, and how many of the lines looked at had each.
    pub(super) combinations: Vec<(Captures, u64)>,
    /// Whether there were more than are kept.
    pub(super) more: bool,
    /// Excerpts with one of the literals.
    pub(super) candidates: u64,
    /// Literals that end up to here in the file are settled: they stand in an excerpt that was looked at.
    pub(super) settled: u64,
}

/// Names and values.
pub(super) type Captures = Vec<(&'static str, String)>;

impl Tally {
    /// Looks at an excerpt, and counts it if it is one.
    pub(super) fn look(
        &mut self,
        sharp: &Sharp,
        line: &[u8],
        weight: u64,
        begins: bool,
        number: impl FnOnce() -> u64,
    ) -> bool {
        let regex = sharp.regex();
        let detailed = self.count < DETAIL || self.candidates.is_multiple_of(DETAIL_EACH);
        let at = if detailed {
            let Some(captures) = regex.captures(line) else { return false };
            if sharp.is_innocent(line) {
                return false;
            }
            self.keep(sharp, &captures);
            captures.get(0).map_or(0, |whole| whole.start())
        } else {
            if !regex.is_match(line) || sharp.is_innocent(line) {
                return false;
            }
            0
        };
        let head = if begins { &line[..line.len().min(HEAD)] } else { &[] };
        if self.count == 0 {
            self.first_line = number();
            self.first_head = head.to_vec();
            self.sample = super::text::excerpt(line, at, SAMPLE);
        }
        self.last_head.clear();
        self.last_head.extend_from_slice(head);
        self.count += weight;
        self.about |= weight > 1;
        true
    }

    fn keep(&mut self, sharp: &Sharp, captures: &regex::bytes::Captures<'_>) {
        let found = sharp.names().filter_map(|name| {
            let value = captures.name(name)?.as_bytes();
            Some((name, super::text::plain(&value[..value.len().min(VALUE)])))
        });
        let found: Captures = found.collect();
        if let Some((_, count)) = self.combinations.iter_mut().find(|(kept, _)| *kept == found) {
            *count += 1;
        } else if self.combinations.len() < COMBINATIONS {
            self.combinations.push((found, 1));
        } else {
            self.more = true;
        }
    }
}
