//! Whether the libraries below the transfers write so much that they have no time to transfer.

use crate::examine::Check;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Kind, Reference, Rule, Severity};

pub(crate) const CHECKS: &[Check] = &[Check { rule: &DEBUG_LOGGING, look: debug_logging }];

static DEBUG_LOGGING: Rule = Rule {
    id: "debug-logging",
    title: "a library below the transfers logs every packet",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "A log level of debug or trace writes lines for every operation, on the thread that moves the data.",
    remedy: "Unset the variable, or set it to warn, for anything that is measured or serves users.",
    story: "Transfers are right, and a tenth or a thirtieth as fast as they should be. Nothing fails, so that the network is suspected first.

The log levels of libfabric, UCX and NIXL are read from the environment, and a level that was set while something was debugged \
stays in a job file for months. At the level debug libfabric's providers write for every operation and every completion. On P5 instances 12.2 GB/s \
became 0.35 GB/s with nothing but FI_LOG_LEVEL=debug.

NIXL at DEBUG and UCX at DATA do the same. A level that is set for one provider only (FI_LOG_PROV) is as slow, if it is the provider in use.",
    references: &[
        Reference { title: "libfabric: fabric(7), logging interface", url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html" },
        Reference { title: "UCX: FAQ, UCX_LOG_LEVEL", url: "https://openucx.readthedocs.io/en/master/faq.html" },
    ],
    explained_by: &[],
};

/// Variables with the levels that write per operation.
pub(crate) const LEVELS: [(&str, &[&str]); 4] = [
    ("FI_LOG_LEVEL", &["debug", "trace"]),
    (
        "UCX_LOG_LEVEL",
        &[
            "debug",
            "trace",
            "trace_req",
            "req",
            "trace_data",
            "data",
            "trace_async",
            "async",
            "trace_func",
            "func",
            "trace_poll",
            "poll",
        ],
    ),
    ("NIXL_LOG_LEVEL", &["debug", "trace"]),
    ("NCCL_DEBUG", &["trace"]),
];

/// Where UCX looks for its configuration, which the environment overrides.
const UCX_CONFIGURATIONS: [&str; 4] = [
    "/etc/ucx/ucx.conf",
    "/usr/etc/ucx/ucx.conf",
    "/usr/local/etc/ucx/ucx.conf",
    "/usr/local/ucx/etc/ucx/ucx.conf",
];

fn debug_logging(host: &Host) -> Outcome {
    let is_slow = |value: &str, slow: &[&str]| slow.iter().any(|level| value.eq_ignore_ascii_case(level));
    let set = LEVELS.iter().filter_map(|(name, slow)| {
        let value = host.variable(name)?;
        is_slow(value, slow).then_some((*name, value))
    });
    let mut findings: Vec<Finding> = set
        .map(|(name, value)| {
            let finding =
                Finding::new(&DEBUG_LOGGING, format!("{name}={value} writes lines for every operation"))
                    .evidence(format!("${name}"), value);
            let finding = match (name, host.variable("FI_LOG_PROV")) {
                ("FI_LOG_LEVEL", Some(only)) => finding.evidence("$FI_LOG_PROV", only),
                _ => finding,
            };
            finding.fix("log warnings only", format!("export {name}=warn"))
        })
        .collect();
    if host.variable("UCX_LOG_LEVEL").is_none() {
        let home = host.variable("HOME").map(|home| format!("{}/ucx.conf", home.trim_end_matches('/')));
        let slow =
            LEVELS.iter().find(|(name, _)| *name == "UCX_LOG_LEVEL").map_or(&[][..], |(_, slow)| *slow);
        let files = UCX_CONFIGURATIONS.iter().map(ToString::to_string).chain(home);
        findings.extend(files.filter_map(|file| {
            let text = host.read(&file).ok()?;
            let (number, value) = text.lines().enumerate().find_map(|(index, line)| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == "UCX_LOG_LEVEL").then(|| (index + 1, value.trim().to_owned()))
            })?;
            is_slow(&value, slow).then(|| {
                Finding::new(
                    &DEBUG_LOGGING,
                    format!("{file} sets UCX_LOG_LEVEL={value}, which writes lines for every operation"),
                )
                .evidence(&file, format!("line {number}: UCX_LOG_LEVEL={value}"))
                .fix("log warnings only", "export UCX_LOG_LEVEL=warn")
            })
        }));
    }
    Outcome::of(findings, || "no library is set to log every operation".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Live, Scope};

    fn with(name: &str, value: &str) -> Outcome {
        debug_logging(&Host::live(Live::new().with_variables([(name, value)]), Scope::default()))
    }

    #[test]
    fn a_level_that_logs_operations_is_found_in_any_case_and_others_are_not() {
        for (name, value) in
            [("FI_LOG_LEVEL", "Debug"), ("UCX_LOG_LEVEL", "data"), ("NIXL_LOG_LEVEL", "TRACE")]
        {
            let outcome = with(name, value);
            let [finding] = outcome.findings() else { panic!("{name}={value}: {outcome:?}") };
            assert!(
                finding.title.contains(name)
                    && finding.fix[0].command.as_deref() == Some(&format!("export {name}=warn"))
            );
        }
        for (name, value) in [
            ("FI_LOG_LEVEL", "warn"),
            ("UCX_LOG_LEVEL", "info"),
            ("NIXL_LOG_LEVEL", ""),
            ("LOG_LEVEL", "debug"),
        ] {
            assert!(matches!(with(name, value), Outcome::Healthy(_)), "{name}={value}");
        }
    }

    #[test]
    fn a_level_in_ucxs_configuration_counts_where_the_environment_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/ucx")).unwrap();
        std::fs::write(root.path().join("etc/ucx/ucx.conf"), "# ours\nUCX_LOG_LEVEL = data\n").unwrap();
        let of = |variables: &[(&'static str, &'static str)]| {
            let live = Live::new().with_root(root.path()).with_variables(variables.iter().copied());
            debug_logging(&Host::live(live, Scope::default()))
        };
        assert_eq!(of(&[]).findings()[0].evidence[0].seen, "line 2: UCX_LOG_LEVEL=data");
        assert!(matches!(of(&[("UCX_LOG_LEVEL", "warn")]), Outcome::Healthy(_)));
    }
}
