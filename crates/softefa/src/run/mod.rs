//! Sets up an emulated fabric for commands, one per node, and takes it down again whatever happens.
//!
//! Two processes share the work. The **front** ([`run`]) owns the terminal: it prints what the commands print and
//! passes signals on. The **keeper** ([`keep`]) owns the fabric: it makes the run directory, starts the commands as
//! their parent and sub-reaper, copies counters to the private /sys, gives back what dead processes held, and in the
//! end kills whatever is left and removes everything.
//!
//! Nothing outlives a fabric, whoever is killed:
//! - the front: the keeper sees the end of their socket, kills all descendants and cleans up;
//! - the keeper: the kernel kills the commands (parent-death signal), their orphans fall to the front, which is a
//!   sub-reaper too, and which cleans up;
//! - both: the lock on the run directory is free, so that the next fabric, or [`remove_stale`], finds processes by the
//!   directory in their environment, ends them and removes it.

mod base;
mod channel;
mod commands;
mod directory;
mod environment;
mod error;
mod front;
mod hardware;
mod keeper;
mod leftovers;
mod listen;
mod output;
mod plan;
mod processes;
mod signals;
mod spec;
mod status;
mod timed;

pub use base::BASE_VARIABLE;
pub use directory::{Live, Removed, find, live, remove_stale};
pub use environment::{Variable, of_node};
pub use error::{Error, Refusal, Told};
pub use front::{Captured, Said, run, run_captured};
pub use keeper::keep;
pub use plan::{Cause, End, FaultOrder, Loading, Numa, Outcome, Request};
pub use spec::{Device, Spec};
pub use status::{FaultStatus, NicStatus, ProcessStatus, Status, open, status};
