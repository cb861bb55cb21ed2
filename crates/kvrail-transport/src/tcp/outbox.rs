//! What a connection has still to send: encoded frames, and slices of registered memory that go out without a copy.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::region::{Regions, Slice};
use super::sys::{self, iovec};

/// Slices of one send call; the kernel takes 1,024.
const IOVECS_MAX: usize = 256;
/// Below this, copying a message beats an allocation and a slice of its own.
const INLINE_BYTES_MAX: usize = 1 << 10;
/// Capacity that an idle connection may keep, bytes.
const KEPT_BYTES_MAX: usize = 4 << 10;

enum Segment {
    /// The next so many bytes of `encoded`.
    Encoded(usize),
    /// Registered memory, looked up when it is sent.
    Memory(Slice),
    /// Bytes of its own, sent from `at` on.
    Owned { bytes: Vec<u8>, at: usize },
}

/// Bytes in order of sending.
#[derive(Default)]
pub(crate) struct Outbox {
    encoded: Vec<u8>,
    encoded_at: usize,
    segments: VecDeque<Segment>,
    bytes: usize,
}

/// How far sending came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// Nothing is left.
    All,
    /// The kernel's buffer is full.
    Blocked,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Unsent bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn push_encoded(&mut self, bytes: &[u8]) {
        self.encoded.extend_from_slice(bytes);
        self.bytes += bytes.len();
        match self.segments.back_mut() {
            Some(Segment::Encoded(len)) => *len += bytes.len(),
            _ => self.segments.push_back(Segment::Encoded(bytes.len())),
        }
    }

    pub(crate) fn push_owned(&mut self, bytes: Vec<u8>) {
        if bytes.len() <= INLINE_BYTES_MAX {
            return self.push_encoded(&bytes);
        }
        self.bytes += bytes.len();
        self.segments.push_back(Segment::Owned { bytes, at: 0 });
    }

    pub(crate) fn push_memory(&mut self, slice: Slice) {
        self.bytes += slice.len as usize;
        self.segments.push_back(Segment::Memory(slice));
    }

    /// Copies what is still unsent of a region that is about to be deregistered: its frame is under way and has to be
    /// completed with the bytes that the memory held while it was registered.
    pub(crate) fn detach(&mut self, region: u32, regions: &Regions) {
        for segment in &mut self.segments {
            if let Segment::Memory(slice) = segment
                && slice.region == region
                && let Some(bytes) = regions.copy_out(slice)
            {
                *segment = Segment::Owned { bytes, at: 0 };
            }
        }
    }

    /// Sends until nothing is left or the kernel takes no more. Adds what was taken to `sent`.
    pub(crate) fn send(
        &mut self,
        fd: RawFd,
        regions: &Regions,
        iovecs: &mut Vec<iovec>,
        sent: &mut u64,
    ) -> io::Result<Sent> {
        while !self.segments.is_empty() {
            let asked = self.gather(regions, iovecs)?;
            // SAFETY: `gather` made the slices from this outbox's own buffers, which are not changed until the call
            // is over, and from registered memory, which its owner keeps valid until it is deregistered.
            let taken = match unsafe { sys::send(fd, iovecs) } {
                Ok(taken) => taken,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            *sent += taken as u64;
            self.advance(taken);
            if taken < asked {
                return Ok(Sent::Blocked);
            }
        }
        Ok(Sent::All)
    }

    fn gather(&self, regions: &Regions, iovecs: &mut Vec<iovec>) -> io::Result<usize> {
        iovecs.clear();
        let (mut encoded_at, mut total) = (self.encoded_at, 0);
        for segment in self.segments.iter().take(IOVECS_MAX) {
            let (base, len) = match segment {
                Segment::Encoded(len) => {
                    let bytes = &self.encoded[encoded_at..encoded_at + len];
                    encoded_at += len;
                    (bytes.as_ptr().cast_mut(), *len)
                }
                Segment::Owned { bytes, at } => (bytes[*at..].as_ptr().cast_mut(), bytes.len() - at),
                Segment::Memory(slice) => match regions.resolve(slice) {
                    Some(base) => (base, slice.len as usize),
                    // Only own writes can get here, and only if their region was deregistered under them.
                    None => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
                },
            };
            iovecs.push(iovec { iov_base: base.cast(), iov_len: len });
            total += len;
        }
        Ok(total)
    }

    fn advance(&mut self, mut taken: usize) {
        self.bytes -= taken;
        while taken > 0 {
            let Some(segment) = self.segments.front_mut() else { break };
            let left = match segment {
                Segment::Encoded(len) => *len,
                Segment::Owned { bytes, at } => bytes.len() - *at,
                Segment::Memory(slice) => slice.len as usize,
            };
            let step = taken.min(left);
            match segment {
                Segment::Encoded(len) => {
                    *len -= step;
                    self.encoded_at += step;
                }
                Segment::Owned { at, .. } => *at += step,
                Segment::Memory(slice) => {
                    slice.offset += step as u64;
                    slice.len -= step as u32;
                }
            }
            taken -= step;
            if step == left {
                self.segments.pop_front();
            }
        }
        if self.segments.is_empty() {
            self.encoded.clear();
            self.encoded_at = 0;
            self.encoded.shrink_to(KEPT_BYTES_MAX);
            self.segments.shrink_to(64);
        } else if self.encoded_at > 16 * KEPT_BYTES_MAX {
            self.encoded.drain(..self.encoded_at);
            self.encoded_at = 0;
        }
    }
}
