//! Whether an environment's NIXL works: tried in a child, before a change and after it.
//!
//! A child, since what is tried is known to crash. Not everything can be tried everywhere (a plugin needs the driver of a GPU), so
//! that what counts is whether anything that worked has stopped working, or that works was asked for does not.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::missing::BACKENDS;
use super::wheels::{Environment, Wheel};
use crate::host::{Host, Live, Scope};

/// Longest wait for one trial: an interpreter imports over a network file system that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Imports a package, loads libraries, and says in lines of JSON how each went; ends without finalisers.
const SCRIPT: &str = "\
import ctypes, importlib, json, os, sys
def tell(what, do):
    try:
        said = do()
        line = {'what': what, 'said': said}
    except BaseException as error:
        line = {'what': what, 'error': str(error) or type(error).__name__}
    os.write(1, (json.dumps(line) + '\\n').encode())
package = sys.argv[1]
for name in ('_bindings', '_api'):
    tell('import ' + package + '.' + name, lambda: importlib.import_module(package + '.' + name) and None)
for path in sys.argv[2:]:
    tell('load ' + path, lambda: ctypes.CDLL(path) and None)
tell('backends of ' + package, lambda: importlib.import_module(package + '._api').nixl_agent_config().backends)
os._exit(0)
";

/// How things went, by what was tried.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trial(BTreeMap<String, Result<String, String>>);

/// Tries the wheels of an environment.
#[must_use]
pub fn try_out(live: &Live, scope: &Scope, environment: &Environment, wheels: &[Wheel]) -> Trial {
    // A host remembers its answers, and a trial is for what has changed.
    let host = Host::live(live.clone(), scope.clone());
    let mut trial = Trial::default();
    let python = environment.python(&host);
    for wheel in wheels {
        if !host.exists(&format!("{}/{}/_api.py", wheel.site, wheel.package))
            || wheel.bindings(&host).is_none()
        {
            continue;
        }
        let paths = wheel
            .libs
            .iter()
            .flat_map(|libs| BACKENDS.map(|backend| format!("{libs}/nixl/libplugin_{backend}.so")));
        let paths: Vec<String> = paths.filter(|path| host.exists(path)).collect();
        let mut words = vec![python.as_str(), "-B", "-s", "-c", SCRIPT, wheel.package.as_str()];
        words.extend(paths.iter().map(String::as_str));
        let variables = [
            ("PYTHONPATH", wheel.site.as_str()),
            ("NIXL_LOG_LEVEL", "error"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        let ran = host.run_with(&words, &variables, PATIENCE);
        let whole = format!("a process with {}", wheel.package);
        let ended = match &ran {
            Ok(ran) if ran.is_success() => Ok(String::new()),
            Ok(ran) => Err(match (ran.signal, ran.status) {
                (Some(signal), _) => format!("killed by signal {signal}"),
                (None, status) => {
                    let last = ran.stderr.lines().last().unwrap_or_default();
                    format!("status {}: {last}", status.unwrap_or_default())
                }
            }),
            Err(why) => Err(format!("{python}: {why}")),
        };
        trial.0.insert(whole, ended);
        for line in ran.iter().flat_map(|ran| ran.stdout.lines()) {
            if let Ok(line) = serde_json::from_str::<Value>(line)
                && let Some(what) = line["what"].as_str()
            {
                let said = match line["error"].as_str() {
                    Some(error) => Err(error.to_owned()),
                    None => Ok(line["said"].to_string()),
                };
                trial.0.insert(what.into(), said);
            }
        }
    }
    trial
}

impl Trial {
    /// What worked before and does not any more.
    ///
    /// # Errors
    /// The first such thing.
    pub fn is_no_worse_than(&self, before: &Self) -> Result<(), String> {
        for (what, said) in &before.0 {
            match (said, self.0.get(what)) {
                (Ok(_), Some(Err(why))) => return Err(format!("{what} worked before, and now: {why}")),
                (Ok(_), None) => {
                    return Err(format!("{what} worked before, and the process did not come as far"));
                }
                _ => {}
            }
        }
        // A failure of another kind is a new one: a library that was missing must not have become one that crashes.
        for (what, said) in &self.0 {
            if let (Err(now), Some(Err(then))) = (said, before.0.get(what))
                && now.contains("signal")
                && !then.contains("signal")
            {
                return Err(format!("{what}: {now} (before: {then})"));
            }
        }
        Ok(())
    }

    /// What failed, each with why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(what, said)| Some((what.as_str(), said.as_ref().err()?.as_str())))
    }

    /// What was said where it went well.
    #[must_use]
    pub fn said(&self, what: &str) -> Option<&str> {
        self.0.get(what)?.as_ref().ok().map(String::as_str)
    }
}
