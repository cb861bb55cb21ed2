//! Signals as readable file descriptors, so that one `poll` waits for them and for everything else.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::SigId;
use signal_hook::consts::SIGHUP;
use signal_hook::low_level::{pipe, unregister};

use super::error::Error;

/// Signals that this process receives from now on; given back when dropped.
pub(super) struct Signals(Vec<(i32, UnixStream, SigId)>);

impl Signals {
    /// Starts receiving. A SIGHUP that is ignored already stays so: `nohup` means it. Shells also start jobs in the
    /// background with SIGINT ignored, but who sends it to one means it.
    pub(super) fn receive(signals: &[i32]) -> Result<Self, Error> {
        let mut received = Vec::new();
        for signal in signals.iter().copied().filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP)) {
            let refused = |e| Error::system(format!("handle signal {signal}"), e);
            let (reader, writer) = UnixStream::pair().map_err(refused)?;
            reader.set_nonblocking(true).map_err(refused)?;
            received.push((signal, reader, pipe::register(signal, writer).map_err(refused)?));
        }
        Ok(Self(received))
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, reader, _)| reader.as_fd())
    }

    /// Those that came since the last call; several of a kind count once.
    pub(super) fn take(&self) -> Vec<i32> {
        let came = |reader: &UnixStream| {
            let mut reader = reader;
            let mut bytes = [0; 64];
            let mut any = false;
            while reader.read(&mut bytes).is_ok_and(|n| n > 0) {
                any = true;
            }
            any
        };
        self.0.iter().filter(|(_, reader, _)| came(reader)).map(|(signal, _, _)| *signal).collect()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (_, _, id) in &self.0 {
            unregister(*id);
        }
    }
}

/// Whether this process was started with the signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
