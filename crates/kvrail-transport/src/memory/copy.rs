//! Copy kernels between mappings.
//!
//! Two are enough. [`Kernel::copy`] is the platform's `memcpy`: best for a few small blocks, whose bytes stay in
//! the cache for whoever reads them next. [`Kernel::stream`] writes past the cache and prefetches the source across
//! the end of a block into the next one: best for many scattered blocks, where the destination is far larger than
//! the cache and reading it in only to overwrite it would cost a third of the bandwidth.

/// Distance by which the source is prefetched, bytes.
const PREFETCH_BYTES: usize = 2 << 10;

/// Blocks from this size on keep the hardware prefetcher busy by themselves.
const LARGE_BYTES: usize = 256 << 10;

/// What this CPU can do; found out once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel {
    streams: bool,
}

impl Kernel {
    /// The kernels for this CPU.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let streams = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let streams = false;
        Self { streams }
    }

    /// Copies `len` bytes through the cache.
    ///
    /// # Safety
    /// `source..source + len` is readable, `target..target + len` is writable, and the ranges do not overlap.
    pub unsafe fn copy(self, target: *mut u8, source: *const u8, len: usize) {
        // SAFETY: the caller's promise is that of `copy_nonoverlapping`, whose alignment is that of bytes.
        unsafe { std::ptr::copy_nonoverlapping(source, target, len) }
    }

    /// Copies `len` bytes past the cache; `next` is where the next block will be read from (only a hint, never
    /// dereferenced). The bytes are visible to others only after [`Kernel::fence`].
    ///
    /// # Safety
    /// As for [`Kernel::copy`].
    pub unsafe fn stream(self, target: *mut u8, source: *const u8, len: usize, next: *const u8) {
        #[cfg(target_arch = "x86_64")]
        if self.streams && len >= 512 {
            if len < LARGE_BYTES {
                // SAFETY: `streams` says that AVX2 is there; the rest is the caller's promise.
                unsafe { x86::stream::<true>(target, source, len, next) }
            } else {
                // SAFETY: as above.
                unsafe { x86::stream::<false>(target, source, len, next) }
            }
            return;
        }
        let _ = next;
        // SAFETY: the caller's promise.
        unsafe { self.copy(target, source, len) }
    }

    /// Orders everything that [`Kernel::stream`] wrote before what this thread stores next.
    pub fn fence(self) {
        #[cfg(target_arch = "x86_64")]
        if self.streams {
            // SAFETY: SSE is part of x86-64; a fence touches no memory.
            unsafe { std::arch::x86_64::_mm_sfence() }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PREFETCH_BYTES;
    use std::arch::x86_64::{__m256i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm256_stream_si256};

    /// Bytes per step: four vectors, two cache lines.
    const STEP: usize = 128;

    /// # Safety
    /// AVX2 is present; the ranges are as for [`super::Kernel::copy`].
    #[target_feature(enable = "avx2")]
    #[allow(unused_unsafe, reason = "a prefetch is safe only in newer standard libraries")]
    pub(super) unsafe fn stream<const PREFETCH: bool>(
        target: *mut u8,
        source: *const u8,
        len: usize,
        next: *const u8,
    ) {
        // Streaming stores need an aligned target: the ends go through the cache.
        let head = target.align_offset(32).min(len);
        if head > 0 {
            // SAFETY: `head <= len`.
            unsafe { std::ptr::copy_nonoverlapping(source, target, head) }
        }
        let (target, source, len) = (target.wrapping_add(head), source.wrapping_add(head), len - head);
        let body = len - len % STEP;
        let mut at = 0;
        while at < body {
            if PREFETCH {
                let ahead = at + PREFETCH_BYTES;
                let hint =
                    if ahead < len { source.wrapping_add(ahead) } else { next.wrapping_add(ahead - len) };
                // SAFETY: a prefetch of any address is harmless.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(hint.cast()) }
                // SAFETY: as above.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(hint.wrapping_add(64).cast()) }
            }
            let from = source.wrapping_add(at).cast::<__m256i>();
            let to = target.wrapping_add(at).cast::<__m256i>();
            // SAFETY: `at + STEP <= len`: all four loads lie in the source; no alignment is asked of them.
            let a = unsafe { _mm256_loadu_si256(from) };
            // SAFETY: as above.
            let b = unsafe { _mm256_loadu_si256(from.wrapping_add(1)) };
            // SAFETY: as above.
            let c = unsafe { _mm256_loadu_si256(from.wrapping_add(2)) };
            // SAFETY: as above.
            let d = unsafe { _mm256_loadu_si256(from.wrapping_add(3)) };
            // SAFETY: `at + STEP <= len`: all four stores lie in the target, which `head` aligned to 32 bytes.
            unsafe { _mm256_stream_si256(to, a) }
            // SAFETY: as above.
            unsafe { _mm256_stream_si256(to.wrapping_add(1), b) }
            // SAFETY: as above.
            unsafe { _mm256_stream_si256(to.wrapping_add(2), c) }
            // SAFETY: as above.
            unsafe { _mm256_stream_si256(to.wrapping_add(3), d) }
            at += STEP;
        }
        if body < len {
            let (to, from) = (target.wrapping_add(body), source.wrapping_add(body));
            // SAFETY: what is left of both ranges.
            unsafe { std::ptr::copy_nonoverlapping(from, to, len - body) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_arrives_whole_and_alone() {
        let kernel = Kernel::detect();
        let source: Vec<u8> =
            (0..300 << 10).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let lens = [1, 31, 127, 511, 512, 513, 4095, 4096, 4097, 65_536, (256 << 10) + 77];
        for len in lens {
            for (skip_source, skip_target) in [(0, 0), (1, 0), (0, 1), (7, 29), (32, 31)] {
                let mut target = vec![0xEE; len + 96];
                let from = source[skip_source..].as_ptr();
                let to = target.as_mut_ptr().wrapping_add(32 + skip_target);
                // SAFETY: both ranges lie inside their vectors, which are distinct.
                unsafe { kernel.stream(to, from, len, from) }
                kernel.fence();
                let start = 32 + skip_target;
                assert_eq!(target[start..start + len], source[skip_source..skip_source + len]);
                assert!(target[..start].iter().all(|b| *b == 0xEE), "bytes before the target changed");
                assert!(target[start + len..].iter().all(|b| *b == 0xEE), "bytes after the target changed");
            }
        }
    }
}
