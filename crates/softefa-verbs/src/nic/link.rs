//! Packets onto the wire: when they arrive, what faults do to them, and what waits when the wire is full.

use std::collections::VecDeque;

use softefa_fabric::nic::Owner;
use softefa_fabric::wire::{NO_SLOT, Packet, PacketKind};
use softefa_fabric::{Counter, NicIndex, PROCESSES_MAX, ProcessIndex};

use super::engine::Engine;
use super::faults::{Block, Fate};
use super::path::PathId;
use super::timers::Timer;

/// How long to wait at most for room on the wire. Peers say when there is some: this is for those that cannot.
const ROOM_WAIT_NS: u64 = 10_000_000;
/// Most acknowledgements that wait for room: as many as a correct peer can have operations in flight.
const WAITING_MAX: usize = 1 << 20;
/// The wait before a lost packet is sent again doubles up to this multiple of the first.
const BACKOFF_MAX: u64 = 16;
/// Where nothing ever arrives, packets are sent again this seldom in the end.
const SILENT_WAIT_MAX_NS: u64 = 1_000_000_000;

/// What is on its way to which process.
pub(super) struct Links {
    /// Packets for which a ring had no room, by the process that it leads to.
    waiting: Vec<VecDeque<(Owner, Packet)>>,
    /// Bit s: there are some for the process in slot s.
    waits: u64,
    /// Bit s: the process in slot s has new packets and does not know.
    bells: u64,
    /// Paths that have something to send.
    pub(super) ready: VecDeque<PathId>,
    /// Paths that wait for slots or for room in a ring.
    pub(super) stalled: Vec<PathId>,
}

impl Links {
    pub(super) fn new() -> Links {
        Links {
            waiting: (0..PROCESSES_MAX).map(|_| VecDeque::new()).collect(),
            waits: 0,
            bells: 0,
            ready: VecDeque::new(),
            stalled: Vec::new(),
        }
    }

    pub(super) fn next_look_ns(&self, now_ns: u64) -> u64 {
        if self.waits == 0 && self.stalled.is_empty() { u64::MAX } else { now_ns + ROOM_WAIT_NS }
    }
}

impl Engine {
    /// When a packet of `bytes` arrives that leaves now. Acknowledgements (`None`) do not queue up behind data.
    pub(super) fn arrival_ns(
        &mut self,
        (from, to): (NicIndex, NicIndex),
        bytes: Option<u32>,
        now_ns: u64,
    ) -> u64 {
        let mut at_ns = now_ns;
        if let Some(bytes) = bytes
            && let Some(rate_bps) = self.rate_bps(from, to, now_ns)
            && let Some(nic) = self.core.fabric.nic(from)
        {
            at_ns = nic.depart(now_ns, bytes.into(), rate_bps);
        }
        let Engine { model, random, faults, core, .. } = self;
        let mut latency_ns = model.base_ns + random.exponential(model.jitter_ns);
        if random.chance(model.tail_ppm) {
            let span_ns = model.tail_max_ns.saturating_sub(model.tail_min_ns);
            latency_ns += model.tail_min_ns + random.below(span_ns + 1);
            if let (Some(bytes), Some(nic)) = (bytes, core.fabric.nic(from)) {
                nic.count(Counter::RetransmitTimeouts, 1);
                nic.count(Counter::RetransmittedPackets, 1);
                nic.count(Counter::RetransmittedBytes, bytes.into());
                nic.count(Counter::TxPackets, 1);
                nic.count(Counter::TxBytes, bytes.into());
            }
        }
        latency_ns = latency_ns.saturating_add(faults.delay_ns(&core.fabric, random, (from, to), now_ns));
        if latency_ns == 0 && at_ns == now_ns { 0 } else { at_ns.saturating_add(latency_ns) }
    }

    /// How fast a NIC sends now, if that is limited.
    pub(super) fn rate_bps(&self, from: NicIndex, to: NicIndex, now_ns: u64) -> Option<u64> {
        let nominal = match self.model.rated {
            0 => None,
            _ => self.core.fabric.nic(from).map(|nic| {
                (u128::from(nic.rate_bps()) * u128::from(self.model.goodput_permille) / 1000) as u64
            }),
        };
        let faulty = self.faults.rate_bps((from, to), now_ns);
        match (nominal, faulty) {
            (Some(nominal), Some(faulty)) => Some(nominal.min(faulty)),
            (nominal, faulty) => nominal.or(faulty),
        }
    }

    /// What becomes of the next packet on a path.
    pub(super) fn fate(&mut self, path: PathId, now_ns: u64) -> Fate {
        let key = self.paths[path.0 as usize].key;
        let loopback = self.model.loopback != 0;
        let Engine { faults, core, random, .. } = self;
        faults.fate(&core.fabric, random, (key.from, key.to), loopback, now_ns)
    }

    /// Nothing gets through on a path: it waits, longer each time.
    pub(super) fn block(&mut self, id: PathId, block: Block, now_ns: u64) {
        let first_ns = self.model.retransmit_ns.max(1_000);
        let max_ns = if block.silent { SILENT_WAIT_MAX_NS } else { BACKOFF_MAX * first_ns };
        let path = &mut self.paths[id.0 as usize];
        let again = path.block.is_some();
        path.wait_ns = if again { (2 * path.wait_ns).min(max_ns.max(first_ns)) } else { first_ns };
        path.retry_at_ns = now_ns + path.wait_ns;
        path.block = Some(block);
        let from = path.key.from;
        let counter = if again { Counter::RetransmitTimeouts } else { Counter::ImpairedConnections };
        self.count(from, counter, 1);
        // Operations on it may have to end some time from now.
        self.scan_at_ns = self.scan_at_ns.min(now_ns + self.model.unresponsive_ns / 16);
    }

    /// A packet got through on a path.
    pub(super) fn unblock(&mut self, id: PathId) {
        let path = &mut self.paths[id.0 as usize];
        path.block = None;
        path.wait_ns = 0;
        path.retry_at_ns = 0;
    }

    /// When a packet that was lost `tries` times is sent again.
    pub(super) fn repeat_at_ns(&self, tries: u32, now_ns: u64) -> u64 {
        let factor = 1_u64.checked_shl(tries).unwrap_or(u64::MAX).min(BACKOFF_MAX);
        now_ns + self.model.retransmit_ns.max(1_000).saturating_mul(factor)
    }

    /// Puts a path into the list of those that have something to send.
    pub(super) fn list_path(&mut self, id: PathId) {
        let path = &mut self.paths[id.0 as usize];
        if path.alive && !path.listed {
            path.listed = true;
            self.links.ready.push_back(id);
        }
    }

    /// Looks at a path again at some time.
    pub(super) fn list_path_at(&mut self, id: PathId, at_ns: u64) {
        let path = &mut self.paths[id.0 as usize];
        if path.timer_ns == 0 || path.timer_ns > at_ns {
            path.timer_ns = at_ns;
            self.timers.at(at_ns, Timer::Path(id));
        }
    }

    /// Puts a packet into the ring to its process; the caller has seen that there is room.
    pub(super) fn push(&mut self, to: Owner, packet: &Packet) -> bool {
        let pushed = self.core.fabric.ring(self.core.me.process, to.process).push(packet);
        if pushed {
            self.links.bells |= 1 << to.process.get();
        }
        pushed
    }

    /// Puts a packet into the ring to its process, or behind those that wait for room.
    fn push_or_wait(&mut self, to: Owner, packet: Packet) {
        let at = to.process.get();
        if self.links.waiting[at].is_empty() && self.push(to, &packet) {
            return;
        }
        if self.links.waiting[at].len() >= WAITING_MAX {
            self.count(packet.source(), Counter::RxDrops, 1);
            return;
        }
        self.links.waiting[at].push_back((to, packet));
        self.links.waits |= 1 << at;
        self.core.fabric.process(to.process).ask_for_room(self.core.me.process);
    }

    /// Sends what a ring had no room for.
    pub(super) fn send_waiting(&mut self) {
        let mut waits = self.links.waits;
        while waits != 0 {
            let at = waits.trailing_zeros() as usize;
            waits &= waits - 1;
            // Asked for first: room that is made after the last look is then told of.
            if let Some(process) = ProcessIndex::new(at) {
                self.core.fabric.process(process).ask_for_room(self.core.me.process);
            }
            while let Some((to, packet)) = self.links.waiting[at].pop_front() {
                if !self.push(to, &packet) {
                    self.links.waiting[at].push_front((to, packet));
                    break;
                }
            }
            if self.links.waiting[at].is_empty() {
                self.links.waits &= !(1 << at);
            }
        }
    }

    /// Whether packets to a process wait for room: others must not overtake a cancellation.
    pub(super) fn has_waiting(&self, to: ProcessIndex) -> bool {
        self.links.waits & 1 << to.get() != 0
    }

    /// Sends a packet without payload of its own that is not an operation: an acknowledgement.
    pub(super) fn send_control(&mut self, id: PathId, mut packet: Packet, tries: u32, now_ns: u64) {
        let path = &mut self.paths[id.0 as usize];
        if !path.alive {
            return;
        }
        if path.block.is_some() && now_ns < path.retry_at_ns {
            path.control.push_back(packet);
            let at_ns = path.retry_at_ns;
            self.list_path_at(id, at_ns);
            return;
        }
        let key = path.key;
        match self.fate(id, now_ns) {
            Fate::Blocked(block) => {
                self.block(id, block, now_ns);
                let path = &mut self.paths[id.0 as usize];
                path.control.push_back(packet);
                let at_ns = path.retry_at_ns;
                self.list_path_at(id, at_ns);
            }
            Fate::Lost => {
                let at_ns = self.repeat_at_ns(tries, now_ns);
                self.timers.at(at_ns, Timer::Control(id, key.owner, packet, tries + 1));
            }
            Fate::Passes => {
                packet.due_ns = self.arrival_ns((key.from, key.to), None, now_ns);
                self.push_or_wait(key.owner, packet);
            }
        }
    }

    /// Tells a peer that nothing more comes of an operation.
    pub(super) fn cancel(&mut self, id: PathId, message: u64) {
        let key = self.paths[id.0 as usize].key;
        let packet = Packet { kind: PacketKind::Cancel as u8, message, ..self.header(key.from, key.to) };
        self.push_or_wait(key.owner, packet);
    }

    /// What all packets of this process have.
    pub(super) fn header(&self, from: NicIndex, to: NicIndex) -> Packet {
        Packet {
            kind: 0,
            flags: 0,
            status: 0,
            from: self.core.me.process.get() as u8,
            generation: self.core.me.generation,
            message: 0,
            due_ns: 0,
            remote_addr: 0,
            remote_key: 0,
            total: 0,
            offset: 0,
            length: 0,
            immediate: 0,
            from_qpn: 0,
            to_qpn: 0,
            qkey: 0,
            from_node: from.node as u8,
            from_nic: from.nic as u8,
            to_node: to.node as u8,
            to_nic: to.nic as u8,
            slot: NO_SLOT,
            inline: [0; softefa_fabric::wire::INLINE_BYTES],
        }
    }

    /// Tells the processes that have new packets.
    pub(super) fn ring_bells(&mut self, now_ns: u64) {
        let mut bells = std::mem::take(&mut self.links.bells);
        while bells != 0 {
            let at = bells.trailing_zeros() as usize;
            bells &= bells - 1;
            if let Some(process) = ProcessIndex::new(at) {
                self.core.fabric.process(process).notify(self.core.me.process, now_ns);
            }
        }
    }

    /// Forgets what waits for a process that is gone.
    pub(super) fn forget_link(&mut self, owner: Owner) {
        let at = owner.process.get();
        self.links.waiting[at].retain(|(to, _)| *to != owner);
        if self.links.waiting[at].is_empty() {
            self.links.waits &= !(1 << at);
        }
    }
}
