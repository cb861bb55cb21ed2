//! The device: queue pairs, completion queues, memory regions, and the engine that moves packets between processes.
//!
//! ```text
//! host ─ device ─ completion, pair, event      what programs (the ABI) see
//!          shared                              one lock, one thread that runs the engine when nobody else does
//!          engine                              what happens, in bounded steps
//!   sender  operation  path  transmit  link    operations: cut, paced, faulted, onto the wire
//!   receiver  target  initiator                packets: checked, executed, acknowledged
//!   change  faults  timers                     what a command changes, what has to end
//!   region  handles  slots  copy               what is looked up and moved
//! ```

mod change;
mod completion;
mod copy;
mod device;
mod engine;
mod event;
mod faults;
mod handles;
mod hash;
mod host;
mod initiator;
mod link;
mod operation;
mod pair;
mod path;
mod random;
mod receiver;
mod region;
mod sender;
mod shared;
mod slab;
mod slots;
mod target;
mod timers;
mod transmit;
mod types;

pub use completion::CompletionQueue;
pub use device::Device;
pub use event::{AsyncEvent, Channel};
pub use host::{AttachError, Host, attach};
pub use pair::{QueuePair, State};
pub use types::{
    Access, Completion, Flags, INLINE_MAX, Limit, Opcode, Payload, ReceiveRequest, SEGMENTS_MAX, Segment,
    SendRequest, Status,
};
