//! Engines set against each other: medians of the ratios within the turns.
//!
//! Machines drift; two engines measured one after the other differ by the drift. Within one turn they differ by
//! themselves, so a ratio is taken there, and the median of the turns is what is said.

use serde::{Deserialize, Serialize};

use crate::Row;

/// One engine against the base, in one case.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// The case.
    pub case: u32,
    /// The engine that counts as 1: `kvrail` where it took part, else the case's first.
    pub base: String,
    /// The other.
    pub engine: String,
    /// Bandwidth of `engine` in multiples of `base`'s: the median over the turns.
    pub bandwidth: f64,
    /// Between which values the middle half of the turns' ratios lies; null with fewer than three turns.
    pub spread: Option<Spread>,
    /// Turns that were compared; 0: only the rows' medians were there.
    pub turns: usize,
}

/// The middle half of some values.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// A quarter is below.
    pub low: f64,
    /// A quarter is above.
    pub high: f64,
}

/// Ratios of all cases in which several engines have figures.
#[must_use]
pub fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let mut cases: Vec<u32> = rows.iter().map(|row| row.case).collect();
    cases.sort_unstable();
    cases.dedup();
    let of_case = |case: u32| {
        let rows: Vec<&Row> =
            rows.iter().filter(|row| row.case == case && row.bandwidth_gbps().is_some()).collect();
        let base = rows.iter().find(|row| row.engine == "kvrail").or(rows.first()).copied();
        rows.into_iter()
            .filter_map(move |row| base.filter(|base| base.engine != row.engine)?.against(row))
            .collect::<Vec<_>>()
    };
    cases.into_iter().flat_map(of_case).collect()
}

impl Row {
    /// `other` in multiples of this row.
    fn against(&self, other: &Self) -> Option<Ratio> {
        let (here, there) = (self.figures.as_ref()?, other.figures.as_ref()?);
        let mut ratios: Vec<f64> = here
            .turns
            .iter()
            .zip(&there.turns)
            .map(|(here, there)| there.bandwidth_gbps / here.bandwidth_gbps)
            .filter(|ratio| ratio.is_finite())
            .collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let turns = ratios.len();
        let bandwidth = match quantile(&ratios, 0.5) {
            Some(median) => median,
            None => Some(there.bandwidth_gbps / here.bandwidth_gbps).filter(|ratio| ratio.is_finite())?,
        };
        let spread = match (quantile(&ratios, 0.25), quantile(&ratios, 0.75)) {
            (Some(low), Some(high)) if turns >= 3 => Some(Spread { low, high }),
            _ => None,
        };
        let (base, engine) = (self.engine.clone(), other.engine.clone());
        Some(Ratio { case: self.case, base, engine, bandwidth, spread, turns })
    }
}

/// A quantile of sorted values, between neighbours by straight line.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::row;
    use crate::{Figures, Turn};

    fn engine(name: &str, turns: &[f64]) -> Row {
        let turns = turns.iter().map(|&gbps| Turn { bandwidth_gbps: gbps, latency_p50_us: 1.0 }).collect();
        let mut row = Row { engine: name.into(), ..row() };
        row.figures = row.figures.map(|figures| Figures { turns, ..figures });
        row
    }

    #[test]
    fn drift_between_turns_does_not_move_a_ratio() {
        let rows = [engine("nixl:UCX", &[1.0, 2.0, 4.0, 8.0]), engine("kvrail", &[2.0, 4.0, 8.0, 16.0])];
        let ratios = ratios(&rows);
        assert_eq!(ratios.len(), 1);
        assert_eq!((ratios[0].base.as_str(), ratios[0].engine.as_str()), ("kvrail", "nixl:UCX"));
        assert_eq!((ratios[0].bandwidth, ratios[0].turns), (0.5, 4));
        assert_eq!(ratios[0].spread, Some(Spread { low: 0.5, high: 0.5 }));
    }

    #[test]
    fn without_kvrail_the_first_engine_is_the_base_and_failed_ones_take_no_part() {
        let failed = Row { engine: "nixl:UCX".into(), figures: None, ..row() };
        let wrong = Row { verified: false, ..engine("kvrail", &[1.0]) };
        let ratios = ratios(&[failed, wrong, engine("ucx", &[1.0]), engine("memcpy", &[3.0])]);
        assert_eq!(ratios.len(), 1);
        assert_eq!((ratios[0].base.as_str(), ratios[0].engine.as_str()), ("ucx", "memcpy"));
        assert_eq!((ratios[0].bandwidth, ratios[0].spread), (3.0, None));
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.9), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.5));
    }
}
