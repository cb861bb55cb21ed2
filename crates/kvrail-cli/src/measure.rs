//! The timed part, and what becomes of its stamps.
//!
//! Per transfer the loop posts, waits, and reads the clock once at each boundary; nothing is allocated, printed or
//! looked up in between. Stamps turn into histograms only after the lap.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::case::Case;
use crate::endpoint::Prepared;
use crate::failure::Failure;
use crate::link::Pulse;
use kvrail_report::{Turn, Turns};

/// Stamps of a lap at most, per thread.
pub(crate) const STAMPS_MAX: usize = 16 << 10;
/// Longest time that a histogram tells apart: a day, nanoseconds.
const NS_MAX: u64 = 24 * 3600 * 1_000_000_000;

/// The boundaries of one transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    start: Instant,
    posted: Instant,
    done: Instant,
}

/// How much a lap does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Slots of each thread, in order.
    pub(crate) slots: usize,
    /// Goes over the slots again until so much time has passed; zero for once.
    pub(crate) at_least: Duration,
    /// Transfers per thread at most.
    pub(crate) transfers_max: usize,
}

/// Stamps of one thread, with their room reserved ahead.
pub(crate) struct Track(Vec<Stamp>);

impl Track {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(STAMPS_MAX))
    }

    /// Transfers of the last lap.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Runs a lap on every thread at once (`plans`: per thread, per slot) and returns its wall time: from the first post
/// to the last completion.
///
/// # Errors
/// The first failure of any thread.
pub(crate) fn lap(
    pulse: &Pulse,
    extent: Extent,
    plans: &mut [Vec<Prepared>],
    tracks: &mut [Track],
) -> Result<Duration, Failure> {
    for track in tracks.iter_mut() {
        track.0.clear();
    }
    if let ([track], [plans]) = (&mut *tracks, &mut *plans) {
        run(pulse, plans, extent, track)?;
    } else {
        let barrier = Barrier::new(tracks.len());
        thread::scope(|scope| {
            let threads: Vec<_> = tracks
                .iter_mut()
                .zip(plans)
                .map(|(track, plans)| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        run(pulse, plans, extent, track)
                    })
                })
                .collect();
            // All are joined, whatever the first says: none may use the plans after this.
            let ended: Vec<_> = threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err(Failure::environment("a posting thread panicked"))))
                .collect();
            ended.into_iter().collect::<Result<(), _>>()
        })?;
    }
    let stamps = || tracks.iter().flat_map(|t| &t.0);
    let (first, last) = (stamps().map(|s| s.start).min(), stamps().map(|s| s.done).max());
    Ok(first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first))
}

fn run(pulse: &Pulse, plans: &mut [Prepared], extent: Extent, track: &mut Track) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut left = extent.transfers_max.min(STAMPS_MAX);
    loop {
        for plan in plans.iter_mut().take(extent.slots) {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            let start = Instant::now();
            plan.post()?;
            let posted = Instant::now();
            plan.wait(pulse)?;
            let done = Instant::now();
            track.0.push(Stamp { start, posted, done });
        }
        if begin.elapsed() >= extent.at_least {
            return Ok(());
        }
    }
}

/// A distribution of times, nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    // Three digits from 1 ns to a day: cannot fail, and never grows while something is recorded.
    Histogram::new_with_max(NS_MAX, 3).unwrap_or_else(|_| unreachable!("constant bounds"))
}

/// What a case has yielded so far.
pub(crate) struct Samples {
    pub(crate) latency: Histogram<u64>,
    pub(crate) prepare: Histogram<u64>,
    pub(crate) post: Histogram<u64>,
    pub(crate) wire: Histogram<u64>,
    /// Nanoseconds per transfer, one entry per lap: the median bandwidth comes from it.
    lap: Histogram<u64>,
    /// The same of the plain copies.
    ceiling: Histogram<u64>,
    /// What each lap yielded.
    pub(crate) turns: Turns,
    /// The longest time after which the bytes of a write that had ended were right at last.
    pub(crate) late: Duration,
    /// Of each lap of the turn that goes on: GB/s, and the median latency.
    turn_laps: Vec<(f64, Duration)>,
    pub(crate) transfers: u64,
    pub(crate) bytes: u64,
    pub(crate) wall: Duration,
    pub(crate) cpu_initiator: Duration,
    pub(crate) cpu_target: Duration,
}

impl Samples {
    pub(crate) fn new() -> Self {
        Self {
            latency: histogram(),
            prepare: histogram(),
            post: histogram(),
            wire: histogram(),
            lap: histogram(),
            ceiling: histogram(),
            turns: Turns::default(),
            late: Duration::ZERO,
            turn_laps: Vec::new(),
            transfers: 0,
            bytes: 0,
            wall: Duration::ZERO,
            cpu_initiator: Duration::ZERO,
            cpu_target: Duration::ZERO,
        }
    }

    /// Takes a lap whose bytes were right, or were not looked at.
    pub(crate) fn add_lap(&mut self, case: &Case, tracks: &[Track], wall: Duration) {
        let mut transfers = 0;
        let mut latencies: Vec<Duration> = Vec::with_capacity(tracks.iter().map(Track::len).sum());
        for stamp in tracks.iter().flat_map(|t| &t.0) {
            transfers += 1;
            latencies.push(stamp.done - stamp.start);
            record(&mut self.latency, stamp.done - stamp.start);
            record(&mut self.post, stamp.posted - stamp.start);
            record(&mut self.wire, stamp.done - stamp.posted);
        }
        if transfers == 0 {
            return;
        }
        self.transfers += transfers;
        self.bytes += transfers * case.transfer_bytes();
        self.wall += wall;
        // Picoseconds: 4 KiB take hundreds of nanoseconds, and the histogram holds three digits of integers.
        let picos = wall.as_nanos().saturating_mul(1000) / u128::from(transfers);
        self.lap.saturating_record(picos.try_into().unwrap_or(u64::MAX).max(1));
        let middle = latencies.len() / 2;
        let (_, latency, _) = latencies.select_nth_unstable(middle);
        let bytes = transfers * case.transfer_bytes();
        self.turn_laps.push((bytes as f64 / wall.as_nanos().max(1) as f64, *latency));
    }

    /// What was added since the last call is a turn: what engines are set against each other by. Like the whole case it counts by the
    /// medians of its laps.
    pub(crate) fn end_turn(&mut self) {
        let middle = self.turn_laps.len() / 2;
        if self.turn_laps.is_empty() {
            return;
        }
        let (_, lap, _) = self.turn_laps.select_nth_unstable_by(middle, |a, b| a.0.total_cmp(&b.0));
        let bandwidth_gbps = lap.0;
        let (_, lap, _) = self.turn_laps.select_nth_unstable_by_key(middle, |lap| lap.1);
        self.turns.push(Turn { bandwidth_gbps, latency_p50_us: lap.1.as_nanos() as f64 / 1e3 });
        self.turn_laps.clear();
    }

    /// Takes a lap of plain copies.
    pub(crate) fn add_ceiling(&mut self, transfers: u64, wall: Duration) {
        let picos = wall.as_nanos().saturating_mul(1000) / u128::from(transfers.max(1));
        self.ceiling.saturating_record(picos.try_into().unwrap_or(u64::MAX).max(1));
    }

    /// Median over the laps, GB/s.
    pub(crate) fn bandwidth_gbps(&self, case: &Case) -> f64 {
        gbps(case.transfer_bytes(), &self.lap)
    }

    /// All bytes over all timed time, GB/s.
    pub(crate) fn bandwidth_total_gbps(&self) -> f64 {
        self.bytes as f64 / self.wall.as_secs_f64().max(1e-12) / 1e9
    }

    /// Median of the plain copies, GB/s; nothing when there were none.
    pub(crate) fn ceiling_gbps(&self, case: &Case) -> Option<f64> {
        (!self.ceiling.is_empty()).then(|| gbps(case.transfer_bytes(), &self.ceiling))
    }
}

fn gbps(bytes: u64, picos: &Histogram<u64>) -> f64 {
    if picos.is_empty() {
        return 0.0;
    }
    bytes as f64 * 1000.0 / picos.value_at_quantile(0.5).max(1) as f64
}

/// Records a duration.
pub(crate) fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(duration.as_nanos().try_into().unwrap_or(u64::MAX).max(1));
}

/// CPU time of this process, all threads.
pub(crate) fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lap_counts_per_transfer_and_the_median_ignores_an_outlier() {
        let case = crate::case::example();
        let mut samples = Samples::new();
        let now = Instant::now();
        for ms in [10, 10, 10, 10, 500] {
            let done = now + Duration::from_millis(ms);
            let stamp = Stamp { start: now, posted: now + Duration::from_millis(1), done };
            samples.add_lap(&case, &[Track(vec![stamp])], Duration::from_millis(ms));
        }
        let bytes = case.transfer_bytes() as f64;
        let median = samples.bandwidth_gbps(&case);
        assert!((median / (bytes / 10e-3 / 1e9) - 1.0).abs() < 0.002, "{median}");
        let total = samples.bandwidth_total_gbps();
        assert!((total / (5.0 * bytes / 540e-3 / 1e9) - 1.0).abs() < 1e-6, "{total}");
        assert_eq!(samples.transfers, 5);
        assert_eq!(samples.ceiling_gbps(&case), None);
        assert!(samples.wire.max() < samples.latency.max());
    }

    struct Nothing;

    impl kvrail_engines::Posting for Nothing {
        fn post(&mut self) -> Result<(), kvrail_engines::EngineError> {
            Ok(())
        }

        fn poll(&mut self) -> Option<Result<(), kvrail_engines::EngineError>> {
            Some(Ok(()))
        }

        fn cancel(&mut self) {}
    }

    /// Posting nothing costs what the loop costs: three looks at the clock and two calls. The least of many laps, because the
    /// machine of a test does other things, too.
    #[test]
    fn the_loop_itself_costs_less_than_100_ns() {
        let mut plans: Vec<_> = vec![(0..64).map(|_| Prepared::of(Box::new(Nothing))).collect()];
        let (pulse, mut tracks) = (Pulse::fresh(), [Track::new()]);
        let extent = Extent { slots: 64, at_least: Duration::from_millis(1), transfers_max: STAMPS_MAX };
        let cost = |_| {
            let wall = lap(&pulse, extent, &mut plans, &mut tracks).unwrap();
            wall / tracks[0].len() as u32
        };
        let least = (0..50).map(cost).min().unwrap();
        println!("{least:?} per transfer");
        assert!(least < Duration::from_nanos(100), "{least:?} per transfer");
    }

    #[test]
    fn an_empty_lap_changes_nothing() {
        let mut samples = Samples::new();
        samples.add_lap(&crate::case::example(), &[Track::new()], Duration::ZERO);
        assert_eq!((samples.transfers, samples.bytes), (0, 0));
    }
}
