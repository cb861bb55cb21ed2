//! The figures of the simulated fabric: what an honest EFA-like network does, and how it misbehaves.
//!
//! All times are nanoseconds, all probabilities parts per million.

use core::time::Duration;

use kvrail_core::transport::Evidence;

/// Microseconds in nanoseconds.
pub const US: u64 = 1_000;
/// Milliseconds in nanoseconds.
pub const MS: u64 = 1_000_000;

/// Fixed facts of one world. The default is an EFA fabric at rest, as measured in the field.
#[derive(Clone, Debug)]
pub struct Model {
    /// What proves arrival on this fabric.
    pub evidence: Evidence,
    /// Payload of one packet, bytes; each packet of a message travels on its own.
    pub mtu: u32,
    /// Share of the line rate that carries payload, percent.
    pub goodput_percent: u64,
    /// Latency of every packet.
    pub latency: u64,
    /// Latency added at random, up to this.
    pub jitter: u64,
    /// Packets that are late.
    pub tail_ppm: u32,
    /// How late the late ones are: at least.
    pub tail_min: u64,
    /// How late the late ones are: at most.
    pub tail_max: u64,
    /// Bytes may become visible this much after their acknowledgement left; zero: never after it. Only with
    /// [`Evidence::Counted`]: [`Evidence::Delivered`] promises the contrary.
    pub commit_max: u64,
    /// See [`kvrail_core::transport::Caps::linger`].
    pub linger: u64,
    /// See [`kvrail_core::transport::Caps::stall_timeout`].
    pub stall_timeout: u64,
    /// How long the fabric itself tries before it calls a target unresponsive.
    pub unresponsive: u64,
    /// How long the fabric repeats a message for a target that has no receive posted.
    pub retry_max: u64,
    /// Bound on the time between a reset and its last event.
    pub flush_max: u64,
    /// Largest op, bytes.
    pub op_bytes_max: u32,
    /// Largest message, bytes.
    pub message_bytes_max: usize,
    /// Send queue per rail.
    pub ops_in_flight_max: u32,
    /// Ops that all rails together are handed in one turn.
    pub turn_ops_max: u32,
    /// Messages on their way per rail.
    pub sends_in_flight_max: u32,
    /// Receives posted per rail: unread immediates and messages.
    pub receives_max: u32,
    /// Events that one poll of a rail hands out.
    pub poll_budget: usize,
    /// A target answers only initiators that it has added as a peer (EFA's address vector; status 14 otherwise).
    pub target_knows_initiator: bool,
    /// A reset replaces the endpoint of its local rail: whatever is in flight on the rail is flushed, and the address of the
    /// process changes, of which its peers must be told. Fabrics that cannot take one op back do it so.
    pub reset_replaces_endpoint: bool,
    /// Ops in flight to a peer that is removed stay so, until they end by themselves or a reset that names it takes them back; the
    /// same process may be another peer by then. Else a removal takes them back.
    pub removal_leaves_ops: bool,
    /// More unread immediates than receives are a violation: nothing but the engine's credit holds them back (KR-8).
    /// Messages are held back by the fabric: they wait for a receive, and fail as receiver not ready in the end.
    pub overflow_is_violation: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            evidence: Evidence::Counted,
            mtu: 8928,
            goodput_percent: 97,
            latency: 10 * US,
            jitter: 4 * US,
            tail_ppm: 2_000,
            tail_min: 500 * US,
            tail_max: 4 * MS,
            commit_max: 0,
            linger: 5 * MS,
            stall_timeout: 20 * MS,
            unresponsive: 2 * MS,
            retry_max: 100 * MS,
            flush_max: 50 * US,
            op_bytes_max: 1 << 30,
            message_bytes_max: 16 << 10,
            ops_in_flight_max: 4096,
            turn_ops_max: 512,
            sends_in_flight_max: 64,
            receives_max: 4096,
            poll_budget: 256,
            target_knows_initiator: true,
            reset_replaces_endpoint: false,
            removal_leaves_ops: false,
            overflow_is_violation: true,
        }
    }
}

impl Model {
    /// `linger` as a duration.
    #[must_use]
    pub const fn linger(&self) -> Duration {
        Duration::from_nanos(self.linger)
    }
}

/// Misbehaviour by chance, for as long as it is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chaos {
    /// A post or send takes nothing although there is room.
    pub full_ppm: u32,
    /// An op ends with an error entry; its bytes landed, landed in part, or not at all.
    pub error_ppm: u32,
    /// An op's packets vanish and no completion ever comes, until a reset.
    pub drop_ppm: u32,
    /// A write's bytes land but its acknowledgement vanishes, until a reset.
    pub ack_loss_ppm: u32,
    /// A message arrives twice, the second time late.
    pub duplicate_ppm: u32,
    /// A message arrives late.
    pub late_message_ppm: u32,
    /// A message vanishes.
    pub message_loss_ppm: u32,
    /// A message fails with an error entry.
    pub send_error_ppm: u32,
    /// An op or a message meets a target without a posted receive until the fabric's retries end.
    pub not_ready_ppm: u32,
    /// A packet is delayed beyond the model's tail (reordering).
    pub reorder_ppm: u32,
    /// How much such packets and late messages are delayed, at most.
    pub delay_max: u64,
}

impl Chaos {
    /// No misbehaviour.
    pub const CALM: Self = Self {
        full_ppm: 0,
        error_ppm: 0,
        drop_ppm: 0,
        ack_loss_ppm: 0,
        duplicate_ppm: 0,
        late_message_ppm: 0,
        message_loss_ppm: 0,
        send_error_ppm: 0,
        not_ready_ppm: 0,
        reorder_ppm: 0,
        delay_max: 0,
    };
}

/// A fault that begins or ends at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A rail dies with errors: ops in flight fail, both ends' ops, and its owner is told.
    RailDown {
        /// Owner.
        node: usize,
        /// Position in its inventory.
        rail: usize,
    },
    /// A rail dies in silence: nothing passes, nothing is reported until a reset.
    RailSilent {
        /// Owner.
        node: usize,
        /// Position in its inventory.
        rail: usize,
    },
    /// A rail returns.
    RailUp {
        /// Owner.
        node: usize,
        /// Position in its inventory.
        rail: usize,
    },
    /// Packets from one NIC to another vanish (that direction only).
    BlackHole {
        /// Sending node and rail.
        from: (usize, usize),
        /// Receiving node and rail.
        to: (usize, usize),
    },
    /// Nothing passes between two nodes.
    Partition {
        /// One.
        a: usize,
        /// The other.
        b: usize,
    },
    /// From now on, by chance.
    Chaos(Chaos),
    /// All rails up, no black hole, no partition, no chaos. Dead nodes stay dead.
    Heal,
}
