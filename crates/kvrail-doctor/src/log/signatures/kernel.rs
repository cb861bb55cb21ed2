//! Lines of the kernel: `dmesg`, the journal.

use super::super::codes;
use super::{Needle, PLAIN, RULE, Reference, Rule, Severity, Signature, XID};
use crate::rule::Confidence;

pub(super) static ALL: [Signature; 4] = [
    Signature {
        rule: Rule {
            id: "log-gpu-xid",
            title: "the GPU's driver reported an error (Xid)",
            cause: "The driver reports errors of GPUs, their links and of programs on them by a number; the number tells whether program, GPU or host is to blame.",
            remedy: "Look the number up; drain the node where it says hardware, and restart the programs that used the GPU.",
            story: "Transfers from or to a GPU hang or fail, CUDA calls return errors of no relation, and nvidia-smi is slow or misses a GPU. The kernel's log has a line `NVRM: Xid (PCI:…): number`.

13 and 31 are nearly always the program's own defect. 48, 63, 64, 92, 94 and 95 are memory errors, 74 and the 140s NVLink, 79 a GPU that has fallen off the bus: it comes back only with the host. What runs after one \
of them in the same process cannot be trusted.",
            references: &[XID],
            ..RULE
        },
        needle: Needle {
            literals: &["NVRM: Xid"],
            pattern: r"NVRM: Xid \((?:PCI:)?(?P<gpu>[0-9a-fA-F:.]+)[^)]*\): (?P<xid>\d+)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "GPU {gpu} reported Xid {xid}",
        steps: &[
            ("see the state of the GPUs", "nvidia-smi -q -d ECC,PAGE_RETIREMENT,ROW_REMAPPER"),
            ("reset it when no process uses it", "sudo nvidia-smi --gpu-reset"),
        ],
        meaning: Some(("xid", codes::xid)),
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-oom-killer",
            title: "the kernel killed a process for its memory",
            cause: "The host, or the container's memory limit, was full. Locked (registered) memory and huge pages cannot be taken back, so that a process is killed instead.",
            remedy: "Raise the container's memory limit or shrink what is pinned: host buffers, CPU offload, shared memory.",
            story: "A worker disappears without a word of its own; its peers see a peer that restarted, a closed connection, or nothing until a timeout. Ray says `worker unexpectedly exits`, Kubernetes OOMKilled.

The kernel's line names the process and whether the limit was the container's (`Memory cgroup out of memory`) or the host's. What is in /dev/shm counts, and so do pages that a NIC holds.",
            references: &[Reference { title: "Linux: cgroup v2, memory", url: "https://docs.kernel.org/admin-guide/cgroup-v2.html" }],
            ..RULE
        },
        needle: Needle {
            literals: &["ut of memory: Killed process", "ut of memory: Kill process"],
            pattern: r"(?P<scope>Memory cgroup out|Out) of memory: Kill(?:ed)? process \d+ \((?P<process>[^)]+)\)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "the kernel killed {process} because memory was full",
        steps: &[
            ("see the limit and what is used, inside the container", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.current"),
            ("raise resources.limits.memory of the pod, and count /dev/shm and pinned buffers in", ""),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-driver",
            title: "the kernel's EFA driver cannot talk to the device",
            cause: "A command to the device was refused or never answered: a device that hangs, a driver that does not fit the device, or limits of the device that are used up.",
            remedy: "Load the driver of the current EFA installer; stop and start the instance where the device does not answer.",
            story: "The kernel's log has lines of efa with `Failed to process command`, `The device didn't send any completion` or `Device isn't ready`. Programs see that endpoints cannot be opened, or that registrations fail \
with errors that name nothing.

A refused registration (REG_MR) with plenty of memory is the device's limit of pages: about 95 GB in pages of 4 KiB; huge pages lift it. A command without any answer is a hanging device.",
            references: &[Reference {
                title: "Amazon: Linux driver for EFA",
                url: "https://github.com/amzn/amzn-drivers/tree/master/kernel/linux/efa",
            }],
            ..RULE
        },
        needle: Needle {
            literals: &["Failed to process command", "Failed to submit command", "Device isn't ready, abort com init", "didn't send any completion for admin cmd", "Wait for completion (polling) timeout"],
            pattern: r"\b(?:efa|rdmap\d+s\d+|infiniband efa_\d+)\b.*(?:Failed to (?:process|submit) command (?P<command>\w+)|Device isn't ready|didn't send any completion for admin cmd (?P<unanswered>\w+)|Wait for completion \(polling\) timeout)",
            unless: &[],
        },
        headline: "the EFA driver and its device do not understand each other",
        steps: &[
            ("see the driver's version and the devices", "modinfo efa | head -5; kvrail doctor --check efa-device-missing"),
            ("use huge pages for large registrations where REG_MR was refused, or split them", ""),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-open-files",
            title: "a process ran out of file descriptors",
            severity: Severity::Error,
            cause: "Each rail, connection, dmabuf and shared memory segment takes descriptors, and the limit of the process is that of a login shell.",
            remedy: "Raise the limit of open files (nofile) of the container or service.",
            story: "`Too many open files` comes from whatever opens the next file: a socket of the engine, a device, a shared library, so that the line before it is rarely the culprit. Thirty-two rails with a completion channel \
each, a connection for each peer and rank, and a dmabuf for each registered tensor reach 1024 quickly.",
            references: &[Reference { title: "Linux: getrlimit(2), RLIMIT_NOFILE", url: "https://man7.org/linux/man-pages/man2/getrlimit.2.html" }],
            ..RULE
        },
        needle: Needle {
            literals: &["Too many open files"],
            pattern: r"Too many open files",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "a process ran out of file descriptors",
        steps: &[
            ("for the shell that starts it", "ulimit -n 1048576"),
            ("with docker", "docker run --ulimit nofile=1048576:1048576 …"),
        ],
        ..PLAIN
    },
];
