//! What runs on the nodes: a command that starts the node's processes, and the processes, which do verbs work and check it.

mod explain;
mod local;
mod operation;
mod receive;
mod settle;
mod setup;
mod worker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::Ordering;
use std::time::Duration;

use softefa_fabric::NODE_VARIABLE;

use crate::board::{Board, Phase};
use crate::plant::Plant;
use crate::schedule::{LIVES_MAX, Rank, Schedule};

/// The word that makes a program the command of a node, and its processes.
pub const WORD: &str = "exercise";
/// Longest life of a process: nothing is left for ever, even of a fleet that was killed.
const LIFE_MAX_S: u32 = 120;
/// How often a node's command looks at its processes.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Exit code of a process that found something wrong.
const WRONG: u8 = 3;
/// Exit code when it could not be tried.
const COULD_NOT_TELL: u8 = 2;

/// Files of a run that its processes share, outside of the fabric's directory.
#[derive(Clone, Debug)]
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    pub(crate) fn board(&self) -> PathBuf {
        self.0.join("board")
    }

    pub(crate) fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }
}

/// What a process is told: `WORD FILES SEED PLANT [PROCESS LIFE]`.
struct Orders {
    files: Files,
    seed: u64,
    plant: Option<Plant>,
    /// Process and life; none for the command of a node.
    place: Option<(usize, usize)>,
}

impl Orders {
    fn of(words: &[OsString]) -> Option<Self> {
        let text = |at: usize| words.get(at)?.to_str();
        let place = match words.len() {
            3 => None,
            5 => Some((text(3)?.parse().ok()?, text(4)?.parse().ok()?)),
            _ => return None,
        };
        let plant = text(2)?;
        let plant = if plant == NO_PLANT { None } else { Some(plant.parse().ok()?) };
        Some(Self { files: Files(words[0].clone().into()), seed: text(1)?.parse().ok()?, plant, place })
    }
}

/// The words behind [`WORD`] for the command of a node.
pub(crate) fn words(files: &Path, seed: u64, plant: Option<Plant>) -> Vec<OsString> {
    vec![files.into(), seed.to_string().into(), plant.map_or(NO_PLANT, Plant::name).into()]
}

const NO_PLANT: &str = "-";

/// Runs as the command of a node, or as one of its processes: for programs whose arguments have [`WORD`].
#[must_use]
pub fn main() -> ExitCode {
    // SAFETY: the call touches no memory. Its signal ends the process, which is what it is for.
    unsafe { libc::alarm(LIFE_MAX_S) };
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Some(word) = arguments.iter().position(|word| word == WORD) else { return COULD_NOT_TELL.into() };
    let node = std::env::var(NODE_VARIABLE).ok().and_then(|node| node.parse().ok());
    let (Some(orders), Some(node)) = (Orders::of(&arguments[word + 1..]), node) else {
        eprintln!("exercise: started by `softefa soak` on a node of a fabric");
        return COULD_NOT_TELL.into();
    };
    let schedule = Schedule::of(orders.seed);
    let done = match orders.place {
        None => command(&arguments[1..], &orders.files, &schedule, node),
        Some((process, life)) => {
            worker::run(schedule, Rank::of(node, process, life), &orders.files, orders.plant)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => WRONG.into(),
        Err(error) => {
            eprintln!("exercise: {error}");
            COULD_NOT_TELL.into()
        }
    }
}

/// The command of a node: starts its processes, and those that were killed once more if the schedule says so.
fn command(words: &[OsString], files: &Files, schedule: &Schedule, node: usize) -> Result<bool, String> {
    let board = Board::open(&files.board()).map_err(|e| format!("cannot open the board: {e}"))?;
    board.command(node).store(std::process::id(), Ordering::Release);
    let start = |process: usize, life: usize| {
        let mut command = Command::new("/proc/self/exe");
        command.args(words).args([process.to_string(), life.to_string()]);
        command.spawn().map_err(|e| format!("cannot start a process: {e}"))
    };
    let mut running: Vec<(Rank, Child)> = Vec::new();
    for process in 0..schedule.processes {
        running.push((Rank::of(node, process, 0), start(process, 0)?));
    }
    let mut all_right = true;
    while !running.is_empty() {
        let mut index = 0;
        while let Some((rank, child)) = running.get_mut(index) {
            let rank = *rank;
            match child.try_wait().map_err(|e| format!("cannot wait for a process: {e}"))? {
                None => index += 1,
                Some(status) => {
                    running.swap_remove(index);
                    let killed = board.cell(rank).was_killed();
                    all_right &= status.success() || killed;
                    let again = killed && schedule.restarts && rank.life() + 1 < LIVES_MAX;
                    if again && board.phase() <= Phase::Run {
                        let next = Rank::of(node, rank.process(), rank.life() + 1);
                        running.push((next, start(next.process(), next.life())?));
                    }
                }
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(all_right)
}
