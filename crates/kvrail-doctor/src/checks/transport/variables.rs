//! Variables that nobody reads, that abort the program, or whose value means something else than it seems.

use super::truth;
use crate::checks::device::seen;
use crate::finding::{Finding, Outcome};
use crate::host::{EntryKind, Host};
use crate::installed::inventory::AMAZON;
use crate::known;
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static VARIABLES: Rule = Rule {
    id: "variables",
    title: "a variable of libfabric, UCX, NIXL or kvrail is misspelt, obsolete or has a value that does harm",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "Libraries read the variables that they know and say nothing about others; a few that were dropped end the program.",
    remedy: "Correct the name or the value, or unset the variable.",
    story: "A setting has no effect, and nobody says so: libfabric, NIXL and kvrail look for the names that they know. A job file collects such lines over the years, from releases that knew them or from hopes \
(NIXL has no variable that chooses its backend).

Some do harm. libfabric's efa provider ends the program if it meets FI_EFA_MTU_SIZE, FI_EFA_TX_IOV_LIMIT or FI_EFA_RX_IOV_LIMIT, which old recipes set, or huge pages together with fork support. NIXL_PLUGIN_DIR replaces \
the place where NIXL looks for its plugins: set to a folder of another installation, or of none, NIXL finds no backend at all. LD_LIBRARY_PATH is searched in order, so that a folder with an older libfabric in front of \
/opt/amazon/efa/lib is the one that counts.",
    references: &[
        Reference { title: "libfabric: fi_efa(7), runtime parameters", url: "https://ofiwg.github.io/libfabric/main/man/fi_efa.7.html" },
        Reference { title: "libfabric: fabric(7), environment variables", url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html" },
        Reference { title: "NIXL: README", url: "https://github.com/ai-dynamo/nixl/blob/main/README.md" },
    ],
    explained_by: &[],
};

/// Names that end the program where a libfabric with the provider efa is loaded.
const FATAL: [&str; 3] = ["FI_EFA_MTU_SIZE", "FI_EFA_TX_IOV_LIMIT", "FI_EFA_RX_IOV_LIMIT"];
/// Names that nothing reads, whatever recipes say, and what does what was meant.
const UNREAD: [(&str, &str); 4] = [
    (
        "NIXL_BACKEND",
        "NIXL has no variable for it: name the backend in the agent's configuration, backends=[\"LIBFABRIC\"]",
    ),
    (
        "NIXL_BACKENDS",
        "NIXL has no variable for it: name the backend in the agent's configuration, backends=[\"LIBFABRIC\"]",
    ),
    (
        "NIXL_DEFAULT_BACKEND",
        "NIXL has no variable for it: name the backend in the agent's configuration, backends=[\"LIBFABRIC\"]",
    ),
    (
        "FI_EFA_ENABLE_RDMA",
        "the variable is called FI_EFA_USE_DEVICE_RDMA, and its default uses what the device has",
    ),
];
/// Variables of libfabric that are yes or no: other values are ignored.
const TRUTHS: [&str; 7] = [
    "FI_HMEM_DISABLE_P2P",
    "FI_EFA_USE_DEVICE_RDMA",
    "FI_EFA_FORK_SAFE",
    "FI_EFA_USE_HUGE_PAGE",
    "FI_EFA_MR_CACHE_ENABLE",
    "FI_HMEM_CUDA_USE_GDRCOPY",
    "FI_HMEM_CUDA_USE_DMABUF",
];
/// What switches fork support of the verbs library on.
const FORK: [&str; 3] = ["FI_EFA_FORK_SAFE", "RDMAV_FORK_SAFE", "IBV_FORK_SAFE"];

pub(super) fn look(host: &Host) -> Outcome {
    let mut findings = names(host);
    findings.extend(values(host));
    findings.extend(plugin_directory(host));
    findings.extend(library_order(host));
    let count = host.variables().filter(|(name, _)| is_ours(name)).count();
    Outcome::of(findings, || {
        format!("{count} variables of libfabric, UCX, NIXL and kvrail are set, and none is odd")
    })
}

fn is_ours(name: &str) -> bool {
    ["FI_", "UCX_", "NIXL_", "KVRAIL_"].iter().any(|prefix| name.starts_with(prefix))
}

/// A finding for one variable.
fn about(name: &str, value: &str, title: impl Into<String>) -> Finding {
    Finding::new(&VARIABLES, title).evidence(format!("${name}"), value)
}

fn names(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, value) in host.variables().filter(|(name, value)| is_ours(name) && !value.is_empty()) {
        if FATAL.contains(&name) {
            findings.push(
                about(name, value, format!("{name} is set: libfabric's efa provider ends the program when it meets it"))
                    .cause("The variable was dropped, and the provider calls abort() rather than to go on without it.")
                    .fix("unset it", format!("unset {name}"))
                    .severity(if seen::has_efa(host) { Severity::Error } else { Severity::Note }),
            );
        } else if let Some((_, instead)) = UNREAD.iter().find(|(unread, _)| *unread == name) {
            findings.push(
                about(name, value, format!("nothing reads {name}"))
                    .cause("No library has a variable of this name: what it is set to has no effect.")
                    .advice(*instead),
            );
        } else if let Some(meant) = known::meant_variable(name) {
            findings.push(
                about(name, value, format!("nothing reads {name}; {meant} is meant"))
                    .cause("The name is a slip of the pen away from one that is read; the setting has no effect.")
                    .fix("name it right", format!("export {meant}={value}; unset {name}"))
                    .confidence(Confidence::Likely),
            );
        }
    }
    findings
}

fn values(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in TRUTHS {
        if let Some(value) = host.variable(name).filter(|value| truth(value).is_none()) {
            findings.push(
                about(
                    name,
                    value,
                    format!("{name}={value} is neither yes nor no: libfabric goes on with its default"),
                )
                .cause("libfabric reads 0, 1, true, false, yes, no, on and off.")
                .fix("write a number", format!("export {name}=1")),
            );
        }
    }
    let fork = FORK.into_iter().find(|name| match host.variable(name) {
        // The verbs library looks only whether its own two are there.
        Some(value) => *name != "FI_EFA_FORK_SAFE" || truth(value) == Some(true),
        None => false,
    });
    if let Some(fork) = fork
        && host.variable("FI_EFA_USE_HUGE_PAGE").and_then(truth) == Some(true)
    {
        findings.push(
            about("FI_EFA_USE_HUGE_PAGE", "1", format!("huge pages and fork support ({fork}) together: libfabric's efa provider ends the program"))
                .evidence(format!("${fork}"), host.variable(fork).unwrap_or_default())
                .cause("The verbs library's fork support does not work with huge pages; where the kernel does not make it needless, the provider aborts.")
                .fix("use huge pages; kernels since 5.12 need no fork support", format!("unset {}", FORK.join(" ")))
                .severity(if seen::has_efa(host) { Severity::Error } else { Severity::Note })
                .confidence(Confidence::Likely),
        );
    }
    if let Some(value) = host.variable("FI_EFA_TX_MIN_CREDITS")
        && value.trim().parse::<i64>().is_ok_and(|credits| credits <= 0)
    {
        findings.push(
            about(
                "FI_EFA_TX_MIN_CREDITS",
                value,
                format!("FI_EFA_TX_MIN_CREDITS={value}: libfabric's efa provider ends the program"),
            )
            .cause("With no credit at all nothing could ever be sent, and the provider refuses to start.")
            .fix("unset it", "unset FI_EFA_TX_MIN_CREDITS"),
        );
    }
    findings.extend(devices(host));
    findings
}

/// Devices that are named and not there.
fn devices(host: &Host) -> Vec<Finding> {
    let there = seen::devices(host);
    if there.is_empty() {
        return Vec::new();
    }
    let told = ["FI_EFA_IFACE", "KVRAIL_OFI_DEVICES"]
        .into_iter()
        .filter_map(|name| Some((name, host.variable(name)?)));
    let finding = |(name, value): (&'static str, &str)| {
        let named: Vec<&str> =
            value.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "all").collect();
        // libfabric's domains are a device's name with an ending, as in rdmap79s0-rdm.
        let is_there = |name: &&str| there.iter().any(|device| name.starts_with(device.name.as_str()));
        let missing: Vec<&str> = named.iter().filter(|name| !is_there(name)).copied().collect();
        (!missing.is_empty()).then(|| {
            about(name, value, format!("{name} names {}, which this host does not have", seen::some(missing.iter().copied())))
                .cause("Names of devices differ between instance types and between instances; only those that are named are used.")
                .evidence("/sys/class/infiniband", seen::some(there.iter().map(|device| device.name.as_str())))
                .fix("use all that are there", format!("unset {name}"))
                .severity(if missing.len() == named.len() { Severity::Error } else { Severity::Warning })
        })
    };
    told.filter_map(finding).collect()
}

/// NIXL_PLUGIN_DIR replaces the folder with the plugins: one without any leaves NIXL without a backend.
fn plugin_directory(host: &Host) -> Option<Finding> {
    let path = host.variable("NIXL_PLUGIN_DIR")?;
    let (title, seen) = match host.entry(path) {
        Ok(entry) if entry.kind == EntryKind::Directory => {
            let names = host.names(path).ok()?;
            if names.iter().any(|name| name.starts_with("libplugin_")) {
                return None;
            }
            (
                format!("NIXL_PLUGIN_DIR={path} has no plugin in it"),
                format!("{} files, no libplugin_*.so", names.len()),
            )
        }
        Ok(_) => (format!("NIXL_PLUGIN_DIR={path} is no directory"), "a file".to_owned()),
        Err(why) => (format!("NIXL_PLUGIN_DIR={path} is not there"), why.to_string()),
    };
    Some(
        about("NIXL_PLUGIN_DIR", path, title)
            .cause("NIXL looks for its plugins there and nowhere else: it finds no backend.")
            .evidence(path, seen)
            .fix("let NIXL look beside its own library", "unset NIXL_PLUGIN_DIR")
            .severity(Severity::Error),
    )
}

/// A folder of LD_LIBRARY_PATH with an older libfabric than EFA's, in front of that.
fn library_order(host: &Host) -> Option<Finding> {
    let path = host.variable("LD_LIBRARY_PATH")?;
    let level = |folder: &str| host.elf(&format!("{folder}/libfabric.so.1")).ok()?.level("FABRIC_1.");
    let folders: Vec<&str> =
        path.split([':', ';']).map(|folder| folder.trim_end_matches('/')).filter(|f| !f.is_empty()).collect();
    let (amazon, newest) = AMAZON.iter().find_map(|folder| Some((*folder, level(folder)?)))?;
    let (first, older) = folders.iter().find_map(|folder| Some((*folder, level(folder)?)))?;
    if older >= newest {
        return None;
    }
    let rest: Vec<&str> = folders.iter().copied().filter(|folder| *folder != amazon).collect();
    Some(
        about("LD_LIBRARY_PATH", path, format!("LD_LIBRARY_PATH finds the libfabric in {first} before EFA's newer one in {amazon}"))
            .cause(format!("The loader takes the first: {first}/libfabric.so.1 offers FABRIC_1.{older}, EFA's FABRIC_1.{newest}."))
            .fix("put EFA's first", format!("export LD_LIBRARY_PATH={amazon}:{}", rest.join(":")))
            .severity(if seen::has_efa(host) { Severity::Error } else { Severity::Warning }),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{host, host_with};
    use super::*;

    fn found(variables: &Value) -> Vec<Finding> {
        look(&host(variables, true)).findings().to_vec()
    }

    #[test]
    fn slips_are_found_with_what_was_meant_and_names_that_are_merely_unknown_are_not() {
        for (name, right) in [
            ("FI_HMEM_DISBALE_P2P", "FI_HMEM_DISABLE_P2P"),
            ("FI_PROVIDERS", "FI_PROVIDER"),
            ("FI_EFA_USE_DEVICE_RMDA", "FI_EFA_USE_DEVICE_RDMA"),
            ("UCX_NET_DEVICE", "UCX_NET_DEVICES"),
            ("NIXL_PLUGINS_DIR", "NIXL_PLUGIN_DIR"),
            ("KVRAIL_TRANSPORTS", "KVRAIL_TRANSPORT"),
        ] {
            let found = found(&json!({name: "0"}));
            assert!(
                found.len() == 1 && found[0].title.contains(&format!("{right} is meant")),
                "{name}: {found:?}"
            );
        }
        for name in [
            "FI_TCP_IFACE",
            "FI_SHM_TX_SIZE",
            "FI_OPX_UUID",
            "FI_LOG_LOCATION",
            "FI_HMEM_ZE_USE_DMABUF",
            "UCX_RNDV_THRESH",
            "UCX_ACC_DEVICES",
            "UCX_SHM_DEVICES",
            "UCX_MODULE_DIR",
            "NIXL_TELEMETRY_DIR",
            "NIXL_TELEMETRY_ENABLE",
            "KVRAIL_OFI_RAILS",
            "KVRAIL_OFI_AFFINITY",
            "KVRAIL_LOG",
            "FI_CXI_RX_MATCH_MODE",
        ] {
            assert!(found(&json!({name: "0"})).is_empty(), "{name}");
        }
    }

    #[test]
    fn what_ends_the_program_and_what_nobody_reads_is_found() {
        let fatal = found(&json!({"FI_EFA_MTU_SIZE": "4096"}));
        assert_eq!(fatal[0].severity, Severity::Error, "{fatal:?}");
        assert!(found(&json!({"NIXL_BACKEND": "LIBFABRIC"}))[0].title.contains("nothing reads"));
        let both = json!({"FI_EFA_USE_HUGE_PAGE": "1", "RDMAV_FORK_SAFE": "1"});
        assert!(found(&both)[0].title.contains("RDMAV_FORK_SAFE"));
        assert!(found(&json!({"FI_EFA_TX_MIN_CREDITS": "0"}))[0].title.contains("ends the program"));
        assert!(found(&json!({"FI_HMEM_DISABLE_P2P": "disabled"}))[0].title.contains("neither yes nor no"));
        assert!(found(&json!({"FI_EFA_IFACE": "rdmap0s6"}))[0].title.contains("rdmap0s6"));
        for well in [
            json!({"FI_EFA_IFACE": "rdmap79s0-rdm,rdmap80s0"}),
            json!({"FI_EFA_USE_HUGE_PAGE": "1", "FI_EFA_FORK_SAFE": "0"}),
            json!({"FI_EFA_FORK_SAFE": "1", "FI_EFA_ENABLE_SHM_TRANSFER": "0", "FI_PROVIDER": "efa"}),
        ] {
            assert!(found(&well).is_empty(), "{well}: {:?}", found(&well));
        }
    }

    #[test]
    fn a_plugin_folder_without_plugins_and_an_older_libfabric_in_front_are_found() {
        let folder = json!({"kind": "directory", "real": "/x", "mode": 493, "uid": 0, "bytes": 0});
        let with = |names: Value| {
            look(&host_with(
                &json!({"NIXL_PLUGIN_DIR": "/x"}),
                true,
                &json!({"entry": {"/x": folder}, "directory": {"/x": names}}),
            ))
        };
        assert!(with(json!(["README"])).findings()[0].title.contains("no plugin"));
        assert!(matches!(with(json!(["libplugin_UCX.so"])), Outcome::Healthy(_)));
        assert!(found(&json!({"NIXL_PLUGIN_DIR": "/nowhere"}))[0].title.contains("not there"));
        let order = |path: &str| {
            let fabric = |level: &str| json!({"versions": ["FABRIC_1.0", level]});
            look(&host_with(
                &json!({"LD_LIBRARY_PATH": path}),
                true,
                &json!({"elf": {
                    "/usr/lib/old/libfabric.so.1": fabric("FABRIC_1.6"),
                    "/opt/amazon/efa/lib/libfabric.so.1": fabric("FABRIC_1.9"),
                }}),
            ))
        };
        let ill = order("/usr/lib/old:/opt/amazon/efa/lib");
        assert_eq!(
            ill.findings()[0].fix[0].command.as_deref(),
            Some("export LD_LIBRARY_PATH=/opt/amazon/efa/lib:/usr/lib/old")
        );
        assert!(matches!(order("/opt/amazon/efa/lib:/usr/lib/old"), Outcome::Healthy(_)));
        assert!(matches!(order("/none"), Outcome::Healthy(_)));
    }
}
