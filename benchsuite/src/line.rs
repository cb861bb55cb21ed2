//! What the two processes of a case say to each other, outside the timed part: JSON lines over a socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::LimitError;

/// Longest message: 64 rails' addresses are a few KiB.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
const KNOCK_EVERY: Duration = Duration::from_millis(20);

/// One process's end of the conversation.
#[derive(Debug)]
pub(crate) struct Line {
    reader: BufReader<File>,
}

impl Line {
    /// Two ends in this process, one of which a fork takes along. The first waits at most `deadline` for anything;
    /// the second without end: the process that holds it ends with ours.
    pub(crate) fn pair(deadline: Duration) -> Result<(Self, Self), LimitError> {
        let (near, far) = UnixStream::pair().map_err(LimitError::os("making a socket pair"))?;
        near.set_read_timeout(Some(deadline)).map_err(LimitError::os("setting a deadline"))?;
        Ok((Self::over(near.into()), Self::over(far.into())))
    }

    /// Waits at `place` for the other process.
    pub(crate) fn answer(place: &str, deadline: Duration) -> Result<Self, LimitError> {
        let doing = "waiting for the initiator";
        let listener = TcpListener::bind(place).map_err(LimitError::os("listening"))?;
        listener.set_nonblocking(true).map_err(LimitError::os(doing))?;
        let until = Instant::now() + deadline;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(LimitError::os(doing))?;
                    return Self::over_tcp(stream, deadline);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {
                    thread::sleep(KNOCK_EVERY);
                }
                Err(source) => return Err(LimitError::Os { doing, source }),
            }
        }
    }

    /// Reaches the other process at `place`, which may start later than this one.
    pub(crate) fn call(place: &str, deadline: Duration) -> Result<Self, LimitError> {
        let until = Instant::now() + deadline;
        loop {
            match TcpStream::connect(place) {
                Ok(stream) => return Self::over_tcp(stream, deadline),
                Err(_) if Instant::now() < until => thread::sleep(KNOCK_EVERY),
                Err(source) => return Err(LimitError::Os { doing: "reaching the target", source }),
            }
        }
    }

    fn over_tcp(stream: TcpStream, deadline: Duration) -> Result<Self, LimitError> {
        stream.set_nodelay(true).map_err(LimitError::os("setting up the connection"))?;
        stream.set_read_timeout(Some(deadline)).map_err(LimitError::os("setting a deadline"))?;
        Ok(Self::over(stream.into()))
    }

    fn over(socket: OwnedFd) -> Self {
        Self { reader: BufReader::new(socket.into()) }
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<(), LimitError> {
        let doing = "speaking to the other process";
        let mut text = serde_json::to_vec(message).map_err(|error| LimitError::os(doing)(error.into()))?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text).map_err(LimitError::os(doing))
    }

    /// Waits for the next message.
    pub(crate) fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, LimitError> {
        let mut text = String::new();
        let mut line = (&mut self.reader).take(MESSAGE_BYTES_MAX);
        line.read_line(&mut text).map_err(LimitError::os("waiting for the other process"))?;
        if text.is_empty() {
            return Err(LimitError::Gone);
        }
        serde_json::from_str(&text).map_err(|_| LimitError::Peer { said: format!("{text:?}, not an answer") })
    }

    /// Whether something has arrived, or the other end is gone.
    pub(crate) fn has_something(&self) -> bool {
        if !self.reader.buffer().is_empty() {
            return true;
        }
        let mut fd = libc::pollfd { fd: self.reader.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `fd` is one pollfd on our stack, and 1 is its count; with a timeout of 0 the call does not wait.
        unsafe { libc::poll(&raw mut fd, 1, 0) > 0 }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_whole_and_is_announced() {
        let (mut near, mut far) = Line::pair(Duration::from_secs(5)).unwrap();
        assert!(!far.has_something());
        near.send(&vec![7_u64; 5000]).unwrap();
        assert!(far.has_something());
        assert_eq!(far.receive::<Vec<u64>>().unwrap(), vec![7; 5000]);
        drop(near);
        assert!(matches!(far.receive::<u64>(), Err(LimitError::Gone)));
    }

    #[test]
    fn the_initiator_may_come_first_and_nobody_is_waited_for_without_end() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let place = port.clone();
        let initiator = thread::spawn(move || Line::call(&place, Duration::from_secs(10)));
        thread::sleep(KNOCK_EVERY);
        let mut target = Line::answer(&port, Duration::from_secs(10)).unwrap();
        initiator.join().unwrap().unwrap().send(&1).unwrap();
        assert_eq!(target.receive::<u8>().unwrap(), 1);
        assert!(Line::answer("127.0.0.1:0", Duration::from_millis(30)).is_err());
    }
}
