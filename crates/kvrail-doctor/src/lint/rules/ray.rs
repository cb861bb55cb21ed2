//! Ray: clusters on Kubernetes, Serve's configuration, environments of jobs.

use super::super::facts::{Facts, Role};
use super::super::read::{Node, Text};
use super::{Look, Reference, rule};
use crate::finding::Finding;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&GPUS, &NIXL, &PLACEMENT];

const KUBERAY: Reference = Reference {
    title: "Ray: configuring KubeRay for accelerators",
    url: "https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/gpu.html",
};

static GPUS: Rule = rule(
    "lint-ray-gpus",
    Severity::Warning,
    "Ray is told another number of GPUs than the container has",
    [
        "rayStartParams overrides what Ray finds: with fewer GPUs than the container has the others stay unused, with more two actors share one.",
        "Leave num-gpus out of rayStartParams, so that Ray takes it from the container's limits.",
        "Actors wait for ever with `No available node types can fulfill resource request`, although the pods have GPUs and `nvidia-smi` shows them idle; or two tensor-parallel ranks land on one GPU and run out of its memory. KubeRay derives the number from the resource limits unless rayStartParams says otherwise.",
    ],
    &[KUBERAY],
);

static NIXL: Rule = rule(
    "lint-ray-nixl-missing",
    Severity::Warning,
    "a Ray environment lists its packages, and nixl is not among them",
    [
        "Each node builds the environment from this list; an engine with the NIXL connector fails where the image has no nixl of its own.",
        "Add nixl to the list, with the version that the image's vLLM wants, or install it in the image.",
        "`ModuleNotFoundError: No module named 'nixl'` from one node only, often the head: a script installed it on the workers. Packages of runtime_env are installed on every node on which an actor of the job runs, which makes it the one place where it cannot be forgotten on a node. \
An image that has nixl needs nothing here.",
    ],
    &[Reference {
        title: "Ray: environment dependencies",
        url: "https://docs.ray.io/en/latest/ray-core/handling-dependencies.html",
    }],
);

static PLACEMENT: Rule = rule(
    "lint-ray-placement",
    Severity::Note,
    "prefill and decode are packed onto one node",
    [
        "The strategies PACK and STRICT_PACK put the bundles of a placement group onto as few nodes as possible, so that transfers between them stay on the node.",
        "Use SPREAD or STRICT_SPREAD to measure the network.",
        "40 GB/s between prefill and decode, and 0 on every NIC's counters. Packing is right for the ranks of one engine, which exchange far more with each other than with the other engine; it is wrong for the two ends of a transfer that is to be measured between nodes, and for a \
test whose failure appears only between nodes.",
    ],
    &[Reference {
        title: "Ray: placement groups",
        url: "https://docs.ray.io/en/latest/ray-core/scheduling/placement-group.html",
    }],
);

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for (index, file) in facts.files.iter().enumerate() {
        for document in &file.documents {
            if matches!(document.str_at(&["kind"]), Some("RayCluster" | "RayService" | "RayJob")) {
                groups(look, index, document, 0);
            }
            environments(look, facts, index, document, 0);
            let does = |role| {
                let mut own = facts
                    .workloads
                    .iter()
                    .filter(|workload| workload.file == index)
                    .flat_map(|workload| &workload.engines);
                own.any(|engine| engine.role == Some(role))
            };
            if does(Role::Prefill) && does(Role::Decode) {
                strategies(look, index, document, 0);
            }
        }
    }
}

/// Groups of a cluster: `rayStartParams` beside a pod's template.
fn groups(look: &mut Look<'_>, file: usize, node: &Node, depth: usize) {
    if depth > 16 {
        return;
    }
    if let (Some(told), Some(containers)) =
        (node.path(&["rayStartParams", "num-gpus"]), node.path(&["template", "spec", "containers"]))
    {
        let gpus = containers.items().iter().filter_map(|container| {
            container.path(&["resources", "limits", "nvidia.com/gpu"])?.str()?.parse::<u64>().ok()
        });
        let (gpus, count) = (gpus.sum::<u64>(), told.str().and_then(|text| text.parse::<u64>().ok()));
        // The head with no GPUs for actors is a choice that many make.
        if let Some(count) = count.filter(|count| *count != gpus && *count > 0 || *count == 0 && gpus > 0) {
            let finding = Finding::new(&GPUS, format!("num-gpus is {count}, and the container has {gpus}"))
                .fix("in rayStartParams", format!("num-gpus: \"{gpus}\""));
            look.find(file, told.at, finding);
        }
    }
    for (_, value) in node.entries() {
        groups(look, file, value, depth + 1);
    }
    for item in node.items() {
        groups(look, file, item, depth + 1);
    }
}

/// `runtime_env` with a list of packages.
fn environments(look: &mut Look<'_>, facts: &Facts, file: usize, node: &Node, depth: usize) {
    if depth > 24 {
        return;
    }
    for (key, value) in node.entries() {
        if matches!(key.name.as_str(), "runtime_env" | "runtimeEnv")
            && let Some(list) = value.get("pip").or_else(|| value.get("uv"))
        {
            let list = list.get("packages").unwrap_or(list);
            let names = || list.items().iter().filter_map(|item| item.str());
            let has = names().any(|name| {
                let name = name.to_ascii_lowercase();
                ["nixl", "vllm[", "ai-dynamo", "requirements"].iter().any(|known| name.contains(known))
            });
            let nixl = facts
                .workloads
                .iter()
                .filter(|workload| workload.file == file)
                .flat_map(|workload| &workload.engines)
                .any(|engine| engine.nixl().is_some());
            if nixl && !has && names().next().is_some() {
                let finding = Finding::new(
                    &NIXL,
                    "the packages of runtime_env do not have nixl, which the NIXL connector needs",
                )
                .confidence(Confidence::Likely)
                .fix("in the list", "- nixl>=1.5.0");
                look.find(file, list.at, finding);
            }
        }
        environments(look, facts, file, value, depth + 1);
    }
    for item in node.items() {
        environments(look, facts, file, item, depth + 1);
    }
}

fn strategies(look: &mut Look<'_>, file: usize, node: &Node, depth: usize) {
    if depth > 24 {
        return;
    }
    for (key, value) in node.entries() {
        let named =
            matches!(key.name.as_str(), "placement_strategy" | "placement_group_strategy" | "strategy");
        let packs = value.text().map(Text::as_str).is_some_and(|text| matches!(text, "PACK" | "STRICT_PACK"));
        if named && packs {
            let finding =
                Finding::new(&PLACEMENT, format!("{} is {}", key.name, value.str().unwrap_or_default()))
                    .confidence(Confidence::Possible)
                    .fix("one node each", format!("{}: STRICT_SPREAD", key.name));
            look.find(file, value.at, finding);
        }
        strategies(look, file, value, depth + 1);
    }
    for item in node.items() {
        strategies(look, file, item, depth + 1);
    }
}
