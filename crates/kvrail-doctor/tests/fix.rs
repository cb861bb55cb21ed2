//! Remedies on wheels: some made here with a compiler, some the real ones from PyPI.

// The tests of the command line use the rest.
#[allow(dead_code)]
#[path = "fix/made.rs"]
mod made;
#[path = "fix/real.rs"]
mod real;
#[path = "../../kvrail-engines/tests/nixl/wheel.rs"]
#[allow(dead_code, reason = "the engines' tests use the rest")]
mod wheel;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kvrail_doctor::Host;
use kvrail_doctor::fix::{self, Applied, FixError, Plan, Remedy, Request, Verdict};
use kvrail_doctor::host::{Live, Scope};
use made::{Made, image};

/// What a user asks for.
fn asked(efa: &Path, named: bool) -> Request {
    Request { efa: Some(efa.display().to_string()), named, force: false }
}

fn plan(root: &Path, remedies: &[Remedy], request: &Request) -> (Live, Host, Plan) {
    let live = Live::new();
    let scope = Scope { python: vec![root.display().to_string()], ..Scope::default() };
    let host = Host::live(live.clone(), scope);
    let plan = fix::plan(&host, remedies, request).unwrap().remove(0);
    (live, host, plan)
}

fn carry_out(root: &Path, remedies: &[Remedy], request: &Request) -> Result<Applied, FixError> {
    let (live, host, plan) = plan(root, remedies, request);
    fix::carry_out(&plan, &live, &host, &fix::new_run(), &mut |_| Ok(())).map(|(applied, _)| applied)
}

fn undo(root: &Path) {
    let place = fix::Place::environment(root).unwrap();
    fix::undo(&place, None, false, &mut |_| Ok(())).unwrap();
}

#[test]
fn a_copy_of_libfabric_gives_way_to_that_of_the_efa_software() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let before = image(&made.root);
    let request = asked(&made.efa, false);
    let Applied::Changed(journal) = carry_out(&made.root, &[Remedy::BundledLibraries], &request).unwrap()
    else {
        panic!()
    };
    assert_eq!(journal.entries.len(), 1, "{journal:?}");
    assert_eq!(fs::read_link(made.copy()).unwrap(), made.efa.join("lib/libfabric.so.1"));
    assert_eq!(made.which(), "the system's");
    assert_eq!(carry_out(&made.root, &[Remedy::BundledLibraries], &request).unwrap(), Applied::Nothing);
    undo(&made.root);
    assert_eq!(image(&made.root), before);
    assert_eq!(made.which(), "the wheel's");
}

#[test]
fn a_copy_stays_where_the_system_has_only_an_older_libfabric() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.6");
    let before = image(&made.root);
    let (_, _, plan) = plan(&made.root, &[Remedy::BundledLibraries], &asked(&made.efa, true));
    let Verdict::Refused(why) = &plan.proposals[0].verdict else { panic!("{plan:?}") };
    assert!(why.contains("libplugin_LIBFABRIC.so needs FABRIC_1.8") && why.contains("FABRIC_1.6"), "{why}");
    assert_eq!(
        carry_out(&made.root, &[Remedy::BundledLibraries], &asked(&made.efa, true)).unwrap(),
        Applied::Nothing
    );
    assert_eq!(image(&made.root), before);
}

#[test]
fn a_link_that_an_upgrade_of_the_efa_software_broke_is_mended() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    fs::remove_file(made.copy()).unwrap();
    symlink(made.efa.join("lib/libfabric.so.1.27.0"), made.copy()).unwrap();
    assert_ne!(made.which(), "the system's");
    let before = image(&made.root);
    carry_out(&made.root, &[Remedy::BundledLibraries], &asked(&made.efa, false)).unwrap();
    assert_eq!(made.which(), "the system's");
    undo(&made.root);
    assert_eq!(image(&made.root), before);
}

#[test]
fn plugins_find_the_wheels_own_libraries_and_the_efa_softwares_libfabric_through_links_beside_them() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9").with_unbundled_plugin();
    let before = image(&made.root);
    assert!(made.load().contains("not found") || made.load().contains("cannot open"), "{}", made.load());
    let remedies = [Remedy::LoaderPath, Remedy::Libfabric];
    let Applied::Changed(journal) = carry_out(&made.root, &remedies, &asked(&made.efa, true)).unwrap() else {
        panic!()
    };
    let links: Vec<_> = journal
        .entries
        .iter()
        .map(|entry| (entry.path.rsplit('/').next().unwrap(), entry.after.to_string()))
        .collect();
    assert!(
        links.contains(&("libnixl_common.so", "link to ../.nixl.mesonpy.libs/libnixl_common.so".into())),
        "{links:?}"
    );
    assert!(
        links.iter().any(|(name, to)| *name == "libfabric.so.1" && to.contains("/efa/lib/")),
        "{links:?}"
    );
    assert_eq!(made.load(), "");
    assert_eq!(carry_out(&made.root, &remedies, &asked(&made.efa, true)).unwrap(), Applied::Nothing);
    undo(&made.root);
    assert_eq!(image(&made.root), before);
}

#[test]
fn bytecode_that_python_would_trust_blindly_goes_with_the_source_that_it_came_from() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    // PEP 552's unchecked form: neither the source's time nor its hash is ever looked at.
    let api = made.site.join("nixl/_api.py");
    let compile = "import py_compile, sys; py_compile.compile(sys.argv[1], invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)";
    assert!(made.python(&["-c", compile, api.to_str().unwrap()]).0);
    let before = image(&made.root);
    assert_eq!(made.backends(), "['UCX']");
    let Applied::Changed(journal) =
        carry_out(&made.root, &[Remedy::DefaultBackend], &asked(&made.efa, true)).unwrap()
    else {
        panic!()
    };
    assert_eq!(journal.entries.len(), 2, "{journal:?}");
    assert_eq!(made.backends(), "['LIBFABRIC']");
    // Python compiles it anew meanwhile; that is nobody's change.
    assert!(made.python(&["-c", "import nixl._api"]).0);
    undo(&made.root);
    assert_eq!(made.backends(), "['UCX']");
    assert_eq!(image(&made.root), before);
}

#[test]
fn a_default_that_would_make_every_agent_fail_is_refused_until_it_is_forced() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9").with_unbundled_plugin();
    let (_, _, refused) = plan(&made.root, &[Remedy::DefaultBackend], &asked(&made.efa, true));
    assert!(
        matches!(&refused.proposals[0].verdict, Verdict::Refused(why) if why.contains("every agent would fail")),
        "{refused:?}"
    );
    let forced = Request { force: true, ..asked(&made.efa, true) };
    let (_, _, forced) = plan(&made.root, &[Remedy::DefaultBackend], &forced);
    assert!(matches!(forced.proposals[0].verdict, Verdict::Apply { .. }));
    // With the links of the same run it would not fail.
    let (_, _, together) = plan(&made.root, &Remedy::ALL, &asked(&made.efa, true));
    assert_eq!(together.remedies(), [Remedy::LoaderPath, Remedy::Libfabric, Remedy::DefaultBackend]);
}

#[test]
fn the_preamble_does_the_same_without_kvrail_and_twice_is_once() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let efa = made.efa.display().to_string();
    let python = made.root.join("bin/python3").display().to_string();
    let script = fix::preamble::preamble(Some(&efa), Some(&python), fix::preamble::Form::Bash).unwrap();
    let file = made.root.join("preamble.sh");
    fs::write(&file, &script).unwrap();
    let twice = format!(
        "set -euo pipefail\n. {0}\none=$LD_LIBRARY_PATH\n. {0}\n[ \"$one\" = \"$LD_LIBRARY_PATH\" ]\necho \"$one\"",
        file.display()
    );
    let (well, said) = made::run("bash", &["-c", &twice]);
    assert!(well, "{said}");
    assert!(said.contains(&format!("{efa}/lib")) && said.contains(".nixl.mesonpy.libs"), "{said}");
    assert_eq!(made.which(), "the system's");
    assert_eq!(made.backends(), "['LIBFABRIC']");
    assert!(fix::preamble::preamble(Some("/opt/a'; rm -rf /"), None, fix::preamble::Form::Bash).is_err());
    let yaml = fix::preamble::preamble(None, None, fix::preamble::Form::Yaml).unwrap();
    assert!(
        yaml.contains("container_mounts:\n  /opt/amazon/efa: /opt/amazon/efa\n")
            && yaml.contains("\nbash_preamble: |\n  # "),
        "{yaml}"
    );
    if made::run("shellcheck", &["--version"]).0 {
        let (well, said) = made::run("shellcheck", &["-s", "bash", file.to_str().unwrap()]);
        assert!(well, "{said}");
    } else {
        wheel::skip("shellcheck is not installed: the preamble is not checked with it");
    }
}
