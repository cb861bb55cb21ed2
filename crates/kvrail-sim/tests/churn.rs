//! One engine for a long time: more transfers than 16 bits count, and more peers than one byte. No id wraps into another's,
//! and what is over leaves nothing behind.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Stage, rails};
use kvrail_core::engine::{EngineEvent, Tables};
use kvrail_core::id::{PeerId, TransferId};
use kvrail_core::plan::Plan;
use kvrail_core::transport::{Direction, Evidence};
use kvrail_sim::model::{MS, Model};

const BLOCK: u64 = 64;
const BLOCKS: u64 = 64;

fn stage(evidence: Evidence, peers: usize) -> Stage {
    let model = Model {
        evidence,
        tail_ppm: 0,
        linger: MS,
        stall_timeout: 10 * MS,
        ops_in_flight_max: 256,
        receives_max: 1024,
        ..Model::default()
    };
    let spec = |count| rails(count, 100_000_000_000, 2 * BLOCK * BLOCKS);
    let nodes = std::iter::once(spec(4)).chain((0..peers).map(|i| spec(1 + i % 3)));
    Stage::new(model, nodes.collect())
}

/// Plans of one block each.
fn plans(stage: &mut Stage, peer: PeerId) -> Vec<Arc<Plan>> {
    (0..BLOCKS).map(|_| stage.plan(0, peer, 1, BLOCK, BLOCK)).collect()
}

/// Posts each plan, awaits all ends, and returns the ids.
fn round(stage: &mut Stage, plans: &[Arc<Plan>], direction: Direction) -> Vec<TransferId> {
    for plan in plans {
        stage.post(0, plan, direction);
    }
    let mut ids = Vec::new();
    stage.until("a round of transfers ends", Duration::from_secs(5), |stage| {
        for (_, event) in stage.agent(0).events.drain(..) {
            if let EngineEvent::TransferEnded { id, result, .. } = event {
                assert!(result.is_ok(), "{id}: {result:?}");
                ids.push(id);
            }
        }
        ids.len() == plans.len()
    });
    ids
}

#[test]
fn more_transfers_than_16_bits_count_each_end_once_and_leave_nothing_behind() {
    let mut stage = stage(Evidence::Counted, 1);
    let (peer, _) = stage.acquaint(0, 1);
    let plans = plans(&mut stage, peer);
    let mut last = TransferId(0);
    let mut early = Tables::default();
    let rounds = (1 << 16) / BLOCKS + 40;
    for turn in 0..rounds {
        let mut ids = round(&mut stage, &plans, Direction::Write);
        ids.sort_unstable();
        assert!(ids[0] > last && ids.windows(2).all(|w| w[0] < w[1]), "an id was used again");
        last = ids[ids.len() - 1];
        if turn == 20 {
            early = stage.agent(0).engine.tables();
        }
    }
    assert!(last.0 > 1 << 16);
    assert_eq!(stage.agent(0).engine.tables(), early, "tables grow with what is over");
    assert!(!stage.fabric.violated(), "{:?}", stage.fabric.violations());
}

#[test]
fn far_more_than_256_peers_come_and_go_and_leave_nothing_behind() {
    let count = 8;
    let mut stage = stage(Evidence::Counted, count);
    let mut seen = BTreeSet::new();
    let mut early = Tables::default();
    // The last turn ends as the 20th did: `(turn + node) % 3` is the same.
    for turn in 0..99 {
        let mut ids = Vec::new();
        for node in 1..=count {
            let (peer, _) = stage.acquaint(0, node);
            assert!(seen.insert(peer), "{peer} is another peer's name");
            let plan = stage.plan(0, peer, 1, BLOCK, BLOCK);
            round(&mut stage, &[plan], if turn % 2 == 0 { Direction::Write } else { Direction::Read });
            ids.push(peer);
        }
        for (node, peer) in (1..=count).zip(ids) {
            let now = stage.fabric.now();
            match (turn + node) % 3 {
                // It leaves, it is killed and found out, or it is given up here.
                0 => stage.agent(node).engine.close(now),
                1 => {}
                _ => {
                    let agent = stage.agent(0);
                    agent.engine.remove_peer(now, &mut agent.transport, peer);
                }
            }
        }
        let at = stage.fabric.now() + Duration::from_millis(5);
        stage.until("goodbyes are said", Duration::from_secs(1), |stage| stage.fabric.now() >= at);
        (1..=count).for_each(|node| stage.restart(node));
        if turn == 20 {
            early = stage.agent(0).engine.tables();
        }
    }
    assert!(seen.len() > 3 * 256);
    let now = stage.agent(0).engine.tables();
    // The slots that were granted rest for a while, up to a limit, as do the incarnations that are over.
    assert!(now.retired <= 1024 && now.slots <= 1024 + 16 * (count + 1), "{now:?}");
    let bounded = Tables { retired: early.retired, slots: early.slots, ..now };
    assert_eq!(bounded, early, "tables grow with what is over");
    assert!(!stage.fabric.violated(), "{:?}", stage.fabric.violations());
}
