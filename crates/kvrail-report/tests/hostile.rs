//! Documents come from files that anyone may have written: whatever stands in them, reading, judging and rendering end
//! without a panic, and in bounded time.

#![recursion_limit = "512"] // For the document, which is one macro.

use kvrail_report::compare::{Limits, compare};
use kvrail_report::expect::Expectations;
use kvrail_report::{Document, csv, junit, markdown, nixlbench_table, table, versus};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A document with something in every place.
fn document() -> Value {
    let distribution = json!({
        "count": 2, "min": 1.0, "mean": 1.5, "p50": 1.5, "p90": 2.0, "p99": 2.0, "p999": 2.0, "max": 2.0,
        "histogram_ns": [[1000, 1], [2000, 1]],
    });
    let carriage = json!({
        "transport": "ofi", "evidence": "counted", "libfabric": null, "facts": {"provider": "efa", "backend": "UCX"},
        "rails": [{"name": "a", "rate_bps": 100_000_000_000_u64, "pci": null, "numa": 0}, {"name": "b", "rate_bps": 1, "pci": null, "numa": null}],
        "path": {"bps": 1000, "bound": "a link"},
    });
    let row = |engine: &str| {
        json!({
            "case": 0, "engine": engine, "engine_version": "1", "op": "write", "transport": "ofi", "transport_reason": "x",
            "asked": {"transport": "ofi", "provider": "efa", "backend": "LIBFABRIC", "rails": 4},
            "memory": "shared", "pages": "4 KiB", "layout": "scattered", "block_bytes": 67_108_864, "batch": 1,
            "pool_bytes": 1, "threads": 1, "notify": false, "cooperate": true, "verify": "every", "verified": true,
            "iterations": 5, "bytes": 5, "timed_s": 1.0, "bandwidth_gbps": 12.2, "bandwidth_total_gbps": 12.0,
            "latency_us": distribution, "prepare_us": distribution, "post_us": distribution, "wire_us": distribution,
            "cpu_s": {"initiator": 1.0, "target": 1.0}, "ceiling_gbps": 10.0, "ceiling_percent": 122.0,
            "above_ceiling": true, "line_rate_gbps": 50.0,
            "turns": [{"bandwidth_gbps": 1.0, "latency_p50_us": 1.0}, {"bandwidth_gbps": 2.0, "latency_p50_us": 1.0}],
            "rails": [{"name": "a", "rate_bps": 5, "bytes_posted": 5, "ops_posted": 5, "ops_done": 5, "ops_failed": 1,
                       "downs": 1, "down_s": 1.0, "bytes_since_return": null}],
            "rail_events": [{"at_s": 1.0, "rail": "a", "route": [0, 1], "up": false, "why": "cut"}],
        })
    };
    let host = json!({"kvrail": "1", "profile": "release", "host": "h", "kernel": "k", "cpu": "c", "cpus": 1, "memory_bytes": 1});
    let print = json!({
        "versions": {"kernel": "6"}, "machine": "p5.48xlarge", "variables": {"FI_LOG_LEVEL": "debug"},
        "topology": {"numa_nodes": 1, "gpus": {"H100": 8}, "nics": [{"kind": "efa", "rate_bps": 1, "count": 2}]},
    });
    json!({
        "schema": "kvrail.bench.v1", "run_id": "r", "started": "s", "command": ["kvrail", "bench"], "complete": true,
        "verified": true, "failure": null, "seed": 1, "environment": {"initiator": host, "target": host},
        "fingerprint": {"initiator": print, "target": print},
        "transports": [{"engine": "kvrail", "initiator": carriage, "target": carriage}],
        "results": [row("kvrail"), row("libfabric"), row("nixl:UCX")],
    })
}

/// The places of a value that are numbers or strings.
fn leaves(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| leaves(value, format!("{at}/{name}"), out))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| leaves(item, format!("{at}/{i}"), out))
        }
        Value::Number(_) | Value::String(_) => out.push(at),
        _ => {}
    }
}

fn use_everything(text: &str) {
    let Ok(mut document) = Document::read(text) else { return };
    document.judge();
    if let Ok(p5) = Expectations::shipped().instance("p5") {
        p5.judge(&mut document);
    }
    let documents = [document.clone(), document];
    let _ = markdown::markdown(&documents);
    let _ = csv::csv_of(&documents);
    let _ = junit::junit(&documents);
    let _ = nixlbench_table::table(&documents[0]);
    let side_by_side = versus::table(&documents[0]);
    assert!(side_by_side.lines().all(|line| line.chars().count() <= 100), "{side_by_side}");
    let mut one = table::Table::default();
    for row in &documents[0].results {
        let _ = one.row(row, documents[0].used(row));
    }
    let _ = compare(&documents[..1], &documents[1..], Limits::default()).text();
    let _ = documents[0].json();
}

#[test]
fn the_document_that_is_damaged_here_is_one() {
    let document = Document::read(&document().to_string()).unwrap();
    assert_eq!(
        (document.results.len(), document.results.iter().filter(|row| row.figures.is_some()).count()),
        (3, 3)
    );
    use_everything(&document.json());
}

proptest! {
    #[test]
    fn no_value_in_any_place_panics_anything(
        places in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12), 1..6), text in "\\PC{0,40}",
    ) {
        let mut document = document();
        let mut all = Vec::new();
        leaves(&document, String::new(), &mut all);
        for (place, what) in places {
            let value = [
                json!(0), json!(u64::MAX), json!(u32::MAX), json!(-1), json!(1e308), json!(-1e308), json!(1e-320), json!(0.0),
                json!(""), json!(text), json!("\u{0}\u{1b}[31m\u{202e}|`<"), json!("kvrail"),
            ][what].clone();
            if let Some(leaf) = document.pointer_mut(place.get(&all).as_str()) {
                *leaf = value;
            }
        }
        use_everything(&document.to_string());
    }
}
