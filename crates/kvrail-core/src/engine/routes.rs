//! The routes to one peer: which there are, which work, which are probed (KR-10).
//!
//! A peer begins with its *first* routes, which pair all rails of both sides ([`crate::route::pair`]): each rail is on one,
//! control messages prefer them, and one that is down is probed until it works again. Further routes are made on demand,
//! each pairing at most once ([`ROUTES_MAX`]): for plans whose regions are reachable on certain rails only, and for
//! failovers that find none of a plan's own routes working.
//!
//! There may be hundreds of further routes, so they are not probed for their own sake. The first routes stand for
//! their rails: a further one *rests* while either of its rails is on no route that works, and is probed again when both
//! are. Only when work finds no way at all are pairings *explored*, some at a time, in growing intervals.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::{Index, IndexMut};
use core::time::Duration;

use crate::id::{LocalRail, RailSet, RemoteRail, Route};
use crate::limits::ROUTES_MAX;
use crate::plan::{Lane, Lanes};
use crate::route::{WeightedRoute, pair_within};
use crate::time::Time;

/// Longest wait between two explorations.
const EXPLORE_MAX: Duration = Duration::from_millis(100);

/// Whether a route can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Health {
    Up,
    /// Given up; probed from time to time. Rests if `probe_at` is [`Time::NEVER`].
    Down {
        probe_at: Time,
        backoff: Duration,
    },
}

#[derive(Debug)]
pub(super) struct RouteState {
    pub(super) route: Route,
    pub(super) health: Health,
    pub(super) in_flight: u32,
    /// When something last completed, or the first of the ops in flight was posted.
    pub(super) progress_at: Time,
    /// The number in the last probe's hello.
    pub(super) probe: u64,
    /// A plan was made for it (or it is one of the first): worth a probe when its rails work again.
    planned: bool,
    /// When it last came up again, and how long the wait between probes had grown until then.
    up_again: Option<(Time, Duration)>,
}

/// A route that fails within so many times its last wait goes on with that wait: it carries messages and fails ops,
/// and would otherwise go up and down with every probe.
const FLAPPING: u32 = 16;

impl RouteState {
    fn new(route: Route, health: Health, planned: bool) -> Self {
        Self { route, health, in_flight: 0, progress_at: Time::ZERO, probe: 0, planned, up_again: None }
    }

    pub(super) fn is_up(&self) -> bool {
        self.health == Health::Up
    }
}

/// All routes to one peer.
#[derive(Debug, Default)]
pub(super) struct Routes {
    states: Vec<RouteState>,
    /// How many the peer began with, and their weights.
    weights: Vec<u64>,
    /// The peer's line rates, in the order of its rails.
    remote_rates: Vec<u64>,
    /// Positions of the further routes.
    further: BTreeMap<Route, u16>,
    /// Where the next plan or failover begins, so that small work spreads.
    pub(super) rotate: usize,
    /// Where the next control message is sent.
    control_rotate: usize,
    /// No probe is due before.
    pub(super) probe_due: Time,
    exploration: Exploration,
}

/// The search for a pairing that works.
#[derive(Debug, Default)]
struct Exploration {
    /// When to go on; `None`: nobody looks for one.
    due: Option<Time>,
    backoff: Duration,
    /// Steps made.
    step: usize,
}

impl Index<usize> for Routes {
    type Output = RouteState;
    #[inline]
    fn index(&self, index: usize) -> &RouteState {
        &self.states[index]
    }
}

impl IndexMut<usize> for Routes {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut RouteState {
        &mut self.states[index]
    }
}

impl Routes {
    /// The first routes.
    pub(super) fn new(local_rates: &[u64], remote_rates: Vec<u64>) -> Self {
        let first = pair_within((local_rates, RailSet::ALL), (&remote_rates, RailSet::ALL));
        Self {
            weights: first.iter().map(|r| r.weight).collect(),
            states: first.iter().map(|r| RouteState::new(r.route, Health::Up, true)).collect(),
            remote_rates,
            probe_due: Time::NEVER,
            ..Self::default()
        }
    }

    pub(super) fn remote_rails(&self) -> usize {
        self.remote_rates.len()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.states.len()
    }

    /// How many of them the peer began with: those at the front.
    pub(super) fn first(&self) -> usize {
        self.weights.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RouteState> {
        self.states.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut RouteState> {
        self.states.iter_mut()
    }

    pub(super) fn any_up(&self) -> bool {
        self.states.iter().any(RouteState::is_up)
    }

    fn is_first(&self, index: usize) -> bool {
        index < self.weights.len()
    }

    pub(super) fn index_of(&self, route: Route) -> Option<usize> {
        let local = self.states.get(..self.weights.len())?;
        match self.further.get(&route) {
            Some(index) => Some(usize::from(*index)),
            None => local.iter().position(|r| r.route == route),
        }
    }

    fn find_or_make(&mut self, route: Route, planned: bool) -> usize {
        if let Some(index) = self.index_of(route) {
            self.states[index].planned |= planned;
            return index;
        }
        debug_assert!(self.states.len() < ROUTES_MAX, "each pairing is made once");
        let rests = Health::Down { probe_at: Time::NEVER, backoff: Duration::ZERO };
        let health = if planned && self.rails_work(route) { Health::Up } else { rests };
        let index = self.states.len();
        self.states.push(RouteState::new(route, health, planned));
        self.further.insert(route, index as u16);
        index
    }

    /// Local and remote rails that are on a route that works.
    fn working(&self) -> (RailSet, RailSet) {
        self.states.iter().filter(|r| r.is_up()).fold((RailSet::NONE, RailSet::NONE), |(l, r), state| {
            (l.with(state.route.local.index()), r.with(state.route.remote.index()))
        })
    }

    fn rails_work(&self, route: Route) -> bool {
        let (locals, remotes) = self.working();
        locals.contains(route.local.index()) && remotes.contains(route.remote.index())
    }

    /// Positions of the routes that may carry work between two sets of rails now, into `found`: those of the work's own
    /// lane, else whatever works between the sets.
    pub(super) fn usable(
        &self,
        local_rates: &[u64],
        (local, remote): (RailSet, RailSet),
        is_clean: impl Fn(RemoteRail) -> bool,
        found: &mut Vec<u16>,
    ) {
        let usable = |index: &u16| {
            let state = &self.states[usize::from(*index)];
            state.is_up() && is_clean(state.route.remote)
        };
        found.clear();
        if local == RailSet::ALL && remote == RailSet::ALL {
            found.extend((0..self.weights.len() as u16).filter(usable));
        } else {
            let lane = pair_within((local_rates, local), (&self.remote_rates, remote));
            let known = lane.iter().filter_map(|r| self.index_of(r.route)).map(|index| index as u16);
            found.extend(known.filter(usable));
        }
        if found.is_empty() {
            let inside = |index: &u16| {
                let route = self.states[usize::from(*index)].route;
                local.contains(route.local.index()) && remote.contains(route.remote.index())
            };
            found.extend((0..self.states.len() as u16).filter(inside).filter(usable));
        }
    }

    /// Whether any route between two sets of rails works.
    pub(super) fn any_between(&self, (local, remote): (RailSet, RailSet)) -> bool {
        self.states.iter().any(|state| {
            state.is_up()
                && local.contains(state.route.local.index())
                && remote.contains(state.route.remote.index())
        })
    }

    /// The next usable route for a control message; one of the first if any of those is usable.
    pub(super) fn control_route(&mut self) -> Option<usize> {
        let first = self.weights.len();
        for _ in 0..first {
            self.control_rotate = (self.control_rotate + 1) % first;
            if self.states[self.control_rotate].is_up() {
                return Some(self.control_rotate);
            }
        }
        (first..self.states.len()).find(|index| self.states[*index].is_up())
    }

    /// The next of the first routes, whether it is usable or not.
    pub(super) fn any_route(&mut self) -> Option<usize> {
        self.control_rotate = (self.control_rotate + 1) % self.weights.len().max(1);
        (!self.weights.is_empty()).then_some(self.control_rotate)
    }

    // --- probing ---

    /// How long a route that fails now waits for its first probe, if not longer than `first` is the rule.
    pub(super) fn patience(&self, index: usize, now: Time, first: Duration) -> Duration {
        match self.states[index].up_again {
            Some((at, wait)) if now.since(at) < wait * FLAPPING => wait.max(first),
            _ => first,
        }
    }

    pub(super) fn set_down(&mut self, index: usize, probe_at: Time, backoff: Duration) {
        self.states[index].health = Health::Down { probe_at, backoff };
        self.probe_due = self.probe_due.min(probe_at);
    }

    /// Probes a route that is down without waiting any longer.
    pub(super) fn probe_soon(&mut self, index: usize, now: Time, backoff_min: Duration) {
        if let Health::Down { backoff, .. } = self.states[index].health {
            self.set_down(index, now, backoff.max(backoff_min));
        }
    }

    /// A route that is to be probed now.
    pub(super) fn due_probe(&mut self, now: Time) -> Option<usize> {
        if self.probe_due > now {
            return None;
        }
        let mut next = Time::NEVER;
        for (index, state) in self.states.iter().enumerate() {
            if let Health::Down { probe_at, .. } = state.health {
                if probe_at <= now {
                    return Some(index);
                }
                next = next.min(probe_at);
            }
        }
        self.probe_due = next;
        None
    }

    /// Notes that a route was probed: again later, unless it rests from now on. When.
    pub(super) fn probed(&mut self, index: usize, now: Time, backoff_max: Duration) -> Time {
        let Health::Down { backoff, .. } = self.states[index].health else { return Time::NEVER };
        let backoff = (backoff * 2).min(backoff_max);
        let state = &self.states[index];
        let again = self.is_first(index) || state.planned && self.rails_work(state.route);
        let probe_at = if again { now + backoff } else { Time::NEVER };
        self.set_down(index, probe_at, backoff);
        probe_at
    }

    /// A route works: those that rest and whose rails are now both on one that does are probed.
    pub(super) fn set_up(&mut self, index: usize, now: Time, backoff: Duration) {
        if let Health::Down { backoff, .. } = self.states[index].health {
            self.states[index].up_again = Some((now, backoff));
        }
        self.states[index].health = Health::Up;
        self.states[index].progress_at = now;
        if self.further.is_empty() {
            return;
        }
        let (locals, remotes) = self.working();
        for state in &mut self.states[self.weights.len()..] {
            let rests = matches!(state.health, Health::Down { probe_at: Time::NEVER, .. });
            let works =
                locals.contains(state.route.local.index()) && remotes.contains(state.route.remote.index());
            if rests && works && state.planned {
                state.health = Health::Down { probe_at: now, backoff };
                self.probe_due = now;
            }
        }
    }

    // --- exploring ---

    /// Somebody found no way: pairings are tried from now on, until [`Routes::explored`]. When the next ones are due.
    pub(super) fn seek(&mut self, now: Time) -> Time {
        *self.exploration.due.get_or_insert(now)
    }

    /// When to go on exploring.
    pub(super) fn explore_due(&self) -> Time {
        self.exploration.due.unwrap_or(Time::NEVER)
    }

    /// Steps of exploration so far: which of several seekers it is the turn of.
    pub(super) fn explore_step(&self) -> usize {
        self.exploration.step
    }

    /// Nobody seeks any more.
    pub(super) fn explored(&mut self) {
        self.exploration = Exploration::default();
    }

    /// Has the next pairings between two sets probed, each rail of the larger side once; all pairings in turn.
    pub(super) fn explore(
        &mut self,
        now: Time,
        local_rails: usize,
        (local, remote): (RailSet, RailSet),
        first_backoff: Duration,
    ) {
        let locals: Vec<usize> = local.below(local_rails).collect();
        let remotes: Vec<usize> = remote.below(self.remote_rails()).collect();
        let (fewer, more) = (locals.len().min(remotes.len()), locals.len().max(remotes.len()));
        if fewer > 0 {
            let turn = self.exploration.step % fewer;
            for k in 0..more {
                let (l, r) = if locals.len() >= remotes.len() { (k, k + turn) } else { (k + turn, k) };
                let route = Route {
                    local: LocalRail(locals[l % locals.len()] as u16),
                    remote: RemoteRail(remotes[r % remotes.len()] as u16),
                };
                let index = self.find_or_make(route, false);
                // The first routes are probed anyway.
                if !self.is_first(index) {
                    self.probe_soon(index, now, first_backoff);
                }
            }
        }
        let exploration = &mut self.exploration;
        exploration.step += 1;
        exploration.backoff = (exploration.backoff * 2).clamp(first_backoff.min(EXPLORE_MAX), EXPLORE_MAX);
        exploration.due = Some(now + exploration.backoff);
    }
}

/// Lanes of plans to one peer.
pub(super) struct PlanLanes<'a> {
    routes: &'a mut Routes,
    local_rates: &'a [u64],
    indices: Vec<u16>,
    weights: Vec<u64>,
}

impl<'a> PlanLanes<'a> {
    pub(super) fn new(routes: &'a mut Routes, local_rates: &'a [u64]) -> Self {
        Self { routes, local_rates, indices: Vec::new(), weights: Vec::new() }
    }
}

impl Lanes for PlanLanes<'_> {
    fn lane(&mut self, local: RailSet, remote: RailSet) -> Lane<'_> {
        if local == RailSet::ALL && remote == RailSet::ALL {
            return Lane { routes: &[], weights: &self.routes.weights };
        }
        let lane = pair_within((self.local_rates, local), (&self.routes.remote_rates, remote));
        self.indices.clear();
        self.weights.clear();
        for WeightedRoute { route, weight } in lane {
            self.indices.push(self.routes.find_or_make(route, true) as u16);
            self.weights.push(weight);
        }
        Lane { routes: &self.indices, weights: &self.weights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn routes(local: usize, remote: usize) -> (Vec<u64>, Routes) {
        let rates = alloc::vec![100; local];
        let routes = Routes::new(&rates, alloc::vec![100; remote]);
        (rates, routes)
    }

    fn down(routes: &mut Routes, which: impl Fn(Route) -> bool) {
        for index in 0..routes.len() {
            if which(routes[index].route) {
                routes.set_down(index, Time::NEVER, MS);
            }
        }
    }

    fn due(routes: &mut Routes, now: Time) -> Vec<Route> {
        let mut due = Vec::new();
        while let Some(index) = routes.due_probe(now) {
            routes.probed(index, now, MS * 100);
            due.push(routes[index].route);
        }
        due
    }

    #[test]
    fn a_route_that_fails_right_after_it_came_up_waits_longer_each_time() {
        let (_, mut routes) = routes(2, 2);
        let (mut now, mut waits) = (Time::ZERO, Vec::new());
        for _ in 0..12 {
            let wait = routes.patience(0, now, MS);
            waits.push(wait.as_millis());
            routes.set_down(0, now + wait, wait);
            now = now + wait;
            due(&mut routes, now);
            routes.set_up(0, now, MS);
            now = now + MS;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 100, 100, 100, 100, 100]);
        assert_eq!(routes.patience(0, now + MS * 1600, MS), MS, "it has proved itself");
    }

    #[test]
    fn a_route_made_for_a_plan_between_rails_that_work_is_used_at_once() {
        let (rates, mut routes) = routes(4, 4);
        let (near, far) = (RailSet::from_bits(0b0011), RailSet::from_bits(0b1100));
        let lane: Vec<u16> = PlanLanes::new(&mut routes, &rates).lane(near, far).routes.to_vec();
        assert_eq!(lane, [4, 5]);
        let again: Vec<u16> = PlanLanes::new(&mut routes, &rates).lane(near, far).routes.to_vec();
        assert_eq!(lane, again);
        assert!(routes[4].is_up() && routes[5].is_up());
    }

    #[test]
    fn a_further_route_rests_while_one_of_its_rails_works_nowhere() {
        let (rates, mut routes) = routes(4, 4);
        down(&mut routes, |r| r.remote.0 == 2);
        let (near, far) = (RailSet::from_bits(0b0011), RailSet::from_bits(0b1100));
        let lane: Vec<u16> = PlanLanes::new(&mut routes, &rates).lane(near, far).routes.to_vec();
        let [dead, works] = lane[..] else { panic!("two routes") };
        assert!(!routes[usize::from(dead)].is_up() && routes[usize::from(works)].is_up());
        assert!(due(&mut routes, Time(5)).is_empty());
        routes.set_up(2, Time(6), MS);
        assert_eq!(due(&mut routes, Time(6)), [routes[usize::from(dead)].route]);
    }

    #[test]
    fn a_failover_prefers_its_own_lane_and_never_leaves_its_rails() {
        let (rates, mut routes) = routes(4, 4);
        let sets = (RailSet::from_bits(0b0011), RailSet::from_bits(0b0110));
        let lane: Vec<u16> = PlanLanes::new(&mut routes, &rates).lane(sets.0, sets.1).routes.to_vec();
        let mut found = Vec::new();
        routes.usable(&rates, sets, |_| true, &mut found);
        assert_eq!(found, lane);
        routes.usable(&rates, sets, |rail| rail.0 != 1, &mut found);
        assert_eq!(found, lane[1..]);
        // Of the first routes only 1-1 lies between the sets.
        down(&mut routes, |r| r.local != LocalRail(r.remote.0));
        routes.usable(&rates, sets, |_| true, &mut found);
        assert_eq!(found, [1]);
        down(&mut routes, |r| r.local.0 == 1);
        routes.usable(&rates, sets, |_| true, &mut found);
        assert!(found.is_empty());
    }

    proptest! {
        #[test]
        fn exploring_tries_every_pairing_of_the_sets_and_no_other(
            rails in (1usize..9, 1usize..9), bits in (any::<u8>(), any::<u8>()),
        ) {
            let (_, mut routes) = routes(rails.0, rails.1);
            down(&mut routes, |_| true);
            let sets = (RailSet::from_bits(bits.0.into()), RailSet::from_bits(bits.1.into()));
            let first = routes.len();
            let mut tried = alloc::collections::BTreeSet::new();
            for step in 0..8 {
                routes.explore(Time(step), rails.0, sets, MS);
                tried.extend(due(&mut routes, Time(step)));
            }
            for l in 0..rails.0 {
                for r in 0..rails.1 {
                    let route = Route { local: LocalRail(l as u16), remote: RemoteRail(r as u16) };
                    let further = routes.index_of(route).is_none_or(|index| index >= first);
                    let inside = sets.0.contains(l) && sets.1.contains(r);
                    prop_assert_eq!(tried.contains(&route), further && inside, "{}", route);
                }
            }
            prop_assert!(routes.len() <= rails.0 * rails.1);
        }
    }
}
