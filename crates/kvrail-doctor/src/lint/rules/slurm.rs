//! Slurm's batch scripts, and containers that srun or docker starts.

use super::super::extract::slurm_options;
use super::super::facts::{Batch, Role, Workload, option};
use super::super::read::{Command, Node, Position};
use super::{Look, Reference, rule};
use crate::finding::Finding;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&ONE_NODE, &TASKS, &EXCLUSIVE, &MEMLOCK, &EFA_MOUNT];

const SBATCH: Reference = Reference { title: "Slurm: sbatch", url: "https://slurm.schedmd.com/sbatch.html" };
const PYXIS: Reference =
    Reference { title: "pyxis: container support for Slurm", url: "https://github.com/NVIDIA/pyxis" };

static ONE_NODE: Rule = rule(
    "lint-slurm-one-node",
    Severity::Warning,
    "a transfer between two sides is run on one node",
    [
        "The job has one node, so that both ends share it and nothing crosses the network.",
        "Ask for two nodes with one task on each: --nodes=2 --ntasks-per-node=1.",
        "40 GB/s and more with one NIC, zero counters on every NIC: initiator and target, or prefill and decode, ran on one node. Without --nodes Slurm puts as many tasks on a node as fit, so that --ntasks=2 alone means one node on an idle cluster and two on a busy one.",
    ],
    &[SBATCH],
);

static TASKS: Rule = rule(
    "lint-slurm-tasks",
    Severity::Warning,
    "fewer tasks than nodes",
    [
        "Slurm starts one task for the job, or as many as --ntasks says, and nodes without a task stay idle.",
        "Set --ntasks-per-node.",
        "One side waits at the rendezvous until its deadline, since the other was never started: two nodes were allocated and one task was. srun inherits --ntasks of the batch script, and with it the number of tasks for all nodes together.",
    ],
    &[SBATCH],
);

static EXCLUSIVE: Rule = rule(
    "lint-slurm-exclusive",
    Severity::Note,
    "a benchmark shares its nodes with other jobs",
    [
        "Without --exclusive other jobs may run on the same nodes and use the same NICs, PCIe switches and memory.",
        "Add #SBATCH --exclusive to whatever is measured.",
        "Figures vary by a factor of two between runs of the same script, and nobody can repeat the best one. A node's NICs are not a resource that Slurm hands out: a job with one GPU on the node may load all 32 of them. Where partitions are exclusive by configuration the option changes nothing.",
    ],
    &[SBATCH],
);

static MEMLOCK: Rule = rule(
    "lint-slurm-memlock",
    Severity::Note,
    "the memlock limit of the host that submits goes with the job",
    [
        "Slurm hands the limits of the submitting shell on to the tasks unless its configuration excepts them, and a login node's memlock is often 8 MiB.",
        "Add #SBATCH --propagate=NONE, or PropagateResourceLimitsExcept=MEMLOCK to slurm.conf.",
        "`Cannot allocate memory` at the registration of KV caches, in batch jobs only: with ssh on the same node it works, and `ulimit -l` there says unlimited. The limit came from where sbatch was typed. Whether it happens depends on PropagateResourceLimits in slurm.conf, \
which a script cannot see; `srun bash -c 'ulimit -l'` shows it.",
    ],
    &[Reference { title: "Slurm: FAQ, memory locked", url: "https://slurm.schedmd.com/faq.html" }, SBATCH],
);

static EFA_MOUNT: Rule = rule(
    "lint-efa-not-mounted",
    Severity::Warning,
    "a container is to use the host's EFA installation, which is not mounted",
    [
        "The job refers to /opt/amazon/efa, or wants EFA, and the container has only what its image brings.",
        "Mount it: --container-mounts=/opt/amazon/efa:/opt/amazon/efa (docker: -v /opt/amazon/efa:/opt/amazon/efa:ro).",
        "``version `FABRIC_1.7' not found`` or `No data available` in the container, while fi_info on the host lists every device. Images carry the libfabric of the day on which they were built, often a distribution's without the EFA provider; the node's installer keeps a matching one in /opt/amazon/efa. \
Copies that a preamble makes at every start are lost with the container. An image with a recent EFA installer of its own needs no mount.",
    ],
    &[
        PYXIS,
        Reference {
            title: "AWS: get started with EFA",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html",
        },
    ],
);

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for batch in &facts.batches {
        let workloads: Vec<&Workload> =
            facts.workloads.iter().filter(|workload| workload.file == batch.file).collect();
        nodes(look, batch, &workloads);
    }
    for workload in &facts.workloads {
        for command in &workload.commands {
            mounts(look, workload, command);
        }
    }
    for (index, file) in facts.files.iter().enumerate() {
        for document in &file.documents {
            settings(look, index, document);
        }
    }
}

/// Whether two sides of a transfer are in what a script runs.
fn two_sided(workloads: &[&Workload]) -> bool {
    let engines = || workloads.iter().flat_map(|workload| &workload.engines);
    let both = engines().any(|engine| engine.role == Some(Role::Prefill))
        && engines().any(|engine| engine.role == Some(Role::Decode));
    both || workloads.iter().any(|workload| workload.measures())
}

fn count(batch: &Batch, name: &str) -> Option<u32> {
    // `--nodes=2-4` is at least 2.
    batch.option(name)?.str().split('-').next()?.parse().ok()
}

fn nodes(look: &mut Look<'_>, batch: &Batch, workloads: &[&Workload]) {
    let Some(last) = batch.at else { return };
    let (nodes, tasks, each) =
        (count(batch, "nodes"), count(batch, "ntasks"), count(batch, "ntasks-per-node"));
    let place = |name: &str| batch.option(name).map_or(last, |word| word.at());
    if two_sided(workloads) && nodes.unwrap_or(1) == 1 && (nodes.is_some() || tasks.unwrap_or(1) <= 2) {
        let told = if nodes.is_some() { "--nodes is 1" } else { "--nodes is not set" };
        let finding =
            Finding::new(&ONE_NODE, format!("both sides of the transfer run in one job whose {told}"))
                .confidence(if nodes.is_some() { Confidence::Certain } else { Confidence::Likely })
                .fix("two nodes, a task on each", "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1");
        look.find(batch.file, place("nodes"), finding);
    }
    // srun may say for itself how many tasks it starts.
    let steps = workloads
        .iter()
        .flat_map(|workload| &workload.commands)
        .filter(|command| command.program() == "srun");
    let own = steps
        .flat_map(|command| slurm_options(&command.words))
        .any(|(name, _)| matches!(name.as_str(), "ntasks" | "ntasks-per-node" | "nodes" | "nodelist"));
    if let (Some(nodes), None, false) = (nodes.filter(|nodes| *nodes > 1), each, own)
        && tasks.is_some_and(|tasks| tasks < nodes)
    {
        let finding = Finding::new(&TASKS, format!("{nodes} nodes and {} task", tasks.unwrap_or(1)))
            .fix("a task on each", "#SBATCH --ntasks-per-node=1");
        look.find(batch.file, place("ntasks"), finding);
    }
    if workloads.iter().any(|workload| workload.measures()) && batch.option("exclusive").is_none() {
        look.find(
            batch.file,
            last,
            Finding::new(&EXCLUSIVE, "the benchmark shares its nodes")
                .confidence(Confidence::Possible)
                .fix("nodes of its own", "#SBATCH --exclusive"),
        );
    }
    let lifted = workloads
        .iter()
        .flat_map(|workload| &workload.commands)
        .any(|command| command.program() == "ulimit" && command.says("unlimited"));
    let wants = workloads.iter().any(|workload| workload.wants_efa().is_some());
    let propagate = batch.option("propagate").map(|word| word.str());
    let kept = propagate.is_some_and(|value| !matches!(value, "" | "ALL") && !value.contains("MEMLOCK"));
    if wants && !lifted && !kept {
        let finding = Finding::new(&MEMLOCK, "the job takes the memlock limit of the shell that submits it")
            .confidence(Confidence::Possible)
            .fix("the nodes' own limits", "#SBATCH --propagate=NONE");
        look.find(batch.file, place("propagate"), finding);
    }
}

const EFA: &str = "/opt/amazon/efa";

fn wants(workload: &Workload) -> Option<String> {
    let path = workload
        .variables
        .iter()
        .filter_map(|variable| variable.value.as_ref())
        .find(|value| value.str().contains(EFA));
    let said = || {
        workload
            .commands
            .iter()
            .flat_map(|command| &command.words)
            .find(|word| word.str().contains(EFA) && !word.str().contains(":/"))
    };
    if path.or_else(said).is_some() {
        return Some(format!("{EFA} is used"));
    }
    workload.wants_efa().map(|(told, _)| told)
}

fn mounts(look: &mut Look<'_>, workload: &Workload, command: &Command) {
    let program = command.program();
    let docker = matches!(program, "docker" | "podman" | "nerdctl") && command.says("run");
    let batch = look.facts.batches.iter().find(|batch| batch.file == workload.file);
    let own = option(&command.words, &["--container-image"]);
    let image =
        own.or_else(|| batch.filter(|_| program == "srun").and_then(|batch| batch.option("container-image")));
    let Some(at) = image.map(|word| word.at()).or_else(|| docker.then(|| command.at())) else { return };
    let inherited = batch.and_then(|batch| batch.option("container-mounts"));
    let mounted = command.words.iter().chain(inherited).any(|word| {
        let text = word.str();
        text.contains("/opt/amazon")
            && (text.contains(":/")
                || docker && text.contains("dst=")
                || text == "/opt/amazon/efa" && option(&command.words, &["--container-mounts"]).is_some())
            || text.contains('$') && (text.contains("MOUNT") || text.contains("mount"))
    });
    let named: Vec<_> = command.assignments.iter().map(super::super::facts::Variable::from).collect();
    let here = command.words.iter().chain(named.iter().filter_map(|variable| variable.value.as_ref()));
    let told =
        here.clone().find(|word| matches!(word.str(), "FI_PROVIDER=efa")).map(|word| word.str().to_owned());
    let Some(told) = told.or_else(|| wants(workload)).filter(|_| !mounted) else { return };
    let mount = if docker { format!("-v {EFA}:{EFA}:ro") } else { format!("--container-mounts={EFA}:{EFA}") };
    let finding =
        Finding::new(&EFA_MOUNT, format!("{told}, and {program}'s container does not have the host's {EFA}"))
            .confidence(Confidence::Likely)
            .fix("mount it", mount);
    look.find(workload.file, at, finding);
}

/// A launcher's job file with `container_mounts` beside its environment.
fn settings(look: &mut Look<'_>, file: usize, document: &Node) {
    let Some(mounts) = document.get("container_mounts") else { return };
    let text = |node: &Node| node.str().is_some_and(|text| text.contains("/opt/amazon"));
    let mounted = mounts.entries().iter().any(|(key, value)| key.name.contains("/opt/amazon") || text(value))
        || mounts.items().iter().any(|node| text(node))
        || text(mounts);
    let workload = look.facts.workloads.iter().find(|workload| workload.file == file);
    let Some(told) = workload.and_then(wants).filter(|_| !mounted) else { return };
    let at: Position = document.key("container_mounts").unwrap_or(document.at);
    let finding = Finding::new(&EFA_MOUNT, format!("{told}, and container_mounts does not have {EFA}"))
        .confidence(Confidence::Likely)
        .fix("among container_mounts", format!("{EFA}: {EFA}"));
    look.find(file, at, finding);
}
