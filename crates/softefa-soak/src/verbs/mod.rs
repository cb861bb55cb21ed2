//! The device as programs in C see it: the functions of `libibverbs.so.1`, found by name in the library that the loader finds, and the
//! operations in its structures' tables.

mod library;
mod rail;

pub(crate) use library::Library;
pub(crate) use rail::{Entry, Handle, Kind, Rail, Refused, Region, Request, Wanted};
