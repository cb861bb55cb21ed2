//! What strangers may send to a listener: it answers, refuses or hangs up, in time, and goes on serving.

mod exchange_common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use exchange_common::{Call, Fake, LONG, eventually, metadata};
use kvrail_nixl::exchange::frame::{HEADER_BYTES, Header, Kind};
use proptest::prelude::*;

fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    [&Header::new(kind, body).expect("it fits").encode()[..], body].concat()
}

fn connect(agent: &Fake) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", agent.port())).expect("it listens");
    stream.set_read_timeout(Some(LONG)).expect("a deadline");
    stream
}

/// Sends bytes, says that there are no more, and reads all that comes back.
fn say(agent: &Fake, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(agent);
    // It may hang up while it is still spoken to.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn answer(bytes: &[u8]) -> (Kind, String) {
    let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().expect("a whole header");
    let header = Header::decode(head).expect("a frame");
    header.verify(body).expect("whole");
    (header.kind, String::from_utf8_lossy(body).into_owned())
}

fn refusal(agent: &Fake, bytes: &[u8]) -> String {
    let (kind, reason) = answer(&say(agent, bytes));
    assert_eq!(kind, Kind::Refused);
    reason
}

#[test]
fn a_refusal_says_why() {
    let agent = Fake::listening("a");
    assert!(refusal(&agent, &frame(Kind::Load, b"rubbish")).contains("no metadata"));
    let mut damaged = frame(Kind::Load, b"md:b:x");
    *damaged.last_mut().expect("it is not empty") ^= 1;
    assert!(refusal(&agent, &damaged).contains("damaged"));
    assert!(refusal(&agent, &frame(Kind::Done, b"")).contains("does not belong"));
    assert!(refusal(&agent, &frame(Kind::Forget, b"\xff")).contains("UTF-8"));
    let mut long = frame(Kind::Load, b"");
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    long.resize(1 << 20, 0);
    assert!(refusal(&agent, &long).contains("4294967295 bytes"));
    let mut version = frame(Kind::Fetch, b"");
    version[4] = 2;
    assert!(refusal(&agent, &version).contains("version 2"));
    assert_eq!(agent.calls(), []);
    assert_eq!(answer(&say(&agent, &frame(Kind::Fetch, b""))), (Kind::Metadata, "md:a:all".into()));
}

#[test]
fn strangers_are_hung_up_on() {
    let agent = Fake::listening("a");
    let nixl = [&21u64.to_le_bytes()[..], b"NIXLCOMM:LOADwhatever"].concat();
    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &nixl, b"", b"KV", &frame(Kind::Load, b"md:b:x")[..24]]
    {
        assert_eq!(say(&agent, bytes), b"", "{}", bytes.escape_ascii());
    }
    assert_eq!(agent.calls(), []);
}

#[test]
fn those_who_stall_are_hung_up_on_and_keep_nobody_out() {
    let agent = Fake::listening("a");
    let began = Instant::now();
    let mut stalled: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stream = connect(&agent);
            stream.write_all(&frame(Kind::Fetch, b"")[..i % 20]).expect("a few bytes are taken");
            stream
        })
        .collect();
    assert_eq!(answer(&say(&agent, &frame(Kind::Load, b"md:b:x"))).0, Kind::Done);
    assert!(began.elapsed() < Duration::from_secs(15), "three rounds of 64: {:?}", began.elapsed());
    let mut rest = Vec::new();
    let _ = stalled[0].read_to_end(&mut rest);
}

#[test]
fn a_drip_of_bytes_does_not_stretch_the_deadline() {
    let agent = Fake::listening("a");
    let mut stream = connect(&agent);
    let mut drips = stream.try_clone().expect("another handle");
    let dripping = std::thread::spawn(move || {
        let mut frame = frame(Kind::Load, &[7; 1000]).into_iter();
        // Until it is hung up on.
        frame.all(|byte| {
            std::thread::sleep(Duration::from_millis(150));
            drips.write_all(&[byte]).is_ok()
        })
    });
    let began = Instant::now();
    let _ = stream.read_to_end(&mut Vec::new());
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    drop(stream);
    assert!(!dripping.join().expect("no panic"), "not all of it was taken");
}

#[test]
fn an_end_in_the_middle_of_connections_is_an_end() {
    let agent = Fake::listening("a");
    let mut streams: Vec<TcpStream> = (0..10).map(|_| connect(&agent)).collect();
    for stream in &mut streams {
        stream.write_all(&frame(Kind::Load, &[7; 100_000])[..50_000]).expect("it is taken");
    }
    let began = Instant::now();
    let port = agent.port();
    drop(agent);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for stream in &mut streams {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is closed");
}

/// Keeps the lines that agent `noisy` logs.
struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        if line.contains("agent noisy:") {
            self.0.lock().expect("no panic").push(line);
        }
    }

    fn flush(&self) {}
}

#[test]
fn what_is_wrong_is_logged_once_and_a_flood_of_it_does_not_fill_the_log() {
    static LINES: Lines = Lines(Mutex::new(Vec::new()));
    log::set_logger(&LINES).expect("no other logger");
    log::set_max_level(log::LevelFilter::Warn);
    let agent = Fake::listening("noisy");
    let logged = || LINES.0.lock().expect("no panic").clone();
    assert_eq!(say(&agent, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), b"");
    eventually("it is logged", || !logged().is_empty());
    assert_eq!(say(&agent, b""), b"", "who says nothing did nothing wrong");
    for _ in 0..100 {
        refusal(&agent, &frame(Kind::Load, b"rubbish"));
    }
    let lines = logged();
    assert!(lines[0].contains("127.0.0.1:") && lines[0].contains("GET "), "{}", lines[0]);
    assert_eq!(lines.iter().filter(|line| line.contains("GET ")).count(), 1);
    assert!(lines[1..].iter().all(|line| line.contains("no metadata")), "{lines:?}");
    assert!((2..=20).contains(&lines.len()), "{} lines", lines.len());
}

/// One agent for all cases of the property tests.
static AGENT: LazyLock<Arc<Fake>> = LazyLock::new(|| Fake::listening("a"));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn whatever_comes_the_listener_goes_on(
        kind in prop::sample::select(&Kind::ALL[..]),
        body in prop::collection::vec(any::<u8>(), 0..300),
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
        cut in 0usize..400,
        raw: bool,
    ) {
        let body = match kind { Kind::Fetch | Kind::Done => &[][..], _ => &body[..] };
        let mut bytes = if raw { body.to_vec() } else { frame(kind, body) };
        for (at, value) in flips {
            let len = bytes.len();
            if let Some(byte) = bytes.get_mut(at % len.max(1)) {
                *byte = value;
            }
        }
        bytes.truncate(cut);
        let said = say(&AGENT, &bytes);
        if !said.is_empty() {
            answer(&said);
        }
        let loads = AGENT.calls().into_iter().filter(|call| matches!(call, Call::Load(_))).count();
        prop_assert_eq!(answer(&say(&AGENT, &frame(Kind::Load, &metadata("b", "x")))).0, Kind::Done);
        eventually("it is loaded", || AGENT.calls().into_iter().filter(|call| matches!(call, Call::Load(_))).count() > loads);
    }
}
