//! What two engines have to agree on: tensor-parallel sizes, layouts, the addresses and ports on which they meet.

use std::collections::HashMap;

use super::super::facts::{Engine, EngineKind, Pod, Role, Workload};
use super::super::read::Position;
use super::{Look, NIXL_COMPATIBILITY, NIXL_USAGE, rule};
use crate::finding::Finding;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&TENSOR_PARALLEL, &LAYOUT, &SIDE_HOST, &SIDE_PORT];

static TENSOR_PARALLEL: Rule = rule(
    "lint-tensor-parallel",
    Severity::Error,
    "tensor-parallel sizes of prefill and decode of which neither divides the other",
    [
        "Each rank reads whole heads from whole ranks of the other side, which works only if one size is a multiple of the other.",
        "Choose sizes of which one divides the other: 2 and 4, 4 and 8, not 2 and 3.",
        "The handshake fails with an assertion about the sizes, or the engine with the larger rank number waits for blocks that nobody sends. vLLM maps rank r of the larger side to rank r × P / D of the smaller one, and splits the KV heads evenly among \
those that share a source; with sizes that do not divide there is no such split. Models whose KV cache is replicated (MLA) do not split heads, and still need the mapping of ranks.",
    ],
    &[NIXL_COMPATIBILITY],
);

static LAYOUT: Rule = rule(
    "lint-kv-layout",
    Severity::Error,
    "KV-cache layouts of prefill and decode that do not go together",
    [
        "Heads can be split between ranks only where the layout is HND, in which a head's tokens lie together, and both sides must have one layout.",
        "Use VLLM_KV_CACHE_LAYOUT=HND on both sides, which is the NIXL connector's default: unset the variable.",
        "`Heterogeneous TP expects same kv_cache_layout`, or wrong output where a version does not check. With different tensor-parallel sizes a decode rank reads some of the heads of a prefill rank: in HND these are contiguous, in NHD they are strewn over every token. One pair of layouts can be \
converted: prefill HND and decode NHD, with enable_permute_local_kv on the decode side, an experimental feature.",
    ],
    &[NIXL_COMPATIBILITY, NIXL_USAGE],
);

static SIDE_HOST: Rule = rule(
    "lint-side-channel-host",
    Severity::Error,
    "an engine tells others an address at which only itself can be reached",
    [
        "Decode engines call back the address in VLLM_NIXL_SIDE_CHANNEL_HOST; localhost, which is also the default, is their own, and 0.0.0.0 is nobody's.",
        "Set it to the address of the pod or node that others reach.",
        "Prefill succeeds and decode hangs in its first request, or connects to itself and fails the handshake. The engine listens on that address and passes it on with each request, so that one value serves two purposes and must be \
an address that is both its own and reachable. On one host with one network namespace localhost works, which is how it passes its first test. Dynamo sets the address by itself.",
    ],
    &[NIXL_USAGE],
);

static SIDE_PORT: Rule = rule(
    "lint-side-channel-port",
    Severity::Error,
    "two engines of one host use the same side-channel port",
    [
        "Each engine of a host listens on its own VLLM_NIXL_SIDE_CHANNEL_PORT (5600 unless it is set), and a port can be bound once.",
        "Give each engine on the host a port of its own, with as much room between them as it has data-parallel ranks.",
        "`Address already in use` from the engine that starts second, or, where the first is already gone, a handshake with the wrong engine, which then refuses it by its hash. Pods have their own ports, unless they use their host's \
network (hostNetwork: true). With data parallelism rank r takes the base port + r, so that bases of two engines need a distance.",
    ],
    &[NIXL_USAGE],
);

/// Engines of a side that are held against those of the other.
const ENGINES_MAX: usize = 200;

pub(crate) fn look(look: &mut Look<'_>) {
    sizes(look);
    addresses(look);
    ports(look);
}

/// Prefill and decode engines of vLLM's NIXL connector.
fn sides<'a>(look: &Look<'a>, role: Role) -> Vec<(&'a Workload, &'a Engine)> {
    look.facts
        .engines()
        .filter(|(_, engine)| {
            engine.role == Some(role) && engine.kind == EngineKind::Vllm && engine.nixl().is_some()
        })
        .take(ENGINES_MAX)
        .collect()
}

fn sizes(look: &mut Look<'_>) {
    let (prefill, decode) = (sides(look, Role::Prefill), sides(look, Role::Decode));
    for (decode_workload, decode) in &decode {
        for (prefill_workload, prefill) in &prefill {
            let p = prefill.tensor_parallel.map_or(1, |(size, _)| size).max(1);
            let d = decode.tensor_parallel.map_or(1, |(size, _)| size).max(1);
            let at = decode.tensor_parallel.map_or(decode.at, |(_, at)| at);
            if p % d != 0 && d % p != 0 {
                let better =
                    if d > p { d / p * p } else { (1..=d).rev().find(|size| p % size == 0).unwrap_or(1) };
                let title = format!(
                    "prefill has {p} tensor-parallel ranks and decode {d}: neither divides the other"
                );
                let finding = Finding::new(&TENSOR_PARALLEL, title)
                    .evidence(&prefill_workload.name, format!("tensor-parallel size {p}"))
                    .fix("for decode", format!("--tensor-parallel-size {better}"));
                look.find(decode_workload.file, at, finding);
                return;
            }
            if layouts(look, (prefill_workload, prefill, p), (decode_workload, decode, d)) {
                return;
            }
        }
    }
}

fn layout<'a>(workload: &'a Workload, engine: &'a Engine) -> (&'a str, Option<Position>) {
    let own = engine.variables.iter().rev().find(|variable| variable.name == "VLLM_KV_CACHE_LAYOUT");
    let variable = own.or_else(|| workload.variable("VLLM_KV_CACHE_LAYOUT"));
    match variable.and_then(|variable| Some((variable.literal()?, variable.value_at()))) {
        Some((value, at)) => (value, Some(at)),
        None => ("HND", None),
    }
}

fn layouts(
    look: &mut Look<'_>,
    prefill: (&Workload, &Engine, u32),
    decode: (&Workload, &Engine, u32),
) -> bool {
    let (p, p_at) = layout(prefill.0, prefill.1);
    let (d, d_at) = layout(decode.0, decode.1);
    let permutes = decode
        .1
        .nixl()
        .and_then(|config| config.get("enable_permute_local_kv"))
        .is_some_and(|node| node.is_true());
    let (title, cause) = if p != d && !(p == "HND" && d == "NHD" && permutes) {
        (format!("prefill keeps its KV cache as {p} and decode as {d}"), "Both sides must have one layout.")
    } else if p == "NHD" && prefill.2 != decode.2 {
        (
            format!("NHD with {} and {} tensor-parallel ranks: heads cannot be split", prefill.2, decode.2),
            "In NHD the heads of a rank do not lie together.",
        )
    } else {
        return false;
    };
    // Where the layout that is not the default is set.
    let (workload, at) = match (d_at.filter(|_| d != "HND"), p_at.filter(|_| p != "HND")) {
        (Some(at), _) => (decode.0, at),
        (None, Some(at)) => (prefill.0, at),
        (None, None) => (decode.0, decode.1.at),
    };
    let finding = Finding::new(&LAYOUT, title)
        .cause(cause)
        .confidence(Confidence::Likely)
        .fix("on both sides", "VLLM_KV_CACHE_LAYOUT=HND");
    look.find(workload.file, at, finding);
    true
}

/// A variable of an engine: of its command line, else of its workload.
fn setting<'a>(
    workload: &'a Workload,
    engine: &'a Engine,
    name: &str,
) -> Option<(Option<&'a str>, Position)> {
    let own = engine.variables.iter().rev().find(|variable| variable.name == name);
    let variable = own.or_else(|| workload.variable(name))?;
    Some((variable.literal(), variable.value_at()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.starts_with("127.") || host == "::1" || host == "0.0.0.0" || host == "::"
}

fn addresses(look: &mut Look<'_>) {
    let facts = look.facts;
    const NAME: &str = "VLLM_NIXL_SIDE_CHANNEL_HOST";
    // Both engines in one pod meet at localhost.
    let alone: Vec<bool> = facts
        .workloads
        .iter()
        .map(|workload| workload.engines.iter().filter(|engine| engine.nixl().is_some()).take(2).count() == 1)
        .collect();
    let engines =
        facts.workloads.iter().zip(alone).flat_map(|(workload, alone)| {
            workload.engines.iter().map(move |engine| (workload, engine, alone))
        });
    for (workload, engine, alone) in engines {
        if engine.kind != EngineKind::Vllm
            || engine.nixl().is_none()
            || engine.words.iter().any(|word| word.str() == "dynamo.vllm")
        {
            continue;
        }
        let batch = facts.batches.iter().find(|batch| batch.file == workload.file);
        let nodes = batch.and_then(|batch| batch.option("nodes")?.str().parse::<u32>().ok()).unwrap_or(1);
        let pod = workload.pod.and_then(|pod| facts.pods.get(pod));
        let from_elsewhere =
            workload.container.as_ref().is_some_and(|container| container.node.get("envFrom").is_some());
        let fix = if pod.is_some() {
            format!("- {{name: {NAME}, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}")
        } else {
            format!("export {NAME}=$(hostname -I | cut -d' ' -f1)")
        };
        let spread = pod.is_some() && alone || nodes > 1;
        let (title, at, certain) = match setting(workload, engine, NAME) {
            Some((Some(host), at)) if is_loopback(host) && spread => {
                (format!("{NAME} is {host}, which engines elsewhere cannot reach"), at, true)
            }
            Some((Some(host @ ("0.0.0.0" | "::")), at)) => {
                (format!("{NAME} is {host}, which no engine can reach"), at, true)
            }
            None if pod.is_some() && alone && !from_elsewhere => {
                (format!("{} does not set {NAME}, which is localhost then", workload.name), engine.at, false)
            }
            _ => continue,
        };
        let confidence = if certain { Confidence::Certain } else { Confidence::Likely };
        let finding = Finding::new(&SIDE_HOST, title)
            .confidence(confidence)
            .fix("the pod's or node's own address", fix);
        look.find(workload.file, at, finding);
    }
}

fn ports(look: &mut Look<'_>) {
    let facts = look.facts;
    let port =
        |workload: &Workload, engine: &Engine| match setting(workload, engine, "VLLM_NIXL_SIDE_CHANNEL_PORT")
        {
            Some((port, _)) => port.map(str::to_owned),
            None => Some("5600".to_owned()),
        };
    // Engines of one host: those that one script starts by itself, those of one pod, those of pods in their host's network.
    let mut hosts: HashMap<(String, String), Position> = HashMap::new();
    for (index, workload) in facts.workloads.iter().enumerate() {
        let pod = workload.pod.and_then(|pod| facts.pods.get(pod));
        // Pods that fill a node, or keep others off it, have their host's ports for themselves.
        let fills = workload.container.as_ref().is_some_and(|container| container.gpus() >= 8);
        let repels = |pod: &Pod| {
            let required = ["affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
            pod.spec.path(&required).is_some()
        };
        let shared = pod.is_some_and(|pod| {
            pod.spec.get("hostNetwork").is_some_and(|node| node.is_true()) && !fills && !repels(pod)
        });
        // A script that ends engines itself may start them one after the other.
        let ends =
            workload.commands.iter().any(|command| matches!(command.program(), "kill" | "pkill" | "killall"));
        if ends && pod.is_none() {
            continue;
        }
        for engine in &workload.engines {
            let remote = engine
                .words
                .iter()
                .any(|word| matches!(word.str(), "srun" | "ssh" | "mpirun" | "kubectl" | "docker"));
            if engine.kind != EngineKind::Vllm || engine.nixl().is_none() || engine.words.is_empty() || remote
            {
                continue;
            }
            let Some(port) = port(workload, engine) else { continue };
            let own_host =
                setting(workload, engine, "VLLM_NIXL_SIDE_CHANNEL_HOST").and_then(|(host, _)| host);
            // Commands for different machines are often kept in one file.
            let machine = own_host.filter(|host| !is_loopback(host)).unwrap_or_default();
            let host = match (pod, shared) {
                (Some(_), true) => "nodes".to_owned(),
                (Some(_), false) => format!("pod {}", workload.pod.unwrap_or(index)),
                (None, _) => format!("workload {index} {machine}"),
            };
            if let Some(first) = hosts.get(&(host.clone(), port.clone())).copied() {
                let next =
                    port.parse::<u32>().map_or_else(|_| "5700".to_owned(), |port| (port + 100).to_string());
                let name = "VLLM_NIXL_SIDE_CHANNEL_PORT";
                let fix = if pod.is_some() {
                    format!("- {{name: {name}, value: \"{next}\"}}")
                } else {
                    format!("{name}={next} vllm serve …")
                };
                let finding =
                    Finding::new(&SIDE_PORT, format!("a second engine of this host listens on port {port}"))
                        .confidence(Confidence::Likely)
                        .evidence("the first", format!("line {}", first.line))
                        .fix("for this one", fix);
                look.find(workload.file, engine.at, finding);
            } else {
                hosts.insert((host, port), engine.at);
            }
        }
    }
}
