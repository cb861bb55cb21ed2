//! What the library logs, on stderr: warnings and errors always, more with `KVRAIL_LOG=info|debug|trace`.

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The environment variable that asks for more.
const VARIABLE: &str = "KVRAIL_LOG";

/// Warnings of the library that `bench` tells in its own words, with the time. They are heard when more is asked for.
const TOLD_BY_BENCH: &str = "route down";

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // Other crates' chatter is not ours to print.
        if self.enabled(record.metadata()) && record.target().starts_with("kvrail") {
            match record.level() {
                Level::Warn
                    if log::max_level() == LevelFilter::Warn
                        && record.args().to_string().starts_with(TOLD_BY_BENCH) => {}
                Level::Error | Level::Warn => eprintln!("warning: {}", record.args()),
                level => eprintln!("{}: {}", level.as_str().to_lowercase(), record.args()),
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
