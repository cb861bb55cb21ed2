//! Telemetry.
use std::time::Duration;

use crate::error::{Result, Status};
use crate::request::Direction;

#[derive(Debug)]
pub(crate) struct Telemetry;

impl Telemetry {
    pub(crate) fn for_agent(_name: &str, capture: bool) -> Result<Option<Self>> {
        let on = std::env::var("NIXL_TELEMETRY_ENABLE")
            .ok()
            .map(|text| ["y", "yes", "on", "1", "true"].contains(&text.as_str()));
        Ok(on.unwrap_or(capture).then_some(Self))
    }
    pub(crate) fn registered(&self, _bytes: u64) {}
    pub(crate) fn deregistered(&self, _bytes: u64) {}
    pub(crate) fn posted(&self, _: Direction, _bytes: u64, _descriptors: u64, _post: Duration) {}
    pub(crate) fn finished(&self, _: Direction, _bytes: u64, _total: Duration) {}
    pub(crate) fn failed(&self, _: Status) {}
}
