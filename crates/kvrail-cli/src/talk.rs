//! What the library logs, on stderr: warnings and errors always, more with `KVRAIL_LOG=info|debug|trace`.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The environment variable that asks for more.
const VARIABLE: &str = "KVRAIL_LOG";

/// Warnings of the library that `bench` tells in its own words, with the time. They are heard when more is asked for.
const TOLD_BY_BENCH: &str = "route down";

/// Warnings that have been said: a run makes many agents, and each of them finds the same.
static SAID: Mutex<Option<HashSet<String>>> = Mutex::new(None);
/// Distinct warnings that are remembered.
const SAID_MAX: usize = 1024;

/// Whether a warning says something that was not said before, whichever agent says it.
fn is_news(text: &str) -> bool {
    let what = text.split(" agent=").next().unwrap_or(text);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let said = said.get_or_insert_with(HashSet::new);
    said.len() >= SAID_MAX || said.insert(what.to_owned())
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // Other crates' chatter is not ours to print.
        if self.enabled(record.metadata()) && record.target().starts_with("kvrail") {
            let brief = log::max_level() == LevelFilter::Warn;
            let text = record.args().to_string();
            match record.level() {
                Level::Warn if brief && (text.starts_with(TOLD_BY_BENCH) || !is_news(&text)) => {}
                Level::Error | Level::Warn => eprintln!("warning: {text}"),
                level => eprintln!("{}: {text}", level.as_str().to_lowercase()),
            }
        }
    }

    fn flush(&self) {}
}

/// Starts listening to the library.
pub(crate) fn install() {
    static STDERR: Stderr = Stderr;
    let asked = std::env::var(VARIABLE).ok().and_then(|level| level.parse().ok());
    // A second call finds a logger; the first one does the same.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(asked.unwrap_or(LevelFilter::Warn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_agent_of_a_run_finds_is_said_once() {
        assert!(is_news("no NIC agent=a"));
        assert!(!is_news("no NIC agent=b"));
        assert!(is_news("another thing agent=a"));
    }
}
