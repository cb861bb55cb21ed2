//! The engine: transfers to peers over one transport, as a state machine.
//!
//! It owns no thread, no clock and no fabric. Its owner calls [`Engine::drive`] with the time and the transport,
//! and drains [`Engine::poll_event`]; everything else is a call that returns at once. Between two calls of `drive`
//! nothing happens, so one owner at a time is all that KR-5 asks.
//!
//! * `flow`, `drive`: ops are posted in batches per route, resolved exactly once (KR-6), repeated on another
//!   route when theirs fails, and a transfer ends only when every rail is quiet (KR-7).
//! * `evidence`: a write is done when the target says that it is visible (KR-2).
//! * `channel`: control messages, exactly once.
//! * `peer`: incarnations (KR-11), credit (KR-8); `routes`: which rails reach which, and which work (KR-10).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

mod channel;
mod drive;
mod evidence;
mod flow;
mod message;
mod owed;
mod peer;
mod routes;
mod stats;
mod transfer;
mod types;

pub use peer::PeerState;
pub use stats::{RailStats, Stats, Tables};
pub use transfer::Phase;
pub use types::{
    ConfigError, EngineConfig, EngineEvent, PeerView, PostOptions, TransferProgress, TransferReport,
};

use crate::descriptor::Slices;
use crate::error::{
    AddPeerError, Awaited, PeerLostCause, PostTransferError, RemoveRegionError, SendMessageError,
    TransferError,
};
use crate::hazards::{Correct, Hazards};
use crate::id::{Incarnation, PeerId, RegionId, Token, TransferId};
use crate::limits::{ADDRESS_BYTES_MAX, NOTIFICATION_BYTES_MAX, PEERS_MAX};
use crate::plan::{self, Plan, PlanError};
use crate::region::RegionView;
use crate::route;
use crate::slab::Slab;
use crate::time::Time;
use crate::transport::{Caps, Direction, Event, Evidence, OpError, RegionInfo, RegisterError, Transport};
use crate::wire::control::Body;
use crate::wire::metadata::Metadata;

use peer::{Moved, Peer};
use routes::{Health, PlanLanes, Routes};
use transfer::{OpLog, OpPhase, Transfer};
use types::check;

/// A local rail.
#[derive(Debug)]
struct Rail {
    in_flight: u32,
    /// Transfers with work for this rail, in turn.
    ready: VecDeque<Token>,
}

/// Transfers to peers over one transport. See the [module](self).
#[derive(Debug)]
pub struct Engine<H: Hazards = Correct> {
    hazards: H,
    config: EngineConfig,
    caps: Caps,
    rails: Vec<Rail>,
    /// Line rates, in the order of the rails.
    rates: Vec<u64>,
    regions: RegionView,
    peers: Slab<Peer>,
    names: BTreeMap<Arc<str>, PeerId>,
    /// Incarnations that are over: what still arrives from them changes nothing.
    retired: VecDeque<Incarnation>,
    transfers: Slab<Transfer>,
    next_transfer: u64,
    /// Counted transfers whose close is out, by id (under the hazards' mask).
    confirming: BTreeMap<u64, Token>,
    evidence: evidence::Evidence,
    /// Immediates that may still be granted to new peers (KR-8).
    credit_left: u32,
    inbox: VecDeque<EngineEvent>,
    /// Peers' messages and failures: apart, so that an owner who has no room for them still learns of its own.
    messages: VecDeque<EngineEvent>,
    /// Peers with something to send.
    dirty: VecDeque<PeerId>,
    /// Nothing is due before.
    timer: Time,
    next_probe: u64,
    acquaintances: u32,
    stats: Stats,
    /// The latest time seen.
    now: Time,
    /// The transport's address, for greetings.
    address: Vec<u8>,
    events: Vec<Event>,
    message: Vec<u8>,
    op_logs: Vec<OpLog>,
    /// Routes that may carry some work.
    usable: Vec<u16>,
}

impl Engine {
    /// An engine for a transport, which must be the one given to every later call.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: EngineConfig, transport: &dyn Transport) -> Result<Self, ConfigError> {
        Self::with_hazards(config, transport, Correct)
    }
}

impl<H: Hazards> Engine<H> {
    /// An engine with planted defects: for the simulator.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn with_hazards(
        config: EngineConfig,
        transport: &dyn Transport,
        hazards: H,
    ) -> Result<Self, ConfigError> {
        check(&config, transport)?;
        let caps = transport.caps().clone();
        let rails = transport.rails().len();
        let mut address = Vec::new();
        transport.address(&mut address);
        if address.len() > ADDRESS_BYTES_MAX {
            return Err(ConfigError::Transport("a transport's address fits ADDRESS_BYTES_MAX"));
        }
        Ok(Self {
            hazards,
            config,
            rails: (0..rails).map(|_| Rail { in_flight: 0, ready: VecDeque::new() }).collect(),
            rates: route::rates(transport.rails()),
            regions: RegionView::default(),
            peers: Slab::new(),
            names: BTreeMap::new(),
            retired: VecDeque::new(),
            transfers: Slab::new(),
            next_transfer: 0,
            confirming: BTreeMap::new(),
            evidence: evidence::Evidence::new(rails),
            credit_left: caps.receives_max,
            caps,
            inbox: VecDeque::new(),
            messages: VecDeque::new(),
            dirty: VecDeque::new(),
            timer: Time::NEVER,
            next_probe: 0,
            acquaintances: 0,
            stats: Stats { rails: alloc::vec![RailStats::default(); rails], ..Stats::default() },
            now: Time::ZERO,
            address,
            events: Vec::new(),
            message: Vec::new(),
            op_logs: Vec::new(),
            usable: Vec::new(),
        })
    }

    /// Registers a region with the transport; ids come from the agent's [`crate::region::RegionTable`].
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn add_region(
        &mut self,
        transport: &mut dyn Transport,
        region: &RegionInfo,
    ) -> Result<(), RegisterError> {
        transport.register(region)?;
        self.regions.set(*region, transport.region_rails(region.id).among(self.rails.len()));
        Ok(())
    }

    /// Ends a registration: afterwards nobody touches the memory through it (KR-7).
    ///
    /// # Errors
    /// [`RemoveRegionError`]; the region stays registered.
    pub fn remove_region(
        &mut self,
        transport: &mut dyn Transport,
        id: RegionId,
    ) -> Result<(), RemoveRegionError> {
        if self.regions.get(id).is_none() {
            return Err(RemoveRegionError::Unknown(id));
        }
        let used = (0..self.transfers.slots()).filter_map(|slot| self.transfers.at(slot));
        if used.into_iter().any(|(_, transfer)| transfer.plan.local.uses(id)) {
            return Err(RemoveRegionError::Busy(id));
        }
        transport.deregister(id).map_err(RemoveRegionError::InUse)?;
        self.regions.unset(id);
        Ok(())
    }

    /// Introduces a peer by its metadata, or adds to what is known of it. Another incarnation under a known name
    /// replaces the old one, whose transfers fail (KR-11). Connecting goes on in [`Engine::drive`].
    ///
    /// # Errors
    /// [`AddPeerError`].
    pub fn add_peer(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        metadata: &Metadata,
    ) -> Result<PeerId, AddPeerError> {
        let offer = metadata.transports.iter().position(|t| t.name == self.caps.name);
        let Some(offer) = offer.map(|index| &metadata.transports[index]) else {
            let offered: Vec<&str> = metadata.transports.iter().map(|t| t.name.as_str()).collect();
            return Err(AddPeerError::NoSuchTransport {
                wanted: self.caps.name,
                offered: offered.join(", "),
            });
        };
        if metadata.incarnation == self.config.incarnation {
            return Err(AddPeerError::Itself);
        }
        // Who hands over metadata knows that the agent lives. A late hello of an earlier one of that name may have
        // made this one look replaced: incarnations have no order.
        self.retired.retain(|incarnation| *incarnation != metadata.incarnation);
        let (id, is_new) = self.meet(now, transport, &metadata.name, metadata.incarnation, &offer.address)?;
        if !is_new {
            self.readdress(now, transport, id, &offer.address);
        }
        let result = metadata.regions.iter().enumerate().try_for_each(|(index, region)| {
            transport.import_region(id, region, offer.keys.get(index).unwrap_or_default())
        });
        if let Err(error) = result {
            if is_new {
                self.lose(now, transport, id, PeerLostCause::Removed);
            }
            return Err(AddPeerError::Transport(error));
        }
        if let Some(peer) = self.peers.get_mut(id.slot, id.generation) {
            for region in &metadata.regions {
                let rails = transport.imported_rails(id, region.id).among(peer.routes.remote_rails());
                peer.regions.set(*region, rails);
            }
            if !peer.welcomed {
                peer.hello.due = now;
                self.mark_dirty(id);
            }
        }
        self.end_stale(now, id);
        Ok(id)
    }

    /// Forgets a peer; its transfers drain and fail.
    pub fn remove_peer(&mut self, now: Time, transport: &mut dyn Transport, peer: PeerId) {
        self.lose(now, transport, peer, PeerLostCause::Removed);
    }

    /// What is known of a peer.
    #[must_use]
    pub fn peer(&self, id: PeerId) -> Option<PeerView> {
        let peer = self.peers.get(id.slot, id.generation)?;
        Some(PeerView {
            name: peer.name.clone(),
            incarnation: peer.incarnation,
            state: peer.state,
            routes: peer.routes.iter().map(|r| (r.route, r.is_up())).collect(),
            transfers: peer.transfers,
        })
    }

    /// The peer's regions that are known here.
    pub fn peer_regions(&self, id: PeerId) -> impl Iterator<Item = &RegionInfo> {
        self.peers.get(id.slot, id.generation).into_iter().flat_map(|peer| peer.regions.iter())
    }

    /// One region of a peer.
    #[must_use]
    pub fn peer_region(&self, id: PeerId, region: RegionId) -> Option<&RegionInfo> {
        self.peers.get(id.slot, id.generation)?.regions.get(region)
    }

    /// Prepares a plan: see [`crate::plan`].
    ///
    /// # Errors
    /// [`PlanError`], naming the slice at fault.
    pub fn prepare(
        &mut self,
        peer: PeerId,
        local: &impl Slices,
        remote: &impl Slices,
    ) -> Result<Plan, PlanError> {
        let known = self.peers.get_mut(peer.slot, peer.generation).filter(|p| !p.is_lost());
        let known = known.ok_or(PlanError::UnknownPeer(peer))?;
        let inputs = plan::Inputs {
            peer,
            local: &self.regions,
            remote: &known.regions,
            rotate: known.routes.rotate,
            op_bytes_max: self.caps.op_bytes_max,
            stripe_bytes_min: self.config.stripe_bytes_min,
        };
        let lanes = &mut PlanLanes::new(&mut known.routes, &self.rates);
        let plan = plan::prepare(&inputs, lanes, local, remote)?;
        known.routes.rotate = known.routes.rotate.wrapping_add(1);
        Ok(plan)
    }

    /// Starts a transfer: it moves in [`Engine::drive`] and ends in exactly one [`EngineEvent::TransferEnded`].
    ///
    /// # Errors
    /// [`PostTransferError`]; nothing was started.
    pub fn post(
        &mut self,
        now: Time,
        plan: &Arc<Plan>,
        direction: Direction,
        options: PostOptions,
    ) -> Result<Token, PostTransferError> {
        let id = plan.peer;
        let evidence = self.evidence_of(direction);
        let peer = self.peers.get_mut(id.slot, id.generation).filter(|p| !p.is_lost());
        let peer = peer.ok_or(PostTransferError::UnknownPeer(id))?;
        if let Some(region) = plan.local.stale(&self.regions) {
            return Err(PostTransferError::StaleLocalRegion(region));
        }
        if let Some(region) = plan.remote.stale(&peer.regions) {
            return Err(PostTransferError::StaleRemoteRegion(region));
        }
        if let Some(long) = options.notification.as_ref().filter(|n| n.len() > NOTIFICATION_BYTES_MAX) {
            return Err(PostTransferError::NotificationTooLong(long.len()));
        }
        if self.transfers.len() >= self.config.transfers_max {
            return Err(PostTransferError::TooManyTransfers(self.config.transfers_max));
        }
        let mut ops = self.op_logs.pop().unwrap_or_default();
        ops.reset(plan.ops().len());
        self.next_transfer += 1;
        let deadline = now + options.timeout.unwrap_or(self.config.transfer_timeout);
        let mut transfer = Transfer {
            id: TransferId(self.next_transfer),
            plan: plan.clone(),
            direction,
            notification: options.notification,
            carried: None,
            posted_at: now,
            first_op_at: now,
            deadline,
            phase: Phase::Waiting,
            ending: None,
            drain_by: Time::NEVER,
            ops,
            work: Vec::with_capacity(plan.segments().len()),
            queued_on: 0,
            in_flight: 0,
            unfinished: plan.ops().len() as u32,
            retried: 0,
            linger_until: Time::ZERO,
            visible_by: Time::ZERO,
            round: None,
        };
        for segment in plan.segments() {
            transfer.add_work(segment.route, segment.first, segment.end);
        }
        let (slot, generation) = self.transfers.insert(transfer);
        let token = Token { slot, generation };
        peer.transfers += 1;
        self.timer = self.timer.min(deadline);
        if peer.state == PeerState::Ready && evidence == Evidence::Delivered {
            self.start(token);
        } else {
            peer.waiting.push_back(token);
            self.admit(id);
        }
        Ok(token)
    }

    /// Cancels a transfer: nothing more is posted, what is in flight drains, and it ends as
    /// [`TransferError::Cancelled`] (or as what it was when its last byte had already moved). Unknown tokens are
    /// ignored: the transfer has ended.
    pub fn cancel(&mut self, now: Time, token: Token) {
        let Some(transfer) = self.transfers.get(token.slot, token.generation) else { return };
        if matches!(transfer.phase, Phase::Waiting | Phase::Moving | Phase::Lingering) {
            self.end(now, token, TransferError::Cancelled);
        }
        if self.hazards.release_in_flight() {
            self.finish(now, token);
        }
    }

    /// How far a transfer is; `None` when it has ended.
    #[must_use]
    pub fn progress_of(&self, token: Token) -> Option<TransferProgress> {
        let transfer = self.transfers.get(token.slot, token.generation)?;
        Some(TransferProgress {
            phase: transfer.phase,
            ops_done: transfer.ops() - transfer.unfinished,
            ops_in_flight: transfer.in_flight,
            ops: transfer.ops(),
        })
    }

    /// Sends a message of the application's, delivered at the peer exactly once as [`EngineEvent::Notification`].
    ///
    /// # Errors
    /// [`SendMessageError`]; nothing was sent.
    pub fn send_message(&mut self, peer: PeerId, message: Vec<u8>) -> Result<(), SendMessageError> {
        if message.len() > NOTIFICATION_BYTES_MAX {
            return Err(SendMessageError::TooLong(message.len()));
        }
        let known = self.peers.get_mut(peer.slot, peer.generation).filter(|p| !p.is_lost());
        let known = known.ok_or(SendMessageError::UnknownPeer(peer))?;
        if !known.channel.has_room() {
            return Err(SendMessageError::Full);
        }
        known.channel.push(Body::Message(message).encode());
        self.mark_dirty(peer);
        Ok(())
    }

    /// What happened: this agent's transfers and news of peers, then peers' messages; each kind oldest first.
    pub fn poll_event(&mut self) -> Option<EngineEvent> {
        self.inbox.pop_front().or_else(|| self.messages.pop_front())
    }

    /// As [`Engine::poll_event`] without peers' messages: for an owner who has no room for more of them. They stay
    /// here, count against [`EngineConfig::inbox_messages_max`], and so hold the peers back.
    pub fn poll_news(&mut self) -> Option<EngineEvent> {
        self.inbox.pop_front()
    }

    /// Peers' messages that wait for [`Engine::poll_event`].
    #[must_use]
    pub fn messages_waiting(&self) -> usize {
        self.messages.len()
    }

    /// When [`Engine::drive`] must be called even if the transport has nothing to report. May be early.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        (self.timer != Time::NEVER).then_some(self.timer)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { immediates_stray: self.evidence.strays, ..self.stats.clone() }
    }

    /// How large its tables are.
    #[must_use]
    pub fn tables(&self) -> Tables {
        let peers = (0..self.peers.slots()).filter_map(|slot| self.peers.at(slot));
        Tables {
            transfers: self.transfers.slots() as usize,
            peers: self.peers.slots() as usize,
            routes: peers.map(|(_, peer)| peer.routes.iter().count()).sum(),
            names: self.names.len(),
            retired: self.retired.len(),
            confirming: self.confirming.len(),
            slots: self.evidence.slots(),
            queued: self.rails.iter().map(|rail| rail.ready.len()).sum(),
        }
    }

    /// Facts about the transport that this engine drives.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Transfers that have not ended.
    #[must_use]
    pub fn active_transfers(&self) -> usize {
        self.transfers.len()
    }

    /// Peers that are known (lost ones until they have drained).
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Whether anything is owed to or by peers: transfers, unacknowledged messages, ops in flight.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.transfers.len() == 0
            && self.rails.iter().all(|rail| rail.in_flight == 0)
            && (0..self.peers.slots())
                .filter_map(|slot| self.peers.at(slot))
                .all(|(_, peer)| peer.channel.is_settled())
    }

    /// Cancels every transfer and says goodbye to every peer. Drive on until [`Engine::is_settled`], or until
    /// patience ends.
    pub fn close(&mut self, now: Time) {
        for slot in 0..self.transfers.slots() {
            if let Some((generation, _)) = self.transfers.at(slot) {
                self.cancel(now, Token { slot, generation });
            }
        }
        for slot in 0..self.peers.slots() {
            if let Some((generation, peer)) = self.peers.at(slot)
                && peer.state == PeerState::Ready
            {
                let id = PeerId { slot, generation };
                if let Some(peer) = self.peers.get_mut(slot, generation) {
                    peer.goodbye = true;
                }
                self.mark_dirty(id);
            }
        }
    }

    /// What proves that a transfer's bytes arrived: a read's own completions do.
    fn evidence_of(&self, direction: Direction) -> Evidence {
        match direction {
            Direction::Read => Evidence::Delivered,
            Direction::Write => self.caps.evidence,
        }
    }
}
