//! The device: queue pairs, completion queues, memory regions, and the engine that moves packets between processes.

mod types;

pub use types::{
    Access, Completion, Flags, Limit, Opcode, Payload, ReceiveRequest, Segment, SendRequest, Status,
};
