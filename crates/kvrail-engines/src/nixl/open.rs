//! Opens a NIXL: the library, an agent, its backend; and says why not, which NIXL itself hardly does.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use kvrail_sys::nixl::{Agent, Config, Library, Threads, lacks};

use super::ear::Ear;
use super::options::{Options, absent};
use super::said::Said;
use super::{Nixl, Shared, failed, listened};
use crate::error::{EngineError, Kind};

impl Nixl {
    /// Opens NIXL with one of its backends, for one posting thread until [`lanes`](crate::Engine::lanes) says otherwise.
    ///
    /// # Errors
    /// That there is no NIXL or no such backend, what its plugin lacks on this host and how to get it, or what NIXL answers.
    pub fn open(options: Options) -> Result<Self, EngineError> {
        let installation = options.installation()?;
        // It says its version while it is loaded.
        let ear = Ear::open();
        let library = Library::load(installation);
        let mut said = Said::default();
        said.take_in(&ear.hear());
        let library = library.map_err(|error| absent(&error))?;
        let shared = shared(&library, &options, 1, said)?;
        Ok(Self { options, shared, registered: None, peers: Vec::new() })
    }
}

/// An agent with its backend, for so many posting threads.
pub(super) fn shared(
    library: &Arc<Library>,
    options: &Options,
    threads: u32,
    mut said: Said,
) -> Result<Arc<Shared>, EngineError> {
    let threads = if threads > 1 { Threads::Several } else { Threads::One };
    let config = Config { threads, progress_thread: options.progress_thread, progress_delay_us: 0 };
    let (agent, heard) = listened(library, || Agent::create(library, &agent_name(), &config));
    said.take_in(&heard);
    let agent = agent.map_err(|error| failed(&options.backend, "cannot make an agent", &error, &said))?;
    let name = backend_name(&agent, options, &said)?;
    let (facts, heard) = listened(library, || agent.plugin_facts(&name));
    said.take_in(&heard);
    let facts = facts.map_err(|_| unusable(library, options, &name))?;
    if !facts.memories.iter().any(|memory| memory == "DRAM") {
        let what = format!("NIXL's backend {name} moves {}, not host memory", facts.memories.join(", "));
        return Err(EngineError::new(Kind::Usage, what));
    }
    let (backend, heard) = listened(library, || agent.create_backend(&name, &options.parameters));
    said.take_in(&heard);
    let backend = backend.map_err(|error| {
        let error = failed(&name, "cannot create the backend", &error, &said);
        let listed: Vec<_> = facts.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
        error.hint(format!("parameters that its plugin lists: {}", listed.join(", ")))
    })?;
    Ok(Arc::new(Shared {
        backend,
        agent,
        library: Arc::clone(library),
        name,
        requests: options.requests,
        said: Mutex::new(said),
        heard: AtomicU64::new(0),
        inbox: AtomicU64::new(0),
        admitted: Mutex::new(Vec::new()),
        is_admitting: AtomicBool::new(false),
    }))
}

/// The backend's name in NIXL's own case.
fn backend_name(agent: &Agent, options: &Options, said: &Said) -> Result<String, EngineError> {
    let plugins =
        agent.plugins().map_err(|error| failed(&options.backend, "lists no backends", &error, said))?;
    let found = plugins.iter().find(|name| name.eq_ignore_ascii_case(&options.backend)).cloned();
    found.ok_or_else(|| {
        let what = format!("NIXL has no backend `{}`; it has {}", options.backend, plugins.join(", "));
        EngineError::new(Kind::Usage, what)
    })
}

/// Why a plugin that is listed does not load.
fn unusable(library: &Library, options: &Options, name: &str) -> EngineError {
    let installation = library.installation();
    let Some(file) = installation.plugin(name) else {
        return EngineError::new(Kind::Environment, format!("NIXL's backend {name} has no plugin file"));
    };
    let lacks = lacks(&file);
    let needs: Vec<_> = lacks.iter().map(ToString::to_string).collect();
    let needs = if needs.is_empty() {
        "NIXL refuses it; NIXL_LOG_LEVEL=INFO says why".into()
    } else {
        format!("it needs {}", needs.join("; "))
    };
    let error = EngineError::new(
        Kind::Environment,
        format!("NIXL's backend {name} cannot be loaded from {}: {needs}", file.display()),
    );
    let error = lacks.iter().fold(error, |error, lack| error.hint(lack.hint()));
    let missing = options.surroundings().map(|surroundings| {
        let missing = surroundings.missing_here().into_iter().filter(|name| *name == "LD_LIBRARY_PATH");
        missing.map(str::to_owned).collect::<Vec<_>>()
    });
    match missing {
        Ok(missing) if !missing.is_empty() => error.hint(
            "this process was not started with the LD_LIBRARY_PATH that the backend needs here; the conductor of `kvrail bench` does so",
        ),
        _ => error,
    }
}

/// A name of its own among all agents that meet.
fn agent_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("kvrail-{}-{now:x}", std::process::id())
}
