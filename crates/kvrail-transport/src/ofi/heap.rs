//! The process's heap under endpoints of `efa` that are replaced.
//!
//! The provider takes a few MiB of aligned memory for the packets of each endpoint. glibc's threshold above which memory is
//! mapped instead of being cut from the heap grows with what is freed, up to 32 MiB; from then on such a block comes from
//! the heap. And glibc before 2.38 does not find one again for an aligned request of the same size: seen on 2.36, every
//! replaced endpoint left 4.5 MiB of free heap behind, 3.3 GiB after 700. With a threshold that stays, nothing is left.

use std::sync::Once;

/// Blocks from this size on are mapped, and unmapped when they are freed, bytes: glibc begins with 128 KiB. With 1 MiB the smaller
/// parts of an endpoint still left 0.1 MiB each time.
const MAPPED_FROM_BYTES: libc::c_int = 256 << 10;

/// Sets the threshold, once for the process, unless the user has chosen one.
pub(super) fn map_large_blocks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
        let is_chosen = std::env::var_os("MALLOC_MMAP_THRESHOLD_").is_some()
            || tunables.contains("glibc.malloc.mmap_threshold");
        if is_chosen {
            return;
        }
        #[cfg(target_env = "gnu")]
        // SAFETY: both arguments are numbers; glibc takes its own lock.
        if unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) } == 1 {
            log::info!(
                "efa replaces an endpoint: from now on malloc maps blocks of {MAPPED_FROM_BYTES} bytes and more in this \
                 process, or the heap would grow with each (MALLOC_MMAP_THRESHOLD_ in the environment overrides this)"
            );
        }
    });
}
