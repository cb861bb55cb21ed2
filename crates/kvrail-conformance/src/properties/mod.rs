//! The promises, one function each. A name is the sentence that holds.

mod data;
mod keys;
mod lifecycle;
mod messages;
mod quiet;
mod rails;

pub use data::*;
pub use keys::*;
pub use lifecycle::*;
pub use messages::*;
pub use quiet::*;
pub use rails::*;

use kvrail_core::transport::{Direction, Op};

use crate::Area;
use crate::pattern::Dice;

/// An op between two areas.
fn op(local: Area, local_offset: u64, remote: Area, remote_offset: u64, len: u32) -> Op {
    Op { local_offset, remote_offset, local_region: local.info.id, remote_region: remote.info.id, len }
}

/// What an op does, done to the model: `source` and `target` are whole areas.
fn apply(direction: Direction, op: &Op, local: &mut [u8], remote: &mut [u8]) {
    let l = op.local_offset as usize..op.local_offset as usize + op.len as usize;
    let r = op.remote_offset as usize..op.remote_offset as usize + op.len as usize;
    match direction {
        Direction::Read => local[l].copy_from_slice(&remote[r]),
        Direction::Write => remote[r].copy_from_slice(&local[l]),
    }
}

/// Disjoint blocks of unequal length in both areas, in random order: op `i` uses its own cell on each side, at a
/// random place within it, so that every op has guard bytes around it.
fn scattered(dice: &mut Dice, local: Area, remote: Area, cell: u64, count: u64) -> Vec<Op> {
    let mut cells: Vec<u64> = (0..count).collect();
    for i in (1..cells.len()).rev() {
        cells.swap(i, dice.below(i as u64 + 1) as usize);
    }
    (0..count)
        .map(|i| {
            let len = 1 + dice.below(cell - 2);
            let l = i * cell + 1 + dice.below(cell - 1 - len);
            let r = cells[i as usize] * cell + 1 + dice.below(cell - 1 - len);
            op(local, l, remote, r, len as u32)
        })
        .collect()
}
