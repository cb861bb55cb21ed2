//! Where pods will run: whether two ends of a transfer can land on one node.

use super::super::facts::Pod;
use super::super::read::Node;
use super::resources::transfers;
use super::{Look, kubernetes, rule};
use crate::finding::Finding;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&SAME_NODE];

static SAME_NODE: Rule = rule(
    "lint-same-node",
    Severity::Warning,
    "two ends of a transfer may be placed on one node",
    [
        "Nothing forbids the scheduler to place these pods on one node, where transfers go through shared memory or NVLink and not over the network.",
        "Add a required pod anti-affinity with the topology key kubernetes.io/hostname, whose selector matches the labels of these pods.",
        "A benchmark shows 40 GB/s and more with one NIC, or a test passes that fails in production: both pods were on one node. Same-host transfers go \
through shared memory and CUDA IPC, and no packet leaves a NIC.

A preferred anti-affinity gives way when nodes are scarce, which in GPU clusters is always. An anti-affinity whose selector matches none of the pods' labels does \
nothing and says nothing: compare `kubectl get pods --show-labels` with the selector. A topologySpreadConstraint with `whenUnsatisfiable: DoNotSchedule` does as well.",
    ],
    &[
        kubernetes("https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/"),
        kubernetes("https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/"),
    ],
);

/// Pods that are held against each other: each against all others.
const PODS_MAX: usize = 500;

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    let group = facts.pods.iter().filter(|pod| pod.replicas > 0 && transfers(facts, pod));
    let group: Vec<&Pod> = group.take(PODS_MAX).collect();
    let count = group.iter().fold(0_u64, |sum, pod| sum.saturating_add(pod.replicas));
    if count < 2 {
        return;
    }
    for pod in &group {
        let gpus: u64 = facts.containers_of(pod).map(|(_, container)| container.gpus()).sum();
        // A pod with all the GPUs of a node shares it with no other that has GPUs.
        if gpus >= 8 || is_pinned(pod) || is_spread(pod) {
            continue;
        }
        let others: Vec<&&Pod> =
            group.iter().filter(|other| !std::ptr::eq(**other, *pod) || other.replicas > 1).collect();
        let terms = terms(pod);
        let repels = |other: &&&Pod| terms.iter().any(|term| matches(term, &other.labels));
        // Anti-affinity holds both ways: one that another pod has against this one is enough.
        let repelled = |other: &&&Pod| self::terms(other).iter().any(|term| matches(term, &pod.labels));
        let free: Vec<_> =
            others.iter().filter(|other| !is_pinned(other) && !repels(other) && !repelled(other)).collect();
        let Some(first) = free.first() else { continue };
        let measures = facts.containers_of(pod).any(|(workload, _)| workload.measures())
            || matches!(pod.kind.as_str(), "Pod" | "MPIJob");
        let preferred = pod.spec.path(&[
            "affinity",
            "podAntiAffinity",
            "preferredDuringSchedulingIgnoredDuringExecution",
        ]);
        let why = if !terms.is_empty() {
            "its required anti-affinity matches none of that pod's labels"
        } else if preferred.is_some() {
            "its anti-affinity is only preferred"
        } else {
            "it has no required anti-affinity"
        };
        let with =
            if std::ptr::eq(***first, *pod) { "another of its own".to_owned() } else { first.name.clone() };
        let finding = Finding::new(
            &SAME_NODE,
            format!("{} {} may share a node with {with}: {why}", pod.kind, pod.name),
        )
        .severity(if measures { Severity::Warning } else { Severity::Note })
        .confidence(if measures { Confidence::Certain } else { Confidence::Possible })
        .evidence("labels", labels(&first.labels))
        .fix("in the pod's spec", fix(pod, first));
        look.find(pod.file, pod.at, finding);
    }
}

fn labels(labels: &[(String, String)]) -> String {
    if labels.is_empty() {
        return "none".into();
    }
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
}

fn fix(pod: &Pod, other: &Pod) -> String {
    let shared = pod.labels.iter().find(|label| other.labels.contains(label));
    let (name, value) = shared.map_or(("benchmark-group", "kv-transfer"), |(name, value)| (name, value));
    let extra = if shared.is_none() {
        format!(" # and the label {name}: {value} on each of the pods")
    } else {
        String::new()
    };
    format!(
        "affinity: {{podAntiAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{{labelSelector: {{matchExpressions: \
         [{{key: {name}, operator: In, values: [{value}]}}]}}, topologyKey: kubernetes.io/hostname}}]}}}}{extra}"
    )
}

/// Required anti-affinity by host.
fn terms(pod: &Pod) -> Vec<&Node> {
    let terms =
        pod.spec.path(&["affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
    let terms = terms.map(Node::items).unwrap_or_default().iter().map(AsRef::as_ref);
    terms.filter(|term| term.str_at(&["topologyKey"]) == Some("kubernetes.io/hostname")).collect()
}

fn is_pinned(pod: &Pod) -> bool {
    pod.spec.get("nodeName").is_some() || pod.spec.path(&["nodeSelector", "kubernetes.io/hostname"]).is_some()
}

fn is_spread(pod: &Pod) -> bool {
    let constraints = pod.spec.get("topologySpreadConstraints").map(|node| node.items()).unwrap_or_default();
    constraints.iter().any(|constraint| {
        constraint.str_at(&["topologyKey"]) == Some("kubernetes.io/hostname")
            && constraint.str_at(&["whenUnsatisfiable"]) == Some("DoNotSchedule")
    })
}

/// Whether a term's selector matches labels.
fn matches(term: &Node, labels: &[(String, String)]) -> bool {
    let Some(selector) = term.get("labelSelector") else { return false };
    let value = |name: &str| labels.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
    let equal = selector.get("matchLabels").map(|node| node.entries()).unwrap_or_default();
    let expressions = selector.get("matchExpressions").map(|node| node.items()).unwrap_or_default();
    equal.iter().all(|(key, node)| node.str() == value(&key.name).or(Some("\0")))
        && expressions.iter().all(|expression| {
            let own = expression.str_at(&["key"]).and_then(value);
            let values = expression.get("values").map(|node| node.items()).unwrap_or_default();
            let listed = own.is_some_and(|own| values.iter().any(|value| value.str() == Some(own)));
            match expression.str_at(&["operator"]) {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => own.is_some(),
                Some("DoesNotExist") => own.is_none(),
                _ => false,
            }
        })
}
