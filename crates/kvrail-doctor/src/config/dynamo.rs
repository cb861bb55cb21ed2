//! Dynamo: its workers take their engine's flags, and find each other through etcd or Kubernetes.
//!
//! <https://docs.nvidia.com/dynamo/reference/backends/v-llm-configuration>

use serde_json::json;

use super::{Ask, Backend, Facts, Refusal, Role, Settings, Worker, sglang, vllm};

pub(super) fn add(settings: &mut Settings, facts: &Facts, ask: &Ask, worker: Worker) -> Result<(), Refusal> {
    let mode = match ask.role {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
        Role::Both => {
            return Err(Refusal::Usage(
                "a worker of Dynamo is for prefill or for decode: --role prefill or --role decode".into(),
            ));
        }
    };
    match worker {
        Worker::Vllm => {
            vllm::add(settings, facts, ask, &["python3", "-m", "dynamo.vllm", "--model", "$MODEL"]);
            settings.flag("--disaggregation-mode", mode, "as asked for");
        }
        Worker::Sglang => sglang::add(settings, facts, ask, &["python3", "-m", "dynamo.sglang"])?,
        Worker::Trtllm => trtllm(settings, ask, mode),
    }
    discovery(settings, facts);
    Ok(())
}

fn trtllm(settings: &mut Settings, ask: &Ask, mode: &str) {
    settings.program =
        ["python3", "-m", "dynamo.trtllm", "--model-path", "$MODEL"].map(String::from).to_vec();
    settings.set(
        "TRTLLM_NIXL_KVCACHE_BACKEND",
        settings.backend.nixl_name(),
        "upper case, as NIXL compares it; UCX without it",
    );
    settings.flag("--disaggregation-mode", mode, "as asked for");
    if let Some(size) = ask.tensor_parallel {
        settings.flag("--tensor-parallel-size", size.to_string(), "as asked for");
    }
    settings.flag(
        "--override-engine-args",
        json!({ "cache_transceiver_config": { "backend": "NIXL" } }).to_string(),
        "KV caches go through NIXL, and not through UCX or MPI directly",
    );
    if settings.backend == Backend::Libfabric {
        settings.warnings.push("Dynamo's documentation recommends UCX with its EFA transport for TensorRT-LLM: compare both by `kvrail bench --engine nixl:UCX,nixl:LIBFABRIC`".into());
    }
}

/// How workers and frontends find each other. In Kubernetes the operator sets it.
fn discovery(settings: &mut Settings, facts: &Facts) {
    if facts.pod {
        return;
    }
    match &facts.etcd {
        Some(etcd) => settings.set(
            "ETCD_ENDPOINTS",
            kvrail_report::redact::text(etcd),
            "where workers and frontends find each other: as the environment or --etcd says",
        ),
        None => settings.set(
            "ETCD_ENDPOINTS",
            "http://ETCD_HOST:2379",
            "replace it by your etcd: the default is localhost, where workers of other hosts find nobody",
        ),
    }
    if let Some(nats) = &facts.nats {
        settings.set("NATS_SERVER", kvrail_report::redact::text(nats), "as the environment says");
    }
}
