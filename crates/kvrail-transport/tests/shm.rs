//! Shared memory within one process: messages, deregistration under fire, many peers, hostile input.
#![cfg(target_os = "linux")]

mod shm_support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kvrail_core::id::{Generation, RegionId};
use kvrail_core::limits::MESSAGE_BYTES_MIN;
use kvrail_core::transport::{Direction, OpError, PeerError, PostError, RegionInfo, Transport};
use kvrail_transport::Fabric;
use kvrail_transport::memory::{HugePages, Options, PrivateMemory, SharedMemory};
use kvrail_transport::shm::Config;
use proptest::prelude::*;
use shm_support::{Agent, bytes, info, op, paint, pattern, peer, until};

/// Two agents that know each other.
fn pair() -> (Agent, Agent) {
    let (mut a, mut b) = (Agent::new(Config::default()), Agent::new(Config::default()));
    a.add(0, &b.address());
    b.add(0, &a.address());
    until("both are connected", || {
        a.poll();
        b.poll();
        a.send(0, b"") && b.send(0, b"")
    });
    until("both have heard", || {
        a.poll();
        b.poll();
        !a.messages.is_empty() && !b.messages.is_empty()
    });
    a.messages.clear();
    b.messages.clear();
    (a, b)
}

#[test]
fn messages_of_every_size_arrive_in_order_around_the_ring() {
    let (mut a, mut b) = pair();
    let message =
        |i: usize| -> Vec<u8> { (0..(i * 613) % (MESSAGE_BYTES_MIN + 1)).map(|j| (i + j) as u8).collect() };
    let (mut sent, mut refused) = (0, 0);
    let count = 3_000;
    let mut got = 0;
    while got < count {
        while sent < count && a.send(0, &message(sent)) {
            sent += 1;
        }
        refused += 1;
        b.poll();
        for bytes in b.messages.drain(..) {
            assert_eq!(bytes, message(got));
            got += 1;
        }
    }
    assert!(refused > 10, "the ring was never full");
    let now = a.now();
    let long = vec![0; MESSAGE_BYTES_MIN + 1];
    assert_eq!(a.shm.send(now, peer(0), shm_support::ROUTE, &long), Err(PostError::TooLong));
}

#[test]
fn a_full_inbox_is_backpressure_and_wakes_nobody_in_vain() {
    let (mut a, mut b) = pair();
    let mut taken = 0;
    while a.send(0, &[7; 1000]) {
        taken += 1;
        assert!(taken < 10_000, "the inbox has no bound");
    }
    assert!(a.shm.poll_timeout().is_some(), "a refused sender wants to be called again");
    until("all that was taken arrives", || {
        b.poll();
        b.messages.len() == taken
    });
    assert!(a.send(0, b"again"));
}

#[test]
fn many_senders_share_one_inbox() {
    let mut hub = Agent::new(Config::default());
    let address = hub.address();
    let senders: Vec<_> = (0..4u8)
        .map(|me| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut agent = Agent::new(Config::default());
                agent.add(0, &address);
                for i in 0..2_000u32 {
                    let mut message = vec![me; 8 + (i as usize * 37) % 600];
                    message[1..5].copy_from_slice(&i.to_le_bytes());
                    until("the message is taken", || {
                        agent.poll();
                        agent.send(0, &message)
                    });
                }
                // Stay until everything was read, as a closed agent is told to be gone.
                agent
            })
        })
        .collect();
    let mut next = [0u32; 4];
    until("all have arrived", || {
        hub.poll();
        for message in hub.messages.drain(..) {
            let me = message[0] as usize;
            let i = u32::from_le_bytes([message[1], message[2], message[3], message[4]]);
            assert_eq!(i, next[me], "in order per sender");
            assert_eq!(message.len(), 8 + (i as usize * 37) % 600);
            assert!(message[5..].iter().all(|b| usize::from(*b) == me));
            next[me] += 1;
        }
        if next == [2_000; 4] {
            return true;
        }
        hub.sleep(Duration::from_millis(5));
        false
    });
    drop(senders);
}

/// One thread writes without pause into a region; the owner takes the region away and uses the memory for something
/// else. No byte may land after `deregister` has returned.
#[test]
fn nothing_lands_after_deregistration() {
    for shared in [true, false] {
        let shared_memory = SharedMemory::allocate(4 << 20, Options::default()).unwrap();
        let private_memory = PrivateMemory::allocate(4 << 20, Options::default()).unwrap();
        let memory = if shared { &*shared_memory } else { &*private_memory };
        let mut owner = Agent::new(Config::default());
        let region = info(0, memory);
        let generation = AtomicU32::new(1);
        let stop = AtomicBool::new(false);
        let ready = Barrier::new(2);
        owner.shm.register(&region).unwrap();
        let (address, key) = (owner.address(), owner.key(0));
        let (mut landed, mut refused) = (0u64, 0u64);
        std::thread::scope(|scope| {
            // Should an assertion fail here, the writer must not write for ever.
            let stopper = Stopper(&stop);
            let writer = scope.spawn(|| {
                let mut agent = Agent::new(Config { cooperate: false, ..Config::default() });
                let source = PrivateMemory::allocate(4 << 20, Options::default()).unwrap();
                source.fill(0, 4 << 20, 0xAA);
                agent.shm.register(&info(0, &source)).unwrap();
                agent.add(0, &address);
                let ops: Vec<_> = (0..64).map(|i| op(0, i * 65_536, 0, i * 65_536, 65_536)).collect();
                let mut counts = (0, 0);
                let mut started = false;
                while !stop.load(Ordering::Relaxed) {
                    let generation = Generation(generation.load(Ordering::Acquire));
                    agent.shm.import_region(peer(0), &RegionInfo { generation, ..region }, &key).unwrap();
                    let ended = agent.run(0, Direction::Write, &ops, || {});
                    assert!(ended.failed.iter().all(|(_, error)| *error == OpError::BadKey));
                    counts.0 += u64::from(ended.completed);
                    counts.1 += ended.failed.len() as u64;
                    if !std::mem::replace(&mut started, true) {
                        ready.wait();
                    }
                }
                counts
            });
            // The introduction needs the owner's polls.
            let first = Instant::now();
            while owner.shm.poll_timeout().is_some() || first.elapsed() < Duration::from_millis(300) {
                owner.poll();
            }
            ready.wait();
            for round in 1..150u32 {
                owner.poll();
                std::thread::sleep(Duration::from_micros(u64::from(round * 37 % 500)));
                owner.shm.deregister(RegionId(0)).unwrap();
                memory.fill(0, 4 << 20, 0x55);
                std::thread::sleep(Duration::from_micros(300));
                assert!(bytes(memory, 0, 4 << 20).iter().all(|b| *b == 0x55), "round {round}: a late write");
                let next = Generation(round + 1);
                owner.shm.register(&RegionInfo { generation: next, ..region }).unwrap();
                generation.store(next.0, Ordering::Release);
            }
            drop(stopper);
            (landed, refused) = writer.join().unwrap();
        });
        assert!(landed > 0 && refused > 0, "no race took place: {landed} landed, {refused} refused");
    }
}

/// The helper takes up part of a job and is never heard of again, at every stage: the initiator takes it back and
/// finishes alone, and nothing of the helper comes later.
#[test]
fn a_job_is_taken_back_from_a_helper_that_fell_silent() {
    const OP: u32 = 600 << 10;
    let len = 40 * OP as usize;
    let here = PrivateMemory::allocate(len, Options::default()).unwrap();
    let there = PrivateMemory::allocate(len, Options::default()).unwrap();
    // Chunks of one op are no whole number of ring slots, so that the ring's end lies within a chunk.
    let ops: Vec<_> = (0..40).map(|i| op(0, i * u64::from(OP), 0, i * u64::from(OP), OP)).collect();
    for polls in 0..8 {
        for direction in [Direction::Read, Direction::Write] {
            let (mut a, mut b) = pair();
            a.shm.register(&info(0, &here)).unwrap();
            b.shm.register(&info(0, &there)).unwrap();
            a.shm.import_region(peer(0), &info(0, &there), &b.key(0)).unwrap();
            a.run(0, direction, &[op(0, 0, 0, 0, 8)], || {});
            let (source, target) =
                if direction == Direction::Read { (&there, &here) } else { (&here, &there) };
            paint(source, polls);
            target.fill(0, len, 0);
            let mut left = polls;
            let ended = a.run(0, direction, &ops, || {
                if left > 0 {
                    left -= 1;
                    b.poll();
                }
            });
            assert_eq!((ended.completed, ended.failed), (40, vec![]));
            let right = |memory: &PrivateMemory| {
                bytes(memory, 0, len).iter().zip(0..).all(|(byte, at)| *byte == pattern(polls, at))
            };
            assert!(right(target), "{direction} after {polls} polls of the helper");
            source.fill(0, len, 0xCC);
            (0..10).for_each(|_| b.poll());
            assert!(right(target), "{direction} after {polls} polls: the helper wrote after the end");
        }
    }
}

struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn huge_pages_carry_the_same_bytes() {
    let options = Options { huge_pages: HugePages::Prefer, prefault: true };
    let (here, there) = (
        SharedMemory::allocate(6 << 20, options).unwrap(),
        SharedMemory::allocate(6 << 20, options).unwrap(),
    );
    eprintln!("{}", here.pages());
    let (mut a, mut b) = pair();
    paint(&there, 5);
    a.shm.register(&info(0, &here)).unwrap();
    b.shm.register(&info(3, &there)).unwrap();
    a.shm.import_region(peer(0), &info(3, &there), &b.key(3)).unwrap();
    let ops: Vec<_> = (0..5).map(|i| op(0, i << 20, 3, (4 - i) * (1 << 20) + 9, 1 << 20)).collect();
    let ended = a.run(0, Direction::Read, &ops, || b.poll());
    assert_eq!(ended.completed, 5);
    for i in 0..5u64 {
        let got = bytes(&here, i << 20, 1 << 20);
        let from = (4 - i) * (1 << 20) + 9;
        assert!(got.iter().zip(from..).all(|(byte, at)| *byte == pattern(5, at)));
    }
}

#[test]
fn memory_freed_by_its_owner_and_made_anew_is_reached_again() {
    let (mut a, mut b) = pair();
    let here = PrivateMemory::allocate(8192, Options::default()).unwrap();
    a.shm.register(&info(0, &here)).unwrap();
    for generation in 1..20 {
        let there = SharedMemory::allocate(8192, Options::default()).unwrap();
        paint(&there, u64::from(generation));
        let region = RegionInfo { generation: Generation(generation), ..info(0, &there) };
        b.shm.register(&region).unwrap();
        a.shm.import_region(peer(0), &region, &b.key(0)).unwrap();
        let ended = a.run(0, Direction::Read, &[op(0, 0, 0, 100, 4000)], || b.poll());
        assert_eq!(ended.completed, 1);
        assert!(
            bytes(&here, 0, 4000).iter().zip(100..).all(|(x, i)| *x == pattern(u64::from(generation), i))
        );
        b.shm.deregister(RegionId(0)).unwrap();
    }
}

#[test]
fn a_fault_in_private_memory_fails_its_op_alone() {
    let (mut a, mut b) = pair();
    let here = PrivateMemory::allocate(1 << 20, Options::default()).unwrap();
    let there = PrivateMemory::allocate(1 << 20, Options::default()).unwrap();
    a.shm.register(&info(0, &here)).unwrap();
    b.shm.register(&info(0, &there)).unwrap();
    a.shm.import_region(peer(0), &info(0, &there), &b.key(0)).unwrap();
    // SAFETY: memory of our own, to which nothing here points; the transport must survive that it is gone.
    let rc = unsafe { libc::mprotect(there.as_ptr().wrapping_add(64 << 10).cast(), 4096, libc::PROT_NONE) };
    assert_eq!(rc, 0);
    let ops: Vec<_> = (0..256).map(|i| op(0, i * 4096, 0, i * 4096, 4096)).collect();
    for direction in [Direction::Read, Direction::Write] {
        let ended = a.run(0, direction, &ops, || b.poll());
        assert_eq!((ended.completed, ended.failed), (255, vec![(16, OpError::Fault(libc::EFAULT))]));
    }
}

#[test]
fn a_closed_agent_is_gone_and_its_address_is_dead() {
    let (mut a, b) = pair();
    let address = b.address();
    drop(b);
    until("the peer is gone", || {
        a.poll();
        !a.gone.is_empty()
    });
    let now = a.now();
    assert_eq!(a.shm.send(now, peer(0), shm_support::ROUTE, b"x"), Err(PostError::RouteDown));
    assert!(matches!(a.shm.add_peer(now, peer(1), &address), Err(PeerError::Unreachable(_))));
}

/// A thousand peers in one process: each costs the hub at most 64 KiB, and its polls cost what they did with one.
#[test]
fn a_thousand_idle_peers_cost_little_memory_and_no_time() {
    const PEERS: u32 = 1_000;
    raise_descriptor_limit();
    let mut hub = Agent::new(Config::default());
    let mut others: Vec<Agent> = Vec::new();
    let meet = |hub: &mut Agent, others: &mut Vec<Agent>, upto: u32| {
        for slot in others.len() as u32..upto {
            let mut other = Agent::new(Config::default());
            other.add(0, &hub.address());
            hub.add(slot, &other.address());
            until("they are connected", || {
                hub.poll();
                other.poll();
                hub.send(slot, b"you") && other.send(0, b"me")
            });
            others.push(other);
        }
        let mut heard = 0;
        until("all were heard", || {
            hub.poll();
            heard += hub.messages.drain(..).count();
            heard >= 1
        });
    };
    let idle = |hub: &mut Agent| {
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            (0..2_000).for_each(|_| hub.poll());
            best = best.min(start.elapsed() / 2_000);
        }
        best
    };
    meet(&mut hub, &mut others, 10);
    let few = idle(&mut hub);
    meet(&mut hub, &mut others, 100);
    let before = resident_bytes();
    meet(&mut hub, &mut others, PEERS);
    // Both ends of each pair live here, so this is more than what the hub pays.
    let each = (resident_bytes() - before) / u64::from(PEERS - 100);
    let many = idle(&mut hub);
    eprintln!("{each} bytes per pair; an idle poll takes {few:?} with 10 peers, {many:?} with {PEERS}");
    assert!(each <= 128 << 10, "{each} bytes per pair of ends");
    assert!(many < few * 3 + Duration::from_nanos(300), "an idle poll takes {few:?}, then {many:?}");
}

/// Pages and page tables of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS:") + field("VmPTE:")) << 10
}

fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

#[test]
fn an_address_of_elsewhere_is_unreachable_with_a_reason() {
    let (mut a, b) = (Agent::new(Config::default()), Agent::new(Config::default()));
    let here = b.address();
    let now = a.now();
    for (at, word) in [
        (1, "another host"),
        (17, "pid namespace"),
        (25, "network namespace"),
        (33, "user namespace"),
        (41, "user"),
    ] {
        let mut address = here.clone();
        address[at] ^= 0x40;
        match a.shm.add_peer(now, peer(0), &address) {
            Err(PeerError::Unreachable(text)) => assert!(text.contains(word), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_handle_can_be_slept_on_from_another_thread() {
    let (mut a, mut b) = pair();
    let woken = Arc::new(AtomicBool::new(false));
    let sleeper = {
        let woken = woken.clone();
        std::thread::spawn(move || {
            until("there is nothing to do", || {
                b.poll();
                b.shm.arm()
            });
            let mut poll = libc::pollfd { fd: b.shm.wait_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which lives through the call.
            let n = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
            woken.store(n == 1, Ordering::Relaxed);
            b.poll();
            b.messages
        })
    };
    std::thread::sleep(Duration::from_millis(30));
    assert!(a.send(0, b"wake"));
    assert_eq!(sleeper.join().unwrap(), [b"wake"]);
    assert!(woken.load(Ordering::Relaxed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever metadata says, the answer is a typed error or a refused op.
    #[test]
    fn any_address_and_key_are_survived(
        address in proptest::collection::vec(any::<u8>(), 0..96),
        key in proptest::collection::vec(any::<u8>(), 0..24),
        id in any::<u32>(), base in any::<u64>(), len in any::<u64>(), generation in any::<u32>(),
        offset in any::<u64>(), op_len in 1u32..1 << 20,
    ) {
        thread_local! {
            static PAIR: std::cell::RefCell<Option<(Agent, Agent, PrivateMemory)>> = const { std::cell::RefCell::new(None) };
        }
        PAIR.with_borrow_mut(|slot| {
            let (a, b, memory) = slot.get_or_insert_with(|| {
                let (mut a, b) = pair();
                let memory = PrivateMemory::allocate(1 << 20, Options::default()).unwrap();
                a.shm.register(&info(0, &memory)).unwrap();
                (a, b, memory)
            });
            let now = a.now();
            prop_assert!(a.shm.add_peer(now, peer(7), &address).is_err());
            let region = RegionInfo {
                id: RegionId(id % (1 << 21)),
                generation: Generation(generation),
                base,
                len,
                ..info(0, memory)
            };
            if a.shm.import_region(peer(0), &region, &key).is_ok() {
                let ops = [op(0, 0, region.id.0, offset, op_len)];
                for direction in [Direction::Read, Direction::Write] {
                    let ended = a.run(0, direction, &ops, || b.poll());
                    prop_assert_eq!(ended.completed, 0);
                }
            }
            Ok(())
        })?;
    }
}
