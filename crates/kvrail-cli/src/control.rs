//! What initiator and target say to each other beside the transfers: a small versioned protocol over TCP.
//!
//! Each side first sends eight bytes: magic and version. They never change shape, so that any two versions can tell
//! each other apart. Then come frames: a length, a kind, a payload. Every length is bounded and no memory is
//! reserved on a peer's word; a frame that does not parse ends the link with a protocol error.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::case::{Case, Memory};
use crate::engines::Choice;
use crate::failure::Failure;
use crate::pattern::Damage;
use crate::pool::Loan;
use crate::run::Effort;
use kvrail_report::{Environment, Fingerprint};

/// First bytes on the wire.
pub(crate) const MAGIC: [u8; 4] = *b"KVRB";
/// Raised with every change that an older program would misread.
pub(crate) const VERSION: u16 = 5;
/// Bytes of the preamble.
pub(crate) const PREAMBLE_BYTES: usize = 8;
/// Bytes of a frame's header.
pub(crate) const HEADER_BYTES: usize = 5;
/// Longest message.
pub(crate) const MESSAGE_BYTES_MAX: u32 = 1 << 20;
/// Longest blob: an agent's metadata.
pub(crate) const BLOB_BYTES_MAX: u32 = 256 << 20;

/// One unit on the wire.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Frame {
    /// "I am alive": any frame proves it, this one says nothing else.
    Beat,
    /// Something to act on.
    Message(Message),
    /// Metadata, verbatim.
    Blob(Vec<u8>),
}

/// What is said.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum Message {
    /// Both, first.
    Hello(Hello),
    /// Initiator: set up for this case. Answer: `Opened`, then a blob with the target's metadata; then the initiator's as a
    /// blob, answered by `Done`.
    Open {
        /// What both sides move bytes with.
        engine: Choice,
        /// The case.
        case: Box<Case>,
        /// The target's memory, where engines share it.
        loan: Option<Loan>,
    },
    /// Target: memory and agent are ready.
    Opened {
        /// What each of its transports runs on.
        carriages: Vec<kvrail_report::Carriage>,
    },
    /// Initiator: prepare your memory for a round (poison it, or fill it when it is the source). Answer: `Done`.
    Reset {
        /// The round's number: part of the pattern.
        round: u32,
    },
    /// Initiator: the timed part comes next. Answer: `Done`. The target's CPU time counts from there.
    Mark,
    /// Initiator: the timed part is over. Answer: `Settled`.
    Settle {
        /// The round's number.
        round: u32,
        /// Transfers per thread that the round timed (the first so many slots).
        transfers: u32,
        /// The target looks at its memory (writes only).
        verify: bool,
        /// Notifications that must have arrived since the last `Settle`.
        notifications: u64,
    },
    /// Target: done as told.
    Done,
    /// Target: what the round looked like from here.
    Settled {
        /// CPU time of the process since `Mark`, nanoseconds.
        cpu_ns: u64,
        /// The first bad block, if any.
        damage: Option<Wound>,
        /// How long after that word the last bytes were right at last, nanoseconds; 0 when they were at once.
        late_ns: u64,
    },
    /// Initiator: tear the case down. Answer: `Closed`.
    Close,
    /// Target: torn down.
    Closed {
        /// A byte outside every block that is no longer poison.
        stray: Option<u64>,
    },
    /// Initiator: nothing is posted until the next word; the target need not drive its engine. Answer: `Done`.
    Rest,
    /// Initiator: look beside the blocks. Answer: `Looked`.
    Look,
    /// Target: what it saw.
    Looked {
        /// A byte outside every block that is no longer poison.
        stray: Option<u64>,
    },
    /// Conductor, to a target: poison the memory that engines share; one of them wrote where it should not. Answer: `Done`.
    Poison,
    /// Conductor, to a target: engines come to you, one after the other, each over a link of its own. Answer: `Done`.
    Conduct,
    /// Conductor, to a target: the next link is for this engine. Answer: `Done` when it may come and once more when it has; or
    /// `Refused`.
    Expect {
        /// Which.
        engine: Choice,
    },
    /// Conductor, to a target: end the process that serves this engine, whatever it does. Answer: `Done`.
    Dismiss {
        /// Which.
        engine: Choice,
    },
    /// Conductor, to a target: have memory that all engines of a case share, instead of what was lent before. Answer: `Lent` or `Refused`.
    Lend {
        /// What kind; private memory cannot be shared.
        memory: Memory,
        /// How much.
        bytes: u64,
    },
    /// Target: it is there, and poisoned.
    Lent {
        /// What the engines' processes there borrow.
        loan: Option<Loan>,
    },
    /// Target: what it was told is not possible there; it goes on.
    Refused {
        /// Why.
        failure: Failure,
    },
    /// Conductor, to a player: set up for this case. Answer: `Begun` or `Over`.
    Begin {
        /// The case.
        case: Box<Case>,
        /// The player's memory, where engines share it.
        here: Option<Loan>,
        /// The same of its target.
        there: Option<Loan>,
    },
    /// Player: both sides are ready.
    Begun,
    /// Conductor, to a player: your turn. Answer: `Turned` or `Over`, and `Going` before as often as there is something new.
    Turn {
        /// How much.
        effort: Effort,
        /// There will be no other of this case.
        last: bool,
    },
    /// Player: one more round is done.
    Going,
    /// Player: the turn is over.
    Turned,
    /// Conductor, to a player: no more turns of this case. Answer: `Over`.
    End,
    /// Player: the case is over; what came of it follows as a blob. A player that says so unasked ends.
    Over,
    /// Initiator: measure the control path. Answer: `ControlReady`, then a blob.
    OpenControl {
        /// Regions to register.
        regions: u32,
        /// Transport to use.
        transport: crate::case::Transport,
    },
    /// Target: its own times; the metadata follows as a blob.
    ControlReady {
        /// Creating the agent, nanoseconds.
        create_agent_ns: u64,
        /// Registering the regions, nanoseconds.
        register_ns: u64,
        /// Writing the metadata, nanoseconds.
        export_ns: u64,
    },
    /// Both sides of a probe: what only they say to each other.
    Probe {
        /// What.
        word: Box<crate::doctor::probe::word::Word>,
    },
    /// Both: the run is over, in order.
    Bye,
    /// Both: the run is over, because of this.
    Abort {
        /// Why.
        failure: Failure,
    },
}

/// Who speaks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Version of the program.
    pub(crate) program: String,
    /// Identity of the running kernel: equal on both sides when they share a host.
    pub(crate) boot_id: String,
    /// Process id.
    pub(crate) pid: u32,
    /// What this side is: `initiator` or `target`; between a conductor and its processes `conductor` or `player`; of a probe
    /// `prober` or `listener`.
    pub(crate) role: String,
    /// Its host.
    pub(crate) environment: Environment,
    /// The same at length.
    pub(crate) fingerprint: Box<Fingerprint>,
}

/// A block that arrived wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Wound {
    /// Case.
    pub(crate) case: u32,
    /// Round.
    pub(crate) round: u32,
    /// Index of the block among all blocks of the case.
    pub(crate) block: u64,
    /// What it looks like.
    pub(crate) damage: Damage,
}

/// Why bytes from the peer make no sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ProtocolError {
    /// The peer is something else altogether.
    NotKvrail,
    /// The peer speaks another version.
    Version(u16),
    /// A frame of an unknown kind.
    Kind(u8),
    /// A frame longer than its kind allows.
    TooLong { kind: u8, len: u32 },
    /// A message that does not parse.
    Malformed(String),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKvrail => f.write_str("is no kvrail bench"),
            Self::Version(v) => {
                write!(f, "speaks version {v} of the bench protocol, this program version {VERSION}")
            }
            Self::Kind(kind) => write!(f, "sent a frame of unknown kind {kind}"),
            Self::TooLong { kind, len } => {
                write!(f, "sent a frame of kind {kind} with {len} bytes, beyond its limit")
            }
            Self::Malformed(why) => write!(f, "sent a message that does not parse: {why}"),
        }
    }
}

/// What each side sends first.
pub(crate) fn preamble() -> [u8; PREAMBLE_BYTES] {
    let mut out = [0; PREAMBLE_BYTES];
    out[..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out
}

/// Judges what the peer sent first.
///
/// # Errors
/// When it is no kvrail, or one of another version.
pub(crate) fn check_preamble(bytes: &[u8; PREAMBLE_BYTES]) -> Result<(), ProtocolError> {
    if bytes[..4] != MAGIC {
        return Err(ProtocolError::NotKvrail);
    }
    match u16::from_le_bytes([bytes[4], bytes[5]]) {
        VERSION => Ok(()),
        other => Err(ProtocolError::Version(other)),
    }
}

const KIND_BEAT: u8 = 0;
const KIND_MESSAGE: u8 = 1;
const KIND_BLOB: u8 = 2;

/// Kind and payload length of the frame that a header announces.
fn check_header(header: [u8; HEADER_BYTES]) -> Result<(u8, u32), ProtocolError> {
    let [a, b, c, d, kind] = header;
    let len = u32::from_le_bytes([a, b, c, d]);
    let limit = match kind {
        KIND_BEAT => 0,
        KIND_MESSAGE => MESSAGE_BYTES_MAX,
        KIND_BLOB => BLOB_BYTES_MAX,
        other => return Err(ProtocolError::Kind(other)),
    };
    if len > limit {
        return Err(ProtocolError::TooLong { kind, len });
    }
    Ok((kind, len))
}

/// The bytes of a frame.
///
/// # Errors
/// When it is longer than the peer accepts.
pub(crate) fn encode(frame: &Frame) -> Result<Vec<u8>, ProtocolError> {
    let (kind, payload) = match frame {
        Frame::Beat => (KIND_BEAT, Vec::new()),
        Frame::Message(message) => {
            (KIND_MESSAGE, serde_json::to_vec(message).map_err(|e| ProtocolError::Malformed(e.to_string()))?)
        }
        Frame::Blob(bytes) => (KIND_BLOB, bytes.clone()),
    };
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut out = len.to_le_bytes().to_vec();
    out.push(kind);
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&out);
    check_header(header)?;
    out.extend_from_slice(&payload);
    Ok(out)
}

/// Reads one frame.
///
/// # Errors
/// What the socket says, or [`io::ErrorKind::InvalidData`] around a [`ProtocolError`].
pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<Frame> {
    let invalid = |e: ProtocolError| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    let mut header = [0; HEADER_BYTES];
    from.read_exact(&mut header)?;
    let (kind, len) = check_header(header).map_err(invalid)?;
    let mut payload = Vec::new();
    // `take` grows the buffer with what really arrives, not with what was announced.
    if from.take(u64::from(len)).read_to_end(&mut payload)? < len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match kind {
        KIND_BEAT => Ok(Frame::Beat),
        KIND_BLOB => Ok(Frame::Blob(payload)),
        _ => serde_json::from_slice(&payload)
            .map(Frame::Message)
            .map_err(|e| invalid(ProtocolError::Malformed(e.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pattern::DamageKind;

    fn messages() -> Vec<Message> {
        let damage = Damage {
            offset: 1,
            region_offset: 2,
            expected: 3,
            found: 4,
            bad_bytes: 5,
            kind: DamageKind::Swapped { block: 9, stale: None },
        };
        vec![
            Message::Reset { round: 3 },
            Message::Settled {
                cpu_ns: 5,
                damage: Some(Wound { case: 0, round: 3, block: 7, damage }),
                late_ns: 0,
            },
            Message::Closed { stray: None },
            Message::Abort { failure: Failure::environment("no memory").hint("free some") },
            Message::Bye,
        ]
    }

    #[test]
    fn frames_survive_the_wire() {
        let mut wire = Vec::new();
        let mut frames: Vec<Frame> = messages().into_iter().map(Frame::Message).collect();
        frames.push(Frame::Beat);
        frames.push(Frame::Blob(vec![7; 100_000]));
        for frame in &frames {
            wire.extend(encode(frame).unwrap());
        }
        let mut from = wire.as_slice();
        for frame in &frames {
            assert_eq!(&read_frame(&mut from).unwrap(), frame);
        }
        assert_eq!(read_frame(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn other_programs_and_other_versions_are_told_apart() {
        assert_eq!(check_preamble(&preamble()), Ok(()));
        assert_eq!(check_preamble(b"HTTP/1.1"), Err(ProtocolError::NotKvrail));
        assert_eq!(check_preamble(b"KVRB\x07\x01\0\0"), Err(ProtocolError::Version(263)));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        for (kind, limit) in [(KIND_BEAT, 0), (KIND_MESSAGE, MESSAGE_BYTES_MAX), (KIND_BLOB, BLOB_BYTES_MAX)]
        {
            let mut wire = (limit + 1).to_le_bytes().to_vec();
            wire.push(kind);
            let error = read_frame(&mut wire.as_slice()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(encode(&Frame::Blob(vec![0; BLOB_BYTES_MAX as usize + 1])).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut from = bytes.as_slice();
            while read_frame(&mut from).is_ok() {}
        }

        #[test]
        fn damaged_messages_never_panic(which in 0usize..5, at in any::<prop::sample::Index>(), byte: u8) {
            let mut wire = encode(&Frame::Message(messages()[which].clone())).unwrap();
            let at = at.index(wire.len());
            wire[at] = byte;
            let _ = read_frame(&mut wire.as_slice());
        }
    }
}
