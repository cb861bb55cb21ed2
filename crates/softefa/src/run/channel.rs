//! The line between front and keeper: a socket pair with one JSON message per line, and file descriptors with the first.
//!
//! Each side learns of the other's death by the end of the stream, which the kernel sends however it died.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, bytes: command lines are part of one, and the kernel takes 2 MiB of those; JSON makes bytes longer.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Most descriptors that one message carries: the kernel's own limit is 253.
const FDS_MAX: usize = 64;

/// One end of the line.
pub(super) struct Channel {
    stream: UnixStream,
    /// What has arrived of the next message.
    pending: Vec<u8>,
}

impl Channel {
    /// Takes over an end. Reading never blocks, writing does.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sends a message.
    pub(super) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        (&self.stream).write_all(&line(message)?)
    }

    /// Sends a message and descriptors, which the other side gets with [`Channel::receive_fds`].
    pub(super) fn send_with(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if fds.len() > FDS_MAX || !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other(format!("more than {FDS_MAX} descriptors")));
        }
        // They travel with a byte of their own, so that they arrive at once and whole.
        rustix::net::sendmsg(&self.stream, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.send(message)
    }

    /// Whether the other side is gone, without taking what it said.
    pub(super) fn is_closed(&self) -> bool {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.stream, &mut byte[..], flags) {
            Ok((n, _)) => n == 0,
            Err(e) => !matches!(e, rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR),
        }
    }

    /// Waits for the descriptors that the other side sends first.
    pub(super) fn receive_fds(&self) -> io::Result<Vec<OwnedFd>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        Ok(fds)
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side is gone and all it said has been given out; `InvalidData` for what is no
    /// message.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Vec<T>> {
        let mut gone = false;
        let mut bytes = [0; 16384];
        loop {
            match rustix::net::recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    gone = true;
                    break;
                }
                Ok((n, _)) if self.pending.len() + n > MESSAGE_BYTES_MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
                }
                Ok((n, _)) => self.pending.extend_from_slice(&bytes[..n]),
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => {
                    gone = true;
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
        let mut messages = Vec::new();
        if let Some(end) = self.pending.iter().rposition(|b| *b == b'\n') {
            let rest = self.pending.split_off(end + 1);
            let whole = std::mem::replace(&mut self.pending, rest);
            for line in whole.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                messages.push(serde_json::from_slice(line)?);
            }
        }
        if gone && messages.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(messages) }
    }

    /// Waits for one message, for at most `deadline` from now.
    pub(super) fn receive_one<T: DeserializeOwned>(
        &mut self,
        deadline: std::time::Duration,
    ) -> io::Result<T> {
        self.stream.set_read_timeout(Some(deadline))?;
        while !self.pending.contains(&b'\n') {
            let mut bytes = [0; 16384];
            let n = (&self.stream).read(&mut bytes)?;
            if n == 0 || self.pending.len() + n > MESSAGE_BYTES_MAX {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pending.extend_from_slice(&bytes[..n]);
        }
        let end = self.pending.iter().position(|b| *b == b'\n').unwrap_or(0);
        let message = serde_json::from_slice(&self.pending[..end])?;
        self.pending.drain(..=end);
        Ok(message)
    }
}

/// A message as it travels. JSON escapes line ends, so that one can end a message.
fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn descriptors_and_messages_arrive_and_the_end_is_seen_after_the_last_word() {
        let (front, keeper) = UnixStream::pair().unwrap();
        let (front, mut keeper) = (Channel::new(front), Channel::new(keeper));
        let (mut reader, writer) = io::pipe().unwrap();
        front.send_with(&"one", &[writer.as_fd()]).unwrap();
        drop(writer);
        let fds = keeper.receive_fds().unwrap();
        assert_eq!(keeper.receive_one::<String>(Duration::from_secs(5)).unwrap(), "one");
        std::fs::File::from(fds.into_iter().next().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(keeper.receive::<String>().unwrap().is_empty() && !keeper.is_closed());
        front.send(&"two\nlines").unwrap();
        front.send(&"three").unwrap();
        drop(front);
        assert_eq!(keeper.receive::<String>().unwrap(), ["two\nlines", "three"]);
        assert!(keeper.is_closed());
        assert_eq!(keeper.receive::<String>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
