//! Prepared lists, requests, and what is asked about them.

use std::sync::Arc;
use std::time::Duration;

use kvrail::Slices;

use super::notifications::check_length;
use super::{Agent, Handle, Inner, LOCAL_SIDE, new_handle};
use crate::backend::{BackendKind, BackendSet};
use crate::error::{Error, Result, Status};
use crate::files::FileMove;
use crate::list::{Desc, MemoryKind, XferList};
use crate::loopback;
use crate::prepared::{LookedUp, Pieces, Prepared, Side, common};
use crate::request::{Direction, Parts, Progress, Request, Step, Timing, Work};

/// What is told of a request's last posting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XferTelemetry {
    /// When, and how long.
    pub timing: Timing,
    /// Bytes moved.
    pub bytes: u64,
    /// Descriptors moved, after merging of those that are adjacent on both sides.
    pub descriptors: u64,
}

/// What a transfer is expected to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Time.
    pub duration: Duration,
    /// How far off that may be.
    pub margin: Duration,
}

/// Rate that is assumed of a transport whose rails tell none (shared memory, loopback): one core's copy, bytes per second.
const RATE_ASSUMED: u64 = 8_000_000_000;
/// Time of a transfer without bytes.
const LATENCY_ASSUMED: Duration = Duration::from_micros(20);

/// Which of a prepared list's descriptors, and how both sides are named in errors.
struct Chosen<'a> {
    local: (&'a Prepared, Option<&'a [u32]>),
    remote: (&'a Prepared, Option<&'a [u32]>),
}

impl Agent {
    /// Looks up descriptors of `side` ([`LOCAL_SIDE`], another agent's name, or this one's for transfers to itself) and keeps them for
    /// transfers that choose among them by number.
    ///
    /// # Errors
    /// [`Status::NotFound`]: the agent is not known, no backend has that kind of memory, or a descriptor lies in no registered region.
    pub fn prepare(
        &self,
        side: &str,
        kind: MemoryKind,
        pieces: Pieces<'_>,
        handles: &[Handle],
    ) -> Result<Handle> {
        let inner = &*self.inner;
        let prepared = inner.counted(inner.prepare(side, kind, pieces, handles))?;
        let handle = new_handle();
        inner.prepared.write().insert(handle, Arc::new(prepared));
        Ok(handle)
    }

    /// Forgets a prepared list. Requests that were made of it stay.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] for a handle of no prepared list of this agent.
    pub fn release_prepared(&self, handle: Handle) -> Result<()> {
        let removed = self.inner.prepared.write().remove(&handle);
        removed.map(|_| ()).ok_or_else(|| no_handle(handle, "prepared list"))
    }

    /// Makes a request of chosen descriptors of two prepared lists.
    ///
    /// # Errors
    /// [`Status::InvalidParam`]: a handle, an index or a length does not fit; [`Status::NotFound`]: the remote agent was removed since.
    pub fn make_request(
        &self,
        direction: Direction,
        local: (Handle, &[u32]),
        remote: (Handle, &[u32]),
        notification: &[u8],
        handles: &[Handle],
    ) -> Result<Handle> {
        let inner = &*self.inner;
        inner.counted(inner.make_request(direction, local, remote, notification, handles))
    }

    /// Makes a request of two lists: both preparations and the request in one.
    ///
    /// # Errors
    /// As both.
    pub fn create_request(
        &self,
        direction: Direction,
        local: &XferList,
        remote: &XferList,
        agent: &str,
        notification: &[u8],
        handles: &[Handle],
    ) -> Result<Handle> {
        let inner = &*self.inner;
        inner.counted(inner.create_request(direction, local, remote, agent, notification, handles))
    }

    /// Posts a request. True: it has ended already. A notification that is given replaces the request's own from now on.
    ///
    /// # Errors
    /// [`Status::RepostActive`] while it is in flight, [`Status::NotFound`] when the remote agent was removed since,
    /// [`Status::RemoteDisconnect`] when it is gone, [`Status::Backend`] when it could not be posted.
    pub fn post(&self, handle: Handle, notification: Option<Vec<u8>>) -> Result<bool> {
        let inner = &*self.inner;
        let request = inner.request(handle)?;
        inner.counted(inner.current(&request))?;
        if request.backend == BackendKind::Posix && notification.is_some() {
            return inner.counted(Err(Error::new(Status::Backend, "backend POSIX has no notifications")));
        }
        let step = request.post(notification);
        if let Err(error) = &step
            && error.status == Status::RemoteDisconnect
        {
            inner.lose_life(&request);
        }
        let step = inner.counted(step)?;
        let done = matches!(step, Step::Finished { .. });
        inner.took(&request, step);
        Ok(done)
    }

    /// Whether a request's last posting has ended. False: it is in flight.
    ///
    /// # Errors
    /// [`Status::NotPosted`] before the first posting; otherwise how it ended badly.
    pub fn status(&self, handle: Handle) -> Result<bool> {
        let inner = &*self.inner;
        let request = inner.request(handle)?;
        let (progress, step) = request.poll();
        inner.took(&request, step);
        match progress {
            Progress::Done => Ok(true),
            Progress::InFlight => {
                inner.current(&request)?;
                Ok(false)
            }
            Progress::NotPosted => Err(Error::new(Status::NotPosted, "the transfer was not posted")),
            Progress::Failed(error) => Err(error),
        }
    }

    /// Times and sizes of a request's last posting.
    ///
    /// # Errors
    /// [`Status::NoTelemetry`] unless telemetry is collected; [`Status::NotPosted`] before it was posted; as [`Agent::status`].
    pub fn telemetry(&self, handle: Handle) -> Result<Option<XferTelemetry>> {
        if self.inner.telemetry.is_none() {
            return Err(Error::new(Status::NoTelemetry, "telemetry is not collected")
                .hint("set NIXL_TELEMETRY_ENABLE=y, or capture_telemetry in the agent's configuration"));
        }
        let done = self.status(handle)?;
        let request = self.inner.request(handle)?;
        let (bytes, descriptors) = (request.bytes, request.descriptors);
        Ok(done.then(|| XferTelemetry { timing: request.timing(), bytes, descriptors }))
    }

    /// The handle of the backend that carries a request.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] for a handle of no request of this agent.
    pub fn backend_of(&self, handle: Handle) -> Result<Handle> {
        let request = self.inner.request(handle)?;
        let backends = self.inner.backends.read();
        let backend = backends.created.iter().find(|backend| backend.kind == request.backend);
        backend.map(|backend| backend.handle).ok_or_else(|| no_handle(handle, "request"))
    }

    /// What a request is expected to take: its bytes at the rate of the rails that would carry it.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] for a handle of no request, [`Status::NotFound`] when the remote agent was removed since,
    /// [`Status::NotSupported`] for files.
    pub fn estimate(&self, handle: Handle) -> Result<Cost> {
        let inner = &*self.inner;
        let request = inner.request(handle)?;
        inner.current(&request)?;
        if request.backend == BackendKind::Posix {
            return Err(Error::new(Status::NotSupported, "what a file takes is not known ahead"));
        }
        let rate = request.plan().and_then(|plan| {
            let transport = plan.peer().transport();
            let facts = inner.network().ok()?.facts();
            let facts = facts.transports.into_iter().find(|facts| facts.name == transport)?;
            Some(facts.rails.iter().map(|rail| rail.rate_bps).sum::<u64>() / 8)
        });
        let rate = rate.filter(|rate| *rate > 0).unwrap_or(RATE_ASSUMED);
        let moving = Duration::from_nanos(
            u64::try_from(u128::from(request.bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX),
        );
        // Nobody knows who else uses the rails: half of it is as likely as not.
        Ok(Cost { duration: LATENCY_ASSUMED + moving, margin: LATENCY_ASSUMED + moving / 2 })
    }

    /// Releases a request. One that is in flight is cancelled, and released when nothing of it moves any more (KR-7).
    ///
    /// # Errors
    /// [`Status::RepostActive`]: it still moves, and the handle is as good as before; [`Status::InvalidParam`] for a handle of no request of this agent.
    pub fn release(&self, handle: Handle) -> Result<()> {
        let request = self.inner.request(handle)?;
        request.end()?;
        self.inner.requests.write().remove(&handle);
        Ok(())
    }
}

impl Inner {
    fn request(&self, handle: Handle) -> Result<Arc<Request>> {
        self.requests.read().get(&handle).cloned().ok_or_else(|| no_handle(handle, "request"))
    }

    fn list(&self, handle: Handle) -> Result<Arc<Prepared>> {
        self.prepared.read().get(&handle).cloned().ok_or_else(|| no_handle(handle, "prepared list"))
    }

    /// Whether the remote agent of a request is still the one that it was made for.
    fn current(&self, request: &Request) -> Result<()> {
        if request.remote == self.name || self.holds(&request.remote, request.remote_generation) {
            return Ok(());
        }
        Err(Error::new(
            Status::NotFound,
            format!("agent \"{}\" was removed or restarted since this transfer was made", request.remote),
        )
        .hint("import its metadata again, and prepare the transfer anew"))
    }

    fn lose_life(&self, request: &Request) {
        if self.holds(&request.remote, request.remote_generation) {
            self.gone(&request.remote);
        }
    }

    /// Notes a step that a request took.
    fn took(&self, request: &Request, step: Step) {
        let telemetry = self.telemetry.as_ref();
        match step {
            Step::None => {}
            Step::Posted(post) => {
                if let Some(telemetry) = telemetry {
                    telemetry.posted(request.direction, request.bytes, request.descriptors, post);
                }
            }
            Step::Finished { total, loopback } => {
                if let Some(message) = loopback
                    && let Err(error) = self.notify_own(message)
                {
                    tracing::warn!(agent = %self.name, "a notification is lost: {error}");
                }
                if let Some(telemetry) = telemetry {
                    telemetry.finished(request.direction, request.bytes, total);
                }
            }
            Step::Failed(error) => {
                self.failed(&error);
                tracing::warn!(agent = %self.name, remote = %request.remote, "a transfer failed: {error}");
                if error.status == Status::RemoteDisconnect {
                    self.lose_life(request);
                }
            }
        }
    }

    /// The backends that may be tried.
    fn candidates(&self, known: BackendSet, kind: MemoryKind, handles: &[Handle]) -> Result<BackendSet> {
        let asked: BackendSet = self.asked(handles)?.into_iter().collect();
        let candidates = if asked.is_empty() { known } else { asked };
        if candidates.is_empty() {
            let kind = kind.name();
            return Err(Error::new(Status::NotFound, format!("no {kind} memory is registered there")));
        }
        Ok(candidates)
    }

    fn prepare(
        &self,
        side: &str,
        kind: MemoryKind,
        pieces: Pieces<'_>,
        handles: &[Handle],
    ) -> Result<Prepared> {
        if side == LOCAL_SIDE || side == &*self.name {
            let section = self.section();
            let table = section.table(kind);
            if side != LOCAL_SIDE && table.is_empty() {
                return Err(super::peers::unknown(side));
            }
            let side = if side == LOCAL_SIDE { Side::Local } else { Side::Loopback };
            let candidates = self.candidates(table.backends(), kind, handles)?;
            return Prepared::new(side, kind, table, candidates, pieces);
        }
        let remote = self.remote(side)?;
        let table = remote.section.table(kind);
        let candidates = self.candidates(table.backends(), kind, handles)?;
        let side = Side::Remote { name: side.into(), generation: remote.generation };
        Prepared::new(side, kind, table, candidates, pieces)
    }

    fn make_request(
        &self,
        direction: Direction,
        (local, local_chosen): (Handle, &[u32]),
        (remote, remote_chosen): (Handle, &[u32]),
        notification: &[u8],
        handles: &[Handle],
    ) -> Result<Handle> {
        let invalid = |what: String| Err(Error::new(Status::InvalidParam, what));
        let (local, remote) = (self.list(local)?, self.list(remote)?);
        if local.side != Side::Local || remote.side == Side::Local {
            return invalid(
                "the local side has to be prepared as the local one, the remote side for an agent".into(),
            );
        }
        let (here, there) = (local_chosen.len(), remote_chosen.len());
        if here == 0 || here != there {
            return invalid(format!("{here} local indices cannot be paired with {there} remote ones"));
        }
        let asked = self.asked(handles)?;
        let Some(backend) = common(local.backends, remote.backends, &asked) else {
            return invalid(format!(
                "no common backend: the local list is prepared for {}, the remote one for {}",
                local.backends, remote.backends
            ));
        };
        let chosen = Chosen { local: (&local, Some(local_chosen)), remote: (&remote, Some(remote_chosen)) };
        self.request_of(direction, backend, &chosen, notification)
    }

    fn create_request(
        &self,
        direction: Direction,
        local: &XferList,
        remote: &XferList,
        agent: &str,
        notification: &[u8],
        handles: &[Handle],
    ) -> Result<Handle> {
        let (here, there) = (local.descs.len(), remote.descs.len());
        if here != there {
            return Err(Error::new(
                Status::InvalidParam,
                format!("{here} local descriptors cannot be paired with {there} remote ones"),
            ));
        }
        let asked = self.asked(handles)?;
        check_notification(notification, BackendKind::Ucx)?;
        if let Some(request) = self.direct(direction, local, remote, agent, notification, &asked)? {
            return Ok(self.keep(request));
        }
        let differ = local.descs.iter().zip(&remote.descs).position(|(here, there)| here.len != there.len);
        if let Some(index) = differ {
            let (here, there) = (local.descs[index].len, remote.descs[index].len);
            return Err(Error::new(
                Status::InvalidParam,
                format!("descriptor {index} has {here} bytes here and {there} at {agent}"),
            ));
        }
        if agent == LOCAL_SIDE {
            return Err(super::peers::unknown(agent));
        }
        let remote = self.prepare(agent, remote.kind, Pieces::Each(&remote.descs), handles)?;
        let local = self.prepare(LOCAL_SIDE, local.kind, Pieces::Each(&local.descs), handles)?;
        let Some(backend) = common(local.backends, remote.backends, &asked) else {
            return Err(Error::new(
                Status::NotFound,
                format!(
                    "no common backend: the local memory is known to {}, the remote to {}",
                    local.backends, remote.backends
                ),
            ));
        };
        let chosen = Chosen { local: (&local, None), remote: (&remote, None) };
        self.request_of(direction, backend, &chosen, notification)
    }

    fn request_of(
        &self,
        direction: Direction,
        backend: BackendKind,
        chosen: &Chosen<'_>,
        notification: &[u8],
    ) -> Result<Handle> {
        check_notification(notification, backend)?;
        let files = backend == BackendKind::Posix;
        let (name, generation) = match &chosen.remote.0.side {
            Side::Remote { name, generation } => (name.clone(), *generation),
            _ => (self.name.clone(), 0),
        };
        let (bytes, descriptors, work) = match (&chosen.remote.0.side, files) {
            (_, true) => self.file_work(chosen)?,
            (Side::Remote { name, generation }, false) => {
                if !self.holds(name, *generation) {
                    return Err(super::peers::unknown(name));
                }
                self.fabric_work(name, chosen)?
            }
            (_, false) => loopback_work(direction, chosen)?,
        };
        let request = Request::new(Parts {
            remote: name,
            remote_generation: generation,
            direction,
            backend,
            bytes,
            descriptors,
            notification: notification.to_vec(),
            work,
        });
        Ok(self.keep(request))
    }

    fn keep(&self, request: Request) -> Handle {
        let handle = new_handle();
        self.requests.write().insert(handle, Arc::new(request));
        handle
    }

    fn fabric_work(&self, name: &str, chosen: &Chosen<'_>) -> Result<(u64, u64, Work)> {
        let remote = self.remote(name)?;
        let Some(peer) = &remote.peer else { return Err(super::peers::unknown(name)) };
        let agent = self.network()?;
        let local = chosen.local.0.select(chosen.local.1, "local")?;
        let far = chosen.remote.0.select(chosen.remote.1, "remote")?;
        let plan = plan(&agent, peer, &local, &far)?;
        let descriptors = match chosen.local.1 {
            Some(_) => plan.ops() as u64,
            None => plan.descriptors(),
        };
        Ok((plan.bytes(), descriptors, Work::Fabric { agent, plan, transfer: None }))
    }

    /// A request of two lists between agents, in one pass over each; none when it takes more than that to find a common backend, or what is wrong.
    fn direct(
        &self,
        direction: Direction,
        local: &XferList,
        remote: &XferList,
        agent: &str,
        notification: &[u8],
        asked: &[BackendKind],
    ) -> Result<Option<Request>> {
        let Some(known) = self.remotes.read().get(agent).cloned() else { return Ok(None) };
        let Some(peer) = &known.peer else { return Ok(None) };
        let section = self.section();
        let (here, there) = (section.table(local.kind), known.section.table(remote.kind));
        let Some(backend) = common(here.backends(), there.backends(), asked).filter(|kind| kind.is_network())
        else {
            return Ok(None);
        };
        let backends = BackendSet::of(backend);
        let near = LookedUp { table: here, backends, pieces: &local.descs };
        let far = LookedUp { table: there, backends, pieces: &remote.descs };
        let agent_below = self.network()?;
        let Ok(plan) = plan(&agent_below, peer, &near, &far) else { return Ok(None) };
        Ok(Some(Request::new(Parts {
            remote: agent.into(),
            remote_generation: known.generation,
            direction,
            backend,
            bytes: plan.bytes(),
            descriptors: plan.descriptors(),
            notification: notification.to_vec(),
            work: Work::Fabric { agent: agent_below, plan, transfer: None },
        })))
    }

    fn file_work(&self, chosen: &Chosen<'_>) -> Result<(u64, u64, Work)> {
        let files = self.backends.read().files.clone();
        let files = files.ok_or_else(|| Error::new(Status::Backend, "backend POSIX was not created"))?;
        let here = chosen.local.0.select(chosen.local.1, "local")?.pieces();
        let there = chosen.remote.0.select(chosen.remote.1, "remote")?.pieces();
        let kinds = (chosen.local.0.kind, chosen.remote.0.kind);
        if kinds != (MemoryKind::Dram, MemoryKind::File) {
            return Err(Error::new(
                Status::InvalidParam,
                format!(
                    "backend POSIX moves between DRAM_SEG here and FILE_SEG there, not {} and {}",
                    kinds.0.name(),
                    kinds.1.name()
                ),
            ));
        }
        loopback::pair(&here, &there)?;
        let moves = here.iter().zip(&there).map(|(memory, file)| FileMove {
            memory: memory.addr,
            len: memory.len,
            device: file.device,
            offset: file.addr,
        });
        let moves = moves.collect();
        Ok((total(&here), here.len() as u64, Work::Files { files, moves, job: None }))
    }
}

fn plan(
    agent: &kvrail::Agent,
    peer: &kvrail::Peer,
    local: &impl Slices,
    remote: &impl Slices,
) -> Result<kvrail::Plan> {
    agent.prepare(peer, local, remote).map_err(|error| {
        use kvrail::engine_error::PlanError as Refused;
        let status = match &error {
            kvrail::PrepareError::Plan { error: Refused::UnknownPeer(_), .. } => Status::RemoteDisconnect,
            kvrail::PrepareError::Plan { error: Refused::UnknownRegion { .. }, .. } => Status::NotFound,
            kvrail::PrepareError::Plan { .. } => Status::InvalidParam,
            _ => Status::Backend,
        };
        Error::told(status, &error)
    })
}

fn loopback_work(direction: Direction, chosen: &Chosen<'_>) -> Result<(u64, u64, Work)> {
    let here = chosen.local.0.select(chosen.local.1, "local")?.pieces();
    let there = chosen.remote.0.select(chosen.remote.1, "remote")?.pieces();
    let moves = match direction {
        Direction::Write => loopback::pair(&here, &there)?,
        Direction::Read => loopback::pair(&there, &here)?,
    };
    Ok((total(&here), here.len() as u64, Work::Loopback(moves)))
}

/// Whether a backend can bring a notification.
fn check_notification(notification: &[u8], backend: BackendKind) -> Result<()> {
    check_length(notification)?;
    if !backend.is_network() && !notification.is_empty() {
        return Err(Error::new(Status::Backend, format!("backend {backend} has no notifications")));
    }
    Ok(())
}

fn total(pieces: &[Desc]) -> u64 {
    pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.len))
}

#[cold]
fn no_handle(handle: Handle, what: &str) -> Error {
    Error::new(Status::InvalidParam, format!("{handle:#x} is the handle of no {what} of this agent"))
        .hint("it was released, or belongs to another agent")
}
