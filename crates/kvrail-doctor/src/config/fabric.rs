//! Variables of what lies below NIXL: libfabric, UCX, kvrail. The same for every engine.

use super::facts::{Facts, Maker};
use super::{Backend, Variable};
use crate::finding::Finding;

/// The variables of a backend.
pub(super) fn variables(facts: &Facts, found: &[&Finding], backend: Backend) -> Vec<Variable> {
    let mut variables = Vec::new();
    let mut set = |name: &'static str, value: String, why: String| {
        variables.push(Variable { name, value, field: None, why });
    };
    let efa = facts.efas() > 0;
    if let Some(directory) = facts.efa_libraries.as_ref().filter(|_| efa && backend == Backend::Libfabric) {
        let path = path_with(directory, facts.library_path.as_deref());
        set("LD_LIBRARY_PATH", path, format!("the EFA installer's libfabric before any other: {directory}"));
    }
    match backend {
        Backend::Libfabric if efa => {
            set(
                "FI_PROVIDER",
                "efa".into(),
                "the fabric that is here; without it libfabric falls back to TCP and says nothing".into(),
            );
            set(
                "FI_EFA_USE_DEVICE_RDMA",
                "1".into(),
                "the device's own RDMA, or an error; never its emulation by messages".into(),
            );
            if facts.gpus > 0 {
                set("FI_HMEM_DISABLE_P2P", "0".into(), "NICs read and write GPU memory themselves".into());
            }
            if facts.forks_safely == Some(false) {
                set(
                    "FI_EFA_FORK_SAFE",
                    "1".into(),
                    "engines fork, and this kernel (before 5.13) does not copy registered pages then".into(),
                );
            }
            set(
                "FI_LOG_LEVEL",
                "warn".into(),
                "what goes wrong is said; more than that slows every operation down".into(),
            );
        }
        Backend::Libfabric => {
            set(
                "FI_LOG_LEVEL",
                "warn".into(),
                "what goes wrong is said; more than that slows every operation down".into(),
            );
        }
        Backend::Ucx => ucx(facts, found, &mut set),
        Backend::Kvrail => {
            if efa {
                set(
                    "KVRAIL_TRANSPORT",
                    "shm,ofi".into(),
                    "shared memory on one host, EFA between hosts, or an error; never TCP in silence".into(),
                );
                if let Some(directory) = &facts.efa_libraries {
                    set("KVRAIL_LIBFABRIC", directory.clone(), "the EFA installer's libfabric".into());
                }
            }
        }
    }
    variables
}

fn ucx(facts: &Facts, found: &[&Finding], set: &mut impl FnMut(&'static str, String, String)) {
    let gpu = if facts.gpus > 0 { ",cuda_copy,cuda_ipc" } else { "" };
    let up: Vec<String> =
        facts.nics_of(Maker::Mellanox).filter(|nic| nic.up).map(|nic| format!("{}:1", nic.name)).collect();
    if !up.is_empty() {
        set("UCX_NET_DEVICES", up.join(","), format!("the {} RDMA devices whose port is up", up.len()));
        set(
            "UCX_TLS",
            format!("rc,ud,sm,self{gpu}"),
            "RDMA between hosts, or an error; without it UCX falls back to TCP and says nothing".into(),
        );
    } else if facts.efas() == 0 || found.iter().any(|finding| finding.rule.id == "ucx-without-efa") {
        set(
            "UCX_TLS",
            format!("tcp,sm,self{gpu}"),
            "what there is between hosts: no RDMA device that UCX drives was found".into(),
        );
    } else {
        set("UCX_TLS", "all".into(), "UCX takes its EFA transport where it has one".into());
    }
    set(
        "UCX_LOG_LEVEL",
        "warn".into(),
        "what goes wrong is said; more than that slows every operation down".into(),
    );
}

/// A search path with a directory first, and each directory once.
fn path_with(first: &str, path: Option<&str>) -> String {
    let rest = path
        .unwrap_or_default()
        .split(':')
        .filter(|part| !part.is_empty() && part.trim_end_matches('/') != first);
    std::iter::once(first).chain(rest).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_moves_to_the_front_is_there_once() {
        assert_eq!(path_with("/a", None), "/a");
        assert_eq!(path_with("/a", Some("/b:/a/::/c")), "/a:/b:/c");
    }
}
