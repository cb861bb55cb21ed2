//! What changes in the fabric while it runs: the model, faults, and processes that are gone.

use std::sync::atomic::Ordering;

use softefa_fabric::NicIndex;
use softefa_fabric::nic::Owner;
use softefa_fabric::wire::PacketKind;

use super::engine::Engine;
use super::event::AsyncEvent;
use super::operation::Wait;
use super::path::PathId;
use super::receiver::{Arrival, Stage};
use super::types::Status;

impl Engine {
    /// Reads the model and the faults again, and looks which peers are gone.
    pub(super) fn refresh(&mut self, now_ns: u64) {
        let core = self.core.clone();
        // Read first: what changes while the rest is read changes it again.
        self.generation = core.fabric.generation();
        std::sync::atomic::fence(Ordering::SeqCst);
        self.model = core.fabric.model();
        self.faults.refresh(&core.fabric, now_ns);
        self.refresh_at_ns = self.faults.next_end_ns().unwrap_or(u64::MAX);
        for owner in self.owners() {
            if !core.fabric.is_live(owner) {
                self.bury(owner);
            }
        }
        self.tell_ports(now_ns);
        self.unpark(now_ns);
        for at in 0..self.paths.len() {
            let path = &mut self.paths[at];
            if path.block.is_some() {
                path.retry_at_ns = now_ns;
                path.wait_ns = 0;
            }
            self.list_path(PathId(at as u32));
        }
        self.dispatch_again(now_ns);
        self.scan_at_ns = now_ns;
    }

    /// Tells programs which links went down or came up.
    fn tell_ports(&mut self, now_ns: u64) {
        for nic in 0..self.ports.len() {
            let at = NicIndex { node: self.core.node, nic: nic as u32 };
            let down = self.faults.is_told_down(at, now_ns);
            if std::mem::replace(&mut self.ports[nic].told_down, down) != down {
                self.tell(at, if down { AsyncEvent::PortError } else { AsyncEvent::PortActive });
            }
        }
    }

    /// Packets that came to a NIC that was down arrive now, if it is up again.
    fn unpark(&mut self, now_ns: u64) {
        for arrival in std::mem::take(&mut self.arrivals.parked) {
            self.arrivals.hold(now_ns, self.random.next(), arrival);
        }
    }

    /// Operations that nobody is there for, or whose end a fault had decided that is cleared: they look for their peer again.
    fn dispatch_again(&mut self, now_ns: u64) {
        let faults = &self.faults;
        let keys = self.operations.keys_where(|operation| match operation.wait {
            Wait::Nothing => operation.stream.path.is_none(),
            Wait::Retry => false,
            Wait::Doom(doom) => doom.fault != 0 && !faults.is_active(doom.fault),
        });
        for key in keys {
            if let Some(operation) = self.operations.get_mut(key) {
                operation.wait = Wait::Nothing;
            }
            self.dispatch(key, false, now_ns);
        }
    }

    /// A peer process is gone: what it was to get ends with an error, what it was to answer is forgotten.
    fn bury(&mut self, owner: Owner) {
        let paths: Vec<PathId> =
            self.path_ids.iter().filter(|(key, _)| key.owner == owner).map(|(_, id)| *id).collect();
        for &id in &paths {
            self.paths[id.0 as usize].alive = false;
        }
        let on_path = |path: Option<PathId>| path.is_some_and(|path| paths.contains(&path));
        for key in self.operations.keys_where(|operation| on_path(operation.stream.path)) {
            self.finish(key, Status::RemoteBadDestQpn);
        }
        for key in self.answers.keys_where(|answer| on_path(answer.stream.path)) {
            self.answers.remove(key);
        }
        self.forget_inbound_of(owner);
        // The rest of its messages never comes. What came wholly is executed, and its last acknowledgements count.
        let partial = |arrival: &Arrival| {
            let whole = arrival.packet.length == arrival.packet.total;
            let open = arrival.kind == PacketKind::Write && !whole && arrival.stage == Stage::Arrives;
            arrival.from == owner && open
        };
        for arrival in self.arrivals.take_where(partial) {
            self.release(&arrival);
        }
        self.timers.forget(owner);
        self.forget_link(owner);
        let arena = self.core.clone();
        self.slots.reclaim(arena.fabric.arena(self.core.me.process), owner.process);
        for id in paths {
            let key = self.paths[id.0 as usize].key;
            self.path_ids.remove(&key);
            self.links.stalled.retain(|stalled| *stalled != id);
            self.links.ready.retain(|ready| *ready != id);
            self.paths_free.push(id.0);
        }
    }
}
