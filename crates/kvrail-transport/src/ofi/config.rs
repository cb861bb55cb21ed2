//! What can be chosen about the transport, with ranges that are checked before any library is loaded.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use kvrail_core::limits::RAILS_MAX;

use super::error::OpenError;

/// Settings. The defaults use every NIC of the best fabric that the host has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The libfabric to load: a file, or a directory that holds `libfabric.so.1`. Default: none, which searches the
    /// loader's path and the places where EFA's installer and Python wheels put one. One would name it where several
    /// are installed and the release matters.
    pub library: Option<PathBuf>,
    /// Which provider. Default: [`Provider::Auto`].
    pub provider: Provider,
    /// Names of the NICs to use (`rdmap79s0`, `eth0`), as [`super::Facts`] lists them, in any order; at most
    /// [`RAILS_MAX`]. Default: empty, which takes all. One would name some to leave others to another process.
    pub devices: Vec<String>,
    /// Rails, 1 to [`RAILS_MAX`]. Default: none, one for each NIC. Fewer take the first NICs in PCI order; more open
    /// several endpoints on each NIC in turn, which a NIC with hardware queues gains nothing from: it is for `tcp`,
    /// where one stream is bound by one core, and for tests.
    pub rails: Option<u16>,
    /// Which rails a region is registered on. Default: [`Affinity::Numa`].
    pub affinity: Affinity,
    /// Ops in flight for each rail, 16 to 32,768; less where the provider's send queue is shorter. Default: 2,048:
    /// with 8 KiB ops 16 MiB, 13 times what a rail of 100 Gb/s has on its way in 100 µs. One would lower it to bound
    /// what a failing rail takes back, or to save memory.
    pub ops_in_flight_max: u32,
    /// Receives posted on each rail, 64 to 8,192; less where the provider's receive queue is shorter. Each takes
    /// [`super::fragment::FRAGMENT_BYTES`] of registered memory. Default: 1,024, which with 32 rails is 32 MiB. One would
    /// raise it where many peers write small counted transfers at once and the provider takes a receive for each write.
    pub receives: u32,
    /// Longest piece of memory in one registration, bytes; a power of two, 64 MiB to 1 TiB. Longer regions are registered in
    /// overlapping pieces. Default: 64 GiB, below what EFA registers of 4 KiB pages (about 95 GB). One would lower it where a
    /// device refuses large registrations.
    pub region_chunk_bytes: u64,
    /// How long after a failed op bytes of it may still land, 0 to 10 s. Default: none, the provider's own (see
    /// [`super::evidence`]). One would raise it on a fabric whose packets live longer.
    pub linger: Option<Duration>,
    /// How long ops may be in flight on a route without any progress before the route is given up, 10 ms to 10 min.
    /// Default: 3 s, above the two seconds after which EFA devices were seen to give a peer up. Shorter fails over
    /// sooner from a rail that is silent, and sometimes from one that is only slow.
    pub stall_timeout: Duration,
    /// Root of the tree that describes devices, in place of `/sys`. Default: none, which takes `SYSFS_PATH`, else `/sys`.
    pub sysfs: Option<PathBuf>,
}

/// Range of [`Config::ops_in_flight_max`].
pub const OPS_IN_FLIGHT: (u32, u32) = (16, 32_768);
/// Range of [`Config::receives`].
pub const RECEIVES: (u32, u32) = (64, 8_192);
/// Range of [`Config::region_chunk_bytes`].
pub const REGION_CHUNK_BYTES: (u64, u64) = (64 << 20, 1 << 40);
/// Upper end of [`Config::linger`].
pub const LINGER_MAX: Duration = Duration::from_secs(10);
/// Range of [`Config::stall_timeout`].
pub const STALL_TIMEOUT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(600));

impl Default for Config {
    fn default() -> Self {
        Self {
            library: None,
            provider: Provider::Auto,
            devices: Vec::new(),
            rails: None,
            affinity: Affinity::Numa,
            ops_in_flight_max: 2_048,
            receives: 1_024,
            region_chunk_bytes: 64 << 30,
            linger: None,
            stall_timeout: Duration::from_secs(3),
            sysfs: None,
        }
    }
}

impl Config {
    /// Checks every knob against its range.
    ///
    /// # Errors
    /// [`OpenError::Knob`] with the first one that is outside: its name, its value and the range.
    pub fn validate(&self) -> Result<(), OpenError> {
        let knob =
            |name: &'static str, value: String, range: String| Err(OpenError::Knob { name, value, range });
        let between = |name, value: u64, (least, most): (u64, u64)| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                knob(name, value.to_string(), format!("{least} to {most}"))
            }
        };
        if let Some(rails) = self.rails {
            between("rails", rails.into(), (1, RAILS_MAX as u64))?;
        }
        let widen = |(least, most): (u32, u32)| (least.into(), most.into());
        between("ops_in_flight_max", self.ops_in_flight_max.into(), widen(OPS_IN_FLIGHT))?;
        between("receives", self.receives.into(), widen(RECEIVES))?;
        between("region_chunk_bytes", self.region_chunk_bytes, REGION_CHUNK_BYTES)?;
        if !self.region_chunk_bytes.is_power_of_two() {
            return knob("region_chunk_bytes", self.region_chunk_bytes.to_string(), "a power of two".into());
        }
        if let Some(linger) = self.linger.filter(|&linger| linger > LINGER_MAX) {
            return knob("linger", format!("{linger:?}"), format!("0s to {LINGER_MAX:?}"));
        }
        let (least, most) = STALL_TIMEOUT;
        if !(least..=most).contains(&self.stall_timeout) {
            return knob(
                "stall_timeout",
                format!("{:?}", self.stall_timeout),
                format!("{least:?} to {most:?}"),
            );
        }
        if self.devices.len() > RAILS_MAX {
            return knob(
                "devices",
                format!("{} names", self.devices.len()),
                format!("0 to {RAILS_MAX} names"),
            );
        }
        for (at, device) in self.devices.iter().enumerate() {
            if device.is_empty() || device.contains(char::is_whitespace) {
                return knob("devices", format!("{device:?}"), "names without spaces".into());
            }
            if self.devices[..at].contains(device) {
                return knob("devices", format!("{device:?} twice"), "each name once".into());
            }
        }
        if let Provider::Named(name) = &self.provider {
            Provider::from_str(name)?;
        }
        Ok(())
    }
}

/// Which of libfabric's providers.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Provider {
    /// The first of [`AUTO`] that has a NIC here. Never a provider without one: `tcp` and `shm` are had by name only.
    #[default]
    Auto,
    /// This one or none.
    Named(String),
}

/// What [`Provider::Auto`] tries, in this order: `efa-direct` posts to the device without a protocol of its own between,
/// `efa` is there on older releases, `cxi` is HPE Slingshot's and `verbs` InfiniBand's and RoCE's.
pub const AUTO: [&str; 4] = ["efa-direct", "efa", "cxi", "verbs"];

/// A provider's longest name, bytes.
pub const PROVIDER_BYTES_MAX: usize = 32;

impl Provider {
    /// What is tried, in this order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Auto => AUTO.map(String::from).to_vec(),
            Self::Named(name) => vec![name.clone()],
        }
    }
}

impl FromStr for Provider {
    type Err = OpenError;

    /// Takes a provider's name in any case, `_` for `-`, or `auto`. Whether the library has it is found out at open.
    fn from_str(text: &str) -> Result<Self, OpenError> {
        let name = text.trim().to_ascii_lowercase();
        // libfabric's own spellings keep their underscores.
        let name = match name.as_str() {
            "" | "auto" => return Ok(Self::Auto),
            "efa_direct" | "efadirect" => "efa-direct".to_string(),
            "verbs;ofi_rxm" => "verbs".to_string(),
            "tcp;ofi_rxm" => "tcp".to_string(),
            _ => name,
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_;.".contains(c);
        if name.len() > PROVIDER_BYTES_MAX || !name.chars().all(fits) {
            return Err(OpenError::Knob {
                name: "provider",
                value: format!("{text:?}"),
                range: "auto, or a libfabric provider's name: efa-direct, efa, cxi, verbs, tcp, shm, …"
                    .into(),
            });
        }
        Ok(Self::Named(name))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// Which rails a region is registered on, and so may be moved over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Affinity {
    /// Those near it: a GPU's own NICs; for host memory that lies on one NUMA node, that node's. Fewer keys and
    /// registrations, and no traffic between sockets.
    #[default]
    Numa,
    /// All of them: for one large transfer at a time from one node's memory, where the way between sockets is
    /// faster than the NICs of one side.
    All,
}

impl FromStr for Affinity {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Self, OpenError> {
        match text.trim().to_ascii_lowercase().as_str() {
            "numa" => Ok(Self::Numa),
            "all" => Ok(Self::All),
            _ => Err(OpenError::Knob {
                name: "affinity",
                value: format!("{text:?}"),
                range: "numa or all".into(),
            }),
        }
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Numa => "numa",
            Self::All => "all",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_knob_out_of_range_is_named_with_its_value_and_range() {
        let default = Config::default;
        let devices = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        for (config, text) in [
            (Config { rails: Some(0), ..default() }, "rails is 0; it can be 1 to 64"),
            (Config { rails: Some(65), ..default() }, "rails is 65; it can be 1 to 64"),
            (Config { ops_in_flight_max: 15, ..default() }, "ops_in_flight_max is 15; it can be 16 to 32768"),
            (Config { receives: 9_000, ..default() }, "receives is 9000; it can be 64 to 8192"),
            (Config { region_chunk_bytes: 3 << 30, ..default() }, "3221225472; it can be a power of two"),
            (Config { region_chunk_bytes: 4096, ..default() }, "4096; it can be 67108864 to 1099511627776"),
            (
                Config { linger: Some(Duration::from_secs(11)), ..default() },
                "linger is 11s; it can be 0s to 10s",
            ),
            (
                Config { stall_timeout: Duration::ZERO, ..default() },
                "stall_timeout is 0ns; it can be 10ms to 600s",
            ),
            (
                Config { devices: devices(&["a b"]), ..default() },
                "devices is \"a b\"; it can be names without spaces",
            ),
            (
                Config { devices: devices(&["a", "a"]), ..default() },
                "devices is \"a\" twice; it can be each name once",
            ),
            (
                Config { provider: Provider::Named("no way".into()), ..default() },
                "provider is \"no way\"; it can be auto",
            ),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(text), "{error} should have said {text}");
        }
    }

    #[test]
    fn the_page_lists_every_setting_with_its_range() {
        let page = include_str!("../../../../docs/libfabric.md");
        // A setting that is added does not compile here until it is listed.
        let Config {
            library: _,
            provider: _,
            devices: _,
            rails: _,
            affinity: _,
            ops_in_flight_max,
            receives,
            region_chunk_bytes,
            linger: _,
            stall_timeout,
            sysfs: _,
        } = Config::default();
        let thousands =
            |n: u32| if n < 1_000 { n.to_string() } else { format!("{},{:03}", n / 1_000, n % 1_000) };
        let range = |(least, most)| format!("{} to {}", thousands(least), thousands(most));
        for (name, cells) in [
            ("library", "none: searched for".to_string()),
            ("provider", "`auto`".into()),
            ("devices", format!("all | up to {RAILS_MAX} names")),
            ("rails", format!("one for each NIC | 1 to {RAILS_MAX}")),
            ("affinity", format!("`{}` | `numa`, `all`", Affinity::default())),
            ("ops_in_flight_max", format!("{} | {}", thousands(ops_in_flight_max), range(OPS_IN_FLIGHT))),
            ("receives", format!("{} | {}", thousands(receives), range(RECEIVES))),
            (
                "region_chunk_bytes",
                format!(
                    "{} GiB | {} MiB to {} TiB",
                    region_chunk_bytes >> 30,
                    REGION_CHUNK_BYTES.0 >> 20,
                    REGION_CHUNK_BYTES.1 >> 40
                ),
            ),
            ("linger", format!("the provider's, above | 0 to {} s", LINGER_MAX.as_secs())),
            (
                "stall_timeout",
                format!(
                    "{} s | {} ms to {} min",
                    stall_timeout.as_secs(),
                    STALL_TIMEOUT.0.as_millis(),
                    STALL_TIMEOUT.1.as_secs() / 60
                ),
            ),
            ("sysfs", "`SYSFS_PATH`, else `/sys`".into()),
        ] {
            let row = format!("| `{name}` | {cells}");
            assert!(page.contains(&row), "docs/libfabric.md should have a row {row}");
        }
    }

    #[test]
    fn provider_names_are_taken_in_any_case() {
        let of = |text: &str| Provider::from_str(text).unwrap();
        let named = |name: &str| Provider::Named(name.into());
        assert_eq!(of("AUTO"), Provider::Auto);
        assert_eq!(of("EFA-Direct"), named("efa-direct"));
        assert_eq!(of("efa_direct"), named("efa-direct"));
        assert_eq!(of(" Tcp "), named("tcp"));
        assert_eq!(of("verbs;ofi_rxm"), named("verbs"));
        assert_eq!(of("psm3"), named("psm3"));
        assert!(Provider::from_str("efa direct").is_err());
        assert!(Provider::from_str(&"x".repeat(33)).is_err());
        assert_eq!(of("efa_direct").to_string(), "efa-direct");
    }

    #[test]
    fn auto_never_means_a_provider_without_a_nic() {
        let names = Provider::Auto.names();
        assert_eq!(names[0], "efa-direct");
        assert!(!names.iter().any(|name| name == "tcp" || name == "shm"));
    }
}
