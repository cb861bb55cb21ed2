//! The same for a job's script: a preamble in bash that needs no kvrail on the node, and a snippet of a job's file.
//!
//! It is pasted into what others run, so that it must be safe under `set -euo pipefail`, do the same when it is run twice or by
//! several processes at once, and change nothing that it does not understand.

/// The form of a preamble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A script.
    Bash,
    /// The script and what belongs around it in a job's file: mounts, environment.
    Yaml,
}

const SCRIPT: &str = include_str!("preamble.sh");
const EFA: &str = "/opt/amazon/efa";

/// The preamble for an EFA prefix and a Python; without one, the first `python3` of `PATH` on the node.
///
/// # Errors
/// When a path has characters that a script and a job's file would not agree on.
pub fn preamble(efa: Option<&str>, python: Option<&str>, form: Form) -> Result<String, String> {
    let efa = efa.unwrap_or(EFA).trim_end_matches('/');
    let python = match python.map(|python| python.trim_end_matches('/')) {
        None => "python3".to_owned(),
        Some(python) if python.rsplit('/').next().is_some_and(|name| name.starts_with("python")) => {
            python.to_owned()
        }
        Some(root) => format!("{root}/bin/python3"),
    };
    for path in [efa, &python] {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
        if path.is_empty() || !path.chars().all(plain) || !(path.starts_with('/') || path == "python3") {
            return Err(format!("`{path}` is no absolute path of letters, digits and ._+-"));
        }
    }
    let script = SCRIPT.replace("@EFA@", efa).replace("@PYTHON@", &python);
    Ok(match form {
        Form::Bash => script,
        Form::Yaml => {
            let indented: String = script
                .lines()
                .map(|line| if line.is_empty() { "\n".into() } else { format!("  {line}\n") })
                .collect();
            format!(
                "# What the host's EFA software is mounted for, what libraries read, and what is done before the job.\ncontainer_mounts:\n  {efa}: {efa}\nenvironment:\n  FI_PROVIDER: efa\n  \
                 FI_EFA_USE_DEVICE_RDMA: '1'\n  FI_LOG_LEVEL: warn\nbash_preamble: |\n{indented}"
            )
        }
    })
}
