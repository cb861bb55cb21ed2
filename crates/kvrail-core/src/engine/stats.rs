//! What the engine counts.

use alloc::vec::Vec;

/// Counters of one local rail, since the engine was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RailStats {
    /// Ops handed to the fabric.
    pub ops_posted: u64,
    /// Bytes of those ops.
    pub bytes_posted: u64,
    /// Ops that succeeded.
    pub ops_done: u64,
    /// Ops that failed (and were repeated elsewhere, unless their transfer failed too).
    pub ops_failed: u64,
    /// Immediates received.
    pub immediates: u64,
    /// Messages received.
    pub messages: u64,
}

/// Counters of an engine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Per local rail.
    pub rails: Vec<RailStats>,
    /// Transfers that ended well.
    pub transfers_done: u64,
    /// Transfers that ended badly.
    pub transfers_failed: u64,
    /// Bytes of the transfers that ended well.
    pub bytes_done: u64,
    /// Control messages sent for the first time.
    pub messages_sent: u64,
    /// Control messages repeated.
    pub messages_repeated: u64,
    /// Control messages that came again and were dropped.
    pub messages_duplicate: u64,
    /// Messages that did not parse, or were meant for another incarnation.
    pub messages_refused: u64,
    /// Completions that paid no debt: the transport broke its contract.
    pub completions_unknown: u64,
    /// Immediates that belonged to no open round.
    pub immediates_stray: u64,
}

/// Entries in an engine's tables. They follow what is under way at a time, never what has been: for leak checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// Places for transfers: the most that were active at a time.
    pub transfers: usize,
    /// Places for peers: the most that were known at a time, with lost ones that drain.
    pub peers: usize,
    /// Routes of all peers.
    pub routes: usize,
    /// Names of peers.
    pub names: usize,
    /// Incarnations remembered as over.
    pub retired: usize,
    /// Rounds whose confirmation is awaited.
    pub confirming: usize,
    /// Slots for counted evidence, granted or resting.
    pub slots: usize,
    /// Transfers queued on rails, those that have ended included.
    pub queued: usize,
}
