//! What each turn of an engine yielded: from these ratios, noise and comparisons are computed, so that the document alone
//! is enough for them.

use serde::{Deserialize, Serialize};

/// One turn: an engine's round of a case, or several rounds in a row that were put together.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Turn {
    /// GB/s.
    pub bandwidth_gbps: f64,
    /// Median latency of its transfers, microseconds.
    pub latency_p50_us: f64,
}

/// Turns of a row at most. Enough for any statistic, and a run of a day makes no larger document than one of a minute.
pub(crate) const TURNS_MAX: usize = 256;

/// Collects rounds into at most 256 turns of equally many rounds each.
///
/// Where engines take turns, all do the same rounds, so that the n-th turn of one belongs to the n-th of another
/// however many rounds there were.
#[derive(Clone, Debug)]
pub struct Turns {
    turns: Vec<Turn>,
    /// Rounds that each of `turns` covers.
    rounds: u32,
    /// The turn that is being filled, and its rounds so far.
    open: Option<(Turn, u32)>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turns: Vec::new(), rounds: 1, open: None }
    }
}

impl Turns {
    /// Takes one more round.
    pub fn push(&mut self, round: Turn) {
        let (turn, rounds) = match self.open.take() {
            None => (round, 1),
            Some((turn, rounds)) => (joined(turn, rounds, round, 1), rounds + 1),
        };
        if rounds < self.rounds {
            self.open = Some((turn, rounds));
            return;
        }
        self.turns.push(turn);
        if self.turns.len() == TURNS_MAX {
            self.turns = self.turns.chunks(2).map(|pair| joined(pair[0], 1, pair[1], 1)).collect();
            self.rounds *= 2;
        }
    }

    /// The turns; a last one that covers fewer rounds than the others is left out.
    #[must_use]
    pub fn list(&self) -> Vec<Turn> {
        self.turns.clone()
    }
}

const _: () = assert!(TURNS_MAX.is_multiple_of(2), "turns are joined in pairs");

/// The same bytes went in each round: bandwidths are joined by time, that is by the harmonic mean.
fn joined(a: Turn, rounds_a: u32, b: Turn, rounds_b: u32) -> Turn {
    let (wa, wb) = (f64::from(rounds_a), f64::from(rounds_b));
    let time = wa / a.bandwidth_gbps + wb / b.bandwidth_gbps;
    Turn {
        bandwidth_gbps: if time.is_finite() { (wa + wb) / time } else { 0.0 },
        latency_p50_us: (wa * a.latency_p50_us + wb * b.latency_p50_us) / (wa + wb),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_keeps_a_bounded_number_of_turns_and_its_mean() {
        let mut turns = Turns::default();
        for i in 0..100_000u32 {
            turns.push(Turn { bandwidth_gbps: if i % 2 == 0 { 10.0 } else { 5.0 }, latency_p50_us: 3.0 });
        }
        let list = turns.list();
        assert!((TURNS_MAX / 2 - 1..TURNS_MAX).contains(&list.len()), "{}", list.len());
        for turn in list {
            assert!((turn.bandwidth_gbps - 20.0 / 3.0).abs() < 1e-9, "{turn:?}");
            assert!((turn.latency_p50_us - 3.0).abs() < 1e-9);
        }
    }

    #[test]
    fn few_rounds_are_kept_as_they_are_and_a_round_of_nothing_breaks_none() {
        let mut turns = Turns::default();
        for gbps in [1.0, 0.0, 2.0] {
            turns.push(Turn { bandwidth_gbps: gbps, latency_p50_us: 1.0 });
        }
        assert_eq!(turns.list().iter().map(|t| t.bandwidth_gbps).collect::<Vec<_>>(), [1.0, 0.0, 2.0]);
        let none = Turn { bandwidth_gbps: 0.0, latency_p50_us: 0.0 };
        assert_eq!(joined(none, 1, none, 1).bandwidth_gbps, 0.0);
    }
}
