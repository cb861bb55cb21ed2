//! What the commands print: read from their pipes, cut into lines, prefixed with the node, written by one thread.
//!
//! Lines of several nodes never mix. A pipe is not read while the terminal (or whatever stdout is) does not keep up, so
//! that a command that prints faster than anybody reads waits, as it would without us, and memory stays bounded.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest line that is kept whole, bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// What one read takes, bytes: as much as a pipe holds by default.
const READ_BYTES: usize = 64 << 10;
/// Blocks that wait for the writer at most; with a block of at most a few reads, some MiB.
const BLOCKS_MAX: usize = 16;

/// Where a stream goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sink {
    Stdout,
    Stderr,
}

/// Lines out of bytes that arrive in pieces, each with a prefix.
struct Lines {
    prefix: String,
    /// For the rest of a line that was too long to be kept whole.
    continuation: String,
    partial: Vec<u8>,
    continued: bool,
}

impl Lines {
    fn new(node: Option<u32>) -> Self {
        let mark = |mark: char| node.map(|node| format!("node{node} {mark} ")).unwrap_or_default();
        Self { prefix: mark('|'), continuation: mark('+'), partial: Vec::new(), continued: false }
    }

    /// The lines that are whole with these bytes.
    fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.keep(&bytes[..end], out);
            self.put(out);
            self.continued = false;
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes, out);
    }

    fn keep(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            let (now, later) = bytes.split_at(LINE_BYTES_MAX - self.partial.len());
            self.partial.extend_from_slice(now);
            self.put(out);
            self.continued = true;
            bytes = later;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn put(&mut self, out: &mut Vec<u8>) {
        let prefix = if self.continued { &self.continuation } else { &self.prefix };
        out.extend_from_slice(prefix.as_bytes());
        out.append(&mut self.partial);
        out.push(b'\n');
    }

    /// What is left when the stream has ended: a last line without its end gets one.
    fn rest(&mut self, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.put(out);
        }
    }
}

/// One stream of one node.
struct Stream {
    pipe: io::PipeReader,
    sink: Sink,
    lines: Lines,
}

/// All streams, and the thread that writes what they brought.
pub(super) struct Output {
    streams: Vec<Stream>,
    waiting: VecDeque<(Sink, Vec<u8>)>,
    blocks: Option<SyncSender<(Sink, Vec<u8>)>>,
    writer: Option<JoinHandle<()>>,
    /// Whether whoever read our stdout has gone.
    broken: bool,
}

/// Who gets the blocks: by default, this process's own stdout and stderr.
pub(super) type Printer = Box<dyn FnMut(Sink, &[u8]) -> io::Result<()> + Send>;

/// To this process's own stdout and stderr.
pub(super) fn to_terminal() -> Printer {
    Box::new(|sink, block| match sink {
        Sink::Stdout => io::stdout().lock().write_all(block).and_then(|()| io::stdout().flush()),
        Sink::Stderr => io::stderr().lock().write_all(block),
    })
}

fn write_all(blocks: &Receiver<(Sink, Vec<u8>)>, mut write: Printer) {
    for (sink, block) in blocks {
        let written = write(sink, &block);
        // Whoever read our stdout has gone: as the default action of SIGPIPE, this ends everything. Without stderr, a
        // command may go on.
        if written.is_err() && sink == Sink::Stdout {
            return;
        }
    }
}

impl Output {
    pub(super) fn new(write: Printer) -> Self {
        let (sender, receiver) = sync_channel(BLOCKS_MAX);
        let writer = std::thread::spawn(move || write_all(&receiver, write));
        Self {
            streams: Vec::new(),
            waiting: VecDeque::new(),
            blocks: Some(sender),
            writer: Some(writer),
            broken: false,
        }
    }

    /// Adds a stream, its lines marked with the node if one is given; returns the end that the command writes to.
    pub(super) fn open(&mut self, node: Option<u32>, sink: Sink) -> io::Result<io::PipeWriter> {
        let (reader, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        self.streams.push(Stream { pipe: reader, sink, lines: Lines::new(node) });
        Ok(writer)
    }

    /// What to wait for: nothing while the writer does not keep up.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        if self.is_behind() { Vec::new() } else { self.streams.iter().map(|s| s.pipe.as_fd()).collect() }
    }

    /// Whether what has been read waits for the writer: then [`Output::turn`] has to be called again soon.
    pub(super) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether nobody reads our stdout any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Reads what has arrived and hands it to the writer, without waiting for either.
    pub(super) fn turn(&mut self) {
        self.hand_over();
        if self.is_behind() {
            return;
        }
        let mut bytes = [0; READ_BYTES];
        let mut at = 0;
        while at < self.streams.len() {
            let stream = &mut self.streams[at];
            let mut out = Vec::new();
            let ended = match stream.pipe.read(&mut bytes) {
                Ok(0) => true,
                Ok(n) => {
                    stream.lines.take(&bytes[..n], &mut out);
                    false
                }
                Err(e) => !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
            };
            if ended {
                stream.lines.rest(&mut out);
            }
            if !out.is_empty() {
                self.waiting.push_back((stream.sink, out));
            }
            if ended {
                self.streams.remove(at);
            } else {
                at += 1;
            }
        }
        self.hand_over();
    }

    fn hand_over(&mut self) {
        let Some(blocks) = &self.blocks else { return };
        while let Some(block) = self.waiting.pop_front() {
            match blocks.try_send(block) {
                Ok(()) => {}
                Err(TrySendError::Full(block)) => {
                    self.waiting.push_front(block);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => {
                    self.broken = true;
                    self.waiting.clear();
                    return;
                }
            }
        }
    }

    /// Brings what is still in the pipes to its end, for as long as `wait` allows: nobody writes to them any more.
    pub(super) fn finish(mut self, wait: Duration) {
        let deadline = Instant::now() + wait;
        loop {
            let before = self.streams.len();
            self.turn();
            let idle = !self.is_behind() && self.streams.len() == before;
            if self.broken || self.streams.is_empty() && !self.is_behind() || Instant::now() > deadline {
                break;
            }
            if idle {
                // A stream that neither ends nor brings anything is held by somebody who is no longer ours.
                let mut fds: Vec<_> = self.fds().into_iter().map(readable_fd).collect();
                let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                if rustix::event::poll(&mut fds, Some(&moment)).is_ok_and(|n| n == 0) {
                    break;
                }
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for stream in &mut self.streams {
            let mut out = Vec::new();
            stream.lines.rest(&mut out);
            self.waiting.push_back((stream.sink, out));
        }
        self.hand_over();
        drop(self.blocks.take());
        if let Some(writer) = self.writer.take() {
            while !writer.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn readable_fd(fd: BorrowedFd<'_>) -> rustix::event::PollFd<'_> {
    rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::new(Some(1)), Vec::new());
        for piece in pieces {
            lines.take(piece, &mut out);
        }
        lines.rest(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_printed_whole_and_once() {
        assert_eq!(cut(&[b"a", b"b\nc", b"\n\nd"]), "node1 | ab\nnode1 | c\nnode1 | \nnode1 | d\n");
        assert_eq!(cut(&[b""]), "");
        let mut out = Vec::new();
        Lines::new(None).take(b"as it is\n", &mut out);
        assert_eq!(out, b"as it is\n");
    }

    #[test]
    fn a_line_too_long_to_be_kept_is_continued_with_another_mark() {
        let long = vec![b'x'; LINE_BYTES_MAX + 3];
        let text = cut(&[&long, b"y\nz\n"]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].len(), "node1 | ".len() + LINE_BYTES_MAX);
        assert_eq!(lines[1..], ["node1 + xxxy", "node1 | z"]);
    }
}
