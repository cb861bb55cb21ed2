//! `cargo xtask softefa`: programs of others on emulated nodes. What they need is fetched when it is asked for, by the
//! registries' own clients, and kept under the target directory.
//!
//! Exit code: 0 all passed, 1 something failed, 2 something could not be run. What this machine lacks is skipped, by
//! name and with the reason; with `CI=true` that is a failure.

mod bench;
mod callgrind;
mod compare;
mod cost;
mod engines;
mod fabtests;
mod failover;
mod faults;
mod nixl;
mod node;
mod pingpong;
mod scaling;
mod scenario;
mod soak;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::venv;

/// Brings libfabric 2.5 with `efa` as a loadable provider.
const WHEEL: &[&str] = &["mpich==5.0.2"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    lane: Lane,
}

#[derive(Debug, clap::Subcommand)]
enum Lane {
    /// kvrail over 32 emulated EFA rails; one dies in mid-transfer and returns, every byte verified
    Bench(bench::Args),
    /// Debian's fi_pingpong over the efa provider between two nodes
    Pingpong(pingpong::Args),
    /// libfabric's own tests between two nodes, over `efa` and `efa-direct`
    Fabtests(fabtests::Args),
    /// The real NIXL between two nodes over 1 to 32 rails, every byte verified
    Nixl(nixl::Args),
    /// What the real NIXL does under each fault, as a table
    NixlFaults(faults::Args),
    /// kvrail, the real NIXL and a bare fi_read/fi_write loop in turns: medians, ratios, verdicts
    Compare(compare::Args),
    /// Whether twice the rails carry twice the bytes
    Scaling(scaling::Args),
    /// What a rail's death in the middle of a transfer costs
    Failover(failover::Args),
    /// What a descriptor costs of kvrail's own code, by callgrind and perf
    Cost(cost::Args),
    /// Random fault schedules: nothing may be lost, wrong or left behind
    Soak(soak::Args),
    /// The program that the soak runs on nodes
    #[command(hide = true)]
    Exercise(soak::Exercise),
}

/// What all lanes take.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// This kvrail instead of the one that is built now
    #[arg(long)]
    kvrail: Option<PathBuf>,
    /// A directory with a libfabric.so.1 that has efa, instead of the one that PyPI's mpich brings
    #[arg(long)]
    libfabric: Option<PathBuf>,
}

/// The programs and libraries that every lane needs.
#[derive(Debug)]
struct Bench {
    root: PathBuf,
    /// Where this lane's things are kept.
    target: PathBuf,
    kvrail: PathBuf,
    /// The directory with `libfabric.so.1`.
    libfabric: PathBuf,
}

/// How a lane ended.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// Prints one verdict, as it comes.
    fn pass(&mut self, what: &str) {
        self.passed += 1;
        println!("pass {what}");
    }

    fn fail(&mut self, what: &str, why: &str) {
        self.failed += 1;
        println!("FAIL {what}: {why}");
    }

    fn skip(&mut self, what: &str, why: &str) {
        if env::var("CI").as_deref() == Ok("true") {
            return self.fail(what, why);
        }
        self.skipped += 1;
        println!("skipped: {what}: {why}");
    }

    fn code(self) -> u8 {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        u8::from(self.failed > 0)
    }
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let code = match &args.lane {
        Lane::Bench(args) => bench::run(args),
        Lane::Pingpong(args) => pingpong::run(args),
        Lane::Fabtests(args) => fabtests::run(args),
        Lane::Nixl(args) => nixl::run(args),
        Lane::NixlFaults(args) => faults::run(args),
        Lane::Compare(args) => compare::run(args),
        Lane::Scaling(args) => scaling::run(args),
        Lane::Failover(args) => failover::run(args),
        Lane::Cost(args) => cost::run(args),
        Lane::Soak(args) => soak::run(args),
        Lane::Exercise(args) => return soak::exercise(args),
    };
    match code {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error}");
            2.into()
        }
    }
}

impl Bench {
    /// Builds kvrail and fetches libfabric, unless they were named.
    fn prepare(common: &Common) -> Result<Self, String> {
        let root = root()?;
        let kvrail = kvrail(common.kvrail.as_deref())?;
        let target = target(root);
        let target = target.join("softefa");
        let libfabric = match &common.libfabric {
            Some(named) => absolute(named)?,
            None => {
                let wheel = target.join("libfabric-of-mpich");
                venv::install(&wheel, WHEEL)?;
                wheel.join("lib/mpich")
            }
        };
        if !libfabric.join("libfabric.so.1").exists() {
            return Err(format!("{} has no libfabric.so.1", libfabric.display()));
        }
        Ok(Self { root: root.to_owned(), target, kvrail, libfabric })
    }
}

fn root() -> Result<&'static Path, String> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or_else(|| "xtask stands in no repository".into())
}

fn target(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// The kvrail that was named, or the one that is built now.
fn kvrail(named: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(named) = named {
        return absolute(named);
    }
    build("kvrail-cli", "kvrail")
}

/// Builds a package's program for speed; where it is.
fn build(package: &str, program: &str) -> Result<PathBuf, String> {
    let root = root()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["build", "--release", "--quiet", "-p", package]);
    let built = cargo.status().map_err(|error| format!("cargo does not start: {error}"))?;
    if built.success() {
        Ok(target(root).join("release").join(program))
    } else {
        Err(format!("{program} does not build"))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))
}
