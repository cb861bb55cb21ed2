//! Whether what is set keeps transfers away from the EFA devices that are there.

use super::{efa_devices, passes, truth};
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::installed::inventory::installations;
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static FABRIC_NOT_CHOSEN: Rule = Rule {
    id: "fabric-not-chosen",
    title: "there are EFA devices, and what is set keeps transfers off them",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "A variable chooses another provider, backend or transport than the one that uses EFA.",
    remedy: "Unset the variable, or set it to the choice that uses EFA.",
    story: "Transfers are right and take seconds: 5 to 10 for what EFA moves in milliseconds. Decode workers log that they wait for input. Nothing warns, because TCP is a transport like any other to each of the libraries.

Who decides depends on who transfers. NIXL's LIBFABRIC backend takes the first of cxi, efa, tcp and sockets that libfabric offers, and FI_PROVIDER decides what libfabric offers: with `tcp`, `^efa` or \
`efa-direct` (a fabric of the provider efa, not a provider) it goes to TCP or finds nothing. NIXL's UCX backend never asks libfabric; with SGLang, TensorRT-LLM and Dynamo's block manager a variable of their \
own chooses between the two, and says UCX where it is not set. vLLM is told in its configuration. kvrail takes KVRAIL_TRANSPORT and KVRAIL_OFI_PROVIDER, and uses EFA where neither is set.

What NIXL really took stands in its log: `Backend LIBFABRIC was instantiated`. With FI_LOG_LEVEL=warn libfabric says nothing about the provider; `kvrail bench` prints it above its figures.",
    references: &[
        Reference { title: "libfabric: fabric(7), FI_PROVIDER", url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html" },
        Reference { title: "NIXL: warn when EFA is there and LIBFABRIC is not used", url: "https://github.com/ai-dynamo/nixl/pull/1287" },
        Reference {
            title: "Dynamo: KV cache transfer with TensorRT-LLM",
            url: "https://docs.nvidia.com/dynamo/dev/backends/trtllm/kv-cache-transfer.html",
        },
    ],
    explained_by: &[],
};

/// Variables by which a program that uses NIXL chooses its backend, and whose they are.
const BACKENDS: [(&str, &str); 2] =
    [("SGLANG_DISAGGREGATION_NIXL_BACKEND", "SGLang"), ("TRTLLM_NIXL_KVCACHE_BACKEND", "TensorRT-LLM")];

/// One thing that is set so that EFA is not used.
struct Choice<'a> {
    variable: &'a str,
    value: &'a str,
    title: String,
    cause: String,
    command: String,
    severity: Severity,
    confidence: Confidence,
}

pub(super) fn look(host: &Host) -> Outcome {
    let efa = efa_devices(host);
    let would = would_use(host, efa);
    if efa == 0 {
        return Outcome::NotApplicable(format!("no EFA device; {would}"));
    }
    let findings = choices(host).into_iter().map(|choice| {
        Finding::new(&FABRIC_NOT_CHOSEN, choice.title)
            .cause(choice.cause)
            .evidence(format!("${}", choice.variable), choice.value)
            .evidence("/sys/class/infiniband", format!("{efa} EFA devices"))
            .evidence("what would be used", &would)
            .fix("set it so that EFA is used", choice.command)
            .severity(choice.severity)
            .confidence(choice.confidence)
    });
    Outcome::of(findings.collect(), || would.clone())
}

fn choices(host: &Host) -> Vec<Choice<'_>> {
    let mut choices = Vec::new();
    if let Some(value) = host.variable("FI_PROVIDER").filter(|list| !passes(list, is_efa)) {
        let cause = if passes(value, |name| name.eq_ignore_ascii_case("efa-direct"))
            && !value.starts_with('^')
        {
            "efa-direct is a fabric of the provider efa; FI_PROVIDER takes names of providers, and none is called that."
        } else {
            "libfabric offers the providers that FI_PROVIDER names and no others: NIXL's LIBFABRIC backend takes TCP without a word, or finds nothing."
        };
        choices.push(Choice {
            variable: "FI_PROVIDER",
            value,
            title: format!("FI_PROVIDER={value} keeps libfabric off EFA"),
            cause: cause.into(),
            command: "export FI_PROVIDER=efa".into(),
            severity: Severity::Error,
            confidence: Confidence::Certain,
        });
    }
    let of_kvrail = |variable, value, why: &str| Choice {
        variable,
        value,
        title: format!("{variable}={value} keeps kvrail off EFA"),
        cause: why.to_owned(),
        command: format!("unset {variable}"),
        severity: Severity::Warning,
        confidence: Confidence::Certain,
    };
    let is_auto = |value: &&str| value.trim().eq_ignore_ascii_case("auto");
    let transport = host.variable("KVRAIL_TRANSPORT").filter(|value| !is_auto(value));
    if let Some(value) = transport
        && !value.split(',').any(|name| name.trim().eq_ignore_ascii_case("ofi"))
    {
        choices.push(of_kvrail(
            "KVRAIL_TRANSPORT",
            value,
            "kvrail reaches EFA by the transport ofi, which this list does not have.",
        ));
    }
    let provider = host.variable("KVRAIL_OFI_PROVIDER").filter(|value| !is_auto(value));
    if let Some(value) = provider
        && !matches!(value.trim().to_ascii_lowercase().as_str(), "efa" | "efa-direct")
    {
        choices.push(of_kvrail(
            "KVRAIL_OFI_PROVIDER",
            value,
            "kvrail's transport ofi uses the provider that is named, and this one does not drive EFA devices.",
        ));
    }
    let ucx = "NIXL's UCX backend does not use libfabric: it reaches EFA by UCX's own transports, or falls back to TCP.";
    for (variable, whose) in BACKENDS {
        if let Some(value) = host.variable(variable).filter(|value| value.trim().eq_ignore_ascii_case("UCX"))
        {
            choices.push(Choice {
                variable,
                value,
                title: format!("{variable}={value}: {whose} transfers by UCX, not by libfabric over EFA"),
                cause: ucx.into(),
                command: format!("export {variable}=LIBFABRIC"),
                severity: Severity::Warning,
                confidence: Confidence::Likely,
            });
        }
    }
    let on = |variable: &str| host.variable(variable).and_then(truth) == Some(true);
    let block_manager = "DYN_KVBM_NIXL_BACKEND_UCX";
    if on(block_manager) && !on("DYN_KVBM_NIXL_BACKEND_LIBFABRIC") {
        choices.push(Choice {
            variable: block_manager,
            value: host.variable(block_manager).unwrap_or_default(),
            title: format!(
                "{block_manager} is on: Dynamo's block manager transfers by UCX, not by libfabric over EFA"
            ),
            cause: ucx.into(),
            command: format!("export {block_manager}=false DYN_KVBM_NIXL_BACKEND_LIBFABRIC=true"),
            severity: Severity::Warning,
            confidence: Confidence::Likely,
        });
    }
    let direct = "TRTLLM_USE_UCX_KVCACHE";
    if on(direct) {
        choices.push(Choice {
            variable: direct,
            value: host.variable(direct).unwrap_or_default(),
            title: format!(
                "{direct} is on: TensorRT-LLM transfers by UCX itself, not by NIXL's LIBFABRIC over EFA"
            ),
            cause: "It takes the place of NIXL, so that NIXL's choice of a backend has no effect.".into(),
            command: format!("unset {direct} && export TRTLLM_NIXL_KVCACHE_BACKEND=LIBFABRIC"),
            severity: Severity::Warning,
            confidence: Confidence::Likely,
        });
    }
    choices
}

fn is_efa(name: &str) -> bool {
    name.eq_ignore_ascii_case("efa")
}

/// What would carry bytes between hosts, and why, in one line.
fn would_use(host: &Host, efa: usize) -> String {
    let mut parts = vec![format!("kvrail: {}", kvrail(host, efa))];
    let installed = installations(host);
    if let Some(nixl) = installed.nixl.first() {
        let name = nixl.name(&installed);
        let over_libfabric = match host.variable("FI_PROVIDER") {
            Some(list) if !passes(list, is_efa) => format!("what FI_PROVIDER={list} leaves"),
            _ if efa > 0 => format!("efa over {efa} devices"),
            _ => "tcp".into(),
        };
        if nixl.plugin("LIBFABRIC").is_some() {
            parts.push(format!(
                "{name}: by LIBFABRIC {over_libfabric}, by UCX {}",
                super::ucx::would_use(host, efa)
            ));
        } else {
            parts.push(format!("{name}: by UCX {}", super::ucx::would_use(host, efa)));
        }
    }
    parts.join("; ")
}

fn kvrail(host: &Host, efa: usize) -> String {
    let list = host.variable("KVRAIL_TRANSPORT").filter(|value| !value.trim().eq_ignore_ascii_case("auto"));
    let named =
        host.variable("KVRAIL_OFI_PROVIDER").filter(|value| !value.trim().eq_ignore_ascii_case("auto"));
    let ofi = match named {
        Some(provider) => Some(format!("ofi, {provider} by KVRAIL_OFI_PROVIDER")),
        None if efa > 0 => Some(format!("ofi, efa-direct over {efa} devices")),
        None => None,
    };
    let order = list.unwrap_or("shm,ofi,tcp");
    let first = order.split(',').map(str::trim).find(|name| match name.to_ascii_lowercase().as_str() {
        // Shared memory does not reach other hosts.
        "shm" => false,
        "ofi" => list.is_some() || ofi.is_some(),
        _ => true,
    });
    match first {
        Some(name) if name.eq_ignore_ascii_case("ofi") => {
            ofi.unwrap_or_else(|| "ofi, which finds no NIC".into())
        }
        Some(name) => name.to_owned(),
        None => "nothing that reaches other hosts".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::host;
    use super::*;

    #[test]
    fn each_variable_that_keeps_transfers_off_efa_is_found_and_says_what_to_set() {
        for (variable, value, command) in [
            ("FI_PROVIDER", "tcp", "export FI_PROVIDER=efa"),
            ("FI_PROVIDER", "^efa", "export FI_PROVIDER=efa"),
            ("FI_PROVIDER", "efa-direct", "export FI_PROVIDER=efa"),
            ("KVRAIL_TRANSPORT", "shm,tcp", "unset KVRAIL_TRANSPORT"),
            ("KVRAIL_OFI_PROVIDER", "tcp", "unset KVRAIL_OFI_PROVIDER"),
            (
                "SGLANG_DISAGGREGATION_NIXL_BACKEND",
                "UCX",
                "export SGLANG_DISAGGREGATION_NIXL_BACKEND=LIBFABRIC",
            ),
            (
                "TRTLLM_USE_UCX_KVCACHE",
                "1",
                "unset TRTLLM_USE_UCX_KVCACHE && export TRTLLM_NIXL_KVCACHE_BACKEND=LIBFABRIC",
            ),
        ] {
            let outcome = look(&host(&json!({variable: value}), true));
            let [finding] = outcome.findings() else { panic!("{variable}={value}: {outcome:?}") };
            assert_eq!(finding.fix[0].command.as_deref(), Some(command));
            assert!(finding.title.contains(variable), "{finding:?}");
            let elsewhere = look(&host(&json!({variable: value}), false));
            assert!(matches!(elsewhere, Outcome::NotApplicable(_)), "without EFA: {elsewhere:?}");
        }
        for (variable, value) in [
            ("FI_PROVIDER", "EFA"),
            ("FI_PROVIDER", "^tcp"),
            ("KVRAIL_TRANSPORT", "auto"),
            ("KVRAIL_TRANSPORT", "OFI"),
            ("KVRAIL_OFI_PROVIDER", "efa-direct"),
            ("SGLANG_DISAGGREGATION_NIXL_BACKEND", "LIBFABRIC"),
            ("TRTLLM_USE_UCX_KVCACHE", "0"),
        ] {
            let outcome = look(&host(&json!({variable: value}), true));
            assert!(matches!(outcome, Outcome::Healthy(_)), "{variable}={value}: {outcome:?}");
        }
    }

    #[test]
    fn what_would_be_used_is_said_in_kvrails_own_order() {
        let of = |variables: &serde_json::Value, efa| {
            let host = host(variables, efa > 0);
            kvrail(&host, efa)
        };
        assert_eq!(of(&json!({}), 2), "ofi, efa-direct over 2 devices");
        assert_eq!(of(&json!({}), 0), "tcp");
        assert_eq!(of(&json!({"KVRAIL_TRANSPORT": "tcp,ofi"}), 2), "tcp");
        assert_eq!(of(&json!({"KVRAIL_TRANSPORT": "shm"}), 2), "nothing that reaches other hosts");
        assert_eq!(of(&json!({"KVRAIL_OFI_PROVIDER": "tcp"}), 0), "ofi, tcp by KVRAIL_OFI_PROVIDER");
    }
}
