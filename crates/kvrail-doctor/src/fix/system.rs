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
use super::loader::Loader;
use super::wheels::{Environment, Wheel};
use super::{FixError, Place, Plan, Proposal, Remedy, Request, Verdict};
use crate::host::{ElfFacts, Host, ended};

/// Where a build from source goes by itself, and NVIDIA's containers.
const PREFIXES: [&str; 2] = ["/usr/local/nixl", "/opt/nvidia/nvda_nixl"];
const LIBRARIES: [&str; 4] = ["lib", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"];
const PLUGIN: &str = "libplugin_LIBFABRIC.so";
const LIBFABRIC: &str = "libfabric.so.1";
/// Before all others: they are read in the order of their names, and the first directory that has a library wins.
const ENTRY: &str = "/etc/ld.so.conf.d/000-kvrail-efa.conf";
const CACHE: &str = "/etc/ld.so.cache";

/// What would be done for the NIXL of the system; nothing where there is none.
pub(super) fn plan(host: &Host, loader: &Loader<'_>, request: &Request) -> Result<Option<Plan>, FixError> {
    let Some((path, facts)) = plugin(host) else { return Ok(None) };
    let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
    let wheel =
        Wheel { site: directory.into(), package: "nixl".into(), version: None, libs: None, core: None };
    let verdict = look(host, loader, &path, &facts, request);
    let environment = Environment { root: "/".into(), own: false, sites: vec!["/etc".into()] };
    let proposals = vec![Proposal { remedy: Remedy::Libfabric, wheel, verdict }];
    Ok(Some(Plan { environment, place: Place::system(Path::new("/"))?, proposals }))
}

fn plugin(host: &Host) -> Option<(String, ElfFacts)> {
    let named = host
        .variable("NIXL_PLUGIN_DIR")
        .map(|directory| format!("{}/{PLUGIN}", directory.trim_end_matches('/')));
    let usual = PREFIXES
        .iter()
        .flat_map(|prefix| LIBRARIES.map(|library| format!("{prefix}/{library}/plugins/{PLUGIN}")));
    named
        .into_iter()
        .chain(usual)
        .filter(|path| !path.contains(".libs/"))
        .find_map(|path| Some((host.elf(&path).ok()?, path)))
        .map(|(facts, path)| (path, facts))
}

fn look(host: &Host, loader: &Loader<'_>, path: &str, facts: &ElfFacts, request: &Request) -> Verdict {
    let Some(needed) = facts.needs(LIBFABRIC) else {
        return Verdict::NotHere(format!("{path} needs no libfabric"));
    };
    let found = loader.resolve(path, facts, LIBFABRIC);
    let lacks = found.as_ref().map(|found| loader.lacks(found, needed));
    if lacks.as_ref().is_some_and(Vec::is_empty) {
        return Verdict::Well(format!("{path} finds a libfabric that is new enough"));
    }
    let problem = match (&found, &lacks) {
        (Some(found), Some(lacks)) => {
            format!("{path} needs {} of {LIBFABRIC}, and gets {found} without it", lacks.join(", "))
        }
        _ => format!("{path} needs {LIBFABRIC}, which the loader does not find"),
    };
    let Some(directory) = &loader.efa else {
        return if request.named {
            Verdict::Refused(format!("{problem}: no EFA software is here"))
        } else {
            Verdict::NotHere("no EFA software is here".into())
        };
    };
    let target = format!("{directory}/{LIBFABRIC}");
    let lacks = loader.lacks(&target, needed);
    if !lacks.is_empty() {
        return Verdict::Refused(format!("{problem}: {target} has no {} either", lacks.join(", ")));
    }
    if let Some(why) = loader.obstacle(&target) {
        return Verdict::Refused(format!("{problem}: {why}"));
    }
    let searched = super::loader::search(path, facts.runpath.as_deref().or(facts.rpath.as_deref()));
    let first = found.filter(|found| {
        let at = found.rsplit_once('/').map_or("/", |(directory, _)| directory);
        searched.iter().any(|directory| directory == at)
            || loader.forced(LIBFABRIC, facts.machine).as_ref() == Some(found)
    });
    if let Some(first) = first {
        return Verdict::Refused(format!(
            "{problem}: its RUNPATH or LD_LIBRARY_PATH leads to {first} before the loader's configuration is asked"
        ));
    }
    if !host.read("/etc/ld.so.conf").is_ok_and(|text| text.contains("ld.so.conf.d/*.conf")) {
        return Verdict::Refused(format!(
            "{problem}: /etc/ld.so.conf does not read /etc/ld.so.conf.d; export LD_LIBRARY_PATH={directory}:$LD_LIBRARY_PATH"
        ));
    }
    if !rustix::process::geteuid().is_root() {
        return Verdict::Refused(format!(
            "{problem}: the loader's configuration is root's; as root, or: export LD_LIBRARY_PATH={directory}:$LD_LIBRARY_PATH"
        ));
    }
    match cache(directory) {
        Ok(cache) => Verdict::Apply {
            changes: vec![
                Change::file(
                    ENTRY,
                    format!(
                        "# Written by kvrail fix: the EFA software's libfabric before an older one.\n{directory}\n"
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
