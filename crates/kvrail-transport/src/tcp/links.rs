//! Connections that this side dials, and what becomes of a connection's requests when it ends.

use std::cmp::Reverse;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use kvrail_core::id::{PeerId, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::conn::{Conn, ConnKey, State};
use super::frame::{Answer, ConnectionName, FrameError, Greeting};
use super::inbox::Broken;
use super::peer::{Attempts, Limbo, Link};
use super::requests::report;
use super::table::Timer;
use super::{Tcp, route_of};

/// Kernel buffers on loopback: larger ones only push the bytes out of the caches between the two copies.
const LOOPBACK_BUFFER_BYTES: usize = 1 << 20;
/// Denials in a row, and for how long, until a peer counts as gone.
const DENIALS_MIN: u32 = 3;
const DENIED_FOR_MIN: Duration = Duration::from_millis(50);

impl Tcp {
    /// Settings that both ends of a connection want.
    pub(super) fn prepare(&self, socket: &Socket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(self.config.dead_after))?;
        let third = (self.config.dead_after / 3).max(Duration::from_secs(1));
        socket
            .set_tcp_keepalive(&TcpKeepalive::new().with_time(third).with_interval(third).with_retries(2))?;
        let local = socket.local_addr().ok().and_then(|a| a.as_socket());
        let loopback = local.is_some_and(|a| a.ip().is_loopback());
        self.size_buffers(socket, loopback)
    }

    fn size_buffers(&self, socket: &Socket, loopback: bool) -> io::Result<()> {
        if let Some(bytes) = self.config.socket_buffer_bytes.or(loopback.then_some(LOOPBACK_BUFFER_BYTES)) {
            socket.set_send_buffer_size(bytes)?;
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(())
    }

    /// Gives a link a connection: one that the peer dialed, or a new one.
    pub(super) fn connect(&mut self, now: Time, index: usize, route: Route, again: bool) {
        let instance = self.peers[index].address.instance;
        let suits = |key: &&ConnKey| {
            self.conns
                .get(**key)
                .is_some_and(|c| c.bound.is_none() && route_of(c.rail, c.remote_rail) == route)
        };
        if let Some(key) = self.accepted.get(&instance).and_then(|keys| keys.iter().find(suits)).copied() {
            return self.adopt(now, index, route, key);
        }
        match self.dial(now, index, route) {
            Ok(conn) => *self.peers[index].link_mut(route) = Link::Dialing { conn, again },
            Err(e) => {
                let denied = e.raw_os_error() == Some(libc::ECONNREFUSED);
                self.dial_failed(now, index, route, denied);
            }
        }
    }

    /// Uses a connection that the peer dialed for this side's requests too.
    pub(super) fn adopt(&mut self, now: Time, index: usize, route: Route, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.bound = Some((index, route));
        *self.peers[index].link_mut(route) = Link::Open(key);
        self.peers[index].attempts = Attempts::default();
        self.ask_fences(now, index);
    }

    fn dial(&mut self, now: Time, index: usize, route: Route) -> io::Result<ConnKey> {
        let peer = &self.peers[index];
        let sockets = &peer.address.sockets;
        let Some(to) = sockets.get(peer.attempts.failed as usize % sockets.len().max(1)).copied() else {
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the peer listens nowhere"));
        };
        let instance = peer.address.instance;
        let socket = self.open_socket(to)?;
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        let mut conn = Conn::new(socket, true, now + self.config.connect_timeout);
        self.dials += 1;
        conn.number = self.dials;
        conn.instance = instance;
        conn.bound = Some((index, route));
        conn.rail = route.local;
        conn.remote_rail = route.remote.0;
        self.insert(conn)
    }

    fn open_socket(&self, to: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        self.prepare(&socket)?;
        self.size_buffers(&socket, to.ip().is_loopback())?;
        Ok(socket)
    }

    /// The kernel is done connecting, one way or the other.
    pub(super) fn connected(&mut self, now: Time, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match conn.socket.take_error() {
            Ok(None) => {
                conn.state = State::Greeting;
                let greeting = Greeting {
                    from: self.address.instance,
                    to: conn.instance,
                    connection: conn.number,
                    dialer_rail: conn.rail.0,
                    acceptor_rail: conn.remote_rail,
                };
                conn.outbox.push_encoded(&greeting.encode());
                self.mark_dirty(key);
            }
            Ok(Some(e)) | Err(e) => self.close(now, key, Broken::Io(e)),
        }
    }

    pub(super) fn welcomed(&mut self, now: Time, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.state = State::Open;
        self.rail_counters[conn.rail.index()].connects += 1;
        if let Some((index, route)) = conn.bound {
            *self.peers[index].link_mut(route) = Link::Open(key);
            self.peers[index].attempts = Attempts::default();
            self.ask_fences(now, index);
        }
    }

    /// An attempt failed. `denied`: the peer's host says that it is not there.
    fn dial_failed(&mut self, now: Time, index: usize, route: Route, denied: bool) {
        let (first, longest) = self.config.backoff;
        let peer = &mut self.peers[index];
        let attempts = &mut peer.attempts;
        attempts.failed = attempts.failed.saturating_add(1);
        if denied {
            attempts.denied += 1;
        } else {
            attempts.denied = 0;
        }
        if attempts.denied == 1 {
            attempts.denied_since = now;
        }
        let rounds = attempts.failed / (peer.address.sockets.len() * peer.links.len()).max(1) as u32;
        let pause = first.saturating_mul(1 << rounds.min(12)).min(longest);
        let enough = DENIALS_MIN.max(peer.address.sockets.len() as u32);
        let gone = attempts.denied >= enough && now.since(attempts.denied_since) >= DENIED_FOR_MIN;
        let id = peer.id;
        *peer.link_mut(route) = Link::Waiting;
        if gone {
            return self.peer_is_gone(now, index, OpError::PeerRestarted);
        }
        self.timers.push(Reverse((now + pause, Timer::Dial { peer: index, id, route })));
    }

    /// Ends a connection and settles what it carried.
    pub(super) fn close(&mut self, now: Time, key: ConnKey, broken: Broken) {
        let Some(mut conn) = self.conns.remove(key) else { return };
        if matches!(broken, Broken::Closed(_)) {
            // A reset rather than an end: the peer's kernel learns at once that nothing of this matters any more.
            let _ = conn.socket.set_linger(Some(Duration::ZERO));
        }
        let stood = conn.state == State::Open;
        if stood {
            self.rail_counters[conn.rail.index()].breaks += 1;
        }
        if !conn.dialed {
            if stood {
                self.leave_accepted(&conn, key);
            } else {
                self.stranger(&conn, &broken);
            }
        }
        if let Broken::Protocol(error) = &broken
            && (conn.dialed || stood)
        {
            let rail = conn.rail;
            log::error!("tcp: {rail}: the peer broke the protocol, the connection is closed: {error}");
        }
        let Some((index, route)) = conn.bound else { return };
        let error = match &broken {
            Broken::Closed(error) => *error,
            Broken::Rejected(Answer::WrongInstance) => OpError::PeerRestarted,
            Broken::Rejected(_) => OpError::Unreachable,
            Broken::Ended | Broken::Io(_) | Broken::Protocol(_) => OpError::RailDown,
        };
        self.settle(now, index, route, &mut conn, error);
        self.relink(now, index, route, key, stood, &broken);
    }

    fn leave_accepted(&mut self, conn: &Conn, key: ConnKey) {
        if let Some(keys) = self.accepted.get_mut(&conn.instance) {
            keys.retain(|k| *k != key);
            if keys.is_empty() {
                self.accepted.remove(&conn.instance);
            }
            self.accepted_count -= 1;
        }
    }

    /// Pays the debts of an ended connection: what can never land fails at once, sent writes wait in limbo.
    fn settle(&mut self, now: Time, index: usize, route: Route, conn: &mut Conn, error: OpError) {
        let requests = &mut conn.requests;
        let never_landing = [&requests.reads_sent, &requests.writes_queued, &requests.reads_queued];
        let mut failed = 0;
        for op in never_landing.into_iter().flatten() {
            report(op, Some(error), &mut self.backlog);
            failed += 1;
        }
        let peer = &mut self.peers[index];
        for _ in 0..requests.messages_open() {
            self.backlog.push(Event::SendFailed { peer: peer.id, route, error });
        }
        let ops: Vec<_> = requests.writes_sent.drain(..).collect();
        if peer.gone {
            failed += ops.len() as u64;
            ops.iter().for_each(|op| report(op, Some(error), &mut self.backlog));
        } else if !ops.is_empty() {
            let deadline = now + self.config.fence_timeout;
            let connection = ConnectionName { dialed_by_sender: conn.dialed, number: conn.number };
            peer.limbo.push(Limbo { connection, route, ops, error, deadline, asked_on: None });
            self.timers.push(Reverse((deadline, Timer::Limbo { peer: index, id: peer.id })));
        }
        self.rail_counters[conn.rail.index()].ops_failed += failed;
    }

    /// What a link does when its connection ended.
    fn relink(&mut self, now: Time, index: usize, route: Route, key: ConnKey, stood: bool, broken: &Broken) {
        let ours = match self.peers[index].link(route) {
            Link::Open(k) | Link::Dialing { conn: k, .. } => k == key,
            Link::Idle | Link::Waiting => false,
        };
        if ours {
            *self.peers[index].link_mut(route) = Link::Idle;
        }
        let peer = &mut self.peers[index];
        for limbo in &mut peer.limbo {
            if limbo.asked_on == Some(key) {
                limbo.asked_on = None;
            }
        }
        if peer.gone || peer.removed && peer.limbo.is_empty() {
            return;
        }
        if ours && stood {
            self.connect(now, index, route, true);
        } else if ours {
            let denied = match broken {
                Broken::Io(e) => e.raw_os_error() == Some(libc::ECONNREFUSED),
                Broken::Rejected(Answer::WrongInstance) => true,
                Broken::Rejected(Answer::Version(version)) => {
                    let what = FrameError::Version(*version);
                    self.warn_once(&format!("tcp: a peer cannot be reached: {what}"));
                    false
                }
                _ => false,
            };
            self.dial_failed(now, index, route, denied);
        }
        self.ask_fences(now, index);
    }

    /// The peer's process is gone for certain: nothing of this side's can land there any more.
    pub(super) fn peer_is_gone(&mut self, now: Time, index: usize, error: OpError) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        if std::mem::replace(&mut peer.gone, true) {
            return;
        }
        let (id, removed) = (peer.id, peer.removed);
        self.counters.peers_gone += 1;
        for limbo in std::mem::take(&mut self.peers[index].limbo) {
            self.fail_limbo(&limbo, error);
        }
        self.close_links(now, index, error);
        if removed {
            self.bury(now, index);
        } else {
            self.backlog.push(Event::PeerGone { peer: id });
        }
    }

    fn close_links(&mut self, now: Time, index: usize, error: OpError) {
        let links = std::mem::take(&mut self.peers[index].links);
        for (_, link) in links {
            if let Link::Open(key) | Link::Dialing { conn: key, .. } = link {
                self.close(now, key, Broken::Closed(error));
            }
        }
    }

    /// Forgets a peer; what is in flight to it is flushed, and fenced where it must be.
    pub(super) fn forget(&mut self, now: Time, id: PeerId) {
        let Some(index) = self.directory.remove(&id) else { return };
        let peer = &mut self.peers[index];
        peer.removed = true;
        peer.imported = std::collections::HashMap::new();
        if self.instances.get(&peer.address.instance) == Some(&index) {
            self.instances.remove(&peer.address.instance);
        }
        for (_, link) in self.peers[index].links.clone() {
            let (Link::Open(key) | Link::Dialing { conn: key, .. }) = link else { continue };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            if conn.dialed || !conn.requests.is_idle() {
                self.close(now, key, Broken::Closed(OpError::Flushed));
            }
        }
        self.bury(now, index);
    }

    /// Drops a removed peer once nothing of it is open.
    pub(super) fn bury(&mut self, now: Time, index: usize) {
        if !self.peers.get(index).is_some_and(|p| p.removed && p.limbo.is_empty()) {
            return;
        }
        let peer = self.peers.remove(index);
        for (_, link) in peer.links {
            let (Link::Open(key) | Link::Dialing { conn: key, .. }) = link else { continue };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.bound = None;
            if conn.dialed {
                self.close(now, key, Broken::Closed(OpError::Flushed));
            }
        }
    }
}
