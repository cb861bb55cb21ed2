//! The agent's clock: the only place of this crate that reads time for the engine.

use std::time::{Duration, Instant};

use kvrail_core::time::Time;

/// Monotonic time since the agent was created. A reading costs about 20 ns (vDSO), so the hot path takes two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    #[inline]
    pub(crate) fn now(self) -> Time {
        let elapsed = self.origin.elapsed();
        Time(elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos()))
    }

    /// The point `timeout` from now; [`Time::NEVER`] when that is further than the clock reaches.
    pub(crate) fn after(self, timeout: Duration) -> Time {
        self.now() + timeout
    }
}
