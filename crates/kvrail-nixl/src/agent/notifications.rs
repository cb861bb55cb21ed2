//! Messages between agents, with transfers and without.

use std::time::{Duration, Instant};

use super::{Agent, Handle};
use crate::error::{Error, Result, Status};
use crate::long;

/// How long a message may wait for room at a peer that does not take earlier ones.
const ROOM: Duration = Duration::from_secs(10);
/// Between two attempts.
const NAP: Duration = Duration::from_micros(200);
/// Messages of an agent to itself that may wait to be read.
pub(super) const OWN_MAX: usize = 1 << 16;

impl Agent {
    /// What has come since the last call, in order: who said it, and what.
    ///
    /// # Errors
    /// [`Status::Backend`] when no backend (of those named) has notifications.
    pub fn notifications(&self, handles: &[Handle]) -> Result<Vec<(String, Vec<u8>)>> {
        let inner = &*self.inner;
        let asked = inner.asked(handles)?;
        if !asked.is_empty() && !asked.iter().any(|kind| kind.is_network()) {
            return Err(Error::new(Status::Backend, "none of the backends named has notifications"));
        }
        let backends = inner.backends.read();
        let Some(agent) = &backends.network else { return inner.network().map(|_| Vec::new()) };
        let mut all = Vec::new();
        if let Some(first) = agent.poll_notification() {
            let mut assembly = inner.assembly.lock();
            let mut next = Some(first);
            while let Some(notification) = next {
                if let Some(message) = assembly.take(&notification.peer_name, notification.message) {
                    all.push((notification.peer_name.as_ref().to_owned(), message));
                }
                next = agent.poll_notification();
            }
        }
        drop(backends);
        let mut own = inner.own.lock();
        all.extend(own.drain(..).map(|message| (inner.name.as_ref().to_owned(), message)));
        Ok(all)
    }

    /// Sends a message; it arrives once, and independently of transfers.
    ///
    /// # Errors
    /// [`Status::Backend`] without a backend that has notifications, or when the peer takes none in time; [`Status::NotFound`] for an agent whose metadata is
    /// not known; [`Status::InvalidParam`] when it is too long.
    pub fn notify(&self, remote: &str, message: &[u8], handles: &[Handle]) -> Result<()> {
        let inner = &*self.inner;
        let asked = inner.asked(handles)?;
        if !asked.is_empty() && !asked.iter().any(|kind| kind.is_network()) {
            return Err(Error::new(Status::Backend, "none of the backends named has notifications"));
        }
        let agent = inner.network()?;
        if remote == &*inner.name {
            return inner.notify_own(message.to_vec());
        }
        let peer = inner.remote(remote).and_then(|known| {
            known.peer.clone().ok_or_else(|| {
                Error::new(Status::NotFound, format!("of agent {remote} no connection information is known"))
            })
        })?;
        check_length(message)?;
        let sent = match long::split(message) {
            None => send(&agent, &peer, message.to_vec()),
            Some(parts) => parts.into_iter().try_for_each(|part| send(&agent, &peer, part)),
        };
        sent.inspect_err(|error| {
            if error.status == Status::RemoteDisconnect {
                inner.gone(remote);
            }
        })
    }
}

/// Whether a message is short enough.
pub(crate) fn check_length(message: &[u8]) -> Result<()> {
    let limit = long::MESSAGE_BYTES_MAX;
    if message.len() <= limit {
        return Ok(());
    }
    let what = format!("a notification of {} bytes; the limit is {limit}", message.len());
    Err(Error::new(Status::InvalidParam, what)
        .hint("move the bytes by a transfer, and notify that they are there"))
}

/// Sends a message that is no longer than one of kvrail's; waits while the peer has not taken earlier ones.
pub(crate) fn send(agent: &kvrail::Agent, peer: &kvrail::Peer, message: Vec<u8>) -> Result<()> {
    use kvrail::engine_error::SendMessageError as Refused;
    let deadline = Instant::now() + ROOM;
    loop {
        let error = match agent.send(peer, message.clone()) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.is_retryable() || Instant::now() >= deadline {
            let status = match &error {
                kvrail::SendError::Refused { error: Refused::UnknownPeer(_), .. } => Status::RemoteDisconnect,
                kvrail::SendError::Refused { error: Refused::TooLong(_), .. } => Status::InvalidParam,
                _ => Status::Backend,
            };
            return Err(Error::told(status, &error));
        }
        std::thread::sleep(NAP);
    }
}

impl super::Inner {
    /// A message of this agent to itself.
    pub(super) fn notify_own(&self, message: Vec<u8>) -> Result<()> {
        let mut own = self.own.lock();
        if own.len() >= OWN_MAX {
            return Err(Error::new(
                Status::Backend,
                format!("{OWN_MAX} notifications of this agent to itself wait to be read"),
            ));
        }
        own.push_back(message);
        Ok(())
    }
}
