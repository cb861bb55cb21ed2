//! `cargo xtask wheels`: what it builds installs into a fresh environment, is whole, and moves bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const BUILD_DEADLINE_S: &str = "900";
const STEP_DEADLINE_S: &str = "120";
/// The files of both distributions.
const LIST: &str =
    "import importlib.metadata as m\nfor d in 'kvrail', 'kvrail-nixl': print(*m.files(d), sep='\\n')";

/// Built for this host, without optimisation, apart from what the tests are built with: cargo then knows what is to be compiled again.
#[test]
fn the_wheels_install_into_a_fresh_environment_and_move_bytes() {
    let under = under_target();
    let out = under.join("wheels");
    let mut xtask = within(BUILD_DEADLINE_S, env!("CARGO_BIN_EXE_xtask"));
    xtask.args(["wheels", "--host", "--profile", "dev", "--out"]).arg(&out);
    xtask.env("CARGO_TARGET_DIR", under.join("wheel-build"));
    xtask.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    let built = xtask.output().unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    if said.contains("is not to be had") && std::env::var_os("CI").is_none() {
        // Past the harness, which keeps what a passing test prints.
        let _ = writeln!(std::io::stderr(), "skipped: the wheels: {said}");
        return;
    }
    assert!(built.status.success(), "{}\n{said}", built.status);
    let printed = String::from_utf8_lossy(&built.stdout);
    let wheels: Vec<PathBuf> =
        printed.lines().filter(|line| line.ends_with(".whl")).map(PathBuf::from).collect();
    assert_eq!(wheels.len(), 2, "{printed}");

    let environment = under.join("wheel-venv");
    succeed(within(STEP_DEADLINE_S, "python3").args(["-m", "venv", "--clear"]).arg(&environment));
    let python = environment.join("bin/python").to_string_lossy().into_owned();
    let pip = ["-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"];
    succeed(within(STEP_DEADLINE_S, &python).args(pip).args(&wheels));
    succeed(within(STEP_DEADLINE_S, &python).args(["-m", "pip", "check"]));

    let listed = succeed(within(STEP_DEADLINE_S, &python).args(["-c", LIST]));
    let of_metadata = |file: &str| file.contains(".dist-info/") || file.ends_with(".pyc");
    let installed: BTreeSet<String> =
        listed.lines().filter(|file| !of_metadata(file)).map(str::to_owned).collect();
    assert_eq!(installed, wanted(), "the files of the wheels, and those of the sources");

    let moves_bytes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wheels_move_bytes.py");
    // Isolated from what leads to another kvrail.
    succeed(within(STEP_DEADLINE_S, &python).arg("-I").arg(moves_bytes));
}

/// The files that an installation has of the sources.
fn wanted() -> BTreeSet<String> {
    let bindings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bindings");
    let mut wanted = BTreeSet::from(["kvrail/_kvrail.abi3.so".to_owned()]);
    sources(&bindings.join("python/python/kvrail"), "kvrail", &mut wanted);
    sources(&bindings.join("python-nixl/src/kvrail_nixl"), "kvrail_nixl", &mut wanted);
    for name in ["nixl", "nixl_cu12", "nixl_cu13"] {
        sources(&bindings.join("python-nixl/src/nixl"), name, &mut wanted);
    }
    wanted
}

fn sources(directory: &Path, name: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let (path, entry) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        let name = format!("{name}/{}", entry.to_string_lossy());
        if path.is_dir() {
            if entry != "__pycache__" {
                sources(&path, &name, found);
            }
        } else if path.extension().is_none_or(|extension| extension != "so") {
            found.insert(name);
        }
    }
}

/// `target/python`, where the tests of the package keep theirs too.
fn under_target() -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    temporary.parent().unwrap_or(temporary).join("python")
}

/// A command that is ended, with what it has started, when it takes longer.
fn within(seconds: &str, program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", seconds, program]).env_remove("PYTHONPATH");
    command
}

/// What a command printed.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said.concat());
    let [stdout, _] = said;
    stdout
}
