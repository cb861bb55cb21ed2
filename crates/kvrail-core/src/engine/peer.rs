//! What is known of one peer: its incarnation, routes, credit, and the channel to it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::channel::Channel;
use crate::error::PeerLostCause;
use crate::id::{Incarnation, Route, Token};
use crate::region::RegionView;
use crate::route::WeightedRoute;
use crate::time::Time;
use crate::wire::control::{Header, Slot};

/// How far the acquaintance goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerState {
    /// Greeted; it has not answered, or not to this acquaintance.
    Connecting,
    /// Both know each other.
    Ready,
    /// Gone; its transfers drain.
    Lost(PeerLostCause),
}

/// Whether a route can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Health {
    Up,
    /// Given up; probed from time to time.
    Down {
        probe_at: Time,
        backoff: Duration,
    },
}

#[derive(Debug)]
pub(super) struct RouteState {
    pub(super) route: Route,
    pub(super) health: Health,
    pub(super) in_flight: u32,
    /// When something last completed, or the first of the ops in flight was posted.
    pub(super) progress_at: Time,
    /// The number in the last probe's hello.
    pub(super) probe: u64,
}

impl RouteState {
    pub(super) fn is_up(&self) -> bool {
        self.health == Health::Up
    }
}

/// Credit towards the peer's receives (KR-8): immediates that may be unconsumed there.
#[derive(Debug, Default)]
pub(super) struct Credit {
    pub(super) granted: u32,
    pub(super) posted: u64,
    pub(super) consumed: u64,
}

impl Credit {
    pub(super) fn left(&self) -> u32 {
        let out = self.posted.saturating_sub(self.consumed);
        u64::from(self.granted).saturating_sub(out) as u32
    }
}

/// Hello repetition.
#[derive(Debug)]
pub(super) struct Hello {
    /// When to send (again); `NEVER` once welcomed, unless credit is asked for.
    pub(super) due: Time,
    pub(super) backoff: Duration,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: Arc<str>,
    pub(super) incarnation: Incarnation,
    pub(super) state: PeerState,
    /// This agent's name for the acquaintance: a count of acquaintances above, the slot below.
    pub(super) own_link: u64,
    /// The peer's; [`Header::NO_LINK`] until its first greeting.
    pub(super) link: u64,
    /// The peer has answered under both links: it knows this acquaintance, and what it grants is known here.
    pub(super) welcomed: bool,
    pub(super) remote_rails: usize,
    pub(super) regions: RegionView,
    pub(super) routes: Vec<RouteState>,
    pub(super) weights: Vec<u64>,
    /// Where the next plan begins, so that lone small transfers spread.
    pub(super) rotate: usize,
    /// Where the next control message is sent.
    pub(super) control_rotate: usize,
    pub(super) channel: Channel,
    pub(super) hello: Hello,
    /// A welcome that is owed, with its nonce.
    pub(super) welcome: Option<u64>,
    pub(super) goodbye: bool,
    /// When an acknowledgement is owed at the latest.
    pub(super) ack_due: Time,
    /// In the engine's queue of peers with something to send.
    pub(super) dirty: bool,
    /// Slots that the peer granted and that are free.
    pub(super) slots: Vec<Slot>,
    pub(super) credit: Credit,
    /// Slots granted to the peer, for repetition in every greeting.
    pub(super) granted_slots: Vec<Slot>,
    pub(super) granted_credit: u32,
    /// Immediates of the peer consumed here, and what it was told of that.
    pub(super) consumed: u64,
    pub(super) consumed_told: u64,
    /// Transfers that wait for the greeting, a slot or credit, oldest first.
    pub(super) waiting: VecDeque<Token>,
    /// Transfers that wait for room in the channel.
    pub(super) announcing: VecDeque<Token>,
    pub(super) transfers: u32,
    pub(super) heard_at: Time,
}

impl Peer {
    pub(super) fn new(name: Arc<str>, incarnation: Incarnation, own_link: u64, now: Time) -> Self {
        Self {
            name,
            incarnation,
            state: PeerState::Connecting,
            own_link,
            link: Header::NO_LINK,
            welcomed: false,
            remote_rails: 0,
            regions: RegionView::default(),
            routes: Vec::new(),
            weights: Vec::new(),
            rotate: 0,
            control_rotate: 0,
            channel: Channel::default(),
            hello: Hello { due: Time::NEVER, backoff: Duration::ZERO },
            welcome: None,
            goodbye: false,
            ack_due: Time::NEVER,
            dirty: false,
            slots: Vec::new(),
            credit: Credit::default(),
            granted_slots: Vec::new(),
            granted_credit: 0,
            consumed: 0,
            consumed_told: 0,
            waiting: VecDeque::new(),
            announcing: VecDeque::new(),
            transfers: 0,
            heard_at: now,
        }
    }

    pub(super) fn set_routes(&mut self, routes: &[WeightedRoute], remote_rails: usize) {
        self.remote_rails = remote_rails;
        self.weights = routes.iter().map(|r| r.weight).collect();
        self.routes = routes
            .iter()
            .map(|r| RouteState {
                route: r.route,
                health: Health::Up,
                in_flight: 0,
                progress_at: Time::ZERO,
                probe: 0,
            })
            .collect();
    }

    /// Nothing was said, and no transfer started, under the link that is known.
    pub(super) fn is_pristine(&self) -> bool {
        self.channel.is_pristine()
            && self.credit.posted == 0
            && self.consumed == 0
            && self.transfers as usize == self.waiting.len()
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(self.state, PeerState::Lost(_))
    }

    /// The next usable route for a control message.
    pub(super) fn control_route(&mut self) -> Option<u16> {
        let count = self.routes.len();
        for _ in 0..count {
            self.control_rotate = (self.control_rotate + 1) % count;
            if self.routes[self.control_rotate].is_up() {
                return Some(self.control_rotate as u16);
            }
        }
        None
    }

    /// The next route, whether it is usable or not.
    pub(super) fn any_route(&mut self) -> Option<u16> {
        self.control_rotate = (self.control_rotate + 1) % self.routes.len().max(1);
        (!self.routes.is_empty()).then_some(self.control_rotate as u16)
    }

    pub(super) fn route_index(&self, route: Route) -> Option<usize> {
        self.routes.iter().position(|r| r.route == route)
    }
}
