//! The limit of tcp: `send` and `recv` of whole blocks on one loopback connection, without a protocol.
//!
//! READ: one byte asks, the target answers with the batch. WRITE: the initiator sends the batch, one byte
//! answers. So a request is complete when its last byte has reached its destination, and a batch of one small
//! block is a round trip.

use std::ffi::c_void;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::error::LimitError;
use crate::memory::Pool;
use crate::pair::{BatchLoop, DEADLINE};
use crate::workload::Wait;

const SPINS_PER_LOOK_AT_THE_CLOCK: u32 = 1 << 16;

/// What a process does in each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Sends the blocks, then takes one byte.
    SendThenTake,
    /// Takes one byte, then sends the blocks.
    TakeThenSend,
    /// Sends one byte, then takes the blocks.
    AskThenTake,
    /// Takes the blocks, then sends one byte.
    TakeThenConfirm,
}

/// One process's end of the connection.
pub(crate) struct Tcp<'a> {
    pub(crate) stream: TcpStream,
    pub(crate) pool: &'a Pool,
    pub(crate) slots: &'a [usize],
    pub(crate) block_bytes: usize,
    pub(crate) part: Part,
    pub(crate) wait: Wait,
}

impl Tcp<'_> {
    /// No delay for small segments, and no wait without an end.
    pub(crate) fn settings(stream: &TcpStream) -> Result<(), LimitError> {
        let doing = "setting up the connection";
        stream.set_nodelay(true).map_err(LimitError::os(doing))?;
        stream.set_read_timeout(Some(DEADLINE)).map_err(LimitError::os(doing))?;
        stream.set_write_timeout(Some(DEADLINE)).map_err(LimitError::os(doing))
    }

    fn send_blocks(&self) -> Result<(), LimitError> {
        self.slots.iter().try_for_each(|&slot| self.send_all(self.pool.slot(slot), self.block_bytes))
    }

    fn take_blocks(&self) -> Result<(), LimitError> {
        self.slots.iter().try_for_each(|&slot| self.take_all(self.pool.slot(slot), self.block_bytes))
    }

    fn send_byte(&self) -> Result<(), LimitError> {
        let byte = 0_u8;
        self.send_all((&raw const byte).cast_mut().cast(), 1)
    }

    fn take_byte(&self) -> Result<(), LimitError> {
        let mut byte = 0_u8;
        self.take_all((&raw mut byte).cast(), 1)
    }

    fn send_all(&self, from: *mut c_void, bytes: usize) -> Result<(), LimitError> {
        self.until_all("sending", from, bytes, |fd, at, left, flags| {
            // SAFETY: `until_all` stays inside the `bytes` at `from`, which the callers above own.
            unsafe { libc::send(fd, at, left, flags | libc::MSG_NOSIGNAL) }
        })
    }

    fn take_all(&self, to: *mut c_void, bytes: usize) -> Result<(), LimitError> {
        self.until_all("receiving", to, bytes, |fd, at, left, flags| {
            // SAFETY: `until_all` stays inside the `bytes` at `to`, which the callers above own, and no
            // reference to them exists.
            unsafe { libc::recv(fd, at, left, flags) }
        })
    }

    /// Repeats a call until `bytes` have passed.
    fn until_all(
        &self,
        doing: &'static str,
        start: *mut c_void,
        bytes: usize,
        call: impl Fn(libc::c_int, *mut c_void, usize, libc::c_int) -> isize,
    ) -> Result<(), LimitError> {
        let flags = if self.wait == Wait::Spin { libc::MSG_DONTWAIT } else { 0 };
        let fd = self.stream.as_raw_fd();
        let mut passed = 0;
        let mut spins = 0;
        let mut waiting_since = None;
        while passed < bytes {
            let moved = call(fd, start.wrapping_byte_add(passed), bytes - passed, flags);
            match usize::try_from(moved) {
                Ok(0) => return Err(LimitError::Short { doing, moved: passed, asked: bytes }),
                Ok(moved) => passed += moved,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if self.wait == Wait::Block || error.kind() != io::ErrorKind::WouldBlock {
                        return Err(LimitError::Os { doing, source: error });
                    }
                    spins += 1;
                    if spins % SPINS_PER_LOOK_AT_THE_CLOCK == 0 {
                        stop_at_deadline(doing, *waiting_since.get_or_insert_with(Instant::now), DEADLINE)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn stop_at_deadline(doing: &'static str, since: Instant, deadline: Duration) -> Result<(), LimitError> {
    if since.elapsed() < deadline {
        return Ok(());
    }
    Err(LimitError::Os { doing, source: io::ErrorKind::TimedOut.into() })
}

impl BatchLoop for Tcp<'_> {
    fn batch(&mut self) -> Result<(), LimitError> {
        match self.part {
            Part::SendThenTake => self.send_blocks().and_then(|()| self.take_byte()),
            Part::TakeThenSend => self.take_byte().and_then(|()| self.send_blocks()),
            Part::AskThenTake => self.send_byte().and_then(|()| self.take_blocks()),
            Part::TakeThenConfirm => self.take_blocks().and_then(|()| self.send_byte()),
        }
    }
}
