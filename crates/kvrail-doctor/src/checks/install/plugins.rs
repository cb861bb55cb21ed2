//! Whether NIXL's plugins for networks can be loaded, and what they lack.

use kvrail_sys::libfabric::Release;

use super::audit::{Audit, Loadable, NixlAudit, PluginAudit, audit};
use super::{by_kvrail, is_core, remedied};
use crate::finding::{Finding, Outcome};
use crate::fix::{Remedy, Verdict};
use crate::host::Host;
use crate::installed::inventory::{AMAZON, Installations, LIBFABRIC, Nixl};
use crate::installed::loader::{Obstacle, base, directory, plain_name};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) const LOADER: Reference = Reference {
    title: "Linux: ld.so(8), how libraries are searched for",
    url: "https://man7.org/linux/man-pages/man8/ld.so.8.html",
};
pub(super) const NIXL: Reference = Reference { title: "NIXL", url: "https://github.com/ai-dynamo/nixl" };

pub(super) static TOO_OLD: Rule = Rule {
    id: "plugin-libfabric-too-old",
    title: "NIXL's LIBFABRIC plugin needs a newer libfabric than it gets",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The libfabric that the loader finds first does not define a symbol version that the plugin was linked to, so that the loader refuses the plugin.",
    remedy: "Put the directory of a newer libfabric first in LD_LIBRARY_PATH (that of AWS's EFA installer), or install one.",
    story: "NIXL lists LIBFABRIC among its plugins, and creating that backend fails, or a program that tries several falls back to UCX over \
TCP without a word: transfers of a second become five to ten seconds. With more log one line says \
`libfabric.so.1: version `FABRIC_1.10' not found`.

Three numbers of libfabric are confused here. The release is v2.5; the file is then called libfabric.so.1.31.0; and its interface has symbol \
versions, FABRIC_1.0 to FABRIC_1.9. Only the last decides whether a plugin can be loaded. A container image has the distribution's libfabric, \
which is years older than the one of AWS's EFA installer, and NIXL's wheels since 1.0 bring none along.

What mends it is a libfabric that defines the version: that of a newer EFA installer in /opt/amazon/efa, found first. Where an image cannot be changed, \
mount the host's /opt/amazon/efa and put its lib first in LD_LIBRARY_PATH. Copying files over the distribution's works until the next start of the container.",
    references: &[
        Reference { title: "libfabric: symbol versions", url: "https://github.com/ofiwg/libfabric/blob/main/libfabric.map.in" },
        Reference { title: "AWS: get started with EFA", url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html" },
        NIXL,
    ],
    explained_by: &["efa-install-not-mounted"],
};

pub(super) static MISSING: Rule = Rule {
    id: "plugin-library-missing",
    title: "a library that a NIXL plugin needs is not installed",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The loader finds a library nowhere that the plugin is linked to, and refuses the plugin.",
    remedy: "Install the package that brings the library, or name its directory in LD_LIBRARY_PATH before the process starts.",
    story: "NIXL lists the backend, and creating it fails with nothing but an error of the backend. NIXL lists every file that is called libplugin_*.so; whether \
it can be loaded shows when it is wanted.

The LIBFABRIC plugin is linked to libcuda.so.1 (NVIDIA's driver), libcudart.so.12 or .13 (CUDA's runtime), libhwloc.so.15 and libfabric.so.1. \
The wheel brings none of them. libcuda.so.1 belongs to the driver: a container gets it from the NVIDIA container runtime, and only when it was started with \
GPUs and with the capability `compute`. libcudart comes with CUDA, with PyTorch's wheels, or alone from PyPI; the loader does not look into site-packages by itself, but a program that has \
imported torch has it loaded already.",
    references: &[
        NIXL,
        LOADER,
        Reference {
            title: "NVIDIA container toolkit: driver capabilities",
            url: "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html",
        },
    ],
    explained_by: &["cuda-major-mismatch", "efa-install-not-mounted", "gpu-missing"],
};

pub(super) static NOT_LOADABLE: Rule = Rule {
    id: "plugin-not-loadable",
    title: "a NIXL plugin is listed and cannot be loaded",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "NIXL lists files by their names; the loader refuses this one, or loading it ends the process.",
    remedy: "Read what the loader says; install the wheel again if the file is damaged.",
    story: "A backend is in the list of plugins, and creating it fails or crashes. NIXL's list is a list of file names. This check loads each plugin for networks in a process of \
its own, after NIXL's core library, as NIXL would, so that a crash is a finding and not the end of the examination.

Plugins for storage (GDS, OBJ, POSIX and others) are not tried, since a host that moves KV blocks between GPUs needs none of them. What their \
tables lack is told as a note.",
    references: &[NIXL, LOADER],
    explained_by: &[
        "nixl-core-libraries-hidden",
        "plugin-library-missing",
        "plugin-libfabric-too-old",
        "efa-install-not-mounted",
    ],
};

/// Findings about each plugin for networks of each copy of NIXL; or that there is none.
fn of_plugins(
    host: &Host,
    healthy: &str,
    mut finding: impl FnMut(&Audit, &Nixl, &PluginAudit, &Loadable) -> Option<Finding>,
) -> Outcome {
    let audit = audit(host);
    let mut findings = Vec::new();
    let (mut plugins, mut late) = (0, Vec::new());
    for (nixl, of) in audit.installed.nixl.iter().zip(&audit.nixl) {
        for plugin in of.plugins.iter().filter(|plugin| plugin.is_network()) {
            plugins += 1;
            let loadable = plugin.loadable(host);
            if matches!(loadable, Loadable::Late) {
                late.push(plugin.path.clone());
            }
            findings.extend(finding(&audit, nixl, plugin, &loadable));
        }
    }
    if plugins == 0 {
        return Outcome::NotApplicable("no NIXL with a plugin for networks is installed".into());
    }
    if findings.is_empty() && !late.is_empty() {
        return Outcome::Unknown(format!("loading {} did not end in time", late.join(", ")));
    }
    Outcome::of(findings, || healthy.to_owned())
}

/// A plugin without which nothing fails here: LIBFABRIC on a host without EFA.
fn severity(audit: &Audit, plugin: &PluginAudit) -> Severity {
    if plugin.backend == "LIBFABRIC" && !audit.has_efa { Severity::Warning } else { Severity::Error }
}

/// Adds what the loader says, where that is about what is found: it stops at the first thing that it lacks.
fn said(finding: Finding, loadable: &Loadable, is_about: impl Fn(&str) -> bool) -> Finding {
    match loadable {
        Loadable::Lacks(_, Some(said)) | Loadable::Refused(said) if is_about(said) => {
            finding.evidence("the loader", said)
        }
        _ => finding,
    }
}

pub(super) fn too_old(host: &Host) -> Outcome {
    of_plugins(
        host,
        "every plugin gets the symbol versions that it needs",
        |audit, nixl, plugin, loadable| {
            let Loadable::Lacks(obstacles, _) = loadable else { return None };
            let lacking = obstacles.iter().filter_map(|obstacle| match obstacle {
                Obstacle::Version { version, found, .. } => {
                    Some((version.strip_prefix("FABRIC_1.")?.parse::<u32>().ok()?, version, found))
                }
                _ => None,
            });
            let (level, version, found) = lacking.max()?;
            let facts =
                plugin.libraries.iter().find(|(_, real, _)| real == found).map(|(_, _, facts)| facts.clone());
            let facts = facts.unwrap_or_default();
            let has = facts
                .level("FABRIC_1.")
                .map_or_else(|| "no FABRIC version".into(), |level| format!("FABRIC_1.{level}"));
            let release = release(found, &facts.versions);
            let first = Release::of_versions([version.as_str()].into_iter());
            let first = first
                .map(|release| format!(", which libfabric has since {}", since(release)))
                .unwrap_or_default();
            let finding = Finding::new(
            &TOO_OLD,
            format!("the {} plugin of {} needs {version}; {found} has {has}", plugin.backend, nixl.name(&audit.installed)),
        )
        .severity(severity(audit, plugin))
        .cause(format!(
            "{} is {release} and defines symbols up to {has}; the plugin was linked to {version}{first}. The loader refuses it, \
             and NIXL goes on listing it.",
            base(found)
        ))
        .evidence(&plugin.path, format!("needs {version} of {LIBFABRIC}"))
        .evidence(found, format!("{release}, symbols up to {has}"));
            let finding = said(finding, loadable, |said| said.contains(version.as_str()));
            Some(newer(finding, host, &audit.installed, nixl, level))
        },
    )
}

/// How to get a libfabric that defines a version: one that is installed already, or one to install.
fn newer(finding: Finding, host: &Host, installed: &Installations, nixl: &Nixl, level: u32) -> Finding {
    let first = Release::of_versions([format!("FABRIC_1.{level}").as_str()].into_iter());
    let suits = |path: &str| {
        host.elf(path).ok().and_then(|facts| facts.level("FABRIC_1.")).is_some_and(|has| has >= level)
    };
    if let Some(other) = installed.libfabric.iter().find(|library| suits(&library.path)) {
        let at = directory(&other.path);
        let is_amazon = AMAZON.contains(&at);
        let efa = Some(at).filter(|_| !is_amazon);
        let finding = match (remedied(host, installed, nixl, Remedy::Libfabric, efa), nixl.home(installed)) {
            (Verdict::Apply { .. }, Some(home)) => by_kvrail(finding, "libfabric", efa, Some(home)),
            (_, None) if is_amazon => by_kvrail(finding, "libfabric", None, None),
            _ => finding,
        };
        return finding
            .fix(
                format!(
                    "use {}, which is {}",
                    other.path,
                    release(&other.real, &host.elf(&other.path).unwrap_or_default().versions)
                ),
                format!("export LD_LIBRARY_PATH={at}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"),
            )
            .advice(
                "set it where the process is started (pod, job file): the loader reads it once, at the start",
            );
    }
    let finding = finding.fix(
        format!(
            "install EFA software with libfabric {} or newer, which comes to /opt/amazon/efa",
            first.map_or_else(|| "of a newer release".into(), since)
        ),
        "curl -O https://efa-installer.amazonaws.com/aws-efa-installer-latest.tar.gz && tar xf aws-efa-installer-latest.tar.gz && \
         cd aws-efa-installer && sudo ./efa_installer.sh -y --skip-kmod",
    );
    match nixl.environment.and_then(|index| installed.environments[index].python.as_deref()) {
        // Until 1.4 the plugin of the wheels was linked to FABRIC_1.7.
        Some(python) if level > 7 && nixl.module != "nixl" => finding.fix(
            "or take a NIXL whose plugin needs no more than FABRIC_1.7 (libfabric v1.20)",
            format!("{python} -m pip install --no-deps nixl==1.4.0 {}==1.4.0", nixl.module.replace('_', "-")),
        ),
        _ => finding,
    }
}

/// A file's release, in words.
pub(super) fn release<'a>(path: &str, versions: impl IntoIterator<Item = &'a String>) -> String {
    let of_name = Release::of_name(&plain_file(base(path)));
    let release = of_name.or_else(|| Release::of_versions(versions.into_iter().map(String::as_str)));
    release.map_or_else(|| "an unknown release".into(), |release| format!("release {release}"))
}

/// `libfabric.so.1.29.0` of `libfabric-fc70961d.so.1.29.0`.
fn plain_file(file: &str) -> String {
    let plain = plain_name(file);
    file.find(".so").map_or_else(|| file.to_owned(), |at| format!("{plain}{}", &file[at..]))
}

fn since(release: Release) -> String {
    match release {
        Release::Between { first: (major, minor), .. } | Release::Exact { major, minor } => {
            format!("v{major}.{minor}")
        }
        other => other.to_string(),
    }
}

pub(super) fn missing(host: &Host) -> Outcome {
    of_plugins(host, "every plugin finds its libraries", |audit, nixl, plugin, loadable| {
        let Loadable::Lacks(obstacles, _) = loadable else { return None };
        let mut names: Vec<(&str, &str)> = obstacles
            .iter()
            .filter_map(|obstacle| match obstacle {
                Obstacle::Missing { name, by } if !is_core(base(name)) => Some((name.as_str(), by.as_str())),
                _ => None,
            })
            .collect();
        names.dedup_by(|a, b| a.0 == b.0);
        if names.is_empty() {
            return None;
        }
        let plain: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        let mut finding = Finding::new(
            &MISSING,
            format!(
                "{} {} not found: the {} plugin of {} cannot be loaded",
                listed(&plain),
                is_or_are(plain.len()),
                plugin.backend,
                nixl.name(&audit.installed)
            ),
        )
        .severity(severity(audit, plugin))
        .cause(format!(
            "{} needs {}, which no directory of the loader has; NIXL goes on listing the plugin.",
            base(names.first().map_or(plugin.path.as_str(), |(_, by)| by)),
            listed(&plain)
        ));
        for (name, by) in &names {
            finding = finding.evidence(*by, format!("{name} => not found"));
        }
        let finding = said(finding, loadable, |said| plain.iter().any(|name| said.starts_with(name)));
        let finding =
            [Remedy::LoaderPath, Remedy::Libfabric].into_iter().fold(
                finding,
                |finding, remedy| match remedied(host, &audit.installed, nixl, remedy, None) {
                    Verdict::Apply { changes, .. }
                        if changes.iter().any(|change| plain.contains(&base(&change.path))) =>
                    {
                        by_kvrail(finding, remedy.name(), None, nixl.home(&audit.installed))
                    }
                    _ => finding,
                },
            );
        let python = nixl.environment.and_then(|index| audit.installed.environments[index].python.as_deref());
        Some(names.iter().fold(finding, |finding, (name, _)| how_to_get(finding, name, nixl, python)))
    })
}

/// How to get a library that a plugin needs.
fn how_to_get(finding: Finding, name: &str, nixl: &Nixl, python: Option<&str>) -> Finding {
    if name == "libcuda.so.1" {
        return finding.advice(
            "libcuda.so.1 is a part of NVIDIA's driver: start the container with GPUs (docker: `--gpus all`; Kubernetes: \
             `nvidia.com/gpu` in its limits) and NVIDIA_DRIVER_CAPABILITIES=compute,utility; a host without a GPU cannot use this plugin",
        );
    }
    if let Some(major) = name.strip_prefix("libcudart.so.") {
        let major = major.split('.').next().unwrap_or_default();
        let at = match major {
            "12" => "nvidia/cuda_runtime/lib",
            _ => "nvidia/cu13/lib",
        };
        let package = if major == "12" { "nvidia-cuda-runtime-cu12" } else { "nvidia-cuda-runtime" };
        return finding.fix(
            format!("install CUDA's runtime {major} and show it to the loader; a program that has imported torch has it already"),
            format!(
                "{} -m pip install {package} && export LD_LIBRARY_PATH={}/{at}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}",
                python.unwrap_or("python3"),
                nixl.root
            ),
        );
    }
    if name.starts_with("libhwloc.so") {
        return finding
            .fix("install hwloc", "sudo apt-get install -y libhwloc15 || sudo dnf install -y hwloc-libs");
    }
    if name.starts_with("libefa.so") || name.starts_with("libibverbs.so") {
        return finding.fix(
            format!("install rdma-core's {name}, or mount the host's beside its EFA software"),
            "sudo apt-get install -y libibverbs1 ibverbs-providers || sudo dnf install -y rdma-core libibverbs",
        );
    }
    if name == LIBFABRIC {
        return finding.advice(
            "install AWS's EFA software, or mount the host's /opt/amazon/efa into the container and put /opt/amazon/efa/lib first in \
             LD_LIBRARY_PATH",
        );
    }
    match nixl.reinstall_for(name) {
        Some(command) => finding.fix(format!("{name} comes with the wheel: install that again"), command),
        None => {
            finding.advice(format!("install what brings {name}, or name its directory in LD_LIBRARY_PATH"))
        }
    }
}

impl Nixl {
    /// How to get back a library that came with the wheel: wheels add eight digits to the names of those.
    fn reinstall_for(&self, name: &str) -> Option<String> {
        let stem = name.find(".so").map_or(name, |at| &name[..at]);
        let came_along = plain_name(name) != stem;
        let version = self.version.as_ref().map(|version| format!("=={version}")).unwrap_or_default();
        came_along.then(|| {
            format!(
                "python3 -m pip install --force-reinstall --no-deps {}{version}",
                self.module.replace('_', "-")
            )
        })
    }
}

pub(super) fn not_loadable(host: &Host) -> Outcome {
    let all = audit(host);
    let mut outcome = of_plugins(
        host,
        "each plugin for networks was loaded in a process of its own",
        |audit, nixl, plugin, loadable| {
            let name = nixl.name(&audit.installed);
            let finding = match loadable {
            Loadable::Crashed(signal) => Finding::new(
                &NOT_LOADABLE,
                format!("loading the {} plugin of {name} ends the process by signal {signal}", plugin.backend),
            )
            .cause("A constructor of the plugin, or of a library that it needs, crashes: a damaged file, or two libraries that do not fit together.")
            .confidence(Confidence::Likely),
            Loadable::Refused(_) => {
                Finding::new(&NOT_LOADABLE, format!("the loader refuses the {} plugin of {name}", plugin.backend))
            }
            Loadable::Lacks(obstacles, _) => {
                let other = obstacles.iter().find_map(|obstacle| match obstacle {
                    Obstacle::Unreadable { path, why } => Some((path, format!("no library that can be read: {why}"))),
                    Obstacle::Version { version, found, by, .. } if !version.starts_with("FABRIC_") => {
                        Some((found, format!("has no {version}, which {by} needs")))
                    }
                    _ => None,
                });
                let (path, why) = other?;
                Finding::new(&NOT_LOADABLE, format!("the {} plugin of {name} cannot be loaded: {} {why}", plugin.backend, base(path)))
                    .evidence(path, why)
            }
            Loadable::Yes | Loadable::Late => return None,
        };
            let finding = said(
                finding.severity(severity(audit, plugin)).evidence(&plugin.path, "is listed by NIXL"),
                loadable,
                |_| true,
            );
            Some(match nixl.reinstall(&audit.installed) {
                Some(command) => finding.fix("install the wheel again, if the file is damaged", command),
                None => finding.advice("install this NIXL again"),
            })
        },
    );
    let notes: Vec<Finding> = all
        .installed
        .nixl
        .iter()
        .zip(&all.nixl)
        .filter_map(|(nixl, of)| storage(&all.installed, nixl, of))
        .collect();
    if let Outcome::Findings(findings) = &mut outcome {
        findings.extend(notes);
    } else if matches!(outcome, Outcome::Healthy(_)) && !notes.is_empty() {
        outcome = Outcome::Findings(notes);
    }
    outcome
}

/// Plugins for storage that are listed and lack something: a note.
fn storage(installed: &Installations, nixl: &Nixl, of: &NixlAudit) -> Option<Finding> {
    // Core libraries that are hidden are told by their own check.
    let lacks =
        |obstacle: &Obstacle| !matches!(obstacle, Obstacle::Missing { name, .. } if is_core(base(name)));
    let is_lacking = |plugin: &&PluginAudit| !plugin.is_network() && plugin.obstacles.iter().any(lacks);
    let lacking: Vec<_> = of.plugins.iter().filter(is_lacking).collect();
    let names: Vec<&str> = lacking.iter().map(|plugin| plugin.backend.as_str()).collect();
    let first = lacking.first()?;
    let finding = Finding::new(
        &NOT_LOADABLE,
        format!(
            "{} of {} {} listed and cannot be loaded",
            listed(&names),
            nixl.name(installed),
            is_or_are(names.len())
        ),
    )
    .severity(Severity::Note)
    .cause("Neither LIBFABRIC nor UCX needs them: they read and write storage, or serve special cases.");
    let finding = lacking.iter().take(6).fold(finding, |finding, plugin| {
        let mut lacks: Vec<String> = plugin.obstacles.iter().map(ToString::to_string).collect();
        lacks.dedup();
        lacks.truncate(3);
        finding.evidence(&plugin.path, lacks.join(", "))
    });
    Some(finding.advice(format!("install what {} needs, if it is wanted", first.backend)))
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

pub(super) fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}
