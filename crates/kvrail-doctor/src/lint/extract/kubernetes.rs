//! Kubernetes objects: pods wherever they stand, as templates of whatever makes them.

use std::rc::Rc;

use super::super::facts::Kind;
use super::super::facts::{Container, Expansion, Pod, Quantity, Variable};
use super::super::read::shell::{self, Command, Word};
use super::super::read::{Key, Node, Text, yaml};
use super::{DEPTH_MAX, Extractor, recognise, scripts};
use crate::known;

impl Extractor {
    /// A Kubernetes object, or whatever else a document may be.
    pub(super) fn object(&mut self, file: usize, document: &Rc<Node>, depth: usize) {
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
        let replicas = ["replicas", "parallelism"].iter().find_map(|name| node.str_at(&[name])?.parse().ok());
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
                "workerTemplate" if node.get("leaderTemplate").is_some() => {
                    owner.replicas.saturating_mul(group.saturating_sub(1).max(1))
                }
                "workerTemplate" => owner.replicas.saturating_mul(group.max(1)),
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
        variables.extend(scripts::exported(&commands));
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

/// Whether a pod may run on nodes of one type only, known or not.
#[must_use]
pub fn names_instance(spec: &Node) -> bool {
    let selected = spec.get("nodeSelector").map(|node| node.entries()).unwrap_or_default();
    selected.iter().any(|(key, _)| key.name.ends_with("instance-type")) || instance_of(spec).is_some()
}
