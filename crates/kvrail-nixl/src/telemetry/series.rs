//! What one agent counted: atomics that any thread adds to and an exporter reads when it likes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kvrail_core::transport::Direction;

use super::event::Event;

/// Sums, last values and distributions. Each is exact; one snapshot of several is not of one instant.
#[derive(Debug)]
pub(crate) struct Counts {
    sums: [AtomicU64; Event::COUNT],
    lasts: [AtomicU64; Event::COUNT],
    xfer_time: Histogram,
    post_time: Histogram,
    /// Of transfers that read, of transfers that wrote.
    posted: [Posted; 2],
}

/// What was posted in one direction, however it ended.
#[derive(Debug, Default)]
pub(crate) struct Posted {
    pub(crate) transfers: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) descriptors: AtomicU64,
}

impl Posted {
    #[inline]
    pub(crate) fn add(&self, bytes: u64, descriptors: u64) {
        self.transfers.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.descriptors.fetch_add(descriptors, Relaxed);
    }
}

impl Counts {
    pub(crate) fn new(bounds_us: &[f64]) -> Self {
        Self {
            sums: Default::default(),
            lasts: Default::default(),
            xfer_time: Histogram::new(bounds_us),
            post_time: Histogram::new(bounds_us),
            posted: Default::default(),
        }
    }

    #[inline]
    pub(crate) fn add(&self, event: Event, value: u64) {
        self.sums[event as usize].fetch_add(value, Relaxed);
        self.lasts[event as usize].store(value, Relaxed);
        if let Some(histogram) = self.histogram(event) {
            histogram.add(value);
        }
    }

    pub(crate) fn sum(&self, event: Event) -> u64 {
        self.sums[event as usize].load(Relaxed)
    }

    pub(crate) fn last(&self, event: Event) -> u64 {
        self.lasts[event as usize].load(Relaxed)
    }

    /// The distribution of what is timed.
    pub(crate) fn histogram(&self, event: Event) -> Option<&Histogram> {
        match event {
            Event::XferTime => Some(&self.xfer_time),
            Event::PostTime => Some(&self.post_time),
            _ => None,
        }
    }

    pub(crate) fn posted(&self, direction: Direction) -> &Posted {
        &self.posted[match direction {
            Direction::Read => 0,
            Direction::Write => 1,
        }]
    }
}

/// How many values fell below each of its bounds.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: Box<[f64]>,
    /// One per bound and one for what lies above all of them; each value is in one of them only.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds: bounds.into(), buckets, sum: AtomicU64::new(0) }
    }

    #[inline]
    fn add(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value as f64);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }

    /// The bounds, each with how many values do not exceed it; the last bound is infinite.
    pub(crate) fn cumulative(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let mut below = 0;
        let cumulative = bounds.zip(&self.buckets).map(|(bound, bucket)| {
            below += bucket.load(Relaxed);
            (bound, below)
        });
        cumulative.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_below_it_and_the_last_bucket_holds_all() {
        let counts = Counts::new(&[10.0, 25.0]);
        for value in [0, 10, 11, 25, 26, u64::from(u32::MAX)] {
            counts.add(Event::XferTime, value);
        }
        assert_eq!(counts.xfer_time.cumulative(), [(10.0, 2), (25.0, 4), (f64::INFINITY, 6)]);
        assert_eq!(counts.xfer_time.sum(), 72 + u64::from(u32::MAX));
        assert_eq!(counts.sum(Event::XferTime), counts.xfer_time.sum());
        assert_eq!(counts.last(Event::XferTime), u64::from(u32::MAX));
        assert_eq!(counts.post_time.cumulative().last(), Some(&(f64::INFINITY, 0)));
    }
}
