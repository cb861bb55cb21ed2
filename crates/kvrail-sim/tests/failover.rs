//! What a rail's death in the middle of a transfer costs, in virtual time: not more than twice that rail's share of the
//! transfer's time, counted from the moment at which it was noticed.

mod common;

use std::time::Duration;

use common::{Stage, rails};
use kvrail_core::engine::EngineEvent;
use kvrail_core::time::Time;
use kvrail_core::transport::{Direction, Evidence};
use kvrail_sim::model::{Fault, MS, Model, US};

const BLOCK: u64 = 2 << 10;
const BLOCKS: u64 = 4096;
/// Of all rails together: slow, so that the transfer takes as long as a real one of many GiB.
const RATE_BPS: u64 = 1_000_000_000;

fn model(evidence: Evidence) -> Model {
    Model {
        evidence,
        commit_max: if evidence == Evidence::Counted { 100 * US } else { 0 },
        linger: 20 * MS,
        stall_timeout: 30 * MS,
        tail_ppm: 0,
        // What was posted before the death was noticed fails when the NIC comes to it: within a few ms at these rates.
        ops_in_flight_max: 16,
        ..Model::default()
    }
}

/// What one transfer took, and when the first route was given up.
struct Run {
    took: Duration,
    noticed: Option<Time>,
}

fn run(count: usize, evidence: Evidence, direction: Direction, fault: Option<(Duration, Fault)>) -> Run {
    let spec = || rails(count, RATE_BPS / count as u64, 2 * BLOCKS * BLOCK);
    let mut stage = Stage::new(model(evidence), vec![spec(), spec()]);
    let (peer, _) = stage.acquaint(0, 1);
    let source = if direction == Direction::Write { 0 } else { 1 };
    stage.fabric.memory(source, |memory| {
        let base = memory.base();
        for block in 0..2 * BLOCKS {
            let byte = (block * 31 + (block >> 8)) as u8;
            memory.slice_mut(base + block * BLOCK, BLOCK).expect("its own").fill(byte);
        }
    });
    // Dense here and spread there, so that every block is an op.
    let plan = stage.plan(0, peer, BLOCKS, BLOCK, 2 * BLOCK);
    let warm = stage.post(0, &plan, direction);
    stage.ended(0, warm);
    let posted = stage.fabric.now();
    if let Some((after, fault)) = fault {
        stage.fabric.schedule_fault(posted + after, fault);
    }
    let token = stage.post(0, &plan, direction);
    let (ended, event) = stage.ended(0, token);
    let EngineEvent::TransferEnded { result: Ok(_), .. } = event else { panic!("{event:?}") };
    for block in 0..BLOCKS {
        let read = |node: usize, at: u64| {
            stage.fabric.memory(node, |m| m.slice(m.base() + at, BLOCK).expect("inside").to_vec())
        };
        assert!(read(0, block * BLOCK) == read(1, block * 2 * BLOCK), "block {block} is wrong");
    }
    let down =
        |(at, event): &(Time, EngineEvent)| matches!(event, EngineEvent::RouteDown { .. }).then_some(*at);
    let noticed = stage.agent(0).events.iter().find_map(down);
    Run { took: ended.since(posted), noticed: noticed.map(|at| Time(at.0 - posted.0)) }
}

/// Kills a rail at half time; panics unless the price is within the bound.
fn price(count: usize, (evidence, direction): (Evidence, Direction), calm: &Run, name: &str, fault: Fault) {
    let half = calm.took / 2;
    let hurt = run(count, evidence, direction, Some((half, fault)));
    let noticed = hurt.noticed.expect("somebody noticed").since(Time::ZERO);
    let unnoticed = noticed.saturating_sub(half);
    let cost = hurt.took.saturating_sub(calm.took);
    let share = calm.took / count as u32;
    println!(
        "{count:2} rails, {evidence} {direction}, {name}: {:?} undisturbed, {:?} with it, noticed after {unnoticed:?}, cost \
         {cost:?}, share {share:?}",
        calm.took, hurt.took
    );
    assert!(
        cost <= 2 * share + unnoticed,
        "{count} rails, {evidence} {direction}, {name}: {cost:?} more, noticed after {unnoticed:?}; a rail's share is {share:?}"
    );
}

fn all(count: usize) {
    for (evidence, direction) in [
        (Evidence::Counted, Direction::Write),
        (Evidence::Counted, Direction::Read),
        (Evidence::Delivered, Direction::Write),
    ] {
        let calm = run(count, evidence, direction, None);
        let price = |name, fault| price(count, (evidence, direction), &calm, name, fault);
        price("own rail dies", Fault::RailDown { node: 0, rail: 1 });
        price("peer's rail dies", Fault::RailDown { node: 1, rail: 1 });
        price("own rail falls silent", Fault::RailSilent { node: 0, rail: 1 });
    }
}

#[test]
fn the_death_of_one_of_4_rails_costs_at_most_twice_its_share() {
    all(4);
}

#[test]
fn the_death_of_one_of_32_rails_costs_at_most_twice_its_share() {
    all(32);
}
