//! Bytes: the right ones, in the right place, and nothing beside them.

use kvrail_core::transport::{Direction, Evidence, Op};

use super::{apply, op, scattered};
use crate::pattern::Dice;
use crate::{Rig, Verdict, demand};

/// A few reads at odd offsets; the rest of both areas stays as it was.
pub fn reads_move_exactly_the_given_bytes(rig: &mut Rig<'_>) -> Verdict {
    exact(rig, Direction::Read)
}

/// A few writes at odd offsets; the rest of both areas stays as it was.
pub fn writes_move_exactly_the_given_bytes(rig: &mut Rig<'_>) -> Verdict {
    exact(rig, Direction::Write)
}

fn exact(rig: &mut Rig<'_>, direction: Direction) -> Verdict {
    let (a, b) = rig.pair()?;
    let local = rig.area(a, 65_536, 1)?;
    let remote = rig.area(b, 49_152, 2)?;
    rig.share(remote, a)?;
    let (mut l, mut r) = (rig.read(local), rig.read(remote));
    // One at a time, then all in one batch: a transport may treat a lone op and a batch differently.
    let ops = [
        op(local, 17, remote, 4_099, 1),
        op(local, 101, remote, 9_001, 511),
        op(local, 8_192, remote, 12_288, 4_096),
        op(local, 16_385, remote, 16_391, 4_097),
        op(local, 65_535, remote, 0, 1),
        op(local, 0, remote, 49_151, 1),
        op(local, 40_000, remote, 30_000, 12_345),
    ];
    for one in &ops[..5] {
        let token = rig.post(a, b, direction, std::slice::from_ref(one))?;
        rig.settle()?;
        rig.expect_completed(a, token)?;
        apply(direction, one, &mut l, &mut r);
    }
    rig.expect_bytes(local, &l, "local memory after single ops")?;
    rig.expect_bytes(remote, &r, "remote memory after single ops")?;
    let token = rig.post(a, b, direction, &ops[5..])?;
    rig.settle()?;
    rig.expect_completed(a, token)?;
    ops[5..].iter().for_each(|op| apply(direction, op, &mut l, &mut r));
    rig.expect_bytes(local, &l, "local memory after a batch")?;
    rig.expect_bytes(remote, &r, "remote memory after a batch")
}

/// An op of exactly the largest length, both ways.
pub fn the_largest_op_moves_whole(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let len = rig.caps(a).op_bytes_max.min(8 << 20);
    let local = rig.area(a, len as usize + 64, 3)?;
    let remote = rig.area(b, len as usize + 64, 4)?;
    rig.share(remote, a)?;
    for (direction, at) in [(Direction::Write, 7), (Direction::Read, 33)] {
        let (mut l, mut r) = (rig.read(local), rig.read(remote));
        let one = op(local, 3, remote, at, len);
        let token = rig.post(a, b, direction, &[one])?;
        rig.settle()?;
        rig.expect_completed(a, token)?;
        apply(direction, &one, &mut l, &mut r);
        rig.expect_bytes(local, &l, "local memory")?;
        rig.expect_bytes(remote, &r, "remote memory")?;
    }
    Ok(())
}

/// Many writes of random lengths at random places, each with guard bytes around it.
pub fn many_writes_at_random_offsets_land_in_place(rig: &mut Rig<'_>) -> Verdict {
    many(rig, Direction::Write, 5)
}

/// Many reads of random lengths at random places, each with guard bytes around it.
pub fn many_reads_at_random_offsets_land_in_place(rig: &mut Rig<'_>) -> Verdict {
    many(rig, Direction::Read, 6)
}

fn many(rig: &mut Rig<'_>, direction: Direction, seed: u64) -> Verdict {
    let (a, b) = rig.pair()?;
    let (cell, count) = (1_500, u64::from(rig.limits().volume));
    let local = rig.area(a, (cell * count) as usize, seed)?;
    let remote = rig.area(b, (cell * count) as usize, seed + 100)?;
    rig.share(remote, a)?;
    let (mut l, mut r) = (rig.read(local), rig.read(remote));
    let mut dice = Dice(seed);
    let ops = scattered(&mut dice, local, remote, cell, count);
    let mut rest = &ops[..];
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(rest.len().min(1 + dice.below(40) as usize));
        tokens.push(rig.post(a, b, direction, batch)?);
        rest = later;
    }
    rig.settle()?;
    tokens.iter().try_for_each(|token| rig.expect_completed(a, *token))?;
    ops.iter().for_each(|op| apply(direction, op, &mut l, &mut r));
    rig.expect_bytes(local, &l, "local memory")?;
    rig.expect_bytes(remote, &r, "remote memory")
}

/// One batch of more ops than the queue has room for is taken in prefixes.
pub fn a_batch_larger_than_the_queue_resumes(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let count = u64::from(rig.caps(a).ops_in_flight_max.min(8_192)) * 2 + 77;
    let cell = 96;
    let local = rig.area(a, (cell * count) as usize, 7)?;
    let remote = rig.area(b, (cell * count) as usize, 8)?;
    rig.share(remote, a)?;
    for direction in [Direction::Write, Direction::Read] {
        let (mut l, mut r) = (rig.read(local), rig.read(remote));
        let ops = scattered(&mut Dice(9), local, remote, cell, count);
        let token = rig.post(a, b, direction, &ops)?;
        rig.settle()?;
        rig.expect_completed(a, token)?;
        ops.iter().for_each(|op| apply(direction, op, &mut l, &mut r));
        rig.expect_bytes(local, &l, "local memory")?;
        rig.expect_bytes(remote, &r, "remote memory")?;
    }
    Ok(())
}

/// Each pairing of a local rail with a remote one can be used.
pub fn every_route_carries_ops(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let local = rig.area(a, 1 << 16, 10)?;
    let remote = rig.area(b, 1 << 16, 11)?;
    rig.share(remote, a)?;
    let (mut l, mut r) = (rig.read(local), rig.read(remote));
    let routes = rig.routes_for(a, b, &op(local, 0, remote, 0, 1));
    let mut posted = Vec::new();
    for (i, route) in routes.iter().enumerate() {
        for (k, direction) in [Direction::Write, Direction::Read].into_iter().enumerate() {
            let at = (i * 2 + k) as u64 * 500 + 11;
            let one = op(local, at, remote, at + 3, 333);
            posted.push(rig.post_on(a, b, *route, direction, &[one])?);
            apply(direction, &one, &mut l, &mut r);
        }
    }
    rig.settle()?;
    posted.iter().try_for_each(|token| rig.expect_completed(a, *token))?;
    rig.expect_bytes(local, &l, "local memory")?;
    rig.expect_bytes(remote, &r, "remote memory")
}

/// Both nodes read and write each other's memory at the same time.
pub fn both_directions_run_at_once(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    crossfire(rig, &[(a, b), (b, a)])
}

/// Three nodes, every one with every other, at the same time; nothing lands with the wrong one.
pub fn three_nodes_do_not_mix(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let c = rig.node();
    rig.introduce(a, c)?;
    rig.introduce(b, c)?;
    crossfire(rig, &[(a, b), (b, a), (a, c), (c, a), (b, c), (c, b)])
}

/// Every pair `(from, to)` writes and reads between areas of its own, batches in turns.
fn crossfire(rig: &mut Rig<'_>, pairs: &[(usize, usize)]) -> Verdict {
    let (cell, count) = (3_000, u64::from(rig.limits().volume / 4).max(40));
    let mut flows = Vec::new();
    for (i, (from, to)) in pairs.iter().enumerate() {
        for direction in [Direction::Write, Direction::Read] {
            let seed = 1_000 + i as u64 * 10 + direction as u64;
            let local = rig.area(*from, (cell * count) as usize, seed)?;
            let remote = rig.area(*to, (cell * count) as usize, seed + 5)?;
            rig.share(remote, *from)?;
            let ops = scattered(&mut Dice(seed), local, remote, cell, count);
            flows.push((*from, *to, direction, local, remote, ops));
        }
    }
    let mut tokens = Vec::new();
    let step = 23;
    for start in (0..count as usize).step_by(step) {
        for (from, to, direction, _, _, ops) in &flows {
            let batch: &[Op] = &ops[start..ops.len().min(start + step)];
            tokens.push((*from, rig.post(*from, *to, *direction, batch)?));
        }
    }
    rig.settle()?;
    tokens.iter().try_for_each(|(from, token)| rig.expect_completed(*from, *token))?;
    for (i, (from, to, direction, local, remote, ops)) in flows.iter().enumerate() {
        let seed = 1_000 + (i / 2) as u64 * 10 + *direction as u64;
        let mut l = crate::pattern::bytes(seed, local.info.len as usize);
        let mut r = crate::pattern::bytes(seed + 5, remote.info.len as usize);
        ops.iter().for_each(|op| apply(*direction, op, &mut l, &mut r));
        rig.expect_bytes(*local, &l, &format!("{direction} {from} to {to}, local memory"))?;
        rig.expect_bytes(*remote, &r, &format!("{direction} {from} to {to}, remote memory"))?;
    }
    Ok(())
}

/// Where evidence is counted: each write gives one immediate, and its bytes are visible when that is seen (KR-2).
pub fn immediates_follow_their_bytes(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    if rig.caps(a).evidence != Evidence::Counted {
        return Ok(());
    }
    let (cell, count) = (2_000, u64::from(rig.limits().volume / 8).max(32));
    let local = rig.area(a, (cell * count) as usize, 12)?;
    let remote = rig.area(b, (cell * count) as usize, 13)?;
    rig.share(remote, a)?;
    let source = rig.read(local);
    let ops = scattered(&mut Dice(14), local, remote, cell, count);
    // One token per op: the rig uses the token's slot as the immediate.
    let mut wanted = std::collections::HashMap::new();
    for one in &ops {
        let token = rig.post(a, b, Direction::Write, std::slice::from_ref(one))?;
        wanted.insert(token.slot, *one);
        check_arrivals(rig, b, remote, &source, &mut wanted)?;
    }
    let give_up = rig.now() + rig.limits().patience;
    while !wanted.is_empty() {
        demand!(rig.now() < give_up, "{} immediates never arrived", wanted.len());
        rig.poll(a)?;
        check_arrivals(rig, b, remote, &source, &mut wanted)?;
        rig.pump()?;
    }
    rig.settle()?;
    rig.pump_for(rig.limits().vigil)?;
    let (seen, sent) = (rig.immediates(b).len(), ops.len());
    demand!(seen == sent, "{sent} writes gave {seen} immediates");
    Ok(())
}

fn check_arrivals(
    rig: &mut Rig<'_>,
    target: usize,
    area: crate::Area,
    source: &[u8],
    wanted: &mut std::collections::HashMap<u32, Op>,
) -> Verdict {
    rig.poll(target)?;
    if rig.immediates(target).iter().all(|value| !wanted.contains_key(value)) {
        return Ok(());
    }
    let seen = rig.read(area);
    for value in rig.immediates(target) {
        let Some(op) = wanted.remove(value) else { continue };
        let there = &seen[op.remote_offset as usize..][..op.len as usize];
        let sent = &source[op.local_offset as usize..][..op.len as usize];
        demand!(there == sent, "immediate {value} came before the bytes of its write");
    }
    Ok(())
}
