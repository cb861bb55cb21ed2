//! The wire format of one connection: greeting, frame heads, descriptors. Bytes in, values out; no I/O.
//!
//! Everything here is input from outside: every count and length is checked against a limit before anybody
//! allocates or loops by it, and nothing panics. Integers are little-endian.
//!
//! A connection begins with a [`Greeting`] of its dialer and the [`Answer`] of its acceptor; the dialer sends nothing
//! else until the answer is there. Then both sides send frames: a [`Head`], for writes and reads a table of
//! [`Descriptor`]s, for writes, read data and messages a payload. All that one side asks for on a connection is
//! executed and answered in order, so that answers are counts, not names.

use core::fmt;

use kvrail_core::limits::RAILS_MAX;

/// Version of this format; both sides must have the same.
pub(crate) const VERSION: u16 = 1;

/// First bytes of a connection, in both directions.
const MAGIC: [u8; 8] = *b"kvrail/t";

/// Longest single op, bytes. The planner cuts longer descriptors, which also spreads them over the rails.
pub(crate) const OP_BYTES_MAX: u32 = 1 << 20;
/// Ops of one frame.
pub(crate) const FRAME_OPS_MAX: usize = 128;
/// Payload of one frame, bytes.
pub(crate) const FRAME_BYTES_MAX: u32 = 2 << 20;
/// Longest message, bytes.
pub(crate) const MESSAGE_BYTES_MAX: u32 = 64 << 10;

const _: () = assert!(FRAME_BYTES_MAX >= OP_BYTES_MAX, "the largest op fits a frame");
const _: () = assert!(
    MESSAGE_BYTES_MAX as usize >= kvrail_core::limits::MESSAGE_BYTES_MIN,
    "control messages fit a frame"
);

/// Encoded size of a [`Greeting`], bytes.
pub(crate) const GREETING_BYTES: usize = 56;
/// Encoded size of an [`Answer`], bytes.
pub(crate) const ANSWER_BYTES: usize = 16;
/// Encoded size of a [`Head`], bytes.
pub(crate) const HEAD_BYTES: usize = 16;
/// Encoded size of a [`Descriptor`], bytes.
pub(crate) const DESCRIPTOR_BYTES: usize = 20;

/// What is wrong with bytes that a peer sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameError {
    /// Not this protocol at all.
    Stranger,
    /// This protocol in another version.
    Version(u16),
    /// A rail number beyond the limit.
    Rail(u16),
    /// No such frame.
    Kind(u8),
    /// A count of ops that is zero or beyond the limit.
    Ops(u32),
    /// A length that is zero, beyond the limit, or not the sum of its parts.
    Length(u32),
    /// A code inside a frame that this version does not have.
    Code(u32),
    /// An answer to something that was not asked.
    Unasked,
    /// More requests than the protocol allows to be open.
    Flood,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger => f.write_str("not a kvrail tcp connection"),
            Self::Version(v) => {
                write!(f, "the other side speaks version {v} of the tcp format, this is {VERSION}")
            }
            Self::Rail(n) => write!(f, "rail {n} is beyond the limit of {RAILS_MAX}"),
            Self::Kind(k) => write!(f, "unknown frame {k}"),
            Self::Ops(n) => write!(f, "a frame of {n} ops"),
            Self::Length(n) => write!(f, "a length of {n} bytes that is zero, too long or inconsistent"),
            Self::Code(n) => write!(f, "unknown code {n}"),
            Self::Unasked => f.write_str("an answer to nothing"),
            Self::Flood => f.write_str("more open requests than the protocol allows"),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut raw = [0; 2];
    raw.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(raw)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

pub(crate) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from(u64_at(bytes, at)) | u128::from(u64_at(bytes, at + 8)) << 64
}

/// What the dialer of a connection says first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Greeting {
    /// Who dials.
    pub(crate) from: u128,
    /// Who is meant: known only to those who were given the address.
    pub(crate) to: u128,
    /// Names the connection among all that this dialer ever makes.
    pub(crate) connection: u64,
    /// The dialer's rail.
    pub(crate) dialer_rail: u16,
    /// The acceptor's rail.
    pub(crate) acceptor_rail: u16,
}

impl Greeting {
    pub(crate) fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut out = [0; GREETING_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&self.dialer_rail.to_le_bytes());
        out[12..14].copy_from_slice(&self.acceptor_rail.to_le_bytes());
        out[16..32].copy_from_slice(&self.from.to_le_bytes());
        out[32..48].copy_from_slice(&self.to.to_le_bytes());
        out[48..56].copy_from_slice(&self.connection.to_le_bytes());
        out
    }

    /// Whether these first bytes of a connection may become a greeting: strangers are shown out early.
    pub(crate) fn may_begin(bytes: &[u8]) -> bool {
        bytes.iter().zip(&MAGIC).all(|(a, b)| a == b)
    }

    pub(crate) fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Self, FrameError> {
        if bytes[..8] != MAGIC {
            return Err(FrameError::Stranger);
        }
        let version = u16_at(bytes, 8);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let rail = |at| match u16_at(bytes, at) {
            n if usize::from(n) < RAILS_MAX => Ok(n),
            n => Err(FrameError::Rail(n)),
        };
        Ok(Self {
            dialer_rail: rail(10)?,
            acceptor_rail: rail(12)?,
            from: u128_at(bytes, 16),
            to: u128_at(bytes, 32),
            connection: u64_at(bytes, 48),
        })
    }
}

/// What the acceptor says to a greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Go ahead.
    Welcome,
    /// Somebody else lives here.
    WrongInstance,
    /// The acceptor speaks another version: this one.
    Version(u16),
    /// A limit of the acceptor is reached.
    Full,
}

impl Answer {
    pub(crate) fn encode(self) -> [u8; ANSWER_BYTES] {
        let (version, code) = match self {
            Self::Welcome => (VERSION, 0u16),
            Self::WrongInstance => (VERSION, 1),
            Self::Version(version) => (version, 2),
            Self::Full => (VERSION, 3),
        };
        let mut out = [0; ANSWER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&version.to_le_bytes());
        out[10..12].copy_from_slice(&code.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, FrameError> {
        if bytes[..8] != MAGIC {
            return Err(FrameError::Stranger);
        }
        match (u16_at(bytes, 10), u16_at(bytes, 8)) {
            (2, version) => Ok(Self::Version(version)),
            (0, VERSION) => Ok(Self::Welcome),
            (1, VERSION) => Ok(Self::WrongInstance),
            (3, VERSION) => Ok(Self::Full),
            (code, VERSION) => Err(FrameError::Code(u32::from(code))),
            (_, version) => Err(FrameError::Version(version)),
        }
    }
}

/// What of the asker's an answer is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Writes,
    Reads,
    Messages,
}

impl Asked {
    fn code(self) -> u8 {
        match self {
            Self::Writes => 0,
            Self::Reads => 1,
            Self::Messages => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self, FrameError> {
        match code {
            0 => Ok(Self::Writes),
            1 => Ok(Self::Reads),
            2 => Ok(Self::Messages),
            other => Err(FrameError::Code(u32::from(other))),
        }
    }
}

/// Why a target did not execute an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// Unknown region, other generation, out of bounds: nothing was touched.
    BadKey,
    /// The memory went away in the middle, or could not be accessed.
    Fault(i32),
}

/// Names a connection between two instances.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ConnectionName {
    /// The sender of the frame dialed it; else its receiver did.
    pub(crate) dialed_by_sender: bool,
    /// The dialer's number for it.
    pub(crate) number: u64,
}

/// The fixed first part of every frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Head {
    /// A table of `ops` descriptors follows, then `bytes` of payload for them, back to back.
    Write { ops: u16, bytes: u32 },
    /// A table of `ops` descriptors follows: the asker wants `bytes` in all.
    Read { ops: u16, bytes: u32 },
    /// The next `ops` reads that were asked for: `bytes` of payload follow, back to back.
    ReadData { ops: u16, bytes: u32 },
    /// The next `count` writes or messages are placed.
    Done { asked: Asked, count: u32 },
    /// The next `count` writes or reads were not executed.
    Refused { asked: Asked, count: u32, why: Refusal },
    /// A message of `bytes` follows.
    Message { bytes: u32 },
    /// Close that connection of ours, and say so: no byte of it may be placed afterwards.
    Fence { connection: ConnectionName },
    /// It is closed. Named as in the question: from the asker's point of view.
    Fenced { connection: ConnectionName },
    /// The sender's instance ends.
    Bye,
}

const BAD_KEY: u32 = 1;
const FAULT: u32 = 2;

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_BYTES] {
        let named = |c: &ConnectionName| (u8::from(c.dialed_by_sender), 0, 0, c.number);
        let (kind, (code, count, len, arg)) = match self {
            Self::Write { ops, bytes } => (1, (0, *ops, *bytes, 0)),
            Self::Read { ops, bytes } => (2, (0, *ops, *bytes, 0)),
            Self::ReadData { ops, bytes } => (3, (0, *ops, *bytes, 0)),
            Self::Done { asked, count } => (4, (asked.code(), 0, *count, 0)),
            Self::Refused { asked, count, why } => match why {
                Refusal::BadKey => (5, (asked.code(), 0, *count, u64::from(BAD_KEY))),
                Refusal::Fault(errno) => {
                    (5, (asked.code(), 0, *count, u64::from(FAULT) | u64::from(errno.cast_unsigned()) << 32))
                }
            },
            Self::Message { bytes } => (6, (0, 0, *bytes, 0)),
            Self::Fence { connection } => (7, named(connection)),
            Self::Fenced { connection } => (8, named(connection)),
            Self::Bye => (9, (0, 0, 0, 0)),
        };
        let mut out = [0; HEAD_BYTES];
        out[0] = kind;
        out[1] = code;
        out[2..4].copy_from_slice(&count.to_le_bytes());
        out[4..8].copy_from_slice(&len.to_le_bytes());
        out[8..16].copy_from_slice(&arg.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, FrameError> {
        let (code, count, len, arg) = (bytes[1], u16_at(bytes, 2), u32_at(bytes, 4), u64_at(bytes, 8));
        let ops = || match usize::from(count) {
            1..=FRAME_OPS_MAX => Ok(count),
            _ => Err(FrameError::Ops(u32::from(count))),
        };
        let payload = |max| if (1..=max).contains(&len) { Ok(len) } else { Err(FrameError::Length(len)) };
        let answered = || if len > 0 { Ok(len) } else { Err(FrameError::Ops(0)) };
        let connection = || match code {
            0 | 1 => Ok(ConnectionName { dialed_by_sender: code == 1, number: arg }),
            other => Err(FrameError::Code(u32::from(other))),
        };
        match bytes[0] {
            1 => Ok(Self::Write { ops: ops()?, bytes: payload(FRAME_BYTES_MAX)? }),
            // A read's total is bounded by its ops, each of which is bounded.
            2 => Ok(Self::Read { ops: ops()?, bytes: payload(u32::from(count) * OP_BYTES_MAX)? }),
            3 => Ok(Self::ReadData { ops: ops()?, bytes: payload(FRAME_BYTES_MAX)? }),
            4 => Ok(Self::Done { asked: Asked::from_code(code)?, count: answered()? }),
            5 => {
                let why = match arg as u32 {
                    BAD_KEY => Refusal::BadKey,
                    FAULT => Refusal::Fault(((arg >> 32) as u32).cast_signed()),
                    other => return Err(FrameError::Code(other)),
                };
                Ok(Self::Refused { asked: Asked::from_code(code)?, count: answered()?, why })
            }
            6 => Ok(Self::Message { bytes: payload(MESSAGE_BYTES_MAX)? }),
            7 => Ok(Self::Fence { connection: connection()? }),
            8 => Ok(Self::Fenced { connection: connection()? }),
            9 => Ok(Self::Bye),
            kind => Err(FrameError::Kind(kind)),
        }
    }
}

/// A slice of a region of the frame's receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor {
    pub(crate) region: u32,
    pub(crate) generation: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Descriptor {
    pub(crate) fn encode(&self) -> [u8; DESCRIPTOR_BYTES] {
        let mut out = [0; DESCRIPTOR_BYTES];
        out[..4].copy_from_slice(&self.region.to_le_bytes());
        out[4..8].copy_from_slice(&self.generation.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let len = u32_at(bytes, 16);
        if !(1..=OP_BYTES_MAX).contains(&len) {
            return Err(FrameError::Length(len));
        }
        let (region, generation, offset) = (u32_at(bytes, 0), u32_at(bytes, 4), u64_at(bytes, 8));
        Ok(Self { region, generation, offset, len })
    }
}

/// Reads a table of descriptors, which must add up to `total` bytes.
pub(crate) fn decode_table(
    bytes: &[u8],
    total: u32,
    mut each: impl FnMut(Descriptor),
) -> Result<(), FrameError> {
    let mut sum = 0u64;
    for raw in bytes.chunks_exact(DESCRIPTOR_BYTES) {
        let descriptor = Descriptor::decode(raw)?;
        sum += u64::from(descriptor.len);
        each(descriptor);
    }
    if sum == u64::from(total) { Ok(()) } else { Err(FrameError::Length(total)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked() -> impl Strategy<Value = Asked> {
        prop_oneof![Just(Asked::Writes), Just(Asked::Reads), Just(Asked::Messages)]
    }

    fn head() -> impl Strategy<Value = Head> {
        let ops = 1..=FRAME_OPS_MAX as u16;
        let why = prop_oneof![Just(Refusal::BadKey), any::<i32>().prop_map(Refusal::Fault)];
        let name = (any::<bool>(), any::<u64>())
            .prop_map(|(dialed_by_sender, number)| ConnectionName { dialed_by_sender, number });
        prop_oneof![
            (ops.clone(), 1..=FRAME_BYTES_MAX).prop_map(|(ops, bytes)| Head::Write { ops, bytes }),
            (ops.clone(), 1..=OP_BYTES_MAX).prop_map(|(ops, bytes)| Head::Read { ops, bytes }),
            (ops, 1..=FRAME_BYTES_MAX).prop_map(|(ops, bytes)| Head::ReadData { ops, bytes }),
            (asked(), 1..=u32::MAX).prop_map(|(asked, count)| Head::Done { asked, count }),
            (asked(), 1..=u32::MAX, why).prop_map(|(asked, count, why)| Head::Refused { asked, count, why }),
            (1..=MESSAGE_BYTES_MAX).prop_map(|bytes| Head::Message { bytes }),
            name.clone().prop_map(|connection| Head::Fence { connection }),
            name.prop_map(|connection| Head::Fenced { connection }),
            Just(Head::Bye),
        ]
    }

    proptest! {
        #[test]
        fn a_head_survives_the_wire(head in head()) {
            prop_assert_eq!(Head::decode(&head.encode()), Ok(head));
        }

        #[test]
        fn any_bytes_are_a_valid_head_or_an_error(bytes: [u8; HEAD_BYTES], kind in 0u8..12) {
            for bytes in [bytes, { let mut b = bytes; b[0] = kind; b[1] &= 3; b[3] = 0; b }] {
                match Head::decode(&bytes) {
                    Ok(Head::Write { ops, bytes } | Head::ReadData { ops, bytes }) => {
                        prop_assert!((1..=FRAME_OPS_MAX).contains(&usize::from(ops)));
                        prop_assert!((1..=FRAME_BYTES_MAX).contains(&bytes));
                    }
                    Ok(Head::Message { bytes }) => prop_assert!((1..=MESSAGE_BYTES_MAX).contains(&bytes)),
                    Ok(_) | Err(_) => {}
                }
            }
        }

        #[test]
        fn a_greeting_survives_the_wire(
            from: u128, to: u128, connection: u64, l in 0..RAILS_MAX as u16, r in 0..RAILS_MAX as u16,
        ) {
            let greeting = Greeting { from, to, connection, dialer_rail: l, acceptor_rail: r };
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
            prop_assert!(Greeting::may_begin(&greeting.encode()[..3]));
        }

        #[test]
        fn any_bytes_are_a_valid_greeting_or_an_error(mut bytes in any::<[u8; GREETING_BYTES]>(), known: bool) {
            if known {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
            }
            if let Ok(greeting) = Greeting::decode(&bytes) {
                prop_assert!(usize::from(greeting.dialer_rail) < RAILS_MAX);
                prop_assert!(usize::from(greeting.acceptor_rail) < RAILS_MAX);
            }
        }

        #[test]
        fn a_table_survives_the_wire_and_adds_up(
            ops in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u64>(), 1..=OP_BYTES_MAX), 1..64),
            wrong in 1u32..1000,
        ) {
            let ops: Vec<Descriptor> = ops
                .into_iter()
                .map(|(region, generation, offset, len)| Descriptor { region, generation, offset, len })
                .collect();
            let bytes: Vec<u8> = ops.iter().flat_map(Descriptor::encode).collect();
            let total = ops.iter().map(|d| d.len).sum::<u32>();
            let mut seen = Vec::new();
            prop_assert_eq!(decode_table(&bytes, total, |d| seen.push(d)), Ok(()));
            prop_assert_eq!(seen, ops);
            let off_by_some = decode_table(&bytes, total.wrapping_add(wrong), |_| ());
            prop_assert!(off_by_some.is_err());
        }
    }

    #[test]
    fn answers_survive_the_wire() {
        for answer in [Answer::Welcome, Answer::WrongInstance, Answer::Version(7), Answer::Full] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn another_version_is_named() {
        let greeting = Greeting { from: 1, to: 2, connection: 3, dialer_rail: 0, acceptor_rail: 0 };
        let mut bytes = greeting.encode();
        bytes[8] = 9;
        assert_eq!(Greeting::decode(&bytes), Err(FrameError::Version(9)));
    }
}
