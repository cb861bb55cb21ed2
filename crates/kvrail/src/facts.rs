//! What an agent runs on: chosen how, over which provider, library and rails, and what was passed over (KR-13).

use std::fmt;

use kvrail_core::transport::{Evidence, RailInfo};
use kvrail_transport::ofi;

use crate::agent::Agent;
use crate::config::Source;
use crate::peer::PassedOver;

/// What an agent runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Facts {
    /// Its transports, in order of preference.
    pub transports: Vec<TransportFacts>,
    /// Transports that were to be used where they are possible, and are not possible here.
    pub passed_over: Vec<PassedOver>,
    /// Who chose the transports.
    pub chosen_by: Source,
}

/// What one transport runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TransportFacts {
    /// Its name.
    pub name: &'static str,
    /// What proves that the bytes of a write are visible at the target.
    pub evidence: Evidence,
    /// Its rails, in the order of their indices.
    pub rails: Vec<RailInfo>,
    /// For ofi: the library, the provider, the NICs and what they grant.
    pub ofi: Option<Box<ofi::Facts>>,
}

impl TransportFacts {
    /// Sum of the rails' line rates, bits per second; 0 when one is unknown.
    #[must_use]
    pub fn rate_bps(&self) -> u64 {
        if self.rails.iter().any(|rail| rail.rate_bps == 0) {
            return 0;
        }
        self.rails.iter().map(|rail| rail.rate_bps).sum()
    }
}

impl fmt::Display for TransportFacts {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, evidence, rails, ofi } = self;
        write!(f, "{name}")?;
        if let Some(ofi) = ofi {
            write!(f, " over provider {} of libfabric {}", ofi.provider, ofi.library)?;
        }
        write!(f, ", {} rail{}", rails.len(), if rails.len() == 1 { "" } else { "s" })?;
        if self.rate_bps() > 0 {
            write!(f, " of {} Gb/s together", self.rate_bps() as f64 / 1e9)?;
        }
        write!(f, ", evidence {evidence}")
    }
}

impl Agent {
    /// What it runs on.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let core = self.core();
        let transports = core.lanes.iter().map(|lane| {
            let turn = lane.turn(core);
            let ofi = match turn.fabric.facts() {
                kvrail_transport::Facts::Ofi(facts) => Some(facts),
                _ => None,
            };
            TransportFacts {
                name: lane.name,
                evidence: turn.fabric.caps().evidence,
                rails: turn.fabric.rails().to_vec(),
                ofi,
            }
        });
        Facts {
            transports: transports.collect(),
            passed_over: core.absent.iter().map(|absent| absent.passed_over.clone()).collect(),
            chosen_by: core.chosen_by,
        }
    }

    /// Says once what was chosen, by whom, and what was passed over.
    pub(crate) fn announce(&self) {
        let core = self.core();
        let names = self.transports().join(",");
        tracing::info!(
            agent = %core.name, incarnation = %core.incarnation, transports = %names, from = %core.chosen_by,
            "agent started"
        );
        if !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        for facts in self.facts().transports {
            tracing::info!(agent = %core.name, "transport {facts}");
        }
        for (knob, value, source) in core.config.texts() {
            if matches!(source, Source::Environment(_)) {
                tracing::info!(agent = %core.name, "{} is {value}, from {source}", knob.name);
            }
        }
    }
}
