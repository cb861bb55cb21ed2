//! NICs: who they are, what they counted, which queue pairs they have.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::process::ProcessIndex;
use crate::{Gid, PROCESSES_MAX, QPS_PER_NIC_MAX};

/// One NIC of a fabric.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NicIndex {
    /// Its node, from 0.
    pub node: u32,
    /// Its number on that node, from 0.
    pub nic: u32,
}

impl NicIndex {
    /// Its address.
    #[must_use]
    pub fn gid(self) -> Gid {
        Gid::of(self.node, self.nic)
    }
}

macro_rules! counters {
    ($( $variant:ident $name:literal $doc:literal, )*) => {
        /// What a NIC counts. Names are those of the kernel's EFA driver, in `hw_counters` of sysfs.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Counter { $( #[doc = $doc] $variant, )* }

        impl Counter {
            /// All of them; a counter's place here is its number.
            pub const ALL: &'static [Counter] = &[ $( Counter::$variant, )* ];

            /// Its name in sysfs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Counter::$variant => $name, )* }
            }
        }
    };
}

counters! {
    TxBytes "tx_bytes" "Payload bytes sent, retransmissions included.",
    TxPackets "tx_pkts" "Packets sent, retransmissions included.",
    RxBytes "rx_bytes" "Payload bytes received.",
    RxPackets "rx_pkts" "Packets received.",
    RxDrops "rx_drops" "Packets received and dropped.",
    SendBytes "send_bytes" "Bytes of send requests.",
    SendRequests "send_wrs" "Send requests.",
    ReceiveBytes "recv_bytes" "Bytes received into posted receives.",
    ReceiveRequests "recv_wrs" "Receives completed.",
    ReadRequests "rdma_read_wrs" "RDMA read requests.",
    ReadBytes "rdma_read_bytes" "Bytes asked for by RDMA reads that completed.",
    ReadErrors "rdma_read_wr_err" "RDMA reads that ended with an error.",
    ReadResponseBytes "rdma_read_resp_bytes" "Bytes sent in answer to peers' RDMA reads.",
    WriteRequests "rdma_write_wrs" "RDMA write requests.",
    WriteBytes "rdma_write_bytes" "Bytes of RDMA writes that completed.",
    WriteErrors "rdma_write_wr_err" "RDMA writes that ended with an error.",
    WriteReceivedBytes "rdma_write_recv_bytes" "Bytes written here by peers.",
    RetransmittedBytes "retrans_bytes" "Payload bytes sent again.",
    RetransmittedPackets "retrans_pkts" "Packets sent again.",
    RetransmitTimeouts "retrans_timeout_events" "Times that an acknowledgement did not come in time.",
    UnresponsiveRemotes "unresponsive_remote_events" "Operations that ended because the peer did not answer.",
    ImpairedConnections "impaired_remote_conn_events" "Times that the way to a peer got worse.",
    SubmittedCommands "submitted_cmds" "Commands given to the device.",
    CompletedCommands "completed_cmds" "Commands that the device completed.",
    CommandErrors "cmds_err" "Commands that failed.",
    StuckCommands "no_completion_cmds" "Commands that were never completed.",
    PdErrors "alloc_pd_err" "Protection domains refused.",
    QpErrors "create_qp_err" "Queue pairs refused.",
    CqErrors "create_cq_err" "Completion queues refused.",
    MrErrors "reg_mr_err" "Registrations refused.",
    ContextErrors "alloc_ucontext_err" "Contexts refused.",
    AhErrors "create_ah_err" "Address handles refused.",
    MmapErrors "mmap_err" "Mappings refused.",
    KeepAlives "keep_alive_rcvd" "Keep-alive events received.",
}

/// How many counters a NIC has.
pub const COUNTERS: usize = Counter::ALL.len();

/// The first counters are the port's; those from here on are the device's.
pub const PORT_COUNTERS: usize = 22;

/// Longest name of a device.
pub const NAME_MAX: usize = 31;

/// One NIC in shared memory.
#[repr(C, align(128))]
pub struct Nic {
    name: [u8; NAME_MAX + 1],
    /// Nominal rate, bits per second.
    pub(crate) rate_bps: AtomicU64,
    busy_until_ns: AtomicU64,
    next_qpn: AtomicU32,
    next_key: AtomicU32,
    pages: AtomicU64,
    regions: AtomicU64,
    held: [Held; PROCESSES_MAX],
    counters: [AtomicU64; COUNTERS],
    qps: [AtomicU64; QPS_PER_NIC_MAX],
}

/// What one process has registered on one NIC, so that it can be given back for it.
#[repr(C)]
struct Held {
    regions: AtomicU64,
    pages: AtomicU64,
}

fn take(used: &AtomicU64, n: u64, max: u64) -> bool {
    let fits = |used: u64| used.checked_add(n).filter(|&used| used <= max);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
}

/// Queue-pair numbers are 16 bits wide; 0 and 1 are special in InfiniBand and never given.
const QPN_FIRST: u32 = 2;
const QPN_LAST: u32 = 0xffff;

impl Nic {
    pub(crate) fn set_name(&mut self, name: &str) {
        let name = &name.as_bytes()[..name.len().min(NAME_MAX)];
        self.name[..name.len()].copy_from_slice(name);
    }

    /// The device's name, as `ibv_devices` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_MAX);
        str::from_utf8(&self.name[..len]).unwrap_or("invalid")
    }

    /// Nominal rate, bits per second.
    #[must_use]
    pub fn rate_bps(&self) -> u64 {
        self.rate_bps.load(Ordering::Relaxed)
    }

    /// Adds `n` to a counter.
    pub fn count(&self, counter: Counter, n: u64) {
        self.counters[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// What a counter holds.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// When the last of `bytes` has left this NIC, if they queue up now behind what all processes have queued, at `rate_bps`.
    pub fn depart(&self, now_ns: u64, bytes: u64, rate_bps: u64) -> u64 {
        let on_wire_ns = (u128::from(bytes) * 8_000_000_000 / u128::from(rate_bps.max(1))) as u64;
        let depart = |busy: u64| busy.max(now_ns).saturating_add(on_wire_ns);
        let before = self
            .busy_until_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| Some(depart(busy)))
            .unwrap_or_else(|busy| busy);
        depart(before)
    }

    /// When the last byte that is queued now will have left this NIC.
    #[must_use]
    pub fn busy_until_ns(&self) -> u64 {
        self.busy_until_ns.load(Ordering::Relaxed)
    }

    /// A key that no other region of this NIC has had lately. Keys look like nothing in particular, so that one NIC's key is
    /// hardly ever valid on another.
    pub fn next_key(&self, here: NicIndex) -> u32 {
        let n = self.next_key.fetch_add(1, Ordering::Relaxed) & 0x00ff_ffff;
        // Odd multipliers permute 24 bits: distinct counts give distinct keys.
        let scattered = n.wrapping_mul(0x0092_d68b) & 0x00ff_ffff;
        let salt = (here.node << 6 | here.nic).wrapping_mul(0x9d) & 0xff;
        scattered << 8 | salt
    }

    /// Takes room for one region of `pages` for `process`; false when the NIC's limits are reached.
    pub fn take_region(&self, process: ProcessIndex, pages: u64, regions_max: u64, pages_max: u64) -> bool {
        if !take(&self.regions, 1, regions_max) {
            return false;
        }
        if !take(&self.pages, pages, pages_max) {
            self.regions.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let held = &self.held[process.get()];
        held.regions.fetch_add(1, Ordering::Relaxed);
        held.pages.fetch_add(pages, Ordering::Relaxed);
        true
    }

    /// Gives back what [`Nic::take_region`] took.
    pub fn give_region(&self, process: ProcessIndex, pages: u64) {
        let held = &self.held[process.get()];
        held.regions.fetch_sub(1, Ordering::Relaxed);
        held.pages.fetch_sub(pages, Ordering::Relaxed);
        self.regions.fetch_sub(1, Ordering::Relaxed);
        self.pages.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Memory regions registered now, by all processes.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.regions.load(Ordering::Relaxed)
    }

    /// A new queue pair of `owner`, and its number: none that was used lately, so that a restarted peer is not mistaken for its
    /// predecessor. `None` when all are taken.
    pub fn open_qp(&self, owner: Owner) -> Option<u32> {
        for _ in 0..2 * QPS_PER_NIC_MAX {
            let ticket = self.next_qpn.fetch_add(1, Ordering::Relaxed);
            let qpn = QPN_FIRST + ticket % (QPN_LAST - QPN_FIRST + 1);
            let entry = &self.qps[qpn as usize % QPS_PER_NIC_MAX];
            if entry.compare_exchange(0, owner.pack(qpn), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Some(qpn);
            }
        }
        None
    }

    /// Whose queue pair `qpn` is.
    #[must_use]
    pub fn qp(&self, qpn: u32) -> Option<Owner> {
        let (owner, number) =
            Owner::unpack(self.qps[qpn as usize % QPS_PER_NIC_MAX].load(Ordering::Acquire))?;
        (number == qpn).then_some(owner)
    }

    /// Forgets a queue pair.
    pub fn close_qp(&self, qpn: u32, owner: Owner) {
        let entry = &self.qps[qpn as usize % QPS_PER_NIC_MAX];
        let _ = entry.compare_exchange(owner.pack(qpn), 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Forgets all queue pairs of a process that is gone.
    pub(crate) fn forget(&self, owner: Owner) {
        for entry in &self.qps {
            let value = entry.load(Ordering::Acquire);
            if Owner::unpack(value).is_some_and(|(it, _)| it == owner) {
                let _ = entry.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Gives back the regions of a process that is gone.
    pub(crate) fn forget_regions(&self, process: ProcessIndex) {
        let held = &self.held[process.get()];
        self.regions.fetch_sub(held.regions.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        self.pages.fetch_sub(held.pages.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// How many queue pairs it has.
    #[must_use]
    pub fn qps(&self) -> usize {
        self.qps.iter().filter(|entry| entry.load(Ordering::Relaxed) != 0).count()
    }
}

/// The process that a queue pair belongs to: a slot of the process table, and which of its successive owners.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    /// Its slot.
    pub process: ProcessIndex,
    /// The slot's generation, 24 bits, never 0.
    pub generation: u32,
}

impl Owner {
    fn pack(self, qpn: u32) -> u64 {
        (self.process.get() as u64) << 56 | u64::from(self.generation & 0x00ff_ffff) << 32 | u64::from(qpn)
    }

    fn unpack(value: u64) -> Option<(Owner, u32)> {
        let process = ProcessIndex::new((value >> 56) as usize)?;
        let owner = Owner { process, generation: (value >> 32) as u32 & 0x00ff_ffff };
        (value != 0).then_some((owner, value as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn nic() -> Box<Nic> {
        // SAFETY: a NIC is integers and atomics of integers: all zero is valid.
        unsafe { Box::new(core::mem::zeroed()) }
    }

    #[test]
    fn names_of_counters_are_unique_and_the_ports_come_first() {
        let names: HashSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), COUNTERS);
        assert_eq!(Counter::ALL[PORT_COUNTERS], Counter::SubmittedCommands);
        assert!(Counter::ALL.iter().enumerate().all(|(i, counter)| *counter as usize == i));
    }

    #[test]
    fn a_queue_pair_number_is_not_used_again_soon() {
        let nic = nic();
        let owner = Owner { process: ProcessIndex::new(3).unwrap(), generation: 1 };
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            let qpn = nic.open_qp(owner).unwrap();
            assert!(seen.insert(qpn), "{qpn} again");
            assert_eq!(nic.qp(qpn), Some(owner));
            nic.close_qp(qpn, owner);
            assert_eq!(nic.qp(qpn), None);
        }
    }

    #[test]
    fn the_last_queue_pair_is_given_and_not_one_more() {
        let nic = nic();
        let owner = Owner { process: ProcessIndex::new(0).unwrap(), generation: 1 };
        for _ in 0..QPS_PER_NIC_MAX {
            assert!(nic.open_qp(owner).is_some());
        }
        assert_eq!(nic.open_qp(owner), None);
        nic.forget(owner);
        assert_eq!(nic.qps(), 0);
    }

    #[test]
    fn keys_are_distinct_and_not_valid_on_the_neighbour() {
        let (a, b) = (nic(), nic());
        let mut seen = HashSet::new();
        for _ in 0..100_000 {
            assert!(seen.insert(a.next_key(NicIndex { node: 0, nic: 0 })));
            assert!(seen.insert(b.next_key(NicIndex { node: 0, nic: 1 })));
        }
    }

    #[test]
    fn bytes_queue_up_behind_each_other() {
        let nic = nic();
        assert_eq!(nic.depart(1_000, 1_000, 8_000_000_000), 2_000);
        assert_eq!(nic.depart(1_000, 1_000, 8_000_000_000), 3_000);
        assert_eq!(nic.depart(9_000, 1_000, 8_000_000_000), 10_000);
    }
}
