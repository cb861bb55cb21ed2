//! The bytes of a run (KR-15): every word names its round and place, every block is poisoned before and checked after.
//!
//! Each process that is a source has a pattern of its own, so that bytes of the wrong source are no other source's.

use std::collections::BTreeSet;

use kvrail::Memory;
use kvrail_engines::Direction;

use crate::failure::Failure;
use crate::pattern::{self, Block, Bytes, Damage, DamageKind, Pattern, Places, Source};
use crate::signals;
use crate::units;

use super::plan::{Plan, Side, Size};

/// Memory whose blocks come from a plan.
struct Held<'a>(&'a Memory);

impl Bytes for Held<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) {
        // In bounds: a plan's places are within the pool that it was made for.
        let read = self.0.read(offset as usize, out);
        debug_assert!(read.is_ok(), "{read:?}");
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let written = self.0.write(offset as usize, bytes);
        debug_assert!(written.is_ok(), "{written:?}");
    }
}

/// A block that this process holds: where, and where its source is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    here: u64,
    source_rank: u32,
    source: u64,
}

/// What one process holds of the bytes of one size.
pub(crate) struct Holdings<'a> {
    memory: &'a Memory,
    rank: u32,
    /// Whether bytes are moved out of here, not into here.
    is_source: bool,
    block_bytes: u64,
    /// Of the source's memory: bounds what counts as a place of the pattern.
    source_bytes: u64,
    direction: Direction,
    seed: u64,
    places: BTreeSet<Place>,
}

impl<'a> Holdings<'a> {
    /// What the process of this rank holds.
    pub(crate) fn new(
        plan: &Plan,
        memory: &'a Memory,
        rank: u32,
        direction: Direction,
        seed: u64,
        size: Size,
        slots: u64,
    ) -> Self {
        let side = plan.side(rank);
        let source = match direction {
            Direction::Write => Side::Initiator,
            Direction::Read => Side::Target,
        };
        let mut places = BTreeSet::new();
        for route in plan.routes() {
            if [route.initiator, route.target].contains(&rank) {
                let source_rank = if source == Side::Initiator { route.initiator } else { route.target };
                for thread in 0..plan.shape().threads {
                    for slot in 0..slots {
                        let at = plan.places(route, thread, slot, size);
                        let (here, from) = match (side, source) {
                            (Side::Initiator, Side::Initiator) => (&at.initiator, &at.initiator),
                            (Side::Initiator, Side::Target) => (&at.initiator, &at.target),
                            (Side::Target, Side::Initiator) => (&at.target, &at.initiator),
                            (Side::Target, Side::Target) => (&at.target, &at.target),
                        };
                        let pairs = here.iter().zip(from);
                        places.extend(pairs.map(|(here, source)| Place {
                            here: *here,
                            source_rank,
                            source: *source,
                        }));
                    }
                }
            }
        }
        let (is_source, source_bytes) = (side == source, plan.pool_bytes(source));
        Self { memory, rank, is_source, block_bytes: size.block_bytes, source_bytes, direction, seed, places }
    }

    fn pattern(&self, rank: u32) -> Pattern {
        let source = match self.direction {
            Direction::Write => Source::Initiator,
            Direction::Read => Source::Target,
        };
        // The pattern mixes its seed; neighbouring ones are as good as any.
        Pattern::new(self.seed.wrapping_add(u64::from(rank)), source)
    }

    /// Before a round: the source writes its pattern, the other side poison.
    pub(crate) fn set(&self, round: u32) {
        let held = Held(self.memory);
        for place in &self.places {
            if self.is_source {
                self.pattern(self.rank).fill(&held, round, place.here, self.block_bytes);
            } else {
                pattern::poison(&held, place.here, self.block_bytes);
            }
        }
    }

    /// Says where the bytes of another block of the same source belong. Not where bytes went that did not arrive: memory between
    /// blocks is never touched, and so tells nothing.
    fn name_blocks(&self, damage: &mut Damage, place: Place, round: u32) {
        if matches!(damage.kind, DamageKind::Unwritten { .. } | DamageKind::ShortTail { .. }) {
            return;
        }
        // All of them, so that a block's number is the same in both texts.
        let of_source = |other: &Place| {
            if other.source_rank == place.source_rank { other.source } else { u64::MAX - self.block_bytes }
        };
        let here: Vec<_> = self.places.iter().map(|other| other.here).collect();
        let source: Vec<_> = self.places.iter().map(of_source).collect();
        let places = Places {
            here: &here,
            source: &source,
            block_bytes: self.block_bytes,
            region_bytes: self.source_bytes,
        };
        damage.name_blocks(self.pattern(place.source_rank), &Held(self.memory), &places, round);
    }

    /// After a round: every byte that came in is the one that belongs there. Nothing to check at a source.
    ///
    /// # Errors
    /// The first block that is wrong, and what it looks like; Ctrl-C.
    pub(crate) fn check(&self, round: u32) -> Result<(), Failure> {
        if self.is_source {
            return Ok(());
        }
        let held = Held(self.memory);
        for (index, place) in self.places.iter().enumerate() {
            if signals::interrupted() {
                return Err(Failure::interrupted());
            }
            let block = Block {
                offset: place.here,
                source_offset: place.source,
                len: self.block_bytes,
                round,
                region_bytes: self.source_bytes,
            };
            self.pattern(place.source_rank).check(&held, &block).map_err(|mut damage| {
                self.name_blocks(&mut damage, *place, round);
                Failure::check(format!(
                    "rank {}: block {index} of {} from rank {}, offset {} of its {}: expected {:#04x}, found {:#04x}; {} \
                     bytes are wrong; {}",
                    self.rank,
                    self.places.len(),
                    place.source_rank,
                    damage.offset,
                    units::about(self.block_bytes),
                    damage.expected,
                    damage.found,
                    damage.bad_bytes,
                    damage.kind
                ))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::nixlbench::plan::{Mode, Scheme, Shape};

    use super::*;

    const SIZE: Size = Size { block_bytes: 1024, batch: 3 };

    fn plan() -> Plan {
        Plan::new(Shape {
            scheme: Scheme::Tp,
            mode: Mode::Single,
            initiators: 1,
            targets: 2,
            threads: 1,
            total_bytes: 1 << 20,
            huge_pages: false,
        })
        .unwrap()
    }

    /// Moves the blocks of a plan by hand, each changed by `spoil`.
    fn moved(direction: Direction, round: u32, spoil: impl Fn(&mut Vec<u8>, usize)) -> Result<(), String> {
        let plan = plan();
        let memories: Vec<_> =
            (0..3).map(|rank| Memory::private(plan.pool_bytes(plan.side(rank)) as usize).unwrap()).collect();
        let holdings: Vec<_> = (0..3)
            .map(|rank| Holdings::new(&plan, &memories[rank as usize], rank, direction, 7, SIZE, 1))
            .collect();
        holdings.iter().for_each(|h| h.set(round));
        for route in plan.routes() {
            let places = plan.places(route, 0, 0, SIZE);
            for (index, (i, t)) in places.initiator.iter().zip(&places.target).enumerate() {
                let (i, t) = ((route.initiator as usize, *i as usize), (route.target as usize, *t as usize));
                let (from, to) = if direction == Direction::Write { (i, t) } else { (t, i) };
                let mut bytes = vec![0; SIZE.block_bytes as usize];
                memories[from.0].read(from.1, &mut bytes).unwrap();
                spoil(&mut bytes, index);
                memories[to.0].write(to.1, &bytes).unwrap();
            }
        }
        holdings.iter().try_for_each(|h| h.check(1)).map_err(|e| e.to_string())
    }

    #[test]
    fn bytes_that_were_moved_rightly_pass() {
        for direction in [Direction::Write, Direction::Read] {
            assert_eq!(moved(direction, 1, |_, _| {}), Ok(()));
        }
    }

    #[test]
    fn wrong_bytes_are_named() {
        let flipped = moved(Direction::Write, 1, |bytes, index| {
            if index == 2 {
                bytes[1000] ^= 1;
            }
        });
        let flipped = flipped.unwrap_err();
        assert!(flipped.contains("rank 1: block 2 of 3 from rank 0, offset 1000 of its 1 KiB"), "{flipped}");
        assert!(flipped.contains("1 bytes are wrong"), "{flipped}");
        let zeros = moved(Direction::Read, 1, |bytes, _| bytes.fill(0)).unwrap_err();
        assert!(zeros.contains("rank 0") && zeros.ends_with("zeros"), "{zeros}");
        let stale = moved(Direction::Write, 0, |_, _| {}).unwrap_err();
        assert!(stale.contains("stale: the bytes of round 0"), "{stale}");
    }

    #[test]
    fn what_never_arrived_is_seen() {
        let plan = plan();
        let memory = Memory::private(plan.pool_bytes(Side::Target) as usize).unwrap();
        let holdings = Holdings::new(&plan, &memory, 1, Direction::Write, 7, SIZE, 1);
        holdings.set(1);
        assert!(holdings.check(1).unwrap_err().what.ends_with("never written: the poison is still there"));
    }
}
