//! The real NIXL from PyPI, in environments below the target directory that are made once.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// NIXL as a user installs it.
const NIXL: &str = "nixl-cu12==1.5.1";
/// The last NIXL whose LIBFABRIC plugin can use the libfabric that mpich brings, with what that plugin links to.
const ON_LIBFABRIC: &[&str] = &["nixl-cu12==1.4.0", "mpich==5.0.2", "nvidia-cuda-runtime-cu12==12.9.79"];
const INSTALL_DEADLINE: Duration = Duration::from_secs(300);

/// The root of an environment with NIXL; none, and said past the harness, where it cannot be had.
pub(crate) fn nixl(test: &str) -> Option<PathBuf> {
    had(test, install("nixl", &[NIXL]))
}

/// The same with an older NIXL and a libfabric for its LIBFABRIC plugin, and the directory of a stand-in for CUDA's driver.
pub(crate) fn nixl_on_libfabric(test: &str) -> Option<(PathBuf, PathBuf)> {
    had(test, install("nixl-libfabric", ON_LIBFABRIC).and_then(|root| Ok((root.clone(), stand_ins(&root)?))))
}

/// What a test needs; none, and said past the harness, where it cannot be had. Where CI runs the test it can be.
pub(crate) fn had<T>(test: &str, got: Result<T, String>) -> Option<T> {
    match got {
        Ok(got) => Some(got),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: {why}");
            skip(&format!("{test}: {why}"));
            None
        }
    }
}

/// Says past the harness what is not tested.
pub(crate) fn skip(what: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: {what}\n").as_bytes());
}

/// An environment with these packages and nothing that they depend on.
pub(crate) fn install(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    environment(name, packages, &["--no-deps"], INSTALL_DEADLINE)
}

/// An environment with what pip makes of these packages and options, made once; each of its two steps has that long.
pub(crate) fn environment(
    name: &str,
    packages: &[&str],
    options: &[&str],
    within: Duration,
) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Written last: an installation that was interrupted is not taken for a whole one.
    let (whole, wanted) = (root.join(".whole"), packages.join(" "));
    let file = File::create(root.with_extension("lock")).map_err(|error| error.to_string())?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| error.to_string())?;
    if fs::read_to_string(&whole).is_ok_and(|is| is == wanted) {
        return Ok(root);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&root), within)?;
    let mut pip = Command::new(root.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--retries", "1"]).args(options).args(packages);
    run(&mut pip, within)?;
    fs::write(&whole, wanted).map_err(|error| error.to_string())?;
    Ok(root)
}

/// CUDA's driver has no place on a host without a GPU; the plugin only needs that three functions exist.
pub(crate) fn stand_ins(root: &Path) -> Result<PathBuf, String> {
    let directory = root.join("stand-ins");
    fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benchsuite/no_cuda.c");
    let library = directory.join("libcuda.so.1");
    if !library.exists() {
        // Several tests may make it at once: whoever is last replaces what is the same.
        let made = directory.join(format!("made-{}-{:?}", std::process::id(), std::thread::current().id()));
        run(
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&made).arg(source),
            Duration::from_secs(60),
        )?;
        fs::rename(made, library).map_err(|error| error.to_string())?;
    }
    Ok(directory)
}

/// Runs a program to its end; what it said last if that is no success, or a deadline that it missed.
pub(crate) fn run(command: &mut Command, within: Duration) -> Result<Output, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = end_of(child.map_err(|error| format!("{name}: {error}"))?, within)?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing on stderr");
    Err(format!("{name}: {}: {last}", output.status))
}

/// Waits for a child's end; kills it at the deadline.
pub(crate) fn end_of(mut child: std::process::Child, within: Duration) -> Result<Output, String> {
    let deadline = Instant::now() + within;
    let pid = child.id();
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => {
                let text = |from: Option<std::thread::JoinHandle<Vec<u8>>>| {
                    from.and_then(|from| from.join().ok()).unwrap_or_default()
                };
                return Ok(Output { status, stdout: text(stdout), stderr: text(stderr) });
            }
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                let text = |from: Option<std::thread::JoinHandle<Vec<u8>>>| {
                    from.and_then(|from| from.join().ok()).unwrap_or_default()
                };
                let said = [text(stdout), text(stderr)].concat();
                return Err(format!(
                    "process {pid} took more than {within:?}: {}",
                    String::from_utf8_lossy(&said)
                ));
            }
        }
    }
}

fn collect(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}
