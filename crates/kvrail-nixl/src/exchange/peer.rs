//! The side that connects: sends metadata to an address, fetches it from there, asks there to be forgotten.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::context::Context;
use super::frame::{self, FrameError, Kind};
use super::stream::{self, EXCHANGE_MAX, Step, Trouble};

/// Time to find an address and have a connection.
const CONNECT_MAX: Duration = Duration::from_secs(3);

pub(super) type Address = (String, u16);

pub(super) async fn send(context: &Context, to: &Address, metadata: &[u8]) -> Result<(), Trouble> {
    converse(context, to, Kind::Load, metadata, Kind::Done).await.map(|_| ())
}

pub(super) async fn forget(context: &Context, at: &Address) -> Result<(), Trouble> {
    converse(context, at, Kind::Forget, context.agent.as_bytes(), Kind::Done).await.map(|_| ())
}

/// Fetches and loads; the loaded agent's name comes back.
pub(super) async fn fetch(context: &Context, from: &Address) -> Result<String, Trouble> {
    let metadata = converse(context, from, Kind::Fetch, &[], Kind::Metadata).await?;
    Ok(context.ask(move |host| host.load(&metadata)).await?)
}

async fn converse(
    context: &Context,
    (host, port): &Address,
    request: Kind,
    body: &[u8],
    expected: Kind,
) -> Result<Vec<u8>, Trouble> {
    let until = Instant::now() + EXCHANGE_MAX;
    let connect_until = Instant::now() + CONNECT_MAX;
    let mut stream =
        stream::step(Step::Connect, connect_until, TcpStream::connect((host.as_str(), *port))).await?;
    let written = stream::write(&mut stream, request, body, until).await;
    // Who refuses at the header reads no further: the refusal says more than the broken pipe.
    let header = match (stream::read_header(&mut stream, until).await, written) {
        (Ok(header), _) => header,
        (Err(_), Err(written)) => return Err(written),
        (Err(Trouble::Nothing), Ok(())) => return Err(Trouble::Silent),
        (Err(error), Ok(())) => return Err(error),
    };
    let _room = context.room.take(header.len as usize, until).await?;
    let body = stream::read_body(&mut stream, header, until).await?;
    match header.kind {
        kind if kind == expected => Ok(body),
        Kind::Refused => Err(Trouble::Refused(tame(&frame::text(Kind::Refused, body)?))),
        kind => Err(FrameError::Unexpected { kind }.into()),
    }
}

/// A peer's words without what would move a terminal's cursor; hints have lines of their own.
fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
