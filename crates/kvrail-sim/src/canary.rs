//! Planted defects, each one that the field has shipped. A checker that does not see its canary checks nothing.
//!
//! Defects inside the engine go through [`Hazards`], which it is generic over; those at the fabric's boundary through
//! [`Saboteur`], a transport that wraps the simulator's.

use core::cell::Cell;
use std::collections::BTreeSet;

use kvrail_core::hazards::Hazards;
use kvrail_core::id::{PeerId, RailSet, RegionId, RemoteRail, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Event, Op, PeerError, PostError, RailInfo, RegionInfo, RegisterError, Transport,
};

use crate::fabric::SimTransport;
use crate::violation::Checker;

/// One planted defect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Canary {
    /// A control message that arrives twice is handled twice.
    DroppedDedup,
    /// Failed and stalled ops are not waited out before the end is reported.
    MissingFence,
    /// A write is done when its completions are, although completion is local.
    LocalFence,
    /// Every op goes to the base of its region.
    RegionBase,
    /// Transfer ids wrap and meet their predecessors.
    IdWrap,
    /// The local rail's index addresses the remote rail.
    LocalRailAsRemote,
    /// An error entry resolves nothing.
    ErrorLost,
    /// A cancelled transfer ends with ops in flight.
    ReleaseInFlight,
    /// The length of an op is rounded down.
    TrailingBytes,
    /// The receive queue is believed to be larger than it is.
    QueueMisread,
    /// A deregistration never reaches the fabric.
    LeakedRegistration,
    /// Every region is believed to be registered on every rail.
    RailsIgnored,
    /// Nobody is told that an endpoint was replaced.
    SecretMove,
    /// A reset finds nothing of a peer that was removed: its ops are taken for those of whoever came in its place.
    DisownedOps,
}

impl Canary {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::DroppedDedup,
        Self::MissingFence,
        Self::LocalFence,
        Self::RegionBase,
        Self::IdWrap,
        Self::LocalRailAsRemote,
        Self::ErrorLost,
        Self::ReleaseInFlight,
        Self::TrailingBytes,
        Self::QueueMisread,
        Self::LeakedRegistration,
        Self::RailsIgnored,
        Self::SecretMove,
        Self::DisownedOps,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DroppedDedup => "dropped-dedup",
            Self::MissingFence => "missing-fence",
            Self::LocalFence => "local-fence",
            Self::RegionBase => "region-base",
            Self::IdWrap => "id-wrap",
            Self::LocalRailAsRemote => "local-rail-as-remote",
            Self::ErrorLost => "error-lost",
            Self::ReleaseInFlight => "release-in-flight",
            Self::TrailingBytes => "trailing-bytes",
            Self::QueueMisread => "queue-misread",
            Self::LeakedRegistration => "leaked-registration",
            Self::RailsIgnored => "rails-ignored",
            Self::SecretMove => "secret-move",
            Self::DisownedOps => "disowned-ops",
        }
    }

    /// The canary of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|canary| canary.name() == name)
    }

    /// The checkers that are meant to see it; the first violation of a run must be one of theirs at least once.
    #[must_use]
    pub const fn intended(self) -> &'static [Checker] {
        match self {
            Self::DroppedDedup => &[Checker::ExactlyOnce],
            Self::MissingFence => &[Checker::LateWrite, Checker::LateRead],
            Self::LocalFence => &[Checker::Bytes, Checker::LateWrite],
            Self::RegionBase => &[Checker::Territory],
            Self::IdWrap => &[Checker::ExactlyOnce, Checker::Bytes, Checker::Progress],
            Self::LocalRailAsRemote => &[Checker::Addressing],
            Self::ErrorLost => &[Checker::Progress],
            Self::ReleaseInFlight => &[Checker::LateWrite, Checker::LateRead],
            Self::TrailingBytes => &[Checker::Bytes],
            Self::QueueMisread => &[Checker::Credits],
            Self::LeakedRegistration => &[Checker::Leaks],
            Self::RailsIgnored => &[Checker::Addressing],
            Self::SecretMove | Self::DisownedOps => &[Checker::Progress],
        }
    }
}

/// The engine's own defects: at most one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted(pub Option<Canary>);

impl Hazards for Planted {
    fn skip_control_dedup(&self) -> bool {
        self.0 == Some(Canary::DroppedDedup)
    }

    fn skip_fence(&self) -> bool {
        self.0 == Some(Canary::MissingFence)
    }

    fn trust_local_completion(&self) -> bool {
        self.0 == Some(Canary::LocalFence)
    }

    fn id_mask(&self) -> u64 {
        // The field's 16 bits, scaled to the transfers of one run.
        if self.0 == Some(Canary::IdWrap) { 3 } else { u64::MAX }
    }

    fn release_in_flight(&self) -> bool {
        self.0 == Some(Canary::ReleaseInFlight)
    }
}

/// The simulator's transport, with at most one defect.
pub struct Saboteur {
    inner: SimTransport,
    canary: Option<Canary>,
    caps: Caps,
    /// Refused deregistrations stay the wrapper's secret.
    leaked: Cell<u32>,
    /// The address at the beginning.
    first_address: Vec<u8>,
    /// Peers that were removed.
    removed: BTreeSet<PeerId>,
}

impl Saboteur {
    /// Wraps a transport.
    #[must_use]
    pub fn new(inner: SimTransport, canary: Option<Canary>) -> Self {
        let mut caps = inner.caps().clone();
        if canary == Some(Canary::QueueMisread) {
            caps.receives_max = caps.receives_max.saturating_mul(64);
        }
        let mut first_address = Vec::new();
        inner.address(&mut first_address);
        Self { inner, canary, caps, leaked: Cell::new(0), first_address, removed: BTreeSet::new() }
    }

    fn is(&self, canary: Canary) -> bool {
        self.canary == Some(canary)
    }
}

impl Transport for Saboteur {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rails(&self) -> &[RailInfo] {
        self.inner.rails()
    }

    fn address(&self, out: &mut Vec<u8>) {
        if self.is(Canary::SecretMove) {
            out.extend(&self.first_address);
        } else {
            self.inner.address(out);
        }
    }

    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        if self.is(Canary::LeakedRegistration) && self.leaked.get() > 0 {
            // The slot is taken in the fabric: make room, so that only the leak shows.
            let _ = self.inner.deregister(region.id);
            self.leaked.set(self.leaked.get() - 1);
        }
        self.inner.register(region)
    }

    fn region_key(&self, region: RegionId, out: &mut Vec<u8>) {
        self.inner.region_key(region, out);
    }

    fn region_rails(&self, region: RegionId) -> RailSet {
        if self.is(Canary::RailsIgnored) { RailSet::ALL } else { self.inner.region_rails(region) }
    }

    fn imported_rails(&self, peer: PeerId, region: RegionId) -> RailSet {
        if self.is(Canary::RailsIgnored) { RailSet::ALL } else { self.inner.imported_rails(peer, region) }
    }

    fn readdress(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<bool, PeerError> {
        self.inner.readdress(now, peer, address)
    }

    fn deregister(&mut self, region: RegionId) -> Result<(), String> {
        if self.is(Canary::LeakedRegistration) {
            self.leaked.set(self.leaked.get() + 1);
            return Ok(());
        }
        self.inner.deregister(region)
    }

    fn add_peer(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        self.inner.add_peer(now, peer, address)
    }

    fn remove_peer(&mut self, now: Time, peer: PeerId) {
        self.removed.insert(peer);
        self.inner.remove_peer(now, peer);
    }

    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, key: &[u8]) -> Result<(), PeerError> {
        self.inner.import_region(peer, region, key)
    }

    fn post(&mut self, now: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let mut changed: Vec<Op>;
        let mut batch = *batch;
        match self.canary {
            Some(Canary::RegionBase) => {
                changed = batch.ops.to_vec();
                changed.iter_mut().for_each(|op| op.remote_offset = 0);
                batch.ops = &changed;
            }
            Some(Canary::TrailingBytes) => {
                changed = batch.ops.to_vec();
                changed.iter_mut().filter(|op| op.len > 64).for_each(|op| op.len &= !63);
                batch.ops = &changed;
            }
            Some(Canary::LocalRailAsRemote) => batch.route = misrouted(batch.route),
            _ => {}
        }
        self.inner.post(now, &batch)
    }

    fn send(&mut self, now: Time, peer: PeerId, route: Route, message: &[u8]) -> Result<bool, PostError> {
        self.inner.send(now, peer, route, message)
    }

    fn poll(&mut self, now: Time, events: &mut Vec<Event>) {
        let start = events.len();
        self.inner.poll(now, events);
        let mut at = 0;
        events.retain(|event| {
            at += 1;
            let withheld = match event {
                Event::Failed { .. } => self.is(Canary::ErrorLost),
                Event::AddressChanged => self.is(Canary::SecretMove),
                _ => false,
            };
            at <= start || !withheld
        });
    }

    fn reset(&mut self, now: Time, peer: PeerId, route: Route) {
        if !(self.is(Canary::DisownedOps) && self.removed.contains(&peer)) {
            self.inner.reset(now, peer, route);
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.inner.poll_timeout()
    }
}

fn misrouted(route: Route) -> Route {
    Route { remote: RemoteRail(route.local.0), ..route }
}
