//! The loop of `ucx_perftest -t ucp_put_bw` (and `ucp_get` with a window) over the UCX engine: to hold the engine's figures against that
//! program's, on the same transports.
//!
//! `cargo run --release -p kvrail-engines --example ucx_put_bw -- BYTES BLOCKS [TRANSPORTS] [read]`, as in `65536 20000 tcp`

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail_engines::ucx::{Config, Ucx};
use kvrail_engines::{Blocks, Direction, Engine};

/// Blocks of one posting: behind each is a flush, which a batch this long makes cheap.
const BATCH: usize = 1000;
/// Different blocks that are written again and again; `ucx_perftest` has one.
const BLOCKS: u64 = 32;
const TARGET: &str = "KVRAIL_UCX_PUT_BW_TARGET";

fn open(tls: &str, bytes: u64) -> Result<(Ucx, Memory), Box<dyn Error>> {
    let memory = Memory::shared((bytes * BLOCKS) as usize)?;
    memory.fill(0, memory.len(), 1)?;
    let tls = Some(tls.to_owned()).filter(|tls| tls != "all");
    let mut engine = Ucx::open(Config { tls, ..Config::default() })?;
    engine.register(&memory)?;
    Ok((engine, memory))
}

/// CPU time of this thread so far.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let bytes: u64 = arguments.first().ok_or("how many bytes?")?.parse()?;
    let count: usize = arguments.get(1).ok_or("how many blocks?")?.parse()?;
    let tls = arguments.get(2).map_or("all", String::as_str);
    let is_read = arguments.get(3).is_some_and(|word| word == "read");
    if std::env::var_os(TARGET).is_some() {
        let (mut engine, _memory) = open(tls, bytes)?;
        let metadata: String = engine.metadata()?.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{metadata}");
        std::io::stdout().flush()?;
        // Until the parent is gone.
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_line(&mut String::new());
            std::process::exit(0);
        });
        loop {
            engine.drive();
        }
    }
    let mut target = Command::new(std::env::current_exe()?)
        .args(&arguments)
        .env(TARGET, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(target.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let metadata: Vec<u8> = line
        .trim()
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair)?, 16).map_err(Box::<dyn Error>::from))
        .collect::<Result<_, _>>()?;

    let (mut engine, _memory) = open(tls, bytes)?;
    let peer = engine.connect(&metadata, Duration::from_secs(10))?;
    let offsets: Vec<u64> = (0..BATCH as u64).map(|block| block % BLOCKS * bytes).collect();
    let direction = if is_read { Direction::Read } else { Direction::Write };
    let mut posting = engine.prepare(&Blocks {
        direction,
        peer,
        lane: 0,
        local: &offsets,
        remote: &offsets,
        block_bytes: bytes,
        notification: None,
        timeout: Duration::from_secs(60),
    })?;
    let mut run = || {
        posting.post()?;
        posting.wait(Duration::from_secs(60)).ok_or("it takes too long")??;
        Ok::<_, Box<dyn Error>>(())
    };
    run()?;
    let rounds = count.div_ceil(BATCH);
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    for _ in 0..rounds {
        run()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let cpu_per_block = (cpu_seconds() - cpu) * 1e6 / (rounds * BATCH) as f64;
    let moved = (rounds * BATCH) as f64 * bytes as f64;
    let per_block = seconds * 1e6 / (rounds * BATCH) as f64;
    println!(
        "{bytes} B: {:.3} GB/s ({:.1} MiB/s), {per_block:.3} µs a block, {cpu_per_block:.3} µs of it on a CPU",
        moved / seconds / 1e9,
        moved / seconds / 1048576.0
    );
    for used in engine.used() {
        println!(
            "{} {} {:?}",
            used.version,
            used.transport,
            used.facts.iter().map(|f| format!("{}: {}", f.name, f.value)).collect::<Vec<_>>()
        );
    }
    drop(posting);
    drop(target.stdin.take());
    target.wait()?;
    Ok(())
}
