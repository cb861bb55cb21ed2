//! Destinations: the endpoints of peers that one of a rail's endpoints has been given the addresses of, and what is in flight
//! to each.
//!
//! An address is removed from the provider only when nothing is in flight to it (`efa` has crashed then). A peer that is
//! forgotten and added again, or two peers behind one endpoint, share a destination: providers give one number for one
//! address, however often it is inserted, so it is counted here who uses it.

use std::collections::{HashMap, VecDeque};

use kvrail_core::id::{PeerId, RemoteRail};
use kvrail_sys::libfabric::abi::fi_addr_t;
use kvrail_sys::libfabric::{AddressVector, FabricError};
use slab::Slab;

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
    /// Its latest user. What is in flight may be an earlier one's ([`super::endpoint::OpEntry`]).
    pub(super) peer: PeerId,
    pub(super) remote: RemoteRail,
    /// The peer's device said that there is no such endpoint.
    pub(super) gone: bool,
    /// Failures since the last success, for the log.
    pub(super) failures: u32,
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
    ) -> Result<u32, FabricError> {
        if let Some(&to) = self.by_name.get(name)
            && let Some(known) = self.all.get_mut(to as usize)
        {
            if known.users == 0 {
                // What was known of it was another's time ago.
                (known.gone, known.failures) = (false, 0);
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
            gone: false,
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

    /// Forgets all without a word to the provider: its vector was closed.
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.by_name.clear();
        self.kept.clear();
    }
}
