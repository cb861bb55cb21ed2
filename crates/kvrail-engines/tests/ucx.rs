//! The UCX engine over whatever UCX is installed: two processes, every byte compared.

#[path = "ucx/peer.rs"]
mod peer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail_engines::ucx::{Config, ErrorHandling, Ucx};
use kvrail_engines::{Blocks, Direction, Engine, EngineError, Kind, PeerId, Posting};
use peer::{ANSWER_MAX, Peer, bytes, config, fill, is_there, pattern};

const LEN: usize = 4 << 20;
const HERE: u64 = 0x1111;
const THERE: u64 = 0x2222_0000;

/// Not a test: the other process of those below.
#[test]
fn the_peer_of_another_test() {
    peer::serve();
}

struct Pair {
    engine: Ucx,
    memory: Memory,
    peer: Peer,
    id: PeerId,
}

impl Pair {
    fn meet(tls: &str, lanes: u32) -> Self {
        Self::with(config(tls), lanes)
    }

    fn with(config: Config, lanes: u32) -> Self {
        let peer = Peer::start(&config, LEN, lanes);
        let memory = Memory::shared(LEN).unwrap();
        let mut engine = Ucx::open(config).unwrap();
        engine.lanes(lanes).unwrap();
        engine.register(&memory).unwrap();
        let id = engine.connect(&peer.metadata, ANSWER_MAX).unwrap();
        Self { engine, memory, peer, id }
    }

    fn blocks<'a>(
        &self,
        direction: Direction,
        local: &'a [u64],
        remote: &'a [u64],
        bytes: u64,
    ) -> Blocks<'a> {
        Blocks {
            direction,
            peer: self.id,
            lane: 0,
            local,
            remote,
            block_bytes: bytes,
            notification: None,
            timeout: ANSWER_MAX,
        }
    }

    fn prepare(&self, blocks: &Blocks<'_>) -> Box<dyn Posting> {
        self.engine.prepare(blocks).unwrap()
    }
}

fn run(posting: &mut dyn Posting) -> Result<(), EngineError> {
    posting.post()?;
    posting.wait(ANSWER_MAX).expect("the posting ends")
}

/// Blocks in an order that no copy of a range makes, the last one at the memory's end, at odd offsets.
fn scattered(count: u64, block: u64) -> (Vec<u64>, Vec<u64>) {
    let stride = (LEN as u64 - block) / (count - 1).max(1);
    assert!(count == 1 || stride >= block);
    let local: Vec<u64> = (0..count).map(|i| i * stride).collect();
    let remote = (0..count).map(|i| LEN as u64 - block - ((i * 7) % count) * stride).collect();
    (local, remote)
}

/// What a memory must be after blocks were moved into it.
fn expect(before: u64, source: u64, from: &[u64], to: &[u64], block: u64) -> Vec<u8> {
    let mut all: Vec<u8> = (0..LEN as u64).map(|at| pattern(before, at)).collect();
    for (from, to) in from.iter().zip(to) {
        for at in 0..block {
            all[(to + at) as usize] = pattern(source, from + at);
        }
    }
    all
}

fn assert_same(seen: &[u8], expected: &[u8], what: &str) {
    let wrong = seen.iter().zip(expected).position(|(a, b)| a != b);
    assert!(seen.len() == expected.len() && wrong.is_none(), "{what}: byte {wrong:?} is wrong");
}

/// Writes and reads blocks of several sizes and compares both memories whole.
fn moves_the_right_bytes(tls: &str) {
    let mut pair = Pair::meet(tls, 1);
    for (count, block) in [(1, LEN as u64), (99, 32 << 10), (37, 4097), (4001, 512), (500, 8), (7, 1)] {
        let (local, remote) = scattered(count, block);
        for direction in [Direction::Write, Direction::Read] {
            fill(&pair.memory, HERE);
            pair.peer.fill(THERE);
            let mut posting = pair.prepare(&pair.blocks(direction, &local, &remote, block));
            for _ in 0..2 {
                run(&mut *posting).unwrap();
            }
            let what = format!("{tls}: {direction:?} of {count} blocks of {block} bytes");
            let (here, there) = match direction {
                Direction::Write => {
                    (expect(HERE, HERE, &[], &[], 0), expect(THERE, HERE, &local, &remote, block))
                }
                Direction::Read => {
                    (expect(HERE, THERE, &remote, &local, block), expect(THERE, THERE, &[], &[], 0))
                }
            };
            assert_same(&pair.peer.bytes(), &there, &format!("{what}, there"));
            assert_same(&bytes(&pair.memory), &here, &format!("{what}, here"));
        }
    }
    let used = &pair.engine.used()[0];
    let asked: Vec<&str> = tls.split(',').collect();
    for transport in used.transport.split('+') {
        assert!(asked.contains(&transport), "{used:?}");
    }
    // UCX gives estimates; a report shall not take them for measurements.
    assert!(used.facts.iter().all(|fact| !fact.value.contains("MB/s")), "{used:?}");
    assert_eq!(!used.rails.is_empty(), used.transport.contains("tcp"), "{used:?}");
    assert!(used.facts.iter().any(|fact| fact.name == "lanes" && fact.value.contains('/')), "{used:?}");
}

#[test]
fn puts_and_gets_move_the_right_bytes_over_tcp() {
    if is_there("UCX over tcp") {
        moves_the_right_bytes("tcp");
    }
}

#[test]
fn puts_and_gets_move_the_right_bytes_over_cma() {
    if is_there("UCX over cma") {
        moves_the_right_bytes("cma,posix");
    }
}

#[test]
fn puts_and_gets_move_the_right_bytes_over_posix_shared_memory() {
    if is_there("UCX over posix") {
        moves_the_right_bytes("posix");
    }
}

#[test]
fn puts_and_gets_move_the_right_bytes_over_system_v_shared_memory() {
    if is_there("UCX over sysv") {
        moves_the_right_bytes("sysv");
    }
}

#[test]
fn with_and_without_error_handling_it_moves_the_same_bytes() {
    if !is_there("UCX with and without error handling") {
        return;
    }
    for handling in [ErrorHandling::Peer, ErrorHandling::None] {
        let config = Config { error_handling: Some(handling), ..config("sysv,posix,tcp") };
        let mut pair = Pair::with(config, 1);
        let (local, remote) = scattered(100, 4096);
        fill(&pair.memory, HERE);
        pair.peer.fill(THERE);
        run(&mut *pair.prepare(&pair.blocks(Direction::Write, &local, &remote, 4096))).unwrap();
        assert_same(&pair.peer.bytes(), &expect(THERE, HERE, &local, &remote, 4096), "there");
    }
}

#[test]
fn lanes_post_from_threads_of_their_own() {
    if !is_there("UCX on several threads") {
        return;
    }
    let mut pair = Pair::meet("tcp", 3);
    fill(&pair.memory, HERE);
    pair.peer.fill(THERE);
    let (local, remote) = scattered(300, 4096);
    let postings: Vec<Box<dyn Posting>> = (0..3)
        .map(|lane| {
            let part = lane * 100..(lane + 1) * 100;
            let blocks = pair.blocks(Direction::Write, &local[part.clone()], &remote[part], 4096);
            pair.prepare(&Blocks { lane: lane as u32, ..blocks })
        })
        .collect();
    std::thread::scope(|scope| {
        for mut posting in postings {
            scope.spawn(move || {
                for _ in 0..20 {
                    run(&mut *posting).unwrap();
                }
            });
        }
    });
    assert_same(&pair.peer.bytes(), &expect(THERE, HERE, &local, &remote, 4096), "there");
}

#[test]
fn a_notification_comes_once_per_posting() {
    if !is_there("UCX notifications") {
        return;
    }
    let mut pair = Pair::meet("tcp", 1);
    for direction in [Direction::Write, Direction::Read] {
        let blocks = pair.blocks(direction, &[0, 8192], &[4096, 0], 4096);
        let mut posting = pair.prepare(&Blocks { notification: Some(b"request 42"), ..blocks });
        for _ in 0..5 {
            run(&mut *posting).unwrap();
        }
        assert_eq!(pair.peer.notifications(5), 5);
    }
    assert_eq!(pair.peer.notifications(1), 0);
}

/// Writes until the peer, killed meanwhile, makes that fail.
fn loses_its_peer(tls: &str) {
    let mut pair = Pair::meet(tls, 1);
    let (local, remote) = scattered(100, 32 << 10);
    let blocks = pair.blocks(Direction::Write, &local, &remote, 32 << 10);
    let mut posting = pair.prepare(&Blocks { timeout: Duration::from_secs(1), ..blocks });
    run(&mut *posting).unwrap();
    posting.post().unwrap();
    pair.peer.kill();
    let begin = Instant::now();
    // What was in flight may have ended before; what is posted afterwards cannot.
    let mut ended = posting.wait(ANSWER_MAX).expect("it ends");
    while ended.is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{tls}: writes to a dead process go on and on");
        ended = run(&mut *posting);
    }
    let error = ended.unwrap_err();
    assert_eq!(error.kind, Kind::Peer, "{tls}: {error}");
    assert!(!error.hints.is_empty() && begin.elapsed() < Duration::from_secs(10), "{tls}: {error}");
    let again = run(&mut *posting).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(15), "{tls}: {again}");
}

#[test]
fn a_killed_peer_is_an_error_of_the_peer_in_time() {
    if !is_there("UCX and a killed peer") {
        return;
    }
    loses_its_peer("tcp");
    loses_its_peer("posix");
}

/// Set in a process that may not survive its peer.
const FRAIL: &str = "KVRAIL_UCX_TEST_FRAIL";

#[test]
fn a_killed_peer_under_cma_is_an_error_or_ucx_ends_the_process() {
    if std::env::var_os(FRAIL).is_some() {
        return loses_its_peer("cma,posix");
    }
    if !is_there("UCX over cma and a killed peer") {
        return;
    }
    // A UCX that was built with its assertions aborts when the kernel refuses the copy: why an engine has a process of its own.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_peer_under_cma_is_an_error_or_ucx_ends_the_process"])
        .env(FRAIL, "1")
        .output()
        .unwrap();
    let aborted = std::os::unix::process::ExitStatusExt::signal(&output.status)
        == Some(rustix::process::Signal::ABORT.as_raw());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed") || aborted, "{:?}: {said}", output.status);
}

#[test]
fn a_stopped_peer_is_given_up_by_the_deadline_and_what_was_in_flight_ends() {
    if !is_there("UCX and a stopped peer") {
        return;
    }
    for tls in ["tcp", "posix"] {
        let pair = Pair::meet(tls, 1);
        pair.peer.stop();
        let (local, remote) = scattered(100, 32 << 10);
        let blocks = pair.blocks(Direction::Read, &local, &remote, 32 << 10);
        let mut posting = pair.prepare(&Blocks { timeout: Duration::from_millis(300), ..blocks });
        let begin = Instant::now();
        let error = run(&mut *posting).unwrap_err();
        assert_eq!(error.kind, Kind::Peer, "{tls}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{tls}: {:?}", begin.elapsed());
        assert!(error.what.contains("did not end within 300ms"), "{tls}: {error}");
    }
}

#[test]
fn a_posting_that_is_given_up_ends_and_says_so() {
    if !is_there("UCX and a posting that is given up") {
        return;
    }
    let pair = Pair::meet("tcp", 1);
    pair.peer.stop();
    let mut posting = pair.prepare(&pair.blocks(Direction::Read, &[0], &[0], 1 << 20));
    posting.post().unwrap();
    assert!(posting.poll().is_none());
    posting.cancel();
    let error = posting.wait(Duration::from_secs(5)).expect("it ends").unwrap_err();
    assert!(error.what.contains("was given up"), "{error}");
}

#[test]
fn a_peer_that_is_not_driven_is_an_error_by_the_deadline() {
    if !is_there("UCX and a peer that does not answer") {
        return;
    }
    let peer = Peer::start(&config("tcp"), LEN, 1);
    peer.stop();
    let mut engine = Ucx::open(config("tcp")).unwrap();
    engine.register(&Memory::shared(LEN).unwrap()).unwrap();
    let begin = Instant::now();
    let error = engine.connect(&peer.metadata, Duration::from_millis(300)).unwrap_err();
    assert_eq!(error.kind, Kind::Peer, "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn what_cannot_be_is_refused_before_ucx_sees_it() {
    if !is_there("UCX and wrong blocks") {
        return;
    }
    let pair = Pair::meet("tcp", 1);
    let len = LEN as u64;
    for (local, remote, bytes) in [
        (&[len - 7][..], &[0][..], 8),
        (&[0], &[len - 7], 8),
        (&[u64::MAX], &[0], 8),
        (&[0], &[u64::MAX - 3], 8),
        (&[0, 8], &[0], 8),
        (&[0], &[0], 0),
        (&[], &[], 8),
    ] {
        let refused = pair.engine.prepare(&pair.blocks(Direction::Write, local, remote, bytes));
        assert_eq!(refused.err().expect("refused").kind, Kind::Usage, "{local:?} {remote:?}");
    }
    let blocks = pair.blocks(Direction::Write, &[0], &[0], 8);
    assert!(pair.engine.prepare(&Blocks { lane: 1, ..blocks }).is_err());
    assert!(pair.engine.prepare(&Blocks { peer: PeerId(1), ..blocks }).is_err());
    let mut posting = pair.prepare(&blocks);
    assert!(matches!(posting.poll(), Some(Err(_))), "nothing was posted");
}

#[test]
fn a_library_that_is_not_there_or_is_none_is_named_with_what_to_do() {
    let open = |library: &Path| {
        Ucx::open(Config { library: Some(library.into()), ..Config::default() }).err().expect("refused")
    };
    let error = open(Path::new("/no/such/place/libucp.so.0"));
    assert_eq!(error.kind, Kind::Environment);
    assert!(error.what.contains("/no/such/place/libucp.so.0") && !error.hints.is_empty(), "{error}");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc: PathBuf = maps
        .lines()
        .find_map(|l| l.split_whitespace().last().filter(|p| p.contains("/libc.so")))
        .unwrap()
        .into();
    let error = open(&libc);
    assert!(error.what.contains("is no UCP: it is libc.so.6"), "{error}");
}

#[test]
fn transports_that_are_not_there_are_an_error_of_the_environment() {
    if !is_there("UCX without transports") {
        return;
    }
    let error = Ucx::open(config("no_such_transport")).err().expect("refused");
    assert_eq!(error.kind, Kind::Environment, "{error}");
    assert!(error.hints.iter().any(|hint| hint.contains("UCX_TLS")), "{error:?}");
}
