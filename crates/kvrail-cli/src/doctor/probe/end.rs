//! One end of one rail: an agent on one device, its memory, and the peer at the other end.
//!
//! The memory has two halves of one block: what is received, poisoned before each step; and what is sent, a pattern of
//! which each word names its place.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use kvrail::{Agent, BuildError, Descriptors, OpenError, Peer, Plan, Region, Slice, TransportConfig};
use kvrail_doctor::probe::{Counted, Wrong};

use super::side::{self, TCP};
use crate::case::Memory;
use crate::pattern::{self, Block, Bytes, Pattern, Source};
use crate::pool::{self, Pool};

/// A descriptor of a large transfer.
const PIECE_BYTES: u64 = 1 << 20;
/// Descriptors of a large transfer: enough in flight for the fastest NIC.
const PIECES: u64 = 4;
/// Bytes of a large transfer.
pub(super) const BLOCK_BYTES: u64 = PIECES * PIECE_BYTES;
/// Bytes of a small transfer.
pub(super) const SMALL_BYTES: u64 = 8;
/// Where what is sent begins.
const SENT: u64 = BLOCK_BYTES;
const MEMORY_BYTES: u64 = 2 * BLOCK_BYTES;
/// How long an end may take to fall silent when it is closed.
const CLOSE: Duration = Duration::from_millis(200);

/// What an end is opened with.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    /// `efa-direct`, `efa`, …, or `tcp`.
    pub(super) carrier: &'a str,
    /// Empty where the carrier has none.
    pub(super) device: &'a str,
    /// Where tcp listens.
    pub(super) ip: &'a str,
    pub(super) library: Option<&'a Path>,
    /// Whose bytes are in what is sent.
    pub(super) source: Source,
    pub(super) seed: u64,
    /// Of the rail.
    pub(super) index: usize,
    pub(super) patience: Duration,
}

/// Why a device could not be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) why: String,
    /// Whether that is because the provider emulates (reads, writes).
    pub(super) emulated: Option<(bool, bool)>,
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self { why, emulated: None }
    }
}

impl From<BuildError> for Refused {
    fn from(error: BuildError) -> Self {
        let ofi = match &error {
            BuildError::Transport { source: OpenError::Ofi(ofi), .. } => Some(&**ofi),
            _ => None,
        };
        let emulated = match ofi {
            Some(kvrail::ofi::OpenError::Emulated { what, .. }) => Some((*what == "read", *what == "write")),
            _ => None,
        };
        Self { why: error.to_string(), emulated }
    }
}

/// One end.
pub(super) struct End {
    // Before the memory, so that it is quiet when that is freed.
    peer: Option<Peer>,
    region: Region,
    agent: Agent,
    pool: Pool,
    /// Of what the other side sends.
    theirs: Pattern,
    patience: Duration,
    pub(super) emulated: Option<(bool, bool)>,
}

impl End {
    /// Opens a device.
    ///
    /// # Errors
    /// What the library or the system says, with its advice.
    pub(super) fn open(opening: &Opening<'_>) -> Result<Self, Refused> {
        let transport = match opening.carrier {
            TCP => TransportConfig::tcp(tcp_address(opening.ip)?),
            carrier => {
                let device = Some(opening.device).filter(|device| !device.is_empty());
                side::transport(carrier, device, opening.library)?.rails(1)
            }
        };
        let (role, theirs) = match opening.source {
            Source::Initiator => ("prober", Source::Target),
            Source::Target => ("listener", Source::Initiator),
        };
        let agent = Agent::builder(format!("kvrail-probe-{role}-{}-{}", std::process::id(), opening.index))
            .transports([transport])
            .timeout(opening.patience)
            .close_timeout(CLOSE)
            .ignore_environment()
            .build()?;
        let backing = pool::allocate(Memory::Private, MEMORY_BYTES).map_err(|failure| failure.what)?;
        let region = agent.register(backing.memory.clone()).map_err(|error| error.to_string())?;
        let pool = backing.registered();
        let seed = opening.seed.wrapping_add(opening.index as u64);
        Pattern::new(seed, opening.source).fill(&pool, 0, SENT, BLOCK_BYTES);
        pattern::poison(&pool, 0, BLOCK_BYTES);
        let facts = agent.facts();
        let emulated = facts.transports.iter().find_map(|transport| transport.ofi.as_ref()?.emulated);
        let theirs = Pattern::new(seed, theirs);
        Ok(Self { peer: None, region, agent, pool, theirs, patience: opening.patience, emulated })
    }

    /// What the other end needs to meet it.
    ///
    /// # Errors
    /// That the agent is closed.
    pub(super) fn metadata(&self) -> Result<Vec<u8>, String> {
        self.agent.metadata().map_err(|error| error.to_string())
    }

    /// Makes the other end's acquaintance; the greeting goes out, and its answer is not waited for.
    ///
    /// # Errors
    /// Why its metadata are no use.
    pub(super) fn meet(&mut self, metadata: &[u8]) -> Result<(), String> {
        self.peer = Some(self.agent.connect(metadata).map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Waits for the answer to the greeting.
    ///
    /// # Errors
    /// That none came, and what the rails counted meanwhile.
    pub(super) fn greet(&self) -> Result<(), String> {
        let peer = self.peer.as_ref().ok_or("the other end is not known")?;
        peer.wait_ready(self.patience).map_err(|error| error.to_string())
    }

    /// What its device has counted since it was opened.
    pub(super) fn counted(&self) -> Option<Counted> {
        let silence = self.peer.as_ref()?.silence();
        let device = silence.rails.first()?.counters.device.as_ref()?;
        Some(Counted { tx: device.tx_packets, rx: device.rx_packets, again: device.retransmitted })
    }

    /// Pairs the first bytes of a half here with those of the other half there.
    fn plan(&self, here: u64, there: u64, bytes: u64) -> Result<Plan, String> {
        let peer = self.peer.as_ref().ok_or("the other end is not known")?;
        let remote = peer.regions().into_iter().next().ok_or("the other end has no memory")?;
        let pieces = |begin: u64, slice: &dyn Fn(u64, u64) -> Result<Slice, String>| {
            let starts = (0..bytes.div_ceil(PIECE_BYTES)).map(|piece| piece * PIECE_BYTES);
            let slices = starts.map(|at| slice(begin + at, PIECE_BYTES.min(bytes - at)));
            slices.collect::<Result<Descriptors, String>>()
        };
        let local = pieces(here, &|at, len| self.region.slice(at, len).map_err(|error| error.to_string()))?;
        let remote = pieces(there, &|at, len| remote.slice(at, len).map_err(|error| error.to_string()))?;
        self.agent.prepare(peer, &local, &remote).map_err(|error| error.to_string())
    }

    /// What moves this many bytes from here to there.
    pub(super) fn write(&self, bytes: u64) -> Result<Step<'_>, String> {
        Ok(Step { end: self, plan: self.plan(SENT, 0, bytes)?, write: true })
    }

    /// What moves this many bytes from there to here.
    pub(super) fn read(&self, bytes: u64) -> Result<Step<'_>, String> {
        Ok(Step { end: self, plan: self.plan(0, SENT, bytes)?, write: false })
    }

    /// Poisons what is received.
    pub(super) fn poison(&self) {
        pattern::poison(&self.pool, 0, BLOCK_BYTES);
    }

    /// Looks at what was received. `step` names it.
    pub(super) fn check(&self, step: &str, bytes: u64) -> Option<Wrong> {
        let block =
            Block { offset: 0, source_offset: SENT, len: bytes, round: 0, region_bytes: MEMORY_BYTES };
        let damage = self.theirs.check(&self.pool, &block).err()?;
        Some(Wrong {
            step: step.into(),
            like: damage.kind.to_string(),
            offset: damage.offset,
            bytes: damage.bad_bytes,
        })
    }

    /// Damages what was received, to see whether it is found.
    pub(super) fn damage(&self, kind: Damaging, bytes: u64) {
        let mut all = vec![0; bytes as usize];
        self.pool.read(0, &mut all);
        match kind {
            Damaging::Zeros => all.fill(0),
            Damaging::Stale => return pattern::poison(&self.pool, 0, bytes),
            Damaging::Swapped => all.rotate_left(bytes as usize / 2),
            Damaging::Flipped => all[bytes as usize / 2] ^= 4,
        }
        self.pool.write(0, &all);
    }
}

/// A transfer that can be repeated.
pub(super) struct Step<'a> {
    end: &'a End,
    plan: Plan,
    write: bool,
}

impl Step<'_> {
    /// Moves the bytes once; how long that took.
    ///
    /// # Errors
    /// What the engine says.
    pub(super) fn once(&self) -> Result<Duration, String> {
        let begin = Instant::now();
        let post = if self.write { self.plan.write() } else { self.plan.read() };
        let transfer = post.timeout(self.end.patience).post().map_err(|error| error.to_string())?;
        transfer.wait().map_err(|error| error.to_string())?;
        Ok(begin.elapsed())
    }
}

fn tcp_address(ip: &str) -> Result<String, String> {
    let ip: IpAddr = ip.parse().map_err(|_| format!("`{ip}` is no address to listen on"))?;
    Ok(SocketAddr::new(ip, 0).to_string())
}

/// Damage that is done on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plant {
    pub(super) rail: u16,
    pub(super) kind: Damaging,
}

/// How bytes are damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Damaging {
    Zeros,
    Stale,
    Swapped,
    Flipped,
}

impl Plant {
    /// From `RAIL:KIND`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (rail, kind) = text.split_once(':').ok_or("write RAIL:KIND")?;
        let kind = match kind {
            "zeros" => Damaging::Zeros,
            "stale" => Damaging::Stale,
            "swapped" => Damaging::Swapped,
            "flipped" => Damaging::Flipped,
            other => return Err(format!("`{other}` is none of zeros, stale, swapped, flipped")),
        };
        Ok(Self { rail: rail.parse().map_err(|_| format!("`{rail}` is no rail"))?, kind })
    }
}
