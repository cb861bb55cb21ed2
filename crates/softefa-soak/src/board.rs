//! What the processes of a run tell each other and the fleet: who is there, with which queue pairs and keys, which messages are under
//! way, which faults are active, what is wrong.
//!
//! It is a file outside of the fabric's directory, so that it survives whoever is killed, and it is the means by which completions are
//! judged: sender and receiver both look at the same [`Message`].

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::schedule::{FAULTS_MAX, NICS_MAX, NODES_MAX, RANKS, Rank};
use crate::shared::Shared;

/// Messages with an immediate that one process may send in a run.
pub(crate) const MESSAGES_MAX: usize = 2048;
/// Most bytes of a description of what is wrong.
const TEXT_MAX: usize = 600;

/// Where a run is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// Processes find each other.
    Begin = 0,
    /// Processes work.
    Run = 1,
    /// Nothing new is begun.
    Drain = 2,
    /// Processes leave.
    Stop = 3,
}

/// Where a process is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stage {
    /// It has not begun.
    Absent = 0,
    /// It sets up its devices.
    Begun = 1,
    /// Peers may use it.
    Ready = 2,
    /// Nothing that it began is unfinished.
    Drained = 3,
    /// It has left.
    Left = 4,
}

/// One NIC of a process.
#[repr(C)]
pub(crate) struct Rail {
    /// Its queue pair.
    pub(crate) qpn: AtomicU32,
    /// Its key for the process's memory.
    pub(crate) key: AtomicU32,
    /// Its completion queue has overflowed: what it would have reported is lost.
    pub(crate) overflowed: AtomicBool,
}

/// A send or a write with immediate.
#[repr(C)]
pub(crate) struct Message {
    /// The pattern of its bytes.
    pub(crate) number: AtomicU64,
    /// The sender's queue pair.
    pub(crate) qpn: AtomicU32,
    /// Bytes.
    pub(crate) len: AtomicU32,
    /// A write's place in the target's memory.
    pub(crate) place: AtomicU64,
    /// Whom it is for.
    pub(crate) target: AtomicU32,
    /// Whether it is a write.
    pub(crate) is_write: AtomicBool,
    /// How often the target has received it.
    pub(crate) received: AtomicU32,
}

/// One process.
#[repr(C)]
pub(crate) struct Cell {
    stage: AtomicU32,
    pub(crate) pid: AtomicU32,
    /// When it was killed; 0 = it was not.
    pub(crate) killed_ns: AtomicU64,
    /// Where its memory is, in its own address space.
    pub(crate) memory: AtomicU64,
    pub(crate) rails: [Rail; NICS_MAX],
    /// Operations posted.
    pub(crate) posted: AtomicU64,
    /// Operations that ended well, and with an error.
    pub(crate) ended: [AtomicU64; 2],
    /// Things that are wrong.
    pub(crate) violations: AtomicU32,
    text_len: AtomicU32,
    text: [AtomicU8; TEXT_MAX],
    pub(crate) messages: [Message; MESSAGES_MAX],
}

/// When a fault was active.
#[repr(C)]
pub(crate) struct Active {
    /// 0 = not yet.
    pub(crate) from_ns: AtomicU64,
    /// 0 = it has no end yet.
    pub(crate) until_ns: AtomicU64,
}

#[repr(C)]
struct Layout {
    phase: AtomicU32,
    drain_ns: AtomicU64,
    commands: [AtomicU32; NODES_MAX],
    faults: [Active; FAULTS_MAX],
    cells: [Cell; RANKS],
}

/// The board.
pub(crate) struct Board(Shared);

impl Board {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Shared::create(path, size_of::<Layout>()).map(Self)
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Shared::open(path, size_of::<Layout>()).map(Self)
    }

    fn layout(&self) -> &Layout {
        let at = self.0.as_ptr().cast::<Layout>();
        // SAFETY: the mapping has the size of a layout and begins at a page; it is atomics, for which all bytes are valid, but for the
        // booleans, which only this module's atomics ever write.
        unsafe { &*at }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.layout().phase.load(Ordering::Acquire) {
            0 => Phase::Begin,
            1 => Phase::Run,
            2 => Phase::Drain,
            _ => Phase::Stop,
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase, now_ns: u64) {
        if phase == Phase::Drain {
            self.layout().drain_ns.store(now_ns, Ordering::Release);
        }
        self.layout().phase.store(phase as u32, Ordering::Release);
    }

    /// When the last fault had been cleared.
    pub(crate) fn drain_ns(&self) -> u64 {
        self.layout().drain_ns.load(Ordering::Acquire)
    }

    /// The process id of a node's command.
    pub(crate) fn command(&self, node: usize) -> &AtomicU32 {
        &self.layout().commands[node]
    }

    pub(crate) fn fault(&self, number: usize) -> &Active {
        &self.layout().faults[number]
    }

    pub(crate) fn cell(&self, rank: Rank) -> &Cell {
        &self.layout().cells[rank.index()]
    }

    /// Processes that peers may use, or could until they were killed.
    pub(crate) fn present(&self) -> impl Iterator<Item = Rank> + '_ {
        Rank::all().filter(|rank| self.cell(*rank).stage() >= Stage::Ready)
    }
}

impl Cell {
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Absent,
            1 => Stage::Begun,
            2 => Stage::Ready,
            3 => Stage::Drained,
            _ => Stage::Left,
        }
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u32, Ordering::Release);
    }

    pub(crate) fn was_killed(&self) -> bool {
        self.killed_ns.load(Ordering::Acquire) != 0
    }

    /// Notes that something is wrong; the first text is kept.
    pub(crate) fn violate(&self, text: &str) {
        if self.violations.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let text = &text.as_bytes()[..text.len().min(TEXT_MAX)];
        for (cell, byte) in self.text.iter().zip(text) {
            cell.store(*byte, Ordering::Relaxed);
        }
        self.text_len.store(text.len() as u32, Ordering::Release);
    }

    /// The first thing that was wrong.
    pub(crate) fn text(&self) -> String {
        let len = self.text_len.load(Ordering::Acquire) as usize;
        let bytes: Vec<u8> = self.text.iter().take(len).map(|cell| cell.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
