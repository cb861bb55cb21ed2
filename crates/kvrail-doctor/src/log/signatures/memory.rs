//! Lines about registered memory, whoever prints them.

use super::{FI_EFA, Needle, PLAIN, RULE, Reference, Rule, Severity, Signature, UCX_FAQ};
use crate::rule::Confidence;

pub(super) static ALL: [Signature; 3] = [
    Signature {
        rule: Rule {
            id: "log-memlock",
            title: "memory could not be registered: too little may be locked",
            cause: "Registered memory is locked, and the process reached the kernel's limit for locked memory, or the device its limit of pages.",
            remedy: "Give the process an unlimited memlock limit or the capability IPC_LOCK; use huge pages for very large regions.",
            story: "ibv_reg_mr, fi_mr_reg or `Unable to register MR` fail with `Cannot allocate memory` although the host has plenty. UCX adds what to do (`Please set max locked memory (ulimit -l) to 'unlimited'`); libfabric and NIXL \
do not.

Containers inherit the limit of their runtime's daemon, mostly 64 KiB or 8 MiB; `ulimit -l` in a login shell says something else. Where the limit is unlimited and large regions still fail on EFA, the device ran out of \
page entries: 4 KiB pages end near 95 GB, huge pages do not.",
            references: &[FI_EFA, UCX_FAQ],
            ..RULE
        },
        needle: Needle {
            literals: &["Cannot allocate memory", "Please set max locked memory", "RLIMIT_MEMLOCK"],
            pattern: r"(?:ibv_reg_mr|ibv_reg_dmabuf_mr|fi_mr_reg\w*|Unable to register MR|ibv_create_[cq]q|registerMemory)\b.*Cannot allocate memory|Please set max locked memory.*\(current: (?P<limit>[^)]+)\)|Please set max locked memory|RLIMIT_MEMLOCK",
            unless: &["RLIMIT_MEMLOCK is unlimited"],
        },
        headline: "memory could not be registered because too little may be locked",
        steps: &[
            ("see the limit of this container", "kvrail doctor --check memlock"),
            ("with docker", "docker run --ulimit memlock=-1 …"),
            ("in Kubernetes add `IPC_LOCK` to the container's securityContext.capabilities.add", ""),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-gpu-memory-registration",
            title: "the NIC cannot register GPU memory",
            cause: "Nothing between the NIC's and the GPU's driver lets the one reach the other's memory: nvidia_peermem is not loaded, dmabuf is not available, or libfabric was built without CUDA.",
            remedy: "Load nvidia_peermem or use the open GPU kernel modules (dmabuf), and a libfabric with CUDA: the EFA installer's.",
            story: "Registration of a GPU buffer fails with `Bad address` (EFAULT) or `Operation not supported`, or the EFA provider says at start that it failed to register a CUDA buffer and that transfers that need peer to peer will \
fail. Where the library falls back, it copies through the host instead and says nothing.

A host pointer's path is the default for an unknown address, so that a GPU address reaches the kernel as one of host memory, which does not exist: `Bad address`.",
            references: &[FI_EFA, Reference { title: "NVIDIA: GPUDirect RDMA", url: "https://docs.nvidia.com/cuda/gpudirect-rdma/index.html" }],
            ..RULE
        },
        needle: Needle {
            literals: &["Bad address", "Failed to register CUDA buffer with the EFA device", "Unable to retrieve dmabuf fd of CUDA", "nvidia_peermem"],
            pattern: r"(?:ibv_reg_mr|ibv_reg_dmabuf_mr|fi_mr_reg\w*|Unable to register MR|registerMemory)\b.*Bad address|Failed to register CUDA buffer with the EFA device|(?:modprobe|insmod).*nvidia_peermem.*(?:not found|Invalid argument|[Ee]rror)",
            unless: &[],
        },
        headline: "the NIC cannot register GPU memory",
        steps: &[
            ("load the module on the host", "sudo modprobe nvidia_peermem"),
            ("see what connects GPU and NIC here", "kvrail doctor --check gpu-memory-unreachable"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-p2p-disabled",
            title: "libfabric may not let NICs reach GPU memory",
            severity: Severity::Error,
            cause: "FI_HMEM_DISABLE_P2P is set: each transfer of GPU memory is copied through the host's memory.",
            remedy: "Unset FI_HMEM_DISABLE_P2P, or set it to 0, in the pod, job and image.",
            story: "Bandwidth of GPU memory is a fraction of what the NICs can do, while host memory is fast; nothing fails. The EFA provider prints `hmem_disable_p2p=1` among its settings when an endpoint is opened at log level info.

The variable was recommended as a workaround on instances without GPUDirect RDMA and stays in images and job files. On P4d, P5 and later it costs most of the bandwidth; some accelerators refuse to work with it at \
all (`requires p2p, unset FI_HMEM_DISABLE_P2P`).",
            references: &[Reference { title: "libfabric: fi_domain(3), FI_HMEM_DISABLE_P2P", url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html" }],
            ..RULE
        },
        needle: Needle {
            literals: &["hmem_disable_p2p", "HMEM_DISABLE_P2P"],
            pattern: r"(?i-u:hmem_disable_p2p)[\x22']?\s*[=:]\s*[\x22']?(?i-u:1|true|yes|on)\b|requires p2p, unset FI_HMEM_DISABLE_P2P",
            unless: &["Default: ", "(default", "# FI_HMEM_DISABLE_P2P"],
        },
        confidence: Confidence::Certain,
        headline: "FI_HMEM_DISABLE_P2P is on: GPU memory goes through the host",
        steps: &[("let NICs reach GPU memory", "export FI_HMEM_DISABLE_P2P=0")],
        ..PLAIN
    },
];
