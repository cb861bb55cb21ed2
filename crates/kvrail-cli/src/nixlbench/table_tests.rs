use kvrail_report::nixlbench_table::{Line, header};

use super::*;

use crate::nixlbench::parse::{Given, Request, request};

fn settings(words: &[&str]) -> Settings {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let Ok(Request::Run(given)) = request(&words) else { panic!("{words:?}") };
    Settings::new(&given).unwrap()
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
        let pair = |at: usize| (cells[at], cells[at + 1]);
        let line = Line {
            block_bytes: cells[0] as u64,
            batch: cells[1] as u64,
            gbps: cells[2],
            aggregate: None,
            latency_us: cells[3],
            prepare_us: pair(4),
            post_us: pair(6),
            transfer_us: pair(8),
        };
        printed += &line.text();
    }
    assert_eq!(printed, captured);
}
