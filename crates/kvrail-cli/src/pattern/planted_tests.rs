//! Every defect that can be planted, on the path of an engine, round by round as the benchmark does: each is caught and named.

use std::time::Duration;

use kvrail_engines::memcpy::Memcpy;
use kvrail_engines::{Blocks, Direction, Engine, Plant, Planted};

use super::*;

const BLOCK: u64 = 5_003;
const COUNT: u64 = 9;
const POOL: u64 = 64 << 10;

impl Bytes for kvrail::Memory {
    fn read(&self, offset: u64, out: &mut [u8]) {
        self.read(offset as usize, out).unwrap();
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.write(offset as usize, bytes).unwrap();
    }
}

/// What the check says of the blocks that are wrong after two rounds with a planted defect.
fn found(plant: Plant, direction: Direction, memory: fn(usize) -> kvrail::Memory) -> Vec<(u64, String)> {
    let (here, there) = (memory(POOL as usize), memory(POOL as usize));
    let mut target = Memcpy::new();
    target.register(&there).unwrap();
    let mut engine = Planted::new(Box::new(Memcpy::new()), plant);
    engine.register(&here).unwrap();
    let peer = engine.connect(&target.metadata().unwrap(), Duration::from_secs(1)).unwrap();
    let local: Vec<u64> = (0..COUNT).map(|i| (i * 4 % COUNT + 1) * BLOCK).collect();
    let remote: Vec<u64> = (0..COUNT).map(|i| (i * 2 % COUNT + 1) * BLOCK).collect();
    let write = direction == Direction::Write;
    let (source, to) = if write { (&here, &there) } else { (&there, &here) };
    let (from, at) = if write { (&local, &remote) } else { (&remote, &local) };
    let pattern = Pattern::new(11, if write { Source::Initiator } else { Source::Target });
    poison(&here, 0, POOL);
    poison(&there, 0, POOL);
    let mut wrong = Vec::new();
    for round in [1, 3] {
        let blocks = Blocks {
            direction,
            peer,
            lane: 0,
            local: &local,
            remote: &remote,
            block_bytes: BLOCK,
            notification: None,
            timeout: Duration::from_secs(1),
        };
        let mut posting = engine.prepare(&blocks).unwrap();
        at.iter().for_each(|&offset| poison(to, offset, BLOCK));
        // The warm-up has a number of its own.
        for number in [round - 1, round] {
            from.iter().for_each(|&offset| pattern.fill(source, number, offset, BLOCK));
            posting.post().unwrap();
            posting.wait(Duration::from_secs(1)).unwrap().unwrap();
        }
        let places = Places { here: at, source: from, block_bytes: BLOCK, region_bytes: POOL };
        wrong.clear();
        for (i, (&offset, &source_offset)) in (0..).zip(at.iter().zip(from)) {
            let block = Block { offset, source_offset, len: BLOCK, round, region_bytes: POOL };
            if let Err(mut damage) = pattern.check(to, &block) {
                damage.name_blocks(pattern, to, &places, round);
                wrong.push((i, damage.kind.to_string()));
            }
        }
    }
    wrong
}

#[test]
fn every_planted_defect_is_caught_and_named() {
    let memories: [fn(usize) -> kvrail::Memory; 2] =
        [|len| kvrail::Memory::shared(len).unwrap(), |len| kvrail::Memory::private(len).unwrap()];
    for memory in memories {
        for direction in [Direction::Write, Direction::Read] {
            let of = |plant| found(plant, direction, memory);
            let swapped = |other: u64| format!("swapped: the bytes belong to block {other}");
            assert_eq!(of(Plant::Swapped), [(4, swapped(5)), (5, swapped(4))]);
            assert_eq!(of(Plant::Stale), [(4, "stale: the bytes of round 2".into())]);
            assert_eq!(of(Plant::Zeros), [(4, "zeros".into())]);
            assert_eq!(of(Plant::FlipBit), [(4, "1 bit flipped: bit 3".into())]);
            let tail = of(Plant::ShortTail);
            assert!(tail.len() == 1 && tail[0].0 == 4, "{tail:?}");
            assert!(tail[0].1.starts_with("short tail: right up to the last 6"), "{tail:?}");
            assert!(tail[0].1.contains("those are never written"), "{tail:?}");
            let offset = of(Plant::WrongOffset);
            assert_eq!(offset.len() as u64, COUNT, "{offset:?}");
            let wanted = match direction {
                Direction::Write => {
                    "wrong offset: offset 0 of the region, where no block is, holds bytes of block 8"
                }
                Direction::Read => "wrong offset: the bytes of offset 0 of the source",
            };
            assert!(offset.iter().all(|(_, words)| words.contains(wanted)), "{offset:?}");
        }
    }
}
