//! The engine `kvrail`: an agent over the transports that it is given.
//!
//! A thin shell: facts of an error come from its `Display`, advice from its hints, and nothing is done that an application of
//! the library would not do.

use std::time::{Duration, Instant};

use ::kvrail::engine_error::{OpError, TransferError as Ended};
use ::kvrail::{
    Agent, Descriptors, Hints, Memory, Peer, PeerState, Plan, Progress, Region, RemoteRegion, Transfer,
    TransferError, TransportConfig, TransportFacts,
};

use crate::engine::{Blocks, Direction, Engine, Name, PeerId, Posting, Registration, spin};
use crate::error::{EngineError, Kind};
use crate::used::{Fact, Rail, Used};

/// Rounds of progress of one [`Engine::drive`] at most: a peer that keeps talking must not keep the caller.
const DRIVES: u32 = 1024;
/// Sleep between two looks at a peer that is being met.
const MEETING_NAP: Duration = Duration::from_micros(100);
/// Name of the fact that says which transport was preferred and does not reach the peer, and why.
pub const PASSED_OVER: &str = "passed over";

/// What an agent is made of.
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its transports, in order of preference.
    pub transports: Vec<TransportConfig>,
    /// Who makes its progress.
    pub progress: Progress,
    /// Deadline of its transfers.
    pub timeout: Duration,
    /// Whether the user wants the wait for a peer to end.
    pub interrupted: fn() -> bool,
}

/// One side of a measurement over kvrail.
pub struct Kvrail {
    // Before the agent: a region ends its registration with it.
    region: Option<Region>,
    memory: Option<Memory>,
    remotes: Vec<(Peer, RemoteRegion)>,
    agent: Agent,
    inline: bool,
    interrupted: fn() -> bool,
}

/// The failure for private memory that the kernel keeps this process from reaching.
#[must_use]
pub fn process_vm_denied(why: &str) -> EngineError {
    EngineError::new(
        Kind::Environment,
        format!(
            "the kernel denies this process the target's private memory (process_vm_readv, process_vm_writev): {why}"
        ),
    )
    .hint("run both sides as one user, in one pid namespace; in a container allow CAP_SYS_PTRACE")
    .hint("see kernel.yama.ptrace_scope (sysctl): 0 allows it")
    .hint("or measure --memory shared, or --transport tcp, or with --transport auto what kvrail falls back to")
}

fn told(kind: Kind, error: &impl Hints) -> EngineError {
    error.hints().into_iter().fold(EngineError::new(kind, error.to_string()), EngineError::hint)
}

impl Kvrail {
    /// Creates an agent.
    ///
    /// # Errors
    /// When one of its transports is not possible here.
    pub fn create(options: Options) -> Result<Self, EngineError> {
        let Options { name, transports, progress, timeout, interrupted } = options;
        let agent = Agent::builder(name).transports(transports).progress(progress).timeout(timeout).build();
        let agent = agent.map_err(|e| {
            let error = told(Kind::Environment, &e);
            EngineError { what: format!("cannot create an agent: {}", error.what), ..error }
        })?;
        let inline = progress == Progress::Inline;
        Ok(Self { region: None, memory: None, remotes: Vec::new(), agent, inline, interrupted })
    }

    /// The agent, for what only kvrail has: events of its rails, their counters.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }
}

fn silent(peer: &Peer, what: &str) -> EngineError {
    let silence = peer.silence();
    let error = EngineError::new(Kind::Peer, format!("{}{what}; {silence}", peer.name()));
    silence.hints().into_iter().fold(error, EngineError::hint)
}

fn used(facts: &TransportFacts) -> Used {
    let ofi = facts.ofi.as_deref();
    let at = |index: usize| ofi.and_then(|ofi| ofi.rails.get(index));
    let rails = facts.rails.iter().enumerate().map(|(index, rail)| Rail {
        name: rail.name.clone(),
        rate_bps: rail.rate_bps,
        pci: at(index).and_then(|rail| rail.pci.clone()),
        numa: at(index).and_then(|rail| rail.numa),
    });
    Used {
        version: env!("CARGO_PKG_VERSION").into(),
        transport: facts.name.into(),
        evidence: facts.evidence.to_string(),
        rails: rails.collect(),
        facts: Vec::new(),
        ofi: facts.ofi.clone(),
    }
}

impl Engine for Kvrail {
    fn name(&self) -> Name {
        Name::Kvrail
    }

    fn used(&self) -> Vec<Used> {
        let all = self.agent.facts().transports;
        if self.remotes.is_empty() {
            return all.iter().map(used).collect();
        }
        let mut met: Vec<Used> = Vec::new();
        for (peer, _) in &self.remotes {
            let choice = peer.transport_choice();
            let facts = all.iter().filter(|facts| facts.name == peer.transport());
            for mut used in facts.map(used) {
                let passed = choice.passed_over.iter();
                used.facts.extend(
                    passed.map(|p| Fact::new(PASSED_OVER, format!("not {}: {}", p.transport, p.reason))),
                );
                if !met.contains(&used) {
                    met.push(used);
                }
            }
        }
        met
    }

    fn register(&mut self, memory: &Memory) -> Result<(), EngineError> {
        let region = self.agent.register(memory.clone()).map_err(|e| told(Kind::Environment, &e))?;
        self.region = Some(region);
        self.memory = Some(memory.clone());
        Ok(())
    }

    fn register_again(
        &self,
        offsets: &[u64],
        block_bytes: u64,
    ) -> Result<Box<dyn Registration>, EngineError> {
        let memory =
            self.memory.as_ref().ok_or_else(|| EngineError::new(Kind::Usage, "no memory is registered"))?;
        let beyond = |offset: u64| {
            EngineError::new(
                Kind::Usage,
                format!("{block_bytes} bytes at offset {offset} are outside of the memory"),
            )
        };
        let mut regions = Vec::with_capacity(offsets.len());
        for &offset in offsets {
            let block = usize::try_from(offset).ok().zip(usize::try_from(block_bytes).ok());
            let block = block
                .and_then(|(offset, len)| memory.slice(offset, len).ok())
                .ok_or_else(|| beyond(offset))?;
            regions.push(self.agent.register(block).map_err(|e| told(Kind::Environment, &e))?);
        }
        Ok(Box::new(Again { _regions: regions }))
    }

    fn metadata(&mut self) -> Result<Vec<u8>, EngineError> {
        self.agent.metadata().map_err(|e| told(Kind::Environment, &e))
    }

    fn connect(&mut self, metadata: &[u8], within: Duration) -> Result<PeerId, EngineError> {
        let peer = self.agent.connect(metadata).map_err(|e| told(Kind::Environment, &e))?;
        let deadline = Instant::now() + within;
        loop {
            self.agent.progress();
            match peer.state() {
                PeerState::Ready => break,
                PeerState::Lost(cause) => return Err(silent(&peer, &format!(": {cause}"))),
                _ if Instant::now() >= deadline => {
                    return Err(silent(&peer, &format!(" does not answer within {within:?}")));
                }
                _ if (self.interrupted)() => {
                    return Err(EngineError::new(Kind::Peer, "interrupted while the peer was met"));
                }
                _ => std::thread::sleep(MEETING_NAP),
            }
        }
        let region = peer.regions().into_iter().next();
        let region =
            region.ok_or_else(|| EngineError::new(Kind::Peer, "the peer's metadata names no region"))?;
        let id = PeerId(self.remotes.len() as u32);
        self.remotes.push((peer, region));
        Ok(id)
    }

    fn prepare(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        let usage = |what: &str| EngineError::new(Kind::Usage, what);
        let region = self.region.as_ref().ok_or_else(|| usage("no memory is registered"))?;
        let remote = self.remotes.get(blocks.peer.0 as usize);
        let (peer, remote) = remote.ok_or_else(|| usage("there is no such peer"))?;
        let mut local = Descriptors::with_capacity(blocks.local.len());
        let mut far = Descriptors::with_capacity(blocks.remote.len());
        for (&here, &there) in blocks.local.iter().zip(blocks.remote) {
            local.push(region.id(), here, blocks.block_bytes);
            far.push(remote.id, there, blocks.block_bytes);
        }
        // The blocks are right by construction: what is refused here is a peer that is no longer known.
        let plan = self.agent.prepare(peer, &local, &far).map_err(|e| told(Kind::Peer, &e))?;
        Ok(Box::new(Prepared {
            plan,
            direction: blocks.direction,
            notification: blocks.notification.map(<[u8]>::to_vec),
            timeout: blocks.timeout,
            transfer: None,
            inline: self.inline,
        }))
    }

    fn needs_driving(&self) -> bool {
        self.inline
    }

    fn drive(&self) -> bool {
        let mut any = false;
        for _ in 0..DRIVES {
            if !self.agent.progress() {
                break;
            }
            any = true;
        }
        any
    }

    fn notifications(&self, awaited: u64, within: Duration) -> Result<u64, EngineError> {
        let deadline = Instant::now() + within;
        let mut seen = 0;
        while seen < awaited {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.agent.wait_notification(left) {
                Ok(_) => seen += 1,
                Err(e) if e.is_retryable() => break,
                Err(e) => return Err(EngineError::new(Kind::Environment, e.to_string())),
            }
        }
        Ok(seen)
    }
}

/// Regions whose registration ends with them.
struct Again {
    _regions: Vec<Region>,
}

impl Registration for Again {}

/// A plan, and the transfer that it was last posted as.
struct Prepared {
    plan: Plan,
    direction: Direction,
    notification: Option<Vec<u8>>,
    timeout: Duration,
    transfer: Option<Transfer>,
    inline: bool,
}

impl Posting for Prepared {
    /// From the second time on the handle is used again: the cheapest way that the library has.
    #[inline]
    fn post(&mut self) -> Result<(), EngineError> {
        let refused = |e: ::kvrail::PostError| told(Kind::Peer, &e);
        if let Some(transfer) = &mut self.transfer {
            return transfer.post().map_err(refused);
        }
        let post = match self.direction {
            Direction::Write => self.plan.write(),
            Direction::Read => self.plan.read(),
        };
        let post = match &self.notification {
            Some(message) => post.notify(message.as_slice()),
            None => post,
        };
        self.transfer = Some(post.timeout(self.timeout).post().map_err(refused)?);
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        let Some(transfer) = &self.transfer else { return Some(Ok(())) };
        transfer.poll().map(|ended| ended.map(|_| ()).map_err(|e| failed(&e)))
    }

    fn wait(&mut self, within: Duration) -> Option<Result<(), EngineError>> {
        let Some(transfer) = &self.transfer else { return Some(Ok(())) };
        if !self.inline {
            return transfer.wait_timeout(within).map(|ended| ended.map(|_| ()).map_err(|e| failed(&e)));
        }
        spin(within, || self.poll())
    }

    fn cancel(&mut self) {
        if let Some(transfer) = &self.transfer {
            transfer.cancel();
        }
    }
}

/// The error for a transfer that ended badly.
#[cold]
fn failed(error: &TransferError) -> EngineError {
    match error {
        TransferError::Failed { error: Ended::Op { error: OpError::Denied(errno), .. }, .. } => {
            process_vm_denied(&format!("errno {errno}; {error}"))
        }
        _ => told(Kind::Peer, error),
    }
}
