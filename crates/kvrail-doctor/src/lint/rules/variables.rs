//! Environment variables of libfabric, UCX, NIXL and the engines: misspelt, without effect, or with values that hurt.

use std::collections::HashSet;

use super::super::facts::{Expansion, Variable, Workload};
use super::{FABRIC, FI_EFA, Look, NIXL_BACKENDS, Reference, kubernetes, rule};
use crate::finding::Finding;
use crate::known;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&NAME, &IGNORED, &VALUE, &P2P, &DEBUG, &UCX_TLS, &UNEXPANDED];

static NAME: Rule = rule(
    "lint-variable-name",
    Severity::Warning,
    "a variable that nothing reads, and that is spelt almost like one that is read",
    [
        "No library knows a variable of this name, and an unknown variable has no effect and makes no error.",
        "Use the name that was meant.",
        "A setting that was tried changes nothing, and the conclusion is that it does not matter. libfabric, NIXL and the engines read variables by their exact names and do not look at others; UCX alone warns of those that begin with UCX_ \
and are unknown. `fi_info -e` lists libfabric's variables with the values that it has read, `ucx_info -c` UCX's.",
    ],
    &[FABRIC, FI_EFA],
);

static IGNORED: Rule = rule(
    "lint-variable-ignored",
    Severity::Warning,
    "a variable that seems to choose the NIXL backend and is read by nobody",
    [
        "Neither NIXL nor vLLM reads a variable for the backend; vLLM's connector takes it from its configuration only.",
        "Set kv_connector_extra_config.backends for vLLM, SGLANG_DISAGGREGATION_NIXL_BACKEND for SGLang, TRTLLM_NIXL_KVCACHE_BACKEND for TensorRT-LLM.",
        "NIXL_BACKEND=LIBFABRIC is set everywhere, and NIXL says that UCX was instantiated. The variable is in many examples because people wished that it existed: the backend is an argument of NIXL's agent, and each engine \
has its own way to set it. vLLM reports variables with its prefix that it does not know, in one line among hundreds.",
    ],
    &[
        Reference {
            title: "vLLM: NixlConnector's default backend and variables without effect",
            url: "https://github.com/vllm-project/vllm/issues/41814",
        },
        NIXL_BACKENDS,
    ],
);

static VALUE: Rule = rule(
    "lint-variable-value",
    Severity::Warning,
    "a variable of libfabric whose value turns off what makes it fast, or means nothing",
    [
        "The value is none that libfabric knows, or it tells libfabric to emulate in software what the NIC does.",
        "Unset the variable, or set the value that is proposed.",
        "FI_EFA_USE_DEVICE_RDMA=0 makes the provider emulate reads and writes with messages through bounce buffers: right, and a fraction of the rate. A provider's name in FI_PROVIDER that is none (`libfabric`, `ucx`, `srd`) leaves no provider at all, and tcp or sockets leave the \
EFA devices idle. Case does not matter there.",
    ],
    &[FI_EFA, FABRIC],
);

static P2P: Rule = rule(
    "lint-p2p-disabled",
    Severity::Warning,
    "GPUDirect is turned off: GPU memory goes through the host",
    [
        "FI_HMEM_DISABLE_P2P=1 forbids libfabric's providers to let the NIC access GPU memory directly.",
        "Set FI_HMEM_DISABLE_P2P=0 or unset it.",
        "GPU-to-GPU transfers are several times slower than host-to-host ones, on a node where the driver and the NIC support GPUDirect. The setting is for systems whose IOMMU or PCIe topology breaks peer-to-peer access; it is left behind \
after somebody ruled that out. libfabric's log at level info says hmem_disable_p2p=1.",
    ],
    &[FABRIC],
);

static DEBUG: Rule = rule(
    "lint-debug-logging",
    Severity::Warning,
    "a log level that writes lines for every operation",
    [
        "A level of debug, trace or data logs each operation on the thread that moves the data.",
        "Set warn, or unset the variable, for anything that is measured or serves users.",
        "12.2 GB/s became 0.35 GB/s with nothing but FI_LOG_LEVEL=debug. The level was set while something else was debugged and stayed in the job's file, from where it was copied to others. A level for one provider only (FI_LOG_PROV=efa) is as slow if it is the \
provider in use. info is fine after the start, since little is logged per operation.",
    ],
    &[
        FABRIC,
        Reference {
            title: "UCX: FAQ, UCX_LOG_LEVEL",
            url: "https://openucx.readthedocs.io/en/master/faq.html",
        },
    ],
);

static UCX_TLS: Rule = rule(
    "lint-ucx-tls",
    Severity::Warning,
    "UCX_TLS has no transport that leaves the host, or only TCP",
    [
        "UCX uses the transports in UCX_TLS and no others, and those in the list do not reach another host over RDMA.",
        "Unset UCX_TLS, or add rc, ud or dc (InfiniBand, RoCE) or srd (EFA) to the list.",
        "`no remote ep address for lane` or `Destination is unreachable` between hosts, while everything on one host works; with tcp in the list it works between hosts too, at a tenth of the rate. UCX_TLS=cuda_ipc,cuda_copy,sm is right for one host. A list that begins with ^ names what is \
excluded; all is the default.",
    ],
    &[Reference { title: "UCX: FAQ, UCX_TLS", url: "https://openucx.readthedocs.io/en/master/faq.html" }],
);

static UNEXPANDED: Rule = rule(
    "lint-variable-unexpanded",
    Severity::Error,
    "a reference to a variable that stays as it is written",
    [
        "Kubernetes replaces $(NAME) in values and nothing else, and settings files replace nothing: the process gets the dollar sign.",
        "Write $(NAME) for a variable that the manifest sets; what the image sets cannot be referred to and has to be written out, or set in a shell.",
        "The loader looks in a directory that is called `$LD_LIBRARY_PATH` or `${LD_LIBRARY_PATH}`, finds none and goes on, so that the paths of the image are gone and nobody says so: `libcuda.so.1: cannot open shared object file`, or another libfabric than the \
one in the image. $(LD_LIBRARY_PATH) works only if the same manifest sets it before; what an image's ENV set is not known to Kubernetes.",
    ],
    &[kubernetes(
        "https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/",
    )],
);

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for workload in &facts.workloads {
        let before: Vec<_> = workload.scoped().collect();
        let own = referenced(workload);
        for variable in workload.variables.iter().chain(&before) {
            one(look, workload, variable, &own);
        }
    }
}

/// Names that a script refers to itself, as `$NAME` or `${NAME…}`.
fn referenced(workload: &Workload) -> HashSet<&str> {
    let mut names = HashSet::new();
    let values = workload.variables.iter().filter_map(|variable| variable.value.as_ref());
    let words = workload.commands.iter().flat_map(|command| &command.words);
    for word in words.chain(values).filter(|word| word.expands) {
        for piece in word.str().split('$').skip(1) {
            let piece = piece.trim_start_matches('{');
            let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len());
            names.insert(&piece[..end]);
        }
    }
    names
}

fn one(look: &mut Look<'_>, workload: &Workload, variable: &Variable, own: &HashSet<&str>) {
    let (file, name) = (workload.file, variable.name.as_str());
    let value = variable.literal();
    match name {
        "NIXL_BACKEND"
        | "NIXL_BACKENDS"
        | "VLLM_NIXL_BACKEND"
        | "VLLM_NIXL_BACKENDS"
        | "VLLM_NIXL_KVCACHE_BACKEND" => {
            // A script may use it for itself.
            let used = workload
                .commands
                .iter()
                .flat_map(|command| &command.words)
                .any(|word| word.expands && word.str().contains(name));
            if !used {
                let finding = Finding::new(&IGNORED, format!("{name} is read by neither NIXL nor vLLM"))
                    .confidence(Confidence::Likely)
                    .fix("for vLLM", "--kv-transfer-config.kv_connector_extra_config.backends+ LIBFABRIC")
                    .fix("for SGLang", "SGLANG_DISAGGREGATION_NIXL_BACKEND=LIBFABRIC");
                look.find(file, variable.at, finding);
            }
            return;
        }
        _ => {}
    }
    // A script may have a variable of its own by any name.
    let private = variable.expansion == Expansion::Shell && own.contains(name);
    if let Some(meant) = known::meant_variable(name).filter(|_| !private) {
        let finding = Finding::new(&NAME, format!("nothing reads {name}; {meant} was meant"))
            .confidence(Confidence::Likely)
            .fix(
                "its name",
                Variable { name: meant.into(), ..variable.clone() }.written(value.unwrap_or("…")),
            );
        return look.find(file, variable.at, finding);
    }
    unexpanded(look, workload, variable);
    let Some(value) = value else { return };
    match name {
        "FI_HMEM_DISABLE_P2P" if is_true(value) => {
            let finding = Finding::new(&P2P, format!("{name}={value}: the NIC may not access GPU memory"))
                .fix("GPUDirect", variable.written("0"));
            look.find(file, variable.at, finding);
        }
        "FI_EFA_USE_DEVICE_RDMA" if is_false(value) => {
            let finding = Finding::new(&VALUE, format!("{name}={value}: reads and writes are emulated"))
                .fix("the NIC's own", variable.written("1"));
            look.find(file, variable.at, finding);
        }
        "FI_PROVIDER" => provider(look, workload, variable, value),
        "UCX_TLS" => ucx_tls(look, workload, variable, value),
        _ => {}
    }
    let lowered = value.to_ascii_lowercase();
    let slow = match name {
        "FI_LOG_LEVEL" | "NIXL_LOG_LEVEL" => matches!(lowered.as_str(), "debug" | "trace"),
        "NCCL_DEBUG" => lowered == "trace",
        "UCX_LOG_LEVEL" => {
            lowered == "debug"
                || lowered.starts_with("trace")
                || matches!(lowered.as_str(), "req" | "data" | "async" | "func" | "poll")
        }
        _ => false,
    };
    if slow {
        let finding = Finding::new(&DEBUG, format!("{name}={value} logs every operation"))
            .fix("warnings only", variable.written(if name == "NCCL_DEBUG" { "WARN" } else { "warn" }));
        look.find(file, variable.at, finding);
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

fn is_false(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off")
}

const PROVIDERS: &[&str] = &[
    "efa",
    "efa-direct",
    "tcp",
    "shm",
    "sm2",
    "sockets",
    "udp",
    "verbs",
    "psm2",
    "psm3",
    "opx",
    "cxi",
    "ucx",
    "lnx",
    "usnic",
    "xpmem",
    "ofi_rxm",
    "ofi_rxd",
    "ofi_mrail",
    "ofi_hook_noop",
    "off_coll",
    "lpp",
    "mlx",
    "gni",
    "net",
    "rxm",
    "rxd",
    "mrail",
];

fn provider(look: &mut Look<'_>, workload: &Workload, variable: &Variable, value: &str) {
    let names = value.trim_start_matches('^');
    if value.starts_with('^') || names.is_empty() {
        return;
    }
    let parts = || names.split([',', ';']).map(str::trim);
    if let Some(unknown) = parts().find(|name| !PROVIDERS.contains(&name.to_ascii_lowercase().as_str())) {
        let finding = Finding::new(&VALUE, format!("libfabric has no provider {unknown}"))
            .severity(Severity::Error)
            .cause("FI_PROVIDER names the providers that may be used; with none that exists libfabric offers nothing.")
            .confidence(Confidence::Likely)
            .fix("EFA", variable.written("efa"));
        return look.find(workload.file, variable.at, finding);
    }
    let efas = workload.container.as_ref().map_or(0, super::super::facts::Container::efas);
    let slow =
        parts().all(|name| matches!(name.to_ascii_lowercase().as_str(), "tcp" | "sockets" | "udp" | "net"));
    if slow && efas > 0 {
        let finding = Finding::new(
            &VALUE,
            format!("FI_PROVIDER={value} leaves the container's {efas} EFA devices idle"),
        )
        .fix("EFA", variable.written("efa"));
        look.find(workload.file, variable.at, finding);
    }
}

fn ucx_tls(look: &mut Look<'_>, workload: &Workload, variable: &Variable, value: &str) {
    if value.starts_with('^') || value.trim().is_empty() {
        return;
    }
    let parts = || value.split(',').map(|part| part.trim().trim_start_matches('^'));
    let rdma = |name: &str| {
        ["all", "ib", "rc", "ud", "dc", "srd", "efa", "rdma", "net", "gga"].iter().any(|known| {
            name == *known
                || name.strip_prefix(known).is_some_and(|rest| rest.starts_with('_') || rest.starts_with(':'))
        })
    };
    if parts().any(rdma) {
        return;
    }
    let devices = workload.container.as_ref().is_some_and(|container| {
        container.efas() > 0 || container.limits.iter().any(|quantity| quantity.name.starts_with("rdma/"))
    });
    let tcp = parts().any(|name| name == "tcp" || name.starts_with("tcp:"));
    // On one host such a list is right; TCP alone may be all that there is.
    let engines = workload.engines.len();
    if !devices && (tcp || engines > 1) {
        return;
    }
    let title = if tcp {
        format!("UCX_TLS={value} leaves TCP between hosts")
    } else {
        format!("UCX_TLS={value} reaches no other host")
    };
    let finding = Finding::new(&UCX_TLS, title)
        .confidence(if devices { Confidence::Certain } else { Confidence::Possible })
        .severity(if devices || !tcp { Severity::Warning } else { Severity::Note })
        .fix("with what leaves the host", variable.written("all"));
    look.find(workload.file, variable.at, finding);
}

fn unexpanded(look: &mut Look<'_>, workload: &Workload, variable: &Variable) {
    let Some(value) = variable.value.as_ref().filter(|_| variable.expansion != Expansion::Shell) else {
        return;
    };
    let text = value.str();
    let Some(offset) = text.find('$') else { return };
    let rest = &text[offset + 1..];
    let named = rest.strip_prefix('{').unwrap_or(rest);
    let name: String = named.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    // Settings of launchers are often made by templates or read by a shell; the loader's path is where it does harm.
    let certain = variable.expansion == Expansion::Kubernetes;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        || rest.starts_with('(')
        || !(certain || variable.name == "LD_LIBRARY_PATH")
    {
        return;
    }
    let written = if rest.starts_with('{') { format!("${{{name}}}") } else { format!("${name}") };
    let finding = Finding::new(&UNEXPANDED, format!("{} contains {written} as it is", variable.name))
        .confidence(if certain { Confidence::Certain } else { Confidence::Possible })
        .severity(if certain { Severity::Error } else { Severity::Note });
    let finding = if certain && workload.variables.iter().any(|own| own.name == name && own.at < variable.at)
    {
        finding.fix("Kubernetes' way", text.replacen(&written, &format!("$({name})"), 1))
    } else {
        finding.fix(
            "in the container's shell, which knows what the image set",
            format!("export {}=\"{text}\"", variable.name),
        )
    };
    look.find(workload.file, value.text.at(offset), finding);
}
