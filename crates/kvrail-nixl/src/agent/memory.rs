//! Registration by address.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail::Region;
use kvrail::memory::RawMemory;

use super::{Agent, Handle, Inner};
use crate::backend::{BackendKind, BackendSet};
use crate::error::{Error, Result, Status};
use crate::files;
use crate::list::{Desc, MemoryKind, RegDesc, RegList};
use crate::section::{Entry, Section};

/// How long a deregistration waits for transfers in flight to leave the memory.
const DRAIN: Duration = Duration::from_secs(5);

/// Memory that is registered.
pub(super) struct Registered {
    pub(super) backends: BackendSet,
    pub(super) region: Option<Region>,
}

/// What is registered here.
#[derive(Default)]
pub(super) struct Local {
    /// Equal descriptors may be registered several times.
    all: HashMap<(MemoryKind, Desc), Vec<Registered>>,
    /// The same by address; made anew when it is wanted after a change.
    section: Option<Arc<Section>>,
}

impl Local {
    pub(super) fn section(&mut self) -> Arc<Section> {
        let all = &self.all;
        let section = self.section.get_or_insert_with(|| {
            let entries = all.iter().flat_map(|((kind, desc), many)| {
                many.iter().map(|one| {
                    let region = one.region.as_ref().map(Region::id);
                    (*kind, Entry { desc: *desc, region, backends: one.backends })
                })
            });
            Arc::new(Section::new(entries))
        });
        section.clone()
    }

    /// Each registration.
    pub(super) fn iter(&self) -> impl Iterator<Item = (MemoryKind, Desc, &Registered)> {
        self.all.iter().flat_map(|((kind, desc), many)| many.iter().map(|one| (*kind, *desc, one)))
    }

    /// A registration of exactly that descriptor which `backend` knows.
    pub(super) fn find(&self, kind: MemoryKind, desc: Desc, backend: BackendKind) -> Option<&Registered> {
        self.all.get(&(kind, desc))?.iter().find(|one| one.backends.has(backend))
    }

    fn insert(&mut self, kind: MemoryKind, desc: Desc, one: Registered) {
        self.all.entry((kind, desc)).or_default().push(one);
        self.section = None;
    }
}

impl Agent {
    /// Registers memory with the backends named, or with all that move its kind.
    ///
    /// # Safety
    /// Each descriptor of host memory is an address range of this process that stays mapped, readable and writable until it was
    /// deregistered or the agent is gone, and that this process touches through no reference while a transfer may.
    ///
    /// # Errors
    /// [`Status::NotFound`] when no backend moves this kind, [`Status::Backend`] when none registered it. Nothing is registered then.
    pub unsafe fn register(&self, list: &RegList, handles: &[Handle]) -> Result<()> {
        let inner = &*self.inner;
        let asked: BackendSet = inner.asked(handles)?.into_iter().collect();
        let able: BackendSet = {
            let backends = inner.backends.read();
            backends.all().iter().filter(|kind| kind.kinds().contains(&list.kind)).collect()
        };
        let chosen = if asked.is_empty() { able } else { asked.and(able) };
        if chosen.is_empty() {
            return Err(none_moves(list.kind, asked));
        }
        let network = !chosen.network().is_empty() && list.kind == MemoryKind::Dram;
        let mut regions = Vec::new();
        if network {
            let memory = list.descs.iter().enumerate().map(|(index, reg)| {
                check(index, reg)?;
                let base = std::ptr::with_exposed_provenance_mut(reg.desc.addr as usize);
                // SAFETY: the caller promises of every descriptor what `RawMemory::new` asks for.
                Ok(unsafe { RawMemory::new(base, reg.desc.len as usize) }.into())
            });
            let memory = memory.collect::<Result<Vec<_>>>()?;
            let agent = inner.network()?;
            let registered = agent.register_many(memory);
            regions = registered.map_err(|error| Error::told(Status::Backend, &error))?;
        }
        let files = match list.kind {
            MemoryKind::File => inner.backends.read().files.clone(),
            _ => None,
        };
        if let Some(files) = files {
            for (index, reg) in list.descs.iter().enumerate() {
                if let Err(error) = files.register(reg) {
                    list.descs[..index].iter().for_each(|reg| files.deregister(reg));
                    return Err(error.into());
                }
            }
        }
        let mut regions = regions.into_iter();
        let mut local = inner.local.lock();
        for reg in &list.descs {
            let one = Registered { backends: chosen, region: regions.next() };
            local.insert(list.kind, reg.desc, one);
        }
        drop(local);
        if let Some(telemetry) = &inner.telemetry {
            telemetry.registered(bytes(list));
        }
        Ok(())
    }

    /// Ends registrations of exactly these descriptors, with the backends named or with all that know this kind, and waits until nothing
    /// touches the memory any more.
    ///
    /// # Errors
    /// [`Status::NotFound`] when one of them is not registered: nothing is deregistered then. [`Status::Backend`] when a transfer still
    /// uses the memory: it is deregistered, and must be kept until the transfer has ended.
    pub fn deregister(&self, list: &RegList, handles: &[Handle]) -> Result<()> {
        let inner = &*self.inner;
        let asked: BackendSet = inner.asked(handles)?.into_iter().collect();
        let mut local = inner.local.lock();
        let chosen = if asked.is_empty() { local.section().table(list.kind).backends() } else { asked };
        if chosen.is_empty() {
            return Err(none_moves(list.kind, asked));
        }
        let mut wanted: HashMap<Desc, usize> = HashMap::with_capacity(list.descs.len());
        for (index, reg) in list.descs.iter().enumerate() {
            let nth = wanted.entry(reg.desc).or_default();
            let known = local.all.get(&(list.kind, reg.desc)).map_or(&[][..], Vec::as_slice);
            // With all backends, what some of them know is enough; those that were named must know it.
            let fits = |one: &&Registered| match asked.is_empty() {
                true => !one.backends.and(chosen).is_empty(),
                false => asked.without(one.backends).is_empty(),
            };
            if known.iter().filter(fits).nth(*nth).is_none() {
                let Desc { addr, len, device } = reg.desc;
                return Err(Error::new(
                    Status::NotFound,
                    format!(
                        "descriptor {index} ({len} bytes at {addr:#x} of device {device}) is not registered with {chosen}"
                    ),
                ));
            }
            *nth += 1;
        }
        let mut freed = Vec::new();
        for (desc, count) in wanted {
            let key = (list.kind, desc);
            let many = local.all.get_mut(&key).expect("looked up above");
            for _ in 0..count {
                let at = many.iter().position(|one| !one.backends.and(chosen).is_empty());
                let at = at.expect("counted above");
                many[at].backends = many[at].backends.without(chosen);
                if many[at].backends.is_empty() {
                    freed.extend(many.swap_remove(at).region);
                }
            }
            if many.is_empty() {
                local.all.remove(&key);
            }
        }
        local.section = None;
        drop(local);
        let files = inner.backends.read().files.clone();
        if let Some(files) = files.filter(|_| list.kind == MemoryKind::File) {
            list.descs.iter().for_each(|reg| files.deregister(reg));
        }
        let deadline = Instant::now() + DRAIN;
        let mut held = None;
        for region in freed {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Err(error) = region.deregister(left) {
                held.get_or_insert(error);
            }
        }
        if let Some(error) = held {
            return Err(
                Error::told(Status::Backend, &error).hint("keep the memory until its transfers have ended")
            );
        }
        if let Some(telemetry) = &inner.telemetry {
            telemetry.deregistered(bytes(list));
        }
        Ok(())
    }

    /// What a backend knows of each descriptor; none of those that do not exist.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] for a handle of no backend, [`Status::NotSupported`] for one that cannot be asked.
    pub fn query(&self, list: &RegList, handle: Handle) -> Result<Vec<Option<crate::backend::Params>>> {
        let kinds = self.inner.asked(&[handle])?;
        match kinds.first() {
            Some(BackendKind::Posix) => Ok(list.descs.iter().map(|reg| files::query(&reg.meta)).collect()),
            kind => {
                let kind = kind.map_or("?", |kind| kind.name());
                Err(Error::new(
                    Status::NotSupported,
                    format!("backend {kind} has nothing to be asked about memory"),
                ))
            }
        }
    }
}

impl Inner {
    /// What is registered here, by address.
    pub(super) fn section(&self) -> Arc<Section> {
        self.local.lock().section()
    }
}

fn bytes(list: &RegList) -> u64 {
    list.descs.iter().fold(0, |sum, reg| sum.saturating_add(reg.desc.len))
}

#[cold]
fn none_moves(kind: MemoryKind, asked: BackendSet) -> Error {
    let kind_name = kind.name();
    let error = match asked.is_empty() {
        true => Error::new(Status::NotFound, format!("no backend of this agent has {kind_name} memory")),
        false => Error::new(Status::Backend, format!("backend {asked} does not move {kind_name} memory")),
    };
    match kind {
        MemoryKind::Vram => error
            .hint("this release of kvrail moves host memory: copy the tensor to pinned host memory first"),
        MemoryKind::File => error.hint("create backend POSIX first"),
        _ => error.hint("create a backend first: UCX or LIBFABRIC for DRAM_SEG, POSIX for FILE_SEG"),
    }
}

/// What cannot be registered with any transport.
fn check(index: usize, reg: &RegDesc) -> Result<()> {
    let Desc { addr, len, .. } = reg.desc;
    let why = match (addr, len, reg.desc.end()) {
        (0, _, _) => "its address is 0",
        (_, 0, _) => "it has no bytes",
        (_, _, None) => "it ends beyond the last address",
        _ => return Ok(()),
    };
    Err(Error::new(
        Status::Backend,
        format!("descriptor {index} ({len} bytes at {addr:#x}) cannot be registered: {why}"),
    ))
}
