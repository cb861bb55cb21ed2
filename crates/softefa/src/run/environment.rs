//! The environment of a command on a node: who it is, and which libraries it loads.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use softefa_fabric::{DIR_VARIABLE, NODE_VARIABLE};

use super::error::Error;
use super::plan::Loading;
use super::spec::Spec;

/// A variable and its value.
pub type Variable = (&'static str, OsString);

/// Number of nodes, for commands that want to know.
const NODES_VARIABLE: &str = "SOFTEFA_NODES";
/// Name of the file with `export` lines, in a node's directory.
const FILE: &str = "env";

/// Directory of a node in the run directory: the root of its private /sys.
pub(super) fn node_directory(directory: &Path, node: u32) -> PathBuf {
    directory.join(format!("node{node}"))
}

/// What a command on a node of a live fabric gets, on top of the caller's own environment.
#[must_use]
pub fn of_node(directory: &Path, spec: &Spec, node: u32) -> Vec<Variable> {
    let libfabric = spec.libfabric.clone().map(|library| Loading {
        library,
        search: spec.libfabric_search.clone(),
        providers: spec.libfabric_providers.clone(),
    });
    variables(directory, spec.nodes, node, libfabric.as_ref())
}

/// The variables of a node.
pub(super) fn variables(
    directory: &Path,
    nodes: u32,
    node: u32,
    libfabric: Option<&Loading>,
) -> Vec<Variable> {
    let root = node_directory(directory, node);
    // Ours first: the libibverbs.so.1 of the system, or one beside libfabric, must not be found before.
    let mut search = vec![directory.join("lib")];
    search.extend(libfabric.and_then(|l| l.search.clone()));
    let inherited = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // Empty parts mean the current directory; a nested fabric's own directory would shadow this one's.
    let others = env::split_paths(&inherited).filter(|p| !p.as_os_str().is_empty() && !search.contains(p));
    let others: Vec<PathBuf> = others.collect();
    search.extend(others);
    let mut variables = vec![
        (DIR_VARIABLE, directory.as_os_str().to_owned()),
        (NODE_VARIABLE, node.to_string().into()),
        (NODES_VARIABLE, nodes.to_string().into()),
        ("LD_LIBRARY_PATH", join(&search)),
        ("SYSFS_PATH", root.join("sys").into()),
        ("HWLOC_FSROOT", root.into()),
        // Else hwloc asks this host's processor what it is, whatever the root says.
        ("HWLOC_COMPONENTS", "-x86".into()),
    ];
    if let Some(providers) = libfabric.and_then(|l| l.providers.as_ref()) {
        variables.push(("FI_PROVIDER_PATH", providers.as_os_str().to_owned()));
    }
    variables
}

fn join(paths: &[PathBuf]) -> OsString {
    paths.iter().map(|p| p.as_os_str()).collect::<Vec<_>>().join(OsStr::new(":"))
}

/// Writes the variables as lines that a shell can source.
pub(super) fn write(directory: &Path, node: u32, variables: &[Variable]) -> Result<(), Error> {
    let path = node_directory(directory, node).join(FILE);
    let mut text = Vec::new();
    for (name, value) in variables {
        text.extend_from_slice(format!("export {name}=").as_bytes());
        quote(value, &mut text);
        text.push(b'\n');
    }
    let written = fs::File::create(&path).and_then(|mut file| file.write_all(&text));
    written.map_err(|e| Error::at("write", &path, e))
}

/// Single quotes: nothing in between means anything to a shell, except the quote itself.
fn quote(value: &OsStr, out: &mut Vec<u8>) {
    out.push(b'\'');
    for byte in value.as_bytes() {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            other => out.push(*other),
        }
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(node_directory(directory.path(), 0)).unwrap();
        let nasty = "a'b \"$HOME\" `id`\\";
        write(directory.path(), 0, &[("SOFTEFA_TEST", nasty.into())]).unwrap();
        let script = format!(". {}/node0/env; printf %s \"$SOFTEFA_TEST\"", directory.path().display());
        let shown = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(shown.stdout).unwrap(), nasty);
    }

    #[test]
    fn our_library_is_searched_first_and_the_caller_s_own_path_last() {
        let libfabric = Loading {
            library: "/opt/x/libfabric.so.1".into(),
            search: Some("/opt/x".into()),
            providers: Some("/opt/x/libfabric".into()),
        };
        let variables = variables(Path::new("/d"), 2, 1, Some(&libfabric));
        let value = |name| variables.iter().find(|(n, _)| *n == name).unwrap().1.to_str().unwrap();
        assert!(value("LD_LIBRARY_PATH").starts_with("/d/lib:/opt/x"));
        assert_eq!((value("SOFTEFA_NODE"), value("SOFTEFA_NODES")), ("1", "2"));
        assert_eq!((value("SYSFS_PATH"), value("HWLOC_FSROOT")), ("/d/node1/sys", "/d/node1"));
        assert_eq!(value("FI_PROVIDER_PATH"), "/opt/x/libfabric");
    }
}
