//! From a file's text to what it says about a deployment.

use std::rc::Rc;

use super::facts::{
    Batch, Container, Engine, EngineKind, Expansion, Facts, File, Kind, Pod, Quantity, Role, Variable,
    Workload, option,
};
use super::read::shell::{self, Command, Word};
use super::read::{Key, Node, Position, Text, YamlError, yaml};
use crate::known;

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
    if text.starts_with("#!") {
        return Some(Kind::Shell);
    }
    let first = significant().next()?;
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
    if significant().all(|line| assigns(line) && !line.contains("$("))
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

    /// A Kubernetes object, or whatever else a document may be.
    fn object(&mut self, file: usize, document: &Rc<Node>, depth: usize) {
        if document.get("kind").is_some() && document.get("items").is_some() {
            for item in document.get("items").map(|items| items.items()).unwrap_or_default() {
                self.object(file, item, depth);
            }
            return;
        }
        let kind = document.str_at(&["kind"]).unwrap_or_default();
        let name = document.str_at(&["metadata", "name"]).unwrap_or("unnamed");
        if document.get("apiVersion").is_some() {
            let owner = Owner { kind, name, replicas: 1, labels: labels(document) };
            self.pods(file, document, &owner, 0);
            if kind == "ConfigMap" {
                self.config_map(file, document, depth);
            }
            for (owner, environment) in runtime_environments(document) {
                if depth < DEPTH_MAX {
                    let (documents, _) = yaml::parse(environment);
                    for inner in documents {
                        self.settings(file, &inner, owner.to_owned(), depth + 1);
                    }
                }
            }
        } else {
            self.settings(file, document, "the settings".into(), depth);
        }
    }

    /// Files within a ConfigMap.
    fn config_map(&mut self, file: usize, document: &Node, depth: usize) {
        if depth >= DEPTH_MAX {
            return;
        }
        for (key, value) in document.get("data").map(|data| data.entries()).unwrap_or_default() {
            let Some(text) = value.text().filter(|text| text.as_str().contains('\n')) else { continue };
            match recognise(text.as_str()) {
                Some(Kind::Shell | Kind::Slurm) => {
                    self.script(file, text, format!("{} of a ConfigMap", key.name), depth + 1)
                }
                Some(Kind::Kubernetes | Kind::Ray | Kind::Settings) => {
                    let _ = self.tree(file, text, depth + 1);
                }
                _ => {}
            }
        }
    }

    /// Everything in an object that is a pod or a pod's template.
    fn pods(&mut self, file: usize, node: &Rc<Node>, owner: &Owner<'_>, depth: usize) {
        if depth > 40 {
            return;
        }
        let replicas = ["replicas", "size", "completions", "parallelism"]
            .iter()
            .find_map(|name| node.str_at(&[name])?.parse().ok());
        let mut own =
            Owner { replicas: replicas.unwrap_or(owner.replicas), labels: owner.labels.clone(), ..*owner };
        if let Some(spec) = node.get("spec").filter(|spec| is_pod_spec(spec)) {
            let template = labels(node);
            if !template.is_empty() {
                own.labels = template;
            }
            self.pod(file, spec, &own);
            return;
        }
        if let Some(services) = node.get("services").filter(|_| own.kind == "DynamoGraphDeployment") {
            for (key, service) in services.entries() {
                self.dynamo(file, &key.name, service, &own);
            }
            return;
        }
        if own.kind == "DynamoComponentDeployment" && node.get("extraPodSpec").is_some() {
            self.dynamo(file, own.name, node, &own);
            return;
        }
        for (key, value) in node.entries() {
            if key.name == "metadata" || key.name == "status" {
                continue;
            }
            let named = value.str_at(&["groupName"]).map(|group| format!("{}/{group}", own.name));
            let worker = matches!(
                key.name.as_str(),
                "Worker" | "Launcher" | "Master" | "leaderTemplate" | "workerTemplate"
            );
            let name = named.unwrap_or_else(|| {
                if worker { format!("{}/{}", own.name, key.name) } else { own.name.to_owned() }
            });
            // A LeaderWorkerSet's groups have one leader and size - 1 workers each.
            let group: u64 = node.str_at(&["size"]).and_then(|size| size.parse().ok()).unwrap_or(1);
            let replicas = match key.name.as_str() {
                "leaderTemplate" => owner.replicas,
                "workerTemplate" => owner.replicas.saturating_mul(group.saturating_sub(1).max(1)),
                _ => own.replicas,
            };
            let inner = Owner { name: &name, replicas, labels: own.labels.clone(), ..own };
            if value.items().is_empty() {
                self.pods(file, value, &inner, depth + 1);
            } else {
                for item in value.items() {
                    let group = item.str_at(&["groupName"]).or_else(|| item.str_at(&["name"]));
                    let name = group.map_or_else(|| name.clone(), |group| format!("{}/{group}", own.name));
                    self.pods(
                        file,
                        item,
                        &Owner { name: &name, labels: own.labels.clone(), ..inner },
                        depth + 1,
                    );
                }
            }
        }
    }

    fn pod(&mut self, file: usize, spec: &Rc<Node>, owner: &Owner<'_>) {
        let pod = self.facts.pods.len();
        self.facts.pods.push(Pod {
            file,
            kind: owner.kind.to_owned(),
            name: owner.name.to_owned(),
            replicas: owner.replicas,
            labels: owner.labels.clone(),
            spec: Rc::clone(spec),
            at: spec.at,
            workloads: Vec::new(),
        });
        for container in spec.get("containers").map(|containers| containers.items()).unwrap_or_default() {
            let resources = container.get("resources");
            let of =
                |name: &str| quantities(resources.and_then(|resources| resources.get(name)).map(Rc::as_ref));
            self.container(file, pod, container, of("requests"), of("limits"), &[]);
        }
    }

    /// A service of Dynamo's graph: its own way to write resources and variables around a container.
    fn dynamo(&mut self, file: usize, name: &str, service: &Rc<Node>, owner: &Owner<'_>) {
        let empty = Rc::new(Node::mapping(service.at, Vec::new()));
        let spec = service.get("extraPodSpec").unwrap_or(&empty);
        let pod = self.facts.pods.len();
        self.facts.pods.push(Pod {
            file,
            kind: owner.kind.to_owned(),
            name: format!("{}/{name}", owner.name),
            replicas: service.str_at(&["replicas"]).and_then(|text| text.parse().ok()).unwrap_or(1),
            labels: service.get("labels").map(|node| pairs(node)).unwrap_or_default(),
            spec: Rc::clone(spec),
            at: service.at,
            workloads: Vec::new(),
        });
        let container = spec.get("mainContainer").unwrap_or(&empty);
        let of = |which: &str| {
            let mut all = quantities(service.path(&["resources", which]));
            for quantity in &mut all {
                if quantity.name == "gpu" {
                    quantity.name = "nvidia.com/gpu".into();
                }
            }
            all.extend(quantities(service.path(&["resources", which, "custom"])));
            all.extend(quantities(container.path(&["resources", which])));
            all
        };
        let envs = service.get("envs").map(|envs| envs.items().to_vec()).unwrap_or_default();
        self.container(file, pod, container, of("requests"), of("limits"), &envs);
    }

    fn container(
        &mut self,
        file: usize,
        pod: usize,
        node: &Rc<Node>,
        requests: Vec<Quantity>,
        limits: Vec<Quantity>,
        envs: &[Rc<Node>],
    ) {
        let pod_name = self.facts.pods.get(pod).map(|pod| pod.name.clone()).unwrap_or_default();
        let name = node.str_at(&["name"]).unwrap_or("main").to_owned();
        let mut variables: Vec<Variable> = Vec::new();
        for entry in envs.iter().chain(node.get("env").map(|env| env.items()).unwrap_or_default()) {
            if let Some(name) = entry.get("name").and_then(|name| name.text()) {
                variables.push(Variable {
                    name: name.as_str().to_owned(),
                    value: entry.get("value").and_then(|value| value.text()).map(kubernetes_word),
                    at: name.start(),
                    expansion: Expansion::Kubernetes,
                });
            }
        }
        let words = ["command", "args"].iter().filter_map(|key| node.get(key)).flat_map(|list| list.items());
        let words: Vec<Word> = words.filter_map(|item| item.text().map(kubernetes_word)).collect();
        let mut commands = Vec::new();
        if !words.is_empty() {
            let command = Command { words, ..Command::default() };
            // What a shell is given is a script; its positions are those of the manifest.
            let script = inner_script(&command);
            match script {
                Some(script) => commands = shell::commands(&script),
                None => commands.push(command),
            }
        }
        let image = node.get("image").and_then(|image| image.text());
        let container = Container {
            node: Rc::clone(node),
            name: name.clone(),
            requests,
            limits,
            resources_at: node.key("resources"),
            image: image.map(|text| (text.as_str().to_owned(), text.start())),
        };
        let index =
            self.workload(file, format!("container {name} of {pod_name}"), node.at, variables, commands, 0);
        if let Some(workload) = self.facts.workloads.get_mut(index) {
            workload.container = Some(container);
            workload.pod = Some(pod);
        }
        if let Some(pod) = self.facts.pods.get_mut(pod) {
            pod.workloads.push(index);
        }
    }

    /// Any other tree: variables under names like `environment`, `kv_transfer_config` wherever it stands, scripts in blocks.
    fn settings(&mut self, file: usize, document: &Rc<Node>, name: String, depth: usize) {
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
        let index = self.workload(file, name, document.at, variables, commands, depth);
        if let Some(workload) = self.facts.workloads.get_mut(index) {
            workload.engines.extend(engines);
        }
    }

    fn walk(
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

    fn script(&mut self, file: usize, text: &Text, name: String, depth: usize) {
        let commands = shell::commands(text);
        let mut variables = Vec::new();
        for command in &commands {
            let exports =
                matches!(command.program(), "export" | "declare" | "typeset" | "readonly" | "local");
            if command.words.is_empty() || exports {
                variables.extend(command.assignments.iter().map(Variable::from));
            }
        }
        self.workload(file, name, Position::START, variables, commands, depth);
    }

    fn dockerfile(&mut self, file: usize, text: &Text) {
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

    fn environment(&mut self, file: usize, text: &Text) {
        let mut variables = Vec::new();
        for (begin, line) in text.lines() {
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

    fn batch(&mut self, file: usize, text: &Text) {
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
            command.words = std::mem::take(&mut command.words).into_iter().flat_map(split_option).collect();
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

    fn engine(&mut self, file: usize, command: &Command, name: &str) -> Option<Engine> {
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
    fn json(&mut self, file: usize, text: &Text, expands: bool) -> Option<Rc<Node>> {
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

/// What an object says of the pods in it.
#[derive(Clone, Debug)]
struct Owner<'a> {
    kind: &'a str,
    name: &'a str,
    replicas: u64,
    labels: Vec<(String, String)>,
}

fn is_pod_spec(spec: &Node) -> bool {
    spec.get("containers").is_some_and(|containers| {
        containers.items().iter().any(|c| c.get("name").is_some() || c.get("image").is_some())
    })
}

fn labels(node: &Node) -> Vec<(String, String)> {
    node.path(&["metadata", "labels"]).map(pairs).unwrap_or_default()
}

fn pairs(node: &Node) -> Vec<(String, String)> {
    node.entries()
        .iter()
        .filter_map(|(key, value)| Some((key.name.clone(), value.str()?.to_owned())))
        .collect()
}

fn quantities(node: Option<&Node>) -> Vec<Quantity> {
    let entries = node.map(Node::entries).unwrap_or_default();
    let of = |(key, value): &(Key, Rc<Node>)| {
        Some(Quantity { name: key.name.clone(), value: value.str()?.to_owned(), at: key.at })
    };
    entries.iter().filter_map(of).collect()
}

/// Text in a manifest: a shell's `$NAME` in it stays as it is, `$(NAME)` is replaced.
fn kubernetes_word(text: &Text) -> Word {
    let mut word = Word::plain(text.clone());
    word.expands = text.as_str().contains("$(");
    word
}

/// The script that a container's command line gives to a shell.
fn inner_script(command: &Command) -> Option<Text> {
    let shell = command
        .words
        .iter()
        .position(|word| matches!(word.str().rsplit('/').next().unwrap_or_default(), "sh" | "bash"))?;
    let rest = &command.words[shell + 1..];
    let flag = rest.iter().take(4).position(|word| {
        let text = word.str();
        text.starts_with('-') && !text.starts_with("--") && text.contains('c')
    })?;
    Some(rest.get(flag + 1)?.text.clone())
}

/// `--name=value` as two words.
fn split_option(word: Word) -> Vec<Word> {
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

/// Ray's environments within its Kubernetes objects: YAML in a string.
fn runtime_environments(document: &Node) -> Vec<(&'static str, &Text)> {
    let mut found = Vec::new();
    for (name, told) in [("runtimeEnvYAML", "runtimeEnvYAML"), ("serveConfigV2", "serveConfigV2")] {
        if let Some(text) = document.path(&["spec", name]).and_then(|node| node.text()) {
            found.push((told, text));
        }
    }
    found
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

/// Instance types that a file names, as a selector of nodes or a partition's comment.
#[must_use]
pub fn instance_of(spec: &Node) -> Option<&'static known::Instance> {
    let selected = spec.get("nodeSelector").map(|node| node.entries().to_vec()).unwrap_or_default();
    let selected = selected
        .iter()
        .filter(|(key, _)| key.name.ends_with("instance-type"))
        .find_map(|(_, value)| known::instance(value.str()?));
    if selected.is_some() {
        return selected;
    }
    let required =
        ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    let terms = spec.path(&required)?.items();
    let expressions =
        terms.iter().filter_map(|term| term.get("matchExpressions")).flat_map(|node| node.items());
    let mut values = expressions
        .filter(|expression| expression.str_at(&["key"]).is_some_and(|key| key.ends_with("instance-type")))
        .filter_map(|expression| match expression.get("values")?.items() {
            [one] => one.str().and_then(known::instance),
            _ => None,
        });
    values.next()
}
