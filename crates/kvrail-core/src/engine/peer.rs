//! What is known of one peer: its incarnation, routes, credit, and the channel to it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::channel::Channel;
use super::owed::{BACKOFF_MAX, HELLO_REPEAT};
use super::routes::Routes;
use crate::error::PeerLostCause;
use crate::id::{Incarnation, Token, TransferId};
use crate::region::RegionView;
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

/// Credit towards the peer's receives (KR-8): immediates that may be unconsumed there.
#[derive(Debug, Default)]
pub(super) struct Credit {
    pub(super) granted: u32,
    pub(super) posted: u64,
    pub(super) consumed: u64,
}

impl Credit {
    /// Immediates posted that the peer has not given back.
    pub(super) fn out(&self) -> u64 {
        self.posted.saturating_sub(self.consumed)
    }

    pub(super) fn left(&self) -> u32 {
        u64::from(self.granted).saturating_sub(self.out()) as u32
    }
}

/// Hello repetition.
#[derive(Debug)]
pub(super) struct Hello {
    /// When to send (again); `NEVER` once welcomed, unless credit is asked for.
    pub(super) due: Time,
    pub(super) backoff: Duration,
}

/// Telling the peer of another address.
#[derive(Debug)]
pub(super) struct Moved {
    /// Hellos numbered above carry the new address: a welcome that echoes one of them confirms it.
    pub(super) since: u64,
    /// When to say it (again), once the peer is ready.
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
    pub(super) regions: RegionView,
    pub(super) routes: Routes,
    pub(super) channel: Channel,
    pub(super) hello: Hello,
    /// This agent's address changed, and the peer has not confirmed that it knows the new one.
    pub(super) moved: Option<Moved>,
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
    /// Since when the credit is used up and none has come back.
    pub(super) starved_since: Option<Time>,
    /// Slots granted to the peer, for repetition in every greeting.
    pub(super) granted_slots: Vec<Slot>,
    pub(super) granted_credit: u32,
    /// Immediates of the peer consumed here, and what it was told of that.
    pub(super) consumed: u64,
    pub(super) consumed_told: u64,
    /// Transfers that wait for the greeting, a slot or credit, oldest first.
    pub(super) waiting: VecDeque<Token>,
    /// Notifications of transfers that ended without the answer to their close. At most one per slot of the peer's.
    pub(super) unanswered: Vec<(TransferId, Vec<u8>)>,
    /// Transfers that wait for room in the channel.
    pub(super) announcing: VecDeque<Token>,
    pub(super) transfers: u32,
    pub(super) heard_at: Time,
}

impl Peer {
    pub(super) fn new(
        name: Arc<str>,
        incarnation: Incarnation,
        own_link: u64,
        routes: Routes,
        now: Time,
    ) -> Self {
        Self {
            name,
            incarnation,
            state: PeerState::Connecting,
            own_link,
            link: Header::NO_LINK,
            welcomed: false,
            regions: RegionView::default(),
            routes,
            channel: Channel::default(),
            hello: Hello { due: Time::NEVER, backoff: Duration::ZERO },
            moved: None,
            welcome: None,
            goodbye: false,
            ack_due: Time::NEVER,
            dirty: false,
            slots: Vec::new(),
            credit: Credit::default(),
            starved_since: None,
            granted_slots: Vec::new(),
            granted_credit: 0,
            consumed: 0,
            consumed_told: 0,
            waiting: VecDeque::new(),
            unanswered: Vec::new(),
            announcing: VecDeque::new(),
            transfers: 0,
            heard_at: now,
        }
    }

    /// Nothing was said, and no transfer started, under the link that is known.
    pub(super) fn is_pristine(&self) -> bool {
        self.channel.is_pristine()
            && self.credit.posted == 0
            && self.consumed == 0
            && self.transfers as usize == self.waiting.len()
    }

    /// The peer was told of this agent's other address; when it is told again.
    pub(super) fn told_of_move(&mut self, now: Time) -> Time {
        let Some(moved) = &mut self.moved else { return Time::NEVER };
        moved.backoff = (moved.backoff * 2).clamp(HELLO_REPEAT, BACKOFF_MAX);
        moved.due = now + moved.backoff;
        moved.due
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(self.state, PeerState::Lost(_))
    }
}
