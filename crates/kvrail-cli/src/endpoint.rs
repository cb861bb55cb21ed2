//! The only place where the benchmark meets an engine: its memory, its peer and its transfers.
//!
//! Everything else in this crate speaks of cases and rounds. Errors of the engine become failures here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail::{Agent, Hints, Region};
use kvrail_engines::{Blocks, Direction, Engine, EngineError, Kind, PASSED_OVER, PeerId, Planted, Posting};

use crate::carriage::carriage;
use crate::case::{Op, Transport};
use crate::engines::{self, Choice, Setup};
use crate::failure::Failure;
use crate::link::Pulse;
use crate::pool::{Backing, Pool};
use crate::rails::{RailLog, Say};
use crate::signals;
use crate::units;

/// Polls of a transfer between two looks at Ctrl-C and the peer's pulse.
const POLLS: u32 = 8192;
/// Sleep of a wait between two such looks, when nobody has to drive.
const NAP: Duration = Duration::from_millis(100);
/// How much longer than a transfer's deadline it is waited for: the engine's own account of it says more.
const GRACE: Duration = Duration::from_secs(5);

/// An engine.
pub(crate) struct Endpoint {
    engine: Box<dyn Engine>,
    choice: Choice,
    asked: Transport,
    /// The agent below the engine, when that is kvrail.
    agent: Option<Agent>,
    timeout: Duration,
}

/// The other side.
pub(crate) struct Remote {
    id: PeerId,
    transport: String,
    passed_over: Vec<String>,
}

/// Which blocks a transfer moves, and how.
#[derive(Clone, Copy)]
pub(crate) struct Course<'a> {
    pub(crate) op: Op,
    /// Posting thread.
    pub(crate) lane: u32,
    /// Offsets here.
    pub(crate) here: &'a [u64],
    /// Offsets at the peer.
    pub(crate) there: &'a [u64],
    pub(crate) block_bytes: u64,
    pub(crate) notification: Option<&'a [u8]>,
}

/// A transfer that can be posted again and again.
pub(crate) struct Prepared {
    posting: Box<dyn Posting>,
    rails: Option<Arc<RailLog>>,
    /// The waiting thread polls; nobody else would.
    inline: bool,
    timeout: Duration,
}

fn advised(failure: Failure, error: &dyn Hints) -> Failure {
    error.hints().into_iter().fold(failure, Failure::hint)
}

/// An engine's error as what ends a run.
#[cold]
pub(crate) fn failure(error: EngineError) -> Failure {
    let failure = match error.kind {
        _ if signals::interrupted() => return Failure::interrupted(),
        Kind::Usage => Failure::usage(error.what),
        Kind::Environment => Failure::environment(error.what),
        Kind::Peer => Failure::peer(error.what),
        _ => Failure::engine(error.what),
    };
    error.hints.into_iter().fold(failure, Failure::hint)
}

impl Endpoint {
    /// Makes the engine that was asked for.
    ///
    /// # Errors
    /// When it is not possible here.
    pub(crate) fn create(setup: Setup<'_>) -> Result<Self, Failure> {
        let (mut engine, agent) = engines::create(setup).map_err(failure)?;
        if let Some(plant) = setup.plant {
            engine = Box::new(Planted::new(engine, plant));
        }
        Ok(Self {
            engine,
            choice: setup.engine.clone(),
            asked: setup.transport,
            agent,
            timeout: setup.timeout,
        })
    }

    /// Says how many threads will post.
    ///
    /// # Errors
    /// When the engine cannot serve so many.
    pub(crate) fn lanes(&mut self, count: u32) -> Result<(), Failure> {
        self.engine.lanes(count).map_err(failure)
    }

    /// Registers memory.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub(crate) fn register(&mut self, backing: Backing) -> Result<Pool, Failure> {
        self.engine.register(&backing.memory).map_err(failure)?;
        Ok(backing.registered())
    }

    fn agent(&self) -> Result<&Agent, Failure> {
        self.agent.as_ref().ok_or_else(|| {
            Failure::usage(format!("the engine {} has no control path to measure", self.choice))
        })
    }

    /// Registers memory in so many parts at once.
    ///
    /// # Errors
    /// When a transport refuses them, or the engine is not kvrail.
    pub(crate) fn register_parts(&self, backing: &Backing, count: u32) -> Result<Vec<Region>, Failure> {
        let bytes = backing.memory.len() / count as usize;
        let parts: Result<Vec<_>, _> =
            (0..count as usize).map(|i| backing.memory.slice(i * bytes, bytes)).collect();
        let parts = parts.map_err(|e| Failure::environment(e.to_string()))?;
        self.agent()?.register_many(parts).map_err(|e| advised(Failure::environment(e.to_string()), &e))
    }

    /// What a peer imports.
    ///
    /// # Errors
    /// When the engine is gone.
    pub(crate) fn metadata(&mut self) -> Result<Vec<u8>, Failure> {
        self.engine.metadata().map_err(failure)
    }

    /// What the engine runs on.
    pub(crate) fn carriages(&self) -> Vec<kvrail_report::Carriage> {
        self.engine.used().iter().map(carriage).collect()
    }

    /// Its release, as it says itself.
    pub(crate) fn version(&self) -> String {
        self.engine.used().into_iter().next().map_or_else(String::new, |used| used.version)
    }

    /// Listens to its rails, for a run that began at `began`; only kvrail tells of them.
    pub(crate) fn listen_to_rails(&self, began: Instant, say: Say) -> Option<Arc<RailLog>> {
        self.agent.as_ref().map(|agent| RailLog::new(agent.clone(), began, say))
    }

    /// Imports a peer without waiting for it: the transport that reaches it.
    ///
    /// # Errors
    /// When no transport reaches it, the metadata is none, or the engine is not kvrail.
    pub(crate) fn import(&self, metadata: &[u8]) -> Result<String, Failure> {
        let peer = self.agent()?.connect(metadata);
        let peer = peer.map_err(|e| advised(Failure::environment(e.to_string()), &e))?;
        self.as_asked(peer.transport())?;
        Ok(peer.transport().into())
    }

    /// The environment may overrule --transport.
    fn as_asked(&self, got: &str) -> Result<(), Failure> {
        let asked = self.asked.to_string();
        if self.agent.is_none() || self.asked == Transport::Auto || got == asked {
            return Ok(());
        }
        Err(Failure::usage(format!("--transport {asked} and the environment contradict: {got} is used"))
            .hint("unset KVRAIL_TRANSPORT"))
    }

    /// Learns of a peer that will post to this side.
    ///
    /// # Errors
    /// When the metadata is none, or of another engine.
    pub(crate) fn admit(&mut self, metadata: &[u8]) -> Result<(), Failure> {
        self.engine.admit(metadata).map_err(failure)
    }

    /// Meets a peer to post to.
    ///
    /// # Errors
    /// When the metadata is none, or the peer does not answer.
    pub(crate) fn connect(&mut self, metadata: &[u8], within: Duration) -> Result<Remote, Failure> {
        let id = self.engine.connect(metadata, within).map_err(failure)?;
        let used = self.engine.used();
        let carrying = used.into_iter().next();
        let Some(carrying) = carrying else {
            return Err(Failure::environment(format!("{} does not say what it uses", self.choice)));
        };
        self.as_asked(&carrying.transport)?;
        let passed = carrying.facts.into_iter().filter(|fact| fact.name == PASSED_OVER);
        Ok(Remote { id, transport: carrying.transport, passed_over: passed.map(|fact| fact.value).collect() })
    }

    /// Whether somebody must drive it.
    pub(crate) fn needs_driving(&self) -> bool {
        self.engine.needs_driving()
    }

    /// Whether a write that has ended is visible at its target.
    pub(crate) fn completes_visible(&self) -> bool {
        self.engine.completes_visible()
    }

    /// Makes progress where no thread of the engine does; whether there was any.
    pub(crate) fn drive(&self) -> bool {
        self.engine.needs_driving() && self.engine.drive()
    }

    /// Prepares a transfer: block `i` of one side with block `i` of the other. Also says how long the engine took.
    ///
    /// # Errors
    /// When the engine refuses the blocks.
    pub(crate) fn prepare(
        &self,
        remote: &Remote,
        rails: Option<&Arc<RailLog>>,
        course: Course<'_>,
    ) -> Result<(Prepared, Duration), Failure> {
        let blocks = Blocks {
            direction: match course.op {
                Op::Write => Direction::Write,
                Op::Read => Direction::Read,
            },
            peer: remote.id,
            lane: course.lane,
            local: course.here,
            remote: course.there,
            block_bytes: course.block_bytes,
            notification: course.notification,
            timeout: self.timeout,
        };
        let start = Instant::now();
        let posting = self.engine.prepare(&blocks);
        let took = start.elapsed();
        let prepared = Prepared {
            posting: posting.map_err(failure)?,
            rails: rails.cloned(),
            inline: self.engine.needs_driving(),
            timeout: self.timeout,
        };
        Ok((prepared, took))
    }

    /// Takes the notifications that have come, at most `awaited` and as soon as those are there; how many.
    ///
    /// # Errors
    /// When the engine has none, or is gone.
    pub(crate) fn notifications(&self, awaited: u64, within: Duration) -> Result<u64, Failure> {
        self.engine.notifications(awaited, within).map_err(failure)
    }
}

impl Remote {
    /// The transport that reaches it.
    pub(crate) fn transport(&self) -> &str {
        &self.transport
    }

    /// What was preferred and does not reach it, and why.
    pub(crate) fn passed_over(&self) -> &[String] {
        &self.passed_over
    }
}

impl Prepared {
    /// Of a posting that does not come from an engine.
    #[cfg(test)]
    pub(crate) fn of(posting: Box<dyn Posting>) -> Self {
        Self { posting, rails: None, inline: true, timeout: Duration::from_secs(1) }
    }

    /// Posts.
    ///
    /// # Errors
    /// When the engine refuses.
    #[inline]
    pub(crate) fn post(&mut self) -> Result<(), Failure> {
        self.posting.post().map_err(failure)
    }

    /// Waits for the end of the last posting.
    ///
    /// # Errors
    /// When the transfer fails or does not end, the peer is gone, or on Ctrl-C.
    #[inline]
    pub(crate) fn wait(&mut self, pulse: &Pulse) -> Result<(), Failure> {
        match self.posting.poll() {
            Some(ended) => ended.map_err(failure),
            None => self.wait_on(pulse),
        }
    }

    fn wait_on(&mut self, pulse: &Pulse) -> Result<(), Failure> {
        let mut since = None;
        loop {
            if self.inline {
                for _ in 0..POLLS {
                    if let Some(ended) = self.posting.poll() {
                        return ended.map_err(failure);
                    }
                    std::hint::spin_loop();
                }
            } else if let Some(ended) = self.posting.wait(NAP) {
                return ended.map_err(failure);
            }
            if let Some(rails) = &self.rails {
                rails.look();
            }
            // kvrail's own deadline ends a transfer; these two only make that quicker.
            if signals::interrupted() {
                self.posting.cancel();
                return Err(Failure::interrupted());
            }
            if pulse.gone() {
                self.posting.cancel();
                return Err(Failure::peer("the transfer in flight was given up"));
            }
            // Another engine may know no deadline.
            if since.get_or_insert_with(Instant::now).elapsed() > self.timeout + GRACE {
                self.posting.cancel();
                let waited = units::span(self.timeout + GRACE);
                return Err(Failure::peer(format!("a transfer has not ended within {waited}"))
                    .hint("raise --timeout if the sizes are large for that host"));
            }
        }
    }
}
