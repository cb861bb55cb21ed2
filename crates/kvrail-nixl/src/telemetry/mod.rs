//! Telemetry: what an agent moved, registered and failed at, counted in the process and, where the environment asks for it, told
//! to other processes.
//!
//! Variables, events, file layout and series names are those of NIXL's telemetry, so that its readers and people's dashboards go on
//! working. Counting is a few atomic additions; nothing that counts ever waits for a sink. Where NIXL gives up telemetry altogether
//! because another process has the port, counting goes on here and the missing endpoint is said.

mod event;
mod ring;
mod series;
mod settings;

use std::time::Duration;

pub use kvrail_core::transport::Direction;

use self::event::Event;
use self::ring::Buffer;
use self::series::Counts;
use self::settings::{ENABLE, Environment, Settings, Sink};
use crate::error::{Error, Result, Status};

/// The telemetry of one agent. Dropping it writes what waits and ends its thread.
#[derive(Debug)]
pub struct Telemetry {
    counts: Counts,
    mask: event::Mask,
    buffer: Option<Buffer>,
    /// The process that made it: threads do not follow into a forked child.
    process: u32,
}

impl Telemetry {
    /// The telemetry of an agent, when the environment or, where that says nothing, `capture` asks for it.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] for an empty name or a buffer of no events (NIXL: `ValueError`); anything else is a `RuntimeError` there:
    /// [`Status::Mismatch`] for a variable that does not parse, [`Status::NotFound`] for an exporter that does not exist,
    /// [`Status::Backend`] for one that does not start.
    pub fn for_agent(name: &str, capture: bool) -> Result<Option<Self>> {
        Self::from_environment(name, capture, &Environment(&|variable| std::env::var_os(variable)))
    }

    fn from_environment(name: &str, capture: bool, environment: &Environment<'_>) -> Result<Option<Self>> {
        match environment.enabled()? {
            Some(false) if capture => {
                tracing::warn!(
                    agent = name,
                    "{ENABLE} is off: telemetry that the agent's configuration asks for is not captured"
                );
                return Ok(None);
            }
            None if !capture => return Ok(None),
            Some(false) => return Ok(None),
            Some(true) | None => {}
        }
        if name.is_empty() {
            return Err(Error::new(Status::InvalidParam, "an agent without a name has no telemetry"));
        }
        Self::create(name, environment.settings()?).map(Some)
    }

    fn create(name: &str, settings: Settings) -> Result<Self> {
        let Settings { sink, mask, buckets_us } = settings;
        let counts = Counts::new(&buckets_us);
        let buffer = match sink {
            Sink::Buffer { dir, events, interval } => {
                Some(Buffer::create(&dir, name, events, interval, mask)?)
            }
            _ => None,
        };
        Ok(Self { counts, mask, buffer, process: std::process::id() })
    }

    /// Memory was registered by a call: so many bytes altogether.
    pub fn registered(&self, bytes: u64) {
        self.count(&[(Event::Registered, bytes)]);
    }

    /// Memory was deregistered by a call.
    pub fn deregistered(&self, bytes: u64) {
        self.count(&[(Event::Deregistered, bytes)]);
    }

    /// A transfer was posted, which took `post` of the caller's time.
    pub fn posted(&self, direction: Direction, bytes: u64, descriptors: u64, post: Duration) {
        self.counts.posted(direction).add(bytes, descriptors);
        self.count(&[(Event::PostTime, micros(post))]);
    }

    /// A transfer ended well, `total` after it was posted.
    pub fn finished(&self, direction: Direction, bytes: u64, total: Duration) {
        let (bytes_of, requests) = match direction {
            Direction::Write => (Event::TxBytes, Event::TxRequests),
            Direction::Read => (Event::RxBytes, Event::RxRequests),
        };
        self.count(&[(Event::XferTime, micros(total)), (bytes_of, bytes), (requests, 1)]);
    }

    /// A call or a transfer failed.
    pub fn failed(&self, status: Status) {
        self.count(&[(Event::of(status), 1)]);
    }

    #[inline]
    fn count<const N: usize>(&self, events: &[ring::Counted; N]) {
        for (event, value) in events {
            self.counts.add(*event, *value);
        }
        let Some(buffer) = &self.buffer else { return };
        if events.iter().all(|(event, _)| self.mask.has(*event)) {
            return buffer.push(events);
        }
        let chosen: Vec<_> = events.iter().copied().filter(|(event, _)| self.mask.has(*event)).collect();
        buffer.push(&chosen);
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let Some(buffer) = &mut self.buffer else { return };
        if self.process == std::process::id() { buffer.close() } else { buffer.forget() }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
