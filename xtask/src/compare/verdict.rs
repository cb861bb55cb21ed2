//! Judges the samples of a row. Pure: samples in, verdicts out.

use std::collections::BTreeMap;

use super::engines::Engine;
use super::reading::{Metric, Sample};
use super::rows::{Bound, Check, Peer, Row};

/// The samples of one row, in the order in which they were taken, and who failed.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) samples: BTreeMap<Engine, Vec<Sample>>,
    pub(crate) failures: BTreeMap<Engine, String>,
    pub(crate) turns: usize,
    /// Turns that began although the machine was busy.
    pub(crate) noisy_turns: usize,
}

/// Median and ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of no figures.
    pub(crate) fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// How a check came out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// Nothing was required.
    Shown,
    Skipped(String),
    NotMeasured(String),
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) row: String,
    pub(crate) check: Check,
    pub(crate) kvrail: Option<Spread>,
    pub(crate) beside: Option<Spread>,
    /// kvrail's figure over the peer's, of the same turn; the median decides.
    pub(crate) ratio: Option<Spread>,
    pub(crate) verdict: Verdict,
    /// Most turns of its row began on a busy machine: the figures are worth little.
    pub(crate) noisy: bool,
}

/// Judges every check of a row. `skipped` names the optional peers that this machine cannot run.
pub(crate) fn judge(row: &Row, taken: &Taken, skipped: &BTreeMap<Peer, String>) -> Vec<Judged> {
    row.checks.iter().map(|&check| judge_one(row, check, taken, skipped)).collect()
}

fn judge_one(row: &Row, check: Check, taken: &Taken, skipped: &BTreeMap<Peer, String>) -> Judged {
    let own = figures(taken, Engine::Kvrail, check.metric);
    let peer = check.bound.peer();
    let others = peer.map(|peer| figures(taken, Engine::Peer(peer), check.metric)).unwrap_or_default();
    let ratios: Vec<f64> = own.iter().zip(&others).map(|(own, other)| own / other).collect();
    let kvrail = Spread::of(&own);
    let ratio = Spread::of(&ratios);
    let missing = |engine: Engine| {
        let why = taken.failures.get(&engine).map_or("it did not report this figure", String::as_str);
        Verdict::NotMeasured(format!("{}: {why}", engine.name()))
    };
    let met = |holds: bool| if holds { Verdict::Met } else { Verdict::Missed };
    let verdict = match (kvrail, check.bound) {
        (None, _) => missing(Engine::Kvrail),
        (Some(own), Bound::AtMost { limit }) => met(own.median <= limit),
        (Some(_), Bound::Share { of, .. } | Bound::Shown { of }) => match (ratio, check.bound) {
            (Some(ratio), Bound::Share { at_least, .. }) => met(ratio.median >= at_least),
            (Some(_), _) => Verdict::Shown,
            (None, _) => match skipped.get(&of) {
                Some(reason) => Verdict::Skipped(format!("{}: {reason}", of.name())),
                None => missing(Engine::Peer(of)),
            },
        },
    };
    Judged {
        row: row.name.clone(),
        check,
        kvrail,
        beside: Spread::of(&others),
        ratio,
        verdict,
        noisy: taken.noisy_turns * 2 > taken.turns,
    }
}

/// None of an engine that failed in any turn: what it did before is not its figure.
fn figures(taken: &Taken, engine: Engine, metric: Metric) -> Vec<f64> {
    if taken.failures.contains_key(&engine) {
        return Vec::new();
    }
    let samples = taken.samples.get(&engine).map(Vec::as_slice).unwrap_or_default();
    samples.iter().filter_map(|sample| sample.figure(metric)).collect()
}

/// 0 when all is met, 1 when something was missed, 2 when nothing was missed but something not measured.
pub(crate) fn exit_code(judged: &[Judged]) -> u8 {
    if judged.iter().any(|line| line.verdict == Verdict::Missed) {
        1
    } else if judged.iter().any(|line| matches!(line.verdict, Verdict::NotMeasured(_))) {
        2
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    fn samples(latencies_us: &[f64]) -> Vec<Sample> {
        let read = |us: &f64| {
            Sample::read(&format!(
                r#"{{"block_bytes":1000,"batch":1,"latency_us":{{"p50":{us}}},"prepare_us":{{"p50":9}},"verified":true}}"#
            ))
        };
        latencies_us.iter().map(|us| read(us).unwrap()).collect()
    }

    fn row() -> Row {
        rows::all().into_iter().find(|row| row.name == "shared-kv-read").unwrap()
    }

    fn verdicts(taken: &Taken, skipped: &BTreeMap<Peer, String>) -> (Vec<Verdict>, u8) {
        let judged = judge(&row(), taken, skipped);
        let code = exit_code(&judged);
        (judged.into_iter().map(|line| line.verdict).collect(), code)
    }

    #[test]
    fn the_median_of_paired_ratios_decides() {
        let taken = Taken {
            samples: BTreeMap::from([
                // The machine doubles its speed between turns: only pairs are comparable.
                (Engine::Kvrail, samples(&[1.0, 2.0, 1.0])),
                (Engine::Peer(Peer::NixlUcx), samples(&[2.4, 4.8, 1.0])),
                (Engine::Peer(Peer::Memcpy), samples(&[0.8, 1.6, 9.0])),
            ]),
            ..Taken::default()
        };
        let (verdicts, code) = verdicts(&taken, &BTreeMap::new());
        assert_eq!(verdicts, [Verdict::Met, Verdict::Missed, Verdict::Met, Verdict::Shown]);
        assert_eq!(code, 1);
    }

    #[test]
    fn a_skipped_peer_is_named_and_a_failed_one_is_not_measured() {
        let mut taken = Taken {
            samples: BTreeMap::from([
                (Engine::Kvrail, samples(&[1.0])),
                (Engine::Peer(Peer::Memcpy), samples(&[1.0])),
            ]),
            ..Taken::default()
        };
        let skipped = BTreeMap::from([(Peer::NixlUcx, "no wheel".to_owned())]);
        let (found, code) = verdicts(&taken, &skipped);
        assert_eq!(found[0], Verdict::Skipped("NIXL UCX: no wheel".into()));
        assert_eq!(code, 0);
        taken.failures.insert(Engine::Peer(Peer::NixlUcx), "crashed".into());
        let (found, code) = verdicts(&taken, &BTreeMap::new());
        assert_eq!(found[0], Verdict::NotMeasured("NIXL UCX: crashed".into()));
        assert_eq!(code, 2);
    }

    #[test]
    fn no_figure_of_kvrail_is_never_a_pass() {
        let (found, code) = verdicts(&Taken::default(), &BTreeMap::new());
        assert!(found.iter().all(|verdict| matches!(verdict, Verdict::NotMeasured(_))));
        assert_eq!(code, 2);
    }
}
