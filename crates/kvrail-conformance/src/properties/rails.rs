//! Rails: which of them a region may be moved over, and what a reset of one does to the others and to peers.

use kvrail_core::id::{LocalRail, RailSet, RemoteRail, Route};
use kvrail_core::transport::{Direction, Op};

use super::{apply, op, scattered};
use crate::ledger::Standing;
use crate::pattern::{self, Dice};
use crate::{Area, Rig, Verdict, demand, violated};

/// Regions for which a transport says less than all rails: both sides name the same ones, ops over each of them move
/// their bytes, and one over any other rail fails and moves none.
pub fn a_region_is_moved_only_over_its_rails(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let mut areas = [Vec::new(), Vec::new()];
    for seed in 0..3 {
        areas[0].push(rig.area(a, 1 << 16, 60 + seed)?);
        let remote = rig.area(b, 1 << 16, 70 + seed)?;
        rig.share(remote, a)?;
        areas[1].push(remote);
    }
    for &local in &areas[0] {
        for &remote in &areas[1] {
            over_its_rails(rig, local, remote)?;
        }
    }
    Ok(())
}

fn over_its_rails(rig: &mut Rig<'_>, local: Area, remote: Area) -> Verdict {
    let (a, b) = (local.node, remote.node);
    let one = |at: u64| op(local, at, remote, at + 5, 700);
    let (here, there) = rig.rails_for(a, b, &one(0));
    let told = rig.on(b, |t, _| t.region_rails(remote.info.id));
    let count = (rig.rails(a), rig.rails(b));
    demand!(!here.is_empty() && !there.is_empty(), "a region is reachable on no rail: {here:?}, {there:?}");
    demand!(
        told.below(count.1).eq(there.below(count.1)),
        "a region is on {told:?} for its owner and on {there:?} for its peer"
    );
    let (mut l, mut r) = (rig.read(local), rig.read(remote));
    let mut tokens = Vec::new();
    for (i, route) in rig.routes_for(a, b, &one(0)).into_iter().enumerate() {
        for (k, direction) in [Direction::Write, Direction::Read].into_iter().enumerate() {
            let one = one((2 * i + k) as u64 * 800);
            tokens.push(rig.post_on(a, b, route, direction, &[one])?);
            apply(direction, &one, &mut l, &mut r);
        }
    }
    rig.settle()?;
    tokens.iter().try_for_each(|token| rig.expect_completed(a, *token))?;
    for route in outside(count, here, there) {
        for direction in [Direction::Write, Direction::Read] {
            refused(rig, local, remote, route, direction, one(0))?;
        }
    }
    rig.expect_bytes(local, &l, "local memory")?;
    rig.expect_bytes(remote, &r, "remote memory")
}

/// A route with the first rail outside on either side, where there is one.
fn outside(count: (usize, usize), here: RailSet, there: RailSet) -> Vec<Route> {
    let route = |l: usize, r: usize| Route { local: LocalRail(l as u16), remote: RemoteRail(r as u16) };
    let (l, r) = (here.below(count.0).next().unwrap_or(0), there.below(count.1).next().unwrap_or(0));
    let far = (0..count.0).find(|rail| !here.contains(*rail)).map(|far| route(far, r));
    far.into_iter().chain((0..count.1).find(|rail| !there.contains(*rail)).map(|far| route(l, far))).collect()
}

/// The op is not taken, or it fails.
fn refused(
    rig: &mut Rig<'_>,
    local: Area,
    remote: Area,
    route: Route,
    direction: Direction,
    op: Op,
) -> Verdict {
    let (a, b) = (local.node, remote.node);
    let token = rig.token();
    if let Ok(1) = rig.try_post(a, b, route, direction, token, &[op])? {
        rig.settle_as_an_engine(a, b)?;
        let standing = rig.ledger(a).of(token)[0];
        if standing == Standing::Completed {
            violated!("a {direction} over {route} succeeded, where a region has no key");
        }
        rig.pump_for(rig.caps(a).linger)?;
    }
    Ok(())
}

/// A reset of one route in the middle of traffic: what goes over other local rails ends well, and so do messages there.
pub fn messages_and_ops_survive_a_reset_of_another_route(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let (cell, count) = (8_192, u64::from(rig.limits().volume / 4));
    let local = rig.area(a, (cell * count) as usize, 81)?;
    let remote = rig.area(b, (cell * count) as usize, 82)?;
    rig.share(remote, a)?;
    let ops = scattered(&mut Dice(83), local, remote, cell, count);
    let routes = rig.routes_for(a, b, &ops[0]);
    let Some(other) = routes.iter().copied().find(|route| route.local != routes[0].local) else {
        return Ok(());
    };
    for route in [routes[0], other] {
        let warm = rig.post_on(a, b, route, Direction::Write, &ops[..1])?;
        rig.settle()?;
        rig.expect_completed(a, warm)?;
    }
    let (first, second) = ops[1..].split_at(ops.len() / 2);
    let token = rig.token();
    if let Err(e) = rig.try_post(a, b, routes[0], Direction::Write, token, first)? {
        violated!("a warm route refused ops: {e:?}");
    }
    let survivors = rig.post_on(a, b, other, Direction::Write, second)?;
    let mut forth = Vec::new();
    for i in 0..16 {
        forth.push(pattern::bytes(900 + i, 100 + i as usize * 50));
        rig.send_on(a, b, other, &forth[i as usize])?;
        if i == 8 {
            rig.reset_route(a, b, routes[0]);
        }
    }
    rig.pump_until("ops in flight end after the reset of another route", |rig| rig.ledger(a).open() == 0)?;
    rig.expect_completed(a, survivors)?;
    rig.pump_until("messages on another route arrive", |rig| {
        forth.iter().all(|message| rig.messages(b).contains(message))
    })?;
    rig.pump_for(rig.caps(a).linger)?;
    let (seen, sent) = (rig.read(remote), rig.read(local));
    for op in second {
        let there = &seen[op.remote_offset as usize..][..op.len as usize];
        let here = &sent[op.local_offset as usize..][..op.len as usize];
        demand!(there == here, "an op that completed over another route than the one reset did not land");
    }
    Ok(())
}

/// A reset may change where a node is reached; once its peers were told, everything works again both ways.
pub fn a_reset_does_not_change_what_peers_reach_for_long(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let here = rig.area(a, 1 << 17, 84)?;
    let there = rig.area(b, 1 << 17, 85)?;
    rig.share(there, a)?;
    rig.share(here, b)?;
    reach(rig, here, there, 0)?;
    reach(rig, there, here, 1)?;
    for turn in 1..4 {
        // One side, the other, both at once.
        if turn & 1 == 1 {
            rig.reset(a, b);
        }
        if turn & 2 == 2 {
            rig.reset(b, a);
        }
        rig.pump_for(rig.caps(a).linger)?;
        reach(rig, here, there, 2 * turn)?;
        reach(rig, there, here, 2 * turn + 1)?;
    }
    Ok(())
}

/// Ops on every route and messages get from one area's node to the other's.
fn reach(rig: &mut Rig<'_>, local: Area, remote: Area, seed: u64) -> Verdict {
    let (a, b) = (local.node, remote.node);
    let (mut l, mut r) = (rig.read(local), rig.read(remote));
    let mut tokens = Vec::new();
    for (i, route) in rig.routes_for(a, b, &op(local, 0, remote, 0, 1)).into_iter().enumerate() {
        for (k, direction) in [Direction::Write, Direction::Read].into_iter().enumerate() {
            let one =
                op(local, (2 * i + k) as u64 * 1_000 + seed, remote, (2 * i + k) as u64 * 1_000 + 7, 900);
            tokens.push(rig.post_on(a, b, route, direction, &[one])?);
            apply(direction, &one, &mut l, &mut r);
        }
    }
    rig.settle()?;
    tokens.iter().try_for_each(|token| rig.expect_completed(a, *token))?;
    rig.expect_bytes(local, &l, "local memory")?;
    rig.expect_bytes(remote, &r, "remote memory")?;
    let message = pattern::bytes(5_000 + seed, 700);
    rig.send(a, b, &message)?;
    rig.pump_until("a message arrives", |rig| rig.messages(b).contains(&message))
}
