//! Libraries that are there twice in a process with NIXL, or that a wheel brings in place of the system's.

use std::collections::BTreeMap;

use super::audit::{Duplicate, SINGLE, audit};
use super::plugins::{listed, release};
use super::{by_kvrail, remedied};
use crate::finding::{Finding, Outcome};
use crate::fix::{Remedy, To, Verdict};
use crate::host::Host;
use crate::installed::inventory::{AMAZON, Installations, LIBFABRIC, Nixl};
use crate::installed::loader::{Loader, base, directory, plain_name};
use crate::rule::{Kind, Reference, Rule, Severity};

const AUDITWHEEL: Reference = Reference {
    title: "auditwheel: libraries that are grafted into a wheel",
    url: "https://github.com/pypa/auditwheel",
};

pub(super) static BUNDLED: Rule = Rule {
    id: "bundled-efa-libraries",
    title: "NIXL's wheel brings its own libfabric in place of the host's EFA software",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The wheel was repaired with auditwheel, which copied an upstream libfabric, libefa and libibverbs into it; the plugin uses those and not AWS's.",
    remedy: "Put links to the system's libraries in their place, or take a wheel that brings none.",
    story: "A program that uses the LIBFABRIC backend ends with `Segmentation fault: invalid permissions for mapped object`, or finds no EFA device, although fi_info \
and every test of the host's EFA software are fine.

Some wheels of NIXL (0.x) carry libfabric, libefa and libibverbs under names such as libfabric-fc70961d.so.1.29.0. The plugin is linked to exactly \
these names, so that LD_LIBRARY_PATH changes nothing. The copies are upstream's, built for another machine: without CUDA, with providers and paths of their own, \
beside a kernel driver that AWS's installer brought together with its own libfabric. libibverbs also loads the system's providers by path, whose \
libibverbs is then the second one in the process.

What mends it is a link under the copy's name that leads to the system's library. It has to define every symbol version that is wanted of the copy; the commands here are only for those that do. The next `pip install` undoes it. With the links in place a transfer on P5 went from a crash to 12.2 GB/s.",
    references: &[
        AUDITWHEEL,
        Reference { title: "AWS: get started with EFA", url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html" },
        Reference { title: "NIXL", url: "https://github.com/ai-dynamo/nixl" },
    ],
    explained_by: &[],
};

pub(super) static DUPLICATES: Rule = Rule {
    id: "duplicate-libraries",
    title: "a process with NIXL has two copies of a library for the network",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "The wheel brings a copy of the library under another name, and another library of the same process needs the system's.",
    remedy: "Put links to the system's libraries under the names of the wheel's copies, so that there is one of each.",
    story: "Programs work and end by a segmentation fault, or the second user of RDMA in the process sees no device. Which of the two depends on what was loaded first.

libibverbs, libnl and libefa keep state per process: lists of devices, of drivers, of netlink caches, and destructors that free it when the process ends. \
A wheel's copy is called libibverbs-1de1263b.so, which is no libibverbs.so.1 to the loader. The UCX in NIXL's wheels brings libibverbs and libnl, \
and is linked to the libefa.so.1 of the system, which brings the system's libibverbs and libnl into the same process. Both have the same symbols, and what one allocates the other frees.

One copy is enough: rdma-core keeps its interface stable, so that a link under the wheel's name that leads to the system's library serves both, as long as it defines the \
symbol versions that are wanted.",
    references: &[
        AUDITWHEEL,
        Reference { title: "Linux: dlopen(3), destructors", url: "https://man7.org/linux/man-pages/man3/dlopen.3.html" },
        Reference { title: "rdma-core: libibverbs", url: "https://github.com/linux-rdma/rdma-core/blob/master/Documentation/libibverbs.md" },
    ],
    explained_by: &["bundled-efa-libraries"],
};

pub(super) fn bundled(host: &Host) -> Outcome {
    let audit = audit(host);
    let amazon = AMAZON.iter().map(|at| format!("{at}/{LIBFABRIC}")).find(|path| host.elf(path).is_ok());
    if !audit.has_efa && amazon.is_none() {
        return Outcome::NotApplicable("there is no EFA device and no EFA software".into());
    }
    let with = |nixl: &Nixl| nixl.plugin("LIBFABRIC").is_some();
    if !audit.installed.nixl.iter().any(with) {
        return Outcome::NotApplicable("no NIXL with a LIBFABRIC plugin is installed".into());
    }
    let loader = Loader::new(host);
    let findings = audit.installed.nixl.iter().zip(&audit.nixl).filter_map(|(nixl, of)| {
        let libraries = nixl.libraries.as_deref()?;
        let plugin = of.plugins.iter().find(|plugin| plugin.backend == "LIBFABRIC")?;
        let own: Vec<_> = plugin
            .libraries
            .iter()
            .filter(|(path, real, _)| is_in(path, libraries) && is_in(real, libraries))
            .filter(|(path, ..)| ["libfabric", "libefa", "libibverbs"].contains(&plain_name(base(path))))
            .collect();
        let (path, real, facts) = own.iter().find(|(path, ..)| plain_name(base(path)) == "libfabric")?;
        let system = amazon.clone().or_else(|| loader.find(LIBFABRIC).map(|(path, _)| path));
        let mut finding = Finding::new(
            &BUNDLED,
            format!(
                "{} uses the libfabric that its wheel brings ({}), not {}",
                nixl.name(&audit.installed),
                release(real, &facts.versions),
                system.as_deref().unwrap_or("that of the host's EFA software")
            ),
        )
        .cause(format!(
            "The LIBFABRIC plugin is linked to {}, a copy of an upstream build in the wheel: LD_LIBRARY_PATH does not change that, and it is not \
             the libfabric that belongs to this host's EFA driver.",
            base(path)
        ));
        for (path, ..) in &own {
            finding = finding.evidence(&plugin.path, format!("uses {path}"));
        }
        let efa = system.as_deref().map(directory).filter(|at| !AMAZON.contains(at));
        Some(mend(host, finding, &audit.installed, nixl, efa))
    });
    Outcome::of(findings.collect(), || "no LIBFABRIC plugin uses a libfabric of its wheel".into())
}

fn is_in(path: &str, at: &str) -> bool {
    path.strip_prefix(at).is_some_and(|rest| rest.starts_with('/'))
}

pub(super) fn duplicates(host: &Host) -> Outcome {
    let audit = audit(host);
    if audit.nixl.is_empty() {
        return Outcome::NotApplicable("no NIXL is installed".into());
    }
    let findings = audit.installed.nixl.iter().zip(&audit.nixl).filter(|(_, of)| !of.duplicates.is_empty());
    let findings = findings.map(|(nixl, of)| {
        let names: Vec<&str> = of.duplicates.iter().map(|duplicate| duplicate.name.as_str()).collect();
        let finding = Finding::new(
            &DUPLICATES,
            format!("a process with {} has two copies of {}", nixl.name(&audit.installed), listed(&names)),
        );
        let finding = match who(&of.duplicates) {
            Some((first, second)) => finding.cause(format!(
                "{first} brings the wheel's copies in, {second} the system's: two libraries with the same symbols, each with lists of devices and \
                 destructors of its own."
            )),
            None => finding,
        };
        let finding = of.duplicates.iter().flat_map(|duplicate| &duplicate.copies).fold(finding, |finding, chain| {
            let by: Vec<&str> = chain.iter().skip(1).map(|path| base(path)).collect();
            finding.evidence(&chain[0], if by.is_empty() { "loaded by name".into() } else { format!("needed by {}", by.join(", by ")) })
        });
        mend(host, finding, &audit.installed, nixl, None)
    });
    Outcome::of(findings.collect(), || "each library for the network is once in a process with NIXL".into())
}

/// The first two libraries that bring in copies of the same name.
fn who(duplicates: &[Duplicate]) -> Option<(String, String)> {
    let with = duplicates.iter().find(|duplicate| duplicate.name == "libibverbs").or(duplicates.first())?;
    let brings = |chain: &Vec<String>| chain.get(1).map(|path| base(path).to_owned());
    Some((brings(with.copies.first()?)?, brings(with.copies.get(1)?)?))
}

/// Adds what to type so that the system's libraries are in the place of the wheel's, with the network's own from a directory.
pub(super) fn mend(
    host: &Host,
    finding: Finding,
    installed: &Installations,
    nixl: &Nixl,
    efa: Option<&str>,
) -> Finding {
    match remedied(host, installed, nixl, Remedy::BundledLibraries, efa) {
        Verdict::Apply { changes, .. } => {
            let links = changes.iter().filter_map(|change| match &change.to {
                To::Link(target) => Some(format!("ln -sb -S .bundled {target} {}", change.path)),
                _ => None,
            });
            by_kvrail(finding, "bundled-libraries", efa, nixl.home(installed)).fix(
                "or by hand: put the system's in the place of the wheel's copies (which stay beside them, as *.bundled)",
                links.collect::<Vec<_>>().join(" && "),
            )
        }
        Verdict::Refused(why) => finding.advice(format!(
            "the system's cannot take the place of the wheel's copies ({why}): update rdma-core and AWS's EFA software on this host, or mount the \
             host's /opt/amazon/efa, then look again"
        )),
        Verdict::Well(_) | Verdict::NotHere(_) => {
            finding.advice("install AWS's EFA software, or mount the host's /opt/amazon/efa, and look again")
        }
    }
}

/// Libraries of one name in more than one file among those that a process had mapped.
pub(super) fn twice(mapped: &[String]) -> BTreeMap<&str, Vec<&str>> {
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in mapped.iter().filter(|path| SINGLE.contains(&plain_name(base(path)))) {
        by_name.entry(plain_name(base(path))).or_default().push(path);
    }
    by_name.retain(|_, paths| paths.len() > 1);
    by_name
}
