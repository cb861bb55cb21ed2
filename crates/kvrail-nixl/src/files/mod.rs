//! Files: moves between host memory and files, on threads of their own, for the backend that callers name POSIX.
//!
//! A file is named by a number: that of a descriptor which the caller opened and closes, or any number together with a path to
//! open (`rw,create:/path`). Bytes go by positioned vectored reads and writes straight from and to the caller's memory: pieces
//! that follow each other in a file share one system call, however scattered their memory is. What a kernel moves less of than it
//! was asked for goes on where it stopped.
//!
//! - KR-7: a job is done or failed only when no thread touches its memory any more; dropping one cancels and drains it.
//! - KR-8: what waits is bounded; a job that finds no room is refused, not queued.
//! - No wrong file: a descriptor number that was closed and came to mean another file is an error, and while a job runs the
//!   file is held by a descriptor of the job's own.
//! - No signal: memory that is not mapped is `EFAULT` from the system call.

mod error;
mod job;
mod open;
mod query;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kvrail_core::transport::Direction;
use parking_lot::Mutex;

pub use self::error::FileError;
pub use self::job::Job;
pub use self::query::query;

use self::job::Piece;
use self::open::Known;
use self::worker::Pool;
use crate::list::RegDesc;

/// Parameters of the backend and their defaults.
///
/// The three that choose how NIXL asks its kernel are understood and have no effect: threads move the bytes here.
pub const PARAMS: &[(&str, &str)] = &[
    ("use_aio", "false"),
    ("use_uring", "false"),
    ("use_posix_aio", "false"),
    ("ios_pool_size", "65536"),
    ("kernel_queue_size", "256"),
];

/// Moves that may wait, of all jobs together: NIXL's limits.
const WAITING: std::ops::RangeInclusive<u64> = 64..=65_536;
/// Threads: what a local disk needs to be busy.
const THREADS_MAX: u64 = 8;

/// One move: `len` bytes between memory and a registered file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileMove {
    /// Address of the first byte in memory.
    pub memory: u64,
    /// Bytes.
    pub len: u64,
    /// The file's number, as registered.
    pub device: u64,
    /// Where in the file.
    pub offset: u64,
}

/// The files of one agent and the threads that move their bytes.
#[derive(Debug)]
pub struct Files {
    known: Mutex<HashMap<u64, Known>>,
    pool: Pool,
}

impl Files {
    /// Without files as yet; threads start when they are needed.
    ///
    /// # Errors
    /// [`FileError::Parameter`] for a value that cannot be.
    pub fn create(params: &BTreeMap<String, String>) -> Result<Self, FileError> {
        let mut waiting_max = *WAITING.end();
        let mut threads_max = THREADS_MAX;
        for (name, value) in params {
            match name.as_str() {
                "use_aio" | "use_uring" | "use_posix_aio" => {
                    if boolean(name, value)? {
                        tracing::info!(
                            "parameter {name} of backend POSIX has no effect: threads move the bytes"
                        );
                    }
                }
                // Zero is the default, as in NIXL.
                "ios_pool_size" => match number(name, value)? {
                    0 => {}
                    size => waiting_max = size.clamp(*WAITING.start(), *WAITING.end()),
                },
                "kernel_queue_size" => match number(name, value)? {
                    0 => {}
                    size => threads_max = size.clamp(1, THREADS_MAX),
                },
                _ => tracing::warn!("parameter {name}={value} of backend POSIX is unknown and has no effect"),
            }
        }
        Ok(Self { known: Mutex::default(), pool: Pool::new(threads_max as usize, waiting_max as usize) })
    }

    /// Makes a file known by the number in `desc`: that of an open descriptor, which stays the caller's, or, with a path for the
    /// backend, any number that no other file has. Several ranges of a descriptor may be registered.
    ///
    /// # Errors
    /// When the number is no open descriptor, is taken, or the path does not open.
    pub fn register(&self, desc: &RegDesc) -> Result<(), FileError> {
        let device = desc.desc.device;
        let mut known = self.known.lock();
        if let Some(spec) = open::PathSpec::parse(&desc.meta) {
            if known.contains_key(&device) {
                return Err(FileError::Taken { device });
            }
            known.insert(device, Known::open(&spec)?);
            return Ok(());
        }
        match known.get_mut(&device) {
            // The number may have been closed since and mean another file now: that one is registered.
            Some(file) if file.is_borrowed() => file.again(device),
            Some(_) => Err(FileError::Taken { device }),
            None => {
                known.insert(device, Known::borrow(device)?);
                Ok(())
            }
        }
    }

    /// Forgets a registration. A file that was opened from its path is closed when the last job that moves its bytes ends.
    pub fn deregister(&self, desc: &RegDesc) {
        let mut known = self.known.lock();
        if known.get_mut(&desc.desc.device).is_some_and(Known::forget_one) {
            known.remove(&desc.desc.device);
        }
    }

    /// Begins to move: into memory for [`Direction::Read`], into the files for [`Direction::Write`]. The order among moves is not
    /// defined. That `offset` lies in what was registered is the caller's to check.
    ///
    /// # Errors
    /// When a number is not registered or means another file by now, a range has no end, or too much waits already.
    ///
    /// # Safety
    /// The memory of every move that is mapped has to be the caller's to read or write until the job is done, failed or drained: the
    /// kernel checks that addresses are mapped, not whose they are.
    pub unsafe fn submit(&self, moves: &[FileMove], direction: Direction) -> Result<Job, FileError> {
        let mut held = Vec::new();
        let mut places: HashMap<u64, usize> = HashMap::new();
        let mut last = None;
        let mut pieces = Vec::with_capacity(moves.len());
        {
            let known = self.known.lock();
            for &FileMove { memory, len, device, offset } in moves {
                let place = match last {
                    Some((of, place)) if of == device => place,
                    _ => match places.get(&device) {
                        Some(place) => *place,
                        None => {
                            let file = known.get(&device).ok_or(FileError::Unregistered { device })?;
                            held.push(file.hold(device)?);
                            places.insert(device, held.len() - 1);
                            held.len() - 1
                        }
                    },
                };
                last = Some((device, place));
                if memory.checked_add(len).is_none()
                    || offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64)
                {
                    return Err(FileError::Range { device, offset, len });
                }
                if len > 0 {
                    pieces.push(Piece { memory, len, offset, place });
                }
            }
        }
        self.pool.submit(Arc::new(job::Work::new(pieces, held, direction)))
    }
}

fn boolean(name: &str, value: &str) -> Result<bool, FileError> {
    let among = |words: [&str; 6]| words.iter().any(|word| word.eq_ignore_ascii_case(value));
    match (
        among(["y", "yes", "on", "1", "true", "enable"]),
        among(["n", "no", "off", "0", "false", "disable"]),
    ) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(FileError::Parameter { name: name.into(), value: value.into(), wanted: "true or false" }),
    }
}

fn number(name: &str, value: &str) -> Result<u64, FileError> {
    let number: Result<u32, _> = value.parse();
    let number = number.map(u64::from);
    number.map_err(|_| FileError::Parameter {
        name: name.into(),
        value: value.into(),
        wanted: "a whole number",
    })
}
