//! `cargo xtask engines`: every engine on this machine, one table and one report, with whatever they need fetched first.
//!
//! A fresh machine has neither NIXL nor UCX. They come from PyPI into an environment under the target directory, and nothing of the
//! system is touched. What runs then is `kvrail suite run laptop`, or the `kvrail bench` line that is given.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::compare::{self, venv};
use crate::venv::{install, site_packages};

/// NIXL whose LIBFABRIC plugin loads with a libfabric that PyPI has.
const NIXL: &str = "1.4.0";
const UCX: &[&str] = &["libucx-cu12==1.22.0"];
const COULD_NOT_TELL: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the report goes [default: report, beside what is fetched]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// This kvrail instead of the one that is built now
    #[arg(long)]
    kvrail: Option<PathBuf>,
    /// Print the environment that was made, as shell lines, and end
    #[arg(long)]
    print_env: bool,
    /// Arguments of `kvrail` to run instead, after `--`: bench --engine all --preset kv
    #[arg(last = true)]
    words: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match engines(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            COULD_NOT_TELL.into()
        }
    }
}

fn engines(args: &Args) -> Result<ExitCode, String> {
    let (root, target) = compare::places()?;
    let under = target.join("engines");
    let environment = prepare(&root, &under)?;
    if args.print_env {
        for (name, value) in &environment {
            println!("export {name}='{}'", value.to_string_lossy());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let kvrail = match &args.kvrail {
        Some(kvrail) => kvrail.clone(),
        None => {
            compare::build(&root, &["kvrail-cli"])?;
            target.join("release/kvrail")
        }
    };
    let mut command = Command::new(&kvrail);
    if args.words.is_empty() {
        command
            .args(["suite", "run", "laptop", "--dir"])
            .arg(args.dir.clone().unwrap_or_else(|| under.join("report")));
    } else {
        command.args(&args.words);
    }
    let status = command.envs(environment).status().map_err(|e| format!("{}: {e}", kvrail.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(COULD_NOT_TELL).into())
}

/// Fetches what is missing; the variables that lead kvrail to it. What cannot be had is said, and left out.
fn prepare(root: &Path, under: &Path) -> Result<Vec<(&'static str, OsString)>, String> {
    let mut environment: Vec<(&'static str, OsString)> = Vec::new();
    match venv::nixl_on_libfabric(under, NIXL, &root.join("benchsuite/no_cuda.c")) {
        Ok(nixl) => {
            let prefix = nixl.python.parent().and_then(Path::parent).ok_or("the environment has no root")?;
            environment.push(("KVRAIL_NIXL", prefix.into()));
            environment.extend(nixl.libfabric.map(|libfabric| ("KVRAIL_LIBFABRIC", libfabric.into())));
            // The CUDA driver's and runtime's names, which NIXL's plugin is linked to.
            let stand_ins = prefix.join("stand-ins");
            let runtime = site_packages(prefix)?.join("nvidia/cuda_runtime/lib");
            let paths = std::env::join_paths([stand_ins, runtime]).map_err(|e| e.to_string())?;
            environment.push(("LD_LIBRARY_PATH", paths));
        }
        Err(reason) => eprintln!("no NIXL: {reason}"),
    }
    match install(&under.join("ucx"), UCX).and_then(|_| site_packages(&under.join("ucx"))) {
        Ok(packages) => environment.push(("KVRAIL_UCX", packages.join("libucx/lib").into())),
        Err(reason) => eprintln!("no UCX of PyPI: {reason}"),
    }
    Ok(environment)
}
