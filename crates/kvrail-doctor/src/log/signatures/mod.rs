//! What is known of logs. A signature is added to the group that its lines come from; nothing else names it.

use super::signature::{Needle, PLAIN, Signature};
use crate::rule::{Kind, Reference, Rule, Severity};

mod cluster;
mod cuda;
mod efa;
mod engines;
mod kernel;
mod loader;
mod marks;
mod memory;
mod nixl;
mod together;
mod ucx;

pub(super) use marks::{MARKS, Mark};

/// What rules of logs have in common.
pub(super) const RULE: Rule = Rule {
    id: "",
    title: "",
    severity: Severity::Error,
    kind: Kind::Log,
    cause: "",
    remedy: "",
    story: "",
    references: &[],
    explained_by: &[],
};

/// Causes before their consequences; what is judged by what was found before it last.
static GROUPS: [&[Signature]; 10] = [
    &loader::ALL,
    &kernel::ALL,
    &cuda::ALL,
    &memory::ALL,
    &cluster::ALL,
    &efa::ALL,
    &ucx::ALL,
    &nixl::ALL,
    &engines::ALL,
    &together::ALL,
];

/// Every signature, in order.
pub(super) fn all() -> impl Iterator<Item = &'static Signature> {
    GROUPS.iter().flat_map(|group| group.iter())
}

const COUNT: usize = {
    let (mut count, mut group) = (0, 0);
    while group < GROUPS.len() {
        count += GROUPS[group].len();
        group += 1;
    }
    count
};

/// The rule of each, in the same order.
pub(super) const RULES: [&Rule; COUNT] = {
    let mut rules: [&Rule; COUNT] = [&RULE; COUNT];
    let (mut index, mut group) = (0, 0);
    while group < GROUPS.len() {
        let mut of_group = 0;
        while of_group < GROUPS[group].len() {
            rules[index] = &GROUPS[group][of_group].rule;
            of_group += 1;
            index += 1;
        }
        group += 1;
    }
    rules
};

const FI_EFA: Reference = Reference {
    title: "libfabric: fi_efa(7)",
    url: "https://ofiwg.github.io/libfabric/main/man/fi_efa.7.html",
};
const EFA_ERRNO: Reference = Reference {
    title: "libfabric: error codes of the efa provider",
    url: "https://github.com/ofiwg/libfabric/blob/main/prov/efa/src/efa_errno.h",
};
const NIXL_LIBFABRIC: Reference = Reference {
    title: "NIXL: libfabric plugin",
    url: "https://github.com/ai-dynamo/nixl/blob/main/src/plugins/libfabric/README.md",
};
const NIXL: Reference = Reference { title: "NIXL", url: "https://github.com/ai-dynamo/nixl" };
const AWS_EFA: Reference = Reference {
    title: "AWS: get started with EFA, security group",
    url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html",
};
const EKS_EFA: Reference = Reference {
    title: "AWS: EFA on EKS",
    url: "https://docs.aws.amazon.com/eks/latest/userguide/node-efa.html",
};
const UCX_FAQ: Reference = Reference {
    title: "UCX: frequently asked questions",
    url: "https://openucx.readthedocs.io/en/master/faq.html",
};
const VLLM_NIXL: Reference = Reference {
    title: "vLLM: NixlConnector usage guide",
    url: "https://docs.vllm.ai/en/latest/features/nixl_connector_usage/",
};
const SGLANG_PD: Reference = Reference {
    title: "SGLang: PD disaggregation",
    url: "https://docs.sglang.io/advanced_features/pd_disaggregation.html",
};
const LD_SO: Reference =
    Reference { title: "Linux: ld.so(8)", url: "https://man7.org/linux/man-pages/man8/ld.so.8.html" };
const XID: Reference = Reference {
    title: "NVIDIA: Xid errors",
    url: "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html",
};
const CUDA_ERRORS: Reference = Reference {
    title: "CUDA runtime: error types",
    url: "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_in_the_order_of_their_names() {
        for (index, (mark, _)) in MARKS.iter().enumerate() {
            assert_eq!(*mark as usize, index, "{mark:?}");
        }
    }

    #[test]
    fn rules_of_logs_say_so_in_their_names() {
        assert!(
            all().all(|signature| signature.rule.id.starts_with("log-") && signature.rule.kind == Kind::Log)
        );
        assert_eq!(all().count(), RULES.len());
    }
}
