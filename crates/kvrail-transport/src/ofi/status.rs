//! What a provider's error codes mean: for the engine an [`OpError`], for people a sentence.
//!
//! The tables are facts about devices and kernels; `docs/ofi-status.md` lists them, and a test holds the two together.

use std::fmt::{self, Write as _};

use kvrail_core::transport::OpError;

/// Whose codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// `efa-direct` and `efa`: the device's completion status, and from 4,096 on the `efa` provider's own.
    Efa,
    /// `verbs`: the work completion's status (`enum ibv_wc_status`).
    Verbs,
    /// Every other: libfabric's error numbers, which are the operating system's and some more from 256 on.
    Errno,
}

impl Family {
    /// Whose codes a provider reports.
    #[must_use]
    pub fn of(provider: &str) -> Self {
        match provider {
            "efa" | "efa-direct" => Self::Efa,
            "verbs" => Self::Verbs,
            _ => Self::Errno,
        }
    }
}

/// What an error says about more than its op.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// Nothing: others on the same route may succeed.
    Op,
    /// The way between these two rails.
    Route,
    /// The local rail.
    Rail,
    /// The peer's endpoint is gone. When all of its rails say so, its process is.
    Peer,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Op => "op",
            Self::Route => "route",
            Self::Rail => "rail",
            Self::Peer => "peer",
        })
    }
}

/// One code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// The code.
    pub code: u32,
    /// What the engine is told.
    pub error: OpError,
    /// What it says about more than its op.
    pub scope: Scope,
    /// A sentence without its full stop.
    pub meaning: &'static str,
}

/// An error entry of a completion queue, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Whose codes.
    pub family: Family,
    /// libfabric's error number, positive.
    pub errno: i32,
    /// The provider's own code.
    pub code: i32,
    /// What the engine is told.
    pub error: OpError,
    /// What it says about more than its op.
    pub scope: Scope,
    /// A sentence without its full stop.
    pub meaning: &'static str,
}

impl fmt::Display for Decoded {
    /// For logs: `status 7: the peer …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Family::Errno => write!(f, "error {}: {}", self.errno, self.meaning),
            _ => write!(f, "status {}: {} (error {})", self.code, self.meaning, self.errno),
        }
    }
}

const fn status(code: u32, error: OpError, scope: Scope, meaning: &'static str) -> Status {
    Status { code, error, scope, meaning }
}

/// Completion statuses of EFA devices, then the `efa` provider's own codes.
pub const EFA: &[Status] = &[
    status(1, OpError::Flushed, Scope::Op, "taken back when this side's queue pair was destroyed"),
    status(2, OpError::RailDown, Scope::Rail, "this side's queue pair failed inside the device"),
    status(3, OpError::Fault(libc::EOPNOTSUPP), Scope::Op, "this side's device does not know the operation"),
    status(4, OpError::Unreachable, Scope::Route, "this side's address handle for the peer is not valid"),
    status(
        5,
        OpError::Fault(libc::EFAULT),
        Scope::Op,
        "this side's memory is not registered, or not for that use or range",
    ),
    status(6, OpError::Fault(libc::EMSGSIZE), Scope::Op, "longer than this side's device takes"),
    status(
        7,
        OpError::BadKey,
        Scope::Op,
        "the peer's device knows no registration with that key, range and right",
    ),
    status(8, OpError::Unreachable, Scope::Route, "the peer's device ended the connection"),
    status(
        9,
        OpError::Unreachable,
        Scope::Peer,
        "the peer's queue pair is gone: its process ended, or replaced its endpoint",
    ),
    status(
        10,
        OpError::ReceiverNotReady,
        Scope::Op,
        "the peer has no receive posted, after the device's own retries",
    ),
    status(11, OpError::Fault(libc::EMSGSIZE), Scope::Op, "the peer's receive is shorter than the message"),
    status(
        12,
        OpError::Unknown(12),
        Scope::Route,
        "the peer's device answered with a status that has no meaning here",
    ),
    status(13, OpError::Unresponsive, Scope::Route, "the peer's device no longer answers; it did before"),
    status(
        14,
        OpError::Unreachable,
        Scope::Route,
        "the peer has not inserted this side's address, which RDMA needs",
    ),
    status(15, OpError::Unreachable, Scope::Route, "the peer's device has never answered"),
    status(18, OpError::Unreachable, Scope::Route, "the peer's device lacks a feature that this side's uses"),
    status(4096, OpError::Unknown(4096), Scope::Op, "the efa provider gives no reason"),
    status(
        4097,
        OpError::Unknown(4097),
        Scope::Route,
        "the peer sent a packet of a kind that is no longer used",
    ),
    status(4098, OpError::Unknown(4098), Scope::Route, "the peer sent a packet of an invalid kind"),
    status(
        4099,
        OpError::Unknown(4099),
        Scope::Route,
        "the peer sent a packet of an unknown kind: another libfabric release?",
    ),
    status(4100, OpError::RailDown, Scope::Rail, "a packet could not be posted to this side's device"),
    status(4101, OpError::RailDown, Scope::Rail, "a packet could not be sent by this side's device"),
    status(4102, OpError::Unknown(4102), Scope::Op, "a message's first packet could not be taken in"),
    status(4103, OpError::Unknown(4103), Scope::Op, "a tagged message's first packet could not be taken in"),
    status(4104, OpError::Unknown(4104), Scope::Op, "a packet came a second time"),
    status(4105, OpError::RailDown, Scope::Rail, "the efa provider ran out of memory"),
    status(
        4106,
        OpError::Unknown(4106),
        Scope::Op,
        "a registration of the provider's own could not be ended",
    ),
    status(4107, OpError::Unknown(4107), Scope::Op, "received bytes could not be copied to their place"),
    status(4108, OpError::Unknown(4108), Scope::Op, "the provider's receive entries are used up"),
    status(4109, OpError::Unknown(4109), Scope::Op, "the provider's send entries are used up"),
    status(4110, OpError::Unreachable, Scope::Route, "the peer's address could not be inserted"),
    status(4111, OpError::BadKey, Scope::Op, "the target of an emulated write is no registered memory"),
    status(4112, OpError::RailDown, Scope::Rail, "the provider could not post its own receives"),
    status(4113, OpError::Unreachable, Scope::Route, "the handshake with the peer could not be posted"),
    status(4114, OpError::RailDown, Scope::Rail, "requests could not be posted to the device's send queue"),
    status(
        4115,
        OpError::Fault(libc::EMSGSIZE),
        Scope::Op,
        "a message's length is not what its first packet said",
    ),
    status(4116, OpError::Unknown(4116), Scope::Op, "a read could not be posted"),
    status(4117, OpError::Unknown(4117), Scope::Op, "an RDMA read could not be posted to the device"),
    status(4118, OpError::Fault(libc::EINVAL), Scope::Op, "an invalid data type"),
    status(4119, OpError::Unknown(4119), Scope::Op, "a send's completion could not be written"),
    status(4120, OpError::Unknown(4120), Scope::Op, "a receive's completion could not be written"),
    status(
        4121,
        OpError::Unknown(4121),
        Scope::Op,
        "a datagram endpoint's completion queue could not be read",
    ),
    status(4122, OpError::Unknown(4122), Scope::Op, "the provider's own same-host path failed"),
    status(
        4123,
        OpError::Unknown(4123),
        Scope::Op,
        "a completion of the provider's own same-host path could not be written",
    ),
    status(
        4124,
        OpError::Unresponsive,
        Scope::Route,
        "the peer no longer answers; the connection had been made",
    ),
    status(
        4125,
        OpError::Unknown(4125),
        Scope::Route,
        "the peer sent a packet that a receive without copies cannot take",
    ),
    status(
        4126,
        OpError::Unreachable,
        Scope::Route,
        "the peer's device can be reached, and its process has not answered the handshake",
    ),
    status(
        4127,
        OpError::Unreachable,
        Scope::Route,
        "the peer closed its registration or endpoint while the operation was on its way",
    ),
];

/// Work completion statuses of verbs devices.
pub const VERBS: &[Status] = &[
    status(
        1,
        OpError::Fault(libc::EMSGSIZE),
        Scope::Op,
        "longer than this side's memory or the peer's receive",
    ),
    status(
        2,
        OpError::RailDown,
        Scope::Rail,
        "this side's queue pair is in a state that allows no such operation",
    ),
    status(3, OpError::RailDown, Scope::Rail, "this side's device failed inside"),
    status(
        4,
        OpError::Fault(libc::EFAULT),
        Scope::Op,
        "this side's memory is not registered, or not for that use or range",
    ),
    status(5, OpError::Flushed, Scope::Op, "taken back: the queue pair had failed before"),
    status(6, OpError::Fault(libc::EACCES), Scope::Op, "a memory window could not be bound"),
    status(7, OpError::Unreachable, Scope::Route, "the peer's device answered with what makes no sense"),
    status(
        8,
        OpError::Fault(libc::EFAULT),
        Scope::Op,
        "this side's memory refused what the peer's device wrote",
    ),
    status(9, OpError::Fault(libc::EINVAL), Scope::Op, "the peer's device refused the request as invalid"),
    status(
        10,
        OpError::BadKey,
        Scope::Op,
        "the peer's device knows no registration with that key, range and right",
    ),
    status(11, OpError::Unknown(11), Scope::Route, "the peer's device could not complete the operation"),
    status(12, OpError::Unresponsive, Scope::Route, "no acknowledgement, after the device's own retries"),
    status(
        13,
        OpError::ReceiverNotReady,
        Scope::Op,
        "the peer has no receive posted, after the device's own retries",
    ),
    status(14, OpError::Unreachable, Scope::Route, "the peer is in another reliable datagram domain"),
    status(
        15,
        OpError::Fault(libc::EINVAL),
        Scope::Op,
        "the peer's device refused a reliable datagram request",
    ),
    status(
        16,
        OpError::Unreachable,
        Scope::Peer,
        "the peer ended the operation: its queue pair is gone or failed",
    ),
    status(17, OpError::Unreachable, Scope::Route, "an invalid end-to-end context number"),
    status(
        18,
        OpError::Unreachable,
        Scope::Route,
        "an end-to-end context in a state that allows no operation",
    ),
    status(19, OpError::RailDown, Scope::Rail, "this side's device failed for good"),
    status(20, OpError::Unresponsive, Scope::Route, "the peer took too long to answer"),
    status(21, OpError::Unknown(21), Scope::Op, "the device gives no reason"),
];

/// libfabric's error numbers. Those below 256 are Linux's.
pub const ERRNO: &[Status] = &[
    status(
        1,
        OpError::Denied(libc::EPERM),
        Scope::Op,
        "the kernel forbids access to the peer's memory (ptrace rules)",
    ),
    status(3, OpError::Unreachable, Scope::Peer, "the peer's process is gone"),
    status(5, OpError::Unknown(5), Scope::Route, "input or output failed, no reason is given"),
    status(12, OpError::RailDown, Scope::Rail, "out of memory, or of memory that may be locked"),
    status(13, OpError::Denied(libc::EACCES), Scope::Op, "access to the peer's memory is denied"),
    status(14, OpError::Fault(libc::EFAULT), Scope::Op, "an address at either end is not mapped"),
    status(19, OpError::RailDown, Scope::Rail, "the device is gone"),
    status(22, OpError::Fault(libc::EINVAL), Scope::Op, "refused as invalid"),
    status(32, OpError::Unreachable, Scope::Route, "the peer has closed the connection"),
    status(90, OpError::Fault(libc::EMSGSIZE), Scope::Op, "longer than a message can be"),
    status(95, OpError::Fault(libc::EOPNOTSUPP), Scope::Op, "the provider does not know the operation"),
    status(100, OpError::RailDown, Scope::Rail, "the network interface is down"),
    status(101, OpError::Unreachable, Scope::Route, "no route to the peer's network"),
    status(103, OpError::Unresponsive, Scope::Route, "the connection was given up"),
    status(104, OpError::Unreachable, Scope::Route, "the peer reset the connection"),
    status(105, OpError::RailDown, Scope::Rail, "no buffers left"),
    status(107, OpError::Unreachable, Scope::Route, "there is no connection to the peer"),
    status(108, OpError::Unreachable, Scope::Route, "the connection is shut down"),
    status(110, OpError::Unresponsive, Scope::Route, "the peer has not answered in time"),
    status(111, OpError::Unreachable, Scope::Peer, "nobody listens at the peer's address"),
    status(112, OpError::Unreachable, Scope::Route, "the peer's host is down"),
    status(113, OpError::Unreachable, Scope::Route, "no route to the peer's host"),
    status(121, OpError::Unknown(121), Scope::Route, "the peer's side failed, no reason is given"),
    status(125, OpError::Flushed, Scope::Op, "taken back when this side's endpoint was closed"),
    status(129, OpError::BadKey, Scope::Op, "the peer refused the key"),
    status(256, OpError::Unknown(256), Scope::Op, "the provider gives no reason"),
    status(257, OpError::Fault(libc::EMSGSIZE), Scope::Op, "a buffer is too small"),
    status(258, OpError::RailDown, Scope::Rail, "the endpoint is in a state that allows no such operation"),
    status(264, OpError::Unknown(264), Scope::Op, "a checksum did not match"),
    status(
        265,
        OpError::Fault(libc::EMSGSIZE),
        Scope::Op,
        "cut off: the peer's receive is shorter than the message",
    ),
    status(266, OpError::BadKey, Scope::Op, "the peer knows no such key"),
    status(267, OpError::RailDown, Scope::Rail, "the endpoint has no address vector"),
    status(268, OpError::RailDown, Scope::Rail, "a queue overran and entries are lost"),
    status(269, OpError::ReceiverNotReady, Scope::Op, "the peer has no receive posted"),
    status(270, OpError::BadKey, Scope::Op, "the peer has no such registration"),
];

/// Each family with its codes and a title for people.
pub const FAMILIES: [(Family, &str, &[Status]); 3] = [
    (Family::Efa, "`efa-direct` and `efa`: `prov_errno`", EFA),
    (Family::Verbs, "`verbs`: `prov_errno`, the work completion's status", VERBS),
    (Family::Errno, "`tcp`, `shm` and others: `err`", ERRNO),
];

fn find(table: &'static [Status], code: i32) -> Option<&'static Status> {
    let code = code.unsigned_abs();
    table.binary_search_by_key(&code, |status| status.code).ok().map(|at| &table[at])
}

/// Understands an error entry of a completion queue: `err` and `prov_errno` as they come, whatever their sign.
#[must_use]
pub fn decode(family: Family, err: i32, prov_errno: i32) -> Decoded {
    let errno = err.checked_abs().unwrap_or(i32::MAX);
    let code = prov_errno.checked_abs().unwrap_or(i32::MAX);
    // What was cancelled was cancelled, whatever the provider's code says besides.
    let known = if errno == libc::ECANCELED {
        find(ERRNO, errno)
    } else {
        match family {
            Family::Efa => find(EFA, code).or_else(|| find(ERRNO, errno)),
            Family::Verbs => find(VERBS, code).or_else(|| find(ERRNO, errno)),
            Family::Errno => find(ERRNO, errno),
        }
    };
    let unknown = if family == Family::Errno || code == 0 { errno } else { code };
    match known {
        Some(&Status { error, scope, meaning, .. }) => Decoded { family, errno, code, error, scope, meaning },
        None => Decoded {
            family,
            errno,
            code,
            error: OpError::Unknown(unknown.unsigned_abs()),
            scope: Scope::Op,
            meaning: "a code that this version of kvrail does not know",
        },
    }
}

/// The tables as they stand in `docs/ofi-status.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(DOCUMENT_HEAD);
    for (_, title, table) in FAMILIES {
        let _ = write!(
            text,
            "\n## {title}\n\n| code | meaning | the engine is told | concerns |\n|---|---|---|---|\n"
        );
        for Status { code, error, scope, meaning } in table {
            let _ = writeln!(text, "| {code} | {meaning} | {} | {scope} |", kind(*error));
        }
    }
    text
}

const DOCUMENT_HEAD: &str = "\
# Error codes of libfabric's providers

What kvrail makes of the error entries of a completion queue. Logs say `status 7: …` with the sentence below. What the engine
is told decides what happens: *retried* is repeated on another route; the others end the transfer with that error. The last
column says what else the code concerns: the `op` alone, the `route` (these two rails), the local `rail`, or the `peer`, whose
process is taken for gone when every one of its rails says so. Codes that are not listed are *unknown*, retried.

A test holds this page and the tables in `crates/kvrail-transport/src/ofi/status.rs` together.
";

fn kind(error: OpError) -> String {
    let name = match error {
        OpError::BadKey => "bad key".into(),
        OpError::PeerRestarted => "peer restarted".into(),
        OpError::ReceiverNotReady => "receiver not ready".into(),
        OpError::Unresponsive => "unresponsive".into(),
        OpError::Unreachable => "unreachable".into(),
        OpError::RailDown => "rail down".into(),
        OpError::Flushed => "taken back".into(),
        OpError::Denied(errno) => format!("denied ({errno})"),
        OpError::Fault(errno) => format!("fault ({errno})"),
        _ => "unknown".to_string(),
    };
    if error.is_retryable() { format!("{name}, retried") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_page_lists_exactly_the_tables() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ofi-status.md");
        if std::env::var_os("KVRAIL_WRITE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == markdown(),
            "write it with KVRAIL_WRITE_DOCS=1 cargo test -p kvrail-transport the_page"
        );
    }

    #[test]
    fn codes_are_sorted_and_each_has_a_sentence() {
        for (family, _, table) in FAMILIES {
            assert!(table.windows(2).all(|pair| pair[0].code < pair[1].code), "{family:?}");
            for status in table {
                assert!(!status.meaning.is_empty() && !status.meaning.ends_with('.'), "{}", status.code);
                assert_eq!(decode(family, 5, status.code as i32).family, family);
                if let OpError::Unknown(code) = status.error {
                    assert_eq!(code, status.code);
                }
            }
        }
    }

    #[test]
    fn what_the_engine_acts_upon_is_told_apart() {
        let of = |provider: &str, err: i32, code: i32| {
            let decoded = decode(Family::of(provider), err, code);
            (decoded.error, decoded.scope)
        };
        assert_eq!(of("efa-direct", libc::EINVAL, 7), (OpError::BadKey, Scope::Op));
        assert_eq!(of("efa-direct", libc::ENOTCONN, 9), (OpError::Unreachable, Scope::Peer));
        assert_eq!(of("efa", 269, 10), (OpError::ReceiverNotReady, Scope::Op));
        assert_eq!(of("efa", libc::ECONNABORTED, 13), (OpError::Unresponsive, Scope::Route));
        assert_eq!(of("efa-direct", libc::ENOTCONN, 14), (OpError::Unreachable, Scope::Route));
        assert_eq!(of("efa", libc::ECONNABORTED, 4_124), (OpError::Unresponsive, Scope::Route));
        assert_eq!(of("efa", libc::EIO, 2), (OpError::RailDown, Scope::Rail));
        assert_eq!(of("verbs", libc::EIO, 10), (OpError::BadKey, Scope::Op));
        assert_eq!(of("tcp", libc::ECONNREFUSED, 0), (OpError::Unreachable, Scope::Peer));
        assert_eq!(of("shm", -libc::EPERM, -libc::EPERM), (OpError::Denied(libc::EPERM), Scope::Op));
        // What was cancelled is flushed, whatever else is said.
        for provider in ["efa", "efa-direct", "verbs", "tcp", "others"] {
            assert_eq!(of(provider, libc::ECANCELED, 7), (OpError::Flushed, Scope::Op), "{provider}");
        }
    }

    #[test]
    fn codes_nobody_knows_keep_their_number() {
        assert_eq!(decode(Family::Efa, 9_999, 777).error, OpError::Unknown(777));
        assert_eq!(
            decode(Family::Efa, libc::ETIMEDOUT, 777).error,
            OpError::Unresponsive,
            "its errno is known"
        );
        assert_eq!(decode(Family::Errno, 9_999, 3).error, OpError::Unknown(9_999));
        let text = decode(Family::Efa, 107, 9).to_string();
        assert_eq!(
            text,
            "status 9: the peer's queue pair is gone: its process ended, or replaced its endpoint (error 107)"
        );
        assert_eq!(decode(Family::Errno, 110, 0).to_string(), "error 110: the peer has not answered in time");
    }

    proptest! {
        #[test]
        fn any_numbers_are_understood(err: i32, code: i32) {
            for (family, ..) in FAMILIES {
                let decoded = decode(family, err, code);
                prop_assert!(!decoded.to_string().is_empty() && decoded.errno >= 0 && decoded.code >= 0);
            }
        }
    }
}
