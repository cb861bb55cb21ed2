//! The device: queue pairs, completion queues, memory regions, and the engine that moves packets between processes.

mod completion;
mod device;
mod event;
mod host;
mod pair;
mod shared;
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
