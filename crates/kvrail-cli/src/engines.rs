//! Engines, as the command line names them: which ones, which of their ways, and how each is made.
//!
//! `NAME` or `NAME:WAY`, where a way is what the engine itself chooses among: a transport of kvrail, a backend of NIXL, the
//! transports of UCX (joined by `+`), a provider of libfabric. The way travels to the target with the engine's name; paths of
//! libraries do not: they are each host's own.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kvrail::{Agent, TransportConfig};
use kvrail_engines::{
    Engine, EngineError, Kind, Kvrail, KvrailOptions, Name, Plant, libfabric, memcpy, nixl, ucx,
};
use serde::{Deserialize, Serialize};

use crate::case::{Cooperate, Progress, Transport};
use crate::failure::Failure;
use crate::ofi;
use crate::signals;

/// Which engine, and which of its ways.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Choice {
    pub(crate) name: Name,
    pub(crate) way: Option<String>,
}

impl Choice {
    /// An engine that chooses its way itself.
    pub(crate) const fn plain(name: Name) -> Self {
        Self { name, way: None }
    }

    /// The transport of kvrail that it names.
    pub(crate) fn transport(&self) -> Option<Transport> {
        let way = self.way.as_deref().filter(|_| self.name == Name::Kvrail)?;
        Transport::from_str(way, true).ok()
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            None => f.pad(self.name.as_str()),
            Some(way) => f.pad(&format!("{}:{way}", self.name)),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, way) = match text.split_once(':') {
            None => (text, None),
            Some((_, "")) => return Err(format!("`{text}` names no way behind its colon")),
            Some((name, way)) => (name, Some(way.to_owned())),
        };
        let name: Name = name.parse()?;
        match (name, &way) {
            (Name::Kvrail, Some(way)) => {
                Transport::from_str(way, true)
                    .map_err(|_| format!("kvrail has no transport `{way}`; it has auto, shm, ofi, tcp"))?;
            }
            (Name::Memcpy, Some(way)) => return Err(format!("memcpy has no ways; `{way}` is none")),
            _ => {}
        }
        Ok(Self { name, way })
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        choice.to_string()
    }
}

/// What `--engine` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Named {
    /// Every engine and way that is worth a row; those that are not here are left out, and that is said.
    All,
    /// This one.
    One(Choice),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::One) }
    }
}

/// What `all` stands for. libfabric itself goes over TCP where there is no RDMA NIC.
fn all(has_rdma: bool) -> Vec<Choice> {
    let way = |name, way: &str| Choice { name, way: Some(way.into()) };
    let libfabric = if has_rdma { Choice::plain(Name::Libfabric) } else { way(Name::Libfabric, "tcp") };
    vec![
        Choice::plain(Name::Kvrail),
        way(Name::Nixl, "UCX"),
        way(Name::Nixl, "LIBFABRIC"),
        Choice::plain(Name::Ucx),
        libfabric,
        Choice::plain(Name::Memcpy),
    ]
}

/// Whether the kernel has an RDMA device.
pub(crate) fn has_rdma() -> bool {
    std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
}

/// Flags of engines that are not kvrail's own.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "Engines")]
#[group(id = "engines")]
pub(crate) struct Flags {
    /// Engines, comma-separated; several take turns: kvrail, nixl, ucx, libfabric, memcpy, or NAME:WAY as in kvrail:tcp,
    /// nixl:LIBFABRIC, ucx:tcp+self, libfabric:tcp; all: those that are here [default: kvrail]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) engine: Vec<Named>,
    /// Backend of nixl, in any case [default: UCX]
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: Option<String>,
    /// Transports of ucx, comma-separated, as in UCX_TLS [default: UCX chooses]
    #[arg(long, value_name = "NAMES")]
    pub(crate) ucx_tls: Option<String>,
    /// libnixl_capi.so, or a wheel or virtual environment with it; this side's [default: searched for]
    #[arg(long, value_name = "PATH")]
    pub(crate) nixl: Option<PathBuf>,
    /// libucp.so.0 or its directory; this side's [default: searched for]
    #[arg(long, value_name = "PATH")]
    pub(crate) ucx: Option<PathBuf>,
    /// Whether this host has an RDMA NIC: no flag, but what `all` depends on.
    #[arg(skip)]
    pub(crate) has_rdma: bool,
}

impl Flags {
    /// Whether engines that are not here are left out.
    pub(crate) fn is_all(&self) -> bool {
        self.engine == [Named::All]
    }

    /// The engines to measure, in order: what --backend and --ucx-tls say is their way.
    ///
    /// # Errors
    /// A usage failure when one is named twice, or a flag belongs to none of them.
    pub(crate) fn choices(&self) -> Result<Vec<Choice>, Failure> {
        let mut choices = match self.engine.as_slice() {
            [] => vec![Choice::plain(Name::Kvrail)],
            [Named::All] => all(self.has_rdma),
            named => {
                let one = |named: &Named| match named {
                    Named::All => Err(Failure::usage("--engine all stands alone")),
                    Named::One(choice) => Ok(choice.clone()),
                };
                named.iter().map(one).collect::<Result<Vec<_>, _>>()?
            }
        };
        let ucx_tls = self.ucx_tls.as_ref().map(|tls| tls.replace(',', "+"));
        for (flag, name, way) in
            [("--backend", Name::Nixl, &self.backend), ("--ucx-tls", Name::Ucx, &ucx_tls)]
        {
            let Some(way) = way else { continue };
            let mut taken = false;
            if self.is_all() {
                return Err(Failure::usage(format!("{flag} and --engine all contradict each other")));
            }
            for choice in choices.iter_mut().filter(|c| c.name == name && c.way.is_none()) {
                choice.way = Some(way.clone());
                taken = true;
            }
            if !taken {
                return Err(Failure::usage(format!("{flag} has no effect without --engine {name}")));
            }
        }
        for (i, choice) in choices.iter().enumerate() {
            if choices[..i].contains(choice) {
                return Err(Failure::usage(format!("--engine names {choice} twice")));
            }
        }
        Ok(choices)
    }
}

/// What an engine is made of.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub(crate) engine: &'a Choice,
    /// Name of an agent, unique on both hosts.
    pub(crate) name: &'a str,
    pub(crate) transport: Transport,
    pub(crate) cooperate: Cooperate,
    /// Where tcp listens.
    pub(crate) ip: &'a str,
    pub(crate) ofi: &'a ofi::Flags,
    /// Where this side's libraries are.
    pub(crate) libraries: &'a Flags,
    pub(crate) progress: Progress,
    /// A defect on its path, to see it found.
    pub(crate) plant: Option<Plant>,
    /// Deadline of a transfer.
    pub(crate) timeout: Duration,
}

/// An engine, and the agent below it if it is kvrail.
pub(crate) type Made = (Box<dyn Engine>, Option<Agent>);

/// Makes an engine.
///
/// # Errors
/// When this host lacks what it needs.
pub(crate) fn create(setup: Setup<'_>) -> Result<Made, EngineError> {
    match setup.engine.name {
        Name::Kvrail => kvrail(setup),
        Name::Nixl => {
            let options = nixl_options(setup.engine, setup.libraries, setup.progress);
            Ok((Box::new(nixl::Nixl::open(options)?), None))
        }
        Name::Ucx => {
            let tls = setup.engine.way.as_ref().map(|way| way.replace('+', ","));
            let config = ucx::Config { library: setup.libraries.ucx.clone(), tls, ..ucx::Config::default() };
            Ok((Box::new(ucx::Ucx::open(config)?), None))
        }
        Name::Libfabric => {
            let options = libfabric_options(setup.engine, setup.ofi)?;
            Ok((Box::new(libfabric::Libfabric::open(&options)?), None))
        }
        Name::Memcpy => Ok((Box::new(memcpy::Memcpy::new()), None)),
        other => {
            Err(EngineError::new(Kind::Environment, format!("this build of kvrail has no engine {other}")))
        }
    }
}

fn libfabric_options(choice: &Choice, flags: &ofi::Flags) -> Result<libfabric::Options, EngineError> {
    let given = flags.provider.clone().unwrap_or_default();
    let provider = match &choice.way {
        None => given,
        Some(way) => {
            way.parse().map_err(|e: kvrail::ofi::OpenError| EngineError::new(Kind::Usage, e.to_string()))?
        }
    };
    Ok(libfabric::Options {
        library: flags.libfabric.clone(),
        provider,
        devices: flags.devices.clone(),
        rails: flags.rails,
        depth: None,
    })
}

fn nixl_options(choice: &Choice, flags: &Flags, progress: Progress) -> nixl::Options {
    let default = nixl::Options::default();
    nixl::Options {
        library: flags.nixl.clone(),
        backend: choice.way.clone().unwrap_or(default.backend),
        progress_thread: progress == Progress::Thread,
        ..default
    }
}

/// What a process is to be started with that will hold this engine.
///
/// # Errors
/// When the engine is not there.
pub(crate) fn surroundings(choice: &Choice, flags: &Flags) -> Result<Vec<(String, OsString)>, EngineError> {
    Ok(match choice.name {
        Name::Nixl => {
            let surroundings = nixl_options(choice, flags, Progress::Inline).surroundings()?;
            surroundings.variables().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        }
        Name::Ucx => {
            ucx::surroundings().into_iter().map(|(name, value)| (name.into(), value.into())).collect()
        }
        _ => Vec::new(),
    })
}

/// Whether an engine is other people's code: it may hang and crash, also at the end of its process, and so has one of its own.
pub(crate) const fn is_foreign(name: Name) -> bool {
    !matches!(name, Name::Kvrail | Name::Memcpy)
}

/// Ends this process without the destructors of libraries, which crash where two copies of one were loaded.
pub(crate) fn leave(code: i32) -> ! {
    nixl::leave(code)
}

fn kvrail(setup: Setup<'_>) -> Result<Made, EngineError> {
    let Setup { name, transport, cooperate, ip, ofi, progress, timeout, .. } = setup;
    let address = if ip.contains(':') { format!("[{ip}]:0") } else { format!("{ip}:0") };
    let shm = TransportConfig::shm().cooperate(cooperate == Cooperate::On);
    let transports = match transport {
        Transport::Auto => vec![shm, ofi.transport().if_possible(), TransportConfig::tcp(address)],
        Transport::Shm => vec![shm],
        Transport::Ofi => vec![ofi.transport()],
        Transport::Tcp => vec![TransportConfig::tcp(address)],
    };
    let progress = match progress {
        Progress::Inline => kvrail::Progress::Inline,
        Progress::Thread => kvrail::Progress::Thread,
    };
    let options =
        KvrailOptions { name: name.into(), transports, progress, timeout, interrupted: signals::interrupted };
    let engine = Kvrail::create(options)?;
    let agent = engine.agent().clone();
    Ok((Box::new(engine), Some(agent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_and_its_way_survive_the_wire() {
        for text in ["kvrail", "kvrail:tcp", "nixl:LIBFABRIC", "ucx:tcp+self", "libfabric:tcp", "memcpy"] {
            let choice: Choice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<Choice>(&json).unwrap(), choice);
        }
        for text in ["", "nccl", "kvrail:", "kvrail:rdma", "memcpy:fast"] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_flag_belongs_to_its_engine() {
        let flags = |engines: &[&str]| Flags {
            engine: engines.iter().map(|e| e.parse().unwrap()).collect(),
            ..Flags::default()
        };
        assert_eq!(flags(&[]).choices().unwrap(), [Choice::plain(Name::Kvrail)]);
        let all: Vec<String> = flags(&["all"]).choices().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(all, ["kvrail", "nixl:UCX", "nixl:LIBFABRIC", "ucx", "libfabric:tcp", "memcpy"]);
        let backend = Flags { backend: Some("LIBFABRIC".into()), ..flags(&["kvrail", "nixl"]) };
        assert_eq!(backend.choices().unwrap()[1].to_string(), "nixl:LIBFABRIC");
        let tls = Flags { ucx_tls: Some("tcp,self".into()), ..flags(&["ucx"]) };
        assert_eq!(tls.choices().unwrap()[0].to_string(), "ucx:tcp+self");
        for bad in [
            Flags { backend: Some("UCX".into()), ..flags(&["kvrail"]) },
            Flags { backend: Some("UCX".into()), ..flags(&["nixl:LIBFABRIC"]) },
            flags(&["ucx", "ucx"]),
            flags(&["all", "ucx"]),
            Flags { backend: Some("UCX".into()), ..flags(&["all"]) },
        ] {
            assert!(bad.choices().is_err(), "{bad:?}");
        }
    }
}
