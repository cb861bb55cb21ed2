//! Hears what NIXL and what is below it write to standard error: nothing else says what they really use.
//!
//! Where standard error is a regular file, as a conductor's children have it, it is read along, and whoever owns the file still has
//! every word after a crash. Else it is put aside for as long as is listened, and what is not for machines is passed on afterwards.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvrail_sys::nixl::Surroundings;
use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};

use super::said::is_for_machines;

/// What is kept of one spell of listening. More is dropped where standard error was put aside: an engine that complains without end
/// does not fill the memory.
const HEARD_BYTES_MAX: u64 = 16 << 20;

/// Standard error is one: while somebody listens, others need not, and what they would have heard is heard.
static LISTENING: Mutex<Option<Tap>> = Mutex::new(None);

/// Listens from its making until [`hear`](Self::hear) takes it, or until it is dropped.
pub(super) struct Ear {
    /// False for one that came while another listened.
    is_listening: bool,
}

enum Tap {
    /// A second view of the file, at where listening began.
    Along(File),
    /// The true standard error, and what stands in for it.
    Aside { original: OwnedFd, stand_in: File },
}

impl Ear {
    /// Begins to listen. Without the means to, nothing is heard, which is no reason to fail.
    pub(super) fn open() -> Self {
        let mut listening = listening();
        if listening.is_some() {
            return Self { is_listening: false };
        }
        *listening = open().inspect_err(|error| log::warn!("cannot listen to standard error: {error}")).ok();
        Self { is_listening: listening.is_some() }
    }

    /// Ends listening; everything that was said.
    pub(super) fn hear(mut self) -> String {
        if std::mem::take(&mut self.is_listening) { end() } else { String::new() }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if self.is_listening {
            end();
        }
    }
}

fn listening() -> MutexGuard<'static, Option<Tap>> {
    LISTENING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends listening, whoever began it: for when that one does not come back. Everything that was said.
pub(super) fn end() -> String {
    let mut heard = Vec::new();
    match listening().take() {
        None => {}
        Some(Tap::Along(mut file)) => {
            // What could be read before an error is what there is.
            let _ = (&mut file).take(HEARD_BYTES_MAX).read_to_end(&mut heard);
        }
        Some(Tap::Aside { original, mut stand_in }) => {
            let _ = rustix::stdio::dup2_stderr(&original);
            // The offset is shared with standard error: it says how much was written.
            let len = stand_in.stream_position().unwrap_or(0);
            let _ = stand_in.rewind();
            let _ = stand_in.take(len).read_to_end(&mut heard);
            pass_on(&heard);
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// Writes to the true standard error what was meant for a person, or is not NIXL's at all.
fn pass_on(heard: &[u8]) {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    // Whoever asked for the log gets all of it.
    let is_wanted = is_set("NIXL_LOG_LEVEL") && !is_set(Surroundings::HEARD);
    let text = String::from_utf8_lossy(heard);
    let mut stderr = io::stderr().lock();
    for line in text.lines().filter(|line| is_wanted || !is_for_machines(line)) {
        // Nobody reads it: then nobody misses it.
        let _ = writeln!(stderr, "{line}");
    }
}

fn open() -> io::Result<Tap> {
    let stderr = rustix::stdio::stderr();
    if FileType::from_raw_mode(fstat(stderr)?.st_mode) == FileType::RegularFile
        && let Ok(mut file) = File::open("/proc/self/fd/2")
    {
        file.seek(SeekFrom::End(0))?;
        return Ok(Tap::Along(file));
    }
    let original = rustix::io::fcntl_dupfd_cloexec(stderr, 3)?;
    let stand_in = memfd_create("nixl-log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&stand_in, HEARD_BYTES_MAX)?;
    fcntl_add_seals(&stand_in, SealFlags::GROW)?;
    rustix::stdio::dup2_stderr(&stand_in)?;
    Ok(Tap::Aside { original, stand_in: File::from(stand_in) })
}
