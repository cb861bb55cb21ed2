//! What a transfer is: regions, descriptors, plans, rails, transfers, peers, and their wire format.
//!
//! This crate does no I/O, reads no clock and knows no thread: time is an argument, the fabric is the trait
//! [`transport::Transport`], and randomness (an agent's incarnation) comes from the caller. That it builds without
//! `std` is the cheapest proof of it.
//!
//! Invariants are cited by name (`KR-7`); `ARCHITECTURE.md` lists them.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod descriptor;
pub mod engine;
pub mod error;
pub mod hazards;
pub mod id;
pub mod limits;
pub mod plan;
pub mod region;
pub mod route;
mod slab;
pub mod stripe;
pub mod time;
pub mod transport;
pub mod wire;
