//! The limit of a libfabric provider: `fi_read` or `fi_write` of whole blocks, without a protocol, over one or more rails.
//!
//! A rail is an endpoint on a domain of its own; rail `i` of the initiator talks to rail `i` of the target. Each rail takes
//! a contiguous share of the batch and keeps as many operations in flight as the provider takes, posted in bursts that
//! ring one doorbell (`FI_MORE`).
//!
//! READ is complete when all local completions are there. WRITE is complete when the bytes are known to be at the target:
//! by delivery-complete completions where the provider grants them ([`Evidence::Delivered`]), else by immediates that the
//! target counts, which it answers with one message ([`Evidence::Counted`]). That is the evidence that kvrail has as well.
//!
//! The initiator polls. The target polls, or sleeps when nothing comes: some providers move no byte into or out of a
//! process that does not poll, others are faster when it leaves the core to the initiator.

mod initiator;
mod open;
mod rail;
mod target;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use self::initiator::Initiator;
pub(crate) use self::target::Target;

use self::rail::Rail;
use crate::error::LimitError;
use crate::memory::Pool;
use crate::workload::Wait;

/// What the fabric is opened with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// libfabric.so.1 or its directory; none: searched for.
    pub(crate) library: Option<PathBuf>,
    pub(crate) provider: String,
    pub(crate) rails: usize,
    /// Operations in flight on a rail; none: as many as the provider takes.
    pub(crate) depth: Option<usize>,
    /// How the target waits.
    pub(crate) wait: Wait,
}

/// What proves that the bytes of a write are at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Evidence {
    /// The completion itself.
    Delivered,
    /// An immediate with each write, counted at the target.
    Counted,
}

impl Evidence {
    /// Of the providers in use only tcp keeps the promise of `FI_DELIVERY_COMPLETE`: efa-direct does not offer it, efa's turns
    /// the write into messages, and shm completes writes with a wrong key.
    fn of(provider: &str) -> Self {
        if provider == "tcp" { Self::Delivered } else { Self::Counted }
    }
}

/// What a peer must know of a rail.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RailOffer {
    /// The endpoint's.
    pub(crate) address: Vec<u8>,
    /// Of the pool, on this rail.
    pub(crate) key: u64,
    /// Where the pool begins, as operations name it.
    pub(crate) base: u64,
}

/// What a row says of the fabric.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Facts {
    provider: String,
    /// Device or interface of each rail.
    domains: Vec<String>,
    rails: usize,
    /// Operations in flight on a rail.
    depth: usize,
    evidence: Evidence,
    libfabric: String,
}

/// One side's rails, with the pool registered on each.
#[derive(Debug)]
pub(crate) struct Fabric<'a> {
    rails: Vec<Rail<'a>>,
    offers: Vec<RailOffer>,
    evidence: Evidence,
    facts: Facts,
}

impl<'a> Fabric<'a> {
    /// Opens the rails. `sleeps`: this side may want to sleep on them.
    pub(crate) fn open(options: &Options, sleeps: bool, pool: &'a Pool) -> Result<Self, LimitError> {
        let infos = open::choose(options)?;
        let evidence = Evidence::of(&options.provider);
        let fd = sleeps && options.wait == Wait::Block;
        let depth = options.depth;
        let rails = infos.iter().enumerate().map(|(index, info)| Rail::open(index, info, depth, fd, pool));
        let rails: Vec<Rail<'_>> = rails.collect::<Result<_, _>>()?;
        let offers = rails.iter().map(Rail::offer).collect::<Result<_, _>>()?;
        let facts = Facts {
            provider: options.provider.clone(),
            domains: infos.iter().map(|info| info.first().domain_name().to_owned()).collect(),
            rails: rails.len(),
            depth: rails.iter().map(Rail::depth).min().unwrap_or(0),
            evidence,
            libfabric: infos.first().map(|info| info.library().to_string()).unwrap_or_default(),
        };
        Ok(Self { rails, offers, evidence, facts })
    }

    /// What the other side must know.
    pub(crate) fn offers(&self) -> &[RailOffer] {
        &self.offers
    }

    pub(crate) fn facts(&self) -> Facts {
        self.facts.clone()
    }

    /// Learns the other side's rails.
    pub(crate) fn meet(&mut self, offers: &[RailOffer]) -> Result<(), LimitError> {
        if offers.len() != self.rails.len() {
            let why = format!("{} rails here, {} at the other side", self.rails.len(), offers.len());
            return Err(LimitError::NoFabric { why });
        }
        self.rails.iter_mut().zip(offers).try_for_each(|(rail, offer)| rail.meet(offer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tcp_is_believed_when_it_says_delivered() {
        assert_eq!(Evidence::of("tcp"), Evidence::Delivered);
        for provider in ["efa", "efa-direct", "shm", "verbs;ofi_rxm"] {
            assert_eq!(Evidence::of(provider), Evidence::Counted);
        }
    }
}
