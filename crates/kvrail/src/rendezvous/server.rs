//! The serving side.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::stream::{Exchange, ExchangeError, Step};
use crate::agent::Agent;
use crate::peer::Peer;

/// Longest exchange with one peer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Exchanges at a time; further connections wait in the listener's backlog.
const EXCHANGES_MAX: usize = 32;
/// Outcomes kept for [`Server::accept`]; the oldest goes first. (The peers are connected all the same.)
const OUTCOMES_MAX: usize = 4096;

/// Why an agent cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As it was given.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The server's thread could not be started.
    #[error("cannot start the rendezvous thread: {0}")]
    Thread(io::Error),
}

impl ServeError {
    /// Whether the same call may succeed later: another process may give the port back.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

impl crate::Hints for ServeError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                vec!["another process has the port; choose another, or 0 for any".into()]
            }
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                vec!["ports below 1024 need a privilege; choose a higher one".into()]
            }
            _ => Vec::new(),
        }
    }
}

/// Why [`Server::accept`] gave no peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// Nobody came in time.
    #[error("no peer came to {address} within {waited:?}; {failed} exchanges had failed")]
    Deadline {
        /// Where the server listens.
        address: SocketAddr,
        /// Time waited.
        waited: Duration,
        /// Exchanges that failed since the server began.
        failed: u64,
    },
    /// Somebody came, and the exchange failed.
    #[error("rendezvous with {address}: {source}")]
    Exchange {
        /// Who came.
        address: SocketAddr,
        /// What failed.
        source: ExchangeError,
    },
    /// The listener failed and the server has ended.
    #[error("the listener at {address} failed: {reason}")]
    Listener {
        /// Where it listened.
        address: SocketAddr,
        /// What the operating system said.
        reason: String,
    },
}

impl AcceptError {
    /// Whether another call may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Listener { .. })
    }
}

/// An agent's rendezvous: accepts peers until it is dropped. Peers that it accepted stay connected.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    agent: Agent,
    address: SocketAddr,
    /// Readable when the server is to end, or an exchange has made room for another.
    kick: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    outcomes: VecDeque<Result<Peer, AcceptError>>,
    /// Connections whose exchange goes on; shut down when the server ends.
    open: Vec<(u64, TcpStream)>,
    next: u64,
    failed: u64,
    stop: bool,
    dead: Option<String>,
}

impl Agent {
    /// Listens on `address` (`HOST:PORT`, port 0 for any) and exchanges metadata with whoever connects by
    /// [`Agent::connect_to`]. Anyone who reaches the port may connect: choose the address accordingly.
    ///
    /// # Errors
    /// [`ServeError`]: the port is taken, or there is no such address here.
    pub fn serve(&self, address: impl ToSocketAddrs + std::fmt::Debug) -> Result<Server, ServeError> {
        let failed = |source| ServeError::Listen { address: format!("{address:?}").replace('"', ""), source };
        let listener = TcpListener::bind(&address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let shared = Arc::new(Shared {
            agent: self.clone(),
            address: listener.local_addr().map_err(failed)?,
            kick: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("kvrail-rendezvous".into())
                .spawn(move || shared.listen(&listener))
                .map_err(ServeError::Thread)?
        };
        Ok(Server { shared, thread: Some(thread) })
    }
}

impl Server {
    /// Where it listens: with the port that the system chose when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// The next peer that came, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// [`AcceptError`]; after [`AcceptError::Exchange`] the server goes on.
    pub fn accept(&self, timeout: Duration) -> Result<Peer, AcceptError> {
        let started = Instant::now();
        let mut state = self.shared.state.lock();
        loop {
            if let Some(outcome) = state.outcomes.pop_front() {
                return outcome;
            }
            let address = self.shared.address;
            if let Some(reason) = &state.dead {
                return Err(AcceptError::Listener { address, reason: reason.clone() });
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                let failed = state.failed;
                return Err(AcceptError::Deadline { address, waited: started.elapsed(), failed });
            }
            let _ = self.shared.changed.wait_for(&mut state, left);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.stop = true;
            for (_, stream) in &state.open {
                // Wakes the exchange's thread out of its read.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
        self.shared.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let (stop, full) = {
                let state = self.state.lock();
                (state.stop, state.open.len() >= EXCHANGES_MAX)
            };
            if stop {
                break;
            }
            let wanted = if full { PollFlags::empty() } else { PollFlags::IN };
            let mut fds = [
                PollFd::from_borrowed_fd(self.kick.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(listener.as_fd(), wanted),
            ];
            let _ = poll(&mut fds, None);
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&self.kick, &mut count);
            if full {
                continue;
            }
            match listener.accept() {
                Ok((stream, address)) => self.start(stream, address),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted => {}
                    // Descriptors or memory may come back; a pause keeps the loop from spinning until they do.
                    _ if matches!(error.raw_os_error(), Some(libc_errno::EMFILE | libc_errno::ENFILE)) => {
                        tracing::warn!(address = %self.address, %error, "rendezvous cannot accept");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    _ => {
                        tracing::error!(address = %self.address, %error, "rendezvous listener failed");
                        self.state.lock().dead = Some(error.to_string());
                        self.changed.notify_all();
                        break;
                    }
                },
            }
        }
        // Exchanges in progress end soon: their connections were shut down, or they have a deadline.
        let mut state = self.state.lock();
        while !state.open.is_empty() {
            let _ = self.changed.wait_for(&mut state, Duration::from_millis(50));
        }
    }

    /// Runs an exchange on a thread of its own, so that a slow peer delays nobody.
    fn start(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let id = {
            let mut state = self.state.lock();
            let Ok(clone) = stream.try_clone() else { return };
            let id = state.next;
            state.next += 1;
            state.open.push((id, clone));
            id
        };
        let shared = self.clone();
        let spawned = std::thread::Builder::new().name("kvrail-exchange".into()).spawn(move || {
            let outcome = shared.exchange(stream, address);
            shared.finish(id, outcome);
        });
        if let Err(source) = spawned {
            let source = ExchangeError::Io { step: Step::ReceiveMetadata, source };
            self.finish(id, Err(AcceptError::Exchange { address, source }));
        }
    }

    fn exchange(&self, stream: TcpStream, address: SocketAddr) -> Result<Peer, AcceptError> {
        let failed = |source| AcceptError::Exchange { address, source };
        let io = |source| failed(ExchangeError::Io { step: Step::ReceiveMetadata, source });
        stream.set_nonblocking(false).map_err(io)?;
        let mut exchange = Exchange::new(stream, Instant::now() + EXCHANGE_TIMEOUT).map_err(io)?;
        let ours = self
            .agent
            .metadata()
            .map_err(|error| failed(ExchangeError::Rejected { reason: error.to_string() }))?;
        exchange
            .respond(&ours, |theirs| self.agent.connect(theirs).map_err(|e| e.to_string()))
            .map_err(failed)
    }

    fn finish(&self, id: u64, outcome: Result<Peer, AcceptError>) {
        let mut state = self.state.lock();
        state.open.retain(|(open, _)| *open != id);
        if let Err(error) = &outcome {
            state.failed += 1;
            if !state.stop {
                tracing::warn!(%error, "rendezvous exchange failed");
            }
        }
        if state.outcomes.len() == OUTCOMES_MAX {
            state.outcomes.pop_front();
        }
        state.outcomes.push_back(outcome);
        drop(state);
        self.changed.notify_all();
        self.kick();
    }
}

/// The two error numbers that mean "no descriptors left".
mod libc_errno {
    pub(super) const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();
    pub(super) const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
}
