//! Descriptors: slices of regions, run-length encoded, in the order in which they are paired.

use alloc::vec::Vec;

use crate::id::RegionId;

/// `count` slices of `len` bytes, the first at `offset`, each further one `stride` bytes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The region.
    pub region: RegionId,
    /// Offset of the first slice in the region, bytes.
    pub offset: u64,
    /// Bytes of each slice.
    pub len: u64,
    /// Bytes from one slice's start to the next one's.
    pub stride: u64,
    /// Number of slices; never zero.
    pub count: u32,
}

/// What a side of a plan is made of: slices in order, as runs. [`Descriptors`] are one; a list that has its slices in another form says them
/// one after the other, and need not be copied.
///
/// Whatever an implementation says is checked against the regions.
pub trait Slices {
    /// Number of slices, runs expanded: the runs have as many.
    fn count(&self) -> u64;

    /// The runs, in order.
    fn runs(&self) -> impl Iterator<Item = Run>;

    /// How many of them will not extend the one before, more or less: room is taken for so many ops.
    fn apart(&self) -> u64 {
        self.count()
    }
}

impl Slices for Descriptors {
    #[inline]
    fn count(&self) -> u64 {
        self.len()
    }

    #[inline]
    fn runs(&self) -> impl Iterator<Item = Run> {
        self.runs.iter().copied()
    }
}

/// One side of a plan: an ordered list of slices. Slice `i` here is paired with slice `i` of the other side.
///
/// Building is infallible; [`crate::plan`] checks everything against the regions and names the slice at fault.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Descriptors {
    runs: Vec<Run>,
    count: u64,
}

impl Descriptors {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty list with room for `runs` calls of `push`.
    #[must_use]
    pub fn with_capacity(runs: usize) -> Self {
        Self { runs: Vec::with_capacity(runs), count: 0 }
    }

    /// Appends one slice: `len` bytes at `offset`.
    #[inline]
    pub fn push(&mut self, region: RegionId, offset: u64, len: u64) {
        self.push_strided(region, offset, len, 0, 1);
    }

    /// Appends `count` slices of `len` bytes, `stride` bytes apart; nothing when `count` is zero.
    #[inline]
    pub fn push_strided(&mut self, region: RegionId, offset: u64, len: u64, stride: u64, count: u32) {
        if count > 0 {
            self.runs.push(Run { region, offset, len, stride, count });
            self.count += u64::from(count);
        }
    }

    /// Number of slices, strided runs expanded.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there is no slice.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sum of the slices' lengths; saturates.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.len.saturating_mul(u64::from(run.count))))
    }

    /// The runs as they were pushed.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }
}

impl FromIterator<(RegionId, u64, u64)> for Descriptors {
    /// From `(region, offset, len)`.
    fn from_iter<I: IntoIterator<Item = (RegionId, u64, u64)>>(slices: I) -> Self {
        let mut list = Self::new();
        for (region, offset, len) in slices {
            list.push(region, offset, len);
        }
        list
    }
}
