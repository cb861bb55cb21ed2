//! Reads bytes once, in constant memory, and counts the lines that name something known.
//!
//! One automaton runs over everything, whatever the lines are; only around one of its literals is anything looked at closer, in
//! an excerpt: the line, or of a long line as much as [`CONTEXT`] around the literal. What an excerpt is depends on the bytes
//! alone, never on how they arrive, so that a file and a pipe that trickles give the same findings.

use std::io::{ErrorKind, Read};

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton as _, StateID};

use super::signature::Engine;
use super::tally::Tally;

/// As much of a line is looked at on each side of a literal.
pub(super) const CONTEXT: usize = 2048;
/// What is held in memory of a log.
pub(super) const BUFFER: usize = 1 << 20;
/// So many lines are looked at closer for one signature that has been found; of more, one of [`SAMPLE`], so that a log in which every line
/// is one is read as fast as any other.
const EXACT: u64 = 1 << 14;
/// So many are looked at while it has not been found: one line that is meant must not be lost among those that are like it.
const EXACT_UNFOUND: u64 = 1 << 18;
/// Of so many lines one is looked at beyond these.
const SAMPLE: u64 = 16;

/// Parts of a block that are looked at side by side, and their length.
const LANES: usize = 4;
const LANE: usize = 8192;

const _: () = assert!(BUFFER >= 8 * CONTEXT, "most of the buffer must be new at each reading");

/// What was counted in one file.
pub(super) struct Counted {
    /// By needle, in the order of the engine.
    pub(super) tallies: Vec<Tally>,
    pub(super) bytes: u64,
    pub(super) lines: u64,
    /// Why it ended before the end, where it did.
    pub(super) broke: Option<std::io::Error>,
}

/// Reads to the end, or until reading fails.
pub(super) fn read(engine: &Engine, from: &mut dyn Read, buffer_bytes: usize) -> Counted {
    let mut scanner = Scanner {
        engine,
        buffer: vec![0; buffer_bytes.max(8 * CONTEXT)],
        filled: 0,
        scanned: 0,
        base: 0,
        newlines: 0,
        state: engine.start,
        tallies: engine.needles.iter().map(|_| Tally::default()).collect(),
        scratch: Vec::new(),
        line: None,
        hits: Default::default(),
    };
    let broke = scanner.run(from);
    let bytes = scanner.base + scanner.filled as u64;
    let held = &scanner.buffer[..scanner.filled];
    let open_line = u64::from(held.last().is_some_and(|last| *last != b'\n'));
    let lines = scanner.newlines + newlines(held) + open_line;
    Counted { tallies: scanner.tallies, bytes, lines, broke }
}

struct Scanner<'e> {
    engine: &'e Engine,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are there.
    filled: usize,
    /// Bytes of the buffer that the automaton has seen.
    scanned: usize,
    /// Bytes of the file before the buffer.
    base: u64,
    /// Line ends before the buffer.
    newlines: u64,
    state: StateID,
    tallies: Vec<Tally>,
    scratch: Vec<u8>,
    /// The last line in which a literal stood, as places in the file; a line with one often has more.
    line: Option<(u64, u64)>,
    /// Where the automaton was in a state that ends a literal, by lane.
    hits: [Vec<(usize, StateID)>; LANES],
}

impl Scanner<'_> {
    fn run(&mut self, from: &mut dyn Read) -> Option<std::io::Error> {
        let broke = loop {
            if self.filled == self.buffer.len() {
                self.make_room();
            }
            match from.read(&mut self.buffer[self.filled..]) {
                Ok(0) => break None,
                Ok(n) => {
                    self.filled += n;
                    // What follows a literal must be there before it is looked at.
                    self.scan(self.filled.saturating_sub(CONTEXT));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        self.scan(self.filled);
        broke
    }

    /// Drops what is no longer needed: all but [`CONTEXT`] before what the automaton sees next.
    fn make_room(&mut self) {
        let keep = self.scanned.saturating_sub(CONTEXT);
        self.newlines += newlines(&self.buffer[..keep]);
        self.buffer.copy_within(keep..self.filled, 0);
        self.filled -= keep;
        self.scanned -= keep;
        self.base += keep as u64;
    }

    fn scan(&mut self, until: usize) {
        if until <= self.scanned {
            return;
        }
        // Away for as long as it is read from, so that what is found can be counted meanwhile.
        let buffer = std::mem::take(&mut self.buffer);
        let mut hits = std::mem::take(&mut self.hits);
        let there = &buffer[..self.filled];
        while self.scanned < until {
            let end = until.min(self.scanned + LANES * LANE);
            if end - self.scanned == LANES * LANE && self.scanned >= self.engine.longest {
                self.lanes(there, &mut hits);
            } else {
                self.one_lane(there, end, &mut hits);
            }
            self.scanned = end;
            for (at, state) in hits.iter_mut().flat_map(|lane| lane.drain(..)) {
                for index in 0..self.engine.automaton.match_len(state) {
                    let literal = self.engine.automaton.match_pattern(state, index).as_usize();
                    self.hit(there, usize::from(self.engine.needle_of[literal]), at + 1);
                }
            }
        }
        self.buffer = buffer;
        self.hits = hits;
    }

    fn one_lane(&mut self, there: &[u8], end: usize, hits: &mut [Vec<(usize, StateID)>; LANES]) {
        let automaton = &self.engine.automaton;
        let mut state = self.state;
        for (at, &byte) in there[..end].iter().enumerate().skip(self.scanned) {
            state = automaton.next_state(Anchored::No, state, byte);
            if automaton.is_special(state) && automaton.is_match(state) {
                hits[0].push((at, state));
            }
        }
        self.state = state;
    }

    /// Several parts side by side: each step of the automaton waits for the one before it, and a core has room for others meanwhile. A
    /// state is what the last bytes were, no more of them than the longest literal has, so that a part can begin anywhere.
    fn lanes(&mut self, there: &[u8], hits: &mut [Vec<(usize, StateID)>; LANES]) {
        let automaton = &self.engine.automaton;
        let begin: [usize; LANES] = std::array::from_fn(|lane| self.scanned + lane * LANE);
        let mut states = [self.state; LANES];
        for (state, begin) in states.iter_mut().zip(begin).skip(1) {
            *state = there[begin - self.engine.longest..begin]
                .iter()
                .fold(self.engine.start, |state, &byte| automaton.next_state(Anchored::No, state, byte));
        }
        let parts: [&[u8; LANE]; LANES] = begin
            .map(|begin| there[begin..begin + LANE].try_into().expect("the slice is as long as the array"));
        // Byte by byte of all parts, not part by part: that is what the parts are for.
        #[allow(clippy::needless_range_loop)]
        for at in 0..LANE {
            for lane in 0..LANES {
                states[lane] = automaton.next_state(Anchored::No, states[lane], parts[lane][at]);
                if automaton.is_special(states[lane]) && automaton.is_match(states[lane]) {
                    hits[lane].push((begin[lane] + at, states[lane]));
                }
            }
        }
        self.state = states[LANES - 1];
    }

    /// A literal ends at `end`.
    fn hit(&mut self, there: &[u8], needle: usize, end: usize) {
        if self.base + end as u64 <= self.tallies[needle].settled {
            return;
        }
        let at = self.base + end as u64;
        let known = self.line.filter(|(start, stop)| (*start..=*stop).contains(&at));
        let (start, stop, begins, ends) = match known {
            Some((start, stop)) => ((start - self.base) as usize, (stop - self.base) as usize, true, true),
            None => {
                let (start, stop, begins, ends) = line_around(there, end, self.base == 0);
                if begins && ends && stop - start <= CONTEXT {
                    self.line = Some((self.base + start as u64, self.base + stop as u64));
                }
                (start, stop, begins, ends)
            }
        };
        let tally = &mut self.tallies[needle];
        tally.candidates += 1;
        let exact = if tally.count == 0 { EXACT_UNFOUND } else { EXACT };
        let weight = if tally.candidates <= exact { 1 } else { SAMPLE };
        if weight > 1 && !tally.candidates.is_multiple_of(SAMPLE) {
            tally.settled = self.base + stop as u64;
            return;
        }
        let mut line = &there[start..stop];
        if memchr::memchr(0x1b, line).is_some() {
            super::text::without_colours(line, &mut self.scratch);
            line = &self.scratch;
        }
        let sharp = &self.engine.needles[needle];
        if tally.look(sharp, line, weight, begins, || self.newlines + newlines(&there[..start]) + 1) || ends {
            tally.settled = self.base + stop as u64;
        } else {
            // The next excerpt of this line must reach further than this one.
            tally.settled = self.base + (end + CONTEXT / 2) as u64;
        }
    }
}

/// Where the line begins and stops in which a literal ends at `end`, as far as [`CONTEXT`] reaches; whether it does begin and end there.
fn line_around(there: &[u8], end: usize, is_beginning: bool) -> (usize, usize, bool, bool) {
    let ahead = &there[end..there.len().min(end + CONTEXT)];
    let (stop, ends) = match memchr::memchr(b'\n', ahead) {
        Some(at) => (end + at, true),
        // Less than that is there at the end of the file only.
        None => (end + ahead.len(), ahead.len() < CONTEXT),
    };
    let floor = end.saturating_sub(CONTEXT);
    let (start, begins) = match memchr::memrchr(b'\n', &there[floor..end]) {
        Some(at) => (floor + at + 1, true),
        None => (floor, is_beginning && floor == 0),
    };
    (start, stop, begins, ends)
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}
