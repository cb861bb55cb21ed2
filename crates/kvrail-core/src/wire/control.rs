//! Control messages between two agents: greeting, closing of counted slots, notifications, acknowledgements.
//!
//! A message is a fixed header and a body. The header names both incarnations in full (KR-3, KR-11), carries the
//! sequence number by which a message is delivered exactly once, and acknowledges what came the other way.

use alloc::string::String;
use alloc::vec::Vec;

use super::{DecodeError, Reader, VERSION, Writer};
use crate::id::{Incarnation, RemoteRail, TransferId};
use crate::limits::{ADDRESS_BYTES_MAX, NAME_BYTES_MAX, NOTIFICATION_BYTES_MAX, RAILS_MAX};

const MAGIC: [u8; 2] = *b"kv";

/// Slots that one greeting can grant.
pub const GREETING_SLOTS_MAX: usize = 64;

/// What every message begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The sender.
    pub from: Incarnation,
    /// Whom the sender means; a restarted agent is another (KR-11).
    pub to: Incarnation,
    /// The receiver's name for this acquaintance, as the receiver told it; [`Header::NO_LINK`] before that. Later
    /// acquaintances have larger links, so that what is left of an earlier one is known for that.
    pub link: u64,
    /// The sender's name for this acquaintance. Both links together name it: a message is heeded only under the very
    /// pair that its receiver knows, whichever side has begun anew meanwhile.
    pub sender_link: u64,
    /// Position in the sender's sequence; 0 for messages that may be lost or repeated harmlessly.
    pub sequence: u64,
    /// Every sequenced message up to here was received by the sender.
    pub acked: u64,
    /// Bit `i`: message `acked + 1 + i` was received too.
    pub acked_bits: u64,
    /// Immediates of the receiver that the sender has consumed since the greeting: credit returned (KR-8).
    pub consumed: u64,
}

impl Header {
    /// The sender does not know the receiver's link yet.
    pub const NO_LINK: u64 = u64::MAX;
}

/// A place where a receiver counts the immediates of one round of one transfer (KR-2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Slot {
    /// Which.
    pub index: u16,
    /// Which use of it; changes at every acknowledgement.
    pub generation: u16,
}

impl Slot {
    /// As the immediate of a write.
    #[must_use]
    pub const fn immediate(self) -> u32 {
        (self.index as u32) << 16 | self.generation as u32
    }

    /// From the immediate of a write.
    #[must_use]
    pub const fn from_immediate(value: u32) -> Self {
        Self { index: (value >> 16) as u16, generation: value as u16 }
    }
}

/// Introduction of an agent; repeating it is harmless, so it also probes routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// The sender's name.
    pub name: String,
    /// The sender's transport address.
    pub address: Vec<u8>,
    /// Immediates that the receiver may have unconsumed at the sender. This and the slots are for the acquaintance that
    /// the header names, and for no other; there are none while it names one side only.
    pub credit: u32,
    /// Slots that the sender grants to the receiver.
    pub slots: Vec<Slot>,
    /// Of a hello: a number to echo. Of a welcome: the echo.
    pub nonce: u64,
}

/// How one round, or the whole of a transfer, ended at its initiator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Every byte was written.
    Done,
    /// Some ops of this round must be repeated; another round follows.
    Again,
    /// The transfer failed or was cancelled: no further byte will come.
    Failed,
}

/// How many writes of a round went to one of the receiver's rails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RailCount {
    /// The receiver's rail (remote to the sender).
    pub rail: RemoteRail,
    /// Writes posted.
    pub posted: u32,
    /// Whether each of them succeeded, so that exactly `posted` immediates arrive. Otherwise some may be lost, and
    /// none arrives any more.
    pub exact: bool,
}

/// What the target says of a round that was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Everything that was announced as exact is visible at the target.
    Visible,
    /// More immediates came than were posted: the evidence is worthless.
    Overshoot,
    /// The target replaced an endpoint and missed immediates by it: the round proves nothing, and nothing was delivered.
    Lost,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// I am here; tell me who you are.
    Hello(Greeting),
    /// The answer.
    Welcome(Greeting),
    /// Only the header matters.
    Ack,
    /// I am going; nothing of mine is in flight any more.
    Goodbye,
    /// A round of a counted transfer is over at its initiator.
    Close {
        /// The transfer.
        transfer: TransferId,
        /// Where its immediates were counted.
        slot: Slot,
        /// How it ended.
        outcome: Outcome,
        /// What was posted to which rail; rails with nothing are left out.
        rails: Vec<RailCount>,
        /// To be delivered when everything is visible.
        notification: Option<Vec<u8>>,
    },
    /// The answer to a close.
    Closed {
        /// The transfer.
        transfer: TransferId,
        /// The same slot, granted anew.
        slot: Slot,
        /// What the round proves.
        verdict: Verdict,
    },
    /// A transfer with a notification ended; its bytes are visible where they were written.
    Notify {
        /// The transfer.
        transfer: TransferId,
        /// Whether it succeeded.
        done: bool,
        /// The notification.
        message: Vec<u8>,
    },
    /// A message of the application's.
    Message(Vec<u8>),
}

impl Body {
    const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Welcome(_) => 2,
            Self::Ack => 3,
            Self::Goodbye => 4,
            Self::Close { .. } => 5,
            Self::Closed { .. } => 6,
            Self::Notify { .. } => 7,
            Self::Message(_) => 8,
        }
    }

    /// The body with its kind in front, ready to follow a header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        let mut out = Writer(&mut bytes);
        out.u8(self.kind());
        match self {
            Self::Hello(greeting) | Self::Welcome(greeting) => write_greeting(&mut out, greeting),
            Self::Ack | Self::Goodbye => {}
            Self::Close { transfer, slot, outcome, rails, notification } => {
                out.u64(transfer.0);
                out.u32(slot.immediate());
                out.u8(match outcome {
                    Outcome::Done => 0,
                    Outcome::Again => 1,
                    Outcome::Failed => 2,
                });
                out.varint(rails.len() as u64);
                for count in rails {
                    out.varint(u64::from(count.rail.0) << 1 | u64::from(count.exact));
                    out.varint(u64::from(count.posted));
                }
                out.optional_bytes(notification.as_deref());
            }
            Self::Closed { transfer, slot, verdict } => {
                out.u64(transfer.0);
                out.u32(slot.immediate());
                out.u8(match verdict {
                    Verdict::Visible => 0,
                    Verdict::Overshoot => 1,
                    Verdict::Lost => 2,
                });
            }
            Self::Notify { transfer, done, message } => {
                out.u64(transfer.0);
                out.u8(u8::from(*done));
                out.bytes(message);
            }
            Self::Message(message) => out.bytes(message),
        }
        bytes
    }
}

/// Writes a header and an encoded body as one message.
pub fn write_message(out: &mut Vec<u8>, header: &Header, body: &[u8]) {
    out.clear();
    out.extend_from_slice(&MAGIC);
    let mut writer = Writer(out);
    writer.u8(VERSION);
    writer.u64(header.from.0);
    writer.u64(header.to.0);
    writer.u64(header.link);
    writer.u64(header.sender_link);
    writer.u64(header.sequence);
    writer.u64(header.acked);
    writer.u64(header.acked_bits);
    writer.u64(header.consumed);
    out.extend_from_slice(body);
}

/// Reads a message.
///
/// # Errors
/// [`DecodeError`]: input from outside.
pub fn read_message(bytes: &[u8]) -> Result<(Header, Body), DecodeError> {
    let mut from = Reader::new(bytes);
    from.preamble(&MAGIC, VERSION)?;
    let header = Header {
        from: Incarnation(from.u64("from")?),
        to: Incarnation(from.u64("to")?),
        link: from.u64("link")?,
        sender_link: from.u64("sender link")?,
        sequence: from.u64("sequence")?,
        acked: from.u64("acked")?,
        acked_bits: from.u64("acked bits")?,
        consumed: from.u64("consumed")?,
    };
    let body = match from.u8("kind")? {
        1 => Body::Hello(read_greeting(&mut from)?),
        2 => Body::Welcome(read_greeting(&mut from)?),
        3 => Body::Ack,
        4 => Body::Goodbye,
        5 => read_close(&mut from)?,
        6 => Body::Closed {
            transfer: TransferId(from.u64("transfer")?),
            slot: Slot::from_immediate(from.u32("slot")?),
            verdict: match from.u8("verdict")? {
                0 => Verdict::Visible,
                1 => Verdict::Overshoot,
                2 => Verdict::Lost,
                _ => return Err(DecodeError::Invalid { field: "verdict" }),
            },
        },
        7 => Body::Notify {
            transfer: TransferId(from.u64("transfer")?),
            done: read_flag(&mut from, "done")?,
            message: from.bytes(NOTIFICATION_BYTES_MAX, "notification")?.to_vec(),
        },
        8 => Body::Message(from.bytes(NOTIFICATION_BYTES_MAX, "message")?.to_vec()),
        _ => return Err(DecodeError::Invalid { field: "kind" }),
    };
    from.finish()?;
    Ok((header, body))
}

fn read_flag(from: &mut Reader<'_>, field: &'static str) -> Result<bool, DecodeError> {
    match from.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid { field }),
    }
}

fn write_greeting(out: &mut Writer<'_>, greeting: &Greeting) {
    out.bytes(greeting.name.as_bytes());
    out.bytes(&greeting.address);
    out.u32(greeting.credit);
    out.varint(greeting.slots.len() as u64);
    for slot in &greeting.slots {
        out.u32(slot.immediate());
    }
    out.u64(greeting.nonce);
}

fn read_greeting(from: &mut Reader<'_>) -> Result<Greeting, DecodeError> {
    let name = from.string(NAME_BYTES_MAX, "name")?;
    if name.is_empty() {
        return Err(DecodeError::Invalid { field: "name" });
    }
    let address = from.bytes(ADDRESS_BYTES_MAX, "address")?.to_vec();
    let credit = from.u32("credit")?;
    let count = from.bounded(GREETING_SLOTS_MAX, "slots")?;
    let slots = (0..count).map(|_| from.u32("slot").map(Slot::from_immediate)).collect::<Result<_, _>>()?;
    Ok(Greeting { name, address, credit, slots, nonce: from.u64("nonce")? })
}

fn read_close(from: &mut Reader<'_>) -> Result<Body, DecodeError> {
    let transfer = TransferId(from.u64("transfer")?);
    let slot = Slot::from_immediate(from.u32("slot")?);
    let outcome = match from.u8("outcome")? {
        0 => Outcome::Done,
        1 => Outcome::Again,
        2 => Outcome::Failed,
        _ => return Err(DecodeError::Invalid { field: "outcome" }),
    };
    let count = from.bounded(RAILS_MAX, "rail counts")?;
    let mut rails = Vec::with_capacity(count);
    for _ in 0..count {
        let rail = from.bounded(RAILS_MAX * 2 - 1, "rail")?;
        let posted = from.bounded(u32::MAX as usize, "posted")? as u32;
        rails.push(RailCount { rail: RemoteRail((rail >> 1) as u16), posted, exact: rail & 1 == 1 });
    }
    let notification = from.optional_bytes(NOTIFICATION_BYTES_MAX, "notification")?.map(<[u8]>::to_vec);
    Ok(Body::Close { transfer, slot, outcome, rails, notification })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            from: Incarnation(1),
            to: Incarnation(2),
            link: 3,
            sender_link: 8,
            sequence: 4,
            acked: 5,
            acked_bits: 6,
            consumed: 7,
        }
    }

    fn bodies() -> Vec<Body> {
        let slot = Slot { index: 65_535, generation: 9 };
        let transfer = TransferId(u64::MAX);
        let greeting = Greeting {
            name: "decode-1".to_string(),
            address: alloc::vec![1, 2, 3],
            credit: 64,
            slots: alloc::vec![slot, Slot { index: 0, generation: 0 }],
            nonce: 77,
        };
        let rails = alloc::vec![RailCount { rail: RemoteRail(63), posted: u32::MAX, exact: true }];
        alloc::vec![
            Body::Hello(greeting.clone()),
            Body::Welcome(greeting),
            Body::Ack,
            Body::Goodbye,
            Body::Close {
                transfer,
                slot,
                outcome: Outcome::Again,
                rails,
                notification: Some(alloc::vec![0; 8192])
            },
            Body::Closed { transfer, slot, verdict: Verdict::Lost },
            Body::Notify { transfer, done: false, message: Vec::new() },
            Body::Message(alloc::vec![9; 10]),
        ]
    }

    #[test]
    fn every_message_comes_back() {
        for body in bodies() {
            let mut bytes = Vec::new();
            write_message(&mut bytes, &header(), &body.encode());
            assert_eq!(read_message(&bytes).unwrap(), (header(), body));
        }
    }

    #[test]
    fn a_cut_or_lengthened_message_is_refused() {
        for body in bodies() {
            let mut bytes = Vec::new();
            write_message(&mut bytes, &header(), &body.encode());
            for len in 0..bytes.len() {
                assert!(read_message(&bytes[..len]).is_err(), "{body:?} cut to {len}");
            }
            bytes.push(0);
            assert_eq!(read_message(&bytes), Err(DecodeError::Trailing { bytes: 1 }));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_message_or_an_error(tail: Vec<u8>, kind in 0u8..10) {
            let mut bytes = Vec::new();
            write_message(&mut bytes, &header(), &[&[kind], &tail[..]].concat());
            let _ = read_message(&bytes);
            let _ = read_message(&tail);
        }
    }
}
