//! A peer as this side knows it: its address, a link per route, and the writes whose fate is still open.

use std::collections::HashMap;

use kvrail_core::id::{PeerId, RegionId, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::OpError;

use super::address::Address;
use super::conn::ConnKey;
use super::frame::ConnectionName;
use super::requests::Pending;

/// One route to a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    /// Never used.
    Idle,
    /// A connection is on its way. `again` after one failed: posts are refused instead of queued.
    Dialing { conn: ConnKey, again: bool },
    /// A connection stands.
    Open(ConnKey),
    /// The next attempt comes then.
    Waiting,
}

/// Writes that a broken connection left behind: they fail when the peer confirms that the connection is closed at its
/// end, because only then no byte of them can land any more.
#[derive(Debug)]
pub(crate) struct Limbo {
    /// Named from this side's point of view.
    pub(crate) connection: ConnectionName,
    pub(crate) route: Route,
    pub(crate) ops: Vec<Pending>,
    pub(crate) error: OpError,
    /// They fail then in any case.
    pub(crate) deadline: Time,
    /// The question was sent there.
    pub(crate) asked_on: Option<ConnKey>,
}

/// Attempts to reach a peer.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Attempts {
    /// Since a connection last stood: selects the address and the pause.
    pub(crate) failed: u32,
    /// In a row in which the peer's address said: not here (refused, or somebody else). Any other outcome ends the row.
    pub(crate) denied: u32,
    /// When that row began.
    pub(crate) denied_since: Time,
}

/// A peer.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) address: Address,
    pub(crate) links: Vec<(Route, Link)>,
    pub(crate) imported: HashMap<RegionId, u32>,
    pub(crate) limbo: Vec<Limbo>,
    pub(crate) attempts: Attempts,
    /// Its process is gone for certain.
    pub(crate) gone: bool,
    /// Forgotten by the engine; stays until its limbo is empty.
    pub(crate) removed: bool,
}

impl Peer {
    pub(crate) fn new(id: PeerId, address: Address) -> Self {
        Self {
            id,
            address,
            links: Vec::new(),
            imported: HashMap::new(),
            limbo: Vec::new(),
            attempts: Attempts::default(),
            gone: false,
            removed: false,
        }
    }

    /// The link of a route; made when it is first asked for.
    pub(crate) fn link_mut(&mut self, route: Route) -> &mut Link {
        let at = match self.links.iter().position(|(r, _)| *r == route) {
            Some(at) => at,
            None => {
                self.links.push((route, Link::Idle));
                self.links.len() - 1
            }
        };
        &mut self.links[at].1
    }

    pub(crate) fn link(&self, route: Route) -> Link {
        self.links.iter().find(|(r, _)| *r == route).map_or(Link::Idle, |(_, link)| *link)
    }

    /// Any connection that stands.
    pub(crate) fn open_conn(&self) -> Option<ConnKey> {
        self.links.iter().find_map(|(_, link)| if let Link::Open(key) = link { Some(*key) } else { None })
    }
}
