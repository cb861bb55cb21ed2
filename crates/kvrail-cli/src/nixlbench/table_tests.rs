use super::*;

use crate::nixlbench::parse::{Given, Request, request};

fn settings(words: &[&str]) -> Settings {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let Ok(Request::Run(given)) = request(&words) else { panic!("{words:?}") };
    Settings::new(&given).unwrap()
}

fn line() -> Line {
    Line {
        block_bytes: 4096,
        batch: 1,
        bandwidth_gbps: 1.5,
        aggregate_gbps: 3.0,
        utilisation_percent: Some(3.0),
        latency_us: 2.71,
        prepare_us: Pair { mean: 14.25, p99: 20.0 },
        post_us: Pair { mean: 1.24, p99: 3.0 },
        transfer_us: Pair { mean: 1.06, p99: 2.0 },
    }
}

#[test]
fn the_columns_are_as_wide_as_nixlbench_makes_them() {
    assert_eq!(
        header(false).lines().next(),
        Some(
            "Block Size (B)      Batch Size     B/W (GB/Sec)   Avg Lat. (us)  Avg Prep (us)  P99 Prep (us)  Avg Post \
             (us)  P99 Post (us)  Avg Tx (us)    P99 Tx (us)    "
        )
    );
    assert_eq!(
        line().row(false),
        "4096                1              1.500000       2.7            14.2           20.0           1.2            \
         3.0            1.1            2.0            \n"
    );
    assert_eq!(
        line().row(true),
        "4096                1              1.500000       3.000000                 3.000000            2.7            \
         14.2           20.0           1.2            3.0            1.1            2.0            \n"
    );
    let unknown = Line { utilisation_percent: None, ..line() };
    assert!(unknown.row(true).contains(" 3.000000                 nan                 2.7 "));
}

#[test]
fn a_row_has_a_cell_below_every_label() {
    for wide in [false, true] {
        let head = header(wide);
        let (labels, rule) = head.split_once('\n').unwrap();
        assert_eq!(labels.len(), line().row(wide).trim_end_matches('\n').len());
        assert_eq!(rule.trim_end(), "-".repeat(160));
    }
}

#[test]
fn several_initiators_have_a_column_for_all_of_them() {
    let wide = |words: &[&str]| is_wide(&settings(words).plan);
    assert!(!wide(&[]));
    assert!(wide(&["--num_initiator_dev=2", "--num_target_dev=2"]));
    assert!(wide(&["--num_target_dev=2"]));
    assert!(!wide(&["--scheme=onetomany", "--num_target_dev=2"]));
    assert!(wide(&["--scheme=manytoone", "--num_initiator_dev=2"]));
    assert!(!wide(&["--mode=MG", "--num_initiator_dev=2", "--num_target_dev=2"]));
}

/// The text of a real nixlbench, with the same flags.
#[test]
fn the_configuration_is_echoed_as_nixlbench_does() {
    let words = include_str!("golden/flags.txt");
    let words: Vec<_> = words.split_whitespace().collect();
    assert_eq!(configuration(&settings(&words)), include_str!("golden/configuration.txt"));
}

#[test]
fn nobody_reads_a_password_in_the_configuration() {
    let endpoints = "--etcd_endpoints=https://root:geheim@a:2379,root:geheim@b:1,c:2";
    let shown = configuration(&settings(&[endpoints]));
    assert!(!shown.contains("geheim"), "{shown}");
    assert!(shown.contains(": https://a:2379,b:1,c:2\n"));
    assert_eq!(Given::default().names().count(), 0);
}

/// Rows of a real nixlbench, read and written again.
#[test]
fn the_rows_are_printed_as_nixlbench_does() {
    let captured = include_str!("golden/rows.txt");
    let mut printed = header(false);
    for row in captured.lines().skip(2) {
        let cells: Vec<f64> = row.split_whitespace().map(|cell| cell.parse().unwrap()).collect();
        let pair = |at: usize| Pair { mean: cells[at], p99: cells[at + 1] };
        let line = Line {
            block_bytes: cells[0] as u64,
            batch: cells[1] as u64,
            bandwidth_gbps: cells[2],
            aggregate_gbps: cells[2],
            utilisation_percent: None,
            latency_us: cells[3],
            prepare_us: pair(4),
            post_us: pair(6),
            transfer_us: pair(8),
        };
        printed += &line.row(false);
    }
    assert_eq!(printed, captured);
}
