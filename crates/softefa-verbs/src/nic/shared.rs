//! What all threads of a process share: the engine behind one lock, and the thread that runs it when nobody else does.
//!
//! Whoever posts or polls in vain runs the engine for a bounded while, if no other thread does. If one does, it is told to look again
//! after it has given the lock back ([`Shared::progress`]), so that no work is left behind that nobody looks at.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use softefa_fabric::nic::Owner;
use softefa_fabric::{Fabric, NicIndex, Process, clock};

use super::engine::Engine;
use super::types::Limit;

/// What never changes, or is atomic: for the engine and for everybody else.
pub(super) struct Core {
    pub(super) fabric: Fabric,
    /// This process's slot.
    pub(super) me: Owner,
    pub(super) node: u32,
    /// Queue pairs with sends that the engine has not seen.
    posted: Mutex<Vec<(NicIndex, u32)>>,
    has_posted: AtomicBool,
}

impl Core {
    pub(super) fn new(fabric: Fabric, me: Owner, node: u32) -> Core {
        Core { fabric, me, node, posted: Mutex::new(Vec::new()), has_posted: AtomicBool::new(false) }
    }

    pub(super) fn process(&self) -> &Process {
        self.fabric.process(self.me.process)
    }

    /// Has the engine look at a queue pair.
    pub(super) fn list(&self, nic: NicIndex, qpn: u32) {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner).push((nic, qpn));
        self.has_posted.store(true, Ordering::Release);
    }

    pub(super) fn take_posted(&self, into: &mut Vec<(NicIndex, u32)>) {
        if self.has_posted.load(Ordering::Acquire) {
            let mut posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
            self.has_posted.store(false, Ordering::Release);
            into.append(&mut posted);
        }
    }
}

/// How often the process has forked, counted in the child: what was made before belongs to the parent.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Counts a fork. Called in the child, which has one thread and may take no lock.
pub(super) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Rounds that a thread runs for others before it leaves the rest to the device thread.
const ROUNDS_MAX: u32 = 8;
/// Polls in vain, one soon after the other, after which peers rely on them to go on.
const POLLS_RELIED_UPON: u32 = 16;
/// Time between two polls of a program that does nothing else.
const POLL_GAP_NS: u64 = 20_000;
/// Polls in vain after which a polling thread yields its core, and how many there are between two yields.
const POLLS_IN_VAIN: u32 = 64;
const POLLS_PER_YIELD: u32 = 16;
/// The device thread's longest sleep.
const SLEEP_MAX_NS: u64 = 1_000_000_000;

/// What came of running the engine.
enum Ran {
    /// Everything that can be done now is done.
    Idle,
    /// There is more to do.
    More,
    /// Another thread is at it, and looks again before it goes.
    Busy,
}

/// What all threads of a process share.
pub(super) struct Shared {
    pub(super) core: Arc<Core>,
    engine: Mutex<Engine>,
    /// Somebody found the engine busy: whoever runs it looks again.
    again: AtomicBool,
    /// When the engine has something to do by itself.
    next_due_ns: AtomicU64,
    /// The generation of the fabric that the engine has seen.
    generation: AtomicU32,
    /// Until when the device thread sleeps.
    sleeps_until_ns: AtomicU64,
    /// Threads that wait for the lock: the device thread lets them pass.
    waiting: AtomicU32,
    polls: AtomicU32,
    polled_ns: AtomicU64,
    /// Polls since the engine last had something to do.
    in_vain: AtomicU32,
    stop: AtomicBool,
    forks: u32,
}

impl Shared {
    pub(super) fn new(core: Arc<Core>, engine: Engine) -> Shared {
        Shared {
            core,
            engine: Mutex::new(engine),
            again: AtomicBool::new(false),
            next_due_ns: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            sleeps_until_ns: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            polls: AtomicU32::new(0),
            in_vain: AtomicU32::new(0),
            polled_ns: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            forks: FORKS.load(Ordering::Relaxed),
        }
    }

    /// Whether the device is still this process's: not after a fork, not after its host is gone.
    pub(super) fn check(&self) -> Result<(), Limit> {
        let mine = FORKS.load(Ordering::Relaxed) == self.forks && !self.stop.load(Ordering::Relaxed);
        if mine { Ok(()) } else { Err(Limit::Gone) }
    }

    /// Whether this is the process that made it.
    pub(super) fn is_mine(&self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.forks
    }

    /// The engine, for a change that cannot wait for another thread. Whoever found it busy meanwhile is served when it is given back.
    pub(super) fn lock(&self) -> Locked<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        Locked { shared: self, engine: Some(engine) }
    }

    fn has_work(&self, now_ns: u64) -> bool {
        let core = &self.core;
        core.has_posted.load(Ordering::Acquire)
            || core.process().has_senders()
            || now_ns >= self.next_due_ns.load(Ordering::SeqCst)
            || core.fabric.generation() != self.generation.load(Ordering::Relaxed)
    }

    /// A poll that found nothing: runs the engine if there is something to do, and has peers rely on this thread when it goes on.
    pub(super) fn poll_progress(&self) {
        let now_ns = clock::now_ns();
        let before_ns = self.polled_ns.swap(now_ns, Ordering::Relaxed);
        if now_ns.saturating_sub(before_ns) > POLL_GAP_NS {
            self.polls.store(0, Ordering::Relaxed);
        } else if self.polls.load(Ordering::Relaxed) < POLLS_RELIED_UPON {
            self.polls.fetch_add(1, Ordering::Relaxed);
        } else {
            self.core.process().polled(now_ns);
        }
        if self.has_work(now_ns) {
            self.in_vain.store(0, Ordering::Relaxed);
            self.progress();
        } else {
            // Emulated nodes share the cores of one machine, and mostly there are more threads that poll than cores: one that has
            // nothing to do lets those run that it waits for.
            let in_vain = self.in_vain.fetch_add(1, Ordering::Relaxed);
            if in_vain >= POLLS_IN_VAIN && in_vain.is_multiple_of(POLLS_PER_YIELD) {
                std::thread::yield_now();
            }
        }
    }

    /// A poll that found something: the program will be back soon.
    pub(super) fn found_something(&self) {
        if self.polls.load(Ordering::Relaxed) >= POLLS_RELIED_UPON {
            self.goes_on_polling(clock::now_ns());
        }
    }

    fn goes_on_polling(&self, now_ns: u64) {
        self.polled_ns.store(now_ns, Ordering::Relaxed);
        self.core.process().polled(now_ns);
    }

    /// Whether the program does hardly anything but poll.
    fn is_polled_on(&self) -> bool {
        self.polls.load(Ordering::Relaxed) >= POLLS_RELIED_UPON
            && clock::now_ns().saturating_sub(self.polled_ns.load(Ordering::Relaxed)) <= POLL_GAP_NS
    }

    /// Runs the engine on a thread of the program.
    ///
    /// What the engine takes is not the program's time: one that polled before will do so after, and until then needs no other thread.
    pub(super) fn progress(&self) {
        let polling = self.is_polled_on();
        self.run_engine(polling);
        if polling {
            self.goes_on_polling(clock::now_ns());
        }
    }

    /// Runs the engine for a bounded while, unless another thread does: then that thread looks again.
    fn run_engine(&self, polling: bool) -> Ran {
        // Pairs with the fence below: either this thread gets the lock, or the one that has it sees `again` after giving it back.
        self.again.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut rounds = 0;
        loop {
            let mut engine = match self.engine.try_lock() {
                Ok(engine) => engine,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Ran::Busy,
            };
            if polling {
                self.core.process().polled(clock::now_ns());
            }
            self.again.store(false, Ordering::SeqCst);
            let more = engine.run();
            self.publish(&engine);
            drop(engine);
            fence(Ordering::SeqCst);
            let asked = self.again.load(Ordering::SeqCst);
            rounds += 1;
            if !asked || rounds >= ROUNDS_MAX {
                self.wake_thread(asked);
                return if more || asked { Ran::More } else { Ran::Idle };
            }
        }
    }

    fn publish(&self, engine: &Engine) {
        self.next_due_ns.store(engine.next_due_ns(), Ordering::SeqCst);
        self.generation.store(engine.generation(), Ordering::Relaxed);
    }

    /// Wakes the device thread when it sleeps for longer than it may, unless polling goes on: then it looks soon enough by itself.
    fn wake_thread(&self, asked: bool) {
        let next_due_ns = self.next_due_ns.load(Ordering::SeqCst);
        if asked || next_due_ns < self.sleeps_until_ns.load(Ordering::SeqCst) {
            let process = self.core.process();
            if !process.is_polled(clock::now_ns()) {
                process.wake(u64::MAX);
            }
        }
    }

    /// What the device thread does until it is stopped.
    pub(super) fn serve(&self) {
        let process = self.core.process();
        while !self.stop.load(Ordering::Acquire) {
            // Two threads at one engine are slower than one: while a program polls, it moves its packets itself; and whoever is at the
            // engine wakes this thread when it leaves work behind.
            if process.is_polled(clock::now_ns()) {
                process.doze();
                continue;
            }
            match self.run_engine(false) {
                Ran::Busy => {
                    process.doze();
                    continue;
                }
                Ran::More => {
                    if self.waiting.load(Ordering::Acquire) != 0 {
                        std::thread::yield_now();
                    }
                    continue;
                }
                Ran::Idle => {}
            }
            let now_ns = clock::now_ns();
            let next_due_ns = self.next_due_ns.load(Ordering::SeqCst);
            let timeout_ns = next_due_ns.saturating_sub(now_ns).min(SLEEP_MAX_NS);
            if timeout_ns == 0 {
                continue;
            }
            let until_ns = now_ns + timeout_ns;
            self.sleeps_until_ns.store(until_ns, Ordering::SeqCst);
            process.sleep(timeout_ns, || {
                let sooner = self.next_due_ns.load(Ordering::SeqCst) < until_ns.min(next_due_ns);
                sooner || self.stop.load(Ordering::Acquire) || self.has_work(now_ns)
            });
            self.sleeps_until_ns.store(0, Ordering::SeqCst);
        }
    }

    /// Ends the device thread's loop, and everything else.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.core.process().wake(u64::MAX);
    }
}

/// The engine, locked.
pub(super) struct Locked<'a> {
    shared: &'a Shared,
    /// `None` only while it is being dropped.
    engine: Option<MutexGuard<'a, Engine>>,
}

impl std::ops::Deref for Locked<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.engine.as_ref().expect("it is there until it is dropped")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            self.shared.publish(&engine);
            drop(engine);
        }
        // What this thread has changed may be work, and others may have found the engine busy.
        if !self.shared.stop.load(Ordering::Relaxed) {
            self.shared.progress();
        }
    }
}
