#![no_main]
//! Bundles, as somebody may send them: every check looks at them, and all of it is told.

use kvrail_doctor::host::Bundle;
use kvrail_doctor::render::{self, Manner, Report};
use kvrail_doctor::{Host, catalogue, examine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Bundle::parse(text) {
        Ok(bundle) => {
            let again = Bundle::parse(&bundle.to_json()).expect("what is written can be read");
            assert_eq!(again, bundle);
            let host = Host::replay(bundle);
            let report = Report::of_host("bundle", &examine(&host, &catalogue::checks()));
            assert!(!render::terminal(&report, Manner::default()).contains('\x1b'));
            let _ = (render::json(&report), render::markdown(&report), render::sarif(&report));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
