//! One process's place in a fabric.

use std::path::Path;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::{fmt, io, ptr};

use softefa_fabric::{DIR_VARIABLE, Fabric, FabricError, NODE_VARIABLE, NicIndex};

use super::device::Device;
use super::engine::Engine;
use super::event::Events;
use super::shared::{self, Core, Shared};

/// Why a process has no devices.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// The environment names no fabric.
    NotAsked,
    /// The environment names no node, or not by a number.
    Node {
        /// What it says.
        value: String,
    },
    /// The fabric cannot be used.
    Fabric(FabricError),
    /// The device's thread or descriptors could not be made.
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::NotAsked => write!(
                f,
                "{} is not set: run the command under `kvrail softefa run` or `kvrail softefa shell`",
                DIR_VARIABLE
            ),
            AttachError::Node { value } => {
                write!(f, "{} is {value:?}: a node's number is wanted", NODE_VARIABLE)
            }
            AttachError::Fabric(error) => error.fmt(f),
            AttachError::System { action, source } => write!(f, "cannot {action}: {source}"),
        }
    }
}

impl std::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AttachError::Fabric(error) => Some(error),
            AttachError::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<FabricError> for AttachError {
    fn from(error: FabricError) -> AttachError {
        AttachError::Fabric(error)
    }
}

/// A process's devices: all NICs of its node. Dropping it detaches: its queue pairs are gone for their peers, and every call on what was
/// made with it answers [`super::Limit::Gone`].
pub struct Host {
    shared: Arc<Shared>,
    devices: Vec<Device>,
    thread: Option<JoinHandle<()>>,
}

/// The calling process's host. Never freed: what was made with it may be used until the process ends.
static ATTACHED: AtomicPtr<Host> = AtomicPtr::new(ptr::null_mut());
static AT_FORK: Once = Once::new();

/// In a forked child: the parent's devices are not the child's. One thread is left, and locks may be held by those that are not: nothing
/// here takes one.
extern "C" fn after_fork() {
    shared::forked();
    ATTACHED.store(ptr::null_mut(), Ordering::Release);
}

/// The calling process's devices, as `SOFTEFA_DIR` and `SOFTEFA_NODE` say. The first call attaches; a forked child attaches anew.
///
/// # Errors
/// [`AttachError`]; the next call tries again.
pub fn attach() -> Result<&'static Host, AttachError> {
    let known = ATTACHED.load(Ordering::Acquire);
    // SAFETY: the pointer is null, or comes from `Box::into_raw` below and is never freed.
    if let Some(host) = unsafe { known.as_ref() } {
        return Ok(host);
    }
    let dir = std::env::var_os(DIR_VARIABLE).filter(|dir| !dir.is_empty()).ok_or(AttachError::NotAsked)?;
    let value = std::env::var(NODE_VARIABLE).unwrap_or_default();
    let Ok(node) = value.parse() else { return Err(AttachError::Node { value }) };
    let host = Box::into_raw(Box::new(Host::open(Path::new(&dir), node)?));
    match ATTACHED.compare_exchange(ptr::null_mut(), host, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: the host was made above, and is never freed from here on.
        Ok(_) => Ok(unsafe { &*host }),
        Err(first) => {
            // Another thread was first.
            // SAFETY: the host was made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(host) });
            // SAFETY: the other thread's host is never freed.
            Ok(unsafe { &*first })
        }
    }
}

impl Host {
    /// Attaches to the fabric in run directory `dir` as a process of `node`, and starts the device's thread.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn open(dir: &Path, node: u32) -> Result<Host, AttachError> {
        AT_FORK.call_once(|| {
            // SAFETY: the handler is a function of this library, which is never unloaded once it has a thread.
            unsafe { libc::pthread_atfork(None, None, Some(after_fork)) };
        });
        let fabric = Fabric::open(dir)?;
        let system = |action| move |source| AttachError::System { action, source };
        let events: Vec<_> = (0..fabric.nics_per_node())
            .map(|_| Events::new().map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(system("make a descriptor for events"))?;
        let me = fabric.attach(node)?;
        let core = Arc::new(Core::new(fabric, me, node));
        let engine = Engine::new(core.clone(), events.clone());
        let shared = Arc::new(Shared::new(core, engine));
        let classes = dir.join(format!("node{node}/sys/class/infiniband"));
        let places = (0..shared.core.fabric.nics_per_node()).map(|nic| NicIndex { node, nic });
        let devices =
            places.zip(events).map(|(at, events)| Device::new(&shared, at, &classes, events)).collect();
        let thread = match start(shared.clone()) {
            Ok(thread) => Some(thread),
            Err(source) => {
                shared.core.fabric.reap(me);
                return Err(AttachError::System { action: "start the device's thread", source });
            }
        };
        Ok(Host { shared, devices, thread })
    }

    /// Its devices, in the order of their numbers.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.shared.is_mine() {
            // After a fork: the thread and the place in the fabric are the parent's.
            std::mem::forget(self.thread.take());
            return;
        }
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // It ends by itself, and a panic in it has been told.
            let _ = thread.join();
        }
        self.shared.lock().detach();
        self.shared.core.fabric.reap(self.shared.core.me);
    }
}

/// Starts the device's thread. Signals are for the program's own threads: it blocks all of them.
fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    // SAFETY: a signal set is integers.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is a signal set.
    unsafe { libc::sigfillset(&mut all) };
    // SAFETY: both are signal sets. A thread begins with its maker's mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) };
    let thread = std::thread::Builder::new().name("softefa".into()).spawn(move || {
        // Packets are due at microseconds; the usual slack of a sleep is fifty of them.
        // SAFETY: the call sets a number of this thread.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64, 0_u64, 0_u64, 0_u64) };
        shared.serve();
    });
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    thread
}
