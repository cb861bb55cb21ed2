//! The buffer file: a ring of events that NIXL's telemetry readers map and take events from.
//!
//! Events wait in memory (bounded: what finds no room is counted and told in the file) until a thread writes them, so that no
//! transfer ever waits for a disk. The file is written through the file descriptor and not through a mapping: a file that someone
//! truncates, or a full filesystem, is an error here and not a signal that ends the process. Reader and writer are separate
//! processes; each position has one writer, and positions are written after the events that they cover.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::event::{Event, Mask};
use super::settings::{BUFFER_SIZE, DIR};
use crate::error::{Error, Result, Status};

/// The layout that readers compare with theirs.
const VERSION: u32 = 4;
/// Where the next event is written to, as the readers' mapping has it.
const WRITE_POSITION: u64 = 0;
/// Where the next event is read from.
const READ_POSITION: u64 = 8;
/// Positions, version twice, capacity and mask.
const HEADER_BYTES: u64 = 40;
/// Kind, four bytes of padding, value.
const EVENT_BYTES: u64 = 16;
/// Events that wait for the thread at most, however large the file.
const WAITING_MAX: usize = 1 << 20;

/// An event on its way.
pub(crate) type Counted = (Event, u64);

/// The file of one agent and the thread that fills it. What waits is written before it goes.
#[derive(Debug)]
pub(crate) struct Buffer {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    dropped: AtomicU64,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<Counted>,
    closed: bool,
}

impl Buffer {
    /// Makes the file `dir/name`, or takes the one that is there: a reader that has it open goes on reading.
    ///
    /// # Errors
    /// [`Status::Backend`] when the file is not to be had.
    pub(crate) fn create(
        dir: &Path,
        name: &str,
        events: u64,
        interval: Duration,
        mask: Mask,
    ) -> Result<Self> {
        let path = dir.join(name);
        if name.contains('/') || name == "." || name == ".." {
            let what = format!("an agent named \"{name}\" has no buffer file in {}", dir.display());
            return Err(Error::new(Status::Backend, what).hint("name the agent without a slash"));
        }
        let ring = Ring::create(&path, events).map_err(|error| {
            Error::new(Status::Backend, format!("cannot make the telemetry file {}: {error}", path.display()))
                .hint(format!("{DIR} has to be a directory that this process may write to, with room for {BUFFER_SIZE} events of {EVENT_BYTES} bytes"))
        })?;
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            dropped: AtomicU64::new(0),
            capacity: usize::try_from(events).unwrap_or(WAITING_MAX).min(WAITING_MAX),
        });
        let writer = Writer { ring, shared: shared.clone(), path, interval, mask, failing: false };
        let thread = std::thread::Builder::new().name("kvrail-telemetry".to_owned());
        let writer = thread.spawn(move || writer.run()).map_err(|error| {
            Error::new(Status::Backend, format!("cannot start the thread that writes telemetry: {error}"))
        })?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// All of `events` or, when there is no room for all, none.
    #[inline]
    pub(crate) fn push(&self, events: &[Counted]) {
        let mut waiting = self.shared.waiting.lock();
        if waiting.events.len() + events.len() <= self.shared.capacity {
            waiting.events.extend_from_slice(events);
            return;
        }
        drop(waiting);
        self.shared.dropped.fetch_add(events.len() as u64, Ordering::Relaxed);
    }

    /// Ends the thread after it wrote what waits.
    pub(crate) fn close(&mut self) {
        self.shared.waiting.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }

    /// Lets go of a thread that this process, a forked child, does not have.
    pub(crate) fn forget(&mut self) {
        self.writer = None;
    }
}

struct Writer {
    ring: Ring,
    shared: Arc<Shared>,
    path: PathBuf,
    interval: Duration,
    mask: Mask,
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        let mut events = Vec::new();
        loop {
            let closed = {
                let mut waiting = self.shared.waiting.lock();
                if !waiting.closed {
                    let _ = self.shared.wake.wait_for(&mut waiting, self.interval);
                }
                std::mem::swap(&mut waiting.events, &mut events);
                waiting.closed
            };
            let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 && self.mask.has(Event::Dropped) {
                events.push((Event::Dropped, dropped));
            }
            self.write(&events);
            events.clear();
            if closed {
                return;
            }
        }
    }

    fn write(&mut self, events: &[Counted]) {
        let path = self.path.display();
        match self.ring.push(events) {
            Ok(fitted) => {
                self.failing = false;
                if fitted < events.len() {
                    tracing::debug!(
                        "{path} is full: nobody reads it, {} events are lost",
                        events.len() - fitted
                    );
                }
            }
            // Said once for each time that it begins.
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!("cannot write telemetry to {path}: {error}");
            }
            Err(_) => {}
        }
    }
}

/// The ring in its file. Positions count events modulo the capacity; one place stays free to tell full from empty.
#[derive(Debug)]
struct Ring {
    file: File,
    capacity: u64,
    write: u64,
    bytes: Vec<u8>,
}

impl Ring {
    fn create(path: &Path, capacity: u64) -> io::Result<Self> {
        // Not truncated here: a reader that has it mapped would be hit by a signal.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it exists and is not a file"));
        }
        let bytes = HEADER_BYTES + capacity * EVENT_BYTES;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .or_else(|error| if error == rustix::io::Errno::OPNOTSUPP { Ok(()) } else { Err(error) })?;
        file.set_len(bytes)?;
        let mut header = [0; HEADER_BYTES as usize];
        header[16..20].copy_from_slice(&VERSION.to_ne_bytes());
        header[20..24].copy_from_slice(&VERSION.to_ne_bytes());
        header[24..32].copy_from_slice(&capacity.to_ne_bytes());
        header[32..40].copy_from_slice(&(capacity - 1).to_ne_bytes());
        file.write_all_at(&header, 0)?;
        Ok(Self { file, capacity, write: 0, bytes: Vec::new() })
    }

    /// Appends as many of `events` as have room and says how many.
    fn push(&mut self, events: &[Counted]) -> io::Result<usize> {
        if events.is_empty() {
            return Ok(0);
        }
        let mut position = [0; 8];
        self.file.read_exact_at(&mut position, READ_POSITION)?;
        // Whatever a reader left there is a position.
        let read = u64::from_ne_bytes(position) & (self.capacity - 1);
        let room = read.wrapping_sub(self.write).wrapping_sub(1) & (self.capacity - 1);
        let fitting = &events[..events.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let to_end = usize::try_from(self.capacity - self.write).unwrap_or(usize::MAX).min(fitting.len());
        let (first, second) = fitting.split_at(to_end);
        self.write_at(self.write, first)?;
        self.write_at(0, second)?;
        // The reader maps what is written here: events first.
        fence(Ordering::SeqCst);
        let write = (self.write + fitting.len() as u64) & (self.capacity - 1);
        self.file.write_all_at(&write.to_ne_bytes(), WRITE_POSITION)?;
        self.write = write;
        Ok(fitting.len())
    }

    fn write_at(&mut self, position: u64, events: &[Counted]) -> io::Result<()> {
        self.bytes.clear();
        for (event, value) in events {
            self.bytes.extend_from_slice(&(*event as u32).to_ne_bytes());
            self.bytes.extend_from_slice(&[0; 4]);
            self.bytes.extend_from_slice(&value.to_ne_bytes());
        }
        self.file.write_all_at(&self.bytes, HEADER_BYTES + position * EVENT_BYTES)
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    /// What a reader takes.
    fn pop(file: &File, capacity: u64) -> Vec<(u64, u64)> {
        let number = |at| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            u64::from_ne_bytes(bytes)
        };
        let (write, mut read) = (number(0), number(8));
        let mut popped = Vec::new();
        while read != write {
            let at = HEADER_BYTES + read * EVENT_BYTES;
            popped.push((number(at), number(at + 8)));
            read = (read + 1) & (capacity - 1);
        }
        file.write_all_at(&read.to_ne_bytes(), 8).unwrap();
        popped
    }

    #[test]
    fn what_is_pushed_is_read_in_order_around_the_end_and_a_full_ring_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut ring = Ring::create(&path, 8).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 40 + 8 * 16);
        let mut next = 0;
        for round in 1..40 {
            let events: Vec<_> = (next..next + round % 10).map(|value| (Event::Registered, value)).collect();
            let fitted = ring.push(&events).unwrap();
            assert_eq!(fitted, events.len().min(7), "one place stays free");
            let expected: Vec<_> = (next..next + fitted as u64).map(|value| (4, value)).collect();
            assert_eq!(pop(&file, 8), expected);
            next += fitted as u64;
        }
        assert_eq!(ring.push(&[(Event::TxBytes, 1); 5]).unwrap(), 5);
        assert_eq!(ring.push(&[(Event::TxBytes, 2); 5]).unwrap(), 2);
        assert_eq!(ring.push(&[(Event::TxBytes, 3)]).unwrap(), 0);
        // A reader may leave nonsense; nothing but its own events suffers.
        file.write_all_at(&u64::MAX.to_ne_bytes(), READ_POSITION).unwrap();
        ring.push(&[(Event::TxBytes, 4); 20]).unwrap();
        file.set_len(3).unwrap();
        ring.push(&[(Event::TxBytes, 5)]).unwrap_err();
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let interval = Duration::from_secs(3600);
        let mut buffer = Buffer::create(dir.path(), "a", 8, interval, Mask::ALL).unwrap();
        let batch = [(Event::TxBytes, 1), (Event::TxRequests, 1), (Event::XferTime, 9)];
        for _ in 0..4 {
            buffer.push(&batch);
        }
        buffer.close();
        let file = OpenOptions::new().read(true).write(true).open(dir.path().join("a")).unwrap();
        let popped = pop(&file, 8);
        assert_eq!(popped.len(), 7, "two batches and what was dropped");
        assert_eq!(popped[..3], [(0, 1), (2, 1), (6, 9)]);
        assert_eq!(popped[6], (20, 6));
    }

    #[test]
    fn a_file_that_is_not_to_be_had_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("is-a-directory")).unwrap();
        for (dir, name) in [
            (dir.path().to_owned(), "is-a-directory"),
            (dir.path().join("absent"), "a"),
            (dir.path().to_owned(), "b/c"),
            (dir.path().to_owned(), ".."),
        ] {
            let error = Buffer::create(&dir, name, 8, Duration::from_secs(1), Mask::ALL).unwrap_err();
            assert_eq!(error.status, Status::Backend);
            assert!(error.what.contains(name) && !error.hints.is_empty(), "{error}");
        }
    }
}
