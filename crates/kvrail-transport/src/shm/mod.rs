//! Shared memory: agents of one user on one host.
//!
//! Each agent has one control segment that its peers map: an inbox for messages, the generations of its regions, a
//! line for each neighbour, and jobs. Ops are carried out by the core that posts them:
//!
//! 1. A region that lies in a [`crate::memory::SharedMemory`] is mapped, once per memory, and copied directly.
//! 2. Private memory is copied by the kernel (`process_vm_readv`, `process_vm_writev`), many slices a call; large
//!    batches go through a small ring instead, filled by one side's core and emptied by the other's, as far as the
//!    peer's core is there to help.
//! 3. Where the kernel denies access to the peer's memory (ptrace rules), everything private goes through that ring:
//!    neither side needs to look into the other. Which way is taken is reported by [`Shm::private_path`] (KR-13).
//!
//! Before each visit to a peer's memory the peer's generation for the region is checked, as a NIC checks a key, and
//! deregistration waits for visits in progress (KR-7, KR-9). When a peer's process dies the kernel says so; nobody
//! scans for it, and no later process can be mistaken for it (KR-11). Linux only.

mod chunk;
mod control;
mod door;
mod execute;
mod gate;
mod help;
mod host;
mod inbox;
mod job;
mod layout;
mod ledger;
mod neighbour;
mod offer;
mod pace;
mod process;
mod region;
mod socket;
mod stream;
mod transport;
mod word;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use kvrail_core::id::PeerId;
use kvrail_core::limits::MESSAGE_BYTES_MIN;
use kvrail_core::time::Time;
use kvrail_core::transport::{Caps, Evidence, RailInfo};

use control::Control;
use execute::{Ends, Tools};
use help::{Help, Step};
use host::{Host, Nonce};
use ledger::Ledger;
use neighbour::{Access, Neighbours, Peer};
use offer::{Context, Offers};
use region::Locals;
use socket::{Letter, Socket};

use crate::Fabric;

/// Longest op: the planner cuts longer descriptors, so that no single one holds up a poll.
const OP_BYTES_MAX: u32 = 1 << 20;
/// While the caller polls without sleeping, the kernel is asked for news this often at most…
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// …and after so many polls at least, should its clock stand still.
const LOOK_EVERY_POLLS: u32 = 512;
/// Messages that one poll takes out of the inbox.
const MESSAGES_PER_POLL: usize = 64;
/// What one poll does for one peer's job, ring slots.
const HELP_SLOTS: usize = 64;
/// How long a helper waits at the ring before it returns to its caller.
const HELP_PATIENCE: Duration = Duration::from_micros(20);
/// So long after the last progress a job keeps the caller from sleeping; later it is looked at each [`TICK`].
const AWAKE: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(1);
/// How long deregistration waits for peers' copies in progress: microseconds of copying, but a busy host may not run the
/// copying process for a while.
const GRACE: Duration = Duration::from_secs(1);
/// Jobs of peers that one agent helps with at a time; each peer has only so many.
const HELPS_MAX: usize = 1024;
/// Events that may wait for a poll before posts are refused.
const EVENTS_MAX: usize = 1 << 16;

/// Knobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Let this agent's core help peers with large private batches, and ask for their help. On by default; off, a
    /// batch is copied by one core, and a peer that the kernel denies access is still served.
    pub cooperate: bool,
    /// Private batches of fewer bytes are not worth the peer's attention; 1 MiB by default.
    pub cooperate_bytes_min: u64,
    /// Copy private memory through the kernel where it permits. On by default; off, private memory always goes
    /// through the ring, as where ptrace rules forbid access.
    pub process_vm: bool,
    /// How long ops may be in flight without progress before the engine gives the route up.
    pub stall_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cooperate: true,
            cooperate_bytes_min: 1 << 20,
            process_vm: true,
            stall_timeout: Duration::from_secs(10),
        }
    }
}

/// Why an agent's end could not be set up.
#[derive(Debug)]
pub struct OpenError {
    /// What was tried.
    pub step: &'static str,
    /// The system's answer.
    pub source: io::Error,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot set up shared memory: {}: {}", self.step, self.source)
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// How private memory of a peer is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrivatePath {
    /// No op was posted yet that would have shown it.
    Untried,
    /// Through the kernel, and through the ring when the peer helps.
    Kernel,
    /// Only through the ring: the kernel denied access with this errno; 0 where the configuration did.
    Ring(i32),
}

impl fmt::Display for PrivatePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => f.write_str("not tried yet"),
            Self::Kernel => f.write_str("process_vm"),
            Self::Ring(0) => f.write_str("bounce ring (process_vm is turned off)"),
            Self::Ring(errno) => {
                write!(f, "bounce ring (process_vm is denied: errno {errno}; see ptrace rules)")
            }
        }
    }
}

/// The shared-memory transport of one agent.
pub struct Shm {
    config: Config,
    caps: Caps,
    rails: Vec<RailInfo>,
    host: Host,
    nonce: Nonce,
    start_time: u64,
    control: Control,
    control_fd: OwnedFd,
    socket: Socket,
    epoll: OwnedFd,
    locals: Locals,
    neighbours: Neighbours,
    peers: Vec<Option<Peer>>,
    ledger: Ledger,
    tools: Tools,
    offers: Offers,
    helps: VecDeque<Help>,
    outbox: VecDeque<Letter>,
    /// Neighbours that have not answered our introduction yet.
    knocking: Vec<u32>,
    /// Neighbours whose memories we wait for.
    wanting: Vec<u32>,
    armed: bool,
    /// A message was refused: the caller wants to be called again.
    refused: bool,
    now: Time,
    look_at: Time,
    polls: u32,
}

impl fmt::Debug for Shm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shm").field("nonce", &self.nonce).finish_non_exhaustive()
    }
}

impl Shm {
    /// Sets up an agent's end.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: Config) -> Result<Self, OpenError> {
        let step = |step| move |source| OpenError { step, source };
        let host = Host::here().map_err(step("reading the host's identity from /proc"))?;
        let nonce = Nonce::random().map_err(step("getrandom"))?;
        let start_time = door::own_start_time().map_err(step("reading /proc/self/stat"))?;
        let (control, control_fd) = Control::create(nonce).map_err(step("creating the control segment"))?;
        let socket = Socket::open(nonce).map_err(step("opening the socket"))?;
        let epoll = watch(&socket).map_err(step("epoll"))?;
        let caps = Caps {
            name: "shm",
            evidence: Evidence::Delivered,
            op_bytes_max: OP_BYTES_MAX,
            message_bytes_max: MESSAGE_BYTES_MIN,
            ops_in_flight_max: 1 << 16,
            turn_ops_max: u32::MAX,
            receives_max: 1 << 16,
            linger: Duration::ZERO,
            stall_timeout: config.stall_timeout,
        };
        Ok(Self {
            config,
            caps,
            rails: vec![RailInfo { name: "shm".into(), rate_bps: 0 }],
            host,
            nonce,
            start_time,
            control,
            control_fd,
            socket,
            epoll,
            locals: Locals::default(),
            neighbours: Neighbours::default(),
            peers: Vec::new(),
            ledger: Ledger::default(),
            tools: Tools::new(),
            offers: Offers::new(),
            helps: VecDeque::new(),
            outbox: VecDeque::new(),
            knocking: Vec::new(),
            wanting: Vec::new(),
            armed: false,
            refused: false,
            now: Time::ZERO,
            look_at: Time::ZERO,
            polls: 0,
        })
    }

    /// How a peer's private memory is reached; `None` for an unknown peer.
    #[must_use]
    pub fn private_path(&self, peer: PeerId) -> Option<PrivatePath> {
        let neighbour = self.neighbours.at(self.peer(peer)?.neighbour)?;
        Some(match neighbour.access {
            Access::Untried => PrivatePath::Untried,
            Access::Open => PrivatePath::Kernel,
            Access::Denied(errno) => PrivatePath::Ring(errno),
        })
    }

    fn peer(&self, peer: PeerId) -> Option<&Peer> {
        self.peers.get(peer.index())?.as_ref().filter(|p| p.id == peer)
    }

    /// Works on own jobs, and on those of peers.
    fn work(&mut self) {
        if self.offers.live > 0 {
            for job in 0..self.offers.slots.len() {
                self.advance(job);
            }
        }
        for _ in 0..self.helps.len() {
            let Some(mut help) = self.helps.pop_front() else { break };
            if self.help(&mut help) {
                self.helps.push_back(help);
            }
        }
    }

    /// Works on one of our jobs.
    fn advance(&mut self, job: usize) {
        let Some(offer) = &self.offers.slots[job] else { return };
        let slot = offer.neighbour;
        let (given_up, peer) = (offer.give_up_at.is_some(), offer.peer);
        let mut context =
            Context { control: &self.control, tools: &mut self.tools, ledger: &mut self.ledger };
        if given_up {
            return self.offers.withdraw(job, &mut context);
        }
        let peer = self.peers.get(peer.index()).and_then(Option::as_ref).filter(|p| p.id == peer);
        let (Some(peer), Some(neighbour)) = (peer, self.neighbours.at_mut(slot)) else {
            return self.offers.give_up(job);
        };
        let mut ends = Ends { locals: &self.locals, peer, neighbour };
        let advance = self.offers.advance(job, &mut ends, &mut context);
        if advance.gone {
            return self.gone(slot);
        }
        if advance.announce && self.announce(slot, job) {
            self.offers.announced(job);
        }
        if advance.nudge {
            self.nudge(slot);
        }
    }

    /// Helps with a peer's job; false when that is over.
    fn help(&mut self, help: &mut Help) -> bool {
        let Some(neighbour) = self.neighbours.at(help.neighbour) else { return false };
        let Some(link) = &neighbour.link else { return false };
        let mut worked = 0;
        let mut going = true;
        let mut waited_since = None;
        while worked < HELP_SLOTS {
            match help.step(&link.control, &self.locals, self.tools.kernel) {
                Step::Worked => {
                    worked += 1;
                    waited_since = None;
                    if inbox::must_wake(link.control.asleep()) {
                        self.socket.ring(neighbour.nonce);
                    }
                }
                Step::Idle => {
                    let since = *waited_since.get_or_insert_with(Instant::now);
                    match since.elapsed() {
                        waited if waited > HELP_PATIENCE => break,
                        // The initiator may be waiting for this very core.
                        waited if waited > Duration::from_micros(4) => std::thread::yield_now(),
                        _ => std::hint::spin_loop(),
                    }
                }
                Step::Over => {
                    going = false;
                    break;
                }
            }
        }
        if worked > 0 {
            help.progress = Instant::now();
        }
        going
    }

    /// Tells a neighbour of a job. False: no room in its inbox, try again.
    fn announce(&self, slot: u32, job: usize) -> bool {
        let Some(neighbour) = self.neighbours.at(slot) else { return true };
        let Some(link) = &neighbour.link else { return true };
        let jobs = link.control.jobs(link.slot);
        if jobs.fetch_or(1 << job, std::sync::atomic::Ordering::AcqRel) != 0 {
            return true;
        }
        let (words, ring) = link.control.inbox();
        match ring.push(&words, link.slot + 1, transport::KIND_JOBS, &link.slot.to_le_bytes()) {
            inbox::Pushed::In { wake } => {
                if wake {
                    self.socket.ring(neighbour.nonce);
                }
                true
            }
            inbox::Pushed::Full => {
                jobs.store(0, std::sync::atomic::Ordering::Release);
                false
            }
        }
    }

    /// Wakes a neighbour that sleeps.
    fn nudge(&self, slot: u32) {
        let Some(neighbour) = self.neighbours.at(slot) else { return };
        if let Some(link) = &neighbour.link
            && inbox::must_wake(link.control.asleep())
        {
            self.socket.ring(neighbour.nonce);
        }
    }

    /// A neighbour says that it has jobs for us.
    fn notice_jobs(&mut self, slot: u32) {
        let mask = match self.neighbours.at(slot) {
            Some(_) => self.control.jobs(slot).swap(0, std::sync::atomic::Ordering::AcqRel),
            None => return,
        };
        let Some(link) = self.neighbours.at(slot).and_then(|n| n.link.as_ref()) else { return };
        for job in 0..layout::JOBS_MAX {
            if mask & (1 << job) == 0 || self.helps.len() >= HELPS_MAX {
                continue;
            }
            if let Some(help) = Help::join(&link.control, slot, job, link.slot)
                && (self.config.cooperate || help.required)
            {
                self.helps.retain(|h| (h.neighbour, h.job) != (slot, job));
                self.helps.push_back(help);
            }
        }
    }

    /// Whether a job keeps the caller from sleeping.
    fn is_hurried(&self) -> bool {
        self.helps.iter().any(|help| help.progress.elapsed() < AWAKE)
            || self.offers.slots.iter().flatten().any(|offer| offer.progress.elapsed() < AWAKE)
    }
}

fn watch(socket: &Socket) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: door::SOCKET };
    // SAFETY: `event` lives through the call.
    if unsafe { libc::epoll_ctl(fd, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(epoll)
}

impl Fabric for Shm {
    fn wait_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        if self.ledger.len() > 0 || self.is_hurried() {
            return false;
        }
        self.armed = inbox::fall_asleep(&self.control.inbox().0);
        self.armed
    }
}
