//! Messages between agents, with transfers and without.

use std::time::{Duration, Instant};

use super::{Agent, Handle};
use crate::error::{Error, Result, Status};

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
        while let Some(notification) = agent.poll_notification() {
            all.push((notification.peer_name.as_ref().to_owned(), notification.message));
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
        let deadline = Instant::now() + ROOM;
        loop {
            match agent.send(&peer, message) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_retryable() && Instant::now() < deadline => std::thread::sleep(NAP),
                Err(error) => {
                    use kvrail::engine_error::SendMessageError as Refused;
                    let status = match &error {
                        kvrail::SendError::Refused { error: Refused::UnknownPeer(_), .. } => {
                            inner.lose(remote);
                            Status::RemoteDisconnect
                        }
                        kvrail::SendError::Refused { error: Refused::TooLong(_), .. } => Status::InvalidParam,
                        _ => Status::Backend,
                    };
                    return Err(Error::told(status, &error));
                }
            }
        }
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
