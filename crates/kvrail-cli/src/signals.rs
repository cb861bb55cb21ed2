//! Ctrl-C and SIGTERM: the first asks the run to end in order and print what it has, the second kills.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::Failure;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(false)));

/// Starts listening.
///
/// # Errors
/// When the operating system refuses the handler.
pub(crate) fn install() -> Result<(), Failure> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds the flag that the first one set, and ends the process.
        signal_hook::flag::register_conditional_shutdown(signal, 2, Arc::clone(&INTERRUPTED))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED)))
            .map_err(|e| Failure::environment(format!("cannot handle signal {signal}: {e}")))?;
    }
    Ok(())
}

/// Starts ignoring: for a target that lives and dies with the initiator that started it, so that the terminal's
/// Ctrl-C, which reaches the whole process group, does not pull the target away in mid-transfer.
///
/// # Errors
/// When the operating system refuses the handler.
pub(crate) fn ignore_interrupt() -> Result<(), Failure> {
    signal_hook::flag::register(SIGINT, Arc::new(AtomicBool::new(false)))
        .map(|_| ())
        .map_err(|e| Failure::environment(format!("cannot handle signal {SIGINT}: {e}")))
}

/// From now on the first signal ends the process as it would without a handler, after `last` has been done.
///
/// # Errors
/// When the operating system refuses the handler.
pub(crate) fn on_end(last: fn()) -> Result<(), Failure> {
    let failed = |e| Failure::environment(format!("cannot handle signals: {e}"));
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            last();
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop).map_err(failed)
}

/// Whether the run was asked to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
