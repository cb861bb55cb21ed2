//! The shared memory of an emulated EFA fabric.
//!
//! One file, mapped by every process that opens an emulated device, by the supervisor and by the commands that read
//! counters or inject faults. It holds the NICs of all nodes with their counters and queue pairs ([`nic`]), the
//! processes that use them ([`process`]), the wire between them ([`wire`]), the timing model ([`model`]) and the
//! faults that are active ([`fault`]). Nothing here moves data: that is the device library's work.
//!
//! Everything that changes is an atomic, and every structure stays usable when a process dies at any instruction: a
//! ring has one producer and one consumer, a packet slot belongs to the process that sends, and what a dead process
//! held is given back by [`Fabric::reap`].
#![warn(missing_docs)]

pub mod clock;
mod error;
pub mod fault;
mod futex;
mod gid;
mod map;
pub mod model;
pub mod nic;
pub mod process;
mod segment;
pub mod wire;

pub use error::FabricError;
pub use fault::{Fault, FaultKind, Scope};
pub use gid::Gid;
pub use model::{Limits, Model};
pub use nic::{Counter, Nic, NicIndex};
pub use process::{Process, ProcessIndex};
pub use segment::{Fabric, NicSpec, Room, Spec};

/// Most nodes of one fabric.
pub const NODES_MAX: u32 = 16;
/// Most NICs of one node: twice the largest instance on sale (32 on P5).
pub const NICS_PER_NODE_MAX: u32 = 64;
/// Most processes that have devices of one fabric open at the same time: one bit each in a 64-bit word.
pub const PROCESSES_MAX: usize = 64;
/// Most queue pairs of one NIC, as the device reports them.
pub const QPS_PER_NIC_MAX: usize = 256;
/// Most faults active at the same time.
pub const FAULTS_MAX: usize = 64;

/// Environment variable: the fabric's run directory.
pub const DIR_VARIABLE: &str = "SOFTEFA_DIR";
/// Environment variable: which node of the fabric this process is on, from 0.
pub const NODE_VARIABLE: &str = "SOFTEFA_NODE";
/// Name of the segment's file in the run directory.
pub const SEGMENT_FILE: &str = "fabric";
