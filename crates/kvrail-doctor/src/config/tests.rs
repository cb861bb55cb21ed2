//! What is composed for hosts of each kind, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::host::{Bundle, Host};
use crate::rule::{Kind, Reference, Rule, Severity};

const fn rule(id: &'static str) -> Rule {
    Rule {
        id,
        title: "t",
        severity: Severity::Error,
        kind: Kind::Host,
        cause: "c",
        remedy: "r",
        story: "s",
        references: &[Reference { title: "t", url: "https://example.org" }],
        explained_by: &[],
    }
}
static TOO_OLD: Rule = rule("plugin-libfabric-too-old");
static WITHOUT_EFA: Rule = rule("ucx-without-efa");
static MEMLOCK: Rule = rule("memlock");

fn p5() -> Facts {
    let nic = |at: usize| Nic { name: format!("rdmap{at}s0"), maker: Maker::Efa, up: true };
    Facts {
        nics: (0..32).map(nic).collect(),
        gpus: 8,
        efa_libraries: Some("/opt/amazon/efa/lib".into()),
        forks_safely: Some(true),
        address: Some("10.0.1.7".into()),
        pod: false,
        nixl: Some(Nixl {
            site: "/opt/venv/x".into(),
            distributions: vec!["nixl_cu12 1.4.0".into()],
            is_kvrail: false,
        }),
        etcd: Some("http://etcd:2379".into()),
        nats: None,
        library_path: Some("/usr/local/cuda/lib64".into()),
    }
}

fn infiniband() -> Facts {
    let nic = |at: usize| Nic { name: format!("mlx5_{at}"), maker: Maker::Mellanox, up: at != 1 };
    Facts { nics: (0..3).map(nic).collect(), efa_libraries: None, ..p5() }
}

fn kvrail() -> Facts {
    let nixl = Nixl { site: "/v".into(), distributions: vec!["kvrail_nixl 1.5.1".into()], is_kvrail: true };
    Facts { nixl: Some(nixl), ..p5() }
}

fn ask(engine: Engine, role: Role) -> Ask {
    Ask { engine, role, backend: None, tensor_parallel: None, peer_tensor_parallel: None }
}

fn value<'a>(settings: &'a Settings, name: &str) -> Option<&'a str> {
    settings.variables.iter().find(|variable| variable.name == name).map(|variable| variable.value.as_str())
}

fn transfer(settings: &Settings) -> serde_json::Value {
    let flag = settings.flags.iter().find(|flag| flag.name == "--kv-transfer-config").unwrap();
    serde_json::from_str(&flag.value).unwrap()
}

#[test]
fn a_p5_node_gets_libfabric_over_efa_and_says_why_for_each_value() {
    let settings = compose(&p5(), &[], &ask(Engine::Vllm, Role::Prefill)).unwrap();
    let transfer = transfer(&settings);
    assert_eq!(transfer["kv_connector"], "NixlConnector");
    assert_eq!(transfer["kv_role"], "kv_producer");
    assert_eq!(transfer["kv_buffer_device"], "cuda");
    assert_eq!(transfer["kv_load_failure_policy"], "fail");
    assert_eq!(transfer["kv_connector_extra_config"]["backends"], serde_json::json!(["LIBFABRIC"]));
    assert_eq!(value(&settings, "FI_PROVIDER"), Some("efa"));
    assert_eq!(value(&settings, "FI_HMEM_DISABLE_P2P"), Some("0"));
    assert_eq!(value(&settings, "FI_EFA_FORK_SAFE"), None, "this kernel needs none");
    assert_eq!(value(&settings, "LD_LIBRARY_PATH"), Some("/opt/amazon/efa/lib:/usr/local/cuda/lib64"));
    assert_eq!(value(&settings, "VLLM_NIXL_SIDE_CHANNEL_HOST"), Some("10.0.1.7"));
    assert_eq!(value(&settings, "VLLM_KV_CACHE_LAYOUT"), None);
    assert!(settings.variables.iter().all(|variable| !variable.why.is_empty()));
    assert!(settings.flags.iter().all(|flag| !flag.why.is_empty()));
}

#[test]
fn unequal_tensor_parallel_sizes_want_heads_outermost_and_must_divide() {
    let mut asked = ask(Engine::Vllm, Role::Decode);
    (asked.tensor_parallel, asked.peer_tensor_parallel) = (Some(8), Some(4));
    let settings = compose(&p5(), &[], &asked).unwrap();
    assert_eq!(value(&settings, "VLLM_KV_CACHE_LAYOUT"), Some("HND"));
    assert!(settings.warnings.iter().any(|warning| warning.contains("RKEY")));
    asked.peer_tensor_parallel = Some(3);
    assert!(matches!(compose(&p5(), &[], &asked), Err(Refusal::Usage(why)) if why.contains("8 and 3")));
}

#[test]
fn a_plugin_that_cannot_be_loaded_is_refused_with_the_finding_and_what_works_meanwhile() {
    let too_old = Finding::new(&TOO_OLD, "libplugin_LIBFABRIC.so needs FABRIC_1.10");
    let Err(Refusal::Found { what, findings, meanwhile }) =
        compose(&p5(), &[&too_old], &ask(Engine::Vllm, Role::Both))
    else {
        panic!("it cannot work")
    };
    assert!(what.contains("LIBFABRIC") && findings == [too_old.clone()]);
    assert!(meanwhile.unwrap().contains("--backend ucx"));
    let mut asked = ask(Engine::Vllm, Role::Both);
    asked.backend = Some(Backend::Ucx);
    let settings = compose(&p5(), &[&too_old], &asked).unwrap();
    assert!(settings.warnings.iter().any(|warning| warning.contains("over TCP")), "{:?}", settings.warnings);
    // A plugin that nobody asked for blocks nothing.
    let other = Finding::new(&TOO_OLD, "libplugin_OTHER.so needs it");
    assert!(compose(&p5(), &[&other], &ask(Engine::Vllm, Role::Both)).is_ok());
}

#[test]
fn a_warning_blocks_nothing_and_an_error_of_the_devices_blocks_whoever_needs_them() {
    let memlock = Finding::new(&MEMLOCK, "64 KiB");
    let mild = memlock.clone().severity(Severity::Warning);
    assert!(compose(&p5(), &[&mild], &ask(Engine::Vllm, Role::Both)).is_ok());
    for facts in [p5(), infiniband(), kvrail()] {
        assert!(matches!(
            compose(&facts, &[&memlock], &ask(Engine::Vllm, Role::Both)),
            Err(Refusal::Found { .. })
        ));
    }
    let laptop = Facts { nics: Vec::new(), gpus: 0, ..p5() };
    let settings = compose(&laptop, &[&memlock], &ask(Engine::Vllm, Role::Both)).unwrap();
    assert_eq!(
        (value(&settings, "UCX_TLS"), transfer(&settings)["kv_buffer_device"].as_str()),
        (Some("tcp,sm,self"), Some("cpu"))
    );
}

#[test]
fn infiniband_gets_ucx_on_the_devices_that_are_up() {
    let settings = compose(&infiniband(), &[], &ask(Engine::Vllm, Role::Both)).unwrap();
    assert_eq!(settings.backend, Backend::Ucx);
    assert_eq!(value(&settings, "UCX_NET_DEVICES"), Some("mlx5_0:1,mlx5_2:1"));
    assert_eq!(value(&settings, "UCX_TLS"), Some("rc,ud,sm,self,cuda_copy,cuda_ipc"));
    assert_eq!(value(&settings, "FI_PROVIDER"), None);
}

#[test]
fn ucx_on_efa_says_tcp_only_where_that_is_what_it_would_be() {
    let mut asked = ask(Engine::Vllm, Role::Both);
    asked.backend = Some(Backend::Ucx);
    assert_eq!(value(&compose(&p5(), &[], &asked).unwrap(), "UCX_TLS"), Some("all"));
    let without = Finding::new(&WITHOUT_EFA, "it has no srd");
    let settings = compose(&p5(), &[&without], &asked).unwrap();
    assert_eq!(value(&settings, "UCX_TLS"), Some("tcp,sm,self,cuda_copy,cuda_ipc"));
}

#[test]
fn kvrail_in_nixls_place_gets_host_memory_and_its_own_variables() {
    let settings = compose(&kvrail(), &[], &ask(Engine::Vllm, Role::Decode)).unwrap();
    assert_eq!(settings.backend, Backend::Kvrail);
    assert_eq!(transfer(&settings)["kv_buffer_device"], "cpu");
    assert_eq!(value(&settings, "KVRAIL_TRANSPORT"), Some("shm,ofi"));
    assert_eq!(value(&settings, "KVRAIL_LIBFABRIC"), Some("/opt/amazon/efa/lib"));
    assert!(
        matches!(compose(&kvrail(), &[], &ask(Engine::Sglang, Role::Decode)), Err(Refusal::Usage(why)) if why.contains("GPU memory"))
    );
    let mut asked = ask(Engine::Vllm, Role::Both);
    asked.backend = Some(Backend::Kvrail);
    assert!(matches!(compose(&p5(), &[], &asked), Err(Refusal::Usage(why)) if why.contains("kvrail-nixl")));
}

#[test]
fn sglang_and_dynamo_name_the_backend_their_own_way() {
    let settings = compose(&p5(), &[], &ask(Engine::Sglang, Role::Prefill)).unwrap();
    assert_eq!(value(&settings, "SGLANG_DISAGGREGATION_NIXL_BACKEND"), Some("LIBFABRIC"));
    let flags: Vec<_> = settings.flags.iter().map(|flag| (flag.name, flag.value.as_str())).collect();
    assert!(
        flags.contains(&("--disaggregation-mode", "prefill"))
            && flags.contains(&("--disaggregation-transfer-backend", "nixl"))
    );
    for (worker, says) in
        [(Worker::Vllm, "dynamo.vllm"), (Worker::Sglang, "dynamo.sglang"), (Worker::Trtllm, "dynamo.trtllm")]
    {
        let settings = compose(&p5(), &[], &ask(Engine::Dynamo(worker), Role::Decode)).unwrap();
        assert!(settings.program.contains(&says.to_string()));
        assert_eq!(value(&settings, "ETCD_ENDPOINTS"), Some("http://etcd:2379"), "{worker:?}");
        assert!(
            settings
                .flags
                .iter()
                .any(|flag| (flag.name, flag.value.as_str()) == ("--disaggregation-mode", "decode"))
        );
        let both = compose(&p5(), &[], &ask(Engine::Dynamo(worker), Role::Both));
        assert!(matches!(both, Err(Refusal::Usage(_))));
    }
    let pod = Facts { pod: true, ..p5() };
    let settings = compose(&pod, &[], &ask(Engine::Dynamo(Worker::Vllm), Role::Decode)).unwrap();
    assert_eq!(value(&settings, "ETCD_ENDPOINTS"), None, "the operator sets it");
}

#[test]
fn facts_are_asked_of_the_host_and_survive_its_bundle() {
    let bundle = serde_json::json!({
        "schema": "kvrail.bundle.v1", "complete": true,
        "variables": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "VIRTUAL_ENV": "/opt/venv/"},
        "answers": {
            "directory": {
                "/sys/class/infiniband": ["mlx5_0", "rdmap79s0", "siw0"],
                "/proc/driver/nvidia/gpus": ["0000:53:00.0", "0000:64:00.0"],
                "/opt/venv/lib": ["python3.12"],
                "/opt/venv/lib/python3.12/site-packages": ["nixl", "nixl_cu12", "nixl_cu12-1.4.0.dist-info"],
            },
            "file": {
                "/sys/class/infiniband/rdmap79s0/device/vendor": ["0x1d0f"],
                "/sys/class/infiniband/mlx5_0/device/vendor": ["0x15b3"],
                "/sys/class/infiniband/mlx5_0/ports/1/state": ["1: DOWN"],
                "/sys/class/infiniband/siw0/device/vendor": ["0x9999"],
                "/proc/sys/kernel/osrelease": ["5.10.0"],
            },
            "entry": {"/opt/amazon/efa/lib/libfabric.so.1": {"kind": "file", "real": "/opt/amazon/efa/lib/libfabric.so.1.31.0", "mode": 493, "uid": 0, "bytes": 1}},
            "command": {"hostname -I": {"status": 0, "stdout": "127.0.0.1 fe80::1 10.2.3.4 \n", "stderr": "", "signal": null}},
        },
    });
    let facts = Facts::of(&Host::replay(Bundle::parse(&bundle.to_string()).unwrap()));
    let makers: Vec<_> = facts.nics.iter().map(|nic| (nic.maker, nic.up)).collect();
    assert_eq!(makers, [(Maker::Mellanox, false), (Maker::Efa, true), (Maker::Other, true)]);
    assert_eq!((facts.gpus, facts.address.as_deref(), facts.pod), (2, Some("10.2.3.4"), true));
    assert_eq!(
        (facts.forks_safely, facts.efa_libraries.as_deref()),
        (Some(false), Some("/opt/amazon/efa/lib"))
    );
    assert_eq!(facts.nixl.unwrap().distributions, ["nixl_cu12 1.4.0"]);
}

#[test]
fn every_format_has_every_value() {
    let settings = compose(&p5(), &[], &ask(Engine::Vllm, Role::Prefill)).unwrap();
    let shell = shell(&settings);
    assert!(
        shell.contains("export FI_PROVIDER=efa\n") && shell.contains("vllm serve \"$MODEL\" \\\n"),
        "{shell}"
    );
    assert!(shell.contains("--kv-transfer-config '{\""), "{shell}");
    assert!(env(&settings).contains("\nFI_PROVIDER=efa\n"));
    assert!(args(&settings).starts_with("--kv-transfer-config '{"));
    let yaml = yaml(&settings);
    assert!(yaml.contains("  - name: VLLM_NIXL_SIDE_CHANNEL_HOST\n    valueFrom:\n      fieldRef:\n        fieldPath: status.podIP\n"), "{yaml}");
    assert!(yaml.contains("command: [\"vllm\", \"serve\"]\nargs:\n  - \"$(MODEL)\"\n"), "{yaml}");
    let json: serde_json::Value = serde_json::from_str(&json(&settings)).unwrap();
    assert_eq!((&json["schema"], &json["backend"]), (&"kvrail.config.v1".into(), &"libfabric".into()));
    assert_eq!(json["kv_transfer_config"]["kv_role"], "kv_producer");
}

proptest! {
    /// What a host names itself or has in its environment is never run by the shell that the settings are pasted into.
    #[test]
    fn a_hostile_environment_stays_a_value(path in "\\PC{0,40}", name in "[ -~\n\r]{0,30}") {
        let nixl = Nixl { site: name.clone(), distributions: vec![name], is_kvrail: false };
        let facts = Facts { library_path: Some(path.clone()), nixl: Some(nixl), ..p5() };
        let settings = compose(&facts, &[], &ask(Engine::Vllm, Role::Prefill)).unwrap();
        let text = shell(&settings);
        let script = text.split("\nvllm serve").next().unwrap();
        for line in script.lines().filter(|line| !line.is_empty()) {
            prop_assert!(line.starts_with('#') || line.starts_with("export "), "{line:?}");
        }
        let dumped = std::process::Command::new("sh").args(["-c", &format!("{script}\nprintf %s \"$LD_LIBRARY_PATH\"")]).output().unwrap();
        let expected = value(&settings, "LD_LIBRARY_PATH").unwrap();
        prop_assert_eq!(String::from_utf8_lossy(&dumped.stdout), expected);
    }
}
