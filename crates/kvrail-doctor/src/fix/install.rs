//! NIXL, installed where it is missing: a release that is known to work with this host's libfabric, and nothing besides.
//!
//! pip resolves, downloads and installs; what is installed is named exactly, without dependencies, so that it never replaces
//! a package of the environment (the wheels ask for torch, which an inference engine has brought in the version that it needs). What is
//! to be installed is written into the journal first, and an undo uninstalls exactly that.

use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::here::Here;
use super::journal::{DONE, Journal, NAME, NEW};
use super::place::{LOCK_PATIENCE, Place};
use super::prove::Trial;
use super::undo::{recover_held, restore_forced};
use super::{FixError, Request};
use crate::host::{Host, Live, Ran, ended};
use crate::installed::inventory::{Environment, LIBFABRIC, Nixl, installations};

/// The newest release that is known, and the newest one whose LIBFABRIC plugin does with FABRIC_1.7 (EFA's libfabric 2.5 has 1.9, the
/// newest release wants 1.10).
const NEWEST: &str = "1.5.1";
const NEWEST_LEVEL: u32 = 10;
const BEFORE: &str = "1.4.0";
/// Longest installation: some 100 MB over a slow network.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is installed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Installation {
    /// The Python of the environment.
    pub python: String,
    /// Whether by `uv`, where the environment has no pip.
    pub uv: bool,
    /// As in `nixl-cu12==1.5.1`.
    pub packages: Vec<String>,
    /// Why these, in one line.
    pub why: String,
}

/// What would be installed; or why nothing is.
///
/// # Errors
/// Why nothing is installed, although NIXL is missing.
pub fn look(
    host: &Host,
    environment: &Environment,
    version: Option<&str>,
    request: &Request,
) -> Result<Result<Installation, String>, String> {
    if let Some(nixl) = installed_in(host, environment) {
        return Ok(Err(format!("{} is installed", nixl.release())));
    }
    let python = environment.python.clone().ok_or_else(|| format!("{} has no python", environment.root))?;
    let (version, why) = match version {
        Some(version) => (version.to_owned(), "the release that was asked for".to_owned()),
        None => release(host, request),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+!-_".contains(c);
    if version.is_empty() || version.starts_with('-') || !version.chars().all(plain) {
        return Err(format!("`{version}` is no version of a package"));
    }
    let cuda = cuda(host, environment);
    let mut packages = vec![format!("nixl=={version}")];
    let parts: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    // Since 0.7.1 the package `nixl` leads to one by platform.
    if parts >= vec![0, 7, 1] {
        packages.push(format!("nixl-cu{cuda}=={version}"));
    }
    let has = |name: &str| environment.packages.iter().any(|site| host.exists(&format!("{site}/{name}")));
    if !has("numpy") {
        packages.push("numpy".into());
    }
    let pip = host.run_with(&[&python, "-m", "pip", "--version"], &[], Duration::from_secs(30));
    let pip = pip.is_ok_and(|ran| ran.is_success());
    if !pip && !host.run(&["uv", "--version"]).is_ok_and(|ran| ran.is_success()) {
        return Err(format!("{python} has no pip, and there is no uv: `{python} -m ensurepip` brings it"));
    }
    Ok(Ok(Installation { python, uv: !pip, packages, why: format!("{why}, for CUDA {cuda}") }))
}

/// The NIXL of an environment.
fn installed_in(host: &Host, environment: &Environment) -> Option<Nixl> {
    let all = installations(host);
    all.nixl.iter().find(|nixl| nixl.home(&all).is_some_and(|home| home.root == environment.root)).cloned()
}

fn release(host: &Host, request: &Request) -> (String, String) {
    let here = Here::new(host, request.efa.as_deref());
    let libfabric = here.efa.as_ref().map(|directory| format!("{directory}/{LIBFABRIC}"));
    let level = libfabric.as_ref().and_then(|path| host.elf(path).ok()?.level("FABRIC_1."));
    match (level, libfabric) {
        (Some(level), Some(path)) if level < NEWEST_LEVEL => (
            BEFORE.into(),
            format!("{path} has FABRIC_1.{level}, and {NEWEST} wants FABRIC_1.{NEWEST_LEVEL}"),
        ),
        _ => (NEWEST.into(), "the newest release that is known".into()),
    }
}

/// The major version of CUDA that the environment, or else the driver, is for.
fn cuda(host: &Host, environment: &Environment) -> u32 {
    for site in &environment.packages {
        let names = host.names(&format!("{site}/nvidia")).unwrap_or_default();
        for (name, major) in [("cu13", 13), ("cuda_runtime", 12)] {
            if names.iter().any(|had| had == name) {
                return major;
            }
        }
    }
    let said = host.run(&["nvidia-smi"]).map(|ran| ran.stdout).unwrap_or_default();
    let version = said
        .split("CUDA Version: ")
        .nth(1)
        .and_then(|rest| rest.split('.').next()?.trim().parse::<u32>().ok());
    if version.is_some_and(|version| version >= 13) { 13 } else { 12 }
}

impl Installation {
    fn run(&self, live: &Live, verb: &[&str], packages: &[String]) -> Result<(), String> {
        let mut command = if self.uv {
            let mut command = Command::new("uv");
            command.args(["pip", verb[0], "--python", &self.python]);
            command
        } else {
            let mut command = Command::new(&self.python);
            command.args(["-m", "pip", verb[0], "--quiet", "--disable-pip-version-check"]);
            command
        };
        command.args(&verb[1..]).args(packages).env_clear().envs(live.variables());
        match ended(command, PATIENCE) {
            Ok(Ran { status: Some(0), .. }) => Ok(()),
            Ok(ran) => {
                let last = ran.stderr.lines().rfind(|line| line.contains("ERROR") || line.contains("error:"));
                Err(last
                    .or_else(|| ran.stderr.lines().next_back())
                    .unwrap_or("it said nothing")
                    .trim()
                    .to_owned())
            }
            Err(why) => Err(why.to_string()),
        }
    }

    /// Uninstalls what was installed; what is not there any more is no error.
    pub(super) fn take_back(&self, live: &Live) -> Result<(), String> {
        let names: Vec<String> = self
            .packages
            .iter()
            .map(|package| package.split("==").next().unwrap_or_default().to_owned())
            .collect();
        self.run(live, if self.uv { &["uninstall"] } else { &["uninstall", "--yes"] }, &names)
    }
}

/// Installs, and uninstalls again what cannot be imported; nothing where somebody else was faster.
///
/// # Errors
/// Why it is not installed.
pub fn install(
    place: &Place,
    run: &str,
    live: &Live,
    host: &Host,
    environment: &Environment,
    installation: &Installation,
) -> Result<Option<Journal>, FixError> {
    let held = place.locked(LOCK_PATIENCE)?;
    recover_held(place, &held, false)?;
    // Another node of the same file system may have been first.
    let now = Host::live(live.clone(), host.scope().clone());
    if installed_in(&now, environment).is_some() {
        return Ok(None);
    }
    let wrong = |why: Errno| FixError::Unwritable { path: place.store(), why: why.to_string() };
    let mut journal = Journal::new(run.into(), &[]);
    journal.installed = Some(installation.clone());
    let new = format!("{run}{NEW}");
    let directory = held.store.made(&new).map_err(wrong)?;
    directory.write(NAME, &journal.to_json(), None).and_then(|()| directory.sync()).map_err(wrong)?;
    held.store.rename(&new, &held.store, run).and_then(|()| held.store.sync()).map_err(wrong)?;
    let words: &[&str] =
        if installation.uv { &["install", "--no-deps"] } else { &["install", "--no-deps", "--retries", "1"] };
    let mut did = installation.run(live, words, &installation.packages);
    if did.is_ok() {
        // Imported by a host that has not yet been asked whether it is there.
        let fresh = Host::live(live.clone(), host.scope().clone());
        let trial = Trial::of(live, host.scope(), environment);
        did = match trial.failures().find(|(what, _)| what.starts_with("import")) {
            Some((what, why)) => Err(format!("{what}: {why}")),
            None if installed_in(&fresh, environment).is_none() => {
                Err("it is not where it was to be installed".into())
            }
            None => Ok(()),
        };
    }
    match did {
        Ok(()) => {
            let done = directory.write(DONE, b"", None).and_then(|()| directory.sync());
            done.map_err(|why| FixError::Journal { path: place.store().join(run), why: why.to_string() })?;
            Ok(Some(journal))
        }
        Err(why) => {
            restore_forced(place, &held, &journal)?;
            Err(FixError::Unproven { why })
        }
    }
}
