//! Engines, on command lines and in settings, and vLLM's `kv_transfer_config` wherever it stands.

use std::rc::Rc;

use super::super::facts::{Engine, EngineKind, Expansion, Kind, Role, Variable, option};
use super::super::read::shell::{self, Command, Word};
use super::super::read::{Key, Node, Position, Text, yaml};
use super::{Broken, DEPTH_MAX, Extractor, recognise, scripts};

impl Extractor {
    /// Any other tree: variables under names like `environment`, `kv_transfer_config` wherever it stands, scripts in blocks.
    pub(super) fn settings(&mut self, file: usize, document: &Rc<Node>, name: String, depth: usize) {
        let mut variables = Vec::new();
        let mut commands = Vec::new();
        let mut engines = Vec::new();
        if document.get("kv_connector").is_some() {
            engines.push(configured(document.at, Rc::clone(document), document, None));
        }
        self.walk(file, document, depth, &mut variables, &mut commands, &mut engines);
        if variables.is_empty() && commands.is_empty() && engines.is_empty() {
            return;
        }
        variables.extend(scripts::exported(&commands));
        let index = self.workload(file, name, document.at, variables, commands, depth);
        if let Some(workload) = self.facts.workloads.get_mut(index) {
            workload.engines.extend(engines);
        }
    }

    pub(super) fn walk(
        &mut self,
        file: usize,
        node: &Rc<Node>,
        depth: usize,
        variables: &mut Vec<Variable>,
        commands: &mut Vec<Command>,
        engines: &mut Vec<Engine>,
    ) {
        for (key, value) in node.entries() {
            match key.name.as_str() {
                "env" | "envs" | "environment" | "env_vars" => {
                    variables.extend(environment(value));
                    continue;
                }
                "kv_transfer_config" | "kv-transfer-config" => {
                    let config = match value.text() {
                        Some(text) if text.as_str().trim_start().starts_with('{') => {
                            self.json(file, text, false)
                        }
                        Some(_) => None,
                        None => Some(Rc::clone(value)),
                    };
                    if let Some(config) = config {
                        engines.push(configured(key.at, config, node, None));
                    }
                    continue;
                }
                _ => {}
            }
            if let Some(text) = value.text() {
                let script =
                    text.as_str().contains('\n') || key.name.contains("preamble") || key.name == "command";
                if script && depth < DEPTH_MAX && recognise(text.as_str()) == Some(Kind::Shell) {
                    commands.extend(shell::commands(text));
                }
            } else {
                self.walk(file, value, depth, variables, commands, engines);
            }
        }
        for item in node.items() {
            self.walk(file, item, depth, variables, commands, engines);
        }
    }

    pub(super) fn engine(&mut self, file: usize, command: &Command, name: &str) -> Option<Engine> {
        let words = &command.words;
        let says = |text: &str| words.iter().any(|word| word.str() == text);
        let kind = if says("dynamo.vllm")
            || says("vllm.entrypoints.openai.api_server")
            || (says("vllm") || command.program() == "vllm") && says("serve")
        {
            EngineKind::Vllm
        } else if says("sglang.launch_server") || says("dynamo.sglang") || says("sglang") && says("serve") {
            EngineKind::Sglang
        } else if says("dynamo.trtllm") {
            EngineKind::Trtllm
        } else if words.iter().any(|word| word.str().starts_with("--kv-transfer-config")) {
            EngineKind::Vllm
        } else if says("--disaggregation-transfer-backend") {
            EngineKind::Sglang
        } else {
            return None;
        };
        let mut config = option(words, &["--kv-transfer-config", "--kv_transfer_config"])
            .filter(|word| !word.str().starts_with('$'))
            .and_then(|word| self.json(file, &word.text, word.expands));
        if config.is_none() {
            config = dotted(words);
        }
        let mut engine = match config {
            Some(config) => configured(command.at(), config, &Node::scalar(Text::default()), Some(name)),
            None => Engine {
                kind,
                at: command.at(),
                words: Vec::new(),
                variables: Vec::new(),
                config: None,
                tensor_parallel: None,
                role: role_of_name(name),
            },
        };
        engine.kind = kind;
        engine.variables = command.assignments.iter().map(Variable::from).collect();
        let size =
            option(words, &["--tensor-parallel-size", "--tensor_parallel_size", "-tp", "--tp", "--tp-size"]);
        engine.tensor_parallel = size.and_then(|word| Some((word.str().parse().ok()?, word.at())));
        engine.words.clone_from(words);
        let told = option(words, &["--disaggregation-mode"]).map(|word| word.str().to_owned());
        engine.role = match told.as_deref() {
            Some("prefill") => Some(Role::Prefill),
            Some("decode") => Some(Role::Decode),
            _ if says("--is-prefill-worker") => Some(Role::Prefill),
            _ if says("--is-decode-worker") => Some(Role::Decode),
            _ => engine.role,
        };
        Some(engine)
    }

    /// `--kv-transfer-config` as vLLM reads it. What an expansion would complete is not judged.
    pub(super) fn json(&mut self, file: usize, text: &Text, expands: bool) -> Option<Rc<Node>> {
        match yaml::parse_json(text) {
            Ok(node) => Some(node),
            Err(_) if expands => None,
            Err(error) => {
                self.broken.push(Broken { file, at: error.at, what: error.what });
                None
            }
        }
    }
}

/// `--kv-transfer-config.kv_role kv_both` as the object that it makes.
fn dotted(words: &[Word]) -> Option<Rc<Node>> {
    const PREFIX: &str = "--kv-transfer-config.";
    let mut entries: Vec<(Key, Rc<Node>)> = Vec::new();
    let mut extra: Vec<(Key, Rc<Node>)> = Vec::new();
    let mut at = None;
    for pair in words.windows(2) {
        let Some(path) = pair[0].str().strip_prefix(PREFIX) else { continue };
        at = at.or(Some(pair[0].at()));
        let value = Rc::new(Node::scalar(pair[1].text.clone()));
        match path.split_once('.') {
            Some(("kv_connector_extra_config", inner)) => {
                let name = inner.trim_end_matches('+').to_owned();
                let value =
                    if inner.ends_with('+') { Rc::new(Node::sequence(value.at, vec![value])) } else { value };
                extra.push((Key { name, at: pair[0].at() }, value));
            }
            _ => entries.push((Key { name: path.trim_end_matches('+').to_owned(), at: pair[0].at() }, value)),
        }
    }
    let at = at?;
    if !extra.is_empty() {
        let name = "kv_connector_extra_config".to_owned();
        entries.push((Key { name, at }, Rc::new(Node::mapping(at, extra))));
    }
    Some(Rc::new(Node::mapping(at, entries)))
}

/// An engine of a `kv_transfer_config`, which stands in settings or behind an option.
fn configured(at: Position, config: Rc<Node>, settings: &Node, name: Option<&str>) -> Engine {
    let role = match config.str_at(&["kv_role"]) {
        Some("kv_producer") => Some(Role::Prefill),
        Some("kv_consumer") => Some(Role::Decode),
        _ => name.and_then(role_of_name),
    };
    let size = ["tensor_parallel_size", "tensor-parallel-size"].iter().find_map(|name| {
        let node = settings.get(name)?;
        Some((node.str()?.parse().ok()?, node.at))
    });
    Engine {
        kind: EngineKind::Vllm,
        at,
        words: Vec::new(),
        variables: Vec::new(),
        config: Some(config),
        tensor_parallel: size,
        role,
    }
}

fn role_of_name(name: &str) -> Option<Role> {
    let name = name.to_ascii_lowercase();
    match (name.contains("prefill"), name.contains("decod")) {
        (true, false) => Some(Role::Prefill),
        (false, true) => Some(Role::Decode),
        _ => None,
    }
}

/// Variables as settings write them: by name, as `{name, value}`, or as `NAME=value`.
fn environment(node: &Node) -> Vec<Variable> {
    let variable = |name: &str, at: Position, value: &Node| Variable {
        name: name.to_owned(),
        at,
        value: value.text().map(|text| Word::plain(text.clone())),
        expansion: Expansion::Unknown,
    };
    let named = node.entries().iter().map(|(key, value)| variable(&key.name, key.at, value));
    let listed = node.items().iter().filter_map(|item| {
        if let (Some(name), Some(value)) = (item.str_at(&["name"]), item.get("value")) {
            return Some(variable(name, item.at, value));
        }
        let assignment = shell::assignment(&Word::plain(item.text()?.clone()))?;
        Some(Variable { expansion: Expansion::Unknown, ..Variable::from(&assignment) })
    });
    named.chain(listed).collect()
}
