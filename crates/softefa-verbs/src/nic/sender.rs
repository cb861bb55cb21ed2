//! Operations from their posting to the wire.

use std::sync::Arc;

use softefa_fabric::model::PACKET_BYTES;
use softefa_fabric::nic::Owner;
use softefa_fabric::wire::{IMMEDIATE, INLINE_BYTES, NO_SLOT, Packet, PacketKind};
use softefa_fabric::{Counter, NicIndex};

use super::copy::{Piece, Way};
use super::engine::Engine;
use super::faults::{Doom, Fate};
use super::operation::{BLOCK, Cut, Operation, Source, Stream, Wait, piece, ranges};
use super::pair::QueuePair;
use super::path::{ACTIVE_MAX, IN_FLIGHT_MAX, Job, PathId, PathKey, Repeat};
use super::slab::Key;
use super::timers::Timer;
use super::types::{Access, Opcode, Payload, SEGMENTS_MAX, SendRequest, Status};

/// Blocks of packets that one run sends.
const BLOCKS_PER_RUN: usize = 8;
/// Jobs among which the next is chosen at random.
const CHOICE: u64 = 8;
/// How far ahead of time packets are handed to a NIC with a rate. More would only hold slots that other NICs could use.
const AHEAD_NS: u64 = 100_000;

/// Above these, a message's number has the low bits of its process's generation: a former owner of the slot had other numbers.
const MESSAGE_BITS: u32 = 48;

/// What came of looking at a path.
enum Step {
    /// There may be more to send at once.
    More,
    /// There is nothing to send.
    Idle,
    /// There is no room for it.
    Stalled,
    /// It has to wait until then.
    Wait(u64),
}

impl Engine {
    /// The number by which peers know an operation.
    pub(super) fn message(&self, key: Key) -> u64 {
        u64::from(self.core.me.generation) << MESSAGE_BITS | key.0
    }

    /// The operation that a peer means; `None` when it is none of this process.
    pub(super) fn key_of(&self, message: u64) -> Option<Key> {
        let mine = message >> MESSAGE_BITS == u64::from(self.core.me.generation & 0xffff);
        mine.then_some(Key(message & ((1 << MESSAGE_BITS) - 1)))
    }

    /// Begins an operation that was posted.
    pub(super) fn start(&mut self, pair: &Arc<QueuePair>, request: SendRequest, now_ns: u64) {
        let nic = pair.nic();
        let total = total(&request.payload);
        let (requests, limit) = match request.opcode {
            Opcode::Write => (Counter::WriteRequests, self.core.fabric.limits().rdma_bytes.into()),
            Opcode::Read => (Counter::ReadRequests, self.core.fabric.limits().rdma_bytes.into()),
            _ => {
                self.count(nic, Counter::SendBytes, total);
                (Counter::SendRequests, PACKET_BYTES as u64)
            }
        };
        self.count(nic, requests, 1);
        let place = request.to.and_then(softefa_fabric::Gid::place);
        let source = self.source(pair, &request);
        let (to, source) = match (place, source) {
            _ if total > limit => return self.refuse(pair, &request, Status::BadLength),
            (None, _) => return self.refuse(pair, &request, Status::InvalidAh),
            (_, None) => return self.refuse(pair, &request, Status::InvalidLkey),
            (Some((node, nic)), Some(source)) => (NicIndex { node, nic }, source),
        };
        let total = total as u32;
        let stream = Stream {
            path: None,
            head: self.operation_head(pair, &request, to, total),
            source,
            // A read asks with one packet, whatever its length.
            cut: Cut::new(if request.opcode == Opcode::Read { 0 } else { total }),
            sent: 0,
            lost: 0,
        };
        let operation = Operation {
            pair: pair.clone(),
            request,
            to,
            total,
            stream,
            received: 0,
            attempts: 0,
            since_ns: now_ns,
            wait: Wait::Nothing,
            waits_for_acknowledgement: false,
        };
        let key = self.operations.insert(operation);
        self.name(key);
        self.dispatch(key, true, now_ns);
    }

    fn refuse(&mut self, pair: &Arc<QueuePair>, request: &SendRequest, status: Status) {
        self.complete_send(pair, request, 0, status);
    }

    /// Writes an operation's number into its packets.
    fn name(&mut self, key: Key) {
        let message = self.message(key);
        if let Some(operation) = self.operations.get_mut(key) {
            operation.stream.head.message = message;
        }
    }

    fn operation_head(&self, pair: &QueuePair, request: &SendRequest, to: NicIndex, total: u32) -> Packet {
        let kind = match request.opcode {
            Opcode::Write => PacketKind::Write,
            Opcode::Read => PacketKind::ReadRequest,
            _ => PacketKind::Send,
        };
        Packet {
            kind: kind as u8,
            flags: if request.immediate.is_some() { IMMEDIATE } else { 0 },
            remote_addr: request.remote_addr,
            remote_key: request.remote_key,
            total,
            immediate: request.immediate.unwrap_or(0),
            from_qpn: pair.number(),
            to_qpn: request.qpn,
            qkey: request.qkey,
            ..self.header(pair.nic(), to)
        }
    }

    /// Where an operation's bytes are; `None` when a local key is wrong.
    fn source(&self, pair: &QueuePair, request: &SendRequest) -> Option<Source> {
        match &request.payload {
            Payload::Inline { bytes, .. } => Some(Source::Inline { bytes: *bytes }),
            Payload::Segments { .. } => {
                let list = self.local_ranges(pair, request)?;
                match request.opcode {
                    Opcode::Read => Some(Source::Nothing),
                    _ => Some(Source::Memory { list }),
                }
            }
        }
    }

    /// The addresses of a request's segments; `None` when a local key is wrong.
    pub(super) fn local_ranges(
        &self,
        pair: &QueuePair,
        request: &SendRequest,
    ) -> Option<[(u64, u32); SEGMENTS_MAX]> {
        let Payload::Segments { count, list } = &request.payload else { return None };
        let access = if request.opcode == Opcode::Read { Access::LOCAL_WRITE } else { Access(0) };
        let place = (pair.nic().nic, pair.pd());
        let mut ranges = [(0, 0); SEGMENTS_MAX];
        for (range, segment) in ranges.iter_mut().zip(&list[..usize::from(*count).min(SEGMENTS_MAX)]) {
            if segment.len != 0 {
                let bytes = (segment.addr, segment.len.into());
                *range = (self.regions.locate(place, segment.key, bytes, access)?, segment.len);
            }
        }
        Some(ranges)
    }

    /// Finds out where an operation goes: onto the path to its peer's process, or nowhere when there is none.
    pub(super) fn dispatch(&mut self, key: Key, first: bool, now_ns: u64) {
        let Some(operation) = self.operations.get(key) else { return };
        let (from, to, qpn) = (operation.pair.nic(), operation.to, operation.request.qpn);
        let usual_ns = self.model.unresponsive_ns;
        let Engine { faults, core, random, .. } = self;
        if first && let Some(doom) = faults.doom(&core.fabric, random, (from, to), usual_ns, now_ns) {
            self.count_sent(key, now_ns);
            return self.wait_for_doom(key, doom, now_ns);
        }
        let owner = match core.fabric.nic(to) {
            Some(nic) => nic.qp(qpn).filter(|owner| core.fabric.is_live(*owner)),
            None => {
                let status = Status::UnreachableRemote;
                return self.wait_for_doom(key, Doom { status, after_ns: usual_ns, fault: 0 }, now_ns);
            }
        };
        let blocked = faults.blocked(from, to, self.model.loopback != 0, now_ns).is_some();
        match owner {
            Some(owner) => {
                let path = self.path(PathKey { from, to, owner });
                if let Some(operation) = self.operations.get_mut(key) {
                    operation.wait = Wait::Nothing;
                    operation.stream.path = Some(path);
                }
                self.paths[path.0 as usize].queue.push_back(key);
                if first && self.paths[path.0 as usize].block.is_some() {
                    self.count_sent(key, now_ns);
                }
                self.list_path(path);
                if let Some(operation) = self.operations.get(key)
                    && let Some(deadline_ns) = self.deadline_ns(operation, now_ns)
                {
                    self.scan_at_ns = self.scan_at_ns.min(deadline_ns);
                }
            }
            None if blocked => {
                // Nobody learns that there is nobody. When the way is free again, it is dispatched once more.
                if first {
                    self.count_sent(key, now_ns);
                }
                self.scan_at_ns = self.scan_at_ns.min(now_ns + usual_ns / 16);
            }
            None => {
                let after_ns = 2 * self.model.base_ns;
                let doom = Doom { status: Status::RemoteBadDestQpn, after_ns, fault: 0 };
                self.wait_for_doom(key, doom, now_ns);
            }
        }
    }

    fn wait_for_doom(&mut self, key: Key, doom: Doom, now_ns: u64) {
        if let Some(operation) = self.operations.get_mut(key) {
            operation.wait = Wait::Doom(doom);
            operation.since_ns = now_ns;
            self.timers.at(now_ns.saturating_add(doom.after_ns), Timer::Operation(key));
        }
    }

    /// Counts an operation's first packet as sent, though it goes nowhere.
    fn count_sent(&self, key: Key, now_ns: u64) {
        if let Some(operation) = self.operations.get(key) {
            let bytes = match operation.request.opcode {
                Opcode::Read => 0,
                _ => operation.total.min(PACKET_BYTES as u32),
            };
            let nic = operation.pair.nic();
            if self.faults.is_down(nic, now_ns) {
                return;
            }
            self.count(nic, Counter::TxPackets, 1);
            self.count(nic, Counter::TxBytes, bytes.into());
        }
    }

    /// An operation's wait is over.
    pub(super) fn operation_is_due(&mut self, key: Key, now_ns: u64) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        match operation.wait {
            Wait::Nothing => {}
            Wait::Retry => {
                operation.wait = Wait::Nothing;
                self.dispatch(key, false, now_ns);
            }
            Wait::Doom(doom) => {
                if operation.since_ns.saturating_add(doom.after_ns) <= now_ns {
                    self.finish(key, doom.status);
                }
            }
        }
    }

    /// Sends what paths have to send, a bounded amount of it. True when there is more.
    pub(super) fn send(&mut self, now_ns: u64) -> bool {
        self.send_waiting();
        let core = self.core.clone();
        let arena = core.fabric.arena(core.me.process);
        self.slots.harvest(arena);
        for path in std::mem::take(&mut self.links.stalled) {
            self.list_path(path);
        }
        for _ in 0..BLOCKS_PER_RUN {
            let Some(id) = self.links.ready.pop_front() else { return false };
            let mut step = self.send_of(id, now_ns);
            if matches!(step, Step::Stalled) {
                // Asked for first, looked again after: room that is made from now on is told of.
                self.ask_for_room(id);
                self.slots.harvest_all(arena);
                step = self.send_of(id, now_ns);
            }
            let path = &mut self.paths[id.0 as usize];
            path.listed = false;
            match step {
                Step::More if path.has_work() => self.list_path(id),
                Step::More | Step::Idle => {}
                Step::Stalled => self.links.stalled.push(id),
                Step::Wait(at_ns) => self.list_path_at(id, at_ns),
            }
            // The peer may begin while this process goes on.
            self.ring_bells(now_ns);
        }
        !self.links.ready.is_empty()
    }

    fn ask_for_room(&self, id: PathId) {
        let peer = self.paths[id.0 as usize].key.owner.process;
        let mut holders = self.slots.holders() | 1 << peer.get();
        while holders != 0 {
            let at = holders.trailing_zeros() as usize;
            holders &= holders - 1;
            if let Some(process) = softefa_fabric::ProcessIndex::new(at) {
                self.core.fabric.process(process).ask_for_room(self.core.me.process);
            }
        }
    }

    fn send_of(&mut self, id: PathId, now_ns: u64) -> Step {
        let path = &mut self.paths[id.0 as usize];
        if !path.alive {
            return Step::Idle;
        }
        if path.block.is_some() && now_ns < path.retry_at_ns {
            return Step::Wait(path.retry_at_ns);
        }
        for _ in 0..path.control.len() {
            let Some(packet) = self.paths[id.0 as usize].control.pop_front() else { break };
            self.send_control(id, packet, 0, now_ns);
        }
        let path = &mut self.paths[id.0 as usize];
        if path.block.is_some() && now_ns < path.retry_at_ns {
            return Step::Wait(path.retry_at_ns);
        }
        self.activate(id);
        let path = &self.paths[id.0 as usize];
        if path.active.is_empty() && path.repeats.is_empty() {
            return Step::Idle;
        }
        let (from, to) = (path.key.from, path.key.to);
        if self.rate_bps(from, to, now_ns).is_some()
            && let Some(nic) = self.core.fabric.nic(from)
            && nic.busy_until_ns() > now_ns + AHEAD_NS
        {
            return Step::Wait(nic.busy_until_ns() - AHEAD_NS / 2);
        }
        if let Some(repeat) = self.paths[id.0 as usize].repeats.pop_front() {
            return self.send_repeat(id, repeat, now_ns);
        }
        let choices = (self.paths[id.0 as usize].active.len() as u64).min(CHOICE);
        let chosen = self.random.below(choices) as usize;
        let active = &mut self.paths[id.0 as usize].active;
        active.swap(0, chosen);
        let Some(job) = active.pop_front() else { return Step::Idle };
        self.send_block(id, job, now_ns)
    }

    /// Makes operations of a path active while that is allowed.
    fn activate(&mut self, id: PathId) {
        let path = &mut self.paths[id.0 as usize];
        while path.active.len() < ACTIVE_MAX && path.in_flight < IN_FLIGHT_MAX {
            let Some(key) = path.queue.pop_front() else { break };
            if let Some(operation) = self.operations.get_mut(key) {
                operation.waits_for_acknowledgement = true;
                path.active.push_back(Job::Operation(key));
                path.in_flight += 1;
            }
        }
    }

    pub(super) fn stream(&self, job: Job) -> Option<&Stream> {
        match job {
            Job::Operation(key) => self.operations.get(key).map(|operation| &operation.stream),
            Job::Answer(key) => self.answers.get(key).map(|answer| &answer.stream),
        }
    }

    fn stream_mut(&mut self, job: Job) -> Option<&mut Stream> {
        match job {
            Job::Operation(key) => self.operations.get_mut(key).map(|operation| &mut operation.stream),
            Job::Answer(key) => self.answers.get_mut(key).map(|answer| &mut answer.stream),
        }
    }

    /// Sends the next few packets of a job.
    fn send_block(&mut self, id: PathId, job: Job, now_ns: u64) -> Step {
        let Some(stream) = self.stream(job) else { return Step::More };
        let mut stream = *stream;
        if stream.sent == 0
            && stream.lost == 0
            && let Job::Operation(key) = job
        {
            stream.head.status = self.refusal(key, now_ns) as u8;
        }
        let owner = self.paths[id.0 as usize].key.owner;
        let room = self.room(owner);
        let mut packets: [Packet; BLOCK] = [stream.head; BLOCK];
        let mut n = 0;
        let mut blocked = None;
        let mut lost = Vec::new();
        for _ in 0..stream.cut.block_left() {
            if n >= room {
                break;
            }
            let index = stream.cut.peek(&mut self.random);
            let Some(packet) = self.packet(&stream, index, id, owner) else { break };
            match self.fate(id, now_ns) {
                Fate::Passes => {
                    packets[n] = packet;
                    n += 1;
                }
                Fate::Lost => {
                    self.unslot(&packet);
                    lost.push(index);
                    self.count_packet(&packet, true, now_ns);
                }
                Fate::Blocked(block) => {
                    self.unslot(&packet);
                    self.count_packet(&packet, self.paths[id.0 as usize].block.is_none(), now_ns);
                    blocked = Some(block);
                    break;
                }
            }
            stream.cut.advance();
        }
        let moved = n + lost.len();
        stream.sent += n as u32;
        stream.lost += lost.len() as u32;
        if let Some(to) = self.stream_mut(job) {
            *to = stream;
        }
        if !self.fill_and_push(job, &stream, &mut packets[..n], owner, now_ns) {
            return Step::More;
        }
        if n > 0 {
            self.unblock(id);
        }
        for index in lost {
            let at_ns = self.repeat_at_ns(0, now_ns);
            self.timers.at(at_ns, Timer::Repeat(id, Repeat { job, index, tries: 1 }));
        }
        if let Some(block) = blocked {
            self.block(id, block, now_ns);
        }
        let path = &mut self.paths[id.0 as usize];
        if stream.cut.is_done() {
            self.job_is_sent(job);
        } else if moved == 0 || blocked.is_some() {
            path.active.push_front(job);
        } else {
            path.active.push_back(job);
        }
        let path = &self.paths[id.0 as usize];
        match blocked {
            Some(_) => Step::Wait(path.retry_at_ns),
            None if moved == 0 => Step::Stalled,
            None => Step::More,
        }
    }

    /// Sends a packet that was lost once more.
    fn send_repeat(&mut self, id: PathId, repeat: Repeat, now_ns: u64) -> Step {
        let Some(stream) = self.stream(repeat.job) else { return Step::More };
        let stream = *stream;
        let owner = self.paths[id.0 as usize].key.owner;
        let packet = if self.room(owner) == 0 { None } else { self.packet(&stream, repeat.index, id, owner) };
        let Some(packet) = packet else {
            self.paths[id.0 as usize].repeats.push_front(repeat);
            return Step::Stalled;
        };
        match self.fate(id, now_ns) {
            Fate::Passes => {
                let from = packet.source();
                self.count(from, Counter::RetransmittedPackets, 1);
                self.count(from, Counter::RetransmittedBytes, packet.length.into());
                self.count(from, Counter::RetransmitTimeouts, 1);
                if let Some(stream) = self.stream_mut(repeat.job) {
                    stream.lost -= 1;
                    stream.sent += 1;
                }
                if self.fill_and_push(repeat.job, &stream, &mut [packet], owner, now_ns) {
                    self.unblock(id);
                    if self.stream(repeat.job).is_some_and(|stream| stream.cut.is_done()) {
                        self.job_is_sent(repeat.job);
                    }
                }
                Step::More
            }
            Fate::Lost => {
                self.unslot(&packet);
                self.count_packet(&packet, false, now_ns);
                self.count(packet.source(), Counter::RetransmitTimeouts, 1);
                let at_ns = self.repeat_at_ns(repeat.tries, now_ns);
                let repeat = Repeat { tries: repeat.tries + 1, ..repeat };
                self.timers.at(at_ns, Timer::Repeat(id, repeat));
                Step::More
            }
            Fate::Blocked(block) => {
                self.unslot(&packet);
                self.count_packet(&packet, false, now_ns);
                self.block(id, block, now_ns);
                self.paths[id.0 as usize].repeats.push_front(repeat);
                Step::Wait(self.paths[id.0 as usize].retry_at_ns)
            }
        }
    }

    /// The status with which a peer is to answer an operation instead of executing it.
    fn refusal(&mut self, key: Key, now_ns: u64) -> Status {
        let Some(operation) = self.operations.get(key) else { return Status::Ok };
        let (from, to) = (operation.pair.nic(), operation.to);
        let rdma = operation.request.opcode != Opcode::Send;
        let Engine { faults, core, random, .. } = self;
        faults.refusal(&core.fabric, random, (from, to), rdma, now_ns)
    }

    /// How many packets can be pushed to a process now.
    fn room(&self, owner: Owner) -> usize {
        if self.has_waiting(owner.process) {
            return 0;
        }
        self.core.fabric.ring(self.core.me.process, owner.process).room()
    }

    /// Packet `index` of a message, with a slot where it needs one; `None` when there is no slot.
    fn packet(&mut self, stream: &Stream, index: u32, path: PathId, owner: Owner) -> Option<Packet> {
        let (offset, length) = match stream.source {
            Source::Nothing => (0, 0),
            _ => piece(index, stream.head.total),
        };
        let slot = if length as usize > INLINE_BYTES {
            let arena = self.core.fabric.arena(self.core.me.process);
            self.slots.take(arena, path, owner.process)?
        } else {
            NO_SLOT
        };
        Some(Packet { offset, length, slot, ..stream.head })
    }

    /// Gives back the slot that was taken last, of a packet that does not leave.
    fn unslot(&mut self, packet: &Packet) {
        if packet.slot != NO_SLOT {
            self.slots.undo(self.core.fabric.arena(self.core.me.process), packet.slot);
        }
    }

    fn count_packet(&self, packet: &Packet, first: bool, now_ns: u64) {
        let from = packet.source();
        if self.faults.is_down(from, now_ns) {
            return; // What a dead NIC was given never leaves it.
        }
        self.count(from, Counter::TxPackets, 1);
        self.count(from, Counter::TxBytes, packet.length.into());
        if !first && packet.kind != PacketKind::Acknowledge as u8 {
            self.count(from, Counter::RetransmittedPackets, 1);
            self.count(from, Counter::RetransmittedBytes, packet.length.into());
        }
    }

    /// Copies packets' bytes out of the application's memory and pushes them. False when the memory is not there: the job has ended.
    fn fill_and_push(
        &mut self,
        job: Job,
        stream: &Stream,
        packets: &mut [Packet],
        owner: Owner,
        now_ns: u64,
    ) -> bool {
        if !self.fill(job, stream, packets) {
            for packet in packets.iter().rev() {
                self.unslot(packet);
            }
            if let Some(stream) = self.stream_mut(job) {
                stream.sent -= packets.len() as u32;
            }
            self.break_job(job, now_ns);
            return false;
        }
        for packet in packets.iter_mut() {
            let ends = (packet.source(), packet.target());
            packet.due_ns = self.arrival_ns(ends, Some(packet.length), now_ns);
            self.count(ends.0, Counter::TxPackets, 1);
            self.count(ends.0, Counter::TxBytes, packet.length.into());
            if packet.kind == PacketKind::ReadResponse as u8 {
                self.count(ends.0, Counter::ReadResponseBytes, packet.length.into());
            }
            // The room was looked at before.
            let _ = self.push(owner, packet);
        }
        true
    }

    fn fill(&mut self, job: Job, stream: &Stream, packets: &mut [Packet]) -> bool {
        if packets.iter().all(|packet| packet.length == 0) {
            return true;
        }
        let list = match stream.source {
            Source::Nothing => return true,
            Source::Inline { bytes } => {
                for packet in packets.iter_mut() {
                    let arena = self.core.fabric.arena(self.core.me.process);
                    let length = (packet.length as usize).min(bytes.len());
                    match arena.bytes(packet.slot) {
                        // SAFETY: a slot is longer than inline bytes can be, and this process holds it.
                        Some(to) => unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), length) },
                        None => packet.inline[..length].copy_from_slice(&bytes[..length]),
                    }
                }
                return true;
            }
            Source::Memory { list } => list,
        };
        if !self.is_registered(job) {
            return false;
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        let arena = self.core.fabric.arena(self.core.me.process);
        for packet in packets.iter_mut() {
            let mut own = arena.bytes(packet.slot).unwrap_or(packet.inline.as_mut_ptr());
            for (app, len) in ranges(&list, packet.offset, packet.length) {
                pieces.push(Piece { own, app, len: len as usize });
                own = own.wrapping_add(len as usize);
            }
        }
        let mut whole = true;
        // SAFETY: a packet's bytes lie in its slot, which this process holds and which is as long as a packet can be, or in the
        // packet itself when they are that few; both stay where they are until the copy is done.
        unsafe { self.copier.copy(Way::FromApplication, &pieces, |_| whole = false) };
        self.pieces = pieces;
        whole
    }

    /// Whether the memory that a job sends from is still registered.
    fn is_registered(&self, job: Job) -> bool {
        match job {
            Job::Operation(key) => self
                .operations
                .get(key)
                .is_some_and(|operation| self.local_ranges(&operation.pair, &operation.request).is_some()),
            Job::Answer(key) => self.answers.get(key).is_some_and(|answer| {
                let bytes = (answer.addr, answer.stream.head.total.into());
                self.regions.locate(answer.place, answer.key, bytes, Access::REMOTE_READ).is_some()
            }),
        }
    }

    /// Ends a job whose memory is not there.
    fn break_job(&mut self, job: Job, now_ns: u64) {
        match job {
            Job::Operation(key) => self.finish(key, Status::InvalidLkey),
            Job::Answer(key) => self.break_answer(key, now_ns),
        }
    }

    /// All packets of a job have been sent, or are waiting to be sent again.
    fn job_is_sent(&mut self, job: Job) {
        if let Job::Answer(key) = job
            && self.answers.get(key).is_some_and(|answer| answer.stream.lost == 0)
        {
            self.answers.remove(key);
        }
    }

    /// Has an operation begin again after a while, under another number: packets of the old one mean nothing any more.
    pub(super) fn retry_later(&mut self, key: Key, now_ns: u64) {
        let Some(mut operation) = self.take_operation(key, true) else { return };
        operation.wait = Wait::Retry;
        operation.stream.cut =
            Cut::new(if operation.request.opcode == Opcode::Read { 0 } else { operation.total });
        operation.stream.sent = 0;
        operation.stream.lost = 0;
        operation.stream.path = None;
        let key = self.operations.insert(operation);
        self.name(key);
        self.timers.at(now_ns + self.model.rnr_wait_ns, Timer::Operation(key));
    }
}

fn total(payload: &Payload) -> u64 {
    match payload {
        Payload::Inline { len, .. } => (*len).into(),
        Payload::Segments { count, list } => {
            list[..usize::from(*count).min(SEGMENTS_MAX)].iter().map(|segment| u64::from(segment.len)).sum()
        }
    }
}
