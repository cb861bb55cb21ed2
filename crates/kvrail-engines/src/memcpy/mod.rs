//! Plain copies: what the machine itself allows on one host when nothing stands between a loop and the copy.
//!
//! Shared memory of the target is mapped here, and blocks go by `memcpy`. Private memory goes by
//! `process_vm_readv`/`writev`, up to 1,024 slices a call. The posting thread copies, and a posting has ended when `post`
//! returns. Blocks that go on without a gap on both sides are one copy, as they are one op for a transport.
//!
//! That the target is still there is watched by a thread of its own, which sleeps on the process's descriptor: a mapping
//! outlives its peer, and bytes that nobody will read have not been transferred.

mod copies;
mod host;
mod peer;

use std::sync::Arc;
use std::time::Duration;

use kvrail::Memory;

use crate::engine::{Blocks, Direction, Engine, Name, PeerId, Posting};
use crate::error::{EngineError, Kind};
use crate::metadata;
use crate::used::{Fact, Used};
use copies::{Copies, Piece};
use peer::{Offer, Peer, Reach};

/// Version of the metadata.
const VERSION: u16 = 1;

/// The engine.
#[derive(Debug, Default)]
pub struct Memcpy {
    memory: Option<Memory>,
    peers: Vec<Arc<Peer>>,
}

impl Memcpy {
    /// An engine without memory or peers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn memory(&self) -> Result<&Memory, EngineError> {
        let missing = || EngineError::new(Kind::Usage, "engine memcpy was given no memory");
        self.memory.as_ref().ok_or_else(missing)
    }
}

impl Engine for Memcpy {
    fn name(&self) -> Name {
        Name::Memcpy
    }

    fn used(&self) -> Vec<Used> {
        let how = match self.peers.last().map(|peer| &peer.reach) {
            Some(Reach::Mapped(_)) => Some("memcpy"),
            Some(Reach::Process) => Some("process_vm"),
            None => None,
        };
        let kind =
            self.memory.as_ref().map(|memory| if memory.share().is_some() { "memcpy" } else { "process_vm" });
        let mut facts = vec![Fact::new("slices_per_call", copies::SLICES_MAX.to_string())];
        if how.or(kind) == Some("memcpy") {
            facts.clear();
        }
        vec![Used {
            version: env!("CARGO_PKG_VERSION").into(),
            transport: how.or(kind).unwrap_or("memcpy").into(),
            evidence: "copied".into(),
            rails: Vec::new(),
            facts,
            ofi: None,
        }]
    }

    fn register(&mut self, memory: &Memory) -> Result<(), EngineError> {
        if memory.device() != kvrail::Device::Host {
            let what = format!("engine memcpy copies the host's memory, not {}'s", memory.device());
            return Err(EngineError::new(Kind::Usage, what));
        }
        self.memory = Some(memory.clone());
        Ok(())
    }

    fn metadata(&mut self) -> Result<Vec<u8>, EngineError> {
        let offer = Offer::of(self.memory()?)?;
        metadata::seal(Name::Memcpy, VERSION, &offer)
    }

    fn connect(&mut self, metadata: &[u8], _within: Duration) -> Result<PeerId, EngineError> {
        let offer: Offer = metadata::open(Name::Memcpy, VERSION, metadata)?;
        self.peers.push(Arc::new(Peer::reach(&offer)?));
        Ok(PeerId(self.peers.len() as u32 - 1))
    }

    fn prepare(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        if blocks.notification.is_some() {
            return Err(EngineError::new(Kind::Usage, "engine memcpy has no notifications"));
        }
        let peer = self.peers.get(blocks.peer.0 as usize);
        let peer =
            peer.ok_or_else(|| EngineError::new(Kind::Usage, "engine memcpy was told of no such peer"))?;
        let memory = self.memory()?;
        let pieces = pieces(blocks, memory.len() as u64, peer.len)?;
        let write = blocks.direction == Direction::Write;
        Ok(Box::new(Copies::new(memory.clone(), Arc::clone(peer), write, &pieces)))
    }

    fn needs_driving(&self) -> bool {
        false
    }

    fn drive(&self) -> bool {
        false
    }

    fn notifications(&self, awaited: u64, _within: Duration) -> Result<u64, EngineError> {
        match awaited {
            0 => Ok(0),
            _ => Err(EngineError::new(Kind::Usage, "engine memcpy has no notifications")),
        }
    }
}

/// The blocks, checked against both memories (KR-9), and joined where they go on on both sides.
fn pieces(blocks: &Blocks<'_>, local_bytes: u64, remote_bytes: u64) -> Result<Vec<Piece>, EngineError> {
    let len = blocks.block_bytes;
    if blocks.local.len() != blocks.remote.len() || len == 0 {
        let (here, there) = (blocks.local.len(), blocks.remote.len());
        let what = format!("{here} blocks here and {there} there, of {len} bytes each, are no transfer");
        return Err(EngineError::new(Kind::Usage, what));
    }
    let inside = |offset: u64, of: u64| offset.checked_add(len).is_some_and(|end| end <= of);
    let mut pieces: Vec<Piece> = Vec::with_capacity(blocks.local.len());
    for (i, (&local, &remote)) in blocks.local.iter().zip(blocks.remote).enumerate() {
        for (offset, of, whose) in [(local, local_bytes, "local"), (remote, remote_bytes, "remote")] {
            if !inside(offset, of) {
                let what =
                    format!("block {i} ends outside of the {whose} memory: {len} bytes at {offset} of {of}");
                return Err(EngineError::new(Kind::Usage, what));
            }
        }
        match pieces.last_mut() {
            Some(last) if last.local + last.len == local && last.remote + last.len == remote => {
                last.len += len
            }
            _ => pieces.push(Piece { local, remote, len }),
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks<'a>(local: &'a [u64], remote: &'a [u64], block_bytes: u64) -> Blocks<'a> {
        Blocks {
            direction: Direction::Write,
            peer: PeerId(0),
            lane: 0,
            local,
            remote,
            block_bytes,
            notification: None,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn blocks_that_go_on_on_both_sides_are_one_copy() {
        let joined = pieces(&blocks(&[0, 10, 20, 40], &[5, 15, 30, 40], 10), 100, 100).unwrap();
        let all: Vec<_> = joined.iter().map(|p| (p.local, p.remote, p.len)).collect();
        assert_eq!(all, [(0, 5, 20), (20, 30, 10), (40, 40, 10)]);
    }

    #[test]
    fn a_block_outside_of_either_memory_is_refused_with_its_number() {
        for (local, remote, whose) in [([0, 91], [0, 0], "local"), ([0, 0], [0, u64::MAX - 3], "remote")] {
            let error = pieces(&blocks(&local, &remote, 10), 100, 100).unwrap_err();
            assert!(error.what.contains("block 1") && error.what.contains(whose), "{error}");
        }
        assert!(pieces(&blocks(&[0], &[], 10), 100, 100).is_err());
    }
}
