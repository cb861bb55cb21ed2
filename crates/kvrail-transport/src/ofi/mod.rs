//! Many rails over libfabric: one endpoint per NIC, on whichever provider the fabric of this host has.
//!
//! This module's parts that touch no library are decisions and formats: [`config`] (what can be chosen), [`select`]
//! (which provider and NICs), [`facts`] (what was found, for people), [`address`], [`key`] and [`fragment`] (the bytes
//! that peers exchange), [`status`] (what the provider's error codes mean) and [`counters`] (what the device counts).

pub mod address;
pub mod config;
pub mod counters;
pub mod error;
pub mod evidence;
pub mod facts;
pub mod fragment;
pub mod key;
pub mod select;
pub mod status;

pub use config::{Affinity, Config, Provider};
pub use error::OpenError;
pub use facts::Facts;
