//! Libraries that are there twice in a process with NIXL, or that a wheel brings in place of the system's.

use std::collections::{BTreeMap, BTreeSet};

use super::audit::{Duplicate, SINGLE, audit};
use super::by_kvrail;
use super::inventory::{AMAZON, Installations, LIBFABRIC, Nixl};
use super::loader::{Loader, base, plain_name};
use super::plugins::{listed, release};
use crate::finding::{Finding, Outcome};
use crate::host::Host;
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
        let one = own.iter().filter_map(|(path, ..)| link(host, &loader, libraries, path)).collect::<Vec<_>>();
        let root = nixl.environment.map(|index| audit.installed.environments[index].root.as_str());
        Some(match one.is_empty() {
            false => by_kvrail(finding, "bundled-libraries", root).fix("or by hand: put the system's in their place (the copies stay beside them, as *.bundled)", one.join(" && ")),
            true => finding.advice("install AWS's EFA software, or mount the host's /opt/amazon/efa, and look again"),
        })
    });
    Outcome::of(findings.collect(), || "no LIBFABRIC plugin uses a libfabric of its wheel".into())
}

fn is_in(path: &str, at: &str) -> bool {
    path.strip_prefix(at).is_some_and(|rest| rest.starts_with('/'))
}

/// The command that puts the system's library in the place of a wheel's copy, where the system has one that does for all who use the copy.
fn link(host: &Host, loader: &Loader<'_>, wheel: &str, copy: &str) -> Option<String> {
    let soname = soname(plain_name(base(copy)))?;
    let amazon = AMAZON.iter().map(|at| format!("{at}/{soname}")).find(|path| host.elf(path).is_ok());
    let system = amazon.or_else(|| loader.find(soname).map(|(path, _)| path))?;
    let has = host.elf(&system).ok()?.versions;
    wanted_of(host, wheel, base(copy)).is_subset(&has).then(|| format!("ln -sb -S .bundled {system} {copy}"))
}

/// The symbol versions that the libraries of a wheel want of one of them.
fn wanted_of(host: &Host, wheel: &str, name: &str) -> BTreeSet<String> {
    let folders = [wheel.to_owned(), format!("{wheel}/ucx"), format!("{wheel}/nixl")];
    let mut wanted = BTreeSet::new();
    for folder in folders {
        let files = host.names(&folder).unwrap_or_default();
        for file in files.iter().filter(|file| file.contains(".so")) {
            let facts = host.elf(&format!("{folder}/{file}")).unwrap_or_default();
            wanted.extend(facts.needs(name).map(|needed| needed.versions.clone()).unwrap_or_default());
        }
    }
    wanted
}

/// The name by which programs know a library, by its plain one.
fn soname(plain: &str) -> Option<&'static str> {
    Some(match plain {
        "libfabric" => LIBFABRIC,
        "libibverbs" => "libibverbs.so.1",
        "libefa" => "libefa.so.1",
        "libnl-3" => "libnl-3.so.200",
        "libnl-route-3" => "libnl-route-3.so.200",
        _ => return None,
    })
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
        let copies = of.duplicates.iter().flat_map(|duplicate| &duplicate.copies).filter_map(|chain| chain.first());
        mend(host, finding, &audit.installed, nixl, copies.map(String::as_str))
    });
    Outcome::of(findings.collect(), || "each library for the network is once in a process with NIXL".into())
}

/// The first two libraries that bring in copies of the same name.
fn who(duplicates: &[Duplicate]) -> Option<(String, String)> {
    let with = duplicates.iter().find(|duplicate| duplicate.name == "libibverbs").or(duplicates.first())?;
    let brings = |chain: &Vec<String>| chain.get(1).map(|path| base(path).to_owned());
    Some((brings(with.copies.first()?)?, brings(with.copies.get(1)?)?))
}

/// Adds what to type so that there is one of each.
pub(super) fn mend<'a>(
    host: &Host,
    finding: Finding,
    installed: &Installations,
    nixl: &Nixl,
    copies: impl Iterator<Item = &'a str>,
) -> Finding {
    let loader = Loader::new(host);
    let own = nixl.libraries.as_deref().unwrap_or_default();
    let copies: BTreeSet<&str> = copies.filter(|path| is_in(path, own)).collect();
    let links: Vec<String> = copies.iter().filter_map(|copy| link(host, &loader, own, copy)).collect();
    if links.is_empty() {
        return finding.advice(format!(
            "the system's libraries lack symbol versions that the wheel's copies have: update rdma-core (libibverbs, libnl) on this host, then look again; \
             until then end programs that use {} with os._exit",
            nixl.name(installed)
        ));
    }
    let root = nixl.environment.map(|index| installed.environments[index].root.as_str());
    by_kvrail(finding, "bundled-libraries", root).fix(
        "or by hand: put the system's in the place of the wheel's copies (which stay beside them, as *.bundled)",
        links.join(" && "),
    )
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
