//! The mistakes that are looked for, by what they are about. Each rule has a file in `fixtures/lint/bad` that has it, and a twin in
//! `fixtures/lint/good` that has not.

pub mod connector;
pub mod etcd;
pub mod images;
pub mod libraries;
pub mod pairs;
pub mod placement;
pub mod ray;
pub mod resources;
pub mod security;
pub mod slurm;
pub mod variables;

use super::extract::Broken;
use super::facts::Facts;
use super::read::Position;
use crate::finding::Finding;
use crate::rule::{Kind, Reference, Rule, Severity};

/// What a rule looks at, and what it says.
#[derive(Debug)]
pub struct Look<'a> {
    /// What the files say.
    pub facts: &'a Facts,
    /// What in them is broken.
    pub broken: &'a [Broken],
    /// What was found so far.
    pub findings: Vec<Finding>,
}

impl Look<'_> {
    /// A finding at its place.
    pub fn find(&mut self, file: usize, at: Position, finding: Finding) {
        self.findings.push(finding.at(self.facts.location(file, at)));
    }
}

/// Everything that looks, each with the rules that it may find.
pub(crate) const ALL: &[fn(&mut Look<'_>)] = &[
    placement::look,
    resources::look,
    security::look,
    images::look,
    connector::look,
    pairs::look,
    variables::look,
    libraries::look,
    etcd::look,
    slurm::look,
    ray::look,
];

/// A rule about files.
const fn rule(
    id: &'static str,
    severity: Severity,
    title: &'static str,
    texts: [&'static str; 3],
    references: &'static [Reference],
) -> Rule {
    let [cause, remedy, story] = texts;
    Rule { id, title, severity, kind: Kind::Lint, cause, remedy, story, references, explained_by: &[] }
}

/// Where Kubernetes says so.
const fn kubernetes(url: &'static str) -> Reference {
    Reference { title: "Kubernetes documentation", url }
}

const EKS_EFA: Reference = Reference {
    title: "Amazon EKS: run machine learning training with Elastic Fabric Adapter",
    url: "https://docs.aws.amazon.com/eks/latest/userguide/node-efa.html",
};
const FI_EFA: Reference = Reference {
    title: "libfabric: fi_efa(7)",
    url: "https://ofiwg.github.io/libfabric/main/man/fi_efa.7.html",
};
const FABRIC: Reference = Reference {
    title: "libfabric: fabric(7)",
    url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html",
};
const NIXL_USAGE: Reference = Reference {
    title: "vLLM: NixlConnector usage guide",
    url: "https://docs.vllm.ai/en/latest/features/nixl_connector_usage.html",
};
const NIXL_COMPATIBILITY: Reference = Reference {
    title: "vLLM: NixlConnector compatibility matrix",
    url: "https://docs.vllm.ai/en/latest/features/nixl_connector_compatibility.html",
};
const NIXL_BACKENDS: Reference = Reference {
    title: "NIXL: backend selection",
    url: "https://docs.nvidia.com/nixl/user-guide/backend-selection.md",
};
