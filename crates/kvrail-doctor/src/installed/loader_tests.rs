//! The loader's rules on hosts that are written down.

use serde_json::{Value, json};

use super::*;
use crate::host::Bundle;

fn host(variables: &Value, elf: &Value) -> Host {
    let bundle = json!({
        "schema": "kvrail.bundle.v1", "complete": true, "variables": variables,
        "answers": {
            "elf": elf,
            "file": {"/etc/ld.so.conf": ["include /etc/ld.so.conf.d/*.conf", "# nothing"], "/etc/ld.so.conf.d/a.conf": ["/opt/a"]},
            "directory": {"/etc/ld.so.conf.d": ["a.conf", "b.txt"]},
        },
    });
    Host::replay(Bundle::parse(&bundle.to_string()).unwrap())
}

fn found(host: &Host, file: &str, name: &str) -> Option<String> {
    let loader = Loader::new(host);
    let mut process = loader.process();
    process.load(file);
    process.known(name).map(|library| library.path.clone())
}

#[test]
fn search_paths_come_in_the_loader_s_order() {
    let elf = |own: Value| {
        let mut main = json!({"needed": [{"name": "libx.so"}]});
        main.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        json!({"/p/main.so": main, "/p/r/libx.so": {}, "/env/libx.so": {}, "/opt/a/libx.so": {}, "/usr/lib/libx.so": {}})
    };
    let with =
        |own: Value, variables: Value| found(&host(&variables, &elf(own)), "/p/main.so", "libx.so").unwrap();
    let path = json!({"LD_LIBRARY_PATH": "/env/:relative"});
    assert_eq!(with(json!({"rpath": "$ORIGIN/r"}), path.clone()), "/p/r/libx.so");
    assert_eq!(with(json!({"runpath": "${ORIGIN}/../p/r"}), path.clone()), "/env/libx.so");
    assert_eq!(with(json!({"runpath": "$ORIGIN/r"}), json!({})), "/p/r/libx.so");
    assert_eq!(
        with(json!({"rpath": "$ORIGIN/r", "runpath": "/none"}), path),
        "/env/libx.so",
        "a runpath turns the rpath off"
    );
    assert_eq!(with(json!({}), json!({})), "/opt/a/libx.so");
}

#[test]
fn what_is_needed_further_down_is_searched_for_by_the_rpath_of_those_above_and_not_by_their_runpath() {
    let elf = |kind: &str| {
        json!({
            "/p/main.so": {kind: "$ORIGIN/r", "needed": [{"name": "liba.so"}]},
            "/p/r/liba.so": {"needed": [{"name": "libb.so"}]},
            "/p/r/libb.so": {},
        })
    };
    assert_eq!(
        found(&host(&json!({}), &elf("rpath")), "/p/main.so", "libb.so").as_deref(),
        Some("/p/r/libb.so")
    );
    assert_eq!(found(&host(&json!({}), &elf("runpath")), "/p/main.so", "libb.so"), None);
}

/// Amazon Linux and Red Hat have it so; the EFA installer's directory is named there.
#[test]
fn an_include_without_a_slash_in_front_is_meant_beside_the_file() {
    let bundle = json!({
        "schema": "kvrail.bundle.v1", "complete": true,
        "answers": {
            "elf": {"/opt/amazon/efa/lib/libfabric.so.1": {}},
            "file": {"/etc/ld.so.conf": ["include ld.so.conf.d/*.conf"], "/etc/ld.so.conf.d/000_efa.conf": ["/opt/amazon/efa/lib"]},
            "directory": {"/etc/ld.so.conf.d": ["000_efa.conf"]},
        },
    });
    let host = Host::replay(Bundle::parse(&bundle.to_string()).unwrap());
    let found = Loader::new(&host).find("libfabric.so.1").map(|(path, _)| path);
    assert_eq!(found.as_deref(), Some("/opt/amazon/efa/lib/libfabric.so.1"));
}

#[test]
fn a_name_that_is_in_the_process_is_not_searched_for_again() {
    let elf = json!({
        "/core/libcore.so": {"soname": "libcore.so"},
        "/p/main.so": {"needed": [{"name": "libcore.so"}]},
    });
    let host = host(&json!({}), &elf);
    let loader = Loader::new(&host);
    let alone = loader.process().load("/p/main.so");
    assert_eq!(alone, [Obstacle::Missing { name: "libcore.so".into(), by: "/p/main.so".into() }]);
    let mut process = loader.process();
    assert!(process.load("/core/libcore.so").is_empty() && process.load("/p/main.so").is_empty());
}

#[test]
fn a_version_that_is_not_defined_is_an_obstacle_and_a_library_without_versions_is_none() {
    let main = json!({"needed": [{"name": "libfabric.so.1", "versions": ["FABRIC_1.0", "FABRIC_1.10"]}]});
    let with = |versions: Value| {
        let elf = json!({"/p/main.so": main, "/usr/lib/libfabric.so.1": {"soname": "libfabric.so.1", "versions": versions}});
        let host = host(&json!({}), &elf);
        Loader::new(&host).process().load("/p/main.so")
    };
    let old = with(json!(["FABRIC_1.0", "FABRIC_1.6"]));
    assert!(matches!(&old[..], [Obstacle::Version { version, .. }] if version == "FABRIC_1.10"), "{old:?}");
    assert!(with(json!(["FABRIC_1.0", "FABRIC_1.10"])).is_empty());
    assert!(with(json!([])).is_empty());
}

#[test]
fn another_machine_s_library_is_passed_over_and_a_circle_ends() {
    let elf = json!({
        "/p/main.so": {"machine": 62, "needed": [{"name": "libx.so"}]},
        "/opt/a/libx.so": {"machine": 183},
        "/usr/lib/libx.so": {"machine": 62, "needed": [{"name": "main.so"}, {"name": "libx.so"}]},
    });
    assert_eq!(found(&host(&json!({}), &elf), "/p/main.so", "libx.so").as_deref(), Some("/usr/lib/libx.so"));
}

#[test]
fn two_files_of_one_name_are_duplicates_and_one_file_under_two_names_is_not() {
    let elf = json!({
        "/w/libibverbs-1de1263b.so.1.14.48.0": {"soname": "libibverbs-1de1263b.so.1.14.48.0"},
        "/usr/lib/libibverbs.so.1": {"soname": "libibverbs.so.1"},
        "/p/main.so": {"rpath": "/w", "needed": [{"name": "libibverbs-1de1263b.so.1.14.48.0"}, {"name": "libibverbs.so.1"}]},
    });
    let host = host(&json!({}), &elf);
    let loader = Loader::new(&host);
    let mut process = loader.process();
    process.load("/p/main.so");
    let duplicates = process.duplicates();
    assert_eq!(duplicates.keys().collect::<Vec<_>>(), ["libibverbs"]);
    assert_eq!(process.chain(duplicates["libibverbs"][1]), ["/usr/lib/libibverbs.so.1", "/p/main.so"]);
    assert_eq!(plain_name("libnl-route-3-3ad497a3.so.200.26.0"), "libnl-route-3");
    assert_eq!(plain_name("libnl-3.so.200"), "libnl-3");
}
