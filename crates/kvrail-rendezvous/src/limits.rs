//! What is bounded, and why the bounds fit together.

use std::time::Duration;

/// Most members of a group.
pub const WORLD_SIZE_MAX: u32 = 1024;
/// Longest value that a member may publish, bytes. etcd refuses requests over 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Longest name of a key, barrier, gathering or broadcast, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest run id, bytes.
pub const RUN_ID_BYTES_MAX: usize = 128;
/// Longest namespace of an etcd store, bytes.
pub const NAMESPACE_BYTES_MAX: usize = 256;
/// Most keys that a member may have at one time.
pub const KEYS_PER_MEMBER_MAX: usize = 4096;
/// Most bytes of values that a member may have at one time.
pub const MEMBER_BYTES_MAX: usize = 16 << 20;
/// Most bytes of values of a whole run: what one member's mirror of it, or an embedded server, may hold.
pub const RUN_BYTES_MAX: usize = 256 << 20;
/// Most keys of a whole run.
pub const RUN_KEYS_MAX: usize = 1 << 18;
/// Longest reason that is kept of a member that gave up, bytes.
pub const REASON_BYTES_MAX: usize = 512;

/// Shortest time to live of a member that no longer gives signs of life. etcd raises shorter leases to 2 s.
pub const LEASE_MIN: Duration = Duration::from_secs(2);
/// Longest.
pub const LEASE_MAX: Duration = Duration::from_secs(60);
/// The lease of those that do not choose: a death is noticed within 5 s, a busy machine is not taken for dead.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(5);
/// Time to join for those that do not choose: what containers of one job may start apart.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);

/// How long the holder of a seat has to answer one who wants it. It answers from a thread that does nothing else.
pub(crate) const CHALLENGE: Duration = Duration::from_secs(1);
/// Time for leaving in order: two writes.
pub(crate) const LEAVE: Duration = Duration::from_secs(2);
/// Longest record of a member, bytes.
pub(crate) const RECORD_BYTES_MAX: usize = 4096;
/// Longest key below a run's prefix, bytes: kind, incarnation, kind of value, name, round.
pub(crate) const KEY_BYTES_MAX: usize = 256;

const _: () = assert!(NAME_BYTES_MAX + 64 <= KEY_BYTES_MAX, "a named value's key fits");
const _: () = assert!(VALUE_BYTES_MAX + (8 << 10) <= 3 << 19, "a request to etcd stays below its 1.5 MiB");
const _: () = assert!(RECORD_BYTES_MAX >= 2 * REASON_BYTES_MAX + 2 * 255 + 512, "any record fits, escaped");
const _: () = assert!(CHALLENGE.as_millis() < LEASE_MIN.as_millis(), "an answer comes before any lease ends");
const _: () = assert!(MEMBER_BYTES_MAX >= 2 * VALUE_BYTES_MAX, "two rounds of the longest values fit");
const _: () = assert!(RUN_BYTES_MAX >= MEMBER_BYTES_MAX, "one member may use what it is allowed");
