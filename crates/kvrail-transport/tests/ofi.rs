//! What the libfabric transport promises beyond the common contract, on the `tcp` provider: everybody has it. Skipped, and
//! said so, where no libfabric is found.

use std::time::{Duration, Instant};

use kvrail_core::id::{Generation, LocalRail, PeerId, RailSet, RegionId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Device, Direction, Event, Op, OpError, PeerError, PostError, RegionInfo, Transport,
};
use kvrail_transport::Fabric;
use kvrail_transport::memory::{Options, PrivateMemory};
use kvrail_transport::ofi::{Config, Ofi, Provider};

const PATIENCE: Duration = Duration::from_secs(10);
const ROUTE: Route = Route { local: LocalRail(0), remote: RemoteRail(0) };

fn config() -> Config {
    Config {
        provider: Provider::Named("tcp".into()),
        devices: vec!["lo".into()],
        rails: Some(2),
        stall_timeout: Duration::from_millis(300),
        ..Config::default()
    }
}

/// One side of a pair.
struct Side {
    ofi: Ofi,
    origin: Instant,
    events: Vec<Event>,
}

impl Side {
    fn open(config: Config, origin: Instant) -> Option<Self> {
        match Ofi::new(config) {
            Ok(ofi) => Some(Self { ofi, origin, events: Vec::new() }),
            Err(error) => {
                eprintln!("SKIPPED libfabric's tcp: {error}");
                None
            }
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    fn poll(&mut self) {
        let now = self.now();
        self.ofi.poll(now, &mut self.events);
    }

    fn address(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.ofi.address(&mut bytes);
        bytes
    }

    fn add(&mut self, peer: PeerId, address: &[u8]) -> Result<usize, PeerError> {
        let now = self.now();
        self.ofi.add_peer(now, peer, address).map(|rails| rails.len())
    }

    fn register(&mut self, id: u32, memory: &PrivateMemory) -> RegionInfo {
        let info = RegionInfo {
            id: RegionId(id),
            generation: Generation(1),
            base: memory.as_ptr().expose_provenance() as u64,
            len: memory.len() as u64,
            device: Device::Host,
        };
        self.ofi.register(&info).unwrap();
        info
    }

    fn key(&self, id: u32) -> Vec<u8> {
        let mut key = Vec::new();
        self.ofi.region_key(RegionId(id), &mut key);
        key
    }

    fn post(
        &mut self,
        peer: PeerId,
        direction: Direction,
        token: Token,
        ops: &[Op],
    ) -> Result<usize, PostError> {
        let now = self.now();
        let batch = Batch { peer, route: ROUTE, direction, token, first: 0, ops, immediate: None };
        self.ofi.post(now, &batch)
    }

    fn ended(&self, token: Token) -> (u32, u32) {
        let count = |event: &Event| match event {
            Event::Completed { token: of, count, .. } if *of == token => (*count, 0),
            Event::Failed { token: of, count, .. } if *of == token => (0, *count),
            _ => (0, 0),
        };
        self.events.iter().map(count).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

fn memory(len: usize) -> PrivateMemory {
    PrivateMemory::allocate(len, Options::default()).unwrap()
}

const A: PeerId = PeerId { slot: 0, generation: Generation(1) };
const B: PeerId = PeerId { slot: 1, generation: Generation(1) };
const TOKEN: Token = Token { slot: 1, generation: Generation(1) };

/// Two sides that know each other; `None` where there is no libfabric.
fn pair(config: &Config) -> Option<(Side, Side)> {
    let origin = Instant::now();
    let (mut a, mut b) = (Side::open(config.clone(), origin)?, Side::open(config.clone(), origin)?);
    a.add(B, &b.address()).unwrap();
    b.add(A, &a.address()).unwrap();
    Some((a, b))
}

/// Memory of both, as regions 1 and 2; the second is known to the first, with the key that is given back.
fn registered(
    a: &mut Side,
    b: &mut Side,
    here: &PrivateMemory,
    there: &PrivateMemory,
) -> (RegionInfo, RegionInfo, Vec<u8>) {
    let (mine, info) = (a.register(1, here), b.register(2, there));
    let key = b.key(2);
    a.ofi.import_region(B, &info, &key).unwrap();
    (mine, info, key)
}

fn until(a: &mut Side, b: &mut Side, what: &str, mut holds: impl FnMut(&mut Side, &mut Side) -> bool) {
    let begun = Instant::now();
    while !holds(a, b) {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for this: {what}");
        a.poll();
        b.poll();
        std::thread::yield_now();
    }
}

/// Posts until taken, and waits until all have ended.
fn moved(a: &mut Side, b: &mut Side, direction: Direction, token: Token, ops: &[Op]) {
    let mut taken = 0;
    until(a, b, "the ops are taken", |a, _| {
        taken += a.post(B, direction, token, &ops[taken..]).unwrap_or(0);
        taken == ops.len()
    });
    until(a, b, "the ops end", |a, _| a.ended(token).0 + a.ended(token).1 == ops.len() as u32);
    assert_eq!(a.ended(token), (ops.len() as u32, 0), "{:?}", a.events);
}

fn op(local_offset: u64, remote_offset: u64, len: u32) -> Op {
    Op { local_offset, remote_offset, local_region: RegionId(1), remote_region: RegionId(2), len }
}

#[test]
fn what_was_found_and_chosen_is_told() {
    let Some((a, _b)) = pair(&config()) else { return };
    let facts = a.ofi.facts();
    assert_eq!((facts.provider.as_str(), facts.rails.len()), ("tcp", 2));
    assert!(facts.control_bytes <= 2 * (64 << 20) / 32, "{} bytes for two rails", facts.control_bytes);
    assert!(facts.library.path.exists() && !facts.library.release.is_empty());
    assert!(facts.to_string().contains("evidence    delivered"), "{facts}");
}

#[test]
fn what_is_asked_for_and_cannot_be_had_is_an_error_that_names_it() {
    let Some(_) = Side::open(config(), Instant::now()) else { return };
    let named = |provider: &str| Config { provider: Provider::Named(provider.into()), ..Config::default() };
    let error = Ofi::new(named("no-such")).unwrap_err().to_string();
    assert!(error.contains("no-such"), "{error}");
    let error = Ofi::new(Config { devices: vec!["nic7".into()], ..config() }).unwrap_err().to_string();
    assert!(error.contains("nic7") && error.contains("tcp"), "{error}");
    let error = Ofi::new(Config { library: Some("/nowhere/libfabric.so.1".into()), ..config() }).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[test]
fn a_peer_of_another_provider_is_refused_with_both_names() {
    let origin = Instant::now();
    let Some(mut a) = Side::open(config(), origin) else { return };
    let shm = Config { provider: Provider::Named("shm".into()), devices: Vec::new(), ..config() };
    let Some(b) = Side::open(shm, origin) else { return };
    let Err(PeerError::Unreachable(why)) = a.add(B, &b.address()) else { panic!("a stranger was taken") };
    assert!(why.contains("shm") && why.contains("tcp"), "{why}");
}

#[test]
fn ops_across_the_pieces_of_a_large_region_land_whole() {
    let config = Config { region_chunk_bytes: 64 << 20, ..config() };
    let Some((mut a, mut b)) = pair(&config) else { return };
    let len = 150 << 20;
    let (here, there) = (memory(len), memory(len));
    registered(&mut a, &mut b, &here, &there);
    // Pieces overlap by the longest op: whatever begins in one ends in it.
    let longest = u64::from(a.ofi.caps().op_bytes_max);
    let stride = (64 << 20) - longest;
    let mut token = TOKEN;
    for at in [0, stride - 1, stride, (64 << 20) - 100, 2 * stride - 50, len as u64 - longest] {
        for (direction, size) in [(Direction::Write, longest as u32), (Direction::Read, 77_777)] {
            let byte = (at % 251) as u8 + token.slot as u8;
            let (source, target) = match direction {
                Direction::Write => (&here, &there),
                Direction::Read => (&there, &here),
            };
            source.fill(at as usize, size as usize, byte);
            target.fill(at as usize, size as usize, !byte);
            token.slot += 1;
            moved(&mut a, &mut b, direction, token, &[op(at, at, size)]);
            let mut bytes = vec![0; size as usize];
            target.read(at as usize, &mut bytes);
            assert!(bytes.iter().all(|b| *b == byte), "{direction} at {at}");
        }
    }
    let cost = a.ofi.registration_cost();
    assert_eq!((cost.regions, cost.registrations), (1, 6), "three pieces on each of two rails");
}

#[test]
fn a_key_of_another_length_or_tenant_is_refused() {
    let Some((mut a, mut b)) = pair(&config()) else { return };
    let there = memory(1 << 16);
    let info = b.register(2, &there);
    let key = b.key(2);
    for wrong in [RegionInfo { len: info.len * 2, ..info }, RegionInfo { generation: Generation(9), ..info }]
    {
        let answer = a.ofi.import_region(B, &wrong, &key);
        assert!(matches!(answer, Err(PeerError::Malformed(_))), "{answer:?}");
    }
    for cut in 0..key.len() {
        assert!(a.ofi.import_region(B, &info, &key[..cut]).is_err(), "a key cut to {cut} bytes was taken");
    }
    a.ofi.import_region(B, &info, &key).unwrap();
    assert_eq!(a.ofi.imported_rails(B, RegionId(2)), RailSet::from_bits(0b11));
}

#[test]
fn a_reset_replaces_the_endpoint_of_ops_and_peers_find_the_new_one() {
    let Some((mut a, mut b)) = pair(&config()) else { return };
    let (here, there) = (memory(1 << 20), memory(1 << 20));
    let mine = registered(&mut a, &mut b, &here, &there).0;
    moved(&mut a, &mut b, Direction::Write, TOKEN, &[op(0, 0, 100)]);
    let before = a.address();

    // The peer is silent: what is posted stays in flight.
    let token = Token { slot: 7, ..TOKEN };
    let ops: Vec<Op> = (0..20).map(|i| op(i * 1_000, i * 2_000, 900)).collect();
    assert_eq!(a.post(B, Direction::Write, token, &ops), Ok(20));
    a.poll();
    assert_eq!(a.ended(token), (0, 0));
    let now = a.now();
    a.ofi.reset(now, B, ROUTE);
    a.poll();
    assert_eq!(a.ended(token), (0, 20));
    assert!(
        a.events
            .iter()
            .any(|e| matches!(e, Event::Failed { token: t, error: OpError::Flushed, .. } if *t == token))
    );
    assert!(a.events.contains(&Event::AddressChanged), "immediates may have been missed");
    assert_eq!(a.address(), before, "where messages go is what it was");

    // The peer wakes, and hears of the new endpoint without being told by the engine.
    let token = Token { slot: 8, ..TOKEN };
    moved(&mut a, &mut b, Direction::Write, token, &ops);
    let key = a.key(1);
    b.ofi.import_region(A, &RegionInfo { id: RegionId(2), ..mine }, &key).unwrap();
    b.register(1, &there);
    let token = Token { slot: 9, ..TOKEN };
    let mut taken = 0;
    until(&mut a, &mut b, "the peer reaches the new endpoint", |_, b| {
        taken += b.post(A, Direction::Read, token, &ops[taken..1]).unwrap_or(0);
        b.ended(token).0 == 1
    });
    let now = b.now();
    assert_eq!(b.ofi.readdress(now, A, &before), Ok(false), "nothing new");
    let other = Side::open(config(), a.origin).unwrap();
    assert!(b.ofi.readdress(now, A, &other.address()).is_err(), "another life's address");
}

/// The engine gives a peer up and meets it again at once. What is in flight to the first acquaintance goes where the ops of the second go.
#[test]
fn ops_of_a_peer_that_was_removed_end_also_when_it_was_added_again() {
    let Some((mut a, mut b)) = pair(&Config { rails: Some(1), ..config() }) else { return };
    let len = 32 << 20;
    let (here, there) = (memory(len), memory(len));
    let (_, info, key) = registered(&mut a, &mut b, &here, &there);
    moved(&mut a, &mut b, Direction::Write, TOKEN, &[op(0, 0, 100)]);

    // Far more than the peer takes while it answers a few words.
    let token = Token { slot: 7, ..TOKEN };
    let ops: Vec<Op> = (0..200).map(|_| op(0, 0, len as u32)).collect();
    assert_eq!(a.post(B, Direction::Write, token, &ops), Ok(200));
    a.poll();
    let (now, again) = (a.now(), PeerId { generation: Generation(2), ..B });
    a.ofi.remove_peer(now, B);
    a.add(again, &b.address()).unwrap();
    a.ofi.import_region(again, &info, &key).unwrap();
    let second = Token { slot: 8, ..TOKEN };
    until(&mut a, &mut b, "an op of the second acquaintance is taken", |a, _| {
        a.post(again, Direction::Write, second, &[op(0, 0, 100)]).is_ok_and(|taken| taken == 1)
    });
    assert!(a.ended(token).0 < 200, "the peer took more than was thought; nothing is shown");

    // From here on the peer is silent.
    let now = a.now();
    a.ofi.reset(now, B, ROUTE);
    a.poll();
    let (done, failed) = a.ended(token);
    assert_eq!(done + failed, 200, "a reset leaves nothing in flight of the peer that it names");
    assert!(failed > 0);
    // It cost the other one its op too, which ended as well.
    assert_eq!(a.ended(second).0 + a.ended(second).1, 1);
}

#[test]
fn both_sides_replace_everything_at_once_and_find_each_other() {
    let Some((mut a, mut b)) = pair(&Config { rails: Some(1), ..config() }) else { return };
    let (here, there) = (memory(1 << 20), memory(1 << 20));
    let mine = registered(&mut a, &mut b, &here, &there).0;
    let key = a.key(1);
    b.ofi.import_region(A, &RegionInfo { id: RegionId(2), ..mine }, &key).unwrap();
    b.register(1, &there);
    let read = |b: &mut Side, token| b.post(A, Direction::Read, token, &[op(0, 0, 100)]);
    moved(&mut a, &mut b, Direction::Write, TOKEN, &[op(0, 0, 100)]);
    let mut taken = 0;
    until(&mut a, &mut b, "the way back is open", |_, b| {
        if taken == 0 {
            taken = read(b, TOKEN).unwrap_or(0);
        }
        b.ended(TOKEN).0 == 1
    });
    for round in 0..5 {
        // Neither hears the other while both have something in flight, and both are reset.
        let token = Token { slot: 20 + round, ..TOKEN };
        assert_eq!(a.post(B, Direction::Write, token, &[op(0, 0, 100)]), Ok(1));
        assert_eq!(read(&mut b, token), Ok(1));
        let now = a.now();
        a.ofi.reset(now, B, ROUTE);
        b.ofi.reset(now, A, ROUTE);
        a.poll();
        b.poll();
        // Each has ended, whichever way: an end of one is progress of the other.
        for (done, failed) in [a.ended(token), b.ended(token)] {
            assert_eq!(done + failed, 1);
        }
        let token = Token { slot: 40 + round, ..TOKEN };
        moved(&mut a, &mut b, Direction::Write, token, &[op(0, 0, 100)]);
        let mut taken = 0;
        until(&mut a, &mut b, "the way back is open again", |_, b| {
            if taken == 0 {
                taken = read(b, token).unwrap_or(0);
            }
            b.ended(token).0 == 1
        });
    }
    assert!(!a.events.iter().chain(&b.events).any(|event| matches!(event, Event::PeerGone { .. })));
}

#[test]
fn a_reset_with_nothing_in_flight_changes_nothing() {
    let Some((mut a, mut b)) = pair(&config()) else { return };
    let before = a.address();
    let now = a.now();
    a.ofi.reset(now, B, ROUTE);
    until(&mut a, &mut b, "a while passes", |a, _| a.now() > now + Duration::from_millis(20));
    assert_eq!((a.address() == before, a.events.len()), (true, 0));
}

#[test]
fn a_peer_that_is_gone_is_not_full_for_ever() {
    let Some((mut a, mut b)) = pair(&config()) else { return };
    let (here, there) = (memory(1 << 16), memory(1 << 16));
    registered(&mut a, &mut b, &here, &there);
    moved(&mut a, &mut b, Direction::Write, TOKEN, &[op(0, 0, 100)]);
    drop(b);
    let token = Token { slot: 5, ..TOKEN };
    let begun = Instant::now();
    loop {
        a.poll();
        match a.post(B, Direction::Write, token, &[op(0, 0, 100)]) {
            Err(PostError::RouteDown) => break,
            Ok(0) => {}
            Ok(_) => {
                let begun = Instant::now();
                while a.ended(token) == (0, 0) && begun.elapsed() < PATIENCE {
                    a.poll();
                }
                assert_eq!(a.ended(token).0, 0, "a write to nobody succeeded");
                a.events.clear();
            }
            Err(error) => panic!("{error:?}"),
        }
        assert!(begun.elapsed() < PATIENCE, "a peer that is gone is just full");
    }
}

#[test]
fn a_sleeper_wakes_when_a_message_comes_and_sleeps_when_none_does() {
    for provider in ["tcp", "shm"] {
        let devices = if provider == "tcp" { vec!["lo".into()] } else { Vec::new() };
        let config =
            Config { provider: Provider::Named(provider.into()), devices, rails: Some(1), ..config() };
        let Some((mut a, mut b)) = pair(&config) else { continue };
        let now = a.now();
        until(&mut a, &mut b, "it is sent", |a, _| a.ofi.send(now, B, ROUTE, b"first").unwrap());
        until(&mut a, &mut b, "it comes", |_, b| b.events.iter().any(|e| matches!(e, Event::Message { .. })));
        b.events.clear();
        assert!(a.ofi.send(now, B, ROUTE, b"second").unwrap());
        a.poll();
        let begun = Instant::now();
        while b.events.is_empty() {
            if b.ofi.arm() {
                let mut poll = libc_poll(b.ofi.wait_fd());
                // SAFETY: one entry, which lives during the call.
                let ready = unsafe { libc::poll(&mut poll, 1, 2_000) };
                assert_eq!(ready, 1, "{provider}: nobody woke the sleeper");
            }
            b.poll();
            a.poll();
            assert!(begun.elapsed() < PATIENCE);
        }
        assert!(matches!(&b.events[0], Event::Message { bytes, .. } if bytes == b"second"));
    }
}

fn libc_poll(fd: std::os::fd::RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

#[test]
fn rails_count_what_goes_over_them() {
    let Some((mut a, mut b)) = pair(&config()) else { return };
    let (here, there) = (memory(1 << 16), memory(1 << 16));
    registered(&mut a, &mut b, &here, &there);
    let ops: Vec<Op> = (0..30).map(|i| op(i * 1_000, i * 1_000, 500)).collect();
    moved(&mut a, &mut b, Direction::Write, TOKEN, &ops);
    // Beside the ops, the words of the introduction.
    let counters = a.ofi.rail_counters();
    let (posted, completed) = (counters[0].posted, counters[0].completed);
    assert!((30..40).contains(&completed) && (completed..40).contains(&posted), "{counters:?}");
    assert_eq!(counters[0].failed, 0);
    assert_eq!((counters[1].posted, counters.len()), (0, 2));
    assert!(counters[0].device.is_some(), "an interface counts packets");
}

/// Set in the process that ends.
const ENDS: &str = "KVRAIL_TEST_PROCESS_ENDS";

#[test]
fn a_process_may_end_while_another_thread_polls_its_transports() {
    let name = "a_process_may_end_while_another_thread_polls_its_transports";
    if std::env::var_os(ENDS).is_some() {
        return end_while_polled();
    }
    for _ in 0..10 {
        let program = std::env::current_exe().expect("this program has a file");
        let ended = std::process::Command::new(program)
            .args(["--exact", name, "--nocapture"])
            .env(ENDS, "1")
            .output()
            .expect("it starts");
        assert!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
    }
}

/// Two sides that write to each other without an end, on a thread that nobody joins, until `exit` is called.
fn end_while_polled() {
    let (moved, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let Some((mut a, mut b)) = pair(&config()) else { return drop(moved) };
        loop {
            for (side, peer) in [(&mut a, B), (&mut b, A)] {
                let now = side.now();
                let _ = side.ofi.send(now, peer, ROUTE, &[7; 2_000]);
                side.poll();
                side.events.clear();
                let _ = side.ofi.arm();
            }
            let _ = moved.send(());
        }
    });
    // Until it moves, or until it is known that there is no libfabric.
    let _ = heard.recv_timeout(PATIENCE);
    std::thread::sleep(Duration::from_millis(5));
    std::process::exit(0);
}
