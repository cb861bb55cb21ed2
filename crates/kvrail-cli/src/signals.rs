//! Ctrl-C and SIGTERM: the first asks the run to end in order and print what it has, the second kills.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

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

/// Whether the run was asked to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
