//! From a file's text to what it says about a deployment.

mod engines;
mod kubernetes;
mod python;
mod scripts;

use std::rc::Rc;

use super::facts::{Facts, File, Kind, Variable, Workload};
use super::read::{Command, Position, Text, YamlError, yaml};

pub use kubernetes::{instance_of, names_instance};
pub use scripts::slurm_options;

/// YAML in YAML, scripts in YAML in scripts.
const DEPTH_MAX: usize = 4;

/// Something in a file that whoever reads it would refuse.
#[derive(Clone, PartialEq, Debug)]
pub struct Broken {
    /// The file.
    pub file: usize,
    /// Where.
    pub at: Position,
    /// What is wrong.
    pub what: String,
}

/// What is read of files, and what in them is broken.
#[derive(Debug, Default)]
pub struct Extractor {
    /// What they say.
    pub facts: Facts,
    /// `--kv-transfer-config` that is no JSON.
    pub broken: Vec<Broken>,
}

/// What a file is, by what stands in it. `None` where it looks like none of the kinds.
#[must_use]
pub fn recognise(text: &str) -> Option<Kind> {
    let significant =
        || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    if text.contains("#SBATCH") {
        return Some(Kind::Slurm);
    }
    if let Some(interpreter) = text.strip_prefix("#!").and_then(|rest| rest.lines().next()) {
        return Some(if interpreter.contains("python") { Kind::Python } else { Kind::Shell });
    }
    let first = significant().next()?;
    if is_python(first) {
        return Some(Kind::Python);
    }
    if first.starts_with(['{', '[']) {
        return Some(of_tree(text));
    }
    let instruction = first.split_whitespace().next().unwrap_or_default();
    if matches!(instruction, "FROM" | "ARG") && significant().any(|line| line.starts_with("FROM ")) {
        return Some(Kind::Dockerfile);
    }
    let assigns = |line: &str| {
        line.split_once('=').is_some_and(|(name, _)| {
            let name = name.strip_prefix("export ").unwrap_or(name);
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    if significant().all(|line| assigns(line) && !line.contains("$(") && !line.contains(" #"))
        && !significant().any(|l| l.starts_with("export "))
    {
        return Some(Kind::Environment);
    }
    let keyed = |line: &str| {
        line.split_once(':').is_some_and(|(key, rest)| {
            let key = key.trim_start_matches("- ").trim_matches(['"', '\'']);
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-./ ".contains(c);
            !key.is_empty()
                && key.chars().all(plain)
                && !key.contains("  ")
                && (rest.is_empty() || rest.starts_with(' '))
        })
    };
    if first == "---" || first.starts_with("%YAML") || first.starts_with("{{") || keyed(first) {
        return Some(of_tree(text));
    }
    let printable =
        text.chars().take(4096).all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t' | '\x1b'));
    printable.then_some(Kind::Shell)
}

/// Whether a line begins a Python program: no other kind of file has such a first line.
fn is_python(first: &str) -> bool {
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && text.chars().all(|c| c.is_alphanumeric() || "_.".contains(c))
    };
    let (word, rest) = first.split_once(' ').unwrap_or((first, ""));
    match word {
        "import" => rest.split(',').all(|name| name.trim().split(" as ").all(|part| is_name(part.trim()))),
        "from" => rest.split_once(" import ").is_some_and(|(module, _)| is_name(module.trim())),
        "def" | "class" | "async" | "with" => rest.ends_with(':'),
        _ if first.starts_with("\"\"\"") => true,
        name => is_name(name) && rest.starts_with("= "),
    }
}

fn of_tree(text: &str) -> Kind {
    let has = |word: &str| {
        text.lines().any(|line| line.trim_start().trim_start_matches(['"', '-', ' ']).starts_with(word))
    };
    if has("apiVersion") && has("kind") {
        Kind::Kubernetes
    } else if has("applications") || has("runtime_env") {
        Kind::Ray
    } else {
        Kind::Settings
    }
}

impl Extractor {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it is not what its kind is written in. What stands before that place has been read.
    pub fn add(&mut self, name: &str, text: &Text, kind: Kind) -> Result<(), YamlError> {
        let file = self.facts.files.len();
        self.facts.files.push(File { name: name.to_owned(), kind, documents: Vec::new() });
        match kind {
            Kind::Kubernetes | Kind::Ray | Kind::Settings => return self.tree(file, text, 0),
            Kind::Slurm => {
                self.batch(file, text);
                self.script(file, text, "the batch script".into(), 0);
            }
            Kind::Shell => self.script(file, text, "the script".into(), 0),
            Kind::Dockerfile => self.dockerfile(file, text),
            Kind::Environment => self.environment(file, text),
            Kind::Python => self.program(file, text),
        }
        Ok(())
    }

    fn tree(&mut self, file: usize, text: &Text, depth: usize) -> Result<(), YamlError> {
        let (documents, error) = yaml::parse(text);
        for document in &documents {
            if let Some(file) = self.facts.files.get_mut(file) {
                file.documents.push(Rc::clone(document));
            }
            self.object(file, document, depth);
        }
        error.map_or(Ok(()), Err)
    }

    /// A workload with its commands made uniform and its engines found.
    fn workload(
        &mut self,
        file: usize,
        name: String,
        at: Position,
        variables: Vec<Variable>,
        mut commands: Vec<Command>,
        depth: usize,
    ) -> usize {
        for command in &mut commands {
            command.words =
                std::mem::take(&mut command.words).into_iter().flat_map(scripts::split_option).collect();
        }
        let engines = commands.iter().filter_map(|command| self.engine(file, command, &name)).collect();
        if depth < DEPTH_MAX {
            // Manifests that a script writes or applies.
            let documents: Vec<Text> =
                commands.iter().filter_map(|command| command.document.clone()).collect();
            for document in documents {
                if matches!(recognise(document.as_str()), Some(Kind::Kubernetes)) {
                    let _ = self.tree(file, &document, depth + 1);
                }
            }
        }
        self.facts.workloads.push(Workload {
            file,
            name,
            at,
            variables,
            commands,
            engines,
            container: None,
            pod: None,
        });
        self.facts.workloads.len() - 1
    }
}
