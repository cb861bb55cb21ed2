//! `kvrail config` from outside: settings for hosts of bundles, refusals, formats.

// The hosts of doctor's own tests.
#[allow(dead_code)]
#[path = "../../kvrail-doctor/tests/patients/mod.rs"]
mod patients;

use std::process::{Command, Output};

use serde_json::{Value, json};

/// The healthy P5 node of doctor's fixtures, with an address.
fn node() -> Value {
    addressed(patients::healthy())
}

/// A host without a GPU, a NIC and a NIXL.
fn bare() -> Value {
    addressed(json!({ "schema": "kvrail.bundle.v1", "complete": true }))
}

fn addressed(mut node: Value) -> Value {
    let address = json!({"answers": {"command": {"hostname -I": {"status": 0, "stdout": "10.2.3.4 \n", "stderr": "", "signal": null}}}});
    patients::merge(&mut node, &address);
    node
}

fn config(bundle: &Value, words: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.json");
    std::fs::write(&path, bundle.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.arg("config").args(words.split_whitespace()).arg("--from").arg(&path);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn settings(words: &str) -> String {
    let output = config(&node(), words);
    assert!(output.status.success(), "{words}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

#[test]
fn a_healthy_p5_node_gets_libfabric_over_efa() {
    let document: Value = serde_json::from_str(&settings("vllm --format json")).unwrap();
    assert_eq!(document["kv_transfer_config"]["kv_connector_extra_config"]["backends"], json!(["LIBFABRIC"]));
    assert_eq!(document["kv_transfer_config"]["kv_buffer_device"], "cuda");
    let shell = settings("vllm");
    assert!(
        shell.contains("export FI_PROVIDER=efa\n")
            && shell.contains("export LD_LIBRARY_PATH=/opt/amazon/efa/lib"),
        "{shell}"
    );
}

#[test]
fn vllm_gets_its_transfer_config_and_the_fabrics_variables() {
    let document: Value =
        serde_json::from_str(&settings("vllm --role producer --backend UCX --format json")).unwrap();
    assert_eq!(document["kv_transfer_config"]["kv_role"], "kv_producer");
    assert_eq!(document["kv_transfer_config"]["kv_connector_extra_config"]["backends"], json!(["UCX"]));
    let shell = settings("vllm --role decode --backend ucx --tp 8 --peer-tp 4");
    for said in [
        "export VLLM_NIXL_SIDE_CHANNEL_HOST=10.2.3.4\n",
        "export VLLM_KV_CACHE_LAYOUT=HND\n",
        "--tensor-parallel-size 8",
        "\"kv_consumer\"",
    ] {
        assert!(shell.contains(said), "{said}\n{shell}");
    }
}

#[test]
fn a_shell_takes_what_is_written_for_it() {
    let script = settings("vllm --role prefill --backend ucx");
    let run = "vllm() { for word in \"$@\"; do printf '%s\\n' \"$word\"; done; }\nMODEL='a model'\n";
    let output = Command::new("bash").args(["-euc", &format!("{run}{script}")]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let words: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(&words[..2], &["serve", "a model"]);
    let at = words.iter().position(|word| *word == "--kv-transfer-config").unwrap();
    let transfer: Value = serde_json::from_str(words[at + 1]).unwrap();
    assert_eq!(transfer["kv_connector"], "NixlConnector");
}

#[test]
fn sglang_and_dynamo_want_to_know_the_role() {
    for engine in ["sglang", "dynamo"] {
        let output = config(&node(), engine);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("--role"), "{}", text(&output.stderr));
    }
    assert!(settings("sglang --role prefill --backend ucx").contains("--disaggregation-mode prefill"));
    assert!(
        settings("dynamo --worker trtllm --role decode --backend ucx").contains("python3 -m dynamo.trtllm")
    );
}

#[test]
fn what_cannot_work_is_refused_with_the_cause_and_the_fix() {
    let mut broken = node();
    broken["answers"]["file"]["/proc/self/limits"] =
        json!(["Max locked memory         65536                65536                bytes     "]);
    let output = config(&broken, "vllm --backend libfabric");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    let said = text(&output.stderr);
    assert!(
        said.contains("error[memlock]")
            && said.contains("fix:")
            && said.contains("LIBFABRIC cannot carry KV caches here"),
        "{said}"
    );
}

#[test]
fn sizes_that_do_not_divide_and_an_engine_that_is_none_are_usage() {
    for words in [
        "vllm --tp 8 --peer-tp 3 --backend ucx",
        "vllm --peer-tp 3",
        "tgi",
        "vllm --backend mooncake",
        "sglang --role both --backend ucx",
    ] {
        let output = config(&node(), words);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{words}");
        assert!(text(&output.stderr).starts_with("error: "), "{words}: {}", text(&output.stderr));
    }
}

#[test]
fn every_format_is_written_to_a_file_too() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["shell", "yaml", "env", "args", "json"] {
        let path = folder.path().join(format);
        let out = settings(&format!("vllm --backend ucx --format {format} --output {}", path.display()));
        assert_eq!(out, "");
        assert!(!std::fs::read_to_string(&path).unwrap().is_empty(), "{format}");
    }
}

#[test]
fn what_it_writes_is_what_doctor_lint_wants() {
    let engines = [
        "vllm",
        "sglang",
        "dynamo",
        "dynamo --worker sglang",
        "dynamo --worker trtllm",
        "vllm --tp 8 --peer-tp 4",
    ];
    let mut wrong = Vec::new();
    // A file does not say that its host has no GPU, and that its vLLM is one of which LIBFABRIC is safe.
    for (host, bundle, may) in
        [("EFA", node(), "lint-libfabric-vllm"), ("none", bare(), "lint-kv-buffer-device")]
    {
        for engine in engines {
            for role in ["prefill", "decode", "both"] {
                if role == "both" && !engine.starts_with("vllm") {
                    continue;
                }
                for (format, ending) in [("shell", "sh"), ("yaml", "yaml"), ("env", "env")] {
                    let words = format!("{engine} --role {role} --format {format}");
                    let output = config(&bundle, &words);
                    assert!(output.status.success(), "{words}: {}", text(&output.stderr));
                    let folder = tempfile::tempdir().unwrap();
                    let path = folder.path().join(format!("worker.{ending}"));
                    std::fs::write(&path, &output.stdout).unwrap();
                    let mut lint = Command::new(env!("CARGO_BIN_EXE_kvrail"));
                    let linted = lint.args(["doctor", "lint"]).arg(&path).output().unwrap();
                    let said = text(&linted.stdout);
                    // Notes, too: what is written here is to be beyond reproach.
                    let found = said.split("[lint-").skip(1).filter_map(|rest| rest.split(']').next());
                    if linted.status.code() == Some(2)
                        || found.into_iter().any(|id| format!("lint-{id}") != may)
                    {
                        wrong.push(format!("{host}: {words}\n{said}{}", text(&linted.stderr)));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
