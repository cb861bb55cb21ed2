//! The only place where the benchmark meets the library: an agent, its memory, its peer and its transfers.
//!
//! Everything else in this crate speaks of cases and rounds. Errors of the library become failures here, facts from
//! their `Display`, advice from their hints.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail::engine_error::{OpError, TransferError as EngineError};
use kvrail::memory::{AllocateError, HugePages, Options, PrivateMemory, SharedMemory};
use kvrail::{
    Agent, Descriptors, Hints, PeerState, Plan, Region, RemoteRegion, Transfer, TransferError,
    TransportConfig,
};

use crate::carriage::carriage;
use crate::case::{Cooperate, Memory, Op, Progress, Transport};
use crate::failure::Failure;
use crate::link::Pulse;
use crate::ofi::Flags;
use crate::pattern::Bytes;
use crate::rails::{RailLog, Say};
use crate::signals;
use crate::units;

/// Polls of a transfer between two looks at Ctrl-C and the peer's pulse.
const POLLS: u32 = 8192;
/// Sleep of a wait between two such looks, when a thread makes progress.
const NAP: Duration = Duration::from_millis(100);
/// Rounds of progress between two looks at the control link.
const DRIVES: u32 = 1024;

/// What an agent is made of.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub(crate) name: &'a str,
    pub(crate) transport: Transport,
    pub(crate) cooperate: Cooperate,
    /// Where tcp listens.
    pub(crate) ip: &'a str,
    pub(crate) ofi: &'a Flags,
    pub(crate) progress: Progress,
    /// Deadline of a transfer.
    pub(crate) timeout: Duration,
}

/// An agent.
pub(crate) struct Endpoint {
    agent: Agent,
    asked: Transport,
    inline: bool,
}

/// Memory that is not registered yet.
pub(crate) struct Backing {
    memory: kvrail::Memory,
    pages: String,
}

/// Registered memory.
pub(crate) struct Pool {
    region: Region,
    pages: String,
}

/// The other agent, and its pool.
pub(crate) struct Remote {
    peer: kvrail::Peer,
    region: RemoteRegion,
}

/// A plan, and the transfer that it was last posted as.
pub(crate) struct Prepared {
    plan: Plan,
    transfer: Option<Transfer>,
    rails: Arc<RailLog>,
    inline: bool,
}

/// Allocates and touches memory.
///
/// # Errors
/// When the operating system refuses, or there are no huge pages.
pub(crate) fn allocate(kind: Memory, len: u64) -> Result<Backing, Failure> {
    let refused = |e: AllocateError| {
        let failure = Failure::environment(format!("no {kind} memory: {e}"));
        match kind {
            Memory::Huge => failure
                .hint("reserve huge pages: sysctl vm.nr_hugepages=N, or measure with --memory shared")
                .hint("transparent ones are allowed by /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            _ => failure.hint("use a smaller --pool, --block or --batch"),
        }
    };
    let len =
        usize::try_from(len).map_err(|_| Failure::usage(format!("{len} bytes are beyond this platform")))?;
    let options = |huge_pages| Options { huge_pages, prefault: true };
    let shared = |huge_pages| {
        SharedMemory::allocate(len, options(huge_pages))
            .map(|m| Backing { pages: m.pages().to_string(), memory: m.into() })
    };
    match kind {
        Memory::Shared => shared(HugePages::Never),
        Memory::Huge => shared(HugePages::Require),
        Memory::Private => PrivateMemory::allocate(len, options(HugePages::Never))
            .map(|m| Backing { pages: m.pages().to_string(), memory: m.into() }),
    }
    .map_err(refused)
}

fn advised(failure: Failure, error: &dyn Hints) -> Failure {
    error.hints().into_iter().fold(failure, Failure::hint)
}

impl Endpoint {
    /// Creates an agent with the transports that were asked for.
    ///
    /// # Errors
    /// When one of them is not possible here.
    pub(crate) fn create(setup: Setup<'_>) -> Result<Self, Failure> {
        let Setup { name, transport, cooperate, ip, ofi, progress, timeout } = setup;
        let address = if ip.contains(':') { format!("[{ip}]:0") } else { format!("{ip}:0") };
        let shm = TransportConfig::shm().cooperate(cooperate == Cooperate::On);
        let transports = match transport {
            Transport::Auto => vec![shm, ofi.transport().if_possible(), TransportConfig::tcp(address)],
            Transport::Shm => vec![shm],
            Transport::Ofi => vec![ofi.transport()],
            Transport::Tcp => vec![TransportConfig::tcp(address)],
        };
        let inline = progress == Progress::Inline;
        let progress = match progress {
            Progress::Inline => kvrail::Progress::Inline,
            Progress::Thread => kvrail::Progress::Thread,
        };
        let agent = Agent::builder(name).transports(transports).progress(progress).timeout(timeout).build();
        let agent =
            agent.map_err(|e| advised(Failure::environment(format!("cannot create an agent: {e}")), &e))?;
        Ok(Self { agent, asked: transport, inline })
    }

    /// Registers memory.
    ///
    /// # Errors
    /// When a transport refuses it.
    pub(crate) fn register(&self, backing: Backing) -> Result<Pool, Failure> {
        let region = self.agent.register(backing.memory);
        let region = region.map_err(|e| advised(Failure::environment(e.to_string()), &e))?;
        Ok(Pool { region, pages: backing.pages })
    }

    /// Registers memory in so many parts at once.
    ///
    /// # Errors
    /// When a transport refuses them.
    pub(crate) fn register_parts(&self, backing: &Backing, count: u32) -> Result<Vec<Region>, Failure> {
        let bytes = backing.memory.len() / count as usize;
        let parts: Result<Vec<_>, _> =
            (0..count as usize).map(|i| backing.memory.slice(i * bytes, bytes)).collect();
        let parts = parts.map_err(|e| Failure::environment(e.to_string()))?;
        self.agent.register_many(parts).map_err(|e| advised(Failure::environment(e.to_string()), &e))
    }

    /// What a peer imports.
    ///
    /// # Errors
    /// When the agent is closed.
    pub(crate) fn metadata(&self) -> Result<Vec<u8>, Failure> {
        self.agent.metadata().map_err(|e| advised(Failure::environment(e.to_string()), &e))
    }

    /// What each of its transports runs on.
    pub(crate) fn carriages(&self) -> Vec<kvrail_report::Carriage> {
        self.agent.facts().transports.iter().map(carriage).collect()
    }

    /// Listens to its rails, for a run that began at `began`.
    pub(crate) fn listen_to_rails(&self, began: Instant, say: Say) -> Arc<RailLog> {
        RailLog::new(self.agent.clone(), began, say)
    }

    /// Imports a peer without waiting for it.
    ///
    /// # Errors
    /// When no transport reaches it, or the metadata is none.
    pub(crate) fn import(&self, metadata: &[u8]) -> Result<Remote, Failure> {
        let peer = self.agent.connect(metadata);
        let peer = peer.map_err(|e| advised(Failure::environment(e.to_string()), &e))?;
        let got = peer.transport();
        let asked = self.asked.to_string();
        if self.asked != Transport::Auto && got != asked {
            return Err(Failure::usage(format!(
                "--transport {asked} and the environment contradict: {got} is used"
            ))
            .hint("unset KVRAIL_TRANSPORT"));
        }
        let region = peer.regions().into_iter().next();
        let region = region.ok_or_else(|| Failure::peer("the peer's metadata names no region"))?;
        Ok(Remote { peer, region })
    }

    /// Imports a peer and waits until both agents know each other.
    ///
    /// # Errors
    /// As [`Endpoint::import`], or when the peer does not answer.
    pub(crate) fn connect(&self, metadata: &[u8], within: Duration) -> Result<Remote, Failure> {
        let remote = self.import(metadata)?;
        let deadline = Instant::now() + within;
        loop {
            self.agent.progress();
            match remote.peer.state() {
                PeerState::Ready => return Ok(remote),
                PeerState::Lost(cause) => {
                    let silence = remote.peer.silence();
                    let failure = Failure::peer(format!("{}: {cause}; {silence}", remote.peer.name()));
                    return Err(silence.hints().into_iter().fold(failure, Failure::hint));
                }
                _ if Instant::now() >= deadline => {
                    let silence = remote.peer.silence();
                    let failure = Failure::peer(format!(
                        "{} does not answer within {}; {silence}",
                        remote.peer.name(),
                        units::span(within)
                    ));
                    return Err(silence.hints().into_iter().fold(failure, Failure::hint));
                }
                _ if signals::interrupted() => return Err(Failure::interrupted()),
                _ => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Makes progress where no thread of the library does.
    pub(crate) fn drive(&self) {
        if self.inline {
            // Bounded: a peer that keeps talking must not keep this side from listening to its target.
            for _ in 0..DRIVES {
                if !self.agent.progress() {
                    break;
                }
            }
        }
    }

    /// Prepares a plan: block `i` of one side with block `i` of the other. Also says how long the library took.
    ///
    /// # Errors
    /// When the library refuses the blocks.
    pub(crate) fn prepare(
        &self,
        (remote, rails): (&Remote, &Arc<RailLog>),
        pool: &Pool,
        here: &[u64],
        there: &[u64],
        block_bytes: u64,
    ) -> Result<(Prepared, Duration), Failure> {
        let mut local = Descriptors::with_capacity(here.len());
        let mut far = Descriptors::with_capacity(there.len());
        for (&here, &there) in here.iter().zip(there) {
            local.push(pool.region.id(), here, block_bytes);
            far.push(remote.region.id, there, block_bytes);
        }
        let start = Instant::now();
        let plan = self.agent.prepare(&remote.peer, &local, &far);
        let took = start.elapsed();
        // The blocks are right by construction: what is refused here is a peer that is no longer known.
        let plan = plan.map_err(|e| advised(Failure::peer(e.to_string()), &e))?;
        Ok((Prepared { plan, transfer: None, rails: rails.clone(), inline: self.inline }, took))
    }

    /// Takes the notifications that have come, at most `awaited` and as soon as those are there; how many.
    ///
    /// # Errors
    /// When the agent is closed.
    pub(crate) fn notifications(&self, awaited: u64, within: Duration) -> Result<u64, Failure> {
        let deadline = Instant::now() + within;
        let mut seen = 0;
        while seen < awaited {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.agent.wait_notification(left) {
                Ok(_) => seen += 1,
                Err(e) if e.is_retryable() => break,
                Err(e) => return Err(Failure::environment(e.to_string())),
            }
        }
        Ok(seen)
    }
}

impl Remote {
    /// The transport that reaches it.
    pub(crate) fn transport(&self) -> String {
        self.peer.transport().into()
    }

    /// What was preferred and does not reach it, and why.
    pub(crate) fn passed_over(&self) -> Vec<String> {
        let choice = self.peer.transport_choice();
        choice.passed_over.iter().map(|p| format!("not {}: {}", p.transport, p.reason)).collect()
    }
}

impl Pool {
    /// The pages that it is on.
    pub(crate) fn pages(&self) -> String {
        self.pages.clone()
    }
}

impl Bytes for Pool {
    fn read(&self, offset: u64, out: &mut [u8]) {
        // In bounds: offsets come from a geometry of a case that was checked against the pool.
        let read = self.region.read(offset as usize, out);
        debug_assert!(read.is_ok(), "{read:?}");
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let written = self.region.write(offset as usize, bytes);
        debug_assert!(written.is_ok(), "{written:?}");
    }
}

impl Prepared {
    /// Posts. From the second time on the handle is used again: the cheapest way that the library has. All postings
    /// of a plan have the same direction and notification.
    ///
    /// # Errors
    /// When the library refuses.
    #[inline]
    pub(crate) fn post(
        &mut self,
        op: Op,
        notification: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let refused = |e: kvrail::PostError| advised(Failure::peer(e.to_string()), &e);
        if let Some(transfer) = &mut self.transfer {
            return transfer.post().map_err(refused);
        }
        let post = match op {
            Op::Write => self.plan.write(),
            Op::Read => self.plan.read(),
        };
        let post = match notification {
            Some(message) => post.notify(message),
            None => post,
        };
        self.transfer = Some(post.timeout(timeout).post().map_err(refused)?);
        Ok(())
    }

    /// Waits for the end of the last posting.
    ///
    /// # Errors
    /// When the transfer fails, the peer is gone, or on Ctrl-C.
    #[inline]
    pub(crate) fn wait(&self, pulse: &Pulse) -> Result<(), Failure> {
        let Some(transfer) = &self.transfer else { return Ok(()) };
        loop {
            if self.inline {
                for _ in 0..POLLS {
                    match transfer.poll() {
                        Some(Ok(_)) => return Ok(()),
                        Some(Err(e)) => return Err(failed(&e)),
                        None => std::hint::spin_loop(),
                    }
                }
            } else {
                match transfer.wait_timeout(NAP) {
                    Some(Ok(_)) => return Ok(()),
                    Some(Err(e)) => return Err(failed(&e)),
                    None => {}
                }
            }
            self.rails.look();
            // The library's own deadline ends a transfer; these two only make that quicker.
            if signals::interrupted() {
                transfer.cancel();
                return Err(Failure::interrupted());
            }
            if pulse.gone() {
                transfer.cancel();
                return Err(Failure::peer("the transfer in flight was given up"));
            }
        }
    }
}

/// The failure for a transfer that ended badly.
#[cold]
fn failed(error: &TransferError) -> Failure {
    let denied = match error {
        TransferError::Failed { error: EngineError::Op { error: OpError::Denied(errno), .. }, .. } => {
            Some(*errno)
        }
        _ => None,
    };
    if let Some(errno) = denied {
        return process_vm_denied(&format!("errno {errno}; {error}"));
    }
    advised(Failure::peer(error.to_string()), error)
}

/// The failure for private memory that the kernel keeps this process from reaching.
pub(crate) fn process_vm_denied(why: &str) -> Failure {
    Failure::environment(format!(
        "the kernel denies this process the target's private memory (process_vm_readv, process_vm_writev): {why}"
    ))
    .hint("run both sides as one user, in one pid namespace; in a container allow CAP_SYS_PTRACE")
    .hint("see kernel.yama.ptrace_scope (sysctl): 0 allows it")
    .hint("or measure --memory shared, or --transport tcp, or with --transport auto what kvrail falls back to")
}
