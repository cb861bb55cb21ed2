//! Which libfabric and which NIXL libraries the loader will find: LD_LIBRARY_PATH.

use super::super::facts::{Variable, Workload};
use super::{Look, Reference, rule};
use crate::finding::Finding;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&LIBRARY_PATH];

const LOADER: Reference =
    Reference { title: "Linux: ld.so(8)", url: "https://man7.org/linux/man-pages/man8/ld.so.8.html" };

static LIBRARY_PATH: Rule = rule(
    "lint-library-path",
    Severity::Warning,
    "LD_LIBRARY_PATH in an order that finds another libfabric than EFA's, or misses NIXL's own libraries",
    [
        "The loader takes the first libfabric.so.1 that it finds, and a system directory stands before /opt/amazon/efa/lib; NIXL's plugins need the directory of NIXL's own libraries as well.",
        "Put NIXL's library directory first, /opt/amazon/efa/lib second, and system directories behind them.",
        "``version `FABRIC_1.7' not found`` although the host's EFA installation is mounted and new enough: the image's own libfabric in /usr/lib was found first. Or `libnixl_build.so => not found`, `libserdes.so => not found`: wheels keep NIXL's core libraries in \
`.nixl_cu12.mesonpy.libs` beside the package, and a plugin that is loaded on its own does not find them. System directories need not be in the variable at all: the loader looks there anyway, last.",
    ],
    &[
        LOADER,
        Reference {
            title: "AWS: get started with EFA",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html",
        },
    ],
);

const EFA: &str = "/opt/amazon/efa/lib";

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for workload in &facts.workloads {
        let before: Vec<Variable> = workload.scoped().collect();
        let wants = workload.wants_efa().is_some()
            || workload.container.as_ref().is_some_and(|container| container.efas() > 0);
        for variable in
            workload.variables.iter().chain(&before).filter(|variable| variable.name == "LD_LIBRARY_PATH")
        {
            one(look, workload, variable, wants);
        }
    }
}

fn is_efa(directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    directory == EFA || directory == "/opt/amazon/efa/lib64"
}

fn is_system(directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    matches!(directory, "/usr/lib" | "/usr/lib64" | "/lib" | "/lib64" | "/usr/local/lib")
        || ["/usr/lib/", "/lib/"]
            .iter()
            .any(|base| directory.strip_prefix(base).is_some_and(|rest| rest.ends_with("-linux-gnu")))
}

fn one(look: &mut Look<'_>, workload: &Workload, variable: &Variable, wants: bool) {
    let Some(value) = &variable.value else { return };
    let directories: Vec<&str> = value.str().split(':').filter(|directory| !directory.is_empty()).collect();
    let efa = directories.iter().position(|directory| is_efa(directory));
    let system = directories.iter().position(|directory| is_system(directory));
    if let (Some(efa), Some(system)) = (efa, system)
        && system < efa
    {
        let mut ordered: Vec<&str> =
            directories.iter().copied().filter(|directory| !is_system(directory)).collect();
        ordered.extend(directories.iter().copied().filter(|directory| is_system(directory)));
        let title = format!("{} stands before {EFA}: its libfabric is found first", directories[system]);
        let finding = Finding::new(&LIBRARY_PATH, title)
            .confidence(Confidence::Likely)
            .fix("in this order", variable.written(&ordered.join(":")));
        return look.find(workload.file, value.at(), finding);
    }
    let nixl =
        directories.iter().any(|directory| directory.contains("mesonpy.libs") || directory.contains("/nixl"));
    let wheel = directories
        .iter()
        .find(|directory| directory.contains("-packages/nixl") && !directory.contains("mesonpy"));
    if let Some(wheel) =
        wheel.filter(|_| !directories.iter().any(|directory| directory.contains("mesonpy.libs")))
    {
        let (base, name) = wheel.split_once("-packages/").unwrap_or((wheel, "nixl_cu12"));
        let package = name.split(['/', '.']).next().unwrap_or("nixl_cu12");
        let core = format!("{base}-packages/.{package}.mesonpy.libs");
        let title = format!("NIXL's core libraries are not in {wheel}");
        let finding = Finding::new(&LIBRARY_PATH, title)
            .cause("A wheel keeps libnixl_build.so, libnixl_common.so and libserdes.so in its hidden directory beside the package.")
            .confidence(Confidence::Likely)
            .fix("with that directory first", variable.written(&format!("{core}:{}", value.str())));
        return look.find(workload.file, value.at(), finding);
    }
    // Written out without what was there before, and without EFA's own library.
    let keeps = value.str().contains("LD_LIBRARY_PATH");
    if wants && efa.is_none() && system.is_some() && !keeps && !nixl {
        let finding = Finding::new(
            &LIBRARY_PATH,
            format!("LD_LIBRARY_PATH names {} and not {EFA}", directories[system.unwrap_or(0)]),
        )
        .confidence(Confidence::Possible)
        .fix("EFA's libfabric first", variable.written(&format!("{EFA}:{}", value.str())));
        look.find(workload.file, value.at(), finding);
    }
}
