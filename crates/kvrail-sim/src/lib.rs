//! A simulated fabric with seeded faults, checkers and canaries.
//!
//! Two or more engines run over [`fabric::SimFabric`] in virtual time. One seed decides everything: the world, the
//! workload, the faults. What the checkers find is a [`violation::Violation`] with that seed, and the seed replays it.
//! Nothing here reads a clock, starts a thread, or iterates in an order that is not fixed.
#![forbid(unsafe_code)]

pub mod canary;
pub mod driver;
pub mod fabric;
pub mod fleet;
pub mod memory;
pub mod model;
pub mod pattern;
pub mod rng;
pub mod scenario;
pub mod territory;
pub mod trace;
pub mod violation;
