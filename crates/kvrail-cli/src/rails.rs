//! Rails that fail and return while a case runs: told as it happens, and summed up at its end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvrail::{Agent, NamedRailStats, PeerEvent, Route};
use kvrail_report::{RailEvent, RailRow};

use crate::units;

/// Failures of one route that are told one by one; what comes more often is only counted.
const TOLD_MAX: u32 = 3;
/// Events of one case that the report keeps.
const EVENTS_MAX: usize = 10_000;

/// Says a line on stderr.
pub(crate) type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// Listens to an agent's rails.
pub(crate) struct RailLog {
    agent: Agent,
    began: Instant,
    say: Say,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: Vec<RailEvent>,
    /// How often each route went down.
    downs: HashMap<Route, u32>,
    down: HashMap<Route, Instant>,
    sums: HashMap<u16, Sums>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    downs: u32,
    down: Duration,
    /// Bytes that had been posted when it returned.
    posted_at_return: Option<u64>,
}

impl RailLog {
    /// Of a run that began at `began`.
    pub(crate) fn new(agent: Agent, began: Instant, say: Say) -> Arc<Self> {
        Arc::new(Self { agent, began, say, state: Mutex::default() })
    }

    /// Takes in what has happened since the last look.
    pub(crate) fn look(&self) {
        while let Some(event) = self.agent.poll_event() {
            match event {
                PeerEvent::RouteDown { rail, route, error, .. } => {
                    self.take(&rail, route, Some(error.to_string()));
                }
                PeerEvent::RouteUp { rail, route, .. } => self.take(&rail, route, None),
                _ => {}
            }
        }
    }

    fn take(&self, rail: &str, route: Route, why: Option<String>) {
        let now = Instant::now();
        let at_s = (now - self.began).as_secs_f64();
        let posted = if why.is_none() { self.posted(route) } else { 0 };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let sums = state.sums.entry(route.local.0).or_default();
        let downs = state.downs.entry(route).or_default();
        let line = if let Some(why) = &why {
            *downs += 1;
            sums.downs += 1;
            sums.posted_at_return = None;
            state.down.insert(route, now);
            Some(format!("{at_s:.1} s: rail {rail} down ({route}): {why}; its work goes over the others"))
        } else if let Some(since) = state.down.remove(&route) {
            sums.posted_at_return = Some(posted);
            sums.down += now - since;
            let was = units::span(now - since);
            Some(format!("{at_s:.1} s: rail {rail} up again ({route}) after {was}"))
        } else {
            // A pair of rails that was tried for the first time.
            None
        };
        if *downs == TOLD_MAX + 1 && why.is_some() {
            (self.say)(&format!(
                "{at_s:.1} s: rail {rail} fails again and again ({route}); from here on it is counted"
            ));
        } else if *downs <= TOLD_MAX {
            line.iter().for_each(|line| (self.say)(line));
        }
        if state.events.len() < EVENTS_MAX && line.is_some() {
            let route = (route.local.0, route.remote.0);
            state.events.push(RailEvent { at_s, rail: rail.into(), route, up: why.is_none(), why });
        }
    }

    fn posted(&self, route: Route) -> u64 {
        // Of an agent with several transports the one with most rails is it: routes name no transport.
        let stats = self.agent.stats();
        let rails = stats.transports.iter().filter_map(|t| t.rails.get(route.local.index()));
        rails.map(|rail| rail.counters.bytes_posted).max().unwrap_or(0)
    }

    /// What each rail of a transport has done, and what has happened.
    pub(crate) fn sum_up(&self, transport: &str) -> (Vec<RailRow>, Vec<RailEvent>) {
        self.look();
        let now = Instant::now();
        let stats = self.agent.stats();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rails = stats.transports.iter().filter(|t| t.name == transport).flat_map(|t| &t.rails);
        let row = |(index, rail): (u16, &NamedRailStats)| {
            let sums = state.sums.get(&index).copied().unwrap_or_default();
            let still = state.down.iter().filter(|(route, _)| route.local.0 == index);
            let down = sums.down + still.map(|(_, since)| now - *since).sum::<Duration>();
            let counters = &rail.counters;
            RailRow {
                name: rail.name.clone(),
                rate_bps: rail.rate_bps,
                bytes_posted: counters.bytes_posted,
                ops_posted: counters.ops_posted,
                ops_done: counters.ops_done,
                ops_failed: counters.ops_failed,
                downs: sums.downs,
                down_s: down.as_secs_f64(),
                bytes_since_return: sums.posted_at_return.map(|at| counters.bytes_posted.saturating_sub(at)),
            }
        };
        ((0..).zip(rails).map(row).collect(), state.events.clone())
    }
}

/// What became of a rail that failed; nothing for one that did not. `made_good`: the case went on to its end.
pub(crate) fn trouble(rail: &RailRow, made_good: bool) -> Option<String> {
    if rail.downs == 0 && rail.ops_failed == 0 {
        return None;
    }
    let repeated = if made_good && rail.ops_failed > 0 { " and were repeated" } else { "" };
    let (failed, posted) = (units::grouped(rail.ops_failed), units::grouped(rail.ops_posted));
    let mut line = format!("rail {}: {failed} of {posted} ops failed{repeated}", rail.name);
    if rail.downs > 0 {
        let times = if rail.downs == 1 { "once".into() } else { format!("{} times", rail.downs) };
        let span = units::span(Duration::from_secs_f64(rail.down_s));
        line += &format!("; down {times}, {span} in all; ");
        line += &match rail.bytes_since_return {
            Some(bytes) => format!("carried {} since its return", units::about(bytes)),
            None => "has not returned".into(),
        };
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> RailRow {
        RailRow {
            name: "rdmap79s0".into(),
            rate_bps: 100_000_000_000,
            bytes_posted: 1 << 30,
            ops_posted: 12_800,
            ops_done: 12_790,
            ops_failed: 10,
            downs: 1,
            down_s: 3.04,
            bytes_since_return: Some(512 << 20),
        }
    }

    #[test]
    fn only_a_rail_that_failed_is_told_of() {
        let text = "rail rdmap79s0: 10 of 12,800 ops failed and were repeated; down once, 3 s in all; carried 512 MiB since \
                    its return";
        assert_eq!(trouble(&row(), true).unwrap(), text);
        let gone = RailRow { bytes_since_return: None, ..row() };
        assert!(trouble(&gone, true).unwrap().ends_with("; has not returned"));
        assert_eq!(trouble(&RailRow { downs: 0, ops_failed: 0, ..row() }, true), None);
        let refused = trouble(&RailRow { downs: 0, ..row() }, false);
        assert_eq!(refused.unwrap(), "rail rdmap79s0: 10 of 12,800 ops failed");
    }
}
