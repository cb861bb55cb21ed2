//! Who comes in: introductions, memory handed over, and deaths.
//!
//! Two agents introduce themselves once, in whichever order they learn of each other; from then on each has the
//! other's control segment and watches its process. Nothing here is on the way of an op.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError};

use super::Shm;
use super::control::Control;
use super::host::{Nonce, start_time};
use super::inbox;
use super::neighbour::{Link, Memory};
use super::process::Process;
use super::socket::{Arrival, Letter, Say, Sent};

/// How long to wait before knocking or asking again.
const AGAIN: Duration = Duration::from_millis(50);
/// The same where the other's socket was full.
const SOON: Duration = Duration::from_millis(1);
/// Datagrams that one look reads.
const LETTERS_MAX: usize = 256;
/// The epoll cookie of the socket; others are neighbours' numbers.
pub(super) const SOCKET: u64 = u64::MAX;

/// Why a hello is refused.
const REFUSED_FULL: u32 = 1;
const REFUSED_LINK: u32 = 2;

impl Shm {
    /// Looks at everything that needs a system call to look at.
    pub(super) fn look(&mut self, now: Time) {
        // SAFETY: all-zero is a valid event.
        let mut ready: [libc::epoll_event; 64] = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes at most as many events as there are.
        let n = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), ready.as_mut_ptr(), ready.len() as libc::c_int, 0)
        };
        for event in &ready[..usize::try_from(n).unwrap_or(0)] {
            let cookie = event.u64;
            if cookie == SOCKET {
                self.read_letters(now);
            } else if let Ok(slot) = u32::try_from(cookie) {
                let dead = self
                    .neighbours
                    .at(slot)
                    .and_then(|n| n.link.as_ref())
                    .is_some_and(|l| !l.process.is_alive());
                if dead {
                    self.gone(slot);
                }
            }
        }
        self.knock(now);
        self.ask(now);
        self.post_letters();
    }

    fn read_letters(&mut self, now: Time) {
        for _ in 0..LETTERS_MAX {
            match self.socket.receive() {
                Some(Some(arrival)) => self.handle_letter(now, arrival),
                Some(None) => {}
                None => break,
            }
        }
    }

    fn handle_letter(&mut self, now: Time, arrival: Arrival) {
        let Arrival { letter, pid, uid, fd } = arrival;
        // Another user's letters are not even answered: an answer would tell that there is someone.
        if letter.to != self.nonce || uid != self.host.uid {
            return;
        }
        let known = self.neighbours.find(letter.from);
        let vouched = known.filter(|slot| {
            let link = self.neighbours.at(*slot).and_then(|n| n.link.as_ref());
            link.is_some_and(|link| link.process.pid() == pid)
        });
        match letter.say {
            Say::Hello { start_time, slot } => {
                let answer = match self.neighbours.find_or_insert(letter.from) {
                    Some(me) => match self.link(me, pid, start_time, slot, fd.as_ref().map(AsFd::as_fd)) {
                        Ok(()) => Say::Welcome { start_time: self.start_time, slot: me },
                        Err(_) => {
                            self.forget_unlinked(me);
                            Say::Refused { reason: REFUSED_LINK }
                        }
                    },
                    None => Say::Refused { reason: REFUSED_FULL },
                };
                self.mail(letter.from, answer);
            }
            Say::Welcome { start_time, slot } => {
                if let Some(me) = known {
                    if self.link(me, pid, start_time, slot, fd.as_ref().map(AsFd::as_fd)).is_err() {
                        self.gone(me);
                    }
                    self.ask(now);
                }
            }
            Say::Refused { .. } => {
                if let Some(me) = known.filter(|me| self.neighbours.at(*me).is_some_and(|n| n.link.is_none()))
                {
                    self.gone(me);
                }
            }
            Say::Want { memory } if vouched.is_some() => self.mail(letter.from, Say::Memory { memory }),
            Say::Memory { memory } => {
                if let Some(neighbour) = vouched.and_then(|slot| self.neighbours.at_mut(slot)) {
                    neighbour.arrived(memory, fd);
                }
            }
            Say::Bye => {
                if let Some(slot) = vouched {
                    self.gone(slot);
                }
            }
            Say::Want { .. } => {}
        }
    }

    /// Makes a neighbour reachable; nothing happens when it is already.
    fn link(
        &mut self,
        me: u32,
        pid: u32,
        started: u64,
        slot: u32,
        fd: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<(), String> {
        let Some(neighbour) = self.neighbours.at_mut(me) else { return Err("no such neighbour".into()) };
        if neighbour.link.is_some() {
            return Ok(());
        }
        let fd = fd.ok_or("no control segment came with the introduction")?;
        if pid == 0 {
            return Err("its process is not visible from here".into());
        }
        if slot as usize >= super::layout::NEIGHBOURS_MAX {
            return Err("its number for this agent is out of bounds".into());
        }
        let control = Control::open(fd, neighbour.nonce)?;
        let process = Process::open(pid, started).map_err(|e| format!("cannot watch process {pid}: {e}"))?;
        if let Some(handle) = process.handle() {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: u64::from(me) };
            // SAFETY: `event` lives through the call.
            let rc = unsafe {
                libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, handle, &raw mut event)
            };
            if rc != 0 {
                return Err(format!("cannot watch process {pid}: {}", std::io::Error::last_os_error()));
            }
        }
        if !self.config.process_vm {
            neighbour.access = super::neighbour::Access::Denied(0);
        }
        neighbour.link = Some(Link { process, control, slot });
        // Its memories may be asked for at once.
        neighbour.knock_at = Time::ZERO;
        self.knocking.retain(|k| *k != me);
        Ok(())
    }

    fn forget_unlinked(&mut self, me: u32) {
        if self.neighbours.at(me).is_some_and(|n| n.link.is_none() && n.peers.is_empty()) {
            self.neighbours.remove(me);
        }
    }

    /// A neighbour is gone for good: its process died, or it was closed.
    pub(super) fn gone(&mut self, slot: u32) {
        let Some(neighbour) = self.neighbours.at_mut(slot) else { return };
        if neighbour.gone {
            return;
        }
        neighbour.gone = true;
        // Its mappings go with the link: no op of ours is on them now, this thread is here.
        neighbour.link = None;
        neighbour.forget_memories();
        let nonce = neighbour.nonce;
        let peers = neighbour.peers.clone();
        // What it held of ours.
        inbox::release_of(self.control.inbox().0.lock, slot + 1);
        self.control.busy(slot).store(0, Ordering::Release);
        self.control.helping(slot).store(0, Ordering::Release);
        self.control.jobs(slot).store(0, Ordering::Release);
        self.helps.retain(|help| help.neighbour != slot);
        for job in 0..self.offers.slots.len() {
            if self.offers.slots[job].as_ref().is_some_and(|offer| offer.neighbour == slot) {
                self.offers.abandon(&self.control, job, &mut self.ledger, OpError::Unreachable);
            }
        }
        self.outbox.retain(|letter| letter.to != nonce);
        self.knocking.retain(|k| *k != slot);
        self.wanting.retain(|w| *w != slot);
        for peer in &peers {
            self.ledger.push(Event::PeerGone { peer: *peer });
        }
        if peers.is_empty() {
            self.neighbours.remove(slot);
        }
    }

    /// Introduces this agent to those that have not answered yet.
    pub(super) fn knock(&mut self, now: Time) {
        for slot in self.knocking.clone() {
            let Some(neighbour) = self.neighbours.at_mut(slot).filter(|n| now >= n.knock_at) else {
                continue;
            };
            let letter = Letter {
                from: self.nonce,
                to: neighbour.nonce,
                say: Say::Hello { start_time: self.start_time, slot },
            };
            match self.socket.send(&letter, Some(self.control_fd.as_fd())) {
                Sent::Out => neighbour.knock_at = now + AGAIN,
                Sent::Full => neighbour.knock_at = now + SOON,
                Sent::Gone => self.gone(slot),
            }
        }
    }

    /// Asks neighbours for the memories that their regions lie in.
    pub(super) fn ask(&mut self, now: Time) {
        for slot in self.wanting.clone() {
            let Some(neighbour) = self.neighbours.at_mut(slot) else { continue };
            let to = neighbour.nonce;
            if neighbour.wanted == 0 {
                self.wanting.retain(|w| *w != slot);
            } else if neighbour.link.is_some() && now >= neighbour.knock_at {
                neighbour.knock_at = now + AGAIN;
                for (memory, state) in &mut neighbour.memories {
                    let Memory::Wanted { ask_at } = state else { continue };
                    if now < *ask_at {
                        continue;
                    }
                    let letter = Letter { from: self.nonce, to, say: Say::Want { memory: *memory } };
                    if self.socket.send(&letter, None) != Sent::Out {
                        neighbour.knock_at = now + SOON;
                        break;
                    }
                    *ask_at = now + AGAIN;
                }
            }
        }
    }

    /// Sends an answer, now or when the other's socket has room.
    fn mail(&mut self, to: Nonce, say: Say) {
        self.outbox.push_back(Letter { from: self.nonce, to, say });
        self.post_letters();
    }

    fn post_letters(&mut self) {
        for _ in 0..self.outbox.len() {
            let Some(letter) = self.outbox.pop_front() else { break };
            let fd = match letter.say {
                Say::Welcome { .. } => Some(self.control_fd.as_fd()),
                Say::Memory { memory } => self.locals.shared(memory).map(AsFd::as_fd),
                _ => None,
            };
            match self.socket.send(&letter, fd) {
                Sent::Out | Sent::Gone => {}
                // Bounded: what a flood cannot place is dropped, and asked for again by those who wait for it.
                Sent::Full if self.outbox.len() < super::layout::NEIGHBOURS_MAX => {
                    self.outbox.push_back(letter)
                }
                Sent::Full => {}
            }
        }
    }
}

/// This process' own start, as neighbours will read it.
pub(super) fn own_start_time() -> std::io::Result<u64> {
    start_time(std::process::id())
}
