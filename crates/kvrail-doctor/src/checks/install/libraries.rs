//! Copies of UCX and libfabric that are not part of a NIXL: whether they can be loaded.

use super::plugins::{listed, release};
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Loaded};
use crate::installed::inventory::installations;
use crate::installed::loader::{Loader, Obstacle};
use crate::rule::{Kind, Reference, Rule, Severity};

/// Most copies that are tried.
const TRIALS_MAX: usize = 8;

pub(super) static NOT_LOADABLE: Rule = Rule {
    id: "library-not-loadable",
    title: "an installed UCX or libfabric cannot be loaded",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "The library is there, and the loader refuses it: something that it needs is missing or too old, or the file is damaged.",
    remedy: "Install the package again with what it depends on.",
    story: "A program says that it finds no libfabric or no UCX, although the file is there, or it takes another copy than the one that was meant.

The most common case is a directory that was copied or mounted from a host into a container, without the libraries that it needs: the libfabric of \
/opt/amazon/efa needs the host's libefa, libibverbs and libnl, and may need CUDA's and a newer C library than the container has (`version `GLIBC_2.38' not found`).

This check reads the tables of each copy that programs would find, and then loads it in a process of its own.",
    references: &[
        Reference { title: "Linux: ld.so(8)", url: "https://man7.org/linux/man-pages/man8/ld.so.8.html" },
        Reference { title: "OpenUCX", url: "https://openucx.readthedocs.io/en/master/" },
        Reference { title: "libfabric: fabric(7)", url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html" },
    ],
    explained_by: &[],
};

pub(super) fn not_loadable(host: &Host) -> Outcome {
    let all = installations(host);
    let libraries: Vec<_> = all.libfabric.iter().chain(&all.ucx).take(TRIALS_MAX).collect();
    if libraries.is_empty() {
        return Outcome::NotApplicable("no UCX and no libfabric are installed".into());
    }
    let loader = Loader::new(host);
    let mut well = Vec::new();
    let mut findings = Vec::new();
    for library in libraries {
        let obstacles = loader.process().load(&library.path);
        let (why, said) = match host.load(&[&library.path]) {
            Ok(Loaded { refused: Some((_, said)), .. }) => (said.clone(), Some(said)),
            Ok(Loaded { finished: false, signal, .. }) => {
                (format!("loading it ends the process by signal {}", signal.unwrap_or_default()), None)
            }
            Err(_) if !obstacles.is_empty() => (obstacles[0].to_string(), None),
            Ok(_) | Err(_) => {
                let facts = host.elf(&library.path).unwrap_or_default();
                well.push(match facts.level("FABRIC_1.") {
                    Some(level) => format!(
                        "{} ({}, FABRIC_1.{level})",
                        library.path,
                        release(&library.real, &facts.versions)
                    ),
                    None => library.path.clone(),
                });
                continue;
            }
        };
        let missing: Vec<&str> = obstacles
            .iter()
            .filter_map(|obstacle| match obstacle {
                Obstacle::Missing { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let mut finding = Finding::new(&NOT_LOADABLE, format!("{} cannot be loaded: {why}", library.path));
        if !missing.is_empty() {
            finding = finding
                .cause(format!("It needs {}, which no directory of the loader has.", listed(&missing)));
        }
        for obstacle in &obstacles {
            finding = finding.evidence(&library.path, obstacle.to_string());
        }
        if let Some(said) = said {
            finding = finding.evidence("the loader", said);
        }
        findings.push(finding.fix("see what it needs and does not get", format!("ldd {} | grep 'not found'", library.path)).advice(
            "install the packages that bring these, or the library's own package again; after mounting a host's directory, mount what it needs as well",
        ));
    }
    Outcome::of(findings, || well.join(", "))
}
