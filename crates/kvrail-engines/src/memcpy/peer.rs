//! What a target offers, and how its memory is reached from here.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use kvrail::Memory;
use kvrail::memory::SharedMemory;
use serde::{Deserialize, Serialize};

use super::host::{Process, pid_realm, start_time};
use crate::error::{EngineError, Kind};

/// What the other side needs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Where process ids mean the same.
    realm: (String, String),
    pid: u32,
    started: u64,
    /// Address of the memory there.
    base: u64,
    len: u64,
    /// The file behind it; none of private memory.
    file: Option<File>,
}

/// A file that the other process has open.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    fd: i32,
    /// What it must be.
    device: u64,
    inode: u64,
    /// Where the memory begins in it.
    offset: u64,
}

impl Offer {
    /// What this process offers.
    pub(super) fn of(memory: &Memory) -> Result<Self, EngineError> {
        let failed =
            |e: io::Error| EngineError::new(Kind::Environment, format!("reading about this process: {e}"));
        let pid = std::process::id();
        let file = match memory.share() {
            None => None,
            Some(share) => {
                let fd = share.file.as_raw_fd();
                let about = fs::metadata(format!("/proc/self/fd/{fd}")).map_err(failed)?;
                Some(File { fd, device: about.dev(), inode: about.ino(), offset: share.offset })
            }
        };
        Ok(Self {
            realm: pid_realm().map_err(failed)?,
            pid,
            started: start_time(pid).map_err(failed)?,
            base: memory.base(),
            len: memory.len() as u64,
            file,
        })
    }
}

/// A target.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) process: Process,
    /// Address of its memory there.
    pub(super) base: u64,
    pub(super) len: u64,
    pub(super) reach: Reach,
}

/// How its memory is reached.
#[derive(Debug)]
pub(super) enum Reach {
    /// It is mapped here, from this address on.
    Mapped(Mapped),
    /// Through the kernel.
    Process,
}

/// A peer's memory, mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    memory: SharedMemory,
    offset: usize,
}

impl Mapped {
    /// Address here of an offset, which the caller keeps within the memory.
    pub(super) fn at(&self, offset: u64) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(self.offset + offset as usize)
    }
}

impl Peer {
    /// Finds a way to a target's memory.
    pub(super) fn reach(offer: &Offer) -> Result<Self, EngineError> {
        let environment = |what: String| EngineError::new(Kind::Environment, what);
        let here = pid_realm().map_err(|e| environment(format!("reading about this host: {e}")))?;
        if here.0 != offer.realm.0 {
            return Err(EngineError::new(
                Kind::Usage,
                "engine memcpy copies on one host, and the target is on another",
            )
            .hint("leave memcpy out, or measure both sides on one host"));
        }
        if here.1 != offer.realm.1 {
            return Err(EngineError::new(Kind::Usage, "engine memcpy finds the target's memory by its process, which is in another pid namespace")
                .hint("run both sides in one container, or give them one pid namespace (docker --pid, Kubernetes shareProcessNamespace)"));
        }
        let gone = |e: io::Error| {
            EngineError::new(Kind::Peer, format!("the target, process {}, cannot be watched: {e}", offer.pid))
        };
        let process = Process::watch(offer.pid, offer.started).map_err(gone)?;
        let reach = match &offer.file {
            Some(file) => Reach::Mapped(map(offer, file)?),
            None => {
                probe(offer)?;
                Reach::Process
            }
        };
        Ok(Self { process, base: offer.base, len: offer.len, reach })
    }
}

fn map(offer: &Offer, file: &File) -> Result<Mapped, EngineError> {
    let path = format!("/proc/{}/fd/{}", offer.pid, file.fd);
    let failed = |what: &str, why: String| {
        EngineError::new(Kind::Environment, format!("{what} the target's memory, {path}: {why}"))
            .hint("run both sides as one user; in a container allow CAP_SYS_PTRACE")
    };
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let opened = opened.map_err(|e| failed("opening", e.to_string()))?;
    let about = opened.metadata().map_err(|e| failed("looking at", e.to_string()))?;
    if (about.dev(), about.ino()) != (file.device, file.inode) {
        return Err(EngineError::new(Kind::Peer, format!("{path} is another file than the target's memory")));
    }
    let bytes = file.offset.checked_add(offer.len).and_then(|n| usize::try_from(n).ok());
    let bytes =
        bytes.ok_or_else(|| EngineError::new(Kind::Peer, "the target's memory ends beyond every address"))?;
    let memory = SharedMemory::map(opened.into(), bytes).map_err(|e| failed("mapping", e.to_string()))?;
    // No transfer pays for the first touch of a page here.
    memory.prefault().map_err(|e| failed("touching", e.to_string()))?;
    Ok(Mapped { memory, offset: file.offset as usize })
}

/// Whether the kernel lets this process read the other's private memory.
fn probe(offer: &Offer) -> Result<(), EngineError> {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: offer.base as usize as *mut libc::c_void, iov_len: 1 };
    // SAFETY: one byte of this function's is written; the kernel checks the other side.
    let got = unsafe {
        libc::process_vm_readv(offer.pid as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0)
    };
    if got == 1 {
        return Ok(());
    }
    Err(denied(&io::Error::last_os_error()))
}

/// The error for private memory that the kernel keeps from this process.
pub(super) fn denied(error: &io::Error) -> EngineError {
    let what = format!(
        "the kernel denies this process the target's private memory (process_vm_readv, process_vm_writev): {error}"
    );
    EngineError::new(Kind::Environment, what)
        .hint("run both sides as one user, in one pid namespace; in a container allow CAP_SYS_PTRACE")
        .hint("see kernel.yama.ptrace_scope (sysctl): 0 allows it")
        .hint("or measure --memory shared")
}
