//! `kvrail fix` from outside: plans, exit codes, runs that are killed, clusters.

// The same small wheel as in the tests of the library.
#[allow(dead_code)]
#[path = "../../kvrail-doctor/tests/fix/made.rs"]
mod made;
#[path = "fix/nodes.rs"]
mod nodes;
#[path = "../../kvrail-engines/tests/nixl/wheel.rs"]
#[allow(dead_code, reason = "the engines' tests use the rest")]
mod wheel;

use std::process::{Command, Output};
use std::time::Duration;

use made::{Made, image};

fn fix(made: &Made) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.arg("fix").arg("--python").arg(&made.root).arg("--efa").arg(&made.efa);
    command.env_remove("LD_LIBRARY_PATH");
    command
}

fn ended(output: &Output) -> (i32, String) {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_plan_is_shown_then_carried_out_then_taken_back() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let before = image(&made.root);
    let (code, said) = ended(&fix(&made).arg("--dry-run").output().unwrap());
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("before: file, ") && said.contains("after:  link to ") && said.contains("sha256 "),
        "{said}"
    );
    assert_eq!(image(&made.root), before, "a dry run changes nothing");
    let (code, said) = ended(&fix(&made).output().unwrap());
    assert_eq!(code, 0, "{said}");
    assert_eq!(made.which(), "the system's");
    let (code, said) = ended(&fix(&made).arg("--dry-run").output().unwrap());
    assert!(code == 0 && said.contains("nothing to do"), "{code} {said}");
    let (code, said) = ended(&fix(&made).arg("--list").output().unwrap());
    assert!(code == 0 && said.contains("bundled-libraries"), "{said}");
    let run = said.split_whitespace().next().unwrap().to_owned();
    let (code, said) = ended(&fix(&made).args(["--undo", "20200101T000000.000000Z-1"]).output().unwrap());
    assert!(code == 2 && said.contains("there is no run"), "{code} {said}");
    let (code, said) = ended(&fix(&made).args(["--undo", &run]).output().unwrap());
    assert_eq!(code, 0, "{said}");
    assert_eq!(image(&made.root), before);
    let (code, said) = ended(&fix(&made).arg("--undo").output().unwrap());
    assert!(code == 2 && said.contains("nothing to undo"), "{code} {said}");
    assert_eq!(image(&made.root), before);
}

#[test]
fn what_stops_loading_is_put_back_by_itself() {
    // Its tables are right and its constructor is not: only a trial tells.
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9").with_system_that_crashes();
    let before = image(&made.root);
    let (code, said) = ended(&fix(&made).arg("bundled-libraries").output().unwrap());
    assert!(code == 1 && said.contains("signal") && said.contains("LIBFABRIC"), "{code} {said}");
    assert_eq!(image(&made.root), before);
}

#[test]
fn programs_read_what_was_done() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let output = fix(&made).args(["default-backend", "--format", "json"]).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["schema"], "kvrail.fix.v1");
    assert_eq!(value["changed"], true);
    assert_eq!(value["environments"][0]["changes"][0]["after"]["is"], "file");
    assert_eq!(made.backends(), "['LIBFABRIC']");
}

#[test]
fn what_cannot_be_mended_is_said_and_the_exit_code_is_1() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.6");
    let (code, said) = ended(&fix(&made).arg("bundled-libraries").output().unwrap());
    assert!(code == 1 && said.contains("not done:") && said.contains("FABRIC_1.8"), "{code} {said}");
    let (code, said) = ended(&fix(&made).arg("--python=/nonexistent").output().unwrap());
    assert!(code == 2 && said.contains("no Python environment"), "{code} {said}");
}

#[test]
fn a_run_that_is_killed_at_any_time_leaves_nothing_that_the_next_one_does_not_take_back() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let before = image(&made.root);
    let mut killed = 0;
    for milliseconds in (20..1600).step_by(90) {
        let mut child = fix(&made)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        // A run that had ended is undone, one that had not is recovered first; either way it is as it was.
        let (code, said) = ended(&fix(&made).arg("--undo").output().unwrap());
        assert!(code == 0 || said.contains("nothing to undo"), "{said}");
        assert_eq!(image(&made.root), before, "killed after {milliseconds} ms");
    }
    assert!(killed > 0);
}

#[test]
fn a_preamble_is_printed_for_bash_and_for_a_jobs_file() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kvrail")).arg("fix").args(arguments).output().unwrap();
        ended(&output)
    };
    let (code, said) = run(&["preamble", "--python", "/opt/venv"]);
    assert!(
        code == 0
            && said.contains("_kvrail_python='/opt/venv/bin/python3'")
            && said.contains("export LD_LIBRARY_PATH"),
        "{said}"
    );
    let (code, said) = run(&["preamble", "--format", "yaml"]);
    assert!(code == 0 && said.contains("container_mounts:\n  /opt/amazon/efa: /opt/amazon/efa"), "{said}");
    assert_eq!(run(&["preamble", "libfabric"]).0, 2);
    assert_eq!(run(&["preamble", "--efa", "/a b"]).0, 2);
}

/// Takes the last run back.
fn made_back(made: &Made) {
    let (code, said) = ended(&fix(made).arg("--undo").output().unwrap());
    assert_eq!(code, 0, "{said}");
}

/// The loader's configuration is changed in a mount namespace with copies of /etc and /var/lib.
#[test]
fn a_nixl_built_from_source_gets_the_efa_softwares_libfabric_by_the_loaders_configuration() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9").with_unbundled_plugin();
    let at = made.root.parent().unwrap().display().to_string();
    let may = made::run("unshare", &["--mount", "sh", "-c", "mount -t tmpfs none /mnt"]);
    if !may.0 {
        wheel::skip(&format!("the loader's configuration: no mount namespace: {}", may.1.trim()));
        return;
    }
    let script = format!(
        "set -e
mkdir -p {at}/var {at}/nixl/lib/plugins {at}/empty/lib/python3.0/site-packages
cp -a /etc {at}/etc
cp {at}/venv/lib/python3*/site-packages/nixl.libs/nixl/libplugin_LIBFABRIC.so {at}/nixl/lib/plugins/
mount --bind {at}/etc /etc
mount --bind {at}/var /var/lib
export NIXL_PLUGIN_DIR={at}/nixl/lib/plugins VIRTUAL_ENV={at}/empty
sha256sum /etc/ld.so.cache > {at}/before
kvrail() {{ {program} fix \"$@\"; }}
if kvrail libfabric --efa {at}/efa --dry-run; then echo 'the dry run found nothing'; exit 1; fi
sha256sum --check --quiet {at}/before
kvrail libfabric --efa {at}/efa
/sbin/ldconfig -p | grep libfabric.so.1 | head -1 | grep -q {at}/efa/lib
kvrail libfabric --efa {at}/efa | grep -q 'nothing to do'
kvrail --undo
sha256sum --check --quiet {at}/before
test ! -e /etc/ld.so.conf.d/000-kvrail-efa.conf
test ! -e /var/lib/kvrail
echo all went well",
        program = env!("CARGO_BIN_EXE_kvrail")
    );
    let (well, said) = made::run("unshare", &["--mount", "bash", "-c", &script]);
    assert!(well && said.contains("all went well"), "{said}");
}
