use super::*;
use crate::document::tests::{document, row};
use crate::{Asked, Failure, Figures, Fingerprint, Turn};

/// A run of one row with turns around a middle.
fn run(turns: &[f64]) -> Document {
    let mut document = document();
    document.results = vec![with(turns, row())];
    document
}

fn with(turns: &[f64], row: Row) -> Row {
    let turns: Vec<Turn> =
        turns.iter().map(|&gbps| Turn { bandwidth_gbps: gbps, latency_p50_us: 1.0 }).collect();
    let figures = Figures { turns, ..row.figures.clone().unwrap() };
    Row { figures: Some(figures), ..row }
}

fn around(middle: f64, noise: f64, count: usize) -> Vec<f64> {
    (0..count).map(|i| middle * (1.0 + noise * (i as f64 / (count - 1).max(1) as f64 * 2.0 - 1.0))).collect()
}

fn standing(a: &[f64], b: &[f64]) -> (Standing, u8) {
    let comparison = compare(&[run(a)], &[run(b)], Limits::default());
    (comparison.pairs[0].standing, comparison.exit_code())
}

#[test]
fn a_difference_counts_beyond_the_floor_and_beyond_the_noise() {
    let calm = |middle| around(middle, 0.01, 9);
    assert_eq!(standing(&calm(10.0), &calm(10.0)), (Standing::Same, 0));
    assert_eq!(standing(&calm(10.0), &calm(9.6)), (Standing::Same, 0), "below the floor");
    assert_eq!(standing(&calm(10.0), &calm(9.0)), (Standing::Regressed, 1));
    assert_eq!(standing(&calm(10.0), &calm(11.0)), (Standing::Improved, 0));
    let noisy = |middle| around(middle, 0.15, 9);
    assert_eq!(
        standing(&noisy(10.0), &noisy(9.0)),
        (Standing::CannotTell, 2),
        "a tenth within a quarter of noise"
    );
    assert_eq!(standing(&noisy(10.0), &noisy(5.0)), (Standing::Regressed, 1), "half is no noise");
}

#[test]
fn an_outlier_is_no_regression_and_a_few_turns_tell_little() {
    let mut turns = around(10.0, 0.01, 9);
    turns[0] = 0.1;
    assert_eq!(standing(&around(10.0, 0.01, 9), &turns), (Standing::Same, 0));
    assert_eq!(standing(&[10.0], &[10.1]), (Standing::Same, 0));
    assert_eq!(standing(&[10.0], &[5.0]), (Standing::CannotTell, 2));
    assert_eq!(standing(&[], &[]), (Standing::Same, 0), "documents without turns have their medians");
}

#[test]
fn the_rank_test_has_to_agree() {
    // Medians differ by a tenth and most turns agree with each other, but the ranks overlap.
    let a = [10.0, 10.0, 10.0, 8.0, 8.0];
    let b = [9.0, 9.0, 9.0, 12.0, 12.0];
    let (standing, _) = standing(&a, &b);
    assert_eq!(standing, Standing::CannotTell);
}

#[test]
fn rows_are_matched_by_what_they_are() {
    let mut a = run(&[10.0; 5]);
    let mut b = run(&[10.0; 5]);
    a.results.push(with(&[5.0; 5], Row { block_bytes: 4096, ..row() }));
    b.results.push(with(&[7.0; 5], Row { threads: 2, ..row() }));
    b.results.push(with(&[7.0; 5], Row { transport: Some("tcp".into()), ..row() }));
    let comparison = compare(&[a], &[b], Limits::default());
    let standings: Vec<Standing> = comparison.pairs.iter().map(|pair| pair.standing).collect();
    assert_eq!(standings, [Standing::Same, Standing::OnlyInA, Standing::OnlyInB, Standing::OnlyInB]);
    assert_eq!(comparison.exit_code(), 0);
    assert_eq!(comparison.summary(), "1 same, 1 only in A, 2 only in B");
    assert!(comparison.text().contains("write, 100 x 4 KiB scattered"), "{}", comparison.text());
}

#[test]
fn what_worked_and_fails_now_is_broken_whatever_it_ran_on() {
    let a = run(&[10.0; 5]);
    let mut b = run(&[10.0; 5]);
    b.results[0] = Row { figures: None, transport: None, failure: Some(Failure::engine("it died")), ..row() };
    let broken = compare(std::slice::from_ref(&a), std::slice::from_ref(&b), Limits::default());
    assert_eq!((broken.pairs.len(), broken.pairs[0].standing, broken.exit_code()), (1, Standing::Broken, 1));
    assert_eq!(broken.pairs[0].why.as_deref(), Some("it died"));
    let mended = compare(std::slice::from_ref(&b), std::slice::from_ref(&a), Limits::default());
    assert_eq!((mended.pairs[0].standing, mended.exit_code()), (Standing::Mended, 0));
    assert_eq!(compare(std::slice::from_ref(&b), std::slice::from_ref(&b), Limits::default()).exit_code(), 2);
    b.results[0].asked = Asked { transport: Some("tcp".into()), ..Asked::default() };
    assert_eq!(
        compare(std::slice::from_ref(&a), &[b], Limits::default()).pairs.len(),
        2,
        "another thing was asked for"
    );
    let mut wrong = a.clone();
    wrong.results[0].verified = false;
    assert_eq!(compare(&[a], &[wrong], Limits::default()).pairs[0].standing, Standing::Broken);
    assert_eq!(compare(&[], &[], Limits::default()).exit_code(), 2);
}

#[test]
fn a_run_of_several_documents_puts_their_turns_together() {
    let comparison = compare(&[run(&[10.0; 3]), run(&[10.0; 3])], &[run(&[8.0; 6])], Limits::default());
    assert_eq!(comparison.pairs.len(), 1);
    assert!(comparison.pairs[0].chance.unwrap() < 0.01);
    assert_eq!(comparison.exit_code(), 1);
}

#[test]
fn hosts_that_differ_are_said() {
    let mut a = run(&[10.0; 5]);
    a.fingerprint.initiator = Some(Fingerprint::default());
    let mut b = a.clone();
    let print = b.fingerprint.initiator.as_mut().unwrap();
    print.versions.insert("kernel".into(), "6.8".into());
    print.variables.insert("UCX_TLS".into(), "tcp".into());
    let said = compare(&[a], &[b], Limits::default());
    assert_eq!(
        said.differences,
        ["initiator: kernel: none in A, 6.8 in B", "initiator: UCX_TLS: none in A, tcp in B"]
    );
    assert!(said.json().starts_with("{\"schema\":\"kvrail.compare.v1\""));
}
