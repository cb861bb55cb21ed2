//! Rows of all documents, put together by what can be compared: one chart each.

use std::collections::BTreeMap;

use crate::units::grouped;
use crate::{Document, Figures, Layout, Memory, Op, Row};

/// What rows of one chart have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) layout: Layout,
    pub(super) memory: Memory,
    pub(super) batch: u64,
    pub(super) threads: u32,
    pub(super) op: Op,
}

impl Key {
    fn of(row: &Row) -> Self {
        Self { layout: row.layout, memory: row.memory, batch: row.batch, threads: row.threads, op: row.op }
    }

    /// `write, contiguous, shared memory`
    pub(super) fn title(&self) -> String {
        let mut title =
            format!("{}, {} blocks, {} memory", capital(self.op.word()), self.layout, self.memory);
        if self.batch > 1 {
            title += &format!(", {} blocks per transfer", grouped(self.batch));
        }
        if self.threads > 1 {
            title += &format!(", {} threads", self.threads);
        }
        title
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// A row that has figures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'a> {
    pub(super) figures: &'a Figures,
    /// Rows of the same case in its document: more of them, in turns, compare better.
    company: usize,
}

impl Sample<'_> {
    /// The middle half of the turns' bandwidths, GB/s.
    pub(super) fn spread(&self) -> Option<(f64, f64)> {
        let mut turns: Vec<f64> = self.figures.turns.iter().map(|turn| turn.bandwidth_gbps).collect();
        turns.sort_unstable_by(f64::total_cmp);
        let at = |q| crate::ratio::quantile(&turns, q);
        at(0.25).zip(at(0.75)).filter(|_| turns.len() >= 3)
    }
}

/// Comparable rows: per line of a chart, per block size.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) key: Key,
    /// By position in [`Names`], then by block size.
    pub(super) lines: BTreeMap<usize, BTreeMap<u64, Sample<'a>>>,
}

impl Group<'_> {
    /// Block sizes of all lines, ascending.
    pub(super) fn sizes(&self) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.lines.values().flat_map(|line| line.keys().copied()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

/// What lines are called, all over the page, and how each looks.
#[derive(Debug)]
pub(super) struct Names(Vec<(String, String)>);

/// Styles that a name always has, so that two reports show one engine in one colour.
const FIXED: [(&str, &str); 6] = [
    ("kvrail", "s0"),
    ("nixl:UCX", "s1"),
    ("nixl:LIBFABRIC", "s2"),
    ("ucx", "s3"),
    ("libfabric", "s4"),
    ("memcpy", "s5"),
];

impl Names {
    /// Of all rows. An engine that ran over several transports has a name for each: `kvrail tcp`.
    pub(super) fn of(documents: &[Document]) -> Self {
        let rows = || documents.iter().flat_map(|document| &document.results);
        let mut carriers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in rows().filter(|row| row.figures.is_some()) {
            let of = carriers.entry(&row.engine).or_default();
            if !of.contains(&row.carrier()) {
                of.push(row.carrier());
            }
        }
        let mut names: Vec<String> = rows().map(|row| name(row, &carriers)).collect();
        names.sort_by_key(|name| {
            let engine = name.split(' ').next().unwrap_or(name);
            (FIXED.iter().position(|(fixed, _)| *fixed == engine).unwrap_or(FIXED.len()), name.clone())
        });
        names.dedup();
        let mut styled: Vec<(String, String)> = Vec::new();
        let mut spare = FIXED.len();
        for name in names {
            let engine = name.split(' ').next().unwrap_or(&name);
            let fixed =
                FIXED.iter().find(|(fixed, _)| *fixed == engine).map(|(_, style)| (*style).to_string());
            let style =
                fixed.filter(|style| !styled.iter().any(|(_, taken)| taken == style)).unwrap_or_else(|| {
                    spare += 1;
                    format!("s{}", FIXED.len() + (spare - FIXED.len() - 1) % 4)
                });
            styled.push((name, style));
        }
        Self(styled)
    }

    /// Name and style, by position.
    pub(super) fn at(&self, position: usize) -> (&str, &str) {
        self.0.get(position).map_or(("?", "s9"), |(name, style)| (name, style))
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, style)| (name.as_str(), style.as_str()))
    }

    /// A row's position.
    pub(super) fn position(&self, row: &Row) -> Option<usize> {
        let of = |wanted: &str| self.0.iter().position(|(name, _)| name == wanted);
        of(&with_carrier(&row.engine, row.carrier())).or_else(|| of(&row.engine))
    }
}

/// An engine whose own way has its name needs no second one.
fn with_carrier(engine: &str, carrier: &str) -> String {
    if engine == carrier { engine.into() } else { format!("{engine} {carrier}") }
}

fn name(row: &Row, carriers: &BTreeMap<&str, Vec<&str>>) -> String {
    match carriers.get(row.engine.as_str()) {
        Some(of) if of.len() > 1 && row.figures.is_some() => with_carrier(&row.engine, row.carrier()),
        // One that only failed, or failed beside others that did not, has the name of the first.
        Some(of) if of.len() > 1 => with_carrier(&row.engine, of[0]),
        _ => row.engine.clone(),
    }
}

/// Puts them together, in the order of their keys.
pub(super) fn groups<'a>(documents: &'a [Document], names: &Names) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<Key, Group<'a>> = BTreeMap::new();
    for document in documents {
        for row in &document.results {
            // Bytes that were found to be wrong have no bandwidth.
            let (Some(figures), Some(_), Some(position)) =
                (row.figures.as_ref(), row.bandwidth_gbps(), names.position(row))
            else {
                continue;
            };
            let company = document.results.iter().filter(|other| other.case == row.case).count();
            let key = Key::of(row);
            let group = groups.entry(key).or_insert_with(|| Group { key, lines: BTreeMap::new() });
            let sample = Sample { figures, company };
            let there = group.lines.entry(position).or_default().entry(row.block_bytes).or_insert(sample);
            if there.company < company {
                *there = sample;
            }
        }
    }
    groups.into_values().collect()
}
