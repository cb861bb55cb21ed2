//! `kvrail doctor` on real installations: NIXL's wheels from PyPI as they come, the same with one thing broken as users break it, and
//! the same mended with what doctor says to type.
//!
//! What cannot be had here (the wheels, a compiler, the system's libefa) is skipped by name; under CI the wheels have to be there.

#[path = "../../kvrail-engines/tests/nixl/wheel.rs"]
#[allow(dead_code, reason = "the engines' tests use the rest")]
mod wheel;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kvrail_doctor::host::{Live, Scope};
use kvrail_doctor::render::Report;
use kvrail_doctor::{Examination, Finding, Host, Outcome, catalogue, examine};
use tempfile::TempDir;

/// NIXL as a user installs it, in a Python that can import it.
const NIXL: &[&str] = &["nixl==1.5.1", "nixl-cu12==1.5.1", "numpy==2.2.6"];
/// One whose LIBFABRIC plugin can use the libfabric that mpich brings, with CUDA's runtime.
const ON_LIBFABRIC: &[&str] =
    &["nixl-cu12==1.4.0", "mpich==5.0.2", "nvidia-cuda-runtime-cu12==12.9.79", "numpy==2.2.6"];
/// The last one that brings a libfabric of its own.
const BUNDLED: &[&str] = &["nixl==0.6.1"];
const DEADLINE: Duration = Duration::from_secs(60);

/// Checks of what is installed; the others are about the machine that the tests run on.
const CHECKS: [&str; 14] = [
    "nixl-missing",
    "cuda-major-mismatch",
    "plugin-libfabric-too-old",
    "nixl-core-libraries-hidden",
    "plugin-library-missing",
    "plugin-not-loadable",
    "bundled-efa-libraries",
    "duplicate-libraries",
    "rdma-provider-abi",
    "efa-driver-libfabric-mismatch",
    "nixl-not-usable",
    "nixl-crash-at-exit",
    "nixl-default-backend",
    "library-not-loadable",
];

/// An environment with packages; none, and said past the harness, where it cannot be had.
fn environment(test: &str, name: &str, packages: &[&str]) -> Option<PathBuf> {
    wheel::had(test, wheel::install(name, packages))
}

/// A copy of an environment that a test may break: links to the same files, which are replaced and never written to.
fn copy(root: &Path) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = directory.path().join("venv");
    wheel::run(Command::new("cp").arg("-al").arg(root).arg(&at), DEADLINE).unwrap();
    (directory, at)
}

fn packages(root: &Path) -> PathBuf {
    let lib = root.join("lib");
    let pythons = lib.read_dir().unwrap().map(|entry| entry.unwrap().path().join("site-packages"));
    pythons.into_iter().find(|path| path.is_dir()).unwrap()
}

/// What doctor finds in an environment, with these directories in `LD_LIBRARY_PATH`.
fn examined(root: &Path, libraries: &[&Path]) -> Examination {
    let path: Vec<_> = libraries.iter().map(|path| path.display().to_string()).collect();
    let path = path.join(":");
    let live = Live::new()
        .with_variables([("PATH", "/usr/bin:/bin"), ("LD_LIBRARY_PATH", path.as_str())])
        .with_patience(Duration::from_secs(20))
        .with_program(Path::new(env!("CARGO_BIN_EXE_kvrail")));
    let scope = Scope { python: vec![root.display().to_string()], ..Scope::default() };
    let ids: Vec<String> = CHECKS.iter().map(ToString::to_string).collect();
    examine(&Host::live(live, scope), &catalogue::select(&ids).unwrap())
}

/// What a rule found in the environment itself, not in another copy of NIXL on this machine.
fn found<'a>(examination: &'a Examination, root: &Path, id: &str) -> Option<&'a Finding> {
    let root = root.display().to_string();
    let is_here = |finding: &&Finding| {
        finding.title.contains(&root) || finding.evidence.iter().any(|e| e.source.contains(&root))
    };
    examination.findings().filter(|finding| finding.rule.id == id).find(is_here)
}

/// The rule whose finding is told as the cause of this one.
fn cause_of(examination: &Examination, finding: &Finding) -> Option<&'static str> {
    let report = Report::of_host("a test", examination);
    let told = report.told().iter().find(|told| told.finding.title == finding.title).unwrap();
    told.explained_by.map(|cause| report.told()[cause].finding.rule.id)
}

fn outcome<'a>(examination: &'a Examination, id: &str) -> &'a Outcome {
    &examination.looked.iter().find(|looked| looked.rule.id == id).unwrap().outcome
}

fn whole(finding: &Finding) -> String {
    let evidence: Vec<_> = finding.evidence.iter().map(|e| format!("{}: {}", e.source, e.seen)).collect();
    format!("{}\n{}\n{}", finding.title, finding.cause, evidence.join("\n"))
}

/// Types the command of kvrail that a finding says to type.
fn do_as_told(finding: &Finding) {
    let mut commands = finding.fix.iter().filter_map(|step| step.command.as_deref());
    let command = commands.find_map(|command| command.strip_prefix("kvrail "));
    let command = command.unwrap_or_else(|| panic!("{finding:#?}"));
    let mut kvrail = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    kvrail.args(command.split_whitespace()).env_clear().env("PATH", "/usr/bin:/bin");
    wheel::run(&mut kvrail, DEADLINE).unwrap_or_else(|error| panic!("{command}: {error}"));
}

/// The exit code and the words of one check, on a host with this `/sys` and these libraries before the system's.
fn doctor(check: &str, root: &Path, sysfs: &Path, libraries: &Path) -> (Option<i32>, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    program.args(["doctor", "--verbose", "--deadline", "20s", "--check", check, "--python"]).arg(root);
    program
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LD_LIBRARY_PATH", libraries)
        .env("SYSFS_PATH", sysfs);
    let child = program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = wheel::end_of(child, DEADLINE).unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A libfabric with nothing but the symbol versions up to a level, which is all that the loader looks at.
fn libfabric(at: &Path, level: u32) {
    fs::create_dir_all(at).unwrap();
    let versions = (0..=level).map(|n| match n {
        0 => "FABRIC_1.0 { global: fi_getinfo; fi_freeinfo; local: *; };\n".to_owned(),
        n => format!("FABRIC_1.{n} {{ global: fi_v{n}; }} FABRIC_1.{};\n", n - 1),
    });
    fs::write(at.join("versions"), versions.collect::<String>()).unwrap();
    let symbols: String = (1..=level).map(|n| format!("void fi_v{n}(void) {{}}\n")).collect();
    fs::write(
        at.join("fabric.c"),
        format!("void fi_getinfo(void) {{}}\nvoid fi_freeinfo(void) {{}}\n{symbols}"),
    )
    .unwrap();
    let mut cc = Command::new("cc");
    cc.current_dir(at).args([
        "-shared",
        "-fPIC",
        "-Wl,-soname,libfabric.so.1",
        "-Wl,--version-script=versions",
    ]);
    wheel::run(cc.args(["-o", "libfabric.so.1", "fabric.c"]), DEADLINE).unwrap();
}

/// Whether the loader finds a library of the system.
fn system_has(library: &str) -> bool {
    let cache = Command::new("/sbin/ldconfig").arg("-p").output();
    cache.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(library))
}

/// Proves: plugin-libfabric-too-old, plugin-library-missing, duplicate-libraries, nixl-crash-at-exit
#[test]
fn the_wheel_as_it_comes_is_found_for_all_that_is_wrong_with_it_unprompted() {
    let test = "the_wheel_as_it_comes_is_found_for_all_that_is_wrong_with_it_unprompted";
    let Some(root) = environment(test, "nixl-python", NIXL) else { return };
    // Nothing is named: the environment is the active one, as in the shell of whoever asks.
    let mut program = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    program.arg("doctor").env_clear().env("VIRTUAL_ENV", &root);
    program.env("PATH", format!("{}/bin:/usr/bin:/bin", root.display()));
    let child = program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = wheel::end_of(child, DEADLINE).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let first: Vec<&str> = text.lines().take(10).collect();
    let begins = |with: &str| first.iter().any(|line| line.trim_start().starts_with(with));
    assert!(begins("warning[") && begins("cause:") && begins("fix:"), "cause and fix come first: {text}");
    // However the lines are broken.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let says = |part: &str| assert!(text.contains(part), "`{part}` is not in\n{text}");
    if system_has("libfabric.so.1") {
        says("warning[plugin-libfabric-too-old]: the LIBFABRIC plugin of nixl-cu12 1.5.1 in");
        says("needs FABRIC_1.10;");
        says("the plugin was linked to FABRIC_1.10, which libfabric has since v2.7");
    } else {
        wheel::skip(&format!("{test}: no libfabric of the system"));
        says("libfabric.so.1");
    }
    if system_has("libcuda.so.1") {
        wheel::skip(&format!("{test}: this machine has CUDA's driver"));
    } else {
        says("warning[plugin-library-missing]: libcuda.so.1");
        says("the LIBFABRIC plugin of nixl-cu12 1.5.1 in");
        says("libcuda.so.1 is a part of NVIDIA's driver: start the container with GPUs");
    }
    if system_has("libefa.so.1") {
        says("warning[duplicate-libraries]: a process with nixl-cu12 1.5.1 in");
        says("has two copies of libibverbs, libnl-3 and libnl-route-3");
        says(
            "ends by signal 11: two copies of libibverbs, libnl-3 and libnl-route-3 are in it [nixl-crash-at-exit]",
        );
        says("kvrail fix bundled-libraries --python");
    } else {
        wheel::skip(&format!("{test}: no libefa of the system, so that nothing is there twice"));
    }
}

/// Proves: plugin-libfabric-too-old
#[test]
fn an_old_libfabric_is_told_by_file_release_and_symbol_version_and_a_new_one_is_silent() {
    let test = "an_old_libfabric_is_told_by_file_release_and_symbol_version_and_a_new_one_is_silent";
    let Some(root) = environment(test, "nixl-python", NIXL) else { return };
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    libfabric(&old, 6);
    fs::rename(old.join("libfabric.so.1"), old.join("libfabric.so.1.17.0")).unwrap();
    symlink("libfabric.so.1.17.0", old.join("libfabric.so.1")).unwrap();
    libfabric(&new, 10);

    let examination = examined(&root, &[&old]);
    let finding = found(&examination, &root, "plugin-libfabric-too-old").unwrap();
    assert!(finding.title.contains("needs FABRIC_1.10"), "{}", finding.title);
    for said in ["libfabric.so.1.17.0 is release v1.14", "FABRIC_1.6", "since v2.7"] {
        assert!(finding.cause.contains(said), "{said}: {}", finding.cause);
    }
    // The loader takes the first of the name, so that the order decides.
    let examination = examined(&root, &[&old, &new]);
    assert!(found(&examination, &root, "plugin-libfabric-too-old").is_some());
    for libraries in [&[new.as_path()][..], &[&new, &old]] {
        let examination = examined(&root, libraries);
        assert_eq!(found(&examination, &root, "plugin-libfabric-too-old"), None);
    }
}

/// Proves: plugin-library-missing
#[test]
fn a_plugin_that_finds_all_its_libraries_is_loaded_and_one_that_lost_one_is_found() {
    let test = "a_plugin_that_finds_all_its_libraries_is_loaded_and_one_that_lost_one_is_found";
    let Some(root) = environment(test, "nixl-python-libfabric", ON_LIBFABRIC) else { return };
    let Some(cuda) = wheel::had(test, wheel::stand_ins(&root)) else { return };
    if !system_has("libhwloc.so.15") {
        return wheel::skip(&format!("{test}: no libhwloc of the system"));
    }
    let (fabric, runtime) = (root.join("lib/mpich"), packages(&root).join("nvidia/cuda_runtime/lib"));
    let examination = examined(&root, &[&cuda, &fabric, &runtime]);
    for id in [
        "plugin-library-missing",
        "plugin-libfabric-too-old",
        "plugin-not-loadable",
        "nixl-core-libraries-hidden",
    ] {
        let finding =
            found(&examination, &root, id).filter(|finding| finding.severity > kvrail_doctor::Severity::Note);
        assert_eq!(finding, None, "{id}");
    }
    let examination = examined(&root, &[&cuda, &fabric]);
    let finding = found(&examination, &root, "plugin-library-missing").unwrap();
    assert!(
        whole(finding).contains("libcudart.so.12 => not found") && !whole(finding).contains("libcuda.so.1"),
        "{}",
        whole(finding)
    );
    assert!(
        finding
            .fix
            .iter()
            .any(|step| step.command.as_deref().is_some_and(|c| c.contains(&runtime.display().to_string())))
    );

    // A library that came with the wheel is missed by name as well, and by the backend that works everywhere.
    let (_directory, broken) = copy(&root);
    let libraries = packages(&broken).join("nixl_cu12.libs");
    let ucs = libraries.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ucs = ucs.into_iter().find(|name| name.starts_with("libucs-")).unwrap();
    fs::remove_file(libraries.join(&ucs)).unwrap();
    let examination = examined(&broken, &[]);
    let of_ucx = examination
        .findings()
        .find(|f| f.rule.id == "plugin-library-missing" && f.title.contains("UCX plugin"));
    let of_ucx = of_ucx.unwrap_or_else(|| panic!("{examination:#?}"));
    assert!(of_ucx.title.contains(&ucs) && of_ucx.severity == kvrail_doctor::Severity::Error, "{of_ucx:#?}");
}

/// Proves: nixl-core-libraries-hidden, nixl-not-usable
#[test]
fn core_libraries_that_a_copy_left_behind_are_found_and_where_they_are_is_what_to_type() {
    let test = "core_libraries_that_a_copy_left_behind_are_found_and_where_they_are_is_what_to_type";
    let Some(root) = environment(test, "nixl-python", NIXL) else { return };
    assert_eq!(found(&examined(&root, &[]), &root, "nixl-core-libraries-hidden"), None);

    let (_directory, broken) = copy(&root);
    let (hidden, moved) = (".nixl_cu12.mesonpy.libs", packages(&broken).join("nixl_core"));
    fs::rename(packages(&broken).join(hidden), &moved).unwrap();
    let examination = examined(&broken, &[]);
    let finding = found(&examination, &broken, "nixl-core-libraries-hidden").unwrap();
    let text = whole(finding);
    assert!(
        text.contains("libnixl_build.so => not found") || text.contains("libnixl.so => not found"),
        "{text}"
    );
    assert!(text.contains("libserdes.so"), "{text}");
    let command = finding.fix[0].command.as_deref().unwrap();
    assert!(command.contains(&format!("LD_LIBRARY_PATH={}", moved.display())), "{command}");
    let unusable = found(&examination, &broken, "nixl-not-usable").unwrap();
    assert!(unusable.title.contains("libnixl.so"), "{}", unusable.title);
    assert_eq!(cause_of(&examination, unusable), Some("nixl-core-libraries-hidden"));

    let mended = examined(&broken, &[&moved]);
    assert_eq!(found(&mended, &broken, "nixl-core-libraries-hidden"), None);
    assert_eq!(found(&mended, &broken, "nixl-not-usable"), None);
}

/// Proves: duplicate-libraries, nixl-crash-at-exit
#[test]
fn what_a_finding_says_to_type_leaves_one_copy_of_each_library_and_python_ends_well() {
    let test = "what_a_finding_says_to_type_leaves_one_copy_of_each_library_and_python_ends_well";
    let Some(root) = environment(test, "nixl-python", NIXL) else { return };
    if !system_has("libefa.so.1") {
        return wheel::skip(&format!("{test}: no libefa of the system, so that nothing is there twice"));
    }
    let (_directory, at) = copy(&root);
    let examination = examined(&at, &[]);
    let crash = found(&examination, &at, "nixl-crash-at-exit").unwrap();
    assert!(whole(crash).contains("libibverbs") && whole(crash).contains("signal 11"), "{}", whole(crash));
    assert_eq!(cause_of(&examination, crash), Some("duplicate-libraries"));
    do_as_told(found(&examination, &at, "duplicate-libraries").unwrap());
    let examination = examined(&at, &[]);
    for id in ["duplicate-libraries", "nixl-crash-at-exit"] {
        assert!(
            matches!(outcome(&examination, id), Outcome::Healthy(_)),
            "{id}: {:?}",
            outcome(&examination, id)
        );
    }
}

/// Proves: bundled-efa-libraries
#[test]
fn a_wheel_s_own_libfabric_is_found_where_efa_is_and_what_to_type_replaces_it() {
    let test = "a_wheel_s_own_libfabric_is_found_where_efa_is_and_what_to_type_replaces_it";
    let Some(root) = environment(test, "nixl-bundled", BUNDLED) else { return };
    let (directory, at) = copy(&root);
    let (sysfs, new) = (directory.path().join("sys"), directory.path().join("new"));
    fs::create_dir_all(sysfs.join("class/infiniband/rdmap79s0")).unwrap();
    libfabric(&new, 10);
    let doctor = || doctor("bundled-efa-libraries", &at, &sysfs, &new);
    let (code, said) = doctor();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("release v2.3") && said.contains("libfabric-fc70961d.so.1.29.0"), "{said}");
    let copied = packages(&at).join("nixl.libs/libfabric-fc70961d.so.1.29.0");
    let command = format!("ln -sb -S .bundled {} {}", new.join("libfabric.so.1").display(), copied.display());
    assert!(said.replace('\n', " ").contains(&command), "{command}\n{said}");
    wheel::run(Command::new("sh").args(["-c", &command]), DEADLINE).unwrap();
    let (code, said) = doctor();
    assert_eq!(code, Some(0), "{said}");
    assert!(copied.with_file_name("libfabric-fc70961d.so.1.29.0.bundled").is_file());
}

/// Proves: nixl-default-backend, efa-driver-libfabric-mismatch, ucx-without-efa, rdma-provider-abi
#[test]
fn what_efa_asks_of_an_installation_is_looked_at_where_efa_is() {
    let test = "what_efa_asks_of_an_installation_is_looked_at_where_efa_is";
    let Some(root) = environment(test, "nixl-bundled", BUNDLED) else { return };
    let (directory, at) = copy(&root);
    let (sysfs, libraries) = (directory.path().join("sys"), directory.path().join("lib"));
    let device = sysfs.join("class/infiniband/rdmap79s0/device");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("uevent"), "DRIVER=efa\nPCI_ID=1D0F:EFA1\n").unwrap();
    fs::create_dir_all(sysfs.join("module/efa")).unwrap();
    fs::write(sysfs.join("module/efa/version"), "2.17.2g\n").unwrap();
    let without = directory.path().join("no-efa");
    fs::create_dir(&without).unwrap();
    let finds = |check: &str, says: &str| {
        let (code, said) = doctor(check, &at, &sysfs, &libraries);
        assert!(code == Some(1) && said.contains(says), "{check} does not say {says}: {said}");
        // Nothing of it matters on a host without EFA.
        let (code, said) = doctor(check, &at, &without, &libraries);
        assert_eq!(code, Some(0), "{check}: {said}");
    };
    let silent = |check: &str| {
        let (code, said) = doctor(check, &at, &sysfs, &libraries);
        assert_eq!(code, Some(0), "{check}: {said}");
    };
    finds("nixl-default-backend", "backends = [\"UCX\"]");
    finds("efa-driver-libfabric-mismatch", "the EFA driver is 2.17.2g");
    silent("ucx-without-efa");
    silent("rdma-provider-abi");

    let api = packages(&at).join("nixl/_api.py");
    let source = fs::read_to_string(&api).unwrap();
    fs::remove_file(&api).unwrap();
    fs::write(&api, source.replace("[\"UCX\"]", "[\"LIBFABRIC\"]")).unwrap();
    silent("nixl-default-backend");

    let ucx = packages(&at).join("nixl.libs/ucx");
    for module in ucx.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        if module.file_name().unwrap().to_string_lossy().starts_with("libuct_ib_efa") {
            fs::remove_file(module).unwrap();
        }
    }
    finds("ucx-without-efa", "nixl 0.6.1");

    let Some(verbs) = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
        .map(Path::new)
        .into_iter()
        .find(|at| at.join("libibverbs/libefa-rdmav34.so").exists())
    else {
        return wheel::skip(&format!("{test}: no libibverbs with the private interface 34"));
    };
    // The library of one release beside the provider of another.
    fs::create_dir_all(libraries.join("libibverbs")).unwrap();
    fs::copy(verbs.join("libibverbs.so.1"), libraries.join("libibverbs.so.1")).unwrap();
    let provider = verbs.join("libibverbs/libefa-rdmav34.so");
    fs::copy(&provider, libraries.join("libibverbs/libefa-rdmav25.so")).unwrap();
    finds("rdma-provider-abi", "libibverbs looks for libefa-rdmav34.so");
    fs::copy(&provider, libraries.join("libibverbs/libefa-rdmav34.so")).unwrap();
    silent("rdma-provider-abi");
}

/// Proves: plugin-not-loadable
#[test]
fn a_plugin_whose_constructor_crashes_is_a_finding_and_not_the_end() {
    let test = "a_plugin_whose_constructor_crashes_is_a_finding_and_not_the_end";
    let Some(root) = environment(test, "nixl-python", NIXL) else { return };
    let (directory, at) = copy(&root);
    let source = directory.path().join("crash.c");
    fs::write(&source, "__attribute__((constructor)) static void crash(void) { *(volatile int *)0 = 0; }\n")
        .unwrap();
    let plugin = packages(&at).join(".nixl_cu12.mesonpy.libs/plugins/libplugin_UCX.so");
    fs::remove_file(&plugin).unwrap();
    wheel::run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&plugin).arg(&source), DEADLINE)
        .unwrap();
    let examination = examined(&at, &[]);
    let finding = found(&examination, &at, "plugin-not-loadable").unwrap();
    assert!(finding.title.contains("UCX") && finding.title.contains("signal 11"), "{}", finding.title);
}

/// Proves: nixl-missing, nixl-not-usable
#[test]
fn an_environment_without_nixl_or_without_what_nixl_imports_is_found() {
    let test = "an_environment_without_nixl_or_without_what_nixl_imports_is_found";
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    wheel::run(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&empty), DEADLINE).unwrap();
    let examination = examined(&empty, &[]);
    let finding = found(&examination, &empty, "nixl-missing").unwrap();
    let mut commands = finding.fix.iter().filter_map(|step| step.command.as_deref());
    assert!(commands.any(|command| command.contains("pip install nixl")), "{finding:?}");

    let Some(root) = environment(test, "nixl-python", NIXL) else { return };
    let examination = examined(&root, &[]);
    assert_eq!(found(&examination, &root, "nixl-missing"), None);
    assert_eq!(found(&examination, &root, "nixl-not-usable"), None);
    let (_directory, at) = copy(&root);
    fs::remove_dir_all(packages(&at).join("numpy")).unwrap();
    let examination = examined(&at, &[]);
    let finding = found(&examination, &at, "nixl-not-usable").unwrap();
    assert!(finding.title.contains("numpy"), "{}", finding.title);
    assert!(finding.fix[0].command.as_deref().unwrap().ends_with("-m pip install numpy"), "{finding:?}");
}

/// Proves: log-nixl-plugin, log-nixl-backend-failed, log-symbol-version, log-library-missing
#[test]
fn what_nixl_says_of_a_backend_that_does_not_come_up_is_recognised() {
    let test = "what_nixl_says_of_a_backend_that_does_not_come_up_is_recognised";
    let Some(root) = environment(test, "nixl-python", NIXL) else { return };
    let said = |backend: &str| {
        let script = format!(
            "import os\nfrom nixl._api import nixl_agent, nixl_agent_config\ntry: nixl_agent('a', nixl_agent_config(backends=['{backend}']))\n\
             finally: os._exit(0)"
        );
        let mut python = Command::new(root.join("bin/python"));
        python.args(["-c", &script]).env_clear().env("NIXL_LOG_LEVEL", "INFO").env("PATH", "/usr/bin:/bin");
        let output = wheel::run(&mut python, DEADLINE).unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        fs::write(log.path(), [output.stdout, output.stderr].concat()).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_kvrail"));
        let told = program.args(["doctor", "log", "--verbose"]).arg(log.path()).output().unwrap();
        (String::from_utf8_lossy(&told.stdout).into_owned(), fs::read_to_string(log.path()).unwrap())
    };
    let (told, log) = said("LIBFABRIC");
    assert!(told.contains("[log-nixl-plugin]"), "{log}\n{told}");
    assert!(told.contains("[log-library-missing]") || told.contains("[log-symbol-version]"), "{log}\n{told}");
    // NIXL takes any name, says a line, and goes on without a backend.
    let (told, log) = said("Libfabric");
    assert!(
        told.contains("[log-nixl-backend-failed]") && told.contains("backend Libfabric"),
        "{log}\n{told}"
    );
}
