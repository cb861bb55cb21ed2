//! Black box: `kvrail doctor` on hosts that are really so: emulated EFA devices, trees of `/sys` with a part missing, limits, namespaces, a
//! small `/dev/shm`, an nvidia-smi that hangs. Each has its healthy twin. What cannot be had here is replayed in `kvrail-doctor`'s
//! fixtures.
//!
//! A check is asked for alone and answers by the exit code, so that these tests depend on what is found and not on how it is written.

mod fabric;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fabric::{Ended, Place, Running};

/// The checks of devices, GPUs, containers and limits.
const CHECKS: [&str; 18] = [
    "efa-device-missing",
    "efa-driver-missing",
    "efa-device-hidden",
    "uverbs-permission",
    "device-port-down",
    "efa-not-offered",
    "gpu-missing",
    "gpu-stuck",
    "gpu-memory-unreachable",
    "gpu-nic-far",
    "pcie-acs",
    "numa-unknown",
    "efa-install-not-mounted",
    "shm-too-small",
    "memlock",
    "hugepages",
    "open-files",
    "capabilities",
];
/// Runs a script on one emulated P5.
const P5: [&str; 10] = ["run", "--nodes", "1", "--shape", "p5", "--libfabric", "none", "--", "sh", "-c"];

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_kvrail")
}

/// Says by name what a test does not look at here, because this machine has no right to it.
fn skipped(what: &str) {
    eprintln!("skipped: {what}");
}

/// Says by name which program is missing. Where CI runs the test it can be had, and must be there.
fn missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI can have this: {what}");
    skipped(what);
}

/// Whether a command can be run here, as a right is asked for by using it.
fn can(words: &[&str]) -> bool {
    let tried = Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Runs a command to its end, without what an emulated fabric around the tests would say.
fn run(words: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("SYSFS_PATH").env_remove("SOFTEFA_DIR").envs(variables.iter().copied());
    Running::of(command).end()
}

/// Runs a script on an emulated P5 with a shell: `$KVRAIL` is the program.
fn on_p5(script: &str) -> Ended {
    let place = Place::new();
    let arguments: Vec<&str> = P5.into_iter().chain([script]).collect();
    let mut command = place.command(&arguments);
    command.env("KVRAIL", program());
    Running::of(command).end()
}

/// A directory in memory, where there is such a place: a P5's `/sys` is thousands of small files.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// `/sys` of an emulated P5: what a container of such a host would be shown, with what a test changes of it.
fn p5_sys(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let directory = directory();
    on_p5(&format!("cp -a \"$SYSFS_PATH\" '{}/sys'", directory.path().display())).exits(0);
    change(&directory.path().join("sys"));
    directory
}

/// The least `/sys` in which there is an EFA device, for checks that ask no more of it. On a disk: a test mounts over `/dev/shm`.
fn one_device() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let device = directory.path().join("class/infiniband/rdmap79s0/device");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("uevent"), "DRIVER=efa\nPCI_ID=1D0F:EFA1\n").unwrap();
    directory
}

/// Which of some checks find something, and the text of those that do.
fn found<'a>(checks: &[&'a str], variables: &[(&str, &str)]) -> (BTreeSet<&'a str>, String) {
    let (mut found, mut texts) = (BTreeSet::new(), String::new());
    for check in checks {
        let ended = run(&[program(), "doctor", "--check", check, "--verbose"], variables);
        match ended.status.code() {
            Some(0) => {}
            Some(1) => {
                // A note is told and does not count.
                found.insert(*check);
                texts += &ended.stdout;
            }
            other => panic!("{check} ended with {other:?}:\n{}\n{}", ended.stdout, ended.stderr),
        }
    }
    (found, texts)
}

/// What is found on a host whose `/sys` is that tree. GPUs, huge pages and limits are those of this machine.
fn found_in(tree: &Path, checks: &[&'static str]) -> (BTreeSet<&'static str>, String) {
    found(checks, &[("SYSFS_PATH", tree.join("sys").to_str().unwrap())])
}

/// The machine that runs the tests must have no RDMA devices of its own: their files in `/dev` would be seen.
fn is_bare() -> bool {
    let has = |directory: &str| fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
    let bare = !has("/sys/class/infiniband") && !has("/proc/driver/nvidia/gpus") && !has("/dev/infiniband");
    if !bare {
        skipped("this machine has RDMA devices or GPUs of its own");
    }
    bare
}

fn walk(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        match kind.is_dir() {
            true => walk(&entry.path(), visit),
            false if kind.is_file() => visit(&entry.path()),
            false => {}
        }
    }
}

fn edit(tree: &Path, name: &str, change: impl Fn(&str) -> String) {
    let mut files: Vec<PathBuf> = Vec::new();
    walk(&tree.join("devices"), &mut |path| {
        if path.ends_with(name) {
            files.push(path.into());
        }
    });
    assert!(!files.is_empty(), "no {name} in {}", tree.display());
    for file in files {
        fs::write(&file, change(&fs::read_to_string(&file).unwrap())).unwrap();
    }
}

#[test]
fn a_machine_without_rdma_and_gpus_is_silent_and_quickly_looked_at() {
    if !is_bare() {
        return;
    }
    let begin = Instant::now();
    let checks = CHECKS.join(",");
    let ended = run(&[program(), "doctor", "--check", &checks], &[]);
    ended.exits(0);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn an_emulated_p5_has_its_devices_and_nothing_is_wrong_with_them() {
    // Memory that may be locked is this machine's; it has a test of its own.
    let checks: Vec<&str> =
        CHECKS.into_iter().filter(|check| !matches!(*check, "memlock" | "open-files")).collect();
    let ended = on_p5(&format!("exec \"$KVRAIL\" doctor --verbose --check {}", checks.join(",")));
    ended.exits(0);
    assert!(ended.stdout.contains("32 EFA device"), "{}", ended.stdout);
}

/// Proves: efa-not-offered
#[test]
fn what_libfabric_offers_is_asked_of_libfabric() {
    if !can(&["fi_info", "--version"]) {
        return missing("no fi_info (Debian: libfabric-bin)");
    }
    const LOOK: &str = "\"$KVRAIL\" doctor --verbose --check efa-not-offered";
    let well = on_p5(LOOK);
    well.exits(0);
    assert!(well.stdout.contains("offers 32"), "{}", well.stdout);
    // The same devices, and the distribution's libibverbs, for which they are none.
    let broken = on_p5(&format!("unset LD_LIBRARY_PATH; {LOOK}"));
    broken.exits(1);
    assert!(broken.stdout.contains("offers none"), "{}", broken.stdout);
}

/// Proves: efa-device-hidden
#[test]
fn a_container_that_sees_the_hosts_devices_and_has_none_is_told_so() {
    if !is_bare() {
        return;
    }
    let (found, texts) = found_in(p5_sys(|_| {}).path(), &CHECKS[..6]);
    assert_eq!(found, BTreeSet::from(["efa-device-hidden"]), "{texts}");
    assert!(texts.contains("32 EFA device"), "{texts}");
}

/// Proves: efa-driver-missing
#[test]
fn functions_that_no_driver_drives_are_found() {
    if !is_bare() {
        return;
    }
    let tree = p5_sys(|sys| {
        edit(sys, "uevent", |text| text.replace("DRIVER=efa\n", ""));
        for gone in ["class/infiniband", "class/infiniband_verbs", "module/efa"] {
            fs::remove_dir_all(sys.join(gone)).unwrap();
        }
    });
    let (found, texts) = found_in(tree.path(), &CHECKS[..6]);
    assert_eq!(found, BTreeSet::from(["efa-driver-missing"]), "{texts}");
    assert!(texts.contains("32 of 32") && texts.contains("modprobe efa"), "{texts}");
}

/// Proves: efa-device-missing
#[test]
fn an_instance_with_fewer_devices_than_its_type_is_found() {
    if !is_bare() {
        return;
    }
    let tree = p5_sys(|sys| {
        let mut names: Vec<_> =
            fs::read_dir(sys.join("class/infiniband")).unwrap().flatten().map(|it| it.path()).collect();
        names.sort();
        for device in &names[4..] {
            let function = fs::canonicalize(device.join("device")).unwrap();
            fs::remove_file(sys.join("bus/pci/devices").join(function.file_name().unwrap())).unwrap();
            fs::remove_file(device).unwrap();
        }
    });
    let (found, texts) = found_in(tree.path(), &["efa-device-missing"]);
    assert!(
        found.contains("efa-device-missing") && texts.contains("4 of the 32 EFA devices of p5.48xlarge"),
        "{texts}"
    );
}

/// Proves: device-port-down
#[test]
fn a_port_that_is_down_is_found() {
    if !is_bare() {
        return;
    }
    let (well, texts) = found_in(p5_sys(|_| {}).path(), &["device-port-down", "numa-unknown"]);
    assert!(well.is_empty(), "{texts}");
    let down = p5_sys(|sys| edit(sys, "state", |_| "1: DOWN\n".into()));
    let (found, texts) = found_in(down.path(), &["device-port-down"]);
    assert!(found.contains("device-port-down") && texts.contains("DOWN"), "{texts}");
}

/// Proves: gpu-missing
#[test]
fn gpus_without_a_driver_are_found() {
    if !is_bare() {
        return;
    }
    let (found, texts) = found_in(p5_sys(|_| {}).path(), &["gpu-missing"]);
    assert!(found.contains("gpu-missing") && texts.contains("8 GPUs on the PCI bus"), "{texts}");
}

/// Proves: memlock
#[test]
fn a_small_limit_of_locked_memory_is_found_unless_a_capability_lifts_it() {
    let sys = one_device();
    let variables = [("SYSFS_PATH", sys.path().to_str().unwrap())];
    let look = |before: &[&str]| {
        let words: Vec<&str> =
            before.iter().copied().chain([program(), "doctor", "--verbose", "--check", "memlock"]).collect();
        run(&words, &variables)
    };
    const SMALL: [&str; 2] = ["prlimit", "--memlock=65536:65536"];
    const WITHOUT: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    if !can(&[&SMALL[..], &WITHOUT, &["true"]].concat()) {
        return skipped("no right to drop capabilities (setpriv, prlimit)");
    }
    let broken = look(&[&SMALL[..], &WITHOUT].concat());
    broken.exits(1);
    assert!(broken.stdout.contains("64 KiB"), "{}", broken.stdout);
    if can(&["prlimit", "--memlock=unlimited", "true"]) {
        look(&[&["prlimit", "--memlock=unlimited"][..], &WITHOUT].concat()).exits(0);
    } else {
        skipped("no right to raise the limit of locked memory");
    }
    if can(&["capsh", "--has-p=cap_ipc_lock"]) {
        look(&SMALL).exits(0);
    } else {
        skipped("no capability IPC_LOCK");
    }
    // In a namespace of its own even root has the capability for nothing.
    if can(&["unshare", "--map-root-user", "true"]) {
        let rootless = look(&[&SMALL[..], &["unshare", "--map-root-user"]].concat());
        rootless.exits(1);
        assert!(rootless.stdout.contains("user namespace"), "{}", rootless.stdout);
    } else {
        skipped("user namespaces are denied");
    }
}

/// Proves: p2p-disabled, fabric-not-chosen, ucx-tls-excludes-network, variables, debug-logging
#[test]
fn variables_that_keep_transfers_off_efa_are_found_and_those_that_do_not_are_silent() {
    let sys = one_device();
    let sys = sys.path().to_str().unwrap();
    for (check, name, bad, good) in [
        ("p2p-disabled", "FI_HMEM_DISABLE_P2P", "1", "0"),
        ("fabric-not-chosen", "FI_PROVIDER", "tcp", "efa"),
        ("ucx-tls-excludes-network", "UCX_TLS", "sm,self", "all"),
        ("variables", "FI_PROVDER", "efa", ""),
        ("debug-logging", "FI_LOG_LEVEL", "debug", "warn"),
    ] {
        let look = |value: &str| {
            let variables = [("SYSFS_PATH", sys), (name, value)];
            let set = if value.is_empty() { &variables[..1] } else { &variables };
            run(&[program(), "doctor", "--verbose", "--check", check], set)
        };
        let broken = look(bad);
        broken.exits(1);
        assert!(
            broken.stdout.contains(&format!("[{check}]")) && broken.stdout.contains(name),
            "{}",
            broken.stdout
        );
        look(good).exits(0);
    }
}

/// Proves: numa-unknown
#[test]
fn firmware_that_names_no_numa_nodes_is_found() {
    if !is_bare() {
        return;
    }
    let tree = p5_sys(|sys| edit(sys, "numa_node", |_| "-1\n".into()));
    let sys = tree.path().join("sys");
    let looked =
        run(&[program(), "doctor", "--check", "numa-unknown"], &[("SYSFS_PATH", sys.to_str().unwrap())]);
    // The devices are as near as they were; only nobody can tell.
    looked.exits(0);
    assert!(looked.stdout.contains("note[numa-unknown]"), "{}", looked.stdout);
}

/// Proves: uverbs-permission
#[test]
fn a_device_file_of_another_user_is_found() {
    let sys = one_device();
    let verbs = sys.path().join("class/infiniband_verbs/uverbs0");
    fs::create_dir_all(&verbs).unwrap();
    fs::write(verbs.join("ibdev"), "rdmap79s0\n").unwrap();
    // A `/dev` of its own, with the device's file. Nothing drives the number, so that who may open it is told that there is nothing.
    const MAKE: &str = "d=$(mktemp -d) && mount -t tmpfs none $d && cp -a /dev/null /dev/urandom $d/ && mkdir $d/infiniband && \
        mknod -m \"$MODE\" $d/infiniband/uverbs0 c 231 192 && mount --move $d /dev && ";
    const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let inside = |mode: &str, script: &str| {
        let script = format!("{MAKE} exec {NOBODY} {script}");
        let variables = [("SYSFS_PATH", sys.path().to_str().unwrap()), ("MODE", mode)];
        run(&["unshare", "--mount", "sh", "-c", &script], &variables)
    };
    fs::set_permissions(sys.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    if inside("0600", &format!("'{}' --version", program())).status.code() != Some(0) {
        return skipped("no right to make device files in a namespace, or nobody else may run the program");
    }
    let look = format!("'{}' doctor --check uverbs-permission", program());
    let broken = inside("0600", &look);
    broken.exits(1);
    assert!(broken.stdout.contains("1 of 1 RDMA device may not be opened: rdmap79s0"), "{}", broken.stdout);
    let open = inside("0666", &look);
    assert!(!open.stdout.contains("may not be opened"), "{}", open.stdout);
}

/// Proves: open-files
#[test]
fn a_small_limit_of_open_files_is_found() {
    let sys = one_device();
    let look = |limit: &str| {
        let words = ["prlimit", limit, program(), "doctor", "--check", "open-files"];
        run(&words, &[("SYSFS_PATH", sys.path().to_str().unwrap())])
    };
    let broken = look("--nofile=512:512");
    broken.exits(1);
    assert!(broken.stdout.contains("512 files"), "{}", broken.stdout);
    match can(&["prlimit", "--nofile=65536:65536", "true"]) {
        true => look("--nofile=65536:65536").exits(0),
        false => skipped("no right to raise the limit of open files"),
    }
}

/// Proves: shm-too-small
#[test]
fn a_small_shared_memory_is_found_in_its_mount_namespace() {
    let unshare: [&[&str]; 2] = [&["unshare", "--mount"], &["unshare", "--map-root-user", "--mount"]];
    let mounts =
        |unshare: &&[&str]| can(&[*unshare, &["mount", "-t", "tmpfs", "none", "/dev/shm"][..]].concat());
    let Some(unshare) = unshare.into_iter().find(mounts) else {
        return skipped("no right to mount in a namespace");
    };
    let sys = one_device();
    let look = |size: &str| {
        let script = format!(
            "mount -t tmpfs -o size={size} shm /dev/shm && exec '{}' doctor --check shm-too-small",
            program()
        );
        run(&[unshare, &["sh", "-c", &script][..]].concat(), &[("SYSFS_PATH", sys.path().to_str().unwrap())])
    };
    let broken = look("64m");
    broken.exits(1);
    assert!(broken.stdout.contains("64 MiB"), "{}", broken.stdout);
    look("8g").exits(0);
}

/// Proves: efa-install-not-mounted
#[test]
fn an_image_without_efas_libraries_is_found_and_a_mounted_directory_mends_it() {
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libfabric.so.1";
    if !is_bare() || !Path::new("/.dockerenv").exists() || Path::new("/opt/amazon/efa").exists() {
        return skipped("not in a docker container without EFA's installer");
    }
    let tree = one_device();
    let look = "doctor --check efa-install-not-mounted";
    let variables = [("SYSFS_PATH", tree.path().to_str().unwrap()), ("LD_LIBRARY_PATH", "")];
    let broken = run(&["sh", "-c", &format!("'{}' {look}", program())], &variables);
    // Debian 12's libfabric is FABRIC_1.6; an image with a newer one of its own is well.
    if broken.status.code() == Some(0) {
        return skipped("this image has a libfabric that goes with EFA's driver");
    }
    broken.exits(1);
    assert!(broken.stdout.contains("/opt/amazon/efa"), "{}", broken.stdout);
    if !Path::new(LIBRARY).exists() || !can(&["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/opt"]) {
        return skipped("no right to mount in a namespace, or no libfabric to mount");
    }
    let mounted = format!(
        "mount -t tmpfs none /opt && mkdir -p /opt/amazon/efa/lib && cp -L {LIBRARY} /opt/amazon/efa/lib && exec '{}' {look}",
        program()
    );
    run(&["unshare", "--mount", "sh", "-c", &mounted], &variables).exits(0);
}

/// Proves: gpu-stuck
#[test]
fn an_nvidia_smi_that_hangs_or_reports_a_failed_gpu_is_found() {
    use std::os::unix::fs::PermissionsExt;
    let look = |script: &str| {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("nvidia-smi");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let search = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
        run(&[program(), "doctor", "--check", "gpu-stuck"], &[("PATH", &search)])
    };
    const WELL: &str = "0, NVIDIA H100 80GB HBM3, 00000000:53:00.0, 4, 81559, Default, 0";
    look(&format!("echo '{WELL}'")).exits(0);
    let failed = look(&format!("echo '{}'", WELL.replace(" 4,", " ERR!,")));
    failed.exits(1);
    assert!(failed.stdout.contains("ERR!"), "{}", failed.stdout);
    let begin = Instant::now();
    let hangs = look("sleep 300.4711 & sleep 300.4711");
    hangs.exits(1);
    assert!(hangs.stdout.contains("does not answer"), "{}", hangs.stdout);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // Whoever was asked is gone.
    assert!(!can(&["pgrep", "-f", "sleep 300.4711"]));
}
