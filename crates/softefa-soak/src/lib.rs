//! Random verbs work under random faults on emulated EFA nodes, and the search for what they leave behind.
//!
//! A [`Schedule`] is made from a seed: hosts, network, traffic, faults, kills, and how the run ends. [`fleet`] carries schedules out: each
//! is one `kvrail softefa run`, whose command on every node is [`exercise`], a program that moves bytes between all processes
//! through the C interface of the device library and checks every completion, byte and immediate. After each run the fleet looks
//! for processes, run directories and files that are left.
//!
//! What a run decides is decided by its seed; when it happens is decided by the machine. A seed that fails is worth replaying a few times.

mod board;
pub mod exercise;
pub mod fleet;
mod memory;
pub mod pattern;
mod plant;
pub mod random;
pub mod schedule;
mod shared;
mod verbs;

pub use plant::Plant;
pub use schedule::Schedule;
