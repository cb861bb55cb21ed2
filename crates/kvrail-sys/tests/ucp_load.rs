//! Loads whatever UCX is installed, and says no to what is none.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kvrail_sys::ucp::abi::{UCP_FEATURE_AM, UCP_FEATURE_RMA};
use kvrail_sys::ucp::{
    Context, ErrorHandling, Library, LoadError, Origin, RELEASE_MIN, Search, Tally, VARIABLE, Worker,
};

fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The UCX of this machine; none, and said past the harness, where it has none.
fn installed(test: &str) -> Option<Arc<Library>> {
    match Library::load(&Search::new(None)) {
        Ok(library) => Some(library),
        Err(error) if error.is_absence() => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            say(&format!("skipped: {test}: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_installed_one_says_file_and_release() {
    let Some(library) = installed("loading the installed UCX") else { return };
    assert!(library.path().is_file() && library.path().is_absolute(), "{library}");
    let (major, minor, _) = library.release();
    assert!((major, minor) >= RELEASE_MIN, "{library}");
    let text = library.to_string();
    assert!(text.contains(&format!("release {major}.{minor}.")) && text.contains("libucp"), "{text}");
    let again = Library::load(&Search::new(Some(library.path()))).unwrap();
    assert_eq!((again.path(), again.origin()), (library.path(), Origin::Config));
}

/// Two workers of one process, over shared memory or tcp: bytes move, and everything closes, in the wrong order too.
#[test]
fn the_owners_move_bytes_and_close_in_order_whatever_is_dropped_first() {
    let Some(library) = installed("UCX's objects") else { return };
    let context = Context::open(&library, UCP_FEATURE_RMA | UCP_FEATURE_AM, &[("TLS", "tcp")]).unwrap();
    let mut memory = Box::new([0_u8; 8192]);
    memory[..4096].fill(7);
    let at = memory.as_mut_ptr();
    // SAFETY: the memory is boxed, and outlives everything here.
    let mapped = unsafe { context.map(at.cast(), memory.len()) }.unwrap();
    let (here, there) = (Worker::open(&context).unwrap(), Worker::open(&context).unwrap());
    let endpoint = here.connect(&there.address().unwrap(), ErrorHandling::Peer).unwrap();
    let key = endpoint.key(&mapped.packed_key().unwrap()).unwrap();
    let tally = Tally::new(&mapped, &library);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let to = at.addr() as u64 + 4096;
    // SAFETY: both halves are in the memory, and nobody looks at them until the tally is empty.
    unsafe { endpoint.put(&tally, at.cast(), 4096, to, &key) }.unwrap();
    endpoint.flush(&tally).unwrap();
    while tally.pending() > 0 {
        here.progress();
        there.progress();
        assert!(std::time::Instant::now() < deadline, "the put does not end");
    }
    assert_eq!(tally.failure(), None);
    let lanes = endpoint.transports().unwrap();
    assert!(
        !lanes.is_empty() && lanes.iter().all(|lane| lane.name == "tcp" && !lane.device.is_empty()),
        "{lanes:?}"
    );
    assert!(endpoint.failure().is_none());
    drop(context);
    drop(here);
    drop(endpoint);
    drop(mapped);
    drop(key);
    drop(there);
    drop(tally);
    // Nothing is in flight any more, and nothing that could be.
    assert!(memory[4096..].iter().all(|&byte| byte == 7));
}

#[test]
fn an_endpoint_that_was_closed_refuses_and_bytes_that_are_no_address_do_too() {
    let Some(library) = installed("UCX and a closed endpoint") else { return };
    let context = Context::open(&library, UCP_FEATURE_RMA | UCP_FEATURE_AM, &[("TLS", "tcp")]).unwrap();
    let mut memory = Box::new([0_u8; 64]);
    // SAFETY: the memory is boxed, and outlives everything here.
    let mapped = unsafe { context.map(memory.as_mut_ptr().cast(), memory.len()) }.unwrap();
    let worker = Worker::open(&context).unwrap();
    assert!(worker.connect(&[], ErrorHandling::Peer).is_err());
    let endpoint = worker.connect(&worker.address().unwrap(), ErrorHandling::Peer).unwrap();
    let tally = Tally::new(&mapped, &library);
    endpoint.close(std::time::Duration::from_secs(5)).unwrap();
    assert!(endpoint.flush(&tally).is_err());
    assert!(endpoint.transports().is_err() && endpoint.key(&mapped.packed_key().unwrap()).is_err());
    endpoint.close(std::time::Duration::from_secs(5)).unwrap();
}

#[test]
fn a_named_path_that_is_wrong_is_an_error_that_names_it_and_nothing_else_is_tried() {
    let path = PathBuf::from("/no/such/place/libucp.so.0");
    let error = Library::load(&Search::new(Some(&path))).unwrap_err();
    assert_eq!(error, LoadError::NotThere { path: path.clone(), origin: Origin::Config });
    let search = Search::of(None, |name| (name == VARIABLE).then(|| path.clone().into_os_string()));
    let error = Library::load(&search).unwrap_err();
    assert!(error.to_string().contains(VARIABLE) && !error.hints().is_empty(), "{error}");
}

#[test]
fn none_at_all_says_what_to_install() {
    let looked = vec!["here".to_owned(), "there".to_owned()];
    let error = LoadError::NotFound { looked };
    assert_eq!(error.to_string(), "no UCX found; looked at here, there");
    let hints = error.hints().join("\n");
    for word in ["libucx0", "pip install libucx-cu12", VARIABLE] {
        assert!(hints.contains(word), "{hints}");
    }
}

#[test]
fn a_file_that_is_no_library_or_no_ucp_is_refused_before_it_is_mapped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("libucp.so.0");
    for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0", &[0x7f; 9000]] {
        std::fs::write(&path, bytes).unwrap();
        let error = Library::load(&Search::new(Some(directory.path()))).unwrap_err();
        assert!(matches!(error, LoadError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc =
        maps.lines().find_map(|l| l.split_whitespace().last().filter(|p| p.contains("/libc.so"))).unwrap();
    let error = Library::load(&Search::new(Some(Path::new(libc)))).unwrap_err();
    assert!(error.to_string().ends_with("is no UCP: it is libc.so.6, without ucp_init_version"), "{error}");
}

/// A stand-in for a UCP, built from C: its functions, and what it says of its release.
fn stand_in(directory: &Path, functions: &[&str], minor: u32) -> Option<PathBuf> {
    let mut code = format!(
        "void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) {{ *a = 1; *b = {minor}; *c = 3; }}\n\
         const char *ucp_get_version_string(void) {{ return \"1.{minor}.3\"; }}\n"
    );
    for function in functions {
        code.push_str(&format!("int {function}(void) {{ return -8; }}\n"));
    }
    std::fs::write(directory.join("lib.c"), code).unwrap();
    let path = directory.join("libucp.so.0");
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.current_dir(directory).args(["-shared", "-fPIC", "-o"]).arg(&path).arg("lib.c");
    cc.output().ok().filter(|output| output.status.success()).map(|_| path)
}

#[test]
fn an_old_or_maimed_ucp_is_refused_with_what_is_needed_and_found() {
    let directory = tempfile::tempdir().unwrap();
    let Some(path) = stand_in(directory.path(), &["ucp_init_version"], 11) else {
        assert!(std::env::var_os("CI").is_none(), "a C compiler is needed");
        return say("skipped: an old UCX: no C compiler");
    };
    let LoadError::MissingSymbols { symbols, .. } = Library::load(&Search::new(Some(&path))).unwrap_err()
    else {
        panic!("its functions are missing")
    };
    assert!(symbols.contains(&"ucp_put_nbx") && !symbols.contains(&"ucp_init_version"), "{symbols:?}");
    // With all of them, what it says of itself decides.
    let functions: Vec<&str> = symbols.into_iter().chain(["ucp_init_version"]).collect();
    let whole = tempfile::tempdir().unwrap();
    let path = stand_in(whole.path(), &functions, 11).unwrap();
    let error = Library::load(&Search::new(Some(&path))).unwrap_err();
    let said =
        format!("UCX {} is release 1.11.3; 1.12 or newer is needed", path.canonicalize().unwrap().display());
    assert_eq!(error.to_string(), said);
}
