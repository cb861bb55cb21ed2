//! Whatever connects to the listening port and whatever it says: bounded, refused, and nothing else disturbed.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Initiator, Target, byte, fill, holds, quick};
use kvrail_transport::tcp::Config;

const LEN: usize = 1 << 20;
const GREETING_BYTES: usize = 56;
const ANSWER_BYTES: usize = 16;

fn connect(target: &Target) -> TcpStream {
    let stream = TcpStream::connect(target.tcp.listening()[0]).expect("it listens");
    stream.set_nonblocking(true).expect("a socket");
    stream
}

/// Reads until the other side closes; `None` if it does not within two seconds.
fn read_to_end(target: &mut Target, stream: &mut TcpStream) -> Option<Vec<u8>> {
    let end = Instant::now() + Duration::from_secs(2);
    let (mut all, mut bytes) = (Vec::new(), [0; 256]);
    while Instant::now() < end {
        target.poll();
        match stream.read(&mut bytes) {
            Ok(0) => return Some(all),
            Ok(n) => all.extend_from_slice(&bytes[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(100)),
            Err(_) => return Some(all),
        }
    }
    None
}

/// A greeting that the target will welcome; written by hand, so that a change of the format is noticed here.
fn greeting(target: &Target) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(b"kvrail/t");
    bytes[8] = 1;
    bytes[16] = 99;
    // The instance is behind magic, version and rails.
    bytes[32..48].copy_from_slice(&target.offer().address[8..24]);
    bytes[48] = 1;
    bytes
}

/// The target still serves its real peers.
fn serves(target: Target) {
    let mut initiator = Initiator::new(quick(), LEN);
    initiator.meet(&target.offer());
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = done.clone();
    let server = std::thread::spawn(move || {
        let mut target = target;
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            target.poll_for(Duration::from_millis(1));
        }
    });
    initiator.write_and_read_back(9, 10_000);
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    server.join().expect("the target survived");
}

#[test]
fn garbage_is_shown_out() {
    let mut target = Target::new(quick(), LEN);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4_096], b"kvrail/"] {
        let mut stream = connect(&target);
        stream.write_all(garbage).expect("buffered");
        let answer = read_to_end(&mut target, &mut stream).expect("it is closed");
        assert!(answer.is_empty(), "strangers are not talked to: {answer:?}");
    }
    assert_eq!(target.tcp.counters().strangers, 3);
    assert_eq!(target.tcp.connections(), 0);
    assert!(target.events.is_empty(), "nobody is told: {:?}", target.events);
    serves(target);
}

#[test]
fn who_does_not_know_the_instance_is_not_served() {
    let mut target = Target::new(quick(), LEN);
    let mut stream = connect(&target);
    let mut bytes = greeting(&target);
    bytes[32] ^= 1;
    stream.write_all(&bytes).expect("buffered");
    let answer = read_to_end(&mut target, &mut stream).expect("it is closed");
    assert_eq!((answer.len(), answer[10]), (ANSWER_BYTES, 1), "wrong instance");
    assert_eq!(target.tcp.counters().strangers, 1);
    serves(target);
}

#[test]
fn another_version_is_told_which_one_this_is() {
    let mut target = Target::new(quick(), LEN);
    let mut stream = connect(&target);
    let mut bytes = greeting(&target);
    bytes[8] = 200;
    stream.write_all(&bytes).expect("buffered");
    let answer = read_to_end(&mut target, &mut stream).expect("it is closed");
    assert_eq!(answer.len(), ANSWER_BYTES);
    assert_eq!((answer[8], answer[10]), (1, 2), "version 1, and the code that says that it matters");
    serves(target);
}

#[test]
fn connections_that_say_nothing_are_closed_by_deadline() {
    let mut target = Target::new(Config { connect_timeout: Duration::from_millis(100), ..quick() }, LEN);
    let mut streams: Vec<TcpStream> = (0..10).map(|_| connect(&target)).collect();
    // One byte at a time does not buy more time.
    let begin = Instant::now();
    let slow = greeting(&target);
    for b in slow.iter().take(20) {
        let _ = streams[0].write_all(&[*b]);
        target.poll_for(Duration::from_millis(10));
    }
    for stream in &mut streams {
        assert!(read_to_end(&mut target, stream).is_some(), "a silent connection stays open");
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!((target.tcp.counters().strangers, target.tcp.connections()), (10, 0));
    serves(target);
}

#[test]
fn half_open_connections_are_few() {
    let mut target = Target::new(Config { handshakes_max: 8, ..quick() }, LEN);
    let streams: Vec<TcpStream> = (0..100).map(|_| connect(&target)).collect();
    target.poll_for(Duration::from_millis(50));
    assert!(target.tcp.connections() <= 8, "{} half-open connections", target.tcp.connections());
    drop(streams);
    serves(target);
}

/// A welcomed connection.
fn welcomed(target: &mut Target) -> TcpStream {
    let mut stream = connect(target);
    stream.write_all(&greeting(target)).expect("buffered");
    let mut answer = Vec::new();
    let mut bytes = [0; ANSWER_BYTES];
    while answer.len() < ANSWER_BYTES {
        target.poll();
        if let Ok(n) = stream.read(&mut bytes) {
            answer.extend_from_slice(&bytes[..n]);
        }
    }
    assert_eq!((answer[8], answer[10]), (1, 0), "welcome");
    stream
}

#[test]
fn who_does_not_wait_for_the_welcome_is_shown_out() {
    let mut target = Target::new(quick(), LEN);
    let mut stream = connect(&target);
    let mut bytes = greeting(&target).to_vec();
    bytes.extend_from_slice(&[9; 16]);
    stream.write_all(&bytes).expect("buffered");
    assert!(read_to_end(&mut target, &mut stream).is_some());
    serves(target);
}

#[test]
fn hostile_frames_end_their_connection_and_touch_nothing() {
    let mut target = Target::new(quick(), LEN);
    fill(&target.memory, LEN, 4);
    let head = |kind: u8, code: u8, count: u16, len: u32, arg: u64| {
        let mut bytes = vec![kind, code];
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&arg.to_le_bytes());
        bytes
    };
    let table = |region: u32, generation: u32, offset: u64, len: u32| {
        let mut bytes = region.to_le_bytes().to_vec();
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes
    };
    let breaking = [
        ("an unknown frame", head(77, 0, 0, 0, 0)),
        ("no ops", head(1, 0, 0, 10, 0)),
        ("too many ops", head(1, 0, 65_535, 10, 0)),
        ("too much payload", head(1, 0, 1, u32::MAX, 0)),
        ("a message of 4 GiB", head(6, 0, 0, u32::MAX, 0)),
        ("an empty message", head(6, 0, 0, 0, 0)),
        ("data that nobody asked for", head(3, 0, 5, 4_096, 0)),
        ("an answer to nothing", head(4, 0, 0, 1, 0)),
        ("four billion answers", head(5, 1, 0, u32::MAX, 1)),
        ("a table that does not add up", [head(1, 0, 1, 100, 0), table(0, 1, 0, 99)].concat()),
        ("an op of no bytes", [head(2, 0, 1, 1, 0), table(0, 1, 0, 0)].concat()),
    ];
    for (what, bytes) in breaking {
        let mut stream = welcomed(&mut target);
        stream.write_all(&bytes).expect("buffered");
        assert!(read_to_end(&mut target, &mut stream).is_some(), "{what} is tolerated");
    }
    let refused = [
        ("beyond the end", table(0, 1, LEN as u64 - 1, 2)),
        ("around the end of the numbers", table(0, 1, u64::MAX, 2)),
        ("an old generation", table(0, 0, 0, 2)),
        ("an unknown region", table(u32::MAX, 1, 0, 2)),
    ];
    let mut stream = welcomed(&mut target);
    for (what, slice) in refused {
        stream.write_all(&[head(1, 0, 1, 2, 0), slice, vec![0xaa; 2]].concat()).expect("buffered");
        target.poll_for(Duration::from_millis(5));
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).expect("a refusal");
        assert_eq!((answer[0], answer[4], answer[8]), (5, 1, 1), "{what}");
    }
    assert!(holds(&target.memory, LEN, 4), "memory was touched");
    assert!(target.events.is_empty(), "{:?}", target.events);
    serves(target);
}

#[test]
fn random_frames_break_nothing() {
    let mut target = Target::new(quick(), LEN);
    for seed in 0..300u64 {
        let mut stream = welcomed(&mut target);
        let mut at = 0;
        let mut next = || {
            at += 1;
            byte(seed, at)
        };
        let mut bytes = Vec::new();
        for _ in 0..8 {
            // Plausible kinds and small counts, so that parsing gets far.
            bytes.extend([1 + next() % 9, next() % 3, next() % 4, 0, next(), next() % 2, 0, 0]);
            bytes.extend((0..8).map(|_| next() % 3));
            bytes.extend((0..usize::from(next()) * 2).map(|_| next() % 7));
        }
        let _ = stream.write_all(&bytes);
        target.poll_for(Duration::from_micros(300));
        drop(stream);
        target.events.clear();
    }
    target.poll_for(Duration::from_millis(20));
    assert_eq!(target.tcp.connections(), 0, "connections outlive their peers");
    serves(target);
}

#[test]
fn a_peer_that_asks_for_everything_and_reads_nothing_is_bounded() {
    let mut target = Target::new(quick(), LEN);
    let mut stream = welcomed(&mut target);
    // Reads of the whole region, 64 at a time, for ever; no answer is ever taken.
    let mut request = vec![2, 0, 64, 0];
    request.extend_from_slice(&(64u32 * LEN as u32).to_le_bytes());
    request.extend_from_slice(&[0; 8]);
    for _ in 0..64 {
        request.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
        request.extend_from_slice(&0u64.to_le_bytes());
        request.extend_from_slice(&(LEN as u32).to_le_bytes());
    }
    let mut asked = 0;
    let end = Instant::now() + Duration::from_secs(2);
    let mut closed = false;
    while Instant::now() < end && !closed {
        match stream.write(&request) {
            Ok(n) => asked += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => target.poll(),
            Err(_) => closed = true,
        }
    }
    assert!(closed, "{asked} bytes of requests were taken, and still more");
    serves(target);
}
