#![no_main]
//! Command lines, as a person or a script may write them.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    let words = ["kvrail", "bench"].into_iter().chain(line.split_whitespace()).map(String::from);
    if let Err(text) = kvrail_cli::understand(words) {
        assert!(!text.is_empty());
    }
});
