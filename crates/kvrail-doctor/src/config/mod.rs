//! The settings with which an engine's KV caches travel as well as the host that was looked at allows.
//!
//! [`Facts`] are what decides, asked of the host like everything else; [`compose`] is a pure function of them, of what the checks
//! found and of what was asked for. Each value says why it is there and what it is taken from. What cannot work is refused with the
//! findings that say why, and never written down as if it would.

mod backend;
mod dynamo;
mod fabric;
mod facts;
mod sglang;
mod vllm;
mod write;

#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::finding::Finding;

pub use backend::Backend;
pub use facts::{Facts, Maker, Nic, Nixl};
pub use write::{args, env, json, shell, yaml};

/// What the settings are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// vLLM alone.
    Vllm,
    /// SGLang alone.
    Sglang,
    /// A worker of Dynamo with this engine.
    Dynamo(Worker),
}

/// Engines of Dynamo's workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Worker {
    /// `dynamo.vllm`.
    Vllm,
    /// `dynamo.sglang`.
    Sglang,
    /// `dynamo.trtllm`.
    Trtllm,
}

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Fills KV caches and gives them away.
    Prefill,
    /// Takes KV caches and goes on from there.
    Decode,
    /// Either, as a proxy decides for each request.
    Both,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The engine.
    pub engine: Engine,
    /// What the worker does.
    pub role: Role,
    /// The backend, where the user chose.
    pub backend: Option<Backend>,
    /// The worker's tensor-parallel size.
    pub tensor_parallel: Option<u32>,
    /// That of the workers on the other side.
    pub peer_tensor_parallel: Option<u32>,
}

/// Settings of one worker.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Settings {
    /// What they are for.
    pub engine: Engine,
    /// What the worker does.
    pub role: Role,
    /// What carries the bytes.
    pub backend: Backend,
    /// Why that.
    pub because: String,
    /// What was found on the host, in one line.
    pub found: String,
    /// What to know before it is used.
    pub warnings: Vec<String>,
    /// Environment variables.
    pub variables: Vec<Variable>,
    /// How the worker is started, without the flags.
    pub program: Vec<String>,
    /// Its flags.
    pub flags: Vec<Flag>,
}

/// An environment variable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value here.
    pub value: String,
    /// The field of a pod that has the value, where pods differ in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<&'static str>,
    /// Why it is set, and what its value is taken from.
    pub why: String,
}

/// A flag of the worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Flag {
    /// As it is typed.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// Why it is given, a line for each part of its value that has reasons of its own.
    pub why: Vec<String>,
}

/// Why there are no settings.
#[derive(Clone, PartialEq, Debug)]
pub enum Refusal {
    /// What was asked for is never possible.
    Usage(String),
    /// What was found on the host keeps it from working.
    Found {
        /// What cannot be, in one line.
        what: String,
        /// The findings that say why, and what mends it.
        findings: Vec<Finding>,
        /// What works until then.
        meanwhile: Option<String>,
    },
}

/// The settings of a worker on a host of which these facts are known and this was found.
///
/// # Errors
/// Why they cannot be given.
pub fn compose(facts: &Facts, found: &[&Finding], ask: &Ask) -> Result<Settings, Refusal> {
    sizes(ask)?;
    let (backend, because) = backend::choose(facts, found, ask)?;
    let mut settings = Settings {
        engine: ask.engine,
        role: ask.role,
        backend,
        because,
        found: facts.summary(),
        warnings: Vec::new(),
        variables: fabric::variables(facts, found, backend),
        program: Vec::new(),
        flags: Vec::new(),
    };
    match ask.engine {
        Engine::Vllm => vllm::add(&mut settings, facts, ask, &["vllm", "serve", "$MODEL"]),
        Engine::Sglang => sglang::add(&mut settings, facts, ask, &["python3", "-m", "sglang.launch_server"])?,
        Engine::Dynamo(worker) => dynamo::add(&mut settings, facts, ask, worker)?,
    }
    settings.warnings.extend(backend::warnings(facts, found, ask, backend));
    Ok(settings)
}

fn sizes(ask: &Ask) -> Result<(), Refusal> {
    let (Some(here), Some(there)) = (ask.tensor_parallel, ask.peer_tensor_parallel) else { return Ok(()) };
    if here == 0 || there == 0 || here.max(there) % here.min(there) != 0 {
        return Err(Refusal::Usage(format!(
            "tensor-parallel sizes {here} and {there} do not divide: one side's heads must be a whole multiple of the other's"
        )));
    }
    Ok(())
}

impl Ask {
    /// Whether the two sides are known to divide their heads differently.
    fn differs(&self) -> bool {
        matches!((self.tensor_parallel, self.peer_tensor_parallel), (Some(here), Some(there)) if here != there)
    }
}

impl Settings {
    fn set(&mut self, name: &'static str, value: impl Into<String>, why: impl Into<String>) {
        self.variables.push(Variable { name, value: value.into(), field: None, why: why.into() });
    }

    fn flag(&mut self, name: &'static str, value: impl Into<String>, why: impl Into<String>) {
        self.flags.push(Flag { name, value: value.into(), why: vec![why.into()] });
    }
}
