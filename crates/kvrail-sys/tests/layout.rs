//! The hand-written types of libfabric's ABI against installed headers: a C program asserts the size of every structure, the place of every
//! field and the value of every constant, as Rust has them.
//!
//! `KVRAIL_LIBFABRIC_INCLUDE` names directories with other headers, separated by colons; each is compared on its own, beside the installed
//! ones. What a header lacks is listed, and must have come with a later release: nothing is passed over in silence.

#[path = "layout/figures.rs"]
mod figures;
#[path = "common/headers.rs"]
mod headers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use figures::{GOES_ON, GROWN, YOUNGER, all, fields};
use headers::{Figure, agree, compile, lacking, say};

const HEADERS: &str = "#include <stddef.h>\n#include <rdma/fabric.h>\n#include <rdma/fi_domain.h>\n#include <rdma/fi_endpoint.h>\n\
    #include <rdma/fi_eq.h>\n#include <rdma/fi_cm.h>\n#include <rdma/fi_rma.h>\n#include <rdma/fi_errno.h>\n#include <rdma/fi_ext.h>\n\
    #if __has_include(<rdma/fi_ext_efa.h>)\n#include <rdma/fi_ext_efa.h>\n#endif\n";

/// Environment variable with directories of other headers.
const INCLUDE: &str = "KVRAIL_LIBFABRIC_INCLUDE";

/// Whether headers are of this release or a later one. Those of a release in the making still say that they are the one before.
fn are_of(include: Option<&Path>, (major, minor): (u16, u16)) -> bool {
    let version = "FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION)";
    let program = format!("{HEADERS}_Static_assert({version} >= FI_VERSION({major}, {minor}), \"older\");\n");
    compile(include, &program).is_ok()
}

/// Compares everything with the headers in a directory, or the installed ones: how many were compared, and what the headers lack.
fn compare(include: Option<&Path>) -> (usize, BTreeSet<String>) {
    let figures = all();
    let lacking = lacking(HEADERS, include, &figures);
    let compared: Vec<&Figure> = figures
        .iter()
        .filter(|figure| !lacking.contains(&figure.label))
        .filter(|figure| {
            let grown = GROWN.iter().find(|(label, _)| *label == figure.label);
            grown.is_none_or(|(_, last)| !lacking.contains(*last))
        })
        .filter(|figure| {
            let goes_on = GOES_ON.iter().find(|(label, _)| *label == figure.label);
            goes_on.is_none_or(|(_, next)| {
                compile(include, &format!("{HEADERS}long long next = {next};\n")).is_err()
            })
        })
        .collect();
    agree(HEADERS, include, &compared);
    (compared.len(), lacking)
}

#[test]
fn every_structure_lies_in_memory_as_the_headers_have_it() {
    let named: Vec<PathBuf> =
        std::env::var_os(INCLUDE).map(|value| std::env::split_paths(&value).collect()).unwrap_or_default();
    let installed = compile(None, HEADERS);
    if let (Err(why), true) = (&installed, named.is_empty()) {
        assert!(std::env::var_os("CI").is_none(), "a C compiler and libfabric-dev are needed: {why}");
        say("skipped: libfabric's layout against the installed headers: no C compiler or no libfabric-dev");
        return;
    }
    let places =
        installed.is_ok().then_some(None).into_iter().chain(named.iter().map(|path| Some(path.as_path())));
    for include in places {
        let (compared, lacking) = compare(include);
        let place = include.map_or_else(|| "installed headers".into(), |path| path.display().to_string());
        say(&format!("{place}: {compared} of {} figures agree", all().len()));
        if !lacking.is_empty() {
            say(&format!("not in these headers: {}", lacking.iter().cloned().collect::<Vec<_>>().join(", ")));
        }
        let excused: BTreeSet<&str> = YOUNGER
            .iter()
            .filter(|(release, _)| !are_of(include, *release))
            .flat_map(|(_, labels)| labels.iter().copied())
            .collect();
        for label in &lacking {
            assert!(excused.contains(label.as_str()), "{label} is not in {place}, which should have it");
        }
        assert!(compared > 420, "only {compared} figures were compared");
    }
}

/// The structures in the sources and their fields.
fn fields_in_sources() -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/libfabric/abi")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub union ")) {
                current = rest.trim_end_matches(" {").to_owned();
                found.insert(current.clone(), BTreeSet::new());
            } else if line == "}" {
                current.clear();
            } else if let Some((field, _)) =
                line.strip_prefix("    pub ").and_then(|line| line.split_once(':'))
                && let Some(fields) = found.get_mut(&current)
            {
                fields.insert(field.to_owned());
            }
        }
    }
    found
}

#[test]
fn no_field_is_left_out_of_the_comparison() {
    let compared = fields();
    // Compared as parts of the structures that they are in: C has no name for them.
    let unnamed = ["fi_mr_attr_memory", "fi_mr_attr_device"];
    let in_sources = fields_in_sources();
    assert!(in_sources.len() > 30, "{in_sources:?}");
    for (name, in_source) in in_sources {
        if unnamed.contains(&name.as_str()) {
            continue;
        }
        let listed = compared.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not compared"));
        let listed: BTreeSet<String> = listed.iter().map(|&field| field.to_owned()).collect();
        assert_eq!(in_source, listed, "{name}");
    }
}

#[test]
fn no_constant_is_left_out_of_the_comparison() {
    let compared: BTreeSet<String> = all().into_iter().map(|figure| figure.label).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/libfabric/abi");
    let mut count = 0;
    for file in ["constants.rs", "errno.rs"] {
        let text = fs::read_to_string(directory.join(file)).unwrap();
        for line in text.lines() {
            let name = line.strip_prefix("pub const ").and_then(|rest| Some(rest.split_once(':')?.0));
            let Some(name) = name.filter(|name| name.starts_with("FI_")) else { continue };
            assert!(compared.contains(name), "{name} is not compared");
            count += 1;
        }
    }
    assert!(count > 200, "{count}");
}
