//! `kvrail softefa shell`: this process becomes a shell, or a command, on a node of a live fabric.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use softefa::run::{Spec, find, of_node};

use super::args::Shell;
use super::failure;
use crate::failure::Failure;

/// The shell of those who have not chosen one.
const DEFAULT: &str = "/bin/sh";

pub(super) fn main(arguments: &Shell) -> Result<ExitCode, Failure> {
    let live = find(arguments.which.name.as_deref()).map_err(failure)?;
    let spec = Spec::read(&live.path).map_err(failure)?;
    if arguments.node >= spec.nodes {
        let nodes = if spec.nodes == 1 { "only 0".into() } else { format!("0 to {}", spec.nodes - 1) };
        return Err(Failure::usage(format!(
            "there is no node {}: fabric {} has {nodes}",
            arguments.node, live.name
        )));
    }
    let mut command = match arguments.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => {
            let directory = live.path.join(format!("node{}", arguments.node));
            let prompt = format!("({} node{}) ", live.name, arguments.node);
            interactive(&directory, &prompt)
                .map_err(|e| Failure::environment(format!("cannot write to {}: {e}", directory.display())))?
        }
    };
    command.envs(of_node(&live.path, &spec, arguments.node));
    // It takes this process's place: the terminal, job control and the exit code are the shell's own.
    let error = command.exec();
    let program = command.get_program().to_string_lossy().into_owned();
    Err(Failure::environment(format!("cannot run `{program}`: {error}")))
}

/// The user's shell, with a prompt that says where it is. Shells read the user's own settings and then ours.
fn interactive(directory: &Path, prompt: &str) -> std::io::Result<Command> {
    let shell = env::var_os("SHELL").filter(|s| !s.is_empty()).unwrap_or_else(|| DEFAULT.into());
    let name = Path::new(&shell).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut command = Command::new(&shell);
    match name.as_str() {
        "bash" => {
            let file = directory.join("bashrc");
            fs::write(&file, format!("[ -f ~/.bashrc ] && . ~/.bashrc\nPS1='{prompt}'\"$PS1\"\n"))?;
            command.arg("--rcfile").arg(file).arg("-i");
        }
        "zsh" => {
            let file = directory.join(".zshrc");
            let own =
                "ZDOTDIR=${SOFTEFA_ZDOTDIR:-$HOME}; [ -f \"$ZDOTDIR/.zshrc\" ] && . \"$ZDOTDIR/.zshrc\"";
            fs::write(&file, format!("{own}\nPROMPT='{prompt}'\"$PROMPT\"\n"))?;
            command.env("SOFTEFA_ZDOTDIR", env::var_os("ZDOTDIR").unwrap_or_default());
            command.env("ZDOTDIR", directory).arg("-i");
        }
        "fish" => {
            let function = format!("function fish_prompt; echo -n '{prompt}'; softefa_prompt; end");
            command.arg("-C").arg(format!("functions --copy fish_prompt softefa_prompt; {function}"));
        }
        _ => {
            command.env("PS1", format!("{prompt}$ ")).arg("-i");
        }
    }
    Ok(command)
}
