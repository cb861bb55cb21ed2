//! What containers ask for: GPUs, EFA devices, huge pages, processors, memory.

use super::super::extract::{instance_of, names_instance};
use super::super::facts::{Container, Facts, Pod, Workload};
use super::{EKS_EFA, FI_EFA, Look, kubernetes, rule};
use crate::finding::Finding;
use crate::known;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] =
    &[&RESOURCES_DIFFER, &QOS, &EFA_COUNT, &NO_EFA, &HUGEPAGES, &HUGEPAGES_ALONE, &SHM];

const DEVICE_PLUGINS: super::Reference =
    kubernetes("https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/");
const HUGE_PAGES: super::Reference =
    kubernetes("https://kubernetes.io/docs/tasks/manage-hugepages/scheduling-hugepages/");

static RESOURCES_DIFFER: Rule = rule(
    "lint-resources-differ",
    Severity::Error,
    "requests and limits of a device or of huge pages differ, which Kubernetes refuses",
    [
        "Devices and huge pages cannot be overcommitted: the API server refuses a pod whose request for one is not its limit.",
        "Give the resource the same amount under requests and under limits, or under limits only.",
        "`kubectl apply` says `must be equal to nvidia.com/gpu limit` or `Limit must be set for non overcommitable resources`; for a \
Deployment or a Job the object itself is created, and its pods never are: only the events of the ReplicaSet or Job say why.

Processors and memory may differ, since a node can lend what is not used; a GPU, an EFA device or a huge page belongs to one container or \
to none. A limit alone is enough: Kubernetes takes it for the request.",
    ],
    &[DEVICE_PLUGINS, HUGE_PAGES],
);

static QOS: Rule = rule(
    "lint-qos",
    Severity::Warning,
    "what measures has requests and limits that differ, and so no processors of its own",
    [
        "Only a pod whose requests equal its limits is Guaranteed; others share processors, and the kubelet aligns none of theirs with GPUs and NICs.",
        "Give cpu and memory the same whole amounts under requests and limits.",
        "Throughput that varies from run to run although the network is idle. The kubelet's CPU manager gives exclusive processors, and its \
topology manager the ones near the pod's GPUs and NICs, to containers of Guaranteed pods with whole processors only. A progress thread that \
shares its processor, or runs on the other socket, posts late: small blocks suffer first.",
    ],
    &[
        kubernetes("https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/"),
        kubernetes("https://kubernetes.io/docs/tasks/administer-cluster/topology-manager/"),
    ],
);

static EFA_COUNT: Rule = rule(
    "lint-efa-count",
    Severity::Warning,
    "a container has fewer EFA devices than its GPUs have near them",
    [
        "The EFA device plugin gives a container exactly as many devices as it asks for, and each is one rail with one line rate.",
        "Ask for all the EFA devices that belong to the container's GPUs: 4 for each on P5, 2 on P5en, 1 on P6-B200.",
        "A benchmark that should reach 46 GB/s stops at 12: `vpc.amazonaws.com/efa: 1` was copied from an example. On P5 each GPU has four EFA \
devices of 100 Gb/s beside it, so that one of them is 12.5 GB/s, and four are 50. Figures above one rail's line rate with one device did not \
cross the network: both pods were on one node, and shared memory was measured.

Nothing fails with too few devices, and unequal counts on two sides have made transfers hang, since a rail's index on one side was taken for one of the other.",
    ],
    &[EKS_EFA, super::Reference { title: "AWS: EFA-supported instance types", url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html" }],
);

static NO_EFA: Rule = rule(
    "lint-no-efa",
    Severity::Error,
    "a container is told to use EFA and asks for no EFA device",
    [
        "Without vpc.amazonaws.com/efa among its resources a container has no /dev/infiniband, and libfabric's efa provider finds nothing.",
        "Add vpc.amazonaws.com/efa to the container's limits.",
        "With FI_PROVIDER=efa libfabric answers `No data available`; without it NIXL's LIBFABRIC backend takes TCP and says nothing. The node has the \
devices, and `fi_info -p efa` on the node shows them: the container was not given any. The device plugin mounts /dev/infiniband/uverbs* into containers \
that ask for the resource, and into no others.",
    ],
    &[EKS_EFA],
);

static HUGEPAGES: Rule = rule(
    "lint-hugepages",
    Severity::Warning,
    "a container with EFA devices has no huge pages",
    [
        "libfabric's efa provider keeps its buffers in huge pages unless it is told not to, and a container that asks for none may use none.",
        "Add hugepages-2Mi to the container's limits (5120Mi is what AWS's examples use for a whole node), or set FI_EFA_USE_HUGE_PAGE=0.",
        "The provider falls back to small pages, which take more of the NIC's page table; with many gigabytes of registered memory the table is \
what runs out first (some 95 GB of 4 KiB pages). In some combinations of kernel and container runtime the first touch of such a buffer ends the process with a bus error instead, \
since the limit of the control group is 0 although the node has free huge pages.",
    ],
    &[FI_EFA, HUGE_PAGES, EKS_EFA],
);

static HUGEPAGES_ALONE: Rule = rule(
    "lint-hugepages-alone",
    Severity::Error,
    "huge pages without processors or memory, which Kubernetes refuses",
    [
        "The API server refuses a container that asks for huge pages and for neither cpu nor memory.",
        "Give the container memory (and cpu) under requests and limits as well.",
        "`kubectl apply` answers `HugePages require cpu or memory`; pods of a Deployment or Job never appear, and only the events of its ReplicaSet \
or of the Job say why. Huge pages come on top of the memory limit and are not part of it: a container with hugepages-2Mi 2Gi and memory 32Gi may use 34.",
    ],
    &[HUGE_PAGES],
);

static SHM: Rule = rule(
    "lint-shm",
    Severity::Warning,
    "several GPUs in a container, and 64 MiB of shared memory",
    [
        "A container's /dev/shm is 64 MiB unless a volume is mounted there, which is less than the ranks of one engine exchange.",
        "Mount an emptyDir with medium Memory at /dev/shm.",
        "`Bus error (core dumped)`, `No space left on device` in /dev/shm, or NCCL's `unable to allocate shared memory`, minutes after the start. Ranks on one \
host exchange through files in /dev/shm, as do libfabric's shm provider and UCX's. The container runtime mounts 64 MiB there. An emptyDir without `medium: Memory` is on disk, which is as \
wrong and slower. What is used counts against the container's memory.",
    ],
    &[
        kubernetes("https://kubernetes.io/docs/concepts/storage/volumes/#emptydir"),
        super::Reference {
            title: "NCCL: troubleshooting, shared memory",
            url: "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
        },
    ],
);

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for (workload, container, pod) in facts.containers() {
        differ(look, workload, container);
        alone(look, workload, container);
        if container.efas() > 0 && workload.measures() {
            qos(look, workload, container);
        }
        if container.efas() > 0 {
            hugepages(look, workload, container);
        }
        efa_count(look, workload, container, pod);
        no_efa(look, workload, container);
        shm(look, workload, container, pod);
    }
}

/// Extended resources and huge pages: those that Kubernetes does not overcommit.
fn is_exclusive(name: &str) -> bool {
    name.starts_with("hugepages-") || name.contains('/') && !name.starts_with("kubernetes.io/")
}

fn differ(look: &mut Look<'_>, workload: &Workload, container: &Container) {
    for request in container.requests.iter().filter(|request| is_exclusive(&request.name)) {
        let limit = container.limits.iter().find(|limit| limit.name == request.name);
        if limit.is_some_and(|limit| same(&limit.value, &request.value)) {
            continue;
        }
        let limit = limit.map_or("none".to_owned(), |limit| limit.value.clone());
        let title =
            format!("{}: request {} and limit {limit} of {}", workload.name, request.value, request.name);
        let finding = Finding::new(&RESOURCES_DIFFER, title)
            .evidence(&request.name, format!("requests {}, limits {limit}", request.value))
            .fix("the same under limits", format!("limits: {{{}: {}}}", request.name, request.value));
        look.find(workload.file, request.at, finding);
    }
}

/// Whether two amounts are the same, `2Gi` and `2048Mi` included.
fn same(a: &str, b: &str) -> bool {
    a == b || matches!((amount(a), amount(b)), (Some(a), Some(b)) if (a - b).abs() < 1e-9 * a.abs().max(1.0))
}

fn amount(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 12] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("m", 1e-3),
        ("", 1.0),
    ];
    UNITS.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?;
        Some(number.parse::<f64>().ok()? * factor)
    })
}

fn qos(look: &mut Look<'_>, workload: &Workload, container: &Container) {
    let of = |all: &[super::super::facts::Quantity], name: &str| {
        all.iter().find(|quantity| quantity.name == name).map(|quantity| quantity.value.clone())
    };
    let differing = ["cpu", "memory"].into_iter().filter_map(|name| {
        let (request, limit) = (of(&container.requests, name), of(&container.limits, name));
        let equal = match (&request, &limit) {
            (Some(request), Some(limit)) => same(request, limit),
            (None, Some(_)) => true,
            (Some(_) | None, None) => false,
        };
        (!equal).then(|| (name, request.or(limit)))
    });
    let differing: Vec<_> = differing.collect();
    let Some((first, value)) = differing.first() else { return };
    let names: Vec<_> = differing.iter().map(|(name, _)| *name).collect();
    let value = value.clone().unwrap_or_else(|| if *first == "cpu" { "8".into() } else { "32Gi".into() });
    let title =
        format!("{} is not Guaranteed: {} without an equal limit", workload.name, names.join(" and "));
    let finding = Finding::new(&QOS, title).fix(
        "the same amount under requests and limits",
        format!("requests: {{{first}: {value}}}, limits: {{{first}: {value}}}"),
    );
    look.find(workload.file, container.resources_at.unwrap_or(workload.at), finding);
}

fn hugepages(look: &mut Look<'_>, workload: &Workload, container: &Container) {
    let has = container
        .limits
        .iter()
        .chain(&container.requests)
        .any(|quantity| quantity.name.starts_with("hugepages-"));
    let off = workload
        .value("FI_EFA_USE_HUGE_PAGE")
        .is_some_and(|value| matches!(value, "0" | "false" | "no" | "off"))
        || workload
            .value("FI_EFA_FORK_SAFE")
            .is_some_and(|value| matches!(value, "1" | "true" | "yes" | "on"));
    if has || off {
        return;
    }
    let efa = container.resource("vpc.amazonaws.com/efa");
    let finding = Finding::new(
        &HUGEPAGES,
        format!("{} has {} EFA devices and no huge pages", workload.name, container.efas()),
    )
    .confidence(Confidence::Likely)
    .fix("under limits and requests", "hugepages-2Mi: 5120Mi")
    .fix("or without huge pages", "- {name: FI_EFA_USE_HUGE_PAGE, value: \"0\"}");
    look.find(workload.file, efa.map_or(workload.at, |efa| efa.at), finding);
}

fn alone(look: &mut Look<'_>, workload: &Workload, container: &Container) {
    let all = || container.limits.iter().chain(&container.requests);
    let Some(huge) = all().find(|quantity| quantity.name.starts_with("hugepages-")) else { return };
    if all().any(|quantity| matches!(quantity.name.as_str(), "cpu" | "memory")) {
        return;
    }
    let title = format!("{} asks for {} and for neither cpu nor memory", workload.name, huge.name);
    let finding = Finding::new(&HUGEPAGES_ALONE, title).fix("beside it", "memory: 32Gi");
    look.find(workload.file, huge.at, finding);
}

fn efa_count(look: &mut Look<'_>, workload: &Workload, container: &Container, pod: &Pod) {
    let (gpus, efas) = (container.gpus(), container.efas());
    let Some(efa) = container.resource("vpc.amazonaws.com/efa").filter(|_| efas > 0) else { return };
    if let Some(instance) = instance_of(&pod.spec) {
        if efas > instance.efas as u64 {
            let title = format!(
                "{} asks for {efas} EFA devices, and {} has {}",
                workload.name, instance.name, instance.efas
            );
            let finding = Finding::new(&EFA_COUNT, title)
                .severity(Severity::Error)
                .cause("No node of this type can ever hold the pod: it stays Pending.")
                .fix("all that it has", format!("vpc.amazonaws.com/efa: {}", instance.efas));
            return look.find(workload.file, efa.at, finding);
        }
        // A pod's devices are near its GPUs only if it has its share of them.
        let share = (instance.efas_per_gpu().unwrap_or_default() * gpus as f64).round() as u64;
        if gpus > 0 && efas < share {
            let gbps = efas * instance.efa_gbps as u64;
            let title = format!(
                "{} has {efas} of the {share} EFA devices near its {gpus} GPUs on {}",
                workload.name, instance.name
            );
            let finding = Finding::new(&EFA_COUNT, title)
                .evidence(
                    "line rate",
                    format!(
                        "{:.1} GB/s instead of {:.1}",
                        gbps as f64 / 8.0,
                        (share * instance.efa_gbps as u64) as f64 / 8.0
                    ),
                )
                .fix("under requests and limits", format!("vpc.amazonaws.com/efa: {share}"));
            look.find(workload.file, efa.at, finding);
        }
    } else if !names_instance(&pod.spec) && efas == 1 && gpus >= 1 && workload.wants_efa().is_some() {
        let title = format!(
            "{} has one EFA device: one rail, 12.5 GB/s on P5, where each GPU has four",
            workload.name
        );
        let finding = Finding::new(&EFA_COUNT, title)
            .confidence(Confidence::Possible)
            .severity(if workload.measures() { Severity::Warning } else { Severity::Note })
            .evidence("known types", instances())
            .fix("on P5, under requests and limits", format!("vpc.amazonaws.com/efa: {}", 4 * gpus));
        look.find(workload.file, efa.at, finding);
    }
}

fn instances() -> String {
    let each = known::INSTANCES
        .iter()
        .filter(|instance| instance.efas > 1)
        .filter_map(|instance| Some(format!("{} {} per GPU", instance.name, instance.efas_per_gpu()?)));
    each.collect::<Vec<_>>().join(", ")
}

fn no_efa(look: &mut Look<'_>, workload: &Workload, container: &Container) {
    let Some((told, at)) = workload.wants_efa() else { return };
    let other =
        container.limits.iter().chain(&container.requests).any(|quantity| quantity.name.contains("rdma/"));
    let claims = container.node.path(&["resources", "claims"]).is_some();
    // A privileged container sees the node's devices without asking.
    if container.efas() > 0 || other || claims || container.privileged() {
        return;
    }
    let gpus = container.gpus().max(1);
    let finding = Finding::new(
        &NO_EFA,
        format!("{} is told {told} and asks for no vpc.amazonaws.com/efa", workload.name),
    )
    .confidence(if told.starts_with("FI_PROVIDER") { Confidence::Certain } else { Confidence::Likely })
    .fix("under requests and limits (on P5; 4 for each GPU)", format!("vpc.amazonaws.com/efa: {}", 4 * gpus));
    look.find(workload.file, at, finding);
}

fn shm(look: &mut Look<'_>, workload: &Workload, container: &Container, pod: &Pod) {
    let ranks =
        workload.engines.iter().filter_map(|engine| engine.tensor_parallel).map(|(size, _)| u64::from(size));
    let gpus = ranks.max().unwrap_or(0).max(container.gpus());
    if gpus < 2 || pod.spec.get("hostIPC").is_some_and(|node| node.is_true()) {
        return;
    }
    let mounts = container.node.get("volumeMounts").map(|mounts| mounts.items()).unwrap_or_default();
    let mount = mounts
        .iter()
        .find(|mount| mount.str_at(&["mountPath"]).map(|p| p.trim_end_matches('/')) == Some("/dev/shm"));
    let volumes = pod.spec.get("volumes").map(|volumes| volumes.items()).unwrap_or_default();
    let volume = mount.and_then(|mount| {
        let name = mount.str_at(&["name"])?;
        volumes.iter().find(|volume| volume.str_at(&["name"]) == Some(name))
    });
    // Dynamo's operator mounts /dev/shm by itself.
    if pod.kind.starts_with("Dynamo") {
        return;
    }
    let (what, at) = match (mount, volume) {
        (None, _) => ("mounts nothing at /dev/shm", container.node.at),
        (Some(mount), Some(volume))
            if volume.get("emptyDir").is_some()
                && volume.str_at(&["emptyDir", "medium"]) != Some("Memory") =>
        {
            ("mounts an emptyDir on disk at /dev/shm", mount.at)
        }
        _ => return,
    };
    let finding = Finding::new(&SHM, format!("{} has {gpus} GPUs and {what}", workload.name))
        .confidence(Confidence::Likely)
        .fix("among the container's volumeMounts", "- {name: shm, mountPath: /dev/shm}")
        .fix("among the pod's volumes", "- {name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}");
    look.find(workload.file, at, finding);
}

/// Whether a pod has anything to do with such transfers.
pub(crate) fn transfers(facts: &Facts, pod: &Pod) -> bool {
    facts.containers_of(pod).any(|(workload, container)| {
        let rdma = container.efas() > 0
            || container.limits.iter().any(|quantity| quantity.name.starts_with("rdma/"));
        // A launcher starts what measures in other pods.
        let launches =
            !rdma && container.gpus() == 0 && (workload.runs("mpirun") || workload.runs("mpiexec"));
        let engine = workload.engines.iter().any(|engine| engine.nixl().is_some() || engine.role.is_some());
        rdma || engine || workload.measures() && !launches
    })
}
