//! LIBFABRIC as the backend that NIXL uses where nobody says otherwise.
//!
//! The default is one literal in `_api.py`: the parameter `backends` of `nixl_agent_config.__init__`. There is no variable for it.
//! It is replaced only where the class and the parameter look exactly as in a release that is known; a file of another
//! form is refused with what was found.

use super::change::Change;
use super::loader::{Loader, is_libc};
use super::wheels::Wheel;
use super::{Request, Verdict};
use crate::host::{Host, Lack};

const CLASS: &str = "class nixl_agent_config";
const BEFORE: &str = "backends: list[str] = [\"UCX\"]";
const AFTER: &str = "backends: list[str] = [\"LIBFABRIC\"]";

pub(super) fn look(
    host: &Host,
    loader: &Loader<'_>,
    wheel: &Wheel,
    request: &Request,
    mended: &[String],
) -> Verdict {
    let path = format!("{}/{}/_api.py", wheel.site, wheel.package);
    let text = match host.read(&path) {
        Ok(text) => text,
        Err(Lack::Absent) => return Verdict::NotHere(format!("{} has no Python API", wheel.name())),
        Err(why) => return Verdict::Refused(format!("{path}: {why}")),
    };
    let edited = match edit(&text) {
        Ok(Some(edited)) => edited,
        Ok(None) => return Verdict::Well(format!("LIBFABRIC is the default of {}", wheel.name())),
        Err(None) => return Verdict::NotHere(format!("{path} only leads to another package")),
        Err(Some(why)) => return Verdict::Refused(format!("{path}: {why}")),
    };
    if !request.named && !has_efa(host) {
        return Verdict::NotHere("no EFA device is here that LIBFABRIC would use".into());
    }
    if let Some(why) = unusable(host, loader, wheel, mended).filter(|_| !request.force) {
        return Verdict::Refused(format!(
            "the plugin LIBFABRIC of {} cannot be loaded, so that every agent would fail: {why}",
            wheel.name()
        ));
    }
    let mut changes = vec![Change::file(
        &path,
        edited,
        "backends=[\"LIBFABRIC\"] where an agent's configuration names none",
    )];
    // Python trusts bytecode by the source's time and length, or not at all; what was compiled from the old source goes.
    let cache = format!("{}/{}/__pycache__", wheel.site, wheel.package);
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
/// Why it is not touched; none where it does not have the class at all.
fn edit(text: &str) -> Result<Option<String>, Option<String>> {
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
    let begin = begin.ok_or(None)?;
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
        _ => Err(Some(match defaults.first() {
            Some(found) => format!(
                "its default is of no form that is known: `{}`",
                found.chars().take(120).collect::<String>()
            ),
            None => "nixl_agent_config has no parameter `backends` with a default".into(),
        })),
    }
}

pub(super) fn has_efa(host: &Host) -> bool {
    let devices = host.names("/sys/class/infiniband").unwrap_or_default();
    devices.iter().any(|device| {
        device.starts_with("efa")
            || host
                .entry(&format!("/sys/class/infiniband/{device}/device/driver"))
                .is_ok_and(|driver| driver.real.ends_with("/efa"))
            || host
                .value(&format!("/sys/class/infiniband/{device}/device/vendor"))
                .is_ok_and(|vendor| vendor == "0x1d0f")
    })
}

/// Why the plugin cannot be loaded, as far as tables tell. What another remedy of the same run mends is no reason.
fn unusable(host: &Host, loader: &Loader<'_>, wheel: &Wheel, mended: &[String]) -> Option<String> {
    let plugins = wheel.plugins(host, &["LIBFABRIC"]);
    if plugins.is_empty() {
        return Some("there is none".into());
    }
    let loaded = wheel.bindings(host).map(|bindings| loader.closure(&bindings)).unwrap_or_default();
    let (path, facts) = &plugins[0];
    facts
        .needed
        .iter()
        .filter(|needed| !is_libc(&needed.name) && !loaded.contains_key(&needed.name))
        .find_map(|needed| {
            if mended.contains(&needed.name) {
                return None;
            }
            let Some(at) = loader.resolve(path, facts, &needed.name) else {
                // Frameworks load CUDA's runtime themselves, and its driver comes with the GPU.
                return (!needed.name.starts_with("libcuda"))
                    .then(|| format!("{} is not found", needed.name));
            };
            let lacks = loader.lacks(&at, needed);
            (!lacks.is_empty()).then(|| format!("it needs {} of {at}", lacks.join(", ")))
        })
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
            let why = edit(&source(default)).unwrap_err().unwrap();
            assert!(why.contains(default), "{why}");
        }
        assert_eq!(
            edit(&source("other: int = 1")).unwrap_err().unwrap(),
            "nixl_agent_config has no parameter `backends` with a default"
        );
        assert_eq!(edit("from nixl_cu13._api import (\n    nixl_agent_config,\n)\n"), Err(None));
    }
}
