//! Faults that begin a while after the fabric is up: the keeper sets them, and tells of their beginnings and ends.

use std::time::{Duration, Instant};

use softefa_fabric::{Fabric, clock};

use super::channel::Channel;
use super::error::Error;
use super::plan::{FaultOrder, Report};

/// Beginnings and ends that are still to come.
#[derive(Debug)]
pub(super) struct Timed {
    steps: Vec<(Instant, Step)>,
}

#[derive(Debug)]
enum Step {
    Begin(FaultOrder),
    /// The devices end it by themselves at that time; people are told.
    End(u32, String),
}

impl Timed {
    /// Of all faults those that begin later, for a fabric that came up at `up`.
    pub(super) fn of(faults: &[FaultOrder], up: Instant) -> Self {
        let later = faults.iter().filter(|fault| !fault.begins.is_zero());
        Self { steps: later.map(|fault| (up + fault.begins, Step::Begin(fault.clone()))).collect() }
    }

    /// When something is to be done next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.steps.iter().map(|(at, _)| *at).min()
    }

    /// Does what is due.
    pub(super) fn turn(&mut self, fabric: &Fabric, channel: &Channel, up: Instant) -> Result<(), Error> {
        let now = Instant::now();
        let seconds = now.saturating_duration_since(up).as_secs_f64();
        while let Some(due) = self.steps.iter().position(|(at, _)| *at <= now) {
            let told = match self.steps.swap_remove(due).1 {
                Step::Begin(order) => {
                    let id = fabric
                        .add_fault(&order.fault(clock::now_ns()))
                        .map_err(|e| Error::Fabric(e.to_string()))?;
                    let words = order.words();
                    let lasts = order.lasts.map_or_else(
                        || "until it is cleared".into(),
                        |lasts: Duration| format!("for {:.1} s", lasts.as_secs_f64()),
                    );
                    let told = format!("{seconds:.1} s: fault {id} begins, {lasts}: {words}");
                    if let Some(lasts) = order.lasts {
                        self.steps.push((now + lasts, Step::End(id, words)));
                    }
                    told
                }
                Step::End(id, words) => format!("{seconds:.1} s: fault {id} is over: {words}"),
            };
            // A front that has gone is seen when the channel is read.
            let _ = channel.send(&Report::Note(told));
        }
        Ok(())
    }
}
