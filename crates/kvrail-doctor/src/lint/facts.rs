//! What files say about a deployment, whatever they are written in: pods, containers, scripts, engines, variables. Rules ask these, so
//! that a variable is judged the same in a pod, a batch script and a Dockerfile.

use std::rc::Rc;

use super::read::shell::{Assignment, Command, Word};
use super::read::{Node, Position};
use crate::finding::Location;
use crate::known;

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Kubernetes objects, as YAML or JSON.
    Kubernetes,
    /// A Ray Serve configuration or job.
    Ray,
    /// A batch script for Slurm.
    Slurm,
    /// A shell script, a preamble, a command line.
    Shell,
    /// A Dockerfile.
    Dockerfile,
    /// `NAME=value` lines.
    Environment,
    /// A Python program.
    Python,
    /// An engine's settings, a launcher's job, any other YAML or JSON.
    Settings,
}

impl Kind {
    /// As it is told and asked for.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Ray => "ray",
            Self::Slurm => "slurm",
            Self::Shell => "shell",
            Self::Dockerfile => "dockerfile",
            Self::Environment => "env",
            Self::Python => "python",
            Self::Settings => "settings",
        }
    }

    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Kubernetes,
        Self::Ray,
        Self::Slurm,
        Self::Shell,
        Self::Dockerfile,
        Self::Environment,
        Self::Python,
        Self::Settings,
    ];
}

/// What would replace `$NAME` in a variable's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expansion {
    /// A shell, or the build of an image.
    Shell,
    /// Kubernetes, which knows `$(NAME)` only.
    Kubernetes,
    /// Nobody: a Python program says what it means.
    Python,
    /// Nobody that is known.
    Unknown,
}

/// A variable of a process.
#[derive(Clone, PartialEq, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value; `None` where that comes from elsewhere (a secret, a field).
    pub value: Option<Word>,
    /// Where its name stands.
    pub at: Position,
    /// What would replace `$NAME` in it.
    pub expansion: Expansion,
}

impl Variable {
    /// The value, where it is written down and no expansion stands in it.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        self.value.as_ref().filter(|value| !value.expands).map(Word::str)
    }

    /// Where the value stands.
    #[must_use]
    pub fn value_at(&self) -> Position {
        self.value.as_ref().map_or(self.at, Word::at)
    }

    /// How it is written with another value.
    #[must_use]
    pub fn written(&self, value: &str) -> String {
        match self.expansion {
            Expansion::Shell => format!("export {}={value}", self.name),
            Expansion::Kubernetes => format!("- {{name: {}, value: \"{value}\"}}", self.name),
            Expansion::Python => format!("os.environ[\"{}\"] = \"{value}\"", self.name),
            Expansion::Unknown => format!("{}: \"{value}\"", self.name),
        }
    }
}

impl From<&Assignment> for Variable {
    fn from(assignment: &Assignment) -> Self {
        Self {
            name: assignment.name.clone(),
            value: Some(assignment.value.clone()),
            at: assignment.at,
            expansion: Expansion::Shell,
        }
    }
}

/// The environment of one or more processes: a container, a script, a settings file.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    /// The file that it is in.
    pub file: usize,
    /// What it is called: `container worker of pod bench-1`, `the script`.
    pub name: String,
    /// Where it begins.
    pub at: Position,
    /// Variables that are set for it as a whole.
    pub variables: Vec<Variable>,
    /// What it runs, in order.
    pub commands: Vec<Command>,
    /// The engines among that.
    pub engines: Vec<Engine>,
    /// Its container, where it is one.
    pub container: Option<Container>,
    /// The pod that it is in, where it is in one.
    pub pod: Option<usize>,
}

impl Workload {
    /// The last value of a variable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&Variable> {
        self.variables.iter().rev().find(|variable| variable.name == name)
    }

    /// The last value of a variable, where it is written down.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.variable(name)?.literal()
    }

    /// Variables that are set for single commands.
    pub fn scoped(&self) -> impl Iterator<Item = Variable> {
        let single = self.commands.iter().filter(|command| !command.assigns_for_good());
        single.flat_map(|command| command.assignments.iter().map(Variable::from))
    }

    /// Whether one of its commands runs a program.
    #[must_use]
    pub fn runs(&self, program: &str) -> bool {
        self.commands
            .iter()
            .any(|command| command.words.iter().any(|word| word.str().rsplit('/').next() == Some(program)))
    }

    /// Whether it wants libfabric's EFA provider: what says so, and where.
    #[must_use]
    pub fn wants_efa(&self) -> Option<(String, Position)> {
        let provider = self.variable("FI_PROVIDER").filter(|variable| {
            let value = variable.literal().unwrap_or_default();
            value
                .split(',')
                .any(|name| name.eq_ignore_ascii_case("efa") || name.eq_ignore_ascii_case("efa-direct"))
        });
        if let Some(variable) = provider {
            return Some((format!("FI_PROVIDER={}", variable.literal().unwrap_or_default()), variable.at));
        }
        let engine = self.engines.iter().find_map(|engine| {
            let (name, at) = engine.backends().into_iter().find(|(name, _)| {
                matches!(
                    known::backend(name),
                    known::Backend::Exact("LIBFABRIC") | known::Backend::Meant("LIBFABRIC")
                )
            })?;
            Some((format!("backend {name}"), at))
        });
        engine.or_else(|| {
            let option = self.commands.iter().find_map(|command| option(&command.words, &["--backend"]))?;
            option
                .str()
                .eq_ignore_ascii_case("libfabric")
                .then(|| (format!("--backend {}", option.str()), option.at()))
        })
    }

    /// Whether it measures: nixlbench and its like.
    #[must_use]
    pub fn measures(&self) -> bool {
        const PROGRAMS: [&str; 8] = [
            "nixlbench",
            "ucx_perftest",
            "fi_rdm_bw",
            "fi_rma_bw",
            "fi_rdm_tagged_bw",
            "ib_write_bw",
            "all_reduce_perf",
            "kvbench",
        ];
        PROGRAMS.iter().any(|program| self.runs(program))
    }
}

/// Which engine a command line starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineKind {
    /// vLLM, itself or within Dynamo or Ray.
    Vllm,
    /// SGLang, itself or within Dynamo.
    Sglang,
    /// TensorRT-LLM within Dynamo.
    Trtllm,
}

/// What an engine does of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Makes KV caches.
    Prefill,
    /// Takes them.
    Decode,
}

/// An engine that is started, or configured.
#[derive(Clone, PartialEq, Debug)]
pub struct Engine {
    /// Which.
    pub kind: EngineKind,
    /// Where its command line begins.
    pub at: Position,
    /// Its words; none where it is configured by a file.
    pub words: Vec<Word>,
    /// Variables before its command line.
    pub variables: Vec<Variable>,
    /// vLLM's `--kv-transfer-config`.
    pub config: Option<Rc<Node>>,
    /// Its tensor-parallel size, where it is written down.
    pub tensor_parallel: Option<(u32, Position)>,
    /// What it does, where that is told.
    pub role: Option<Role>,
}

impl Engine {
    /// An option's value.
    #[must_use]
    pub fn option(&self, names: &[&str]) -> Option<&Word> {
        option(&self.words, names)
    }

    /// Whether vLLM's NIXL connector is configured, by itself or within others: its object.
    #[must_use]
    pub fn nixl(&self) -> Option<&Node> {
        connectors(self.config.as_deref()?, 0)
            .into_iter()
            .find(|node| node.str_at(&["kv_connector"]).is_some_and(|name| name.starts_with("Nixl")))
    }

    /// NIXL backends that it names, each with its place.
    #[must_use]
    pub fn backends(&self) -> Vec<(String, Position)> {
        let mut named = Vec::new();
        for connector in self.config.as_deref().map(|config| connectors(config, 0)).unwrap_or_default() {
            if let Some(backends) = connector.path(&["kv_connector_extra_config", "backends"]) {
                let one = backends.text().map(|text| (text.as_str().to_owned(), text.start()));
                named.extend(one);
                named.extend(
                    backends.items().iter().filter_map(|item| Some((item.str()?.to_owned(), item.at))),
                );
            }
        }
        named
    }
}

/// A connector's object, and those of the connectors that a MultiConnector holds.
#[must_use]
pub fn connectors(node: &Node, depth: usize) -> Vec<&Node> {
    let mut all = vec![node];
    if depth < 4
        && let Some(inner) = node.path(&["kv_connector_extra_config", "connectors"])
    {
        all.extend(inner.items().iter().flat_map(|node| connectors(node, depth + 1)));
    }
    all
}

/// The value of an option: `--name value` or `--name=value`.
#[must_use]
pub fn option<'a>(words: &'a [Word], names: &[&str]) -> Option<&'a Word> {
    words
        .iter()
        .enumerate()
        .rev()
        .find_map(|(index, word)| if names.contains(&word.str()) { words.get(index + 1) } else { None })
}

/// A container's settings that rules look at.
#[derive(Clone, PartialEq, Debug)]
pub struct Container {
    /// Its object.
    pub node: Rc<Node>,
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub requests: Vec<Quantity>,
    /// What it may have.
    pub limits: Vec<Quantity>,
    /// Where its resources stand.
    pub resources_at: Option<Position>,
    /// Its image.
    pub image: Option<(String, Position)>,
}

/// An amount of a resource.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantity {
    /// As in `nvidia.com/gpu`.
    pub name: String,
    /// As it is written.
    pub value: String,
    /// Where.
    pub at: Position,
}

impl Container {
    /// What it will have of a resource: Kubernetes takes the limit where there is one.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Quantity> {
        let of = |all: &'_ [Quantity]| all.iter().position(|quantity| quantity.name == name);
        of(&self.limits).map(|i| &self.limits[i]).or_else(|| of(&self.requests).map(|i| &self.requests[i]))
    }

    /// A whole amount of a resource; none counts as 0.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.resource(name).and_then(|quantity| quantity.value.parse().ok()).unwrap_or(0)
    }

    /// GPUs.
    #[must_use]
    pub fn gpus(&self) -> u64 {
        self.count("nvidia.com/gpu")
    }

    /// EFA devices.
    #[must_use]
    pub fn efas(&self) -> u64 {
        self.count("vpc.amazonaws.com/efa")
    }

    /// Whether its security context lets it do everything.
    #[must_use]
    pub fn privileged(&self) -> bool {
        self.node.path(&["securityContext", "privileged"]).is_some_and(Node::is_true)
    }

    /// Whether it has a capability.
    #[must_use]
    pub fn capable(&self, capability: &str) -> bool {
        let added = self.node.path(&["securityContext", "capabilities", "add"]);
        added.is_some_and(|added| {
            added.items().iter().filter_map(|item| item.str()).any(|name| {
                let name = name.to_ascii_uppercase();
                name.strip_prefix("CAP_").unwrap_or(&name) == capability || name == "ALL"
            })
        })
    }
}

/// A pod, or the template of pods.
#[derive(Clone, PartialEq, Debug)]
pub struct Pod {
    /// The file that it is in.
    pub file: usize,
    /// The kind of object that makes it: `Pod`, `Deployment`.
    pub kind: String,
    /// What it is called.
    pub name: String,
    /// How many there are.
    pub replicas: u64,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its spec.
    pub spec: Rc<Node>,
    /// Where it begins.
    pub at: Position,
    /// Its containers, among the workloads.
    pub workloads: Vec<usize>,
}

/// Slurm's options of a batch script.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Batch {
    /// The file.
    pub file: usize,
    /// Options of `#SBATCH`, by their long names.
    pub options: Vec<(String, Word)>,
    /// Where the last of them stands.
    pub at: Option<Position>,
}

impl Batch {
    /// An option's value.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&Word> {
        self.options.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value)
    }
}

/// One file.
#[derive(Clone, PartialEq, Debug)]
pub struct File {
    /// As it was named.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its YAML documents.
    pub documents: Vec<Rc<Node>>,
}

/// What all files say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Facts {
    /// The files.
    pub files: Vec<File>,
    /// Everything that has an environment.
    pub workloads: Vec<Workload>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Batch scripts.
    pub batches: Vec<Batch>,
}

impl Facts {
    /// A place as findings name it.
    #[must_use]
    pub fn location(&self, file: usize, at: Position) -> Location {
        let name = self.files.get(file).map_or("", |file| file.name.as_str());
        Location { file: name.to_owned(), line: u64::from(at.line), column: Some(u64::from(at.column)) }
    }

    /// All engines with their workloads.
    pub fn engines(&self) -> impl Iterator<Item = (&Workload, &Engine)> {
        self.workloads
            .iter()
            .flat_map(|workload| workload.engines.iter().map(move |engine| (workload, engine)))
    }

    /// All containers with their workloads and pods.
    pub fn containers(&self) -> impl Iterator<Item = (&Workload, &Container, &Pod)> {
        self.workloads.iter().filter_map(|workload| {
            Some((workload, workload.container.as_ref()?, self.pods.get(workload.pod?)?))
        })
    }

    /// The containers of a pod.
    pub fn containers_of(&self, pod: &Pod) -> impl Iterator<Item = (&Workload, &Container)> {
        pod.workloads.iter().filter_map(|index| {
            let workload = self.workloads.get(*index)?;
            Some((workload, workload.container.as_ref()?))
        })
    }
}
