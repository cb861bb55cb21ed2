//! The wire: packets between processes, without a lock and without a copy that is not needed.
//!
//! For each pair of processes there is one ring with one producer and one consumer. A packet's payload lies in a slot of its
//! sender's arena; the receiver copies it to where it belongs and marks the slot free. So a process that dies at any instruction
//! leaves every ring usable, and what it held is its own arena.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::model::PACKET_BYTES;
use crate::nic::{NicIndex, Owner};

/// Packets that one process can have on the way to one other.
pub const RING_ENTRIES: usize = 256;
/// Packets with payload that one process can have on the way: 9 MiB, twice what 32 × 100 Gb/s hold in 10 µs.
pub const SLOTS: usize = 1024;
/// Bytes of a slot: a packet's payload, rounded up to cache lines.
pub const SLOT_BYTES: usize = 8960;
/// Payload that travels in the packet itself, without a slot.
pub const INLINE_BYTES: usize = 56;
/// [`Packet::slot`] of a packet without one.
pub const NO_SLOT: u32 = u32::MAX;

const _: () = assert!(SLOT_BYTES >= PACKET_BYTES && SLOT_BYTES.is_multiple_of(64));
const _: () = assert!(RING_ENTRIES.is_power_of_two());
const _: () = assert!(size_of::<Packet>() == 128);

/// What a packet is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketKind {
    /// Part of a send.
    Send = 1,
    /// Part of an RDMA write.
    Write = 2,
    /// Asks for an RDMA read.
    ReadRequest = 3,
    /// Part of the answer to one.
    ReadResponse = 4,
    /// Ends an operation: `status` says how.
    Acknowledge = 5,
    /// The sender has given up operation `message`: no packet of it follows, and what is left of it can be forgotten. Not a packet of
    /// the emulated network: it always arrives, and nothing counts it.
    Cancel = 6,
}

impl PacketKind {
    /// The kind of this number, if there is one.
    #[must_use]
    pub const fn of(number: u8) -> Option<PacketKind> {
        match number {
            1 => Some(PacketKind::Send),
            2 => Some(PacketKind::Write),
            3 => Some(PacketKind::ReadRequest),
            4 => Some(PacketKind::ReadResponse),
            5 => Some(PacketKind::Acknowledge),
            6 => Some(PacketKind::Cancel),
            _ => None,
        }
    }
}

/// [`Packet::flags`]: the operation carries an immediate.
pub const IMMEDIATE: u8 = 1;

/// One packet's header. It comes from another process, so every field is checked before it is used.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// A [`PacketKind`].
    pub kind: u8,
    /// [`IMMEDIATE`].
    pub flags: u8,
    /// Acknowledgement: the operation's EFA completion status. Request: 0, or the status that the receiver is to answer with instead of
    /// executing it (a fault).
    pub status: u8,
    /// The sender's process slot.
    pub from: u8,
    /// Low 24 bits: generation of the sender's process slot.
    pub generation: u32,
    /// The operation, in the process that posted it.
    pub message: u64,
    /// When the packet arrives, on [`crate::clock::now_ns`]'s clock; 0 = now.
    pub due_ns: u64,
    /// RDMA: address at the target of the operation's first byte.
    pub remote_addr: u64,
    /// RDMA: the target's key.
    pub remote_key: u32,
    /// Bytes of the whole operation.
    pub total: u32,
    /// Where in the operation this packet's payload begins.
    pub offset: u32,
    /// Bytes of payload in this packet.
    pub length: u32,
    /// The immediate.
    pub immediate: u32,
    /// Queue pair that sends.
    pub from_qpn: u32,
    /// Queue pair that receives.
    pub to_qpn: u32,
    /// The receiving queue pair's key.
    pub qkey: u32,
    /// Node that sends.
    pub from_node: u8,
    /// NIC that sends.
    pub from_nic: u8,
    /// Node that receives.
    pub to_node: u8,
    /// NIC that receives.
    pub to_nic: u8,
    /// Slot of the payload in the sender's arena, or [`NO_SLOT`].
    pub slot: u32,
    /// Payload when there is no slot.
    pub inline: [u8; INLINE_BYTES],
}

impl Packet {
    /// The NIC that sent it.
    #[must_use]
    pub fn source(&self) -> NicIndex {
        NicIndex { node: u32::from(self.from_node), nic: u32::from(self.from_nic) }
    }

    /// The NIC that it is for.
    #[must_use]
    pub fn target(&self) -> NicIndex {
        NicIndex { node: u32::from(self.to_node), nic: u32::from(self.to_nic) }
    }

    /// The process that sent it, if its fields can be true.
    #[must_use]
    pub fn sender(&self) -> Option<Owner> {
        let process = crate::ProcessIndex::new(self.from as usize)?;
        Some(Owner { process, generation: self.generation & 0x00ff_ffff })
    }
}

#[repr(C, align(128))]
struct Index(AtomicU32);

/// Packets from one process to one other, in shared memory.
#[repr(C)]
pub(crate) struct RingCell {
    tail: Index,
    head: Index,
    entries: [core::cell::UnsafeCell<core::mem::MaybeUninit<Packet>>; RING_ENTRIES],
}

/// A ring, as its producer or its consumer sees it.
#[derive(Clone, Copy)]
pub struct Ring<'a>(pub(crate) &'a RingCell);

impl Ring<'_> {
    /// Puts a packet in; false when the ring is full. Only the sender's device, under its lock, may call this.
    #[must_use]
    pub fn push(self, packet: &Packet) -> bool {
        let tail = self.0.tail.0.load(Ordering::Relaxed);
        let head = self.0.head.0.load(Ordering::Acquire);
        // A consumer that writes nonsense makes the ring look full, no worse.
        if tail.wrapping_sub(head) >= RING_ENTRIES as u32 {
            return false;
        }
        let entry = self.0.entries[tail as usize % RING_ENTRIES].get();
        // SAFETY: the entry lies in the mapped ring, and between head + RING_ENTRIES and tail only the producer touches it.
        unsafe { (*entry).write(*packet) };
        self.0.tail.0.store(tail.wrapping_add(1), Ordering::Release);
        true
    }

    /// How many packets it has room for, as its producer sees it.
    #[must_use]
    pub fn room(self) -> usize {
        let tail = self.0.tail.0.load(Ordering::Relaxed);
        let head = self.0.head.0.load(Ordering::Acquire);
        RING_ENTRIES.saturating_sub(tail.wrapping_sub(head) as usize)
    }

    /// Takes the oldest packet out. Only the receiver's device, under its lock, may call this.
    #[must_use]
    pub fn pop(self) -> Option<Packet> {
        let head = self.0.head.0.load(Ordering::Relaxed);
        let tail = self.0.tail.0.load(Ordering::Acquire);
        if head == tail {
            return None;
        }
        let entry = self.0.entries[head as usize % RING_ENTRIES].get();
        // SAFETY: the entry lies in the mapped ring; from head to tail the producer does not touch it, and every bit pattern is a Packet.
        let packet = unsafe { entry.cast::<Packet>().read() };
        self.0.head.0.store(head.wrapping_add(1), Ordering::Release);
        Some(packet)
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0.head.0.load(Ordering::Relaxed) == self.0.tail.0.load(Ordering::Acquire)
    }

    /// Throws away what is in it: what a former owner of the consumer's slot did not take.
    pub(crate) fn drain(self) {
        self.0.head.0.store(self.0.tail.0.load(Ordering::Acquire), Ordering::Release);
    }
}

/// Packet slots of one process, in shared memory.
#[repr(C)]
pub(crate) struct ArenaCell {
    held: [AtomicU8; SLOTS],
    slots: [core::cell::UnsafeCell<[u8; SLOT_BYTES]>; SLOTS],
}

/// The packet slots of one process.
#[derive(Clone, Copy)]
pub struct Arena<'a>(pub(crate) &'a ArenaCell);

impl Arena<'_> {
    /// Where slot `slot`'s bytes are; `None` when there is no such slot. Both processes may write there: only raw copies may touch them.
    #[must_use]
    pub fn bytes(self, slot: u32) -> Option<*mut u8> {
        self.0.slots.get(slot as usize).map(|slot| slot.get().cast())
    }

    /// Marks a slot as on its way. The sender's part.
    pub fn hold(self, slot: u32) {
        if let Some(held) = self.0.held.get(slot as usize) {
            held.store(1, Ordering::Relaxed);
        }
    }

    /// Marks a slot as read. The receiver's part.
    pub fn release(self, slot: u32) {
        if let Some(held) = self.0.held.get(slot as usize) {
            held.store(0, Ordering::Release);
        }
    }

    /// Whether a slot is still on its way.
    #[must_use]
    pub fn is_held(self, slot: u32) -> bool {
        self.0.held.get(slot as usize).is_some_and(|held| held.load(Ordering::Acquire) != 0)
    }

    pub(crate) fn reset(self) {
        for held in &self.0.held {
            held.store(0, Ordering::Relaxed);
        }
    }
}
