//! Credit that a target can give back only when it is told: immediates that it lost with an endpoint.

mod common;

use std::time::Duration;

use common::{Stage, rails};
use kvrail_core::engine::EngineEvent;
use kvrail_core::id::{LocalRail, RemoteRail, Route};
use kvrail_core::transport::{Direction, Evidence, Transport};
use kvrail_sim::model::{MS, Model};

const BLOCK: u64 = 64;
const BLOCKS: u64 = 400;

#[test]
fn immediates_lost_with_the_targets_endpoint_do_not_hold_the_credit_for_ever() {
    let model = Model {
        evidence: Evidence::Counted,
        reset_replaces_endpoint: true,
        linger: 5 * MS,
        stall_timeout: 100 * MS,
        tail_ppm: 0,
        receives_max: 64,
        ..Model::default()
    };
    let spec = || rails(1, 100_000_000_000, 2 * BLOCK * BLOCKS);
    let mut stage = Stage::new(model, vec![spec(), spec()]);
    let (peer, back) = stage.acquaint(0, 1);
    stage.fabric.memory(0, |memory| {
        let base = memory.base();
        for block in 0..BLOCKS {
            memory.slice_mut(base + block * BLOCK, BLOCK).expect("its own").fill(block as u8 | 1);
        }
    });
    // Dense here and spread there, so that every block is an op.
    let plan = stage.plan(0, peer, BLOCKS, BLOCK, 2 * BLOCK);
    let token = stage.post(0, &plan, Direction::Write);

    // The target does not poll until its credit is used up; then its endpoint is replaced with all that is unread on it.
    let target = stage.agents[1].take();
    stage.until("the credit is used up", Duration::from_secs(1), |stage| {
        let progress = stage.agent(0).engine.progress_of(token).expect("it lives");
        progress.ops_done > 0 && progress.ops_in_flight == 0
    });
    stage.agents[1] = target;
    let now = stage.fabric.now();
    let route = Route { local: LocalRail(0), remote: RemoteRail(0) };
    // The simulator loses what is unread every other time.
    (0..16).for_each(|_| stage.agent(1).transport.reset(now, back, route));

    let (ended, event) = stage.ended(0, token);
    let EngineEvent::TransferEnded { result: Ok(report), .. } = event else { panic!("{event:?}") };
    assert!(report.ops_retried > 0, "nothing was lost, and nothing is shown");
    assert!(ended.since(now) < Duration::from_millis(500), "it took {:?}", ended.since(now));
    for block in 0..BLOCKS {
        let read = |node: usize, at: u64| {
            stage.fabric.memory(node, |m| m.slice(m.base() + at, BLOCK).expect("inside").to_vec())
        };
        assert!(read(0, block * BLOCK) == read(1, block * 2 * BLOCK), "block {block} is wrong");
    }
}
