//! The hosts of `fixtures/`, as bundles. Tests of the command line include this file, too.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub(crate) fn files(of: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kvrail-doctor/fixtures").join(of);
    let entries = directory.read_dir().unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
}

fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// RFC 7396. A `null` takes a member away, which in a complete bundle means that it is not there.
pub(crate) fn merge(onto: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else { return *onto = patch.clone() };
    if !onto.is_object() {
        *onto = json!({});
    }
    let object = onto.as_object_mut().unwrap();
    for (name, value) in fields {
        if value.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// A healthy P5 node.
pub(crate) fn healthy() -> Value {
    let mut whole = json!({ "schema": "kvrail.bundle.v1", "complete": true });
    // What `/sys` says of its NUMA nodes, PCIe tree, GPUs and NICs is a fixture already.
    let sys = concat!(env!("CARGO_MANIFEST_DIR"), "/../kvrail-topology/fixtures/p5.capture");
    whole["answers"]["topology"]["/sys"] = std::fs::read_to_string(sys).unwrap().into();
    for part in files("p5-healthy") {
        merge(&mut whole, &json_of(&part));
    }
    whole
}

/// A node with one thing broken.
pub(crate) struct Broken {
    /// The name of its file.
    pub(crate) name: String,
    /// What the file says: `story`, `finds`, `patch`.
    pub(crate) fixture: Value,
    /// The healthy node with that.
    pub(crate) bundle: Value,
}

/// All broken nodes.
pub(crate) fn broken() -> Vec<Broken> {
    let node = |file: PathBuf| {
        let (fixture, mut bundle) = (json_of(&file), healthy());
        merge(&mut bundle, &fixture["patch"]);
        Broken { name: file.file_stem().unwrap().to_string_lossy().into_owned(), fixture, bundle }
    };
    files("broken").into_iter().map(node).collect()
}
