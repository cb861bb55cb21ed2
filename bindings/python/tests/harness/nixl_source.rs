//! NIXL's own tests and examples, which are run and never copied.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::process::succeed;
use super::{in_ci, lock, under_target};

const REPOSITORY: &str = "https://github.com/ai-dynamo/nixl";
/// The release that `kvrail.nixl` is held against.
const RELEASE: &str = "1.5.1";
const CLONE_DEADLINE: Duration = Duration::from_secs(120);

/// A checkout: the one that is named, or under CI one that is fetched; or why there is none.
pub(crate) fn checkout() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("KVRAIL_NIXL_SOURCE") {
        return Ok(named.into());
    }
    if !in_ci() {
        return Err(format!("KVRAIL_NIXL_SOURCE names no checkout of {REPOSITORY}"));
    }
    let checkout = under_target().join(format!("nixl-{RELEASE}"));
    let _turn = lock("nixl-source")?;
    if checkout.is_dir() {
        return Ok(checkout);
    }
    // Renamed when it is whole.
    let made = checkout.with_extension(format!("part-{}", std::process::id()));
    let mut git = Command::new("git");
    git.args(["-c", "advice.detachedHead=false", "clone", "--quiet", "--depth", "1", "--branch"]);
    // No question on a terminal that nobody looks at.
    git.arg(format!("v{RELEASE}")).arg(REPOSITORY).arg(&made).env("GIT_TERMINAL_PROMPT", "0");
    succeed(&mut git, CLONE_DEADLINE)?;
    std::fs::rename(&made, &checkout).map_err(|error| super::told(&checkout, &error))?;
    Ok(checkout)
}
