//! Fencing: making sure that a broken connection is closed at both ends before its writes are called failed (KR-7).

use kvrail_core::time::Time;
use kvrail_core::transport::OpError;

use super::Tcp;
use super::conn::{ConnKey, State};
use super::frame::{ConnectionName, Head};
use super::inbox::Broken;
use super::peer::{Limbo, Link};
use super::requests::report;

impl Tcp {
    /// Asks the peer about connections that broke, over one that stands; sees to it that there will be one.
    pub(super) fn ask_fences(&mut self, now: Time, index: usize) {
        let Some(peer) = self.peers.get(index) else { return };
        if peer.limbo.iter().all(|l| l.asked_on.is_some()) {
            return;
        }
        let open = |key: &ConnKey| self.conns.get(*key).is_some_and(|c| c.state == State::Open);
        let dialed_by_peer = || {
            let keys = self.accepted.get(&peer.address.instance)?;
            keys.iter().copied().find(open)
        };
        let Some(key) = peer.open_conn().filter(open).or_else(dialed_by_peer) else {
            let trying = peer.links.iter().any(|(_, l)| matches!(l, Link::Dialing { .. } | Link::Waiting));
            if !trying && let Some(route) = peer.limbo.first().map(|l| l.route) {
                self.connect(now, index, route, true);
            }
            return;
        };
        let Some(conn) = self.conns.get_mut(key) else { return };
        for limbo in self.peers[index].limbo.iter_mut().filter(|l| l.asked_on.is_none()) {
            conn.serving.control.push_back(Head::Fence { connection: limbo.connection });
            limbo.asked_on = Some(key);
        }
        self.mark_dirty(key);
    }

    /// The peer wants a connection closed: whatever of it is still in the kernel is dropped unread.
    pub(super) fn close_fenced(&mut self, now: Time, asked_on: ConnKey, name: ConnectionName) {
        let Some(instance) = self.conns.get(asked_on).map(|c| c.instance) else { return };
        // Dialed by the asker: accepted here. Otherwise dialed here, which is searched for: this is rare.
        let found = if name.dialed_by_sender {
            let keys = self.accepted.get(&instance);
            keys.into_iter()
                .flatten()
                .copied()
                .find(|key| self.conns.get(*key).is_some_and(|c| c.number == name.number))
        } else {
            let meant = |c: &super::conn::Conn| c.dialed && c.instance == instance && c.number == name.number;
            self.conns.iter().find(|(_, c)| meant(c)).map(|(key, _)| key)
        };
        if let Some(key) = found.filter(|key| *key != asked_on) {
            self.close(now, key, Broken::Closed(OpError::RailDown));
        }
        // A connection that is not known was closed before, and cannot come: its dialer waits for a welcome before it
        // sends anything.
        if let Some(conn) = self.conns.get_mut(asked_on) {
            conn.serving.control.push_back(Head::Fenced { connection: name });
            self.mark_dirty(asked_on);
        }
    }

    /// The peer confirms that a connection is closed.
    pub(super) fn fenced(&mut self, now: Time, answered_on: ConnKey, name: ConnectionName) {
        let Some(instance) = self.conns.get(answered_on).map(|c| c.instance) else { return };
        let holds = |l: &Limbo| l.connection == name && l.asked_on == Some(answered_on);
        let owner =
            self.peers.iter().find(|(_, p)| p.address.instance == instance && p.limbo.iter().any(holds));
        let Some(index) = owner.map(|(index, _)| index) else { return };
        let peer = &mut self.peers[index];
        let (settled, open) = std::mem::take(&mut peer.limbo).into_iter().partition(holds);
        peer.limbo = open;
        let settled: Vec<Limbo> = settled;
        for limbo in settled {
            self.counters.fenced += 1;
            self.fail_limbo(&limbo, limbo.error);
        }
        self.bury(now, index);
    }

    /// Gives up writes whose peer did not answer in time.
    pub(super) fn expire_limbo(&mut self, now: Time, index: usize) {
        let peer = &mut self.peers[index];
        let (expired, open) = std::mem::take(&mut peer.limbo).into_iter().partition(|l| l.deadline <= now);
        peer.limbo = open;
        let expired: Vec<Limbo> = expired;
        for limbo in expired {
            self.counters.unfenced += 1;
            self.fail_limbo(&limbo, limbo.error);
        }
        self.bury(now, index);
    }

    pub(super) fn fail_limbo(&mut self, limbo: &Limbo, error: OpError) {
        self.rail_counters[limbo.route.local.index()].ops_failed += limbo.ops.len() as u64;
        limbo.ops.iter().for_each(|op| report(op, Some(error), &mut self.backlog));
    }
}
