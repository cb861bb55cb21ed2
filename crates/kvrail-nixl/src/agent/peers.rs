//! Other agents: metadata of this one for them, and theirs here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvrail::{ConnectError, Generation, Peer, Region, RegionId};

use super::{Agent, Handle, Inner};
use crate::backend::BackendSet;
use crate::error::{Error, Result, Status};
use crate::exchange::{Destination, Exchange, Host};
use crate::list::{Desc, MemoryKind, RegList, XferList};
use crate::metadata::{self, Class};
use crate::prepared::{Pieces, Prepared, Side};
use crate::section::{Entry, Section};

/// How long a connection that is asked for ahead of the first transfer may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Peers that were forgotten here and not by themselves yet, which are kept to be heard.
const FORGOTTEN_MAX: usize = 1024;

static NEXT_GENERATION: AtomicU64 = AtomicU64::new(1);

/// Another agent, as its metadata describes it.
pub(super) struct Remote {
    pub(super) generation: u64,
    pub(super) peer: Option<Peer>,
    /// Those that both have.
    pub(super) backends: BackendSet,
    regions: HashMap<RegionId, (Generation, MemoryKind, Entry)>,
    pub(super) section: Section,
}

/// Whether metadata of an agent is known, and covers what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// It is, and does.
    Yes,
    /// It is not, or does not.
    No,
}

impl Agent {
    /// This agent's metadata: how to reach it, and all that is registered.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] without a backend that reaches other agents.
    pub fn metadata(&self) -> Result<Vec<u8>> {
        self.inner.metadata()
    }

    /// Metadata of some of what is registered, with or without how to reach this agent. An empty list is about the latter alone.
    ///
    /// # Errors
    /// [`Status::NotFound`] for a descriptor that is not registered so, or a kind that no backend moves; [`Status::Backend`] when no backend named reaches other agents.
    pub fn partial_metadata(
        &self,
        list: &RegList,
        with_connection: bool,
        handles: &[Handle],
    ) -> Result<Vec<u8>> {
        let inner = &*self.inner;
        let asked: BackendSet = inner.asked(handles)?.into_iter().collect();
        let all = inner.backends.read().all();
        let chosen = match (asked.is_empty(), list.descs.is_empty()) {
            (false, _) => asked,
            (true, true) => all,
            (true, false) => all.iter().filter(|kind| kind.kinds().contains(&list.kind)).collect(),
        };
        if chosen.is_empty() && !list.descs.is_empty() {
            let kind = list.kind.name();
            return Err(Error::new(Status::NotFound, format!("no backend of this agent has {kind} memory")));
        }
        let network = chosen.network();
        if network.is_empty() {
            return Err(Error::new(Status::Backend, format!("of {chosen} none reaches other agents")));
        }
        let agent = inner.network()?;
        let local = inner.local.lock();
        let mut regions: Vec<(&Region, Class)> = Vec::with_capacity(list.descs.len());
        for (index, reg) in list.descs.iter().enumerate() {
            let known = network.iter().find_map(|kind| local.find(list.kind, reg.desc, kind));
            let region = known.and_then(|one| Some((one.region.as_ref()?, one.backends)));
            let Some((region, backends)) = region else {
                let Desc { addr, len, device } = reg.desc;
                return Err(Error::new(
                    Status::NotFound,
                    format!(
                        "descriptor {index} ({len} bytes at {addr:#x} of device {device}) is not registered with {network}"
                    ),
                ));
            };
            let class = Class { kind: list.kind, backends: backends.and(network), device: reg.desc.device };
            regions.push((region, class));
        }
        let with_connection = with_connection || list.descs.is_empty();
        describe(&agent, with_connection, network, regions)
    }

    /// Imports another agent's metadata, which is input from outside, and tells that agent's name. More metadata of a known agent adds to
    /// what is known; a restarted agent replaces the one that it was (KR-11).
    ///
    /// # Errors
    /// [`Status::Mismatch`] when the bytes are not metadata, [`Status::InvalidParam`] when they are this agent's own, [`Status::Backend`] when no backend
    /// is common or no transport reaches it, [`Status::NotFound`] for memory of an agent of which no connection is known.
    pub fn load(&self, bytes: &[u8]) -> Result<String> {
        self.inner.counted(self.inner.load(bytes))
    }

    /// Forgets an agent: its transfers end, what was prepared for it is stale.
    ///
    /// # Errors
    /// [`Status::NotFound`] when it is not known, [`Status::InvalidParam`] for this agent itself.
    pub fn forget(&self, name: &str) -> Result<()> {
        if name == &*self.inner.name {
            return Err(Error::new(Status::InvalidParam, "an agent cannot forget itself"));
        }
        if !self.inner.lose(name) {
            return Err(unknown(name));
        }
        // A store that still has it may say so without anybody here being interested.
        self.exchange(|exchange| {
            exchange.unwatch(name);
            Ok(())
        })
    }

    /// Whether metadata of that agent is known and covers all of `list`.
    #[must_use]
    pub fn knows(&self, name: &str, list: &XferList) -> Known {
        let Ok(remote) = self.inner.remote(name) else {
            // This agent has metadata of itself once something is registered.
            let own = name == &*self.inner.name && !self.inner.section().table(list.kind).is_empty();
            return if own && list.descs.is_empty() { Known::Yes } else { Known::No };
        };
        if list.descs.is_empty() {
            return Known::Yes;
        }
        let covered = remote.backends.iter().any(|kind| {
            let side = Side::Remote { name: name.into(), generation: remote.generation };
            let table = remote.section.table(list.kind);
            Prepared::new(side, list.kind, table, BackendSet::of(kind), Pieces::Each(&list.descs)).is_ok()
        });
        if covered { Known::Yes } else { Known::No }
    }

    /// Connects ahead of the first transfer and waits until both agents know each other.
    ///
    /// # Errors
    /// [`Status::NotFound`] when its metadata is not known, [`Status::Backend`] when no backend is common or it does not answer in time.
    pub fn connect(&self, name: &str, handles: &[Handle]) -> Result<()> {
        let inner = &*self.inner;
        let asked: BackendSet = inner.asked(handles)?.into_iter().collect();
        let remote = inner.remote(name)?;
        let common = if asked.is_empty() { remote.backends } else { remote.backends.and(asked) };
        let Some(peer) = remote.peer.as_ref().filter(|_| !common.is_empty()) else {
            return Err(Error::new(
                Status::Backend,
                format!("agent {name} has none of the backends asked for"),
            ));
        };
        peer.wait_ready(CONNECT).map_err(|error| Error::told(Status::Backend, &error))
    }

    /// Sends this agent's metadata to another agent's listener, or to the store that the environment names.
    ///
    /// # Errors
    /// As [`Agent::metadata`]; [`Status::InvalidParam`] when there is neither.
    pub fn send_metadata(&self, to: &Destination) -> Result<()> {
        self.exchange(|exchange| {
            exchange.check(to)?;
            exchange.send(self.metadata()?, to)
        })
    }

    /// The same with some of what is registered: see [`Agent::partial_metadata`].
    ///
    /// # Errors
    /// As both.
    pub fn send_partial_metadata(
        &self,
        list: &RegList,
        with_connection: bool,
        handles: &[Handle],
        to: &Destination,
    ) -> Result<()> {
        self.exchange(|exchange| {
            exchange.check(to)?;
            exchange.send_partial(self.partial_metadata(list, with_connection, handles)?, to)
        })
    }

    /// Asks for another agent's metadata; it is imported when it comes.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] when there is neither an address nor a store.
    pub fn fetch_metadata(&self, remote: &str, from: &Destination) -> Result<()> {
        self.exchange(|exchange| exchange.fetch(remote, from))
    }

    /// Takes this agent's metadata back from another agent, or from the store.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] when there is neither an address nor a store.
    pub fn invalidate_metadata(&self, at: &Destination) -> Result<()> {
        self.exchange(|exchange| exchange.invalidate(at))
    }

    /// The port of this agent's listener.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.exchange.read().as_ref().and_then(Exchange::port)
    }
}

/// Writes metadata of regions, in the order of their numbers.
fn describe(
    agent: &kvrail::Agent,
    with_connection: bool,
    backends: BackendSet,
    mut regions: Vec<(&Region, Class)>,
) -> Result<Vec<u8>> {
    regions.sort_by_key(|(region, _)| region.id().0);
    regions.dedup_by_key(|(region, _)| region.id());
    let (regions, classes): (Vec<_>, Vec<_>) = regions.into_iter().unzip();
    let own = agent.metadata_of(&regions).map_err(|error| Error::told(Status::Backend, &error))?;
    Ok(metadata::encode(with_connection, backends, &classes, &own))
}

impl Inner {
    fn load(&self, bytes: &[u8]) -> Result<String> {
        let parsed = metadata::decode(bytes)?;
        let name = parsed.own.name.as_str();
        if name == &*self.name {
            return Err(Error::new(Status::InvalidParam, "the metadata is this agent's own"));
        }
        let (own, agent) = {
            let backends = self.backends.read();
            (backends.all().network(), backends.network.clone())
        };
        let common = parsed.backends.and(own);
        if common.is_empty() && parsed.with_connection {
            return Err(Error::new(
                Status::Backend,
                format!("no common backend: agent {name} has {}, this one {own}", parsed.backends),
            )
            .hint("create the same backend on both sides"));
        }
        // One import at a time: what is known of an agent is read, added to, and written back.
        let mut remotes = self.remotes.write();
        let known = remotes.get(name).cloned();
        let known = known.filter(|known| {
            known.peer.as_ref().is_some_and(|peer| peer.incarnation() == parsed.own.incarnation)
        });
        if known.is_none() && !parsed.with_connection {
            return Err(Error::new(
                Status::NotFound,
                format!(
                    "the metadata names memory of agent {name} but not how to reach it, and that is not known"
                ),
            )
            .hint("send it with connection information first"));
        }
        let agent = agent.ok_or_else(|| Error::new(Status::Backend, "no backend reaches other agents"))?;
        let peer = agent.connect(parsed.own_bytes).map_err(|error| {
            let status = match error {
                ConnectError::Metadata(_) => Status::Mismatch,
                ConnectError::Itself => Status::InvalidParam,
                _ => Status::Backend,
            };
            Error::told(status, &error)
        })?;
        self.forgotten.lock().retain(|forgotten| forgotten.name() != name);
        let same = known.filter(|known| known.peer.as_ref() == Some(&peer));
        let generation =
            same.as_ref().map_or_else(|| NEXT_GENERATION.fetch_add(1, Ordering::Relaxed), |r| r.generation);
        let mut regions = same.as_ref().map(|same| same.regions.clone()).unwrap_or_default();
        for (region, class) in parsed.own.regions.iter().zip(&parsed.classes) {
            let desc = Desc { addr: region.base, len: region.len, device: class.device };
            let entry = Entry { desc, region: Some(region.id), backends: class.backends.and(own) };
            regions.insert(region.id, (region.generation, class.kind, entry));
        }
        let backends = same.as_ref().map_or(common, |same| same.backends.or(common));
        let section = Section::new(regions.values().map(|(_, kind, entry)| (*kind, *entry)));
        let remote = Remote { generation, peer: Some(peer), backends, regions, section };
        remotes.insert(name.into(), Arc::new(remote));
        Ok(parsed.own.name)
    }

    /// What is known of another agent.
    pub(super) fn remote(&self, name: &str) -> Result<Arc<Remote>> {
        self.remotes.read().get(name).cloned().ok_or_else(|| unknown(name))
    }

    /// Whether that is still what is known of it.
    pub(super) fn holds(&self, name: &str, generation: u64) -> bool {
        self.remotes.read().get(name).is_some_and(|remote| remote.generation == generation)
    }

    /// Forgets it, as a caller asks: nothing more is moved to or from it from here. What it moves and says itself still arrives, as with NIXL, whose callers forget
    /// a peer on one side while the other is finishing. False: it was not known.
    pub(super) fn lose(&self, name: &str) -> bool {
        let Some(remote) = self.remotes.write().remove(name) else { return false };
        let mut forgotten = self.forgotten.lock();
        forgotten.extend(remote.peer.clone());
        // Those that are gone by themselves, and the oldest of too many, are let go.
        forgotten.retain(|peer| {
            let lost = matches!(peer.state(), kvrail::PeerState::Lost(_));
            if lost {
                peer.disconnect();
            }
            !lost
        });
        if forgotten.len() > FORGOTTEN_MAX
            && let Some(oldest) = forgotten.pop_front()
        {
            oldest.disconnect();
        }
        true
    }

    /// Forgets it because it is gone.
    pub(super) fn gone(&self, name: &str) {
        if let Some(peer) = self.remotes.write().remove(name).and_then(|remote| remote.peer.clone()) {
            peer.disconnect();
        }
    }
}

impl Host for Inner {
    fn name(&self) -> &str {
        &self.name
    }

    fn metadata(&self) -> Result<Vec<u8>> {
        let (network, agent) = {
            let backends = self.backends.read();
            (backends.all().network(), backends.network.clone())
        };
        let agent = agent.ok_or_else(|| {
            Error::new(
                Status::InvalidParam,
                format!("agent {} has no backend that reaches other agents", self.name),
            )
            .hint("create backend UCX or LIBFABRIC first")
        })?;
        let local = self.local.lock();
        let regions = local.iter().filter_map(|(kind, desc, one)| {
            let class = Class { kind, backends: one.backends.network(), device: desc.device };
            Some((one.region.as_ref()?, class))
        });
        describe(&agent, true, network, regions.collect())
    }

    fn load(&self, metadata: &[u8]) -> Result<String> {
        self.counted(Self::load(self, metadata))
    }

    fn forget(&self, name: &str) {
        self.lose(name);
    }
}

#[cold]
pub(super) fn unknown(name: &str) -> Error {
    Error::new(Status::NotFound, format!("metadata of agent \"{name}\" is not known here"))
        .hint("import it with loadRemoteMD / add_remote_agent; it may have been removed or invalidated")
}
