//! What UCX could use between hosts: the transports that it was built with, and those that its variables leave.

use super::{efa_devices, passes};
use crate::checks::device::seen;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::installed::inventory::{Installations, installations};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

const FAQ: Reference = Reference {
    title: "UCX: frequently asked questions, which transports does UCX use",
    url: "https://openucx.readthedocs.io/en/master/faq.html",
};

pub(super) static WITHOUT_EFA: Rule = Rule {
    id: "ucx-without-efa",
    title: "UCX was built without EFA's transport",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "UCX reaches EFA's reliable protocol by its transport srd, which is in the module libuct_ib_efa; without it UCX takes ud over verbs, or TCP.",
    remedy: "Use NIXL's LIBFABRIC backend, or a UCX of 1.20 or later that was built with --with-efa.",
    story: "Transfers by NIXL's UCX backend between P5 nodes reach 0.2 to 0.9 GB/s, where one EFA device carries 12.5. Results are right. With UCX_LOG_LEVEL=info the log names ud_verbs or tcp.

UCX's transports for InfiniBand (rc, dc) need what EFA does not have. EFA offers datagrams (ud), whose reliability UCX has to make up in software, and SRD. UCX has a transport for SRD since 1.19, with RDMA writes since \
1.20. It is a module of its own, libuct_ib_efa.so beside libuct_ib.so, which is built only where libefa's headers are found: distributions' packages and many containers have a UCX without it.

`ucx_info -d | grep srd` says whether it is there. 419 MB took 178 MB/s by UCX of a wheel between two P5 nodes and 12.2 GB/s by LIBFABRIC on the same.",
    references: &[
        Reference { title: "UCX: releases, AWS EFA", url: "https://github.com/openucx/ucx/blob/master/NEWS" },
        FAQ,
    ],
    explained_by: &[],
};

pub(super) static TLS: Rule = Rule {
    id: "ucx-tls-excludes-network",
    title: "UCX's variables leave it no way, or no fast way, to other hosts",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "UCX_TLS and UCX_NET_DEVICES are complete lists: what they do not name is not used, whatever the host has.",
    remedy: "Unset the variable, or name the transport and the devices of the network too.",
    story: "Agents on one host work and those on two fail with `no remote ep address` or `Destination is unreachable`; or all works, over TCP.

UCX_TLS names every transport that UCX may use. Recipes for one host set it to cuda_ipc,cuda_copy,sm, and are copied to two. A list that has tcp and none of ib, rc, ud, dc or srd keeps UCX off the RDMA devices. \
A list that begins with ^ names what is not to be used.

UCX_NET_DEVICES names devices as the kernel does, RDMA devices with their port: mlx5_0:1, rdmap79s0:1, eth0. One that is not there is skipped with a warning; if none is there, UCX has no network. Names differ between \
instance types, so that a list from one is wrong on another.",
    references: &[FAQ],
    explained_by: &[],
};

/// The module with EFA's transport, and the one of all RDMA transports.
const EFA_MODULE: &str = "libuct_ib_efa.so";
const IB_MODULE: &str = "libuct_ib.so";
/// Names of transports that reach other hosts.
const NETWORK: [&str; 24] = [
    "all",
    "ib",
    "rc",
    "rc_v",
    "rc_x",
    "rc_verbs",
    "rc_mlx5",
    "rc_gda",
    "ud",
    "ud_v",
    "ud_x",
    "ud_verbs",
    "ud_mlx5",
    "dc",
    "dc_x",
    "dc_mlx5",
    "srd",
    "tcp",
    "ugni",
    "ugni_rdma",
    "ugni_smsg",
    "ugni_udt",
    "gga",
    "gga_mlx5",
];

/// A copy of UCX, and the modules that it can load.
struct Copy {
    name: String,
    directory: String,
    modules: Vec<String>,
}

impl Copy {
    fn has(&self, module: &str) -> bool {
        self.modules.iter().any(|name| name.starts_with(module))
    }
}

/// The copies that NIXL brings; where none does, the system's.
fn copies(host: &Host, installed: &Installations) -> Vec<Copy> {
    let copy = |name: String, directory: String| {
        let modules = host.names(&directory).ok()?;
        let modules: Vec<String> = modules.into_iter().filter(|name| name.starts_with("libuct_")).collect();
        (!modules.is_empty()).then_some(Copy { name, directory, modules })
    };
    let of_nixl = installed.nixl.iter().filter_map(|nixl| {
        copy(format!("the UCX of {}", nixl.name(installed)), format!("{}/ucx", nixl.libraries.as_ref()?))
    });
    let mut copies: Vec<Copy> = of_nixl.collect();
    if copies.is_empty() {
        copies.extend(installed.ucx.iter().filter_map(|library| {
            let directory = library.real.rsplit_once('/')?.0;
            copy(format!("the UCX in {directory}"), format!("{directory}/ucx"))
        }));
    }
    copies
}

pub(super) fn without_efa(host: &Host) -> Outcome {
    if efa_devices(host) == 0 {
        return Outcome::NotApplicable("no EFA device".into());
    }
    let installed = installations(host);
    let copies = copies(host, &installed);
    if copies.is_empty() {
        return Outcome::NotApplicable("no UCX with modules is installed".into());
    }
    let lacking = copies.iter().filter(|copy| !copy.has(EFA_MODULE));
    let findings = lacking.map(|copy| {
        let falls = if copy.has(IB_MODULE) { "ud over verbs, or TCP" } else { "TCP" };
        Finding::new(
            &WITHOUT_EFA,
            format!("{} has no transport for EFA: between hosts it takes {falls}", copy.name),
        )
        .evidence(&copy.directory, format!("{}, no {EFA_MODULE}", short(&copy.modules)))
        .advice("use NIXL's LIBFABRIC backend: backends=[\"LIBFABRIC\"]")
        .fix("see the transports that it has", "ucx_info -d | grep -i transport")
    });
    Outcome::of(findings.collect(), || format!("{} has {EFA_MODULE}", copies[0].name))
}

/// Modules without their versions, each once.
fn short(modules: &[String]) -> String {
    let mut names: Vec<&str> = modules.iter().filter_map(|name| name.split('.').next()).collect();
    names.dedup();
    names.join(", ")
}

/// What UCX would use between hosts, in a few words.
pub(super) fn would_use(host: &Host, efa: usize) -> String {
    let list = host.variable("UCX_TLS").unwrap_or("all");
    if !reaches(list, &NETWORK) {
        return format!("nothing, by UCX_TLS={list}");
    }
    let installed = installations(host);
    let copies = copies(host, &installed);
    let has = |module: &str| copies.first().is_some_and(|copy| copy.has(module));
    let rdma = !seen::devices(host).is_empty();
    match () {
        () if efa > 0 && has(EFA_MODULE) && reaches(list, &["all", "ib", "srd"]) => "srd".into(),
        () if efa > 0 && has(IB_MODULE) && reaches(list, &["all", "ib", "ud", "ud_v", "ud_verbs"]) => {
            "ud_verbs or tcp".into()
        }
        () if efa == 0 && rdma && has(IB_MODULE) && reaches(list, &["all", "ib", "rc", "dc"]) => {
            "rc or dc".into()
        }
        () => "tcp".into(),
    }
}

/// Whether a list of UCX_TLS leaves one of some transports. `\` before a name only turns aliases off; what stands behind a colon is a use.
fn reaches(list: &str, of: &[&str]) -> bool {
    let plain = |name: &str| name.trim_start_matches('\\').split(':').next().unwrap_or_default().to_owned();
    if list.trim().starts_with('^') {
        return !passes_all(list, of);
    }
    passes(list, |name| of.contains(&plain(name).as_str()))
}

/// Whether a list that begins with ^ takes all transports of a set away. Aliases take their members with them.
fn passes_all(list: &str, of: &[&str]) -> bool {
    let names: Vec<&str> = list.trim().trim_start_matches('^').split(',').map(str::trim).collect();
    if names.contains(&"all") {
        return true;
    }
    let gone = |name: &&str| {
        names.contains(name)
            || (names.contains(&"ib")
                && !matches!(*name, "tcp" | "ugni" | "ugni_rdma" | "ugni_smsg" | "ugni_udt"))
    };
    of.iter().filter(|name| **name != "all").all(gone)
}

pub(super) fn tls(host: &Host) -> Outcome {
    let list = host.variable("UCX_TLS");
    let devices = host.variable("UCX_NET_DEVICES");
    if list.is_none() && devices.is_none() {
        return Outcome::Healthy("neither UCX_TLS nor UCX_NET_DEVICES limits UCX".into());
    }
    let rdma = seen::devices(host);
    let mut findings = Vec::new();
    if let Some(list) = list {
        if !reaches(list, &NETWORK) {
            findings.push(
                Finding::new(&TLS, format!("UCX_TLS={list} has no transport that reaches other hosts"))
                    .cause("UCX_TLS is a complete list; agents on two hosts find no way to each other.")
                    .evidence("$UCX_TLS", list)
                    .fix("let UCX choose", "unset UCX_TLS")
                    // On a host without any RDMA NIC one host may be all there is.
                    .severity(if rdma.is_empty() { Severity::Note } else { Severity::Error })
                    .confidence(Confidence::Likely),
            );
        } else if rdma.iter().any(seen::Device::is_efa) && !reaches(list, &["all", "ib", "srd"]) {
            findings.push(
                Finding::new(&TLS, format!("UCX_TLS={list} keeps UCX off EFA's transport srd"))
                    .cause("EFA's reliable protocol is UCX's transport srd (a part of `ib`); this list leaves slower ones.")
                    .evidence("$UCX_TLS", list)
                    .fix("let UCX choose", "unset UCX_TLS"),
            );
        }
    }
    if let Some(devices) = devices {
        findings.extend(net_devices(host, devices, &rdma));
    }
    Outcome::of(findings, || "UCX_TLS and UCX_NET_DEVICES leave a way to other hosts".into())
}

/// A finding for devices that UCX is told to use and that are not there.
fn net_devices(host: &Host, list: &str, rdma: &[seen::Device]) -> Option<Finding> {
    let names: Vec<&str> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    // Ranges and exclusions are UCX's own to expand.
    if names.is_empty() || list.contains(['^', '[', '*']) || names.contains(&"all") {
        return None;
    }
    let nets = host.names("/sys/class/net").ok()?;
    let there = |name: &&&str| {
        let base = name.split(':').next().unwrap_or_default();
        nets.iter().any(|net| net == base) || rdma.iter().any(|device| device.name == base)
    };
    let missing: Vec<&str> = names.iter().filter(|name| !there(name)).copied().collect();
    if missing.is_empty() {
        return None;
    }
    let some = rdma.iter().map(|device| device.name.as_str()).chain(nets.iter().map(String::as_str));
    let (severity, rest) = if missing.len() == names.len() {
        (Severity::Error, "UCX has no network")
    } else {
        (Severity::Warning, "UCX goes without them")
    };
    Some(
        Finding::new(
            &TLS,
            format!("UCX_NET_DEVICES names {}, which this host does not have: {rest}", missing.join(", ")),
        )
        .evidence("$UCX_NET_DEVICES", list)
        .evidence("/sys/class/infiniband, /sys/class/net", seen::some(some))
        .fix("let UCX choose", "unset UCX_NET_DEVICES")
        .severity(severity),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{host, host_with};
    use super::*;

    #[test]
    fn lists_of_transports_are_read_as_ucx_reads_them() {
        for list in
            ["all", "tcp,cuda_copy", "rc,sm", "ib", "srd,self", "^cuda_ipc", "^ib", r"\rc_verbs", "ud:aux,sm"]
        {
            assert!(reaches(list, &NETWORK), "{list}");
        }
        for list in ["sm,self", "cuda_ipc,cuda_copy,sm", "^all", "posix"] {
            assert!(!reaches(list, &NETWORK), "{list}");
        }
        assert!(!reaches("^ib", &["all", "ib", "srd"]) && !reaches("tcp,self", &["all", "ib", "srd"]));
    }

    #[test]
    fn lists_that_leave_no_way_or_a_slow_one_are_found() {
        let of = |variables: &serde_json::Value, efa| {
            tls(&host_with(variables, efa, &json!({"directory": {"/sys/class/net": ["eth0", "lo"]}})))
        };
        let none = of(&json!({"UCX_TLS": "cuda_ipc,cuda_copy,sm,self"}), true);
        assert_eq!(none.findings()[0].severity, Severity::Error, "{none:?}");
        let laptop = of(&json!({"UCX_TLS": "sm,self"}), false);
        assert_eq!(laptop.findings()[0].severity, Severity::Note, "{laptop:?}");
        assert!(of(&json!({"UCX_TLS": "tcp,cuda"}), true).findings()[0].title.contains("srd"));
        assert!(matches!(of(&json!({"UCX_TLS": "tcp,cuda"}), false), Outcome::Healthy(_)));
        let gone = of(&json!({"UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1"}), true);
        assert_eq!(gone.findings()[0].severity, Severity::Error, "{gone:?}");
        let some = of(&json!({"UCX_NET_DEVICES": "rdmap79s0:1,mlx5_1:1"}), true);
        assert_eq!(some.findings()[0].severity, Severity::Warning, "{some:?}");
        for well in ["eth0", "rdmap79s0:1,eth0", "all", "mlx5_[0-3]:1"] {
            assert!(matches!(of(&json!({"UCX_NET_DEVICES": well}), true), Outcome::Healthy(_)), "{well}");
        }
    }

    #[test]
    fn a_ucx_without_the_module_of_efa_is_found() {
        let library = "/usr/lib/x86_64-linux-gnu/libucp.so.0";
        let with = |modules: &[&str], efa| {
            without_efa(&host_with(
                &json!({}),
                efa,
                &json!({
                    "directory": {"/usr/lib/x86_64-linux-gnu/ucx": modules},
                    "elf": {library: {"soname": "libucp.so.0"}},
                    "entry": {library: {"kind": "file", "real": format!("{library}.0.0"), "mode": 420, "uid": 0, "bytes": 1}},
                }),
            ))
        };
        let ill = with(&["libuct_cma.so.0", "libuct_ib.so", "libuct_ib.so.0"], true);
        assert!(ill.findings()[0].title.contains("ud over verbs"), "{ill:?}");
        assert!(matches!(with(&["libuct_ib.so.0", "libuct_ib_efa.so.0"], true), Outcome::Healthy(_)));
        assert!(matches!(with(&["libuct_ib.so.0"], false), Outcome::NotApplicable(_)), "no EFA device");
        assert!(matches!(without_efa(&host(&json!({}), true)), Outcome::NotApplicable(_)), "no UCX");
    }
}
