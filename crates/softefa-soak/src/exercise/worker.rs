//! A process of a node: one thread that posts, polls and checks.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use softefa_fabric::clock::now_ns;
use softefa_fabric::{FaultKind, NicIndex};
use softefa_verbs::ffi::{IBV_EVENT_CQ_ERR, IBV_EVENT_PORT_ACTIVE, IBV_EVENT_PORT_ERR};

use super::local::Local;
use super::operation::{Operation, RECEIVE};
use super::settle::Settling;
use super::{Files, explain};
use crate::board::{Board, Phase, Stage};
use crate::memory::{Memory, SOURCE_BYTES, source_number};
use crate::pattern;
use crate::plant::Plant;
use crate::random::Random;
use crate::schedule::{NICS_MAX, RANKS, Rank, Schedule};
use crate::verbs::{Entry, Handle, Rail, Region};

/// Completions that are taken at a time.
const BATCH: usize = 16;
/// Longest time from the end of all faults to the end of all operations.
const DRAIN_MAX_NS: u64 = 10_000_000_000;
/// Longest time from a flush to the end of all operations.
const FLUSH_MAX_NS: u64 = 5_000_000_000;
/// Longest wait for what the fleet says next.
const PHASE_MAX_NS: u64 = 60_000_000_000;
/// Pause when there was nothing to do.
const PAUSE: Duration = Duration::from_micros(50);
/// Longest sleep on completion channels, ms: the phase may change meanwhile.
const SLEEP_MS: i32 = 5;
/// How long the event of a completion may take to show on its channel.
const EVENT_MAX: Duration = Duration::from_millis(200);

/// A place for writes at a peer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// It is not known to the fabric: the peer is not there.
    Unused,
    /// It is zero.
    Free,
    /// A write is under way.
    Busy { number: u64, at: usize, len: usize },
    /// It may hold any of a failed write's bytes, now or later.
    Tainted { number: u64, at: usize, len: usize },
}

/// What is registered on a NIC.
pub(super) struct Regions {
    pub(super) area: Region,
    pub(super) local: Region,
}

/// The process.
pub(super) struct Worker {
    pub(super) schedule: Schedule,
    pub(super) rank: Rank,
    pub(super) plant: Option<Plant>,
    pub(super) board: Board,
    pub(super) memory: Memory,
    pub(super) local: Local,
    pub(super) random: Random,
    pub(super) rails: Vec<Rail>,
    pub(super) regions: Vec<Regions>,
    pub(super) handles: Vec<Vec<Handle>>,
    /// NICs whose completion queue has overflowed.
    pub(super) retired: [bool; NICS_MAX],
    pub(super) flights: HashMap<u64, Operation>,
    /// Operations whose completion is waited for no more, but may come, once.
    pub(super) given_up: HashSet<u64>,
    pub(super) settling: Vec<Settling>,
    pub(super) slots: Vec<Vec<Slot>>,
    /// Number of the operation that was begun last.
    pub(super) next: u64,
    pub(super) messages: usize,
    pub(super) flushing: bool,
    pub(super) scratch: Vec<u8>,
    entries: Vec<Entry>,
}

/// Runs to the end of the run; whether nothing was wrong.
pub(super) fn run(
    schedule: Schedule,
    rank: Rank,
    files: &Files,
    plant: Option<Plant>,
) -> Result<bool, String> {
    let board = Board::open(&files.board()).map_err(|e| format!("cannot open the board: {e}"))?;
    let memory = Memory::open(&files.memory(), &schedule.traffic)
        .map_err(|e| format!("cannot open the memory: {e}"))?;
    let local =
        Local::new(&schedule.traffic, schedule.nics).map_err(|e| format!("no memory for buffers: {e}"))?;
    let cell = board.cell(rank);
    cell.pid.store(std::process::id(), Ordering::Release);
    cell.set_stage(Stage::Begun);
    let slots = vec![vec![Slot::Unused; schedule.traffic.slots]; RANKS];
    let mut worker = Worker {
        random: Random::new(schedule.seed, 1 + rank.index() as u64),
        plant: plant.filter(|_| rank.node() == 0 && rank.process() == 0),
        schedule,
        rank,
        board,
        memory,
        local,
        rails: Vec::new(),
        regions: Vec::new(),
        handles: Vec::new(),
        retired: [false; NICS_MAX],
        flights: HashMap::new(),
        given_up: HashSet::new(),
        settling: Vec::new(),
        slots,
        next: 0,
        messages: 0,
        flushing: false,
        scratch: Vec::new(),
        entries: Vec::new(),
    };
    if let Err(text) = worker.set_up() {
        worker.violate(&text);
        worker.board.cell(rank).set_stage(Stage::Left);
        return Ok(false);
    }
    worker.turns();
    worker.sweep();
    worker.check_source();
    worker.leave();
    let cell = worker.board.cell(rank);
    cell.set_stage(Stage::Left);
    Ok(cell.violations.load(Ordering::Acquire) == 0)
}

impl Worker {
    pub(super) fn here(&self, rail: usize) -> NicIndex {
        NicIndex { node: self.rank.node() as u32, nic: rail as u32 }
    }

    pub(super) fn violate(&self, text: &str) {
        self.board.cell(self.rank).violate(text);
    }

    fn turns(&mut self) {
        let deadline = now_ns() + PHASE_MAX_NS;
        loop {
            let mut busy = self.look();
            self.settle_more();
            let phase = self.board.phase();
            match phase {
                Phase::Begin => {}
                Phase::Run => {
                    self.know_peers();
                    while self.flights.len() < self.schedule.traffic.in_flight && self.random.chance(70) {
                        let before = self.next;
                        self.begin();
                        busy |= self.next != before;
                    }
                    if self.random.below(500) == 0 {
                        self.register_for_a_moment();
                    }
                }
                Phase::Drain => self.drain(),
                Phase::Stop => return self.flush(),
            }
            if now_ns() > deadline {
                return self.violate(&format!("{phase:?} did not end"));
            }
            if !busy {
                self.pause();
            }
        }
    }

    /// Peers that have come since: their slots are free.
    fn know_peers(&mut self) {
        for rank in Rank::all().filter(|rank| self.board.cell(*rank).stage() >= Stage::Ready) {
            let slots = &mut self.slots[rank.index()];
            if matches!(slots.first(), Some(Slot::Unused)) {
                slots.fill(Slot::Free);
            }
        }
    }

    /// Takes completions and events of all NICs; whether there were any.
    fn look(&mut self) -> bool {
        let mut some = false;
        for rail in 0..self.rails.len() {
            if !self.retired[rail] {
                some |= self.poll(rail);
            }
            while let Some(event) = self.rails[rail].take_async_event() {
                self.event(rail, event);
            }
        }
        some
    }

    fn poll(&mut self, rail: usize) -> bool {
        let mut entries = std::mem::take(&mut self.entries);
        if let Err(error) = self.rails[rail].poll(BATCH, &mut entries) {
            self.violate(&format!("NIC {rail} cannot be polled: {error}"));
        }
        for entry in &entries {
            let is_receive = entry.opcode & softefa_verbs::ffi::IBV_WC_RECV != 0 || entry.id & RECEIVE != 0;
            if is_receive {
                self.receive(rail, entry);
            } else if self.plants(Plant::LostCompletion) {
                self.plant = None;
            } else {
                self.complete(entry);
            }
        }
        let some = !entries.is_empty();
        self.entries = entries;
        some
    }

    fn event(&mut self, rail: usize, event: u32) {
        let kind = match event {
            IBV_EVENT_CQ_ERR => FaultKind::CqOverflow,
            IBV_EVENT_PORT_ERR | IBV_EVENT_PORT_ACTIVE => FaultKind::RailDown,
            _ => return self.violate(&format!("event {event} on NIC {rail}, which nothing explains")),
        };
        if !explain::was_active(&self.schedule, &self.board, self.here(rail), kind) {
            self.violate(&format!("event {event} on NIC {rail} without a fault {kind}"));
        }
        if kind == FaultKind::CqOverflow {
            // What it held can still be polled; what it would have held is lost.
            while self.poll(rail) {}
            self.retired[rail] = true;
            self.board.cell(self.rank).rails[rail].overflowed.store(true, Ordering::Release);
            self.abandon(rail);
        }
    }

    fn drain(&mut self) {
        self.forget_deaf();
        if self.flights.is_empty() && self.settling.is_empty() {
            if self.board.cell(self.rank).stage() == Stage::Ready {
                self.board.cell(self.rank).set_stage(Stage::Drained);
            }
        } else if now_ns() > self.board.drain_ns() + DRAIN_MAX_NS {
            let now = now_ns();
            let ms = |ns: u64| (now - ns) / 1_000_000;
            let text = match self.flights.values().min_by_key(|operation| operation.posted_ns) {
                Some(oldest) => format!(
                    "{} operations did not end; the oldest, for {} ms: {oldest}",
                    self.flights.len(),
                    ms(oldest.posted_ns)
                ),
                None => {
                    let oldest = &self.settling[0];
                    let missing = if oldest.operation.message.is_some() { "immediate" } else { "bytes" };
                    let since = ms(oldest.completed_ns);
                    format!(
                        "the {missing} of an operation that ended well {since} ms ago did not come: {}",
                        oldest.operation
                    )
                }
            };
            self.violate(&text);
            // Said once; what is left is not waited for.
            for rail in 0..self.rails.len() {
                self.abandon(rail);
            }
            self.settling.clear();
        }
    }

    /// Ends what is still in flight.
    fn flush(&mut self) {
        self.flushing = true;
        if self.flights.is_empty() {
            return;
        }
        for rail in 0..self.rails.len() {
            if let Err(error) = self.rails[rail].flush() {
                self.violate(&format!("NIC {rail}'s queue pair cannot be moved to its error state: {error}"));
            }
        }
        let deadline = now_ns() + FLUSH_MAX_NS;
        while !self.flights.is_empty() {
            if !self.look() {
                std::thread::sleep(PAUSE);
            }
            if now_ns() > deadline {
                let oldest = self.flights.values().next().map(ToString::to_string).unwrap_or_default();
                let left = self.flights.len();
                return self
                    .violate(&format!("{left} operations did not end after a flush, among them: {oldest}"));
            }
        }
    }

    fn check_source(&mut self) {
        let bytes = self.memory.read(self.rank, 0, SOURCE_BYTES, &mut self.scratch);
        if let Some(at) = pattern::wrong(bytes, source_number(self.rank)) {
            self.violate(&format!("byte {at} of memory that peers only read has changed"));
        }
    }

    fn pause(&mut self) {
        if !self.schedule.traffic.events {
            return std::thread::sleep(PAUSE);
        }
        for rail in 0..self.rails.len() {
            self.rails[rail].take_events();
            if let Err(error) = self.rails[rail].arm() {
                self.violate(&format!("NIC {rail}'s completion queue cannot be armed: {error}"));
            }
        }
        // What came before a queue was armed gives no event.
        if self.look() {
            return;
        }
        if self.sleep(SLEEP_MS) {
            return;
        }
        // A completion that came while all slept must have woken them; if one is there now, its event must be, too, soon.
        let rails: Vec<usize> = (0..self.rails.len()).filter(|rail| !self.retired[*rail]).collect();
        for rail in rails {
            if self.poll(rail) {
                let [channel, _] = self.rails[rail].descriptors();
                if !readable(&[channel], EVENT_MAX.as_millis() as i32) {
                    self.violate(&format!("a completion came on NIC {rail}, which was armed, and no event"));
                }
            }
        }
    }

    /// Sleeps until a channel has an event; false when none had.
    fn sleep(&self, ms: i32) -> bool {
        let all: Vec<i32> = self.rails.iter().flat_map(Rail::descriptors).collect();
        readable(&all, ms)
    }
}

/// Whether one of the descriptors becomes readable in time.
fn readable(descriptors: &[i32], ms: i32) -> bool {
    let mut waits: Vec<libc::pollfd> =
        descriptors.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array has as many entries as is said.
    unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, ms) > 0 }
}
