//! The page that Prometheus reads: its text format, version 0.0.4, as NIXL's exporter writes it.
//!
//! Written by hand: crates for it write the newer format, in which counters have other names in their headers.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use kvrail::{Latency, NamedRailStats, Stats, TransportStats};
use kvrail_core::transport::Direction;

use super::Subject;
use super::event::Event;
use super::series::{Counts, Posted};

/// Upper bounds of kvrail's own latencies.
const BOUNDS_US: &[f64] = &[
    1., 2.5, 5., 10., 25., 50., 100., 250., 500., 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2.5e5, 5e5, 1e6,
    2.5e6, 1e7,
];
const ERRORS: &str = "agent_errors_total";

/// The page about agents of this process, each with what is counted below it.
pub(crate) fn render(subjects: &[Arc<Subject>]) -> String {
    let mut page = Page::default();
    agents(&mut page, subjects);
    let below: Vec<_> =
        subjects.iter().filter_map(|subject| Some((&*subject.labels, subject.below()?))).collect();
    if !below.is_empty() {
        transports(&mut page, &below);
        rails(&mut page, &below);
        latencies(&mut page, &below);
        page.each("kvrail_peers", GAUGE, "Peers that were imported.", &below, |stats| stats.peers);
        page.each("kvrail_regions", GAUGE, "Regions that are registered.", &below, |stats| stats.regions);
        let help = "Notifications that wait to be read.";
        page.each("kvrail_notifications_waiting", GAUGE, help, &below, |stats| stats.notifications_waiting);
        let help = "Events about peers that were dropped unread.";
        page.each("kvrail_peer_events_missed_total", COUNTER, help, &below, |stats| stats.peer_events_missed);
    }
    page.text
}

/// The base labels of an agent's series.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let comma = if text.is_empty() { "" } else { "," };
        let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let _ = write!(text, "{comma}{name}=\"{value}\"");
    }
    text
}

/// NIXL's series, and what was posted.
fn agents(page: &mut Page, subjects: &[Arc<Subject>]) {
    let with = |event| subjects.iter().filter(move |subject| subject.mask.has(event));
    let series = || Event::ALL.iter().filter_map(|event| Some((*event, event.series()?)));
    for (event, series) in series() {
        page.begin(series.counter, COUNTER, series.counted);
        for subject in with(event) {
            page.sample("", &subject.labels, &[], subject.counts.sum(event));
        }
    }
    page.begin(ERRORS, COUNTER, "Errors by status.");
    for (event, label) in Event::ALL.iter().filter_map(|event| Some((*event, event.error_label()?))) {
        for subject in with(event) {
            page.sample("", &subject.labels, &[("status", label)], subject.counts.sum(event));
        }
    }
    for (event, (name, help)) in series().filter_map(|(event, series)| Some((event, series.gauge?))) {
        page.begin(name, GAUGE, help);
        for subject in with(event) {
            page.sample("", &subject.labels, &[], subject.counts.last(event));
        }
    }
    for (event, (name, help)) in series().filter_map(|(event, series)| Some((event, series.histogram?))) {
        page.begin(name, HISTOGRAM, help);
        for subject in with(event) {
            let Some(histogram) = subject.counts.histogram(event) else { continue };
            page.histogram(&subject.labels, &[], &histogram.cumulative(), histogram.sum());
        }
    }
    page.begin("kvrail_build_info", GAUGE, "Always 1; the label says the version.");
    for subject in subjects {
        page.sample("", &subject.labels, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    }
    type Of = fn(&Posted) -> &AtomicU64;
    let posted: [(&str, &str, Of); 3] = [
        ("kvrail_posted_transfers_total", "Transfers that were posted, however they ended.", |p| {
            &p.transfers
        }),
        ("kvrail_posted_bytes_total", "Bytes of the transfers that were posted.", |p| &p.bytes),
        ("kvrail_posted_descriptors_total", "Descriptors of the transfers that were posted.", |p| {
            &p.descriptors
        }),
    ];
    for (name, help, of) in posted {
        page.begin(name, COUNTER, help);
        for (subject, direction) in
            subjects.iter().flat_map(|s| [Direction::Read, Direction::Write].map(|d| (s, d)))
        {
            let value = of(Counts::posted(&subject.counts, direction)).load(Relaxed);
            page.sample("", &subject.labels, &[("direction", &direction.to_string())], value);
        }
    }
}

type Below<'a> = (&'a str, Stats);

fn transports(page: &mut Page, below: &[Below<'_>]) {
    type Of = fn(&TransportStats) -> u64;
    let families: [(&str, &str, &str, Of); 5] = [
        ("kvrail_transport_transfers_total", COUNTER, "Transfers that ended well.", |t| {
            t.engine.transfers_done
        }),
        ("kvrail_transport_transfers_failed_total", COUNTER, "Transfers that ended badly.", |t| {
            t.engine.transfers_failed
        }),
        ("kvrail_transport_bytes_total", COUNTER, "Bytes of the transfers that ended well.", |t| {
            t.engine.bytes_done
        }),
        ("kvrail_transport_transfers_in_flight", GAUGE, "Transfers that have not ended.", |t| {
            t.transfers_in_flight as u64
        }),
        (
            "kvrail_transport_completions_unknown_total",
            COUNTER,
            "Completions that belonged to no operation.",
            |t| t.engine.completions_unknown,
        ),
    ];
    let all = || below.iter().flat_map(|(labels, stats)| stats.transports.iter().map(move |t| (*labels, t)));
    for (name, kind, help, of) in families {
        page.begin(name, kind, help);
        for (labels, transport) in all() {
            page.sample("", labels, &[("transport", transport.name)], of(transport));
        }
    }
    page.begin("kvrail_transport_messages_total", COUNTER, "Control messages by what became of them.");
    for (labels, transport) in all() {
        let engine = &transport.engine;
        for (what, count) in [
            ("sent", engine.messages_sent),
            ("repeated", engine.messages_repeated),
            ("duplicate", engine.messages_duplicate),
            ("refused", engine.messages_refused),
        ] {
            page.sample("", labels, &[("transport", transport.name), ("message", what)], count);
        }
    }
}

fn rails(page: &mut Page, below: &[Below<'_>]) {
    let all = || {
        let of = |(labels, stats): &'_ Below<'_>| -> Vec<(String, &'static str, NamedRailStats)> {
            let transports = stats.transports.iter();
            transports
                .flat_map(|t| t.rails.iter().map(|r| ((*labels).to_owned(), t.name, r.clone())))
                .collect()
        };
        below.iter().flat_map(of)
    };
    page.begin("kvrail_rail_posted_bytes_total", COUNTER, "Bytes of the operations handed to the rail.");
    for (labels, transport, rail) in all() {
        page.sample(
            "",
            &labels,
            &[("transport", transport), ("rail", &rail.name)],
            rail.counters.bytes_posted,
        );
    }
    page.begin("kvrail_rail_ops_total", COUNTER, "Operations of the rail by what became of them.");
    for (labels, transport, rail) in all() {
        let counters = rail.counters;
        for (what, count) in
            [("posted", counters.ops_posted), ("done", counters.ops_done), ("failed", counters.ops_failed)]
        {
            page.sample("", &labels, &[("transport", transport), ("rail", &rail.name), ("op", what)], count);
        }
    }
    page.begin("kvrail_rail_rate_bits_per_second", GAUGE, "Line rate of the rail, where it is known.");
    for (labels, transport, rail) in all().filter(|(_, _, rail)| rail.rate_bps > 0) {
        page.sample("", &labels, &[("transport", transport), ("rail", &rail.name)], rail.rate_bps);
    }
}

fn latencies(page: &mut Page, below: &[Below<'_>]) {
    type Of = fn(&TransportStats) -> &Latency;
    let families: [(&str, &str, Of); 3] = [
        ("kvrail_prepare_seconds", "How long preparing transfers took.", |t| &t.prepare),
        ("kvrail_post_seconds", "How long posting transfers took.", |t| &t.post),
        ("kvrail_transfer_seconds", "From posting to the end, of transfers that ended well.", |t| &t.wire),
    ];
    for (name, help, of) in families {
        page.begin(name, HISTOGRAM, help);
        for (labels, transport) in below.iter().flat_map(|(l, s)| s.transports.iter().map(move |t| (*l, t))) {
            let latency = of(transport);
            let sum = latency.mean().as_secs_f64() * latency.count() as f64;
            page.histogram(labels, &[("transport", transport.name)], &cumulative(latency), sum);
        }
    }
}

/// Bounds in seconds with how many do not exceed them; the last bound is infinite.
fn cumulative(latency: &Latency) -> Vec<(f64, u64)> {
    let mut buckets = latency.buckets().peekable();
    let mut below = 0;
    let bounds = BOUNDS_US.iter().map(|us| {
        let bound = Duration::from_nanos((us * 1e3) as u64);
        while let Some((_, count)) = buckets.next_if(|(end, _)| *end <= bound) {
            below += count;
        }
        (us / 1e6, below)
    });
    let mut bounds: Vec<_> = bounds.collect();
    bounds.push((f64::INFINITY, latency.count()));
    bounds
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";
const HISTOGRAM: &str = "histogram";

#[derive(Default)]
struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    fn begin(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, suffix: &str, labels: &str, more: &[(&str, &str)], value: impl Display) {
        let more = self::labels(more);
        let comma = if more.is_empty() || labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "{}{suffix}{{{labels}{comma}{more}}} {value}", self.family);
    }

    fn histogram(&mut self, labels: &str, more: &[(&str, &str)], bounds: &[(f64, u64)], sum: impl Display) {
        let count = bounds.last().map_or(0, |(_, count)| *count);
        self.sample("_count", labels, more, count);
        self.sample("_sum", labels, more, sum);
        for (bound, below) in bounds {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            let with_bound: Vec<_> = more.iter().copied().chain([("le", &*bound)]).collect();
            self.sample("_bucket", labels, &with_bound, below);
        }
    }

    fn each<T: Display>(
        &mut self,
        name: &'static str,
        kind: &str,
        help: &str,
        below: &[Below<'_>],
        of: impl Fn(&Stats) -> T,
    ) {
        self.begin(name, kind, help);
        for (labels, stats) in below {
            self.sample("", labels, &[], of(stats));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_name_holds_it_stays_inside_its_quotes() {
        assert_eq!(labels(&[("a", "x\"} 1\n\\"), ("b", "")]), "a=\"x\\\"} 1\\n\\\\\",b=\"\"");
    }
}
