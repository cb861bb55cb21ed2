//! Turns: every engine of a row once in every run, each preceded by a wait for a quiet machine.

use std::collections::BTreeMap;
use std::time::Duration;

use super::engines::Engine;
use super::quiet;
use super::reading::Sample;
use super::rows::{Peer, Row};
use super::verdict::Taken;

/// How often, and how patiently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Turns of every engine.
    pub(crate) runs: u16,
    /// Longest wait for a quiet machine before a turn.
    pub(crate) patience: Duration,
}

/// Lets kvrail and the row's peers take turns. One that fails takes no further turns on this row.
pub(crate) fn take(
    row: &Row,
    pace: Pace,
    skipped: &BTreeMap<Peer, String>,
    mut turn: impl FnMut(Engine) -> Result<Sample, String>,
) -> Taken {
    let mut taken = Taken::default();
    let peers = row.peers().into_iter().filter(|peer| !skipped.contains_key(peer)).map(Engine::Peer);
    let order: Vec<Engine> = std::iter::once(Engine::Kvrail).chain(peers).collect();
    for run in 1..=pace.runs {
        for &engine in &order {
            if taken.failures.contains_key(&engine) {
                continue;
            }
            taken.turns += 1;
            taken.noisy_turns += usize::from(!quiet::wait(pace.patience));
            let said = match turn(engine) {
                Ok(sample) => {
                    let metric = row.checks[0].metric;
                    let figure =
                        sample.figure(metric).map_or_else(|| "?".into(), |figure| format!("{figure:.2}"));
                    taken.samples.entry(engine).or_default().push(sample);
                    format!("{figure} {}", metric.unit())
                }
                Err(error) => {
                    taken.failures.insert(engine, error.clone());
                    error
                }
            };
            eprintln!("{} run {run}/{} {}: {said}", row.name, pace.runs, engine.name());
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    #[test]
    fn who_fails_takes_no_further_turns_and_who_is_skipped_takes_none() {
        let row = rows::all().into_iter().find(|row| row.name == "shared-kv-read").unwrap();
        let skipped = BTreeMap::from([(Peer::NixlUcx, "no wheel".to_owned())]);
        let pace = Pace { runs: 3, patience: Duration::ZERO };
        let mut asked = Vec::new();
        let taken = take(&row, pace, &skipped, |engine| {
            asked.push(engine);
            match engine {
                Engine::Kvrail => Sample::read(r#"{"verified":true}"#),
                Engine::Peer(_) => Err("crashed".into()),
            }
        });
        let memcpy = Engine::Peer(Peer::Memcpy);
        assert_eq!(asked, [Engine::Kvrail, memcpy, Engine::Kvrail, Engine::Kvrail]);
        assert_eq!(taken.samples[&Engine::Kvrail].len(), 3);
        assert_eq!(taken.failures[&memcpy], "crashed");
    }
}
