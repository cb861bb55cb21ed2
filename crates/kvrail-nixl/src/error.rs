//! What went wrong, in NIXL's terms: a status that callers tell apart, and what they need to mend it.

use std::fmt;

use kvrail::Hints;

macro_rules! statuses {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)+) => {
        /// NIXL's error statuses: what a caller may do about an error.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[non_exhaustive]
        pub enum Status {
            $($(#[$doc])* $variant,)+
        }

        impl Status {
            /// All of them, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// NIXL's number for it, negative.
            #[must_use]
            pub const fn code(self) -> i32 {
                match self { $(Self::$variant => $code,)+ }
            }

            /// NIXL's name for it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

statuses! {
    /// The request was never posted.
    NotPosted = -1, "NIXL_ERR_NOT_POSTED";
    /// An argument is impossible.
    InvalidParam = -2, "NIXL_ERR_INVALID_PARAM";
    /// The transport below failed or refused.
    Backend = -3, "NIXL_ERR_BACKEND";
    /// What was named is not known here.
    NotFound = -4, "NIXL_ERR_NOT_FOUND";
    /// Bytes from outside are not what they should be.
    Mismatch = -5, "NIXL_ERR_MISMATCH";
    /// Not in this state.
    NotAllowed = -6, "NIXL_ERR_NOT_ALLOWED";
    /// The request is in flight.
    RepostActive = -7, "NIXL_ERR_REPOST_ACTIVE";
    /// Anything else.
    Unknown = -8, "NIXL_ERR_UNKNOWN";
    /// The backend cannot do that.
    NotSupported = -9, "NIXL_ERR_NOT_SUPPORTED";
    /// The peer is gone.
    RemoteDisconnect = -10, "NIXL_ERR_REMOTE_DISCONNECT";
    /// The transfer was cancelled.
    Cancelled = -11, "NIXL_ERR_CANCELED";
    /// Telemetry was not asked for.
    NoTelemetry = -12, "NIXL_ERR_NO_TELEMETRY";
}

/// An error: its status, what happened, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// What a program tells it by.
    pub status: Status,
    /// What happened, where, to what.
    pub what: String,
    /// What to do.
    pub hints: Vec<String>,
}

impl Error {
    /// An error without advice.
    pub fn new(status: Status, what: impl Into<String>) -> Self {
        Self { status, what: what.into(), hints: Vec::new() }
    }

    /// The same with one more piece of advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// What an error of the library says, under a status of NIXL's.
    pub fn told(status: Status, error: &(impl fmt::Display + Hints)) -> Self {
        Self { status, what: error.to_string(), hints: error.hints() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.name(), self.what)?;
        self.hints.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

impl std::error::Error for Error {}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
