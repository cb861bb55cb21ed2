//! What the harness itself costs: `cargo bench -p kvrail-engines`.
//!
//! * An engine that does nothing, driven as the benchmark drives every engine: post, poll, and the clock read at each of the
//!   three boundaries. What is left is the harness: less than 100 ns a transfer.
//! * The engine memcpy against a loop over the same blocks that is written by hand, in turns: at most 1 % slower.
//!
//! With `--check` a bound that is not kept is exit code 1; a busy machine can miss the second.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail_engines::memcpy::Memcpy;
use kvrail_engines::{Blocks, Direction, Engine, EngineError, Name, PeerId, Posting, Used};

/// Bound of an iteration around an engine that does nothing, nanoseconds.
const ITERATION_NS_MAX: f64 = 100.0;
/// Bound of the engine memcpy against the loop by hand.
const RATIO_MAX: f64 = 1.01;
/// Turns of a comparison; the median of the ratios within them counts.
const TURNS: usize = 31;

struct Nothing;

impl Engine for Nothing {
    fn name(&self) -> Name {
        Name::Memcpy
    }
    fn used(&self) -> Vec<Used> {
        Vec::new()
    }
    fn register(&mut self, _: &Memory) -> Result<(), EngineError> {
        Ok(())
    }
    fn metadata(&mut self) -> Result<Vec<u8>, EngineError> {
        Ok(Vec::new())
    }
    fn connect(&mut self, _: &[u8], _: Duration) -> Result<PeerId, EngineError> {
        Ok(PeerId(0))
    }
    fn prepare(&self, _: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        Ok(Box::new(Self))
    }
    fn needs_driving(&self) -> bool {
        false
    }
    fn drive(&self) -> bool {
        false
    }
    fn notifications(&self, _: u64, _: Duration) -> Result<u64, EngineError> {
        Ok(0)
    }
}

impl Posting for Nothing {
    fn post(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        Some(Ok(()))
    }
    fn cancel(&mut self) {}
}

/// The loop of the benchmark: what it stamps, and into memory that was reserved ahead.
fn lap(posting: &mut dyn Posting, stamps: &mut Vec<[Instant; 3]>, iterations: usize) -> Duration {
    stamps.clear();
    let began = Instant::now();
    for _ in 0..iterations {
        let start = Instant::now();
        posting.post().expect("posts");
        let posted = Instant::now();
        while posting.poll().is_none() {}
        stamps.push([start, posted, Instant::now()]);
    }
    began.elapsed()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_unstable_by(f64::total_cmp);
    of[of.len() / 2]
}

fn blocks<'a>(peer: PeerId, local: &'a [u64], remote: &'a [u64], block_bytes: u64) -> Blocks<'a> {
    Blocks {
        direction: Direction::Write,
        peer,
        lane: 0,
        local,
        remote,
        block_bytes,
        notification: None,
        timeout: Duration::from_secs(1),
    }
}

/// Nanoseconds of an iteration around nothing.
fn around_nothing() -> f64 {
    let iterations = 16 << 10;
    let mut stamps = Vec::with_capacity(iterations);
    let mut posting = Nothing.prepare(&blocks(PeerId(0), &[0], &[0], 1)).expect("prepares");
    let turns = (0..TURNS).map(|_| {
        let took = lap(&mut *posting, &mut stamps, iterations);
        black_box(&stamps);
        took.as_nanos() as f64 / iterations as f64
    });
    median(turns.collect())
}

/// The engine's time over that of a loop by hand, for so many blocks; nanoseconds a transfer of either.
fn against_hand(block_bytes: u64, batch: u64, iterations: usize) -> (f64, f64, f64) {
    let places = batch * 5 / 4 + 1;
    let bytes = (places * block_bytes) as usize;
    let (here, there) = (Memory::shared(bytes).expect("memory"), Memory::shared(bytes).expect("memory"));
    let mut target = Memcpy::new();
    target.register(&there).expect("registers");
    let mut engine = Memcpy::new();
    engine.register(&here).expect("registers");
    let metadata = target.metadata().expect("metadata");
    let peer = engine.connect(&metadata, Duration::from_secs(1)).expect("connects");
    // Distinct places in disorder: 7919 is prime and divides none of these counts.
    let local: Vec<u64> = (0..batch).map(|i| (i * 7919 % places) * block_bytes).collect();
    let remote: Vec<u64> = (0..batch).map(|i| (i * 7919 * 3 % places) * block_bytes).collect();
    let mut posting = engine.prepare(&blocks(peer, &local, &remote, block_bytes)).expect("prepares");
    // What a C programmer would write down before the loop. The mapping that the engine uses is another one of the same pages.
    let address = |memory: &Memory, offset: u64| {
        std::ptr::with_exposed_provenance_mut::<u8>((memory.base() + offset) as usize)
    };
    let copies: Vec<(*const u8, *mut u8)> = local
        .iter()
        .zip(&remote)
        .map(|(&from, &to)| (address(&here, from).cast_const(), address(&there, to)))
        .collect();
    let len = block_bytes as usize;
    let (mut by_engine, mut by_hand, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut engine_lap = || {
        let began = Instant::now();
        for _ in 0..iterations {
            posting.post().expect("posts");
            while posting.poll().is_none() {}
        }
        began.elapsed().as_nanos() as f64 / iterations as f64
    };
    let hand_lap = || {
        let began = Instant::now();
        for _ in 0..iterations {
            for &(from, to) in black_box(&copies) {
                // SAFETY: both ranges lie in memories that live to the end of this function, and are of two of them.
                unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
            }
        }
        began.elapsed().as_nanos() as f64 / iterations as f64
    };
    for turn in 0..=TURNS {
        // Who goes second finds what the first has left in the caches: they take turns in that, too.
        let (engine, hand) = if turn % 2 == 0 {
            let engine = engine_lap();
            (engine, hand_lap())
        } else {
            let hand = hand_lap();
            (engine_lap(), hand)
        };
        // The first turn touches the pages.
        if turn > 0 {
            by_engine.push(engine);
            by_hand.push(hand);
            ratios.push(engine / hand);
        }
    }
    (median(by_engine), median(by_hand), median(ratios))
}

fn main() -> ExitCode {
    let check = std::env::args().any(|word| word == "--check");
    let mut kept = true;
    let verdict = |is_kept: bool| if is_kept { "kept" } else { "MISSED" };
    let nothing = around_nothing();
    kept &= nothing < ITERATION_NS_MAX;
    println!(
        "around an engine that does nothing: {nothing:.1} ns a transfer (bound {ITERATION_NS_MAX} ns: {})",
        verdict(nothing < ITERATION_NS_MAX)
    );
    for (block_bytes, batch, iterations) in [(32 << 10, 1024, 4), (1 << 20, 32, 4), (4096, 1024, 32)] {
        let (engine, hand, ratio) = against_hand(block_bytes, batch, iterations);
        let gbps = |ns: f64| (block_bytes * batch) as f64 / ns;
        kept &= ratio <= RATIO_MAX;
        println!(
            "{batch} x {} KiB scattered: memcpy {:.2} GB/s, by hand {:.2} GB/s, time {ratio:.4} of it (bound {RATIO_MAX}: {})",
            block_bytes >> 10,
            gbps(engine),
            gbps(hand),
            verdict(ratio <= RATIO_MAX)
        );
    }
    let (engine, hand, _) = against_hand(64, 1, 100_000);
    println!("1 x 64 bytes: memcpy {engine:.1} ns, by hand {hand:.1} ns");
    ExitCode::from(u8::from(check && !kept))
}
