//! What the tcp transport reaches between two processes, beside what plain sockets reach here.
//!
//! ```text
//! cargo run --release -p kvrail-transport --example tcp_bench -- [--blocks 12800] [--block-bytes 32768] [--rounds 7]
//!     [--connections 2] [--listen 127.0.0.1]
//! ```
//! Starts its own target. Rounds of all kinds alternate, so that a noisy host disturbs them alike; medians are printed.
//! Every round's bytes are checked on the receiving side, outside the timed part; the target is poisoned before.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kvrail_core::id::{Generation, LocalRail, PeerId, RegionId, RemoteRail, Route, Token};
use kvrail_core::time::Time;
use kvrail_core::transport::{Batch, Device, Direction, Event, Op, RegionInfo, Transport};
use kvrail_transport::Fabric;
use kvrail_transport::tcp::{Config, Tcp};

/// How long to poll in vain before sleeping: longer than a round trip, shorter than what a scheduler notices.
const SPIN_FOR: Duration = Duration::from_micros(200);

/// Spins for a moment, then sleeps until something arrives: what an engine does between polls.
struct Patience {
    since: Option<Instant>,
}

impl Patience {
    fn after_poll(&mut self, tcp: &mut Tcp, moved: bool) {
        if moved {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > SPIN_FOR && tcp.arm() {
            let mut wait = libc::pollfd { fd: tcp.wait_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one live `pollfd`.
            unsafe { libc::poll(&raw mut wait, 1, 1) };
            self.since = None;
        }
    }
}

type Failure = Box<dyn std::error::Error>;

#[derive(Clone)]
struct Settings {
    blocks: usize,
    block_bytes: usize,
    rounds: usize,
    connections: u16,
    listen: String,
    role: String,
}

fn settings() -> Result<Settings, Failure> {
    let mut settings = Settings {
        blocks: 12_800,
        block_bytes: 32 << 10,
        rounds: 7,
        connections: Config::default().connections,
        listen: "127.0.0.1".into(),
        role: "initiator".into(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or(format!("{name} wants a value"))?;
        match name.as_str() {
            "--blocks" => settings.blocks = value.parse()?,
            "--block-bytes" => settings.block_bytes = value.parse()?,
            "--rounds" => settings.rounds = value.parse()?,
            "--connections" => settings.connections = value.parse()?,
            "--listen" => settings.listen = value,
            "--role" => settings.role = value,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(settings)
}

fn main() -> Result<(), Failure> {
    let settings = settings()?;
    if settings.role == "target" { target(&settings) } else { initiator(&settings) }
}

/// Memory that the transport reads and writes behind the compiler's back; looked at only while nothing is in flight.
struct Pool {
    base: *mut u8,
    len: usize,
    block: usize,
    /// Slot of each block: a permutation of slots twice as many as blocks, so that neighbours are rarely adjacent.
    slots: Vec<usize>,
}

impl Pool {
    fn new(settings: &Settings, seed: u64) -> Self {
        let count = settings.blocks * 2;
        let len = count * settings.block_bytes;
        let base = Box::leak(vec![1u8; len].into_boxed_slice()).as_mut_ptr();
        let mut slots: Vec<usize> = (0..count).collect();
        let mut state = seed;
        for i in (1..count).rev() {
            state = mix(state);
            slots.swap(i, (state % (i as u64 + 1)) as usize);
        }
        slots.truncate(settings.blocks);
        Self { base, len, block: settings.block_bytes, slots }
    }

    fn block(&mut self, i: usize) -> &mut [u8] {
        // SAFETY: slots are below the number of blocks that the pool was made for.
        let base = unsafe { self.base.add(self.slots[i] * self.block) };
        // SAFETY: a block of the pool's own, leaked memory, which is not given out twice; nothing is in flight.
        unsafe { std::slice::from_raw_parts_mut(base, self.block) }
    }

    fn fill(&mut self, seed: u64) {
        for i in 0..self.slots.len() {
            for (w, word) in self.block(i).chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&mix(seed ^ (i as u64) << 32 ^ w as u64).to_le_bytes());
            }
        }
    }

    fn holds(&mut self, seed: u64) -> bool {
        (0..self.slots.len()).all(|i| {
            let words = self.block(i).chunks_exact(8).enumerate();
            words.into_iter().all(|(w, word)| word == mix(seed ^ (i as u64) << 32 ^ w as u64).to_le_bytes())
        })
    }

    fn poison(&mut self) {
        (0..self.slots.len()).for_each(|i| self.block(i).fill(0xee));
    }

    fn info(&self) -> RegionInfo {
        RegionInfo {
            id: RegionId(0),
            generation: Generation(1),
            base: self.base.expose_provenance() as u64,
            len: self.len as u64,
            device: Device::Host,
        }
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x2545_f491_4f6c_dd1d);
    x ^ (x >> 29)
}

const LOCAL_SEED: u64 = 11;
const REMOTE_SEED: u64 = 22;

fn make(settings: &Settings) -> Result<Tcp, Failure> {
    let listen = vec![SocketAddr::new(settings.listen.parse()?, 0)];
    Ok(Tcp::new(Config { listen, connections: settings.connections, ..Config::default() })?)
}

// --- the target: polls until it is told something ---

fn target(settings: &Settings) -> Result<(), Failure> {
    let mut tcp = make(settings)?;
    let mut pool = Pool::new(settings, REMOTE_SEED);
    let info = pool.info();
    tcp.register(&info).map_err(|e| e.to_string())?;
    let plain = TcpListener::bind((settings.listen.as_str(), 0))?;
    let mut address = Vec::new();
    tcp.address(&mut address);
    let hex: String = address.iter().map(|b| format!("{b:02x}")).collect();
    println!("{hex} {} {} {}", info.base, info.len, plain.local_addr()?);
    io::stdout().flush()?;

    let (tx, commands) = std::sync::mpsc::channel();
    std::thread::spawn(move || io::stdin().lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
    let (origin, mut events) = (Instant::now(), Vec::new());
    let mut patience = Patience { since: None };
    let traffic = |tcp: &Tcp| tcp.rail_counters().iter().map(|c| c.rx_bytes + c.tx_bytes).sum::<u64>();
    let mut before = 0;
    loop {
        for _ in 0..200 {
            tcp.poll(Time::ZERO + origin.elapsed(), &mut events);
            events.clear();
            let after = traffic(&tcp);
            patience.after_poll(&mut tcp, after != std::mem::replace(&mut before, after));
        }
        let command = match commands.try_recv() {
            Ok(command) => command,
            Err(std::sync::mpsc::TryRecvError::Empty) => continue,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ok(()),
        };
        let (verb, seed) = command.split_once(' ').unwrap_or((&command, "0"));
        let seed: u64 = seed.parse()?;
        let mut answer = "done".to_owned();
        match verb {
            "fill" => pool.fill(seed),
            "poison" => pool.poison(),
            "check" => answer = if pool.holds(seed) { "right".into() } else { "WRONG".into() },
            "receive" => plain_receive(&mut plain.accept()?.0, &mut pool)?,
            "send" => plain_send(&mut plain.accept()?.0, &mut pool)?,
            "echo" => plain_echo(&plain.accept()?.0)?,
            _ => answer = "what?".into(),
        }
        println!("{answer}");
        io::stdout().flush()?;
    }
}

fn plain_receive(stream: &mut TcpStream, pool: &mut Pool) -> io::Result<()> {
    for i in 0..pool.slots.len() {
        stream.read_exact(pool.block(i))?;
    }
    stream.write_all(b"k")
}

fn plain_send(stream: &mut TcpStream, pool: &mut Pool) -> io::Result<()> {
    for i in 0..pool.slots.len() {
        stream.write_all(pool.block(i))?;
    }
    stream.read_exact(&mut [0])
}

const SMALL: usize = 4 << 10;

fn plain_echo(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut bytes = [0; SMALL];
    while spin(stream, &mut bytes)? {
        (&mut &*stream).write_all(&[1])?;
    }
    Ok(())
}

/// Fills `bytes` without ever sleeping; false at the end of the stream.
fn spin(mut stream: &TcpStream, bytes: &mut [u8]) -> io::Result<bool> {
    let mut at = 0;
    while at < bytes.len() {
        match stream.read(&mut bytes[at..]) {
            Ok(0) => return Ok(false),
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

// --- the initiator ---

struct Remote {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Remote {
    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn say(&mut self, command: &str) -> Result<(), Failure> {
        Ok(writeln!(self.to, "{command}")?)
    }

    fn ask(&mut self, command: &str) -> Result<String, Failure> {
        self.say(command)?;
        self.line()
    }
}

struct Bench {
    tcp: Tcp,
    pool: Pool,
    remote: Remote,
    plain: SocketAddr,
    routes: Vec<Route>,
    ops: Vec<Op>,
    peer: PeerId,
    origin: Instant,
    tokens: u32,
}

fn initiator(settings: &Settings) -> Result<(), Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--role", "target", "--listen", &settings.listen])
        .args(["--blocks", &settings.blocks.to_string(), "--block-bytes", &settings.block_bytes.to_string()])
        .args(["--connections", &settings.connections.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (to, from) = (child.stdin.take().ok_or("no pipe")?, child.stdout.take().ok_or("no pipe")?);
    let mut remote = Remote { child, to, from: BufReader::new(from) };
    let greeting = remote.line()?;
    let mut words = greeting.split(' ');
    let mut word = || words.next().ok_or("the target said too little");
    let hex = word()?;
    let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16);
    let address = (0..hex.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, _>>()?;
    let (base, len): (u64, u64) = (word()?.parse()?, word()?.parse()?);
    let plain: SocketAddr = word()?.parse()?;

    let mut tcp = make(settings)?;
    let pool = Pool::new(settings, LOCAL_SEED);
    tcp.register(&pool.info()).map_err(|e| e.to_string())?;
    let peer = PeerId { slot: 0, generation: Generation(1) };
    let origin = Instant::now();
    let rails = tcp.add_peer(Time::ZERO, peer, &address).map_err(|e| e.to_string())?.len() as u16;
    tcp.import_region(peer, &RegionInfo { base, len, ..pool.info() }, &[]).map_err(|e| e.to_string())?;
    let routes = (0..rails).map(|i| Route { local: LocalRail(i), remote: RemoteRail(i) }).collect();
    let remote_slots = Pool::new(&Settings { block_bytes: 1, ..settings.clone() }, REMOTE_SEED).slots;
    let block = settings.block_bytes as u64;
    let op = |i: usize| Op {
        local_offset: pool.slots[i] as u64 * block,
        remote_offset: remote_slots[i] as u64 * block,
        local_region: RegionId(0),
        remote_region: RegionId(0),
        len: block as u32,
    };
    let ops = (0..settings.blocks).map(op).collect();
    let mut bench = Bench { tcp, pool, remote, plain, routes, ops, peer, origin, tokens: 0 };
    bench.run(settings)?;
    drop(bench.remote.to);
    bench.remote.child.wait()?;
    Ok(())
}

impl Bench {
    fn run(&mut self, settings: &Settings) -> Result<(), Failure> {
        let bytes = (settings.blocks * settings.block_bytes) as f64;
        let (mut write, mut read) = (Vec::new(), Vec::new());
        let (mut plain_out, mut plain_in) = (Vec::new(), Vec::new());
        for round in 0..=settings.rounds as u64 {
            let w = self.checked_out(round * 4 + 1, |bench| bench.transfer(Direction::Write))?;
            let r = self.checked_in(round * 4 + 2, |bench| bench.transfer(Direction::Read))?;
            let po = self.checked_out(round * 4 + 3, Self::plain_out)?;
            let pi = self.checked_in(round * 4 + 4, Self::plain_in)?;
            // The first round touches the pages and opens the connections.
            if round > 0 {
                for (into, took) in
                    [(&mut write, w), (&mut read, r), (&mut plain_out, po), (&mut plain_in, pi)]
                {
                    into.push(bytes / took.as_secs_f64() / 1e9);
                }
            }
        }
        println!(
            "{} x {} KiB scattered, {} connections, GB/s (median, least to most)",
            settings.blocks,
            settings.block_bytes >> 10,
            settings.connections
        );
        for (name, mut rates) in
            [("write", write), ("read", read), ("plain send", plain_out), ("plain receive", plain_in)]
        {
            rates.sort_by(f64::total_cmp);
            println!(
                "  {name:14} {:5.2}   {:5.2} to {:5.2}",
                rates[rates.len() / 2],
                rates[0],
                rates[rates.len() - 1]
            );
        }
        println!("4 KiB one at a time, microseconds (p50, p99)");
        for (name, mut times) in [
            ("write", self.small(Direction::Write)?),
            ("read", self.small(Direction::Read)?),
            ("plain echo", self.plain_small()?),
        ] {
            times.sort();
            let us = |d: Duration| d.as_nanos() as f64 / 1e3;
            println!(
                "  {name:14} {:5.2}   {:5.2}",
                us(times[times.len() / 2]),
                us(times[times.len() * 99 / 100])
            );
        }
        Ok(())
    }

    /// Times something that moves all blocks to the target.
    fn checked_out(
        &mut self,
        seed: u64,
        f: impl FnOnce(&mut Self) -> Result<Duration, Failure>,
    ) -> Result<Duration, Failure> {
        self.pool.fill(seed);
        self.remote.ask("poison")?;
        let took = f(self)?;
        match self.remote.ask(&format!("check {seed}"))?.as_str() {
            "right" => Ok(took),
            other => Err(format!("the target's bytes are {other}").into()),
        }
    }

    /// Times something that moves all blocks from the target.
    fn checked_in(
        &mut self,
        seed: u64,
        f: impl FnOnce(&mut Self) -> Result<Duration, Failure>,
    ) -> Result<Duration, Failure> {
        self.pool.poison();
        self.remote.ask(&format!("fill {seed}"))?;
        let took = f(self)?;
        if self.pool.holds(seed) { Ok(took) } else { Err("the bytes that were read are wrong".into()) }
    }

    fn transfer(&mut self, direction: Direction) -> Result<Duration, Failure> {
        let begin = Instant::now();
        // Blocks go to the routes in stretches, so that each batch is of one route.
        let per_route = self.ops.len().div_ceil(self.routes.len());
        self.tokens += 1;
        let token = Token { slot: self.tokens, generation: Generation(1) };
        let mut posted: Vec<usize> = (0..self.routes.len()).map(|r| r * per_route).collect();
        let (mut done, mut events) = (0, Vec::new());
        let mut patience = Patience { since: None };
        while done < self.ops.len() {
            for (r, at) in posted.iter_mut().enumerate() {
                let end = ((r + 1) * per_route).min(self.ops.len());
                if *at < end {
                    let batch = Batch {
                        peer: self.peer,
                        route: self.routes[r],
                        direction,
                        token,
                        first: *at as u32,
                        ops: &self.ops[*at..end],
                        immediate: None,
                    };
                    *at += self.tcp.post(Time::ZERO + self.origin.elapsed(), &batch).unwrap_or(0);
                }
            }
            self.tcp.poll(Time::ZERO + self.origin.elapsed(), &mut events);
            patience.after_poll(&mut self.tcp, !events.is_empty());
            for event in events.drain(..) {
                match event {
                    Event::Completed { count, .. } => done += count as usize,
                    other => return Err(format!("{other:?}").into()),
                }
            }
        }
        Ok(begin.elapsed())
    }

    fn small(&mut self, direction: Direction) -> Result<Vec<Duration>, Failure> {
        let mut events = Vec::new();
        let mut times = Vec::new();
        for i in 0..20_000 {
            let ops = [Op { len: SMALL as u32, ..self.ops[i % 64] }];
            let begin = Instant::now();
            self.tokens += 1;
            let token = Token { slot: self.tokens, generation: Generation(1) };
            let (peer, route) = (self.peer, self.routes[0]);
            let batch = Batch { peer, route, direction, token, first: 0, ops: &ops, immediate: None };
            let now = Time::ZERO + self.origin.elapsed();
            while self.tcp.post(now, &batch).unwrap_or(0) == 0 {
                self.tcp.poll(now, &mut events);
            }
            while events.is_empty() {
                self.tcp.poll(now, &mut events);
            }
            times.push(begin.elapsed());
            if !matches!(events.pop(), Some(Event::Completed { .. })) {
                return Err("a small op failed".into());
            }
        }
        Ok(times.split_off(2_000))
    }

    fn plain_out(&mut self) -> Result<Duration, Failure> {
        self.remote.say("receive")?;
        let mut stream = TcpStream::connect(self.plain)?;
        let begin = Instant::now();
        plain_send(&mut stream, &mut self.pool)?;
        let took = begin.elapsed();
        self.remote.line()?;
        Ok(took)
    }

    fn plain_in(&mut self) -> Result<Duration, Failure> {
        self.remote.say("send")?;
        let mut stream = TcpStream::connect(self.plain)?;
        let begin = Instant::now();
        plain_receive(&mut stream, &mut self.pool)?;
        let took = begin.elapsed();
        self.remote.line()?;
        Ok(took)
    }

    fn plain_small(&mut self) -> Result<Vec<Duration>, Failure> {
        self.remote.say("echo")?;
        let stream = TcpStream::connect(self.plain)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut times = Vec::new();
        for _ in 0..20_000 {
            let begin = Instant::now();
            (&mut &stream).write_all(&[7; SMALL])?;
            spin(&stream, &mut [0])?;
            times.push(begin.elapsed());
        }
        drop(stream);
        self.remote.line()?;
        Ok(times.split_off(2_000))
    }
}
