//! A rail's destinations: the endpoints of peers that its own endpoint has been given the addresses of, and what is in
//! flight to each.
//!
//! An address is removed from the provider only when nothing is in flight to it (`efa` has crashed then). A peer that is
//! forgotten and added again, or two peers behind one endpoint, share a destination: providers give one number for one
//! address, however often it is inserted, so it is counted here who uses it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use kvrail_core::id::{PeerId, RemoteRail};
use kvrail_core::time::Time;
use kvrail_sys::libfabric::abi::fi_addr_t;
use kvrail_sys::libfabric::{AddressVector, FabricError};
use slab::Slab;

/// First pause between two introductions that are not answered. Doubled each time.
const INTRODUCE_AFTER: Duration = Duration::from_millis(2);
/// Longest such pause.
const INTRODUCE_AFTER_MAX: Duration = Duration::from_millis(200);

/// How long posts are refused after nothing got through for the stall timeout.
const REFUSED_FOR: Duration = Duration::from_millis(500);

/// Whether the peer's rail surely knows this rail's endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Introduction {
    /// It does, or the provider does not need it to.
    Done,
    /// Nobody has asked yet.
    Unasked,
    /// Not yet: ops have to wait (EFA answers them with status 14), messages get through.
    Open {
        /// When it is said again.
        due: Time,
        /// The pause after that.
        pause: Duration,
    },
}

/// An endpoint of a peer.
pub(super) struct Destination {
    pub(super) at: fi_addr_t,
    name: Box<[u8]>,
    /// Peers that use it.
    users: u32,
    /// Ops and messages that the provider has.
    pub(super) in_flight: u32,
    /// Buffers that messages to it hold, posted or waiting.
    pub(super) sends: u32,
    pub(super) peer: PeerId,
    pub(super) remote: RemoteRail,
    pub(super) introduction: Introduction,
    /// Since when the provider takes nothing, with nothing in flight.
    pub(super) refused_since: Option<Time>,
    /// Until when posts are refused, because nothing got through for too long.
    pub(super) down_until: Option<Time>,
    /// Since when the peer's device says that there is no such endpoint.
    pub(super) gone_since: Option<Time>,
    /// Failures since the last success, for the log.
    pub(super) failures: u32,
}

impl Destination {
    /// Something got through.
    #[inline]
    pub(super) fn reached(&mut self) {
        self.refused_since = None;
        self.gone_since = None;
        self.failures = 0;
    }

    /// Nothing gets through to it. Returns true, and refuses posts for a while, when that has been so for too long.
    pub(super) fn refused(&mut self, now: Time, patience: Duration) -> bool {
        let since = *self.refused_since.get_or_insert(now);
        if now.since(since) < patience {
            return false;
        }
        self.refused_since = None;
        self.down_until = Some(now + REFUSED_FOR);
        true
    }

    /// When an introduction is due, if one is.
    pub(super) fn introduction_due(&self) -> Option<Time> {
        match self.introduction {
            Introduction::Open { due, .. } if self.users > 0 => Some(due),
            _ => None,
        }
    }

    /// It was said: when again.
    pub(super) fn introduced_at(&mut self, now: Time) {
        if let Introduction::Open { due, pause } = &mut self.introduction {
            *due = now + *pause;
            *pause = (*pause * 2).min(INTRODUCE_AFTER_MAX);
        }
    }

    /// Has to be said (again), from now on.
    pub(super) fn introduce(&mut self, now: Time) {
        self.introduction = Introduction::Open { due: now, pause: INTRODUCE_AFTER };
    }
}

/// Destinations that nobody uses and that are kept, where the provider wants that.
const KEPT_MAX: usize = 1_024;

/// The destinations of one endpoint.
#[derive(Default)]
pub(super) struct Book {
    all: Slab<Destination>,
    by_name: HashMap<Box<[u8]>, u32>,
    /// Addresses outlive their users for a while: `efa` shakes hands with a peer once, and one that is removed and
    /// inserted again waits for ever for the hand of a peer that has given it already.
    keeps: bool,
    /// Those that were kept, the oldest first; some of them are in use again.
    kept: VecDeque<u32>,
}

impl Book {
    /// An empty one; with `keeps`, addresses stay inserted for a while when nobody uses them.
    pub(super) fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// The destination with that address, inserted if need be; the peer is one more user of it.
    pub(super) fn enter(
        &mut self,
        addresses: &AddressVector,
        name: &[u8],
        peer: PeerId,
        remote: RemoteRail,
        introduction: Introduction,
    ) -> Result<u32, FabricError> {
        if let Some(&to) = self.by_name.get(name)
            && let Some(known) = self.all.get_mut(to as usize)
        {
            if known.users == 0 {
                // What was known of it was another's time ago.
                (known.refused_since, known.down_until, known.gone_since) = (None, None, None);
            }
            known.users += 1;
            (known.peer, known.remote) = (peer, remote);
            return Ok(to);
        }
        let at = addresses.insert(name)?;
        let to = self.all.insert(Destination {
            at,
            name: name.into(),
            users: 1,
            in_flight: 0,
            sends: 0,
            peer,
            remote,
            introduction,
            refused_since: None,
            down_until: None,
            gone_since: None,
            failures: 0,
        }) as u32;
        self.by_name.insert(name.into(), to);
        Ok(to)
    }

    #[inline]
    pub(super) fn get(&self, to: u32) -> Option<&Destination> {
        self.all.get(to as usize)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, to: u32) -> Option<&mut Destination> {
        self.all.get_mut(to as usize)
    }

    /// All of them, with their numbers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Destination)> {
        self.all.iter_mut().map(|(to, destination)| (to as u32, destination))
    }

    /// All of them, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Destination)> {
        self.all.iter().map(|(to, destination)| (to as u32, destination))
    }

    /// A peer uses it no more.
    pub(super) fn leave(&mut self, addresses: &AddressVector, to: u32) {
        if let Some(destination) = self.all.get_mut(to as usize) {
            destination.users = destination.users.saturating_sub(1);
            self.remove_if_unused(addresses, to);
        }
    }

    /// An op or a message has ended.
    #[inline]
    pub(super) fn ended(&mut self, addresses: &AddressVector, to: u32) {
        if let Some(destination) = self.all.get_mut(to as usize) {
            destination.in_flight = destination.in_flight.saturating_sub(1);
            if destination.users == 0 {
                self.remove_if_unused(addresses, to);
            }
        }
    }

    /// A message that was never posted has ended.
    pub(super) fn ended_unposted(&mut self, addresses: &AddressVector, to: u32) {
        self.remove_if_unused(addresses, to);
    }

    fn remove_if_unused(&mut self, addresses: &AddressVector, to: u32) {
        let unused = |d: &Destination| d.users == 0 && d.in_flight == 0 && d.sends == 0;
        if !self.all.get(to as usize).is_some_and(unused) {
            return;
        }
        if self.keeps {
            if !self.kept.contains(&to) {
                self.kept.push_back(to);
            }
            if self.kept.len() <= KEPT_MAX {
                return;
            }
            let Some(oldest) = self.kept.pop_front() else { return };
            if self.all.get(oldest as usize).is_some_and(unused) {
                self.remove(addresses, oldest);
            }
            return;
        }
        self.remove(addresses, to);
    }

    fn remove(&mut self, addresses: &AddressVector, to: u32) {
        let Some(destination) = self.all.try_remove(to as usize) else { return };
        self.by_name.remove(&destination.name);
        if let Err(error) = addresses.remove(destination.at) {
            log::debug!("an address stays with the provider: {error}");
        }
    }

    /// Ops and messages in flight to a peer.
    pub(super) fn in_flight_to(&self, peer: PeerId) -> u32 {
        self.all.iter().filter(|(_, d)| d.peer == peer).map(|(_, d)| d.in_flight).sum()
    }

    /// Forgets all without a word to the provider: its vector was closed.
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.by_name.clear();
        self.kept.clear();
    }
}
