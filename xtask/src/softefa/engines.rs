//! The engines that take turns on emulated nodes: kvrail, the real NIXL and the plain loop, each as a program on either
//! node that meets the other over loopback.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::Bench;
use super::nixl::Nixl;
use super::node::{self, Run};
use crate::compare::engines::{Engine, workload};
use crate::compare::reading::Sample;
use crate::compare::rows::{Peer, Shape};
use crate::process;

/// One engine's turn, start to end.
const DEADLINE: Duration = Duration::from_secs(240);

/// A fabric, and what is moved over it.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// NICs of each node, all of which are used.
    pub(super) rails: u32,
    /// Options of `kvrail softefa run` that make the model.
    pub(super) model: Vec<String>,
    /// What kvrail and the plain loop are told to use; NIXL asks for `efa` and cannot be told.
    pub(super) provider: String,
    pub(super) op: &'static str,
    pub(super) shape: Shape,
}

/// The programs.
#[derive(Debug)]
pub(super) struct Engines<'a> {
    bench: &'a Bench,
    limits: PathBuf,
    nixl: Option<Nixl>,
    /// Of the bare loop; none: as many operations in flight as the provider takes.
    bare_depth: Option<u32>,
}

impl<'a> Engines<'a> {
    /// Builds the plain loop. Without NIXL its turns fail.
    pub(super) fn prepare(bench: &'a Bench, nixl: Option<Nixl>) -> Result<Self, String> {
        let limits = super::build("kvrail-benchsuite", "limits")?;
        Ok(Self { bench, limits, nixl, bare_depth: None })
    }

    /// How many operations the bare loop keeps in flight on a rail; 0: as many as the provider takes.
    pub(super) fn bare_depth(self, depth: u32) -> Self {
        Self { bare_depth: Some(depth).filter(|&depth| depth > 0), ..self }
    }

    /// Runs one engine once.
    pub(super) fn turn(&self, engine: Engine, scene: &Scene) -> Result<Sample, String> {
        let out = self.bench.target.join(format!("{}.json", node::name("turn")));
        let meet = meeting_place()?;
        let mut command = match engine {
            Engine::Kvrail => {
                let rails = scene.rails.to_string();
                let common = ["--provider", &scene.provider, "--rails", &rails];
                let mut initiator = Command::new(&self.bench.kvrail);
                initiator.args(["bench", "--role", "initiator", "--connect", &meet, "--transport", "ofi"]);
                initiator.args(common).args(["--op", scene.op, "--memory", "private"]);
                initiator.args(["--progress", "inline", "--format", "json", "--output"]).arg(&out);
                workload(
                    &mut initiator,
                    &scene.shape,
                    Some(scene.shape.pool_bytes).filter(|_| scene.shape.scattered),
                );
                let mut target = Command::new(&self.bench.kvrail);
                target.args(["bench", "--role", "target", "--listen", &meet]).args(common);
                self.run(scene).on_two_nodes(&initiator, &target)
            }
            Engine::Peer(Peer::FabricLoop) => {
                let side = |role: &str| {
                    let mut command = Command::new(&self.limits);
                    command.args(["--kind", "fabric", "--role", role, "--meet", &meet]);
                    command.arg("--libfabric").arg(self.bench.libfabric.join("libfabric.so.1"));
                    command
                };
                let mut initiator = side("initiator");
                initiator.args(["--provider", &scene.provider, "--rails", &scene.rails.to_string()]);
                initiator.args(["--op", scene.op, "--repetitions", "1"]);
                if let Some(depth) = self.bare_depth {
                    initiator.args(["--depth", &depth.to_string()]);
                }
                workload(&mut initiator, &scene.shape, Some(scene.shape.pool_bytes));
                self.run(scene).on_two_nodes(&initiator, &side("target"))
            }
            Engine::Peer(Peer::NixlLibfabricEfa) => {
                let nixl = self.nixl.as_ref().ok_or("it was not prepared")?;
                let side = |role: &str| {
                    let mut command = Command::new(nixl.python());
                    command.arg(self.bench.root.join("benchsuite/nixl_peer.py"));
                    command.args(["transfer", "--backend", "LIBFABRIC", "--role", role, "--meet", &meet]);
                    command
                };
                let mut initiator = side("initiator");
                initiator.args(["--op", scene.op]);
                workload(&mut initiator, &scene.shape, Some(scene.shape.pool_bytes));
                nixl.environment(self.run(scene)).on_two_nodes(&initiator, &side("target"))
            }
            Engine::Peer(peer) => return Err(format!("{} does not run on emulated nodes", peer.name())),
        };
        let finished = process::run(&mut command, DEADLINE + node::AROUND)?;
        // kvrail writes a file: its document may be longer than a line that `run` keeps whole.
        let said = match fs::read_to_string(&out) {
            Ok(text) => fs::remove_file(&out).map(|()| text).unwrap_or_default(),
            Err(_) => json_of_node0(&finished.stdout),
        };
        match (finished.status.success(), Sample::read(&said)) {
            (true, read) => read,
            (false, Err(why)) if !said.is_empty() => Err(why),
            (false, _) => {
                Err(format!("it ended with {}: {}", finished.status, node::words(&finished.stderr)))
            }
        }
    }

    fn run(&self, scene: &Scene) -> Run {
        let deadline = node::seconds(DEADLINE);
        let model: Vec<&str> = scene.model.iter().map(String::as_str).collect();
        Run::new(self.bench, &node::name("speed"), scene.rails, &self.bench.libfabric)
            .option(&["--deadline", &deadline])
            .option(&model)
    }
}

/// A port of this host on which nobody listens.
pub(super) fn meeting_place() -> Result<String, String> {
    let place = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    place.map(|place| place.to_string()).map_err(|error| format!("no free port: {error}"))
}

/// The JSON lines that node 0 printed, without the prefix that `kvrail softefa run` gives them.
pub(super) fn json_of_node0(stdout: &str) -> String {
    let lines = stdout.lines().filter_map(|line| line.strip_prefix("node0 | "));
    lines.filter(|line| line.starts_with('{')).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_initiators_json_is_read() {
        let said = "fabric up\nnode1 | {\"a\":1}\nnode0 | talk\nnode0 | {\"b\":2}\n";
        assert_eq!(json_of_node0(said), "{\"b\":2}");
        assert_eq!(json_of_node0(""), "");
    }
}
