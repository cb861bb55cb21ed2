//! Building an agent: its name, transports, progress and settings, all checked before anything starts.

use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kvrail_core::engine::{self, Engine, EngineConfig};
use kvrail_core::id::Incarnation;
use kvrail_core::limits::NAME_BYTES_MAX;
use kvrail_transport::{Fabric, wait_handle};
use parking_lot::Mutex;

use crate::agent::Agent;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Id, Settings, Source, TRANSPORT_VARIABLE};
use crate::core::{Core, Handle};
use crate::hints::Hints;
use crate::lane::Lane;
use crate::progress::Progress;
use crate::sleep::Sleeper;
use crate::transports::choice::{self, Opened};
use crate::transports::{self, OpenError, TransportConfig};

/// An agent that is about to be. See [`Agent::builder`].
#[derive(Debug)]
#[must_use = "nothing starts before `build`"]
pub struct AgentBuilder {
    name: String,
    transports: Option<Vec<TransportConfig>>,
    progress: Progress,
    settings: Settings,
    ignore_environment: bool,
}

/// Why an agent could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The name is empty or too long.
    #[error("an agent's name has 1 to {NAME_BYTES_MAX} bytes, this one {len}")]
    Name {
        /// Its bytes.
        len: usize,
    },
    /// No transport is left.
    #[error("no transport (from {source_of_it})")]
    NoTransport {
        /// Who chose none.
        source_of_it: Source,
    },
    /// A transport that this build does not have.
    #[error("transport \"{name}\" (from {source_of_it}) is unknown; there are {}", transports::NAMES.join(", "))]
    UnknownTransport {
        /// As it was given.
        name: String,
        /// Who asked for it.
        source_of_it: Source,
    },
    /// A transport was given twice.
    #[error("transport {name} is given twice (from {source_of_it})")]
    DuplicateTransport {
        /// Which.
        name: String,
        /// Who asked for it.
        source_of_it: Source,
    },
    /// A transport that was asked for is not possible here. It is never replaced by another in silence (KR-13).
    #[error("transport {transport} (from {source_of_it}) is not possible: {source}")]
    Transport {
        /// Which.
        transport: &'static str,
        /// Who asked for it.
        source_of_it: Source,
        /// Why not.
        source: OpenError,
    },
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine refused its settings or its transport.
    #[error("transport {transport}: {error}")]
    Engine {
        /// For which transport.
        transport: &'static str,
        /// What it says.
        error: engine::ConfigError,
    },
    /// The operating system refused a descriptor, a thread or randomness.
    #[error("cannot {step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

impl BuildError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Transport { source, .. } => source.is_retryable(),
            Self::System { .. } => true,
            _ => false,
        }
    }
}

impl Hints for BuildError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoTransport { source_of_it: Source::Environment(variable) }
            | Self::UnknownTransport { source_of_it: Source::Environment(variable), .. } => {
                vec![format!("set {variable} to auto, or to names separated by commas: shm,ofi,tcp")]
            }
            Self::Transport { source, .. } => source.hints(),
            Self::System { source, .. } if source.raw_os_error().is_some() => {
                vec!["raise the limit on open files (ulimit -n) or threads".into()]
            }
            _ => Vec::new(),
        }
    }
}

impl AgentBuilder {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            transports: None,
            progress: Progress::default(),
            settings: Settings::default(),
            ignore_environment: false,
        }
    }

    /// Which transports, in order of preference. Default: shm, then ofi where this host has an RDMA NIC that libfabric can
    /// use, then tcp on loopback. `KVRAIL_TRANSPORT` overrides
    /// the choice and the order, and keeps the settings given here for those it names.
    pub fn transports(mut self, transports: impl IntoIterator<Item = TransportConfig>) -> Self {
        self.transports = Some(transports.into_iter().collect());
        self
    }

    /// Who makes progress. Default: a background thread.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// How long a transfer may take when its posting does not say. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.set_ms(Id::TransferTimeout, timeout);
        self
    }

    /// How long a peer with no usable route may be silent before it is lost. Default: 10 s.
    pub fn peer_timeout(mut self, timeout: Duration) -> Self {
        self.settings.set_ms(Id::PeerTimeout, timeout);
        self
    }

    /// How long the end of the agent may wait for transfers to drain. Default: 2 s.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.settings.set_ms(Id::CloseTimeout, timeout);
        self
    }

    /// How long a waiting call looks at the rails before it sleeps. Default: 50 µs.
    pub fn spin(mut self, spin: Duration) -> Self {
        self.settings.set(Id::Spin, u64::try_from(spin.as_micros()).unwrap_or(u64::MAX));
        self
    }

    /// With a progress thread: transfers up to this many bytes are started by the thread that posts them. Default:
    /// 256 KiB.
    pub fn inline_bytes_max(mut self, bytes: u64) -> Self {
        self.settings.set(Id::InlineBytes, bytes);
        self
    }

    /// Descriptors from this many bytes on are striped over all rails. Default: 128 KiB.
    pub fn stripe_bytes_min(mut self, bytes: u32) -> Self {
        self.settings.set(Id::StripeBytes, u64::from(bytes));
        self
    }

    /// Notifications that may wait to be read before peers are held back. Default: 4096.
    pub fn inbox_messages_max(mut self, messages: usize) -> Self {
        self.settings.set(Id::InboxMessages, messages as u64);
        self
    }

    /// Transfers in flight per transport. Default: 16,384.
    pub fn transfers_max(mut self, transfers: usize) -> Self {
        self.settings.set(Id::Transfers, transfers as u64);
        self
    }

    /// Uses only what the code says: no environment variable changes anything.
    pub fn ignore_environment(mut self) -> Self {
        self.ignore_environment = true;
        self
    }

    /// Checks everything, opens the transports and starts the agent.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind.
    pub fn build(self) -> Result<Agent, BuildError> {
        let len = self.name.len();
        if len == 0 || len > NAME_BYTES_MAX {
            return Err(BuildError::Name { len });
        }
        let ignore = self.ignore_environment;
        let environment = |variable: &'static str| if ignore { None } else { std::env::var(variable).ok() };
        let (chosen, source_of_it) = choice::choose(self.transports, environment(TRANSPORT_VARIABLE))?;
        let mut settings = self.settings;
        chosen.iter().for_each(|transport| transport.tell(&mut settings));
        let config = settings.resolve(environment)?;
        let incarnation = incarnation()?;
        let mut lanes = Vec::with_capacity(chosen.len());
        let mut fds = Vec::with_capacity(chosen.len());
        let mut absent = Vec::new();
        for mut transport in chosen {
            transport.configure(&config)?;
            let name = transport.name();
            let opened = choice::open(&self.name, transport, lanes.len());
            match opened.map_err(|source| BuildError::Transport { transport: name, source_of_it, source })? {
                Opened::Fabric(fabric) => {
                    fds.push(
                        wait_handle(&*fabric).map_err(|source| system("duplicate a descriptor", source))?,
                    );
                    lanes.push(lane(fabric, &self.name, incarnation, &config)?);
                }
                Opened::Absent(transport) => absent.push(transport),
            }
        }
        if lanes.is_empty() {
            return Err(BuildError::NoTransport { source_of_it });
        }
        let core = Core {
            name: self.name,
            incarnation,
            spin_time: config.us(Id::Spin),
            inbox: crate::inbox::Inbox::new(config.count(Id::InboxMessages)),
            config,
            clock: Clock::new(),
            progress: self.progress,
            lanes,
            absent,
            chosen_by: source_of_it,
            regions: Mutex::default(),
            graveyard: Default::default(),
            peers: Mutex::default(),
            sleeper: Sleeper::new(fds).map_err(|source| system("make an eventfd", source))?,
            leader: Mutex::new(()),
            leader_left: Default::default(),
            stop: AtomicBool::new(false),
        };
        let handle = Handle::start(core).map_err(|source| system("start the progress thread", source))?;
        let agent = Agent::new(handle);
        agent.announce();
        Ok(agent)
    }
}

fn system(step: &'static str, source: io::Error) -> BuildError {
    BuildError::System { step, source }
}

fn lane(
    fabric: Box<dyn Fabric>,
    name: &str,
    incarnation: Incarnation,
    config: &Config,
) -> Result<Lane, BuildError> {
    let transport = fabric.caps().name;
    let mut engine = EngineConfig::new(name, incarnation);
    engine.transfer_timeout = config.ms(Id::TransferTimeout);
    engine.peer_timeout = config.ms(Id::PeerTimeout);
    engine.stripe_bytes_min = u32::try_from(config.value(Id::StripeBytes)).unwrap_or(u32::MAX);
    engine.inbox_messages_max = config.count(Id::InboxMessages);
    engine.transfers_max = config.count(Id::Transfers);
    let engine = Engine::new(engine, &*fabric).map_err(|error| BuildError::Engine { transport, error })?;
    Ok(Lane::new(transport, engine, fabric))
}

/// A random life (KR-11); never zero, which stands for "nobody" in messages.
fn incarnation() -> Result<Incarnation, BuildError> {
    let mut bytes = [0u8; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|error| system("read randomness", error.into()))?;
    }
    Ok(Incarnation(u64::from_ne_bytes(bytes).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lives_differ() {
        assert_ne!(incarnation().unwrap(), incarnation().unwrap());
    }
}
