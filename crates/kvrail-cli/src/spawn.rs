//! The processes that a run starts, with their words: a target on this host, players and servants of engines that take turns.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::case::Progress;
use crate::engines::{self, Choice};
use crate::failure::Failure;
use crate::kid::{self, Kid, Voice};
use crate::run::Run;

/// A child that listens.
pub(crate) struct Spawned {
    pub(crate) kid: Kid,
    address: SocketAddr,
}

impl Spawned {
    /// Starts a target on the loopback interface and learns its port.
    ///
    /// # Errors
    /// When it cannot be started or does not come up.
    pub(crate) fn target(run: &Run) -> Result<Self, Failure> {
        let mut command = kid::command();
        command.args(["--role", "target", "--listen", "127.0.0.1:0", "--spawned"]);
        sides_own(&mut command, run);
        if let Some(injection) = run.injection {
            command.arg("--inject-corruption").arg(injection.to_string());
        }
        let (kid, address) = Kid::listening(command, None)?;
        Ok(Self { kid, address })
    }

    /// Starts a player: the initiator of one engine, which does its turns when it is told to.
    ///
    /// # Errors
    /// When it cannot be started or does not come up, or the engine is not there.
    pub(crate) fn player(run: &Run, engine: &Choice, target: &str, voice: Voice) -> Result<Self, Failure> {
        let mut command = kid::command();
        command.args(["--conducted", "initiator", "--connect", target]);
        command.arg("--engine").arg(engine.to_string());
        command.arg("--warmup").arg(run.warmup.to_string());
        command.arg("--seed").arg(run.seed.to_string());
        if let Some(plant) = run.plant {
            command.arg("--plant").arg(plant.to_string());
        }
        if run.progress == Progress::Thread {
            command.args(["--progress", "thread"]);
        }
        sides_own(&mut command, run);
        surround(&mut command, run, engine)?;
        let (kid, address) = Kid::listening(command, Some(voice))?;
        Ok(Self { kid, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

/// Starts a servant: the target of one engine, for the link that it is given.
///
/// # Errors
/// When it cannot be started, or the engine is not there.
pub(crate) fn servant(run: &Run, engine: &Choice, socket: TcpStream, voice: Voice) -> Result<Kid, Failure> {
    let mut command = kid::command();
    command.args(["--conducted", "target"]);
    sides_own(&mut command, run);
    if let Some(injection) = run.injection {
        command.arg("--inject-corruption").arg(injection.to_string());
    }
    surround(&mut command, run, engine)?;
    Kid::on_socket(command, socket, voice)
}

/// What a side's processes have in common: deadlines, and where its libraries are.
fn sides_own(command: &mut Command, run: &Run) {
    command.arg("--timeout").arg(format!("{}ms", run.timeout.as_millis().max(1)));
    command.args(run.ofi.words());
    for (flag, path) in [("--nixl", &run.libraries.nixl), ("--ucx", &run.libraries.ucx)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
}

fn surround(command: &mut Command, run: &Run, engine: &Choice) -> Result<(), Failure> {
    let variables: Vec<(String, OsString)> =
        engines::surroundings(engine, &run.libraries).map_err(crate::endpoint::failure)?;
    command.envs(variables);
    Ok(())
}
