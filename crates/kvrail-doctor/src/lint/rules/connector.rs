//! vLLM's `--kv-transfer-config`, SGLang's transfer backend, and the NIXL backends that they name.

use super::super::facts::{Engine, EngineKind, Role, Workload, connectors, option};
use super::super::read::{Node, Position, Word};
use super::{Look, NIXL_BACKENDS, NIXL_COMPATIBILITY, NIXL_USAGE, Reference, rule};
use crate::finding::Finding;
use crate::known::{self, Backend};
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[
    &JSON,
    &KEY,
    &CONNECTOR,
    &ROLE,
    &BUFFER,
    &BACKENDS,
    &BACKEND_NAME,
    &DEFAULT_BACKEND,
    &LIBFABRIC_VLLM,
    &FAILURE_POLICY,
];

const CONFIG: Reference = Reference {
    title: "vLLM: KVTransferConfig",
    url: "https://docs.vllm.ai/en/latest/api/vllm/config/kv_transfer/",
};
const DEFAULT_UCX: Reference = Reference {
    title: "vLLM: NixlConnector takes UCX unless backends are named",
    url: "https://github.com/vllm-project/vllm/issues/41814",
};

static JSON: Rule = rule(
    "lint-kv-config-json",
    Severity::Error,
    "a kv-transfer-config is no JSON",
    [
        "vLLM reads --kv-transfer-config with a strict JSON parser, and the text is none.",
        "Use double quotes for names and strings, no comma behind the last entry, true and false in lower case; single quotes around the whole for the shell.",
        "vLLM ends at once with an error about the argument's value. What is copied from Python (`'kv_role'`, `True`, a comma behind the last entry, a comment) is no JSON, and \
without quotes around the whole a shell takes the double quotes away, so that vLLM sees {kv_connector:NixlConnector}. In YAML a block (`|` or `>-`) or single quotes keep it as it is.",
    ],
    &[CONFIG, NIXL_USAGE],
);

static KEY: Rule = rule(
    "lint-kv-config-key",
    Severity::Error,
    "a kv-transfer-config has a field that vLLM does not know",
    [
        "The field is none of KVTransferConfig's, so that vLLM refuses it; what belongs to a connector goes into kv_connector_extra_config.",
        "Use the name that was meant, or move the field into kv_connector_extra_config.",
        "`Unexpected keyword argument` from vLLM's validation of its arguments, or, in a launcher that passes on only what it knows, a setting without any effect. Names that look alike are \
taken for each other: `kv_connector_extra_config` is not `extra_config`, `kv_load_failure_policy` is a field of its own, and `backends` belongs to the connector.",
    ],
    &[CONFIG],
);

static CONNECTOR: Rule = rule(
    "lint-kv-connector",
    Severity::Error,
    "a kv_connector that vLLM does not have",
    [
        "vLLM looks the connector up by its exact name, and this one is misspelt.",
        "Use the exact name, as in NixlConnector.",
        "`Unsupported connector type` when the engine starts. Names are compared letter by letter. A connector of somebody's own is found through kv_connector_module_path, and then any name is right; \
without it only those that vLLM registers are.",
    ],
    &[CONFIG, NIXL_USAGE],
);

static ROLE: Rule = rule(
    "lint-kv-role",
    Severity::Error,
    "a kv_role that is none, or none at all",
    [
        "vLLM takes kv_producer, kv_consumer and kv_both, and needs one of them with every connector.",
        "Set kv_role to kv_producer (prefill), kv_consumer (decode) or kv_both.",
        "vLLM ends with `Unsupported kv_role` or asks for one. `prefill`, `decode`, `producer` and `consumer` are what people write from memory. NixlConnector itself makes no difference between \
the roles, as the proxy decides who prefills; other connectors do, so that two producers or two consumers never exchange anything.",
    ],
    &[CONFIG, NIXL_USAGE],
);

static BUFFER: Rule = rule(
    "lint-kv-buffer-device",
    Severity::Warning,
    "KV caches go through host memory, or through a device that does not exist",
    [
        "kv_buffer_device says from which memory NIXL transfers: cpu means a copy to the host on one side and back on the other.",
        "Leave kv_buffer_device out, or set it to cuda, where the NIC can reach the GPU's memory.",
        "Transfers are right and several times slower than the network, while PCIe is busy in both directions. cpu is there for accelerators whose memory NIXL cannot register, and as a way around a missing \
GPUDirect; there it is the right setting and this warning can be ignored. `gpu` and `cuda:0` are not values that vLLM takes.",
    ],
    &[CONFIG],
);

static BACKENDS: Rule = rule(
    "lint-kv-backends",
    Severity::Error,
    "NIXL backends at a place or in a form in which they are not read",
    [
        "The NIXL connector reads kv_connector_extra_config.backends as a list; elsewhere nobody reads it, and a string is taken letter by letter.",
        "Write \"kv_connector_extra_config\": {\"backends\": [\"LIBFABRIC\"]}.",
        "Either the backend has no effect and UCX is used in silence, or NIXL is asked for the plugins `U`, `C` and `X`. With an empty list no backend is created and the first registration fails. vLLM's default is UCX, whatever \
FI_PROVIDER or NIXL_BACKEND say.",
    ],
    &[NIXL_USAGE, DEFAULT_UCX],
);

static BACKEND_NAME: Rule = rule(
    "lint-backend-name",
    Severity::Error,
    "a NIXL backend in a case or spelling that NIXL does not know",
    [
        "NIXL finds plugins by their exact names (a file libplugin_LIBFABRIC.so), and the name differs from that of a plugin.",
        "Write the name as NIXL does: LIBFABRIC, UCX, GDS, POSIX.",
        "`nixlNotFoundError`, or a backend that is reported as missing although its plugin is there. Documents write Libfabric and libfabric in prose and in examples alike; nixlbench, vLLM and SGLang pass the text on as it is, and NIXL compares letter by letter.",
    ],
    &[NIXL_BACKENDS, NIXL_USAGE],
);

static DEFAULT_BACKEND: Rule = rule(
    "lint-default-backend",
    Severity::Warning,
    "an engine on EFA takes NIXL's default backend, UCX",
    [
        "Without a list of backends vLLM's NIXL connector and SGLang ask NIXL for UCX, whatever devices and libfabric variables there are.",
        "Name the backend: LIBFABRIC for EFA.",
        "5 to 10 seconds for each transfer, logs full of `WaitingForInput`, EFA counters that stay at 0: UCX without a transport for EFA goes over TCP, or over unreliable datagrams at 0.18 GB/s. Nothing says so, since for UCX nothing is wrong. In NIXL's log `Backend LIBFABRIC was instantiated` is missing. \
FI_PROVIDER=efa is a setting of libfabric, which UCX does not load. A UCX with its own EFA transport (srd) is faster than that; measure before you rely on it.",
    ],
    &[NIXL_USAGE, DEFAULT_UCX, NIXL_BACKENDS],
);

static LIBFABRIC_VLLM: Rule = rule(
    "lint-libfabric-vllm",
    Severity::Warning,
    "vLLM over NIXL's LIBFABRIC backend, which has corrupted KV caches in some versions",
    [
        "With NIXL's LIBFABRIC backend vLLM has received zeros for KV blocks, and has hung where the tensor-parallel sizes differ.",
        "Hold your versions against themselves: the same prompts at temperature 0 must give the same tokens with and without disaggregation. Until they do, UCX is slow and right.",
        "Output is gibberish, blocks have mean 0.0, or a decode engine waits for ever; micro-benchmarks over the same network pass at full rate. Reported with vLLM 0.11 and NIXL 0.6.1 on P5; later releases changed what was suspected (offsets of descriptors, ids of transfers that wrap, \
the rail of a remote key), and no release is known to be right for every configuration. It is a reason to test, not a verdict.",
    ],
    &[
        Reference {
            title: "vLLM: prefill disaggregation failed KV transfer with EFA",
            url: "https://github.com/vllm-project/vllm/issues/27055",
        },
        NIXL_COMPATIBILITY,
    ],
);

static FAILURE_POLICY: Rule = rule(
    "lint-kv-load-failure-policy",
    Severity::Error,
    "what is done about failed KV transfers is not what a value says, or hides them",
    [
        "kv_load_failure_policy is fail (the request ends with an error) or recompute (the decode engine prefills by itself).",
        "Set fail while transfers are being made to work, so that failures are seen.",
        "Another value is refused when the engine starts. With recompute every failed transfer is silently prefilled again on the decode engine: a network that loses all transfers looks like a slow model, with good output and a poor time between tokens. \
It is a choice for production, where an answer late is better than none, and then the connector's count of failed transfers has to be watched.",
    ],
    &[NIXL_USAGE],
);

pub(crate) fn look(look: &mut Look<'_>) {
    for broken in look.broken {
        let finding = Finding::new(&JSON, format!("the kv-transfer-config is no JSON: {}", broken.what)).fix(
            "for a shell, in single quotes",
            "--kv-transfer-config '{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_both\"}'",
        );
        look.find(broken.file, broken.at, finding);
    }
    let facts = look.facts;
    for workload in &facts.workloads {
        names(look, workload);
        for engine in &workload.engines {
            if let Some(config) = &engine.config {
                for connector in connectors(config, 0) {
                    fields(look, workload, connector);
                    values(look, workload, engine, connector);
                    backends(look, workload, connector);
                }
            }
            defaults(look, workload, engine);
        }
    }
}

fn fields(look: &mut Look<'_>, workload: &Workload, config: &Node) {
    for (key, value) in config.entries() {
        if known::KV_TRANSFER_KEYS.contains(&key.name.as_str()) || key.name == "backends" {
            continue;
        }
        let title = format!("vLLM knows no field {} in a kv-transfer-config", key.name);
        let finding = Finding::new(&KEY, title);
        let finding = match known::alike(&key.name, known::KV_TRANSFER_KEYS) {
            Some(meant) => finding.fix("what was meant", format!("\"{meant}\": {}", json(value))),
            None => finding.confidence(Confidence::Likely).fix(
                "if it is the connector's",
                format!("\"kv_connector_extra_config\": {{\"{}\": {}}}", key.name, json(value)),
            ),
        };
        look.find(workload.file, key.at, finding);
    }
}

fn json(node: &Node) -> String {
    node.str().map_or_else(|| "…".to_owned(), |text| format!("\"{text}\""))
}

fn values(look: &mut Look<'_>, workload: &Workload, engine: &Engine, config: &Node) {
    let file = workload.file;
    if let Some(node) = config.get("kv_connector")
        && let Some(name) = node.str()
        && config.get("kv_connector_module_path").is_none()
        && !known::KV_CONNECTORS.contains(&name)
        && let Some(meant) = known::alike(name, known::KV_CONNECTORS)
    {
        let finding = Finding::new(&CONNECTOR, format!("vLLM has no connector {name}; {meant} was meant"))
            .confidence(Confidence::Likely)
            .fix("its name", format!("\"kv_connector\": \"{meant}\""));
        look.find(file, node.at, finding);
    }
    match config.get("kv_role") {
        Some(node) => {
            let role = node.str().unwrap_or_default();
            if !known::KV_ROLES.contains(&role) && !role.contains('$') {
                let meant = match role.to_ascii_lowercase() {
                    role if role.contains("prod") || role.contains("prefill") || role.contains("send") => {
                        "kv_producer"
                    }
                    role if role.contains("cons") || role.contains("decod") || role.contains("rec") => {
                        "kv_consumer"
                    }
                    _ => "kv_both",
                };
                let finding = Finding::new(&ROLE, format!("{role} is no kv_role"))
                    .fix("its value", format!("\"kv_role\": \"{meant}\""));
                look.find(file, node.at, finding);
            }
        }
        None if config.get("kv_connector").is_some() => {
            let role = match engine.role {
                Some(Role::Prefill) => "kv_producer",
                Some(Role::Decode) => "kv_consumer",
                None => "kv_both",
            };
            let finding = Finding::new(&ROLE, "a kv_connector without a kv_role")
                .fix("beside it", format!("\"kv_role\": \"{role}\""));
            look.find(file, config.key("kv_connector").unwrap_or(config.at), finding);
        }
        None => {}
    }
    if let Some(node) = config.get("kv_buffer_device") {
        let device = node.str().unwrap_or_default();
        let finding = match device {
            "cuda" | "xpu" | "tpu" | "hpu" | "npu" => None,
            "cpu" => Some(
                Finding::new(&BUFFER, "KV caches are copied through host memory: kv_buffer_device is cpu")
                    .confidence(Confidence::Likely),
            ),
            expanded if expanded.starts_with('$') => None,
            _ => Some(
                Finding::new(&BUFFER, format!("{device} is no kv_buffer_device"))
                    .severity(Severity::Error)
                    .cause("vLLM takes the name of a kind of device, without a number."),
            ),
        };
        if let Some(finding) = finding {
            look.find(file, node.at, finding.fix("the GPU's own memory", "\"kv_buffer_device\": \"cuda\""));
        }
    }
    if let Some(node) = config.get("kv_load_failure_policy") {
        let finding = match node.str().unwrap_or_default() {
            "fail" => None,
            expanded if expanded.starts_with('$') => None,
            "recompute" => Some(
                Finding::new(&FAILURE_POLICY, "failed KV transfers are prefilled again without a word")
                    .severity(Severity::Note)
                    .confidence(Confidence::Possible),
            ),
            other => Some(Finding::new(&FAILURE_POLICY, format!("{other} is no kv_load_failure_policy"))),
        };
        if let Some(finding) = finding {
            look.find(file, node.at, finding.fix("to see failures", "\"kv_load_failure_policy\": \"fail\""));
        }
    }
}

fn backends(look: &mut Look<'_>, workload: &Workload, config: &Node) {
    let file = workload.file;
    let nixl = config.str_at(&["kv_connector"]).is_some_and(|name| name.starts_with("Nixl"));
    if let Some(at) = config.key("backends") {
        let finding = Finding::new(&BACKENDS, "backends stands beside kv_connector, where nobody reads it")
            .fix(
                "in kv_connector_extra_config",
                "\"kv_connector_extra_config\": {\"backends\": [\"LIBFABRIC\"]}",
            );
        look.find(file, at, finding);
    }
    let Some(extra) = config.get("kv_connector_extra_config") else { return };
    for wrong in ["backend", "nixl_backends", "nixl_backend"] {
        if let Some(at) = extra.key(wrong).filter(|_| nixl) {
            let finding = Finding::new(&BACKENDS, format!("the NIXL connector reads backends, not {wrong}"))
                .fix("its name", "\"backends\": [\"LIBFABRIC\"]");
            look.find(file, at, finding);
        }
    }
    let Some(node) = extra.get("backends") else { return };
    let list = |name: &str| format!("\"backends\": [\"{name}\"]");
    if let Some(text) = node.str() {
        let name = match known::backend(text) {
            Backend::Exact(name) | Backend::Meant(name) => name,
            Backend::Foreign => "LIBFABRIC",
        };
        if !text.starts_with('$') {
            let finding = Finding::new(&BACKENDS, format!("backends is the string {text}, not a list"))
                .fix("a list", list(name));
            look.find(file, node.at, finding);
        }
        return;
    }
    if node.items().is_empty() {
        let finding =
            Finding::new(&BACKENDS, "backends is an empty list").fix("at least one", list("LIBFABRIC"));
        look.find(file, node.at, finding);
    }
    for item in node.items() {
        let Some(name) = item.str() else { continue };
        match known::backend(name) {
            Backend::Meant(meant) => misnamed(look, file, item.at, name, meant, list(meant)),
            Backend::Exact("LIBFABRIC") if nixl => {
                let old = old_vllm(workload);
                let title = match &old {
                    Some(image) => format!(
                        "KV caches of {image} go over NIXL's LIBFABRIC backend, and were seen to arrive as zeros"
                    ),
                    None => "KV caches of vLLM go over NIXL's LIBFABRIC backend".to_owned(),
                };
                let finding = Finding::new(&LIBFABRIC_VLLM, title)
                    .severity(if old.is_some() { Severity::Warning } else { Severity::Note })
                    .confidence(if old.is_some() { Confidence::Likely } else { Confidence::Possible })
                    .advice(
                        "compare the tokens of some long prompts at temperature 0 with those of an engine that is not disaggregated",
                    );
                look.find(file, item.at, finding);
            }
            _ => {}
        }
    }
}

/// The image of a vLLM as old as those with which corruption was reported (0.11 and before).
fn old_vllm(workload: &Workload) -> Option<String> {
    let (image, _) = workload.container.as_ref()?.image.as_ref()?;
    let version = image.split_once("vllm-openai:")?.1.trim_start_matches('v');
    let minor: u32 = version.strip_prefix("0.")?.split('.').next()?.parse().ok()?;
    (minor <= 11).then(|| image.clone())
}

fn misnamed(look: &mut Look<'_>, file: usize, at: Position, name: &str, meant: &str, fix: String) {
    let finding = Finding::new(&BACKEND_NAME, format!("NIXL has no backend {name}; its name is {meant}"))
        .fix("its name", fix);
    look.find(file, at, finding);
}

/// Backends on command lines and in variables.
fn names(look: &mut Look<'_>, workload: &Workload) {
    let mut seen: Vec<(Position, String, String)> = Vec::new();
    for command in &workload.commands {
        if command.program() == "nixl_agent_config" {
            let named = command.words.iter().skip(1);
            seen.extend(named.map(|word| {
                (word.at(), word.str().to_owned(), format!("backends=[\"{}\"]", fixed(word.str())))
            }));
            continue;
        }
        let bench = command
            .words
            .iter()
            .any(|word| word.str().ends_with("nixlbench") || word.str().contains("nixl_connector"));
        if bench
            && let Some(word) =
                option(&command.words, &["--backend", "--backends"]).filter(|word| !word.expands)
        {
            for name in word.str().split(',') {
                seen.push((word.at(), name.to_owned(), format!("--backend {}", fixed(word.str()))));
            }
        }
    }
    let before: Vec<_> = workload.scoped().collect();
    for variable in workload.variables.iter().chain(&before) {
        if known::BACKEND_VARIABLES.contains(&variable.name.as_str())
            && let Some(value) = variable.literal()
        {
            seen.push((variable.value_at(), value.to_owned(), variable.written(&fixed(value))));
        }
    }
    for (at, name, fix) in seen {
        if let Backend::Meant(meant) = known::backend(&name) {
            misnamed(look, workload.file, at, &name, meant, fix);
        }
    }
}

fn fixed(names: &str) -> String {
    let each = names.split(',').map(|name| match known::backend(name) {
        Backend::Meant(meant) => meant,
        _ => name,
    });
    each.collect::<Vec<_>>().join(",")
}

/// Engines on EFA that name no backend.
fn defaults(look: &mut Look<'_>, workload: &Workload, engine: &Engine) {
    let efa = workload.container.as_ref().is_some_and(|container| container.efas() > 0)
        || workload.value("FI_PROVIDER").is_some_and(|value| value.contains("efa"))
        || engine.variables.iter().any(|variable| {
            variable.name == "FI_PROVIDER" && variable.literal().is_some_and(|v| v.contains("efa"))
        });
    if !efa {
        return;
    }
    let (at, what, text, fix) = match engine.kind {
        EngineKind::Vllm => {
            let Some(connector) = engine.nixl() else { return };
            if connector.path(&["kv_connector_extra_config", "backends"]).is_some()
                || connector.get("backends").is_some()
            {
                return;
            }
            let fix = "\"kv_connector_extra_config\": {\"backends\": [\"LIBFABRIC\"]}".to_owned();
            (connector.at, "vLLM's NIXL connector", "in the kv-transfer-config", fix)
        }
        EngineKind::Sglang => {
            let Some(word) =
                engine.option(&["--disaggregation-transfer-backend"]).filter(|word| word.str() == "nixl")
            else {
                return;
            };
            let name = "SGLANG_DISAGGREGATION_NIXL_BACKEND";
            if workload.variable(name).is_some()
                || engine.variables.iter().any(|variable| variable.name == name)
            {
                return;
            }
            let fix = match &workload.container {
                Some(_) => format!("- {{name: {name}, value: LIBFABRIC}}"),
                None => format!("export {name}=LIBFABRIC"),
            };
            (Word::at(word), "SGLang", "as a variable", fix)
        }
        EngineKind::Trtllm => return,
    };
    let finding = Finding::new(
        &DEFAULT_BACKEND,
        format!("{what} in {} names no backend, and takes UCX although EFA is there", workload.name),
    )
    .confidence(Confidence::Likely)
    .fix(text, fix);
    look.find(workload.file, at, finding);
}
