//! One frame over a connection: deadlines, bounded memory, and what went wrong in which step.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::frame::{FrameError, HEADER_BYTES, Header, Kind, METADATA_BYTES_MAX};

/// Time for one request and its answer, from the connection on.
pub(super) const EXCHANGE_MAX: Duration = Duration::from_secs(10);

/// Bodies up to here are taken from anyone who may connect; longer ones share [`LARGE_KIB_MAX`].
const SMALL_BYTES_MAX: usize = 256 << 10;
/// What all longer bodies together may take, KiB.
const LARGE_KIB_MAX: usize = 256 << 10;
/// A body grows by what has come, not by what was announced.
const CHUNK_BYTES: usize = 64 << 10;

const _: () =
    assert!(LARGE_KIB_MAX * 1024 >= 2 * METADATA_BYTES_MAX, "one long body does not keep all others out");
const _: () = assert!(LARGE_KIB_MAX <= u32::MAX as usize, "as the semaphore counts");

/// What went wrong with one exchange.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{step}: {source}")]
    Io { step: Step, source: io::Error },
    #[error("{step}: not done in time")]
    Deadline { step: Step },
    #[error("the other end closed the connection before it answered; is it an agent of kvrail that listens?")]
    Silent,
    /// Nothing was said at all: somebody looked whether the port is open.
    #[error("the other end said nothing")]
    Nothing,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the other end refused: {0}")]
    Refused(String),
    #[error("{0}")]
    Host(#[from] crate::error::Error),
}

/// What an exchange was about to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Connect,
    Send,
    Receive,
    /// Waiting for room: other long metadata are on their way.
    Room,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Send => "sending",
            Self::Receive => "receiving",
            Self::Room => "waiting for other metadata to be done",
        })
    }
}

/// What long bodies may take, all connections of an agent together.
pub(super) struct Room(Semaphore);

impl Room {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(LARGE_KIB_MAX))
    }

    /// Waits until a body of `bytes` has room, which it has until the permit is dropped.
    pub(super) async fn take(
        &self,
        bytes: usize,
        until: Instant,
    ) -> Result<Option<SemaphorePermit<'_>>, Trouble> {
        if bytes <= SMALL_BYTES_MAX {
            return Ok(None);
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        match timeout_at(until, self.0.acquire_many(kib)).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => Err(Trouble::Deadline { step: Step::Room }),
        }
    }
}

/// Runs one step against the exchange's absolute deadline, which a drip of bytes does not stretch.
pub(super) async fn step<T>(
    step: Step,
    until: Instant,
    what: impl Future<Output = io::Result<T>>,
) -> Result<T, Trouble> {
    match timeout_at(until, what).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(source)) => Err(Trouble::Io { step, source }),
        Err(_) => Err(Trouble::Deadline { step }),
    }
}

pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    body: &[u8],
    until: Instant,
) -> Result<(), Trouble> {
    let header = Header::new(kind, body)?.encode();
    step(Step::Send, until, async {
        stream.write_all(&header).await?;
        stream.write_all(body).await?;
        stream.flush().await
    })
    .await
}

/// Reads a header; [`Trouble::Nothing`] when the other end closes before its first byte.
pub(super) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    until: Instant,
) -> Result<Header, Trouble> {
    let mut header = [0; HEADER_BYTES];
    let mut have = 0;
    while have < HEADER_BYTES {
        match step(Step::Receive, until, stream.read(&mut header[have..])).await? {
            0 if have == 0 => return Err(Trouble::Nothing),
            0 => return Err(cut_short()),
            more => have += more,
        }
    }
    Ok(Header::decode(&header)?)
}

/// Reads the body that belongs to a header. Who calls has taken [`Room`] for it.
pub(super) async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    header: Header,
    until: Instant,
) -> Result<Vec<u8>, Trouble> {
    let len = header.len as usize;
    let mut body = Vec::with_capacity(len.min(CHUNK_BYTES));
    let mut rest = stream.take(u64::from(header.len));
    while body.len() < len {
        if step(Step::Receive, until, rest.read_buf(&mut body)).await? == 0 {
            return Err(cut_short());
        }
    }
    header.verify(&body)?;
    Ok(body)
}

fn cut_short() -> Trouble {
    Trouble::Io { step: Step::Receive, source: io::ErrorKind::UnexpectedEof.into() }
}
