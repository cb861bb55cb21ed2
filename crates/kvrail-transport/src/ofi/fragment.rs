//! Messages in pieces that fit small receives, and their reassembly.
//!
//! `efa-direct` sends at most one packet at a time, and receives are posted by the thousand, so they are small: a message
//! of up to [`MESSAGE_BYTES_MAX`] is cut into fragments of [`FRAGMENT_BYTES`]. Fragments come in any order, from anybody,
//! more than once where a sender repeated them, or not at all. What has come of unfinished messages is bounded in bytes,
//! per sender and in age; messages that are lost that way are repeated by their sender's engine under a new id, as is
//! whatever else a fabric loses. (For the same reason a repeated fragment of a message that was complete before
//! is no error: it begins a message that never ends, and ages out.)

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use kvrail_core::limits::MESSAGE_BYTES_MIN;
use kvrail_core::time::Time;

use super::address::VERSION;

/// A fragment with its header, bytes: the size of each receive.
pub const FRAGMENT_BYTES: usize = 1_024;
/// Header of a fragment, bytes.
pub const HEADER_BYTES: usize = 32;
/// Longest message, bytes.
pub const MESSAGE_BYTES_MAX: usize = MESSAGE_BYTES_MIN;
/// Message bytes in one fragment.
pub const PAYLOAD_BYTES: usize = FRAGMENT_BYTES - HEADER_BYTES;
/// Fragments of the longest message.
pub const FRAGMENTS_MAX: usize = MESSAGE_BYTES_MAX.div_ceil(PAYLOAD_BYTES);

const MAGIC: [u8; 3] = *b"KVf";

const _: () = assert!(FRAGMENTS_MAX <= u32::BITS as usize, "what has come of a message is one word");
const _: () = assert!(MESSAGE_BYTES_MAX <= u16::MAX as usize, "a message's length has two bytes");

/// Unfinished messages of one sender.
pub const PER_SENDER_MAX: usize = 64;
/// Unfinished messages of all senders: with the longest messages 16 MiB.
pub const PARTIAL_MAX: usize = 1_024;
/// How long a message may be unfinished. Its sender has repeated it by then.
pub const AGE_MAX: Duration = Duration::from_secs(5);

/// What a fragment says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The life of the transport that sent it ([`super::address::Address::instance`]).
    pub instance: u128,
    /// The message, unique within that life.
    pub message: u64,
    /// Bytes of the whole message.
    pub message_len: u16,
    /// Which fragment.
    pub index: u8,
    /// Fragments of the message.
    pub count: u8,
}

/// What is wrong with a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FragmentError {
    /// Not one of kvrail's.
    Stranger,
    /// Of another version of the format.
    Version(u8),
    /// Shorter than a header, or not as long as its place in the message asks for.
    Length {
        /// Bytes that came.
        found: usize,
    },
    /// A count or index that no message of that length has.
    Index {
        /// The index.
        index: u8,
        /// The count.
        count: u8,
        /// The message's length, bytes.
        message_len: u16,
    },
    /// It says another length of its message than a fragment before.
    Contradicts,
}

impl fmt::Display for FragmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger => f.write_str("not a fragment of kvrail's messages"),
            Self::Version(found) => {
                write!(f, "a fragment in version {found} of the format; this is version {VERSION}")
            }
            Self::Length { found } => {
                write!(f, "a fragment of {found} bytes, which is not what its header asks for")
            }
            Self::Index { index, count, message_len } => {
                write!(f, "fragment {index} of {count}, which no message of {message_len} bytes has")
            }
            Self::Contradicts => {
                f.write_str("a fragment that contradicts an earlier one about its message's length")
            }
        }
    }
}

impl std::error::Error for FragmentError {}

/// Fragments of a message of `len` bytes: an empty one has one too.
const fn fragments(len: usize) -> usize {
    if len == 0 { 1 } else { len.div_ceil(PAYLOAD_BYTES) }
}

impl Header {
    /// Bytes of the message that this fragment carries.
    fn payload(&self) -> std::ops::Range<usize> {
        let start = usize::from(self.index) * PAYLOAD_BYTES;
        start..(start + PAYLOAD_BYTES).min(self.message_len.into())
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = VERSION;
        bytes[4..20].copy_from_slice(&self.instance.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.message.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.message_len.to_le_bytes());
        bytes[30] = self.index;
        bytes[31] = self.count;
        bytes
    }

    /// Reads a fragment: its header and its part of the message.
    ///
    /// # Errors
    /// [`FragmentError`]: input from outside.
    pub fn decode(fragment: &[u8]) -> Result<(Self, &[u8]), FragmentError> {
        let length = FragmentError::Length { found: fragment.len() };
        let (head, payload) = fragment.split_first_chunk::<HEADER_BYTES>().ok_or(length)?;
        if head[..3] != MAGIC {
            return Err(FragmentError::Stranger);
        }
        if head[3] != VERSION {
            return Err(FragmentError::Version(head[3]));
        }
        let mut instance = [0; 16];
        instance.copy_from_slice(&head[4..20]);
        let mut message = [0; 8];
        message.copy_from_slice(&head[20..28]);
        let header = Self {
            instance: u128::from_le_bytes(instance),
            message: u64::from_le_bytes(message),
            message_len: u16::from_le_bytes([head[28], head[29]]),
            index: head[30],
            count: head[31],
        };
        let Self { index, count, message_len, .. } = header;
        let len = usize::from(message_len);
        if len > MESSAGE_BYTES_MAX || usize::from(count) != fragments(len) || index >= count {
            return Err(FragmentError::Index { index, count, message_len });
        }
        if payload.len() != header.payload().len() {
            return Err(length);
        }
        Ok((header, payload))
    }
}

/// A message on its way out.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    header: Header,
    message: &'a [u8],
}

impl<'a> Outgoing<'a> {
    /// Cuts a message. `None` when it is longer than [`MESSAGE_BYTES_MAX`].
    #[must_use]
    pub fn new(instance: u128, message_id: u64, message: &'a [u8]) -> Option<Self> {
        if message.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let (message_len, count) = (message.len() as u16, fragments(message.len()) as u8);
        Some(Self { header: Header { instance, message: message_id, message_len, index: 0, count }, message })
    }

    /// How many fragments there are; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.header.count.into()
    }

    /// Writes fragment `index` to the beginning of a buffer and returns its length, bytes.
    ///
    /// # Panics
    /// When there is no such fragment.
    #[must_use]
    pub fn write(&self, index: usize, buffer: &mut [u8; FRAGMENT_BYTES]) -> usize {
        assert!(index < self.count(), "fragment {index} of {}", self.count());
        let header = Header { index: index as u8, ..self.header };
        let payload = &self.message[header.payload()];
        let len = HEADER_BYTES + payload.len();
        buffer[..HEADER_BYTES].copy_from_slice(&header.encode());
        buffer[HEADER_BYTES..len].copy_from_slice(payload);
        len
    }
}

/// A message that is not whole yet.
struct Partial {
    bytes: Vec<u8>,
    /// One bit for each fragment that has come.
    present: u32,
    /// Its place in the order of arrival.
    arrival: u64,
    since: Time,
}

type Name = (u128, u64);

/// Counts of what did not become a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    /// Messages that were unfinished for too long.
    pub aged: u64,
    /// Messages that had to make room for newer ones.
    pub crowded_out: u64,
    /// Fragments that had come before.
    pub duplicates: u64,
}

/// Messages on their way in.
#[derive(Default)]
pub struct Reassembly {
    partial: HashMap<Name, Partial>,
    /// Unfinished messages in the order in which they began.
    order: BTreeMap<u64, Name>,
    /// The same for each sender.
    senders: HashMap<u128, BTreeMap<u64, u64>>,
    arrivals: u64,
    lost: Lost,
}

impl Reassembly {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a fragment and returns the message if it is whole now: of one fragment without a copy.
    ///
    /// # Errors
    /// [`FragmentError`]: input from outside; nothing changed.
    pub fn accept<'a>(
        &mut self,
        now: Time,
        fragment: &'a [u8],
    ) -> Result<Option<Cow<'a, [u8]>>, FragmentError> {
        let (header, payload) = Header::decode(fragment)?;
        if header.count == 1 {
            return Ok(Some(Cow::Borrowed(payload)));
        }
        let name = (header.instance, header.message);
        let len = usize::from(header.message_len);
        if let Some(known) = self.partial.get(&name)
            && known.bytes.len() != len
        {
            return Err(FragmentError::Contradicts);
        }
        if !self.partial.contains_key(&name) {
            self.begin(now, name, len);
        }
        let Some(partial) = self.partial.get_mut(&name) else { return Ok(None) };
        let bit = 1u32 << header.index;
        if partial.present & bit != 0 {
            self.lost.duplicates += 1;
            return Ok(None);
        }
        partial.bytes[header.payload()].copy_from_slice(payload);
        partial.present |= bit;
        if partial.present.count_ones() < u32::from(header.count) {
            return Ok(None);
        }
        Ok(self.remove(name).map(|partial| Cow::Owned(partial.bytes)))
    }

    /// Forgets messages that have been unfinished for [`AGE_MAX`].
    pub fn expire(&mut self, now: Time) {
        while let Some((_, &name)) = self.order.first_key_value() {
            let young = |partial: &Partial| now.since(partial.since) < AGE_MAX;
            if self.partial.get(&name).is_some_and(young) {
                break;
            }
            self.remove(name);
            self.lost.aged += 1;
        }
    }

    /// Forgets what has come from a sender.
    pub fn forget(&mut self, instance: u128) {
        let messages = self.senders.get(&instance).map(|of| of.values().copied().collect::<Vec<_>>());
        for message in messages.unwrap_or_default() {
            self.remove((instance, message));
        }
    }

    /// Unfinished messages.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.partial.len()
    }

    /// What did not become a message, since the beginning.
    #[must_use]
    pub fn lost(&self) -> Lost {
        self.lost
    }

    fn begin(&mut self, now: Time, name: Name, len: usize) {
        self.expire(now);
        let of_sender = self.senders.get(&name.0);
        let crowded = if of_sender.is_some_and(|of| of.len() >= PER_SENDER_MAX) {
            of_sender.and_then(|of| of.first_key_value()).map(|(_, &message)| (name.0, message))
        } else if self.partial.len() >= PARTIAL_MAX {
            self.order.first_key_value().map(|(_, &oldest)| oldest)
        } else {
            None
        };
        if let Some(oldest) = crowded {
            self.remove(oldest);
            self.lost.crowded_out += 1;
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.order.insert(arrival, name);
        self.senders.entry(name.0).or_default().insert(arrival, name.1);
        self.partial.insert(name, Partial { bytes: vec![0; len], present: 0, arrival, since: now });
    }

    fn remove(&mut self, name: Name) -> Option<Partial> {
        let partial = self.partial.remove(&name)?;
        self.order.remove(&partial.arrival);
        if let Some(of) = self.senders.get_mut(&name.0) {
            of.remove(&partial.arrival);
            if of.is_empty() {
                self.senders.remove(&name.0);
            }
        }
        Some(partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(instance: u128, id: u64, message: &[u8]) -> Vec<Vec<u8>> {
        let out = Outgoing::new(instance, id, message).unwrap();
        let mut buffer = [0; FRAGMENT_BYTES];
        (0..out.count())
            .map(|i| {
                let len = out.write(i, &mut buffer);
                buffer[..len].to_vec()
            })
            .collect()
    }

    fn message(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    proptest! {
        #[test]
        fn messages_come_back_whatever_the_order_and_repetition(
            lens in prop::collection::vec(0usize..=MESSAGE_BYTES_MAX, 1..6), seed: u64, repeat in 0usize..20,
        ) {
            let messages: Vec<_> = lens.iter().enumerate().map(|(i, &len)| message(len, i as u8)).collect();
            let mut fragments: Vec<Vec<u8>> = Vec::new();
            for (id, message) in messages.iter().enumerate() {
                fragments.extend(cut(1 + (id % 2) as u128, id as u64, message));
            }
            // Repeated ones before the last fragments of a message only begin one anew that never ends.
            for i in 0..repeat {
                fragments.push(fragments[i * 7 % fragments.len()].clone());
            }
            let mut state = seed | 1;
            for i in (1..fragments.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                fragments.swap(i, (state >> 33) as usize % (i + 1));
            }
            let mut reassembly = Reassembly::new();
            let mut found = Vec::new();
            for fragment in &fragments {
                if let Some(whole) = reassembly.accept(at(0), fragment).unwrap() {
                    found.push(whole.into_owned());
                }
            }
            for message in &messages {
                prop_assert!(found.contains(message));
            }
            reassembly.expire(at(6_000));
            prop_assert_eq!(reassembly.unfinished(), 0);
            prop_assert!(reassembly.senders.is_empty() && reassembly.order.is_empty());
        }

        #[test]
        fn any_bytes_are_a_fragment_or_an_error(tail in prop::collection::vec(any::<u8>(), 0..1_100), len: u16, index: u8, count in 0u8..20) {
            let header = Header { instance: 1, message: 2, message_len: len, index, count };
            let mut reassembly = Reassembly::new();
            let _ = reassembly.accept(at(0), &tail);
            if reassembly.accept(at(0), &[&header.encode()[..], &tail].concat()).is_ok() {
                prop_assert!(index < count && usize::from(len) <= MESSAGE_BYTES_MAX);
            }
        }
    }

    #[test]
    fn a_short_message_is_not_copied() {
        let fragments = cut(1, 1, b"hello");
        let mut reassembly = Reassembly::new();
        assert!(matches!(reassembly.accept(at(0), &fragments[0]), Ok(Some(Cow::Borrowed(b"hello")))));
        assert!(matches!(reassembly.accept(at(0), &cut(1, 2, b"")[0]), Ok(Some(Cow::Borrowed(b"")))));
        assert_eq!(cut(1, 3, &message(MESSAGE_BYTES_MAX, 0)).len(), FRAGMENTS_MAX);
        assert!(Outgoing::new(1, 1, &[0; MESSAGE_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn what_one_sender_never_finishes_crowds_out_its_own_messages_only() {
        let mut reassembly = Reassembly::new();
        let honest = cut(7, 1, &message(2_000, 3));
        assert_eq!(reassembly.accept(at(0), &honest[0]).unwrap(), None);
        for id in 0..10_000 {
            assert_eq!(
                reassembly.accept(at(1), &cut(666, id, &message(MESSAGE_BYTES_MAX, 0))[1]).unwrap(),
                None
            );
            assert!(reassembly.unfinished() <= 1 + PER_SENDER_MAX);
        }
        assert_eq!(reassembly.lost().crowded_out, 10_000 - PER_SENDER_MAX as u64);
        assert_eq!(reassembly.accept(at(2), &honest[2]).unwrap(), None);
        assert_eq!(reassembly.accept(at(2), &honest[1]).unwrap().unwrap(), message(2_000, 3));
    }

    #[test]
    fn memory_is_bounded_whoever_sends_and_age_ends_what_never_ends() {
        let mut reassembly = Reassembly::new();
        for sender in 0..10_000 {
            reassembly.accept(at(0), &cut(sender, 1, &message(MESSAGE_BYTES_MAX, 0))[0]).unwrap();
            assert!(reassembly.unfinished() <= PARTIAL_MAX);
        }
        reassembly.forget(9_999);
        assert_eq!(reassembly.unfinished(), PARTIAL_MAX - 1);
        reassembly.expire(at(4_999));
        assert_eq!(reassembly.unfinished(), PARTIAL_MAX - 1);
        reassembly.expire(at(5_000));
        assert_eq!((reassembly.unfinished(), reassembly.senders.len()), (0, 0));
        assert_eq!(reassembly.lost().aged, PARTIAL_MAX as u64 - 1);
    }

    #[test]
    fn hostile_headers_are_refused_and_change_nothing() {
        let good = cut(1, 1, &message(3_000, 0));
        let mut reassembly = Reassembly::new();
        reassembly.accept(at(0), &good[0]).unwrap();
        let with = |message_len, index, count, payload: usize| {
            let header = Header { instance: 1, message: 1, message_len, index, count };
            [&header.encode()[..], &vec![0; payload]].concat()
        };
        for (bytes, why) in [
            (with(u16::MAX, 0, 67, PAYLOAD_BYTES), "fragment 0 of 67"),
            (with(3_000, 4, 4, 0), "fragment 4 of 4"),
            (with(3_000, 1, 255, PAYLOAD_BYTES), "fragment 1 of 255"),
            (with(3_000, 1, 4, PAYLOAD_BYTES - 1), "1023 bytes"),
            (with(3_000, 3, 4, PAYLOAD_BYTES), "1024 bytes"),
            (with(2_990, 1, 4, PAYLOAD_BYTES), "contradicts"),
            (good[1][..HEADER_BYTES - 1].to_vec(), "31 bytes"),
            ([b"xyz", &good[1][3..]].concat(), "not a fragment"),
        ] {
            let error = reassembly.accept(at(0), &bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error} should have said {why}");
        }
        for fragment in &good[1..3] {
            assert_eq!(reassembly.accept(at(0), fragment).unwrap(), None);
        }
        assert_eq!(reassembly.accept(at(0), &good[3]).unwrap().unwrap(), message(3_000, 0));
    }
}
