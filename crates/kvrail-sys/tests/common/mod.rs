//! The libfabric of this machine, for tests.

use std::sync::Arc;

use kvrail_sys::libfabric::{Library, Search};

/// The libfabric of this machine; none, and said past the harness, where it has none.
pub(crate) fn installed(test: &str) -> Option<Arc<Library>> {
    match Library::load(&Search::new(None)) {
        Ok(library) => Some(library),
        Err(error) if error.is_absence() => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            let line = format!("skipped: {test}: {error}\n");
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            None
        }
        Err(error) => panic!("{error}"),
    }
}
