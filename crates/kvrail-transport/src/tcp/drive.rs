//! The poll loop: timers, sockets that are ready, connections that have something to send.

use std::cmp::Reverse;
use std::io;
use std::os::fd::AsRawFd;

use kvrail_core::id::LocalRail;
use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError};

use super::conn::{Conn, ConnKey, State};
use super::frame::{Answer, FrameError, Greeting, Head};
use super::inbox::{Broken, Effect};
use super::peer::Link;
use super::sys::{self, Ready};
use super::table::Timer;
use super::{LISTENER, Tcp, route_of};

/// Connections accepted in one poll, so that a storm of them does not starve the others.
const ACCEPTS_MAX: usize = 64;
/// Connections that are asked before epoll, how long after their last bytes, and how often epoll is asked meanwhile.
const HOT_MAX: usize = 4;
const HOT_FOR: std::time::Duration = std::time::Duration::from_micros(100);
const HOT_POLLS: u32 = 4;
/// Pause of a listener when the process has no descriptors left.
const LISTENER_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Tcp {
    pub(super) fn drive(&mut self, now: Time, events: &mut Vec<Event>) {
        self.fire_timers(now);
        self.flush(now);
        self.polls = self.polls.wrapping_add(1);
        self.serve_hot(now, events);
        if self.hot.is_empty() || self.polls.is_multiple_of(HOT_POLLS) {
            self.serve_ready(now, events);
        }
        self.flush(now);
        events.append(&mut self.backlog);
    }

    /// Asks connections on which bytes just arrived for more, which saves asking epoll first. Each poll extends or
    /// ends that by the clock: after a pause of this process epoll is asked, which knows of dead connections.
    fn serve_hot(&mut self, now: Time, events: &mut Vec<Event>) {
        let mut at = 0;
        while let Some(key) = self.hot.get(at).copied() {
            if self.conns.get(key).and_then(|c| c.hot).is_some_and(|until| until > now) {
                self.serve(now, key, sys::READABLE, events);
                at += 1;
            } else {
                self.hot.swap_remove(at);
                if let Some(conn) = self.conns.get_mut(key) {
                    conn.hot = None;
                }
            }
        }
    }

    fn serve_ready(&mut self, now: Time, events: &mut Vec<Event>) {
        let mut ready = std::mem::take(&mut self.ready);
        self.epoll.ready(&mut ready);
        for Ready { key, what } in ready.drain(..) {
            if key & LISTENER != 0 {
                self.accept(now, (key & !LISTENER) as usize);
            } else {
                self.serve(now, ConnKey::from_u64(key), what, events);
            }
        }
        self.ready = ready;
    }

    fn fire_timers(&mut self, now: Time) {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Greeted(key) => {
                    if self.conns.get(key).is_some_and(|c| c.state != State::Open) {
                        self.close(now, key, Broken::Closed(OpError::Unresponsive));
                    }
                }
                Timer::Dial { peer, id, route } => {
                    let same = self.peers.get(peer).is_some_and(|p| p.id == id);
                    if same && matches!(self.peers[peer].link(route), Link::Waiting) {
                        self.connect(now, peer, route, true);
                    }
                }
                Timer::Limbo { peer, id } => {
                    if self.peers.get(peer).is_some_and(|p| p.id == id) {
                        self.expire_limbo(now, peer);
                    }
                }
                Timer::Listen(index) => {
                    // The worst that a failure does is another pause.
                    let _ = self.epoll.modify(&self.listeners[index], LISTENER | index as u64, sys::READABLE);
                }
            }
        }
    }

    /// Sends what waits to be sent.
    fn flush(&mut self, now: Time) {
        while let Some(key) = self.dirty.pop() {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.dirty = false;
            if conn.blocked || conn.state == State::Connecting {
                continue;
            }
            let counters = &mut self.rail_counters[conn.rail.index()];
            match conn.transmit(&self.regions, &mut self.scratch, counters) {
                Ok(()) => self.watch(key),
                Err(e) => self.close(now, key, Broken::Io(e)),
            }
        }
    }

    /// Tells epoll what the connection waits for, if that changed.
    fn watch(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let wanted = conn.wanted_interest();
        if wanted != conn.interest && self.epoll.modify(&conn.socket, key.to_u64(), wanted).is_ok() {
            conn.interest = wanted;
        }
    }

    pub(super) fn mark_dirty(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(key);
        }
    }

    // --- a socket is ready ---

    fn serve(&mut self, now: Time, key: ConnKey, what: u32, events: &mut Vec<Event>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.state == State::Connecting {
            return self.connected(now, key);
        }
        if what & sys::BROKEN != 0 {
            // Not a byte is read from a dead connection: its other end may have given it up long ago (fencing).
            let error = conn.socket.take_error().ok().flatten();
            return self.close(now, key, error.map_or(Broken::Ended, Broken::Io));
        }
        if what & sys::WRITABLE != 0 {
            self.served |= conn.blocked;
            conn.blocked = false;
        }
        let mut result = Ok(());
        if what & (sys::READABLE | sys::HUNG_UP) != 0 {
            let counters = &mut self.rail_counters[conn.rail.index()];
            let received =
                conn.receive(&self.regions, &mut self.scratch, counters, events, &mut self.effects);
            let arrived = received.as_ref().is_ok_and(|bytes| *bytes > 0);
            self.served |= arrived;
            let room = conn.hot.is_some() || self.hot.len() < HOT_MAX;
            if arrived && room && conn.hot.replace(now + HOT_FOR).is_none() {
                self.hot.push(key);
            }
            result = received.map(drop);
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                self.apply(now, key, effect);
            }
            self.effects = effects;
        }
        match result {
            Ok(()) => {
                if self.conns.get(key).is_some_and(|c| c.wants_to_send() && !c.blocked) {
                    self.mark_dirty(key);
                } else {
                    self.watch(key);
                }
            }
            Err(broken) => self.close(now, key, broken),
        }
    }

    fn apply(&mut self, now: Time, key: ConnKey, effect: Effect) {
        match effect {
            Effect::Greeted(greeting) => self.greeted(now, key, greeting),
            Effect::Welcomed => self.welcomed(now, key),
            Effect::Fence(name) => self.close_fenced(now, key, name),
            Effect::Fenced(name) => self.fenced(now, key, name),
            Effect::Bye => {
                if let Some(index) =
                    self.conns.get(key).and_then(|c| self.instances.get(&c.instance)).copied()
                {
                    self.peer_is_gone(now, index, OpError::Unreachable);
                }
            }
        }
    }

    // --- connections that others dial ---

    fn accept(&mut self, now: Time, index: usize) {
        for _ in 0..ACCEPTS_MAX {
            match self.listeners[index].accept() {
                Ok((socket, from)) => {
                    let from = from.as_socket();
                    if let Err(e) = self.admit(now, socket) {
                        log::debug!("tcp: a connection from {from:?} could not be set up: {e}");
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
                    self.warn_once(&format!(
                        "tcp: no descriptors left to accept connections ({e}); raise the limit on open files"
                    ));
                    let _ = self.epoll.modify(&self.listeners[index], LISTENER | index as u64, 0);
                    self.timers.push(Reverse((now + LISTENER_PAUSE, Timer::Listen(index))));
                    break;
                }
                // The connection died before it was accepted.
                Err(_) => {}
            }
        }
    }

    fn admit(&mut self, now: Time, socket: socket2::Socket) -> io::Result<()> {
        self.prepare(&socket)?;
        let deadline = now + self.config.connect_timeout;
        let key = self.insert(Conn::new(socket, false, deadline))?;
        self.handshakes.push_back(key);
        while self.handshakes.len() > self.config.handshakes_max {
            let Some(oldest) = self.handshakes.pop_front() else { break };
            if self.conns.get(oldest).is_some_and(|c| c.state == State::Greeting) {
                self.close(now, oldest, Broken::Closed(OpError::Unresponsive));
            }
        }
        Ok(())
    }

    fn greeted(&mut self, now: Time, key: ConnKey, greeting: Greeting) {
        let right = greeting.to == self.address.instance;
        let rail_exists = usize::from(greeting.acceptor_rail) < self.rails.len();
        let answer = if !right {
            Answer::WrongInstance
        } else if !rail_exists || self.accepted_count >= self.config.accepted_max {
            Answer::Full
        } else {
            Answer::Welcome
        };
        if answer != Answer::Welcome {
            self.answer_and_close(now, key, answer);
            return;
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.state = State::Open;
        conn.instance = greeting.from;
        conn.number = greeting.connection;
        conn.rail = LocalRail(greeting.acceptor_rail);
        conn.remote_rail = greeting.dialer_rail;
        conn.outbox.push_encoded(&answer.encode());
        self.rail_counters[conn.rail.index()].connects += 1;
        self.accepted.entry(greeting.from).or_default().push(key);
        self.accepted_count += 1;
        self.mark_dirty(key);
        if let Some(index) = self.instances.get(&greeting.from).copied() {
            let route = route_of(LocalRail(greeting.acceptor_rail), greeting.dialer_rail);
            if matches!(self.peers[index].link(route), Link::Idle | Link::Waiting) {
                self.adopt(now, index, route, key);
            }
            self.ask_fences(now, index);
        }
    }

    pub(super) fn answer_and_close(&mut self, now: Time, key: ConnKey, answer: Answer) {
        if let Some(conn) = self.conns.get_mut(key) {
            // One small packet into an empty buffer; when even that fails, the dialer's deadline tells it.
            let _ = conn.socket.send_with_flags(&answer.encode(), libc::MSG_NOSIGNAL);
            let why =
                if let Answer::Version(_) = answer { "another version" } else { "not for this instance" };
            log::debug!("tcp: a connection was refused: {why}");
        }
        self.show_out(now, key);
    }

    /// Closes a connection of somebody who has no business here.
    fn show_out(&mut self, _now: Time, key: ConnKey) {
        if self.conns.remove(key).is_some() {
            self.counters.strangers += 1;
        }
    }

    /// What an accepted connection that never greeted gets, once it ends.
    pub(super) fn stranger(&mut self, conn: &Conn, broken: &Broken) {
        self.counters.strangers += 1;
        let from = conn.socket.peer_addr().ok().and_then(|a| a.as_socket());
        match broken {
            Broken::Protocol(error @ FrameError::Version(_)) => {
                let answer = Answer::Version(super::frame::VERSION).encode();
                let _ = conn.socket.send_with_flags(&answer, libc::MSG_NOSIGNAL);
                self.warn_once(&format!("tcp: a connection from {from:?} was refused: {error}"));
            }
            Broken::Protocol(error) => {
                self.warn_once(&format!("tcp: a connection from {from:?} was refused: {error}"));
            }
            other => log::debug!("tcp: a connection from {from:?} ended before it said who it is: {other:?}"),
        }
    }

    /// Strangers must not be able to fill a log: the first is worth a warning, the others are counted.
    pub(super) fn warn_once(&mut self, what: &str) {
        if std::mem::replace(&mut self.warned, true) {
            log::debug!("{what}");
        } else {
            log::warn!("{what} (said once; later ones are only counted)");
        }
    }

    pub(super) fn insert(&mut self, conn: Conn) -> io::Result<ConnKey> {
        let (fd, deadline) = (conn.socket.as_raw_fd(), conn.deadline);
        let interest = conn.wanted_interest();
        let key = self.conns.insert(conn);
        if let Err(e) = self.epoll.add(&fd, key.to_u64(), interest) {
            self.conns.remove(key);
            return Err(e);
        }
        if let Some(conn) = self.conns.get_mut(key) {
            conn.interest = interest;
        }
        self.timers.push(Reverse((deadline, Timer::Greeted(key))));
        Ok(key)
    }

    /// Tells every peer that this instance ends, as far as that is possible without waiting.
    pub(super) fn say_goodbye(&mut self) {
        for conn in self.conns.values_mut() {
            if conn.state == State::Open && conn.outbox.is_empty() {
                let _ = conn.socket.send_with_flags(&Head::Bye.encode(), libc::MSG_NOSIGNAL);
            }
        }
    }
}
