//! Backends: the names that callers of NIXL create, and what stands behind them here.
//!
//! `UCX` and `LIBFABRIC` are both kvrail: callers name one or the other by habit, and what carries the bytes is chosen by
//! configuration and said (KR-13). An agent that creates both has one [`kvrail::Agent`] below. `POSIX` moves between host memory and files.

use std::collections::BTreeMap;
use std::fmt;

use kvrail::{Progress, TransportConfig};

use crate::error::{Error, Result, Status};
use crate::list::MemoryKind;

/// A backend that can be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum BackendKind {
    /// kvrail, by the name of NIXL's backend over libfabric.
    Libfabric,
    /// Files.
    Posix,
    /// kvrail, by the name of NIXL's backend over UCX.
    Ucx,
}

/// Parameters of a backend: names and values as callers write them.
pub type Params = BTreeMap<String, String>;

/// Parameter: transports in order of preference, separated by commas.
pub const TRANSPORTS: &str = "transports";
/// Parameter: the provider of transport `ofi`.
pub const PROVIDER: &str = "provider";
/// Parameter: where transport `tcp` listens.
pub const TCP_LISTEN: &str = "tcp_listen";

/// Parameter: whether both sides' cores copy between processes of one host: twice as fast for large transfers, but with plain copies, which end the process
/// where memory was freed while it was registered. Without it the kernel copies, and says so.
pub const COOPERATE: &str = "cooperate";

/// Where transport `tcp` listens when nothing is said: peers are other hosts more often than not.
const TCP_LISTEN_DEFAULT: &str = "0.0.0.0:0";

impl BackendKind {
    /// All of them, by name.
    pub const ALL: [Self; 3] = [Self::Libfabric, Self::Posix, Self::Ucx];

    /// NIXL's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Libfabric => "LIBFABRIC",
            Self::Posix => "POSIX",
            Self::Ucx => "UCX",
        }
    }

    /// The backend of that name.
    ///
    /// # Errors
    /// [`Status::NotFound`], with the names that there are.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            let error = Error::new(
                Status::NotFound,
                format!("there is no backend \"{name}\"; kvrail answers to {}", known.join(", ")),
            );
            match Self::ALL.iter().find(|kind| kind.name().eq_ignore_ascii_case(name)) {
                Some(kind) => error.hint(format!("names are upper case: write {}", kind.name())),
                None => error,
            }
        })
    }

    /// Whether it reaches other agents.
    #[must_use]
    pub const fn is_network(self) -> bool {
        !matches!(self, Self::Posix)
    }

    /// The kinds of memory that it moves.
    #[must_use]
    pub const fn kinds(self) -> &'static [MemoryKind] {
        match self {
            Self::Libfabric | Self::Ucx => &[MemoryKind::Dram],
            Self::Posix => &[MemoryKind::Dram, MemoryKind::File],
        }
    }

    /// Its parameters and their defaults.
    #[must_use]
    pub fn params(self) -> Params {
        let network = [
            (TRANSPORTS, "auto"),
            (PROVIDER, "auto"),
            (TCP_LISTEN, TCP_LISTEN_DEFAULT),
            (COOPERATE, "false"),
        ];
        let pairs: &[(&str, &str)] = match self {
            Self::Libfabric | Self::Ucx => &network,
            Self::Posix => crate::files::PARAMS,
        };
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct BackendSet(u8);

impl BackendSet {
    /// None.
    pub const NONE: Self = Self(0);

    /// One.
    #[must_use]
    pub const fn of(kind: BackendKind) -> Self {
        Self(kind.bit())
    }

    /// From [`BackendSet::bits`] of another agent; none when there are bits that mean nothing.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        let known = BackendKind::ALL.iter().fold(0, |all, kind| all | kind.bit());
        (bits & !known == 0).then_some(Self(bits))
    }

    /// As a number, for metadata.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether that one is in.
    #[must_use]
    pub const fn has(self, kind: BackendKind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in the first but not in the second.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those that reach other agents.
    #[must_use]
    pub fn network(self) -> Self {
        self.iter().filter(|kind| kind.is_network()).collect()
    }

    /// They.
    pub fn iter(self) -> impl Iterator<Item = BackendKind> {
        BackendKind::ALL.into_iter().filter(move |kind| self.has(*kind))
    }
}

impl FromIterator<BackendKind> for BackendSet {
    fn from_iter<I: IntoIterator<Item = BackendKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, |set, kind| set.or(Self::of(kind)))
    }
}

impl fmt::Display for BackendSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(BackendKind::name).collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(", "))
    }
}

/// Parameters that callers pass to NIXL's own backends and that mean nothing here: kvrail has no workers to count, and
/// sees its devices itself.
const WITHOUT_EFFECT: &[&str] = &[
    "num_threads",
    "num_workers",
    "ucx_devices",
    "ucx_error_handling_mode",
    "engine_config",
    "split_batch_size",
    "max_bw_per_dram_seg",
    "striping_threshold",
    "enable_progress_thread",
    "progress_thread_delay",
];

/// Builds the agent below.
///
/// # Errors
/// [`Status::InvalidParam`] for a parameter that cannot be, [`Status::Backend`] when the transports are not to be had.
pub(crate) fn build(name: &str, kind: BackendKind, params: &Params) -> Result<kvrail::Agent> {
    let mut builder = kvrail::Agent::builder(name).progress(Progress::Thread);
    builder = builder.transports(transports(params)?);
    for (key, value) in params {
        if [TRANSPORTS, PROVIDER, TCP_LISTEN, COOPERATE].contains(&key.as_str()) {
            continue;
        }
        if WITHOUT_EFFECT.contains(&key.as_str()) {
            tracing::debug!(agent = %name, "parameter {key}={value} of backend {kind} has no effect: its transport is kvrail's");
        } else {
            tracing::warn!(agent = %name, "parameter {key}={value} of backend {kind} is unknown and has no effect");
        }
    }
    builder.build().map_err(|error| {
        let error = Error::told(Status::Backend, &error);
        Error { what: format!("cannot create backend {kind}: {}", error.what), ..error }
    })
}

fn transports(params: &Params) -> Result<Vec<TransportConfig>> {
    let listen = params.get(TCP_LISTEN).map_or(TCP_LISTEN_DEFAULT, String::as_str);
    let provider = params.get(PROVIDER).map(|text| text.trim()).filter(|text| !text.is_empty());
    let ofi = || match provider {
        None | Some("auto") => Ok(TransportConfig::ofi()),
        Some(name) => match name.parse() {
            Ok(provider) => Ok(TransportConfig::ofi().provider(provider)),
            Err(error) => Err(Error::new(Status::InvalidParam, format!("{PROVIDER}={name}: {error}"))),
        },
    };
    let cooperate = match params.get(COOPERATE).map_or("false", |text| text.trim()) {
        "true" | "yes" | "on" | "1" => true,
        "false" | "no" | "off" | "0" | "" => false,
        other => {
            return Err(Error::new(
                Status::InvalidParam,
                format!("{COOPERATE}={other}: write true or false"),
            ));
        }
    };
    let shm = || TransportConfig::shm().cooperate(cooperate);
    let text = params.get(TRANSPORTS).map_or("auto", String::as_str).trim();
    if text.is_empty() || text.eq_ignore_ascii_case("auto") {
        let ofi = match provider {
            None | Some("auto") => ofi()?.if_possible(),
            Some(_) => ofi()?,
        };
        return Ok(vec![shm(), ofi, TransportConfig::tcp(listen)]);
    }
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let chosen = names.map(|name| match name {
        "shm" => Ok(shm()),
        "ofi" => ofi(),
        "tcp" => Ok(TransportConfig::tcp(listen)),
        _ => Err(Error::new(
            Status::InvalidParam,
            format!("{TRANSPORTS}={text}: there is no transport \"{name}\""),
        )
        .hint("write auto, or names separated by commas: shm, ofi, tcp")),
    });
    chosen.collect()
}
