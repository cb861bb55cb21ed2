//! Lines of CUDA, PyTorch and NCCL.

use super::super::codes;
use super::{CUDA_ERRORS, Mark, Needle, PLAIN, RULE, Reference, Rule, Severity, Signature};
use crate::rule::Confidence;

pub(super) static ALL: [Signature; 5] = [
    Signature {
        rule: Rule {
            id: "log-cuda-out-of-memory",
            title: "a GPU has no memory left",
            cause: "An allocation on the GPU failed: the KV cache, the model and the staging buffers of the transfers do not fit together, or another process holds the rest.",
            remedy: "Leave room for transfers (a lower memory utilisation of the engine), and end processes that should be gone.",
            story: "CUDA out of memory, cudaErrorMemoryAllocation or a failed cudaMalloc at start, or when the first transfer needs a buffer. Engines take a fixed share of the GPU for the KV cache, and transfer libraries \
allocate theirs afterwards.

Where nvidia-smi shows memory in use and no process, a process of an earlier run hangs inside the driver: it must be killed, or the GPU reset.",
            references: &[CUDA_ERRORS],
            ..RULE
        },
        needle: Needle {
            literals: &["CUDA out of memory", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "cudaMalloc failed", "CUDA error: out of memory"],
            pattern: r"CUDA out of memory(?:\. Tried to allocate (?P<wanted>[\d.]+ [KMGT]iB))?|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|cudaMalloc failed|CUDA error: out of memory",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "a GPU had no memory left for an allocation",
        steps: &[
            ("see who holds the memory", "nvidia-smi --query-compute-apps=pid,used_memory --format=csv"),
            ("give the engine less, as in vLLM", "vllm serve … --gpu-memory-utilization 0.85"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-cuda-error",
            title: "a call of CUDA failed",
            cause: "A call to CUDA returned an error; errors of kernels are reported by whatever call comes next, so that the line is where it was noticed and not where it happened.",
            remedy: "See what the error means; run once with CUDA_LAUNCH_BLOCKING=1 to find the call that causes an illegal access.",
            story: "An error of CUDA ends the context: everything after it in the same process fails, transfers too. `illegal memory access` in a process that receives KV blocks may be the block's fault (an index that was \
overwritten) as well as the kernel's. `driver version is insufficient` and `no CUDA-capable device` are the container's fault: the runtime did not put the driver or the device into it.",
            references: &[CUDA_ERRORS],
            explained_by: &["log-gpu-xid"],
            ..RULE
        },
        needle: Needle {
            literals: &["cudaError", "CUDA error: ", "CUDA_ERROR_", "CUDA driver version is insufficient", "CUDA-capable device"],
            pattern: r"\b(?P<error>cudaError[A-Z]\w+|CUDA_ERROR_[A-Z_]+)|CUDA error: (?P<text>[a-zA-Z][\w -]*)|(?:CUDA driver version is insufficient|[nN]o CUDA-capable device is detected)",
            unless: &["out of memory", "OUT_OF_MEMORY", "MemoryAllocation", "cudaErrorNotReady", "AlreadyEnabled", "cudaErrorCudartUnloading", "except torch", "cudaErrorContained"],
        },
        headline: "CUDA failed: {error}",
        steps: &[
            ("see the GPUs that the process has", "nvidia-smi -L"),
            ("find the call that is to blame", "CUDA_LAUNCH_BLOCKING=1 COMMAND"),
        ],
        meaning: Some(("error", codes::cuda)),
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-expandable-segments",
            title: "PyTorch's expandable segments move memory that NICs have registered",
            cause: "With expandable_segments:True PyTorch maps and unmaps the pages of a tensor at will; a registration made before that points at pages that are no longer the tensor's.",
            remedy: "Unset PYTORCH_CUDA_ALLOC_CONF (or expandable_segments) for engines that transfer KV caches.",
            story: "vLLM refuses to start a connector with this setting; other engines start, and read zeros or fail with an unregistered address. A NIC uses a tensor's pages by their physical address, which it learns \
when the memory is registered. Expandable segments exist to replace pages under the same virtual address.",
            references: &[super::VLLM_NIXL],
            ..RULE
        },
        needle: Needle {
            literals: &["PYTORCH_CUDA_ALLOC_CONF=expandable_segments"],
            pattern: r"is incompatible with PYTORCH_CUDA_ALLOC_CONF=expandable_segments",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "PyTorch's expandable segments cannot be used with registered memory",
        steps: &[("turn it off", "unset PYTORCH_CUDA_ALLOC_CONF")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nccl-sockets",
            title: "NCCL sends between hosts through sockets",
            severity: Severity::Warning,
            cause: "NCCL found no network plugin that works (aws-ofi-nccl on EFA, its own for InfiniBand) and fell back to TCP.",
            remedy: "Put the plugin and its libfabric on the loader's path, and look at what NCCL_DEBUG=INFO says that it uses.",
            story: "Tensor parallelism between hosts is ten times slower than it should be, and nothing fails. With NCCL_DEBUG=INFO the log says `Using network Socket`, or `via NET/Socket` for each channel; with EFA it would \
say `Using network AWS Libfabric` (or Libfabric).

The plugin libnccl-net.so lies in /opt/amazon/ofi-nccl/lib and must load: the libfabric that it finds must be the EFA installer's.",
            references: &[
                Reference { title: "aws-ofi-nccl", url: "https://github.com/aws/aws-ofi-nccl" },
                Reference { title: "NCCL: environment variables", url: "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html" },
            ],
            explained_by: &["log-no-fabric", "log-library-missing", "log-symbol-version", "log-no-infiniband"],
            ..RULE
        },
        needle: Needle {
            literals: &["via NET/Socket/", "Using network Socket"],
            pattern: r"NCCL INFO .*(?:via NET/Socket/|Using network Socket)",
            unless: &[],
        },
        headline: "NCCL sends between hosts through sockets instead of RDMA",
        steps: &[
            ("see which network NCCL takes", "NCCL_DEBUG=INFO COMMAND 2>&1 | grep 'Using network'"),
            ("put the plugin on the path", "export LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib:$LD_LIBRARY_PATH"),
        ],
        // On one host without RDMA it says the same at start and uses no network at all.
        judge: |seen, finding| {
            (seen.marked(Mark::NcclChannelOverSocket) > 0 || seen.marked(Mark::Efa) > 0).then_some(finding)
        },
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-shared-memory",
            title: "/dev/shm is too small",
            cause: "Containers get 64 MiB of shared memory unless told otherwise; NCCL, libfabric's shm provider and PyTorch's loaders use much more.",
            remedy: "Give the container shared memory: --shm-size with docker, a memory-backed emptyDir on /dev/shm in Kubernetes.",
            story: "A process ends with `Bus error` (SIGBUS) when it touches a page of a file in /dev/shm that the file system cannot provide, or says that it is out of shared memory, or cannot create a segment. Nothing mentions \
the 64 MiB.

In Kubernetes an emptyDir with medium Memory mounted at /dev/shm takes its size from the pod's memory limit, and counts against it.",
            references: &[Reference {
                title: "Kubernetes: emptyDir",
                url: "https://kubernetes.io/docs/concepts/storage/volumes/#emptydir",
            }],
            ..RULE
        },
        needle: Needle {
            literals: &["insufficient shared memory (shm)", "shared memory segment /dev/shm", "/dev/shm/", "out of shared memory"],
            pattern: r"insufficient shared memory \(shm\)|Error while (?:creating|attaching to) shared memory segment (?P<segment>/dev/shm/\S+)|/dev/shm/\S*.*No space left on device|No space left on device.*/dev/shm/|might be out of shared memory",
            unless: &[],
        },
        headline: "the container's /dev/shm is full",
        steps: &[
            ("see its size", "df -h /dev/shm"),
            ("with docker", "docker run --shm-size=16g …"),
            ("in Kubernetes mount an emptyDir with `medium: Memory` on /dev/shm", ""),
        ],
        ..PLAIN
    },
];
