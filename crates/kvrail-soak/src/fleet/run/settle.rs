//! What happens to a transfer after its end: both ends look at their bytes, and look again a while later.

use std::time::{Duration, Instant};

use super::{BOUND, REST, Run};
use crate::fleet::book::Stage;
use crate::talk::Order;
use crate::violation::{Checker, Violation};

impl Run<'_> {
    pub(super) fn advance(&mut self, id: u64, now: Instant) -> Result<(), Violation> {
        let Some(entry) = self.book.entries.get_mut(&id) else { return Ok(()) };
        match entry.stage {
            Stage::Moving => {
                let limit = Duration::from_millis(entry.timeout_ms) + BOUND + Duration::from_secs(1);
                if entry.posted.is_some_and(|at| at + limit < now) && !entry.late {
                    entry.late = true;
                    return Err(Violation::new(
                        Checker::Deadline,
                        format!("{} has not ended {limit:.1?} after its posting", entry.describe(id)),
                    ));
                }
            }
            Stage::Ended { .. } => {
                entry.stage = Stage::Settling;
                let find = entry.find;
                self.ask_both(id, &Order::Settle { id, find });
            }
            Stage::Resting { .. } => {
                entry.stage = Stage::Releasing;
                self.ask_both(id, &Order::Release { id });
            }
            _ => {}
        }
        Ok(())
    }

    /// Asks the ends that live.
    pub(super) fn ask_both(&mut self, id: u64, order: &Order) {
        let Some(entry) = self.book.entries.get(&id) else { return };
        let ends = [entry.initiator, entry.responder];
        let living: Vec<usize> = ends.into_iter().filter(|life| self.lives(*life)).map(|l| l.0).collect();
        if let Some(entry) = self.book.entries.get_mut(&id) {
            entry.awaited = living.len() as u32;
        }
        living.iter().for_each(|node| self.order(*node, order));
        if living.is_empty() {
            self.abandon(id);
        }
    }

    /// One end has looked.
    pub(super) fn answered(&mut self, id: u64) {
        let Some(entry) = self.book.entries.get_mut(&id) else { return };
        entry.awaited = entry.awaited.saturating_sub(1);
        if entry.awaited > 0 {
            return;
        }
        match entry.stage {
            Stage::Settling => entry.stage = Stage::Resting { until: Instant::now() + REST },
            Stage::Releasing => self.abandon(id),
            _ => {}
        }
    }
}
