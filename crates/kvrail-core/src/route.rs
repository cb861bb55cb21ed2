//! Routes: which local rail reaches which of a peer's rails, decided once from both inventories (KR-10).

use alloc::vec::Vec;

use crate::id::{LocalRail, RailSet, RemoteRail, Route};
use crate::transport::RailInfo;

/// A route and its share of large transfers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WeightedRoute {
    /// The pairing.
    pub route: Route,
    /// Relative rate; never zero.
    pub weight: u64,
}

/// Pairs the rails of two agents. As many routes as the larger side has rails, so that each rail of either side is
/// on at least one; a rail that is on several shares its rate among them.
#[must_use]
pub fn pair(local: &[RailInfo], remote: &[RailInfo]) -> Vec<WeightedRoute> {
    pair_within((&rates(local), RailSet::ALL), (&rates(remote), RailSet::ALL))
}

/// Line rates in the order of the rails, bits per second.
pub(crate) fn rates(rails: &[RailInfo]) -> Vec<u64> {
    rails.iter().map(|rail| rail.rate_bps).collect()
}

/// As [`pair`], for the rails of two sets only: both sides as all their rates and the rails that may be used.
pub(crate) fn pair_within(local: (&[u64], RailSet), remote: (&[u64], RailSet)) -> Vec<WeightedRoute> {
    let rails = |(rates, set): (&[u64], RailSet)| set.below(rates.len()).collect::<Vec<usize>>();
    let (locals, remotes) = (rails(local), rails(remote));
    let count = if locals.is_empty() || remotes.is_empty() { 0 } else { locals.len().max(remotes.len()) };
    let share = |rate: u64, rails: usize, k: usize| {
        let routes_of = count / rails + usize::from(k % rails < count % rails);
        rate / routes_of as u64
    };
    (0..count)
        .map(|k| {
            let (l, r) = (locals[k % locals.len()], remotes[k % remotes.len()]);
            let weight = match (share(local.0[l], locals.len(), k), share(remote.0[r], remotes.len(), k)) {
                (0, known) | (known, 0) => known,
                (a, b) => a.min(b),
            };
            let route = Route { local: LocalRail(l as u16), remote: RemoteRail(r as u16) };
            WeightedRoute { route, weight: weight.max(1) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;

    fn rails(rates: &[u64]) -> Vec<RailInfo> {
        rates.iter().map(|&rate_bps| RailInfo { name: String::new(), rate_bps }).collect()
    }

    #[test]
    fn the_slower_end_bounds_a_route() {
        let routes = pair(&rails(&[400; 4]), &rails(&[100; 8]));
        assert_eq!(routes.len(), 8);
        assert!(routes.iter().all(|r| r.weight == 100));
        let routes = pair(&rails(&[100; 32]), &rails(&[320]));
        assert!(routes.iter().all(|r| r.weight == 10 && r.route.remote == RemoteRail(0)));
    }

    proptest! {
        #[test]
        fn every_rail_of_both_sides_is_on_a_route_and_no_index_leaves_its_inventory(
            local in prop::collection::vec(0u64..1000, 1..40),
            remote in prop::collection::vec(0u64..1000, 1..40),
        ) {
            let routes = pair(&rails(&local), &rails(&remote));
            prop_assert_eq!(routes.len(), local.len().max(remote.len()));
            for l in 0..local.len() { prop_assert!(routes.iter().any(|r| r.route.local.index() == l)); }
            for r in 0..remote.len() { prop_assert!(routes.iter().any(|x| x.route.remote.index() == r)); }
            for x in &routes {
                prop_assert!(x.route.local.index() < local.len() && x.route.remote.index() < remote.len());
                prop_assert!(x.weight > 0);
            }
        }

        #[test]
        fn a_pairing_of_subsets_uses_each_of_their_rails_and_no_other(
            local in (1usize..=64, any::<u64>()),
            remote in (1usize..=64, any::<u64>()),
        ) {
            let sets = [local, remote].map(|(_, bits)| RailSet::from_bits(bits));
            let rates = [local, remote].map(|(count, _)| alloc::vec![100; count]);
            let routes = pair_within((&rates[0], sets[0]), (&rates[1], sets[1]));
            let rails = [0, 1].map(|side: usize| sets[side].below(rates[side].len()).collect::<Vec<_>>());
            if rails.iter().any(Vec::is_empty) {
                prop_assert!(routes.is_empty());
            } else {
                prop_assert_eq!(routes.len(), rails[0].len().max(rails[1].len()));
                for &l in &rails[0] { prop_assert!(routes.iter().any(|x| x.route.local.index() == l)); }
                for &r in &rails[1] { prop_assert!(routes.iter().any(|x| x.route.remote.index() == r)); }
                for x in &routes {
                    prop_assert!(sets[0].contains(x.route.local.index()) && sets[1].contains(x.route.remote.index()));
                }
            }
        }
    }
}
