//! `cargo xtask wheels`: both Python distributions as wheels.
//!
//! maturin and what it builds with come from PyPI into an environment below the target directory. Unless the wheel is for this host
//! alone, it is linked by zig against the symbols of an old glibc, for either architecture: which releases of Linux the tag promises
//! is then decided here and not by the machine that builds. maturin checks the symbols against the tag.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use crate::compare;
use crate::venv::{install, succeed};

/// What builds wheels, with all that it imports itself.
const TOOLS: &[&str] = &[
    "maturin==1.16.0",
    "ziglang==0.17.0",
    "setuptools==80.9.0",
    "pip==25.3",
    // Of maturin, before Python 3.11.
    "tomli==2.3.0",
];
/// glibc 2.28: Debian 10, RHEL 8, Ubuntu 18.10 and whatever is newer.
const PROMISE: &str = "manylinux_2_28";
const COULD_NOT_TELL: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the wheels go [default: wheels, in the target directory]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The architecture: x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu [default: this host's]
    #[arg(long)]
    target: Option<String>,
    /// For this host alone: its own linker and its own glibc, which the tag then names
    #[arg(long, conflicts_with = "target")]
    host: bool,
    /// The profile of cargo's that it is built with
    #[arg(long, default_value = "release")]
    profile: String,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match wheels(args) {
        Ok(paths) => {
            for path in paths {
                println!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            COULD_NOT_TELL.into()
        }
    }
}

fn wheels(args: &Args) -> Result<Vec<PathBuf>, String> {
    let (root, target) = compare::places()?;
    let out = args.out.clone().unwrap_or_else(|| target.join("wheels"));
    fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let began = SystemTime::now();
    let tools = install(&target.join("wheel-tools"), TOOLS)
        .map_err(|error| format!("what builds wheels is not to be had: {error}"))?;
    native(args, &root, &tools, &out)?;
    pure(&root, &target, &tools, &out)?;
    made_since(&out, began)
}

/// The wheel of `bindings/python`, by maturin.
fn native(args: &Args, root: &Path, tools: &Path, out: &Path) -> Result<(), String> {
    let mut maturin = Command::new(tools);
    maturin.current_dir(root.join("bindings/python"));
    maturin.args(["-m", "maturin", "build", "--locked", "--profile", &args.profile, "--out"]);
    maturin.arg(absolute(out)?);
    if !args.host {
        maturin.args(["--zig", "--compatibility", PROMISE]);
        let triple =
            args.target.clone().unwrap_or_else(|| format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
        maturin.args(["--target", &triple]);
    }
    // Not `cargo xtask`'s own: maturin asks cargo, which takes it from here.
    maturin.env_remove("CARGO_MANIFEST_DIR");
    // zig is found as the module of the Python that comes first on the path.
    let mut path = OsString::from(tools.parent().unwrap_or(root));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // What it compiles is shown while it compiles: it takes minutes.
    let status = maturin.env("PATH", path).status().map_err(|error| format!("maturin: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("maturin did not build kvrail: {status}")) }
}

/// The wheel of `bindings/python-nixl`, by setuptools, from a copy: it leaves its work where the sources are.
fn pure(root: &Path, target: &Path, tools: &Path, out: &Path) -> Result<(), String> {
    let copy = target.join("wheel-tools/kvrail-nixl");
    if copy.exists() {
        fs::remove_dir_all(&copy).map_err(|error| format!("{}: {error}", copy.display()))?;
    }
    copy_tree(&root.join("bindings/python-nixl"), &copy)?;
    let mut pip = Command::new(tools);
    pip.args(["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]);
    succeed(pip.arg(out).arg(&copy))
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", from.display());
    fs::create_dir_all(to).map_err(wrong)?;
    for entry in fs::read_dir(from).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            if entry.file_name() != "__pycache__" {
                copy_tree(&source, &target)?;
            }
        } else {
            fs::copy(&source, &target).map_err(|error| format!("{}: {error}", source.display()))?;
        }
    }
    Ok(())
}

/// The wheels that this run wrote, for those of older releases may lie beside them.
fn made_since(out: &Path, began: SystemTime) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let mut wheels: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.metadata().and_then(|about| about.modified()).is_ok_and(|time| time >= began))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .collect();
    wheels.sort();
    match wheels.len() {
        2 => Ok(wheels),
        count => Err(format!("{count} wheels appeared in {} where two were built", out.display())),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}
