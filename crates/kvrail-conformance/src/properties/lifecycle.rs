//! Resets, removals, vanished peers: debts are paid whatever happens (KR-4, KR-6, KR-11).

use kvrail_core::id::Generation;
use kvrail_core::transport::{Batch, Direction, PostError};

use super::{apply, op, scattered};
use crate::pattern::Dice;
use crate::{Area, Rig, Verdict, demand, violated};

/// Two nodes, areas, and ops in flight between them.
struct InFlight {
    a: usize,
    b: usize,
    local: Area,
    remote: Area,
}

/// Warms the route, then posts what one attempt takes.
fn in_flight(rig: &mut Rig<'_>, polled: bool) -> Result<InFlight, crate::Violation> {
    let (a, b) = rig.pair()?;
    let (cell, count) = (16_384, u64::from(rig.limits().volume / 4));
    let local = rig.area(a, (cell * count) as usize, 51)?;
    let remote = rig.area(b, (cell * count) as usize, 52)?;
    rig.share(remote, a)?;
    let ops = scattered(&mut Dice(53), local, remote, cell, count);
    let routes = rig.routes_for(a, b, &ops[0]);
    for route in routes.clone() {
        let warm = rig.post_on(a, b, route, Direction::Write, &ops[..1])?;
        rig.settle()?;
        rig.expect_completed(a, warm)?;
    }
    rig.set_polled(b, polled);
    let (writes, reads) = ops[1..].split_at(ops.len() / 2);
    for (direction, ops) in [(Direction::Write, writes), (Direction::Read, reads)] {
        for route in routes.clone() {
            let token = rig.token();
            if let Err(e) = rig.try_post(a, b, route, direction, token, ops)? {
                violated!("a warm route refused ops: {e:?}");
            }
        }
    }
    rig.poll(a)?;
    if polled {
        rig.poll(b)?;
    }
    Ok(InFlight { a, b, local, remote })
}

/// A reset in the middle of traffic: each op ends once, in bounded time.
pub fn a_reset_pays_all_debts(rig: &mut Rig<'_>) -> Verdict {
    let InFlight { a, b, .. } = in_flight(rig, true)?;
    rig.reset(a, b);
    rig.pump_until("ops in flight end after the reset", |rig| rig.ledger(a).open() == 0)?;
    rig.pump_for(rig.limits().vigil)
}

/// The same while the peer does not poll.
pub fn a_reset_towards_a_silent_peer_pays_all_debts(rig: &mut Rig<'_>) -> Verdict {
    let InFlight { a, b, .. } = in_flight(rig, false)?;
    rig.pump_for(rig.limits().vigil)?;
    rig.reset(a, b);
    rig.pump_until("ops in flight end after the reset", |rig| rig.ledger(a).open() == 0)?;
    rig.set_polled(b, true);
    rig.pump_for(rig.limits().vigil)
}

/// After a reset, and once its debts are paid, new ops get through.
pub fn a_route_works_again_after_a_reset(rig: &mut Rig<'_>) -> Verdict {
    let InFlight { a, b, local, remote } = in_flight(rig, true)?;
    rig.reset(a, b);
    rig.pump_until("ops in flight end after the reset", |rig| rig.ledger(a).open() == 0)?;
    let linger = rig.caps(a).linger;
    rig.pump_for(linger)?;
    works(rig, a, b, local, remote)
}

/// Ops on every route in both directions land where they should. Nothing else is in flight.
fn works(rig: &mut Rig<'_>, a: usize, b: usize, local: Area, remote: Area) -> Verdict {
    let (mut l, mut r) = (rig.read(local), rig.read(remote));
    let mut tokens = Vec::new();
    let routes = rig.routes_for(a, b, &op(local, 0, remote, 0, 1));
    for (i, route) in routes.into_iter().enumerate() {
        for (k, direction) in [Direction::Write, Direction::Read].into_iter().enumerate() {
            let at = (2 * i + k) as u64 * 1_000 + 13;
            let one = op(local, at, remote, at + 1, 900);
            tokens.push(rig.post_on(a, b, route, direction, &[one])?);
            apply(direction, &one, &mut l, &mut r);
        }
    }
    rig.settle()?;
    tokens.iter().try_for_each(|token| rig.expect_completed(a, *token))?;
    rig.expect_bytes(local, &l, "local memory")?;
    rig.expect_bytes(remote, &r, "remote memory")
}

/// Removing a peer in the middle of traffic: each op ends once, and the peer is unknown.
pub fn removing_a_peer_flushes_its_ops(rig: &mut Rig<'_>) -> Verdict {
    let InFlight { a, b, local, remote } = in_flight(rig, true)?;
    let (peer, route) = (rig.peer(a, b), rig.routes(a, b)[0]);
    rig.remove_peer(a, b);
    rig.pump_until("ops in flight end after the removal", |rig| rig.ledger(a).open() == 0)?;
    let token = rig.token();
    let ops = [op(local, 0, remote, 0, 1)];
    let batch =
        Batch { peer, route, direction: Direction::Write, token, first: 0, ops: &ops, immediate: None };
    let answer = rig.on(a, |t, now| t.post(now, &batch));
    demand!(answer == Err(PostError::UnknownPeer), "a post to a removed peer was answered {answer:?}");
    let answer = rig.on(a, |t, now| t.send(now, peer, route, b"x"));
    demand!(answer == Err(PostError::UnknownPeer), "a message to a removed peer was answered {answer:?}");
    rig.pump_for(rig.limits().vigil)
}

/// The slot's next tenant works; the old one stays unknown.
pub fn a_removed_peer_can_be_added_again(rig: &mut Rig<'_>) -> Verdict {
    let InFlight { a, b, local, remote } = in_flight(rig, true)?;
    let (old, route) = (rig.peer(a, b), rig.routes(a, b)[0]);
    rig.remove_peer(a, b);
    rig.pump_until("ops in flight end after the removal", |rig| rig.ledger(a).open() == 0)?;
    rig.pump_for(rig.caps(a).linger)?;
    if let Err(e) = rig.add_peer(a, b, Generation(2)) {
        violated!("a live peer could not be added again: {e}");
    }
    rig.share(remote, a)?;
    let answer = rig.on(a, |t, now| t.send(now, old, route, b"x"));
    demand!(answer == Err(PostError::UnknownPeer), "a message to the old tenant was answered {answer:?}");
    works(rig, a, b, local, remote)
}

/// A peer's process vanishes in the middle of traffic: each op ends, and the caller can tell that it is gone.
pub fn a_vanished_peer_is_reported(rig: &mut Rig<'_>) -> Verdict {
    let InFlight { a, b, local, remote } = in_flight(rig, true)?;
    rig.drop_node(b);
    rig.settle_as_an_engine(a, b)?;
    // Told by an event, by a refusal, or by the failure of whatever comes next.
    let route = rig.routes_for(a, b, &op(local, 0, remote, 0, 1))[0];
    let give_up = rig.now() + rig.limits().patience;
    loop {
        if !rig.gone(a).is_empty() {
            return Ok(());
        }
        let token = rig.token();
        let one = op(local, 0, remote, 0, 1);
        match rig.try_post(a, b, route, Direction::Write, token, &[one])? {
            Err(PostError::UnknownPeer | PostError::RouteDown) => return Ok(()),
            Err(e) => violated!("a post to a vanished peer was answered {e:?}"),
            Ok(0) => demand!(rig.now() < give_up, "a vanished peer is just full, for ever"),
            Ok(_) => {
                rig.settle_as_an_engine(a, b)?;
                let completed = rig.expect_completed(a, token).is_ok();
                demand!(!completed, "a write to a vanished peer succeeded");
                return Ok(());
            }
        }
        rig.pump()?;
    }
}

/// The other peers of a node do not feel that one vanished.
pub fn a_vanished_peer_does_not_disturb_others(rig: &mut Rig<'_>) -> Verdict {
    let InFlight { a, b, local, .. } = in_flight(rig, true)?;
    let c = rig.node();
    rig.introduce(a, c)?;
    let other = rig.area(c, local.info.len as usize, 54)?;
    rig.share(other, a)?;
    rig.drop_node(b);
    rig.settle_as_an_engine(a, b)?;
    works(rig, a, c, local, other)
}
