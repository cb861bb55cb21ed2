//! Messages that are longer than one of kvrail's: sent in parts, and put together again.
//!
//! Callers of NIXL send serialised descriptor lists as notifications. A part is a message that begins with a magic number; a message that happens to begin so
//! travels as a part of its own. Parts arrive once each and in any order. The last part of a transfer's message is the transfer's notification, so
//! that the whole is there when its bytes are, and not before (KR-2).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use kvrail_core::limits::NOTIFICATION_BYTES_MAX;

/// Longest message, bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of unfinished messages that are kept at most, of all peers together; the oldest goes first.
const UNFINISHED_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 16] = *b"\x9dkvrail long\x01\xc3\x5a\xee";
const HEAD_BYTES: usize = MAGIC.len() + 16;
const PART_BYTES: usize = NOTIFICATION_BYTES_MAX - HEAD_BYTES;
const PARTS_MAX: usize = MESSAGE_BYTES_MAX.div_ceil(PART_BYTES);

/// The parts of a message; none when it travels as it is.
pub(crate) fn split(message: &[u8]) -> Option<Vec<Vec<u8>>> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if message.len() <= NOTIFICATION_BYTES_MAX && !message.starts_with(&MAGIC) {
        return None;
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let count = message.len().div_ceil(PART_BYTES) as u32;
    let part = |(index, bytes): (u32, &[u8])| {
        let head = [&MAGIC[..], &number.to_le_bytes(), &index.to_le_bytes(), &count.to_le_bytes()].concat();
        [head.as_slice(), bytes].concat()
    };
    Some((0u32..).zip(message.chunks(PART_BYTES)).map(part).collect())
}

/// A message of which parts are missing.
#[derive(Debug)]
struct Unfinished {
    peer: String,
    number: u64,
    missing: usize,
    parts: Vec<Option<Vec<u8>>>,
    bytes: usize,
}

/// Messages of which parts are missing, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    unfinished: VecDeque<Unfinished>,
    bytes: usize,
}

impl Assembly {
    /// Takes what came from a peer, which is input from outside. What is whole is returned.
    pub(crate) fn take(&mut self, peer: &str, message: Vec<u8>) -> Option<Vec<u8>> {
        let Some((head, bytes)) = message.split_first_chunk::<HEAD_BYTES>() else { return Some(message) };
        if !head.starts_with(&MAGIC) {
            return Some(message);
        }
        let (number, rest) = head[MAGIC.len()..].split_first_chunk::<8>()?;
        let (index, rest) = rest.split_first_chunk::<4>()?;
        let count = rest.first_chunk::<4>()?;
        let number = u64::from_le_bytes(*number);
        let (index, count) = (u32::from_le_bytes(*index) as usize, u32::from_le_bytes(*count) as usize);
        if count == 0 || count > PARTS_MAX || index >= count {
            tracing::warn!("a part of a message of {peer} is damaged: part {index} of {count}");
            return None;
        }
        let known = |one: &Unfinished| one.number == number && one.peer == peer && one.parts.len() == count;
        let at = self.unfinished.iter().position(known).unwrap_or_else(|| {
            let parts = vec![None; count];
            let one = Unfinished { peer: peer.to_owned(), number, missing: count, parts, bytes: 0 };
            self.unfinished.push_back(one);
            self.unfinished.len() - 1
        });
        let one = &mut self.unfinished[at];
        if one.parts[index].is_none() {
            one.missing -= 1;
            one.bytes += bytes.len();
            self.bytes += bytes.len();
            one.parts[index] = Some(bytes.to_vec());
        }
        if one.missing == 0 {
            let one = self.unfinished.remove(at)?;
            self.bytes -= one.bytes;
            return Some(one.parts.into_iter().flatten().flatten().collect());
        }
        while self.bytes > UNFINISHED_BYTES_MAX {
            let oldest = self.unfinished.pop_front()?;
            self.bytes -= oldest.bytes;
            tracing::warn!(
                "a message of {} is dropped: {} of its {} parts have not come, and {UNFINISHED_BYTES_MAX} bytes of later ones have",
                oldest.peer,
                oldest.missing,
                oldest.parts.len()
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_fits_travels_as_it_is_unless_it_looks_like_a_part() {
        assert_eq!(split(&vec![7; NOTIFICATION_BYTES_MAX]), None);
        assert_eq!(split(&vec![7; NOTIFICATION_BYTES_MAX + 1]).map(|parts| parts.len()), Some(2));
        let strange = [&MAGIC[..], b"more"].concat();
        let parts = split(&strange).unwrap();
        assert_eq!(Assembly::default().take("peer", parts[0].clone()), Some(strange));
    }

    #[test]
    fn what_stays_unfinished_is_bounded() {
        let mut assembly = Assembly::default();
        let parts = split(&vec![1; MESSAGE_BYTES_MAX]).unwrap();
        assert_eq!(parts.len(), PARTS_MAX);
        for number in 0..12u64 {
            for part in &parts[1..] {
                let mut part = part.clone();
                part[MAGIC.len()..MAGIC.len() + 8].copy_from_slice(&number.to_le_bytes());
                assert_eq!(assembly.take("peer", part), None);
            }
            assert!(assembly.bytes <= UNFINISHED_BYTES_MAX);
        }
        assert!(assembly.unfinished.len() <= 4);
    }

    proptest! {
        #[test]
        fn parts_in_any_order_are_the_message_again(len in 0usize..60_000, order in any::<u64>(), twice: bool) {
            let message: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let Some(mut parts) = split(&message) else { return Ok(()) };
            parts.sort_by_key(|part| (u64::from(part[24]) + 1).wrapping_mul(order | 1) % 1009);
            let mut assembly = Assembly::default();
            let (last, others) = parts.split_last().unwrap();
            for part in others {
                prop_assert_eq!(assembly.take("a", part.clone()), None);
                prop_assert_eq!(assembly.take("b", part.clone()), None);
                if twice {
                    prop_assert_eq!(assembly.take("a", part.clone()), None);
                }
            }
            prop_assert_eq!(assembly.take("a", last.clone()), Some(message));
            prop_assert_eq!(assembly.unfinished.len(), usize::from(!others.is_empty()));
        }

        #[test]
        fn any_bytes_are_a_message_a_part_or_nothing(tail: Vec<u8>, part: bool) {
            let message = if part { [&MAGIC[..], &tail].concat() } else { tail };
            let _ = Assembly::default().take("peer", message);
        }
    }
}
