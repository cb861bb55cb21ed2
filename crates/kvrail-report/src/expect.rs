//! What a machine should reach: expectations of instance types, shipped and from files, and what a run makes of them.
//!
//! The rule is one number wide: a figure within a tenth of what is expected, or above it, is healthy. A file names the source
//! of each figure, because an expectation without one is a rumour.

use serde::Deserialize;

use crate::judge::{carried_on_one_host, number, verdict};
use crate::units::about;
use crate::{Document, Memory, Row, Severity, Verdict};

/// The shipped file.
const SHIPPED: &str = include_str!("../data/expectations.toml");
/// Version of the file format.
const VERSION: u32 = 1;
/// A figure that misses its expectation by no more is healthy.
const TOLERANCE: f64 = 0.10;

/// A file of expectations.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    version: u32,
    #[serde(rename = "instance")]
    instances: Vec<Instance>,
}

/// What one instance type should reach.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Its name, as its firmware says it.
    pub name: String,
    /// Other names for it and for its like.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What it is, for people.
    #[serde(default)]
    pub about: String,
    /// Below what a figure is low whatever the engine.
    pub low: Option<Low>,
    /// The figures.
    #[serde(default, rename = "figure")]
    pub figures: Vec<Expected>,
}

/// Below what a figure is low.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Low {
    /// GB/s.
    pub gbps: f64,
    /// Of transfers of at least so many bytes.
    pub transfer_bytes_min: u64,
    /// Who says so.
    pub source: String,
}

/// Where the two ends of a transfer are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Between {
    /// On two hosts.
    #[default]
    Hosts,
    /// On one.
    Processes,
}

/// Where memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Of the host.
    Dram,
    /// Of a GPU.
    Vram,
}

/// One expected figure.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Engines that it is for, as rows name them; empty: any.
    #[serde(default)]
    pub engines: Vec<String>,
    /// Where the memory is; none: anywhere.
    pub memory: Option<Place>,
    /// Where the ends are.
    #[serde(default)]
    pub between: Between,
    /// Least and most bytes of a transfer.
    pub transfer_bytes: (u64, u64),
    /// GB/s: one figure, or the least and most that is expected.
    pub gbps: Gbps,
    /// Latency that went with it, microseconds: for people, nothing is held against it.
    pub latency_us: Option<f64>,
    /// Who says so.
    pub source: String,
}

/// An expected bandwidth, GB/s.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(untagged)]
pub enum Gbps {
    /// About so much.
    About(f64),
    /// From so much to so much.
    Between(f64, f64),
}

impl Gbps {
    /// The least that is expected.
    const fn least(self) -> f64 {
        match self {
            Self::About(gbps) | Self::Between(gbps, _) => gbps,
        }
    }

    fn words(self) -> String {
        match self {
            Self::About(gbps) => number(gbps),
            Self::Between(least, most) => format!("{} to {}", number(least), number(most)),
        }
    }
}

/// Why a file of expectations cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExpectError {
    /// No TOML, or not of this form.
    #[error("it is no file of expectations: {0}")]
    Malformed(#[from] toml::de::Error),
    /// Another version of the form.
    #[error("its version is {0}, and this program reads version {VERSION}")]
    Version(u32),
    /// A figure that cannot be.
    #[error("instance {instance}: {what}")]
    Senseless {
        /// The instance.
        instance: String,
        /// What is wrong.
        what: String,
    },
    /// No instance of that name.
    #[error("nothing is known of {name:?}; there is {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The file holds several instances, and the machine is none of them.
    #[error("it holds {}, and which of them this machine is cannot be told", known.join(", "))]
    Ambiguous {
        /// What there is.
        known: Vec<String>,
    },
}

impl Expectations {
    /// Those that the program brings along.
    #[must_use]
    pub fn shipped() -> Self {
        // A test reads it: it cannot fail here.
        Self::read(SHIPPED).unwrap_or(Self { version: VERSION, instances: Vec::new() })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// That it is none, or that a figure in it cannot be.
    pub fn read(text: &str) -> Result<Self, ExpectError> {
        let read: Self = toml::from_str(text)?;
        if read.version != VERSION {
            return Err(ExpectError::Version(read.version));
        }
        for instance in &read.instances {
            let senseless = |what: String| ExpectError::Senseless { instance: instance.name.clone(), what };
            for figure in &instance.figures {
                let least = figure.gbps.least();
                let most = if let Gbps::Between(_, most) = figure.gbps { most } else { least };
                if !(least > 0.0 && most >= least && most.is_finite()) {
                    return Err(senseless(format!("{} GB/s is no bandwidth", figure.gbps.words())));
                }
                let (from, to) = figure.transfer_bytes;
                if from > to {
                    return Err(senseless(format!("transfer_bytes from {from} to {to} holds no size")));
                }
                if figure.source.trim().is_empty() {
                    return Err(senseless("a figure has no source".into()));
                }
            }
        }
        Ok(read)
    }

    /// The instance of a name or alias, in any case.
    ///
    /// # Errors
    /// That there is none.
    pub fn instance(&self, name: &str) -> Result<&Instance, ExpectError> {
        let unknown = || ExpectError::Unknown { name: name.into(), known: self.names() };
        self.instances.iter().find(|instance| instance.is(name)).ok_or_else(unknown)
    }

    /// The only instance, or the one that the document's hosts are.
    ///
    /// # Errors
    /// That it cannot be told.
    pub fn instance_of(&self, document: &Document) -> Result<&Instance, ExpectError> {
        match self.instances.as_slice() {
            [only] => Ok(only),
            _ => self.matching(document).ok_or_else(|| ExpectError::Ambiguous { known: self.names() }),
        }
    }

    fn names(&self) -> Vec<String> {
        self.instances.iter().map(|instance| instance.name.clone()).collect()
    }

    /// The instance that both hosts are.
    fn matching(&self, document: &Document) -> Option<&Instance> {
        let sides = [&document.fingerprint.initiator, &document.fingerprint.target];
        let mut machines = sides.into_iter().flatten().map(|print| print.machine.as_deref());
        let machine = machines.next()??;
        let instance = self.instances.iter().find(|instance| instance.is(machine))?;
        machines.all(|machine| machine.is_some_and(|machine| instance.is(machine))).then_some(instance)
    }
}

/// What a run makes of an instance's expectations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Rows within a tenth of what is expected, or above.
    pub healthy: usize,
    /// Rows below.
    pub below: usize,
}

impl Outcome {
    /// 0: all that could be compared is healthy; 1: something is not; 2: nothing could be compared.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self { below: 1.., .. } => 1,
            Self { healthy: 1.., .. } => 0,
            Self { healthy: 0, below: 0 } => 2,
        }
    }
}

impl Instance {
    fn is(&self, name: &str) -> bool {
        std::iter::once(&self.name).chain(&self.aliases).any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Holds every row against its expectation, and adds the verdicts to the rows. To be called after
    /// [`Document::judge`], which takes them away again.
    pub fn judge(&self, document: &mut Document) -> Outcome {
        let mut outcome = Outcome::default();
        let verdicts: Vec<Option<Verdict>> = document
            .results
            .iter()
            .map(|row| {
                let judged = self.judge_row(document, row)?;
                match judged.severity {
                    Severity::Good => outcome.healthy += 1,
                    _ => outcome.below += 1,
                }
                Some(judged)
            })
            .collect();
        for (row, verdict) in document.results.iter_mut().zip(verdicts) {
            row.verdicts.retain(|verdict| !["healthy", "below-expectation"].contains(&verdict.id.as_str()));
            row.verdicts.extend(verdict);
        }
        outcome
    }

    fn judge_row(&self, document: &Document, row: &Row) -> Option<Verdict> {
        let expected = self.figures.iter().find(|expected| expected.is_for(document, row))?;
        let words = |gbps: f64| {
            let of = expected.gbps.words();
            format!("{} GB/s of {of} GB/s expected of {} ({})", number(gbps), self.name, expected.source)
        };
        let Some(gbps) = row.bandwidth_gbps() else {
            let text = format!(
                "no figure that counts, and {} GB/s are expected of {}",
                expected.gbps.words(),
                self.name
            );
            return Some(verdict("below-expectation", Severity::Bad, text));
        };
        // A number that crossed no wire meets no expectation of the wire.
        let impossible = row.verdicts.iter().any(|verdict| verdict.id == "did-not-cross-the-network");
        let least = expected.gbps.least();
        if gbps >= least * (1.0 - TOLERANCE) && !impossible {
            return Some(verdict("healthy", Severity::Good, words(gbps)));
        }
        let text = format!("{}, {:.0}%", words(gbps), gbps / least * 100.0);
        Some(verdict("below-expectation", Severity::Bad, text))
    }

    /// That a figure is low, with what the document shows of the reasons.
    pub(crate) fn low(&self, document: &Document, row: &Row) -> Option<Verdict> {
        let low = self.low.as_ref()?;
        let gbps = row.bandwidth_gbps()?;
        let of_wire = !matches!(row.transport.as_deref(), Some("shm" | "memcpy"));
        if gbps >= low.gbps || row.transfer_bytes() < low.transfer_bytes_min || !of_wire {
            return None;
        }
        let reasons = diagnosis(document, row);
        let reasons =
            if reasons.is_empty() { "the document shows no reason".into() } else { reasons.join("; ") };
        let text = format!(
            "{} GB/s is low for {} at {}, where less than {} is ({}): {reasons}",
            number(gbps),
            self.name,
            about(row.transfer_bytes()),
            number(low.gbps),
            low.source
        );
        Some(verdict("low", Severity::Warning, text))
    }
}

impl Expected {
    fn is_for(&self, document: &Document, row: &Row) -> bool {
        let engine = self.engines.is_empty()
            || self.engines.iter().any(|engine| engine.eq_ignore_ascii_case(&row.engine));
        let place = match row.memory {
            Memory::Shared | Memory::Private | Memory::Huge => Place::Dram,
        };
        let between = if carried_on_one_host(document, row) { Between::Processes } else { Between::Hosts };
        let (from, to) = self.transfer_bytes;
        engine
            && self.memory.is_none_or(|memory| memory == place)
            && self.between == between
            && (from..=to).contains(&row.transfer_bytes())
    }
}

/// The verdict that a figure is low, on a machine of which it is known what is.
pub(crate) fn low(document: &Document, row: &Row) -> Option<Verdict> {
    use std::sync::OnceLock;
    static SHIPPED: OnceLock<Expectations> = OnceLock::new();
    let shipped = SHIPPED.get_or_init(Expectations::shipped);
    shipped.matching(document)?.low(document, row)
}

/// What may be why, as far as the document shows it.
fn diagnosis(document: &Document, row: &Row) -> Vec<String> {
    let mut reasons = Vec::new();
    let sides = [("initiator", &document.fingerprint.initiator), ("target", &document.fingerprint.target)];
    for (side, print) in sides.into_iter().filter_map(|(side, print)| Some((side, print.as_ref()?))) {
        let is = |name: &str, wanted: &[&str]| {
            let value = print.variables.get(name)?;
            wanted.iter().any(|w| value.eq_ignore_ascii_case(w)).then(|| value.clone())
        };
        if is("FI_HMEM_DISABLE_P2P", &["1", "true", "yes", "on"]).is_some() {
            reasons.push(format!("P2P is disabled at the {side} (FI_HMEM_DISABLE_P2P); set it to 0"));
        }
        for name in ["FI_LOG_LEVEL", "UCX_LOG_LEVEL", "NIXL_LOG_LEVEL"] {
            if let Some(value) = is(name, &["debug", "trace", "data", "func", "poll", "req"]) {
                reasons.push(format!("the {side} logs every operation ({name}={value}); leave that out"));
            }
        }
        let efa = print
            .topology
            .as_ref()
            .is_some_and(|topology| topology.nics.iter().any(|nics| nics.kind == "efa"));
        if print.topology.is_some() && !efa {
            reasons.push(format!("the {side} sees no EFA device; give the pod vpc.amazonaws.com/efa"));
        }
    }
    if carried_on_one_host(document, row) {
        reasons.push("both sides are on one host; place the pods on different nodes".into());
    }
    let side = document.used(row).and_then(|used| used.initiator.as_ref());
    if let Some(provider) = side.and_then(|side| side.provider())
        && !provider.starts_with("efa")
    {
        reasons.push(format!("the provider is {provider}, not efa"));
    } else if row.transport.as_deref() == Some("tcp") {
        reasons.push("the transport is tcp".into());
    }
    let down: Vec<&str> =
        row.rails.iter().filter(|rail| rail.downs > 0).map(|rail| rail.name.as_str()).collect();
    if !down.is_empty() {
        reasons.push(format!("rails were down: {}", down.join(", ")));
    }
    reasons
}

#[cfg(test)]
#[path = "expect_tests.rs"]
mod tests;
