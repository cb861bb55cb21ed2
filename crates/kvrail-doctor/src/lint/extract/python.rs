//! Python programs: the engines that they configure, the agents that they make, the variables that they set.

use std::rc::Rc;

use super::super::facts::{Expansion, Variable};
use super::super::read::{Command, Key, Node, Position, Text, Word, python};
use super::Extractor;

impl Extractor {
    pub(super) fn program(&mut self, file: usize, text: &Text) {
        let program = python::program(text);
        let variable = |(key, value): (Key, Rc<Node>)| Variable {
            name: key.name,
            at: key.at,
            value: value.text().map(|text| {
                let expands = text.as_str() == "$";
                Word { expands, ..Word::plain(text.clone()) }
            }),
            expansion: Expansion::Python,
        };
        let mut variables: Vec<_> = program.environment.into_iter().map(variable).collect();
        let mut commands: Vec<_> = program.calls.iter().filter_map(|(key, node)| agent(key, node)).collect();
        let mut engines = Vec::new();
        for tree in program.trees {
            self.walk(file, &named(&tree), 0, &mut variables, &mut commands, &mut engines);
        }
        let index = self.workload(file, "the program".into(), Position::START, variables, commands, 0);
        if let Some(workload) = self.facts.workloads.get_mut(index) {
            workload.engines.extend(engines);
        }
    }
}

/// A configuration by whatever name it is kept under, as what it is.
fn named(tree: &Rc<Node>) -> Rc<Node> {
    let key = |key: &Key| Key { name: "kv_transfer_config".into(), ..key.clone() };
    match tree.entries() {
        [(name, value)] if value.get("kv_connector").is_some() => {
            Rc::new(Node::mapping(tree.at, vec![(key(name), Rc::clone(value))]))
        }
        [(name, _), ..] if tree.get("kv_connector").is_some() => {
            Rc::new(Node::mapping(tree.at, vec![(key(name), Rc::clone(tree))]))
        }
        _ => Rc::clone(tree),
    }
}

/// The backends of an agent, as the words of a command.
fn agent(called: &Key, arguments: &Node) -> Option<Command> {
    if called.name != "nixl_agent_config" {
        return None;
    }
    let backends = arguments.get("backends")?.items().iter().filter_map(|item| item.text());
    let word = |text: &str| Word::plain(Text::at_one_place(text, called.at));
    let mut words = vec![word("nixl_agent_config")];
    words.extend(backends.filter(|backend| backend.as_str() != "$").map(|name| Word::plain(name.clone())));
    Some(Command { words, ..Command::default() })
}
