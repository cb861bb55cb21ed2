//! Configuration: every knob declared once, resolved once, and able to say where its value came from.
//!
//! The environment wins over the code, because the operator of a deployed container cannot change the code;
//! [`crate::AgentBuilder::ignore_environment`] turns that off. What was chosen is logged and can be read back from
//! [`Config`].

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// The environment variable that chooses the transports: names separated by commas, in order of preference, or
/// `auto`.
pub const TRANSPORT_VARIABLE: &str = "KVRAIL_TRANSPORT";

/// A numeric setting.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Knob {
    /// Name, unit last.
    pub name: &'static str,
    /// Environment variable that sets it.
    pub variable: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// Value when nothing sets it.
    pub default: u64,
    /// Values that are accepted.
    pub range: RangeInclusive<u64>,
    /// What it does and why one would change it.
    pub why: &'static str,
}

macro_rules! knobs {
    ($($id:ident: $name:literal, $variable:literal, $unit:literal, $default:expr, $range:expr, $why:literal;)*) => {
        /// Which knob.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Id { $($id),* }

        /// Every numeric setting of an agent.
        pub const KNOBS: &[Knob] = &[$(Knob {
            name: $name, variable: $variable, unit: $unit, default: $default, range: $range, why: $why,
        }),*];
    };
}

knobs! {
    TransferTimeout: "transfer_timeout_ms", "KVRAIL_TRANSFER_TIMEOUT_MS", "ms", 30_000, 1..=86_400_000,
        "a transfer that has not ended by then fails and says what it was waiting for; lower it where a \
         recomputation is cheaper than waiting";
    PeerTimeout: "peer_timeout_ms", "KVRAIL_PEER_TIMEOUT_MS", "ms", 10_000, 10..=86_400_000,
        "a peer with no usable route and no sign of life for this long is lost";
    CloseTimeout: "close_timeout_ms", "KVRAIL_CLOSE_TIMEOUT_MS", "ms", 2_000, 0..=600_000,
        "how long the end of an agent may wait for transfers in flight to drain";
    Spin: "spin_us", "KVRAIL_SPIN_US", "us", 200, 0..=1_000_000,
        "how long a waiting call, or the progress thread after something happened, looks at the rails before it \
         sleeps; raise it for latency on idle cores, lower \
         it to save processor time";
    InlineBytes: "inline_bytes_max", "KVRAIL_INLINE_BYTES_MAX", "bytes", 256 << 10, 0..=1 << 40,
        "with a progress thread, transfers up to this size are started by the thread that posts them";
    StripeBytes: "stripe_bytes_min", "KVRAIL_STRIPE_BYTES_MIN", "bytes", 128 << 10, 4096..=1 << 30,
        "descriptors from this size on are striped over all rails; smaller ones stay on one";
    InboxMessages: "inbox_messages_max", "KVRAIL_INBOX_MESSAGES_MAX", "messages", 4096, 1..=1 << 20,
        "notifications that may wait to be read; beyond that peers are held back";
    Transfers: "transfers_max", "KVRAIL_TRANSFERS_MAX", "transfers", 16_384,
        1..=kvrail_core::limits::TRANSFERS_MAX as u64,
        "transfers in flight per transport; posting more is refused";
}

/// A setting that is a text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TextKnob {
    /// Name.
    pub name: &'static str,
    /// Environment variable that sets it; one that is empty counts as not set.
    pub variable: &'static str,
    /// What may be written.
    pub form: &'static str,
    /// Value when nothing sets it.
    pub default: &'static str,
    /// What it does and why one would change it.
    pub why: &'static str,
}

macro_rules! texts {
    ($($id:ident: $name:literal, $variable:literal, $default:literal, $form:literal, $why:literal;)*) => {
        /// Which textual knob.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Text { $($id),* }

        impl Text {
            pub(crate) const ALL: [Self; TEXTS.len()] = [$(Self::$id),*];
        }

        /// Every textual setting of an agent.
        pub const TEXTS: &[TextKnob] = &[$(TextKnob {
            name: $name, variable: $variable, default: $default, form: $form, why: $why,
        }),*];
    };
}

texts! {
    OfiProvider: "ofi_provider", "KVRAIL_OFI_PROVIDER", "auto",
        "auto, or the name of one provider: efa-direct, efa, cxi, verbs, tcp, shm",
        "which libfabric provider carries the transport ofi; auto takes the best of those that drive an RDMA NIC, \
         and never tcp or shm";
    OfiDevices: "ofi_devices", "KVRAIL_OFI_DEVICES", "all", "all, or names of devices separated by commas",
        "which NICs (libfabric's domains) are used; name them to share a host, or to leave out a broken one";
    OfiRails: "ofi_rails", "KVRAIL_OFI_RAILS", "auto", "auto, or a number from 1 to 64",
        "how many rails; auto makes one per NIC, more than there are NICs puts several on each";
    OfiAffinity: "ofi_affinity", "KVRAIL_OFI_AFFINITY", "numa", "numa or all",
        "which rails a region of host memory is registered on: those of its NUMA node, or all; all uses every NIC for \
         memory of one node at the price of the link between the sockets";
    Libfabric: "libfabric", "KVRAIL_LIBFABRIC", "auto", "auto, or the path of libfabric.so.1 or of its directory",
        "which libfabric is loaded; auto looks where the system and Python packages have it";
}

/// Where a value came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Source {
    /// Nothing set it.
    Default,
    /// The program, by the builder.
    Code,
    /// The environment variable of that name.
    Environment(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Code => f.write_str("code"),
            Self::Environment(variable) => f.write_str(variable),
        }
    }
}

/// A setting that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The value is no number.
    #[error("{variable}=\"{value}\" is not a whole number of {unit}")]
    NotANumber {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it counts.
        unit: &'static str,
    },
    /// The value is outside its range.
    #[error("{name} is {value} {unit} (from {source_of_it}); {min} to {max} are possible")]
    OutOfRange {
        /// The knob.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it counts.
        unit: &'static str,
        /// Where the value came from.
        source_of_it: Source,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// The text is none that the setting knows.
    #[error("{name} is \"{value}\" (from {source_of_it}); it is {form}")]
    NoSuchForm {
        /// The knob.
        name: &'static str,
        /// Its value.
        value: String,
        /// Where the value came from.
        source_of_it: Source,
        /// What may be written.
        form: &'static str,
    },
}

/// What the program set; the environment is looked at when it is resolved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    values: [Option<u64>; KNOBS.len()],
    texts: [Option<String>; TEXTS.len()],
}

impl Settings {
    pub(crate) fn set(&mut self, id: Id, value: u64) {
        self.values[id as usize] = Some(value);
    }

    pub(crate) fn set_text(&mut self, id: Text, value: String) {
        self.texts[id as usize] = Some(value);
    }

    /// Sets a duration knob whose unit is milliseconds; a part of one counts as one.
    pub(crate) fn set_ms(&mut self, id: Id, value: Duration) {
        self.set(id, u64::try_from(value.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
    }

    pub(crate) fn resolve(
        &self,
        environment: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        let mut values = [(0, Source::Default); KNOBS.len()];
        for ((knob, set), resolved) in KNOBS.iter().zip(self.values).zip(&mut values) {
            let Knob { name, variable, unit, .. } = *knob;
            let (value, source_of_it) = match (environment(variable), set) {
                (Some(text), _) => {
                    let number = text.trim().parse();
                    let value =
                        number.map_err(|_| ConfigError::NotANumber { variable, value: text, unit })?;
                    (value, Source::Environment(variable))
                }
                (None, Some(value)) => (value, Source::Code),
                (None, None) => (knob.default, Source::Default),
            };
            if !knob.range.contains(&value) {
                let (min, max) = (*knob.range.start(), *knob.range.end());
                return Err(ConfigError::OutOfRange { name, value, unit, source_of_it, min, max });
            }
            *resolved = (value, source_of_it);
        }
        let texts = Text::ALL.map(|id| {
            let knob = &TEXTS[id as usize];
            match (environment(knob.variable), &self.texts[id as usize]) {
                (Some(text), _) if !text.trim().is_empty() => {
                    (text.trim().into(), Source::Environment(knob.variable))
                }
                (_, Some(text)) => (text.as_str().into(), Source::Code),
                _ => (knob.default.into(), Source::Default),
            }
        });
        Ok(Config { values, texts })
    }
}

/// The settings that an agent runs with.
#[derive(Clone, Debug)]
pub struct Config {
    values: [(u64, Source); KNOBS.len()],
    texts: [(Arc<str>, Source); TEXTS.len()],
}

impl Config {
    /// Every textual knob with its value and where that came from.
    pub fn texts(&self) -> impl Iterator<Item = (&'static TextKnob, &str, Source)> + '_ {
        TEXTS.iter().zip(&self.texts).map(|(knob, (value, source))| (knob, &**value, *source))
    }

    pub(crate) fn text(&self, id: Text) -> (&str, Source) {
        let (value, source) = &self.texts[id as usize];
        (value, *source)
    }

    /// The error for a text that its knob does not know.
    pub(crate) fn no_such_form(&self, id: Text) -> ConfigError {
        let TextKnob { name, form, .. } = TEXTS[id as usize];
        let (value, source_of_it) = self.text(id);
        ConfigError::NoSuchForm { name, value: value.into(), source_of_it, form }
    }

    /// Every numeric knob with its value and where that came from.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Knob, u64, Source)> + '_ {
        KNOBS.iter().zip(self.values).map(|(knob, (value, source))| (knob, value, source))
    }

    pub(crate) fn value(&self, id: Id) -> u64 {
        self.values[id as usize].0
    }

    pub(crate) fn count(&self, id: Id) -> usize {
        usize::try_from(self.value(id)).unwrap_or(usize::MAX)
    }

    pub(crate) fn ms(&self, id: Id) -> Duration {
        Duration::from_millis(self.value(id))
    }

    pub(crate) fn us(&self, id: Id) -> Duration {
        Duration::from_micros(self.value(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &'static str) -> Option<String> {
        None
    }

    #[test]
    fn every_default_is_within_its_range_and_every_name_ends_in_its_unit_or_a_bound() {
        let config = Settings::default().resolve(nothing).unwrap();
        assert!(
            config.iter().all(|(knob, value, source)| value == knob.default && source == Source::Default)
        );
        for (i, knob) in KNOBS.iter().enumerate() {
            assert_eq!(knob.variable, format!("KVRAIL_{}", knob.name.to_uppercase()));
            assert!(KNOBS[..i].iter().all(|other| other.name != knob.name));
        }
        for knob in TEXTS {
            assert_eq!(knob.variable, format!("KVRAIL_{}", knob.name.to_uppercase()));
            assert!(KNOBS.iter().all(|other| other.name != knob.name));
        }
    }

    #[test]
    fn a_text_comes_from_the_environment_unless_that_is_blank_then_from_the_code() {
        let mut settings = Settings::default();
        settings.set_text(Text::OfiProvider, "efa".into());
        let of = |settings: &Settings, text: Option<&'static str>| {
            let config = settings.resolve(|v| text.filter(|_| v == "KVRAIL_OFI_PROVIDER").map(str::to_owned));
            let config = config.unwrap();
            let (value, source) = config.text(Text::OfiProvider);
            (value.to_owned(), source)
        };
        let environment = Source::Environment("KVRAIL_OFI_PROVIDER");
        assert_eq!(of(&settings, Some(" tcp ")), ("tcp".into(), environment));
        assert_eq!(of(&settings, Some("  ")), ("efa".into(), Source::Code));
        assert_eq!(of(&Settings::default(), None), ("auto".into(), Source::Default));
        let config = settings.resolve(nothing).unwrap();
        assert!(config.texts().any(|(knob, value, _)| knob.name == "ofi_provider" && value == "efa"));
        assert_eq!(
            config.no_such_form(Text::OfiAffinity).to_string(),
            "ofi_affinity is \"numa\" (from default); it is numa or all"
        );
    }

    #[test]
    fn the_environment_wins_over_the_code_and_says_so() {
        let mut settings = Settings::default();
        settings.set(Id::Spin, 5);
        assert_eq!(settings.resolve(nothing).unwrap().value(Id::Spin), 5);
        let config = settings.resolve(|v| (v == "KVRAIL_SPIN_US").then(|| " 7 ".into())).unwrap();
        let (_, value, source) = config.iter().find(|(knob, ..)| knob.name == "spin_us").unwrap();
        assert_eq!((value, source), (7, Source::Environment("KVRAIL_SPIN_US")));
    }

    #[test]
    fn bad_values_name_the_knob_the_value_and_where_it_came_from() {
        let bad = |text: &'static str| {
            let environment = move |v| (v == "KVRAIL_TRANSFER_TIMEOUT_MS").then(|| text.to_string());
            Settings::default().resolve(environment).unwrap_err().to_string()
        };
        assert_eq!(bad("soon"), "KVRAIL_TRANSFER_TIMEOUT_MS=\"soon\" is not a whole number of ms");
        assert_eq!(
            bad("0"),
            "transfer_timeout_ms is 0 ms (from KVRAIL_TRANSFER_TIMEOUT_MS); 1 to 86400000 are possible"
        );
    }
}
