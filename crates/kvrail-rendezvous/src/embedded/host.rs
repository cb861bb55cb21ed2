//! Who opens the port, and a service without a member.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::server::Server;
use crate::config::{EmbeddedConfig, Hosting};
use crate::name::RunId;

pub(super) enum Found {
    /// This process has the port.
    Open(TcpListener),
    /// Another one has it or should have it.
    Elsewhere(Vec<SocketAddr>),
    /// This process was to have the port and cannot.
    Taken(String),
}

/// Opens the port if that is this process's part and nobody has it; `opened` is where it did so before.
pub(super) async fn find(embedded: &EmbeddedConfig, opened: Option<SocketAddr>) -> io::Result<Found> {
    if let Some(address) = opened {
        return Ok(Found::Elsewhere(vec![reachable(address)]));
    }
    let host = embedded.host.as_str();
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, embedded.port)).await?.collect();
    if embedded.hosting == Hosting::Never {
        return Ok(Found::Elsewhere(addresses));
    }
    // A name that this host has for itself in its own files is another one to the others: all interfaces, then.
    let literal = host == "localhost" || host.parse::<IpAddr>().is_ok();
    if let Some(&address) = addresses.iter().find(|address| is_local(address.ip())) {
        let bind = match address.ip() {
            ip if literal || !ip.is_loopback() => ip,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        return match listen(SocketAddr::new(bind, embedded.port)) {
            Ok(listener) => Ok(Found::Open(listener)),
            Err(error) if embedded.hosting == Hosting::Always => Ok(Found::Taken(format!("{bind}: {error}"))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Ok(Found::Elsewhere(vec![reachable(address)]))
            }
            Err(error) => Err(error),
        };
    }
    if embedded.hosting == Hosting::Always {
        return Ok(Found::Taken(format!("\"{host}\" is no address of this host")));
    }
    Ok(Found::Elsewhere(addresses))
}

/// Where a listener on all interfaces is reached from this host.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// An address is this host's if a socket may have it.
fn is_local(ip: IpAddr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}

/// The standard library lets a port be taken again at once after its holder died.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

/// Why a service could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The address cannot be had.
    #[error("cannot open {address} for a rendezvous: {source}")]
    Bind {
        /// As it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The thread or its event loop could not be made.
    #[error("cannot serve a rendezvous: {0}")]
    Local(io::Error),
}

/// An embedded service that no member hosts: for a program that starts the members and outlives them.
///
/// Dropping it ends the service.
#[derive(Debug)]
pub struct Host {
    address: SocketAddr,
    run_id: RunId,
    stop: Option<tokio::sync::oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Opens `address` (`HOST:PORT`; port 0 for any that is free) for one run.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start(address: &str, run_id: RunId) -> Result<Self, HostError> {
        let bind = |source| HostError::Bind { address: address.into(), source };
        let listener = TcpListener::bind(address).map_err(bind)?;
        let bound = listener.local_addr().map_err(bind)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HostError::Local)?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let run = run_id.clone();
        let server = {
            let _inside = runtime.enter();
            Server::start(listener, run, 0).map_err(HostError::Local)?
        };
        let thread = std::thread::Builder::new()
            .name("kvrail-rdv-host".into())
            .spawn(move || {
                runtime.block_on(async {
                    if let Ok(linger) = stopped.await {
                        server.end(Instant::now() + linger).await;
                    }
                });
            })
            .map_err(HostError::Local)?;
        Ok(Self { address: bound, run_id, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The run that it is for.
    #[must_use]
    pub fn run_id(&self) -> &RunId {
        &self.run_id
    }

    /// Takes nobody in any more, waits until all members have left, at most `linger`, and ends the service.
    pub fn end(mut self, linger: Duration) {
        self.finish(linger);
    }

    fn finish(&mut self, linger: Duration) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(linger);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.finish(Duration::ZERO);
    }
}
