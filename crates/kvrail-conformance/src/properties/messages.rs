//! Small messages, and what a peer that does not poll does to them.

use std::collections::HashMap;

use kvrail_core::transport::{Direction, PostError};

use super::{apply, op, scattered};
use crate::pattern::{self, Dice};
use crate::{Rig, Verdict, demand, violated};

/// Messages of one byte up to the longest arrive whole and once, in any order.
pub fn messages_of_every_size_arrive_intact(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let max = rig.caps(a).message_bytes_max;
    let mut sizes = vec![1, 1, 2, 3, 63, 64, 65, 255, 256, 1_000, 4_095, 4_096, 4_097, max - 1, max];
    let mut dice = Dice(21);
    sizes.extend((0..100).map(|_| 1 + dice.below(2_000) as usize));
    for (i, len) in sizes.iter().enumerate() {
        rig.send(a, b, &pattern::bytes(i as u64, *len))?;
        rig.send(b, a, &pattern::bytes(7_000 + i as u64, *len))?;
    }
    arrived(rig, a, b, (0..sizes.len()).map(|i| pattern::bytes(i as u64, sizes[i])).collect())?;
    arrived(rig, b, a, (0..sizes.len()).map(|i| pattern::bytes(7_000 + i as u64, sizes[i])).collect())
}

/// `sent` arrived at `to`, each message once; what is missing was reported as failed.
fn arrived(rig: &mut Rig<'_>, from: usize, to: usize, sent: Vec<Vec<u8>>) -> Verdict {
    let total = sent.len();
    rig.pump_until(&format!("{total} messages arrive or are reported as failed"), |rig| {
        rig.messages(to).len() + rig.sends_failed(from) >= total
    })?;
    rig.pump_for(rig.limits().vigil)?;
    let mut owed: HashMap<Vec<u8>, usize> = HashMap::new();
    sent.into_iter().for_each(|m| *owed.entry(m).or_default() += 1);
    for message in rig.messages(to) {
        match owed.get_mut(message) {
            Some(n) if *n > 0 => *n -= 1,
            _ => violated!("a message of {} bytes arrived that was not sent, or not so often", message.len()),
        }
    }
    let missing: usize = owed.values().sum();
    let failed = rig.sends_failed(from);
    demand!(missing <= failed, "{missing} of {total} messages are lost, {failed} reported as failed");
    Ok(())
}

/// One byte more than the limit is an error that takes nothing.
pub fn a_message_that_is_too_long_is_refused(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let max = rig.caps(a).message_bytes_max;
    rig.send(a, b, b"x")?;
    let answer = rig.try_send(a, b, &vec![0; max + 1]);
    demand!(answer == Err(PostError::TooLong), "a message of {} bytes was answered {answer:?}", max + 1);
    arrived(rig, a, b, vec![b"x".to_vec()])
}

/// A peer that is not polled: sending ends in "full" after a bounded number of bytes, and nothing accepted is lost.
pub fn messages_to_an_unpolled_peer_are_refused_or_arrive(rig: &mut Rig<'_>) -> Verdict {
    const BYTES_MAX: usize = 96 << 20;
    let (a, b) = rig.pair()?;
    rig.send(a, b, b"hello")?;
    rig.pump_until("the first message arrives", |rig| !rig.messages(b).is_empty())?;
    rig.set_polled(b, false);
    let len = rig.caps(a).message_bytes_max;
    let mut sent = vec![b"hello".to_vec()];
    let mut refused = 0;
    // "Full" counts only when it stays so: the fabric may have been busy.
    while refused < 300 {
        demand!(sent.len() * len < BYTES_MAX, "{} messages of {len} bytes were accepted unread", sent.len());
        let message = pattern::bytes(sent.len() as u64, len);
        match rig.try_send(a, b, &message) {
            Ok(true) => {
                sent.push(message);
                refused = 0;
            }
            Ok(false) | Err(PostError::RouteDown) => {
                refused += 1;
                rig.pump()?;
            }
            Err(e) => violated!("send refused a valid message: {e:?}"),
        }
    }
    rig.set_polled(b, true);
    arrived(rig, a, b, sent)
}

/// A peer that is not polled: what is accepted and unresolved never exceeds the queue.
pub fn ops_to_an_unpolled_peer_stay_bounded(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let max = rig.caps(a).ops_in_flight_max as usize;
    let (cell, count) = (512, u64::from(rig.limits().volume));
    let local = rig.area(a, (cell * count) as usize, 22)?;
    let remote = rig.area(b, (cell * count) as usize, 23)?;
    rig.share(remote, a)?;
    let mut l = rig.read(local);
    let mut r = rig.read(remote);
    let warm = rig.post(a, b, Direction::Write, &[op(local, 0, remote, 0, 1)])?;
    rig.settle()?;
    rig.expect_completed(a, warm)?;
    r[0] = l[0];
    rig.set_polled(b, false);
    let ops = scattered(&mut Dice(24), local, remote, cell, count);
    let route = rig.routes_for(a, b, &ops[0])[0];
    let token = rig.token();
    let (mut done, mut refused) = (0, 0);
    while done < ops.len() && refused < 300 {
        let taken = match rig.try_post(a, b, route, Direction::Write, token, &ops[done..])? {
            Ok(taken) => taken,
            Err(PostError::RouteDown) => 0,
            Err(e) => violated!("post refused a valid batch: {e:?}"),
        };
        done += taken;
        refused = if taken == 0 { refused + 1 } else { 0 };
        let open = rig.ledger(a).open();
        demand!(open <= max, "{open} ops are in flight on one rail, the limit is {max}");
        rig.pump()?;
    }
    rig.set_polled(b, true);
    rig.settle()?;
    rig.expect_completed(a, token)?;
    ops[..done].iter().for_each(|op| apply(Direction::Write, op, &mut l, &mut r));
    rig.expect_bytes(remote, &r, "remote memory")
}

/// Messages and ops in both directions at once: neither starves or mangles the other.
pub fn messages_pass_between_ops(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    let (cell, count) = (20_000, 160);
    let local = rig.area(a, (cell * count) as usize, 25)?;
    let remote = rig.area(b, (cell * count) as usize, 26)?;
    rig.share(remote, a)?;
    let (mut l, mut r) = (rig.read(local), rig.read(remote));
    let ops = scattered(&mut Dice(27), local, remote, cell, count);
    let (writes, reads) = ops.split_at(ops.len() / 2);
    let (mut forth, mut back) = (Vec::new(), Vec::new());
    for (i, (write, read)) in writes.iter().zip(reads).enumerate() {
        rig.post(a, b, Direction::Write, std::slice::from_ref(write))?;
        forth.push(pattern::bytes(i as u64, 1 + i * 37));
        rig.send(a, b, &forth[i])?;
        rig.post(a, b, Direction::Read, std::slice::from_ref(read))?;
        back.push(pattern::bytes(90_000 + i as u64, 1 + i * 53));
        rig.send(b, a, &back[i])?;
    }
    rig.settle()?;
    arrived(rig, a, b, forth)?;
    arrived(rig, b, a, back)?;
    writes.iter().for_each(|op| apply(Direction::Write, op, &mut l, &mut r));
    reads.iter().for_each(|op| apply(Direction::Read, op, &mut l, &mut r));
    rig.expect_bytes(local, &l, "local memory")?;
    rig.expect_bytes(remote, &r, "remote memory")
}
