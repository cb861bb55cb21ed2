//! Whether NIXL's own core libraries are where its module and its plugins look for them.

use super::audit::{Audit, Loadable, audit};
use super::plugins::{LOADER, NIXL, is_or_are, listed};
use super::{by_kvrail, is_core};
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::installed::inventory::Nixl;
use crate::installed::loader::{Obstacle, base};
use crate::rule::{Kind, Rule, Severity};

pub(super) static HIDDEN: Rule = Rule {
    id: "nixl-core-libraries-hidden",
    title: "NIXL's own core libraries are not where it looks for them",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The wheel keeps libnixl_build.so, libnixl_common.so and libserdes.so in a directory whose name begins with a dot, and what needs them does not find them there.",
    remedy: "Install the wheel again, or name the directory that has them in LD_LIBRARY_PATH.",
    story: "`ldd` on a plugin says `libnixl_build.so => not found`, or the import of nixl ends with `libnixl.so: cannot open shared object file`, although the \
wheel is installed.

The wheels keep NIXL's own libraries in `.nixl_cu12.mesonpy.libs`, beside the package. Many tools leave out what begins with a dot: `cp -r site-packages/* …`, \
a COPY with a pattern, rsync with an exclusion. The package is then there, and its libraries are not. The other way to lose them is NIXL_PLUGIN_DIR with \
the plugins of another copy of NIXL, or a program that is not Python and loads a plugin of the wheel.

One trap: `ldd` on a plugin in `nixl_cu12.libs/nixl` says `not found` for a healthy wheel too, since the module has those libraries loaded before any plugin. Such a wheel is \
healthy, and this check does not report it.",
    references: &[NIXL, LOADER],
    explained_by: &[],
};

pub(super) fn hidden(host: &Host) -> Outcome {
    let audit = audit(host);
    if audit.nixl.is_empty() {
        return Outcome::NotApplicable("no NIXL is installed".into());
    }
    let findings = audit.installed.nixl.iter().zip(&audit.nixl).filter_map(|(nixl, of)| {
        let network = of.plugins.iter().filter(|plugin| plugin.is_network());
        // Where the loader takes a plugin, nothing is hidden from it.
        let of_plugins = network.filter_map(|plugin| match plugin.loadable(host) {
            Loadable::Lacks(obstacles, said) => Some((obstacles, said)),
            _ => None,
        });
        let mut heard = None;
        let mut lost: Vec<(String, String)> = Vec::new();
        for (obstacles, said) in of_plugins.chain([(of.core.clone(), None)]) {
            for obstacle in obstacles {
                if let Obstacle::Missing { name, by } = obstacle
                    && is_core(base(&name))
                {
                    lost.push((name, by));
                    heard = heard.or_else(|| said.clone());
                }
            }
        }
        lost.sort();
        lost.dedup_by(|a, b| a.0 == b.0);
        (!lost.is_empty()).then(|| lost_core(host, &audit, nixl, &lost, heard))
    });
    let findings = findings.collect();
    Outcome::of(findings, || "NIXL's modules and plugins find its core libraries".into())
}

fn lost_core(
    host: &Host,
    audit: &Audit,
    nixl: &Nixl,
    lost: &[(String, String)],
    heard: Option<String>,
) -> Finding {
    let names: Vec<&str> = lost.iter().map(|(name, _)| base(name)).collect();
    let name = nixl.name(&audit.installed);
    let mut finding =
        Finding::new(&HIDDEN, format!("{} of {name} {} not found", listed(&names), is_or_are(names.len())));
    for (library, by) in lost.iter().take(4) {
        finding = finding.evidence(by, format!("{} => not found", base(library)));
    }
    if let Some(said) = heard {
        finding = finding.evidence("the loader", said);
    }
    // Moved, renamed, or in another copy: wherever a directory beside it has all of them.
    let beside = host.names(&nixl.root).unwrap_or_default();
    let near = beside.iter().filter(|name| name.contains("nixl")).map(|name| format!("{}/{name}", nixl.root));
    let has_all = |at: &String| names.iter().all(|name| host.elf(&format!("{at}/{name}")).is_ok());
    let found = std::iter::once(nixl.core.clone()).chain(near).find(has_all);
    match &found {
        Some(at) => {
            finding = finding.cause(format!(
                "They are in {at}, where neither the search path of what needs them nor LD_LIBRARY_PATH leads."
            ));
            if let Some(home) = nixl.home(&audit.installed).filter(|_| *at == nixl.core) {
                finding = by_kvrail(finding, "loader-path", None, Some(home));
            }
            finding = finding.fix(
                "show the loader where they are, before the process starts",
                format!("export LD_LIBRARY_PATH={at}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"),
            );
        }
        None => {
            finding = finding.cause(format!(
                "{} has none of them: the wheel keeps them in a directory that begins with a dot, which copies made with `*` leave out.",
                nixl.core
            ));
        }
    }
    match nixl.reinstall(&audit.installed) {
        Some(command) => finding.fix(
            if found.is_some() { "or install the wheel again" } else { "install the wheel again" },
            command,
        ),
        None => finding.advice("install this NIXL again"),
    }
}
