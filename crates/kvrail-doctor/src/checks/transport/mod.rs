//! Which transport would really carry the bytes, and what in the environment decides that.
//!
//! An EFA device that nobody uses is the most expensive silence of all: everything works, over TCP. What decides are variables of libfabric,
//! UCX, NIXL's callers and kvrail, read here the way each of them reads its own.

mod fabric;
mod p2p;
mod ucx;
mod variables;

use super::device::seen;
use crate::examine::Check;
use crate::host::Host;

pub(crate) const CHECKS: &[Check] = &[
    Check { rule: &fabric::FABRIC_NOT_CHOSEN, look: fabric::look },
    Check { rule: &ucx::WITHOUT_EFA, look: ucx::without_efa },
    Check { rule: &ucx::TLS, look: ucx::tls },
    Check { rule: &p2p::P2P_DISABLED, look: p2p::look },
    Check { rule: &variables::VARIABLES, look: variables::look },
];

/// EFA devices that programs here could use.
fn efa_devices(host: &Host) -> usize {
    seen::devices(host).iter().filter(|device| device.is_efa()).count()
}

/// Whether a value means yes or no to libfabric; none for what it does not understand. Others (UCX, Rust's programs) take the same words.
fn truth(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" | "y" | "t" => Some(true),
        "0" | "false" | "no" | "off" | "n" | "f" => Some(false),
        _ => None,
    }
}

/// Whether a list as libfabric and UCX take it lets a name pass: `a,b` these only, `^a,b` all but these.
fn passes(list: &str, wanted: impl Fn(&str) -> bool) -> bool {
    let (negated, names) = list.trim().strip_prefix('^').map_or((false, list.trim()), |rest| (true, rest));
    names.split(',').map(str::trim).any(wanted) != negated
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::host::Bundle;

    /// A host with these variables, and with EFA devices or without.
    pub(super) fn host(variables: &Value, efa: bool) -> Host {
        host_with(variables, efa, &json!({}))
    }

    /// The same with more files, directories and tables.
    pub(super) fn host_with(variables: &Value, efa: bool, more: &Value) -> Host {
        let mut answers = json!({"file": {}, "directory": {}});
        if efa {
            answers["directory"]["/sys/class/infiniband"] = json!(["rdmap79s0", "rdmap80s0"]);
            for name in ["rdmap79s0", "rdmap80s0"] {
                answers["file"][format!("/sys/class/infiniband/{name}/device/uevent")] =
                    json!("DRIVER=efa\n");
            }
        }
        for (section, of) in more.as_object().unwrap() {
            for (key, value) in of.as_object().unwrap() {
                answers[section][key] = value.clone();
            }
        }
        let bundle = json!({"schema": "kvrail.bundle.v1", "complete": true, "variables": variables, "answers": answers});
        Host::replay(Bundle::parse(&bundle.to_string()).unwrap())
    }

    #[test]
    fn lists_let_pass_what_they_name_or_all_but_that() {
        let efa = |name: &str| name.eq_ignore_ascii_case("efa");
        for (list, says) in [
            ("efa", true),
            ("EFA", true),
            ("tcp, efa", true),
            ("tcp", false),
            ("^efa", false),
            ("^tcp,shm", true),
        ] {
            assert_eq!(passes(list, efa), says, "{list}");
        }
        assert_eq!((truth("On"), truth("0"), truth("2")), (Some(true), Some(false), None));
    }
}
