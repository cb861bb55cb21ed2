//! [`Ofi`] as the engine sees it.

use kvrail_core::id::{PeerId, RailSet, RegionId, Route};
use kvrail_core::limits::REGIONS_MAX;
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Direction, Event, Op, OpError, PeerError, PostError, RailCounters, RailInfo, RegionInfo,
    RegisterError, Transport,
};
use kvrail_core::wire::{Reader, Writer};
use kvrail_sys::libfabric::abi::FI_EAGAIN;
use kvrail_sys::libfabric::outcome;

use super::address::Address;
use super::ending::pass;
use super::endpoint::{OpEntry, Transfer};
use super::fragment::Outgoing;
use super::key::{KEY_BYTES_MAX, RegionKey};
use super::messages::Offered;
use super::peers::Peer;
use super::rail::{State, Which};
use super::region::{Import, Imports, Region};
use super::status::{self, Family};
use super::{Ofi, Way};

/// Length and generation before the key proper, bytes at most.
const KEY_HEAD_BYTES_MAX: usize = 15;

/// No region has this number: [`REGIONS_MAX`] is less.
const NO_REGION: RegionId = RegionId(u32::MAX);

/// Both ends of a batch's ops. Neighbours mostly share their regions, which are looked up once for them.
struct Ends<'a> {
    regions: &'a [Option<Box<Region>>],
    imports: &'a Imports,
    peer: &'a Peer,
    local_rail: usize,
    remote_rail: usize,
    here: (RegionId, Option<&'a Region>),
    there: (RegionId, Option<(u32, &'a Import)>),
}

impl<'a> Ends<'a> {
    fn new(
        regions: &'a [Option<Box<Region>>],
        imports: &'a Imports,
        peer: &'a Peer,
        (local_rail, remote_rail): (usize, usize),
    ) -> Self {
        let (here, there) = ((NO_REGION, None), (NO_REGION, None));
        Self { regions, imports, peer, local_rail, remote_rail, here, there }
    }

    /// An op's ends, checked (KR-9), and which import it is for.
    #[inline]
    fn resolve(&mut self, op: &Op) -> Result<(Transfer, u32), OpError> {
        if self.there.0 != op.remote_region {
            let import = self.peer.imported.get(op.remote_region);
            let known = import.and_then(|import| Some((import, self.imports.get(import)?)));
            self.there = (op.remote_region, known);
        }
        let (import, known) = self.there.1.ok_or(OpError::BadKey)?;
        let there = known.slice(self.remote_rail, op.remote_offset, op.len).ok_or(OpError::BadKey)?;
        if self.here.0 != op.local_region {
            let region = self.regions.get(op.local_region.index()).and_then(Option::as_deref);
            self.here = (op.local_region, region);
        }
        // The local end is the engine's own business; an op that leaves it must not reach the device all the same.
        let here = self.here.1.and_then(|region| region.slice(self.local_rail, op.local_offset, op.len));
        let (at, desc) = here.ok_or(OpError::Fault(libc::EFAULT))?;
        Ok((
            Transfer { local: at, desc, len: op.len as usize, remote: there.address, key: there.key },
            import,
        ))
    }
}

impl Transport for Ofi {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rails(&self) -> &[RailInfo] {
        &self.infos
    }

    fn address(&self, out: &mut Vec<u8>) {
        // As many rails as there are fitted when the transport was opened; endpoints do not grow.
        if let Err(error) = self.address.encode(out) {
            log::error!("{error}");
        }
    }

    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        pass!(self.gate, Err(RegisterError::Refused("the process ends".into())));
        let index = region.id.index();
        if index >= REGIONS_MAX {
            return Err(RegisterError::Exhausted(format!("{REGIONS_MAX} regions are the limit")));
        }
        let near = self.near(region);
        let domains: Vec<_> = self.rails.iter().map(|rail| Some(&rail.bases.data.domain)).collect();
        let registered =
            Region::register(region, &self.terms, &domains, near, &mut self.keys, &mut self.cost)?;
        let mut key = Vec::new();
        if registered.key.encode(&mut key).is_err() || key.len() + KEY_HEAD_BYTES_MAX > KEY_BYTES_MAX {
            return Err(RegisterError::Exhausted(format!("its keys take more than {KEY_BYTES_MAX} bytes")));
        }
        if index >= self.regions.len() {
            self.regions.resize_with(index + 1, || None);
        }
        self.regions[index] = Some(Box::new(registered));
        Ok(())
    }

    fn region_key(&self, region: RegionId, out: &mut Vec<u8>) {
        let Some(region) = self.region(region.index()) else { return };
        // What a peer believes of the region is checked against this when it imports it.
        let mut to = Writer(out);
        to.varint(region.info.len);
        to.varint(region.info.generation.0.into());
        if let Err(error) = region.key.encode(out) {
            log::error!("{}: {error}", region.info.id);
        }
    }

    fn region_rails(&self, region: RegionId) -> RailSet {
        self.region(region.index()).map_or(RailSet::NONE, |region| region.rails)
    }

    fn deregister(&mut self, region: RegionId) -> Result<(), String> {
        pass!(self.gate, Ok(()));
        if self.region(region.index()).is_none() {
            return Ok(());
        }
        if self.manners.revoke {
            self.revoke(region)?;
        }
        // Ends the registrations: when the provider returns from that, no peer's op finds the memory.
        self.regions[region.index()] = None;
        Ok(())
    }

    fn add_peer(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        pass!(self.gate, Err(PeerError::Unreachable("the process ends".into())));
        let address = Address::decode(address)?;
        self.address.reaches(&address)?;
        if let Some(tenant) = self.peers.tenant(peer.slot) {
            self.remove_peer(now, tenant);
        }
        let known = Peer::new(peer, address, self.rails.len());
        let rails = known.rails();
        self.peers.insert(known)?;
        Ok(rails)
    }

    fn readdress(&mut self, _now: Time, peer: PeerId, address: &[u8]) -> Result<bool, PeerError> {
        let Some(known) = self.peers.get_mut(peer) else { return Ok(false) };
        let changed = known.address.merge(&Address::decode(address)?)?;
        for &rail in &changed {
            known.rail_alive(rail);
        }
        Ok(!changed.is_empty())
    }

    fn remove_peer(&mut self, now: Time, peer: PeerId) {
        pass!(self.gate);
        let Some(known) = self.peers.remove(peer) else { return };
        self.forget(now, &known);
    }

    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, key: &[u8]) -> Result<(), PeerError> {
        pass!(self.gate, Err(PeerError::Unreachable("the process ends".into())));
        let known = self.peers.get_mut(peer).ok_or_else(|| {
            PeerError::Unreachable(format!("{peer} is not known to the libfabric transport (any more)"))
        })?;
        let malformed = |error| PeerError::Malformed(format!("ofi key of {} bytes: {error}", key.len()));
        let mut from = Reader::new(key);
        let len = from.varint("region's length").map_err(malformed)?;
        let generation = from.varint("region's generation").map_err(malformed)?;
        if (len, generation) != (region.len, u64::from(region.generation.0)) {
            return Err(PeerError::Malformed(format!(
                "ofi key: it is of {} with {len} bytes, generation {generation}; the metadata says {} bytes, \
                 generation {}",
                region.id, region.len, region.generation.0
            )));
        }
        if region.base.checked_add(region.len).is_none() {
            return Err(PeerError::Malformed(format!("ofi key: {} leaves the address space", region.id)));
        }
        let key = RegionKey::decode(from.rest(), known.address.rails.len(), len)?;
        let ended = known.has_revoked(region.id, region.generation);
        let import = self.imports.insert(Import::new(peer, region, key, ended));
        let old = known.imported.get(region.id);
        known.imported.set(region.id, import);
        if let Some(old) = old {
            self.end_import(old);
        }
        Ok(())
    }

    fn imported_rails(&self, peer: PeerId, region: RegionId) -> RailSet {
        let import = self.peers.get(peer).and_then(|known| known.imported.get(region));
        import.and_then(|import| self.imports.get(import)).map_or(RailSet::NONE, Import::rails)
    }

    fn post(&mut self, now: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        pass!(self.gate, Ok(0));
        let (local, remote) = (batch.route.local.index(), batch.route.remote.index());
        let to = match self.way(now, batch.peer, local, remote)? {
            Way::Open(to) => to,
            Way::Wait => return Ok(0),
        };
        let peer = self.peers.get(batch.peer).ok_or(PostError::UnknownPeer)?;
        let rail = self.rails.get_mut(local).ok_or(PostError::RouteDown)?;
        let State::Up(port) = &mut rail.data.state else { return Err(PostError::RouteDown) };
        let destination = rail.book.get_mut(to).ok_or(PostError::RouteDown)?;
        let at = destination.at;
        let room = port.ops.unused().min(batch.ops.len());
        let mut taken = 0;
        let (mut posted, mut unrung, mut wound) = (0, false, None);
        let mut ends = Ends::new(&self.regions, &self.imports, peer, (local, remote));
        let mut next = batch.ops[..room].first().map(|op| ends.resolve(op));
        while let Some(this) = next {
            // The doorbell may wait only for an op that is sure to follow.
            next = batch.ops[..room].get(taken + 1).map(|op| ends.resolve(op));
            let more = matches!(next, Some(Ok(_)));
            let index = batch.first + taken as u32;
            let (what, import) = match this {
                Ok(resolved) => resolved,
                Err(error) => {
                    let failed = Event::Failed { token: batch.token, first: index, count: 1, error };
                    self.backlog.push(failed);
                    rail.counters.failed += 1;
                    taken += 1;
                    continue;
                }
            };
            let (peer, remote) = (batch.peer, batch.route.remote);
            let entry = OpEntry { token: batch.token, index, to, peer, remote, import };
            let Ok(context) = port.ops.take(entry) else { break };
            let result = match batch.direction {
                // SAFETY: `resolve` found the memory in a region that is registered here on this rail; the engine ends a
                // region only when none of its ops uses it, and `deregister` is the only end there is.
                Direction::Write => unsafe { port.write(&what, at, context, batch.immediate, more) },
                // SAFETY: the same.
                Direction::Read => unsafe { port.read(&what, at, context, more) },
            };
            match outcome(result) {
                Ok(()) => {
                    posted += 1;
                    taken += 1;
                    unrung = more && rail.shapes.data.more;
                    match self.posted_to.last_mut() {
                        Some((last, count)) if *last == import => *count += 1,
                        _ => self.posted_to.push((import, 1)),
                    }
                }
                Err(FI_EAGAIN) => {
                    port.ops.release(context);
                    break;
                }
                Err(code) => {
                    port.ops.release(context);
                    let decoded = status::decode(Family::Errno, code, 0);
                    let failed =
                        Event::Failed { token: batch.token, first: index, count: 1, error: decoded.error };
                    self.backlog.push(failed);
                    rail.counters.failed += 1;
                    taken += 1;
                    wound = (decoded.scope == status::Scope::Rail).then(|| decoded.to_string());
                    break;
                }
            }
        }
        for (import, count) in self.posted_to.drain(..) {
            self.imports.posted(import, count);
        }
        destination.in_flight += posted;
        rail.counters.posted += u64::from(posted);
        if unrung && taken < room {
            wound = Some("it refused an op behind others whose doorbell was to follow".into());
        }
        let stuck = taken == 0 && room > 0 && destination.in_flight == 0;
        if let Some(why) = wound {
            rail.data.wound(&rail.name, why);
            self.hurry(now);
        }
        let mut down = false;
        if let Some(link) = self.peers.get_mut(batch.peer).and_then(|peer| peer.link_mut(local, remote)) {
            if posted > 0 {
                link.reached();
            }
            down = stuck && link.refused(now, self.caps.stall_timeout);
        }
        if down && self.manners.replace_refusing {
            self.rails[local].refuses(batch.peer, batch.route);
            self.hurry(now);
        }
        if down { Err(PostError::RouteDown) } else { Ok(taken) }
    }

    fn send(&mut self, now: Time, peer: PeerId, route: Route, message: &[u8]) -> Result<bool, PostError> {
        pass!(self.gate, Ok(false));
        if self.peers.get(peer).is_none() {
            return Err(PostError::UnknownPeer);
        }
        let outgoing =
            Outgoing::new(self.address.instance, self.message, message).ok_or(PostError::TooLong)?;
        let (local, remote) = (route.local.index(), route.remote.index());
        let to = self.reach(Which::Control, peer, local, remote)?;
        let rail = self.rails.get_mut(local).ok_or(PostError::RouteDown)?;
        if rail.control.wounded.is_some() {
            return Ok(false);
        }
        match rail.offer(now, to, &outgoing, self.message, (peer, route.remote)) {
            Offered::Taken => {
                self.message += 1;
                if rail.has_outbox() {
                    self.hurry(now);
                }
                Ok(true)
            }
            Offered::Full => Ok(false),
            Offered::Down => Err(PostError::RouteDown),
        }
    }

    fn poll(&mut self, now: Time, events: &mut Vec<Event>) {
        pass!(self.gate);
        self.now = now;
        self.sleeper.disarm();
        let before = events.len();
        events.append(&mut self.backlog);
        let mut any = self.with_intake(now, events, |rails, intake| {
            rails.iter_mut().fold(false, |any, rail| rail.poll(intake) | any)
        });
        if !self.heard.is_empty()
            || !self.settled.is_empty()
            || !self.gone.is_empty()
            || !self.unknown.is_empty()
        {
            any = true;
            self.listen(now);
        }
        if self.rails.iter().any(|rail| rail.data.wounded.is_some() || rail.control.wounded.is_some()) {
            self.replace_wounded(now);
        }
        if (self.pending && now >= self.tick_due) || now >= self.slow_due {
            self.tick(now);
        }
        events.append(&mut self.backlog);
        if any || events.len() > before {
            self.stirred = now;
        }
    }

    fn reset(&mut self, now: Time, peer: PeerId, route: Route) {
        pass!(self.gate);
        self.now = now;
        let Some(rail) = self.rails.get(route.local.index()) else { return };
        // The peer may have been removed, and another have taken its place at the same destination: the ops are still its.
        if self.manners.replace && rail.carries_ops_of(peer, Some(route.remote)) {
            self.replace(now, route.local.index(), Which::Data);
        }
    }

    fn rail_counters(&mut self) -> Vec<RailCounters> {
        let with_device = |rail: &super::rail::Rail| RailCounters {
            device: rail.device.as_ref().and_then(super::counters::Counters::read),
            ..rail.counters.clone()
        };
        self.rails.iter().map(with_device).collect()
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.pending.then_some(self.tick_due)
    }
}

impl Ofi {
    /// Nobody posts to an import any more; it is forgotten when nothing is in flight.
    pub(super) fn end_import(&mut self, import: u32) {
        if self.imports.end(import) {
            self.drop_import(import);
        }
    }

    /// Forgets an import that has ended, and answers its owner where an answer is owed.
    pub(super) fn drop_import(&mut self, import: u32) {
        let Some(known) = self.imports.get(import) else { return };
        let (peer, region) = (known.peer, known.region);
        self.imports.remove(import);
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.imported.unset(region, import);
        }
        self.answer_revocations(peer);
    }
}
