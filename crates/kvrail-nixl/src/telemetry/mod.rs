//! Telemetry: what an agent moved, registered and failed at, counted in the process and, where the environment asks for it, told
//! to other processes.
//!
//! Variables, events, file layout and series names are those of NIXL's telemetry, so that its readers and people's dashboards go on
//! working. Counting is a few atomic additions; nothing that counts ever waits for a sink. Where NIXL gives up telemetry altogether
//! because another process has the port, counting goes on here and the missing endpoint is said.

mod event;
mod http;
mod page;
mod prometheus;
mod ring;
mod series;
mod settings;
mod shared;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use kvrail_core::transport::Direction;

use self::event::{Event, Mask};
use self::prometheus::Published;
use self::ring::Buffer;
use self::series::Counts;
use self::settings::{ENABLE, Environment, Settings, Sink};
use self::shared::Share;
use crate::error::{Error, Result, Status};

/// The telemetry of one agent. Dropping it writes what waits, leaves the page of metrics and ends its threads.
#[derive(Debug)]
pub struct Telemetry {
    subject: Arc<Subject>,
    buffer: Option<Buffer>,
    published: Option<Published>,
    /// The process that made it: threads do not follow into a forked child.
    process: u32,
}

/// What is known of an agent on a page of metrics.
struct Subject {
    name: String,
    /// Labels of all its series, as they are written.
    labels: String,
    mask: Mask,
    counts: Counts,
    below: OnceLock<Box<Below>>,
}

/// What the agent below has counted; none when there is none (any more).
type Below = dyn Fn() -> Option<kvrail::Stats> + Send + Sync;

impl Subject {
    fn below(&self) -> Option<kvrail::Stats> {
        self.below.get().and_then(|below| below())
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("name", &self.name).finish_non_exhaustive()
    }
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
        let process = std::process::id();
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut labels = page::labels(&[("agent_name", name), ("hostname", &hostname)]);
        if let Sink::Shared { rank, .. } = &sink {
            let pid = process.to_string();
            let pairs = [("pid", &*pid), ("local_rank", rank.as_deref().unwrap_or_default())];
            let pairs = if rank.is_some() { &pairs[..] } else { &pairs[..1] };
            labels = format!("{labels},{}", page::labels(pairs));
        }
        let counts = Counts::new(&buckets_us);
        let subject =
            Arc::new(Subject { name: name.to_owned(), labels, mask, counts, below: OnceLock::new() });
        let (mut buffer, mut published) = (None, None);
        match sink {
            Sink::None => {}
            Sink::Buffer { dir, events, interval } => {
                buffer = Some(Buffer::create(&dir, name, events, interval, mask)?);
            }
            Sink::Prometheus(endpoint) => published = prometheus::publish(subject.clone(), endpoint, None)?,
            Sink::Shared { endpoint, dir, interval, stale, .. } => {
                let share = Share::new(dir, interval, stale);
                published = prometheus::publish(subject.clone(), endpoint, Some(&share))?;
            }
        }
        Ok(Self { subject, buffer, published, process })
    }

    /// Puts what kvrail counts below (transports, rails, latencies) on the page of metrics too. `stats` is asked whenever the page is
    /// read; it must not keep the agent alive. Only the first is heeded.
    pub fn below(&self, stats: impl Fn() -> Option<kvrail::Stats> + Send + Sync + 'static) {
        let _ = self.subject.below.set(Box::new(stats));
    }

    /// Where Prometheus finds the page of this process, when it has one of its own.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.published.as_ref().and_then(Published::address)
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
        self.subject.counts.posted(direction).add(bytes, descriptors);
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
            self.subject.counts.add(*event, *value);
        }
        let Some(buffer) = &self.buffer else { return };
        if events.iter().all(|(event, _)| self.subject.mask.has(*event)) {
            return buffer.push(events);
        }
        let chosen: Vec<_> =
            events.iter().copied().filter(|(event, _)| self.subject.mask.has(*event)).collect();
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
