//! What carries the bytes: chosen by what is there, refused where a finding says that it cannot work.

use serde::Serialize;

use super::facts::{Facts, Maker};
use super::{Ask, Engine, Refusal, Worker};
use crate::finding::Finding;
use crate::rule::Severity;

/// What carries the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// NIXL's plugin for libfabric.
    Libfabric,
    /// NIXL's plugin for UCX.
    Ucx,
    /// kvrail in NIXL's place, which answers to both names.
    Kvrail,
}

/// Rules whose findings mean that nothing of NIXL can be loaded.
const NIXL: [&str; 3] = ["nixl-missing", "nixl-not-usable", "cuda-major-mismatch"];
/// Rules about one plugin, whose name their findings say.
const PLUGIN: [&str; 3] =
    ["plugin-libfabric-too-old", "plugin-library-missing", "nixl-core-libraries-hidden"];
/// Rules whose findings mean that libfabric has no EFA, or not one that works.
const EFA: [&str; 9] = [
    "bundled-efa-libraries",
    "rdma-provider-abi",
    "efa-driver-libfabric-mismatch",
    "efa-driver-missing",
    "efa-device-hidden",
    "uverbs-permission",
    "efa-not-offered",
    "efa-install-not-mounted",
    "memlock",
];
/// Rules whose findings mean that RDMA memory cannot be registered or devices not be opened.
const RDMA: [&str; 2] = ["uverbs-permission", "memlock"];

impl Backend {
    /// The name that NIXL's callers give it.
    #[must_use]
    pub const fn nixl_name(self) -> &'static str {
        match self {
            Self::Libfabric => "LIBFABRIC",
            Self::Ucx | Self::Kvrail => "UCX",
        }
    }

    /// Its name for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Libfabric => "LIBFABRIC",
            Self::Ucx => "UCX",
            Self::Kvrail => "kvrail",
        }
    }

    fn blocked_by(self, facts: &Facts, finding: &Finding) -> bool {
        let id = finding.rule.id;
        if finding.severity < Severity::Error {
            return false;
        }
        let efa = facts.efas() > 0 || facts.nics.is_empty();
        match self {
            Self::Libfabric => {
                NIXL.contains(&id)
                    || PLUGIN.contains(&id) && names(finding, "LIBFABRIC")
                    || efa && EFA.contains(&id)
            }
            Self::Ucx => {
                NIXL.contains(&id)
                    || PLUGIN.contains(&id) && names(finding, "UCX")
                    || facts.nics_of(Maker::Mellanox).next().is_some() && RDMA.contains(&id)
            }
            Self::Kvrail => facts.efas() > 0 && EFA.contains(&id) && id != "bundled-efa-libraries",
        }
    }
}

/// Whether a finding about plugins is about this one. NIXL's core libraries are everybody's.
fn names(finding: &Finding, backend: &str) -> bool {
    let everybodys = finding.rule.id == "nixl-core-libraries-hidden";
    let evidence = finding.evidence.iter().flat_map(|evidence| [&evidence.source, &evidence.seen]);
    everybodys || evidence.chain([&finding.title]).any(|text| text.contains(backend))
}

/// The backend, and why that one.
pub(super) fn choose(facts: &Facts, found: &[&Finding], ask: &Ask) -> Result<(Backend, String), Refusal> {
    let is_kvrail = facts.nixl.as_ref().is_some_and(|nixl| nixl.is_kvrail);
    let (backend, because) = match ask.backend {
        Some(Backend::Kvrail) if facts.nixl.is_some() && !is_kvrail => {
            return Err(Refusal::Usage(
                "`import nixl` is NIXL's here and not kvrail's: pip uninstall -y nixl nixl-cu12 nixl-cu13 && pip install kvrail-nixl".into(),
            ));
        }
        Some(Backend::Libfabric | Backend::Ucx) if is_kvrail => {
            (Backend::Kvrail, "kvrail is in NIXL's place here, and answers to LIBFABRIC and UCX alike".into())
        }
        Some(backend) => (backend, "as asked for".to_string()),
        None if is_kvrail => {
            (Backend::Kvrail, "kvrail is in NIXL's place here (distribution kvrail-nixl)".into())
        }
        None if facts.efas() > 0 => {
            (Backend::Libfabric, format!("{} EFA devices are here, which libfabric drives", facts.efas()))
        }
        None if facts.nics_of(Maker::Mellanox).next().is_some() => {
            (Backend::Ucx, "InfiniBand or RoCE devices are here, which UCX drives".into())
        }
        None => (Backend::Ucx, "no RDMA device is here: UCX goes over TCP between hosts".into()),
    };
    if backend == Backend::Kvrail && !moves_host_memory(ask.engine) {
        return Err(Refusal::Usage(format!(
            "{} registers GPU memory, and this release of kvrail moves host memory: install NIXL's own wheel for it",
            name(ask.engine)
        )));
    }
    let mut findings: Vec<Finding> = found
        .iter()
        .filter(|finding| backend.blocked_by(facts, finding))
        .map(|finding| (*finding).clone())
        .collect();
    if findings.is_empty() {
        return Ok((backend, because));
    }
    // The file names of one plugin say the same for each of its libraries: each rule once.
    findings.dedup_by(|a, b| a.rule.id == b.rule.id && a.title == b.title);
    let other = if backend == Backend::Ucx { Backend::Libfabric } else { Backend::Ucx };
    let works = backend != Backend::Kvrail && !found.iter().any(|finding| other.blocked_by(facts, finding));
    let meanwhile = match other {
        Backend::Ucx if works && facts.nics_of(Maker::Mellanox).next().is_none() => Some(
            "--backend ucx works meanwhile, over TCP between hosts: right, and many times slower".to_string(),
        ),
        _ if works && (other != Backend::Libfabric || facts.efas() > 0) => {
            Some(format!("--backend {} works meanwhile", other.word().to_ascii_lowercase()))
        }
        _ => None,
    };
    Err(Refusal::Found {
        what: format!("{} cannot carry KV caches here", backend.word()),
        findings,
        meanwhile,
    })
}

/// Whether an engine can keep KV caches for transfer in host memory.
fn moves_host_memory(engine: Engine) -> bool {
    matches!(engine, Engine::Vllm | Engine::Dynamo(Worker::Vllm))
}

pub(super) fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::Vllm => "vLLM",
        Engine::Sglang => "SGLang",
        Engine::Dynamo(Worker::Vllm) => "Dynamo's vLLM worker",
        Engine::Dynamo(Worker::Sglang) => "Dynamo's SGLang worker",
        Engine::Dynamo(Worker::Trtllm) => "Dynamo's TensorRT-LLM worker",
    }
}

/// What to know before settings are used.
pub(super) fn warnings(facts: &Facts, found: &[&Finding], ask: &Ask, backend: Backend) -> Vec<String> {
    let mut warnings = Vec::new();
    if facts.nixl.is_none() {
        warnings.push("no NIXL was found in the Python environments that were looked at; name the engine's by --python DIR".into());
    }
    if backend == Backend::Libfabric {
        warnings.push(
            "KV caches that arrive as zeros are reported of NIXL's LIBFABRIC plugin under vLLM although benchmarks pass: compare answers with those of a single worker before this serves anybody".into(),
        );
        if ask.differs() {
            warnings.push(
                "unequal tensor-parallel sizes over LIBFABRIC are reported to hang with `RKEY not registered`: test them, or use equal sizes".into(),
            );
        }
    }
    if backend == Backend::Ucx && facts.efas() > 0 {
        warnings.push(
            "UCX without its EFA transport goes over TCP here: 0.2 GB/s were seen where LIBFABRIC had 12"
                .into(),
        );
    }
    let serious = found.iter().filter(|finding| finding.severity > Severity::Note);
    let said: Vec<String> =
        serious.map(|finding| format!("{} [{}]", finding.title, finding.rule.id)).collect();
    match said.as_slice() {
        [] => {}
        [one] => warnings.push(format!("kvrail doctor found here: {one}")),
        [first, rest @ ..] => {
            warnings.push(format!("kvrail doctor found here: {first}, and {} more", rest.len()));
        }
    }
    warnings
}
