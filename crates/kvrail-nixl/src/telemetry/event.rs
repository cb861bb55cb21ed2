//! What is counted: the events of NIXL's telemetry by number and name, and the series that its exporters make of them.
//!
//! Numbers and names are NIXL's, so that its readers and people's dashboards go on working.

use crate::error::Status;

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)+) => {
        /// A kind of event.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub(crate) enum Event {
            $($(#[$doc])* $variant = $number,)+
        }

        impl Event {
            /// All of them, by number.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            /// NIXL's name.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

events! {
    /// Bytes of a transfer that wrote.
    TxBytes = 0, "agent_tx_bytes";
    /// Bytes of a transfer that read.
    RxBytes = 1, "agent_rx_bytes";
    /// Transfers that wrote.
    TxRequests = 2, "agent_tx_requests_num";
    /// Transfers that read.
    RxRequests = 3, "agent_rx_requests_num";
    /// Bytes registered by a call.
    Registered = 4, "agent_memory_registered";
    /// Bytes deregistered by a call.
    Deregistered = 5, "agent_memory_deregistered";
    /// From posting to the end, µs.
    XferTime = 6, "agent_xfer_time";
    /// From posting to the return of the post, µs.
    PostTime = 7, "agent_xfer_post_time";
    /// An error of that status; so are those that follow.
    NotPosted = 8, "agent_err_not_posted";
    InvalidParam = 9, "agent_err_invalid_param";
    Backend = 10, "agent_err_backend";
    NotFound = 11, "agent_err_not_found";
    Mismatch = 12, "agent_err_mismatch";
    NotAllowed = 13, "agent_err_not_allowed";
    RepostActive = 14, "agent_err_repost_active";
    Unknown = 15, "agent_err_unknown";
    NotSupported = 16, "agent_err_not_supported";
    RemoteDisconnect = 17, "agent_err_remote_disconnect";
    Canceled = 18, "agent_err_canceled";
    NoTelemetry = 19, "agent_err_no_telemetry";
    /// Events that found no room on their way to the buffer file.
    Dropped = 20, "agent_telemetry_events_dropped";
}

const ERROR_PREFIX: &str = "agent_err_";

impl Event {
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) const fn of(status: Status) -> Self {
        match status {
            Status::NotPosted => Self::NotPosted,
            Status::InvalidParam => Self::InvalidParam,
            Status::Backend => Self::Backend,
            Status::NotFound => Self::NotFound,
            Status::Mismatch => Self::Mismatch,
            Status::NotAllowed => Self::NotAllowed,
            Status::RepostActive => Self::RepostActive,
            Status::Unknown => Self::Unknown,
            Status::NotSupported => Self::NotSupported,
            Status::RemoteDisconnect => Self::RemoteDisconnect,
            Status::Cancelled => Self::Canceled,
            Status::NoTelemetry => Self::NoTelemetry,
        }
    }

    /// The label of an error in the one family that holds all errors.
    pub(crate) fn error_label(self) -> Option<&'static str> {
        self.name().strip_prefix(ERROR_PREFIX)
    }

    /// The series that exporters make of it. Errors share one family and have none of their own.
    pub(crate) fn series(self) -> Option<Series> {
        let series = |counter, counted| Series { counter, counted, gauge: None, histogram: None };
        Some(match self {
            Self::TxBytes => Series {
                gauge: Some(("agent_tx_last_bytes", "Bytes of the last transfer that wrote.")),
                ..series("agent_tx_bytes_total", "Bytes of the transfers that wrote.")
            },
            Self::RxBytes => Series {
                gauge: Some(("agent_rx_last_bytes", "Bytes of the last transfer that read.")),
                ..series("agent_rx_bytes_total", "Bytes of the transfers that read.")
            },
            Self::TxRequests => series("agent_tx_requests_num_total", "Transfers that wrote."),
            Self::RxRequests => series("agent_rx_requests_num_total", "Transfers that read."),
            Self::Registered => Series {
                gauge: Some(("agent_memory_registered_last_bytes", "Bytes of the last registration.")),
                ..series("agent_memory_registered_total", "Bytes registered so far.")
            },
            Self::Deregistered => Series {
                gauge: Some(("agent_memory_deregistered_last_bytes", "Bytes of the last deregistration.")),
                ..series("agent_memory_deregistered_total", "Bytes deregistered so far.")
            },
            Self::XferTime => Series {
                gauge: Some(("agent_xfer_time", "Microseconds that the last transfer took.")),
                histogram: Some((
                    "agent_xfer_time_us",
                    "Microseconds from posting to the end of a transfer.",
                )),
                ..series("agent_xfer_time_total", "Microseconds that transfers took, summed up.")
            },
            Self::PostTime => Series {
                gauge: Some(("agent_xfer_post_time", "Microseconds that the last post took.")),
                histogram: Some(("agent_xfer_post_time_us", "Microseconds that posting a transfer took.")),
                ..series("agent_xfer_post_time_total", "Microseconds that posts took, summed up.")
            },
            Self::Dropped => series(
                "agent_telemetry_events_dropped_total",
                "Events that found no room on their way to the buffer file.",
            ),
            _ => return None,
        })
    }
}

/// Names and help texts of the series made of one kind of event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series {
    /// The sum of all values.
    pub(crate) counter: &'static str,
    /// What it is a sum of.
    pub(crate) counted: &'static str,
    /// The last value.
    pub(crate) gauge: Option<(&'static str, &'static str)>,
    /// The distribution of values.
    pub(crate) histogram: Option<(&'static str, &'static str)>,
}

/// Which kinds of events leave the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mask(u32);

const _: () = assert!(Event::COUNT <= u32::BITS as usize, "a mask has one bit per kind of event");

impl Mask {
    pub(crate) const ALL: Self = Self((1 << Event::COUNT) - 1);

    #[inline]
    pub(crate) const fn has(self, event: Event) -> bool {
        self.0 & (1 << event as u32) != 0
    }

    /// The kinds whose names one of the patterns matches, and the patterns that match none. No pattern at all means every kind.
    pub(crate) fn matching(patterns: &str) -> (Self, Vec<&str>) {
        let patterns: Vec<&str> =
            patterns.split(',').map(str::trim).filter(|pattern| !pattern.is_empty()).collect();
        if patterns.is_empty() {
            return (Self::ALL, Vec::new());
        }
        let mut mask = 0;
        let mut without = Vec::new();
        for pattern in patterns {
            let matched = Event::ALL.iter().filter(|event| glob(pattern.as_bytes(), event.name().as_bytes()));
            let bits = matched.fold(0, |bits, event| bits | 1 << *event as u32);
            mask |= bits;
            if bits == 0 {
                without.push(pattern);
            }
        }
        (Self(mask), without)
    }
}

/// Whether `pattern` with its `*` (anything) and `?` (any byte) matches all of `text`. Linear in space, quadratic in time at worst.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                // The last star takes one byte more.
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    p = star + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_number_of_its_place_and_every_status_a_kind() {
        for (number, event) in Event::ALL.iter().enumerate() {
            assert_eq!(*event as usize, number);
            assert_ne!(event.series().is_some(), event.error_label().is_some(), "{event:?}");
        }
        for status in Status::ALL {
            let name = status.name().strip_prefix("NIXL_ERR_").unwrap().to_lowercase();
            assert_eq!(Event::of(*status).error_label().unwrap(), name);
        }
    }

    #[test]
    fn patterns_select_by_name() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("*", "", true),
            ("a", "", false),
            ("agent_rx_*", "agent_rx_bytes", true),
            ("agent_rx_*", "agent_tx_bytes", false),
            ("*_bytes", "agent_tx_bytes", true),
            ("*x_b?t*s", "agent_tx_bytes", true),
            ("agent_?x_bytes", "agent_tx_bytes", true),
            ("*a*a*a", "aaa", true),
            ("*a*a*a*a", "aaa", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), matches, "{pattern} {text}");
        }
        assert_eq!(Mask::matching(" , "), (Mask::ALL, vec![]));
        let (mask, without) = Mask::matching("agent_rx_*, agent_err_backend,zork");
        assert_eq!(without, ["zork"]);
        let named: Vec<_> = Event::ALL.iter().filter(|event| mask.has(**event)).map(|e| e.name()).collect();
        assert_eq!(named, ["agent_rx_bytes", "agent_rx_requests_num", "agent_err_backend"]);
    }
}
