//! Operations from their posting to their path.

use std::sync::Arc;

use softefa_fabric::model::PACKET_BYTES;
use softefa_fabric::wire::{IMMEDIATE, Packet, PacketKind};
use softefa_fabric::{Counter, NicIndex};

use super::engine::Engine;
use super::faults::Doom;
use super::operation::{Cut, Operation, Source, Stream, Wait};
use super::pair::QueuePair;
use super::path::PathKey;
use super::slab::Key;
use super::timers::Timer;
use super::types::{Access, Opcode, Payload, SEGMENTS_MAX, SendRequest, Status};

/// Above these, a message's number has the low bits of its process's generation: a former owner of the slot had other numbers.
const MESSAGE_BITS: u32 = 48;

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
            self.count_sent(key);
            return self.wait_for_doom(key, doom, now_ns);
        }
        let owner = match core.fabric.nic(to) {
            Some(nic) => nic.qp(qpn).filter(|owner| core.fabric.is_live(*owner)),
            None => {
                let status = Status::UnreachableRemote;
                return self.wait_for_doom(key, Doom { status, after_ns: usual_ns, fault: 0 }, now_ns);
            }
        };
        let blocked = faults.blocked(from, to, self.model.loopback != 0, now_ns);
        match owner {
            Some(owner) => {
                let path = self.path(PathKey { from, to, owner });
                if let Some(operation) = self.operations.get_mut(key) {
                    operation.wait = Wait::Nothing;
                    operation.stream.path = Some(path);
                }
                self.paths[path.0 as usize].queue.push_back(key);
                if first && self.paths[path.0 as usize].block.is_some_and(|block| !block.unsent) {
                    self.count_sent(key);
                }
                self.list_path(path);
                if let Some(operation) = self.operations.get(key)
                    && let Some(deadline_ns) = self.deadline_ns(operation, now_ns)
                {
                    self.scan_at_ns = self.scan_at_ns.min(deadline_ns);
                }
            }
            None if blocked.is_some() => {
                // Nobody learns that there is nobody. When the way is free again, it is dispatched once more.
                if first && blocked.is_some_and(|(block, _)| !block.unsent) {
                    self.count_sent(key);
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
    fn count_sent(&self, key: Key) {
        if let Some(operation) = self.operations.get(key) {
            let bytes = match operation.request.opcode {
                Opcode::Read => 0,
                _ => operation.total.min(PACKET_BYTES as u32),
            };
            let nic = operation.pair.nic();
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
