//! Peers: where their rails are, which of their regions are known here, and the links between their rails and ours.

use std::collections::HashMap;
use std::time::Duration;

use kvrail_core::id::{Generation, PeerId, RegionId};
use kvrail_core::limits::PEERS_MAX;
use kvrail_core::time::Time;
use kvrail_core::transport::{PeerError, RailInfo};

use super::address::Address;
use super::rail::Which;
use super::region::Imported;

/// First pause between two introductions that are not answered. Doubled each time.
const INTRODUCE_AFTER: Duration = Duration::from_millis(2);
/// Longest such pause.
const INTRODUCE_AFTER_MAX: Duration = Duration::from_millis(200);
/// How long posts are refused after nothing got through for the stall timeout.
const REFUSED_FOR: Duration = Duration::from_millis(500);

/// A destination, as long as neither end was replaced since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// In the local endpoint's book.
    pub(super) to: u32,
    /// The local endpoint's epoch.
    pub(super) epoch: u32,
    /// The remote one's.
    pub(super) remote_epoch: u32,
}

const NONE: Reach = Reach { to: u32::MAX, epoch: 0, remote_epoch: 0 };

/// Between a local rail and a remote one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    control: Reach,
    data: Reach,
    /// The remote rail has inserted this one's endpoint of ops: the epochs of both when it said so.
    vouched: Option<(u32, u32)>,
    /// It is asked to, and to name its own: when it is said again, and the pause after that.
    asking: Option<(Time, Duration)>,
    /// It is in the transport's list of those that are asked.
    pub(super) listed: bool,
    /// Since when no op gets through, and when that was last tried.
    refused: Option<(Time, Time)>,
    /// Until when posts are refused, because none got through for too long.
    down_until: Option<Time>,
}

const UNUSED: Link = Link {
    control: NONE,
    data: NONE,
    vouched: None,
    asking: None,
    listed: false,
    refused: None,
    down_until: None,
};

impl Link {
    /// Asks the other side, from now on, until it vouches.
    pub(super) fn ask(&mut self, now: Time) {
        self.vouched = None;
        self.asking = Some((now, INTRODUCE_AFTER));
        self.refused = Some((now, now));
    }

    /// When the other side is to be asked (again).
    pub(super) fn ask_due(&self) -> Option<Time> {
        self.asking.map(|(due, _)| due)
    }

    /// It was asked: when again.
    pub(super) fn asked(&mut self, now: Time) {
        if let Some((due, pause)) = &mut self.asking {
            *due = now + *pause;
            *pause = (*pause * 2).min(INTRODUCE_AFTER_MAX);
        }
    }

    /// The remote rail's endpoint of that epoch knows ours of this one.
    pub(super) fn vouch(&mut self, epoch: u32, remote_epoch: u32) {
        self.vouched = Some((epoch, remote_epoch));
        (self.asking, self.refused, self.down_until) = (None, None, None);
    }

    /// Whether the destination is still where ops over this link go.
    pub(super) fn leads_to(&self, to: u32) -> bool {
        self.data.to == to
    }

    /// Something was taken.
    #[inline]
    pub(super) fn reached(&mut self) {
        self.refused = None;
    }

    /// Whether posts are refused for now.
    #[inline]
    pub(super) fn is_down(&mut self, now: Time) -> bool {
        match self.down_until {
            Some(until) if now < until => true,
            Some(_) => {
                self.down_until = None;
                false
            }
            None => false,
        }
    }

    /// Nothing gets through to it. Returns true, and refuses posts for a while, when that has been so for too long.
    pub(super) fn refused(&mut self, now: Time, patience: Duration) -> bool {
        let (since, last) = self.refused.unwrap_or((now, now));
        // If nobody tried meanwhile, it may have been open.
        let since = if now.since(last) > patience { now } else { since };
        self.refused = Some((since, now));
        if now.since(since) < patience {
            return false;
        }
        self.refused = None;
        self.down_until = Some(now + REFUSED_FOR);
        true
    }
}

/// Where a remote rail's endpoint of ops is, as it has said last.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts {
    pub(super) epoch: u32,
    /// Empty while it has not been said.
    pub(super) endpoint: Vec<u8>,
}

/// A peer.
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) address: Address,
    /// Where the endpoints of its rails' ops are; those of messages are in its address.
    data: Vec<Whereabouts>,
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
        let rails = address.rails.len();
        Self {
            id,
            address,
            data: vec![Whereabouts::default(); rails],
            links: vec![Vec::new(); local_rails],
            imported: Imported::default(),
            revoked: HashMap::new(),
            owed: Vec::new(),
            gone: vec![None; rails],
            told_gone: false,
            probe_due: None,
        }
    }

    /// Its rails, for the engine.
    pub(super) fn rails(&self) -> Vec<RailInfo> {
        let info =
            |rail: &super::address::RailAddress| RailInfo { name: rail.nic.clone(), rate_bps: rail.rate_bps };
        self.address.rails.iter().map(info).collect()
    }

    /// The epoch of a remote rail's endpoint; `None` while that is not known.
    fn remote_epoch(&self, which: Which, remote: usize) -> Option<u32> {
        match which {
            Which::Control => self.address.rails.get(remote).map(|rail| rail.epoch),
            Which::Data => {
                self.data.get(remote).filter(|known| !known.endpoint.is_empty()).map(|known| known.epoch)
            }
        }
    }

    /// A remote rail's endpoint and its epoch, if they are known.
    pub(super) fn endpoint(&self, which: Which, remote: usize) -> Option<(&[u8], u32)> {
        let epoch = self.remote_epoch(which, remote)?;
        let name = match which {
            Which::Control => &self.address.rails.get(remote)?.endpoint,
            Which::Data => &self.data.get(remote)?.endpoint,
        };
        Some((name, epoch))
    }

    /// A remote rail has said where its endpoint of ops is. Returns false when that is older than what is known, or
    /// contradicts it.
    pub(super) fn learn(&mut self, remote: usize, epoch: u32, endpoint: Vec<u8>) -> bool {
        let Some(known) = self.data.get_mut(remote) else { return false };
        if endpoint.is_empty() {
            return false;
        }
        if known.endpoint.is_empty() || (epoch.wrapping_sub(known.epoch) as i32) > 0 {
            *known = Whereabouts { epoch, endpoint };
            return true;
        }
        epoch == known.epoch && endpoint == known.endpoint
    }

    /// The destination of a pair of rails, if it was made under this epoch of the local endpoint and the present one of
    /// the remote.
    #[inline]
    pub(super) fn reach(&self, which: Which, local: usize, epoch: u32, remote: usize) -> Option<u32> {
        let link = self.links.get(local)?.get(remote)?;
        let reach = match which {
            Which::Control => &link.control,
            Which::Data => &link.data,
        };
        let holds = reach.to != NONE.to
            && reach.epoch == epoch
            && Some(reach.remote_epoch) == self.remote_epoch(which, remote);
        holds.then_some(reach.to)
    }

    /// Where ops over a pair of rails go, if both ends know each other as they are now.
    #[inline]
    pub(super) fn open(&self, local: usize, epoch: u32, remote: usize) -> Option<u32> {
        let to = self.reach(Which::Data, local, epoch, remote)?;
        let link = self.links.get(local)?.get(remote)?;
        (link.vouched == Some((epoch, link.data.remote_epoch))).then_some(to)
    }

    /// The link of a pair of rails.
    #[inline]
    pub(super) fn link_mut(&mut self, local: usize, remote: usize) -> Option<&mut Link> {
        let rails = self.address.rails.len();
        let row = self.links.get_mut(local)?;
        if row.len() < rails {
            row.resize(rails, UNUSED);
        }
        row.get_mut(remote)
    }

    /// Notes a destination, and returns the one that it takes the place of if that one's local end still stands.
    pub(super) fn set_reach(
        &mut self,
        which: Which,
        local: usize,
        remote: usize,
        reach: Reach,
    ) -> Option<u32> {
        let link = self.link_mut(local, remote)?;
        let place = match which {
            Which::Control => &mut link.control,
            Which::Data => &mut link.data,
        };
        let old = std::mem::replace(place, reach);
        (old.to != NONE.to && old.epoch == reach.epoch).then_some(old.to)
    }

    /// Destinations of a local endpoint in its present epoch.
    pub(super) fn reaches_of(&self, which: Which, local: usize, epoch: u32) -> impl Iterator<Item = u32> {
        let row = self.links.get(local).map_or(&[][..], Vec::as_slice);
        let reach = move |link: &Link| match which {
            Which::Control => link.control,
            Which::Data => link.data,
        };
        row.iter()
            .map(reach)
            .filter(move |reach| reach.to != NONE.to && reach.epoch == epoch)
            .map(|reach| reach.to)
    }

    /// Remote rails that ops of a local one have ever gone to, or will.
    pub(super) fn ever_linked(&self, local: usize) -> Vec<usize> {
        let row = self.links.get(local).map_or(&[][..], Vec::as_slice);
        let used = |link: &Link| link.data.to != NONE.to || link.asking.is_some();
        row.iter().enumerate().filter(|(_, link)| used(link)).map(|(remote, _)| remote).collect()
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

    /// A rail of it was reached, or has a new address.
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
    use crate::ofi::address::{Messages, RailAddress};

    fn peer(rails: usize) -> Peer {
        let rail = |i: usize| RailAddress {
            nic: format!("n{i}"),
            epoch: 0,
            endpoint: vec![i as u8; 4],
            rate_bps: 0,
            numa: None,
        };
        let address = Address {
            provider: "efa".into(),
            format: 0,
            instance: 7,
            messages: Messages::Own,
            rails: (0..rails).map(rail).collect(),
        };
        Peer::new(PeerId { slot: 3, generation: Generation(1) }, address, 2)
    }

    #[test]
    fn a_destination_holds_until_either_end_is_replaced() {
        let mut peer = peer(4);
        let reach = |to, epoch, remote_epoch| Reach { to, epoch, remote_epoch };
        assert_eq!(peer.reach(Which::Control, 1, 0, 3), None);
        assert_eq!(peer.set_reach(Which::Control, 1, 3, reach(5, 0, 0)), None);
        assert_eq!(peer.reach(Which::Control, 1, 0, 3), Some(5));
        assert_eq!(peer.reach(Which::Control, 1, 1, 3), None, "the local end is another");
        peer.address.rails[3].epoch = 1;
        assert_eq!(peer.reach(Which::Control, 1, 0, 3), None, "the remote end is another");
        assert_eq!(peer.set_reach(Which::Control, 1, 3, reach(6, 0, 1)), Some(5));
        let found = |remote, local| peer.reach(Which::Control, local, 0, remote);
        assert_eq!((found(3, 1), found(9, 1), found(0, 9)), (Some(6), None, None));
        let old = peer.set_reach(Which::Control, 1, 3, reach(1, 1, 1));
        assert_eq!(old, None, "of an endpoint that is closed");
    }

    #[test]
    fn ops_go_where_both_ends_know_each_other_as_they_are_now() {
        let mut peer = peer(2);
        let there = |epoch: u32| vec![7, epoch as u8];
        assert_eq!(peer.endpoint(Which::Data, 1), None, "nobody has said where it is");
        assert!(!peer.learn(1, 0, Vec::new()) && !peer.learn(9, 0, there(0)));
        assert!(peer.learn(1, 3, there(3)) && peer.learn(1, 3, there(3)));
        assert!(!peer.learn(1, 3, there(9)), "two endpoints in one epoch");
        assert!(!peer.learn(1, 2, there(2)), "an older one");
        peer.set_reach(Which::Data, 0, 1, Reach { to: 5, epoch: 8, remote_epoch: 3 });
        assert_eq!(peer.open(0, 8, 1), None, "it has not vouched");
        peer.link_mut(0, 1).unwrap().vouch(7, 3);
        assert_eq!(peer.open(0, 8, 1), None, "it knows the one before");
        peer.link_mut(0, 1).unwrap().vouch(8, 3);
        assert_eq!(peer.open(0, 8, 1), Some(5));
        assert!(peer.learn(1, 4, there(4)));
        assert_eq!(peer.open(0, 8, 1), None, "it has another endpoint, which knows nobody yet");
        peer.set_reach(Which::Data, 0, 1, Reach { to: 6, epoch: 8, remote_epoch: 4 });
        assert_eq!(peer.open(0, 8, 1), None);
        peer.link_mut(0, 1).unwrap().vouch(8, 4);
        assert_eq!(peer.open(0, 8, 1), Some(6));
    }

    #[test]
    fn asking_goes_on_until_it_is_vouched_for() {
        let mut peer = peer(1);
        let at = |ms| Time::ZERO + Duration::from_millis(ms);
        let link = peer.link_mut(0, 0).unwrap();
        assert_eq!(link.ask_due(), None);
        link.ask(at(0));
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let due = link.ask_due().unwrap();
            link.asked(due);
            pauses.push(link.ask_due().unwrap().since(due));
        }
        assert_eq!(
            (pauses[0], pauses[1], pauses[11]),
            (INTRODUCE_AFTER, INTRODUCE_AFTER * 2, INTRODUCE_AFTER_MAX)
        );
        assert!(
            !link.refused(at(0), Duration::from_millis(5)) && link.refused(at(5), Duration::from_millis(5))
        );
        assert!(link.is_down(at(100)) && !link.is_down(at(600)));
        assert!(!link.refused(at(601), Duration::from_millis(5)));
        assert!(!link.refused(at(999), Duration::from_millis(5)), "nobody tried in between");
        assert!(
            !link.refused(at(1_002), Duration::from_millis(5))
                && link.refused(at(1_004), Duration::from_millis(5))
        );
        link.vouch(0, 0);
        assert_eq!(link.ask_due(), None);
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
