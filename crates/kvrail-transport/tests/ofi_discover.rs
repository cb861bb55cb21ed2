//! What the installed libfabric is found to offer: the providers that need no hardware.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use kvrail_sys::libfabric::abi::{FI_EP_RDM, FI_MSG, FI_RMA};
use kvrail_sys::libfabric::{Library, Search};
use kvrail_transport::ofi::facts::LibraryFacts;
use kvrail_transport::ofi::offers::discover;
use kvrail_transport::ofi::{Config, OpenError};

/// The libfabric of this machine; none, and said past the harness, where it has none.
fn installed(test: &str) -> Option<Arc<Library>> {
    match Library::load(&Search::new(None)) {
        Ok(library) => Some(library),
        Err(error) if error.is_absence() && std::env::var_os("CI").is_none() => {
            let line = format!("skipped: {test}: {error}\n");
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn config(provider: &str) -> Config {
    Config { provider: provider.parse().unwrap(), ..Config::default() }
}

#[test]
fn tcp_and_shm_are_had_by_name_with_an_entry_for_each_rail() {
    let Some(library) = installed("discovery of tcp and shm") else { return };
    for provider in ["tcp", "shm"] {
        let config = Config { rails: Some(3), ..config(provider) };
        let found = discover(&library, &config, None).unwrap();
        assert_eq!((found.choice.provider.as_str(), found.infos.len()), (provider, 3));
        for (rail, info) in found.choice.rails.iter().zip(&found.infos) {
            let entry = info.first();
            assert_eq!(info.entries().count(), 1);
            assert_eq!(entry.domain_name(), rail.domain);
            assert_eq!(entry.ep_type(), FI_EP_RDM);
            assert_eq!(entry.caps() & (FI_MSG | FI_RMA), FI_MSG | FI_RMA);
            assert!(entry.cq_data_bytes() >= 4 && entry.tx_size() >= 64 && entry.rx_size() >= 64);
        }
        assert!(found.choice.rails[2].name.starts_with(&found.choice.rails[0].nic));
    }
}

#[test]
fn a_provider_that_the_library_does_not_have_is_refused_with_those_that_it_has() {
    let Some(library) = installed("a provider that is not there") else { return };
    let error = discover(&library, &config("nonesuch"), None).unwrap_err();
    let OpenError::NoSuchProvider { has, library: named, .. } = &error else { panic!("{error}") };
    assert!(has.iter().any(|name| name == "tcp"), "{has:?}");
    assert!(named.contains("libfabric"), "{named}");
}

#[test]
fn a_device_that_is_not_there_is_refused_with_those_that_are() {
    let Some(library) = installed("a device that is not there") else { return };
    let config = Config { devices: vec!["nonesuch0".into()], ..config("tcp") };
    let error = discover(&library, &config, None).unwrap_err();
    assert!(matches!(&error, OpenError::NoSuchDevice { has, .. } if !has.is_empty()), "{error}");
}

#[test]
fn auto_is_never_tcp() {
    let Some(library) = installed("the automatic choice") else { return };
    match discover(&library, &Config::default(), None) {
        Ok(found) => assert!(!["tcp", "shm"].contains(&found.choice.provider.as_str())),
        Err(error) => {
            assert!(matches!(&error, OpenError::NoProvider { passed, .. } if passed.len() == 4), "{error}")
        }
    }
}

#[test]
fn the_library_is_described_with_file_release_and_symbols_apart() {
    let Some(library) = installed("facts of the library") else { return };
    let facts = LibraryFacts::from(&*library);
    let text = facts.to_string();
    assert!(text.contains(&facts.release) && text.contains("FABRIC_1.") && text.contains("API "), "{text}");
}
