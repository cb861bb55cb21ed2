//! The programs that take turns, and how each is asked for a row's work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::reading::Sample;
use super::rows::{Peer, Row, Shape, Work};
use super::venv::{self, Venv};
use crate::process;

/// One engine's share of one row, start to end.
const TURN_DEADLINE: Duration = Duration::from_secs(240);
/// A probe moves 8 blocks: it finds what is missing, not what is slow.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);

/// Who takes a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Engine {
    Kvrail,
    Peer(Peer),
}

impl Engine {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kvrail => "kvrail",
            Self::Peer(peer) => peer.name(),
        }
    }
}

/// The programs, found or made.
#[derive(Debug)]
pub(crate) struct Engines {
    kvrail: PathBuf,
    limits: PathBuf,
    nixl_peer: PathBuf,
    venvs: BTreeMap<Peer, Venv>,
    /// The libfabric of NIXL, which kvrail and the plain loop use as well; none: theirs is the one they find.
    libfabric: Option<PathBuf>,
    /// Optional components that this machine cannot run, and why.
    pub(crate) skipped: BTreeMap<Peer, String>,
}

impl Engines {
    /// Makes what `rows` need under `target`, and tries each kind of NIXL once.
    pub(crate) fn prepare(root: &Path, target: &Path, kvrail: PathBuf, rows: &[Row]) -> Self {
        let mut engines = Self {
            kvrail,
            limits: target.join("release/limits"),
            nixl_peer: root.join("benchsuite/nixl_peer.py"),
            venvs: BTreeMap::new(),
            libfabric: None,
            skipped: BTreeMap::new(),
        };
        let under = target.join("compare");
        let mut needed: Vec<Peer> = rows.iter().flat_map(Row::peers).collect();
        needed.sort_unstable();
        needed.dedup();
        for peer in needed {
            let venv = match peer {
                Peer::NixlUcx | Peer::NixlUcxPosix | Peer::NixlUcxTcp => venv::nixl(&under),
                Peer::NixlLibfabricTcp => venv::nixl_libfabric(&under, &root.join("benchsuite/no_cuda.c")),
                Peer::Memcpy | Peer::ProcessVm | Peer::TcpLoop | Peer::TcpSpin => continue,
                // The first takes whichever libfabric there is; the other one is of another lane.
                Peer::FabricLoop | Peer::NixlLibfabricEfa => continue,
            };
            if let Ok(Venv { libfabric: Some(libfabric), .. }) = &venv {
                engines.libfabric = Some(libfabric.clone());
            }
            let usable = venv.and_then(|venv| engines.probe(peer, &venv).map(|()| venv));
            match usable {
                Ok(venv) => drop(engines.venvs.insert(peer, venv)),
                Err(reason) => {
                    eprintln!("skipping {}: {reason}", peer.name());
                    engines.skipped.insert(peer, reason);
                }
            }
        }
        engines
    }

    fn probe(&self, peer: Peer, venv: &Venv) -> Result<(), String> {
        let mut command = self.nixl(peer, venv);
        command.args([
            "transfer",
            "--batch",
            "8",
            "--pool",
            "1MiB",
            "--iterations",
            "1",
            "--deadline-s",
            "30",
        ]);
        sample(&mut command, PROBE_DEADLINE).map(drop)
    }

    /// Runs one engine once on a row's work.
    pub(crate) fn turn(&self, engine: Engine, row: &Row) -> Result<Sample, String> {
        let mut command = match engine {
            Engine::Kvrail => self.kvrail_on(row),
            Engine::Peer(peer) => match self.venvs.get(&peer) {
                Some(venv) => self.nixl_on(peer, venv, row),
                None => self.limit_on(peer, row)?,
            },
        };
        let sample = sample(&mut command, TURN_DEADLINE)?;
        match (&row.work, sample.transport()) {
            (Work::Transfer { transport: asked, .. }, Some(used))
                if engine == Engine::Kvrail && used != *asked =>
            {
                Err(format!("it was asked for {asked} and used {used}"))
            }
            _ => Ok(sample),
        }
    }

    fn kvrail_on(&self, row: &Row) -> Command {
        let mut command = Command::new(&self.kvrail);
        command.args(["bench", "--format", "json"]);
        match &row.work {
            Work::Control => drop(command.args(["--kind", "control"])),
            Work::Transfer { op, transport, memory, shape } => {
                command.args(["--op", op, "--transport", transport, "--memory", memory]);
                command.args(["--progress", "inline"]);
                // kvrail guards both ends of its pool, and makes one that fits when it is not told.
                let pool = Some(shape.pool_bytes).filter(|_| shape.scattered);
                workload(&mut command, shape, pool);
                if *transport == "ofi" {
                    self.same_libfabric(&mut command);
                }
            }
        }
        command.args(row.options);
        command
    }

    fn nixl_on(&self, peer: Peer, venv: &Venv, row: &Row) -> Command {
        let mut command = self.nixl(peer, venv);
        match &row.work {
            Work::Control => drop(command.arg("control")),
            Work::Transfer { op, shape, .. } => {
                command.args(["transfer", "--op", op]);
                workload(&mut command, shape, Some(shape.pool_bytes));
            }
        }
        command
    }

    /// NIXL's driver with everything but the work.
    fn nixl(&self, peer: Peer, venv: &Venv) -> Command {
        let mut command = Command::new(&venv.python);
        command.arg(&self.nixl_peer).envs(venv.environment.iter().map(|(name, value)| (name, value)));
        match peer {
            Peer::NixlUcxPosix => {
                // UCX refuses shared memory where errors of the peer must be survived.
                command.env("UCX_TLS", "posix").args(["--backend-param", "ucx_error_handling_mode=none"]);
            }
            Peer::NixlUcxTcp => drop(command.env("UCX_TLS", "tcp")),
            Peer::NixlLibfabricTcp => drop(command.args(["--backend", "LIBFABRIC"])),
            _ => {}
        }
        command
    }

    fn same_libfabric(&self, command: &mut Command) {
        if let Some(libfabric) = &self.libfabric {
            command.arg("--libfabric").arg(libfabric.join("libfabric.so.1"));
        }
    }

    fn limit_on(&self, peer: Peer, row: &Row) -> Result<Command, String> {
        let Work::Transfer { op, memory, shape, .. } = &row.work else {
            return Err("a plain loop has no control path".into());
        };
        let mut command = Command::new(&self.limits);
        match peer {
            Peer::Memcpy => command.args(["--kind", "memcpy", "--memory", memory]),
            Peer::ProcessVm => command.args(["--kind", "process-vm"]),
            Peer::TcpLoop => command.args(["--kind", "tcp", "--wait", "block"]),
            Peer::TcpSpin => command.args(["--kind", "tcp", "--wait", "spin"]),
            Peer::FabricLoop => {
                self.same_libfabric(&mut command);
                command.args(["--kind", "fabric"]).args(row.options)
            }
            _ => return Err("it was not prepared".into()),
        };
        command.args(["--op", op, "--repetitions", "1"]);
        workload(&mut command, shape, Some(shape.pool_bytes));
        Ok(command)
    }
}

/// The options that all the programs share.
pub(crate) fn workload(command: &mut Command, shape: &Shape, pool_bytes: Option<u64>) {
    let layout = if shape.scattered { "scattered" } else { "contiguous" };
    command.args(["--layout", layout]);
    let numbers = [
        ("--block", Some(shape.block_bytes)),
        ("--batch", Some(shape.batch)),
        ("--pool", pool_bytes),
        ("--iterations", Some(shape.iterations)),
        ("--warmup", Some(1)),
    ];
    for (option, value) in numbers {
        if let Some(value) = value {
            command.arg(option).arg(value.to_string());
        }
    }
}

pub(crate) fn sample(command: &mut Command, deadline: Duration) -> Result<Sample, String> {
    let finished = process::run(command, deadline)?;
    let read = Sample::read(&finished.stdout);
    match (finished.status.success(), read) {
        (true, read) => read,
        // What it says of itself in JSON is better than its last words on stderr.
        (false, Err(said)) if !finished.stdout.trim().is_empty() => Err(said),
        (false, _) => Err(format!("it ended with {}: {}", finished.status, finished.last_words())),
    }
}
