//! vLLM: `--kv-transfer-config` and the variables of its NixlConnector.
//!
//! <https://docs.vllm.ai/en/stable/features/nixl_connector_usage.html>

use serde_json::json;

use super::{Ask, Backend, Facts, Flag, Role, Settings, Variable};

/// Where the handshake listens, as in vLLM's own default.
const PORT: u16 = 5600;

pub(super) fn add(settings: &mut Settings, facts: &Facts, ask: &Ask, program: &[&str]) {
    settings.program = program.iter().map(ToString::to_string).collect();
    settings.variables.push(Variable {
        name: "VLLM_NIXL_SIDE_CHANNEL_HOST",
        value: facts.address.clone().unwrap_or_else(|| "ADDRESS_OF_THIS_HOST".into()),
        field: Some("status.podIP"),
        why: match &facts.address {
            Some(_) => "peers shake hands with this address; the default, localhost, is their own".into(),
            None => "replace it by the address that peers reach this host under; the default, localhost, is their own".into(),
        },
    });
    settings.set(
        "VLLM_NIXL_SIDE_CHANNEL_PORT",
        PORT.to_string(),
        "the handshake's port; each engine of one host needs its own (a data-parallel one takes a port for each rank from here on)",
    );
    if ask.differs() {
        settings.set(
            "VLLM_KV_CACHE_LAYOUT",
            "HND",
            "heads outermost: unequal tensor-parallel sizes exchange whole heads",
        );
    }
    if let Some(size) = ask.tensor_parallel {
        settings.flag("--tensor-parallel-size", size.to_string(), "as asked for");
    }
    settings.flags.push(transfer(facts, ask, settings.backend));
}

fn transfer(facts: &Facts, ask: &Ask, backend: Backend) -> Flag {
    let role = match ask.role {
        Role::Prefill => "kv_producer",
        Role::Decode => "kv_consumer",
        Role::Both => "kv_both",
    };
    let (device, device_why) = match backend {
        Backend::Kvrail => {
            ("cpu", "this release of kvrail moves host memory, so that vLLM copies KV caches there first")
        }
        _ if facts.gpus > 0 => ("cuda", "GPU memory travels as it is"),
        _ => ("cpu", "no GPU is here"),
    };
    let name = backend.nixl_name();
    let backend_why = match backend {
        Backend::Kvrail => "kvrail, which is in NIXL's place, answers to it".to_string(),
        _ => "upper case, as NIXL compares it; UCX without it".to_string(),
    };
    Flag {
        name: "--kv-transfer-config",
        value: json!({
            "kv_connector": "NixlConnector",
            "kv_role": role,
            "kv_buffer_device": device,
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": { "backends": [name] },
        })
        .to_string(),
        why: vec![
            format!("kv_role {role}: as asked for; NixlConnector itself goes by what the proxy says"),
            format!("kv_buffer_device {device}: {device_why}"),
            "kv_load_failure_policy fail: a request whose KV cache did not arrive ends with an error, and prefill does not move to a decode worker unseen".into(),
            format!("backends {name}: {backend_why}"),
        ],
    }
}
