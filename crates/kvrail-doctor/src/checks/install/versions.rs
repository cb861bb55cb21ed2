//! Parts that come from different hands and have to fit: CUDA's major version, libibverbs and its providers, EFA's driver and libfabric.

use std::collections::BTreeSet;

use kvrail_sys::libfabric::Release;

use super::audit::audit;
use super::plugins::{listed, release};
use crate::checks::device::seen::has_efa;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::installed::inventory::LIBFABRIC;
use crate::installed::loader::{Loader, Obstacle, base, directory};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static CUDA: Rule = Rule {
    id: "cuda-major-mismatch",
    title: "NIXL was built for another major version of CUDA",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "nixl-cu12 and nixl-cu13 are linked to CUDA's runtime of that major version; torch, the installed runtime or the driver is of another.",
    remedy: "Install the wheel of NIXL for the CUDA that torch was built for, and a driver that is new enough for it.",
    story: "`libcudart.so.13: cannot open shared object file`, `detected CUDA 13 but nixl-cu13 is not installed`, or plugins that are listed and fail.

A library of CUDA 12 does not serve a program that was linked to CUDA 13, whatever else is the same. The module `nixl` picks the wheel by the CUDA that torch was built for. The driver \
sets the upper limit: CUDA 12 needs a driver from 525, CUDA 13 one from 580, unless the container has NVIDIA's packages for forward compatibility.

So: one major version for torch, nixl and the runtime, and a driver that has it.",
    references: &[
        Reference { title: "NVIDIA: CUDA compatibility", url: "https://docs.nvidia.com/deploy/cuda-compatibility/" },
        Reference { title: "PyPI: nixl", url: "https://pypi.org/project/nixl/" },
    ],
    explained_by: &[],
};

pub(super) static PROVIDERS: Rule = Rule {
    id: "rdma-provider-abi",
    title: "libibverbs has no provider of its own version for this host's RDMA devices",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "Providers are loaded by a name with the number of libibverbs' private interface (libefa-rdmav34.so); there is none of the number that this libibverbs has.",
    remedy: "Install libibverbs and its providers from one release of rdma-core.",
    story: "ibv_devices lists nothing, or warns `couldn't load driver 'libefa-rdmav34.so'`, although the kernel has the devices under /sys/class/infiniband; \
libfabric then offers no efa provider and UCX no ib transport.

libibverbs and its providers (libefa, libmlx5) share a private interface, whose number is in the providers' file names and in the symbol version IBVERBS_PRIVATE_34. \
It changes with releases of rdma-core. An image with the distribution's libibverbs, into which the host's providers were copied or mounted, has two numbers, and \
libibverbs looks only for its own.

Take both from one place: the distribution's packages, or those of AWS's EFA installer.",
    references: &[
        Reference { title: "rdma-core: the providers' private interface", url: "https://github.com/linux-rdma/rdma-core/blob/master/CMakeLists.txt" },
        Reference { title: "AWS: get started with EFA", url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html" },
    ],
    explained_by: &[],
};

pub(super) static DRIVER: Rule = Rule {
    id: "efa-driver-libfabric-mismatch",
    title: "the libfabric in use is not one that belongs to this host's EFA driver",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "The EFA driver and libfabric are released together in AWS's installer; here the driver is of one release and libfabric of another source.",
    remedy: "Use the libfabric of the EFA installer that brought the driver: /opt/amazon/efa, mounted into containers.",
    story: "fi_info on the host shows EFA, and the program in the container crashes, sees no device, or is slow. The driver is the host's kernel module; libfabric is \
whatever the container has.

AWS's installer brings a driver (its version ends in `g`, as in 2.17.2g) and a libfabric (its version has `amzn`) that were tested together. The driver's interface is \
kept compatible, so that most mixtures work; two do not: an upstream copy that a wheel brings along, and a libfabric from before v1.18, which cannot use RDMA writes of the EFA of P5 and later \
instances and emulates them with messages.

The driver version is in /sys/module/efa/version, which a container sees as well.",
    references: &[
        Reference { title: "EFA driver", url: "https://github.com/amzn/amzn-drivers/tree/master/kernel/linux/efa" },
        Reference { title: "libfabric: fi_efa(7)", url: "https://ofiwg.github.io/libfabric/main/man/fi_efa.7.html" },
    ],
    explained_by: &["bundled-efa-libraries", "plugin-libfabric-too-old"],
};

/// First driver of each major version of CUDA.
const DRIVERS: [(u32, u32); 2] = [(12, 525), (13, 580)];
/// First release of libfabric that uses RDMA writes of EFA devices.
const WRITES_SINCE: (u32, u32) = (1, 18);

pub(super) fn cuda(host: &Host) -> Outcome {
    let audit = audit(host);
    let all = &audit.installed;
    let driver = host.read("/proc/driver/nvidia/version").ok().as_deref().and_then(driver_of);
    let mut concerned = 0;
    let mut findings = Vec::new();
    for (nixl, of) in all.nixl.iter().zip(&audit.nixl) {
        let Some(built) = nixl.cuda() else { continue };
        let Some(environment) = nixl.environment.map(|index| &all.environments[index]) else { continue };
        let name = nixl.name(all);
        let others = all
            .nixl
            .iter()
            .any(|other| other.environment == nixl.environment && other.cuda() == environment.torch_cuda);
        let python = environment.python.as_deref().unwrap_or("python3");
        let get = |finding: Finding, major: u32| {
            let version = nixl.version.as_ref().map(|version| format!("=={version}")).unwrap_or_default();
            finding.fix(
                format!("install NIXL for CUDA {major}"),
                format!("{python} -m pip install --no-deps nixl-cu{major}{version}"),
            )
        };
        let newest = DRIVERS
            .iter()
            .rev()
            .find(|(_, first)| driver.is_some_and(|driver| driver >= *first))
            .map(|(major, _)| *major);
        concerned += u32::from(environment.torch_cuda.is_some() || driver.is_some());
        if let Some(torch) = environment.torch_cuda.filter(|torch| *torch != built && !others) {
            let finding = Finding::new(&CUDA, format!("{name} is for CUDA {built}, torch in the same environment for CUDA {torch}"))
                .cause(format!("`import nixl` looks for nixl-cu{torch}, because torch was built for CUDA {torch}; only nixl-cu{built} is installed."))
                .evidence(format!("{}/torch/version.py", nixl.root), format!("cuda {torch}"))
                .evidence(nixl.bindings.clone().unwrap_or_else(|| nixl.core.clone()), format!("built for CUDA {built}"));
            findings.push(get(finding, torch));
        } else if let Some((driver, newest)) = driver.zip(newest).filter(|(_, newest)| *newest < built) {
            let finding = Finding::new(
                &CUDA,
                format!("{name} is for CUDA {built}, and the driver {driver} has CUDA {newest}"),
            )
            .cause(format!(
                "CUDA {built} needs a driver from {}; this host's is {driver}.",
                first_driver(built)
            ))
            .confidence(Confidence::Likely)
            .evidence("/proc/driver/nvidia/version", format!("driver {driver}"));
            findings.push(
                get(finding, newest)
                    .advice(format!("or update the host's driver to {} or later", first_driver(built))),
            );
        } else if let Some(runtime) = other_runtime(host, nixl.root.as_str(), built, &of.plugins) {
            concerned += 1;
            let (major, path, plugin) = runtime;
            let finding = Finding::new(&CUDA, format!("{name} needs CUDA's runtime {built}, and the environment has that of CUDA {major}"))
                .cause(format!("{} is linked to libcudart.so.{built}, which is nowhere; {path} is there, which does not serve it.", base(&plugin)))
                .evidence(plugin.as_str(), format!("libcudart.so.{built} => not found"))
                .evidence(path, format!("CUDA's runtime {major}"));
            findings.push(get(finding, major));
        }
    }
    if concerned == 0 {
        return Outcome::NotApplicable("no NIXL for a version of CUDA beside a CUDA".into());
    }
    Outcome::of(findings, || "NIXL, torch, CUDA's runtime and the driver are of one major version".into())
}

fn first_driver(major: u32) -> u32 {
    DRIVERS.iter().find(|(of, _)| *of == major).map_or(0, |(_, first)| *first)
}

/// A runtime of another major version, where the one that a plugin wants is missing: its major, its file, the plugin.
fn other_runtime(
    host: &Host,
    packages: &str,
    built: u32,
    plugins: &[super::audit::PluginAudit],
) -> Option<(u32, String, String)> {
    let wanted = format!("libcudart.so.{built}");
    let lacks = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Missing { name, .. } if *name == wanted);
    let plugin = plugins.iter().find(|plugin| plugin.is_network() && plugin.obstacles.iter().any(lacks))?;
    let near = |major: u32| {
        let places = [
            format!("{packages}/nvidia/cuda_runtime/lib"),
            format!("{packages}/nvidia/cu{major}/lib"),
            format!("/usr/local/cuda-{major}/lib64"),
            "/usr/local/cuda/lib64".to_owned(),
        ];
        places.into_iter().map(|at| format!("{at}/libcudart.so.{major}")).find(|path| host.elf(path).is_ok())
    };
    // The right one may be where torch finds it, though not the loader.
    if near(built).is_some() {
        return None;
    }
    DRIVERS
        .iter()
        .filter(|(major, _)| *major != built)
        .find_map(|(major, _)| Some((*major, near(*major)?, plugin.path.clone())))
}

/// `570` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  …`.
fn driver_of(version: &str) -> Option<u32> {
    let line = version.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace().find_map(|word| {
        let mut parts = word.split('.');
        let major = parts.next()?.parse::<u32>().ok()?;
        parts.next().is_some().then_some(major)
    })
}

pub(super) fn providers(host: &Host) -> Outcome {
    if !has_efa(host) {
        return Outcome::NotApplicable("there is no EFA device".into());
    }
    let loader = Loader::new(host);
    let Some((path, facts)) = loader.find("libibverbs.so.1") else {
        return Outcome::NotApplicable("no libibverbs is installed".into());
    };
    let Some(own) = facts.level("IBVERBS_PRIVATE_") else {
        return Outcome::NotApplicable(format!("{path} has no private interface"));
    };
    // Providers lie in a folder beside the library that was built with them.
    let real = host.entry(&path).map_or(path.clone(), |entry| entry.real);
    let at = format!("{}/libibverbs", directory(&real));
    let files = host.names(&at).unwrap_or_default();
    let number = |name: &str| name.strip_prefix("libefa-rdmav")?.strip_suffix(".so")?.parse::<u32>().ok();
    let numbers: BTreeSet<u32> = files.iter().filter_map(|name| number(name)).collect();
    if numbers.contains(&own) {
        // The number in the name is a promise of the file; what it is linked to is what counts.
        let provider = format!("{at}/libefa-rdmav{own}.so");
        let wanted = host
            .elf(&provider)
            .ok()
            .and_then(|facts| facts.needs("libibverbs.so.1")?.level("IBVERBS_PRIVATE_"));
        if wanted.is_none_or(|wanted| wanted == own) {
            return Outcome::Healthy(format!(
                "libibverbs and its provider for EFA have the private interface {own}"
            ));
        }
    }
    let others: Vec<String> = numbers.iter().map(|number| format!("libefa-rdmav{number}.so")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let finding = Finding::new(
        &PROVIDERS,
        match others.is_empty() {
            true => format!("libibverbs looks for libefa-rdmav{own}.so, and there is no provider for EFA in {at}"),
            false => format!("libibverbs looks for libefa-rdmav{own}.so, and {at} has {}", listed(&others)),
        },
    )
    .cause(format!("{} has the private interface {own}; its providers came from another release of rdma-core, or did not come.", base(&real)))
    .evidence(real.as_str(), format!("IBVERBS_PRIVATE_{own}"))
    .evidence(at, if others.is_empty() { "no libefa-rdmav*.so".into() } else { listed(&others) })
    .fix(
        "install both from one release",
        "sudo apt-get install -y --reinstall libibverbs1 ibverbs-providers rdma-core || sudo dnf reinstall -y rdma-core libibverbs",
    );
    Outcome::Findings(vec![finding])
}

pub(super) fn driver(host: &Host) -> Outcome {
    let Ok(driver) = host.value("/sys/module/efa/version") else {
        return Outcome::NotApplicable("no EFA driver that tells its version is loaded".into());
    };
    let audit = audit(host);
    let of_plugin = audit.installed.nixl.iter().zip(&audit.nixl).find_map(|(nixl, of)| {
        let plugin = of.plugins.iter().find(|plugin| plugin.backend == "LIBFABRIC")?;
        let (path, real, facts) = plugin.library("libfabric")?;
        let is_bundled = nixl.libraries.as_deref().is_some_and(|at| real.starts_with(at));
        Some((path.clone(), real.clone(), facts.clone(), is_bundled))
    });
    let of_loader = || {
        let (path, facts) = Loader::new(host).find(LIBFABRIC)?;
        let real = host.entry(&path).map_or(path.clone(), |entry| entry.real);
        Some((path, real, facts, false))
    };
    let Some((path, real, facts, is_bundled)) = of_plugin.or_else(of_loader) else {
        return Outcome::NotApplicable("no libfabric is installed".into());
    };
    let known = Release::of_name(base(&real))
        .or_else(|| Release::of_versions(facts.versions.iter().map(String::as_str)));
    let is_old = match known {
        Some(Release::Exact { major, minor }) => (major, minor) < WRITES_SINCE,
        Some(Release::Between { last: Some(last), .. }) => last < WRITES_SINCE,
        _ => false,
    };
    let release = release(&real, &facts.versions);
    if !is_old && !is_bundled {
        return Outcome::Healthy(format!("EFA driver {driver}, libfabric {path} is {release}"));
    }
    let what = if is_bundled { "an upstream copy that NIXL's wheel brings" } else { "older than v1.18" };
    let finding = Finding::new(
        &DRIVER,
        format!("the EFA driver is {driver}, and the libfabric in use is {what} ({release})"),
    )
    .confidence(Confidence::Likely)
    .evidence("/sys/module/efa/version", driver)
    .evidence(path, release)
    .fix(
        "use the libfabric of the EFA installer, before the process starts",
        "export LD_LIBRARY_PATH=/opt/amazon/efa/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}",
    )
    .advice("in a container, mount the host's /opt/amazon/efa at the same place");
    Outcome::Findings(vec![finding])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_s_version_is_read_from_its_line() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version:  gcc version 12.3.0\n";
        assert_eq!(driver_of(text), Some(570));
        assert_eq!(driver_of("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun\n"), Some(580));
        assert_eq!(driver_of(""), None);
    }
}
