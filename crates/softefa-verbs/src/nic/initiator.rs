//! What peers answer to this process's operations, and how those end.

use std::sync::Arc;

use softefa_fabric::Counter;

use super::engine::Engine;
use super::operation::{Operation, ranges};
use super::pair::QueuePair;
use super::receiver::{Arrival, Plan};
use super::slab::Key;
use super::types::{Completion, Opcode, SEGMENTS_MAX, SendRequest, Status};

impl Engine {
    /// The operation that an answer belongs to, if it comes from where the operation went.
    fn answered(&self, arrival: &Arrival) -> Option<Key> {
        let key = self.key_of(arrival.packet.message)?;
        let operation = self.operations.get(key)?;
        let path = operation.stream.path?;
        let expected = self.paths[path.0 as usize].key;
        let packet = &arrival.packet;
        let ends = packet.source() == expected.to && packet.target() == expected.from;
        (ends && arrival.from == expected.owner).then_some(key)
    }

    pub(super) fn acknowledged(&mut self, arrival: &Arrival, now_ns: u64) {
        let Some(key) = self.answered(arrival) else { return };
        let Some(operation) = self.operations.get_mut(key) else { return };
        let status = Status::of(arrival.packet.status);
        let several = operation.stream.cut.packets() > 1;
        match status {
            // Only a broken peer acknowledges what it has not got, or has not sent.
            Status::Ok if !operation.stream.cut.is_done() || operation.stream.lost != 0 => {}
            Status::Ok if operation.request.opcode == Opcode::Read && operation.total != 0 => {}
            Status::Ok => self.end(key, Status::Ok, false),
            Status::RemoteNotReady => {
                operation.attempts += 1;
                if operation.pair.retries(operation.attempts) {
                    self.retry_later(key, now_ns);
                } else {
                    self.end(key, Status::RemoteNotReady, several);
                }
            }
            status => self.end(key, status, several),
        }
    }

    pub(super) fn plan_response(
        &mut self,
        arrival: &Arrival,
        places: &mut [(u64, u32); SEGMENTS_MAX],
    ) -> Plan {
        let Some(key) = self.answered(arrival) else { return Plan::Drop };
        let Some(operation) = self.operations.get(key) else { return Plan::Drop };
        let packet = &arrival.packet;
        let left = operation.total - operation.received;
        if operation.request.opcode != Opcode::Read || packet.total != operation.total || packet.length > left
        {
            self.count(packet.target(), Counter::RxDrops, 1);
            return Plan::Drop;
        }
        let Some(list) = self.local_ranges(&operation.pair, &operation.request) else {
            self.end(key, Status::InvalidLkey, true);
            return Plan::Drop;
        };
        for (place, range) in places.iter_mut().zip(ranges(&list, packet.offset, packet.length)) {
            *place = range;
        }
        Plan::Execute
    }

    pub(super) fn finish_response(&mut self, arrival: &Arrival, failed: bool) {
        let Some(key) = self.answered(arrival) else { return };
        let Some(operation) = self.operations.get_mut(key) else { return };
        if failed {
            self.end(key, Status::InvalidLkey, true);
            return;
        }
        operation.received = operation.received.saturating_add(arrival.packet.length).min(operation.total);
        if operation.received == operation.total {
            self.end(key, Status::Ok, false);
        }
    }

    /// Ends an operation for a reason of this side.
    pub(super) fn finish(&mut self, key: Key, status: Status) {
        self.end(key, status, true);
    }

    /// Ends an operation without a completion.
    pub(super) fn drop_operation(&mut self, key: Key) {
        if let Some(operation) = self.take_operation(key, true) {
            operation.pair.free_send();
        }
    }

    fn end(&mut self, key: Key, status: Status, cancel: bool) {
        let Some(operation) = self.take_operation(key, cancel) else { return };
        let nic = operation.pair.nic();
        let total = u64::from(operation.total);
        match (operation.request.opcode, status) {
            (Opcode::Write, Status::Ok) => self.count(nic, Counter::WriteBytes, total),
            (Opcode::Read, Status::Ok) => self.count(nic, Counter::ReadBytes, total),
            _ => {}
        }
        if matches!(status, Status::UnresponsiveRemote | Status::UnreachableRemote) {
            self.count(nic, Counter::UnresponsiveRemotes, 1);
        }
        self.complete_send(&operation.pair, &operation.request, operation.total, status);
    }

    /// Takes an operation off its path. `cancel`: its peer is told that nothing more comes of it.
    pub(super) fn take_operation(&mut self, key: Key, cancel: bool) -> Option<Operation> {
        let mut operation = self.operations.remove(key)?;
        if let Some(id) = operation.stream.path {
            let path = &mut self.paths[id.0 as usize];
            if operation.waits_for_acknowledgement {
                operation.waits_for_acknowledgement = false;
                path.in_flight -= 1;
                let waits = !path.queue.is_empty();
                if waits {
                    self.list_path(id);
                }
            }
            if cancel && operation.stream.sent > 0 && self.paths[id.0 as usize].alive {
                self.cancel(id, operation.stream.head.message);
            }
        }
        Some(operation)
    }

    /// Completes a send request.
    pub(super) fn complete_send(
        &mut self,
        pair: &Arc<QueuePair>,
        request: &SendRequest,
        bytes: u32,
        status: Status,
    ) {
        if status != Status::Ok {
            match request.opcode {
                Opcode::Write => self.count(pair.nic(), Counter::WriteErrors, 1),
                Opcode::Read => self.count(pair.nic(), Counter::ReadErrors, 1),
                _ => {}
            }
        }
        let completion =
            Completion { bytes, ..Completion::of_request(request.id, status, request.opcode, pair.number()) };
        self.complete(pair.send_cq(), completion, Some(pair.clone()));
    }
}
