//! How fast logs are read: `cargo bench -p kvrail-doctor --bench log_rate`.
//!
//! Each kind of log is made in memory, without a disk; every run's findings are compared with what was put in. The figure is the
//! median of the runs, in MB/s (1e6 bytes). `LOG_RATE_MEGABYTES` sets the size of each log (256), `LOG_RATE_RUNS` the runs (5).
//!
//! On 2 vCPUs of an AMD EPYC, 2026-11-21, beside little else: healthy 1076, failing 888, debug 813, endless 1121, similar 250 MB/s; 1 GB of each
//! has a peak of 11 MiB, as with 10 MB.

use std::io::{self, Read};
use std::time::Instant;

use kvrail_doctor::log::Logs;

/// A text again and again, so many bytes.
struct Again<'t> {
    text: &'t [u8],
    at: usize,
    left: u64,
}

impl Read for Again<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let rest = &self.text[self.at..];
        let n = rest.len().min(into.len()).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        into[..n].copy_from_slice(&rest[..n]);
        self.at = (self.at + n) % self.text.len();
        self.left -= n as u64;
        Ok(n)
    }
}

/// What vLLM writes when all is well: periodic statistics, requests, accesses.
fn healthy() -> String {
    (0..4000)
        .map(|n| {
            let second = n % 60;
            match n % 4 {
                0 => format!("(EngineCore_DP0 pid=594) INFO 11-25 02:39:{second:02} [loggers.py:248] Engine 000: Avg prompt throughput: {}.3 tokens/s, Avg generation throughput: 812.0 tokens/s, Running: {} reqs, Waiting: 0 reqs, GPU KV cache usage: 41.{}%, Prefix cache hit rate: 63.8%\n", n * 7 % 9000, n % 200, n % 10),
                1 => format!("(APIServer pid=1) INFO:     10.0.{}.{}:41{:03} - \"POST /v1/completions HTTP/1.1\" 200 OK\n", n % 250, n % 249, n % 1000),
                2 => format!("(EngineCore_DP0 pid=594) INFO 11-25 02:39:{second:02} [metrics.py:96] KV Transfer metrics: Num successful transfers=1{}, Avg xfer time (ms)=4.{}, P90 xfer time (ms)=9.8, Avg MB per transfer=119.2, Throughput (MB/s)=11{:03}.5, Avg number of descriptors=1820.0\n", n % 90, n % 1000, n % 1000),
                _ => format!("(Worker_TP{} pid=612) DEBUG 11-25 02:39:{second:02} [scheduler.py:771] request cmpl-{n:08x}-4b1e-9bd6-3f953835f10d finished: stop, 512 tokens, cached 128\n", n % 8),
            }
        })
        .collect()
}

/// A log of nothing but one failure.
fn failing() -> String {
    (0..4000)
        .map(|n| format!("(Worker_TP{} pid=612) WARNING 09-24 16:{:02}:{:02} [nixl_connector.py:1048] Releasing expired KV blocks for request cmpl-{n:08x}-1c3c-41b5-aeaa-b8421e81fd5c-0 which were retrieved by 0 decode worker(s) within 120 seconds.\n", n % 8, n / 60 % 60, n % 60))
        .collect()
}

/// libfabric at log level debug.
fn debug() -> String {
    (0..4000)
        .map(|n| format!("libfabric:1242394:17604{:05}::efa:ep_data:efa_rdm_pke_handle_data_copied():{}<debug> pkt_entry {:#x} of txe {} copied, {} bytes left\n", n % 99999, 200 + n % 90, 0x7f00_0000_0000_u64 + n * 64, n % 4096, n * 8192))
        .collect()
}

/// One line that never ends, with everything in it.
fn endless() -> String {
    failing().replace('\n', "; ")
}

/// Each literal that is looked for most, in every line, and nothing that is meant.
fn similar() -> String {
    (0..4000)
        .map(|n| format!("{n} no such host? etcd! Cannot allocate memory; Function not implemented; Address already in use; /dev/infiniband /dev/shm/ prov_errno: NIXL_ERR_ fi_getinfo mean: 0 Throughput: CUDA error: \n"))
        .collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn main() {
    let bytes = number("LOG_RATE_MEGABYTES", 256) * 1_000_000;
    let runs = number("LOG_RATE_RUNS", 5).max(1) as usize;
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures mean nothing");
    }
    println!("{:<10} {:>8} {:>10} {:>12}  findings", "log", "MB", "MB/s", "lines");
    let kinds = [
        ("healthy", healthy()),
        ("failing", failing()),
        ("debug", debug()),
        ("endless", endless()),
        ("similar", similar()),
    ];
    for (name, text) in kinds {
        let mut rates = Vec::new();
        let mut said = String::new();
        let mut lines = 0;
        for _ in 0..runs {
            let begin = Instant::now();
            let mut logs = Logs::new();
            let extent =
                logs.read(name, Again { text: text.as_bytes(), at: 0, left: bytes }).expect("it is text");
            let report = logs.conclude();
            let told: Vec<_> = report.told().iter().map(|told| &told.finding).collect();
            rates.push(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64());
            assert_eq!(extent.bytes, bytes, "{name}: every byte is read");
            lines = extent.lines;
            let found: Vec<_> =
                told.iter().map(|finding| format!("{} × {}", finding.count, finding.rule.id)).collect();
            let ids: Vec<_> = told.iter().map(|finding| finding.rule.id).collect();
            let expected: &[&str] = match name {
                "failing" | "endless" => &["log-kv-expired"],
                "debug" => &["log-debug-lines"],
                _ => &[],
            };
            assert_eq!(ids, expected, "{name}");
            if let (Some(finding), "failing" | "debug") = (told.first(), name) {
                let off = finding.count.abs_diff(lines);
                assert!(off <= lines / 1000 + 16, "{name}: {} of {lines} lines were counted", finding.count);
            }
            said = if found.is_empty() { "none".into() } else { found.join(", ") };
        }
        rates.sort_by(f64::total_cmp);
        println!("{name:<10} {:>8} {:>10.0} {lines:>12}  {said}", bytes / 1_000_000, rates[runs / 2]);
    }
}
