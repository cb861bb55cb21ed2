//! Axes: from values to places, and which values are written beside them.

/// How values become places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// From zero.
    Linear,
    /// Equal factors are equal distances.
    Log,
}

/// An axis.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Scale {
    kind: Kind,
    low: f64,
    high: f64,
    /// Values that are written, with their text.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Scale {
    /// From zero to a round value above all of them.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Self {
        let most = values.filter(|v| v.is_finite()).fold(0.0_f64, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        let step = round_up(most / 5.0);
        let count = (most / step - 1e-9).ceil().max(1.0);
        let ticks = (0..=count as u32).map(|i| f64::from(i) * step).map(|v| (v, label(v))).collect();
        Self { kind: Kind::Linear, low: 0.0, high: step * count, ticks }
    }

    /// Decades around all values that are above zero, written by `text`.
    pub(super) fn log(values: impl Iterator<Item = f64>, text: impl Fn(f64) -> String) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let last = last.max(first + 1);
        // Few decades have room for more than their beginnings.
        let parts: &[f64] = if last - first <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut ticks: Vec<(f64, String)> = (first..last)
            .flat_map(|decade| parts.iter().map(move |part| part * 10f64.powi(decade)))
            .chain([10f64.powi(last)])
            .map(|v| (v, text(v)))
            .collect();
        // The ends are the ticks that hold the values.
        let from = ticks.iter().rposition(|(v, _)| *v <= low).unwrap_or(0);
        let to = ticks.iter().position(|(v, _)| *v >= high).unwrap_or(ticks.len() - 1).max(from + 1);
        ticks = ticks.drain(from..=to.min(ticks.len() - 1)).collect();
        let ends = (ticks.first().map_or(low, |t| t.0), ticks.last().map_or(high, |t| t.0));
        Self { kind: Kind::Log, low: ends.0, high: ends.1, ticks }
    }

    /// Values of a list, at distances of their logarithms; `text` for those that are written, at most `count`.
    pub(super) fn listed(values: &[f64], count: usize, text: impl Fn(f64) -> String) -> Self {
        let (low, high) = match (values.first(), values.last()) {
            (Some(low), Some(high)) if low < high => (*low, *high),
            (Some(one), _) => (*one / 2.0, *one * 2.0),
            _ => (1.0, 2.0),
        };
        let every = values.len().div_ceil(count.max(1)).max(1);
        let ticks = values.iter().step_by(every).map(|v| (*v, text(*v))).collect();
        Self { kind: Kind::Log, low, high, ticks }
    }

    /// Where a value is, from 0 to 1; what is outside is at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let place = match self.kind {
            Kind::Linear => (value - self.low) / (self.high - self.low),
            Kind::Log if value <= 0.0 => 0.0,
            Kind::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .map(|part| part * power)
        .find(|v| *v >= value * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

fn label(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_values() {
        let texts = |scale: Scale| scale.ticks.into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(texts(Scale::linear([46.5].into_iter())), ["0", "10", "20", "30", "40", "50"]);
        assert_eq!(texts(Scale::linear([0.85].into_iter())), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(
            texts(Scale::log([3.0, 4000.0].into_iter(), |v| v.to_string())),
            ["1", "10", "100", "1000", "10000"]
        );
        assert_eq!(
            texts(Scale::log([3.0, 40.0].into_iter(), |v| v.to_string())),
            ["2", "5", "10", "20", "50"]
        );
    }

    proptest! {
        #[test]
        fn every_value_has_a_place(values in prop::collection::vec(prop::num::f64::ANY, 0..8), at in prop::num::f64::ANY) {
            for scale in [
                Scale::linear(values.iter().copied()),
                Scale::log(values.iter().copied(), |v| v.to_string()),
                Scale::listed(&values, 4, |v| v.to_string()),
            ] {
                prop_assert!((0.0..=1.0).contains(&scale.at(at)));
                prop_assert!(scale.ticks.len() < 2_000);
            }
        }
    }
}
