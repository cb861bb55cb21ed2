//! What UCX says of a call: a status with its meaning.

use std::fmt;

use super::abi::{self, ucs_status_t};

/// A status that is a failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(ucs_status_t);

impl Status {
    /// The peer is gone, or did not answer a check of the connection.
    pub const ENDPOINT_TIMEOUT: Self = Self(abi::UCS_ERR_ENDPOINT_TIMEOUT);
    /// The peer closed the connection, or died.
    pub const CONNECTION_RESET: Self = Self(abi::UCS_ERR_CONNECTION_RESET);
    /// Taken back by this side.
    pub const CANCELED: Self = Self(abi::UCS_ERR_CANCELED);
    /// It took longer than it may.
    pub const TIMED_OUT: Self = Self(abi::UCS_ERR_TIMED_OUT);
    /// There is no connection any more.
    pub const NOT_CONNECTED: Self = Self(abi::UCS_ERR_NOT_CONNECTED);
    /// This UCX cannot do it.
    pub const UNSUPPORTED: Self = Self(abi::UCS_ERR_UNSUPPORTED);
    /// An argument is wrong.
    pub const INVALID_PARAM: Self = Self(abi::UCS_ERR_INVALID_PARAM);

    /// A call's result.
    ///
    /// # Errors
    /// When it is negative. `UCS_INPROGRESS` is none.
    pub const fn check(result: ucs_status_t) -> Result<(), Self> {
        if result < 0 { Err(Self(result)) } else { Ok(()) }
    }

    /// The status that a refusal carries; `UCS_ERR_LAST` for what is none.
    pub(super) fn of_pointer(at: abi::ucs_status_ptr_t) -> Self {
        // The pointer is the status, widened with its sign.
        let value = at.addr().cast_signed();
        Self(ucs_status_t::try_from(value).unwrap_or(abi::UCS_ERR_LAST))
    }

    /// The number, negative.
    #[must_use]
    pub const fn code(self) -> i8 {
        self.0
    }

    /// UCX's name of it, without `UCS_ERR_`; none for a number that it has no name for.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        WORDS.iter().find(|(code, ..)| *code == self.0).map(|(_, name, _)| *name)
    }

    /// What it means.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        if let Some((.., meaning)) = WORDS.iter().find(|(code, ..)| *code == self.0) {
            return meaning;
        }
        match self.0 {
            abi::UCS_ERR_LAST_LINK_FAILURE..=abi::UCS_ERR_FIRST_LINK_FAILURE => "a link failed",
            abi::UCS_ERR_LAST_ENDPOINT_FAILURE..=abi::UCS_ERR_FIRST_ENDPOINT_FAILURE => "the endpoint failed",
            _ => "a status that UCX has no name for",
        }
    }

    /// Whether the peer, or the way to it, is what failed.
    #[must_use]
    pub fn is_of_the_peer(self) -> bool {
        matches!(
            self.0,
            abi::UCS_ERR_IO_ERROR
                | abi::UCS_ERR_UNREACHABLE
                | abi::UCS_ERR_SOME_CONNECTS_FAILED
                | abi::UCS_ERR_TIMED_OUT
                | abi::UCS_ERR_REJECTED
                | abi::UCS_ERR_NOT_CONNECTED
                | abi::UCS_ERR_CONNECTION_RESET
                | abi::UCS_ERR_LAST_LINK_FAILURE..=abi::UCS_ERR_FIRST_LINK_FAILURE
                | abi::UCS_ERR_LAST_ENDPOINT_FAILURE..=abi::UCS_ERR_FIRST_ENDPOINT_FAILURE
        )
    }
}

/// Names as UCX has them, meanings as this project says them.
const WORDS: [(ucs_status_t, &str, &str); 26] = [
    (abi::UCS_ERR_NO_MESSAGE, "NO_MESSAGE", "no message is there"),
    (abi::UCS_ERR_NO_RESOURCE, "NO_RESOURCE", "a queue is full for now"),
    (abi::UCS_ERR_IO_ERROR, "IO_ERROR", "a device or the kernel refused the transfer"),
    (abi::UCS_ERR_NO_MEMORY, "NO_MEMORY", "no memory; often the memlock limit"),
    (abi::UCS_ERR_INVALID_PARAM, "INVALID_PARAM", "an argument is wrong"),
    (abi::UCS_ERR_UNREACHABLE, "UNREACHABLE", "no transport that both sides have leads to the peer"),
    (abi::UCS_ERR_INVALID_ADDR, "INVALID_ADDR", "an address is none"),
    (abi::UCS_ERR_NOT_IMPLEMENTED, "NOT_IMPLEMENTED", "the transport has no such operation"),
    (abi::UCS_ERR_MESSAGE_TRUNCATED, "MESSAGE_TRUNCATED", "a message is longer than its buffer"),
    (abi::UCS_ERR_NO_PROGRESS, "NO_PROGRESS", "nothing moved"),
    (abi::UCS_ERR_BUFFER_TOO_SMALL, "BUFFER_TOO_SMALL", "a buffer is too small"),
    (abi::UCS_ERR_NO_ELEM, "NO_ELEM", "there is no such setting or element"),
    (abi::UCS_ERR_SOME_CONNECTS_FAILED, "SOME_CONNECTS_FAILED", "some connections failed"),
    (abi::UCS_ERR_NO_DEVICE, "NO_DEVICE", "no device or transport of those that are allowed is here"),
    (abi::UCS_ERR_BUSY, "BUSY", "somebody else uses it"),
    (abi::UCS_ERR_CANCELED, "CANCELED", "taken back before it ended"),
    (abi::UCS_ERR_SHMEM_SEGMENT, "SHMEM_SEGMENT", "shared memory cannot be had; often a full /dev/shm"),
    (abi::UCS_ERR_ALREADY_EXISTS, "ALREADY_EXISTS", "it is there already"),
    (abi::UCS_ERR_OUT_OF_RANGE, "OUT_OF_RANGE", "a value is out of range"),
    (abi::UCS_ERR_TIMED_OUT, "TIMED_OUT", "it took too long"),
    (abi::UCS_ERR_EXCEEDS_LIMIT, "EXCEEDS_LIMIT", "a limit of the system is reached"),
    (abi::UCS_ERR_UNSUPPORTED, "UNSUPPORTED", "not supported with these transports"),
    (abi::UCS_ERR_REJECTED, "REJECTED", "the peer rejected the connection"),
    (abi::UCS_ERR_NOT_CONNECTED, "NOT_CONNECTED", "there is no connection to the peer any more"),
    (abi::UCS_ERR_CONNECTION_RESET, "CONNECTION_RESET", "the peer closed the connection or died"),
    (abi::UCS_ERR_ENDPOINT_TIMEOUT, "ENDPOINT_TIMEOUT", "the peer does not answer"),
];

impl fmt::Display for Status {
    /// As in `the peer closed the connection or died (UCS_ERR_CONNECTION_RESET, -25)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} (UCS_ERR_{name}, {})", self.meaning(), self.0),
            None => write!(f, "{} (UCX status {})", self.meaning(), self.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_words_and_none_panics() {
        for code in i8::MIN..0 {
            let status = Status::check(code).unwrap_err();
            assert_eq!(status.code(), code);
            assert!(status.to_string().contains(&code.to_string()), "{status}");
        }
        assert_eq!(
            Status::CONNECTION_RESET.to_string(),
            "the peer closed the connection or died (UCS_ERR_CONNECTION_RESET, -25)"
        );
        assert!(Status::ENDPOINT_TIMEOUT.is_of_the_peer() && !Status::UNSUPPORTED.is_of_the_peer());
        assert_eq!(Status::check(abi::UCS_INPROGRESS), Ok(()));
        assert_eq!(Status::check(-45).unwrap_err().to_string(), "a link failed (UCX status -45)");
    }

    #[test]
    fn a_refusal_is_told_from_a_request_as_the_headers_do() {
        let refusal = std::ptr::without_provenance_mut(usize::MAX - 24);
        assert!(abi::ucs_ptr_is_err(refusal) && !abi::ucs_ptr_is_ptr(refusal));
        assert_eq!(Status::of_pointer(refusal), Status::CONNECTION_RESET);
        let mut request = 0_u64;
        let request = std::ptr::from_mut(&mut request).cast();
        assert!(abi::ucs_ptr_is_ptr(request) && !abi::ucs_ptr_is_err(request));
        assert!(!abi::ucs_ptr_is_ptr(std::ptr::null_mut()) && !abi::ucs_ptr_is_err(std::ptr::null_mut()));
    }
}
