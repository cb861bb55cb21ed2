//! Loads whatever libfabric is installed, and says no to what is none.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::installed;
use kvrail_sys::libfabric::abi::{self, FI_ENODATA, FI_EP_RDM, FI_MSG};
use kvrail_sys::libfabric::{
    API_NEWEST, Info, Library, LoadError, Origin, RELEASE_MIN, SYMBOLS_MIN, Search, VARIABLE,
};

#[test]
fn the_installed_one_says_file_release_and_symbols_apart() {
    let Some(library) = installed("loading the installed libfabric") else { return };
    assert!(library.path().is_file() && library.path().is_absolute(), "{library}");
    assert!(library.version() >= RELEASE_MIN && library.symbols() >= SYMBOLS_MIN, "{library}");
    assert!(library.api_version() <= API_NEWEST);
    let text = library.to_string();
    let (major, minor) = library.version();
    assert!(text.contains(&format!("release {major}.{minor}")), "{text}");
    assert!(text.contains(&format!("FABRIC_1.{}", library.symbols())), "{text}");
    if let Some(file) = library.file_version() {
        assert!(library.path().to_str().unwrap().ends_with(file) && text.contains(&format!("file {file}")));
        assert_eq!(library.release().unwrap().to_string(), format!("v{major}.{minor}"));
    }
}

#[test]
fn codes_and_parameters_come_with_words() {
    let Some(library) = installed("words of libfabric") else { return };
    assert_eq!(library.strerror(abi::FI_EAVAIL), library.strerror(-abi::FI_EAVAIL));
    let error = library.error("fi_x", -(abi::FI_ENODATA as isize));
    assert!(error.is(FI_ENODATA) && error.to_string().starts_with("fi_x: "), "{error}");
    let parameters = library.parameters().unwrap();
    let provider =
        parameters.iter().find(|p| p.name == "FI_PROVIDER").expect("a parameter of every libfabric");
    assert!(!provider.help.is_empty() && provider.value.is_none());
}

#[test]
fn tcp_endpoints_are_found_and_described() {
    let Some(library) = installed("fi_getinfo for tcp") else { return };
    let hints = Info::hints(&library).unwrap().caps(FI_MSG).ep_type(FI_EP_RDM).provider(Some("tcp")).unwrap();
    let found = hints.query().unwrap();
    assert!(found.entries().count() >= 1);
    for entry in found.entries() {
        assert!(entry.provider().starts_with("tcp"), "{entry:?}");
        assert_eq!(entry.ep_type(), FI_EP_RDM);
        assert!(entry.caps() & FI_MSG != 0 && entry.max_msg_bytes() > 0 && entry.tx_size() > 0);
        assert!(entry.describe().contains("FI_EP_RDM"), "{}", entry.describe());
    }
    let copy = found.first().to_owned().unwrap();
    assert_eq!(copy.entries().count(), 1);
    assert_eq!(copy.first().domain_name(), found.first().domain_name());
    drop(found);
    assert!(!copy.first().source_address().is_empty());
}

#[test]
fn a_provider_that_is_not_there_is_no_data() {
    let Some(library) = installed("fi_getinfo for an unknown provider") else { return };
    let hints = Info::hints(&library).unwrap().provider(Some("no-such-provider")).unwrap();
    assert!(hints.query().unwrap_err().is(FI_ENODATA));
    let with_nul = Info::hints(&library).unwrap().provider(Some("a\0b")).unwrap_err();
    assert!(with_nul.is(abi::FI_EINVAL), "{with_nul}");
}

#[test]
fn hints_that_are_changed_often_leak_and_free_nothing_twice() {
    let Some(library) = installed("hints") else { return };
    let mut hints = Info::hints(&library).unwrap();
    for round in 0..100_u8 {
        let name = format!("name-{round}");
        hints = hints.provider(Some(&name)).unwrap().fabric_name(Some(&name)).unwrap();
        hints = hints.domain_name(Some(&name)).unwrap().source_address(&[round; 16]).unwrap();
    }
    let info = hints.done();
    assert_eq!((info.first().provider(), info.first().source_address()), ("name-99", &[99; 16][..]));
    let cleared = info.edit().source_address(&[]).unwrap().provider(None).unwrap().done();
    assert_eq!((cleared.first().provider(), cleared.first().source_address()), ("", &[][..]));
}

#[test]
fn a_named_path_that_is_wrong_is_an_error_that_names_it_and_nothing_else_is_tried() {
    let path = PathBuf::from("/no/such/place/libfabric.so.1");
    let error = Library::load(&Search::new(Some(&path))).unwrap_err();
    assert_eq!(error, LoadError::NotThere { path: path.clone(), origin: Origin::Config });
    assert!(error.to_string().contains("/no/such/place/libfabric.so.1"), "{error}");
    let search = Search::of(None, |name| (name == VARIABLE).then(|| path.clone().into_os_string()));
    let error = Library::load(&search).unwrap_err();
    assert!(error.to_string().contains(VARIABLE) && !error.hints().is_empty(), "{error}");
}

#[test]
fn a_file_that_is_no_library_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("libfabric.so.1");
    for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0", &[0x7f; 9000]] {
        std::fs::write(&path, bytes).unwrap();
        let error = Library::load(&Search::new(Some(directory.path()))).unwrap_err();
        assert!(matches!(error, LoadError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_library_that_is_no_libfabric_is_refused_before_it_is_mapped() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc =
        maps.lines().find_map(|l| l.split_whitespace().last().filter(|p| p.contains("/libc.so"))).unwrap();
    let error = Library::load(&Search::new(Some(Path::new(libc)))).unwrap_err();
    let LoadError::MissingSymbol { symbol: "fi_getinfo", .. } = &error else { panic!("{error}") };
    assert!(error.to_string().ends_with("has no fi_getinfo@FABRIC_1.3 (no FABRIC symbols)"), "{error}");
}

/// A stand-in for a libfabric, built from C: the versions of its symbols, and what its `fi_version` says.
fn stand_in(directory: &Path, name: &str, levels: u32, major: u32, minor: u32) -> Option<PathBuf> {
    let code = format!(
        "unsigned fi_version(void) {{ return {major} << 16 | {minor}; }}\n\
         int fi_getinfo(void) {{ return -38; }}\nvoid fi_freeinfo(void) {{}}\nvoid *fi_dupinfo(void) {{ return 0; }}\n\
         int fi_log_ready(void) {{ return 0; }}\n"
    );
    let mut map = String::from("FABRIC_1.0 { global: fi_version; local: *; };\n");
    for level in 1..=levels {
        let given = match level {
            3 => "global: fi_getinfo; fi_freeinfo; fi_dupinfo;",
            6 => "global: fi_log_ready;",
            _ => "",
        };
        map.push_str(&format!("FABRIC_1.{level} {{ {given} }} FABRIC_1.{};\n", level - 1));
    }
    std::fs::write(directory.join("lib.c"), code).unwrap();
    std::fs::write(directory.join("lib.map"), map).unwrap();
    let path = directory.join(name);
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.current_dir(directory)
        .args(["-shared", "-fPIC", "-Wl,--version-script=lib.map", "-o"])
        .arg(&path)
        .arg("lib.c");
    cc.output().ok().filter(|output| output.status.success()).map(|_| path)
}

#[test]
fn an_old_or_maimed_libfabric_is_refused_with_what_is_needed_and_found() {
    let directory = tempfile::tempdir().unwrap();
    let Some(old) = stand_in(directory.path(), "libfabric.so.1.16.0", 5, 1, 13) else {
        assert!(std::env::var_os("CI").is_none(), "a C compiler is needed");
        let _ =
            std::io::Write::write_all(&mut std::io::stderr(), b"skipped: an old libfabric: no C compiler\n");
        return;
    };
    let load = |path: &Path| Library::load(&Search::new(Some(path))).unwrap_err();
    let error = load(&old);
    let said = format!("libfabric {} is release ", old.canonicalize().unwrap().display());
    assert!(error.to_string().starts_with(&said), "{error}");
    let needed = "(symbols up to FABRIC_1.5); release 1.17 (FABRIC_1.6) or newer is needed";
    assert!(error.to_string().ends_with(needed), "{error}");
    // Its symbols would do, its fi_version does not, and fi_fabric is not there: the first reason that can be told is given.
    let maimed = stand_in(directory.path(), "libfabric.so.1.20.0", 6, 1, 17).unwrap();
    let error = load(&maimed);
    let LoadError::MissingSymbol { symbol: "fi_fabric", version: "FABRIC_1.1", .. } = &error else {
        panic!("{error}")
    };
    assert!(error.to_string().ends_with("has no fi_fabric@FABRIC_1.1 (symbols up to FABRIC_1.6)"), "{error}");
}

/// Set in a child that looks for a libfabric in an environment that its parent has made.
const CHILD: &str = "KVRAIL_SYS_TEST_CHILD";

#[test]
fn a_broken_one_before_a_good_one_is_passed_over_and_told() {
    if std::env::var_os(CHILD).is_some() {
        let library = Library::load(&Search::new(None)).unwrap();
        assert_eq!(library.origin(), Origin::Wheel, "{library}");
        let [LoadError::Refused { dlerror, .. }] = library.passed_over() else {
            panic!("{:?}", library.passed_over())
        };
        assert!(dlerror.contains("libfabric.so.1"), "{dlerror}");
        return;
    }
    let Some(good) = installed("a broken libfabric before a good one") else { return };
    let directory = tempfile::tempdir().unwrap();
    let wheel = directory.path().join("lib/mpich");
    std::fs::create_dir_all(&wheel).unwrap();
    std::fs::write(directory.path().join("libfabric.so.1"), b"no library").unwrap();
    std::os::unix::fs::symlink(good.path(), wheel.join("libfabric.so.1")).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_broken_one_before_a_good_one_is_passed_over_and_told"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", directory.path())
        .env("VIRTUAL_ENV", directory.path())
        .env_remove("CONDA_PREFIX")
        .env_remove(VARIABLE)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_second_load_is_the_same_library() {
    let Some(first) = installed("loading twice") else { return };
    let second = Library::load(&Search::new(Some(first.path()))).unwrap();
    assert_eq!(first.path(), second.path());
    assert_eq!(second.origin(), Origin::Config);
}
