//! Shared memory between separate processes. This binary starts itself again as the other process.
#![cfg(target_os = "linux")]

mod shm_support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvrail_core::id::{Generation, RegionId};
use kvrail_core::transport::{
    Device, Direction, Event, OpError, PeerError, PostError, RegionInfo, Transport,
};
use kvrail_transport::Fabric;
use kvrail_transport::memory::{Options, PrivateMemory, SharedMemory};
use kvrail_transport::shm::{Config, PrivatePath};
use shm_support::{Agent, bytes, hex, info, op, paint, pattern, peer, unhex, until};

const LEN: usize = 24 << 20;
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
/// Seeds of the other process' memories, by region.
const SEEDS: [u64; 2] = [11, 12];

/// Not a test by itself: what the other process runs.
#[test]
fn other_process() {
    match std::env::var("KVRAIL_SHM_ROLE").as_deref() {
        Ok("target") => target(),
        Ok("denied") => the_ring_carries_what_the_kernel_denies(),
        _ => {}
    }
}

fn setting(name: &str) -> bool {
    std::env::var(name).is_ok()
}

/// Registers two memories, says where they are, and serves until told otherwise.
fn target() {
    let cooperate = !setting("KVRAIL_SHM_ALOOF");
    let mut agent = Agent::new(Config { cooperate, ..Config::default() });
    if setting("KVRAIL_SHM_UNDUMPABLE") {
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }, 0);
    }
    let shared = SharedMemory::allocate(LEN, Options::default()).unwrap();
    let private = PrivateMemory::allocate(LEN, Options::default()).unwrap();
    paint(&shared, SEEDS[0]);
    paint(&private, SEEDS[1]);
    println!("\n@{}", hex(&agent.address()));
    for info in [info(SHARED, &shared), info(PRIVATE, &private)] {
        agent.shm.register(&info).unwrap();
        println!("@{} {} {}", info.base, info.len, hex(&agent.key(info.id.0)));
    }
    let (tell, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.map_or(true, |line| tell.send(line).is_err()) {
                break;
            }
        }
    });
    loop {
        match orders.try_recv() {
            Ok(order) => {
                let mut words = order.split(' ');
                match (words.next(), words.next()) {
                    (Some("peer"), Some(address)) => agent.add(0, &unhex(address)),
                    (Some("deregister"), Some(region)) => {
                        agent.shm.deregister(RegionId(region.parse().unwrap())).unwrap();
                    }
                    (Some("say"), Some(what)) => until("the message is taken", || {
                        agent.poll();
                        agent.send(0, what.as_bytes())
                    }),
                    (Some("doze"), _) => std::thread::sleep(Duration::from_secs(1000)),
                    other => panic!("{other:?}"),
                }
                println!("@done");
            }
            Err(mpsc::TryRecvError::Empty) => {}
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
        agent.poll();
        for message in std::mem::take(&mut agent.messages) {
            println!("@heard {}", String::from_utf8_lossy(&message));
        }
        agent.sleep(Duration::from_millis(20));
    }
}

struct Other {
    child: Child,
    lines: mpsc::Receiver<String>,
    address: Vec<u8>,
    regions: [(RegionInfo, Vec<u8>); 2],
}

impl Other {
    fn start(settings: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["other_process", "--exact", "--nocapture", "--test-threads=1"]);
        command.env("KVRAIL_SHM_ROLE", "target");
        for setting in settings {
            command.env(setting, "1");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix('@') {
                    let _ = tell.send(line.to_owned());
                }
            }
        });
        let next = || lines.recv_timeout(shm_support::PATIENCE).expect("the other process speaks");
        let address = unhex(&next());
        let regions = [SHARED, PRIVATE].map(|id| {
            let line = next();
            let mut words = line.split(' ');
            let mut number = || words.next().unwrap().parse().unwrap();
            let (base, len) = (number(), number());
            let key = unhex(words.next().unwrap_or(""));
            (RegionInfo { id: RegionId(id), generation: Generation(1), base, len, device: Device::Host }, key)
        });
        Self { child, lines, address, regions }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    fn hear(&self) -> String {
        self.lines.recv_timeout(shm_support::PATIENCE).expect("the other process answers")
    }

    /// CPU that it has used so far, clock ticks.
    fn ticks(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent here that knows the other one, and its two memories.
fn acquainted(other: &Other, config: Config) -> (Agent, [SharedMemory; 1], [PrivateMemory; 1]) {
    let mut agent = Agent::new(config);
    let shared = SharedMemory::allocate(LEN, Options::default()).unwrap();
    let private = PrivateMemory::allocate(LEN, Options::default()).unwrap();
    agent.shm.register(&info(SHARED, &shared)).unwrap();
    agent.shm.register(&info(PRIVATE, &private)).unwrap();
    agent.add(0, &other.address);
    for (info, key) in &other.regions {
        agent.shm.import_region(peer(0), info, key).unwrap();
    }
    (agent, [shared], [private])
}

/// Reads what the other painted, writes something else and reads that back: large, small and odd ops on every pair
/// of kinds of memory.
fn every_way(agent: &mut Agent, shared: &SharedMemory, private: &PrivateMemory) {
    let shapes: [&[(u64, u64, u32)]; 3] = [
        &[(3, 77, 4097), (100_000, 5, 1), (200_000, 1_000_001, 65_537)],
        &[(0, 1 << 20, 1 << 20), (1 << 20, 0, 1 << 20), (5 << 20, 9 << 20, 777_777)],
        &[],
    ];
    let scattered: Vec<(u64, u64, u32)> =
        (0..600u64).map(|i| (i * 32_768, (i * 7919 % 600) * 32_768 + 13, 32_700)).collect();
    for remote in [SHARED, PRIVATE] {
        for local in [SHARED, PRIVATE] {
            let memory = if local == SHARED { &**shared } else { &**private };
            for shape in shapes.iter().map(|s| if s.is_empty() { &scattered[..] } else { s }) {
                let ops: Vec<_> = shape.iter().map(|(l, r, len)| op(local, *l, remote, *r, *len)).collect();
                let count = ops.len() as u32;
                memory.fill(0, LEN, 0xEE);
                let ended = agent.run(0, Direction::Read, &ops, || {});
                assert_eq!((ended.completed, ended.failed), (count, vec![]));
                let original: Vec<Vec<u8>> = shape
                    .iter()
                    .map(|(l, r, len)| {
                        let got = bytes(memory, *l, *len as usize);
                        let seed = SEEDS[remote as usize];
                        let expected: Vec<u8> = (0..u64::from(*len)).map(|i| pattern(seed, r + i)).collect();
                        assert!(got == expected, "read {len} bytes from {r} of region {remote}");
                        got
                    })
                    .collect();
                paint(memory, 99);
                let ended = agent.run(0, Direction::Write, &ops, || {});
                assert_eq!((ended.completed, ended.failed), (count, vec![]));
                memory.fill(0, LEN, 0xEE);
                agent.run(0, Direction::Read, &ops, || {});
                for (l, _, len) in shape.iter() {
                    let got = bytes(memory, *l, *len as usize);
                    let expected: Vec<u8> = (0..u64::from(*len)).map(|i| pattern(99, l + i)).collect();
                    assert!(got == expected, "what was written is there");
                }
                for ((l, _, _), original) in shape.iter().zip(&original) {
                    memory.write(*l as usize, original);
                }
                agent.run(0, Direction::Write, &ops, || {});
            }
        }
    }
}

#[test]
fn bytes_move_between_processes_on_every_pair_of_memories() {
    let other = Other::start(&[]);
    let (mut agent, [shared], [private]) = acquainted(&other, Config::default());
    every_way(&mut agent, &shared, &private);
    assert_eq!(agent.shm.private_path(peer(0)), Some(PrivatePath::Kernel));
}

#[test]
fn a_peer_that_keeps_aloof_is_copied_from_by_one_core() {
    let other = Other::start(&["KVRAIL_SHM_ALOOF"]);
    let (mut agent, [shared], [private]) = acquainted(&other, Config::default());
    every_way(&mut agent, &shared, &private);
}

#[test]
fn without_process_vm_the_ring_carries_everything_private() {
    let other = Other::start(&["KVRAIL_SHM_ALOOF"]);
    let (mut agent, [shared], [private]) =
        acquainted(&other, Config { process_vm: false, ..Config::default() });
    every_way(&mut agent, &shared, &private);
    assert_eq!(agent.shm.private_path(peer(0)), Some(PrivatePath::Ring(0)));
}

/// The real refusal: the other process is not dumpable and this one is not root.
#[test]
fn a_refusal_by_the_kernel_is_answered_by_the_ring() {
    // SAFETY: cannot fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        return the_ring_carries_what_the_kernel_denies();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["other_process", "--exact", "--nocapture", "--test-threads=1"]);
    command.env("KVRAIL_SHM_ROLE", "denied").current_dir("/").uid(65_534).gid(65_534);
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("DENIED AND CARRIED"), "{output:?}");
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("SKIPPED: another user cannot run {:?}", std::env::current_exe());
        }
        Err(error) => panic!("{error}"),
    }
}

fn the_ring_carries_what_the_kernel_denies() {
    let other = Other::start(&["KVRAIL_SHM_UNDUMPABLE"]);
    let (mut agent, [shared], [private]) = acquainted(&other, Config::default());
    every_way(&mut agent, &shared, &private);
    assert_eq!(agent.shm.private_path(peer(0)), Some(PrivatePath::Ring(libc::EPERM)));
    println!("DENIED AND CARRIED");
}

#[test]
fn a_killed_peer_is_reported_at_once_and_every_op_ends() {
    for (region, config) in [
        (SHARED, Config::default()),
        (PRIVATE, Config::default()),
        (PRIVATE, Config { process_vm: false, ..Config::default() }),
    ] {
        let mut other = Other::start(&[]);
        let (mut agent, _shared, _private) = acquainted(&other, config);
        let ops: Vec<_> = (0..20).map(|i| op(PRIVATE, i << 20, region, i << 20, 1 << 20)).collect();
        agent.run(0, Direction::Read, &ops, || {});
        let mut round = 0;
        let killed = Instant::now();
        while agent.gone.is_empty() {
            round += 1;
            if round == 3 {
                other.child.kill().unwrap();
            }
            let result = agent.try_run(0, Direction::Read, &ops, &mut || {});
            match result {
                Ok(ended) => {
                    for (_, error) in ended.failed {
                        assert!(matches!(error, OpError::Unreachable | OpError::Flushed), "{error:?}");
                    }
                }
                Err(error) => assert_eq!(error, PostError::RouteDown),
            }
            agent.poll();
            assert!(killed.elapsed() < Duration::from_secs(15));
        }
        assert_eq!(agent.gone, [peer(0)], "reported once");
        let refused = agent.try_run(0, Direction::Read, &ops, &mut || {});
        assert_eq!(refused, Err(PostError::RouteDown));
        let now = agent.now();
        assert!(matches!(agent.shm.add_peer(now, peer(1), &other.address), Err(PeerError::Unreachable(_))));
    }
}

#[test]
fn a_sleeper_learns_of_a_killed_peer_through_its_descriptor() {
    let mut other = Other::start(&[]);
    let (mut agent, _s, _p) = acquainted(&other, Config::default());
    agent.run(0, Direction::Read, &[op(PRIVATE, 0, PRIVATE, 0, 10)], || {});
    until("there is nothing to do", || {
        agent.poll();
        agent.shm.arm()
    });
    other.child.kill().unwrap();
    let start = Instant::now();
    while agent.gone.is_empty() {
        agent.sleep(Duration::from_secs(5));
        agent.poll();
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}

#[test]
fn an_idle_peer_is_reachable_and_costs_no_cpu() {
    let mut other = Other::start(&[]);
    let (mut agent, _s, _p) = acquainted(&other, Config::default());
    other.order(&format!("peer {}", hex(&agent.address())));
    assert_eq!(other.hear(), "done");
    until("the message is taken", || {
        agent.poll();
        agent.send(0, b"good-morning")
    });
    assert_eq!(other.hear(), "heard good-morning");
    std::thread::sleep(Duration::from_millis(50));
    let before = other.ticks();
    std::thread::sleep(Duration::from_millis(400));
    assert!(other.ticks() - before <= 4, "an idle agent used {} ticks", other.ticks() - before);
    // It sleeps up to 20 ms at a time by its own clock; a message must get through much sooner, on the median.
    other.order("say hello");
    until("the answer arrives", || {
        agent.sleep(Duration::from_millis(100));
        agent.poll();
        !agent.messages.is_empty()
    });
    assert_eq!(agent.messages, [b"hello"]);
}

#[test]
fn a_region_that_its_owner_deregistered_is_refused() {
    let mut other = Other::start(&[]);
    let (mut agent, _s, _p) = acquainted(&other, Config::default());
    for region in [SHARED, PRIVATE] {
        let ops: Vec<_> = (0..16).map(|i| op(PRIVATE, i << 20, region, i << 20, 1 << 20)).collect();
        assert_eq!(agent.run(0, Direction::Write, &ops, || {}).completed, 16);
        other.order(&format!("deregister {region}"));
        assert_eq!(other.hear(), "done");
        for direction in [Direction::Read, Direction::Write] {
            let ended = agent.run(0, direction, &ops, || {});
            assert_eq!(ended.failed, (0..16).map(|i| (i, OpError::BadKey)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_peer_that_dozes_after_joining_holds_nothing_up() {
    let mut other = Other::start(&[]);
    let (mut agent, [_shared], [private]) =
        acquainted(&other, Config { cooperate_bytes_min: 1, ..Config::default() });
    let ops: Vec<_> = (0..20).map(|i| op(PRIVATE, i << 20, PRIVATE, i << 20, 1 << 20)).collect();
    for round in 0..12 {
        if round == 4 {
            // From here on it neither polls nor answers.
            other.order("doze");
        }
        let direction = if round % 2 == 0 { Direction::Read } else { Direction::Write };
        if direction == Direction::Read {
            private.fill(0, LEN, 0);
        }
        let ended = agent.run(0, direction, &ops, || {});
        assert_eq!((ended.completed, ended.failed), (20, vec![]));
        let got = bytes(&private, 0, 20 << 20);
        assert!(got.iter().enumerate().all(|(i, b)| *b == pattern(SEEDS[1], i as u64)), "round {round}");
    }
}

/// The helper is stopped in the middle of jobs. Reads need nothing more of it; a write may have to wait for the slot
/// that it was just emptying.
#[test]
fn a_helper_that_is_frozen_in_mid_job_spoils_nothing() {
    let other = Other::start(&[]);
    let (mut agent, [_shared], [private]) = acquainted(&other, Config::default());
    let ops: Vec<_> = (0..20).map(|i| op(PRIVATE, i << 20, PRIVATE, i << 20, 1 << 20)).collect();
    let pid = other.child.id() as i32;
    let signal = |signal| {
        // SAFETY: no memory is involved; the process is our child.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    for round in 0..60u32 {
        private.fill(0, LEN, 0);
        let mut polls = 0;
        let ended = agent.run(0, Direction::Read, &ops, || {
            polls += 1;
            if polls == round % 6 {
                signal(libc::SIGSTOP);
            }
        });
        signal(libc::SIGCONT);
        assert_eq!((ended.completed, ended.failed), (20, vec![]));
        let got = bytes(&private, 0, 20 << 20);
        assert!(got.iter().enumerate().all(|(i, b)| *b == pattern(SEEDS[1], i as u64)), "round {round}");
        let (mut polls, mut stopped) = (0, None);
        let ended = agent.run(0, Direction::Write, &ops, || {
            polls += 1;
            if polls == round % 6 {
                signal(libc::SIGSTOP);
                stopped = Some(Instant::now());
            }
            if stopped.is_some_and(|t| t.elapsed() > Duration::from_millis(20)) {
                signal(libc::SIGCONT);
            }
        });
        signal(libc::SIGCONT);
        assert_eq!((ended.completed, ended.failed), (20, vec![]));
    }
}

#[test]
fn a_reset_pays_every_debt_of_a_peer_that_is_frozen() {
    let other = Other::start(&[]);
    let (mut agent, _s, _p) = acquainted(&other, Config { process_vm: false, ..Config::default() });
    let ops: Vec<_> = (0..20).map(|i| op(PRIVATE, i << 20, PRIVATE, i << 20, 1 << 20)).collect();
    agent.run(0, Direction::Read, &ops, || {});
    let pid = other.child.id() as i32;
    // SAFETY: no memory is involved; the process is our child.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    for direction in [Direction::Read, Direction::Write] {
        let batch = kvrail_core::transport::Batch {
            peer: peer(0),
            route: shm_support::ROUTE,
            direction,
            token: kvrail_core::id::Token { slot: 900, generation: Generation(1) },
            first: 0,
            ops: &ops,
            immediate: None,
        };
        let now = agent.now();
        let taken = agent.shm.post(now, &batch).unwrap();
        assert!(taken > 0);
        agent.poll();
        let now = agent.now();
        agent.shm.reset(now, peer(0), shm_support::ROUTE);
        let mut ended = 0;
        until("every op has ended", || {
            agent.poll();
            for event in agent.events.drain(..) {
                match event {
                    Event::Completed { count, .. } | Event::Failed { count, error: OpError::Flushed, .. } => {
                        ended += count as usize;
                    }
                    other => panic!("{other:?}"),
                }
            }
            ended == taken
        });
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    let ended = agent.run(0, Direction::Read, &ops, || {});
    assert_eq!(ended.completed, 20);
}
