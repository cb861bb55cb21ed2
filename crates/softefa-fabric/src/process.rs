//! Processes that have devices of the fabric open: who they are, and how to wake them.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::{PROCESSES_MAX, futex};

/// A slot of the process table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ProcessIndex(u8);

impl ProcessIndex {
    /// Slot `index`, if there is one.
    #[must_use]
    pub fn new(index: usize) -> Option<ProcessIndex> {
        (index < PROCESSES_MAX).then_some(ProcessIndex(index as u8))
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// All slots.
    pub fn all() -> impl Iterator<Item = ProcessIndex> {
        (0..PROCESSES_MAX as u8).map(ProcessIndex)
    }
}

pub(crate) const FREE: u32 = 0;
pub(crate) const CLAIMED: u32 = 1;
pub(crate) const LIVE: u32 = 2;
pub(crate) const RESTING: u32 = 3;

/// How long a slot rests before it is given again: until then whoever still copies from its packet slots has finished.
pub(crate) const REST_NS: u64 = 1_000_000_000;

/// After how long without polling a process's own device thread has to be woken for each packet.
///
/// A process that polls its completion queues moves its packets itself; waking its device thread as well would only steal the core.
const POLLING_NS: u64 = 50_000;

/// How long a device thread sleeps at most while somebody polls: a packet that arrives just after the last poll waits no longer.
const DOZE_NS: u64 = 100_000;

/// How a device thread sleeps. Awake: it will look by itself.
const AWAKE: u32 = 0;
/// For [`DOZE_NS`] at most, because somebody polls: it need not be woken while that goes on.
const DOZING: u32 = 1;
/// Until it is woken.
const ASLEEP: u32 = 2;

/// One process in shared memory.
#[repr(C, align(128))]
pub struct Process {
    pub(crate) state: AtomicU32,
    pub(crate) generation: AtomicU32,
    pub(crate) pid: AtomicU32,
    pub(crate) node: AtomicU32,
    /// Start time of the process in clock ticks since boot, which with the pid names it for ever.
    pub(crate) started: AtomicU64,
    pub(crate) rest_until_ns: AtomicU64,
    wire: Wire,
}

#[repr(C, align(128))]
struct Wire {
    /// Bit s: the process in slot s has put packets into its ring to this one.
    senders: AtomicU64,
    /// Bit s: the process in slot s cannot send before this one has taken packets.
    waiting: AtomicU64,
    doorbell: AtomicU32,
    sleeping: AtomicU32,
    polled: Polled,
}

/// On a cache line of its own: written by whoever polls, all the time.
#[repr(C, align(128))]
struct Polled(AtomicU64);

impl Process {
    /// Its process id; 0 when the slot is empty.
    #[must_use]
    pub fn pid(&self) -> u32 {
        if self.is_live() { self.pid.load(Ordering::Relaxed) } else { 0 }
    }

    /// The node it is on.
    #[must_use]
    pub fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    /// Which of the slot's successive owners it is; never 0.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire) & 0x00ff_ffff
    }

    /// Whether a process is in the slot.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state.load(Ordering::Acquire) == LIVE
    }

    /// Start time of the process, in clock ticks since boot: with the pid it names the process for ever.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    pub(crate) fn next_generation(&self) {
        // 24 bits, and never 0: an all-zero directory entry means "no queue pair".
        let next = self.generation.load(Ordering::Relaxed) % 0x00ff_ffff + 1;
        self.generation.store(next, Ordering::Release);
    }

    /// Says that the sender in slot `from` has put packets into its ring, and wakes the process's device thread if nobody looks.
    pub fn notify(&self, from: ProcessIndex, now_ns: u64) {
        self.wire.senders.fetch_or(1 << from.get(), Ordering::AcqRel);
        self.wake(now_ns);
    }

    /// Wakes the process's device thread if nobody looks.
    pub fn wake(&self, now_ns: u64) {
        // What was published before has to be seen by a thread that this one sees awake.
        fence(Ordering::SeqCst);
        let relied_upon = match self.wire.sleeping.load(Ordering::Relaxed) {
            AWAKE => true,
            DOZING => self.is_polled(now_ns),
            _ => false,
        };
        if !relied_upon && self.wire.sleeping.swap(AWAKE, Ordering::AcqRel) != AWAKE {
            futex::ring(&self.wire.doorbell);
        }
    }

    /// Asks the process to [`Process::notify`] the one in slot `who` once it has taken packets.
    pub fn ask_for_room(&self, who: ProcessIndex) {
        self.wire.waiting.fetch_or(1 << who.get(), Ordering::AcqRel);
        // Pairs with the fence in `take_waiting`: what the caller looks at next is at least as new.
        fence(Ordering::SeqCst);
    }

    /// Takes the set of processes that wait for room: bit s for slot s.
    pub fn take_waiting(&self) -> u64 {
        // Room was made before: either the one that waits sees it, or its bit is seen here.
        fence(Ordering::SeqCst);
        if self.wire.waiting.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.wire.waiting.swap(0, Ordering::AcqRel)
    }

    /// Takes the set of senders that have put packets into their rings since the last call: bit s for slot s.
    pub fn take_senders(&self) -> u64 {
        if self.wire.senders.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.wire.senders.swap(0, Ordering::AcqRel)
    }

    /// Whether some sender has put packets into its ring.
    #[must_use]
    pub fn has_senders(&self) -> bool {
        self.wire.senders.load(Ordering::Acquire) != 0
    }

    /// Called by threads that poll: for the next while they move packets, and the device thread need not be woken.
    pub fn polled(&self, now_ns: u64) {
        // A store for each poll would only move the cache line to and fro.
        let before = self.wire.polled.0.load(Ordering::Relaxed);
        if now_ns.saturating_sub(before) > POLLING_NS / 8 {
            self.wire.polled.0.store(now_ns, Ordering::Relaxed);
        }
    }

    /// Whether some thread has polled within the time that senders rely on.
    #[must_use]
    pub fn is_polled(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.wire.polled.0.load(Ordering::Relaxed)) <= POLLING_NS
    }

    /// Sleeps until woken, at most `timeout_ns`, unless `ready` says after the intent to sleep is known that there is work.
    pub fn sleep(&self, timeout_ns: u64, ready: impl FnOnce() -> bool) {
        let seen = self.wire.doorbell.load(Ordering::Acquire);
        self.wire.sleeping.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either `ready` sees the work, or the waker sees the sleep.
        fence(Ordering::SeqCst);
        if !ready() {
            futex::wait(&self.wire.doorbell, seen, timeout_ns);
        }
        self.wire.sleeping.store(AWAKE, Ordering::Release);
    }

    /// Sleeps for a short while, because another thread moves packets; woken earlier by packets that come when nobody polls any more.
    pub fn doze(&self) {
        let seen = self.wire.doorbell.load(Ordering::Acquire);
        self.wire.sleeping.store(DOZING, Ordering::Release);
        futex::wait(&self.wire.doorbell, seen, DOZE_NS);
        self.wire.sleeping.store(AWAKE, Ordering::Release);
    }
}

/// Start time of process `pid` in clock ticks since boot, from `/proc`; `None` when there is no such process (or it is a zombie).
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything: fields are counted after the last one.
    let fields = stat.get(stat.rfind(')')? + 2..)?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
