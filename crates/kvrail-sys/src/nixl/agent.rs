//! An agent: NIXL's endpoint of a process, its backends, metadata and notifications.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, MutexGuard};

use super::abi::{self, AgentConfig, Functions, Handle};
use super::backend::{Owned, PluginFacts};
use super::error::{NixlError, Status};
use super::library::{Library, text};
use super::turn::Turn;

/// Who calls an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Threads {
    /// One thread at a time; calls of several wait for each other here. NIXL then takes no locks of its own, as its users' default is.
    #[default]
    One,
    /// Several at once, under NIXL's read-write lock and backends that are made for it, as its own benchmark does with threads.
    Several,
}

/// How an agent is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Who calls it.
    pub threads: Threads,
    /// Whether backends make progress on a thread of their own.
    pub progress_thread: bool,
    /// How long that thread waits for events between its rounds, microseconds; 0 is NIXL's default.
    pub progress_delay_us: u64,
}

/// An agent. Clones are the same agent; the last one's end, with all that stands on it, destroys it.
#[derive(Clone)]
pub struct Agent(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) handle: Handle,
    pub(super) library: Arc<Library>,
    pub(super) name: String,
    /// Held during each call under [`Threads::One`].
    turn: Option<Turn<()>>,
    /// Where NIXL puts notifications; one for all calls, so that looking allocates nothing.
    inbox: Turn<Inbox>,
}

struct Inbox(Handle);

// SAFETY: the agent's handle is used by any thread, but by one at a time under `turn`, or under NIXL's own lock when it was created
// for several threads.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}
// SAFETY: a heap object of NIXL's that belongs to no thread; used under the lock around it.
unsafe impl Send for Inbox {}

impl Inner {
    pub(super) fn functions(&self) -> &Functions {
        &self.library.functions
    }

    /// Makes this thread the only one that calls the agent, where NIXL does not see to it.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.as_ref().map(Turn::take)
    }

    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), NixlError> {
        self.library.check(call, code)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let inbox = self.inbox.get_mut().0;
        // SAFETY: made by create_notif_map, and nobody is left who uses it.
        unsafe { (self.functions().destroy_notif_map)(inbox) };
        // SAFETY: made by create_configured_agent; everything that stands on it holds a share of this, and is gone.
        let code = unsafe { (self.functions().destroy_agent)(self.handle) };
        if let Err(error) = self.check("destroy_agent", code) {
            log::error!("agent {}: {error}", self.name);
        }
    }
}

/// A notification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notification<'a> {
    /// The agent that it is from.
    pub from: &'a str,
    /// Its bytes.
    pub message: &'a [u8],
}

impl Agent {
    /// Creates an agent without backends. Its name must be one of its own among all agents that meet.
    ///
    /// # Errors
    /// What NIXL answers; [`Status::InvalidParam`] also for a name that is empty or has a NUL.
    pub fn create(library: &Arc<Library>, name: &str, config: &Config) -> Result<Self, NixlError> {
        let c_name = c_text("create_configured_agent", name)?;
        let several = config.threads == Threads::Several;
        let c_config = AgentConfig {
            enable_prog_thread: config.progress_thread,
            enable_listen_thread: false,
            listen_port: 0,
            thread_sync: if several { abi::SYNC_RW } else { abi::SYNC_NONE },
            num_workers: 1,
            pthr_delay_us: config.progress_delay_us,
            lthr_delay_us: 0,
            capture_telemetry: false,
        };
        let functions = &library.functions;
        let mut inbox = ptr::null_mut();
        // SAFETY: the answer is written to `inbox`.
        let code = unsafe { (functions.create_notif_map)(&mut inbox) };
        library.check("create_notif_map", code)?;
        let mut handle = ptr::null_mut();
        // SAFETY: a C string, a configuration laid out as NIXL's, and a place for the answer.
        let code = unsafe { (functions.create_configured_agent)(c_name.as_ptr(), &c_config, &mut handle) };
        if let Err(error) = library.check("create_configured_agent", code) {
            // SAFETY: made above, used by nobody.
            unsafe { (functions.destroy_notif_map)(inbox) };
            return Err(error);
        }
        Ok(Self(Arc::new(Inner {
            handle,
            library: Arc::clone(library),
            name: name.to_owned(),
            turn: (!several).then(|| Turn::new(())),
            inbox: Turn::new(Inbox(inbox)),
        })))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The backends that it can create, in NIXL's own case. A plugin may be listed and not be loadable.
    ///
    /// # Errors
    /// What NIXL answers.
    pub fn plugins(&self) -> Result<Vec<String>, NixlError> {
        let (inner, functions) = (&self.0, self.0.functions());
        let _turn = inner.turn();
        let mut list = ptr::null_mut();
        // SAFETY: the agent is alive; the answer is written to `list`.
        let code = unsafe { (functions.get_available_plugins)(inner.handle, &mut list) };
        inner.check("get_available_plugins", code)?;
        let list = Owned { handle: list, free: functions.destroy_string_list };
        let mut count = 0;
        // SAFETY: the list is alive; the answer is written to `count`.
        let code = unsafe { (functions.string_list_size)(list.handle, &mut count) };
        inner.check("string_list_size", code)?;
        let mut names = Vec::new();
        for index in 0..count {
            let mut at = ptr::null();
            // SAFETY: as above; an index outside is refused.
            let code = unsafe { (functions.string_list_get)(list.handle, index, &mut at) };
            inner.check("string_list_get", code)?;
            // SAFETY: a string of the list, which is alive.
            names.extend(unsafe { text(at) });
        }
        names.sort();
        Ok(names)
    }

    /// What a plugin says about itself; it is loaded for that.
    ///
    /// # Errors
    /// [`Status::Backend`] when there is no such plugin, or the loader refuses it.
    pub fn plugin_facts(&self, plugin: &str) -> Result<PluginFacts, NixlError> {
        let name = c_text("get_plugin_params", plugin)?;
        let _turn = self.0.turn();
        let (mut memories, mut parameters) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the agent is alive, a C string; the answers are written to both.
        let code = unsafe {
            (self.0.functions().get_plugin_params)(
                self.0.handle,
                name.as_ptr(),
                &mut memories,
                &mut parameters,
            )
        };
        self.0.check("get_plugin_params", code)?;
        self.0.facts(memories, parameters)
    }

    /// What peers need to reach this agent and its registered memory.
    ///
    /// # Errors
    /// What NIXL answers, as without a backend.
    pub fn metadata(&self) -> Result<Vec<u8>, NixlError> {
        let _turn = self.0.turn();
        let (mut data, mut len) = (ptr::null_mut(), 0);
        // SAFETY: the agent is alive; both answers are written.
        let code = unsafe { (self.0.functions().get_local_md)(self.0.handle, &mut data, &mut len) };
        self.0.check("get_local_md", code)?;
        if data.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: `len` bytes that NIXL allocated for us with malloc.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) }.to_vec();
        // SAFETY: from malloc, freed once, and copied.
        unsafe { libc::free(data) };
        Ok(bytes)
    }

    /// Takes in another agent's metadata; that agent's name.
    ///
    /// # Errors
    /// What NIXL answers to bytes that are none, or to an agent without a backend in common.
    pub fn import(&self, metadata: &[u8]) -> Result<String, NixlError> {
        let _turn = self.0.turn();
        let mut name = ptr::null_mut::<c_char>();
        // SAFETY: the agent is alive; so many bytes, which are copied; the answer is written to `name`.
        let code = unsafe {
            (self.0.functions().load_remote_md)(
                self.0.handle,
                metadata.as_ptr().cast(),
                metadata.len(),
                &mut name,
            )
        };
        self.0.check("load_remote_md", code)?;
        // SAFETY: null or a C string that NIXL allocated for us.
        let said = unsafe { text(name) };
        // SAFETY: null or from strdup, freed once, and copied.
        unsafe { libc::free(name.cast()) };
        said.ok_or(NixlError { call: "load_remote_md", status: Status::Backend })
    }

    /// Forgets another agent, and closes what leads to it.
    ///
    /// # Errors
    /// What NIXL answers, as to an agent that it does not know.
    pub fn forget(&self, agent: &str) -> Result<(), NixlError> {
        let name = c_text("invalidate_remote_md", agent)?;
        let _turn = self.0.turn();
        // SAFETY: the agent is alive, a C string.
        let code = unsafe { (self.0.functions().invalidate_remote_md)(self.0.handle, name.as_ptr()) };
        self.0.check("invalidate_remote_md", code)
    }

    /// Hands over what notifications have come, and makes progress where no thread does; how many they were.
    ///
    /// # Errors
    /// What NIXL answers; what came with it has been handed over.
    pub fn notifications(&self, mut each: impl FnMut(Notification<'_>)) -> Result<usize, NixlError> {
        let functions = self.0.functions();
        // Before the turn, everywhere: the inbox is used nowhere else.
        let inbox = self.0.inbox.take();
        let code = {
            let _turn = self.0.turn();
            // SAFETY: agent and map are alive, and the map is ours under its lock.
            unsafe { (functions.get_notifs)(self.0.handle, inbox.0, ptr::null_mut()) }
        };
        let mut agents = 0;
        // SAFETY: the map is alive; the answer is written to `agents`.
        unsafe { (functions.notif_map_size)(inbox.0, &mut agents) };
        let mut count = 0;
        for index in 0..agents {
            let mut from = ptr::null();
            // SAFETY: as above; an index outside is refused, and leaves null.
            unsafe { (functions.notif_map_get_agent_at)(inbox.0, index, &mut from) };
            if from.is_null() {
                continue;
            }
            // SAFETY: a string of the map, which stays until it is cleared below.
            let name = unsafe { CStr::from_ptr(from) }.to_string_lossy();
            let mut messages = 0;
            // SAFETY: the map and its string are alive.
            unsafe { (functions.notif_map_get_notifs_size)(inbox.0, from, &mut messages) };
            for index in 0..messages {
                let (mut data, mut len) = (ptr::null::<c_void>(), 0);
                // SAFETY: as above; both answers are written, or left.
                unsafe { (functions.notif_map_get_notif)(inbox.0, from, index, &mut data, &mut len) };
                let message = match data.is_null() {
                    true => &[][..],
                    // SAFETY: `len` bytes of the map, which stay until it is cleared below.
                    false => unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) },
                };
                each(Notification { from: &name, message });
                count += 1;
            }
        }
        if agents > 0 {
            // SAFETY: the map is alive, and nothing of it is used any more.
            unsafe { (functions.notif_map_clear)(inbox.0) };
        }
        self.0.check("get_notifs", code).map(|()| count)
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({})", self.0.name)
    }
}

/// A C string; a NUL inside is a parameter that NIXL could not be given.
pub(super) fn c_text(call: &'static str, text: &str) -> Result<CString, NixlError> {
    CString::new(text).map_err(|_| NixlError { call, status: Status::InvalidParam })
}
