//! A NIXL that was built from source finds the EFA software's libfabric: by the loader's configuration, since it has no
//! directory of its own environment in which a link could be.
//!
//! An entry comes before the distribution's directories and overwrites no packaged file; a link in `/usr/lib` would be undone by the next
//! update of the package, or break it.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::change::Change;
use super::here::{Here, told};
use super::{FixError, Place, Plan, Proposal, Remedy, Request, Verdict};
use crate::host::{Host, ended};
use crate::installed::inventory::{By, Environment, LIBFABRIC, Nixl, installations};
use crate::installed::loader::{Obstacle, directory, own};

const PLUGIN: &str = "libplugin_LIBFABRIC.so";
/// Before all others: they are read in the order of their names, and the first directory that has a library wins.
const ENTRY: &str = "/etc/ld.so.conf.d/000-kvrail-efa.conf";
const CACHE: &str = "/etc/ld.so.cache";

/// What would be done for the NIXL of the system; nothing where there is none.
pub(super) fn plan(here: &Here<'_>, request: &Request) -> Result<Option<Plan>, FixError> {
    let Some((nixl, path)) = plugin(here.host) else { return Ok(None) };
    let verdict = look(here, &path, request);
    let environment = Environment { packages: vec!["/etc".into()], ..Environment::bare("/", By::Path) };
    let proposals = vec![Proposal { remedy: Remedy::Libfabric, nixl, verdict }];
    Ok(Some(Plan { environment, place: Place::system(Path::new("/"))?, proposals }))
}

/// The plugin of the NIXL that is no wheel: that which `NIXL_PLUGIN_DIR` names, or that of a build from source.
fn plugin(host: &Host) -> Option<(Nixl, String)> {
    let all = installations(host);
    let built = || all.nixl.iter().filter(|nixl| nixl.environment.is_none());
    let named = host
        .variable("NIXL_PLUGIN_DIR")
        .map(|at| at.trim_end_matches('/'))
        .filter(|at| !at.contains(".libs") && host.elf(&format!("{at}/{PLUGIN}")).is_ok());
    if let (Some(at), None) = (named, built().next()) {
        return Some((Nixl::bare("nixl", at), format!("{at}/{PLUGIN}")));
    }
    built().find_map(|nixl| Some((nixl.clone(), nixl.plugin("LIBFABRIC")?.path.clone())))
}

fn look(here: &Here<'_>, path: &str, request: &Request) -> Verdict {
    let Some((facts, needed)) =
        here.host.elf(path).ok().and_then(|facts| Some((facts.clone(), facts.needs(LIBFABRIC)?.clone())))
    else {
        return Verdict::NotHere(format!("{path} needs no libfabric"));
    };
    let mut process = here.loader.process();
    let obstacles = process.load(path);
    let problem = obstacles.iter().find(|obstacle| {
        matches!(obstacle, Obstacle::Missing { name, by } | Obstacle::Version { name, by, .. } if name == LIBFABRIC && by == path)
    });
    let Some(problem) = problem.map(told) else {
        return Verdict::Well(format!("{path} finds a libfabric that is new enough"));
    };
    let found = process.known(LIBFABRIC).map(|library| library.path.clone());
    let Some(efa) = &here.efa else {
        return if request.named {
            Verdict::Refused(format!("{problem}: no EFA software is here"))
        } else {
            Verdict::NotHere("no EFA software is here".into())
        };
    };
    let target = format!("{efa}/{LIBFABRIC}");
    let lacks = here.lacks(&target, &needed);
    if !lacks.is_empty() {
        return Verdict::Refused(format!("{problem}: {target} has no {} either", lacks.join(", ")));
    }
    if let Some(why) = here.obstacle(&target) {
        return Verdict::Refused(format!("{problem}: {why}"));
    }
    let searched = own(facts.runpath.as_deref().or(facts.rpath.as_deref()), path);
    let first = found.filter(|found| {
        searched.iter().any(|at| at == directory(found))
            || here.loader.forced(LIBFABRIC, facts.machine).as_ref() == Some(found)
    });
    if let Some(first) = first {
        return Verdict::Refused(format!(
            "{problem}: its RUNPATH or LD_LIBRARY_PATH leads to {first} before the loader's configuration is asked"
        ));
    }
    if !here.host.read("/etc/ld.so.conf").is_ok_and(|text| text.contains("ld.so.conf.d/*.conf")) {
        return Verdict::Refused(format!(
            "{problem}: /etc/ld.so.conf does not read /etc/ld.so.conf.d; export LD_LIBRARY_PATH={efa}:$LD_LIBRARY_PATH"
        ));
    }
    if !rustix::process::geteuid().is_root() {
        return Verdict::Refused(format!(
            "{problem}: the loader's configuration is root's; as root, or: export LD_LIBRARY_PATH={efa}:$LD_LIBRARY_PATH"
        ));
    }
    match cache(efa) {
        Ok(cache) => Verdict::Apply {
            changes: vec![
                Change::file(
                    ENTRY,
                    format!(
                        "# Written by kvrail fix: the EFA software's libfabric before an older one.\n{efa}\n"
                    ),
                    problem,
                ),
                Change::file(CACHE, cache, "what ldconfig makes of it"),
            ],
            left: Vec::new(),
        },
        Err(why) => Verdict::Refused(format!("{problem}: ldconfig: {why}")),
    }
}

/// The loader's cache as it would be with a directory before all others.
fn cache(directory: &str) -> Result<Vec<u8>, String> {
    struct Temporary(std::path::PathBuf);
    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    let nanoseconds = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().subsec_nanos();
    let path = std::env::temp_dir().join(format!("kvrail-fix-cache-{}-{nanoseconds}", std::process::id()));
    let wrong = |why: std::io::Error| why.to_string();
    std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(wrong)?;
    let temporary = Temporary(path);
    let (configuration, made) = (temporary.0.join("conf"), temporary.0.join("cache"));
    std::fs::write(&configuration, format!("{directory}\ninclude /etc/ld.so.conf\n")).map_err(wrong)?;
    let program = if Path::new("/sbin/ldconfig").exists() { "/sbin/ldconfig" } else { "ldconfig" };
    let mut command = Command::new(program);
    // -X: links beside libraries are not ours to make.
    command.arg("-X").arg("-f").arg(&configuration).arg("-C").arg(&made);
    let ran = ended(command, Duration::from_secs(60)).map_err(|why| why.to_string())?;
    if !ran.is_success() {
        return Err(ran.stderr.lines().next_back().unwrap_or("it failed").to_owned());
    }
    std::fs::read(&made).map_err(wrong)
}
