//! What arrives: each message once, from whom it says, with the bytes that were sent.

use std::sync::atomic::Ordering;

use softefa_verbs::ffi::{IBV_WC_RECV, IBV_WC_RECV_RDMA_WITH_IMM};
use softefa_verbs::nic::Status;

use super::operation::{RECEIVE, message_of};
use super::worker::Worker;
use crate::pattern;
use crate::plant::Plant;
use crate::verbs::Entry;

impl Worker {
    /// Posts receive number `index` of a NIC.
    pub(super) fn post_receive(&mut self, rail: usize, index: usize) {
        let piece = self.local.receive(rail, index);
        let (address, len) = (self.local.address(piece), self.schedule.traffic.slot_bytes as u32);
        let key = self.regions[rail].local.key();
        if let Err(error) = self.rails[rail].post_receive(RECEIVE | index as u64, address, len, key) {
            self.violate(&format!("a receive was refused on NIC {rail}: {error}"));
        }
    }

    /// A completion of a receive.
    pub(super) fn receive(&mut self, rail: usize, entry: &Entry) {
        let status = Status::of(u8::try_from(entry.status).unwrap_or(u8::MAX));
        if status == Status::Flushed && self.flushing {
            return;
        }
        if status != Status::Ok {
            return self.violate(&format!("a receive on NIC {rail} ended with {status:?}"));
        }
        let index = (entry.id & RECEIVE != 0).then_some((entry.id & !RECEIVE) as usize);
        if index.is_some_and(|index| index >= self.schedule.traffic.receives) {
            return self
                .violate(&format!("a completion for a receive {:#x} that was never posted", entry.id));
        }
        if let Err(text) = self.check_arrival(rail, index, entry) {
            self.violate(&format!("on NIC {rail}, {text}"));
        }
        if let Some(index) = index {
            let piece = self.local.receive(rail, index);
            self.local.clear(piece);
            if !self.flushing {
                self.post_receive(rail, index);
            }
        }
    }

    fn check_arrival(&mut self, rail: usize, index: Option<usize>, entry: &Entry) -> Result<(), String> {
        let immediate = entry.immediate.ok_or("a message came without its immediate")?;
        let (sender, number) = message_of(immediate)
            .ok_or_else(|| format!("the immediate {immediate:#x} came, which nobody sent"))?;
        let message = &self.board.cell(sender).messages[number];
        let from = format!("message {number} of node {} process {}", sender.node(), sender.process());
        if message.target.load(Ordering::Acquire) != self.rank.index() as u32 {
            return Err(format!("{from} came, which is not for this process"));
        }
        let is_write = message.is_write.load(Ordering::Relaxed);
        let opcode = if is_write { IBV_WC_RECV_RDMA_WITH_IMM } else { IBV_WC_RECV };
        if entry.opcode != opcode {
            return Err(format!("{from} came with opcode {}, not {opcode}", entry.opcode));
        }
        let unsolicited = is_write && self.schedule.traffic.unsolicited;
        if index.is_none() != unsolicited || entry.unsolicited.is_some_and(|told| told != unsolicited) {
            let used = if index.is_some() { "used up a receive" } else { "used up no receive" };
            return Err(format!("{from} {used}, and told unsolicited = {:?}", entry.unsolicited));
        }
        let len = message.len.load(Ordering::Relaxed);
        if entry.bytes != len {
            return Err(format!("{from} came with {} bytes, not {len}", entry.bytes));
        }
        let qpn = message.qpn.load(Ordering::Relaxed);
        if entry.from_qpn != qpn {
            return Err(format!("{from} came from queue pair {}, not {qpn}", entry.from_qpn));
        }
        let pattern_number = message.number.load(Ordering::Relaxed);
        let (len, place) = (len as usize, message.place.load(Ordering::Relaxed) as usize);
        let once = message.received.load(Ordering::Acquire) == 0;
        let wrong = if is_write {
            if let Some(index) = index {
                self.local
                    .untouched(self.local.receive(rail, index))
                    .map_err(|text| format!("{from}: {text}"))?;
            }
            let bytes = self.memory.read(self.rank, place, len, &mut self.scratch);
            // After it was received once, the sender may use the place again.
            if once { pattern::wrong(bytes, pattern_number) } else { None }
        } else {
            let piece = self.local.receive(rail, index.unwrap_or(0));
            let look = |bytes: &[u8]| pattern::wrong(bytes, pattern_number);
            self.local.look(piece, 0, len, look).map_err(|text| format!("{from}: {text}"))?
        };
        if let Some(at) = wrong {
            return Err(format!("byte {at} of {from} is not what was sent, of {len}"));
        }
        let mut times = 1;
        if self.plant == Some(Plant::LostImmediate) {
            self.plant = None;
            return Ok(());
        }
        if self.plant == Some(Plant::DoubleImmediate) {
            self.plant = None;
            times = 2;
        }
        for _ in 0..times {
            if self.board.cell(sender).messages[number].received.fetch_add(1, Ordering::AcqRel) > 0 {
                return Err(format!("{from} came twice"));
            }
        }
        Ok(())
    }
}
