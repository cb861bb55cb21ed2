//! A backend of an agent: what moves the bytes, with its parameters; and the arguments that choose it in a call.

use std::ffi::c_int;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use super::abi::Handle;
use super::agent::{Agent, Inner, c_text};
use super::error::NixlError;
use super::library::text;

/// Parameters of a plugin or backend that are read at most: more than any has, and an end for an iterator that has none.
const PARAMETERS_MAX: usize = 4096;

/// What a plugin says about itself, or a backend about what it became.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PluginFacts {
    /// Kinds of memory, as in `DRAM`.
    pub memories: Vec<String>,
    /// Parameters with their defaults, or their values; sorted. A plugin may know more than it lists.
    pub parameters: Vec<(String, String)>,
}

impl Agent {
    /// Creates a backend, with parameters of the plugin.
    ///
    /// # Errors
    /// [`Status::Backend`](super::Status::Backend) for whatever goes wrong in it.
    pub fn create_backend(
        &self,
        plugin: &str,
        parameters: &[(String, String)],
    ) -> Result<Backend, NixlError> {
        let functions = self.0.functions();
        let name = c_text("create_backend", plugin)?;
        let mut list = ptr::null_mut();
        // SAFETY: the answer is written to `list`.
        let code = unsafe { (functions.create_params)(&mut list) };
        self.0.check("create_params", code)?;
        let list = Owned { handle: list, free: functions.destroy_params };
        for (key, value) in parameters {
            let (key, value) = (c_text("params_add", key)?, c_text("params_add", value)?);
            // SAFETY: the list is alive; two C strings, which are copied.
            let code = unsafe { (functions.params_add)(list.handle, key.as_ptr(), value.as_ptr()) };
            self.0.check("params_add", code)?;
        }
        let _turn = self.0.turn();
        let mut backend = ptr::null_mut();
        // SAFETY: agent and list are alive, a C string; the answer is written to `backend`.
        let code =
            unsafe { (functions.create_backend)(self.0.handle, name.as_ptr(), list.handle, &mut backend) };
        self.0.check("create_backend", code)?;
        let backend = Owned { handle: backend, free: functions.destroy_backend };
        let arguments = Arguments::new(&self.0)?;
        arguments.add_backend(backend.handle)?;
        Ok(Backend { arguments, handle: backend, inner: Arc::clone(&self.0) })
    }
}

impl Inner {
    /// Reads and frees what a plugin or a backend says.
    pub(super) fn facts(&self, memories: Handle, parameters: Handle) -> Result<PluginFacts, NixlError> {
        let functions = self.functions();
        let memories = Owned { handle: memories, free: functions.destroy_mem_list };
        let parameters = Owned { handle: parameters, free: functions.destroy_params };
        let mut facts = PluginFacts::default();
        let mut count = 0;
        // SAFETY: the list is alive; the answer is written to `count`.
        let code = unsafe { (functions.mem_list_size)(memories.handle, &mut count) };
        self.check("mem_list_size", code)?;
        for index in 0..count {
            let (mut kind, mut at) = (0, ptr::null());
            // SAFETY: as above; an index outside is refused.
            let code = unsafe { (functions.mem_list_get)(memories.handle, index, &mut kind) };
            self.check("mem_list_get", code)?;
            // SAFETY: a kind that it does not know is refused, and leaves null.
            unsafe { (functions.mem_type_to_string)(kind, &mut at) };
            // SAFETY: null or a static string.
            facts.memories.extend(unsafe { text(at) });
        }
        let mut is_empty = true;
        // SAFETY: the list is alive; the answer is written to `is_empty`.
        let code = unsafe { (functions.params_is_empty)(parameters.handle, &mut is_empty) };
        self.check("params_is_empty", code)?;
        if is_empty {
            return Ok(facts);
        }
        let mut iterator = ptr::null_mut();
        // SAFETY: the list is alive, and longer than the iterator; the answer is written to `iterator`.
        let code = unsafe { (functions.params_create_iterator)(parameters.handle, &mut iterator) };
        self.check("params_create_iterator", code)?;
        let iterator = Owned { handle: iterator, free: functions.params_destroy_iterator };
        let mut has_next = true;
        while has_next && facts.parameters.len() < PARAMETERS_MAX {
            let (mut key, mut value) = (ptr::null(), ptr::null());
            // SAFETY: the iterator is alive; three answers are written, or left.
            let code = unsafe {
                (functions.params_iterator_next)(iterator.handle, &mut key, &mut value, &mut has_next)
            };
            self.check("params_iterator_next", code)?;
            // SAFETY: null or a string of the iterator, until its next step.
            let key = unsafe { text(key) };
            // SAFETY: as above.
            let value = unsafe { text(value) };
            facts.parameters.extend(key.zip(value));
        }
        facts.parameters.sort();
        Ok(facts)
    }
}

/// A backend of an agent.
pub struct Backend {
    /// Optional arguments that choose this backend.
    arguments: Arguments,
    /// Only the handle: the backend itself is the agent's.
    handle: Owned,
    pub(super) inner: Arc<Inner>,
}

impl Backend {
    /// What it became: its parameters with their values.
    ///
    /// # Errors
    /// What NIXL answers.
    pub fn facts(&self) -> Result<PluginFacts, NixlError> {
        let _turn = self.inner.turn();
        let (mut memories, mut parameters) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: agent and backend are alive; the answers are written to both.
        let code = unsafe {
            (self.inner.functions().get_backend_params)(
                self.inner.handle,
                self.handle.handle,
                &mut memories,
                &mut parameters,
            )
        };
        self.inner.check("get_backend_params", code)?;
        self.inner.facts(memories, parameters)
    }

    /// Makes the connection to an agent whose metadata was imported, now rather than with the first request. Some backends wait in it
    /// until the other side answers, for as long as they like.
    ///
    /// # Errors
    /// What NIXL answers.
    pub fn connect(&self, agent: &str) -> Result<(), NixlError> {
        let name = c_text("agent_make_connection", agent)?;
        let _turn = self.inner.turn();
        let arguments = self.arguments.as_handle();
        // SAFETY: agent and arguments are alive, a C string.
        let code = unsafe {
            (self.inner.functions().agent_make_connection)(self.inner.handle, name.as_ptr(), arguments)
        };
        self.inner.check("agent_make_connection", code)
    }

    /// Arguments for one call that choose this backend, with a notification.
    pub(super) fn arguments_with(&self, notification: Option<&[u8]>) -> Result<Arguments, NixlError> {
        let arguments = Arguments::new(&self.inner)?;
        arguments.add_backend(self.handle.handle)?;
        if let Some(message) = notification {
            let functions = self.inner.functions();
            let handle = arguments.as_handle();
            // SAFETY: the arguments are alive; so many bytes, which are copied.
            let code =
                unsafe { (functions.opt_args_set_notif_msg)(handle, message.as_ptr().cast(), message.len()) };
            self.inner.check("opt_args_set_notif_msg", code)?;
            // SAFETY: the arguments are alive. After the message: this is what takes it over.
            let code = unsafe { (functions.opt_args_set_has_notif)(handle, true) };
            self.inner.check("opt_args_set_has_notif", code)?;
        }
        Ok(arguments)
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend(of {})", self.inner.name)
    }
}

/// Optional arguments of a call.
pub(super) struct Arguments {
    owned: Owned,
    inner: Arc<Inner>,
}

impl Arguments {
    fn new(inner: &Arc<Inner>) -> Result<Self, NixlError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the answer is written to `handle`.
        let code = unsafe { (inner.functions().create_opt_args)(&mut handle) };
        inner.check("create_opt_args", code)?;
        let owned = Owned { handle, free: inner.functions().destroy_opt_args };
        Ok(Self { owned, inner: Arc::clone(inner) })
    }

    fn add_backend(&self, backend: Handle) -> Result<(), NixlError> {
        // SAFETY: arguments and backend are alive; the agent's engine, which is put into the list, lives as long as the agent.
        let code = unsafe { (self.inner.functions().opt_args_add_backend)(self.owned.handle, backend) };
        self.inner.check("opt_args_add_backend", code)
    }

    pub(super) const fn as_handle(&self) -> Handle {
        self.owned.handle
    }
}

/// An object of NIXL's heap that is freed by one function, which touches nothing else.
pub(super) struct Owned {
    pub(super) handle: Handle,
    pub(super) free: unsafe extern "C" fn(Handle) -> c_int,
}

// SAFETY: plain heap objects that belong to no thread.
unsafe impl Send for Owned {}
// SAFETY: through a shared reference the handle is only given to functions that read the object.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by NIXL for us, and freed once.
        unsafe { (self.free)(self.handle) };
    }
}
