//! Planted defects: an engine around another one that does one thing wrong, as engines in the field have done. A benchmark whose
//! check does not find and name each of them on the path of every engine is worth nothing (KR-15).
//!
//! Bytes go through the real engine all the same. Only what it is asked to do is wrong, or what its memory holds while it works.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvrail::Memory;

use crate::engine::{Blocks, Direction, Engine, Name, PeerId, Posting};
use crate::error::{EngineError, Kind};
use crate::used::Used;

/// Bytes that a short tail lacks, at most: what is left of a block when its length is rounded down to cache lines.
const TAIL_BYTES: u64 = 64;

/// A defect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Plant {
    /// Two blocks of a transfer arrive in each other's place.
    Swapped,
    /// Every block goes to, or comes from, the base of the peer's memory.
    WrongOffset,
    /// One block is what its source held before it was last filled.
    Stale,
    /// One block is zeros.
    Zeros,
    /// One bit of one block is wrong.
    FlipBit,
    /// The last bytes of one block are never moved.
    ShortTail,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Swapped, Self::WrongOffset, Self::Stale, Self::Zeros, Self::FlipBit, Self::ShortTail];

    /// As it is typed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Swapped => "swapped",
            Self::WrongOffset => "wrong-offset",
            Self::Stale => "stale",
            Self::Zeros => "zeros",
            Self::FlipBit => "flip-bit",
            Self::ShortTail => "short-tail",
        }
    }
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Plant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|plant| plant.as_str() == text).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|plant| plant.as_str()).collect();
            format!("there is no defect `{text}` to plant; there are {}", all.join(", "))
        })
    }
}

/// An engine with a defect on the side that posts.
pub struct Planted {
    engine: Box<dyn Engine>,
    plant: Plant,
    memory: Option<Memory>,
    /// What each block that is made stale has held, by its offset here.
    past: Arc<Mutex<HashMap<u64, Past>>>,
}

/// What a block has held.
#[derive(Default)]
struct Past {
    latest: Vec<u8>,
    /// Before `latest`, and not the same; empty before there was anything else.
    older: Vec<u8>,
}

impl Planted {
    /// Plants a defect.
    #[must_use]
    pub fn new(engine: Box<dyn Engine>, plant: Plant) -> Self {
        Self { engine, plant, memory: None, past: Arc::default() }
    }

    fn changed(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        let memory =
            self.memory.clone().ok_or_else(|| EngineError::new(Kind::Usage, "no memory to damage"))?;
        let victim = blocks.local.get(blocks.local.len() / 2).copied();
        let victim =
            victim.ok_or_else(|| EngineError::new(Kind::Usage, "a transfer without a block to damage"))?;
        Ok(Box::new(Changed {
            inner: self.engine.prepare(blocks)?,
            memory,
            victim,
            len: blocks.block_bytes as usize,
            write: blocks.direction == Direction::Write,
            plant: self.plant,
            past: Arc::clone(&self.past),
            kept: None,
        }))
    }
}

impl Engine for Planted {
    fn name(&self) -> Name {
        self.engine.name()
    }

    fn used(&self) -> Vec<Used> {
        self.engine.used()
    }

    fn lanes(&mut self, count: u32) -> Result<(), EngineError> {
        self.engine.lanes(count)
    }

    fn register(&mut self, memory: &Memory) -> Result<(), EngineError> {
        self.memory = Some(memory.clone());
        self.engine.register(memory)
    }

    fn metadata(&mut self) -> Result<Vec<u8>, EngineError> {
        self.engine.metadata()
    }

    fn admit(&mut self, metadata: &[u8]) -> Result<(), EngineError> {
        self.engine.admit(metadata)
    }

    fn connect(&mut self, metadata: &[u8], within: Duration) -> Result<PeerId, EngineError> {
        self.engine.connect(metadata, within)
    }

    fn prepare(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        let count = blocks.remote.len();
        match self.plant {
            Plant::Swapped => {
                if count < 2 {
                    return Err(EngineError::new(Kind::Usage, "a transfer of one block has no two to swap")
                        .hint("plant it with --batch 2 or more"));
                }
                let mut remote = blocks.remote.to_vec();
                remote.swap(count / 2, (count / 2 + 1) % count);
                self.engine.prepare(&Blocks { remote: &remote, ..*blocks })
            }
            Plant::WrongOffset => self.engine.prepare(&Blocks { remote: &vec![0; count], ..*blocks }),
            Plant::Stale | Plant::Zeros | Plant::FlipBit => self.changed(blocks),
            Plant::ShortTail => {
                let (at, tail) = (count / 2, TAIL_BYTES.min(blocks.block_bytes / 2).max(1));
                if count == 0 || blocks.block_bytes <= tail {
                    return Err(EngineError::new(Kind::Usage, "a block of one byte has no tail"));
                }
                let but_one = |of: &[u64]| [&of[..at], &of[at + 1..]].concat();
                let (local, remote) = (but_one(blocks.local), but_one(blocks.remote));
                let whole = Blocks { local: &local, remote: &remote, notification: None, ..*blocks };
                let short = Blocks {
                    local: &blocks.local[at..=at],
                    remote: &blocks.remote[at..=at],
                    block_bytes: blocks.block_bytes - tail,
                    ..*blocks
                };
                let mut parts = vec![self.engine.prepare(&short)?];
                if !local.is_empty() {
                    parts.push(self.engine.prepare(&whole)?);
                }
                Ok(Box::new(Parts { left: 0, parts }))
            }
        }
    }

    fn completes_visible(&self) -> bool {
        self.engine.completes_visible()
    }

    fn needs_driving(&self) -> bool {
        self.engine.needs_driving()
    }

    fn drive(&self) -> bool {
        self.engine.drive()
    }

    fn notifications(&self, awaited: u64, within: Duration) -> Result<u64, EngineError> {
        self.engine.notifications(awaited, within)
    }
}

/// A transfer one of whose blocks is changed: at its source while it is written, or where it has arrived when it is read.
struct Changed {
    inner: Box<dyn Posting>,
    memory: Memory,
    victim: u64,
    len: usize,
    write: bool,
    plant: Plant,
    past: Arc<Mutex<HashMap<u64, Past>>>,
    /// What the source holds really, while it is changed.
    kept: Option<Vec<u8>>,
}

impl Changed {
    fn read(&self) -> Result<Vec<u8>, EngineError> {
        let mut bytes = vec![0; self.len];
        let failed = |e: kvrail::memory::AccessError| EngineError::new(Kind::Usage, e.to_string());
        self.memory.read(self.victim as usize, &mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), EngineError> {
        let failed = |e: kvrail::memory::AccessError| EngineError::new(Kind::Usage, e.to_string());
        self.memory.write(self.victim as usize, bytes).map_err(failed)
    }

    /// Changes the block; what it held.
    fn change(&self) -> Result<Vec<u8>, EngineError> {
        let right = self.read()?;
        match self.plant {
            Plant::Zeros => self.write(&vec![0; self.len])?,
            Plant::FlipBit => {
                let mut wrong = right.clone();
                wrong[self.len / 2] ^= 0b1000;
                self.write(&wrong)?;
            }
            _ => {
                let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
                let past = past.entry(self.victim).or_default();
                // A warm-up moves the same bytes: those are not stale.
                if past.latest != right {
                    past.older = std::mem::replace(&mut past.latest, right.clone());
                }
                // Another case may have had a block of another length there.
                let len = past.older.len().min(self.len);
                self.write(&[&past.older[..len], &right[len..]].concat())?;
            }
        }
        Ok(right)
    }

    fn restore(&mut self) -> Result<(), EngineError> {
        self.kept.take().map_or(Ok(()), |right| self.write(&right))
    }

    fn ended(&mut self, ended: Result<(), EngineError>) -> Result<(), EngineError> {
        if self.write {
            self.restore()?;
        } else if ended.is_ok() {
            self.change()?;
        }
        ended
    }
}

impl Posting for Changed {
    fn post(&mut self) -> Result<(), EngineError> {
        if self.write {
            self.kept = Some(self.change()?);
        }
        let posted = self.inner.post();
        if posted.is_err() {
            self.restore()?;
        }
        posted
    }

    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        self.inner.poll().map(|ended| self.ended(ended))
    }

    fn wait(&mut self, within: Duration) -> Option<Result<(), EngineError>> {
        self.inner.wait(within).map(|ended| self.ended(ended))
    }

    fn cancel(&mut self) {
        self.inner.cancel();
    }
}

/// A transfer in parts, one after the other.
struct Parts {
    parts: Vec<Box<dyn Posting>>,
    /// How many have not ended.
    left: usize,
}

impl Parts {
    fn ended(&mut self, ended: Result<(), EngineError>) -> Option<Result<(), EngineError>> {
        self.left -= 1;
        if ended.is_err() || self.left == 0 {
            self.left = 0;
            return Some(ended);
        }
        match self.parts[self.left - 1].post() {
            Ok(()) => None,
            Err(error) => {
                self.left = 0;
                Some(Err(error))
            }
        }
    }

    fn current(&mut self) -> Option<&mut Box<dyn Posting>> {
        self.parts.get_mut(self.left.checked_sub(1)?)
    }
}

impl Posting for Parts {
    fn post(&mut self) -> Result<(), EngineError> {
        self.left = self.parts.len();
        let posted = self.parts[self.left - 1].post();
        if posted.is_err() {
            self.left = 0;
        }
        posted
    }

    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        let ended = self.current()?.poll()?;
        self.ended(ended)
    }

    fn cancel(&mut self) {
        if let Some(current) = self.current() {
            current.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memcpy::Memcpy;

    const BLOCK: u64 = 1000;

    /// Posts three times over plain copies, with another byte each time; what block `i` of the destination holds then, and
    /// what the source has.
    fn run(plant: Plant, direction: Direction) -> (Memory, Memory, [u64; 4], [u64; 4]) {
        let (here, there) = (Memory::shared(64 << 10).unwrap(), Memory::shared(64 << 10).unwrap());
        let mut target = Memcpy::new();
        target.register(&there).unwrap();
        let mut engine = Planted::new(Box::new(Memcpy::new()), plant);
        engine.register(&here).unwrap();
        let peer = engine.connect(&target.metadata().unwrap(), Duration::from_secs(1)).unwrap();
        let (local, remote) = ([2000, 4000, 6000, 8000], [9000, 7000, 5000, 3000]);
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
        let (source, from) = if direction == Direction::Write { (&here, local) } else { (&there, remote) };
        for round in 1..=3u8 {
            // As the benchmark does: each round prepares anew.
            let mut posting = engine.prepare(&blocks).unwrap();
            for (block, &at) in (0..).zip(&from) {
                source.fill(at as usize, BLOCK as usize, round * 16 + block).unwrap();
            }
            posting.post().unwrap();
            posting.wait(Duration::from_secs(1)).unwrap().unwrap();
            for (block, &at) in (0..).zip(&from) {
                assert_eq!(byte(source, at), round * 16 + block, "{plant}: the source is as it was");
            }
        }
        if direction == Direction::Write {
            (there, here, remote, local)
        } else {
            (here, there, local, remote)
        }
    }

    fn byte(memory: &Memory, at: u64) -> u8 {
        let mut byte = [0];
        memory.read(at as usize, &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn each_defect_is_what_it_says_and_leaves_the_source_alone() {
        for direction in [Direction::Write, Direction::Read] {
            for plant in Plant::ALL {
                let (to, from, offsets, _) = run(plant, direction);
                let found = offsets.map(|at| byte(&to, at));
                let right = [48, 49, 50, 51];
                match plant {
                    Plant::Swapped => assert_eq!(found, [48, 49, 51, 50]),
                    Plant::Zeros => assert_eq!(found, [48, 49, 0, 51]),
                    Plant::Stale => assert_eq!(found, [48, 49, 34, 51]),
                    Plant::FlipBit => {
                        assert_eq!(found, right);
                        assert_eq!(byte(&to, offsets[2] + BLOCK / 2), 50 ^ 8);
                    }
                    Plant::ShortTail => {
                        assert_eq!(found, right);
                        assert_eq!(byte(&to, offsets[2] + BLOCK - 65), 50);
                        assert_eq!(byte(&to, offsets[2] + BLOCK - 64), 0, "never moved");
                        assert_eq!(byte(&to, offsets[3] + BLOCK - 1), 51);
                    }
                    Plant::WrongOffset if direction == Direction::Write => {
                        assert_eq!((found, byte(&to, 0)), ([0; 4], 51));
                    }
                    Plant::WrongOffset => assert_eq!(found, [byte(&from, 0); 4]),
                }
            }
        }
    }

    #[test]
    fn defects_are_named_as_they_are_typed() {
        for plant in Plant::ALL {
            assert_eq!(plant.to_string().parse(), Ok(plant));
        }
        assert!("bitrot".parse::<Plant>().unwrap_err().contains("flip-bit"));
    }
}
