//! Routes: which local rail reaches which of a peer's rails, decided once from both inventories (KR-10).

use alloc::vec::Vec;

use crate::id::{LocalRail, RemoteRail, Route};
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
    let count = if local.is_empty() || remote.is_empty() { 0 } else { local.len().max(remote.len()) };
    let share = |rails: &[RailInfo], index: usize| {
        let routes_of = count / rails.len() + usize::from(index < count % rails.len());
        rails[index].rate_bps / routes_of as u64
    };
    (0..count)
        .map(|k| {
            let (l, r) = (k % local.len(), k % remote.len());
            let weight = match (share(local, l), share(remote, r)) {
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
    }
}
