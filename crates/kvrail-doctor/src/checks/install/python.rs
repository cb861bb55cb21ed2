//! NIXL as a program in Python meets it: whether it is there, can be imported, what it takes by default, and how a process with it ends.

use super::audit::audit;
use super::by_kvrail;
use super::duplicates::{mend, twice};
use super::plugins::listed;
use crate::checks::device::seen::has_efa;
use crate::finding::{Finding, Outcome};
use crate::host::{Answer, Host, Lack, PythonTrial, Reached};
use crate::installed::inventory::{By, Environment, Installations, Nixl, installations};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

const NIXL: Reference = Reference { title: "NIXL", url: "https://github.com/ai-dynamo/nixl" };
const PYPI: Reference = Reference { title: "PyPI: nixl", url: "https://pypi.org/project/nixl/" };

pub(super) static MISSING: Rule = Rule {
    id: "nixl-missing",
    title: "NIXL is not installed where it is needed",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The Python environment has a program that moves KV caches with NIXL, or was named as one that should, and has no NIXL.",
    remedy: "Install it in this environment, on every node.",
    story: "`ModuleNotFoundError: No module named 'nixl'` on one node of several, often the head node: scripts install on the workers with GPUs, and the \
process that is placed elsewhere fails. With vLLM the connector says that NIXL is not available when the engine starts.

NIXL comes as the wheel `nixl`, which only picks one of `nixl-cu12` and `nixl-cu13`, by the CUDA that torch was built for. The environment of the program counts: a NIXL in the system's \
Python does not exist for a virtual environment.",
    references: &[PYPI, NIXL],
    explained_by: &[],
};

pub(super) static UNUSABLE: Rule = Rule {
    id: "nixl-not-usable",
    title: "NIXL is installed and cannot be imported, or makes no agent",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "Importing the module, or making an agent without any backend, ends with an exception.",
    remedy: "Read the exception; install what it names.",
    story: "The package is there, and using it fails: a dependency was left out (`pip install --no-deps` without numpy), the wheel is for another Python, \
or a library is missing.

This check does what a program does first, with the environment's own interpreter: import nixl, make an agent, give it the backend UCX over TCP. No GPU and no NIC \
is touched by that.",
    references: &[NIXL, PYPI],
    explained_by: &["nixl-core-libraries-hidden", "cuda-major-mismatch", "plugin-not-loadable", "plugin-library-missing"],
};

pub(super) static CRASH: Rule = Rule {
    id: "nixl-crash-at-exit",
    title: "a Python that used NIXL crashes when it ends",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "Two copies of libibverbs or libnl are in the process; when it ends, the destructor of one frees what the other allocated.",
    remedy: "Leave one copy of each: links to the system's libraries in the place of the wheel's.",
    story: "Work is done, results are there, and the process ends with `Segmentation fault`. Job managers call the job failed, tests turn red after the last one has passed, core files \
fill a disk, and the true failure of some other run is lost among them.

The UCX in NIXL's wheels brings libibverbs and libnl under names of its own and also maps the libefa.so.1 of the system, which brings the system's libibverbs and libnl. When the interpreter \
ends, destructors of both run. Whether that crashes depends on their order, which is why one host does and another does not.

This check does it: the environment's Python makes an agent with the backend UCX, and ends. What it had mapped is the evidence. Until it is mended, \
a program can end by `os._exit(0)` once its output is flushed.",
    references: &[
        NIXL,
        Reference { title: "Python: os._exit", url: "https://docs.python.org/3/library/os.html#os._exit" },
        Reference { title: "Linux: dlopen(3), destructors", url: "https://man7.org/linux/man-pages/man3/dlopen.3.html" },
    ],
    explained_by: &["duplicate-libraries"],
};

pub(super) static DEFAULT: Rule = Rule {
    id: "nixl-default-backend",
    title: "NIXL uses UCX unless it is told otherwise, on a host with EFA",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "The class nixl_agent_config of NIXL's Python API has the default backends=[\"UCX\"], and no variable of the environment changes it.",
    remedy: "Name LIBFABRIC wherever an agent is configured, or change the default in the wheel.",
    story: "EFA is there, everything works, and the transfers take seconds: inter-node KV transfers of 5 to 10 seconds, decode workers that log WaitingForInput, and no line \
`Backend LIBFABRIC was instantiated` in any log.

An agent that is made without a configuration, or with one that names no backends, gets UCX. UCX works everywhere, here over TCP or over EFA's slow path (0.18 GB/s \
where LIBFABRIC reaches 12), so that nothing fails. Engines have settings for it: vLLM's kv_connector_extra_config has `backends`, and needs the name in upper case. A program without such a \
setting gets what the default in the wheel's _api.py says.

A program that names its backends is not affected. The next `pip install` brings the default back.",
    references: &[
        Reference { title: "NIXL: nixl_agent_config", url: "https://github.com/ai-dynamo/nixl/blob/main/src/api/python/_api.py" },
        Reference { title: "NIXL: a warning where EFA is there and not used", url: "https://github.com/ai-dynamo/nixl/pull/1287" },
        Reference { title: "vLLM: NixlConnector", url: "https://docs.vllm.ai/en/latest/features/nixl_connector_usage.html" },
    ],
    explained_by: &[],
};

pub(super) fn missing(host: &Host) -> Outcome {
    let all = installations(host);
    let concerned: Vec<(usize, &Environment)> = all
        .environments
        .iter()
        .enumerate()
        .filter(|(_, environment)| !environment.engines.is_empty() || environment.by == By::Name)
        .collect();
    if concerned.is_empty() {
        return Outcome::NotApplicable(match all.nixl.len() {
            0 => "no Python environment here has a program that uses NIXL".into(),
            _ => "NIXL is installed; no program that uses it is".into(),
        });
    }
    let without =
        concerned.iter().filter(|(index, _)| !all.nixl.iter().any(|nixl| nixl.environment == Some(*index)));
    let findings = without.map(|(_, environment)| {
        let who = match environment.engines.as_slice() {
            [] => "which was named".to_owned(),
            engines => format!("which has {}", listed(engines)),
        };
        let finding = Finding::new(&MISSING, format!("no NIXL is installed in {}, {who}", environment.root))
            .severity(match (environment.by == By::Name, has_efa(host)) {
                (true, _) => Severity::Error,
                // An engine that serves alone needs none.
                (false, true) => Severity::Warning,
                (false, false) => Severity::Note,
            });
        let finding = match environment.packages.first() {
            Some(packages) => {
                finding.evidence(packages, "no nixl, nixl_cu12 or nixl_cu13 with its native module")
            }
            None => finding.evidence(&environment.root, "no directory of Python packages"),
        };
        let wheel =
            environment.torch_cuda.map_or_else(|| "nixl-cu12".into(), |major| format!("nixl-cu{major}"));
        match &environment.python {
            Some(python) => by_kvrail(finding, "install-nixl", None, Some(environment))
                .fix("or by hand, on every node", format!("{python} -m pip install nixl {wheel}")),
            None => finding.advice(format!(
                "make a Python environment at {}, or name another with --python",
                environment.root
            )),
        }
    });
    Outcome::of(findings.collect(), || {
        let roots: Vec<&str> = concerned.iter().map(|(_, environment)| environment.root.as_str()).collect();
        format!("NIXL is installed in {}", listed(&roots))
    })
}

/// The trial of an environment that has a NIXL and an interpreter: the copy of NIXL that is used, and how it went.
pub(crate) fn trial_of(host: &Host, environment: usize) -> Option<(Nixl, Answer<PythonTrial>)> {
    let all = installations(host);
    let at = all.environments.get(environment)?;
    let here = || all.nixl.iter().filter(|nixl| nixl.environment == Some(environment));
    // Where several wheels are there, the module `nixl` takes the one of torch's CUDA, else the newest.
    let of_torch = here().find(|nixl| at.torch_cuda.is_some() && nixl.cuda() == at.torch_cuda);
    let nixl = of_torch.or_else(|| here().max_by_key(|nixl| nixl.cuda()))?;
    let module = if at.has_front { "nixl" } else { nixl.module.as_str() };
    Some((nixl.clone(), host.python_with_nixl(at.python.as_ref()?, module)))
}

/// Findings about trials; not applicable where there was none, unknown where none came to an end.
fn of_trials(
    host: &Host,
    healthy: &str,
    mut finding: impl FnMut(&Installations, &Nixl, &PythonTrial) -> Option<Finding>,
) -> Outcome {
    let all = installations(host);
    let (mut findings, mut made, mut late) = (Vec::new(), 0, Vec::new());
    for (nixl, trial) in (0..all.environments.len()).filter_map(|at| trial_of(host, at)) {
        let nixl = &nixl;
        match trial {
            Ok(trial) => {
                made += 1;
                findings.extend(finding(&all, nixl, &trial));
            }
            Err(Lack::Late) => late.push(nixl.name(&all)),
            Err(_) => {}
        }
    }
    match (findings.is_empty(), made, late.is_empty()) {
        (true, _, false) => {
            Outcome::Unknown(format!("a Python with {} did not end in time", late.join(", ")))
        }
        (true, 0, _) => Outcome::NotApplicable("no Python environment with NIXL could be tried".into()),
        _ => Outcome::of(findings, || healthy.to_owned()),
    }
}

pub(super) fn unusable(host: &Host) -> Outcome {
    of_trials(host, "NIXL can be imported and makes an agent with UCX", |all, nixl, trial| {
        let python = all.environments[nixl.environment?].python.clone()?;
        let name = nixl.name(all);
        let finding = match (&trial.error, trial.signal) {
            (Some(error), _) => {
                let what = match trial.reached {
                    Reached::Begun => "cannot be imported",
                    Reached::Imported => "makes no agent",
                    Reached::Made | Reached::Ucx => "makes no agent with the backend UCX",
                };
                let finding = Finding::new(&UNUSABLE, format!("{name} {what}: {error}"))
                    .cause(format!("The environment's own Python says so: {error}."))
                    .evidence(&python, error);
                let package = error
                    .strip_prefix("ModuleNotFoundError: No module named '")
                    .and_then(|rest| rest.strip_suffix('\''));
                match package
                    .filter(|package| package.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
                {
                    Some(package) if !package.starts_with("nixl") => {
                        return Some(finding.fix(
                            format!("install {package}"),
                            format!("{python} -m pip install {package}"),
                        ));
                    }
                    _ => finding,
                }
            }
            (None, Some(signal)) if trial.reached < Reached::Made => {
                Finding::new(&UNUSABLE, format!("importing {name} ends the process by signal {signal}"))
                    .cause("A library that comes with it crashes while it is loaded.")
                    .evidence(&python, format!("killed by signal {signal} after `import`"))
            }
            _ => return None,
        };
        Some(match nixl.reinstall(all) {
            Some(command) => finding.fix("install the wheel again", command),
            None => finding,
        })
    })
}

pub(super) fn crash(host: &Host) -> Outcome {
    of_trials(host, "a Python with NIXL and UCX ends as it should", |all, nixl, trial| {
        let signal = trial.signal.filter(|_| trial.reached >= Reached::Made)?;
        let python = all.environments[nixl.environment?].python.clone()?;
        let duplicates = twice(&trial.mapped);
        let names: Vec<&str> = duplicates.keys().copied().collect();
        let name = nixl.name(all);
        let finding = Finding::new(
            &CRASH,
            match names.is_empty() {
                true => format!("a Python with {name} ends by signal {signal}"),
                false => format!(
                    "a Python with {name} ends by signal {signal}: two copies of {} are in it",
                    listed(&names)
                ),
            },
        );
        let finding = finding.evidence(
            &python,
            format!("made an agent with the backend UCX, ended, was killed by signal {signal}"),
        );
        if names.is_empty() {
            return Some(
                finding
                    .cause("A destructor crashes when the process ends; no library for the network is there twice.")
                    .confidence(Confidence::Possible)
                    .advice("end the program with os._exit once its output is flushed"),
            );
        }
        let finding = finding
            .cause(format!(
                "The wheel brings {} and the system's are mapped as well; the work is done, and then the destructor of one copy frees what the other allocated.",
                listed(&names)
            ))
            .confidence(Confidence::Likely);
        let finding = duplicates
            .values()
            .flatten()
            .fold(finding, |finding, path| finding.evidence(*path, "was mapped"));
        let finding = mend(host, finding, all, nixl, None);
        Some(finding.advice("until then: end programs with os._exit(0) once their output is flushed"))
    })
}

pub(super) fn default_backend(host: &Host) -> Outcome {
    if !has_efa(host) {
        return Outcome::NotApplicable("there is no EFA device".into());
    }
    let audit = audit(host);
    let mut seen = 0;
    let findings = audit.installed.nixl.iter().filter(|nixl| nixl.plugin("LIBFABRIC").is_some()).filter_map(|nixl| {
        let api = nixl.api.as_deref()?;
        let text = host.read(api).ok()?;
        let (line, default) = default_of(&text)?;
        seen += 1;
        if default.contains("LIBFABRIC") {
            return None;
        }
        let finding = Finding::new(
            &DEFAULT,
            format!("an agent of {} that names no backend gets {default}, not LIBFABRIC over EFA", nixl.name(&audit.installed)),
        )
        .confidence(Confidence::Likely)
        .evidence(api, format!("line {line}: backends = {default}"))
        .advice("name it where the agent is configured; vLLM: \"kv_connector_extra_config\": {\"backends\": [\"LIBFABRIC\"]}");
        let finding = by_kvrail(finding, "default-backend", None, nixl.home(&audit.installed)).fix(
            "or by hand: change the default in the wheel, for programs that have no such setting",
            format!("sed -i.bundled '{line}s/\\[\"UCX\"\\]/[\"LIBFABRIC\"]/' {api}"),
        );
        Some(finding)
    });
    let findings: Vec<Finding> = findings.collect();
    match seen {
        0 => Outcome::NotApplicable("no NIXL for Python with a LIBFABRIC plugin is installed".into()),
        _ => Outcome::of(findings, || "an agent that names no backend gets LIBFABRIC".into()),
    }
}

/// The first default of an argument `backends` that names any, with its line.
fn default_of(api: &str) -> Option<(usize, &str)> {
    api.lines().enumerate().find_map(|(index, line)| {
        let value = line.trim().strip_prefix("backends:")?.split_once('=')?.1.trim().trim_end_matches(',');
        value.contains('"').then_some((index + 1, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_first_that_names_a_backend() {
        let api = "class nixl_agent_config:\n    def __init__(\n        self,\n        backends: list[str] = [\"UCX\"],\n    ):\n";
        assert_eq!(default_of(api), Some((4, "[\"UCX\"]")));
        assert_eq!(default_of("        backends: list[str] = [],\n"), None);
    }
}
