//! How long things take and how many there may be: the model of the network and the limits of the device.
//!
//! The defaults are the published figures of EFA on P5; each says where it comes from. They shape order and timing,
//! not speed: a fabric in software is bounded by memory copies long before 32 × 100 Gb/s.

use core::sync::atomic::{AtomicU64, Ordering};

/// Payload bytes of one packet on EFA's wire: messages are cut into packets of this size.
///
/// Source: the device's maximum send size, 8,928 bytes (a 9,001-byte MTU less headers), which libfabric's `efa` provider reports as
/// the maximum of a message without a long-message protocol.
pub const PACKET_BYTES: usize = 8928;

/// The network's timing. Times are nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Model {
    /// One way, NIC to NIC, without load. EFA: 8–15 µs measured between hosts; 12 µs here.
    pub base_ns: u64,
    /// Mean of the exponential spread on top of it. EFA: 3–5 µs; 4 µs here. It is what makes packets overtake each other.
    pub jitter_ns: u64,
    /// How many packets of a million are retransmitted and so come late. EFA: 0.1–1 %; 1,000 here.
    pub tail_ppm: u64,
    /// The least a retransmitted packet is late. EFA: 0.5 ms.
    pub tail_min_ns: u64,
    /// The most a retransmitted packet is late. EFA: 4 ms.
    pub tail_max_ns: u64,
    /// How long after the acknowledgement the bytes become visible at the target; 0 = before it. EFA's completion is local, so that
    /// a program may not rely on more than the acknowledgement says.
    pub commit_ns: u64,
    /// After how long without any answer an operation ends with an error: unresponsive (13), unreachable (15).
    pub unresponsive_ns: u64,
    /// First wait before a lost packet is sent again; it doubles up to 16 times that.
    pub retransmit_ns: u64,
    /// Wait before a message is sent again to a peer that had no receive posted.
    pub rnr_wait_ns: u64,
    /// Usable share of a NIC's nominal rate, in thousandths. EFA: 97 Gb/s of 100 reach the application.
    pub goodput_permille: u64,
    /// 1: a NIC may send to itself. On EFA such packets are silently dropped (the security group's loop-back check aside).
    pub loopback: u64,
    /// 1: NICs have the rate of their specification; 0: they are as fast as memory.
    pub rated: u64,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            base_ns: 12_000,
            jitter_ns: 4_000,
            tail_ppm: 1_000,
            tail_min_ns: 500_000,
            tail_max_ns: 4_000_000,
            commit_ns: 0,
            unresponsive_ns: 2_000_000_000,
            retransmit_ns: 500_000,
            rnr_wait_ns: 100_000,
            goodput_permille: 970,
            loopback: 0,
            rated: 1,
        }
    }
}

impl Model {
    /// No time at all: as fast as this machine copies. Packets are still delivered out of order.
    #[must_use]
    pub fn instant() -> Model {
        Model { base_ns: 0, jitter_ns: 0, tail_ppm: 0, rated: 0, ..Model::default() }
    }
}

const FIELDS: usize = 12;

/// A [`Model`] in shared memory.
#[repr(C)]
pub(crate) struct ModelCell([AtomicU64; FIELDS]);

impl ModelCell {
    pub(crate) fn store(&self, model: &Model) {
        let values: [u64; FIELDS] = [
            model.base_ns,
            model.jitter_ns,
            model.tail_ppm,
            model.tail_min_ns,
            model.tail_max_ns,
            model.commit_ns,
            model.unresponsive_ns,
            model.retransmit_ns,
            model.rnr_wait_ns,
            model.goodput_permille,
            model.loopback,
            model.rated,
        ];
        for (cell, value) in self.0.iter().zip(values) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn load(&self) -> Model {
        let field = |i: usize| self.0[i].load(Ordering::Relaxed);
        Model {
            base_ns: field(0),
            jitter_ns: field(1),
            tail_ppm: field(2),
            tail_min_ns: field(3),
            tail_max_ns: field(4),
            commit_ns: field(5),
            unresponsive_ns: field(6),
            retransmit_ns: field(7),
            rnr_wait_ns: field(8),
            goodput_permille: field(9),
            loopback: field(10),
            rated: field(11),
        }
    }
}

/// What the device reports as its limits, and enforces.
///
/// The defaults are those of the EFA generation on P5 as its driver reports them, where they are public; queues per NIC are those of the
/// emulation.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sends in flight of one queue pair.
    pub send_queue: u32,
    /// Receives posted on one queue pair.
    pub receive_queue: u32,
    /// Entries of one completion queue.
    pub completion_queue: u32,
    /// Scatter/gather entries of a send; a receive has one, as has an RDMA operation.
    pub send_segments: u32,
    /// Bytes that can be sent from the work request itself.
    pub inline_bytes: u32,
    /// Bytes of one RDMA operation: 1 GiB.
    pub rdma_bytes: u32,
    /// Memory regions of one NIC.
    pub regions: u32,
    /// Bytes of one memory region.
    pub region_bytes: u64,
    /// Pages of 4 KiB that all regions of one NIC may have. EFA: about 95 GB.
    pub pages: u64,
    /// Address handles of one NIC and process.
    pub address_handles: u32,
    /// Device capabilities, as `efadv_query_device` reports them.
    pub capabilities: u32,
    /// PCI device id: 0xefa0 to 0xefa3.
    pub part: u32,
    /// Unused; makes the layout explicit.
    pub reserved: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            send_queue: 4096,
            receive_queue: 8192,
            completion_queue: 32_768,
            send_segments: 2,
            inline_bytes: 32,
            rdma_bytes: 1 << 30,
            regions: 262_144,
            region_bytes: 1 << 40,
            pages: 95_000_000_000 / 4096,
            address_handles: 16_384,
            // RDMA read, RNR retry, completions with source GID, RDMA write, unsolicited write receive.
            capabilities: 0b1_1111,
            part: 0xefa2,
            reserved: 0,
        }
    }
}
