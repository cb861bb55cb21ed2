//! Lines of the loader, of `ldd`, and of Python's imports.

use super::{LD_SO, NIXL, NIXL_LIBFABRIC, Needle, PLAIN, RULE, Reference, Rule, Severity, Signature};
use crate::rule::Confidence;

pub(super) static ALL: [Signature; 8] = [
    Signature {
        rule: Rule {
            id: "log-symbol-version",
            title: "a library is older than the program that loads it",
            cause: "The loader found a library of the right name without the symbol version that the program was built against: the file on the search path is too old.",
            remedy: "Put the directory of the newer library in front of the loader's search path; on EFA hosts that is /opt/amazon/efa/lib.",
            story: "A plugin does not load, and the program goes on without it: NIXL then offers UCX only, and transfers go over TCP.

`version FABRIC_1.7 not found` means that libfabric.so.1 was found and is too old. The file name does not tell: libfabric.so.1.27 is release 2.1 and has FABRIC_1.8. Containers bring \
libfabric 1.6-era files from their distribution, and the EFA installer's newer one lies in /opt/amazon/efa, which the container must mount and search first.

Copying the newer file over the older one works until the container is started again; a search path in the image or the job file stays.",
            references: &[NIXL_LIBFABRIC, LD_SO],
            ..RULE
        },
        needle: Needle {
            literals: &["' not found (required by", "' not found"],
            pattern: r"(?P<library>[\w./+-]*\.so[\w.]*): version [`'](?P<version>[\w.]+)' not found(?: \(required by (?P<program>[^)\n]+)\))?",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "{library} has no {version}: it is older than what loads it",
        steps: &[
            ("search the EFA installer's libfabric first", "export LD_LIBRARY_PATH=/opt/amazon/efa/lib:$LD_LIBRARY_PATH"),
            ("lead the plugins of a Python environment to it, undoably", "kvrail fix libfabric"),
            ("see which file is found, and what every plugin needs", "kvrail doctor --check plugin-libfabric-too-old"),
            ("in a container, mount the host's installation", "docker run -v /opt/amazon/efa:/opt/amazon/efa:ro …"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-core-library",
            title: "NIXL's own libraries are not found",
            cause: "A plugin needs libraries that the wheel keeps in another directory than the plugin's, and the loader does not search there.",
            remedy: "Put the wheel's directory with these libraries (.nixl_cuNN.mesonpy.libs) on the loader's path, or let `kvrail fix` do it.",
            story: "`ldd` of a plugin says `libnixl_build.so => not found`, and the plugin is not among the available ones, although the file is there.

Some wheels of NIXL keep their core libraries (libnixl_build, libnixl_common, libserdes, libstream) in a directory whose name begins with a dot, beside the package, \
and their plugins in another. Whoever loads the plugin through the package finds them already loaded; whoever loads it otherwise, or asks ldd, does not.",
            references: &[NIXL, LD_SO],
            ..RULE
        },
        needle: Needle {
            literals: &["libnixl", "libserdes", "libstream.so", "libucx_utils"],
            pattern: r"(?P<library>lib(?:nixl\w*|serdes|stream|ucx_utils)\.so[\w.]*)(?: => not found|: cannot open shared object file)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "the loader does not find {library} of NIXL's own wheel",
        steps: &[
            ("lead the plugins to them, undoably", "kvrail fix loader-path"),
            ("see what each plugin lacks", "kvrail doctor --check nixl-core-libraries-hidden"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-library-missing",
            title: "a library that transfers need is not found",
            cause: "The loader searched its path, the cache and the program's own paths, and the file is in none of them: not installed, not mounted, or in a directory that is not searched.",
            remedy: "Install the package that has it, mount the directory into the container, or put the directory on LD_LIBRARY_PATH.",
            story: "The line names the file; the program that needed it either ends, or goes on without what the library would have given, which is harder to notice: a NIXL without its LIBFABRIC \
plugin, an NCCL without its network plugin, a UCX without CUDA.

libfabric, libefa and libibverbs come with the EFA installer or with rdma-core; libcuda.so.1 comes with the driver and is put into containers by NVIDIA's container runtime, never by an image; libcudart \
comes with the CUDA toolkit or a wheel, and its number must be the major version that the program was built for.",
            references: &[LD_SO],
            explained_by: &["log-nixl-core-library"],
            ..RULE
        },
        needle: Needle {
            literals: &["cannot open shared object file", " => not found"],
            pattern: r"(?P<library>lib(?:fabric|efa|ibverbs|rdmacm|mlx5|nl-\w+-200|uc[pstm](?:_\w+)?|cuda|cudart|nvidia-ml|hwloc|numa|gdrapi|nccl-net\w*|nccl|etcd-cpp-api|cpprest|grpc\+\+)[\w.+-]*\.so[\w.]*)(?: => not found|: cannot open shared object file)",
            unless: &["NET/Plugin", "Ignore import error", "couldn't load driver"],
        },
        confidence: Confidence::Certain,
        headline: "{library} is not found by the loader",
        steps: &[
            ("see where the loader searches", "LD_DEBUG=libs ldd PLUGIN.so 2>&1 | grep -A3 {library}"),
            ("see what is installed and what each plugin needs", "kvrail doctor --check plugin-library-missing"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-verbs-driver",
            title: "libibverbs has no driver for the RDMA devices that the kernel shows",
            cause: "libibverbs found devices and no driver library for them: libefa-rdmavNN.so is missing, or its NN is another than this libibverbs loads.",
            remedy: "Use libibverbs and its drivers of one installation: the EFA installer's, or the distribution's rdma-core, never a mixture.",
            story: "`ibv_devices` is empty and fi_info finds no efa, while /sys/class/infiniband has the devices. libibverbs loads its drivers at run time by name, and the name holds the private ABI's \
number (libefa-rdmav34.so). A wheel that brings its own libibverbs asks for another number than the installed drivers have, and finds none.

The warning is printed only where IBV_SHOW_WARNINGS is set, so that most logs say nothing.",
            references: &[Reference { title: "rdma-core", url: "https://github.com/linux-rdma/rdma-core" }],
            ..RULE
        },
        needle: Needle {
            literals: &["no userspace device-specific driver found", "couldn't load driver '"],
            pattern: r"no userspace device-specific driver found for (?P<device>\S+)|couldn't load driver '(?P<driver>[^']*efa[^']*|[^']*mlx5[^']*)'",
            unless: &[],
        },
        headline: "libibverbs has no driver for the devices that the kernel shows",
        steps: &[("see which libibverbs is used and which drivers fit it", "kvrail doctor --check rdma-provider-abi")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-missing",
            title: "Python cannot import nixl",
            cause: "The package is not installed in the environment of this process, or on this node: on a cluster each node has its own environment.",
            remedy: "Install nixl for the CUDA major in use on every node, the head node too.",
            story: "The engine starts on one node and fails on another, or a connector says that NIXL is not available. On Ray and Slurm clusters an installation script often reaches the GPU workers only; \
the head node, where the driver runs, imports the package too.

The package `nixl` is a thin one over `nixl-cu12` or `nixl-cu13`: with only one of them installed, programs that import the other's name fail as if nothing were there.",
            references: &[NIXL],
            ..RULE
        },
        needle: Needle {
            literals: &["No module named 'nixl", "NIXL is not available", "nixl is not installed"],
            pattern: r"(?:ModuleNotFoundError|ImportError): No module named '(?P<module>nixl[\w.]*)'|NIXL is not available|nixl is not installed",
            unless: &["Ignore import error", "DEBUG"],
        },
        confidence: Confidence::Certain,
        headline: "Python cannot import {module} on the host that wrote this",
        steps: &[
            ("install it in the environment that runs the engine, in a release that fits the host's libfabric", "kvrail fix install-nixl"),
            ("on every node of a Ray cluster (of a Slurm allocation: --nodes slurm)", "kvrail fix install-nixl --nodes ray"),
            ("see which environments have it", "kvrail doctor --check nixl-missing"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-segfault-bundled",
            title: "a crash inside bundled RDMA libraries",
            cause: "A libfabric, libefa or libibverbs that was bundled with a wheel runs on a host whose EFA driver belongs to the installer's ones.",
            remedy: "Replace the bundled libraries by links to the system's, which `kvrail fix` does and can undo.",
            story: "The process ends with `Segmentation fault: invalid permissions for mapped object` when the first endpoint is opened or the first memory is registered. UCX's signal handler \
prints it, so that UCX is suspected first; the fault is where the stack says: in a libfabric that the wheel brought.

Wheels bundle libraries to run anywhere. RDMA is where that fails: the bundled upstream libfabric and libefa meet a kernel driver and devices for which Amazon's own builds are made, and two copies of libibverbs \
in one process share no state. Links from the wheel's directory to /opt/amazon/efa/lib ended it for those who reported it.",
            references: &[NIXL_LIBFABRIC],
            ..RULE
        },
        needle: Needle {
            literals: &["invalid permissions for mapped object"],
            pattern: r"invalid permissions for mapped object(?: at address (?P<address>0x[0-9a-fA-F]+))?",
            unless: &[],
        },
        headline: "the process crashed in memory that it may not touch, as bundled RDMA libraries do",
        steps: &[
            ("see whether a wheel's own libraries are loaded", "kvrail doctor --check bundled-efa-libraries"),
            ("replace them by the system's, undoably", "kvrail fix bundled-libraries"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-segfault",
            title: "the kernel reports a crash inside a transfer library",
            cause: "A process crashed in code of this library: two copies of it in one process, a version that does not fit the driver, or a use of memory that was freed.",
            remedy: "Look for two copies of libibverbs, libnl or libfabric in one process, and use one.",
            story: "The kernel's log names the library in which a process crashed, which the process's own log often cannot. A crash in libnl or libibverbs when a Python process ends is known of wheels that bundle \
a second copy: destructors of the one run on data of the other; results that were written before are right. A crash in libfabric, libefa or libucp while transfers run is not harmless.",
            references: &[NIXL],
            ..RULE
        },
        needle: Needle {
            literals: &["segfault at "],
            pattern: r"(?P<process>[\w.:/-]+)\[\d+\]: segfault at .* in (?P<library>lib(?:fabric|efa|ibverbs|nl-|rdmacm|mlx5|uc[pstm]|nixl|plugin_)[\w.+-]*)\[",
            unless: &[],
        },
        headline: "{process} crashed inside {library}",
        steps: &[
            ("leave one copy of each library, undoably", "kvrail fix bundled-libraries"),
            ("look for two copies in one process", "kvrail doctor --check duplicate-libraries"),
            ("see whether the wheel crashes at exit", "kvrail doctor --check nixl-crash-at-exit"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-fork",
            title: "libfabric ends a process that forked",
            severity: Severity::Error,
            cause: "The EFA provider found that the process forks while its memory is registered, which on older kernels takes registered pages away from it.",
            remedy: "Set FI_EFA_FORK_SAFE=1, or use a kernel of 5.13 or newer with rdma-core 35 or newer.",
            story: "The text begins with `A process has executed an operation involving a call to the fork() system call` and ends with `Your job will now abort.` A data loader, a subprocess or a health check \
forks, and the child's copy-on-write would move pages that the NIC writes to.

FI_EFA_FORK_SAFE=1 costs a little speed and forbids huge pages inside the provider. On new kernels nothing is needed.",
            references: &[super::FI_EFA],
            ..RULE
        },
        needle: Needle {
            literals: &["to the fork() system call to create a child process", "FI_EFA_FORK_SAFE=1"],
            pattern: r"to the fork\(\) system call to create a child process",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "libfabric ended the process because it forked",
        steps: &[("let the provider survive forks", "export FI_EFA_FORK_SAFE=1")],
        ..PLAIN
    },
];
