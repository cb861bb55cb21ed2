//! Everything has a limit, and limits prove each other.

/// Rails of one agent, local or remote. P5 has 32; two of every kind still fit.
pub const RAILS_MAX: usize = 64;

/// Routes to one peer: each pairing of a local rail with a remote one, at most once. A peer begins with one per rail of
/// the larger side; further ones are made when a plan's regions, or a failover, need them.
pub const ROUTES_MAX: usize = RAILS_MAX * RAILS_MAX;

/// Regions of one agent.
pub const REGIONS_MAX: usize = 1 << 20;

/// Peers of one agent at a time (the field's engine fails hard at 256).
pub const PEERS_MAX: usize = 1 << 16;

/// Transfers of one agent at a time.
pub const TRANSFERS_MAX: usize = 1 << 16;

/// Ops of one plan: 2^24 blocks of 4 KiB are 64 GiB.
pub const PLAN_OPS_MAX: usize = 1 << 24;

/// Agent name, bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Notification message, bytes. Longer ones are refused: a notification is a name for something, not a payload.
pub const NOTIFICATION_BYTES_MAX: usize = 8 << 10;

/// Transport address inside metadata, bytes.
pub const ADDRESS_BYTES_MAX: usize = 4 << 10;

/// What every transport can carry as one message: the longest control message that this version writes.
pub const MESSAGE_BYTES_MIN: usize = 16 << 10;

/// Metadata of one agent, bytes: a bound against hostile length fields.
pub const METADATA_BYTES_MAX: usize = 256 << 20;

/// Slots for counted evidence that one agent grants in all; the slot number has 16 bits on the wire.
pub const SLOTS_MAX: usize = 1 << 16;

/// Slots for counted evidence that an agent grants to one peer: its counted transfers at a time.
pub const SLOTS_PER_PEER: usize = 16;

/// Application messages and notifications that may be unacknowledged towards one peer.
pub const CONTROL_WINDOW: usize = 32;

/// Sequenced control messages that may be unacknowledged towards one peer: each slot adds at most one close (by its
/// user) and one answer (by its owner), which never wait for the window.
pub const UNACKNOWLEDGED_MAX: usize = CONTROL_WINDOW + 2 * SLOTS_PER_PEER;

const _: () = assert!(UNACKNOWLEDGED_MAX <= 64, "the receiver remembers 64 messages beyond the first gap");
const _: () = assert!(SLOTS_PER_PEER <= crate::wire::control::GREETING_SLOTS_MAX);

const _: () = assert!(ROUTES_MAX <= 1 << 16, "a route's position is kept in 16 bits");
const _: () = assert!(
    MESSAGE_BYTES_MIN >= NOTIFICATION_BYTES_MAX + 64 * RAILS_MAX / 4 + 512,
    "a close message carries a notification and a count per rail"
);
const _: () = assert!(
    MESSAGE_BYTES_MIN >= ADDRESS_BYTES_MAX + NAME_BYTES_MAX + SLOTS_PER_PEER * 4 + 512,
    "a greeting carries a name, an address and slots"
);
