//! Random transfers under random faults between kvrail processes, every byte and every ending checked.
//!
//! A supervisor ([`fleet`]) starts workers ([`worker`]), each an agent in a process of its own, on emulated EFA nodes or on plain loopback;
//! it decides from a seed what they move, which faults come and who is killed, and keeps the book that the checkers read. A worker
//! decides nothing and looks at every byte. So there is one order of events, and one place that says what explains an error.
//!
//! Every checker has a defect that is planted to see that it would be found ([`Plant`]).

pub mod fleet;
pub mod layout;
pub mod pattern;
mod plant;
pub mod seeds;
pub mod talk;
pub mod troupe;
mod violation;
pub mod worker;

pub use plant::Plant;
pub use violation::{Checker, Violation};
