use std::time::SystemTime;

use super::*;
use crate::carriage::tests::carriage;
use crate::document::tests::row;
use crate::fingerprint::{Nics, TopologySummary};
use crate::{Carriage, Environment, Figures, Fingerprint, RailRow, Sides};

const GBIT_100: u64 = 100_000_000_000;

fn environment(host: &str) -> Option<Environment> {
    Some(Environment {
        kvrail: "0.1.0".into(),
        profile: "release".into(),
        host: host.into(),
        kernel: "Linux 6.8".into(),
        cpu: "x".into(),
        cpus: 96,
        memory_bytes: 1 << 40,
    })
}

fn rail(name: &str, bytes_posted: u64) -> RailRow {
    RailRow {
        name: name.into(),
        rate_bps: GBIT_100,
        bytes_posted,
        ops_posted: 1,
        ops_done: 1,
        ops_failed: 0,
        downs: 0,
        down_s: 0.0,
        bytes_since_return: None,
    }
}

fn fast(engine: &str, side: &Carriage, gbps: f64) -> Row {
    let figures = Figures { bandwidth_gbps: gbps, ..Figures::default() };
    let transport = Some(side.transport.clone());
    let (block_bytes, batch) = (64 << 20, 1);
    Row { engine: engine.into(), transport, figures: Some(figures), block_bytes, batch, ..row() }
}

/// Two hosts, one row over `side` on both.
fn judged(side: Carriage, row: Row) -> Document {
    let mut document = Document::begin(SystemTime::UNIX_EPOCH, 1, 1);
    document.environment = Sides { initiator: environment("node-1"), target: environment("node-2") };
    let sides = Sides { initiator: Some(side.clone()), target: Some(side) };
    document.met(Used::new(&row.engine, sides));
    document.results.push(row);
    document.conclude(Ok(()));
    document
}

fn ids(document: &Document) -> Vec<&str> {
    document.results[0].verdicts.iter().map(|verdict| verdict.id.as_str()).collect()
}

#[test]
fn two_hundred_and_eighty_five_gigabytes_did_not_cross_one_nic() {
    // What a published plan calls proven: 285 GB/s on one EFA of P5, and 9 TB/s on its 32.
    for (rails, gbps, line_rate, times) in
        [(1, 285.0, "12.5", "22.8"), (4, 285.0, "50", "5.7"), (32, 9000.0, "400", "22.5")]
    {
        let side = carriage(rails, GBIT_100);
        let document = judged(side.clone(), fast("ucx", &side, gbps));
        assert_eq!(ids(&document), ["did-not-cross-the-network"]);
        let verdict = &document.results[0].verdicts[0];
        assert_eq!(verdict.severity, Severity::Bad);
        let says = format!("did not cross the network: it is {times} times the {line_rate} GB/s");
        assert!(verdict.text.contains(&says), "{}", verdict.text);
    }
    // What four rails really carried there.
    let side = carriage(4, GBIT_100);
    let document = judged(side.clone(), fast("nixl:LIBFABRIC", &side, 46.48));
    assert_eq!(ids(&document), [""; 0]);
    let ceiling = &document.results[0].ceilings[0];
    assert_eq!((ceiling.kind, ceiling.gbps), (CeilingKind::LineRate, 50.0));
    assert!((ceiling.percent.unwrap() - 92.96).abs() < 1e-9);
    assert!(ceiling.source.contains("4 of 100 Gb/s"), "{}", ceiling.source);
}

#[test]
fn a_figure_of_one_rail_says_that_striping_is_off_unless_the_counters_say_otherwise() {
    let side = carriage(32, GBIT_100);
    assert_eq!(ids(&judged(side.clone(), fast("nixl:LIBFABRIC", &side, 12.2))), ["striping-is-off"]);
    for (gbps, block_bytes) in [(12.2, 4096), (25.0, 64 << 20), (10.9, 64 << 20)] {
        let row = Row { block_bytes, ..fast("nixl:LIBFABRIC", &side, gbps) };
        assert_eq!(ids(&judged(side.clone(), row)), [""; 0], "{gbps} {block_bytes}");
    }
    let one = Row { rails: vec![rail("rdmap0s0", 990), rail("rdmap1s0", 10)], ..fast("kvrail", &side, 12.2) };
    let document = judged(side.clone(), one);
    assert!(
        document.results[0].verdicts[0].text.contains("rdmap0s0 carried 99%"),
        "{:?}",
        document.results[0].verdicts
    );
    let both =
        Row { rails: vec![rail("rdmap0s0", 500), rail("rdmap1s0", 500)], ..fast("kvrail", &side, 12.2) };
    assert_eq!(ids(&judged(side, both)), [""; 0]);
    let single = carriage(1, GBIT_100);
    assert_eq!(ids(&judged(single.clone(), fast("kvrail", &single, 12.2))), [""; 0]);
    let asked =
        Row { asked: crate::Asked { rails: Some(4), ..Default::default() }, ..fast("ucx", &single, 12.2) };
    assert_eq!(ids(&judged(single, asked)), ["fallback", "striping-is-off"]);
}

#[test]
fn the_rails_that_carried_bytes_set_the_ceiling_and_the_slower_side_bounds() {
    let side = carriage(32, GBIT_100);
    let row = Row { rails: vec![rail("a", 5), rail("b", 5), rail("c", 0)], ..fast("kvrail", &side, 20.0) };
    assert_eq!(judged(side.clone(), row.clone()).results[0].ceilings[0].gbps, 25.0);
    let mut document = judged(side, row);
    document.transports[0].target = Some(carriage(1, GBIT_100));
    document.judge();
    assert_eq!(document.results[0].ceilings[0].gbps, 12.5);
    assert_eq!(ids(&document), ["did-not-cross-the-network"]);
}

#[test]
fn pcie_bounds_where_it_is_narrower_than_the_wires() {
    let path = crate::Path { bps: 252_000_000_000, bound: "PCIe link of the bridge at 0000:10:01.0".into() };
    let side = Carriage { path: Some(path), ..carriage(4, GBIT_100) };
    let document = judged(side.clone(), fast("kvrail", &side, 30.0));
    let kinds: Vec<_> =
        document.results[0].ceilings.iter().map(|ceiling| (ceiling.kind, ceiling.gbps)).collect();
    assert_eq!(kinds, [(CeilingKind::Pcie, 31.5), (CeilingKind::LineRate, 50.0)]);
}

#[test]
fn an_engine_that_names_no_rails_is_held_against_all_of_the_hosts() {
    let side = Carriage { transport: "ucx".into(), ..Carriage::default() };
    let mut document = judged(side.clone(), fast("ucx", &side, 450.0));
    assert_eq!(document.results[0].ceilings, []);
    let nics = vec![Nics { kind: "efa".into(), rate_bps: GBIT_100, count: 32 }];
    let topology = Some(TopologySummary { numa_nodes: 2, nics, ..TopologySummary::default() });
    let print = Some(Fingerprint { topology, ..Fingerprint::default() });
    document.fingerprint = Sides { initiator: print.clone(), target: print };
    document.judge();
    assert_eq!(document.results[0].ceilings[0].gbps, 400.0);
    assert_eq!(ids(&document), ["did-not-cross-the-network"]);
    document.environment.target = environment("node-1");
    document.judge();
    assert_eq!(ids(&document), [""; 0], "on one host nothing has to cross a wire");
}

#[test]
fn what_was_asked_for_and_not_got_is_said() {
    let mut side = carriage(4, GBIT_100);
    side.libfabric.as_mut().unwrap().provider = "tcp".into();
    let asked = crate::Asked { provider: Some("EFA".into()), ..Default::default() };
    let document = judged(side.clone(), Row { asked, ..fast("nixl:LIBFABRIC", &side, 1.0) });
    assert!(document.results[0].verdicts[0].text.starts_with("provider EFA was asked for, and tcp was used"));

    let asked = crate::Asked { transport: Some("shm".into()), ..Default::default() };
    let row = Row { asked, ..fast("kvrail", &side, 1.0) };
    assert_eq!(ids(&judged(side.clone(), row.clone())), ["fallback"]);
    assert_eq!(ids(&judged(side.clone(), Row { engine: "ucx:rc,shm".into(), ..row })), [""; 0]);

    let mut document = judged(side.clone(), fast("nixl:LIBFABRIC", &side, 1.0));
    assert_eq!(ids(&document), [""; 0]);
    let nics = vec![Nics { kind: "efa".into(), rate_bps: GBIT_100, count: 4 }];
    let topology = Some(TopologySummary { nics, ..TopologySummary::default() });
    document.fingerprint.initiator = Some(Fingerprint { topology, ..Fingerprint::default() });
    document.judge();
    assert_eq!(ids(&document), ["fallback"]);
    assert!(document.results[0].verdicts[0].text.contains("4 efa NICs"));
    document.results[0].asked.transport = Some("ofi".into());
    document.results[0].asked.provider = Some("tcp".into());
    document.judge();
    assert_eq!(ids(&document), [""; 0], "who asks for TCP gets no complaint");
}

#[test]
fn plain_operations_of_the_same_provider_are_a_ceiling() {
    let side = carriage(4, GBIT_100);
    let mut document = judged(side.clone(), fast("kvrail", &side, 40.0));
    document.results.push(fast("libfabric", &side, 44.0));
    document.met(Used::new("libfabric", Sides { initiator: Some(side.clone()), target: Some(side) }));
    document.judge();
    let ceilings = &document.results[0].ceilings;
    assert_eq!((ceilings[0].kind, ceilings[0].gbps), (CeilingKind::RawFabric, 44.0));
    assert!(document.results[1].ceilings.iter().all(|ceiling| ceiling.kind != CeilingKind::RawFabric));
}

#[test]
fn bytes_that_nobody_saw_or_that_were_wrong_are_marked() {
    let side = carriage(4, GBIT_100);
    let unseen = Row { verify: Verify::Off, verified: false, ..fast("kvrail", &side, 40.0) };
    assert_eq!(ids(&judged(side.clone(), unseen)), ["unseen"]);
    let wrong = Row { verified: false, ..fast("kvrail", &side, 40.0) };
    assert_eq!(ids(&judged(side, wrong)), ["wrong-bytes"]);
}

#[test]
fn numbers_keep_three_digits() {
    let texts = [285.0, 12.5, 46.48, 0.85, 0.0841, 9000.0].map(number);
    assert_eq!(texts, ["285", "12.5", "46.5", "0.85", "0.0841", "9000"]);
}
