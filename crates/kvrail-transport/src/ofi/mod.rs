//! Many rails over libfabric: one endpoint per NIC, on whichever provider the fabric of this host has.
//!
//! A rail is a NIC's domain with two endpoints, each with a completion queue and an address vector: one for one-sided ops
//! and their immediates, one for messages. An event queue is bound and read (`efa` ends the process on some errors
//! otherwise). Whoever owns the [`Ofi`] owns them all and is the only one to touch them (KR-5).
//!
//! # What it upholds
//! * KR-1, KR-2: what proves that a write is visible is a fact of the provider ([`evidence`]): its immediate, counted at the
//!   target, or on `tcp` a completion under `FI_DELIVERY_COMPLETE`.
//! * KR-6: an op has a context while it is in flight, and one event ends both. A context that nobody gave out resolves
//!   nothing.
//! * KR-7: a reset closes the rail's endpoint of ops and opens another on the same domain, because libfabric cannot take an op
//!   back; when the close has returned, nothing of the old one touches memory. Registrations and keys stand, the endpoint's
//!   address does not: peers are told by a word over the endpoints of messages, which stay (`control.rs`), as often as it
//!   takes; so both sides may replace all of theirs at once. The engine hears of it by [`Event::AddressChanged`].
//! * KR-8: contexts are fewer than the provider's queues hold; immediates and messages have receives, or room in the queue.
//! * KR-9: both ends of an op are checked against their regions before it is posted, whatever the target checks.
//! * KR-11: fragments and words name the life of the transport that sent them; keys chosen here are never used twice.
//! * KR-13: what was asked for, passed over and chosen is in [`Facts`].
//!
//! # Providers, as they behave
//! Seen with libfabric 1.17 (Debian 12), 2.5.1 (the wheel `mpich`) and 2.7 (development), EFA on an emulated device:
//!
//! | | `efa-direct` | `efa` | `tcp` | `shm` |
//! |---|---|---|---|---|
//! | registration asks | local, virt_addr, allocated, prov_key | the same | nothing | virt_addr |
//! | longest op; message | 1 GiB; 8,928 bytes | 1 GiB; any | any; any | any; any |
//! | injected, bytes | 32 | 4,096 (1.17: 3,928) | 128 (1.17: 64) | 4,096 |
//! | immediate | takes a receive on 2.5.1, none on 2.7 (unsolicited) | takes none of ours | takes none | takes none |
//! | queue's descriptor | none | none | yes | none |
//! | bad key, write | status 7 | status 7 (1.17: success) | success; with delivery the connection breaks: 125 | success |
//! | bad key, read | status 7 | status 7 (1.17: success, and local memory changed) | the connection breaks: 125 | success (1.17 and 2.7: local memory changed) |
//! | write to a target that does not poll | done by the device | done by the device | waits | waits |
//! | peer gone | status 9 | status 9 | 107 for what is in flight, then `FI_EAGAIN` for ever | `FI_EAGAIN` for ever |
//!
//! So on `tcp` and `shm` a region is withdrawn from peers before its registration ends (see `word.rs`), and a destination that
//! takes nothing for the stall timeout counts as down. `efa` before 1.18 emulates RDMA by messages and is refused. A closed
//! `shm` endpoint of 2.5.1 crashes peers that still have its commands in their queue, so there nothing is taken back: ops
//! to a peer that never polls again never end. That provider is for tests; kvrail has its own shared memory.
//!
//! # Control memory
//! Receives and sends of 1 KiB and 64 bytes of context for each op and receive: 1.1 MiB a rail with the default settings, 35 MiB
//! at 32 rails, plus what the provider itself allocates: `efa` buffers of a packet's length for each receive and send that
//! its endpoint is opened for (8,192 and 4,096 unless told otherwise, 110 MB a rail), so it is opened for 512 of each, 9 MB
//! a rail (`heap.rs` on what a replaced one leaves). `efa-direct` has no such buffers, and carries the messages of `efa` where libfabric has it.

pub mod address;
mod book;
pub mod config;
mod context;
mod control;
pub mod counters;
mod ending;
mod endpoint;
pub mod error;
pub mod evidence;
pub mod facts;
pub mod fragment;
mod heap;
mod intake;
mod introductions;
pub mod key;
mod messages;
pub mod offers;
mod open;
mod peers;
mod rail;
mod receives;
mod region;
pub mod select;
pub mod status;
mod tick;
mod transport;
mod wait;
mod word;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use kvrail_core::id::{PeerId, RailSet, RemoteRail};
use kvrail_core::limits::{ADDRESS_BYTES_MAX, RAILS_MAX};
use kvrail_core::time::Time;
use kvrail_core::transport::{Caps, Device, Event, PostError, RailInfo, RegionInfo};
use kvrail_sys::libfabric::Wait;

pub use config::{Affinity, Config, Provider};
pub use error::OpenError;
pub use facts::Facts;
pub use region::RegistrationCost;

use crate::Fabric;
use address::{Address, RailAddress};
use ending::{Gate, pass};
use facts::RailState;
use fragment::Reassembly;
use intake::{Intake, Unknown};
use open::Near;
use peers::{Peers, Reach};
use rail::{Rail, Shapes, Which};
use region::{Imports, Keys, Region, Terms};
use wait::Sleeper;
use word::Heard;

/// What a provider makes necessary.
#[derive(Clone, Copy, Debug)]
struct Manners {
    /// The target's answer to a bad key is no error of the op: regions are withdrawn before they end.
    revoke: bool,
    /// An endpoint with ops in flight may be closed.
    replace: bool,
    /// An endpoint that takes nothing for a destination, with nothing in flight to it, is replaced. `efa` asks a peer's endpoint for
    /// its hand once, and that one gives it once; when the device fails either packet nobody is told, and ops wait for ever.
    replace_refusing: bool,
    /// How long every rail of a peer must be known to be gone before its process is. Endpoints of messages that may be
    /// replaced need time for the news.
    gone_after: Duration,
}

/// The libfabric transport. See the module.
///
/// Fields drop in this order: rails (whose endpoints let go of all memory) before the regions' registrations.
pub struct Ofi {
    gate: &'static Gate,
    rails: Vec<Rail>,
    regions: Vec<Option<Box<Region>>>,
    imports: Imports,
    /// Ops of the batch that is being posted, for each import in turn.
    posted_to: Vec<(u32, u32)>,
    peers: Peers,
    config: Config,
    caps: Caps,
    infos: Vec<RailInfo>,
    facts: Facts,
    manners: Manners,
    shapes: Shapes,
    terms: Terms,
    near: Near,
    keys: Keys,
    cost: RegistrationCost,
    /// Who this is: provider, life, and where each rail is.
    address: Address,
    /// Number of the next message.
    message: u64,
    reassembly: Reassembly,
    /// Events that were decided outside of polling.
    backlog: Vec<Event>,
    heard: Vec<Heard>,
    settled: Vec<u32>,
    gone: Vec<(PeerId, RemoteRail, bool)>,
    unknown: Vec<Unknown>,
    /// Pairs of rails (peer, local, remote) whose other side is asked to vouch.
    introductions: Vec<(PeerId, usize, usize)>,
    /// Peers that were removed with something in flight, and until when that may end by itself.
    departing: Vec<(PeerId, Time)>,
    /// Something waits for the clock.
    pending: bool,
    tick_due: Time,
    /// When the provider's events and unfinished messages are looked at again.
    slow_due: Time,
    /// When something last came.
    stirred: Time,
    now: Time,
    sleeper: Sleeper,
}

impl std::fmt::Debug for Ofi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ofi")
            .field("provider", &self.facts.provider)
            .field("rails", &self.rails.len())
            .finish_non_exhaustive()
    }
}

/// Whether posts can go to a destination.
enum Way {
    Open(u32),
    Wait,
}

fn random() -> io::Result<u128> {
    let mut bytes = [0u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the buffer is as long as it says.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(u128::from_ne_bytes(bytes))
}

impl Ofi {
    /// Loads libfabric, chooses a provider, opens its rails.
    ///
    /// # Errors
    /// [`OpenError`]: what is missing, with advice in [`OpenError::hints`]. Nothing else is tried than what the settings
    /// name.
    pub fn new(config: Config) -> Result<Self, OpenError> {
        let system = |what, error: io::Error| OpenError::System {
            what,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        };
        let instance = random().map_err(|error| system("getrandom", error))?;
        let start = random().map_err(|error| system("getrandom", error))? as u64;
        // Keys of messages' memory are chosen before it is known how wide keys are: EFA's device chooses its own.
        let mut keys = Keys::new(start, 8);
        let gate = Gate::take();
        let opened = match gate.enter() {
            Some(_turn) => open::open(&config, || keys.next()),
            None => Err(OpenError::System {
                what: "open a transport while the process ends",
                errno: libc::ESHUTDOWN,
            }),
        };
        let opened = opened.inspect_err(|_| gate.give_back())?;
        let sleeper = Sleeper::new().map_err(|error| system("epoll_create1", error))?;
        let provider = opened.facts.provider.as_str();
        let manners = Manners {
            revoke: !evidence::of(provider).checks_keys,
            replace: provider != "shm",
            replace_refusing: provider == "efa",
            gone_after: if opened.shapes.control.numbered { config.stall_timeout } else { Duration::ZERO },
        };
        let address = Address {
            provider: opened.facts.provider.clone(),
            format: opened.address_format,
            instance,
            messages: opened.messages,
            rails: Vec::new(),
        };
        let keys = Keys::new(keys.next(), opened.terms.key_bytes);
        let mut ofi = Self {
            gate,
            rails: opened.rails,
            regions: Vec::new(),
            imports: Imports::default(),
            posted_to: Vec::new(),
            peers: Peers::default(),
            config,
            caps: opened.caps,
            infos: opened.infos,
            facts: opened.facts,
            manners,
            shapes: opened.shapes,
            terms: opened.terms,
            near: opened.near,
            keys,
            cost: RegistrationCost::default(),
            address,
            message: 0,
            reassembly: Reassembly::new(),
            backlog: Vec::new(),
            heard: Vec::new(),
            settled: Vec::new(),
            gone: Vec::new(),
            unknown: Vec::new(),
            introductions: Vec::new(),
            departing: Vec::new(),
            pending: false,
            tick_due: Time::ZERO,
            slow_due: Time::ZERO,
            stirred: Time::ZERO,
            now: Time::ZERO,
            sleeper,
        };
        ofi.address.rails = (0..ofi.rails.len()).map(|rail| ofi.rail_address(rail)).collect();
        let mut bytes = Vec::new();
        if ofi.address.encode(&mut bytes).is_err() {
            let limit = format!(
                "their addresses do not fit {ADDRESS_BYTES_MAX} bytes; an agent has at most {RAILS_MAX}"
            );
            return Err(OpenError::TooManyRails { found: ofi.rails.len(), limit });
        }
        for rail in 0..ofi.rails.len() {
            ofi.watch(rail).map_err(|error| system("epoll_ctl", error))?;
        }
        log::info!("{}", ofi.facts);
        Ok(ofi)
    }

    /// What was found and chosen, and how the rails are.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let mut facts = self.facts.clone();
        for (facts, rail) in facts.rails.iter_mut().zip(&self.rails) {
            facts.state = rail.why_down().map_or(RailState::Up, |why| RailState::Down(why.into()));
        }
        facts
    }

    /// What registering memory has cost.
    #[must_use]
    pub fn registration_cost(&self) -> RegistrationCost {
        self.cost
    }

    /// Where a rail is now; its last endpoint while it is down.
    fn rail_address(&self, index: usize) -> RailAddress {
        let rail = &self.rails[index];
        let known = self.address.rails.get(index).map(|rail| rail.endpoint.clone()).unwrap_or_default();
        RailAddress {
            nic: self.facts.rails.get(index).map(|rail| rail.nic.clone()).unwrap_or_default(),
            epoch: rail.control.epoch,
            endpoint: rail.control.get().map_or(known, |control| control.bound.name.clone()),
            rate_bps: self.infos.get(index).map_or(0, |info| info.rate_bps),
            numa: self.facts.rails.get(index).and_then(|rail| u8::try_from(rail.numa?).ok()),
        }
    }

    /// Adds a rail's queues to what wakes a sleeper, where queues have descriptors. Those that are known stay.
    fn watch(&self, rail: usize) -> io::Result<()> {
        let Some(rail) = self.rails.get(rail).filter(|_| self.shapes.data.opening.wait == Wait::Fd) else {
            return Ok(());
        };
        let queues = [rail.data.get().map(|p| &p.bound.queue), rail.control.get().map(|c| &c.bound.queue)];
        for queue in queues.into_iter().flatten() {
            match queue.wait_fd() {
                Ok(fd) => self.sleeper.add(fd)?,
                Err(error) => return Err(io::Error::from_raw_os_error(error.code)),
            }
        }
        Ok(())
    }

    /// The rails near a region's memory, as far as that is known: else all.
    fn near(&self, region: &RegionInfo) -> RailSet {
        if self.config.affinity == Affinity::All {
            return RailSet::ALL;
        }
        let set = match region.device {
            Device::Cuda(ordinal) => self.near.gpus.get(usize::from(ordinal)).copied(),
            // With one node, or none known, there is nothing to ask the kernel.
            Device::Host if self.near.numa.len() < 2 => None,
            Device::Host => region::numa_node_of(region.base, region.len).and_then(|node| {
                self.near.numa.iter().find(|(known, _)| *known == node).map(|(_, set)| *set)
            }),
        };
        set.filter(|set| !set.is_empty()).unwrap_or(RailSet::ALL)
    }

    /// Gathers from rails, one after the other.
    fn with_intake<R>(
        &mut self,
        now: Time,
        events: &mut Vec<Event>,
        f: impl FnOnce(&mut [Rail], &mut Intake<'_>) -> R,
    ) -> R {
        let mut intake = Intake::new(
            now,
            events,
            &mut self.imports,
            &mut self.reassembly,
            &mut self.heard,
            &mut self.settled,
            &mut self.gone,
            &mut self.unknown,
        );
        let result = f(&mut self.rails, &mut intake);
        intake.flush();
        result
    }

    /// The destination of a pair of rails, inserted if it is new.
    fn reach(&mut self, which: Which, peer: PeerId, local: usize, remote: usize) -> Result<u32, PostError> {
        let known = self.peers.get_mut(peer).ok_or(PostError::UnknownPeer)?;
        let rail = self.rails.get_mut(local).ok_or(PostError::RouteDown)?;
        let (epoch, open) = match which {
            Which::Data => {
                let bound = rail.data.get().map(|port| &port.bound.addresses);
                (rail.data.epoch, bound.map(|addresses| (addresses, &mut rail.book)))
            }
            Which::Control => {
                let control = rail.control.epoch;
                (control, rail.control.get_mut().map(|open| (&open.bound.addresses, &mut open.book)))
            }
        };
        if let Some(to) = known.reach(which, local, epoch, remote) {
            return Ok(to);
        }
        let (addresses, book) = open.ok_or(PostError::RouteDown)?;
        let (name, remote_epoch) = known.endpoint(which, remote).ok_or(PostError::RouteDown)?;
        match book.enter(addresses, name, peer, RemoteRail(remote as u16)) {
            Ok(to) => {
                let reach = Reach { to, epoch, remote_epoch };
                if let Some(old) = known.set_reach(which, local, remote, reach) {
                    book.leave(addresses, old);
                }
                Ok(to)
            }
            Err(error) => {
                log::warn!(
                    "rail {}: the address of {peer} remote rail {remote} is refused: {error}",
                    rail.name
                );
                Err(PostError::RouteDown)
            }
        }
    }

    /// Whether ops can go over a pair of rails now.
    fn way(&mut self, now: Time, peer: PeerId, local: usize, remote: usize) -> Result<Way, PostError> {
        let known = self.peers.get_mut(peer).ok_or(PostError::UnknownPeer)?;
        let rail = self.rails.get_mut(local).ok_or(PostError::RouteDown)?;
        if rail.data.wounded.is_some() {
            return Ok(Way::Wait);
        }
        if rail.data.get().is_none() {
            return Err(PostError::RouteDown);
        }
        let open = known.open(local, rail.data.epoch, remote);
        let link = known.link_mut(local, remote).ok_or(PostError::RouteDown)?;
        if link.is_down(now) {
            return Err(PostError::RouteDown);
        }
        if let Some(to) = open {
            return Ok(Way::Open(to));
        }
        if link.refused(now, self.caps.stall_timeout) {
            return Err(PostError::RouteDown);
        }
        if link.ask_due().is_none() {
            self.ask(now, peer, local, remote);
        }
        Ok(Way::Wait)
    }

    /// Something is due.
    fn hurry(&mut self, at: Time) {
        self.tick_due = if self.pending { self.tick_due.min(at) } else { at };
        self.pending = true;
    }

    fn region(&self, index: usize) -> Option<&Region> {
        self.regions.get(index)?.as_deref()
    }
}

impl Drop for Ofi {
    fn drop(&mut self) {
        if let Some(_turn) = self.gate.enter() {
            // Endpoints first: they let go of all memory.
            self.rails.clear();
            self.regions.clear();
            self.gate.give_back();
        } else {
            std::mem::forget(std::mem::take(&mut self.rails));
            std::mem::forget(std::mem::take(&mut self.regions));
        }
    }
}

impl Fabric for Ofi {
    fn facts(&self) -> crate::Facts {
        crate::Facts::Ofi(Box::new(self.facts()))
    }

    fn wait_fd(&self) -> RawFd {
        self.sleeper.fd()
    }

    fn arm(&mut self) -> bool {
        pass!(self.gate, true);
        if !self.backlog.is_empty() || !self.heard.is_empty() {
            return false;
        }
        if self.shapes.data.opening.wait == Wait::Fd {
            for rail in &self.rails {
                let (Some(port), Some(control)) = (rail.data.get(), rail.control.get()) else { continue };
                match rail.bases.data.fabric.try_wait(&[&port.bound.queue, &control.bound.queue]) {
                    Ok(true) => {}
                    Ok(false) => return false,
                    Err(error) => {
                        log::debug!("rail {}: {error}; the timer wakes", rail.name);
                        self.sleeper.arm_timer(self.now.since(self.stirred));
                    }
                }
            }
            return true;
        }
        self.sleeper.arm_timer(self.now.since(self.stirred));
        true
    }
}
