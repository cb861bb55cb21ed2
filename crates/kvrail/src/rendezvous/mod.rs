//! Rendezvous: agents exchange their metadata over a TCP connection, without any service in between.
//!
//! One agent serves, others connect; each learns the other's metadata, imports it and tells its verdict. Start order
//! does not matter: connecting is tried again until there is a listener or the deadline passes. All that arrives is
//! input from outside: lengths are bounded before anything is allocated, versions are compared, and an exchange has
//! one absolute deadline that a drip of bytes does not stretch (KR-4).
//!
//! ```no_run
//! # use std::time::Duration;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One process:
//! let decode = kvrail::Agent::builder("decode-0").build()?;
//! let server = decode.serve("0.0.0.0:5555")?;
//! let prefill = server.accept(Duration::from_secs(30))?;
//! // Another one:
//! let agent = kvrail::Agent::builder("prefill-0").build()?;
//! let decode = agent.connect_to("decode-0.example:5555", Duration::from_secs(30))?;
//! # Ok(()) }
//! ```

mod client;
pub mod frame;
mod server;
mod stream;

pub use client::ConnectToError;
pub use server::{AcceptError, ServeError, Server};
pub use stream::{ExchangeError, Step};
