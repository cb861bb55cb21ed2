//! What an agent runs on, how it is set and what it counted, as plain values.

use kvrail::config::Config;
use kvrail::{Facts, Latency, NamedRailStats, Stats, TransportFacts, TransportStats};

use super::value::Value;

pub(crate) type Entries = Vec<(&'static str, Value)>;

/// Every setting, with where its value came from.
pub(crate) fn config(config: &Config) -> Entries {
    let numbers = config.iter().map(|(knob, value, source)| {
        let entries = vec![
            ("value", value.into()),
            ("unit", knob.unit.into()),
            ("source", source.to_string().into()),
            ("variable", knob.variable.into()),
        ];
        (knob.name, Value::Map(entries))
    });
    let texts = config.texts().map(|(knob, value, source)| {
        let entries = vec![
            ("value", value.into()),
            ("unit", Value::Nothing),
            ("source", source.to_string().into()),
            ("variable", knob.variable.into()),
        ];
        (knob.name, Value::Map(entries))
    });
    numbers.chain(texts).collect()
}

/// Which transports, chosen by whom, and what was passed over.
pub(crate) fn facts(facts: &Facts) -> Entries {
    let passed_over = facts.passed_over.iter().map(|passed| {
        Value::Map(vec![("transport", passed.transport.into()), ("reason", passed.reason.to_string().into())])
    });
    vec![
        ("transports", facts.transports.iter().map(transport).collect()),
        ("passed_over", passed_over.collect()),
        ("chosen_by", facts.chosen_by.to_string().into()),
    ]
}

fn transport(facts: &TransportFacts) -> Value {
    let rails = facts.rails.iter().map(|rail| {
        Value::Map(vec![("name", rail.name.as_str().into()), ("rate_bps", rail.rate_bps.into())])
    });
    let ofi = facts.ofi.as_deref().map_or(Value::Nothing, |ofi| {
        Value::Map(vec![
            ("library", ofi.library.to_string().into()),
            ("provider", ofi.provider.as_str().into()),
            ("provider_raw", ofi.provider_raw.as_str().into()),
            ("provider_version", ofi.provider_version.as_str().into()),
            ("fabric", ofi.fabric.as_str().into()),
            ("evidence_why", ofi.evidence_why.into()),
            ("hmem", ofi.hmem.into()),
            ("mr_mode", ofi.mr_mode.as_str().into()),
            ("op_bytes_max", ofi.op_bytes_max.into()),
            ("control_bytes", ofi.control_bytes.into()),
            ("provider_bytes", ofi.provider_bytes.into()),
        ])
    });
    Value::Map(vec![
        ("name", facts.name.into()),
        ("summary", facts.to_string().into()),
        ("evidence", facts.evidence.to_string().into()),
        ("rate_bps", facts.rate_bps().into()),
        ("rails", rails.collect()),
        ("ofi", ofi),
    ])
}

/// What was counted.
pub(crate) fn stats(stats: &Stats) -> Entries {
    vec![
        ("nbytes", stats.bytes().into()),
        ("transfers", stats.transfers().into()),
        ("ops", stats.ops().into()),
        ("peers", stats.peers.into()),
        ("regions", stats.regions.into()),
        ("notifications_waiting", stats.notifications_waiting.into()),
        ("events_missed", stats.peer_events_missed.into()),
        ("transports", stats.transports.iter().map(transport_stats).collect()),
    ]
}

fn transport_stats(stats: &TransportStats) -> Value {
    let TransportStats { name, rails, engine, transfers_in_flight, prepare, post, wire, .. } = stats;
    Value::Map(vec![
        ("name", (*name).into()),
        ("nbytes", engine.bytes_done.into()),
        ("transfers", engine.transfers_done.into()),
        ("transfers_failed", engine.transfers_failed.into()),
        ("transfers_in_flight", (*transfers_in_flight).into()),
        ("messages_sent", engine.messages_sent.into()),
        ("messages_repeated", engine.messages_repeated.into()),
        ("messages_refused", engine.messages_refused.into()),
        ("prepare", latency(prepare)),
        ("post", latency(post)),
        ("wire", latency(wire)),
        ("rails", rails.iter().map(rail).collect()),
    ])
}

fn rail(rail: &NamedRailStats) -> Value {
    Value::Map(vec![
        ("name", rail.name.as_str().into()),
        ("rate_bps", rail.rate_bps.into()),
        ("ops_posted", rail.counters.ops_posted.into()),
        ("nbytes_posted", rail.counters.bytes_posted.into()),
        ("ops_done", rail.counters.ops_done.into()),
        ("ops_failed", rail.counters.ops_failed.into()),
        ("messages", rail.counters.messages.into()),
    ])
}

/// A distribution, in seconds.
fn latency(latency: &Latency) -> Value {
    Value::Map(vec![
        ("count", latency.count().into()),
        ("mean", latency.mean().into()),
        ("p50", latency.p50().into()),
        ("p99", latency.p99().into()),
        ("max", latency.max().into()),
    ])
}
