//! Operations of this process, and answers to peers' reads: what is sent, in which pieces.

use std::sync::Arc;

use softefa_fabric::NicIndex;
use softefa_fabric::model::PACKET_BYTES;
use softefa_fabric::wire::Packet;

use super::faults::Doom;
use super::pair::QueuePair;
use super::path::PathId;
use super::random::Random;
use super::types::{INLINE_MAX, SEGMENTS_MAX, SendRequest};

/// Packets of one message that change places: EFA sprays a message over many paths, so that its packets arrive in any order.
pub(super) const BLOCK: usize = 16;

/// How a message is cut into packets, and in which order they leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    packets: u32,
    next: u32,
    order: [u8; BLOCK],
}

impl Cut {
    /// A message of `total` bytes; an empty one is one packet.
    pub(super) fn new(total: u32) -> Cut {
        let packets = total.div_ceil(PACKET_BYTES as u32).max(1);
        Cut { packets, next: 0, order: [0; BLOCK] }
    }

    pub(super) fn packets(&self) -> u32 {
        self.packets
    }

    pub(super) fn is_done(&self) -> bool {
        self.next >= self.packets
    }

    /// How many packets are left in the block that is being sent.
    pub(super) fn block_left(&self) -> usize {
        let end = (self.next - self.next % BLOCK as u32 + BLOCK as u32).min(self.packets);
        (end - self.next) as usize
    }

    /// Which packet is next; not to be called when the cut is done.
    pub(super) fn peek(&mut self, random: &mut Random) -> u32 {
        let place = self.next % BLOCK as u32;
        if place == 0 {
            let block = self.block_left();
            for (i, at) in self.order.iter_mut().enumerate() {
                *at = i as u8;
            }
            random.shuffle(&mut self.order[..block]);
        }
        self.next - place + u32::from(self.order[place as usize])
    }

    pub(super) fn advance(&mut self) {
        self.next += 1;
    }
}

/// Where packet `index` of a message of `total` bytes begins, and how long it is.
pub(super) fn piece(index: u32, total: u32) -> (u32, u32) {
    let offset = (u64::from(index) * PACKET_BYTES as u64).min(total.into()) as u32;
    (offset, (total - offset).min(PACKET_BYTES as u32))
}

/// Where a message's bytes are, as addresses of this process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The packet has none.
    Nothing,
    Memory {
        list: [(u64, u32); SEGMENTS_MAX],
    },
    Inline {
        bytes: [u8; INLINE_MAX],
    },
}

/// The parts of `list` (address, length) that make up `length` bytes from `offset` on.
pub(super) fn ranges(
    list: &[(u64, u32); SEGMENTS_MAX],
    offset: u32,
    length: u32,
) -> impl Iterator<Item = (u64, u32)> + use<> {
    let (mut skip, mut left) = (offset, length);
    list.map(move |(addr, len)| {
        let from = skip.min(len);
        let n = (len - from).min(left);
        skip -= from;
        left -= n;
        (addr + u64::from(from), n)
    })
    .into_iter()
    .filter(|(_, n)| *n != 0)
}

/// A message that is being sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    /// `None` while nobody is known to be at the other end.
    pub(super) path: Option<PathId>,
    /// What all its packets have in common.
    pub(super) head: Packet,
    pub(super) source: Source,
    pub(super) cut: Cut,
    /// Packets that are on the wire or have arrived.
    pub(super) sent: u32,
    /// Packets that were lost and are to be sent again.
    pub(super) lost: u32,
}

/// What an operation waits for, besides its turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    Nothing,
    /// A while, because the peer had no receive posted.
    Retry,
    /// The end that a fault has decided.
    Doom(Doom),
}

/// A send, write or read that was posted here.
pub(super) struct Operation {
    pub(super) pair: Arc<QueuePair>,
    pub(super) request: SendRequest,
    pub(super) to: NicIndex,
    pub(super) total: u32,
    pub(super) stream: Stream,
    /// Bytes that have come, of a read.
    pub(super) received: u32,
    /// How often the peer had no receive posted.
    pub(super) attempts: u32,
    pub(super) since_ns: u64,
    pub(super) wait: Wait,
    /// It counts as in flight on its path once it has been made active.
    pub(super) waits_for_acknowledgement: bool,
}

/// The answer to a peer's read.
pub(super) struct Answer {
    pub(super) stream: Stream,
    /// Own NIC and protection domain of the queue pair that was asked.
    pub(super) place: (u32, u32),
    /// What was asked for: key and address.
    pub(super) key: u32,
    pub(super) addr: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_of_a_cut_is_sent_once_and_covers_its_bytes() {
        let mut random = Random::new(3, 0, 0);
        let block = (BLOCK * PACKET_BYTES) as u32;
        for total in [0, 1, 8928, 8929, block - 1, block, block + 1, 3 * block + 5] {
            let mut cut = Cut::new(total);
            let mut seen = vec![false; cut.packets() as usize];
            let mut bytes = 0;
            while !cut.is_done() {
                let index = cut.peek(&mut random);
                assert_eq!(index, cut.peek_again());
                assert!(!std::mem::replace(&mut seen[index as usize], true));
                let (offset, len) = piece(index, total);
                assert!(offset + len <= total && (len != 0 || total == 0));
                bytes += len;
                cut.advance();
            }
            assert_eq!(bytes, total);
        }
    }

    impl Cut {
        fn peek_again(&self) -> u32 {
            let place = self.next % BLOCK as u32;
            self.next - place + u32::from(self.order[place as usize])
        }
    }

    #[test]
    fn ranges_of_two_segments_join_up() {
        let list = [(100, 10), (500, 20)];
        let of = |offset, length| ranges(&list, offset, length).collect::<Vec<_>>();
        assert_eq!(of(0, 30), [(100, 10), (500, 20)]);
        assert_eq!(of(3, 4), [(103, 4)]);
        assert_eq!(of(8, 5), [(108, 2), (500, 3)]);
        assert_eq!(of(12, 18), [(502, 18)]);
        assert_eq!(of(0, 0), []);
    }
}
