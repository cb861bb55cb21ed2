//! Two processes with an engine each, as a benchmark has them: one is posted to, the other posts, verifies and says what it saw.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail::memory::{self, HugePages, PrivateMemory};
use kvrail_engines::nixl::{Nixl, Options, Requests, leave};
use kvrail_engines::{Blocks, Direction, Engine, EngineError};

use crate::wheel::end_of;

/// Names what a child has to do; without it the child's test does nothing.
pub(crate) const ROLE: &str = "KVRAIL_ENGINES_TEST_ROLE";
const CASE: &str = "KVRAIL_ENGINES_TEST_CASE";
const DEADLINE: Duration = Duration::from_secs(60);
const POISON: u8 = 0xa5;

/// A workload and the engine's options, as `name=value` words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Case(BTreeMap<String, String>);

impl Case {
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.0.insert(name.into(), value.to_string());
        self
    }

    fn text(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    fn of(text: &str) -> Self {
        Self(
            text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect(),
        )
    }

    fn word(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.word(name).parse().unwrap_or(otherwise)
    }

    pub(crate) fn options(&self) -> Options {
        let path = |name| Some(PathBuf::from(self.word(name))).filter(|path| !path.as_os_str().is_empty());
        Options {
            library: path("library"),
            libraries: std::env::split_paths(self.word("libraries")).filter(|path| path.is_dir()).collect(),
            backend: self.word("backend").into(),
            progress_thread: self.word("progress_thread") == "true",
            prepared_lists: self.word("prepared_lists") == "true",
            requests: if self.word("recreate") == "true" { Requests::Recreate } else { Requests::Repost },
            ..Options::default()
        }
    }
}

/// What the posting process says: its row, or why there is none, with the exit of both.
pub(crate) fn run(case: &Case) -> Result<BTreeMap<String, String>, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let start = |role: &str| {
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["--exact", "child", "--nocapture"]).env(ROLE, role).env(CASE, case.text());
        child.env("KVRAIL_ENGINES_TEST_MEET", directory.path().join("meet"));
        child.env_remove("NIXL_LOG_LEVEL");
        if let Ok(surroundings) = case.options().surroundings() {
            surroundings.apply(&mut child);
        }
        if case.word("backend").eq_ignore_ascii_case("libfabric") {
            child.env("FI_PROVIDER", "tcp");
        }
        let log = std::fs::File::create(directory.path().join(format!("{role}.log"))).expect("a file");
        let stderr = if case.word("stderr") == "file" { log.into() } else { Stdio::piped() };
        child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().expect("a child starts")
    };
    let (target, initiator) = (start("target"), start("initiator"));
    // The target is waited for in any case: it ends when its peer is gone, or is killed.
    let initiator = end_of(initiator, DEADLINE);
    let target = end_of(target, Duration::from_secs(5));
    let (initiator, target) = (initiator?, target?);
    let said = String::from_utf8_lossy(&initiator.stdout).into_owned();
    let mut row = Case::of(&said.lines().filter(|line| line.contains('=')).collect::<Vec<_>>().join("\n")).0;
    let both = [&target, &initiator];
    let log = std::fs::read(directory.path().join("initiator.log")).unwrap_or_default();
    row.insert(
        "stderr".into(),
        String::from_utf8_lossy(&[&log[..], &initiator.stderr].concat()).into_owned(),
    );
    if both.iter().all(|child| child.status.success()) {
        return Ok(row);
    }
    let words = both.map(|child| format!("{}: {}", child.status, String::from_utf8_lossy(&child.stderr)));
    Err(words.join("\n"))
}

/// What a child does.
pub(crate) fn child() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let case = Case::of(&std::env::var(CASE).expect("a case"));
    let meet = PathBuf::from(std::env::var_os("KVRAIL_ENGINES_TEST_MEET").expect("a meeting place"));
    let ended = if role == "target" { target(&case, &meet) } else { initiator(&case, &meet) };
    if let Err(error) = &ended {
        eprintln!("{error}");
    }
    leave(if ended.is_ok() { 0 } else { 1 })
}

type Ended = Result<(), Box<dyn std::error::Error>>;

fn opened(case: &Case) -> Result<(Nixl, Memory), Box<dyn std::error::Error>> {
    let mut engine = Nixl::open(case.options()).map_err(told)?;
    engine.lanes(u32::try_from(case.number("threads", 1))?)?;
    let huge_pages = if case.word("pages") == "base" { HugePages::Never } else { HugePages::Prefer };
    let pages = memory::Options { huge_pages, ..memory::Options::default() };
    let memory: Memory =
        PrivateMemory::allocate(usize::try_from(case.number("pool", 64 << 20))?, pages)?.into();
    memory.fill(0, memory.len(), POISON)?;
    engine.register(&memory).map_err(told)?;
    Ok((engine, memory))
}

/// An error with its hints, for whoever reads standard error.
fn told(error: EngineError) -> String {
    error.hints.iter().fold(error.to_string(), |text, hint| format!("{text}\nhint: {hint}"))
}

fn target(case: &Case, meet: &Path) -> Ended {
    let listener = UnixListener::bind(meet)?;
    let (mut engine, memory) = opened(case)?;
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(DEADLINE))?;
    send(&mut peer, &engine.metadata()?)?;
    engine.admit(&receive(&mut peer)?)?;
    if case.word("undriven") == "true" {
        // Until the peer has had enough.
        let _ = receive(&mut peer);
        let _ = receive(&mut peer);
        return Ok(());
    }
    // From here on it is driven, and does as it is told.
    let is_over = AtomicBool::new(false);
    let engine = &engine;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                engine.drive();
            }
        });
        let _over = Over(&is_over);
        serve(case, engine, &memory, &mut peer)
    })
}

/// Ends the driving thread, also after a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn serve(case: &Case, engine: &dyn Engine, memory: &Memory, peer: &mut UnixStream) -> Ended {
    send(peer, b"driven")?;
    loop {
        let request = String::from_utf8(receive(peer)?)?;
        let answer = match request.split_once(' ').unwrap_or((&request, "")) {
            ("fill", seed) => fill(memory, case, seed.parse()?)?,
            ("poison", _) => memory.fill(0, memory.len(), POISON).map(|()| String::new())?,
            ("check", seed) => mismatch(memory, case, seed.parse()?, &slots(case, 2), &slots(case, 1))?,
            ("notifications", count) => {
                engine.notifications(count.parse()?, Duration::from_secs(10))?.to_string()
            }
            // As by whoever kills a process that hangs: nothing of it runs any more.
            ("die", _) => {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                    .map(|()| String::new())?
            }
            _ => return Ok(()),
        };
        send(peer, answer.as_bytes())?;
    }
}

fn initiator(case: &Case, meet: &Path) -> Ended {
    let (mut engine, memory) = opened(case)?;
    let mut target = reach(meet)?;
    target.set_read_timeout(Some(DEADLINE))?;
    let metadata = receive(&mut target)?;
    send(&mut target, &engine.metadata()?)?;
    if case.word("undriven") != "true" {
        receive(&mut target)?;
    }
    let began = Instant::now();
    let within = Duration::from_millis(case.number("connect_within_ms", 60_000));
    let peer = engine.connect(&metadata, within).map_err(told)?;
    println!("connect_ms={:.3}", began.elapsed().as_secs_f64() * 1e3);
    let mut ask = |request: String| -> Result<String, Box<dyn std::error::Error>> {
        send(&mut target, request.as_bytes())?;
        Ok(String::from_utf8(receive(&mut target)?)?)
    };
    let (block_bytes, batch) = (case.number("block", 32 << 10), case.number("batch", 12_800));
    let offsets = |which| slots(case, which).into_iter().map(|slot| slot * block_bytes).collect::<Vec<u64>>();
    let shifted = |offset: u64| offset + case.number("shift", 0);
    let local: Vec<_> = offsets(1).into_iter().map(shifted).collect();
    let remote = offsets(2);
    if case.word("die") == "true" {
        ask("die".into())?;
    }
    for (direction, word) in [(Direction::Read, "read"), (Direction::Write, "write")] {
        let notification = (direction == Direction::Write).then_some(&b"over\0there"[..]);
        let blocks = Blocks {
            direction,
            peer,
            lane: 0,
            local: &local,
            remote: &remote,
            block_bytes,
            notification,
            timeout: DEADLINE,
        };
        let began = Instant::now();
        let mut posting = engine.prepare(&blocks).map_err(told)?;
        println!("{word}_prepare_us={:.1}", began.elapsed().as_secs_f64() * 1e6);
        let mut once = |lats: &mut Vec<f64>| -> Result<(), Box<dyn std::error::Error>> {
            let began = Instant::now();
            posting.post().map_err(told)?;
            posting.wait(DEADLINE).ok_or("no end in time")?.map_err(told)?;
            lats.push(began.elapsed().as_secs_f64());
            Ok(())
        };
        // The warm-up; what it moved must not pass for what the others move.
        once(&mut Vec::new())?;
        for seed in [11, 12] {
            if direction == Direction::Read {
                ask(format!("fill {seed}"))?;
                memory.fill(0, memory.len(), POISON)?;
            } else {
                fill(&memory, case, seed)?;
                ask("poison".into())?;
            }
            let mut latencies = Vec::new();
            let cpu_before = cpu();
            for _ in 0..case.number("iterations", 2) {
                once(&mut latencies)?;
            }
            println!("{word}_cpu_us={:.1}", (cpu() - cpu_before) * 1e6 / latencies.len() as f64);
            let wrong = match direction {
                Direction::Read => mismatch(&memory, case, seed, &slots(case, 1), &slots(case, 2))?,
                Direction::Write => ask(format!("check {seed}"))?,
            };
            if !wrong.is_empty() {
                return Err(format!("{word}: {wrong}").into());
            }
            latencies.sort_by(f64::total_cmp);
            let sum: f64 = latencies.iter().sum();
            let bytes = (block_bytes * batch) as f64 * latencies.len() as f64;
            println!("{word}_gbps={:.3}", bytes / sum / 1e9);
            println!("{word}_p50_us={:.1}", latencies[latencies.len() / 2] * 1e6);
        }
        if direction == Direction::Write {
            let awaited = 1 + 2 * case.number("iterations", 2);
            println!("notifications={}", ask(format!("notifications {awaited}"))?);
            println!("notifications_awaited={awaited}");
        }
    }
    for used in engine.used() {
        println!(
            "used.version={}\nused.transport={}\nused.evidence={}",
            used.version, used.transport, used.evidence
        );
        println!(
            "used.rails={}",
            used.rails.iter().map(|rail| rail.name.as_str()).collect::<Vec<_>>().join(",")
        );
        for fact in used.facts {
            println!("fact.{}={}", fact.name, fact.value);
        }
    }
    send(&mut target, b"over")?;
    Ok(())
}

fn reach(meet: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match UnixStream::connect(meet) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The slots of one side: some of all, in an order of its own that has no stride.
fn slots(case: &Case, side: u64) -> Vec<u64> {
    let mut slots: Vec<u64> = (0..case.number("pool", 64 << 20) / case.number("block", 32 << 10)).collect();
    let mut state = side;
    for at in (1..slots.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        slots.swap(at, (state >> 33) as usize % (at + 1));
    }
    slots.truncate(usize::try_from(case.number("batch", 12_800)).unwrap_or(usize::MAX));
    slots
}

/// CPU time of this process, seconds.
fn cpu() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// What a slot holds: every word says which it is.
fn pattern(case: &Case, seed: u64, slot: u64) -> Vec<u8> {
    let words = case.number("block", 32 << 10) / 8;
    (0..words)
        .flat_map(|word| (slot * words + word + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

fn fill(memory: &Memory, case: &Case, seed: u64) -> Result<String, Box<dyn std::error::Error>> {
    let block = usize::try_from(case.number("block", 32 << 10))?;
    for slot in 0..memory.len() / block {
        memory.write(slot * block, &pattern(case, seed, slot as u64))?;
    }
    Ok(String::new())
}

/// The first block that is not what was moved into it, or that was touched and should not be; empty when all is right.
fn mismatch(
    memory: &Memory,
    case: &Case,
    seed: u64,
    own: &[u64],
    source: &[u64],
) -> Result<String, Box<dyn std::error::Error>> {
    let block = usize::try_from(case.number("block", 32 << 10))?;
    let mut bytes = vec![0; block];
    let sources: BTreeMap<u64, u64> = own.iter().copied().zip(source.iter().copied()).collect();
    for slot in 0..memory.len() / block {
        memory.read(slot * block, &mut bytes)?;
        let is_right = match sources.get(&(slot as u64)) {
            Some(source) => bytes == pattern(case, seed, *source),
            None => bytes.iter().all(|byte| *byte == POISON),
        };
        if !is_right {
            return Ok(format!("slot {slot} is wrong"));
        }
    }
    Ok(String::new())
}

fn send(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&(bytes.len() as u64).to_le_bytes())?;
    stream.write_all(bytes)
}

fn receive(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(len)).unwrap_or(0)];
    stream.read_exact(&mut bytes).map(|()| bytes)
}
