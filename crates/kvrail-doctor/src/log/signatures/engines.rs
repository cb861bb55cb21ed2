//! Lines of the engines: vLLM, SGLang, Dynamo, TensorRT-LLM.

use super::{Needle, PLAIN, RULE, Reference, Rule, SGLANG_PD, Severity, Signature, VLLM_NIXL};
use crate::rule::Confidence;

/// What may have kept a KV cache from arriving.
const TRANSFER_FAILURES: &[&str] = &[
    "log-vllm-incompatible",
    "log-vllm-wrong-engine",
    "log-handshake-failed",
    "log-tp-mismatch",
    "log-efa-remote-key",
    "log-efa-unreachable",
    "log-efa-unresponsive",
    "log-efa-unknown-peer",
    "log-efa-peer-restarted",
    "log-efa-error",
    "log-rail-failed",
    "log-nixl-disconnect",
    "log-nixl-handshake-timeout",
    "log-nixl-no-common-backend",
    "log-ucx-peer-lost",
    "log-ucx-retry-exceeded",
    "log-packets-vanish",
    "log-packets-never-sent",
    "log-ray-actor-died",
    "log-oom-killer",
    "log-backend-not-chosen",
    "log-ucx-on-efa",
];

pub(super) static ALL: [Signature; 8] = [
    Signature {
        rule: Rule {
            id: "log-vllm-incompatible",
            title: "prefill and decode of vLLM are configured differently",
            cause: "The two sides' compatibility hashes differ: another vLLM or NIXL version, model, dtype, KV cache layout, block size or attention backend on one of them.",
            remedy: "Start both sides with the same image and the same flags for model, dtype, block size, layout and attention backend.",
            story: "vLLM's NixlConnector compares a hash of everything that decides what a KV block looks like before it transfers the first one, and ends the handshake with `NIXL compatibility hash mismatch`. GPUs of different generations choose different attention backends by themselves, so that the same flags may give different \
hashes.

The check can be turned off (enforce_handshake_compat: false). What is transferred then is only right if the layouts are the same after all.",
            references: &[VLLM_NIXL],
            ..RULE
        },
        needle: Needle {
            literals: &["NIXL compatibility hash mismatch"],
            pattern: r"NIXL compatibility hash mismatch(?:.*?[lL]ocal[:=] ?(?P<local>[0-9a-f]{6,64}).*?[rR]emote[:=] ?(?P<remote>[0-9a-f]{6,64}))?",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "prefill and decode of vLLM are configured differently",
        steps: &[("compare what both print at start", "grep -hE 'vLLM API server version|dtype|attention backend|KV cache layout|block_size' PREFILL.log DECODE.log | sort | uniq -c")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-vllm-wrong-engine",
            title: "vLLM's handshake reached another engine than the one that was meant",
            cause: "The address that the prefill side publishes leads elsewhere: VLLM_NIXL_SIDE_CHANNEL_HOST is not set and stays localhost, or two engines use one port.",
            remedy: "Set VLLM_NIXL_SIDE_CHANNEL_HOST to each host's own address, and a port of its own for each engine on a host.",
            story: "`Remote NIXL agent engine ID mismatch. Expected …, received …`. The side channel's host defaults to localhost: the decode node then asks itself for the prefill node's metadata, and gets its own. In Kubernetes the pod's IP is the value, by the downward API.",
            references: &[VLLM_NIXL, Reference { title: "vLLM: NIXL handshake failure", url: "https://github.com/vllm-project/vllm/issues/27083" }],
            ..RULE
        },
        needle: Needle {
            literals: &["NIXL agent engine ID mismatch"],
            pattern: r"NIXL agent engine ID mismatch\. ?Expected (?P<expected>[\w-]+), ?received (?P<received>[\w-]+)|NIXL agent engine ID mismatch",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "vLLM's handshake reached another engine than the one that was meant",
        steps: &[
            ("on each host", "export VLLM_NIXL_SIDE_CHANNEL_HOST=$(hostname -I | cut -d' ' -f1)"),
            ("for each engine of one host", "export VLLM_NIXL_SIDE_CHANNEL_PORT=5700"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-tp-mismatch",
            title: "the two sides' tensor parallelism does not fit",
            cause: "Prefill and decode have different tensor parallel sizes, and this combination of sizes, layout, model or connector is not supported.",
            remedy: "Use the same size on both sides, a multiple, or the layout (HND) that splitting heads needs.",
            story: "Assertions like `Remote P worker KV layer cache must be of shape`, or `PD Disaggregation does NOT support PD different TP sizes`. With different sizes a KV head's part of a block must be cut out, which needs heads before tokens in memory (HND), sizes that divide each other, and no compression that mixes heads. Other engines do not \
check, and produce gibberish.",
            references: &[VLLM_NIXL, SGLANG_PD],
            ..RULE
        },
        needle: Needle {
            literals: &["KV layer cache must be of shape", "does NOT support PD different TP", "does not support heterogeneous", "eterogeneous TP"],
            pattern: r"KV layer cache must be of shape|does NOT support PD different TP|(?:does not support|not supported|unsupported)[^.\n]*[hH]eterogeneous (?:TP|tensor)|[hH]eterogeneous (?:TP|tensor)[^.\n]{0,32}(?:is not supported|unsupported|requires)",
            unless: &[],
        },
        headline: "the two sides' tensor parallelism does not fit",
        steps: &[("see both sizes", "grep -hoE 'tensor_parallel_size=[0-9]+|tp_size=[0-9]+' PREFILL.log DECODE.log | sort | uniq -c"), ("for vLLM, a layout that can be split", "export VLLM_KV_CACHE_LAYOUT=HND")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-handshake-failed",
            title: "an engine's handshake with its peer failed",
            cause: "Prefill and decode could not exchange metadata or connect; a traceback or NIXL's lines of the same time say why.",
            remedy: "Look at the lines around it; check addresses and ports of the side channel, and that both sides run the same software.",
            story: "vLLM says `NIXL transfer failure: handshake_setup_failed`, SGLang `Decode handshake failed for request`. Requests are then computed again on the decode side or fail, depending on the policy: the service may look healthy and be slow.",
            references: &[VLLM_NIXL, SGLANG_PD],
            explained_by: &[
                "log-vllm-incompatible", "log-vllm-wrong-engine", "log-tp-mismatch", "log-nixl-no-common-backend", "log-nixl-disconnect", "log-nixl-handshake-timeout", "log-peer-unreachable",
                "log-address-in-use", "log-ucx-unreachable", "log-ucx-peer-lost", "log-efa-unreachable", "log-nixl-status",
            ],
            ..RULE
        },
        needle: Needle {
            literals: &["handshake_setup_failed", "handshake_failed", "Handshake failed for request", "handshake failed for request"],
            pattern: r"NIXL transfer failure: (?P<failure>handshake_\w*failed)(?:.*?'remote_host': '(?P<host>[^']+)')?|(?:nixl\w*\.py:\d+\].*|[Dd]ecode |[Pp]refill )[hH]andshake failed for request",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "an engine's handshake with its peer failed",
        steps: &[("from the decode host, try the prefill's side channel", "nc -vz PREFILL 5600"), ("give doctor both sides' logs", "kvrail doctor log PREFILL.log DECODE.log")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-kv-load-failed",
            title: "KV caches did not arrive, and requests were failed or computed again",
            severity: Severity::Error,
            cause: "A transfer failed after its handshake; the engine marked its blocks invalid.",
            remedy: "Find the transfer's own error; with the policy `recompute` the service stays right and loses what disaggregation was for.",
            story: "vLLM's scheduler says `Recovered from KV load failure: N request(s) rescheduled` (policy recompute) or `Failing N request(s) due to KV load failure` (policy fail); its connector `NIXL transfer failure: …` with the peer's address. SGLang says `Decode transfer failed`. Backends' lines of the same time name the reason.",
            references: &[VLLM_NIXL],
            explained_by: TRANSFER_FAILURES,
            ..RULE
        },
        needle: Needle {
            literals: &["KV load failure", "NIXL transfer failure: ", "transfer failed for request"],
            pattern: r"Recovered from KV load failure: (?P<rescheduled>\d+) request|Failing (?P<failed>\d+) request\(s\) due to KV load failure|NIXL transfer failure: (?P<failure>(?:transfer|notification|recv|read|write|setup)\w*)(?:.*?'remote_host': '(?P<host>[^']+)')?|(?:Decode|Prefill) transfer failed for request",
            unless: &["KVPoll.WaitingForInput", "KVPoll.Bootstrapping"],
        },
        confidence: Confidence::Certain,
        headline: "KV caches did not arrive",
        steps: &[("give doctor the logs of both sides and the kernel's", "kvrail doctor log PREFILL.log DECODE.log dmesg.txt"), ("try the path by itself", "kvrail doctor probe PEER")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-kv-expired",
            title: "KV blocks were computed and never fetched",
            severity: Severity::Warning,
            cause: "The decode side did not read the blocks before the prefill side's lease ended: it never started, its transfer hangs, or it queues for longer than that.",
            remedy: "See whether decode's transfers end at all; if they do, give blocks a longer lease or decode more capacity.",
            story: "vLLM's prefill side says `Releasing expired KV blocks for request … which were retrieved by 0 …`. Single ones are requests that were cancelled. Many, with 0 workers each, mean that nothing is transferred; numbers between 0 and the tensor parallel size mean that some ranks' transfers hang.

A block that is released while a slow reader still reads is overwritten by the next request's, and the reader gets a mixture.",
            references: &[VLLM_NIXL],
            explained_by: TRANSFER_FAILURES,
            ..RULE
        },
        needle: Needle {
            literals: &["Releasing expired KV blocks"],
            pattern: r"Releasing expired KV blocks for request \S+ which were retrieved by (?P<workers>\d+)|Releasing expired KV blocks",
            unless: &[],
        },
        confidence: Confidence::Possible,
        headline: "KV blocks of {count} requests were computed and never fetched",
        steps: &[("see what decode says of the same requests", "kvrail doctor log DECODE.log"), ("if transfers are only slow, lengthen the lease: kv_connector_extra_config {\"kv_lease_duration\": 120}", "")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-sglang-waiting",
            title: "SGLang's decode waits for KV caches that do not come",
            cause: "Prefill and decode have met, and the transfer does not end in time: it is slow (TCP instead of RDMA), it hangs, or prefill is overloaded.",
            remedy: "See which backend moves the data and how fast; raise the timeout only if the transfers do end.",
            story: "`WaitingForInput` is the state of a request whose KV cache is under way. Many such lines with transfers of 5 to 10 seconds each mean TCP where EFA was expected; `timed out after 300s in KVPoll.WaitingForInput` that nothing arrives at all. SGLang recommends to raise SGLANG_DISAGGREGATION_WAITING_TIMEOUT, which turns a \
failure into a longer wait.",
            references: &[SGLANG_PD],
            explained_by: TRANSFER_FAILURES,
            ..RULE
        },
        needle: Needle {
            literals: &["WaitingForInput", "fail to receive KV Cache transfer done signal"],
            pattern: r"timed out after (?P<seconds>\d+)(?:\.\d+)?s in KVPoll\.WaitingForInput|WaitingForInput|fail to receive KV Cache transfer done signal",
            unless: &["WaitingForInput: 0", "WaitingForInput=0", "import "],
        },
        least: 3,
        headline: "decode waited {count} times for a KV cache that did not come in time",
        steps: &[
            ("see which backend moves the data", "grep -h 'was instantiated' PREFILL.log DECODE.log | sort | uniq -c"),
            ("see what is wrong with the faster one", "kvrail doctor"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-sglang-bootstrap",
            title: "SGLang's prefill and decode do not meet",
            cause: "Decode asked prefill's bootstrap server, or waited for it, and got no answer in time: an address or port that is not reachable, or a prefill that never got the request.",
            remedy: "Check that decode reaches the bootstrap port of prefill, and that the router sends each request to both.",
            story: "`timed out … in KVPoll.Bootstrapping`, or `Some requests timed out when bootstrapping`. The bootstrap is an HTTP server of prefill (port 8998 unless told otherwise); its address is the one that the router puts into the request, which may be a name or an interface that decode does not reach.",
            references: &[SGLANG_PD],
            explained_by: &["log-address-in-use", "log-ray-actor-died", "log-oom-killer"],
            ..RULE
        },
        needle: Needle {
            literals: &["KVPoll.Bootstrapping", "timed out when bootstrapping"],
            pattern: r"timed out after (?P<seconds>\d+)(?:\.\d+)?s in KVPoll\.Bootstrapping|timed out when bootstrapping",
            unless: &[],
        },
        headline: "SGLang's prefill and decode do not meet",
        steps: &[("from the decode host", "curl -sS --max-time 5 http://PREFILL:8998/health")],
        ..PLAIN
    },
];
