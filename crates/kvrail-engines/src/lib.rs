//! What a benchmark drives, behind one trait: [`Engine`].
//!
//! An engine is one side of a measurement: it registers the memory that it is given, meets the other side, moves blocks, and says
//! what it really used to do so (KR-13). The benchmark around it is the same for all of them: same buffers, same blocks, same
//! order, same look at every byte afterwards (KR-15). What differs between two rows of a table is then the engine.
//!
//! A process holds one engine. Two copies of UCX, libfabric or libibverbs in one process are known to crash it, and an engine that
//! hangs or dies must become a line of the table, not the end of the run.

mod engine;
mod error;
pub mod libfabric;
pub mod memcpy;
mod metadata;
pub mod nixl;
mod own;
mod plant;
pub mod ucx;
mod used;

pub use engine::{Blocks, Direction, Engine, Name, PeerId, Posting, Registration};
pub use error::{EngineError, Kind};
pub use own::{Kvrail, Options as KvrailOptions, PASSED_OVER, process_vm_denied};
pub use plant::{Plant, Planted};
pub use used::{Fact, Rail, Used};
