//! LIBFABRIC as the backend that NIXL uses where nobody says otherwise.
//!
//! The default is one literal in `_api.py`: the parameter `backends` of `nixl_agent_config.__init__`. There is no variable for it.
//! It is replaced only where the class and the parameter look exactly as in a release that is known; a file of another
//! form is refused with what was found.

use super::change::Change;
use super::here::{Here, is_of_runtime, told};
use super::{Request, Verdict};
use crate::checks::device::seen::has_efa;
use crate::installed::inventory::Nixl;
use crate::installed::loader::{Obstacle, base};

const CLASS: &str = "class nixl_agent_config";
const BEFORE: &str = "backends: list[str] = [\"UCX\"]";
const AFTER: &str = "backends: list[str] = [\"LIBFABRIC\"]";

pub(super) fn look(here: &Here<'_>, nixl: &Nixl, request: &Request, mended: &[String]) -> Verdict {
    let host = here.host;
    let Some(path) = &nixl.api else {
        return Verdict::NotHere(format!("{} has no Python API", nixl.release()));
    };
    let text = match host.read(path) {
        Ok(text) => text,
        Err(why) => return Verdict::Refused(format!("{path}: {why}")),
    };
    let edited = match edit(&text) {
        Ok(Some(edited)) => edited,
        Ok(None) => return Verdict::Well(format!("LIBFABRIC is the default of {}", nixl.release())),
        Err(why) => return Verdict::Refused(format!("{path}: {why}")),
    };
    if !request.named && !has_efa(host) {
        return Verdict::NotHere("no EFA device is here that LIBFABRIC would use".into());
    }
    if let Some(why) = unusable(here, nixl, mended).filter(|_| !request.force) {
        return Verdict::Refused(format!(
            "the plugin LIBFABRIC of {} cannot be loaded, so that every agent would fail: {why}",
            nixl.release()
        ));
    }
    let mut changes = vec![Change::file(
        path,
        edited,
        "backends=[\"LIBFABRIC\"] where an agent's configuration names none",
    )];
    // Python trusts bytecode by the source's time and length, or not at all; what was compiled from the old source goes.
    let cache = format!("{}/{}/__pycache__", nixl.root, nixl.module);
    for name in host.names(&cache).unwrap_or_default() {
        if name.starts_with("_api.") && name.ends_with(".pyc") {
            changes.push(Change::stale(format!("{cache}/{name}"), "compiled from what changes"));
        }
    }
    Verdict::Apply { changes, left: Vec::new() }
}

/// The text with another default; none where it has that already.
///
/// # Errors
/// Why it is not touched.
fn edit(text: &str) -> Result<Option<String>, String> {
    let mut begin = None;
    let mut end = text.len();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let is_class = line.strip_prefix(CLASS).is_some_and(|rest| rest.starts_with([':', '(']));
        if begin.is_none() && is_class {
            begin = Some(at);
        } else if begin.is_some()
            && end == text.len()
            && line.starts_with(|c: char| !c.is_whitespace() && c != '#' && c != ')')
        {
            end = at;
        }
        at += line.len();
    }
    let begin = begin.ok_or("it has no class nixl_agent_config")?;
    let class = &text[begin..end];
    let defaults: Vec<&str> = class
        .lines()
        .map(str::trim)
        .filter(|line| line.contains("backends:") && line.contains('='))
        .collect();
    match (class.matches(BEFORE).count(), class.matches(AFTER).count(), defaults.len()) {
        (1, 0, 1) => {
            Ok(Some(format!("{}{}{}", &text[..begin], class.replacen(BEFORE, AFTER, 1), &text[end..])))
        }
        (0, 1, 1) => Ok(None),
        _ => Err(match defaults.first() {
            Some(found) => format!(
                "its default is of no form that is known: `{}`",
                found.chars().take(120).collect::<String>()
            ),
            None => "nixl_agent_config has no parameter `backends` with a default".into(),
        }),
    }
}

/// Why the plugin cannot be loaded, as far as tables tell. What another remedy of the same run mends is no reason.
fn unusable(here: &Here<'_>, nixl: &Nixl, mended: &[String]) -> Option<String> {
    let Some(plugin) = nixl.plugin("LIBFABRIC") else { return Some("there is none".into()) };
    let mut process = here.loader.process();
    if let Some(bindings) = &nixl.bindings {
        process.load(bindings);
    }
    let excused = |obstacle: &Obstacle| match obstacle {
        // Frameworks load CUDA's runtime themselves, and its driver comes with the GPU.
        Obstacle::Missing { name, .. } if base(name).starts_with("libcuda") => true,
        Obstacle::Missing { name, .. } | Obstacle::Version { name, .. } => mended.contains(name),
        Obstacle::Unreadable { .. } => false,
    };
    let obstacles = process.load(&plugin.path);
    obstacles.iter().find(|obstacle| !excused(obstacle) && !is_of_runtime(obstacle)).map(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(default: &str) -> String {
        format!(
            "class other:\n    def f(self, backends: list[str] = [\"UCX\"]):\n        pass\n\n\nclass nixl_agent_config:\n    \"\"\"Text.\"\"\"\n\n    def __init__(\n        self,\n        \
             port: int = 1,\n        {default},\n    ):\n        self.backends = backends\n\n\nclass nixl_agent:\n    def g(self, backends: list[str] = []):\n        pass\n"
        )
    }

    #[test]
    fn only_the_default_of_the_configuration_changes() {
        let before = source("backends: list[str] = [\"UCX\"]");
        let after = edit(&before).unwrap().unwrap();
        assert_eq!(after, source("backends: list[str] = [\"LIBFABRIC\"]"));
        assert_eq!(edit(&after), Ok(None), "twice is once");
        let short = "class nixl_agent_config:\n    def __init__(self, backends: list[str] = [\"UCX\"]):\n        self.backends = backends\n";
        assert!(edit(short).unwrap().unwrap().contains("[\"LIBFABRIC\"]):"));
        let windows = before.replace('\n', "\r\n");
        assert_eq!(edit(&windows).unwrap().unwrap().replace("\r\n", "\n"), after);
    }

    #[test]
    fn a_form_that_is_not_known_is_refused_with_what_was_found() {
        for default in [
            "backends: list[str] = [\"UCX\", \"GDS\"]",
            "backends: Optional[list[str]] = None",
            "backends: list[str] = ['UCX']",
        ] {
            let why = edit(&source(default)).unwrap_err();
            assert!(why.contains(default), "{why}");
        }
        assert_eq!(
            edit(&source("other: int = 1")).unwrap_err(),
            "nixl_agent_config has no parameter `backends` with a default"
        );
        assert!(edit("from nixl_cu13._api import (\n    nixl_agent_config,\n)\n").is_err());
    }
}
