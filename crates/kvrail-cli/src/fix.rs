//! `kvrail fix`: mends what `kvrail doctor` finds, where that can be mended. What is changed, and how, is in `kvrail_doctor::fix`.

mod nodes;
mod told;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kvrail_doctor::Host;
use kvrail_doctor::fix::preamble::{self, Form};
use kvrail_doctor::fix::{self, Environment, FixError, Place, Plan, Remedy, Request, Verdict};
use kvrail_doctor::host::{Live, Scope};

use crate::failure::Failure;
use told::{Doing, Told};

/// What is mended, where.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Fix {
    /// What to mend [default: everything that applies]
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Name>,
    /// Print the exact plan and change nothing; exit 1 if something would change
    #[arg(long, short = 'n', conflicts_with_all = ["undo", "list"])]
    dry_run: bool,
    /// The Python environment: its root, its python, or a directory of packages; may be given again [default: the active one]
    #[arg(long, value_name = "DIR")]
    python: Vec<PathBuf>,
    /// Where the EFA software is [default: /opt/amazon/efa]
    #[arg(long, value_name = "DIR")]
    efa: Option<PathBuf>,
    /// Take back the last run, or the one of this ID, bit for bit
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["names", "list"])]
    undo: Option<String>,
    /// List the runs that can be taken back
    #[arg(long, conflicts_with = "names")]
    list: bool,
    /// Also undo what somebody else has changed since, and set defaults that cannot work here
    #[arg(long)]
    force: bool,
    /// The version of NIXL that install-nixl installs [default: one that works with this host's libfabric]
    #[arg(long, value_name = "VERSION")]
    nixl: Option<String>,
    /// Do it on every node of the Ray cluster, or of the Slurm allocation, that this one belongs to
    #[arg(long, value_enum, value_name = "CLUSTER", conflicts_with = "list")]
    nodes: Option<nodes::Cluster>,
    /// Longest time for one node, and for all of them together
    #[arg(long, value_name = "DURATION", value_parser = crate::units::duration, default_value = "15m", requires = "nodes")]
    timeout: std::time::Duration,
    /// An option for srun, as in --srun=--container-name=sglang; may be given again
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true, requires = "nodes")]
    srun: Vec<String>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What can be asked for by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Name {
    /// Lead a wheel's copies of libfabric, rdma-core and libnl to those of the system
    BundledLibraries,
    /// Let plugins find the libraries that the wheel has elsewhere
    LoaderPath,
    /// Let plugins find a libfabric that is new enough
    Libfabric,
    /// Make LIBFABRIC NIXL's default backend
    DefaultBackend,
    /// Install NIXL where it is missing, in a release that works with this host's libfabric
    InstallNixl,
    /// Print the same as a script to paste into a job (--format yaml for a container's environment and mounts)
    Preamble,
}

impl Name {
    fn remedy(self) -> Option<Remedy> {
        match self {
            Self::BundledLibraries => Some(Remedy::BundledLibraries),
            Self::LoaderPath => Some(Remedy::LoaderPath),
            Self::Libfabric => Some(Remedy::Libfabric),
            Self::DefaultBackend => Some(Remedy::DefaultBackend),
            Self::InstallNixl | Self::Preamble => None,
        }
    }
}

/// How the result is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// For people; of a preamble, bash.
    Text,
    /// Schema kvrail.fix.v1.
    Json,
    /// A snippet of a job's file, of a preamble only.
    Yaml,
    /// The same as json in one line with the node's name: what --nodes gathers.
    #[value(hide = true)]
    Line,
}

const EXAMPLES: &str = "\
Examples:
  kvrail fix --dry-run                       what would be changed, file by file
  kvrail fix                                 do it, try it out, take it back if something stops working
  kvrail fix default-backend --python /opt/venv
  kvrail fix --undo                          take the last run back, bit for bit
  kvrail fix install-nixl --nodes ray        on every node of the Ray cluster
  srun … or salloc -N 2 kvrail fix --nodes slurm
  kvrail fix preamble > preamble.sh          the same as a script, for nodes without kvrail

Nothing outside the environment is touched. What is replaced is kept in DIR/.kvrail-fix (/var/lib/kvrail/fix for the system's Python).

Exit codes: 0 done, or nothing to do; 1 something would change (--dry-run), or could not be mended; 2 could not be done.";

/// Mends, takes back, lists or prints: here, or on every node.
pub(crate) fn main(arguments: &Fix) -> Result<ExitCode, Failure> {
    if let Some(cluster) = arguments.nodes {
        return nodes::main(arguments, cluster);
    }
    match here(arguments) {
        Err(failure) if arguments.format == Format::Line => {
            crate::sink::print(&told::line(
                &serde_json::json!({"error": failure.what}),
                failure.kind.exit_code(),
            ))?;
            Ok(ExitCode::from(failure.kind.exit_code()))
        }
        other => other,
    }
}

fn here(arguments: &Fix) -> Result<ExitCode, Failure> {
    if arguments.names.contains(&Name::Preamble) {
        return preamble(arguments);
    }
    if arguments.format == Format::Yaml {
        return Err(Failure::usage("--format yaml is for `kvrail fix preamble`"));
    }
    let mut live = Live::new();
    if let Ok(program) = std::env::current_exe() {
        live = live.with_program(&program);
    }
    let text =
        |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
    let scope = Scope { python: arguments.python.iter().map(text).collect(), ..Scope::default() };
    let host = Host::live(live.clone(), scope);
    let environments = environments(&host)?;
    if arguments.list {
        return list(arguments, &places(arguments, &environments)?);
    }
    if let Some(run) = &arguments.undo {
        return undo(arguments, &places(arguments, &environments)?, run);
    }
    let named: Vec<Remedy> = arguments.names.iter().filter_map(|name| name.remedy()).collect();
    let request =
        Request { efa: arguments.efa.as_ref().map(text), named: !named.is_empty(), force: arguments.force };
    let remedies = if arguments.names.is_empty() { Remedy::ALL.to_vec() } else { named };
    // What an interrupted run left is not what a plan is made from.
    if !arguments.dry_run {
        for place in places(arguments, &environments)? {
            for run in fix::recover(&place, arguments.force).map_err(failed)? {
                eprintln!("run {run} was interrupted: taken back");
            }
        }
    }
    let mut told = Told::new(if arguments.dry_run { Doing::WouldChange } else { Doing::Changed });
    if arguments.names.contains(&Name::InstallNixl) {
        for environment in &environments {
            told.installed(environment, install(arguments, &live, &host, environment, &request)?);
        }
    }
    // A host remembers its answers, and NIXL may be there now.
    let host = Host::live(live.clone(), host.scope().clone());
    let plans = if remedies.is_empty() {
        Vec::new()
    } else {
        fix::plan(&host, &remedies, &request).map_err(failed)?
    };
    let run = fix::new_run();
    for plan in &plans {
        let entries = fix::preview(&plan.place, &plan.changes().map_err(failed)?).map_err(failed)?;
        if arguments.dry_run {
            told.add(plan, None, entries, Vec::new());
            continue;
        }
        let (applied, trial) = fix::carry_out(plan, &live, &host, &run, &mut |_| Ok(())).map_err(failed)?;
        let failures = trial.failures().map(|(what, why)| (what.to_owned(), why.to_owned())).collect();
        match applied {
            fix::Applied::Nothing => told.add(plan, None, Vec::new(), failures),
            fix::Applied::Changed(journal) => told.add(plan, Some(journal.run), journal.entries, failures),
        }
    }
    let left = plans.iter().any(is_left);
    let code = u8::from(left || arguments.dry_run && told.changes() > 0);
    crate::sink::print(&match arguments.format {
        Format::Json => told.json(),
        Format::Line => told::line(&told.value(), code),
        Format::Text | Format::Yaml => told.text(),
    })?;
    Ok(ExitCode::from(code))
}

/// Installs NIXL where it is missing: what was or would be installed, or that it is there.
fn install(
    arguments: &Fix,
    live: &Live,
    host: &Host,
    environment: &Environment,
    request: &Request,
) -> Result<told::Install, Failure> {
    let looked = fix::look_for_nixl(host, environment, arguments.nixl.as_deref(), request);
    match looked.map_err(Failure::environment)? {
        Err(there) => Ok(told::Install { packages: Vec::new(), says: there, run: None }),
        Ok(what) if arguments.dry_run => {
            Ok(told::Install { packages: what.packages, says: what.why, run: None })
        }
        Ok(what) => {
            let place = fix::place_of(environment).map_err(failed)?;
            let journal =
                fix::install(&place, &fix::new_run(), live, host, environment, &what).map_err(failed)?;
            Ok(match journal {
                Some(journal) => {
                    told::Install { packages: what.packages, says: what.why, run: Some(journal.run) }
                }
                None => told::Install {
                    packages: Vec::new(),
                    says: "another run has installed it".into(),
                    run: None,
                },
            })
        }
    }
}

/// Whether a plan cannot mend all that it found.
fn is_left(plan: &Plan) -> bool {
    plan.proposals.iter().any(|proposal| match &proposal.verdict {
        Verdict::Apply { left, .. } => !left.is_empty(),
        Verdict::Refused(_) => true,
        Verdict::Well(_) | Verdict::NotHere(_) => false,
    })
}

fn environments(host: &Host) -> Result<Vec<Environment>, Failure> {
    let environments = fix::environments(host);
    if let Some(none) = environments.iter().find(|environment| environment.packages.is_empty()) {
        return Err(Failure::usage(format!("{} is no Python environment", none.root))
            .hint("name its root, as in /opt/venv, or its python, as in /opt/venv/bin/python3"));
    }
    if environments.is_empty() {
        return Err(Failure::environment("there is no Python environment here")
            .hint("name one with --python DIR, or activate it"));
    }
    Ok(environments)
}

fn places(arguments: &Fix, environments: &[Environment]) -> Result<Vec<Place>, Failure> {
    let mut places: Vec<Place> = Vec::new();
    for environment in environments {
        let place = fix::place_of(environment).map_err(failed)?;
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let system = Place::system(std::path::Path::new("/")).map_err(failed)?;
    if arguments.python.is_empty() && !places.contains(&system) && system.store().exists() {
        places.push(system);
    }
    Ok(places)
}

fn list(arguments: &Fix, places: &[Place]) -> Result<ExitCode, Failure> {
    let mut runs = Vec::new();
    for place in places {
        runs.extend(fix::runs(place).map_err(failed)?.into_iter().map(|run| (place.root().to_owned(), run)));
    }
    crate::sink::print(&told::list(&runs, arguments.format == Format::Json))?;
    Ok(ExitCode::SUCCESS)
}

fn undo(arguments: &Fix, places: &[Place], run: &str) -> Result<ExitCode, Failure> {
    let mut recovered = Vec::new();
    let mut last: Option<(&Place, String)> = None;
    for place in places {
        for run in fix::recover(place, arguments.force).map_err(failed)? {
            recovered.push(run);
        }
        let runs = fix::runs(place).map_err(failed)?;
        let chosen = runs.into_iter().rfind(|had| run.is_empty() || had.journal.run == run);
        if let Some(chosen) = chosen
            && last.as_ref().is_none_or(|(_, run)| *run < chosen.journal.run)
        {
            last = Some((place, chosen.journal.run));
        }
    }
    for run in &recovered {
        eprintln!("run {run} was interrupted: taken back");
    }
    let Some((place, id)) = last else {
        // Another node of the same file system has taken it back.
        if arguments.format == Format::Line {
            crate::sink::print(&told::line(&serde_json::json!({}), 0))?;
            return Ok(ExitCode::SUCCESS);
        }
        if recovered.iter().any(|recovered| run.is_empty() || recovered == run) {
            return Ok(ExitCode::SUCCESS);
        }
        let what =
            if run.is_empty() { "no run is on record".into() } else { format!("there is no run {run}") };
        return Err(
            Failure::environment(format!("nothing to undo: {what}")).hint("`kvrail fix --list` has all")
        );
    };
    let journal = fix::undo(place, Some(&id), arguments.force, &mut |_| Ok(())).map_err(failed)?;
    let told = match arguments.format {
        Format::Line => {
            told::line(&serde_json::json!({"undone": journal.run, "changes": journal.entries.len()}), 0)
        }
        format => told::undone(place.root(), &journal, format == Format::Json),
    };
    crate::sink::print(&told)?;
    Ok(ExitCode::SUCCESS)
}

fn preamble(arguments: &Fix) -> Result<ExitCode, Failure> {
    if arguments.names.len() > 1 || arguments.dry_run {
        return Err(Failure::usage("`kvrail fix preamble` prints a script and stands alone"));
    }
    let efa = arguments.efa.as_ref().map(|path| path.display().to_string());
    let python = arguments.python.first().map(|path| path.display().to_string());
    let form = match arguments.format {
        Format::Text => Form::Bash,
        Format::Yaml => Form::Yaml,
        Format::Json | Format::Line => return Err(Failure::usage("a preamble is text or yaml")),
    };
    let text = preamble::preamble(efa.as_deref(), python.as_deref(), form).map_err(Failure::usage)?;
    crate::sink::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The advice that belongs to an error.
fn failed(error: FixError) -> Failure {
    let hint = match &error {
        FixError::Unwritable { .. } => {
            "run it as the owner of the environment, or as root; a read-only image needs `kvrail fix preamble` at start"
        }
        FixError::Changed { .. } => {
            "`kvrail fix --undo --force` puts back what was there before all the same"
        }
        FixError::Later { .. } => "`kvrail fix --list` has all runs",
        FixError::Outside { .. } => "name the real directory with --python",
        FixError::Unproven { .. } => "`kvrail doctor --verbose` says what was found; please report it",
        FixError::Locked { .. } => "wait for it, or find who holds it: `fuser DIR/.kvrail-fix/lock`",
        _ => "`kvrail fix --list` says what is on record",
    };
    match error {
        FixError::Unproven { .. } => Failure::check(error.to_string()),
        _ => Failure::environment(error.to_string()),
    }
    .hint(hint)
}
