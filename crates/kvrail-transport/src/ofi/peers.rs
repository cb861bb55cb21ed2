//! Peers: where their rails are, which of their regions are known here, and the links between their rails and ours.

use std::collections::HashMap;
use std::time::Duration;

use kvrail_core::id::{Generation, PeerId, RegionId, RemoteRail};
use kvrail_core::limits::PEERS_MAX;
use kvrail_core::time::Time;
use kvrail_core::transport::{PeerError, RailInfo};

use super::address::Address;
use super::region::Imported;

/// A destination, as long as neither end was replaced since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// In the local rail's book.
    pub(super) to: u32,
    /// The local rail's epoch.
    pub(super) epoch: u32,
    /// The remote rail's.
    pub(super) remote_epoch: u32,
}

const NONE: Link = Link { to: u32::MAX, epoch: 0, remote_epoch: 0 };

/// A peer.
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) address: Address,
    /// For each local rail that was used: a link for each remote one.
    links: Vec<Vec<Link>>,
    pub(super) imported: Imported,
    /// Registrations that it withdrew: the newest of each region.
    revoked: HashMap<RegionId, Generation>,
    /// Withdrawals that it is owed an answer to, once nothing is in flight.
    pub(super) owed: Vec<(RegionId, Generation)>,
    /// Since when each of its rails is known to be gone.
    gone: Vec<Option<Time>>,
    /// It was said that it is gone.
    pub(super) told_gone: bool,
    /// When its rails are asked again whether they are there.
    pub(super) probe_due: Option<Time>,
}

impl Peer {
    pub(super) fn new(id: PeerId, address: Address, local_rails: usize) -> Self {
        let gone = vec![None; address.rails.len()];
        let links = vec![Vec::new(); local_rails];
        let (imported, revoked, owed) = (Imported::default(), HashMap::new(), Vec::new());
        Self { id, address, links, imported, revoked, owed, gone, told_gone: false, probe_due: None }
    }

    /// Its rails, for the engine.
    pub(super) fn rails(&self) -> Vec<RailInfo> {
        let info =
            |rail: &super::address::RailAddress| RailInfo { name: rail.nic.clone(), rate_bps: rail.rate_bps };
        self.address.rails.iter().map(info).collect()
    }

    /// The link between two rails, if it was made under this epoch of the local one and the present one of the remote.
    #[inline]
    pub(super) fn link(&self, local: usize, epoch: u32, remote: usize) -> Option<u32> {
        let link = self.links.get(local)?.get(remote)?;
        let known = self.address.rails.get(remote)?;
        let holds = link.to != NONE.to && link.epoch == epoch && link.remote_epoch == known.epoch;
        holds.then_some(link.to)
    }

    /// Notes a link, and returns the one that it takes the place of if that one's local end still stands.
    pub(super) fn set_link(&mut self, local: usize, remote: usize, link: Link) -> Option<u32> {
        let rails = self.address.rails.len();
        let row = self.links.get_mut(local)?;
        row.resize(rails, NONE);
        let old = std::mem::replace(row.get_mut(remote)?, link);
        (old.to != NONE.to && old.epoch == link.epoch).then_some(old.to)
    }

    /// Links of a local rail in its present epoch, with the remote rail of each.
    pub(super) fn links_of(&self, local: usize, epoch: u32) -> impl Iterator<Item = (RemoteRail, u32)> {
        let row = self.links.get(local).map_or(&[][..], Vec::as_slice);
        let holds = move |(_, link): &(usize, &Link)| link.to != NONE.to && link.epoch == epoch;
        row.iter().enumerate().filter(holds).map(|(remote, link)| (RemoteRail(remote as u16), link.to))
    }

    /// Remote rails that a local rail has ever been linked with.
    pub(super) fn ever_linked(&self, local: usize) -> Vec<usize> {
        let row = self.links.get(local).map_or(&[][..], Vec::as_slice);
        row.iter().enumerate().filter(|(_, link)| link.to != NONE.to).map(|(remote, _)| remote).collect()
    }

    /// It withdrew a registration, and all before it.
    pub(super) fn revoke(&mut self, region: RegionId, generation: Generation) {
        let known = self.revoked.entry(region).or_insert(generation);
        if is_after(generation, *known) {
            *known = generation;
        }
    }

    /// Whether it has withdrawn that registration.
    pub(super) fn has_revoked(&self, region: RegionId, generation: Generation) -> bool {
        self.revoked.get(&region).is_some_and(|&until| !is_after(generation, until))
    }

    /// A rail of it is gone, as its device says.
    pub(super) fn rail_gone(&mut self, now: Time, remote: usize) {
        if let Some(since) = self.gone.get_mut(remote) {
            since.get_or_insert(now);
        }
    }

    /// A rail of it was reached, or has a new endpoint.
    pub(super) fn rail_alive(&mut self, remote: usize) {
        if let Some(since) = self.gone.get_mut(remote) {
            *since = None;
        }
    }

    /// Whether some rail of it is known to be gone.
    pub(super) fn may_be_gone(&self) -> bool {
        self.gone.iter().any(Option::is_some)
    }

    /// Rails of which it is not known that they are gone.
    pub(super) fn perhaps_alive(&self) -> Vec<usize> {
        let unknown = |(_, since): &(usize, &Option<Time>)| since.is_none();
        self.gone.iter().enumerate().filter(unknown).map(|(rail, _)| rail).collect()
    }

    /// Whether all of its rails have been gone for so long: its process is.
    pub(super) fn is_gone(&self, now: Time, long: Duration) -> bool {
        self.gone.iter().all(|since| since.is_some_and(|since| now.since(since) >= long))
    }
}

/// Whether a generation came after another: they wrap.
fn is_after(generation: Generation, other: Generation) -> bool {
    (generation.0.wrapping_sub(other.0) as i32) > 0
}

/// All peers, by slot, and by the life of their transport.
#[derive(Default)]
pub(super) struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    instances: HashMap<u128, PeerId>,
    count: usize,
}

impl Peers {
    #[inline]
    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(id.index())?.as_deref().filter(|peer| peer.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.index())?.as_deref_mut().filter(|peer| peer.id == id)
    }

    /// Who has that instance.
    pub(super) fn of(&self, instance: u128) -> Option<PeerId> {
        self.instances.get(&instance).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    /// A peer in a slot that is free.
    pub(super) fn insert(&mut self, peer: Peer) -> Result<(), PeerError> {
        let index = peer.id.index();
        if self.count >= PEERS_MAX || index >= PEERS_MAX {
            return Err(PeerError::Exhausted(format!("{PEERS_MAX} peers are the limit")));
        }
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.instances.insert(peer.address.instance, peer.id);
        self.count += usize::from(self.slots[index].replace(Box::new(peer)).is_none());
        Ok(())
    }

    /// Whoever is in that slot.
    pub(super) fn tenant(&self, slot: u32) -> Option<PeerId> {
        self.slots.get(slot as usize)?.as_ref().map(|peer| peer.id)
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        self.get(id)?;
        let peer = self.slots.get_mut(id.index())?.take()?;
        self.count -= 1;
        if self.instances.get(&peer.address.instance) == Some(&id) {
            self.instances.remove(&peer.address.instance);
        }
        Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ofi::address::RailAddress;

    fn peer(rails: usize) -> Peer {
        let rail = |i: usize| RailAddress {
            nic: format!("n{i}"),
            epoch: 0,
            endpoint: vec![i as u8; 4],
            rate_bps: 0,
            numa: None,
        };
        let address =
            Address { provider: "efa".into(), format: 0, instance: 7, rails: (0..rails).map(rail).collect() };
        Peer::new(PeerId { slot: 3, generation: Generation(1) }, address, 2)
    }

    #[test]
    fn a_link_holds_until_either_end_is_replaced() {
        let mut peer = peer(4);
        assert_eq!(peer.link(1, 0, 3), None);
        assert_eq!(peer.set_link(1, 3, Link { to: 5, epoch: 0, remote_epoch: 0 }), None);
        assert_eq!(peer.link(1, 0, 3), Some(5));
        assert_eq!(peer.link(1, 1, 3), None, "the local end is another");
        peer.address.rails[3].epoch = 1;
        assert_eq!(peer.link(1, 0, 3), None, "the remote end is another");
        assert_eq!(peer.set_link(1, 3, Link { to: 6, epoch: 0, remote_epoch: 1 }), Some(5));
        assert_eq!((peer.link(1, 0, 3), peer.link(1, 0, 9), peer.link(9, 0, 0)), (Some(6), None, None));
        assert_eq!(
            peer.set_link(1, 3, Link { to: 1, epoch: 1, remote_epoch: 1 }),
            None,
            "of an endpoint that is closed"
        );
    }

    #[test]
    fn a_process_is_gone_when_all_its_rails_have_been_for_long_enough() {
        const LONG: Duration = Duration::from_millis(300);
        let mut peer = peer(2);
        let at = |ms| Time::ZERO + Duration::from_millis(ms);
        peer.rail_gone(at(0), 0);
        assert!(peer.may_be_gone() && !peer.is_gone(at(1_000), LONG));
        assert_eq!(peer.perhaps_alive(), [1]);
        peer.rail_gone(at(900), 1);
        assert!(!peer.is_gone(at(1_100), LONG));
        assert!(peer.is_gone(at(1_200), LONG));
        peer.rail_alive(0);
        assert!(!peer.is_gone(at(9_000), LONG));
    }

    #[test]
    fn a_withdrawn_registration_takes_those_before_it_along() {
        let mut peer = peer(1);
        peer.revoke(RegionId(1), Generation(5));
        peer.revoke(RegionId(1), Generation(4));
        assert!(peer.has_revoked(RegionId(1), Generation(5)) && peer.has_revoked(RegionId(1), Generation(2)));
        assert!(
            !peer.has_revoked(RegionId(1), Generation(6)) && !peer.has_revoked(RegionId(2), Generation(1))
        );
        peer.revoke(RegionId(1), Generation(u32::MAX));
        assert!(peer.has_revoked(RegionId(1), Generation(5)), "those that wrapped are behind");
    }
}
