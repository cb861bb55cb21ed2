//! What the environment asks for. Names, values and defaults are NIXL's; what cannot be is an error, never the default in silence.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::event::Mask;
use crate::error::{Error, Result, Status};

pub(crate) const ENABLE: &str = "NIXL_TELEMETRY_ENABLE";
pub(crate) const EXPORTER: &str = "NIXL_TELEMETRY_EXPORTER";
pub(crate) const DIR: &str = "NIXL_TELEMETRY_DIR";
pub(crate) const BUFFER_SIZE: &str = "NIXL_TELEMETRY_BUFFER_SIZE";
pub(crate) const RUN_INTERVAL: &str = "NIXL_TELEMETRY_RUN_INTERVAL";
pub(crate) const ENABLED_METRICS: &str = "NIXL_TELEMETRY_ENABLED_METRICS";
pub(crate) const HISTOGRAM_BUCKETS: &str = "NIXL_TELEMETRY_HISTOGRAM_BUCKETS_US";
pub(crate) const PROMETHEUS_PORT: &str = "NIXL_TELEMETRY_PROMETHEUS_PORT";
pub(crate) const PROMETHEUS_LOCAL: &str = "NIXL_TELEMETRY_PROMETHEUS_LOCAL";
pub(crate) const MULTIPROC_DIR: &str = "NIXL_TELEMETRY_MULTIPROC_DIR";
pub(crate) const STALE_TTL: &str = "NIXL_TELEMETRY_MP_STALE_TTL";
pub(crate) const RANK_ENV: &str = "NIXL_TELEMETRY_RANK_ENV";

/// Events that the buffer file has room for, less one.
const BUFFER_EVENTS_DEFAULT: u64 = 4096;
/// 256 MiB of events.
const BUFFER_EVENTS_MAX: u64 = 1 << 24;
const INTERVAL_DEFAULT: Duration = Duration::from_millis(100);
/// An interval of zero would spin.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
const PORT_DEFAULT: u16 = 9090;
const STALE_TTL_DEFAULT: Duration = Duration::from_secs(30);
/// Upper bounds of the latency histograms, µs.
const BUCKETS_US: &[f64] =
    &[10., 25., 50., 100., 250., 500., 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2.5e5, 5e5, 1e6, 5e6, 1e7];
const BUCKETS_MAX: usize = 256;

/// Where what is counted goes.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Sink {
    /// Nowhere: it is there to be asked for in the process.
    None,
    /// A cyclic buffer in a file that other processes map.
    Buffer { dir: PathBuf, events: u64, interval: Duration },
    /// An endpoint that Prometheus scrapes.
    Prometheus(Endpoint),
    /// One endpoint for the processes of a host that share a directory.
    Shared { endpoint: Endpoint, dir: PathBuf, interval: Duration, stale: Duration, rank: Option<String> },
}

/// Where Prometheus scrapes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Endpoint {
    pub(crate) port: u16,
    /// Only for processes of this host.
    pub(crate) local: bool,
}

/// What the environment asks for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Settings {
    pub(crate) sink: Sink,
    pub(crate) mask: Mask,
    pub(crate) buckets_us: Vec<f64>,
}

/// An environment.
pub(crate) struct Environment<'a>(pub(crate) &'a dyn Fn(&str) -> Option<OsString>);

impl Environment<'_> {
    /// Whether telemetry is on; none when nothing is said.
    pub(crate) fn enabled(&self) -> Result<Option<bool>> {
        self.boolean(ENABLE)
    }

    /// What is asked for where telemetry is on.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let events = self.number(BUFFER_SIZE, BUFFER_EVENTS_DEFAULT)?;
        if events == 0 {
            return Err(Error::new(Status::InvalidParam, format!("{BUFFER_SIZE}=0: the buffer needs room"))
                .hint("unset it for 4096 events"));
        }
        let interval = Duration::from_millis(self.number(RUN_INTERVAL, INTERVAL_DEFAULT.as_millis() as u64)?);
        let interval = interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
        let (mask, without) = match self.text(ENABLED_METRICS)? {
            Some(patterns) => {
                let (mask, without) = Mask::matching(&patterns);
                (mask, without.join(", "))
            }
            None => (Mask::ALL, String::new()),
        };
        if !without.is_empty() {
            tracing::warn!("{ENABLED_METRICS}: no metric matches {without}");
        }
        let sink = match self.exporter()?.as_str() {
            "NOP" => Sink::None,
            "BUFFER" => Sink::Buffer { dir: self.dir(DIR, "BUFFER")?, events: buffer(events)?, interval },
            "prometheus" => Sink::Prometheus(self.endpoint()?),
            "prometheus_mp" => Sink::Shared {
                endpoint: self.endpoint()?,
                dir: self.dir(MULTIPROC_DIR, "prometheus_mp")?,
                interval,
                stale: Duration::from_secs(self.number(STALE_TTL, STALE_TTL_DEFAULT.as_secs())?),
                rank: self.rank()?,
            },
            other => {
                return Err(Error::new(
                    Status::NotFound,
                    format!("{EXPORTER}={other}: there is no such exporter"),
                )
                .hint("exporters are BUFFER, NOP, prometheus and prometheus_mp, spelled like this"));
            }
        };
        Ok(Settings { sink, mask, buckets_us: self.buckets()? })
    }

    fn exporter(&self) -> Result<String> {
        let named = self.text(EXPORTER)?.filter(|name| !name.is_empty());
        Ok(named.unwrap_or_else(|| if (self.0)(DIR).is_some() { "BUFFER" } else { "NOP" }.to_owned()))
    }

    fn dir(&self, name: &str, exporter: &str) -> Result<PathBuf> {
        let dir = (self.0)(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        dir.ok_or_else(|| {
            Error::new(Status::Backend, format!("{EXPORTER}={exporter} needs {name}, which is not set"))
                .hint(format!("set {name} to a directory that this process may write to"))
        })
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let port = self.number(PROMETHEUS_PORT, PORT_DEFAULT.into())?;
        let port = u16::try_from(port).map_err(|_| mismatch(PROMETHEUS_PORT, &port.to_string(), "a port"))?;
        Ok(Endpoint { port, local: self.boolean(PROMETHEUS_LOCAL)?.unwrap_or(false) })
    }

    fn rank(&self) -> Result<Option<String>> {
        let name = self.text(RANK_ENV)?.unwrap_or_else(|| "LOCAL_RANK".to_owned());
        if name.is_empty() || name.contains(['=', '\0']) {
            return Ok(None);
        }
        self.text(&name)
    }

    fn buckets(&self) -> Result<Vec<f64>> {
        let Some(text) = self.text(HISTOGRAM_BUCKETS)?.filter(|text| !text.is_empty()) else {
            return Ok(BUCKETS_US.to_vec());
        };
        let bounds: Option<Vec<f64>> = text.split(',').map(|bound| bound.trim().parse().ok()).collect();
        let ascending = |bounds: &Vec<f64>| {
            bounds.windows(2).all(|pair| pair[0] < pair[1]) && bounds.len() <= BUCKETS_MAX
        };
        let bounds =
            bounds.filter(|bounds| bounds.iter().all(|b| b.is_finite() && *b > 0.0) && ascending(bounds));
        bounds.ok_or_else(|| {
            let wanted = format!("up to {BUCKETS_MAX} positive numbers, each greater than the one before");
            mismatch(HISTOGRAM_BUCKETS, &text, &wanted)
        })
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>> {
        const YES: [&str; 6] = ["y", "yes", "on", "1", "true", "enable"];
        const NO: [&str; 6] = ["n", "no", "off", "0", "false", "disable"];
        let Some(text) = self.text(name)? else { return Ok(None) };
        let among = |words: [&str; 6]| words.iter().any(|word| word.eq_ignore_ascii_case(&text));
        match (among(YES), among(NO)) {
            (true, _) => Ok(Some(true)),
            (_, true) => Ok(Some(false)),
            _ => {
                let wanted = format!("one of {} or one of {}", YES.join(", "), NO.join(", "));
                Err(mismatch(name, &text, &wanted))
            }
        }
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        let Some(text) = self.text(name)? else { return Ok(default) };
        let digits = text.strip_prefix("0x").or(text.strip_prefix("0X"));
        let number = match digits {
            Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
            None if !text.starts_with('+') => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| mismatch(name, &text, "a whole number, decimal or with 0x before it"))
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        let text = (self.0)(name).map(OsString::into_string).transpose();
        text.map_err(|text| mismatch(name, &text.to_string_lossy(), "UTF-8"))
    }
}

fn buffer(events: u64) -> Result<u64> {
    if events.is_power_of_two() && events <= BUFFER_EVENTS_MAX {
        return Ok(events);
    }
    let error = Error::new(
        Status::Mismatch,
        format!("{BUFFER_SIZE}={events}: a power of two of at most {BUFFER_EVENTS_MAX} is wanted"),
    );
    let near =
        events.checked_next_power_of_two().map_or(BUFFER_EVENTS_MAX, |near| near.min(BUFFER_EVENTS_MAX));
    Err(error.hint(format!("set it to {near}")))
}

fn mismatch(name: &str, value: &str, wanted: &str) -> Error {
    Error::new(Status::Mismatch, format!("{name}={value}: not {wanted}"))
        .hint("mend the variable, or unset it for its default")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(pairs: &[(&str, &str)], ask: impl Fn(&Environment<'_>) -> T) -> T {
        let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        ask(&Environment(&lookup))
    }

    fn status(pairs: &[(&str, &str)]) -> Status {
        with(pairs, |env| env.settings().unwrap_err().status)
    }

    #[test]
    fn yes_and_no_are_what_nixl_takes_for_them_and_anything_else_is_an_error() {
        assert_eq!(with(&[], |env| env.enabled()), Ok(None));
        for yes in ["y", "YES", "On", "1", "true", "enable"] {
            assert_eq!(with(&[(ENABLE, yes)], |env| env.enabled()), Ok(Some(true)));
        }
        for no in ["N", "no", "OFF", "0", "False", "disable"] {
            assert_eq!(with(&[(ENABLE, no)], |env| env.enabled()), Ok(Some(false)));
        }
        for other in ["", "maybe", " y", "2"] {
            let error = with(&[(ENABLE, other)], |env| env.enabled()).unwrap_err();
            assert_eq!(error.status, Status::Mismatch);
            assert!(error.what.contains("one of y, yes"), "{error}");
        }
    }

    #[test]
    fn nothing_said_means_no_sink_and_a_directory_means_the_buffer() {
        let settings = with(&[], |env| env.settings()).unwrap();
        assert_eq!(settings, Settings { sink: Sink::None, mask: Mask::ALL, buckets_us: BUCKETS_US.into() });
        let settings = with(&[(DIR, "/d"), (EXPORTER, "")], |env| env.settings()).unwrap();
        let buffer = Sink::Buffer { dir: "/d".into(), events: 4096, interval: INTERVAL_DEFAULT };
        assert_eq!(settings.sink, buffer);
        let settings = with(&[(DIR, "/d"), (EXPORTER, "NOP")], |env| env.settings()).unwrap();
        assert_eq!(settings.sink, Sink::None);
        let pairs = [(EXPORTER, "BUFFER"), (DIR, "/d"), (BUFFER_SIZE, "0x40"), (RUN_INTERVAL, "0")];
        let settings = with(&pairs, |env| env.settings()).unwrap();
        assert_eq!(settings.sink, Sink::Buffer { dir: "/d".into(), events: 64, interval: INTERVAL_MIN });
    }

    #[test]
    fn what_cannot_be_is_an_error_that_says_what_to_do() {
        assert_eq!(status(&[(BUFFER_SIZE, "0")]), Status::InvalidParam);
        assert_eq!(status(&[(DIR, "/d"), (BUFFER_SIZE, "100")]), Status::Mismatch);
        assert_eq!(status(&[(DIR, "/d"), (BUFFER_SIZE, "0x10000000")]), Status::Mismatch);
        assert_eq!(status(&[(DIR, "/d"), (BUFFER_SIZE, "0xffffffffffffffff")]), Status::Mismatch);
        for number in ["", "x", "10ms", "-5", "+5", "0x", "0x+5", "99999999999999999999999"] {
            assert_eq!(status(&[(RUN_INTERVAL, number)]), Status::Mismatch, "{number}");
        }
        assert_eq!(status(&[(EXPORTER, "BUFFER")]), Status::Backend);
        assert_eq!(status(&[(EXPORTER, "prometheus_mp")]), Status::Backend);
        for name in ["buffer", "Prometheus", "doca"] {
            assert_eq!(status(&[(EXPORTER, name)]), Status::NotFound);
        }
        assert_eq!(status(&[(EXPORTER, "prometheus"), (PROMETHEUS_PORT, "99999")]), Status::Mismatch);
        for bounds in ["3,2", "0", "1,x", "1,,2", "inf", "nan", "2,2"] {
            assert_eq!(status(&[(HISTOGRAM_BUCKETS, bounds)]), Status::Mismatch, "{bounds}");
        }
        let error = with(&[(DIR, "/d"), (BUFFER_SIZE, "100")], |env| env.settings()).unwrap_err();
        assert_eq!(error.hints, ["set it to 128"]);
    }

    #[test]
    fn endpoints_and_ranks_are_read() {
        let pairs = [
            (EXPORTER, "prometheus_mp"),
            (MULTIPROC_DIR, "/m"),
            (PROMETHEUS_LOCAL, "y"),
            (RANK_ENV, "RANK"),
            ("RANK", "3"),
            (STALE_TTL, "5"),
        ];
        let Sink::Shared { endpoint, rank, stale, .. } = with(&pairs, |env| env.settings()).unwrap().sink
        else {
            panic!("the exporter is prometheus_mp");
        };
        assert_eq!(endpoint, Endpoint { port: 9090, local: true });
        assert_eq!((rank.as_deref(), stale), (Some("3"), Duration::from_secs(5)));
        let settings = with(&[(HISTOGRAM_BUCKETS, "1, 2.5,1000")], |env| env.settings()).unwrap();
        assert_eq!(settings.buckets_us, [1.0, 2.5, 1000.0]);
    }
}
