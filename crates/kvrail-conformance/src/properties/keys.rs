//! Regions, generations, bounds: what the target owes to its own memory (KR-9, KR-11).

use kvrail_core::id::Generation;
use kvrail_core::transport::{Direction, Op, OpError, PeerError, RegionInfo};

use super::{apply, op, scattered};
use crate::ledger::Standing;
use crate::pattern::Dice;
use crate::{Area, Rig, Verdict, demand, violated};

/// A region that its owner deregistered, and one that never was.
pub fn an_unknown_region_is_refused(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let local = rig.area(a, 8_192, 31)?;
    let kept = rig.area(b, 8_192, 32)?;
    let ended = rig.area(b, 8_192, 33)?;
    rig.share(kept, a)?;
    rig.share(ended, a)?;
    rig.deregister(ended)?;
    let never = Area { info: RegionInfo { id: kvrail_core::id::RegionId(4_000), ..kept.info }, ..kept };
    for direction in [Direction::Write, Direction::Read] {
        refused(rig, (a, b), direction, op(local, 100, ended, 200, 300), &[local, kept, ended])?;
        refused(rig, (a, b), direction, op(local, 100, never, 200, 300), &[local, kept, ended])?;
    }
    Ok(())
}

/// The op ends as [`OpError::BadKey`], and no byte of the watched areas changes.
fn refused(
    rig: &mut Rig<'_>,
    (from, to): (usize, usize),
    direction: Direction,
    bad: Op,
    watched: &[Area],
) -> Verdict {
    let before: Vec<Vec<u8>> = watched.iter().map(|area| rig.read(*area)).collect();
    let token = rig.post(from, to, direction, &[bad])?;
    rig.settle()?;
    let standing = rig.ledger(from).of(token)[0];
    demand!(
        standing == Standing::Failed(OpError::BadKey),
        "a {direction} with a bad key ended as {standing:?}"
    );
    rig.pump_for(rig.limits().vigil)?;
    for (area, bytes) in watched.iter().zip(&before) {
        rig.expect_bytes(*area, bytes, &format!("memory after a refused {direction}"))?;
    }
    Ok(())
}

/// The slot has a new tenant; who still holds the old generation gets nothing.
pub fn a_stale_generation_is_refused(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let local = rig.area(a, 8_192, 34)?;
    let old = rig.area(b, 8_192, 35)?;
    rig.share(old, a)?;
    rig.deregister(old)?;
    let new = Area { info: RegionInfo { generation: Generation(2), ..old.info }, ..old };
    rig.register(new)?;
    for direction in [Direction::Write, Direction::Read] {
        refused(rig, (a, b), direction, op(local, 1, old, 1, 1_000), &[local, old])?;
    }
    Ok(())
}

/// An initiator that believes the region to be longer than it is.
pub fn a_range_beyond_the_region_is_refused(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let local = rig.area(a, 16_384, 36)?;
    // The region is the first half of an area, so that the second half can be watched.
    let whole = rig.area(b, 16_384, 37)?;
    let half =
        Area { info: RegionInfo { id: kvrail_core::id::RegionId(900), len: 8_192, ..whole.info }, ..whole };
    rig.register(half)?;
    let mut key = Vec::new();
    rig.on(b, |t, _| t.region_key(half.info.id, &mut key));
    let believed = RegionInfo { len: 16_384, ..half.info };
    let peer = rig.peer(a, b);
    match rig.on(a, |t, _| t.import_region(peer, &believed, &key)) {
        Ok(()) => {}
        // Found out even earlier.
        Err(PeerError::Malformed(_) | PeerError::Unreachable(_)) => return Ok(()),
        Err(e) => violated!("a region that is too long was answered {e:?}"),
    }
    for direction in [Direction::Write, Direction::Read] {
        for (offset, len) in [(8_192, 1), (8_191, 2), (0, 8_193), (16_000, 384), (u64::MAX - 10, 5)] {
            refused(rig, (a, b), direction, op(local, 9, half, offset, len), &[local, whole])?;
        }
    }
    Ok(())
}

/// Good and bad ops in one batch: the good ones land, the bad ones fail, each by itself.
pub fn refused_ops_do_not_disturb_their_neighbours(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let (cell, count) = (700, 240);
    let local = rig.area(a, (cell * count) as usize, 38)?;
    let remote = rig.area(b, (cell * count) as usize, 39)?;
    let ended = rig.area(b, (cell * count) as usize, 40)?;
    rig.share(remote, a)?;
    rig.share(ended, a)?;
    rig.deregister(ended)?;
    let guard = rig.read(ended);
    for direction in [Direction::Write, Direction::Read] {
        let (mut l, mut r) = (rig.read(local), rig.read(remote));
        let mut dice = Dice(41);
        let mut ops = scattered(&mut dice, local, remote, cell, count);
        let bad: Vec<bool> = ops.iter().map(|_| dice.below(3) == 0).collect();
        for (op, bad) in ops.iter_mut().zip(&bad) {
            if *bad {
                op.remote_region = ended.info.id;
            } else {
                apply(direction, op, &mut l, &mut r);
            }
        }
        let token = rig.post(a, b, direction, &ops)?;
        rig.settle()?;
        for (i, (standing, bad)) in rig.ledger(a).of(token).iter().zip(&bad).enumerate() {
            let right = if *bad { Standing::Failed(OpError::BadKey) } else { Standing::Completed };
            demand!(*standing == right, "{direction} op {i} ended as {standing:?}, not {right:?}");
        }
        rig.expect_bytes(local, &l, "local memory")?;
        rig.expect_bytes(remote, &r, "remote memory")?;
        rig.expect_bytes(ended, &guard, "deregistered memory")?;
    }
    Ok(())
}

/// Deregister, register anew, import anew: works.
pub fn a_new_registration_works_under_its_new_generation(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let local = rig.area(a, 8_192, 42)?;
    let mut remote = rig.area(b, 8_192, 43)?;
    for generation in 1..6 {
        rig.share(remote, a)?;
        let (mut l, mut r) = (rig.read(local), rig.read(remote));
        for direction in [Direction::Write, Direction::Read] {
            let one = op(local, 5 * generation, remote, 1_000 + 7 * generation, 2_000);
            let token = rig.post(a, b, direction, &[one])?;
            rig.settle()?;
            rig.expect_completed(a, token)?;
            apply(direction, &one, &mut l, &mut r);
        }
        rig.expect_bytes(local, &l, "local memory")?;
        rig.expect_bytes(remote, &r, "remote memory")?;
        rig.deregister(remote)?;
        remote.info.generation = Generation(1 + generation as u32);
        rig.register(remote)?;
    }
    Ok(())
}

/// The owner deregisters while peers write: from that moment no byte changes (KR-7).
pub fn deregistered_memory_is_never_touched(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let (cell, count) = (8_192, u64::from(rig.limits().volume / 4));
    let local = rig.area(a, (cell * count) as usize, 44)?;
    let remote = rig.area(b, (cell * count) as usize, 45)?;
    rig.share(remote, a)?;
    let ops = scattered(&mut Dice(46), local, remote, cell, count);
    let warm = rig.post(a, b, Direction::Write, &ops[..1])?;
    rig.settle()?;
    rig.expect_completed(a, warm)?;
    let route = rig.routes_for(a, b, &ops[0])[0];
    let token = rig.token();
    let taken = rig.try_post(a, b, route, Direction::Write, token, &ops[1..ops.len() / 2])?;
    demand!(matches!(taken, Ok(n) if n > 0), "a warm route took nothing: {taken:?}");
    // Some are on their way, some not even started.
    rig.poll(a)?;
    rig.poll(b)?;
    rig.deregister(remote)?;
    let frozen = rig.read(remote);
    rig.post(a, b, Direction::Write, &ops[ops.len() / 2..])?;
    rig.pump_until("every op of the ended region is resolved", |rig| rig.ledger(a).open() == 0)?;
    rig.pump_for(rig.limits().vigil)?;
    rig.expect_bytes(remote, &frozen, "memory after its deregistration")
}

/// After deregistration the old key reads nothing: what the owner puts there since stays its own.
pub fn deregistered_memory_is_not_read_through_a_stale_key(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let local = rig.area(a, 1 << 16, 47)?;
    let remote = rig.area(b, 1 << 16, 48)?;
    rig.share(remote, a)?;
    let warm = rig.post(a, b, Direction::Read, &[op(local, 0, remote, 0, 1)])?;
    rig.settle()?;
    rig.expect_completed(a, warm)?;
    rig.deregister(remote)?;
    let secret = vec![0xee; 1 << 16];
    rig.write(remote, 0, &secret);
    let before = rig.read(local);
    let token = rig.post(a, b, Direction::Read, &[op(local, 50, remote, 60, 60_000)])?;
    rig.settle()?;
    demand!(rig.ledger(a).of(token)[0] != Standing::Completed, "a read through a stale key succeeded");
    rig.expect_bytes(local, &before, "local memory after a refused read")
}
