//! What can go wrong with the service; errors of joining and of a group are with their operations.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::limits::{RUN_BYTES_MAX, RUN_KEYS_MAX};
use crate::member::Member;

/// How a member was lost.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Loss {
    /// Its lease ran out or its connection ended without a word: it died, was killed, or its host is unreachable.
    Vanished,
    /// Another process has its seat now.
    Replaced {
        /// Who.
        by: Box<Member>,
    },
    /// It said that it could not go on.
    GaveUp {
        /// Its words.
        reason: String,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vanished => f.write_str("died or lost its connection"),
            Self::Replaced { by } => write!(f, "was replaced by {} pid {}", by.host, by.pid),
            Self::GaveUp { reason } => write!(f, "gave up: {reason}"),
        }
    }
}

/// Why the service that a group meets over cannot be used. No text here contains a password, a token or a key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Nothing answers there.
    #[error("{endpoint} is unreachable: {detail}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// What the connection attempt said.
        detail: String,
    },
    /// etcd answers, and says that it is not well.
    #[error("{endpoint} is unhealthy: {detail}")]
    Unhealthy {
        /// Where.
        endpoint: String,
        /// What it said.
        detail: String,
    },
    /// Something else answers.
    #[error("{endpoint} is not {expected}: {detail}")]
    NotTheService {
        /// Where.
        endpoint: String,
        /// What was looked for.
        expected: &'static str,
        /// What it said.
        detail: String,
    },
    /// `http://` was asked for, and the server speaks TLS.
    #[error("{endpoint} was asked in plain text, but it speaks TLS")]
    TlsExpected {
        /// Where.
        endpoint: String,
    },
    /// `https://` was asked for, and the server speaks plain text.
    #[error("{endpoint} was asked for TLS, but it speaks plain text")]
    PlainExpected {
        /// Where.
        endpoint: String,
    },
    /// The server's certificate does not convince.
    #[error("the certificate of {endpoint} is not accepted: {detail}")]
    ServerCertificate {
        /// Where.
        endpoint: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The server wants a client's certificate, or another one.
    #[error("{endpoint} does not accept {}: {detail}", if *.given { "the client certificate" } else { "clients without a certificate" })]
    ClientCertificate {
        /// Where.
        endpoint: String,
        /// Whether one was given.
        given: bool,
        /// What the server said.
        detail: String,
    },
    /// TLS failed otherwise.
    #[error("TLS with {endpoint} failed: {detail}")]
    Tls {
        /// Where.
        endpoint: String,
        /// What failed.
        detail: String,
    },
    /// A file of the TLS configuration cannot be used.
    #[error("{what} {}: {detail}", .path.display())]
    TlsFile {
        /// What it was to be: `CA certificates`, `client certificate`, `client key`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The server wants to know who asks.
    #[error("{endpoint} requires authentication, and no user was given")]
    AuthenticationNeeded {
        /// Where.
        endpoint: String,
    },
    /// The server does not take this user and password.
    #[error("{endpoint} does not accept user \"{user}\" with the given password")]
    AuthenticationDenied {
        /// Where.
        endpoint: String,
        /// Who.
        user: String,
    },
    /// The user may not touch the run's keys.
    #[error("{endpoint} does not permit {} to read and write {prefix}", match .user { Some(user) => format!("user \"{user}\""), None => "clients without a user".into() })]
    PermissionDenied {
        /// Where.
        endpoint: String,
        /// Who, if anyone.
        user: Option<String>,
        /// The run's keys.
        prefix: String,
    },
    /// No endpoint of several can be used.
    #[error("none of {} endpoints can be used: {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoneUsable(Vec<ServiceError>),
    /// The service was there and is no longer.
    #[error("the connection with {endpoint} is lost: {detail}")]
    Lost {
        /// Where.
        endpoint: String,
        /// What was seen.
        detail: String,
    },
    /// The service took this member for dead, or another process took its seat.
    #[error("{endpoint} no longer knows this member: its lease ended or another process took its seat")]
    Expired {
        /// Where.
        endpoint: String,
    },
    /// The service refuses.
    #[error("{endpoint} refuses: {detail}")]
    Refused {
        /// Where.
        endpoint: String,
        /// Its words.
        detail: String,
    },
    /// The service does not answer in time.
    #[error("{endpoint} did not {doing} within {waited:.1?}")]
    Deadline {
        /// Where.
        endpoint: String,
        /// What was awaited of it.
        doing: &'static str,
        /// Time spent.
        waited: Duration,
    },
    /// The run's values are more than a member mirrors.
    #[error(
        "the run has {keys} values of {bytes} bytes; at most {RUN_KEYS_MAX} of {RUN_BYTES_MAX} bytes are allowed"
    )]
    TooMuch {
        /// Values seen.
        keys: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// This process cannot run the service's client.
    #[error("cannot {doing}: {detail}")]
    Local {
        /// What failed.
        doing: &'static str,
        /// What the system said.
        detail: String,
    },
}

impl ServiceError {
    /// Whether the same call may succeed later without a change of configuration.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Unhealthy { .. }
            | Self::Lost { .. }
            | Self::Expired { .. }
            | Self::Deadline { .. } => true,
            Self::NoneUsable(all) => all.iter().any(Self::is_retryable),
            _ => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Unreachable { .. } => {
                "check that it runs, the address and port, and that no firewall is between"
            }
            Self::Unhealthy { .. } => {
                "see `etcdctl endpoint health` and etcd's log: a cluster without a leader, or out of space"
            }
            Self::NotTheService { .. } => "check the address and port",
            Self::TlsExpected { .. } => "write https:// and give the CA's certificate",
            Self::PlainExpected { .. } => "write http://",
            Self::ServerCertificate { .. } => {
                "give the certificate of the CA that signed it, and the name that it was made for"
            }
            Self::ClientCertificate { given: false, .. } => "give a client certificate and its key",
            Self::ClientCertificate { given: true, .. } => {
                "give one that a CA of the server signed for clients"
            }
            Self::AuthenticationNeeded { .. } => "give a user and a password",
            Self::AuthenticationDenied { .. } => "check user and password",
            Self::PermissionDenied { .. } => "have the role granted read and write on this prefix",
            Self::NoneUsable(all) => {
                let mut hints: Vec<String> = all.iter().flat_map(Self::hints).collect();
                hints.dedup();
                return hints;
            }
            _ => return Vec::new(),
        };
        vec![hint.into()]
    }
}
