//! Finds why the KV-cache transfers of a host fail, hang, corrupt or crawl, says so with evidence, cause and remedy, and mends
//! what can be mended.
//!
//! * What is known is data: a [`Rule`] has an id, a title, a severity, the story behind it and its references; the
//!   [`catalogue`] has all of them, and the documentation is made from it.
//! * What is looked at is asked of a [`Host`]: a question (a file, a command, a library's tables, a trial load) has one answer,
//!   and all answers together are a [`Bundle`](host::Bundle). So every check runs the same on this host and on a bundle
//!   of another one, without a line of its own for either.
//! * What a check says is an [`Outcome`]; [`examine()`] runs all of them at once, by a deadline.
//!
//! Nothing here changes the host, except the module that mends, which keeps what it replaces.
#![forbid(unsafe_code)]

mod aws;
pub mod catalogue;
pub mod checks;
pub mod config;
pub mod examine;
pub mod finding;
pub mod fix;
pub mod host;
mod installed;
pub mod known;
pub mod lint;
pub mod log;
pub mod probe;
pub mod render;
pub mod rule;

pub use examine::{Examination, examine};
pub use finding::{Evidence, Finding, Location, Outcome, Step};
pub use host::{Host, Lack};
pub use rule::{Confidence, Kind, Reference, Rule, Severity};
