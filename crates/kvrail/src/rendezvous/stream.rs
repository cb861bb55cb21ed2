//! Frames over a TCP connection, each step under one absolute deadline.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::frame::{FrameError, HEADER_BYTES, Header, Kind};

/// Bytes that are made room for at a time while a body arrives: a hostile length costs nobody memory before the
/// bytes are really sent.
const CHUNK_BYTES: usize = 64 << 10;

/// What the two ends were doing when an exchange failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Step {
    /// Sending this agent's metadata.
    SendMetadata,
    /// Waiting for the other agent's metadata.
    ReceiveMetadata,
    /// Sending the verdict on the other's metadata.
    SendVerdict,
    /// Waiting for the other agent's verdict on this one's metadata.
    ReceiveVerdict,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SendMetadata => "sending this agent's metadata",
            Self::ReceiveMetadata => "waiting for the other agent's metadata",
            Self::SendVerdict => "sending the verdict on its metadata",
            Self::ReceiveVerdict => "waiting for its verdict on this agent's metadata",
        })
    }
}

/// Why an exchange of metadata over an open connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The deadline passed.
    #[error("deadline passed after {waited:?} while {step}; {received} bytes of it had arrived")]
    Deadline {
        /// What was being done.
        step: Step,
        /// Time since the exchange began.
        waited: Duration,
        /// Bytes received in this step.
        received: usize,
    },
    /// The other end closed the connection.
    #[error("the other end closed the connection while {step}; {received} bytes of it had arrived")]
    Closed {
        /// What was being done.
        step: Step,
        /// Bytes received in this step.
        received: usize,
    },
    /// The connection failed.
    #[error("{source} while {step}")]
    Io {
        /// What was being done.
        step: Step,
        /// What the operating system said.
        source: io::Error,
    },
    /// What arrived is not a frame of this protocol.
    #[error("{source} while {step}")]
    Frame {
        /// What was being done.
        step: Step,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A frame of the wrong kind.
    #[error("a frame of kind {kind:?} came while {step}")]
    Unexpected {
        /// What was being done.
        step: Step,
        /// What came.
        kind: Kind,
    },
    /// The other agent refused this one's metadata.
    #[error("the other agent refused this one's metadata: {reason}")]
    Refused {
        /// What it said, control characters escaped.
        reason: String,
    },
    /// This agent refused the other one's metadata.
    #[error("the other agent's metadata was refused: {reason}")]
    Rejected {
        /// Why.
        reason: String,
    },
}

/// One connection and the deadline for all that happens on it.
#[derive(Debug)]
pub(super) struct Exchange {
    stream: TcpStream,
    started: Instant,
    deadline: Instant,
}

impl Exchange {
    pub(super) fn new(stream: TcpStream, deadline: Instant) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, started: Instant::now(), deadline })
    }

    /// The connecting side: says its metadata first, learns the other's, gives its verdict.
    pub(super) fn initiate<T>(
        &mut self,
        ours: &[u8],
        import: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, ExchangeError> {
        self.send(Step::SendMetadata, Kind::Metadata, ours)?;
        let theirs = self.receive(Step::ReceiveMetadata, Kind::Metadata)?;
        self.judge(import(&theirs))
    }

    /// The listening side: learns the other's metadata, answers with its own or a refusal, waits for the verdict.
    pub(super) fn respond<T>(
        &mut self,
        ours: &[u8],
        import: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, ExchangeError> {
        let theirs = match self.receive(Step::ReceiveMetadata, Kind::Metadata) {
            Err(error @ ExchangeError::Frame { source: FrameError::Version { .. }, .. }) => {
                // The header carries our version: the other end names both.
                let _ = self.send(Step::SendVerdict, Kind::Refused, error.to_string().as_bytes());
                return Err(error);
            }
            other => other?,
        };
        let peer = match import(&theirs) {
            Ok(peer) => peer,
            Err(reason) => return self.judge(Err(reason)),
        };
        self.send(Step::SendMetadata, Kind::Metadata, ours)?;
        self.receive(Step::ReceiveVerdict, Kind::Accepted)?;
        Ok(peer)
    }

    fn judge<T>(&mut self, imported: Result<T, String>) -> Result<T, ExchangeError> {
        match imported {
            Ok(peer) => {
                self.send(Step::SendVerdict, Kind::Accepted, &[])?;
                Ok(peer)
            }
            Err(reason) => {
                let mut end = reason.len().min(super::frame::REASON_BYTES_MAX);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                // The reason is told here in any case; the other end hears it if it still listens.
                let _ = self.send(Step::SendVerdict, Kind::Refused, &reason.as_bytes()[..end]);
                Err(ExchangeError::Rejected { reason })
            }
        }
    }

    fn send(&mut self, step: Step, kind: Kind, body: &[u8]) -> Result<(), ExchangeError> {
        let header =
            Header::new(kind, body.len()).map_err(|source| ExchangeError::Frame { step, source })?.encode();
        for mut part in [&header[..], body] {
            while !part.is_empty() {
                let left = self.left(step, 0)?;
                let sent = self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write(part));
                match sent {
                    Ok(0) => return Err(ExchangeError::Closed { step, received: 0 }),
                    Ok(n) => part = &part[n..],
                    Err(error) => self.judge_io(step, 0, error)?,
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, step: Step, wanted: Kind) -> Result<Vec<u8>, ExchangeError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(step, &mut header, 0)?;
        let header = Header::decode(&header).map_err(|source| ExchangeError::Frame { step, source })?;
        let len = header.len as usize;
        let mut body = Vec::new();
        while body.len() < len {
            let before = body.len();
            body.resize(before + CHUNK_BYTES.min(len - before), 0);
            self.fill(step, &mut body[before..], HEADER_BYTES + before)?;
        }
        if header.kind == Kind::Refused {
            let reason = String::from_utf8_lossy(&body).escape_debug().to_string();
            return Err(ExchangeError::Refused { reason });
        }
        if header.kind != wanted {
            return Err(ExchangeError::Unexpected { step, kind: header.kind });
        }
        Ok(body)
    }

    fn fill(&mut self, step: Step, buffer: &mut [u8], before: usize) -> Result<(), ExchangeError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let received = before + filled;
            let left = self.left(step, received)?;
            let read = self.stream.set_read_timeout(Some(left));
            match read.and_then(|()| self.stream.read(&mut buffer[filled..])) {
                Ok(0) => return Err(ExchangeError::Closed { step, received }),
                Ok(n) => filled += n,
                Err(error) => self.judge_io(step, received, error)?,
            }
        }
        Ok(())
    }

    /// Time left; never zero, which would mean "for ever" to the operating system.
    fn left(&self, step: Step, received: usize) -> Result<Duration, ExchangeError> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ExchangeError::Deadline { step, waited: self.started.elapsed(), received }),
            left => Ok(left),
        }
    }

    /// `Ok` means "again": a signal, or a timeout that the next look at the deadline will judge.
    fn judge_io(&self, step: Step, received: usize, source: io::Error) -> Result<(), ExchangeError> {
        match source.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(()),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Err(ExchangeError::Closed { step, received })
            }
            _ => Err(ExchangeError::Io { step, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair(deadline: Duration) -> (Exchange, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let here = listener.accept().unwrap().0;
        (Exchange::new(here, Instant::now() + deadline).unwrap(), there)
    }

    #[test]
    fn both_sides_learn_the_others_metadata() {
        let (mut server, stream) = pair(Duration::from_secs(5));
        let long = vec![7u8; 3 * CHUNK_BYTES + 1];
        let expected = long.clone();
        let thread = std::thread::spawn(move || server.respond(&long, |bytes| Ok(bytes.to_vec())));
        let mut client = Exchange::new(stream, Instant::now() + Duration::from_secs(5)).unwrap();
        let theirs = client.initiate(b"initiator", |bytes| Ok(bytes.to_vec())).unwrap();
        assert_eq!(theirs, expected);
        assert_eq!(thread.join().unwrap().unwrap(), b"initiator");
    }

    #[test]
    fn a_refusal_reaches_the_other_side_with_its_reason() {
        let (mut server, stream) = pair(Duration::from_secs(5));
        let thread =
            std::thread::spawn(move || server.respond(b"t", |_| Err::<(), _>("no \u{1b}[31mrails".into())));
        let mut client = Exchange::new(stream, Instant::now() + Duration::from_secs(5)).unwrap();
        let error = client.initiate(b"i", |_| Ok(())).unwrap_err();
        assert!(
            matches!(&error, ExchangeError::Refused { reason } if reason == "no \\u{1b}[31mrails"),
            "{error}"
        );
        assert!(matches!(thread.join().unwrap(), Err(ExchangeError::Rejected { .. })));
    }

    #[test]
    fn a_drip_of_bytes_does_not_stretch_the_deadline() {
        let (mut server, mut stream) = pair(Duration::from_millis(120));
        let drip = std::thread::spawn(move || {
            for byte in Header::new(Kind::Metadata, 1000).unwrap().encode().into_iter().chain([1; 100]) {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let started = Instant::now();
        let error = server.respond(b"t", |_| Ok(())).unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(600));
        assert!(
            matches!(error, ExchangeError::Deadline { step: Step::ReceiveMetadata, received: 1.., .. }),
            "{error}"
        );
        drop(server);
        drip.join().unwrap();
    }

    #[test]
    fn a_connection_that_ends_early_names_the_step() {
        let (mut server, stream) = pair(Duration::from_secs(5));
        drop(stream);
        let error = server.respond(b"t", |_| Ok(())).unwrap_err();
        assert!(
            matches!(error, ExchangeError::Closed { step: Step::ReceiveMetadata, received: 0 }),
            "{error}"
        );
    }
}
