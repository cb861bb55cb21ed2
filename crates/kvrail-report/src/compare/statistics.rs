//! Medians, spreads, and the rank test of Mann and Whitney. None of them minds an outlier, which turns of a shared machine
//! have.

use crate::ratio::quantile;

/// Turns per side from which on the rank test can say anything at all: with four each, the most extreme ranking has a
/// probability of 3 in 100 by chance, with three, of 10.
pub const MANN_WHITNEY_TURNS_MIN: usize = 5;
/// Turns from which on a spread means something.
const SPREAD_TURNS_MIN: usize = 3;
/// What makes the median distance to the median a standard deviation, where values are normally distributed.
const MAD_TO_SIGMA: f64 = 1.4826;

/// The median; nothing of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// How far values usually are from their median, as a share of it: the robust standard deviation. Nothing with fewer than
/// three values.
#[must_use]
pub fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values).filter(|middle| *middle > 0.0 && values.len() >= SPREAD_TURNS_MIN)?;
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    Some(median(&distances)? * MAD_TO_SIGMA / middle)
}

/// The probability that two samples of one distribution are ranked at least as unevenly as these, both ways; by the normal
/// approximation with corrections for ties and continuity. Nothing with too few values.
#[must_use]
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() < MANN_WHITNEY_TURNS_MIN || b.len() < MANN_WHITNEY_TURNS_MIN {
        return None;
    }
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|v| (*v, true)).chain(b.iter().map(|v| (*v, false))).collect();
    all.sort_unstable_by(|x, y| x.0.total_cmp(&y.0));
    let (mut rank_sum, mut ties, mut at) = (0.0, 0.0, 0);
    while at < all.len() {
        let equal = all[at..].iter().take_while(|(value, _)| *value == all[at].0).count().max(1);
        // Ranks begin at 1; equal values share the mean of theirs.
        let rank = at as f64 + (equal as f64 + 1.0) / 2.0;
        rank_sum += all[at..at + equal].iter().filter(|(_, of_a)| *of_a).count() as f64 * rank;
        let t = equal as f64;
        ties += t * t * t - t;
        at += equal;
    }
    let (n, m) = (a.len() as f64, b.len() as f64);
    let total = n + m;
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance <= 0.0 {
        return Some(1.0);
    }
    let z = ((u - n * m / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    Some(two_sided(z))
}

/// Probability that a normally distributed value is at least so many standard deviations from its mean. The error function
/// by Abramowitz and Stegun 7.1.26, within 1.5e-7.
fn two_sided(z: f64) -> f64 {
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let polynomial = series.iter().rev().fold(0.0, |sum, factor| (sum + factor) * t);
    (polynomial * (-x * x).exp()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_test_agrees_with_published_values() {
        // scipy.stats.mannwhitneyu(a, b, method="asymptotic"): 0.012185780355344818 and 1.0.
        let p = mann_whitney(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0]).unwrap();
        assert!((p - 0.012_185_78).abs() < 1e-6, "{p}");
        assert_eq!(mann_whitney(&[1.0; 5], &[1.0; 5]), Some(1.0));
        assert_eq!(mann_whitney(&[1.0; 4], &[2.0; 9]), None);
        assert!((two_sided(1.959_964) - 0.05).abs() < 1e-6);
        assert!((two_sided(0.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_spread_does_not_mind_an_outlier_and_needs_three_values() {
        let calm = spread(&[10.0, 10.1, 9.9, 10.0, 1.0]).unwrap();
        assert!(calm < 0.02, "{calm}");
        assert_eq!(spread(&[1.0, 2.0]), None);
        assert_eq!(spread(&[0.0; 5]), None);
        assert_eq!(median(&[]), None);
    }
}
