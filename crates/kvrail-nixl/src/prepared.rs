//! Prepared lists: descriptors that were looked up once, numbered, and kept as runs of equal pieces.
//!
//! A list of 112,000 blocks of 64 tensors is 64 runs when it came as runs, and close to that when it came block by block. Which pieces
//! a transfer uses is chosen by number; their lengths and neighbours decide what the planner coalesces later.

use std::sync::Arc;

use kvrail::{RegionId, Slices};

use crate::backend::{BackendKind, BackendSet};
use crate::error::{Error, Result, Status};
use crate::list::{Desc, MemoryKind, Strided};
use crate::section::Table;

/// Pieces of one length, a fixed distance apart, in one region.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Number of its first piece.
    first: u64,
    piece: Desc,
    stride: u64,
    count: u64,
    region: Option<RegionId>,
    /// Of the first piece, in the region.
    offset: u64,
}

/// For which agent a list was prepared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// This one, as the local side.
    Local,
    /// This one, as the remote side of a transfer to itself.
    Loopback,
    /// Another one, in one life of its metadata here.
    Remote {
        /// Its name.
        name: Arc<str>,
        /// Which life.
        generation: u64,
    },
}

/// A list that was prepared.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) side: Side,
    pub(crate) kind: MemoryKind,
    /// The backends that know all of it.
    pub(crate) backends: BackendSet,
    runs: Vec<Run>,
    count: u64,
    /// Runs per piece: where the run of a piece is, when all are of one size.
    density: f64,
}

/// Builds runs from pieces that come one after the other.
struct Builder<'a> {
    table: &'a Table,
    backends: BackendSet,
    near: usize,
    runs: Vec<Run>,
    count: u64,
}

impl Builder<'_> {
    /// Appends `count` pieces that lie in one region.
    fn push(&mut self, one: &Strided) -> Option<()> {
        let piece = Desc { addr: one.addr, len: one.len, device: one.device };
        let span = one.stride.checked_mul(one.count - 1)?.checked_add(one.len)?;
        let all = Desc { len: span, ..piece };
        let entry = self.table.find(&all, self.backends, &mut self.near)?;
        let offset = one.addr - entry.desc.addr;
        self.runs.push(Run {
            first: self.count,
            piece,
            stride: one.stride,
            count: one.count,
            region: entry.region,
            offset,
        });
        self.count += one.count;
        Some(())
    }

    /// Appends one piece; it extends the last run when it goes on as that did.
    #[inline]
    fn push_one(&mut self, piece: &Desc) -> Option<()> {
        let entry = self.table.find(piece, self.backends, &mut self.near)?;
        let offset = piece.addr - entry.desc.addr;
        let region = entry.region;
        if let Some(last) = self.runs.last_mut()
            && last.piece.len == piece.len
            && last.region == region
            && last.piece.device == piece.device
            && offset > last.offset
        {
            let step = offset - last.offset;
            if last.count == 1 {
                last.stride = step;
            }
            if last.stride.checked_mul(last.count) == Some(step) {
                last.count += 1;
                self.count += 1;
                return Some(());
            }
        }
        let run = Run { first: self.count, piece: *piece, stride: 0, count: 1, region, offset };
        self.runs.push(run);
        self.count += 1;
        Some(())
    }
}

/// Descriptors as callers give them.
#[derive(Clone, Copy, Debug)]
pub enum Pieces<'a> {
    /// One by one.
    Each(&'a [Desc]),
    /// As runs; a number selects an expanded piece.
    Strided(&'a [Strided]),
}

impl Pieces<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Each(pieces) => pieces.is_empty(),
            Self::Strided(runs) => runs.is_empty(),
        }
    }
}

/// Pieces of a prepared list at most.
const PIECES_MAX: u64 = 1 << 28;

const _: () = assert!(PIECES_MAX < 1 << 31, "numbers of pieces are compared as if they had a sign");

impl Prepared {
    /// Looks up descriptors for each of `candidates`; keeps those that know all of them.
    pub(crate) fn new(
        side: Side,
        kind: MemoryKind,
        table: &Table,
        candidates: BackendSet,
        pieces: Pieces<'_>,
    ) -> Result<Self> {
        if pieces.is_empty() {
            return Err(Error::new(Status::NotFound, "the descriptor list is empty"));
        }
        let mut first_error = None;
        let mut attempt = |backends: BackendSet| match build(table, backends, pieces) {
            Ok((runs, count)) => Some((runs, count)),
            Err(error) => {
                first_error.get_or_insert(error);
                None
            }
        };
        if let Some((runs, count)) = attempt(candidates) {
            return Ok(Self::of(side, kind, candidates, runs, count));
        }
        let mut found: Option<Self> = None;
        for one in candidates.iter().map(BackendSet::of).filter(|one| *one != candidates) {
            let Some((runs, count)) = attempt(one) else { continue };
            match &mut found {
                Some(found) => found.backends = found.backends.or(one),
                None => found = Some(Self::of(side.clone(), kind, one, runs, count)),
            }
        }
        found.ok_or_else(|| first_error.unwrap_or_else(|| Error::new(Status::NotFound, "no backend")))
    }

    fn of(side: Side, kind: MemoryKind, backends: BackendSet, runs: Vec<Run>, count: u64) -> Self {
        let density = runs.len() as f64 / count as f64;
        Self { side, kind, backends, runs, count, density }
    }

    /// The position of the run that holds piece `index`, which exists; `near` is looked at first.
    #[inline]
    fn locate(&self, index: u64, near: usize) -> usize {
        let holds = |run: &Run| index.wrapping_sub(run.first) < run.count;
        if holds(&self.runs[near]) {
            return near;
        }
        // Runs of one size each (usual: a tensor each, or a piece each) are found by multiplication, give or take one.
        let guess = (index as f64 * self.density) as usize;
        for guess in [guess, guess + 1] {
            if self.runs.get(guess).is_some_and(holds) {
                return guess;
            }
        }
        self.runs.partition_point(|run| run.first <= index) - 1
    }

    /// Chooses pieces by number, or all of them; `what` names the side in errors.
    pub(crate) fn select<'a>(&'a self, chosen: Option<&'a [u32]>, what: &str) -> Result<Selection<'a>> {
        let outside = |index: &u32| u64::from(*index) >= self.count;
        // Whether all are inside is found many at a time, which one is not only when one is: below 2³¹, which lists are shorter than, an index less
        // the count has its upper bit exactly when it is inside.
        let count = self.count as u32;
        let inside =
            |(small, less): (u32, u32), &index: &u32| (small | index, less & index.wrapping_sub(count));
        if let Some(chosen) = chosen
            && let (small, less) = chosen.iter().fold((0, u32::MAX), inside)
            && (small >> 31 == 1 || less >> 31 == 0)
            && let Some(position) = chosen.iter().position(outside)
        {
            return Err(Error::new(
                Status::InvalidParam,
                format!(
                    "{what} index {} at position {position} is outside: the prepared list has {} descriptors",
                    chosen[position], self.count
                ),
            ));
        }
        Ok(Selection { list: self, chosen })
    }
}

/// Pieces of a prepared list that were chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection<'a> {
    list: &'a Prepared,
    /// By number, each of which there is; else all.
    chosen: Option<&'a [u32]>,
}

impl<'a> Selection<'a> {
    /// Stretches of pieces that follow each other in one run: the run, the first of them, how many.
    #[inline]
    fn stretches(self) -> impl Iterator<Item = (&'a Run, u64, u64)> {
        let (mut near, mut at) = (0, 0);
        std::iter::from_fn(move || {
            let Some(chosen) = self.chosen else {
                let run = self.list.runs.get(at)?;
                at += 1;
                return Some((run, 0, run.count));
            };
            let rest = chosen.get(at..).filter(|rest| !rest.is_empty())?;
            let index = u64::from(rest[0]);
            near = self.list.locate(index, near);
            let run = &self.list.runs[near];
            let piece = index - run.first;
            let count = ascending(rest, usize::try_from(run.count - piece).unwrap_or(usize::MAX));
            at += count;
            Some((run, piece, count as u64))
        })
    }

    /// The pieces by address.
    pub(crate) fn pieces(self) -> Vec<Desc> {
        let mut pieces = Vec::with_capacity(self.count() as usize);
        for (run, first, count) in self.stretches() {
            let each = first..first + count;
            pieces.extend(each.map(|piece| Desc { addr: run.piece.addr + piece * run.stride, ..run.piece }));
        }
        pieces
    }
}

impl Slices for Selection<'_> {
    #[inline]
    fn count(&self) -> u64 {
        self.chosen.map_or(self.list.count, |chosen| chosen.len() as u64)
    }

    #[inline]
    fn runs(&self) -> impl Iterator<Item = kvrail::Run> {
        self.stretches().map(|(run, piece, count)| kvrail::Run {
            region: region(run),
            offset: run.offset + piece * run.stride,
            len: run.piece.len,
            stride: run.stride,
            // Prepared lists are bounded, so that it fits.
            count: count as u32,
        })
    }

    fn apart(&self) -> u64 {
        match self.chosen {
            // Blocks of one request lie together, or do not.
            Some([first, second, rest @ ..]) if *second == first.wrapping_add(1) => {
                rest.len() as u64 / 16 + 2
            }
            _ => self.count(),
        }
    }
}

/// Pieces of a list that is used once, looked up while they are planned.
pub(crate) struct LookedUp<'a> {
    pub(crate) table: &'a Table,
    pub(crate) backends: BackendSet,
    pub(crate) pieces: &'a [Desc],
}

impl Slices for LookedUp<'_> {
    #[inline]
    fn count(&self) -> u64 {
        self.pieces.len() as u64
    }

    #[inline]
    fn runs(&self) -> impl Iterator<Item = kvrail::Run> {
        let mut near = 0;
        self.pieces.iter().map(move |piece| {
            let found = self.table.find(piece, self.backends, &mut near);
            let (region, offset) = match found {
                Some(entry) => (entry.region, piece.addr - entry.desc.addr),
                None => (None, 0),
            };
            // What lies in no region is said to lie in one that nobody has, and the planner refuses it.
            let region = region.unwrap_or(RegionId(u32::MAX));
            kvrail::Run { region, offset, len: piece.len, stride: 0, count: 1 }
        })
    }
}

/// How many numbers from the first on ascend by one; at most `most`, at least one.
#[inline]
fn ascending(numbers: &[u32], most: usize) -> usize {
    /// Compared at once, without a look in between: a vector register or two.
    const LANES: usize = 16;
    let numbers = &numbers[..numbers.len().min(most)];
    let first = numbers[0];
    let mut at = 1;
    if numbers.get(1) != Some(&first.wrapping_add(1)) {
        return 1;
    }
    while let Some(lanes) = numbers.get(at..at + LANES) {
        let expected = first.wrapping_add(at as u32);
        let equal = lanes.iter().zip(0u32..).fold(true, |all, (&n, i)| all & (n == expected.wrapping_add(i)));
        if !equal {
            break;
        }
        at += LANES;
    }
    while numbers.get(at) == Some(&first.wrapping_add(at as u32)) {
        at += 1;
    }
    at
}

fn region(run: &Run) -> RegionId {
    run.region.expect("what a network backend knows has a region")
}

fn build(table: &Table, backends: BackendSet, pieces: Pieces<'_>) -> Result<(Vec<Run>, u64)> {
    let mut builder = Builder { table, backends, near: 0, runs: Vec::new(), count: 0 };
    let unknown = |index: usize, addr: u64, len: u64, device: u64| {
        Error::new(
            Status::NotFound,
            format!(
                "descriptor {index} ({len} bytes at {addr:#x} of device {device}) lies in no one region that is registered with {backends}"
            ),
        )
    };
    match pieces {
        Pieces::Each(pieces) => {
            if pieces.len() as u64 > PIECES_MAX {
                let what = format!("a list of {} descriptors; the limit is {PIECES_MAX}", pieces.len());
                return Err(Error::new(Status::InvalidParam, what));
            }
            for (index, piece) in pieces.iter().enumerate() {
                builder.push_one(piece).ok_or_else(|| unknown(index, piece.addr, piece.len, piece.device))?;
            }
        }
        Pieces::Strided(runs) => {
            builder.runs.reserve(runs.len());
            for (index, run) in runs.iter().enumerate() {
                // As NIXL, which knows no such pieces: nothing to move, or pieces that overlap.
                if run.count == 0 || run.len == 0 || run.stride < run.len {
                    return Err(Error::new(
                        Status::NotFound,
                        format!(
                            "strided descriptor {index} is {} pieces of {} bytes every {}: pieces have bytes and do not overlap",
                            run.count, run.len, run.stride
                        ),
                    ));
                }
                if run.count > PIECES_MAX - builder.count {
                    return Err(Error::new(
                        Status::InvalidParam,
                        format!(
                            "strided descriptor {index} expands the list beyond {PIECES_MAX} descriptors"
                        ),
                    ));
                }
                builder.push(run).ok_or_else(|| unknown(index, run.addr, run.len, run.device))?;
            }
        }
    }
    Ok((builder.runs, builder.count))
}

/// The backend of a transfer between two lists: the first common one of those asked for.
pub(crate) fn common(local: BackendSet, remote: BackendSet, asked: &[BackendKind]) -> Option<BackendKind> {
    let both = local.and(remote);
    if asked.is_empty() {
        return both.iter().next();
    }
    asked.iter().copied().find(|kind| both.has(*kind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::section::Entry;

    const UCX: BackendSet = BackendSet::of(BackendKind::Ucx);

    fn table() -> Table {
        let entry = |addr, len, region| Entry {
            desc: Desc { addr, len, device: 0 },
            region: Some(RegionId(region)),
            backends: UCX,
        };
        Table::new(vec![entry(1000, 5000, 0), entry(10_000, 5000, 1)])
    }

    fn expand(list: &Prepared, chosen: Option<&[u32]>) -> Vec<(u32, u64, u64)> {
        let selection = list.select(chosen, "local").unwrap();
        let runs: Vec<_> = selection.runs().collect();
        let each = runs
            .iter()
            .flat_map(|r| (0..u64::from(r.count)).map(move |i| (r.region.0, r.offset + i * r.stride, r.len)));
        let each: Vec<_> = each.collect();
        assert_eq!(each.len() as u64, selection.count());
        each
    }

    fn by_address(list: &Prepared, chosen: Option<&[u32]>) -> Vec<Desc> {
        list.select(chosen, "local").unwrap().pieces()
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_what_was_prepared(
            pieces in prop::collection::vec((any::<bool>(), 0..4000u64, 1..900u64), 1..60),
            chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..90),
        ) {
            let descs: Vec<_> = pieces.iter().map(|&(second, offset, len)| Desc {
                addr: offset + if second { 10_000 } else { 1000 }, len, device: 0,
            }).collect();
            let wanted = |i: usize| (u32::from(pieces[i].0), pieces[i].1, pieces[i].2);
            let list = Prepared::new(Side::Local, MemoryKind::Dram, &table(), UCX, Pieces::Each(&descs)).unwrap();
            let all: Vec<_> = (0..descs.len()).map(wanted).collect();
            prop_assert_eq!(expand(&list, None), all);
            prop_assert_eq!(by_address(&list, None), descs.clone());
            let chosen: Vec<u32> = chosen.iter().map(|i| i.index(descs.len()) as u32).collect();
            let some: Vec<_> = chosen.iter().map(|&i| wanted(i as usize)).collect();
            prop_assert_eq!(expand(&list, Some(&chosen)), some);
            let addrs: Vec<_> = chosen.iter().map(|&i| descs[i as usize]).collect();
            prop_assert_eq!(by_address(&list, Some(&chosen)), addrs);
        }

        #[test]
        fn runs_number_their_pieces_as_if_they_were_written_out(
            runs in prop::collection::vec((0..1000u64, 1..50u64, 0..60u64, 1..20u64), 1..20),
            chosen in prop::collection::vec((any::<prop::sample::Index>(), 1..40usize), 1..50),
        ) {
            let runs: Vec<_> = runs.iter().map(|&(offset, len, gap, count)| Strided { addr: 1000 + offset, len, device: 0, stride: len + gap, count }).collect();
            let each: Vec<_> = runs.iter().flat_map(|r| (0..r.count).map(|i| Desc { addr: r.addr + i * r.stride, len: r.len, device: 0 })).collect();
            let list = Prepared::new(Side::Local, MemoryKind::Dram, &table(), UCX, Pieces::Strided(&runs)).unwrap();
            prop_assert_eq!(list.count, each.len() as u64);
            // Stretches of numbers that ascend, some of them of one.
            let chosen: Vec<u32> = chosen.iter().flat_map(|(i, count)| {
                let first = i.index(each.len());
                (first..(first + count).min(each.len())).map(|i| i as u32)
            }).collect();
            let wanted: Vec<_> = chosen.iter().map(|&i| each[i as usize]).collect();
            let offsets: Vec<_> = wanted.iter().map(|d| (0, d.addr - 1000, d.len)).collect();
            prop_assert_eq!(expand(&list, Some(&chosen)), offsets);
            prop_assert_eq!(by_address(&list, Some(&chosen)), wanted);
        }

        #[test]
        fn no_numbers_overflow(numbers in prop::collection::vec(any::<[u64; 5]>(), 1..4)) {
            let runs: Vec<_> = numbers.iter().map(|&[addr, len, device, stride, count]| Strided { addr, len, device: device % 2, stride, count }).collect();
            let _ = Prepared::new(Side::Local, MemoryKind::Dram, &table(), UCX, Pieces::Strided(&runs));
        }
    }

    #[test]
    fn an_index_outside_and_memory_that_is_not_registered_are_told() {
        let inside = Desc { addr: 1000, len: 100, device: 0 };
        let list =
            Prepared::new(Side::Local, MemoryKind::Dram, &table(), UCX, Pieces::Each(&[inside])).unwrap();
        let error = list.select(Some(&[0, 1]), "remote").unwrap_err();
        assert_eq!(error.status, Status::InvalidParam);
        assert!(error.what.contains("remote index 1 at position 1"), "{error}");
        for outside in [
            Desc { addr: 999, ..inside },
            Desc { addr: 5901, ..inside },
            Desc { device: 1, ..inside },
            Desc { addr: u64::MAX - 50, ..inside },
        ] {
            let refused =
                Prepared::new(Side::Local, MemoryKind::Dram, &table(), UCX, Pieces::Each(&[inside, outside]));
            let error = refused.unwrap_err();
            assert_eq!(error.status, Status::NotFound);
            assert!(error.what.contains("descriptor 1"), "{error}");
        }
    }
}
