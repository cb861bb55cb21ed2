//! Whether cooperation pays.

use std::time::Duration;

/// A neighbour that made jobs slower is asked again each so many jobs.
const ASK_AGAIN: u32 = 16;

/// How fast jobs go with a neighbour's help and without, in one direction: whether its core gains anything depends on
/// the pages, on the CPU, and on whether it has a core to itself just now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Bytes per nanosecond, smoothed; zero: not known.
    together: f64,
    alone: f64,
    since_asked: u32,
}

impl Pace {
    pub(super) fn is_worth_asking(&mut self) -> bool {
        self.since_asked += 1;
        let worth = self.together == 0.0 || self.together >= self.alone || self.since_asked >= ASK_AGAIN;
        if worth {
            self.since_asked = 0;
        }
        worth
    }

    /// A job with the neighbour's help.
    pub(super) fn together(&mut self, bytes: u64, took: Duration) {
        smooth(&mut self.together, bytes, took, 0.5);
    }

    /// A chunk without.
    pub(super) fn alone(&mut self, bytes: u64, took: Duration) {
        smooth(&mut self.alone, bytes, took, 0.05);
    }
}

fn smooth(rate: &mut f64, bytes: u64, took: Duration, weight: f64) {
    let sample = bytes as f64 / took.as_nanos().max(1) as f64;
    *rate = if *rate == 0.0 { sample } else { *rate + (sample - *rate) * weight };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_that_slows_down_is_asked_for_seldom_and_again_when_it_pays() {
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        assert!(pace.is_worth_asking(), "nothing is known yet");
        pace.alone(1 << 20, ms(1));
        pace.together(1 << 20, ms(2));
        let asked = (0..160).filter(|_| pace.is_worth_asking()).count();
        assert_eq!(asked, 160 / ASK_AGAIN as usize);
        (0..8).for_each(|_| pace.together(4 << 20, ms(1)));
        assert!(pace.is_worth_asking());
    }
}
