//! Files.
use std::time::Duration;

use crate::backend::Params;
use crate::error::{Error, Result, Status};
use crate::list::RegDesc;
use crate::request::Direction;

pub(crate) const PARAMS: &[(&str, &str)] = &[];

#[derive(Clone, Debug)]
pub(crate) struct Registration;

#[derive(Clone, Debug)]
pub(crate) struct FileMove {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) offset: u64,
    pub(crate) file: Registration,
}

pub(crate) struct Files;
pub(crate) struct Job;

impl Job {
    pub(crate) fn poll(&mut self) -> Option<Result<()>> {
        None
    }
    pub(crate) fn cancel_and_drain(&mut self, _: Duration) -> bool {
        true
    }
}

impl Files {
    pub(crate) fn create(_: &Params) -> Result<Self> {
        Ok(Self)
    }
    pub(crate) fn query(&self, _: &[u8]) -> Result<Option<Params>> {
        Ok(None)
    }
    pub(crate) fn register(&self, _: &RegDesc) -> Result<Registration> {
        Ok(Registration)
    }
    pub(crate) fn submit(&self, moves: Vec<FileMove>, _: Direction) -> Result<Job> {
        let FileMove { addr, len, offset, file: Registration } = moves[0];
        Err(Error::new(Status::NotSupported, format!("{addr} {len} {offset}")))
    }
}
