//! What the shared-memory transport adds to the copying itself: two processes, each figure beside a plain loop.
//!
//! `cargo run --release -p kvrail-transport --example shm_speed [-- ROUNDS]`
//!
//! Plain loops and the transport take turns, and medians are compared, because a shared host is noisy. Bytes are
//! spot-checked only; `kvrail bench` is the tool that verifies every byte.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvrail_core::id::{Generation, LocalRail, PeerId, RegionId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{Batch, Device, Direction, Event, Op, RegionInfo, Transport};
use kvrail_transport::Fabric;
use kvrail_transport::memory::{HugePages, Mapping, Options, PrivateMemory, SharedMemory};
use kvrail_transport::shm::{Config, Shm};

type Outcome<T> = Result<T, Box<dyn Error>>;

const BLOCK: usize = 32 << 10;
const BLOCKS: usize = 12_800;
/// Twice as many places as blocks, so that they are scattered.
const POOL: usize = 2 * BLOCK * BLOCKS;
const LARGE: usize = 64 << 20;
const REGIONS: u32 = 10_000;

const PEER: PeerId = PeerId { slot: 0, generation: Generation(1) };
const ROUTE: Route = Route { local: LocalRail(0), remote: RemoteRail(0) };
const TOKEN: Token = Token { slot: 0, generation: Generation(1) };

/// Regions of both sides, by number.
const SHARED: RegionId = RegionId(0);
const PRIVATE: RegionId = RegionId(1);

fn main() -> Outcome<()> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("--target") {
        return target(std::env::args().nth(2).as_deref() == Some("huge"));
    }
    let rounds = argument.map_or(Ok(7), |a| a.parse())?;
    if cfg!(debug_assertions) {
        println!("a debug build: the figures mean nothing");
    }
    for huge in [false, true] {
        initiator(huge, rounds)?;
    }
    Ok(())
}

fn options(huge: bool) -> Options {
    Options { huge_pages: if huge { HugePages::Prefer } else { HugePages::Never }, prefault: true }
}

fn region(id: RegionId, memory: &Mapping) -> RegionInfo {
    let (base, len) = (memory.as_ptr() as u64, memory.len() as u64);
    RegionInfo { id, generation: Generation(1), base, len, device: Device::Host }
}

/// The other process: registers its memory, says where it is, and polls until its input ends.
fn target(huge: bool) -> Outcome<()> {
    let mut shm = Shm::open(Config::default())?;
    let shared = SharedMemory::allocate(POOL, options(huge))?;
    let private = PrivateMemory::allocate(POOL, options(huge))?;
    for memory in [&*shared, &*private] {
        for offset in (0..POOL).step_by(BLOCK) {
            memory.fill(offset, BLOCK, (offset / BLOCK) as u8);
        }
    }
    let infos = [region(SHARED, &shared), region(PRIVATE, &private)];
    let mut line = Vec::new();
    shm.address(&mut line);
    println!("{}", hex(&line));
    for info in &infos {
        shm.register(info).map_err(|e| e.to_string())?;
        let mut key = Vec::new();
        shm.region_key(info.id, &mut key);
        println!("{} {} {}", info.base, info.len, hex(&key));
    }
    for i in 0..REGIONS {
        let base = infos[0].base + u64::from(i) * 4096;
        let info = RegionInfo {
            id: RegionId(2 + i),
            generation: Generation(1),
            base,
            len: 4096,
            device: Device::Host,
        };
        shm.register(&info).map_err(|e| e.to_string())?;
    }
    let (stop, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = stop.send(());
    });
    let origin = Instant::now();
    let mut events = Vec::new();
    while stopped.try_recv().is_err() {
        let now = Time::ZERO + origin.elapsed();
        shm.poll(now, &mut events);
        events.clear();
        if shm.arm() {
            let mut poll = libc::pollfd { fd: shm.wait_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = if shm.poll_timeout().is_some() { 1 } else { 50 };
            // SAFETY: one entry, which lives through the call.
            let _ = unsafe { libc::poll(&raw mut poll, 1, timeout) };
        }
    }
    Ok(())
}

struct Rig {
    shm: Shm,
    origin: Instant,
    events: Vec<Event>,
}

impl Rig {
    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    /// Posts ops and waits until all have completed.
    fn run(&mut self, direction: Direction, ops: &[Op]) -> Outcome<()> {
        let (mut posted, mut completed) = (0, 0);
        let now = self.now();
        let deadline = Instant::now() + Duration::from_secs(20);
        while completed < ops.len() {
            if posted < ops.len() {
                let batch = Batch {
                    peer: PEER,
                    route: ROUTE,
                    direction,
                    token: TOKEN,
                    first: posted as u32,
                    ops: &ops[posted..],
                    immediate: None,
                };
                posted += self.shm.post(now, &batch).map_err(|e| format!("post: {e:?}"))?;
            }
            self.shm.poll(now, &mut self.events);
            for event in self.events.drain(..) {
                match event {
                    Event::Completed { count, .. } => completed += count as usize,
                    other => return Err(format!("{other:?}").into()),
                }
            }
            if completed == 0 && Instant::now() > deadline {
                return Err("nothing completed in 20 s".into());
            }
        }
        Ok(())
    }
}

fn initiator(huge: bool, rounds: usize) -> Outcome<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--target", if huge { "huge" } else { "base" }])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let result = measure(huge, rounds, &mut child);
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(b"x");
    }
    child.wait()?;
    result
}

fn measure(huge: bool, rounds: usize, child: &mut std::process::Child) -> Outcome<()> {
    let shared = SharedMemory::allocate(POOL, options(huge))?;
    let private = PrivateMemory::allocate(POOL, options(huge))?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut next = || -> Outcome<String> { Ok(lines.next().ok_or("the target ended")??) };
    let mut rig = Rig { shm: Shm::open(Config::default())?, origin: Instant::now(), events: Vec::new() };
    let now = rig.now();
    rig.shm.add_peer(now, PEER, &unhex(&next()?)).map_err(|e| e.to_string())?;
    let mut bases = Vec::new();
    for id in [SHARED, PRIVATE] {
        let line = next()?;
        let mut fields = line.split(' ');
        let base = fields.next().ok_or("no base")?.parse()?;
        let len = fields.next().ok_or("no length")?.parse()?;
        let key = unhex(fields.next().unwrap_or(""));
        let info = RegionInfo { id, generation: Generation(1), base, len, device: Device::Host };
        rig.shm.import_region(PEER, &info, &key).map_err(|e| e.to_string())?;
        bases.push((base, key));
    }
    for info in [region(SHARED, &shared), region(PRIVATE, &private)] {
        rig.shm.register(&info).map_err(|e| e.to_string())?;
    }
    println!("# memory: shared in {}, private in {}", shared.pages(), private.pages());
    registrations(&mut rig, &shared, bases[0].0)?;

    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let (from, to) = (places(&mut seed), places(&mut seed));
    for (name, id, memory) in [("shared", SHARED, &*shared), ("private", PRIVATE, &*private)] {
        for direction in [Direction::Read, Direction::Write] {
            let scattered: Vec<Op> =
                (0..BLOCKS).map(|i| op(id, to[i] * BLOCK, id, from[i] * BLOCK, BLOCK)).collect();
            let large: Vec<Op> = (0..LARGE >> 20).map(|i| op(id, i << 20, id, i << 20, 1 << 20)).collect();
            let tiny = [op(id, 8192, id, 4096, 4096)];
            for (shape, ops, bytes) in [
                ("12800 x 32 KiB", &scattered[..], BLOCK * BLOCKS),
                ("64 MiB", &large[..], LARGE),
                ("4 KiB", &tiny[..], 4096),
            ] {
                let repeat = if bytes < 1 << 20 { 2000 } else { 1 };
                let mut plain = Vec::new();
                let mut alone = Vec::new();
                let mut ours = Vec::new();
                for round in 0..=rounds {
                    let times = [
                        timed(repeat, || plain_loop(id, direction, ops, memory, bases[1].0, child.id()))?,
                        timed(repeat, || rig.run(direction, ops))?,
                    ];
                    if round > 0 {
                        plain.push(times[0]);
                        ours.push(times[1]);
                    }
                }
                alone.append(&mut plain.clone());
                let (plain, ours) = (median(&mut plain), median(&mut ours));
                let rate = |t: f64| bytes as f64 / t / 1e9;
                if bytes < 1 << 20 {
                    println!(
                        "{name:8} {direction:6} {shape:15} plain {:7.0} ns    kvrail {:7.0} ns    adds {:4.0} ns",
                        plain * 1e9,
                        ours * 1e9,
                        (ours - plain) * 1e9
                    );
                } else {
                    println!(
                        "{name:8} {direction:6} {shape:15} plain {:7.2} GB/s  kvrail {:7.2} GB/s  ratio {:.2}",
                        rate(plain),
                        rate(ours),
                        plain / ours
                    );
                }
            }
        }
    }
    let mut block = vec![0; BLOCK];
    rig.run(Direction::Read, &[op(SHARED, 0, PRIVATE, 7 * BLOCK, BLOCK)])?;
    shared.read(0, &mut block);
    println!("# private path: {}", rig.shm.private_path(PEER).ok_or("no peer")?);
    Ok(())
}

fn op(local: RegionId, local_offset: usize, remote: RegionId, remote_offset: usize, len: usize) -> Op {
    Op {
        local_region: local,
        local_offset: local_offset as u64,
        remote_region: remote,
        remote_offset: remote_offset as u64,
        len: len as u32,
    }
}

fn registrations(rig: &mut Rig, memory: &Mapping, remote_base: u64) -> Outcome<()> {
    let info = |i: u32, base: u64| RegionInfo {
        id: RegionId(2 + i),
        generation: Generation(1),
        base: base + u64::from(i) * 4096,
        len: 4096,
        device: Device::Host,
    };
    let start = Instant::now();
    for i in 0..REGIONS {
        rig.shm.register(&info(i, memory.as_ptr() as u64)).map_err(|e| e.to_string())?;
    }
    let register = start.elapsed();
    let mut keys = Vec::new();
    let mut ends = Vec::new();
    for i in 0..REGIONS {
        rig.shm.region_key(RegionId(2 + i), &mut keys);
        ends.push(keys.len());
    }
    let start = Instant::now();
    let mut from = 0;
    for (i, end) in (0..REGIONS).zip(ends) {
        rig.shm.import_region(PEER, &info(i, remote_base), &keys[from..end]).map_err(|e| e.to_string())?;
        from = end;
    }
    println!(
        "# {REGIONS} regions: register {:.2} ms, import {:.2} ms, keys {} bytes",
        register.as_secs_f64() * 1e3,
        start.elapsed().as_secs_f64() * 1e3,
        keys.len()
    );
    Ok(())
}

/// The same work without a transport: a copy loop, or calls of many slices to the kernel.
fn plain_loop(
    id: RegionId,
    direction: Direction,
    ops: &[Op],
    memory: &Mapping,
    base: u64,
    pid: u32,
) -> Outcome<()> {
    if id == SHARED {
        // Within one memory: the addresses differ, the pattern is the same.
        for op in ops {
            let (a, b) = (op.local_offset as usize, (op.remote_offset as usize + POOL / 2) % POOL);
            let (to, from) = if direction == Direction::Read { (a, b) } else { (b, a) };
            if to != from {
                let (to, from) = (memory.as_ptr().wrapping_add(to), memory.as_ptr().wrapping_add(from));
                // SAFETY: both blocks lie inside the memory, and different blocks do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(from, to, op.len as usize) }
            }
        }
        return Ok(());
    }
    for part in ops.chunks(64) {
        let slice =
            |at: usize, len: u32| libc::iovec { iov_base: at as *mut libc::c_void, iov_len: len as usize };
        let mut bytes = 0;
        let (mut local, mut remote) = (Vec::with_capacity(64), Vec::with_capacity(64));
        for op in part {
            local.push(slice(memory.as_ptr() as usize + op.local_offset as usize, op.len));
            remote.push(slice((base + op.remote_offset) as usize, op.len));
            bytes += op.len as isize;
        }
        let (pid, count) = (pid as i32, part.len() as libc::c_ulong);
        let n = match direction {
            // SAFETY: the local slices lie inside the memory; the kernel checks the remote ones.
            Direction::Read => unsafe {
                libc::process_vm_readv(pid, local.as_ptr(), count, remote.as_ptr(), count, 0)
            },
            // SAFETY: as above.
            Direction::Write => unsafe {
                libc::process_vm_writev(pid, local.as_ptr(), count, remote.as_ptr(), count, 0)
            },
        };
        if n != bytes {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    Ok(())
}

fn timed(repeat: u32, mut run: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let start = Instant::now();
    for _ in 0..repeat {
        run()?;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(repeat))
}

/// Distinct places in the pool, in random order.
fn places(seed: &mut u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..POOL / BLOCK).collect();
    for i in 0..BLOCKS {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        let j = i + (*seed as usize) % (all.len() - i);
        all.swap(i, j);
    }
    all.truncate(BLOCKS);
    all
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
