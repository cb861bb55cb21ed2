//! The process ends while a transport lives: an interpreter exits, `main` returns before a progress thread is joined.
//!
//! libfabric, its providers and the libraries below them free what they have in destructors that run at exit, on the thread
//! that ends the process. A thread that polls meanwhile reads freed memory. So each transport has a gate that its calls
//! into libfabric pass; at exit, before those destructors run, all gates are shut, and those who are inside are waited for
//! (their calls never block). What comes later does nothing, and what is dropped later is left to the system.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for those who are inside.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_micros(50);

static ENDING: AtomicBool = AtomicBool::new(false);
static GATES: Mutex<Vec<&'static Gate>> = Mutex::new(Vec::new());

/// What one transport's calls pass. It is never freed, because the end of the process looks at it; those that were given
/// back are used again.
#[derive(Debug)]
pub(super) struct Gate {
    taken: AtomicBool,
    /// Its owner is inside. One thread at a time owns a transport (KR-5).
    inside: AtomicBool,
}

/// Being inside, until it is dropped.
pub(super) struct Turn {
    gate: &'static Gate,
    outermost: bool,
}

impl Drop for Turn {
    #[inline]
    fn drop(&mut self) {
        if self.outermost {
            self.gate.inside.store(false, Ordering::Release);
        }
    }
}

impl Gate {
    /// A gate for a transport that is about to call libfabric.
    pub(super) fn take() -> &'static Self {
        static AT_EXIT: Once = Once::new();
        // Functions run in the reverse order of their registration, and libraries' destructors after all of them.
        AT_EXIT.call_once(|| {
            // SAFETY: the function is this program's own, takes nothing and does not unwind.
            if unsafe { libc::atexit(shut) } != 0 {
                log::warn!("no function can be run at exit: end agents before the process ends");
            }
        });
        let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.iter().find(|gate| !gate.taken.swap(true, Ordering::AcqRel)) {
            return gate;
        }
        let gate: &'static Self =
            Box::leak(Box::new(Self { taken: AtomicBool::new(true), inside: AtomicBool::new(false) }));
        gates.push(gate);
        gate
    }

    /// Its transport is gone.
    pub(super) fn give_back(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// Passes, unless the process ends.
    #[inline]
    pub(super) fn enter(&'static self) -> Option<Turn> {
        // Sequentially consistent on both sides: either `shut` sees this, or this sees `shut`.
        let outermost = !self.inside.swap(true, Ordering::SeqCst);
        let turn = Turn { gate: self, outermost };
        (!ENDING.load(Ordering::SeqCst)).then_some(turn)
    }
}

extern "C" fn shut() {
    ENDING.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + WAIT_MAX;
    // Whoever holds the lock is opening a transport; it passes its gate afterwards.
    let Ok(gates) = GATES.try_lock() else { return };
    while gates.iter().any(|gate| gate.inside.load(Ordering::SeqCst)) && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Passes a transport's gate for the rest of the function, which returns `$otherwise` when the process ends.
macro_rules! pass {
    ($gate:expr) => {
        let Some(_turn) = $gate.enter() else { return };
    };
    ($gate:expr, $otherwise:expr) => {
        let Some(_turn) = $gate.enter() else { return $otherwise };
    };
}
pub(super) use pass;
