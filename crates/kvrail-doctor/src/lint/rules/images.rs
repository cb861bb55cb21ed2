//! Images of containers.

use super::{Look, kubernetes, rule};
use crate::finding::Finding;
use crate::rule::{Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&LATEST];

static LATEST: Rule = rule(
    "lint-image-latest",
    Severity::Note,
    "an image without a fixed version",
    [
        "The tag latest, or none, means whatever was pushed last when a node pulled the image, so that two nodes may run two versions.",
        "Name a version or, better, a digest.",
        "One side of a transfer runs another NIXL, libfabric or vLLM than the other: vLLM's NIXL connector compares a hash of versions and refuses the handshake, \
other stacks read each other's metadata wrongly. A node that joined last week has pulled another `latest` than one that joined today. Figures cannot be compared either when nobody knows what was measured.",
    ],
    &[kubernetes("https://kubernetes.io/docs/concepts/containers/images/"), super::NIXL_COMPATIBILITY],
);

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for (workload, container, pod) in facts.containers() {
        let Some((image, at)) = &container.image else { continue };
        if !super::resources::transfers(facts, pod) || image.contains(['$', '{']) || image.contains('@') {
            continue;
        }
        let name = image.rsplit('/').next().unwrap_or(image);
        let tag = name.split_once(':').map(|(_, tag)| tag);
        if matches!(tag, None | Some("latest" | "")) {
            let base = image.strip_suffix(":latest").unwrap_or(image);
            let finding = Finding::new(&LATEST, format!("{} runs {image}", workload.name)).fix(
                "the digest that runs now",
                format!("image: {base}@sha256:…  # docker buildx imagetools inspect {image}"),
            );
            look.find(workload.file, *at, finding);
        }
    }
}
