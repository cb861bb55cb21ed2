//! The connecting side.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::stream::{Exchange, ExchangeError};
use crate::agent::Agent;
use crate::peer::{ConnectError, Peer};
use crate::region::MetadataError;

/// Pause between attempts: short at first, for peers that start together.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);
/// Longest single attempt, so that an address that swallows packets does not hide one that answers.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// Why connecting to a rendezvous failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectToError {
    /// Nobody listened until the deadline.
    #[error("nobody answered at {address} within {waited:?} ({attempts} attempts); last: {last}")]
    Deadline {
        /// Where, as it was given.
        address: String,
        /// Time spent.
        waited: Duration,
        /// Connection attempts made.
        attempts: u32,
        /// How the last one failed.
        last: io::Error,
    },
    /// The address is not `HOST:PORT`.
    #[error("\"{address}\" is not an address: {source}")]
    Address {
        /// As it was given.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The connection stood, the exchange failed.
    #[error("rendezvous with {address}: {source}")]
    Exchange {
        /// With whom.
        address: SocketAddr,
        /// What failed.
        source: ExchangeError,
    },
    /// The other agent's metadata cannot be used.
    #[error("rendezvous with {address}: {source}")]
    Connect {
        /// With whom.
        address: SocketAddr,
        /// What is wrong with it.
        source: ConnectError,
    },
    /// This agent's own metadata could not be written.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl ConnectToError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Deadline { .. } => true,
            Self::Exchange { source, .. } => {
                matches!(source, ExchangeError::Deadline { .. } | ExchangeError::Closed { .. })
            }
            _ => false,
        }
    }
}

impl crate::Hints for ConnectToError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Deadline { last, .. } if last.kind() == io::ErrorKind::ConnectionRefused => {
                vec!["start the serving agent, or check the port it printed".into()]
            }
            Self::Deadline { .. } => {
                vec!["check that a firewall or a network policy lets the port through".into()]
            }
            Self::Address { .. } => vec!["write HOST:PORT, for instance 10.0.0.7:5555 or [::1]:5555".into()],
            Self::Connect { source, .. } => source.hints(),
            _ => Vec::new(),
        }
    }
}

impl Agent {
    /// Exchanges metadata with the agent that serves at `address` (`HOST:PORT`) and connects to it. Tries again
    /// until there is a listener; the whole takes at most `deadline`.
    ///
    /// # Errors
    /// [`ConnectToError`].
    pub fn connect_to(&self, address: &str, deadline: Duration) -> Result<Peer, ConnectToError> {
        let started = Instant::now();
        let until = started.checked_add(deadline).unwrap_or_else(|| started + Duration::from_secs(86_400));
        let mut pause = RETRY_MIN;
        let mut attempts = 0;
        loop {
            let (remote, attempt) = connect(address, until, &mut attempts);
            let last = match attempt {
                Ok(stream) => match self.initiate(stream, remote, until) {
                    // A listener that is about to end, or a socket connected to itself: as good as nobody.
                    Err(ConnectToError::Exchange {
                        source: ExchangeError::Closed { received: 0, .. },
                        ..
                    }) => io::Error::from(io::ErrorKind::ConnectionReset),
                    other => return other,
                },
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Err(ConnectToError::Address { address: address.into(), source: error });
                }
                Err(error) => error,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = started.elapsed();
                return Err(ConnectToError::Deadline { address: address.into(), waited, attempts, last });
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn initiate(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        until: Instant,
    ) -> Result<Peer, ConnectToError> {
        let failed = |source| ConnectToError::Exchange { address, source };
        // Written anew for each attempt: regions may have been registered while nobody listened.
        let ours = self.metadata()?;
        let mut refused = None;
        let mut exchange = Exchange::new(stream, until)
            .map_err(|source| failed(ExchangeError::Io { step: super::Step::SendMetadata, source }))?;
        let result = exchange.initiate(&ours, |theirs| {
            self.connect(theirs).map_err(|error| {
                let reason = error.to_string();
                refused = Some(error);
                reason
            })
        });
        match (result, refused) {
            (_, Some(source)) => Err(ConnectToError::Connect { address, source }),
            (result, None) => result.map_err(failed),
        }
    }
}

/// One attempt at each address that the name stands for.
fn connect(address: &str, until: Instant, attempts: &mut u32) -> (SocketAddr, io::Result<TcpStream>) {
    let mut remote = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses = match address.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) => return (remote, Err(error)),
    };
    for candidate in addresses {
        let left = until.saturating_duration_since(Instant::now()).min(ATTEMPT_MAX);
        if left.is_zero() {
            last = io::Error::from(io::ErrorKind::TimedOut);
            break;
        }
        remote = candidate;
        *attempts += 1;
        match TcpStream::connect_timeout(&candidate, left) {
            // With no listener on an ephemeral port, the kernel may connect a socket to itself.
            Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {
                last = io::Error::from(io::ErrorKind::ConnectionRefused);
            }
            Ok(stream) => return (remote, Ok(stream)),
            Err(error) => last = error,
        }
    }
    (remote, Err(last))
}
