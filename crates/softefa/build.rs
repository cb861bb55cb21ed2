//! Builds the device library, `libibverbs.so.1`, for [`src/library.rs`] to embed.
//!
//! A Rust `cdylib` cannot have versioned symbols: rustc links it with a version script of its own, without versions. So the crate
//! `softefa-verbs` is compiled as a static library by a cargo of its own, with its own target directory (the outer cargo holds the lock of the
//! other), and linked here by the C compiler with `versions.map`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Variables of the outer cargo that would change what the inner one builds: wrappers (clippy's, coverage's), flags, profiles.
const NOT_INHERITED: &[&str] = &[
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CARGO_INCREMENTAL",
    "CLIPPY_ARGS",
];

/// What is rebuilt from.
const SOURCES: &[&str] = &[
    "build.rs",
    "../softefa-verbs/Cargo.toml",
    "../softefa-verbs/src",
    "../softefa-verbs/versions.map",
    "../softefa-verbs/versions.S",
    "../softefa-fabric/Cargo.toml",
    "../softefa-fabric/src",
    "../../Cargo.toml",
    "../../Cargo.lock",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let target = variable("TARGET")?;
    if !target.contains("linux-gnu") {
        return Err(format!("softefa's device library is for Linux with glibc, not for {target}"));
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    let verbs = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../softefa-verbs");
    let archive = compile(&verbs, &out, &target)?;
    link(&archive, &verbs, &out.join("libibverbs.so.1"), &target)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set: this is for cargo to run"))
}

/// The static library.
///
/// `--frozen`: what it depends on, this package depends on as well, so that all of it is in the lock file and downloaded.
fn compile(verbs: &Path, out: &Path, target: &str) -> Result<PathBuf, String> {
    let target_dir = out.join("verbs");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command
        .current_dir(verbs)
        .args(["rustc", "--frozen", "--lib", "--release", "--crate-type", "staticlib", "--quiet"])
        .args(["--target", target, "--target-dir"])
        .arg(&target_dir);
    let profiles = env::vars_os().map(|(name, _)| name).filter(is_profile);
    for name in NOT_INHERITED.iter().map(OsString::from).chain(profiles) {
        command.env_remove(name);
    }
    // Set but empty: no flags, whatever a configuration file says.
    command.env("CARGO_ENCODED_RUSTFLAGS", "");
    // A panic must not unwind into C. The rest is for size: the library is embedded.
    command.env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    command.env("CARGO_PROFILE_RELEASE_LTO", "fat");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    run(&mut command, "cannot compile softefa's device library")?;
    Ok(target_dir.join(target).join("release/libsoftefa_verbs.a"))
}

fn is_profile(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("CARGO_PROFILE_"))
}

fn link(archive: &Path, verbs: &Path, library: &Path, target: &str) -> Result<(), String> {
    let linker = linker(target);
    let mut version_script = OsString::from("-Wl,--version-script=");
    version_script.push(verbs.join("versions.map"));
    let mut command = Command::new(&linker);
    command.args(["-shared", "-fPIC", "-o"]).arg(library).arg(version_script).arg(verbs.join("versions.S"));
    command.arg("-Wl,-soname,libibverbs.so.1");
    command.args(["-Wl,--whole-archive".as_ref(), archive.as_os_str(), "-Wl,--no-whole-archive".as_ref()]);
    // Nothing undefined, no relocations in the text, no writable tables after start. Its thread runs its code: it is never unloaded.
    command.args(["-Wl,-z,defs", "-Wl,-z,text", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,nodelete"]);
    command.args(["-Wl,--gc-sections", "-Wl,--strip-all", "-Wl,--build-id", "-Wl,--as-needed"]);
    command.args(["-lgcc_s", "-lpthread", "-ldl", "-lm", "-lc"]);
    let what = format!(
        "cannot link softefa's device library with `{}`, which has to be a C compiler for {target} \
         (Debian: gcc; for another machine gcc-<machine>-linux-gnu, or CARGO_TARGET_{}_LINKER)",
        linker.display(),
        in_variables(target)
    );
    run(&mut command, &what)
}

/// What links for `target`: as cargo was told (which tells build scripts), else the distribution's cross compiler, else `cc`.
fn linker(target: &str) -> OsString {
    let told = format!("CARGO_TARGET_{}_LINKER", in_variables(target));
    println!("cargo::rerun-if-env-changed={told}");
    if let Some(linker) = env::var_os("RUSTC_LINKER").or_else(|| env::var_os(told)) {
        return linker;
    }
    match env::var("HOST") {
        Ok(host) if host != target => format!("{}-gcc", target.replace("-unknown-", "-")).into(),
        _ => "cc".into(),
    }
}

/// A target's name as it stands in cargo's variables.
fn in_variables(target: &str) -> String {
    target.replace('-', "_").to_uppercase()
}

fn run(command: &mut Command, what: &str) -> Result<(), String> {
    let program = command.get_program().to_owned();
    let output =
        command.output().map_err(|error| format!("{what}\ncannot run `{}`: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what}\n`{}` ended with {}:\n{}", program.display(), output.status, said.trim_end()))
}
