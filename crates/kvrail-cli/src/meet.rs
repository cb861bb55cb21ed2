//! How the two sides of a control link find each other: listening, accepting, connecting, and who is who at a rendezvous.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::signals;
use crate::units;

/// Listens for an initiator.
///
/// # Errors
/// When the address does not parse, is not this host's, or its port is taken.
pub(crate) fn listen(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|e| {
        let failure = Failure::environment(format!("cannot listen on {address}: {e}"));
        match e.kind() {
            io::ErrorKind::AddrInUse => failure
                .hint(format!("another process has that port; see which with: ss -ltnp | grep {address}")),
            io::ErrorKind::AddrNotAvailable => {
                failure.hint("the address is not one of this host's; see: ip addr")
            }
            _ => failure.hint("write HOST:PORT, for instance 0.0.0.0:7100 or [::]:7100"),
        }
    })
}

/// Listens at a rendezvous, or finds that it is taken or another host's: then this side goes there.
///
/// # Errors
/// When the address does not parse or may not be used.
pub(crate) fn bind_or_leave(address: &str) -> Result<Option<TcpListener>, Failure> {
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => Ok(None),
        Err(_) => listen(address).map(Some),
    }
}

/// Waits for an initiator.
///
/// # Errors
/// When nobody comes in time, or on Ctrl-C.
pub(crate) fn accept(listener: &TcpListener, within: Duration) -> Result<(TcpStream, SocketAddr), Failure> {
    accept_while(listener, within, &|| Ok(()))
}

/// The same, as long as `meanwhile` has nothing against it.
///
/// # Errors
/// As [`accept`], or what `meanwhile` says.
pub(crate) fn accept_while(
    listener: &TcpListener,
    within: Duration,
    meanwhile: &dyn Fn() -> Result<(), Failure>,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let broken = |e: io::Error| Failure::environment(format!("cannot accept connections: {e}"));
    listener.set_nonblocking(true).map_err(broken)?;
    let deadline = Instant::now() + within;
    loop {
        match listener.accept() {
            Ok((socket, from)) => {
                socket.set_nonblocking(false).map_err(broken)?;
                return Ok((socket, from));
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(broken(e)),
        }
        if signals::interrupted() {
            return Err(Failure::interrupted());
        }
        meanwhile()?;
        if Instant::now() >= deadline {
            let here = listener.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
            return Err(Failure::peer(format!("no initiator came to {here} within {}", units::span(within)))
                .hint(format!("start it: kvrail bench --role initiator --connect {here}"))
                .hint("or wait longer with --timeout"));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Reaches a target that may not have started yet.
///
/// # Errors
/// When the name does not resolve, nobody answers in time, or on Ctrl-C.
pub(crate) fn connect(address: &str, within: Duration) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_millis(5);
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let error = match connect_once(address, left.min(Duration::from_secs(3))) {
            Ok(socket) => return Ok(socket),
            Err(e) => e,
        };
        if signals::interrupted() {
            return Err(Failure::interrupted());
        }
        if matches!(error.kind(), io::ErrorKind::InvalidInput) {
            return Err(Failure::usage(format!("`{address}` is no address: {error}"))
                .hint("write HOST:PORT, for instance node-2:7100 or [fd00::2]:7100"));
        }
        if Instant::now() + pause >= deadline {
            return Err(Failure::peer(format!(
                "nobody answers at {address} within {}: {error}",
                units::span(within)
            ))
            .hint("start the other side there: kvrail bench --role target --listen 0.0.0.0:PORT")
            .hint("or wait longer with --timeout"));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

fn connect_once(address: &str, within: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, within) {
            // A port in the ephemeral range can, without a listener, connect to itself.
            Ok(socket) if socket.local_addr().ok() == socket.peer_addr().ok() => {
                last = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}
