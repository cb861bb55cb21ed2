//! Scripts, Dockerfiles, env files and Slurm's options in them.

use super::super::facts::{Batch, Expansion, Variable};
use super::super::read::shell::{self, Command, Word};
use super::super::read::{Position, Text};
use super::Extractor;

impl Extractor {
    pub(super) fn script(&mut self, file: usize, text: &Text, name: String, depth: usize) {
        let commands = shell::commands(text);
        let variables = exported(&commands);
        self.workload(file, name, Position::START, variables, commands, depth);
    }

    pub(super) fn dockerfile(&mut self, file: usize, text: &Text) {
        let commands = shell::commands(text);
        let mut variables = Vec::new();
        for command in &commands {
            if command.words.first().is_some_and(|word| matches!(word.str(), "ENV" | "ARG")) {
                variables.extend(command.assignments.iter().map(Variable::from));
                // The older form: ENV NAME value.
                if let (true, [_, name, value, ..]) =
                    (command.assignments.is_empty(), command.words.as_slice())
                {
                    let (name, at) = (name.str().to_owned(), name.at());
                    variables.push(Variable {
                        name,
                        at,
                        value: Some(value.clone()),
                        expansion: Expansion::Shell,
                    });
                }
            }
        }
        self.workload(file, "the image".into(), Position::START, variables, commands, 0);
    }

    pub(super) fn environment(&mut self, file: usize, text: &Text) {
        let mut variables = Vec::new();
        for (begin, line) in text.lines().take(shell::COMMANDS_MAX) {
            let indent = line.len() - line.trim_start().len();
            let line = line.trim();
            let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
                continue;
            };
            let name = name.strip_prefix("export ").unwrap_or(name);
            let from = begin + indent + (line.len() - value.len());
            let unquoted = value.trim_matches(['"', '\'']);
            let from = from + value.find(unquoted).unwrap_or(0);
            variables.push(Variable {
                name: name.to_owned(),
                at: text.at(begin + indent),
                value: Some(Word::plain(text.slice(from..from + unquoted.len()))),
                expansion: Expansion::Unknown,
            });
        }
        self.workload(file, "the environment".into(), Position::START, variables, Vec::new(), 0);
    }

    pub(super) fn batch(&mut self, file: usize, text: &Text) {
        let mut batch = Batch { file, ..Batch::default() };
        for (begin, line) in text.lines() {
            let Some(options) = line.strip_prefix("#SBATCH") else { continue };
            let base = begin + "#SBATCH".len();
            batch.at = Some(text.at(begin));
            let commands = shell::commands(&text.slice(base..base + options.len()));
            batch
                .options
                .extend(commands.first().map(|command| slurm_options(&command.words)).unwrap_or_default());
        }
        self.facts.batches.push(batch);
    }
}

/// Variables that a script sets for what comes after.
pub(super) fn exported(commands: &[Command]) -> Vec<Variable> {
    let lasting = commands.iter().filter(|command| command.assigns_for_good());
    lasting.flat_map(|command| command.assignments.iter().map(Variable::from)).collect()
}

/// `--name=value` as two words.
pub(super) fn split_option(word: Word) -> Vec<Word> {
    let text = word.str();
    let Some((name, value)) = text.split_once('=').filter(|_| text.starts_with("--")) else {
        return vec![word];
    };
    let (name, value) = (name.len(), value.len());
    let whole = text.len();
    let first = Word { text: word.text.slice(0..name), ..word.clone() };
    let rest = word.text.slice(whole - value..whole);
    let second = Word { at: Some(rest.start()), text: rest, expands: word.expands, quoted: true };
    vec![first, second]
}

/// Slurm's options by their long names, whichever way they are written.
#[must_use]
pub fn slurm_options(words: &[Word]) -> Vec<(String, Word)> {
    let long = |letter: char| match letter {
        'N' => Some("nodes"),
        'n' => Some("ntasks"),
        'G' => Some("gpus"),
        'c' => Some("cpus-per-task"),
        _ => None,
    };
    let words: Vec<Word> = words.iter().cloned().flat_map(split_option).collect();
    let mut options = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let text = word.str();
        let next = || words.get(index + 1).filter(|next| !next.str().starts_with('-'));
        if let Some(name) = text.strip_prefix("--") {
            options.push((name.to_owned(), next().cloned().unwrap_or_default()));
        } else if let Some(short) = text.strip_prefix('-')
            && let Some(name) = short.chars().next().and_then(long)
        {
            let value = if short.len() > 1 {
                Word::plain(word.text.slice(2..text.len()))
            } else {
                next().cloned().unwrap_or_default()
            };
            options.push((name.to_owned(), value));
        }
    }
    options
}
