use super::html;
use crate::document::tests::{document, row};
use crate::{
    Carriage, Distribution, Document, Failure, Figures, Op, RailRow, Ratio, Row, Severity, Sides, Turn, Used,
    Verdict,
};

const ENGINES: [&str; 4] = ["kvrail", "nixl:UCX", "ucx", "memcpy"];

fn measured(case: u32, engine: &str, block_bytes: u64, gbps: f64) -> Row {
    let mut row = Row { case, engine: engine.into(), block_bytes, batch: 1, ..row() };
    let histogram_ns = (0..200).map(|i| (1_000 + i * 37, 400 / (i + 1) + 1)).collect();
    let latency = Distribution { p50: 3.0, p99: 9.0, histogram_ns, ..Distribution::default() };
    let turns = (0..5).map(|i| Turn { bandwidth_gbps: gbps + f64::from(i) * 0.1, latency_p50_us: 3.0 });
    row.figures = row.figures.map(|figures| Figures {
        bandwidth_gbps: gbps,
        latency_us: latency,
        turns: turns.collect(),
        ..figures
    });
    row
}

/// Sizes × directions × engines.
fn sweep(sizes: u32) -> Document {
    let mut document = document();
    document.results.clear();
    for op in [Op::Write, Op::Read] {
        for size in 0..sizes {
            let case = document.results.len() as u32;
            for (i, engine) in ENGINES.into_iter().enumerate() {
                document
                    .results
                    .push(Row { op, ..measured(case, engine, 4096 << size, 10.0 / (i + 1) as f64) });
            }
            document.ratios.push(Ratio {
                case,
                base: "kvrail".into(),
                engine: "ucx".into(),
                bandwidth: 0.33,
                spread: None,
                turns: 5,
            });
        }
    }
    document
}

/// The page as a tree: it is XML as well as HTML, so that what is not closed or escaped shows.
fn parsed(page: &str) -> roxmltree::Document<'_> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    roxmltree::Document::parse_with_options(page, options).unwrap_or_else(|e| panic!("{e}\n{page}"))
}

fn all_text(page: &roxmltree::Document<'_>) -> String {
    page.descendants()
        .filter(|node| node.is_text())
        .filter_map(|node| node.text())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_chart_has_a_title_and_a_point_for_every_row() {
    let documents = [sweep(6)];
    let page = html(&documents);
    let tree = parsed(&page);
    let is = |node: &roxmltree::Node<'_, '_>, name: &str, class: &str| {
        node.has_tag_name(name)
            && node.attribute("class").is_some_and(|c| c.split(' ').any(|one| one == class))
    };
    let charts: Vec<_> = tree
        .descendants()
        .filter(|node| node.has_tag_name("svg") && node.attribute("role") == Some("img"))
        .collect();
    // Bandwidth, latency and three tails, for each direction.
    assert_eq!(charts.len(), 10);
    for chart in &charts {
        let title = chart.children().find(|node| node.has_tag_name("title")).and_then(|node| node.text());
        assert!(title.is_some_and(|title| title.len() > 20), "{title:?}");
    }
    let points: usize = charts
        .iter()
        .filter(|chart| {
            chart.descendants().any(|node| node.text().is_some_and(|t| t.starts_with("Bandwidth against")))
        })
        .flat_map(|chart| chart.descendants())
        .filter(|node| is(node, "g", "line") && !is(node, "g", "limit"))
        .flat_map(|line| line.children())
        .filter(|node| is(node, "g", "point"))
        .count();
    assert_eq!(points, documents[0].results.len());
    let cases =
        tree.descendants().filter(|node| is(node, "table", "cases")).flat_map(|table| table.descendants());
    assert_eq!(cases.filter(|node| node.has_tag_name("tbody")).flat_map(|body| body.children()).count(), 12);
}

#[test]
fn nothing_comes_from_elsewhere() {
    let page = html(&[sweep(3)]);
    for outside in ["http:", "https:", "//", "url(", "@import", "<script", "<link", "<img"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn hostile_text_stays_text() {
    let hostile = "</title></style><script>alert('x')</script>\"&amp;\u{0}";
    let mut of = sweep(2);
    of.command = vec![hostile.into()];
    of.started = hostile.into();
    of.failure = Some(Failure::peer(hostile).hint(hostile));
    for row in &mut of.results {
        row.engine = format!("{hostile}{}", row.engine);
        row.verdicts = vec![Verdict { id: hostile.into(), severity: Severity::Bad, text: hostile.into() }];
        row.failure = Some(Failure::engine(hostile).hint(hostile));
        row.rails = ["a", "b"].map(|name| rail(&format!("{hostile}{name}"), 5, 0)).to_vec();
        row.transport = Some(hostile.into());
    }
    of.transports =
        vec![Used::new(hostile, both(Carriage { transport: hostile.into(), ..Carriage::default() }))];
    let page = html(&[of]);
    let tree = parsed(&page);
    assert!(!tree.descendants().any(|node| node.has_tag_name("script")));
    assert!(all_text(&tree).contains("alert('x')"));
}

fn both(of: Carriage) -> Sides<Option<Carriage>> {
    Sides { initiator: Some(of.clone()), target: Some(of) }
}

fn rail(name: &str, bytes_posted: u64, downs: u32) -> RailRow {
    RailRow {
        name: name.into(),
        rate_bps: 100_000_000_000,
        bytes_posted,
        ops_posted: 1,
        ops_done: 1,
        ops_failed: 0,
        downs,
        down_s: 0.25 * f64::from(downs),
        bytes_since_return: None,
    }
}

#[test]
fn the_result_is_one_sentence_with_the_ratios_and_what_was_verified() {
    let mut of = document();
    of.results = vec![measured(0, "kvrail", 32 << 10, 15.0), measured(0, "nixl:UCX", 32 << 10, 5.0)];
    for row in &mut of.results {
        (row.batch, row.op) = (12_800, Op::Read);
    }
    let text = html(&[of.clone()]);
    assert!(
        text.contains(
            "12,800 × 32 KiB, read, shared memory: kvrail moves 15.0 GB/s: 3.00× nixl:UCX. Every byte was verified."
        ),
        "{text}"
    );
    of.results[1].verified = false;
    assert!(html(&[of]).contains("1 of 2 figures are not verified"));
}

#[test]
fn an_engine_that_failed_is_a_cell_that_says_why() {
    let mut of = sweep(2);
    let failed = &mut of.results[1];
    (failed.figures, failed.verified) = (None, false);
    failed.failure = Some(Failure::engine("it was silent for 60 s").hint("look at its log"));
    let page = html(&[of]);
    let text = all_text(&parsed(&page));
    assert!(page.contains("title=\"it was silent for 60 s\">failed</td>"));
    assert!(text.contains("it was silent for 60 s") && text.contains("look at its log"));
    assert!(text.contains("1 of 16 measurements failed"), "{text}");
}

#[test]
fn rails_show_their_shares_and_who_was_down() {
    let mut of = sweep(2);
    of.results[0].rails = vec![rail("rdmap0s0", 100, 0), rail("rdmap1s0", 50, 2)];
    let page = html(&[of]);
    assert!(page.contains("height:50.0%") && page.contains("rdmap1s0 was down 2 times for 0.50 s"), "{page}");
}

#[test]
fn a_page_of_nothing_and_one_of_one_point_are_pages() {
    assert!(all_text(&parsed(&html(&[]))).contains("Nothing was measured"));
    parsed(&html(&[Document { results: Vec::new(), ..document() }]));
    let mut one = document();
    one.results[0].figures = one.results[0].figures.take().map(|figures| Figures {
        bandwidth_gbps: 0.0,
        ceiling_gbps: None,
        turns: Vec::new(),
        latency_us: Distribution::default(),
        ..figures
    });
    parsed(&html(&[one]));
}

#[test]
fn a_thousand_rows_stay_within_a_few_megabytes() {
    let documents: Vec<Document> = (0..10).map(|_| sweep(13)).collect();
    let rows: usize = documents.iter().map(|document| document.results.len()).sum();
    let page = html(&documents);
    assert!(rows > 1_000 && page.len() < 4 << 20, "{rows} rows: {} bytes", page.len());
}

#[test]
fn an_engine_over_two_transports_is_two_lines() {
    let mut of = sweep(3);
    let tcp: Vec<Row> = of
        .results
        .iter()
        .filter(|row| row.engine == "kvrail")
        .map(|row| Row { transport: Some("tcp".into()), ..row.clone() })
        .collect();
    of.results.extend(tcp);
    let page = html(&[of]);
    assert!(page.contains("kvrail shm") && page.contains("kvrail tcp"));
}

#[test]
fn plain_copies_over_two_ways_are_two_lines_of_which_one_has_the_bare_name() {
    let mut of = sweep(3);
    for row in of.results.iter_mut().filter(|row| row.engine == "memcpy") {
        row.transport = Some(if row.op == Op::Read { "process_vm" } else { "memcpy" }.into());
    }
    let documents = [of];
    let names = super::Names::of(&documents);
    let of_row = |op| documents[0].results.iter().find(|row| row.engine == "memcpy" && row.op == op).unwrap();
    let name = |op| names.at(names.position(of_row(op)).unwrap()).0;
    assert_eq!([name(Op::Write), name(Op::Read)], ["memcpy", "memcpy process_vm"]);
}

#[test]
fn a_verdict_of_one_kind_is_told_once_for_each_engine_with_its_name() {
    let mut of = sweep(3);
    for row in of.results.iter_mut().filter(|row| row.engine == "ucx") {
        let text = format!("late by {}", row.case);
        row.verdicts = vec![Verdict { id: "done-before-visible".into(), severity: Severity::Warning, text }];
    }
    let page = html(&[of]);
    let notices: Vec<_> = page.match_indices("<div class=\"notice").collect();
    assert_eq!(notices.len(), 1);
    assert!(page.contains("<strong>done before visible</strong> ucx: late by 0 (and 5 more)"), "{page}");
}
