//! The engine nixl with the real NIXL from PyPI: two processes, every byte verified, what it used in its own words.

mod pair;
mod wheel;

use std::time::Duration;

use kvrail_engines::nixl::Options;
use kvrail_sys::nixl::{Installation, Search, Surroundings};
use pair::Case;

/// 12,800 blocks of 32 KiB: a prompt of a large model.
fn ucx(test: &str) -> Option<Case> {
    let root = wheel::nixl(test)?;
    Some(
        Case::default()
            .with("library", root.display())
            .with("backend", "ucx")
            .with("pool", 512 << 20)
            .with("iterations", 1),
    )
}

/// What a child process does; nothing in the test itself.
#[test]
fn child() {
    pair::child();
}

#[test]
fn twelve_thousand_blocks_over_ucx_arrive_and_what_carried_them_is_said() {
    let Some(case) = ucx("NIXL over UCX") else { return };
    let row = pair::run(&case).unwrap();
    assert_eq!(row["notifications"], row["notifications_awaited"], "{row:?}");
    assert!(row["used.version"].starts_with("1.5.1 (git"), "{row:?}");
    assert_eq!((row["used.transport"].as_str(), row["used.evidence"].as_str()), ("UCX", "flushed"));
    // What it is depends on the host; that it is UCX's own word does not.
    for word in ["fact.read", "fact.write"] {
        assert!(row[word].contains("..inf ") && row[word].contains('/'), "{row:?}");
    }
    assert!(row["fact.libucp"].contains("libucp") && row["fact.ucx"].starts_with("1."), "{row:?}");
}

#[test]
fn what_is_heard_on_standard_error_is_the_same_whether_it_is_a_file_or_not() {
    let Some(case) = ucx("NIXL's words in a file") else { return };
    let small = case.with("pool", 8 << 20).with("batch", 100);
    let aside = pair::run(&small).unwrap();
    let along = pair::run(&small.with("stderr", "file")).unwrap();
    for word in ["fact.read", "fact.write", "fact.ucx", "used.version"] {
        assert_eq!(aside[word], along[word]);
    }
    // Whoever owns the file has every word; on a terminal nothing is seen that was only for the program.
    assert!(along["stderr"].contains("NIXL version: ") && along["stderr"].contains("zero-copy"), "{along:?}");
    assert!(!aside["stderr"].contains("NIXL version: ") && !aside["stderr"].contains("cfg#"), "{aside:?}");
}

#[test]
fn a_peer_that_is_not_driven_is_an_error_in_time_not_a_hang() {
    let Some((root, stand_ins)) = wheel::nixl_on_libfabric("a peer that is not driven") else { return };
    let case = Case::default().with("library", root.display()).with("libraries", stand_ins.display());
    let case = case.with("backend", "libfabric").with("pool", 1 << 20).with("undriven", true);
    let started = std::time::Instant::now();
    let error = pair::run(&case.with("connect_within_ms", 1500)).unwrap_err();
    assert!(error.contains("does not come back from connecting within 1.5s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(50), "{error}");
}

#[test]
fn a_progress_thread_prepared_lists_and_new_requests_move_the_same_bytes() {
    let Some(case) = ucx("NIXL's other ways of posting") else { return };
    let small = case.with("pool", 32 << 20).with("batch", 500).with("iterations", 4);
    for other in [
        small.clone().with("progress_thread", true).with("recreate", true),
        small.with("prepared_lists", true).with("threads", 2),
    ] {
        let row = pair::run(&other).unwrap();
        assert_eq!(row["notifications"], row["notifications_awaited"], "{other:?}: {row:?}");
    }
}

#[test]
fn over_libfabric_the_provider_and_the_device_of_each_rail_are_said() {
    let Some((root, stand_ins)) = wheel::nixl_on_libfabric("NIXL over LIBFABRIC") else { return };
    let case = Case::default().with("library", root.display()).with("libraries", stand_ins.display());
    let case = case.with("backend", "libfabric").with("pool", 64 << 20).with("batch", 1000);
    let row = pair::run(&case).unwrap();
    assert_eq!(row["notifications"], row["notifications_awaited"], "{row:?}");
    assert_eq!(row["used.transport"], "LIBFABRIC");
    assert_eq!(row["fact.provider"], "tcp", "{row:?}");
    assert!(!row["used.rails"].is_empty() && row["fact.libfabric"].contains("libfabric"), "{row:?}");
    assert!(row["used.version"].starts_with("1.4.0"), "{row:?}");
}

#[test]
fn the_newest_nixl_works_with_a_libfabric_that_is_named() {
    let (Some(root), Some((older, stand_ins))) =
        (wheel::nixl("NIXL 1.5"), wheel::nixl_on_libfabric("NIXL 1.5"))
    else {
        return;
    };
    if std::env::var_os("KVRAIL_LIBFABRIC").is_none() {
        wheel::skip(
            "NIXL 1.5 over LIBFABRIC: it needs FABRIC_1.10; no package of PyPI or Debian has it; name one in KVRAIL_LIBFABRIC",
        );
        return;
    }
    let runtime = Installation::find(&Search::of(Some(&older), |_| None)).unwrap();
    let runtime = runtime.packages().unwrap().join("nvidia/cuda_runtime/lib");
    let libraries = std::env::join_paths([stand_ins, runtime]).unwrap();
    let case = Case::default().with("library", root.display()).with("libraries", libraries.display());
    let row =
        pair::run(&case.with("backend", "LIBFABRIC").with("pool", 64 << 20).with("batch", 1000)).unwrap();
    assert_eq!((row["fact.provider"].as_str(), row["notifications"].as_str()), ("tcp", "5"), "{row:?}");
    assert!(row["used.version"].starts_with("1.5.1"), "{row:?}");
}

#[test]
fn an_unknown_backend_is_an_error_that_lists_those_that_there_are() {
    let Some(case) = ucx("an unknown backend") else { return };
    let error = pair::run(&case.with("backend", "CARRIER_PIGEON")).unwrap_err();
    assert!(error.contains("no backend `CARRIER_PIGEON`; it has ") && error.contains("UCX"), "{error}");
}

#[test]
fn a_plugin_that_lacks_a_library_says_which_and_how_to_get_it() {
    let Some(case) = ucx("a plugin that cannot be loaded") else { return };
    let Err(error) = pair::run(&case.with("backend", "libfabric").with("pool", 1 << 20).with("batch", 10))
    else {
        // A host with a GPU and a libfabric of this year lacks nothing.
        wheel::skip("a plugin that cannot be loaded: here LIBFABRIC's can be");
        return;
    };
    assert!(
        error.contains("backend LIBFABRIC cannot be loaded from") && error.contains("it needs "),
        "{error}"
    );
    assert!(error.contains("hint: "), "{error}");
}

#[test]
fn a_block_outside_of_its_memory_is_refused_before_nixl_sees_it() {
    let Some(case) = ucx("a block outside") else { return };
    let error =
        pair::run(&case.with("pool", 32 << 20).with("batch", 100).with("shift", 32 << 20)).unwrap_err();
    assert!(error.contains("local block 0") && error.contains("ends outside the 33554432 bytes"), "{error}");
}

#[test]
fn a_process_that_is_killed_is_an_error_of_its_peer_in_time() {
    let Some(case) = ucx("a killed process") else { return };
    let started = std::time::Instant::now();
    let error = pair::run(&case.with("pool", 32 << 20).with("batch", 100).with("die", true)).unwrap_err();
    assert!(error.contains("signal: 9") && started.elapsed() < Duration::from_secs(50), "{error}");
}

#[test]
fn what_a_process_must_be_started_with_is_said_without_loading_anything() {
    let Some((root, stand_ins)) = wheel::nixl_on_libfabric("NIXL's surroundings") else { return };
    let installation = Installation::find(&Search::of(Some(&root), |_| None)).unwrap();
    assert_eq!(installation.version(), Some("1.4.0"));
    assert_eq!(installation.backend("LibFabric"), "LIBFABRIC");
    let inherited = |name: &str| (name == "LD_LIBRARY_PATH").then(|| "/somewhere".into());
    let surroundings =
        Surroundings::of(&installation, "LIBFABRIC", std::slice::from_ref(&stand_ins), inherited);
    let (_, path) = surroundings.variables().find(|(name, _)| *name == "LD_LIBRARY_PATH").unwrap();
    let places: Vec<_> = std::env::split_paths(path).collect();
    assert_eq!(places[0], stand_ins);
    assert!(
        places.contains(&"/somewhere".into())
            && places.iter().any(|place| place.ends_with("nvidia/cuda_runtime/lib"))
    );
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("libnixl"), "{maps}");
    // What a person has set stays as it is.
    let by_person =
        |name: &str| ["NIXL_LOG_LEVEL", "UCX_PROTO_INFO", "UCX_LOG_FILE"].contains(&name).then(|| "x".into());
    assert_eq!(Surroundings::of(&installation, "UCX", &[], by_person).variables().count(), 0);
}

#[test]
fn a_named_nixl_that_is_none_is_refused_before_anything_is_loaded() {
    let at =
        |path: &str| Options { library: Some(path.into()), ..Options::default() }.installation().unwrap_err();
    let error = at("/no/such/nixl");
    assert!(error.what.contains("/no/such/nixl") && !error.hints.is_empty(), "{error}");
    let error = at(env!("CARGO_MANIFEST_PATH"));
    assert!(error.what.contains("no library"), "{error}");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc =
        maps.lines().find_map(|l| l.split_whitespace().last().filter(|p| p.contains("/libc.so"))).unwrap();
    let error = at(libc);
    assert!(error.what.contains("has no nixl_capi_create_configured_agent"), "{error}");
}

/// For a look by hand: `cargo test -p kvrail-engines --test nixl -- --ignored --nocapture figures`, beside
/// `benchsuite/nixl_peer.py transfer`.
#[test]
#[ignore = "prints figures, which need a quiet machine"]
fn figures() {
    let Some(case) = ucx("figures") else { return };
    for _ in 0..3 {
        let row = pair::run(&case.clone().with("pool", 1 << 30).with("iterations", 5).with("pages", "base"))
            .unwrap();
        for (name, value) in
            row.iter().filter(|(name, _)| name.starts_with("read_") || name.starts_with("write_"))
        {
            println!("{name}={value}");
        }
    }
}
