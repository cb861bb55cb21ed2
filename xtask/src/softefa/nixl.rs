//! `cargo xtask softefa nixl`: the real NIXL wheel on libfabric's real efa provider, between two emulated nodes.
//!
//! NIXL 1.4's LIBFABRIC plugin loads with the libfabric of PyPI's mpich (2.5); from 1.5 on it needs symbols newer than 2.6.0, for
//! which `--libfabric` names a build.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::node::{self, Run};
use super::{Bench, Common, Tally};
use crate::compare::venv::{self, Venv};
use crate::process;

const DEADLINE: Duration = Duration::from_secs(180);
/// Of any one stage in the peers, below their own deadline.
const STAGE_S: &str = "60";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Rails of each node
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 8, 32])]
    nics: Vec<u32>,
    /// READ, WRITE
    #[arg(long, value_delimiter = ',', default_values_t = ["READ".to_owned(), "WRITE".to_owned()])]
    op: Vec<String>,
    /// Versions of NIXL on PyPI
    #[arg(long, value_delimiter = ',', default_values_t = ["1.4.0".to_owned(), "1.5.1".to_owned()])]
    version: Vec<String>,
    /// Bytes of one transfer
    #[arg(long, default_value_t = 64 << 20)]
    bytes: u64,
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let bench = Bench::prepare(&args.common)?;
    let mut tally = Tally::default();
    for version in &args.version {
        let nixl = match Nixl::prepare(&bench, version) {
            Ok(nixl) => nixl,
            Err(why) => {
                tally.skip(&format!("nixl {version}"), &why);
                continue;
            }
        };
        for nics in &args.nics {
            for op in &args.op {
                let what = format!("nixl {version} {op} over {nics} rails");
                let began = Instant::now();
                match transfer(&bench, &nixl, op, *nics, args.bytes) {
                    Ok(bytes) => tally.pass(&format!(
                        "{what}: {bytes} bytes verified, {:.1} s with start and end",
                        began.elapsed().as_secs_f64()
                    )),
                    Err(why) => tally.fail(&what, &why),
                }
            }
        }
    }
    Ok(tally.code())
}

/// A NIXL that loads its LIBFABRIC plugin with a libfabric.
#[derive(Debug)]
pub(super) struct Nixl {
    venv: Venv,
    script: PathBuf,
    pub(super) libfabric: PathBuf,
}

impl Nixl {
    /// Fetches it and sees whether the plugin finds the libfabric that it needs.
    pub(super) fn prepare(bench: &Bench, version: &str) -> Result<Self, String> {
        let no_cuda = bench.root.join("benchsuite/no_cuda.c");
        let venv = venv::nixl_on_libfabric(&bench.target, version, &no_cuda)?;
        let libfabric = bench.libfabric.clone();
        needs(&venv, &libfabric)?;
        Ok(Self { venv, script: bench.root.join("benchsuite/nixl_nodes.py"), libfabric })
    }

    /// The peers' run: node 0 initiates, node 1 is the target; `words` are further options of both.
    pub(super) fn run(&self, bench: &Bench, name: &str, nics: u32, options: &[&str], words: &[&str]) -> Run {
        let run = self.environment(Run::new(bench, name, nics, &self.libfabric).option(options));
        let python = |role: &'static str| {
            let start = [self.venv.python.as_os_str(), self.script.as_os_str(), role.as_ref()];
            start
                .into_iter()
                .chain(words.iter().map(AsRef::as_ref))
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        run.environment("NIXL_LOG_LEVEL", "WARN")
            .on_next_node(python("initiator"))
            .on_next_node(python("target"))
    }

    /// Gives a run's nodes what NIXL needs.
    pub(super) fn environment(&self, mut run: Run) -> Run {
        for (variable, value) in
            self.venv.environment.iter().filter(|(variable, _)| *variable != "FI_PROVIDER")
        {
            run = run.environment(variable, value);
        }
        run
    }

    pub(super) fn python(&self) -> &Path {
        &self.venv.python
    }
}

/// Whether the symbols that the plugin wants are in the libfabric, by the loader's own word.
fn needs(venv: &Venv, libfabric: &Path) -> Result<(), String> {
    let plugin = venv.plugin()?;
    let mut ldd = std::process::Command::new("ldd");
    let path =
        venv.environment.iter().find(|(name, _)| *name == "LD_LIBRARY_PATH").map(|(_, value)| value.clone());
    let mut paths = vec![libfabric.to_owned()];
    paths.extend(path.iter().flat_map(std::env::split_paths));
    let paths = std::env::join_paths(paths).map_err(|error| error.to_string())?;
    let said = process::run(ldd.arg(plugin).env("LD_LIBRARY_PATH", paths), Duration::from_secs(30))?;
    let lacking = format!("{}{}", said.stdout, said.stderr);
    let lacking = lacking.lines().find(|line| line.contains("FABRIC_") && line.contains("not found"));
    match lacking.and_then(|line| line.split('`').nth(1)?.split('\'').next()) {
        Some(symbol) => Err(format!(
            "its plugin needs {symbol} (newer than libfabric 2.6.0), which {} lacks; name another with --libfabric",
            libfabric.display()
        )),
        None => Ok(()),
    }
}

fn transfer(bench: &Bench, nixl: &Nixl, op: &str, nics: u32, bytes: u64) -> Result<u64, String> {
    let meeting = Meeting::new(bench, "nixl")?;
    let (dir, bytes) = (meeting.path.display().to_string(), bytes.to_string());
    let words = ["--dir", &dir, "--op", op, "--bytes", &bytes, "--blocks", "64", "--deadline", STAGE_S];
    let options = ["--deadline", &node::seconds(DEADLINE)];
    let mut command = nixl.run(bench, &node::name("nixl"), nics, &options, &words).command();
    let finished = process::run(&mut command, DEADLINE + node::AROUND)?;
    let row = meeting.row("initiator");
    let field = |name: &str| row.get(name).and_then(Value::as_u64);
    match (finished.status.success(), field("verified_bytes")) {
        (true, Some(verified)) if verified > 0 => Ok(verified),
        _ => {
            let failed = row.get("failed").and_then(Value::as_str).map(str::to_owned);
            Err(failed
                .unwrap_or_else(|| format!("it ended with {}: {}", finished.status, finished.last_words())))
        }
    }
}

/// The directory in which two peers meet.
#[derive(Debug)]
pub(super) struct Meeting {
    pub(super) path: PathBuf,
}

impl Meeting {
    pub(super) fn new(bench: &Bench, lane: &str) -> Result<Self, String> {
        let path = bench.target.join(node::name(&format!("meeting-{lane}")));
        let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
        if path.exists() {
            fs::remove_dir_all(&path).map_err(wrong)?;
        }
        fs::create_dir_all(&path).map_err(wrong)?;
        Ok(Self { path })
    }

    /// What a role has written of itself so far.
    pub(super) fn row(&self, role: &str) -> Value {
        let text = fs::read_to_string(self.path.join(format!("{role}.json"))).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    pub(super) fn put(&self, name: &str) -> Result<(), String> {
        fs::write(self.path.join(name), "").map_err(|error| format!("{}: {error}", self.path.display()))
    }

    pub(super) fn there(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
