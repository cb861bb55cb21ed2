//! What every kvrail transport must do, as one test suite.
//!
//! A fabric (the simulator, shared memory, TCP, …) implements [`World`]: nodes, memory and the passing of time. The
//! suite introduces the nodes to each other, posts, polls, and checks the contract that
//! [`kvrail_core::transport`] states: bytes go where they were sent and nowhere else (KR-9), every accepted op is
//! resolved exactly once (KR-6), messages arrive intact, refusals are typed, resets and vanished peers leave no debt,
//! and deregistered memory is never touched again (KR-7).
//!
//! ```text
//! kvrail_conformance::conformance_suite!(|| LocalWorld::new(|| Box::new(Tcp::new(Config::default()).unwrap())));
//! ```
//!
//! Properties return [`Violation`]s instead of panicking, so that a deliberately broken transport
//! ([`faults::Fault`]) can show that each of them is able to fail.
#![forbid(unsafe_code)]

pub mod faults;
pub mod host;
mod ledger;
mod pattern;
pub mod properties;
mod rig;
#[cfg(test)]
mod toy;

use core::fmt;
use core::time::Duration;

use kvrail_core::time::Time;
use kvrail_core::transport::Transport;

pub use rig::{Area, Rig};

/// A node of a [`World`]: one agent's transport.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub usize);

/// Nodes on one fabric, their memory, and time.
pub trait World {
    /// A fresh node with a transport of its own.
    fn add_node(&mut self) -> NodeId;

    /// The node's process vanishes: its transport ends without a word to anybody. Its memory can still be inspected.
    fn drop_node(&mut self, node: NodeId);

    /// The node's transport. Not called for a dropped node.
    fn transport(&mut self, node: NodeId) -> &mut dyn Transport;

    /// Memory of the node that lives as long as the world; returns the address of its first byte.
    fn alloc(&mut self, node: NodeId, bytes: usize) -> u64;

    /// Writes into memory that [`World::alloc`] gave.
    fn write_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &[u8]);

    /// Reads from memory that [`World::alloc`] gave.
    fn read_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &mut [u8]);

    /// The clock that transports are given.
    fn now(&self) -> Time;

    /// Lets time pass: a yield in real time, the next event in virtual time. Each call must bring [`World::now`]
    /// forward sooner or later.
    fn step(&mut self);

    /// What this world cannot do, said aloud.
    fn limitations(&self) -> Limitations {
        Limitations::default()
    }
}

/// What a world cannot do, and how patient one has to be with it.
#[derive(Clone, Debug)]
pub struct Limitations {
    /// How long anything that must happen may take.
    pub patience: Duration,
    /// How long to watch for things that must not happen.
    pub vigil: Duration,
    /// Ops in the larger properties.
    pub volume: u32,
    /// Properties that this fabric does not claim, each with the reason; the reason is printed.
    pub not_claimed: &'static [(&'static str, &'static str)],
}

impl Default for Limitations {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(10),
            vigil: Duration::from_millis(20),
            volume: 1_500,
            not_claimed: &[],
        }
    }
}

/// A broken promise, with what was seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// A property's verdict.
pub type Verdict = Result<(), Violation>;

/// One promise of the contract.
#[derive(Clone, Copy)]
pub struct Property {
    /// A sentence.
    pub name: &'static str,
    /// Checks it in a fresh world.
    pub check: fn(&mut Rig<'_>) -> Verdict,
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Ends a property early.
macro_rules! violated {
    ($($arg:tt)*) => { return Err($crate::Violation(format!($($arg)*))) };
}

/// Ends a property early unless something holds.
macro_rules! demand {
    ($cond:expr, $($arg:tt)*) => { if !$cond { return Err($crate::Violation(format!($($arg)*))); } };
}
pub(crate) use {demand, violated};

/// Calls another macro with the list of all properties: the one place where they are listed.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_property {
    ([$($with:tt)*] $($arg:tt)*) => {
        $($with)* ! {
            [$($arg)*]
            caps_are_sane
            a_node_without_peers_is_quiet
            an_idle_pair_is_quiet
            a_malformed_address_is_refused
            reads_move_exactly_the_given_bytes
            writes_move_exactly_the_given_bytes
            the_largest_op_moves_whole
            many_writes_at_random_offsets_land_in_place
            many_reads_at_random_offsets_land_in_place
            a_batch_larger_than_the_queue_resumes
            every_route_carries_ops
            both_directions_run_at_once
            three_nodes_do_not_mix
            immediates_follow_their_bytes
            messages_of_every_size_arrive_intact
            a_message_that_is_too_long_is_refused
            messages_to_an_unpolled_peer_are_refused_or_arrive
            ops_to_an_unpolled_peer_stay_bounded
            messages_pass_between_ops
            an_unknown_region_is_refused
            a_stale_generation_is_refused
            a_range_beyond_the_region_is_refused
            refused_ops_do_not_disturb_their_neighbours
            a_new_registration_works_under_its_new_generation
            deregistered_memory_is_never_touched
            deregistered_memory_is_not_read_through_a_stale_key
            a_reset_pays_all_debts
            a_reset_towards_a_silent_peer_pays_all_debts
            a_route_works_again_after_a_reset
            messages_and_ops_survive_a_reset_of_another_route
            a_reset_does_not_change_what_peers_reach_for_long
            a_region_is_moved_only_over_its_rails
            removing_a_peer_flushes_its_ops
            a_removed_peer_can_be_added_again
            a_vanished_peer_is_reported
            a_vanished_peer_does_not_disturb_others
        }
    };
}

/// Expands to one `#[test]` per property. The argument is an expression for a closure that makes a fresh world.
#[macro_export]
macro_rules! conformance_suite {
    ($factory:expr) => {
        $crate::for_each_property! { [$crate::__conformance_tests] $factory }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ([$factory:expr] $($name:ident)*) => { $(
        #[test]
        fn $name() {
            let mut world = ($factory)();
            $crate::check(&mut world, stringify!($name), $crate::properties::$name);
        }
    )* };
}

/// Expands to one `#[test]` per [`faults::Fault`]: the suite must catch a transport that was broken on purpose. The
/// argument is an expression for a closure that makes a fresh world.
#[macro_export]
macro_rules! conformance_canaries {
    ($factory:expr) => {
        #[test]
        fn every_planted_fault_is_caught() {
            for canary in $crate::faults::CANARIES {
                let mut world = ($factory)();
                if let Err(missed) = $crate::faults::catch(&mut world, canary) {
                    panic!("{missed}");
                }
            }
        }
    };
}

/// Runs one property in a fresh world; panics with the violation. What [`conformance_suite!`] calls.
///
/// # Panics
/// When the property does not hold.
pub fn check(world: &mut dyn World, name: &str, property: fn(&mut Rig<'_>) -> Verdict) {
    if let Some((_, why)) = world.limitations().not_claimed.iter().find(|(n, _)| *n == name) {
        eprintln!("SKIPPED {name}: {why}");
        return;
    }
    if let Err(violation) = property(&mut Rig::new(world)) {
        panic!("{name} does not hold: {violation}");
    }
}

macro_rules! list {
    ([] $($name:ident)*) => {
        /// All properties, in the order of the suite.
        pub const PROPERTIES: &[Property] =
            &[$(Property { name: stringify!($name), check: properties::$name }),*];
    };
}
for_each_property! { [list] }
