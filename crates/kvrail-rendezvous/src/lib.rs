//! The processes of one run find each other, agree on who they are, and tell each other what they need to begin.
//!
//! A [`Group`] has `world_size` members with ranks from 0; they may start in any order. Once all have
//! [joined](Group::join) they publish values, gather, broadcast and meet at barriers. Whoever dies is noticed by all others within a
//! lease, in whatever they wait for, by an error that names its rank, host and process id. Every wait has a deadline,
//! and its error says who is missing.
//!
//! They meet over **etcd** or over a TCP port that one of them opens (**embedded**); both behave the same. Ranks are given,
//! come from a [launcher](launch) (Slurm, Open MPI, torchrun, Kubernetes), or are taken first come, first served.
//!
//! ```no_run
//! use std::time::Duration;
//! use kvrail_rendezvous::{Config, Group, RunId, Service};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::new(Service::parse("http://etcd-0:2379,http://etcd-1:2379")?, 4);
//! config.run_id = Some(RunId::new("nightly-17")?);
//! let group = Group::join(&config)?;
//! let addresses = group.gather("address", b"10.0.0.7:5555", Duration::from_secs(10))?;
//! assert_eq!(addresses.len(), 4);
//! group.barrier("ready", Duration::from_secs(10))?;
//! group.leave(Duration::from_secs(10))?;
//! # Ok(()) }
//! ```
//!
//! # Why an earlier run cannot hurt
//! - All that a member writes lives with its lease (or connection): what a killed run leaves is gone within seconds.
//! - Until then it is recognised. Each life of a process is a random [`Incarnation`]; values are filed under it, and a
//!   group is complete only when the holders of all seats have each agreed to exactly this set of lives. The dead agree
//!   to nothing new.
//! - A seat that a dead process still has is asked for: a living holder answers from a thread of its own, and the claimant gets
//!   an error that names both; from one that is silent for a second the seat, and all that lives with it, is taken.
//! - Nothing is deleted but a run's own keys.
//!
//! # What is trusted
//! Whoever reaches the embedded service's port, or may write below etcd's prefix, can join or disturb a run: etcd has users and TLS for
//! that, the embedded service belongs into a network that is trusted. What arrives is bounded and never makes a
//! member panic.
#![forbid(unsafe_code)]

mod config;
mod driver;
mod embedded;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod group;
mod join;
mod key;
pub mod launch;
pub mod limits;
mod member;
mod name;
mod view;

pub use config::{
    Config, ConfigError, EmbeddedConfig, Endpoint, EtcdConfig, Hosting, Secret, Service, TlsConfig,
};
pub use embedded::{Host, HostError, wire};
pub use error::{Loss, ServiceError};
#[cfg(feature = "etcd")]
pub use etcd::Connection as EtcdConnection;
pub use group::{Group, GroupError, Value};
pub use join::JoinError;
pub use member::{Incarnation, Member};
pub use name::{NameError, RunId};
