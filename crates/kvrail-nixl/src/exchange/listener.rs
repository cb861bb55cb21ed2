//! The side that listens: takes metadata in, gives its own away, forgets who asks for it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::context::Context;
use super::frame::{self, FrameError, Header, Kind, METADATA_BYTES_MAX, REASON_BYTES_MAX};
use super::stream::{self, EXCHANGE_MAX, Trouble};
use crate::error::{Error, Result, Status};

/// Connections at one time; whoever comes then waits until one has ended, which each does within [`EXCHANGE_MAX`].
const CONNECTIONS_MAX: usize = 64;
/// Time for a connection to say what it wants.
const HEADER_MAX: Duration = Duration::from_secs(2);
/// Pause after the system refused a connection, mostly for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long, and how many bytes, one is listened to who was refused and still talks, so that it reads the refusal.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: u64 = 1 << 20;

/// Opens the port on every address of this host.
pub(super) fn open(agent: &str, port: u16) -> Result<StdListener> {
    let any: [SocketAddr; 2] = [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    let bound = StdListener::bind(any[0]).or_else(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse | std::io::ErrorKind::PermissionDenied => Err(error),
        // A host without IPv6.
        _ => StdListener::bind(any[1]),
    });
    let opened = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    opened.map_err(|error| {
        let what = format!("agent {agent} cannot listen for metadata on port {port}: {error}");
        let error_kind = error.kind();
        let error = Error::new(Status::Backend, what);
        match error_kind {
            std::io::ErrorKind::AddrInUse => {
                error.hint(format!("see who has it: ss -ltnp 'sport = :{port}'; port 0 takes any free one"))
            }
            _ => error,
        }
    })
}

/// Serves whoever connects, until it is dropped.
pub(super) async fn serve(context: Arc<Context>, listener: Arc<TcpListener>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this future, and with it all connections.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            // Peers of IPv4 come in as addresses of IPv6.
            Ok((stream, from)) => (stream, SocketAddr::new(from.ip().to_canonical(), from.port())),
            Err(error) => {
                context.complain(format_args!("accepting a connection for metadata: {error}"));
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let context = context.clone();
        connections.spawn(async move {
            let _place = place;
            match connection(&context, stream).await {
                Ok(()) => {}
                Err(Trouble::Nothing) => tracing::debug!("{from} connected and said nothing"),
                Err(trouble) => context.complain(format_args!("metadata exchange with {from}: {trouble}")),
            }
        });
    }
}

/// One request and its answer.
async fn connection(context: &Context, mut stream: TcpStream) -> Result<(), Trouble> {
    let began = Instant::now();
    let until = began + EXCHANGE_MAX;
    let outcome = match stream::read_header(&mut stream, began + HEADER_MAX).await {
        Ok(header) => request(context, &mut stream, header, until).await,
        Err(trouble) => Err(trouble),
    };
    let trouble = match outcome {
        Ok(()) => return Ok(()),
        // Nobody is there, or nobody who would understand.
        Err(
            trouble @ (Trouble::Nothing
            | Trouble::Io { .. }
            | Trouble::Frame(FrameError::Nixl | FrameError::NotKvrail(_))),
        ) => return Err(trouble),
        Err(trouble) => trouble,
    };
    let mut reason = trouble.to_string();
    while reason.len() > REASON_BYTES_MAX {
        reason.pop();
    }
    let refusal = async {
        stream::write(&mut stream, Kind::Refused, reason.as_bytes(), Instant::now() + LINGER).await.ok()?;
        stream.shutdown().await.ok()?;
        let mut rest = stream.take(LINGER_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.ok()
    };
    let _ = timeout(LINGER, refusal).await;
    Err(trouble)
}

async fn request(
    context: &Context,
    stream: &mut TcpStream,
    header: Header,
    until: Instant,
) -> Result<(), Trouble> {
    match header.kind {
        Kind::Load => {
            let _room = context.room.take(header.len as usize, until).await?;
            let metadata = stream::read_body(stream, header, until).await?;
            let name = context.ask(move |host| host.load(&metadata)).await?;
            tracing::debug!("agent {}: took the metadata of {name}", context.agent);
            stream::write(stream, Kind::Done, &[], until).await
        }
        Kind::Fetch => {
            stream::read_body(stream, header, until).await?;
            let metadata = context.ask(|host| host.metadata()).await?;
            if metadata.len() > METADATA_BYTES_MAX {
                let len = u32::try_from(metadata.len()).unwrap_or(u32::MAX);
                return Err(FrameError::TooLong { kind: Kind::Metadata, len }.into());
            }
            let _room = context.room.take(metadata.len(), until).await?;
            stream::write(stream, Kind::Metadata, &metadata, until).await
        }
        Kind::Forget => {
            let name = frame::text(Kind::Forget, stream::read_body(stream, header, until).await?)?;
            tracing::debug!("agent {}: forgets {}, as it was asked to", context.agent, name.escape_debug());
            context.forget(name).await?;
            stream::write(stream, Kind::Done, &[], until).await
        }
        kind @ (Kind::Metadata | Kind::Done | Kind::Refused) => Err(FrameError::Unexpected { kind }.into()),
    }
}
