//! What containers may do, and what they share with their host.

use super::super::facts::{Container, Pod, Workload};
use super::{EKS_EFA, FI_EFA, Look, kubernetes, rule};
use crate::finding::Finding;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&IPC_LOCK, &PTRACE, &HOST_NETWORK_DNS, &HOST_IPC, &SECRET];

static IPC_LOCK: Rule = rule(
    "lint-ipc-lock",
    Severity::Warning,
    "a container with RDMA devices may not lock memory",
    [
        "Memory that a NIC uses is locked, which counts against RLIMIT_MEMLOCK unless the container has the capability IPC_LOCK.",
        "Add IPC_LOCK to the container's capabilities.",
        "`Cannot allocate memory` from fi_mr_reg or ibv_reg_mr on a node with plenty, or the efa provider does not open its endpoints. Kubernetes has no field for \
the limit: a container has what the runtime's unit gives, 64 KiB on some nodes and unlimited on others, so that the same manifest works on one cluster and not on the next. IPC_LOCK makes it work on both.",
    ],
    &[kubernetes("https://kubernetes.io/docs/tasks/configure-pod-container/security-context/"), EKS_EFA],
);

static PTRACE: Rule = rule(
    "lint-sys-ptrace",
    Severity::Note,
    "processes of a container may not read each other's memory, which same-host copies do",
    [
        "Copies between processes of one host use process_vm_readv, which needs the right to trace the other process.",
        "Add SYS_PTRACE to the container's capabilities where ranks on one host exchange host memory.",
        "libfabric turns its shared-memory transfer off where ptrace protection is on, and UCX its cma transport; both then copy twice through shared \
memory. Transfers of GPU memory, and those between hosts, do not mind. Between containers of different pods it would need more (a shared process namespace), and does not help.",
    ],
    &[
        FI_EFA,
        super::Reference {
            title: "Linux: process_vm_readv(2)",
            url: "https://man7.org/linux/man-pages/man2/process_vm_readv.2.html",
        },
    ],
);

static HOST_NETWORK_DNS: Rule = rule(
    "lint-host-network-dns",
    Severity::Error,
    "a pod in its host's network looks up a service by a name that only the cluster's DNS knows",
    [
        "With hostNetwork the policy ClusterFirst means the host's resolver, which does not know the cluster's services.",
        "Set dnsPolicy: ClusterFirstWithHostNet.",
        "`Could not resolve host: etcd-service`, or an etcd client that waits for its deadline, from a pod with hostNetwork: true; the same image works in a pod without. Kubernetes \
gives pods in the host's network the host's /etc/resolv.conf unless the policy says ClusterFirstWithHostNet. It is easily missed since EFA does not need hostNetwork at all: the devices come from the device plugin.",
    ],
    &[kubernetes(
        "https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#pod-s-dns-policy",
    )],
);

static HOST_IPC: Rule = rule(
    "lint-host-ipc",
    Severity::Note,
    "a pod shares its host's shared memory with all others that do",
    [
        "With hostIPC all such pods of a node use one /dev/shm and see each other's segments.",
        "Mount an emptyDir with medium Memory at /dev/shm instead, unless pods of one node have to share memory.",
        "hostIPC is often set to get a larger /dev/shm. Segments of killed processes stay on the node and fill it for the next pod, names of two jobs may clash, and the node's limit is half its memory for all together. \
It is right where processes of different pods exchange CUDA IPC handles or shared memory on purpose.",
    ],
    &[kubernetes("https://kubernetes.io/docs/concepts/security/pod-security-standards/")],
);

static SECRET: Rule = rule(
    "lint-secret-in-plain",
    Severity::Note,
    "a token stands in the file",
    [
        "A variable that holds a credential has its value written down where everybody who may read the file can read it.",
        "Keep it in a Secret and refer to it with valueFrom.secretKeyRef, or in the environment of the job's submitter.",
        "Tokens in manifests end in version control, in `kubectl get -o yaml`, in the artefacts of benchmarks and in pasted logs. kvrail leaves the value out of everything that it prints. A token that was committed once has to be replaced, \
since the history keeps it.",
    ],
    &[kubernetes("https://kubernetes.io/docs/concepts/configuration/secret/")],
);

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for (workload, container, pod) in facts.containers() {
        capabilities(look, workload, container);
        host(look, workload, container, pod);
    }
    for workload in &facts.workloads {
        secrets(look, workload);
    }
}

fn capabilities(look: &mut Look<'_>, workload: &Workload, container: &Container) {
    let rdma =
        container.efas() > 0 || container.limits.iter().any(|quantity| quantity.name.starts_with("rdma/"));
    if !rdma || container.privileged() {
        return;
    }
    let at = container.node.key("securityContext").unwrap_or(container.node.at);
    if !container.capable("IPC_LOCK") {
        let finding = Finding::new(&IPC_LOCK, format!("{} has RDMA devices and no IPC_LOCK", workload.name))
            .confidence(Confidence::Likely)
            .fix("in the container", "securityContext: {capabilities: {add: [IPC_LOCK]}}");
        look.find(workload.file, at, finding);
    } else if !container.capable("SYS_PTRACE") && workload.measures() {
        let finding = Finding::new(&PTRACE, format!("{} has IPC_LOCK and no SYS_PTRACE", workload.name))
            .confidence(Confidence::Possible)
            .fix("in the container", "securityContext: {capabilities: {add: [IPC_LOCK, SYS_PTRACE]}}");
        look.find(workload.file, at, finding);
    }
}

fn host(look: &mut Look<'_>, workload: &Workload, container: &Container, pod: &Pod) {
    let first = pod
        .workloads
        .first()
        .is_some_and(|index| look.facts.workloads.get(*index).is_some_and(|own| std::ptr::eq(own, workload)));
    let set = |name: &str| pod.spec.get(name).is_some_and(|node| node.is_true());
    if set("hostIPC") && first && container.gpus() > 0 {
        let finding = Finding::new(&HOST_IPC, format!("{} {} has hostIPC: true", pod.kind, pod.name)).fix(
            "instead, among the pod's volumes",
            "- {name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}",
        );
        look.find(pod.file, pod.spec.key("hostIPC").unwrap_or(pod.at), finding);
    }
    if !set("hostNetwork") || !matches!(pod.spec.str_at(&["dnsPolicy"]), None | Some("ClusterFirst")) {
        return;
    }
    let words = workload.commands.iter().flat_map(|command| &command.words);
    let values = workload.variables.iter().filter_map(|variable| variable.value.as_ref());
    let named = words.chain(values).find_map(|word| Some((service(word.str())?, word.at())));
    if let Some((name, at)) = named {
        let title = format!("{} looks up {name} from its host's network", workload.name);
        let finding = Finding::new(&HOST_NETWORK_DNS, title)
            .confidence(Confidence::Likely)
            .fix("in the pod's spec, beside hostNetwork", "dnsPolicy: ClusterFirstWithHostNet");
        look.find(workload.file, at, finding);
    }
}

/// The name of a service of the cluster in an address.
fn service(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    if !matches!(scheme, "http" | "https" | "grpc" | "tcp" | "nats") {
        return None;
    }
    let host = rest.split(['/', ':', ',', '?']).next()?;
    let own = host.contains(".svc") || !host.contains('.');
    let plain = host.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c));
    (own && plain && host != "localhost" && host.starts_with(|c: char| c.is_ascii_lowercase()))
        .then_some(host)
}

const SECRETS: &[&str] = &[
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "NGC_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "OPENAI_API_KEY",
    "WANDB_API_KEY",
];

fn secrets(look: &mut Look<'_>, workload: &Workload) {
    let before: Vec<_> = workload.scoped().collect();
    let mut told: Vec<&str> = Vec::new();
    for variable in workload.variables.iter().chain(&before) {
        let Some(name) = SECRETS.iter().find(|name| **name == variable.name) else { continue };
        let value = variable.literal().unwrap_or_default();
        let placeholder =
            value.len() < 8 || value.contains(['<', '$', '{']) || value.to_ascii_lowercase().contains("your");
        if placeholder || told.contains(name) {
            continue;
        }
        told.push(name);
        let finding = Finding::new(&SECRET, format!("{name} of {} is written down", workload.name))
            .evidence(*name, format!("{} characters, not shown", value.chars().count()))
            .fix(
                "in a manifest",
                format!(
                    "- {{name: {name}, valueFrom: {{secretKeyRef: {{name: tokens, key: {}}}}}}}",
                    name.to_ascii_lowercase()
                ),
            );
        look.find(workload.file, variable.at, finding);
    }
}
