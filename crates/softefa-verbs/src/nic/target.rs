//! What peers ask for: sends, writes and reads executed here, and their acknowledgements.

use std::sync::Arc;

use softefa_fabric::nic::Owner;
use softefa_fabric::wire::{IMMEDIATE, Packet, PacketKind};
use softefa_fabric::{Counter, NicIndex};

use super::engine::Engine;
use super::operation::{Answer, Cut, Source, Stream};
use super::pair::QueuePair;
use super::path::{Job, PathKey};
use super::receiver::{Arrival, Plan, Stage};
use super::slab::Key;
use super::types::{Access, Completion, Opcode, ReceiveRequest, Status};

/// A message of a peer, by its number there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct InboundKey {
    pub(super) owner: Owner,
    pub(super) message: u64,
}

/// A write of several packets that has not arrived wholly.
pub(super) struct Inbound {
    total: u32,
    /// Bytes that have arrived, and those that are visible.
    arrived: u32,
    committed: u32,
    /// It was refused: what else comes of it is dropped.
    refused: bool,
    /// The receive that its immediate will use up.
    receive: Option<ReceiveRequest>,
    /// Queue pair and NIC here and there.
    here: (u32, NicIndex),
    there: (u32, NicIndex),
}

/// Most messages that are partly here, and most reads that are being answered. Correct peers stay far below.
const PARTIAL_MAX: usize = 1 << 20;

fn key(arrival: &Arrival) -> InboundKey {
    InboundKey { owner: arrival.from, message: arrival.packet.message }
}

impl Inbound {
    fn new(packet: &Packet, refused: bool, receive: Option<ReceiveRequest>) -> Inbound {
        Inbound {
            total: packet.total,
            arrived: 0,
            committed: 0,
            refused,
            receive,
            here: (packet.to_qpn, packet.target()),
            there: (packet.from_qpn, packet.source()),
        }
    }
}

fn is_whole(packet: &Packet) -> bool {
    packet.length == packet.total
}

impl Engine {
    /// The queue pair that a packet is for, if it takes it.
    fn pair_of(&self, packet: &Packet) -> Result<Arc<QueuePair>, Status> {
        let pair = self.pairs.get(&(packet.target().nic, packet.to_qpn));
        pair.filter(|pair| pair.state().receives() && pair.qkey() == packet.qkey)
            .cloned()
            .ok_or(Status::RemoteBadDestQpn)
    }

    /// What every request has to fulfil: queue pair, queue key, no fault, and for RDMA a handle of the peer.
    fn admit(&self, packet: &Packet, rdma: bool) -> Result<Arc<QueuePair>, Status> {
        let pair = self.pair_of(packet)?;
        match Status::of(packet.status) {
            Status::Ok => {}
            refusal => return Err(refusal),
        }
        if rdma && self.ports[packet.target().nic as usize].handles.find(packet.source().gid()).is_none() {
            return Err(Status::RemoteUnknownPeer);
        }
        Ok(pair)
    }

    /// Where an RDMA operation's bytes are, if its key allows them.
    fn remote_place(&self, pair: &QueuePair, packet: &Packet, access: Access) -> Result<u64, Status> {
        if packet.total == 0 {
            return Ok(0);
        }
        let bytes = (packet.remote_addr, packet.total.into());
        self.regions
            .locate((pair.nic().nic, pair.pd()), packet.remote_key, bytes, access)
            .ok_or(Status::RemoteBadAddress)
    }

    pub(super) fn plan_send(&mut self, arrival: &mut Arrival, place: &mut (u64, u32), now_ns: u64) -> Plan {
        let packet = arrival.packet;
        if arrival.stage == Stage::Arrives {
            let admitted = self.admit(&packet, false);
            let pair = match admitted {
                Ok(pair) => pair,
                Err(status) => return self.refuse_packet(arrival, status, now_ns),
            };
            let Some(receive) = pair.take_receive() else {
                return self.refuse_packet(arrival, Status::RemoteNotReady, now_ns);
            };
            arrival.receive = Some(receive);
            if receive.into.len < packet.total {
                self.complete_receive(&pair, arrival, Status::BadLength);
                return self.refuse_packet(arrival, Status::RemoteBadLength, now_ns);
            }
        }
        let (Ok(pair), Some(receive)) = (self.pair_of(&packet), arrival.receive) else { return Plan::Drop };
        if packet.total != 0 {
            let at = (pair.nic().nic, pair.pd());
            let bytes = (receive.into.addr, packet.total.into());
            let Some(addr) = self.regions.locate(at, receive.into.key, bytes, Access::LOCAL_WRITE) else {
                self.complete_receive(&pair, arrival, Status::InvalidLkey);
                return self.refuse_packet(arrival, Status::RemoteAbort, now_ns);
            };
            *place = (addr, packet.total);
        }
        if arrival.stage == Stage::Arrives && self.model.commit_ns > 0 {
            self.acknowledge(arrival, Status::Ok, now_ns);
            return Plan::Commit(now_ns + self.model.commit_ns);
        }
        Plan::Execute
    }

    pub(super) fn finish_send(&mut self, arrival: &Arrival, failed: bool, now_ns: u64) {
        // Gone meanwhile: flushed with its other receives.
        let Ok(pair) = self.pair_of(&arrival.packet) else { return };
        let (here, there) = match failed {
            true => (Status::InvalidLkey, Status::RemoteAbort),
            false => (Status::Ok, Status::Ok),
        };
        if arrival.stage == Stage::Arrives {
            self.acknowledge(arrival, there, now_ns);
        }
        self.complete_receive(&pair, arrival, here);
    }

    pub(super) fn plan_write(&mut self, arrival: &mut Arrival, place: &mut (u64, u32), now_ns: u64) -> Plan {
        let packet = arrival.packet;
        let commits = arrival.stage == Stage::Commits;
        let known = !is_whole(&packet) && self.inbound.contains_key(&key(arrival));
        if let Some(inbound) = self.inbound.get_mut(&key(arrival)).filter(|_| known && !commits) {
            let left = inbound.total - inbound.arrived;
            if inbound.total != packet.total || packet.length > left {
                self.count(packet.target(), Counter::RxDrops, 1);
                return Plan::Drop;
            }
            if inbound.refused {
                inbound.arrived += packet.length;
                if inbound.arrived == inbound.total {
                    self.inbound.remove(&key(arrival));
                }
                return Plan::Drop;
            }
        }
        let admitted = self.admit(&packet, true);
        let placed = admitted.and_then(|pair| {
            let addr = self.remote_place(&pair, &packet, Access::REMOTE_WRITE)?;
            Ok((pair, addr))
        });
        let (pair, addr) = match placed {
            Ok(placed) => placed,
            // Acknowledged, and the memory is not there any more: nobody is told.
            Err(_) if commits => return Plan::Drop,
            Err(status) => return self.refuse_packet(arrival, status, now_ns),
        };
        if !commits && !known && !self.begin_write(arrival, &pair) {
            return self.refuse_packet(arrival, Status::RemoteNotReady, now_ns);
        }
        if !commits && self.model.commit_ns > 0 {
            if self.has_arrived(arrival) {
                self.acknowledge(arrival, Status::Ok, now_ns);
            }
            return Plan::Commit(now_ns + self.model.commit_ns);
        }
        if packet.length != 0 {
            *place = (addr + u64::from(packet.offset), packet.length);
        }
        Plan::Execute
    }

    /// The first packet of a write: takes the receive that its immediate will use up. False when there is none.
    fn begin_write(&mut self, arrival: &mut Arrival, pair: &QueuePair) -> bool {
        let packet = &arrival.packet;
        let wants_receive = packet.flags & IMMEDIATE != 0 && !pair.flags().unsolicited_write_receive;
        let receive = if wants_receive { pair.take_receive() } else { None };
        if wants_receive && receive.is_none() {
            return false;
        }
        if is_whole(packet) {
            arrival.receive = receive;
        } else {
            let inbound = Inbound::new(packet, false, receive);
            self.inbound.insert(key(arrival), inbound);
        }
        true
    }

    /// Notes a packet's bytes as arrived; true when the message is complete.
    fn has_arrived(&mut self, arrival: &Arrival) -> bool {
        if is_whole(&arrival.packet) {
            return true;
        }
        let Some(inbound) = self.inbound.get_mut(&key(arrival)) else { return false };
        inbound.arrived += arrival.packet.length;
        inbound.arrived == inbound.total
    }

    pub(super) fn finish_write(&mut self, arrival: &Arrival, failed: bool, now_ns: u64) {
        let packet = arrival.packet;
        // Refused by another packet of the same batch.
        let refused = self.inbound.get(&key(arrival)).is_some_and(|inbound| inbound.refused);
        if failed || refused {
            if arrival.stage == Stage::Arrives {
                self.finish_refused(arrival, refused, now_ns);
            }
            return;
        }
        self.count(packet.target(), Counter::WriteReceivedBytes, packet.length.into());
        let complete = arrival.stage == Stage::Arrives && self.has_arrived(arrival);
        let receive = if is_whole(&packet) {
            Some(arrival.receive)
        } else {
            self.inbound.get_mut(&key(arrival)).and_then(|inbound| {
                inbound.committed += packet.length;
                (inbound.committed == inbound.total).then_some(inbound.receive)
            })
        };
        if let Some(receive) = receive {
            self.inbound.remove(&key(arrival));
            self.deliver_immediate(arrival, receive);
        }
        if complete {
            self.acknowledge(arrival, Status::Ok, now_ns);
        }
    }

    fn finish_refused(&mut self, arrival: &Arrival, refused: bool, now_ns: u64) {
        if !refused {
            let _ = self.refuse_packet(arrival, Status::RemoteBadAddress, now_ns);
        } else if self.has_arrived(arrival) {
            self.inbound.remove(&key(arrival));
        }
    }

    /// Answers a packet's message with an error, once, and forgets what the message has here.
    fn refuse_packet(&mut self, arrival: &Arrival, status: Status, now_ns: u64) -> Plan {
        if arrival.stage == Stage::Commits {
            return Plan::Drop;
        }
        let packet = &arrival.packet;
        let pair = self.pairs.get(&(packet.target().nic, packet.to_qpn)).cloned();
        let mut unused = arrival.receive.filter(|_| arrival.kind == PacketKind::Write);
        if arrival.kind == PacketKind::Write && !is_whole(packet) {
            if self.inbound.len() >= PARTIAL_MAX {
                self.count(packet.target(), Counter::RxDrops, 1);
                return Plan::Drop;
            }
            let inbound =
                self.inbound.entry(key(arrival)).or_insert_with(|| Inbound::new(packet, true, None));
            inbound.refused = true;
            inbound.arrived += packet.length;
            unused = unused.or(inbound.receive.take());
            if inbound.arrived >= inbound.total {
                self.inbound.remove(&key(arrival));
            }
        }
        if let (Some(pair), Some(receive)) = (pair, unused) {
            pair.return_receive(receive);
        }
        self.acknowledge(arrival, status, now_ns);
        Plan::Drop
    }

    /// Completes a receive with a write's immediate, all of whose bytes are visible.
    fn deliver_immediate(&mut self, arrival: &Arrival, receive: Option<ReceiveRequest>) {
        let packet = &arrival.packet;
        if packet.flags & IMMEDIATE == 0 {
            return;
        }
        let Ok(pair) = self.pair_of(packet) else { return };
        let unsolicited = receive.is_none();
        let id = receive.map_or(0, |receive| receive.id);
        let completion = Completion {
            unsolicited,
            ..self.receive_completion(&pair, packet, id, Opcode::ReceiveWrite, Status::Ok)
        };
        self.count(pair.nic(), Counter::ReceiveRequests, 1);
        self.complete(pair.recv_cq(), completion, None);
    }

    fn complete_receive(&mut self, pair: &QueuePair, arrival: &Arrival, status: Status) {
        let id = arrival.receive.map_or(0, |receive| receive.id);
        if status == Status::Ok {
            self.count(pair.nic(), Counter::ReceiveRequests, 1);
            self.count(pair.nic(), Counter::ReceiveBytes, arrival.packet.total.into());
        }
        let completion = self.receive_completion(pair, &arrival.packet, id, Opcode::Receive, status);
        self.complete(pair.recv_cq(), completion, None);
    }

    pub(super) fn complete_flushed_receive(&mut self, pair: &QueuePair, id: u64) {
        let completion = Completion::of_request(id, Status::Flushed, Opcode::Receive, pair.number());
        self.complete(pair.recv_cq(), completion, None);
    }

    fn receive_completion(
        &self,
        pair: &QueuePair,
        packet: &Packet,
        id: u64,
        opcode: Opcode,
        status: Status,
    ) -> Completion {
        let from = packet.source().gid();
        Completion {
            id,
            status,
            opcode,
            bytes: packet.total,
            immediate: (packet.flags & IMMEDIATE != 0).then_some(packet.immediate),
            qpn: pair.number(),
            from_qpn: packet.from_qpn,
            from_handle: self.ports[pair.nic().nic as usize].handles.find(from),
            from: Some(from),
            unsolicited: false,
        }
    }

    pub(super) fn read_requested(&mut self, arrival: &Arrival, now_ns: u64) {
        let packet = &arrival.packet;
        let admitted = self.admit(packet, true);
        let placed = admitted.and_then(|pair| {
            let addr = self.remote_place(&pair, packet, Access::REMOTE_READ)?;
            Ok((pair, addr))
        });
        match placed {
            Err(status) => self.acknowledge(arrival, status, now_ns),
            Ok(_) if packet.total == 0 => self.acknowledge(arrival, Status::Ok, now_ns),
            Ok(_) if self.answers.len() >= PARTIAL_MAX || !self.core.fabric.is_live(arrival.from) => {
                self.count(packet.target(), Counter::RxDrops, 1);
            }
            Ok((pair, addr)) => self.begin_answer(arrival, &pair, addr),
        }
    }

    fn begin_answer(&mut self, arrival: &Arrival, pair: &QueuePair, addr: u64) {
        let packet = &arrival.packet;
        let (from, to) = (packet.target(), packet.source());
        let path = self.path(PathKey { from, to, owner: arrival.from });
        let head = Packet {
            kind: PacketKind::ReadResponse as u8,
            message: packet.message,
            total: packet.total,
            from_qpn: packet.to_qpn,
            to_qpn: packet.from_qpn,
            ..self.header(from, to)
        };
        let stream = Stream {
            path: Some(path),
            head,
            source: Source::Memory { list: [(addr, packet.total), (0, 0)] },
            cut: Cut::new(packet.total),
            sent: 0,
            lost: 0,
        };
        let place = (pair.nic().nic, pair.pd());
        let answer = Answer { stream, place, key: packet.remote_key, addr: packet.remote_addr };
        let job = Job::Answer(self.answers.insert(answer));
        self.paths[path.0 as usize].active.push_back(job);
        self.list_path(path);
    }

    /// The memory that a peer reads is not there any more.
    pub(super) fn break_answer(&mut self, key: Key, now_ns: u64) {
        let Some(answer) = self.answers.remove(key) else { return };
        let head = answer.stream.head;
        let Some(path) = answer.stream.path else { return };
        let packet = Packet {
            kind: PacketKind::Acknowledge as u8,
            status: Status::RemoteBadAddress as u8,
            total: 0,
            ..head
        };
        self.send_control(path, packet, 0, now_ns);
    }

    /// Tells a peer how its operation ended.
    pub(super) fn acknowledge(&mut self, arrival: &Arrival, status: Status, now_ns: u64) {
        let packet = &arrival.packet;
        let (here, there) = ((packet.to_qpn, packet.target()), (packet.from_qpn, packet.source()));
        self.answer(key(arrival), here, there, status, now_ns);
    }

    fn answer(
        &mut self,
        InboundKey { owner, message }: InboundKey,
        here: (u32, NicIndex),
        there: (u32, NicIndex),
        status: Status,
        now_ns: u64,
    ) {
        if !self.core.fabric.is_live(owner) {
            return;
        }
        let path = self.path(PathKey { from: here.1, to: there.1, owner });
        let answer = Packet {
            kind: PacketKind::Acknowledge as u8,
            status: status as u8,
            message,
            from_qpn: here.0,
            to_qpn: there.0,
            ..self.header(here.1, there.1)
        };
        self.send_control(path, answer, 0, now_ns);
    }

    /// A peer has given up an operation: nothing more comes of it, and what is here of it goes.
    pub(super) fn cancelled(&mut self, owner: Owner, message: u64) {
        let of_message = |arrival: &Arrival| arrival.from == owner && arrival.packet.message == message;
        // Packets of this process's own operations have numbers of its own: acknowledgements and responses stay.
        let request = |arrival: &Arrival| {
            matches!(arrival.kind, PacketKind::Send | PacketKind::Write | PacketKind::ReadRequest)
        };
        for arrival in self.arrivals.take_where(|arrival| of_message(arrival) && request(arrival)) {
            self.release(&arrival);
            if let Some(receive) = arrival.receive {
                self.return_receive(arrival.packet.target(), arrival.packet.to_qpn, receive);
            }
        }
        if let Some(inbound) = self.inbound.remove(&InboundKey { owner, message })
            && let Some(receive) = inbound.receive
        {
            let (qpn, nic) = inbound.here;
            self.return_receive(nic, qpn, receive);
        }
        let paths = &self.paths;
        let of_peer = |answer: &Answer| {
            let path = answer.stream.path.map(|path| paths[path.0 as usize].key.owner);
            answer.stream.head.message == message && path == Some(owner)
        };
        for key in self.answers.keys_where(of_peer) {
            self.answers.remove(key);
        }
    }

    fn return_receive(&mut self, nic: NicIndex, qpn: u32, receive: ReceiveRequest) {
        if let Some(pair) = self.pairs.get(&(nic.nic, qpn)) {
            pair.return_receive(receive);
        }
    }

    /// Queue pair `qpn` of `nic` is flushed: messages that are partly here can never be whole, even if it begins anew before their last
    /// packets come. Their senders are told, and their receives go back, to be flushed with the others.
    pub(super) fn forget_inbound(&mut self, nic: NicIndex, qpn: u32, now_ns: u64) {
        let pair = self.pairs.get(&(nic.nic, qpn)).cloned();
        let mut refused = Vec::new();
        self.inbound.retain(|key, inbound| {
            if inbound.here != (qpn, nic) {
                return true;
            }
            if let (Some(pair), Some(receive)) = (&pair, inbound.receive.take()) {
                pair.return_receive(receive);
            }
            if !std::mem::replace(&mut inbound.refused, true) && inbound.arrived < inbound.total {
                refused.push((*key, inbound.there));
            }
            // The rest of it is dropped when it comes.
            inbound.arrived < inbound.total
        });
        for (key, there) in refused {
            self.answer(key, (qpn, nic), there, Status::RemoteBadDestQpn, now_ns);
        }
        let to_pair = |arrival: &Arrival| {
            arrival.stage == Stage::Commits && arrival.packet.target() == nic && arrival.packet.to_qpn == qpn
        };
        for arrival in self.arrivals.take_where(to_pair) {
            self.release(&arrival);
            if let (Some(pair), Some(receive)) = (&pair, arrival.receive) {
                pair.return_receive(receive);
            }
        }
    }

    /// Forgets messages that are partly here of a process that is gone.
    pub(super) fn forget_inbound_of(&mut self, owner: Owner) {
        let gone: Vec<InboundKey> = self.inbound.keys().filter(|key| key.owner == owner).copied().collect();
        for key in gone {
            self.cancelled(owner, key.message);
        }
    }
}
