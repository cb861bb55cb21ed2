//! Telemetry as other processes see it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::settings::{
    BUFFER_SIZE, DIR, ENABLED_METRICS, EXPORTER, MULTIPROC_DIR, PROMETHEUS_LOCAL, PROMETHEUS_PORT,
    RUN_INTERVAL,
};
use super::*;

fn asked(name: &str, capture: bool, pairs: &[(&str, &str)]) -> Result<Option<Telemetry>> {
    let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
    Telemetry::from_environment(name, capture, &Environment(&lookup))
}

fn captured(name: &str, pairs: &[(&str, &str)]) -> Telemetry {
    asked(name, true, pairs).unwrap().expect("it was asked for")
}

fn use_all(telemetry: &Telemetry) {
    telemetry.registered(4096);
    telemetry.registered(100);
    telemetry.deregistered(100);
    telemetry.posted(Direction::Write, 4096, 3, Duration::from_micros(9));
    telemetry.finished(Direction::Write, 4096, Duration::from_micros(11));
    telemetry.posted(Direction::Read, 10, 1, Duration::from_nanos(700));
    telemetry.finished(Direction::Read, 10, Duration::from_millis(11));
    telemetry.failed(Status::Backend);
}

fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, page)| page.to_owned()).unwrap_or_default())
}

/// The value of the series whose line begins with `series`.
fn value<'a>(page: &'a str, name: &str, labels: &[&str]) -> Option<&'a str> {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    let mut lines =
        page.lines().filter(of_name).filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.next().and_then(|line| line.rsplit(' ').next())
}

#[test]
fn the_environment_decides_and_where_it_is_silent_the_configuration() {
    let on = |capture, pairs: &[(&str, &str)]| asked("a", capture, pairs).unwrap().is_some();
    assert!(!on(false, &[]));
    assert!(on(true, &[]));
    assert!(on(false, &[(ENABLE, "y")]));
    assert!(!on(true, &[(ENABLE, "off")]));
    assert!(!on(false, &[(ENABLE, "0"), (EXPORTER, "nonsense")]), "nothing else is looked at");
    assert!(!on(false, &[(DIR, "/nonexistent")]));
    assert_eq!(asked("a", true, &[(ENABLE, "")]).unwrap_err().status, Status::Mismatch);
    assert_eq!(asked("", true, &[]).unwrap_err().status, Status::InvalidParam);
    let error = asked("a", true, &[(DIR, "/nonexistent")]).unwrap_err();
    assert_eq!(error.status, Status::Backend);
    assert!(error.what.contains("/nonexistent/a: No such file") && error.hints[0].contains(DIR), "{error}");
}

#[test]
fn without_a_sink_everything_is_counted_in_the_process() {
    let telemetry = captured("a", &[]);
    use_all(&telemetry);
    assert_eq!(telemetry.subject.counts.sum(Event::Registered), 4196);
    assert_eq!(telemetry.subject.counts.sum(Event::XferTime), 11_011);
    assert_eq!(telemetry.subject.counts.sum(Event::Backend), 1);
    assert_eq!(telemetry.metrics(), None);
}

/// What it costs is told by its best round: others share the processor.
#[test]
fn counting_a_transfer_costs_next_to_nothing() {
    const TRANSFERS: u32 = 400;
    let dir = tempfile::tempdir().unwrap();
    let sinks: [&[_]; 2] = [&[], &[(DIR, dir.path().to_str().unwrap())]];
    for pairs in sinks {
        let telemetry = captured("quick", pairs);
        let round = || {
            let begin = Instant::now();
            for _ in 0..TRANSFERS {
                telemetry.posted(Direction::Read, 4096, 1, Duration::from_micros(3));
                telemetry.finished(Direction::Read, 4096, Duration::from_micros(50));
            }
            begin.elapsed() / TRANSFERS
        };
        let best = (0..100).map(|_| round()).min().unwrap();
        eprintln!("{best:?} per transfer, {} sinks", pairs.len());
        assert!(best < Duration::from_micros(2), "{best:?}");
    }
}

#[test]
fn the_page_has_every_series_of_nixls_exporter() {
    let pairs = [(EXPORTER, "prometheus"), (PROMETHEUS_LOCAL, "y"), (PROMETHEUS_PORT, "0")];
    let telemetry = captured("page \"1\"", &pairs);
    use_all(&telemetry);
    let page = get(telemetry.metrics().unwrap()).unwrap();
    let name = ["agent_name=\"page \\\"1\\\"\""];
    for (series, expected) in [
        ("agent_tx_bytes_total", "4096"),
        ("agent_tx_last_bytes", "4096"),
        ("agent_rx_bytes_total", "10"),
        ("agent_rx_last_bytes", "10"),
        ("agent_tx_requests_num_total", "1"),
        ("agent_rx_requests_num_total", "1"),
        ("agent_memory_registered_total", "4196"),
        ("agent_memory_registered_last_bytes", "100"),
        ("agent_memory_deregistered_total", "100"),
        ("agent_memory_deregistered_last_bytes", "100"),
        ("agent_xfer_time_total", "11011"),
        ("agent_xfer_time", "11000"),
        ("agent_xfer_post_time_total", "9"),
        ("agent_xfer_post_time", "0"),
        ("agent_xfer_time_us_count", "2"),
        ("agent_xfer_time_us_sum", "11011"),
        ("agent_xfer_post_time_us_count", "2"),
        ("agent_telemetry_events_dropped_total", "0"),
    ] {
        assert_eq!(value(&page, series, &name), Some(expected), "{series}");
    }
    for (bound, below) in
        [("10", "0"), ("25", "1"), ("10000", "1"), ("25000", "2"), ("10000000", "2"), ("+Inf", "2")]
    {
        let labels = [name[0], &format!("le=\"{bound}\"")];
        assert_eq!(value(&page, "agent_xfer_time_us_bucket", &labels), Some(below), "{bound}");
    }
    for status in Status::ALL {
        let label = Event::of(*status).error_label().unwrap();
        let expected = if *status == Status::Backend { "1" } else { "0" };
        let labels = [name[0], &format!("status=\"{label}\"")];
        assert_eq!(value(&page, "agent_errors_total", &labels), Some(expected), "{label}");
    }
    assert_eq!(value(&page, "kvrail_posted_descriptors_total", &[name[0], "direction=\"write\""]), Some("3"));
    is_well_formed(&page);
}

/// Each family is there once, with a header, and nothing stands outside of one.
fn is_well_formed(page: &str) {
    let mut families = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()).expect(line);
        assert!(!families.contains(&name), "{name} is there twice");
        families.push(name);
        assert!(lines.next().unwrap().starts_with(&format!("# TYPE {name} ")), "{name}");
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            assert!(sample.starts_with(name), "{sample} in {name}");
            assert!(sample.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{sample}");
        }
    }
}

#[test]
fn agents_of_a_process_share_a_page_and_each_has_a_name_of_its_own() {
    let port = free_port();
    let pairs = [(EXPORTER, "prometheus"), (PROMETHEUS_LOCAL, "y"), (PROMETHEUS_PORT, &*port.to_string())];
    let first = captured("first", &pairs);
    let second = captured("second", &[&pairs[..], &[(ENABLED_METRICS, "agent_tx_*")]].concat());
    let error = asked("second", true, &pairs).unwrap_err();
    assert!(error.status == Status::Backend && error.what.contains("\"second\""), "{error}");
    use_all(&first);
    use_all(&second);
    let address = first.metrics().unwrap();
    assert_eq!(second.metrics(), Some(address));
    let page = get(address).unwrap();
    is_well_formed(&page);
    assert_eq!(value(&page, "agent_tx_bytes_total", &["\"second\""]), Some("4096"));
    assert_eq!(value(&page, "agent_rx_bytes_total", &["\"second\""]), None, "it was not chosen");
    drop(second);
    let page = get(address).unwrap();
    assert!(page.contains("\"first\"") && !page.contains("\"second\""));
    drop(first);
    assert!(get(address).is_err(), "the last one closes the port");
    drop(captured("second", &pairs));
}

#[test]
fn a_port_that_another_process_has_is_no_error_and_counting_goes_on() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let pairs = [(EXPORTER, "prometheus"), (PROMETHEUS_LOCAL, "y"), (PROMETHEUS_PORT, &*port)];
    let telemetry = captured("late", &pairs);
    assert_eq!(telemetry.metrics(), None);
    use_all(&telemetry);
    assert_eq!(telemetry.subject.counts.sum(Event::TxBytes), 4096);
}

#[test]
fn what_is_counted_below_is_on_the_page_and_the_page_may_be_its_last_owner() {
    let agent = kvrail::Agent::builder("below")
        .transports([kvrail::TransportConfig::shm()])
        .build()
        .expect("shared memory is everywhere");
    let pairs =
        [(EXPORTER, "prometheus"), (PROMETHEUS_LOCAL, "y"), (PROMETHEUS_PORT, &*free_port().to_string())];
    let telemetry = Arc::new(captured("above", &pairs));
    let address = telemetry.metrics().unwrap();
    let weak = Arc::downgrade(&telemetry);
    telemetry.below(move || {
        let last = weak.upgrade()?;
        // Long enough for the other owner to go.
        std::thread::sleep(Duration::from_millis(300));
        drop(last);
        Some(agent.stats())
    });
    let page = get(address).unwrap();
    is_well_formed(&page);
    assert_eq!(value(&page, "kvrail_transport_transfers_total", &["transport=\"shm\""]), Some("0"));
    assert_eq!(value(&page, "kvrail_transfer_seconds_bucket", &["le=\"0.0000025\""]), Some("0"));
    assert_eq!(value(&page, "kvrail_rail_ops_total", &["op=\"failed\"", "rail="]), Some("0"));
    assert_eq!(value(&page, "kvrail_peers", &["above"]), Some("0"));
    let reader = std::thread::spawn(move || get(address));
    std::thread::sleep(Duration::from_millis(100));
    drop(telemetry);
    let _ = reader.join().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while get(address).is_ok() {
        assert!(Instant::now() < deadline, "the port stays open");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// NIXL's own reader, unmodified, takes the events from our file.
#[test]
fn nixls_reader_reads_the_buffer_file() {
    let Some(source) = std::env::var_os("KVRAIL_NIXL_SOURCE") else {
        eprintln!("skipped: nixls_reader_reads_the_buffer_file: no checkout of NIXL: set KVRAIL_NIXL_SOURCE");
        return;
    };
    let script = Path::new(&source).join("examples/python/telemetry_reader.py");
    assert!(script.is_file(), "KVRAIL_NIXL_SOURCE has no {}", script.display());
    let dir = tempfile::tempdir().unwrap();
    let pairs = [(DIR, dir.path().to_str().unwrap()), (BUFFER_SIZE, "64"), (RUN_INTERVAL, "10")];
    let telemetry = captured("read-by-nixl", &pairs);
    let mut reader = Command::new("python3")
        .arg(script)
        .arg("--telemetry_path")
        .arg(dir.path().join("read-by-nixl"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let expected = [
        ("agent_memory_registered", 4096),
        ("agent_memory_registered", 100),
        ("agent_memory_deregistered", 100),
        ("agent_xfer_post_time", 9),
        ("agent_xfer_time", 11),
        ("agent_tx_bytes", 4096),
        ("agent_tx_requests_num", 1),
        ("agent_xfer_post_time", 0),
        ("agent_xfer_time", 11_000),
        ("agent_rx_bytes", 10),
        ("agent_rx_requests_num", 1),
        ("agent_err_backend", 1),
    ];
    use_all(&telemetry);
    let mut told = Vec::new();
    let mut lines = BufReader::new(reader.stderr.take().unwrap()).lines().map_while(std::io::Result::ok);
    let reader = Arc::new(parking_lot::Mutex::new(reader));
    // One that tells nothing more is not waited for: its output ends with it.
    let impatient = reader.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(30));
        let _ = impatient.lock().kill();
    });
    let mut event = None;
    while told.len() < expected.len() {
        let line = lines.next().unwrap_or_else(|| panic!("the reader ended after {told:?}"));
        if let Some((_, name)) = line.split_once("Event: ") {
            event = Some(name.to_owned());
        } else if let (Some((_, value)), Some(name)) = (line.split_once("Value: "), event.take()) {
            told.push((name, value.parse().unwrap()));
        }
        assert!(!line.contains("ERROR"), "{line}");
    }
    let _ = reader.lock().kill();
    let _ = reader.lock().wait();
    assert_eq!(told, expected.map(|(name, value)| (name.to_owned(), value)));
}

const CHILD: &str = "KVRAIL_TEST_TELEMETRY_CHILD";

/// An agent in a process of its own, until its input ends.
#[test]
#[ignore = "run by the test of several processes"]
fn agent_in_a_process_of_its_own() {
    let Some(spec) = std::env::var_os(CHILD) else { return };
    let spec = spec.into_string().unwrap();
    let [name, port, dir] = spec.split('|').collect::<Vec<_>>()[..] else { panic!("{spec}") };
    let pairs = [
        (EXPORTER, "prometheus_mp"),
        (PROMETHEUS_LOCAL, "y"),
        (PROMETHEUS_PORT, port),
        (MULTIPROC_DIR, dir),
        ("LOCAL_RANK", name),
    ];
    let telemetry = captured(name, &pairs);
    telemetry.registered(4096);
    println!("\nready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn spawn(name: &str, port: u16, dir: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "telemetry::tests::agent_in_a_process_of_its_own", "--ignored", "--nocapture"])
        .env(CHILD, format!("{name}|{port}|{}", dir.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
    assert!(lines.any(|line| line == "ready"), "{name} did not start");
    (child, lines)
}

#[test]
fn processes_share_one_page_and_the_next_one_serves_when_the_one_that_did_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let shows = |wanted: &[&str]| {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let page = get(([127, 0, 0, 1], port).into()).unwrap_or_default();
            let shown = |name: &str| {
                let label = format!("local_rank=\"{name}\"");
                value(&page, "agent_memory_registered_total", &["pid=\"", &label]) == Some("4096")
            };
            if wanted.iter().all(|name| shown(name)) {
                is_well_formed(&page);
                return;
            }
            assert!(Instant::now() < deadline, "{wanted:?} is not on the page: {page}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let (mut first, _output) = spawn("0", port, dir.path());
    shows(&["0"]);
    let (mut second, _output) = spawn("1", port, dir.path());
    shows(&["0", "1"]);
    first.kill().unwrap();
    first.wait().unwrap();
    // What the killed one counted last is still told.
    shows(&["0", "1"]);
    drop(second.stdin.take());
    assert!(second.wait().unwrap().success());
}
